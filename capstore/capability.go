package capstore

import (
	"fmt"
	"slices"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// Capability is a grant whose signature by a pinned mint was checked here. Only
// Admit of a View or a Store makes one. The zero Capability permits nothing.
//
// Holding one says that a trusted mint granted it, not that it is valid now:
// compare NotBefore and NotAfter with the clock, and ask Grant.Revoked.
type Capability struct{ rec *capability }

// capability is immutable once published.
type capability struct {
	id       hashpipe.Digest
	st       Statement
	subjects []Subject
	minter   Signer
	envelope []byte
}

// readCapability verifies first and parses the very bytes that were verified.
func readCapability(mints role, envelope []byte) (Capability, error) {
	payload, signers, err := mints.open(envelope)
	if err != nil {
		return Capability{}, err
	}
	st, err := parseStatement(payload)
	if err != nil {
		return Capability{}, err
	}
	minter := st.Predicate.Minter.KeyID
	if !signed(minter, signers) {
		return Capability{}, fmt.Errorf("capability: minter.keyid is %s, and the signature is by %s", minter, signers[0].ID())
	}
	rec := &capability{
		id:       hashpipe.SumBytes(payload).Claim(),
		st:       st,
		subjects: st.subjects(),
		envelope: slices.Clone(envelope),
	}
	for _, k := range signers {
		if k.ID() == minter {
			rec.minter = Signer{Operator: mints.operator[minter], Key: k}
		}
	}
	return Capability{rec}, nil
}

// IsZero reports whether c is no capability at all.
func (c Capability) IsZero() bool { return c.rec == nil }

// predicate returns a zero Predicate for the zero Capability, so that every
// accessor of a zero value answers with a value that permits nothing.
func (c Capability) predicate() Predicate {
	if c.rec == nil {
		return Predicate{}
	}
	return c.rec.st.Predicate
}

// ID is the SHA-256 of the signed payload.
func (c Capability) ID() hashpipe.Digest {
	if c.rec == nil {
		return hashpipe.Digest{}
	}
	return c.rec.id
}

// Claim identifies the result apart from its minter and its dates; see the function Claim.
func (c Capability) Claim() hashpipe.Digest { return c.predicate().Claim }

// Model is the ledger's name of the model, for instance "acme/langid".
func (c Capability) Model() string { return c.predicate().Model }

// Version is the ledger's version text.
func (c Capability) Version() string { return c.predicate().Version }

// Sequence is the ledger's number, monotone per model.
func (c Capability) Sequence() int64 { return c.predicate().Sequence }

// SBA is the SHA-256 of the payload of the attestation that was rebuilt.
func (c Capability) SBA() hashpipe.Digest { return c.predicate().SBA.Digest.SHA256 }

// Publisher is the key that signed the attestation, as the mint saw it.
func (c Capability) Publisher() dsse.PublicKey { return c.predicate().Publisher.PublicKey }

// Minter is the key id of the mint that signed c.
func (c Capability) Minter() dsse.KeyID { return c.predicate().Minter.KeyID }

// Operator is whose mint it is, as pinned in the Trust of the reader.
func (c Capability) Operator() string {
	if c.rec == nil {
		return ""
	}
	return c.rec.minter.Operator
}

// Platform is the class of machine within which the bytes are promised equal.
func (c Capability) Platform() Platform {
	p := c.predicate().Platform
	p.CPUFeatures = slices.Clone(p.CPUFeatures)
	return p
}

// Subjects are the outputs, sorted by name; a copy.
func (c Capability) Subjects() []Subject {
	if c.rec == nil {
		return nil
	}
	return slices.Clone(c.rec.subjects)
}

// Subject returns the output of that name.
func (c Capability) Subject(name string) (Subject, bool) {
	if c.rec == nil {
		return Subject{}, false
	}
	for _, s := range c.rec.subjects {
		if s.Name == name {
			return s, true
		}
	}
	return Subject{}, false
}

// Bases are the claims of the models that the build started from, sorted; a
// copy. Revoking one of them does not revoke c: see View.LostBases.
func (c Capability) Bases() []hashpipe.Digest { return slices.Clone(c.predicate().Bases) }

// NotBefore is the first instant at which c is valid.
func (c Capability) NotBefore() time.Time { return c.predicate().NotBefore }

// NotAfter is the first instant at which c is valid no longer.
func (c Capability) NotAfter() time.Time { return c.predicate().NotAfter }

// Level says what stands behind c: LevelRebuilt.
func (c Capability) Level() string { return c.predicate().Level }

// Envelope is the signed text from which c can be admitted elsewhere; a copy.
func (c Capability) Envelope() []byte {
	if c.rec == nil {
		return nil
	}
	return slices.Clone(c.rec.envelope)
}
