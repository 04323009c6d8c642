package capstore

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// RevocationType is the predicate type of a revocation.
const RevocationType = "https://github.com/openclaw/clawfs/revocation/v1"

// Kind is what a revocation takes back. Every kind's target is a SHA-256 in hex.
type Kind string

const (
	KindCapability Kind = "capability" // target: Capability.ID
	KindClaim      Kind = "claim"      // target: Capability.Claim, whoever minted it
	KindSBA        Kind = "sba"        // target: Capability.SBA
	KindPublisher  Kind = "publisher"  // target: key id of the publisher
	KindMint       Kind = "mint"       // target: key id of the mint, or of whoever delegated
	KindImage      Kind = "image"      // target: SHA-256 of the manifest of the environment image
	KindFile       Kind = "file"       // target: SHA-256 of one content, under every capability
)

var kinds = []Kind{KindCapability, KindClaim, KindSBA, KindPublisher, KindMint, KindImage, KindFile}

// RevocationStatement is the payload of a revocation: an in-toto Statement v1
// whose one subject is what is taken back.
type RevocationStatement struct {
	Type          string              `json:"_type"`
	Subject       []RevokedEntry      `json:"subject"` // exactly one
	PredicateType string              `json:"predicateType"`
	Predicate     RevocationPredicate `json:"predicate"`
}

// RevokedEntry holds the target as in-toto's digest set.
type RevokedEntry struct {
	Digest DigestSet `json:"digest"`
}

// RevocationPredicate says what the target is, and why it is taken back.
type RevocationPredicate struct {
	Kind     Kind      `json:"kind"`
	Reason   string    `json:"reason"` // one line, shown to whoever is refused
	IssuedAt time.Time `json:"issuedAt"`
	Revoker  KeyOf     `json:"revoker"` // the signing key; SignRevocation fills it in
}

// KeyOf names a key by its id.
type KeyOf struct {
	KeyID dsse.KeyID `json:"keyid"`
}

// NewRevocation lays out a revocation for SignRevocation. target is the hex
// SHA-256 that the kind asks for. issuedAt is cut to whole seconds of UTC; it is
// information for people: a revocation holds from its arrival and for ever.
func NewRevocation(kind Kind, target, reason string, issuedAt time.Time) (RevocationStatement, error) {
	d, err := hashpipe.ParseDigest(target)
	if err != nil {
		return RevocationStatement{}, fmt.Errorf("revoking %s: target: %w", kind, err)
	}
	st := RevocationStatement{
		Type:          statementType,
		Subject:       []RevokedEntry{{Digest: DigestSet{SHA256: d}}},
		PredicateType: RevocationType,
		Predicate:     RevocationPredicate{Kind: kind, Reason: reason, IssuedAt: issuedAt.UTC().Truncate(time.Second)},
	}
	if err := st.check(); err != nil {
		return RevocationStatement{}, fmt.Errorf("revoking %s: %w", kind, err)
	}
	return st, nil
}

// SignRevocation is SignRevocationContext for a key that lies in this process.
func SignRevocation(st RevocationStatement, key dsse.PrivateKey) ([]byte, error) {
	return SignRevocationContext(context.Background(), st, key)
}

// SignRevocationContext names the signer's key as the revoker, checks the
// statement and has it signed.
func SignRevocationContext(ctx context.Context, st RevocationStatement, key dsse.Signer) ([]byte, error) {
	st.Predicate.Revoker.KeyID = key.Public().ID()
	payload, err := st.Payload()
	if err != nil {
		return nil, err
	}
	return dsse.SignContext(ctx, dsse.PayloadType, payload, key)
}

// Payload checks the statement and returns its only encoding.
func (st RevocationStatement) Payload() ([]byte, error) {
	if err := st.check(); err != nil {
		return nil, fmt.Errorf("revocation: %w", err)
	}
	if err := checkKeyID("revoker.keyid", st.Predicate.Revoker.KeyID); err != nil {
		return nil, fmt.Errorf("revocation: %w", err)
	}
	b, err := json.Marshal(&st, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("encoding revocation: %w", err)
	}
	return b, nil
}

func (st RevocationStatement) check() error {
	p := st.Predicate
	switch {
	case st.Type != statementType:
		return fmt.Errorf("_type is %q, want %q", st.Type, statementType)
	case st.PredicateType != RevocationType:
		return fmt.Errorf("predicateType is %q, want %q", st.PredicateType, RevocationType)
	case len(st.Subject) != 1:
		return fmt.Errorf("%d subjects, want exactly one", len(st.Subject))
	case st.Subject[0].Digest.SHA256.IsZero():
		return fmt.Errorf("subject has no sha256")
	case !slices.Contains(kinds, p.Kind):
		return fmt.Errorf("kind is %q, want one of %q", p.Kind, kinds)
	}
	if err := checkText("reason", p.Reason, 1024); err != nil {
		return err
	}
	return checkTime("issuedAt", p.IssuedAt)
}

// parseRevocation reads a verified payload. It accepts exactly what Payload prints.
func parseRevocation(payload []byte) (RevocationStatement, error) {
	if err := checkType(payload, RevocationType); err != nil {
		return RevocationStatement{}, fmt.Errorf("revocation: %w", err)
	}
	var st RevocationStatement
	if err := json.Unmarshal(payload, &st, json.RejectUnknownMembers(true)); err != nil {
		return RevocationStatement{}, fmt.Errorf("revocation: %w", dsse.JSONError(err))
	}
	again, err := st.Payload()
	if err != nil {
		return RevocationStatement{}, err
	}
	if !bytes.Equal(again, payload) {
		return RevocationStatement{}, fmt.Errorf("revocation: not in its canonical encoding: %s", firstDifference(payload, again))
	}
	return st, nil
}

// Revocation is a signed record whose signature by a pinned revoker was checked
// here. The zero Revocation revokes nothing.
type Revocation struct{ rec *revocation }

// revocation is immutable once published.
type revocation struct {
	id       hashpipe.Digest
	st       RevocationStatement
	operator string
	envelope []byte
}

func readRevocation(revokers role, envelope []byte) (Revocation, error) {
	payload, signers, err := revokers.open(envelope)
	if err != nil {
		return Revocation{}, err
	}
	st, err := parseRevocation(payload)
	if err != nil {
		return Revocation{}, err
	}
	revoker := st.Predicate.Revoker.KeyID
	if !signed(revoker, signers) {
		return Revocation{}, fmt.Errorf("revocation: %w: revoker.keyid is %s, and the signature is by %s", dsse.ErrUnverified, revoker, signers[0].ID())
	}
	return Revocation{&revocation{
		id:       hashpipe.SumBytes(payload).Claim(),
		st:       st,
		operator: revokers.operator[revoker],
		envelope: slices.Clone(envelope),
	}}, nil
}

// IsZero reports whether r is no revocation at all.
func (r Revocation) IsZero() bool { return r.rec == nil }

func (r Revocation) predicate() RevocationPredicate {
	if r.rec == nil {
		return RevocationPredicate{}
	}
	return r.rec.st.Predicate
}

// ID is the SHA-256 of the signed payload.
func (r Revocation) ID() hashpipe.Digest {
	if r.rec == nil {
		return hashpipe.Digest{}
	}
	return r.rec.id
}

// Kind is what the target is.
func (r Revocation) Kind() Kind { return r.predicate().Kind }

// Target is the hex SHA-256 of what is taken back, "" for the zero Revocation.
func (r Revocation) Target() string {
	if r.rec == nil {
		return ""
	}
	return r.target().String()
}

func (r Revocation) target() hashpipe.Digest { return r.rec.st.Subject[0].Digest.SHA256 }

// Reason is one line for whoever is refused.
func (r Revocation) Reason() string { return r.predicate().Reason }

// IssuedAt is when the revoker says it was written.
func (r Revocation) IssuedAt() time.Time { return r.predicate().IssuedAt }

// Revoker is the key id that signed it.
func (r Revocation) Revoker() dsse.KeyID { return r.predicate().Revoker.KeyID }

// Operator is whose revoker key it is, as pinned in the Trust of the reader.
func (r Revocation) Operator() string {
	if r.rec == nil {
		return ""
	}
	return r.rec.operator
}

// Envelope is the signed text; a copy.
func (r Revocation) Envelope() []byte {
	if r.rec == nil {
		return nil
	}
	return slices.Clone(r.rec.envelope)
}

// earlier orders revocations of one target, so that every process names the
// same one as the reason.
func (r Revocation) earlier(o Revocation) bool {
	if c := r.IssuedAt().Compare(o.IssuedAt()); c != 0 {
		return c < 0
	}
	return r.ID().String() < o.ID().String()
}
