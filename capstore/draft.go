package capstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier/dsse"
)

const (
	// draftSuffix is behind the name of the directory of a store that is being made.
	draftSuffix = ".new"
	// swapName is the file in memory that says that a draft takes the store's place.
	swapName   = "store-swap"
	swapFormat = "clawfs-store-swap/v1"

	swapPatience = 10 * time.Second
	// draftBatch bounds the rows of one transaction of a draft, in bytes.
	draftBatch = 400 << 10
)

// Draft is a store that is made beside the one in use, of records from anywhere:
// each is verified as by Admit. Nobody opens the one in use meanwhile. Commit puts
// the draft in its place; a crash leaves the old store or the new one. A Draft is
// for one goroutine.
type Draft struct {
	dir, memory string
	held        *os.File // the lock of the store in use
	s           *Store   // the new one, without a journal
	keeps       uint64   // the first so many of its facts are in the journal already
	mixed       bool     // a fact that is not came before one that is

	rows    []row
	pending map[string]bool // keys of rows
	size    int
}

// NewDraft begins a store for dir and memory, as Open has them. What an earlier
// draft left that was never committed is removed. It fails with ErrLocked while
// another process has the store open, and with ErrNoSpace.
func NewDraft(dir, memory string, t Trust) (_ *Draft, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("making a store for %s: %w", dir, err)
		}
	}()
	if err := finishSwap(dir, memory); err != nil {
		return nil, err
	}
	view, err := NewView(t)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{dir, memory} {
		if err := durable.PrivateDir(d); err != nil {
			return nil, err
		}
	}
	d := &Draft{dir: dir, memory: memory, pending: make(map[string]bool)}
	if d.held, err = lockFile(filepath.Join(dir, "lock")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			d.Discard()
		}
	}()
	if err := d.clear(); err != nil {
		return nil, err
	}
	for _, dir := range []string{d.newDir(), d.newMemory()} {
		if err := durable.PrivateDir(dir); err != nil {
			return nil, err
		}
	}
	d.s = &Store{dir: d.newDir(), memory: d.newMemory(), view: view, subs: make(map[chan Record]struct{})}
	if d.s.lock, err = lockFile(filepath.Join(d.newDir(), "lock")); err != nil {
		return nil, err
	}
	if err := checkSpace(d.newDir(), reserveOpen); err != nil {
		return nil, err
	}
	if d.s.db, err = openBadger(filepath.Join(d.newDir(), "db")); err != nil {
		return nil, err
	}
	return d, d.s.identify()
}

func (d *Draft) newDir() string    { return d.dir + draftSuffix }
func (d *Draft) newMemory() string { return filepath.Join(d.memory, "store"+draftSuffix) }

// clear removes a draft that was not committed.
func (d *Draft) clear() error {
	return errors.Join(os.RemoveAll(d.newDir()), os.RemoveAll(d.newMemory()))
}

// Discard ends a draft that is not wanted. After Commit it does nothing.
func (d *Draft) Discard() error {
	if d.held == nil {
		return nil
	}
	var err error
	if d.s != nil {
		err = d.s.shut()
	}
	err = errors.Join(err, d.clear(), d.held.Close())
	d.held = nil
	return err
}

// Origin is where a record comes from that is added to a Draft.
type Origin int

// The origins.
const (
	Elsewhere  Origin = iota
	OwnStore          // this machine's store acknowledged it
	OwnJournal        // and it is in the journal beside the store, which need not be told of it again
)

// RefusedError says why a record is none that the policy believes. Nothing else
// is wrong.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string { return e.Err.Error() }
func (e *RefusedError) Unwrap() error { return e.Err }

// Add verifies a record and adds it; added is false for one that is there already.
// What this machine acknowledged of a revoker who is not pinned now takes nothing
// back, and is added all the same: it does again if the key is pinned again. Its
// error is a *RefusedError, or the draft is of no use any more.
func (d *Draft) Add(r Record, from Origin) (added bool, err error) {
	id, e, err := d.verify(r)
	if errors.Is(err, dsse.ErrUnverified) && from != Elsewhere && r.Kind != RecordCapability {
		id, e, err = d.withdrawn(r)
	}
	if err != nil {
		return false, &RefusedError{err}
	}
	key := recordKey(r.Kind, id)
	if have, err := d.has(key); have || err != nil {
		return false, err
	}
	f := fact{kind: r.Kind, at: max(time.Now().Unix(), d.s.head.at), id: id, envelope: hashpipe.SumBytes(r.Envelope).Claim(), entry: e}
	next, content := d.s.head.follow(f)
	d.s.head = next
	switch {
	case from != OwnJournal:
		d.mixed = true
	case !d.mixed:
		d.keeps = next.n
	}
	return true, d.put(d.s.key.seal(key, next.n, r.Envelope), d.s.key.seal(logKey(next.n), next.n, content))
}

// verify checks the signature of a record.
func (d *Draft) verify(r Record) (id hashpipe.Digest, e entry, err error) {
	switch r.Kind {
	case RecordCapability:
		c, err := readCapability(d.s.view.mints, r.Envelope)
		if err != nil {
			return id, e, err
		}
		return c.ID(), c.entry(), nil
	case RecordRevocation:
		v, err := readRevocation(d.s.view.revokers, r.Envelope)
		if err != nil {
			return id, e, err
		}
		return v.ID(), v.entry(), nil
	case RecordList:
		l, err := readList(d.s.view.revokers, r.Envelope)
		if err != nil {
			return id, e, err
		}
		return l.ID(), l.entry(), nil
	}
	return id, e, fmt.Errorf("record of kind %.40q: want %q, %q or %q", r.Kind, RecordCapability, RecordRevocation, RecordList)
}

// withdrawn reads what takes something back and says that its revoker is one who is
// not pinned. Of a revoker who is, the signature was wrong.
func (d *Draft) withdrawn(r Record) (id hashpipe.Digest, e entry, err error) {
	envelope, err := dsse.Parse(r.Envelope)
	if err != nil {
		return id, e, err
	}
	payload := envelope.UnverifiedPayload()
	var by dsse.KeyID
	switch r.Kind {
	case RecordRevocation:
		st, err := parseRevocation(payload)
		if err != nil {
			return id, e, err
		}
		by, e.target = st.Predicate.Revoker.KeyID, target{st.Predicate.Kind, st.Subject[0].Digest.SHA256}
	case RecordList:
		st, err := parseList(payload)
		if err != nil {
			return id, e, err
		}
		by = st.Predicate.Revoker.KeyID
	}
	if _, pinned := d.s.view.revokers.operator[by]; pinned {
		return id, e, fmt.Errorf("%w: revoker.keyid is %s, which did not sign it", dsse.ErrUnverified, by)
	}
	e.signer = keyDigest(by)
	return hashpipe.SumBytes(payload).Claim(), e, nil
}

// AddJob adds a job as it is, whatever its state; added is false for one that is
// there already. Its error is a *RefusedError, or the draft is of no use any more.
func (d *Draft) AddJob(j Job) (added bool, err error) {
	r, err := jobRow(j)
	if err != nil {
		return false, &RefusedError{err}
	}
	if !isJobID(j.ID) {
		return false, &RefusedError{fmt.Errorf("job %.40q has no id", j.ID)}
	}
	if have, err := d.has(r.key); have || err != nil {
		return false, err
	}
	return true, d.put(d.s.key.seal(r.key, d.s.head.n, r.value))
}

func (d *Draft) has(key []byte) (bool, error) {
	if d.pending[string(key)] {
		return true, nil
	}
	_, err := getRow(d.s.db, string(key))
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

func (d *Draft) put(rows ...row) error {
	for _, r := range rows {
		d.rows = append(d.rows, r)
		d.pending[string(r.key)] = true
		d.size += len(r.key) + len(r.value)
	}
	if d.size < draftBatch {
		return nil
	}
	return d.flush()
}

func (d *Draft) flush() error {
	if err := checkSpace(d.newDir(), reserveWrite); err != nil {
		return err
	}
	if err := d.s.change(func(txn *badger.Txn) error { return setRows(txn, d.rows) }); err != nil {
		return err
	}
	d.rows, d.size = nil, 0
	clear(d.pending)
	return nil
}

// Facts is how many records were added.
func (d *Draft) Facts() uint64 { return d.s.head.n }

// Commit puts the draft in the store's place, and returns where the old store is
// now. It returns after that is on stable storage. After an error of it the next
// Open finds the old store or the new one.
func (d *Draft) Commit(now time.Time) (old string, err error) {
	if old, err = d.commit(now); err != nil {
		return "", fmt.Errorf("putting a new store in the place of %s: %w", d.dir, err)
	}
	return old, nil
}

func (d *Draft) commit(now time.Time) (old string, err error) {
	if err := d.flush(); err != nil {
		return "", errors.Join(err, d.Discard())
	}
	if err := writeHead(d.newMemory(), d.s.key, d.s.head); err != nil {
		return "", errors.Join(err, d.Discard())
	}
	if err := closeBadger(d.s.db, commitPatience, nil); err != nil {
		d.s.db = nil
		return "", errors.Join(err, d.Discard())
	}
	d.s.db = nil
	// Until both are let go of, nobody opens what stands in the store's place.
	defer func() {
		err = errors.Join(err, d.held.Close(), d.s.shut())
		d.held = nil
	}()
	aside := ".until-" + now.UTC().Format("20060102T150405.000000000Z")
	if err := beginSwap(d.memory, aside); err != nil {
		return "", errors.Join(err, d.clear())
	}
	if err := finishSwap(d.dir, d.memory); err != nil {
		return "", err
	}
	old = d.dir + aside
	j, err := kept.Open(keptDir(d.dir))
	if errors.Is(err, kept.ErrLocked) {
		return old, nil // the next Open appends all of it, which is no more than long
	}
	if err != nil {
		return old, err
	}
	return old, errors.Join(j.Begin(d.s.name(), d.keeps), j.Close())
}

// A swap is three names that change: the store's directory, its key and its head.
// memory/store-swap says that all of them are to, and is removed when all of them
// have; whoever opens the store finishes what a crash left.

func beginSwap(memory, aside string) error {
	return writeLines(filepath.Join(memory, swapName), swapFormat, aside)
}

// finishSwap does nothing where no swap was begun.
func finishSwap(dir, memory string) error {
	path := filepath.Join(memory, swapName)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for end := time.Now().Add(swapPatience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w: it puts another store in this one's place (%s)", ErrLocked, path)
		}
	}
	lines, found, err := readLines(path, swapFormat, 1)
	if errors.Is(err, ErrDamaged) {
		// It was put there whole, when the new store was. What is lost is the name for
		// the old one.
		lines, found, err = []string{".until-" + time.Now().UTC().Format("20060102T150405.000000000Z")}, true, nil
	}
	if err != nil || !found { // not found: who had the lock before has done it
		return err
	}
	next := filepath.Join(memory, "store"+draftSuffix)
	for _, m := range [][2]string{
		{dir + draftSuffix, dir},
		{filepath.Join(next, KeyName), filepath.Join(memory, KeyName)},
		{filepath.Join(next, HeadName), filepath.Join(memory, HeadName)},
	} {
		if err := swap(m[0], m[1], lines[0]); err != nil {
			return err
		}
	}
	for _, d := range []string{filepath.Dir(dir), next, memory} {
		if err := durable.SyncDir(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := errors.Join(os.RemoveAll(next), os.Remove(path)); err != nil {
		return err
	}
	return durable.SyncDir(memory)
}

// swap moves what stands at path aside and puts next there, whatever of that is
// done already.
func swap(next, path, aside string) error {
	_, err := os.Lstat(next)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path + aside); errors.Is(err, fs.ErrNotExist) {
		if err := os.Rename(path, path+aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	} else if err != nil {
		return err
	}
	return os.Rename(next, path)
}
