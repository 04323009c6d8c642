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
	chain    []Statement // what the mint signed, and what was derived from it, each from the one before
	ids      []hashpipe.Digest
	subjects []Subject
	result   hashpipe.Digest
	minter   Signer
	envelope []byte
}

// readCapability verifies first and parses the very bytes that were verified. The
// text is the envelope of a mint, or the lines of a delegated capability.
func readCapability(mints role, text []byte) (Capability, error) {
	if len(text) > MaxRecord {
		return Capability{}, fmt.Errorf("capability of %d bytes: at most %d are stored", len(text), MaxRecord)
	}
	links, err := splitChain(text)
	if err != nil {
		return Capability{}, err
	}
	payload, signers, err := mints.open(links[0])
	if err != nil {
		return Capability{}, err
	}
	st, err := parseStatement(payload)
	if err != nil {
		return Capability{}, err
	}
	if st.Predicate.Parent != nil {
		return Capability{}, fmt.Errorf("capability: it is derived from %s, which has to stand before it", st.Predicate.Parent.Digest.SHA256)
	}
	minter := st.Predicate.Minter.KeyID
	if !signed(minter, signers) {
		return Capability{}, fmt.Errorf("capability: %w: minter.keyid is %s, and the signature is by %s", dsse.ErrUnverified, minter, signers[0].ID())
	}
	rec := &capability{
		chain:    []Statement{st},
		ids:      []hashpipe.Digest{hashpipe.SumBytes(payload).Claim()},
		subjects: st.subjects(),
		result:   st.result(),
		envelope: slices.Clone(text),
	}
	for _, k := range signers {
		if k.ID() == minter {
			rec.minter = Signer{Operator: mints.operator[minter], Key: k}
		}
	}
	for i, link := range links[1:] {
		st, id, err := readLink(rec.chain[i], rec.ids[i], link)
		if err != nil {
			return Capability{}, fmt.Errorf("capability: link %d: %w", i+1, err)
		}
		rec.chain, rec.ids = append(rec.chain, st), append(rec.ids, id)
	}
	rec.id = rec.ids[len(rec.ids)-1]
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
	return c.rec.chain[0].Predicate
}

// ID is the SHA-256 of the signed payload, of the last one if there are several.
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

// Environment is the manifest of the image in which the build ran.
func (c Capability) Environment() hashpipe.Digest { return c.predicate().Environment.Digest.SHA256 }

// NotBefore is the first instant at which c is valid: the latest of its links.
func (c Capability) NotBefore() time.Time {
	var at time.Time
	for _, st := range c.links() {
		if st.Predicate.NotBefore.After(at) {
			at = st.Predicate.NotBefore
		}
	}
	return at
}

// NotAfter is the first instant at which c is valid no longer: the earliest of
// its links.
func (c Capability) NotAfter() time.Time {
	var at time.Time
	for i, st := range c.links() {
		if i == 0 || st.Predicate.NotAfter.Before(at) {
			at = st.Predicate.NotAfter
		}
	}
	return at
}

// Restrictions are what the links of c say of who may open what where; nil for one
// that restricts nothing. An open has to satisfy each: see Permits.
func (c Capability) Restrictions() []*Restrict {
	var list []*Restrict
	for _, st := range c.links() {
		list = append(list, st.Predicate.Restrict)
	}
	return list
}

// Restricted reports whether some link of c restricts who may open what where.
func (c Capability) Restricted() bool {
	return slices.ContainsFunc(c.Restrictions(), func(r *Restrict) bool { return r != nil })
}

// Delegates are the keys that may derive a narrower capability from c.
func (c Capability) Delegates() []dsse.KeyID {
	if c.rec == nil {
		return nil
	}
	return slices.Clone(c.rec.chain[len(c.rec.chain)-1].Predicate.Delegate)
}

// DelegatedBy are the keys that derived c from what the mint signed, in order;
// none if the mint signed c.
func (c Capability) DelegatedBy() []dsse.KeyID {
	var list []dsse.KeyID
	for _, st := range c.links()[min(1, len(c.links())):] {
		list = append(list, st.Predicate.Minter.KeyID)
	}
	return list
}

// Parents are the ids of what c was derived from, the mint's first; none if the
// mint signed c. Revoking one of them revokes c.
func (c Capability) Parents() []hashpipe.Digest {
	if c.rec == nil {
		return nil
	}
	return slices.Clone(c.rec.ids[:len(c.rec.ids)-1])
}

// Class identifies the class of machine within which the bytes are promised equal.
func (c Capability) Class() hashpipe.Digest { return c.disputable().class }

// Result is the identity of everything that the operator measured: equal for two
// capabilities exactly if claim, platform class, sizes and fs-verity digests are.
func (c Capability) Result() hashpipe.Digest {
	if c.rec == nil {
		return hashpipe.Digest{}
	}
	return c.rec.result
}

func (c Capability) links() []Statement {
	if c.rec == nil {
		return nil
	}
	return c.rec.chain
}

// Envelope is the signed text from which c can be admitted elsewhere; a copy.
func (c Capability) Envelope() []byte {
	if c.rec == nil {
		return nil
	}
	return slices.Clone(c.rec.envelope)
}
