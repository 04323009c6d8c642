package capstore

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// lens is a look at a view, or at what it would be.
type lens struct {
	*View
	extra map[target]Revocation // taken back in addition
	memo  map[uint32]Capability // read already
}

// look is for callers that hold v.mu.
func (v *View) look() lens { return lens{View: v} }

// at returns the capability of a number, verified; zero if there is none, or none
// that verifies.
func (x lens) at(number uint32) Capability {
	if c, ok := x.memo[number]; ok {
		return c
	}
	return x.readCapability(number)
}

// readCapability is for callers that hold v.mu.
func (v *View) readCapability(number uint32) Capability {
	if v.index.of(number) != RecordCapability {
		return Capability{}
	}
	if c, ok := v.cache.capability(number); ok {
		return c
	}
	text, id, place, err := v.source.text(number)
	if err == nil {
		var c Capability
		if c, err = readCapability(v.mints, text); err == nil && c.ID() == id {
			return v.cache.keepCapability(number, c)
		}
		if err == nil {
			err = fmt.Errorf("the row holds capability %s", c.ID())
		}
	}
	v.reject(place, err)
	return Capability{}
}

func (v *View) reject(place string, err error) {
	if !errors.Is(err, ErrClosed) {
		v.bad.add(place, err.Error())
	}
}

// readRevocation returns the revocation of a number. If its record is not what the
// index says, it is one that says so. It is zero if there is none, or none by a key
// of now. Callers hold v.mu.
func (v *View) readRevocation(number uint32) Revocation {
	if v.index.of(number) != RecordRevocation {
		return Revocation{}
	}
	if r, ok := v.cache.revocation(number); ok {
		return r
	}
	text, id, place, err := v.source.text(number)
	f, lost := v.source.fact(number)
	var r Revocation
	if err == nil {
		r, err = readRevocation(v.revokers, text)
	}
	switch {
	case err != nil:
	case lost != nil:
		err = lost
	case r.ID() != id:
		err = fmt.Errorf("the row holds revocation %s", r.ID())
	case f.target != r.about():
		err = fmt.Errorf("it takes back %s %s, and was recorded for %s %s", r.Kind(), r.Target(), f.target.kind, f.target.digest)
	default:
		return v.cache.keepRevocation(number, r)
	}
	v.reject(place, err)
	return unreadable(f, v.revokers, err)
}

// unreadable stands for a revocation of which only the fact is left.
func unreadable(f fact, revokers role, why error) Revocation {
	by := dsse.KeyID(f.signer.String())
	return Revocation{&revocation{
		id: f.id, operator: revokers.operator[by],
		st: RevocationStatement{
			Type: statementType, PredicateType: RevocationType, Subject: []RevokedEntry{{DigestSet{f.target.digest}}},
			Predicate: RevocationPredicate{Kind: f.target.kind, Reason: fmt.Sprintf("the revocation's own text is lost (%v); next: clawfs store rebuild", why), IssuedAt: time.Unix(f.at, 0).UTC(), Revoker: KeyOf{by}},
		},
	}}
}

// insteadOf is an unreadable revocation as one of another target.
func (r Revocation) insteadOf(t target) Revocation {
	rec := *r.rec
	rec.st.Subject = []RevokedEntry{{DigestSet{t.digest}}}
	rec.st.Predicate.Kind = t.kind
	return Revocation{&rec}
}

// about is what r takes back.
func (r Revocation) about() target { return target{r.Kind(), r.target()} }

// enoughReasons bounds how many revocations of one target are compared for which
// came first.
const enoughReasons = 64

// revokedBy returns what takes a target back: the earliest if there are several.
// Callers hold v.mu.
func (x lens) revokedBy(t target) Revocation {
	best, found := x.taken[t], 0
	if r, ok := x.extra[t]; best.IsZero() && ok {
		best = r
	}
	for _, n := range x.index.byTarget.all(t.tag()) {
		r := x.readRevocation(n)
		if r.IsZero() {
			continue
		}
		switch {
		case len(r.rec.envelope) == 0:
			// Nothing is left of it but that it is found under this target, and what a
			// damaged fact says of that is not believed either.
			r = r.insteadOf(t)
		case r.about() != t: // it has the same tag
			continue
		}
		if best.IsZero() || r.earlier(best) {
			best = r
		}
		if found++; found == enoughReasons {
			break
		}
	}
	return best
}

// against returns what revokes the whole capability. Callers hold v.mu.
func (x lens) against(c Capability) Revocation {
	if c.rec == nil {
		return Revocation{}
	}
	p := c.predicate()
	targets := []target{
		{KindClaim, p.Claim},
		{KindSBA, p.SBA.Digest.SHA256},
		{KindPublisher, keyDigest(p.Publisher.KeyID)},
		{KindImage, p.Environment.Digest.SHA256},
	}
	for i, st := range c.rec.chain {
		targets = append(targets, target{KindCapability, c.rec.ids[i]}, target{KindMint, keyDigest(st.Predicate.Minter.KeyID)})
	}
	for _, t := range targets {
		if r := x.revokedBy(t); !r.IsZero() {
			return r
		}
	}
	return Revocation{}
}

// those reads the capabilities of some numbers, and leaves out what is not meant.
// Callers hold v.mu.
func (x lens) those(numbers []uint32, meant func(Capability) bool) (list []Capability) {
	for _, n := range numbers {
		if c := x.at(n); !c.IsZero() && meant(c) {
			list = append(list, c)
		}
	}
	return list
}

// ofClaim returns the capabilities of a claim, the first that came first.
func (x lens) ofClaim(claim hashpipe.Digest) []Capability {
	return x.those(x.index.byClaim.all(tagOf(claim)), func(c Capability) bool { return c.Claim() == claim })
}

// ofContent returns the capabilities with an output of this SHA-256.
func (x lens) ofContent(d hashpipe.Digest) []Capability {
	return x.those(x.index.byContent.all(tagOf(d)), func(c Capability) bool {
		return slices.ContainsFunc(c.rec.subjects, func(s Subject) bool { return s.Digest == d })
	})
}
