package capstore

import (
	"slices"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// LostBase is a model that a capability was built from and that was taken back.
type LostBase struct {
	Claim hashpipe.Digest
	// By is the revocation. Direct says whether it stands against the base
	// itself and not against one that the base was built from.
	By     Revocation
	Direct bool
}

// LostBases returns what was taken back of the models that c was built from,
// also of those further up the chain. c itself stays granted: its bytes are
// still what its recipe makes. Whoever revoked the base decides whether what
// was built from it falls too.
//
// A base counts as taken back if its claim is revoked, if every capability of
// that claim that is known here is, or if one of its files is.
func (v *View) LostBases(c Capability) []LostBase {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.look().lostBases(c, make(map[hashpipe.Digest]LostBase))
}

func (x lens) lostBases(c Capability, known map[hashpipe.Digest]LostBase) (lost []LostBase) {
	for _, claim := range c.predicate().Bases {
		if l := x.lost(claim, known); !l.By.IsZero() {
			lost = append(lost, l)
		}
	}
	return lost
}

// Lost returns what takes the results of a claim back, as a base; By is zero if
// nothing that is known here does.
func (v *View) Lost(claim hashpipe.Digest) LostBase {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.look().lost(claim, make(map[hashpipe.Digest]LostBase))
}

// lost finds what takes a claim back; known holds the claims that were asked
// for already, so that each is looked at once however deep the chain is: one that
// was followed to a bound would be granted beyond it. Callers hold v.mu.
func (x lens) lost(claim hashpipe.Digest, known map[hashpipe.Digest]LostBase) LostBase {
	l, ok := known[claim]
	if !ok {
		known[claim] = LostBase{Claim: claim} // honest mints sign no ring of claims
		l = x.findLost(claim, known)
		known[claim] = l
	}
	return l
}

func (x lens) findLost(claim hashpipe.Digest, known map[hashpipe.Digest]LostBase) LostBase {
	if r := x.revokedBy(target{KindClaim, claim}); !r.IsZero() {
		return LostBase{claim, r, true}
	}
	var all Revocation
	held := x.ofClaim(claim)
	if len(held) > 0 { // a claim names the files
		for _, s := range held[0].rec.subjects {
			if r := x.revokedBy(target{KindFile, s.Digest}); !r.IsZero() {
				return LostBase{claim, r, true}
			}
		}
	}
	for i, c := range held {
		r := x.against(c)
		if r.IsZero() {
			all = r
			break
		}
		if i == 0 || r.earlier(all) {
			all = r
		}
	}
	if !all.IsZero() {
		return LostBase{claim, all, true}
	}
	for _, c := range held {
		for _, base := range c.predicate().Bases {
			if l := x.lost(base, known); !l.By.IsZero() {
				return LostBase{claim, l.By, false}
			}
		}
	}
	return LostBase{Claim: claim}
}

// Live returns a capability of the claim that is granted at now: neither
// revoked, in any of its files, nor expired, nor built from something that was
// taken back, and agreed on by as many operators as the policy asks for, under a
// policy and a revocation list that are not too old. Capabilities that are
// restricted do not count: a build is none of the uses that they permit, and what
// comes out of it would be for everybody. Of several it is the one that holds
// longest.
func (v *View) Live(claim hashpipe.Digest, now time.Time) (Capability, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	x := v.look()
	if l := x.lost(claim, make(map[hashpipe.Digest]LostBase)); claim.IsZero() || !l.By.IsZero() {
		return Capability{}, false
	}
	var best Capability
	beside, enough := x.standings(noRevocation), make(map[*Standing]bool)
	for _, c := range x.ofClaim(claim) {
		if !x.against(c).IsZero() || now.Before(c.NotBefore()) || !now.Before(c.NotAfter()) || c.Restricted() {
			continue
		}
		s := beside.of(c)
		if _, asked := enough[s]; !asked {
			enough[s] = s.Agree(func(g Grant) bool { return g.Valid(now) && !g.Restricted() }).Enough()
		}
		until, needed := s.ListUntil()
		switch {
		case needed && !now.Before(until), !s.expires.IsZero() && !now.Before(s.expires):
			continue
		case s.disputed() || !enough[s]:
			continue
		}
		if best.IsZero() || best.NotAfter().Before(c.NotAfter()) {
			best = c
		}
	}
	return best, !best.IsZero()
}

// BuiltFrom returns the capabilities that were built from the claim, also
// through others, revoked ones too; ordered as All.
func (v *View) BuiltFrom(claim hashpipe.Digest) []Grant {
	v.mu.RLock()
	defer v.mu.RUnlock()
	x := v.look()
	var list []Capability
	found := map[hashpipe.Digest]bool{claim: true}
	taken := make(map[hashpipe.Digest]bool)
	for next := []hashpipe.Digest{claim}; len(next) > 0; next = next[1:] {
		for _, c := range x.builtOn(next[0]) {
			if !taken[c.ID()] {
				taken[c.ID()] = true
				list = append(list, c)
			}
			if !found[c.Claim()] {
				found[c.Claim()] = true
				next = append(next, c.Claim())
			}
		}
	}
	return x.grants(list, noRevocation)
}

// builtOn returns the capabilities that name a base. Callers hold v.mu.
func (x lens) builtOn(base hashpipe.Digest) []Capability {
	return x.those(x.index.byBase.all(tagOf(base)), func(c Capability) bool { return slices.Contains(c.predicate().Bases, base) })
}
