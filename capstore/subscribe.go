package capstore

import (
	"errors"
	"fmt"
	"iter"
)

// Kinds of Record.
const (
	RecordCapability = "capability"
	RecordRevocation = "revocation"
	RecordList       = "revocation-list"
)

// Record is one signed text on its way from a Store to a View elsewhere. The
// receiver checks the signature again.
type Record struct {
	Kind     string `json:"kind"`
	Envelope []byte `json:"envelope"`
	// Entry is what an index needs of a record in a snapshot: see View.Apply.
	Entry []byte `json:"entry,omitzero"`
	// Extent is that of the store's view with this update: who has applied it and all
	// before it is as far. Zero in a snapshot.
	Extent uint64 `json:"extent,omitzero"`
}

// Subscribe returns every record that the store holds now, revocations first,
// so that a reader who applies them in order never grants what is revoked; and
// a channel of every record after that, each once, in the order in which they
// came into force. The snapshot is read while it is asked for. An error ends it:
// then it was not whole, as after a Retrust.
//
// The store waits for nobody. A subscriber that lets buffer records (at least
// one) pile up has its channel closed after the last record that fitted: it
// must then subscribe again and apply the new snapshot, and must not trust its
// view to be current meanwhile. The channel is also closed by Retrust, after which
// the snapshot is another one, by cancel and by Close. cancel may be called any
// number of times.
func (s *Store) Subscribe(buffer int) (snapshot iter.Seq2[Record, error], updates <-chan Record, cancel func()) {
	snapshot, _, updates, cancel = s.SubscribeAt(buffer)
	return snapshot, updates, cancel
}

// SubscribeAt is Subscribe, and the Extent of who has applied the whole snapshot.
func (s *Store) SubscribeAt(buffer int) (snapshot iter.Seq2[Record, error], extent uint64, updates <-chan Record, cancel func()) {
	ch := make(chan Record, max(buffer, 1))
	s.mu.Lock()
	defer s.mu.Unlock()
	snapshot, extent = s.snapshot(), s.view.Extent()
	if s.db == nil {
		close(ch)
		return snapshot, extent, ch, func() {}
	}
	s.subs[ch] = struct{}{}
	return snapshot, extent, ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.drop(ch)
	}
}

// snapshot is what the store holds. Callers hold s.mu; the snapshot itself needs no
// lock, and what is added after now is not in it.
func (s *Store) snapshot() iter.Seq2[Record, error] {
	last, lists := uint32(s.head.n), s.view.Lists()
	var loose []Revocation
	s.view.mu.RLock()
	trusted := s.view.trusted
	for _, r := range s.view.loose {
		loose = append(loose, r)
	}
	s.view.mu.RUnlock()
	return func(yield func(Record, error) bool) {
		s.sending.Add(1)
		defer s.sending.Add(-1)
		of := func(kind string) bool { return s.readAhead(s.numbersOf(kind, last, trusted), yield) }
		for _, r := range inOrder(loose) {
			if !yield(Record{Kind: RecordRevocation, Envelope: r.Envelope()}, nil) {
				return
			}
		}
		if !of(RecordRevocation) {
			return
		}
		for _, l := range lists {
			if !yield(Record{Kind: RecordList, Envelope: l.Envelope()}, nil) {
				return
			}
		}
		if !of(RecordCapability) {
			return
		}
		for _, number := range s.view.lostNumbers() {
			if number > last {
				continue
			}
			body, _, _, err := s.source.record(number)
			if len(body) == 0 {
				yield(Record{}, fmt.Errorf("reading fact %d: %w", number, err))
				return
			}
			if !yield(Record{Kind: RecordCapability, Entry: body}, nil) {
				return
			}
		}
	}
}

// errRetrusted: what a key takes back that is pinned since then may lie before the
// place that a snapshot is at.
var errRetrusted = errors.New("the policy has changed: subscribe again")

// sent is a record as a snapshot has it; ok is false if it is to be left out.
func (s *Store) sent(number uint32) (_ Record, ok bool, err error) {
	body, text, key, err := s.source.record(number)
	switch {
	case errors.Is(err, ErrClosed):
		return Record{}, true, err
	case err != nil && len(body) == 0:
		return Record{}, true, fmt.Errorf("reading fact %d: %w", number, err)
	}
	f, bad := readBody(body)
	if bad != nil {
		return Record{}, true, fmt.Errorf("reading fact %d: %w", number, bad)
	}
	if err != nil {
		s.view.reject(key, err)
		if f.kind == RecordCapability {
			s.view.lose(number) // told at the end
			return Record{}, false, nil
		}
	}
	return Record{Kind: f.kind, Envelope: text, Entry: body}, true, nil
}

// publish hands a record to each subscriber that has room. Callers hold s.mu.
func (s *Store) publish(r Record) {
	r.Extent = s.view.Extent()
	for ch := range s.subs {
		select {
		case ch <- r:
		default:
			s.drop(ch)
		}
	}
}

// drop ends a subscription once. Callers hold s.mu.
func (s *Store) drop(ch chan Record) {
	if _, ok := s.subs[ch]; ok {
		delete(s.subs, ch)
		close(ch)
	}
}
