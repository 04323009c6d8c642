// Package control is how the verbs and the mount processes talk to the daemon:
// HTTP and JSON on a Unix socket in the state directory.
//
// Three things keep strangers out, each sufficient alone: the directory of the
// socket is 0700, the socket is 0600, and the kernel's SO_PEERCRED of every
// connection must name root or the daemon's own user. Nothing in a request
// says who is asking.
//
// The socket belongs to whoever holds the lock file beside it, for as long as
// that process lives: a stale socket is replaced only under that lock.
package control

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Lock is the right to be one process: the daemon of a state directory, the
// server of a mount, the worker of a job. The kernel drops it with the process,
// so it is never stale. It is an open file description lock (fcntl(2)), which,
// unlike flock(2), can be looked at without being taken.
type Lock struct{ f *os.File }

// LockedError says that another process holds the lock.
type LockedError struct {
	Path string
	PID  int // 0 when the other process has not written it yet
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("another process holds %s", e.Path)
	}
	return fmt.Sprintf("another process, pid %d, holds %s", e.PID, e.Path)
}

// TakeLock takes the lock file, which it makes if needed, without waiting, and
// writes the pid into it. A lock that another process holds is a *LockedError.
func TakeLock(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("lock %s: not a regular file", path)
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, &LockedError{Path: path, PID: readPID(f)}
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	writePID(f)
	return &Lock{f: f}, nil
}

// Release gives the lock back. The file stays: removing it would let two
// processes lock two files of one name.
func (l *Lock) Release() error { return l.f.Close() }

// Holder returns the pid of the process that holds the lock at path, 0 if none
// does. A holder that has not written its pid yet is -1. The lock stays as it is.
func Holder(path string) (int, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("lock: %w", err)
	}
	defer f.Close()
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &whole); err != nil {
		return 0, fmt.Errorf("lock %s: %w", path, err)
	}
	if whole.Type == unix.F_UNLCK {
		return 0, nil
	}
	if pid := readPID(f); pid != 0 {
		return pid, nil
	}
	return -1, nil
}

// writePID leaves the holder's name for people. The lock holds without it: a
// full disk must not keep a mount from coming back.
func writePID(f *os.File) {
	if f.Truncate(0) == nil {
		f.WriteAt(strconv.AppendInt(nil, int64(os.Getpid()), 10), 0)
	}
}

func readPID(f *os.File) int {
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(string(bytes.TrimSpace(b[:n])))
	if err != nil || pid < 1 {
		return 0
	}
	return pid
}
