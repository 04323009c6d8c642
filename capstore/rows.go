package capstore

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
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
	afterLog         = "log0" // follows every key of prefixLog
)

type row struct{ key, value []byte }

func recordKey(kind string, id hashpipe.Digest) []byte {
	return []byte(recordPrefix(kind) + id.String())
}

func recordPrefix(kind string) string {
	switch kind {
	case RecordRevocation:
		return prefixRevocation
	case RecordList:
		return prefixList
	}
	return prefixCapability
}

// record writes one signed text, the fact that it was acknowledged, and the
// contents of rows that have to stand or fall with it. s.head.n is its number then.
// Callers hold s.mu.
func (s *Store) record(reserve int64, f fact, envelope []byte, also ...row) error {
	if s.head.n >= maxNumber {
		return fmt.Errorf("%d facts are the most that a store holds", s.head.n)
	}
	f.at = max(time.Now().Unix(), s.head.at)
	next, content := s.head.follow(f)
	rows := append([]row{{recordKey(f.kind, f.id), envelope}, {logKey(next.n), content}}, also...)
	if err := s.commit(reserve, next.n, rows...); err != nil {
		return err
	}
	s.head = next
	if err := writeHead(s.memory, s.key, next); err != nil {
		s.failed = err
		return err
	}
	err := s.keepFact(f.kind)
	if err != nil {
		s.unkept[f.id] = uint32(next.n)
	}
	return err
}

// commit writes rows of these contents in one transaction and returns after they
// are on stable storage. An error whose outcome is unknown ends all writing,
// because the chain's head would be a guess; the next Open finds out. Callers hold
// s.mu.
func (s *Store) commit(reserve int64, sequence uint64, rows ...row) error {
	if err := s.usable(); err != nil {
		return err
	}
	sealed := make([]row, len(rows))
	for i, r := range rows {
		if len(r.value) == 0 || len(r.value) > MaxRecord {
			return fmt.Errorf("row %s has %d bytes: want 1 to %d", r.key, len(r.value), MaxRecord)
		}
		sealed[i] = s.key.seal(r.key, sequence, r.value)
	}
	if err := s.room(reserve, reserve == reserveRevoke); err != nil {
		return err
	}
	if err := s.change(func(txn *badger.Txn) error { return setRows(txn, sealed) }); err != nil {
		return err
	}
	s.keepBallast()
	return nil
}

func setRows(txn *badger.Txn, rows []row) error {
	for _, r := range rows {
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

// get returns the content of a row: ErrNotFound for a missing row, and ErrDamaged for
// one that this store did not write. Callers hold s.mu.
func (s *Store) get(key string) ([]byte, error) {
	if err := s.usable(); err != nil {
		return nil, err
	}
	value, err := getRow(s.db, key)
	if err != nil {
		return nil, err
	}
	_, content, err := s.key.open(row{[]byte(key), value})
	if err != nil {
		return nil, fmt.Errorf("reading row %s: %w: %w", key, ErrDamaged, err)
	}
	return content, nil
}

// getRow returns a row's value as it lies in the database.
func getRow(db *badger.DB, key string) (value []byte, err error) {
	defer recovered(&err)
	err = db.View(func(txn *badger.Txn) error {
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

// identify finds out whether the rows are of the store that memory knows, and makes
// what a new store needs: the head, the key and the row that names both, in this
// order, so that a key without a head is one whose head was lost.
func (s *Store) identify() error {
	value, err := getRow(s.db, formatKey)
	named := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	key, keyed, err := readKey(s.memory)
	if err != nil {
		return fmt.Errorf("%w; %s", err, rebuildNext)
	}
	id, outside, headed, err := readHead(s.memory)
	if err != nil {
		return fmt.Errorf("%w; %s", err, rebuildNext)
	}
	empty, err := isEmpty(s.db)
	if err != nil {
		return err
	}
	found, _ := strings.CutPrefix(string(value[min(rowHeader, len(value)):]), storeFormat+"\n")
	found = strings.TrimSuffix(found, "\n")
	switch {
	case empty && headed && outside.n > 0:
		return s.short(outside, head{})
	case empty && keyed && !headed, !empty && named && !headed && keyed:
		return fmt.Errorf("%w: expected the newest fact in %s, and there is no head file; %s", ErrDamaged, filepath.Join(s.memory, HeadName), rebuildNext)
	case empty:
		return s.begin(key, keyed)
	case !named:
		return fmt.Errorf("%w: expected the format %s, and its rows name none: an earlier version wrote them, or the row %q is lost; %s", ErrForeign, storeFormat, formatKey, rebuildNext)
	case !keyed:
		return fmt.Errorf("%w: it has the id %.40q, and %s is not there; %s", ErrForeign, found, filepath.Join(s.memory, KeyName), rebuildNext)
	case found != key.name():
		return fmt.Errorf("%w: expected the id %s of %s, got %.40q; %s", ErrForeign, key.name(), filepath.Join(s.memory, KeyName), found, rebuildNext)
	case id != key.name():
		return fmt.Errorf("%w: %s is of the store %.40q, and the rows are of %s; %s", ErrForeign, filepath.Join(s.memory, HeadName), id, key.name(), rebuildNext)
	}
	if _, _, err := key.open(row{[]byte(formatKey), value}); err != nil {
		return fmt.Errorf("%w: the key in %s is not the one that its rows were written with; %s", ErrForeign, filepath.Join(s.memory, KeyName), rebuildNext)
	}
	s.key = key
	return nil
}

// begin makes a new store, or goes on where a crash stopped that.
func (s *Store) begin(key rowKey, keyed bool) error {
	if !keyed {
		key = newRowKey()
	}
	if err := writeHead(s.memory, key, firstHead(key)); err != nil {
		return err
	}
	if !keyed {
		if err := writeKey(s.memory, key); err != nil {
			return err
		}
	}
	s.key, s.head = key, firstHead(key)
	return s.commit(reserveOpen, 0, row{[]byte(formatKey), []byte(storeFormat + "\n" + key.name() + "\n")})
}

// short says that the rows do not lead to what was acknowledged.
func (s *Store) short(outside, at head) error {
	return fmt.Errorf("%w: %d facts were acknowledged, and the rows hold %d that do not lead there (the newest fact is of %s): put back the newer copy; %s", ErrDamaged, outside.n, at.n, outside.time(), rebuildNext)
}

func isEmpty(db *badger.DB) (bool, error) {
	some := errors.New("")
	err := scan(db, "", "", func(*badger.Item) error { return some })
	if errors.Is(err, some) {
		return false, nil
	}
	return err == nil, err
}

// load reads the facts, compares them with the head, and fills the index. Of the
// records it reads the lists alone, which are few and each of which may take back
// much: one that cannot be read is ErrDamaged. One whose signer is no longer pinned
// has been withdrawn by the operator.
func (s *Store) load() error {
	_, outside, found, err := readHead(s.memory)
	if err != nil {
		return err
	}
	if s.head.n == 0 {
		s.head = firstHead(s.key)
	}
	met := found && outside.is(s.head)
	s.lists = make(map[hashpipe.Digest]uint32)
	err = s.readFacts(func(at head, f fact) {
		s.head, met = at, met || outside.is(at)
		s.learn(uint32(at.n), f)
	})
	if err != nil {
		return err
	}
	if !met {
		return s.short(outside, s.head)
	}
	if err := s.loadLists(s.view); err != nil {
		return err
	}
	s.sweepAgain()
	if !outside.is(s.head) {
		return writeHead(s.memory, s.key, s.head)
	}
	return nil
}

// learn indexes a fact. A record that was written again counts once.
func (s *Store) learn(number uint32, f fact) {
	x := s.view.index // nobody else has the store yet
	switch f.kind {
	case RecordList:
		if older, again := s.lists[f.id]; again {
			x.kill(older)
		}
		s.lists[f.id] = number
	case RecordRevocation:
		if x.revByID.has(tagOf(f.id)) {
			s.view.kill(s.view.find(f.kind, f.id)...)
		}
	default:
		if x.byID.has(tagOf(f.id)) {
			s.view.kill(s.view.find(f.kind, f.id)...)
		}
	}
	x.add(number, f, s.view.pins)
}

// loadLists gives a view the lists by keys that it trusts.
func (s *Store) loadLists(v *View) error {
	for _, number := range slices.Sorted(maps.Values(s.lists)) {
		f, err := s.source.fact(number)
		if err != nil {
			return fmt.Errorf("fact %d: %w", number, err)
		}
		if !v.pins(f.kind, f.signer) {
			continue
		}
		text, id, _, err := s.source.text(number)
		var l List
		if err == nil {
			l, err = readList(v.revokers, text)
		}
		if err == nil && l.ID() != id {
			err = fmt.Errorf("the row holds revocation list %s", l.ID())
		}
		if err != nil {
			return fmt.Errorf("%w: fact %d: %s %s was acknowledged: %w; %s", ErrDamaged, number, f.kind, f.id, err, rebuildNext)
		}
		v.addList(l)
	}
	return nil
}
