package capstore

import "fmt"

// Retrust replaces the Trust of the view and checks every record that it holds
// again: what no key of t signed is held no more. If it fails, nothing changes.
// Whoever asks meanwhile sees the view as it was before, or as it is afterwards;
// Generation rises by one.
//
// It is what NewView(t) would be if it were given the same records. So a
// revocation, and what a list takes back, ends with its revoker, as at Open of a
// Store: striking a revoker off is how an operator withdraws what that key took
// back. A record that the view refused before is not held: apply a snapshot again.
func (v *View) Retrust(t Trust) error {
	if v.stored {
		return errStored
	}
	next, err := NewView(t)
	if err != nil {
		return err
	}
	v.admitting.Lock()
	defer v.admitting.Unlock()
	for _, r := range v.records() {
		// Each verified once. An error says that its key is not in t.
		_ = next.Apply(r)
	}
	v.become(next)
	return nil
}

// Retrust replaces the Trust of the store and of its view, as if the store were
// closed and opened with t: every row is checked again, also those that are in
// Rejected, which holds afterwards what does not verify under t. If it fails,
// nothing changes. Every subscription ends; Generation rises by one.
//
// As at Open, a revocation whose row is intact and whose revoker is not in t takes
// nothing back any more and is in Rejected; a row that is lost is ErrDamaged.
// Revocations that are in force and not on disk stay, if t has their revoker.
//
// Writes wait meanwhile, for as long as Open takes; lookups do not.
func (s *Store) Retrust(t Trust) error {
	next, err := NewView(t)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return fmt.Errorf("store %s: %w", s.dir, err)
	}
	loaded := &Store{dir: s.dir, memory: s.memory, key: s.key, db: s.db, view: next}
	if err := loaded.load(); err != nil {
		return fmt.Errorf("store %s: %w", s.dir, err)
	}
	for _, r := range s.view.Revocations() {
		if s.unsaved[r.ID()] {
			_ = next.Apply(Record{RecordRevocation, r.Envelope()}) // an error says that its key is not in t
		}
	}
	for _, l := range s.view.Lists() {
		if s.unsaved[l.ID()] {
			_ = next.Apply(Record{RecordList, l.Envelope()})
		}
	}
	s.view.become(next)
	s.rejected, s.head = loaded.rejected, loaded.head
	for ch := range s.subs {
		s.drop(ch)
	}
	return nil
}

// become takes over what another view holds, which nobody else uses.
func (v *View) become(next *View) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.contents = next.contents
	v.generation.Add(1)
}

// records are the texts of all that the view holds, in an order in which a reader
// never grants what is revoked.
func (v *View) records() (list []Record) {
	for _, r := range v.Revocations() {
		list = append(list, Record{RecordRevocation, r.Envelope()})
	}
	for _, l := range v.Lists() {
		list = append(list, Record{RecordList, l.Envelope()})
	}
	for _, g := range v.All() {
		list = append(list, Record{RecordCapability, g.Envelope()})
	}
	return list
}
