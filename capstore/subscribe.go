package capstore

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
}

// Subscribe returns every record that the store holds now, revocations first,
// so that a reader who applies them in order never grants what is revoked; and
// a channel of every record after that, each once, in the order in which they
// came into force.
//
// The store waits for nobody. A subscriber that lets buffer records (at least
// one) pile up has its channel closed after the last record that fitted: it
// must then subscribe again and apply the new snapshot, and must not trust its
// view to be current meanwhile. The channel is also closed by Retrust, after which
// the snapshot is another one, by cancel and by Close. cancel may be called any
// number of times.
func (s *Store) Subscribe(buffer int) (snapshot []Record, updates <-chan Record, cancel func()) {
	ch := make(chan Record, max(buffer, 1))
	s.mu.Lock()
	defer s.mu.Unlock()
	snapshot = s.view.records()
	if s.db == nil {
		close(ch)
		return snapshot, ch, func() {}
	}
	s.subs[ch] = struct{}{}
	return snapshot, ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.drop(ch)
	}
}

// publish hands a record to each subscriber that has room. Callers hold s.mu.
func (s *Store) publish(r Record) {
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
