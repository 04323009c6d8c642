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
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Lock is the right to be one process: the daemon of a state directory, the
// server of a mount, the worker of a job. The kernel drops it with the process,
// so it is never stale. It is an open file description lock (fcntl(2)), which,
// unlike flock(2), can be looked at without being taken.
//
// One that TakePlace took holds the directory of its file, too, by flock(2).
type Lock struct {
	f    *os.File
	dir  *os.File // nil: the file alone
	path string
}

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
	if errors.Is(err, unix.ELOOP) {
		return nil, planted(path, fs.ModeSymlink)
	}
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock: %w", err)
	}
	if !fi.Mode().IsRegular() {
		f.Close()
		return nil, planted(path, fi.Mode().Type())
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &whole); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, &LockedError{Path: path, PID: readPID(f)}
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// Whoever came between open and lock may have put another file there, which
	// somebody else can lock.
	l := &Lock{f: f, path: path}
	if err := l.inPlace(f, path); err != nil {
		f.Close()
		return nil, err
	}
	writePID(f)
	return l, nil
}

func planted(path string, kind fs.FileMode) error {
	what := map[fs.FileMode]string{fs.ModeSymlink: "symbolic link", fs.ModeNamedPipe: "named pipe", fs.ModeSocket: "socket", fs.ModeDir: "directory"}[kind]
	if what == "" {
		what = "special file"
	}
	return fmt.Errorf("lock %s: expected a regular file, got a %s that somebody put there; look at it, then remove it", path, what)
}

// TakePlace is TakeLock for a process that may exist once for the directory of
// path, by whatever way others come to that directory (symbolic links, bind
// mounts), and even if they remove or replace the lock file: it locks the
// directory first. The directory must be this user's alone, or strangers could
// keep the process from starting.
//
// A process that is killed while it starts another one leaves its locks to that one
// until it has come to its exec. TakePlace waits for it, briefly; it does not wait
// for a process that lives.
func TakePlace(path string) (*Lock, error) {
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		l, err := takePlace(path)
		var held *LockedError
		if !errors.As(err, &held) {
			return l, err
		}
		patience := time.Duration(0)
		switch {
		case isDead(held.PID):
			patience = deadPatience
		case held.PID == 0:
			patience = namePatience
		}
		if time.Since(began) >= patience {
			return l, err
		}
	}
}

const (
	// deadPatience is how long locks are waited for whose holder is dead.
	deadPatience = 2 * time.Second
	// namePatience is how long it is asked who the holder is, which who has just taken
	// the place may not have said yet.
	namePatience = 500 * time.Millisecond
)

// isDead says that a process has ended, whether or not its parent has noticed.
// Unknown is alive.
func isDead(pid int) bool {
	if pid <= 0 {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return errors.Is(unix.Kill(pid, 0), unix.ESRCH)
	}
	// "4711 (a name) Z …"
	after := stat[bytes.LastIndexByte(stat, ')')+1:]
	return bytes.HasPrefix(after, []byte(" Z")) || bytes.HasPrefix(after, []byte(" X"))
}

func takePlace(path string) (*Lock, error) {
	dir, err := os.OpenFile(filepath.Dir(path), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	switch err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		defer dir.Close()
		pid := flockHolder(dir)
		if pid == 0 { // a file system whose numbers /proc/locks does not show
			pid, _ = Holder(path)
		}
		return nil, &LockedError{Path: path, PID: max(pid, 0)}
	case err != nil:
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", filepath.Dir(path), err)
	}
	l, err := TakeLock(path)
	if err != nil {
		dir.Close()
		return nil, err
	}
	l.dir = dir
	if err := l.Lost(); err != nil {
		l.Release()
		return nil, err
	}
	return l, nil
}

// Lost says why the paths of the lock no longer lead to what this process holds:
// others can then neither find it nor be kept away by it for long.
func (l *Lock) Lost() error {
	if l.dir != nil {
		if err := l.inPlace(l.dir, filepath.Dir(l.path)); err != nil {
			return err
		}
	}
	return l.inPlace(l.f, l.path)
}

func (l *Lock) inPlace(f *os.File, path string) error {
	held, err := f.Stat()
	if err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	there, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s was removed under process %d, which holds it", path, os.Getpid())
	case err != nil:
		return fmt.Errorf("lock: %w", err)
	case !os.SameFile(held, there):
		return fmt.Errorf("%s was replaced under process %d, which holds it", path, os.Getpid())
	}
	return nil
}

// flockHolder is the pid of the process that holds an flock(2) of f, 0 if the
// kernel does not say.
func flockHolder(f *os.File) int {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	text, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	inode := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(text)) {
		// "1: FLOCK  ADVISORY  WRITE 123 08:01:4711 0 EOF"
		w := strings.Fields(line)
		if len(w) < 6 || w[1] != "FLOCK" || w[5] != inode {
			continue
		}
		if pid, err := strconv.Atoi(w[4]); err == nil && pid > 0 {
			return pid
		}
	}
	return 0
}

// Release gives the lock back. The file stays: removing it would let two
// processes lock two files of one name.
func (l *Lock) Release() error {
	err := l.f.Close()
	if l.dir != nil {
		err = errors.Join(err, l.dir.Close())
	}
	return err
}

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
