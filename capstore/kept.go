package capstore

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// KeptName is the name of the journal of kept records, which stands beside the
// store's directory: what destroys the store shall not destroy that.
const KeptName = "kept"

func keptDir(dir string) string { return filepath.Join(filepath.Dir(dir), KeptName) }

// name is the store's id in the journal.
func (s *Store) name() string { return s.key.name() }

// openKept opens the journal, appends what a crash kept from it, and takes the
// records that were acknowledged while there was no store. The caller owns s, whose
// rows are checked.
func (s *Store) openKept() (err error) {
	if s.kept, err = kept.Open(keptDir(s.dir)); err != nil {
		return err
	}
	for _, d := range s.kept.Damage() {
		s.reject(KeptName+"/"+d.File, fmt.Errorf("byte %d: %s", d.Offset, d.Reason))
	}
	// The journal gets a fact after the rows and the head have it.
	if have := s.kept.Facts(s.name()); have > s.head.n {
		return fmt.Errorf("%w: expected the %d facts that the journal %s has of it, and its rows hold %d: an older copy of it was put back; %s",
			ErrDamaged, have, keptDir(s.dir), s.head.n, rebuildNext)
	} else if have == 0 {
		s.taking = true
		if err := s.takeRevoked(); err != nil {
			return err
		}
		s.taking = false
	}
	if err := s.keep(s.head.n); err != nil {
		s.behind = err
	}
	return s.takeWaiting()
}

// keep appends what the journal lacks of the facts up to n. Callers hold s.mu, or
// own s.
func (s *Store) keep(n uint64) error {
	id := s.name()
	have := s.kept.Facts(id)
	if have == 0 {
		if err := s.kept.Begin(id, 0); err != nil {
			return err
		}
	}
	for have < n {
		// One fsync for many: after a rebuild, or with a journal that is new.
		var batch []kept.Record
		for size := 0; have+uint64(len(batch)) < n && size < 4<<20; {
			r, err := s.factRecord(have + uint64(len(batch)) + 1)
			if errors.Is(err, errLostFact) {
				break
			}
			if err != nil {
				return err
			}
			batch = append(batch, r)
			size += len(r.Envelope)
		}
		if len(batch) == 0 { // the record of this fact is gone, as Open has told
			have++
			if err := s.kept.Begin(id, have); err != nil {
				return err
			}
			continue
		}
		if err := s.kept.Append(id, have+1, batch...); err != nil {
			return err
		}
		have += uint64(len(batch))
	}
	return nil
}

// keepFact is keep for the fact that was committed last. A revocation that is in
// the store and in force is acknowledged also where the journal has no room: it is
// appended with the next record, or by the next Open. Callers hold s.mu.
func (s *Store) keepFact(kind string) error {
	if s.taking {
		return nil
	}
	err := s.keep(s.head.n)
	if err != nil && kind != RecordCapability {
		s.behind = err
		return nil
	}
	if err == nil {
		s.behind = nil
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w for the journal of kept records: %w", ErrNoSpace, err)
	}
	return err
}

// keepLate is keepFact for a capability whose rows are written: to write them again for
// each try would fill the store and then the journal with one record. Callers hold s.mu.
func (s *Store) keepLate(also ...row) error {
	if err := s.usable(); err != nil {
		return err
	}
	if len(also) > 0 {
		if err := s.commit(reserveWrite, s.head.n, also...); err != nil {
			return err
		}
	}
	return s.keepFact(RecordCapability)
}

// keepWaiting puts what takes something back, and could not be written to the
// database, where the next Open finds it, and says so for an error. Callers hold
// s.mu.
func (s *Store) keepWaiting(kind string, envelope []byte) string {
	if err := s.kept.Wait(kept.Record{Kind: kind, Envelope: envelope}); err != nil {
		return ""
	}
	return " in the store; the journal keeps it, and the next start takes it"
}

// Behind says why the journal of kept records lacks something that the store has;
// nil if it lacks nothing.
func (s *Store) Behind() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.behind
}

// Failed says why nothing can be written any more; nil while it can. A store that
// is opened again knows what became of the write that failed.
func (s *Store) Failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Unsaved are the revocations and lists that are in force here and could not be
// written to the database.
func (s *Store) Unsaved() (list []Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view.mu.RLock()
	defer s.view.mu.RUnlock()
	for _, r := range s.view.loose {
		list = append(list, Record{Kind: RecordRevocation, Envelope: r.Envelope()})
	}
	for id := range s.unsaved {
		if l, held := s.view.lists[id]; held {
			list = append(list, Record{Kind: RecordList, Envelope: l.Envelope()})
		}
	}
	return list
}

// errLostFact: the row of a fact's record is missing.
var errLostFact = errors.New("the record of the fact is gone")

// factRecord is the record that fact n acknowledged. A record that was written
// twice is that of its later fact, too.
func (s *Store) factRecord(n uint64) (kept.Record, error) {
	content, err := s.get(string(logKey(n)))
	if err != nil {
		return kept.Record{}, fmt.Errorf("fact %d: %w", n, err)
	}
	f, _, _, err := readFact(content)
	if err != nil {
		return kept.Record{}, fmt.Errorf("fact %d: %w: %w", n, ErrDamaged, err)
	}
	envelope, err := s.get(string(recordKey(f.kind, f.id)))
	if errors.Is(err, ErrNotFound) {
		return kept.Record{}, fmt.Errorf("%w: fact %d, %s %s", errLostFact, n, f.kind, f.id)
	}
	return kept.Record{Kind: f.kind, Envelope: envelope}, err
}

// takeRevoked takes what a journal that has nothing of this store takes back: it is
// of the store that was here before, and what a pinned revoker signed holds for this
// one too. The caller owns s.
func (s *Store) takeRevoked() error {
	var unknown []kept.Record
	_, err := kept.Read(keptDir(s.dir), func(r kept.Record) error {
		if r.Kind == RecordCapability {
			return nil
		}
		e, err := dsse.Parse(r.Envelope)
		if err != nil {
			s.reject(fmt.Sprintf("%s/%d", KeptName, r.N), err)
			return nil
		}
		if id := hashpipe.SumBytes(e.UnverifiedPayload()).Claim(); s.view.revocation(id).IsZero() && !s.view.knowsList(id) {
			unknown = append(unknown, r)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading what was taken back before: %w", err)
	}
	for _, r := range unknown {
		refused, err := s.take(r)
		if err != nil {
			return fmt.Errorf("taking what was taken back before: %w", err)
		}
		if refused != nil {
			s.reject(fmt.Sprintf("%s/%d", KeptName, r.N), refused)
		}
	}
	return nil
}

// takeWaiting admits what was acknowledged while there was no store. One that is
// refused now, because its revoker was struck off or it is in a list that is known,
// stays where it is with the others, and is reported. The caller owns s.
func (s *Store) takeWaiting() error {
	refused, taken := 0, 0
	damage, err := kept.ReadWaiting(keptDir(s.dir), func(r kept.Record) error {
		why, err := s.take(r)
		if err != nil {
			return err
		}
		if why == nil {
			taken++
			return nil
		}
		refused++
		s.reject(fmt.Sprintf("%s/waiting/%d", KeptName, r.N), why)
		return nil
	})
	for _, d := range damage {
		refused++
		s.reject(KeptName+"/"+d.File, fmt.Errorf("byte %d: %s", d.Offset, d.Reason))
	}
	if err != nil {
		return fmt.Errorf("taking what was acknowledged without a store: %w", err)
	}
	if refused > 0 || taken == 0 {
		return nil
	}
	return s.kept.DropWaiting()
}

// take admits one record that waited. refused says why it is none for this store;
// err, why it could not be written.
func (s *Store) take(r kept.Record) (refused, err error) {
	switch r.Kind {
	case RecordRevocation:
		v, err := readRevocation(s.view.revokers, r.Envelope)
		if err != nil {
			return err, nil
		}
		if !s.view.revocation(v.ID()).IsZero() {
			return nil, nil
		}
		s.view.addLoose(v)
		return nil, s.recordRevocation(v)
	case RecordList:
		l, err := readList(s.view.revokers, r.Envelope)
		if err != nil {
			return err, nil
		}
		if s.view.knowsList(l.ID()) {
			return nil, nil
		}
		s.view.addList(l) // an older one, too: it was acknowledged
		if s.view.isOutgrown(l.ID()) {
			return nil, nil // one that the store has repeats it
		}
		return nil, s.recordList(l)
	}
	return fmt.Errorf("a record of kind %q does not wait for a store", r.Kind), nil
}
