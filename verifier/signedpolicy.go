package verifier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// PolicyPayloadType is the payloadType of a signed policy. Its payload is the
// text of policy.json itself and no statement around it, so that the file which
// is installed is the very bytes that were signed.
const PolicyPayloadType = "application/vnd.clawfs.policy+json"

const (
	// MaxPolicyFile bounds a file of signed policies in bytes.
	MaxPolicyFile = 64 << 20
	// maxRevisions bounds the signed policies of one file.
	maxRevisions = 1024
)

// SignedPolicy is a policy that the keys of its own root have signed, as many
// as its threshold says. Only OpenPolicy, FirstPolicy and NextPolicy return one,
// and what the signatures mean depends on which. The zero SignedPolicy holds
// nothing.
type SignedPolicy struct {
	policy   *Policy
	text     []byte
	envelope []byte
	signers  []dsse.PublicKey
}

// IsZero reports whether s holds nothing.
func (s SignedPolicy) IsZero() bool { return s.policy == nil }

// Policy returns the policy; it is nil for the zero SignedPolicy.
func (s SignedPolicy) Policy() *Policy { return s.policy }

// Text returns a copy of the text that was signed: policy.json.
func (s SignedPolicy) Text() []byte { return slices.Clone(s.text) }

// Envelope returns a copy of the envelope as it arrived.
func (s SignedPolicy) Envelope() []byte { return slices.Clone(s.envelope) }

// Digest returns the SHA-256 of the text.
func (s SignedPolicy) Digest() hashpipe.Digest { return hashpipe.SumBytes(s.text).Claim() }

// Signers returns the keys of the policy's own root that signed it.
func (s SignedPolicy) Signers() []dsse.PublicKey { return slices.Clone(s.signers) }

// SignPolicy returns an envelope around the text of p (Encode) with one
// signature of each signer. A policy without a root is an error. The keys may
// be those of p's root, of the root before, or of both.
func SignPolicy(ctx context.Context, p *Policy, signers ...dsse.Signer) ([]byte, error) {
	text, err := p.Encode()
	if err != nil {
		return nil, err
	}
	if p.Root == nil {
		return nil, errors.New("policy: it has no root, so nobody's signature would count")
	}
	return dsse.SignContext(ctx, PolicyPayloadType, text, signers...)
}

// AddSignature returns the envelope with one more signature, over the payload as
// it is. It refuses an envelope that holds no policy with a root, and one that
// the signer's key has signed already.
func AddSignature(ctx context.Context, envelope []byte, signer dsse.Signer) ([]byte, error) {
	p, text, err := UnverifiedPolicy(envelope)
	if err != nil {
		return nil, err
	}
	if p.Root == nil {
		return nil, refuse(ReasonPolicy, "policy: it has no root, so nobody's signature would count")
	}
	e, err := dsse.Parse(envelope)
	if err != nil {
		return nil, err
	}
	if _, _, err := e.Verify(PolicyPayloadType, []dsse.PublicKey{signer.Public()}, 1); err == nil {
		return nil, refuse(ReasonPolicy, "policy revision %d: key %s has signed it already", p.Revision, signer.Public().ID())
	}
	one, err := dsse.SignContext(ctx, PolicyPayloadType, text, signer)
	if err != nil {
		return nil, err
	}
	return dsse.Merge(envelope, one)
}

// UnverifiedPolicy reads the policy in an envelope and its text without looking
// at any signature. It serves to show a policy and to sign it. The error is a
// *Refusal.
func UnverifiedPolicy(envelope []byte) (*Policy, []byte, error) {
	e, err := parsePolicyEnvelope(envelope)
	if err != nil {
		return nil, nil, err
	}
	if got := e.UnverifiedPayloadType(); got != PolicyPayloadType {
		return nil, nil, refuse(ReasonMalformed, "signed policy: expected payloadType %q, got %q", PolicyPayloadType, clip(got))
	}
	text := e.UnverifiedPayload()
	p, err := ParsePolicy(text)
	if err != nil {
		return nil, nil, refuse(ReasonMalformed, "signed %v", err)
	}
	return p, text, nil
}

// PolicySigners returns those of keys that signed the envelope, in the order of
// keys. The error is a *Refusal; no signature is none.
func PolicySigners(envelope []byte, keys []dsse.PublicKey) ([]dsse.PublicKey, error) {
	e, err := parsePolicyEnvelope(envelope)
	if err != nil {
		return nil, err
	}
	_, signers, err := e.Verify(PolicyPayloadType, keys, 1)
	if err != nil && !errors.Is(err, dsse.ErrUnverified) {
		return nil, refuse(ReasonMalformed, "signed policy: %v", err)
	}
	return signers, nil
}

// OpenPolicy reads a signed policy and checks it against its own root. That
// shows that the text is whole as it was signed, not that anybody here chose
// these keys. The error is a *Refusal.
func OpenPolicy(envelope []byte) (SignedPolicy, error) {
	p, text, err := UnverifiedPolicy(envelope)
	if err != nil {
		return SignedPolicy{}, err
	}
	if p.Root == nil {
		return SignedPolicy{}, refuse(ReasonPolicy, "signed policy: it has no root, so it is worth no more than the one who can write the file")
	}
	e, err := parsePolicyEnvelope(envelope)
	if err != nil {
		return SignedPolicy{}, err
	}
	signers, err := checkSigners(e, p.Root, fmt.Sprintf("its own root (revision %d)", p.Revision))
	if err != nil {
		return SignedPolicy{}, err
	}
	return SignedPolicy{p, text, slices.Clone(envelope), signers}, nil
}

// FirstPolicy is OpenPolicy for a machine whose policy has no root: somebody
// who may decide it believes the root in the envelope from then on. It refuses
// a current policy that has a root, and an envelope that has expired at now. A
// nil current stands for a machine without a policy.
func FirstPolicy(current *Policy, envelope []byte, now time.Time) (SignedPolicy, error) {
	if current != nil && current.Root != nil {
		return SignedPolicy{}, refuse(ReasonPolicy, "signed policy: the policy here has a root already (revision %d), whose keys must sign the next one", current.Revision)
	}
	s, err := OpenPolicy(envelope)
	if err != nil {
		return SignedPolicy{}, err
	}
	if err := s.policy.checkUnexpired(now); err != nil {
		return SignedPolicy{}, err
	}
	return s, nil
}

// NextPolicy checks the successor of current by the rule for roots of The
// Update Framework (specification, 5.3), in this order:
//
//  1. as many keys of current's root as its threshold says have signed it;
//     what the payload says before that goes into words only;
//  2. the very bytes that were signed are a policy, and it has a root;
//  3. as many keys of its own root as its threshold says have signed it;
//  4. its revision is current's plus one;
//  5. it has not expired at now.
//
// Every error is a *Refusal, for the first of these that fails.
func NextPolicy(current *Policy, envelope []byte, now time.Time) (SignedPolicy, error) {
	return NextPolicies(current, [][]byte{envelope}, now)
}

// NextPolicies is NextPolicy for a machine that is several revisions behind: it
// checks the envelopes one after the other, each against the one before, and
// returns the last. Only the last must not have expired at now. Envelopes at the
// beginning whose text says that it is current's revision or an older one are
// passed over, so that one file with all revisions serves every machine; one at
// least must be newer.
func NextPolicies(current *Policy, envelopes [][]byte, now time.Time) (SignedPolicy, error) {
	if current == nil || current.Root == nil {
		return SignedPolicy{}, refuse(ReasonPolicy, "signed policy: the policy here has no root, so nobody is known who could sign the next one")
	}
	if len(envelopes) == 0 {
		return SignedPolicy{}, refuse(ReasonMalformed, "signed policy: there is none")
	}
	for len(envelopes) > 1 && isOld(current, envelopes[0]) {
		envelopes = envelopes[1:]
	}
	var last SignedPolicy
	for _, envelope := range envelopes {
		next, err := successor(current, envelope)
		if err != nil {
			return SignedPolicy{}, err
		}
		current, last = next.policy, next
	}
	if err := last.policy.checkUnexpired(now); err != nil {
		return SignedPolicy{}, err
	}
	return last, nil
}

func isOld(current *Policy, envelope []byte) bool {
	p, _, err := UnverifiedPolicy(envelope)
	return err == nil && p.Root != nil && p.Revision <= current.Revision
}

func successor(current *Policy, envelope []byte) (SignedPolicy, error) {
	e, err := parsePolicyEnvelope(envelope)
	if err != nil {
		return SignedPolicy{}, err
	}
	whose := fmt.Sprintf("the root of the policy here (revision %d)", current.Revision)
	if claimed, _, err := UnverifiedPolicy(envelope); err == nil {
		whose += fmt.Sprintf("; it says that it is revision %d", claimed.Revision)
	}
	if _, err := checkSigners(e, current.Root, whose); err != nil {
		return SignedPolicy{}, err
	}
	next, err := OpenPolicy(envelope)
	if err != nil {
		return SignedPolicy{}, err
	}
	switch got, want := next.policy.Revision, current.Revision+1; {
	case got < want:
		return SignedPolicy{}, refuse(ReasonRollback, "signed policy: expected revision %d, got %d: this is not newer than the one here", want, got)
	case got > want:
		return SignedPolicy{}, refuse(ReasonRollback, "signed policy: expected revision %d, got %d: each revision is checked with the root of the one before; next: install a file that has revisions %d to %[2]d, one envelope a line", want, got, want)
	}
	return next, nil
}

// parsePolicyEnvelope bounds what a policy may be before a key looks at it.
func parsePolicyEnvelope(data []byte) (dsse.Envelope, error) {
	e, err := dsse.Parse(data)
	if err != nil {
		return dsse.Envelope{}, refuse(ReasonMalformed, "signed policy: %v", err)
	}
	if n := len(e.UnverifiedPayload()); n > maxText {
		return dsse.Envelope{}, refuse(ReasonMalformed, "signed policy: expected at most %d bytes of text, got %d", maxText, n)
	}
	return e, nil
}

func checkSigners(e dsse.Envelope, root *Root, whose string) ([]dsse.PublicKey, error) {
	_, signers, err := e.Verify(PolicyPayloadType, root.Keys, int(root.Threshold))
	if errors.Is(err, dsse.ErrUnverified) {
		return nil, refuse(ReasonSigner, "signed policy: %v; the keys asked are those of %s", err, whose)
	}
	if err != nil {
		return nil, refuse(ReasonMalformed, "signed policy: %v", err)
	}
	return signers, nil
}

// SplitPolicies returns the envelopes of a file: one envelope, however it is
// laid out, or several, one a line. It bounds the file and their number and
// checks that each line has the form of an envelope around a policy. The error
// is a *Refusal.
func SplitPolicies(data []byte) ([][]byte, error) {
	if len(data) > MaxPolicyFile {
		return nil, refuse(ReasonMalformed, "signed policies: expected at most %d bytes, got %d", MaxPolicyFile, len(data))
	}
	_, _, whole := UnverifiedPolicy(data)
	if whole == nil {
		return [][]byte{data}, nil
	}
	lines := bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	if len(lines) == 1 {
		return nil, whole
	}
	if len(lines) > maxRevisions {
		return nil, refuse(ReasonMalformed, "signed policies: expected at most %d lines, got %d", maxRevisions, len(lines))
	}
	for i, line := range lines {
		if _, _, err := UnverifiedPolicy(line); err != nil {
			return nil, refuse(ReasonMalformed, "signed policies: line %d: %v", i+1, err)
		}
	}
	return lines, nil
}

// checkUnexpired refuses a policy with a root from the moment that it names. A
// policy without one has no end.
func (p *Policy) checkUnexpired(now time.Time) error {
	if p.Root == nil || now.Before(p.Expires.Time()) {
		return nil
	}
	return refuse(ReasonPolicy, "policy: revision %d expired at %s; next: clawfs policy install FILE, with a newer revision", p.Revision, p.Expires)
}
