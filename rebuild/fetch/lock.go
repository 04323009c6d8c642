package fetch

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lock is a held flock. It goes with the process that holds it, whatever ends
// that process; a program that is started meanwhile does not inherit it.
type lock struct {
	f    *os.File
	path string
}

func (c *Cache) lockFile(name string) string { return filepath.Join(c.dir, "locks", name) }

// tryLock takes the lock of a name, or returns nil if others hold it.
func (c *Cache) tryLock(name string, how int) (*lock, error) { return tryLock(c.lockFile(name), how) }

func tryLock(path string, how int) (*lock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		k := &lock{f, path}
		got, err := k.flock(how)
		if err != nil || !got {
			f.Close()
			return nil, err
		}
		// The holder before may have removed the file: then this is the lock
		// of nothing.
		if current, err := k.current(); current || err != nil {
			return k, err
		}
		f.Close()
	}
}

func (k *lock) flock(how int) (bool, error) {
	for {
		err := unix.Flock(int(k.f.Fd()), how|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case err != nil:
			return false, &fs.PathError{Op: "flock", Path: k.path, Err: err}
		default:
			return true, nil
		}
	}
}

func (k *lock) current() (bool, error) {
	mine, err := k.f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, named), err
}

// share makes an exclusive lock a shared one. The kernel lets go of the first
// before it takes the second, so it can be lost to somebody: then it is false.
func (k *lock) share() (bool, error) {
	got, err := k.flock(unix.LOCK_SH)
	if !got || err != nil {
		return false, err
	}
	return k.current()
}

// touch makes now the last use.
func (k *lock) touch() error {
	now := time.Now()
	return os.Chtimes(k.path, now, now)
}

// drop removes the file of a lock that is held exclusively.
func (k *lock) drop() error {
	if err := os.Remove(k.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (k *lock) close() { k.f.Close() }

// Waiting for a lock looks again after the first of these, and then ever later
// up to the second.
const firstLook, lastLook = 2 * time.Millisecond, 200 * time.Millisecond

// wait takes an exclusive lock on a file that is never removed.
func (c *Cache) wait(ctx context.Context, path string) (*lock, error) {
	for d := firstLook; ; d = min(2*d, lastLook) {
		k, err := tryLock(path, unix.LOCK_EX)
		if k != nil || err != nil {
			return k, err
		}
		if err := sleep(ctx, d); err != nil {
			return nil, err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
