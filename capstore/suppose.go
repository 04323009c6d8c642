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
	return v.look().revokedBy(target{k, d})
}

// InForce returns the revocation of each target that is taken back, whether it
// came alone or in a list: the earliest if there are several; oldest first.
func (v *View) InForce() []Revocation {
	alone := v.Revocations()
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.firstOf(alone, func(target) bool { return true })
}

// TakenMints is InForce of the mints, and of who handed capabilities on.
func (v *View) TakenMints() []Revocation {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var alone []Revocation
	for _, n := range v.index.mints {
		if r := v.readRevocation(n); !r.IsZero() {
			alone = append(alone, r)
		}
	}
	return v.firstOf(alone, func(t target) bool { return t.kind == KindMint })
}

// firstOf returns the earliest revocation of each target that is meant, of those that
// came alone and of the others. Callers hold v.mu.
func (v *View) firstOf(alone []Revocation, meant func(target) bool) []Revocation {
	first := make(map[target]Revocation)
	note := func(r Revocation) {
		if have, ok := first[r.about()]; meant(r.about()) && (!ok || r.earlier(have)) {
			first[r.about()] = r
		}
	}
	for _, r := range alone {
		note(r)
	}
	for _, r := range v.taken {
		note(r)
	}
	return inOrder(slices.Collect(maps.Values(first)))
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
	return c, v.look().standings(noRevocation).of(c).conflict, nil
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
	supposed := func() (before, after lens) { // callers hold v.mu
		before, after = v.look(), v.look()
		if t := (target{k, d}); before.revokedBy(t).IsZero() {
			// Nobody signed it: it never leaves this function.
			after.extra = map[target]Revocation{t: {&revocation{st: RevocationStatement{
				Subject: []RevokedEntry{{DigestSet{d}}}, Predicate: RevocationPredicate{Kind: k, IssuedAt: now.UTC()},
			}}}}
		}
		return before, after
	}
	hit := make(map[hashpipe.Digest]bool)
	compare := func(was, is Grant, files []Subject) {
		c := Consequence{Capability: is.Capability(), Files: files, Before: was.State(now), After: is.State(now)}
		if c.Before == c.After {
			return
		}
		c.Agreement = is.Standing().AgreeAt(now)
		changed = append(changed, c)
		hit[is.ID()] = true
	}
	if k == KindFile {
		v.mu.RLock()
		before, after := supposed()
		was, is := before.lookup(d), after.lookup(d)
		v.mu.RUnlock()
		for i, g := range is {
			compare(was[i], g, slices.DeleteFunc(g.Subjects(), func(s Subject) bool { return s.Digest != d }))
		}
	}
	lostBefore, lostAfter := make(map[hashpipe.Digest]LostBase), make(map[hashpipe.Digest]LostBase)
	// One at a time, so that nobody waits long who changes the view.
	for n := uint32(1); ; n++ {
		v.mu.RLock()
		last := n > v.index.last
		before, after := supposed()
		c := before.at(n)
		var was, is Grant
		if !c.IsZero() && k != KindFile {
			was, is = before.grants([]Capability{c}, noRevocation)[0], after.grants([]Capability{c}, noRevocation)[0]
		}
		loses := !c.IsZero() && len(after.lostBases(c, lostAfter)) > len(before.lostBases(c, lostBefore))
		if loses && is.IsZero() {
			is = before.grants([]Capability{c}, noRevocation)[0]
		}
		v.mu.RUnlock()
		if last {
			break
		}
		if !was.IsZero() {
			compare(was, is, c.Subjects())
		}
		if loses && !hit[c.ID()] {
			if !was.IsZero() {
				is = was
			}
			built = append(built, is)
		}
	}
	slices.SortFunc(changed, func(a, b Consequence) int { return compareGrants(Grant{held: a.Capability}, Grant{held: b.Capability}) })
	slices.SortFunc(built, compareGrants)
	return changed, built, nil
}
