// Package verifier decides whether a Signed Build Attestation (SBA) may be
// rebuilt here.
//
// An SBA is a DSSE envelope (package dsse) around a build ledger, which is an
// in-toto Statement v1 in strict JSON (Statement; docs/ledger.md says it for
// people). What arrives is an SBA, which shows nothing of its content; what
// Verify returns is an Attestation, and nothing else makes one. Its identity is
// the SHA-256 of the payload, never of the envelope, because anybody can add a
// signature to an envelope.
//
// Whatever cannot be decided is refused: an empty policy, a zero SBA, a model
// that no rule names.
package verifier

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// maxSkew is how far a publisher's clock may be ahead of this one.
const maxSkew = 5 * time.Minute

// SBA is a Signed Build Attestation that has arrived: its size and shape are
// known, nothing else. The zero SBA is refused by Verify.
type SBA struct {
	raw      []byte
	envelope dsse.Envelope
	proof    []byte // nil: none came with it
}

// IsZero reports whether s holds nothing.
func (s SBA) IsZero() bool { return len(s.raw) == 0 }

// ParseSBA checks size and shape. The error is a *Refusal of ReasonMalformed.
func ParseSBA(data []byte) (SBA, error) {
	e, err := dsse.Parse(data)
	if err != nil {
		return SBA{}, refuse(ReasonMalformed, "SBA: %v", err)
	}
	// No ledger is longer, and each of 16 junk signatures costs one hash of the
	// payload for each key of the policy.
	if n := len(e.UnverifiedPayload()); n > maxText {
		return SBA{}, refuse(ReasonMalformed, "SBA: payload: expected at most %d bytes, got %d", maxText, n)
	}
	return SBA{raw: slices.Clone(data), envelope: e}, nil
}

// ReadSBA reads an SBA to EOF and parses it. Of a longer input it reads one
// byte more than an envelope may have. An error of r is returned as such; every
// other error is a *Refusal.
func ReadSBA(r io.Reader) (SBA, error) {
	data, err := io.ReadAll(io.LimitReader(r, dsse.MaxEnvelope+1))
	if err != nil {
		return SBA{}, fmt.Errorf("reading an SBA: %w", err)
	}
	if len(data) > dsse.MaxEnvelope {
		return SBA{}, refuse(ReasonMalformed, "SBA: expected at most %d bytes, got more", dsse.MaxEnvelope)
	}
	return ParseSBA(data)
}

// Attestation is an SBA that a Verifier believed: only Verify makes one. The
// zero Attestation attests nothing.
type Attestation struct {
	ledger     Ledger
	envelope   []byte
	publisher  dsse.PublicKey
	name       string
	verifiedAt time.Time
	logged     logged
}

// IsZero reports whether a attests nothing.
func (a Attestation) IsZero() bool { return a.ledger.IsZero() }

// Digest returns the identity of the SBA: the SHA-256 of its payload.
func (a Attestation) Digest() hashpipe.Digest { return a.ledger.digest }

// Ledger returns the ledger that was verified.
func (a Attestation) Ledger() Ledger { return a.ledger }

// Envelope returns a copy of the envelope as it arrived.
func (a Attestation) Envelope() []byte { return slices.Clone(a.envelope) }

// Publisher returns the key that the ledger names and that signed it.
func (a Attestation) Publisher() dsse.PublicKey { return a.publisher }

// PublisherName returns the name of the policy rule that allowed the ledger.
func (a Attestation) PublisherName() string { return a.name }

// VerifiedAt returns the time that was given to Verify, in UTC.
func (a Attestation) VerifiedAt() time.Time { return a.verifiedAt }

// Verifier holds one policy. The zero Verifier refuses everything.
type Verifier struct{ policy *Policy }

// New returns a Verifier for a copy of p. It refuses a policy that ParsePolicy
// would refuse.
func New(p *Policy) (*Verifier, error) {
	c, err := p.clone()
	if err != nil {
		return nil, err
	}
	return &Verifier{c}, nil
}

// Verify checks s against the policy at the moment now, in this order:
//
//  1. signed by any publisher key of the policy; nothing of the payload is
//     read before that;
//  2. the very bytes that were signed are a ledger (ParseLedger);
//  3. the most specific rule for the ledger's model is met: signed by as many
//     of that rule's keys as its threshold says, the key that the ledger names
//     among them; a key outside its window at now does not count;
//  4. that rule allows the environment image and the sequence, and the policy
//     the environment variables;
//  5. issuedAt is not more than five minutes ahead of now;
//  6. it lies in a log, if the rule wants that or if it came with a proof and
//     the policy names logs (SBA.WithProof).
//
// A policy that has expired at now refuses everything before that. Every error
// is a *Refusal, for the first of these that fails.
func (v *Verifier) Verify(s SBA, now time.Time) (Attestation, error) {
	if v == nil || v.policy == nil {
		return Attestation{}, refuse(ReasonPolicy, "SBA: there is no policy to verify it with")
	}
	if s.IsZero() {
		return Attestation{}, refuse(ReasonMalformed, "SBA: it is empty")
	}
	if err := v.policy.checkUnexpired(now); err != nil {
		return Attestation{}, err
	}
	keys := v.policy.publisherKeys()
	if len(keys) == 0 {
		return Attestation{}, refuse(ReasonSigner, "SBA: the policy names no publisher; next: clawfs publisher trust")
	}
	payload, _, err := s.envelope.Verify(dsse.PayloadType, keys, 1)
	if err != nil {
		return Attestation{}, refuseEnvelope(ReasonSignature, err, "the policy's publisher keys")
	}
	ledger, err := ParseLedger(payload)
	if err != nil {
		return Attestation{}, err
	}
	st := ledger.Statement()
	rule, publisher, err := v.signer(s.envelope, st, now)
	if err != nil {
		return Attestation{}, err
	}
	if err := v.policy.allow(rule, st); err != nil {
		return Attestation{}, err
	}
	if at := st.Predicate.IssuedAt; at.Time().After(now.Add(maxSkew)) {
		return Attestation{}, refuse(ReasonTime, "SBA of %s: it says it was issued at %s, and here it is %s; one of the clocks is wrong",
			st.Predicate.Model, at, now.UTC().Format(timeLayout))
	}
	entry, err := v.policy.logged(rule, s.proof, payload, publisher, st.Predicate.Model)
	if err != nil {
		return Attestation{}, err
	}
	return Attestation{ledger, slices.Clone(s.raw), publisher, rule.Name, now.UTC(), entry}, nil
}

// signer finds the rule for the ledger's model and the key that speaks for it.
func (v *Verifier) signer(e dsse.Envelope, st Statement, now time.Time) (PublisherRule, dsse.PublicKey, error) {
	model := st.Predicate.Model
	rule, ok := v.policy.Rule(model)
	if !ok {
		return rule, dsse.PublicKey{}, refuse(ReasonSigner, "SBA of %s: the policy names no publisher for this model; next: clawfs publisher trust", model)
	}
	_, signers, err := e.Verify(dsse.PayloadType, rule.Keys, int(rule.Threshold))
	if err != nil {
		return rule, dsse.PublicKey{}, refuseEnvelope(ReasonSigner, err, fmt.Sprintf("publisher %s, who alone speaks for %s", rule.Name, model))
	}
	want := st.Predicate.Publisher.KeyID
	i := slices.IndexFunc(signers, func(k dsse.PublicKey) bool { return k.ID() == want })
	if i < 0 {
		return rule, dsse.PublicKey{}, refuse(ReasonSigner, "SBA of %s: the ledger names the publisher key %s, and it was signed by %s", model, want, signers[0].ID())
	}
	publisher := signers[i]
	if err := rule.Windows[want].at(want, now); err != nil {
		return rule, dsse.PublicKey{}, refuse(ReasonSigner, "SBA of %s: publisher %s: %v", model, rule.Name, err)
	}
	valid := 0
	var late error
	for _, k := range signers {
		if err := rule.Windows[k.ID()].at(k.ID(), now); err != nil {
			late = err
		} else {
			valid++
		}
	}
	if valid < int(rule.Threshold) {
		return rule, dsse.PublicKey{}, refuse(ReasonSigner, "SBA of %s: expected %d valid keys of publisher %s, got %d: %v", model, rule.Threshold, rule.Name, valid, late)
	}
	return rule, publisher, nil
}

// refuseEnvelope tells a bad envelope from a bad signature.
func refuseEnvelope(reason Reason, err error, whose string) *Refusal {
	if errors.Is(err, dsse.ErrUnverified) {
		return refuse(reason, "SBA: %v; the keys asked are those of %s", err, whose)
	}
	return refuse(ReasonMalformed, "SBA: %v", err)
}
