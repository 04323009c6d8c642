package capstore

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// RevokedBy returns what takes a target back, whether it came alone or in a list:
// the earliest if there are several, the zero Revocation if there is none.
func (v *View) RevokedBy(k Kind, d hashpipe.Digest) Revocation {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.revoked[target{k, d}]
}

// InForce returns the revocation of each target that is taken back, whether it
// came alone or in a list: the earliest if there are several; oldest first.
func (v *View) InForce() []Revocation {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return inOrder(slices.Collect(maps.Values(v.revoked)))
}

func inOrder(list []Revocation) []Revocation {
	slices.SortFunc(list, func(a, b Revocation) int {
		switch {
		case a.earlier(b):
			return -1
		case b.earlier(a):
			return 1
		}
		return 0
	})
	return list
}

// Peek checks an envelope as Admit does, and does not admit it. against is what
// Standing.Conflict of its capability would be.
func (v *View) Peek(envelope []byte) (c, against Capability, err error) {
	v.mu.RLock()
	mints := v.mints
	v.mu.RUnlock()
	if c, err = readCapability(mints, envelope); err != nil {
		return Capability{}, Capability{}, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	return c, v.standings(noRevocation).of(c).conflict, nil
}

// Consequence is what would become of a capability if something were taken back.
type Consequence struct {
	Capability    Capability
	Files         []Subject // that it is about: all, or the one that would be taken back
	Before, After State
	Agreement     Agreement // afterwards
}

// Suppose returns what would change at now if the target were taken back, and
// changes nothing: the capabilities whose state would be another, and those, not
// among the former, that were built from a model that would be lost and is not
// yet; both ordered as All.
func (v *View) Suppose(k Kind, d hashpipe.Digest, now time.Time) (changed []Consequence, built []Grant, err error) {
	if !slices.Contains(kinds, k) {
		return nil, nil, fmt.Errorf("supposing a revocation: kind is %q, want one of %q", k, kinds)
	}
	before := v.clone()
	after := before.clone()
	if t := (target{k, d}); after.revoked[t].IsZero() {
		// Nobody signed it: it never leaves this function.
		after.revoked[t] = Revocation{&revocation{st: RevocationStatement{
			Subject: []RevokedEntry{{DigestSet{d}}}, Predicate: RevocationPredicate{Kind: k, IssuedAt: now.UTC()},
		}}}
	}
	was, is, files := before.All(), after.All(), func(c Capability) []Subject { return c.Subjects() }
	if k == KindFile {
		was, is = before.Lookup(d), after.Lookup(d)
		files = func(c Capability) []Subject {
			return slices.DeleteFunc(c.Subjects(), func(s Subject) bool { return s.Digest != d })
		}
	}
	hit := make(map[hashpipe.Digest]bool)
	for i, g := range is {
		c := Consequence{Capability: g.Capability(), Files: files(g.Capability()), Before: was[i].State(now), After: g.State(now)}
		if c.Before == c.After {
			continue
		}
		c.Agreement = g.Standing().AgreeAt(now)
		changed = append(changed, c)
		hit[g.ID()] = true
	}
	lostBefore, lostAfter := make(map[hashpipe.Digest]LostBase), make(map[hashpipe.Digest]LostBase)
	for _, g := range before.All() { // nobody else has these two views
		if !hit[g.ID()] && len(after.lostBases(g.Capability(), lostAfter)) > len(before.lostBases(g.Capability(), lostBefore)) {
			built = append(built, g)
		}
	}
	return changed, built, nil
}

// clone is a view of its own that knows what v knows now.
func (v *View) clone() *View {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return &View{contents: contents{
		mints: v.mints, revokers: v.revokers, rules: v.rules,
		byID: maps.Clone(v.byID), byDigest: maps.Clone(v.byDigest), byName: maps.Clone(v.byName),
		byClaim: maps.Clone(v.byClaim), byBuild: maps.Clone(v.byBuild),
		lists: maps.Clone(v.lists), outgrown: maps.Clone(v.outgrown), list: v.list,
		revoked: maps.Clone(v.revoked), revByID: maps.Clone(v.revByID),
	}}
}
