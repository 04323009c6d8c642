package cas

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// tmpPrefix begins the name of every file that a writer makes in tmp; sweep
// touches no other.
const tmpPrefix = "put-"

// Put stores what r gives to its end and returns its measurement after the
// blob is on stable storage. A reader of the store sees the whole blob or none
// of it, whatever happens to this process. An existing blob of that name,
// broken or not, is replaced. After an error the blob may or may not be there.
func (s *Store) Put(ctx context.Context, r io.Reader) (hashpipe.Measurement, error) {
	m, err := s.put(ctx, r)
	if err != nil {
		return hashpipe.Measurement{}, fmt.Errorf("storing blob: %w", err)
	}
	return m, nil
}

// PutBytes is Put for bytes in memory.
func (s *Store) PutBytes(b []byte) (hashpipe.Sum, error) {
	m, err := s.Put(context.Background(), bytes.NewReader(b))
	return m.Sum(), err
}

func (s *Store) put(ctx context.Context, r io.Reader) (hashpipe.Measurement, error) {
	f, name, err := s.create()
	if err != nil {
		return hashpipe.Measurement{}, err
	}
	defer f.Close() // ends the flock; the bytes are synced before
	m, err := write(ctx, f, r)
	if err == nil {
		err = s.publish(name, m.Sum().Claim())
	}
	if err != nil {
		at(s.tmp, func(dir int) error { return unix.Unlinkat(dir, name, 0) })
		return hashpipe.Measurement{}, err
	}
	return m, s.blobs.Sync()
}

// write copies r into f; both hashes are of the memory that was written.
func write(ctx context.Context, f *os.File, r io.Reader) (hashpipe.Measurement, error) {
	m, err := hashpipe.Measure(ctx, io.TeeReader(r, f), nil)
	if err != nil {
		return m, err
	}
	if err := f.Chmod(0o444); err != nil {
		return m, err
	}
	return m, f.Sync()
}

// publish gives the file its name.
func (s *Store) publish(name string, d hashpipe.Digest) error {
	err := at(s.tmp, func(from int) error {
		return at(s.blobs, func(to int) error { return unix.Renameat(from, name, to, d.String()) })
	})
	if err != nil {
		return fmt.Errorf("renaming to %s/%v: %w", s.blobs.Name(), d, err)
	}
	return nil
}

// create makes a file in tmp and locks it. Between the two a sweep may take it
// for a dead writer's, so a file that is locked or unlinked by then is given
// up for another.
func (s *Store) create() (*os.File, string, error) {
	for range 100 {
		name := tmpPrefix + rand.Text()
		f, err := openAt(s.tmp, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, "", err
		}
		mine, err := lock(f)
		if err == nil && mine {
			return f, name, nil
		}
		f.Close()
		if err != nil {
			return nil, "", err
		}
	}
	return nil, "", fmt.Errorf("%s: every new file was swept away", s.tmp.Name())
}

// lock tries to flock f and reports whether it has the lock and f still has a
// name.
func lock(f *os.File) (bool, error) {
	err := at(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err == unix.EWOULDBLOCK {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	var st unix.Stat_t
	if err := at(f, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return false, fmt.Errorf("looking at %s: %w", f.Name(), err)
	}
	return st.Nlink > 0, nil
}

// sweep removes the files of dead writers: those that nobody has locked.
func sweep(tmp *os.File) error {
	names, err := tmp.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, tmpPrefix) {
			continue
		}
		if err := sweepOne(tmp, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing what a dead writer left: %w", err)
		}
	}
	return nil
}

func sweepOne(tmp *os.File, name string) error {
	f, err := openAt(tmp, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	dead, err := lock(f)
	if err != nil || !dead {
		return err
	}
	err = at(tmp, func(dir int) error { return unix.Unlinkat(dir, name, 0) })
	if err != nil {
		return &fs.PathError{Op: "remove", Path: f.Name(), Err: err}
	}
	return nil
}
