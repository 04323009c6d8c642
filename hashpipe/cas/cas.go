// Package cas is a directory of immutable blobs, each named by its SHA-256:
//
//	DIR/blobs/sha256/<64 lower-case hex digits>   mode 0444, as in an OCI image layout
//	DIR/tmp/put-*                                 blobs being written
//
// A name in blobs/sha256 is a claim like any other. The store never makes a
// wrong one: a blob gets its name by rename after all its bytes are measured
// and on stable storage. But disks rot and people edit, so ReadAll measures
// again, and who uses Open has to. A broken blob is an error and never a hit;
// putting the right bytes again mends it.
//
// Any number of processes may use one directory. Each writer holds a flock on
// its file in tmp for as long as it lives, so Open can tell the files of dead
// writers, which it removes, from those of living ones.
package cas

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

var (
	// ErrNotFound means that the store has no blob of that digest.
	ErrNotFound = errors.New("not in the store")
	// ErrBroken means that something of that name is there, and that it is not
	// a file with those bytes.
	ErrBroken = errors.New("broken")
)

// Store is an open directory of blobs, safe for concurrent use.
type Store struct {
	blobs *os.File // DIR/blobs/sha256
	tmp   *os.File // DIR/tmp
}

// Open opens the store in dir, or creates it and its parents, and removes what
// dead writers left. The store must be closed.
func Open(dir string) (*Store, error) {
	s, err := open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening blob store: %w", err)
	}
	return s, nil
}

func open(dir string) (_ *Store, err error) {
	blobs, err := openDir(filepath.Join(dir, "blobs", "sha256"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			blobs.Close()
		}
	}()
	tmp, err := openDir(filepath.Join(dir, "tmp"))
	if err != nil {
		return nil, err
	}
	if err := sweep(tmp); err != nil {
		tmp.Close()
		return nil, err
	}
	return &Store{blobs, tmp}, nil
}

// Close releases the directories; writers that still run get errors.
func (s *Store) Close() error {
	return errors.Join(s.blobs.Close(), s.tmp.Close())
}

// ReadAll returns the bytes of a blob after measuring them. A blob of more than
// max bytes is an error before it is read. ErrNotFound means that it is not
// there, ErrBroken that other bytes are.
func (s *Store) ReadAll(d hashpipe.Digest, max int64) ([]byte, error) {
	b, err := s.readAll(d, max)
	if err != nil {
		return nil, fmt.Errorf("blob %v: %w", d, err)
	}
	return b, nil
}

func (s *Store) readAll(d hashpipe.Digest, max int64) ([]byte, error) {
	f, size, err := s.open(d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > max {
		return nil, fmt.Errorf("%d bytes, expected at most %d", size, max)
	}
	b := make([]byte, size)
	if n, err := io.ReadFull(f, b); err == io.EOF || err == io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("%w: it had %d bytes and ended after %d", ErrBroken, size, n)
	} else if err != nil {
		return nil, err
	}
	if sum := hashpipe.SumBytes(b); !sum.Is(d) {
		return nil, fmt.Errorf("%w: its %d bytes hash to %v", ErrBroken, size, sum)
	}
	return b, nil
}

// Open returns a handle whose bytes nobody has checked: the caller measures
// them. ErrNotFound means that the blob is not there, ErrBroken that something
// other than a regular file is.
func (s *Store) Open(d hashpipe.Digest) (*os.File, error) {
	f, _, err := s.open(d)
	if err != nil {
		return nil, fmt.Errorf("blob %v: %w", d, err)
	}
	return f, nil
}

// Has reports whether a regular file of that name is there. It reads nothing
// of it, and says false when it cannot look: use it to save work, not to
// decide.
func (s *Store) Has(d hashpipe.Digest) bool {
	f, _, err := s.open(d)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// Remove removes whatever has the name of the blob, and returns after that is
// on stable storage. ErrNotFound means that nothing had it.
func (s *Store) Remove(d hashpipe.Digest) error {
	if err := s.remove(d); err != nil {
		return fmt.Errorf("removing blob %v: %w", d, err)
	}
	return nil
}

func (s *Store) remove(d hashpipe.Digest) error {
	if d.IsZero() {
		return ErrNotFound
	}
	err := at(s.blobs, func(dir int) error { return unix.Unlinkat(dir, d.String(), 0) })
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	if err != nil {
		return err
	}
	return s.blobs.Sync()
}

// open never follows a link and never waits for the other end of a FIFO.
func (s *Store) open(d hashpipe.Digest) (*os.File, int64, error) {
	if d.IsZero() {
		return nil, 0, ErrNotFound
	}
	f, err := openAt(s.blobs, d.String(), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, ErrNotFound
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, 0, fmt.Errorf("%w: it is a symbolic link", ErrBroken)
	}
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		f.Close()
		return nil, 0, fmt.Errorf("%w: it is no regular file (%v)", ErrBroken, info.Mode())
	}
	return f, info.Size(), nil
}
