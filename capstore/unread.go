package capstore

import (
	"errors"
	"slices"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// unread is a capability that was acknowledged and whose text cannot be read any
// more. It grants nothing. But it may have said of its attestation that other bytes
// come out, and that must not be forgotten with its text.
//
// BUG: one of the same claim that differed in sizes or fs-verity digests is forgotten.
type unread struct {
	number uint32 // in a store: of its fact
	id     hashpipe.Digest
	signer hashpipe.Digest // key id of the mint
	claim  tag
}

// lose forgets the capability of a number, and notes what is left of it.
func (v *View) lose(number uint32) {
	f, err := v.source.fact(number)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.index.kill(number)
	if err == nil {
		v.miss(number, f)
	}
	v.generation.Add(1)
}

// miss notes what is left of a capability. Callers hold v.mu.
func (v *View) miss(number uint32, f fact) {
	if v.missing[f.sba] == nil {
		v.missing[f.sba] = make(map[hashpipe.Digest]unread)
	}
	v.missing[f.sba][f.id] = unread{number, f.id, f.signer, f.claim}
}

// meet is for a capability whose text is there again. Callers hold v.mu.
func (v *View) meet(f fact) {
	delete(v.missing[f.sba], f.id)
	if len(v.missing[f.sba]) == 0 {
		delete(v.missing, f.sba)
	}
}

// unreadOf is what counts, is not taken back, and of which only the fact is left, of
// an attestation: what is known to be lost, and one that cannot be read now.
func (x lens) unreadOf(sba hashpipe.Digest, r Rule) (list []unread) {
	for _, u := range x.missing[tagOf(sba)] {
		if x.standing(u, r) {
			list = append(list, u)
		}
	}
	return list
}

// unreadAt is unreadOf for a record that the index has and that could not be read.
// Of which the fact cannot be read either, everything is possible.
func (x lens) unreadAt(number uint32, signer hashpipe.Digest, sba hashpipe.Digest, r Rule) (u unread, yes bool) {
	f, err := x.source.fact(number)
	switch {
	case errors.Is(err, ErrClosed):
		return unread{}, false // nobody opens a file by a store that is closed
	case err != nil:
		return unread{number: number, signer: signer}, true
	case f.sba != tagOf(sba):
		return unread{}, false
	}
	u = unread{number, f.id, f.signer, f.claim}
	return u, x.standing(u, r)
}

// standing reports whether what is left of a capability counts under a rule and is
// not taken back as far as it can be told.
func (x lens) standing(u unread, r Rule) bool {
	return x.pins(RecordCapability, u.signer) && r.counts(x.mints.operator[dsse.KeyID(u.signer.String())]) &&
		x.revokedBy(target{KindMint, u.signer}).IsZero() && x.revokedBy(target{KindCapability, u.id}).IsZero() && !x.claimTaken(u.claim)
}

// claimTaken reports whether a claim with that tag is taken back.
func (x lens) claimTaken(claim tag) bool {
	for _, taken := range []map[target]Revocation{x.taken, x.extra} {
		for t := range taken {
			if t.kind == KindClaim && tagOf(t.digest) == claim {
				return true
			}
		}
	}
	for _, n := range x.index.byTarget.all(targetTag(KindClaim, claim)) {
		if r := x.readRevocation(n); !r.IsZero() && r.Kind() == KindClaim {
			return true
		}
	}
	return false
}

// Unread is a capability that another operator, or the same one earlier, signed for
// the same attestation, of other bytes, and of which nothing is left but that it was
// acknowledged: a Conflict that cannot be read. ok is false if there is none.
func (s Standing) Unread() (id hashpipe.Digest, operator string, ok bool) {
	return s.unread.id, s.unreadBy, !s.unread.signer.IsZero()
}

// disputed reports whether something speaks against the result, read or not.
func (s Standing) disputed() bool {
	_, _, unread := s.Unread()
	return unread || !s.conflict.IsZero()
}

// lostNumbers are those of the facts of what cannot be read, in order.
func (v *View) lostNumbers() (list []uint32) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, of := range v.missing {
		for _, u := range of {
			list = append(list, u.number)
		}
	}
	slices.Sort(list)
	return list
}
