package capstore

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/go-json-experiment/json"
	"github.com/openclaw/clawfs/hashpipe"
)

// Kinds of row. The rest of the key is the payload's SHA-256 in hex, a number
// in hex, or a job's id.
const (
	prefixCapability = "cap/"
	prefixRevocation = "rev/"
	prefixList       = "lst/"
	prefixLog        = "log/"
	prefixJob        = "job/"
	afterJobs        = "job0" // follows every key of prefixJob
)

type row struct{ key, value []byte }

func recordKey(kind string, id hashpipe.Digest) []byte {
	switch kind {
	case RecordRevocation:
		return []byte(prefixRevocation + id.String())
	case RecordList:
		return []byte(prefixList + id.String())
	}
	return []byte(prefixCapability + id.String())
}

// record writes one signed text, its place in the chain, and the rows that have
// to stand or fall with it. Callers hold s.mu.
func (s *Store) record(reserve int64, kind string, id hashpipe.Digest, envelope []byte, also ...row) error {
	next, e := s.head.follow(kind, id, hashpipe.SumBytes(envelope).Claim())
	value, err := json.Marshal(&e, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("encoding log row: %w", err)
	}
	rows := append([]row{{recordKey(kind, id), envelope}, {logKey(next.n), value}}, also...)
	if err := s.commit(reserve, rows...); err != nil {
		return err
	}
	s.head = next
	if err := writeHead(s.dir, next); err != nil {
		s.failed = err
		return err
	}
	return s.keepFact(kind)
}

// commit writes the rows in one transaction and returns after they are on
// stable storage. An error whose outcome is unknown ends all writing, because
// the chain's head would be a guess; the next Open finds out. Callers hold s.mu.
func (s *Store) commit(reserve int64, rows ...row) error {
	if err := s.usable(); err != nil {
		return err
	}
	if err := checkSpace(s.dir, reserve); err != nil {
		return err
	}
	return s.change(func(txn *badger.Txn) error { return setRows(txn, rows) })
}

func setRows(txn *badger.Txn, rows []row) error {
	for _, r := range rows {
		if len(r.value) == 0 || len(r.value) > MaxRecord {
			return fmt.Errorf("row %s has %d bytes: want 1 to %d", r.key, len(r.value), MaxRecord)
		}
		if err := txn.Set(r.key, r.value); err != nil {
			return fmt.Errorf("row %s: %w", r.key, err)
		}
	}
	return nil
}

// change is one transaction. Callers hold s.mu and have looked at the space.
func (s *Store) change(f func(*badger.Txn) error) error {
	txn := s.db.NewTransaction(true)
	defer txn.Discard()
	if err := f(txn); err != nil {
		return err
	}
	if err := commitBadger(txn); err != nil {
		s.failed = fmt.Errorf("committing: %w", err)
		return s.failed
	}
	return nil
}

func commitBadger(txn *badger.Txn) (err error) {
	defer recovered(&err)
	return txn.Commit()
}

// usable says why the store cannot be read or written. Callers hold s.mu.
func (s *Store) usable() error {
	if s.db == nil {
		return ErrClosed
	}
	if s.failed != nil {
		return fmt.Errorf("%w after a write whose outcome is unknown; open it again: %v", ErrClosed, s.failed)
	}
	return nil
}

// reader lends the database for a read that takes long, which must not make a
// revocation wait for s.mu. Until done is called the database stays open.
func (s *Store) reader() (db *badger.DB, done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(); err != nil {
		return nil, nil, err
	}
	s.readers.Add(1)
	return s.db, s.readers.Done, nil
}

// get returns ErrNotFound for a missing row and an error for an empty one.
// Callers hold s.mu.
func (s *Store) get(key string) (value []byte, err error) {
	defer recovered(&err)
	if err := s.usable(); err != nil {
		return nil, err
	}
	err = s.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get([]byte(key))
		if err != nil {
			return err
		}
		value, err = item.ValueCopy(nil)
		return err
	})
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
		return nil, ErrNotFound
	case err != nil:
		return nil, fmt.Errorf("reading row %s: %w", key, err)
	case len(value) == 0:
		return nil, fmt.Errorf("reading row %s: %w: the value is empty", key, ErrDamaged)
	}
	return value, nil
}

// scan calls f with every row whose key is at least from and below to, in order
// of the keys; an empty to means no end. A value may be empty: what that means
// is the caller's to say. The caller holds s.mu, owns s, or got db from
// s.reader.
func scan(db *badger.DB, from, to string, f func(*badger.Item) error) (err error) {
	defer recovered(&err)
	err = db.View(func(txn *badger.Txn) error {
		// Values lie in the tables: fetching ahead would only copy them.
		it := txn.NewIterator(badger.IteratorOptions{})
		defer it.Close()
		for it.Seek([]byte(from)); it.Valid(); it.Next() {
			if to != "" && string(it.Item().Key()) >= to {
				return nil
			}
			if err := f(it.Item()); err != nil {
				return fmt.Errorf("row %q: %w", it.Item().Key(), err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading rows: %w", err)
	}
	return nil
}

func rowOf(item *badger.Item) (row, error) {
	value, err := item.ValueCopy(nil)
	return row{item.KeyCopy(nil), value}, err
}

// load verifies every row and fills the view. It passes over the jobs without
// reading them, because they can be most of the store.
func (s *Store) load() error {
	var log []row
	intact := make(map[string]hashpipe.Digest) // key of a signed row to the SHA-256 of its value
	read := func(item *badger.Item) error {
		key := string(item.Key())
		r, err := rowOf(item)
		if err != nil {
			return err
		}
		var why error
		switch {
		case strings.HasPrefix(key, prefixLog):
			log = append(log, r)
		case strings.HasPrefix(key, prefixCapability):
			intact[key] = hashpipe.SumBytes(r.value).Claim()
			why = s.loadCapability(r)
		case strings.HasPrefix(key, prefixRevocation):
			intact[key] = hashpipe.SumBytes(r.value).Claim()
			why = s.loadRevocation(r)
		case strings.HasPrefix(key, prefixList):
			intact[key] = hashpipe.SumBytes(r.value).Claim()
			why = s.loadList(r)
		default:
			why = errors.New("unknown kind of row")
		}
		if why != nil {
			s.reject(key, why)
		}
		return nil
	}
	// Jobs grant nothing; they are checked when they are read.
	if err := scan(s.db, "", prefixJob, read); err != nil {
		return err
	}
	if err := scan(s.db, afterJobs, "", read); err != nil {
		return err
	}
	return s.checkHead(log, intact)
}

func (s *Store) reject(key string, why error) {
	// A row that somebody planted can have any bytes as its key.
	s.rejected = append(s.rejected, RejectedRow{Key: strings.Trim(fmt.Sprintf("%q", key), `"`), Reason: why.Error()})
}

func (s *Store) loadCapability(r row) error {
	c, err := readCapability(s.view.mints, r.value)
	if err != nil {
		return err
	}
	if !bytes.Equal(r.key, recordKey(RecordCapability, c.ID())) {
		return fmt.Errorf("the row holds capability %s", c.ID())
	}
	s.view.addCapability(c)
	return nil
}

func (s *Store) loadRevocation(r row) error {
	v, err := readRevocation(s.view.revokers, r.value)
	if err != nil {
		return err
	}
	if !bytes.Equal(r.key, recordKey(RecordRevocation, v.ID())) {
		return fmt.Errorf("the row holds revocation %s", v.ID())
	}
	s.view.addRevocation(v)
	return nil
}

func (s *Store) loadList(r row) error {
	l, err := readList(s.view.revokers, r.value)
	if err != nil {
		return err
	}
	if !bytes.Equal(r.key, recordKey(RecordList, l.ID())) {
		return fmt.Errorf("the row holds revocation list %s", l.ID())
	}
	s.view.addList(l)
	return nil
}

// checkHead compares the rows with what was acknowledged. A lost capability is
// reported: it only grants less. A lost revocation, or a chain that does not
// reach the head, is ErrDamaged. A revocation whose row is intact and whose
// signer is no longer pinned has been withdrawn by the operator: it is in
// Rejected.
func (s *Store) checkHead(log []row, intact map[string]hashpipe.Digest) error {
	at, entries, err := readLog(log)
	if err != nil {
		return err
	}
	outside, found, err := readHead(s.dir)
	if err != nil {
		return err
	}
	switch {
	case !found && (len(log) > 0 || len(intact) > 0):
		return fmt.Errorf("%w: it has %d facts and no head file", ErrDamaged, max(len(log), len(intact)))
	case found && !contains(entries, outside):
		return fmt.Errorf("%w: %d facts were acknowledged, and the rows hold %d that do not lead there: put back the newer copy, or move the store away and grant again", ErrDamaged, outside.n, at.n)
	}
	last := make(map[string]int, len(entries)) // a record that was written again counts once
	for i, e := range entries {
		last[string(recordKey(e.Kind, e.ID))] = i
	}
	for i, e := range entries {
		key := string(recordKey(e.Kind, e.ID))
		have, there := intact[key]
		if last[key] != i || there && have == e.Envelope {
			continue
		}
		state := "missing"
		if there {
			state = "altered"
		}
		why := fmt.Errorf("fact %d: %s %s was acknowledged, and its row is %s", i+1, e.Kind, e.ID, state)
		if e.Kind == RecordRevocation && s.view.revocation(e.ID).IsZero() || e.Kind == RecordList && !s.view.knowsList(e.ID) {
			return fmt.Errorf("%w: %w", ErrDamaged, why)
		}
		s.reject(key, why)
	}
	s.head = at
	if !found || outside != at {
		return writeHead(s.dir, at)
	}
	return nil
}
