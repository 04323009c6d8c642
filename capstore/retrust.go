package capstore

import "fmt"

// Retrust replaces the Trust of the view. Nothing that is kept of a record outlives
// it: each is verified again by the keys of t when it is asked for, and what no key of
// t signed is held no more. If it fails, nothing changes. Whoever asks meanwhile sees
// the view as it was before, or as it is afterwards; Generation rises by one.
//
// It is what NewView(t) would be if it were given the same records. So a
// revocation, and what a list takes back, ends with its revoker, as at Open of a
// Store: striking a revoker off is how an operator withdraws what that key took
// back. A record that the view refused before is not held: apply a snapshot again.
func (v *View) Retrust(t Trust) error {
	if v.stored {
		return errStored
	}
	next, err := viewOf(t, v.source)
	if err != nil {
		return err
	}
	v.admitting.Lock()
	defer v.admitting.Unlock()
	v.keepLists(next, v.Lists())
	v.become(next, true)
	return nil
}

// Retrust replaces the Trust of the store and of its view, as if the store were
// closed and opened with t. If it fails, nothing changes. Every subscription ends;
// Generation rises by one.
//
// As at Open, a revocation whose row is intact and whose revoker is not in t takes
// nothing back any more and is in Rejected; a list that is lost is ErrDamaged.
// Revocations that are in force and not on disk stay, if t has their revoker.
//
// Writes wait for it, and lookups do not.
func (s *Store) Retrust(t Trust) error {
	next, err := viewOf(t, s.source)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return fmt.Errorf("store %s: %w", s.dir, err)
	}
	if err := s.loadLists(next); err != nil {
		return fmt.Errorf("store %s: %w", s.dir, err)
	}
	var unsaved []List
	for _, l := range s.view.Lists() {
		if s.unsaved[l.ID()] {
			unsaved = append(unsaved, l)
		}
	}
	s.view.keepLists(next, unsaved)
	s.view.become(next, false)
	for ch := range s.subs {
		s.drop(ch)
	}
	s.sweepAgain()
	return nil
}

// keepLists lets next have lists, and the revocations that are in force and not in
// the source, if it trusts their keys.
func (v *View) keepLists(next *View, lists []List) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, r := range v.loose {
		if again, err := readRevocation(next.revokers, r.rec.envelope); err == nil {
			next.addLoose(again)
		}
	}
	for _, l := range lists {
		if again, err := readList(next.revokers, l.rec.envelope); err == nil {
			next.addList(again)
		}
	}
}

// become takes over the Trust and the lists of another view, which nobody else uses.
// The records stay where they are; forget says whether those are forgotten that no key
// of now signed.
func (v *View) become(next *View, forget bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mints, v.revokers, v.rules = next.mints, next.revokers, next.rules
	v.lists, v.outgrown, v.list = next.lists, next.outgrown, next.list
	v.loose, v.taken = next.loose, next.taken
	v.cache = newCache()
	v.index.repin(v.pins)
	if forget {
		v.index.killUnpinned()
	}
	v.bad.forget()
	v.trusted++
	v.generation.Add(1)
}
