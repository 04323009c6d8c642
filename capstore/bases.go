package capstore

import (
	"slices"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// maxChain bounds how many models deep a chain of bases is followed.
const maxChain = 64

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
	known := make(map[hashpipe.Digest]LostBase)
	var lost []LostBase
	for _, claim := range c.predicate().Bases {
		if l := v.lost(claim, known, maxChain); !l.By.IsZero() {
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
	return v.lost(claim, make(map[hashpipe.Digest]LostBase), maxChain)
}

// lost finds what takes a claim back; known holds the claims that were asked
// for already. Callers hold v.mu.
func (v *View) lost(claim hashpipe.Digest, known map[hashpipe.Digest]LostBase, deep int) LostBase {
	l, ok := known[claim]
	if !ok && deep > 0 {
		known[claim] = LostBase{Claim: claim} // a ring of claims cannot be signed
		l = v.findLost(claim, known, deep)
		known[claim] = l
	}
	return l
}

func (v *View) findLost(claim hashpipe.Digest, known map[hashpipe.Digest]LostBase, deep int) LostBase {
	if r, ok := v.revoked[target{KindClaim, claim}]; ok {
		return LostBase{claim, r, true}
	}
	var all Revocation
	held := v.byClaim[claim]
	for _, c := range held {
		for _, s := range c.rec.subjects {
			if r, ok := v.revoked[target{KindFile, s.Digest}]; ok {
				return LostBase{claim, r, true}
			}
		}
	}
	for i, c := range held {
		r := v.against(c)
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
			if l := v.lost(base, known, deep-1); !l.By.IsZero() {
				return LostBase{claim, l.By, false}
			}
		}
	}
	return LostBase{Claim: claim}
}

// Live returns a capability of the claim that is granted at now: neither
// revoked, in any of its files, nor expired, nor built from something that was
// taken back. Of several it is the one that holds longest.
func (v *View) Live(claim hashpipe.Digest, now time.Time) (Capability, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if l := v.lost(claim, make(map[hashpipe.Digest]LostBase), maxChain); claim.IsZero() || !l.By.IsZero() {
		return Capability{}, false
	}
	var best Capability
	for _, c := range v.byClaim[claim] {
		if !v.against(c).IsZero() || now.Before(c.NotBefore()) || !now.Before(c.NotAfter()) {
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
	found := map[hashpipe.Digest]bool{claim: true}
	var list []Capability
	taken := make(map[hashpipe.Digest]bool)
	for range maxChain {
		grown := false
		for id, c := range v.byID {
			if taken[id] || !slices.ContainsFunc(c.predicate().Bases, func(b hashpipe.Digest) bool { return found[b] }) {
				continue
			}
			taken[id], found[c.Claim()], grown = true, true, true
			list = append(list, c)
		}
		if !grown {
			break
		}
	}
	return v.grants(list, func(Capability) Revocation { return Revocation{} })
}
