package capstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
)

// RejectedRow is a row on disk that did not verify. It is reported and never
// granted, and the store does not delete it.
type RejectedRow struct {
	Key    string
	Reason string
}

// Store keeps signed records and jobs in Badger, and the verified View of them.
// One process has it open. Safe for concurrent use.
//
// In its directory, db/ is Badger's, lock is held while the store is open, and
// ballast is room for revocations on a full disk (see space.go). What must not come
// back with an older copy of it stands elsewhere: the key of its rows (see key.go)
// and the last fact that was acknowledged (see head.go).
//
// BUG: the check of free space and the write after it are two steps, and
// Badger's own goroutines are not behind it: another program that fills the
// disk in between still kills this process with SIGBUS. Nothing acknowledged is
// lost then, and mounts live in other processes.
//
// BUG: Badger can panic in a goroutine of its own over a damaged table file,
// which no caller can recover; most such files are refused before it sees them
// (checkTables).
type Store struct {
	dir, memory string
	key         rowKey
	view        *View

	// mu guards what follows, and the Trust of the view: a record is checked, written
	// and granted under one. It is held across the Badger write, so that records reach
	// the disk, the view and the subscribers in one order.
	mu     sync.Mutex
	db     *badger.DB
	lock   *os.File
	head   head
	subs   map[chan Record]struct{}
	failed error // why nothing can be written any more
	// readers are those who read db without s.mu. Added to under s.mu only, and
	// shut waits for them.
	readers sync.WaitGroup
	closing atomic.Bool   // shut waits for readers: those that take long end
	closed  chan struct{} // of shut, closed when Badger has let go of its files
	// unsaved are lists in force here that are not yet on disk. Revocations of that
	// sort are the view's loose ones.
	unsaved map[hashpipe.Digest]bool
	// unkept are capabilities whose rows are written and that grant nothing here yet,
	// because the journal has no room for them: by id, their fact.
	unkept map[hashpipe.Digest]uint32
	lists  map[hashpipe.Digest]uint32 // by id, the newest fact of each list
	source *database
	sweep  *sweep
	// sending counts the snapshots that are being read. The sweep waits for them:
	// somebody waits for a mount.
	sending atomic.Int32
	kept    *kept.Journal // what was acknowledged, outside of Badger; see kept.go
	behind  error         // why the journal lacks something; nil: it does not
	// taking: the journal is not told of any fact, because one that has some of this
	// store says that all was taken that was taken back before. Of Open alone.
	taking bool
}

// Open opens the store in dir, and verifies every row against t. Rows that do not
// verify are in Rejected. memory is the directory of what this machine remembers
// beside the store. Both are made with mode 0700 if they are missing.
//
// It fails with ErrLocked if another process has the store open, with
// ErrNoSpace if opening could kill this process, with ErrForeign if the rows are
// not of the store that memory knows, and with ErrDamaged if they are fewer or
// older than what was acknowledged, or if a recorded revocation cannot be read:
// granting without it could revive what was revoked.
func Open(dir, memory string, t Trust) (*Store, error) {
	s, err := open(dir, memory, t)
	if err != nil {
		return nil, fmt.Errorf("opening store %s: %w", dir, err)
	}
	return s, nil
}

func open(dir, memory string, t Trust) (_ *Store, err error) {
	source := new(database)
	view, err := viewOf(t, source)
	if err != nil {
		return nil, err
	}
	view.stored = true
	if err := finishSwap(dir, memory); err != nil {
		return nil, err
	}
	for _, d := range []string{dir, memory} {
		if err := durable.PrivateDir(d); err != nil {
			return nil, err
		}
	}
	s := &Store{dir: dir, memory: memory, view: view, subs: make(map[chan Record]struct{}), unsaved: make(map[hashpipe.Digest]bool), unkept: make(map[hashpipe.Digest]uint32), source: source}
	if s.lock, err = lockFile(filepath.Join(dir, "lock")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.shut()
		}
	}()
	if err := s.room(reserveOpen, true); err != nil {
		return nil, err
	}
	if s.db, err = openBadger(filepath.Join(dir, "db")); err != nil {
		return nil, err
	}
	if err := s.identify(); err != nil {
		return nil, err
	}
	source.open(s.db, s.key)
	if err := s.load(); err != nil {
		return nil, err
	}
	s.keepBallast()
	if err := s.openKept(); err != nil {
		return nil, err
	}
	return s, nil
}

// openBadger opens the database. The profile is small: a store of some thousand
// rows needs 12 MB of memory instead of Badger's default of 2 GiB of sparse
// files. Values stay in the tables, because a damaged value log reads as empty
// values. Checksums of blocks stay off: *with* them a damaged table panics in a
// goroutine of Badger's, and every row here is signed or checksummed anyway.
func openBadger(dir string) (db *badger.DB, err error) {
	if err := durable.PrivateDir(dir); err != nil {
		return nil, err
	}
	if err := removeEmptyLogs(dir); err != nil {
		return nil, err
	}
	if err := checkTables(dir); err != nil {
		return nil, err
	}
	defer recovered(&err)
	db, err = badger.Open(badger.DefaultOptions(dir).
		WithLogger(nil).
		WithMetricsEnabled(false).
		WithSyncWrites(true).
		WithMemTableSize(8 << 20).
		WithNumMemtables(2).
		WithValueLogFileSize(16 << 20).
		WithValueThreshold(1 << 20).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithNumCompactors(2).
		WithCompactL0OnClose(true))
	if err != nil {
		// Badger returns a database beside some errors, and closing it panics.
		return nil, err
	}
	return db, nil
}

// recovered turns a panic of Badger's over a damaged file into an error. It can
// do so in the goroutine of the caller only.
func recovered(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: badger: %v", ErrDamaged, p)
	}
}

// How long Badger gets to write what it has in memory when it is closed. Where it
// cannot, it tries again each second for ever.
const (
	closePatience  = 2 * time.Second // where that is in its log as well
	commitPatience = time.Minute
)

// Close waits for the last read and write, ends every subscription and lets go of the
// directory. If Badger cannot write what it has in memory, because the disk is full,
// it returns ErrClosing soon, and the store cannot be opened again before Closed; what
// was acknowledged is on stable storage. A second Close does nothing.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.shut(); err != nil {
		return fmt.Errorf("closing store %s: %w", s.dir, err)
	}
	return nil
}

// Closed is closed when a Close, which comes before, has let go of all files.
func (s *Store) Closed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *Store) shut() (err error) {
	for ch := range s.subs {
		close(ch)
	}
	clear(s.subs)
	if s.kept != nil {
		err = s.kept.Close()
	}
	let := func() error { return nil }
	if s.lock != nil {
		let, s.lock = s.lock.Close, nil
	}
	if s.db == nil {
		return errors.Join(err, let())
	}
	s.endSweep()
	if s.source != nil { // a draft has none
		s.source.close()
	}
	s.closing.Store(true)
	s.readers.Wait()
	closed := make(chan struct{})
	s.closed = closed
	late := closeBadger(s.db, closePatience, func() error { defer close(closed); return let() })
	s.db = nil
	return errors.Join(err, late)
}

// closeBadger calls then, if there is one, when the database is closed: also after it
// has returned ErrClosing.
func closeBadger(db *badger.DB, patience time.Duration, then func() error) error {
	ended := make(chan error, 1)
	go func() {
		var err error
		defer func() {
			if then != nil {
				err = errors.Join(err, then())
			}
			ended <- err
		}()
		defer recovered(&err)
		err = db.Close()
	}()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		return fmt.Errorf("%w: what is in memory could not be written in %v", ErrClosing, patience)
	}
}

// View is the verified set in memory. It takes records through the Store alone.
func (s *Store) View() *View { return s.view }

// Lookup is View().Lookup.
func (s *Store) Lookup(d hashpipe.Digest) []Grant { return s.view.Lookup(d) }

// All is View().All.
func (s *Store) All() []Grant { return s.view.All() }

// Rejected lists the rows that are known not to verify: those that were asked for,
// and what the sweep has found so far. See Swept.
func (s *Store) Rejected() []RejectedRow { return s.view.bad.all() }

func (s *Store) reject(key string, why error) { s.view.reject(shown([]byte(key)), why) }

// Admit checks the envelope, and returns after its capability is on stable
// storage and in the view. A capability that is already there is returned and
// nothing is written. If Admit returns an error the capability grants nothing
// here, and may or may not be found by the next Open; call it again.
func (s *Store) Admit(envelope []byte) (Capability, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := readCapability(s.view.mints, envelope)
	if err != nil {
		return Capability{}, fmt.Errorf("admitting capability: %w", err)
	}
	if have, ok := s.view.capability(c.ID()); ok {
		return have, nil
	}
	if err := s.admit(c); err != nil {
		return Capability{}, fmt.Errorf("admitting capability %s: %w", c.ID(), err)
	}
	return c, nil
}

// admit records a capability that the store does not have, grants it and tells the
// subscribers. Callers hold s.mu.
func (s *Store) admit(c Capability, also ...row) error {
	lost := s.view.find(RecordCapability, c.ID())
	number, written := s.unkept[c.ID()]
	if !written || slices.Contains(lost, number) { // a Retrust has found it, and it was damaged since
		if err := s.record(reserveWrite, c.fact(), c.rec.envelope, also...); err != nil {
			return err
		}
		number = uint32(s.head.n)
	} else if err := s.keepLate(also...); err != nil {
		return err
	}
	delete(s.unkept, c.ID())
	s.view.addCapability(number, c)
	s.view.kill(lost...)
	s.publish(Record{Kind: RecordCapability, Envelope: c.Envelope()})
	return nil
}

// Revoke checks the envelope, and returns after the revocation is in force in
// the view and on stable storage. If the write fails it is in force all the
// same, until this process ends, and the error says so; call it again. Where the
// journal of kept records has room for it, the next Open takes it from there.
func (s *Store) Revoke(envelope []byte) (Revocation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := readRevocation(s.view.revokers, envelope)
	if err != nil {
		return Revocation{}, fmt.Errorf("admitting revocation: %w", err)
	}
	have := s.view.revocation(r.ID())
	unsaved := s.view.isLoose(r.ID())
	if !have.IsZero() && !unsaved {
		return have, nil
	}
	if s.db == nil {
		return Revocation{}, fmt.Errorf("admitting revocation: %w", ErrClosed) // nobody goes by the view any more
	}
	if !unsaved {
		s.view.addLoose(r)
		s.publish(Record{Kind: RecordRevocation, Envelope: r.Envelope()})
		have = r
	}
	if err := s.recordRevocation(have); err != nil {
		return have, fmt.Errorf("revocation %s is in force until this process ends, and is not recorded%s: %w", r.ID(), s.keepWaiting(RecordRevocation, r.rec.envelope), err)
	}
	return have, nil
}

// recordRevocation writes a revocation that is in force. Callers hold s.mu.
func (s *Store) recordRevocation(r Revocation) error {
	lost := s.view.find(RecordRevocation, r.ID())
	if err := s.record(reserveRevoke, r.fact(), r.rec.envelope); err != nil {
		return err
	}
	s.view.addRevocation(uint32(s.head.n), r)
	s.view.kill(lost...)
	return nil
}
