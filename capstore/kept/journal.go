package kept

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe/durable"
)

// Journal appends to a directory of kept records. One process has it open. Safe
// for concurrent use.
type Journal struct {
	dir  string
	lock *os.File

	// mu guards what follows.
	mu     sync.Mutex
	file   *os.File // the last one; nil: the next record begins another
	size   int64
	next   uint64 // the number of the next record
	store  string // that of the last file
	facts  uint64 // of store, that are here
	damage []Damage
	closed bool

	maxFile int64
}

// Open opens the journal in dir, which is made with mode 0700 if it is missing. It
// reads the end of the last file only, and cuts off there what a crash left of a
// line; Damage tells that.
func Open(dir string) (*Journal, error) {
	if err := durable.PrivateDir(dir); err != nil {
		return nil, fmt.Errorf("journal of kept records: %w", err)
	}
	j, err := openJournal(dir)
	if err != nil {
		return nil, fmt.Errorf("journal of kept records %s: %w", dir, err)
	}
	return j, nil
}

func openJournal(dir string) (_ *Journal, err error) {
	j := &Journal{dir: dir, next: 1, maxFile: MaxFile}
	if j.lock, err = open(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			j.Close()
		}
	}()
	if err := unix.Flock(int(j.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrLocked
	} else if err != nil {
		return nil, fmt.Errorf("locking: %w", err)
	}
	return j, j.resume()
}

// resume finds the end of the last file.
func (j *Journal) resume() error {
	files, err := list(j.dir)
	if err != nil {
		return err
	}
	for i := len(files) - 1; i >= 0; i-- {
		empty, err := j.cut(files[i])
		if err != nil {
			return err
		}
		if empty { // a crash came before its first line was whole
			if err := errors.Join(os.Remove(files[i]), durable.SyncDir(j.dir)); err != nil {
				return err
			}
			continue
		}
		return j.resumeFile(files[i])
	}
	return nil
}

// cut removes what stands behind the last line end of a file.
func (j *Journal) cut(path string) (empty bool, err error) {
	f, err := open(path, os.O_RDWR)
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	end, err := lastLineEnd(f, info.Size())
	if err != nil {
		return false, err
	}
	if end == info.Size() {
		return end == 0, nil
	}
	j.damage = append(j.damage, Damage{filepath.Base(path), end, fmt.Sprintf("%d bytes of a line that a crash left unfinished, and that nobody was told of, were cut off", info.Size()-end)})
	if err := f.Truncate(end); err != nil {
		return false, err
	}
	return end == 0, f.Sync()
}

// lastLineEnd returns the offset behind the last line end; 0: there is none.
func lastLineEnd(f io.ReaderAt, size int64) (int64, error) {
	b := make([]byte, 64<<10)
	for end := size; end > 0; {
		from := max(0, end-int64(len(b)))
		part := b[:end-from]
		if _, err := f.ReadAt(part, from); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
		end = from
	}
	return 0, nil
}

// resumeFile reads where the last file ends. Files are bounded, and this is what
// tells of damage that the next record would hide.
func (j *Journal) resumeFile(path string) error {
	first, _ := firstOf(path)
	var last uint64
	r := reader{path: path, next: first, last: true, each: func(r Record) error { last = r.N; return nil }}
	if err := r.read(); err != nil {
		return err
	}
	j.damage = append(j.damage, r.damage...)
	j.next = max(first, last+1)
	if r.headed {
		j.store, j.facts = r.head.Store, r.head.Facts+(j.next-first)
	}
	if len(r.damage) > 0 {
		// What is damaged stays as it is, and nothing is written behind it. Without its
		// first line it is not known whose facts these are.
		j.next = max(j.next, first+1)
		return nil
	}
	f, err := open(path, os.O_WRONLY|os.O_APPEND)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	j.file, j.size = f, info.Size()
	return nil
}

// Damage is what Open found at the end of the journal. Read tells that of all of it.
func (j *Journal) Damage() []Damage { return j.damage }

// Records is how many records were ever appended.
func (j *Journal) Records() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.next - 1
}

// Facts returns how many facts of a store are in the journal: those from 1 on. It
// is 0 for a store whose facts do not end the journal.
func (j *Journal) Facts(store string) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.store != store {
		return 0
	}
	return j.facts
}

// Begin says that facts 1 to facts of a store are in the journal, whoever wrote
// them, or cannot be had: the next record that is appended is fact facts+1, in a
// new file.
func (j *Journal) Begin(store string, facts uint64) error {
	if !storePattern.MatchString(store) || facts > maxNumber {
		return fmt.Errorf("journal of kept records: store %.64q with %d facts", store, facts)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.leave(); err != nil {
		return err
	}
	j.store, j.facts = store, facts
	if err := j.begin(); err != nil {
		return fmt.Errorf("journal of kept records: %w", err)
	}
	return nil
}

// leave lets go of the file that was appended to. Callers hold j.mu.
func (j *Journal) leave() error {
	if j.closed {
		return errors.New("journal of kept records is closed")
	}
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}

// begin makes the next file. Callers hold j.mu.
func (j *Journal) begin() error {
	text, err := newHeader(j.store, j.next, j.facts).encode()
	if err != nil {
		return err
	}
	path := filepath.Join(j.dir, nameOf(j.next))
	// A file of this name holds no record that was acknowledged: its first would have
	// been the one that comes now.
	f, err := open(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(0), writeAll(f, text), f.Sync()); err != nil {
		return errors.Join(err, f.Close(), os.Remove(path))
	}
	if err := durable.SyncDir(j.dir); err != nil {
		return errors.Join(err, f.Close())
	}
	j.file, j.size = f, int64(len(text))
	return nil
}

func writeAll(f *os.File, b []byte) error {
	_, err := f.Write(b)
	return err
}

// Append returns after the facts from, from+1, … of the store are on stable
// storage. Facts that are there already are passed over; ErrGap says that one
// between those that are there and from is missing. If it returns another error,
// some of them may be there: Facts says how many can be relied on.
func (j *Journal) Append(store string, from uint64, records ...Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return errors.New("journal of kept records is closed")
	}
	if j.store != store || from == 0 || from > j.facts+1 {
		return fmt.Errorf("%w: fact %d of store %.64q comes after %d facts of store %.64q", ErrGap, from, store, j.facts, j.store)
	}
	if known := j.facts + 1 - from; known < uint64(len(records)) {
		records = records[known:]
	} else {
		return nil
	}
	for len(records) > 0 {
		n, err := j.appendSome(records)
		if err != nil {
			return fmt.Errorf("keeping fact %d: %w", j.facts+1, err)
		}
		records = records[n:]
	}
	return nil
}

// appendSome appends what fits into the file, at least one, with one fsync.
// Callers hold j.mu.
func (j *Journal) appendSome(records []Record) (n int, err error) {
	var text []byte
	for _, r := range records {
		if n > 0 && (j.size+int64(len(text)) >= j.maxFile || len(text) >= 1<<20) {
			break
		}
		r.N = j.next + uint64(n)
		b, err := r.encode()
		if err != nil {
			return 0, err
		}
		text, n = append(text, b...), n+1
	}
	if j.file != nil && j.size >= j.maxFile {
		if err := j.leave(); err != nil {
			return 0, err
		}
	}
	if j.file == nil {
		if err := j.begin(); err != nil {
			return 0, err
		}
	}
	if err := j.write(text); err != nil {
		return 0, err
	}
	j.next, j.facts = j.next+uint64(n), j.facts+uint64(n)
	return n, nil
}

// write appends whole lines, or leaves the file as it was. Callers hold j.mu.
func (j *Journal) write(text []byte) error {
	if err := writeAll(j.file, text); err != nil {
		if undo := errors.Join(j.file.Truncate(j.size), j.file.Sync()); undo != nil {
			return errors.Join(err, undo, j.doubt())
		}
		return err
	}
	if err := j.file.Sync(); err != nil {
		// The kernel forgets what it could not write: another fsync of this file would
		// prove nothing.
		return errors.Join(err, j.doubt())
	}
	j.size += int64(len(text))
	return nil
}

// doubt leaves a file whose end is not known. The next record begins another one,
// and has the number that the first doubtful one had. Callers hold j.mu.
func (j *Journal) doubt() error {
	if first, ok := firstOf(j.file.Name()); ok && first == j.next {
		// It has no record that is relied on, and the next file has its name.
		return errors.Join(os.Remove(j.file.Name()), j.leave())
	}
	return j.leave()
}

// Wait returns after a record that no store can take now is on stable storage.
func (j *Journal) Wait(r Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.wait(r); err != nil {
		return fmt.Errorf("keeping a %s for the store: %w", r.Kind, err)
	}
	return nil
}

func (j *Journal) wait(r Record) error {
	if j.closed {
		return errors.New("journal of kept records is closed")
	}
	path := filepath.Join(j.dir, waitingName)
	last, known := uint64(0), false
	if _, err := ReadWaiting(j.dir, func(have Record) error {
		last = have.N
		known = known || have.Kind == r.Kind && bytes.Equal(have.Envelope, r.Envelope)
		return nil
	}); err != nil {
		return err
	}
	if known {
		return nil
	}
	r.N = last + 1
	text, err := r.encode()
	if err != nil {
		return err
	}
	f, err := open(path, os.O_RDWR|os.O_CREATE|os.O_APPEND)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	end, err := lastLineEnd(f, info.Size())
	if err != nil {
		return err
	}
	if end == 0 {
		head, err := newHeader("", 1, 0).encode()
		if err != nil {
			return err
		}
		text = append(head, text...)
	}
	if err := f.Truncate(end); err != nil {
		return err
	}
	if err := writeAll(f, text); err != nil {
		return errors.Join(err, f.Truncate(end))
	}
	return errors.Join(f.Sync(), durable.SyncDir(j.dir))
}

// DropWaiting forgets the records that waited: a store has taken them.
func (j *Journal) DropWaiting() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := os.Remove(filepath.Join(j.dir, waitingName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err = errors.Join(err, durable.SyncDir(j.dir)); err != nil {
		return fmt.Errorf("journal of kept records: %w", err)
	}
	return nil
}

// Close lets go of the directory. A second Close does nothing.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	err := j.leave()
	j.closed = true
	if j.lock != nil {
		err = errors.Join(err, j.lock.Close())
	}
	if err != nil {
		return fmt.Errorf("closing the journal of kept records: %w", err)
	}
	return nil
}
