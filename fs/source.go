package fs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// source is the directory behind the mount. Every name is resolved from one
// descriptor of its root, beneath it and through no link, so that a directory
// that is exchanged for a link while it is walked leads nowhere.
type source struct {
	root   int
	device atomic.Uint64 // st_dev of our own mount, plus one; zero until known
}

// errOwnMount: a bind mount makes our own mount visible inside the source.
var errOwnMount = errors.New("the mount itself is visible inside its source")

// errLeased: the kernel has told the holder of the lease to give it up, and a
// later open succeeds. Waiting for it, 45 s by default, would let whoever can
// write the source stop the mount's requests.
var errLeased = errors.New("a process holds a lease for writing on the file (fcntl F_SETLEASE)")

// resolveFlags keep every resolution inside the source.
const resolveFlags = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

func openSource(dir string) (*source, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	s := &source{root: fd}
	if _, err := s.stat(""); err != nil {
		s.close()
		return nil, fmt.Errorf("%s: resolving beneath a directory (openat2, Linux 5.6): %w", dir, err)
	}
	return s, nil
}

func (s *source) close() { unix.Close(s.root) }

// forbid keeps the daemon out of its own mount.
func (s *source) forbid(dev uint64, known bool) {
	if known {
		s.device.Store(dev + 1)
	}
}

// find opens a name as O_PATH: nothing is read, and no device, FIFO or lease is
// touched. A link is found itself. path is relative; "" is the root.
func (s *source) find(path string) (int, unix.Stat_t, error) {
	if path == "" {
		path = "."
	}
	var st unix.Stat_t
	var fd int
	err := retried(func() (err error) {
		fd, err = unix.Openat2(s.root, path, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: resolveFlags,
		})
		return err
	})
	if err != nil {
		return -1, st, err
	}
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	if s.own(&st) {
		unix.Close(fd)
		return -1, st, errOwnMount
	}
	limitMode(&st, func(name string, value []byte) (int, error) { return unix.Getxattr(procName(fd), name, value) })
	return fd, st, nil
}

// own reports whether something lies in our own mount.
func (s *source) own(st *unix.Stat_t) bool {
	own := s.device.Load()
	return own != 0 && uint64(st.Dev) == own-1
}

func (s *source) stat(path string) (unix.Stat_t, error) {
	fd, st, err := s.find(path)
	if err == nil {
		unix.Close(fd)
	}
	return st, err
}

// procName is a name for the very inode of a descriptor.
func procName(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// reopen opens for reading the very inode that find found. The caller has seen
// that it is a regular file or a directory: opening anything else can block or
// do something.
func reopen(fd int, flags int) (int, error) {
	var out int
	err := retried(func() (err error) {
		out, err = unix.Open(procName(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC|flags, 0)
		return err
	})
	return out, err
}

// open opens a regular file, and says which state of it was opened. What is no
// regular file is not opened, and the file returned is nil.
func (s *source) open(path string) (*os.File, unix.Stat_t, error) {
	fd, st, err := s.find(path)
	if err != nil {
		return nil, st, err
	}
	defer unix.Close(fd)
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, st, nil
	}
	in, err := reopen(fd, 0)
	if err == unix.EAGAIN {
		err = errLeased
	}
	if err != nil {
		return nil, st, err
	}
	if err := unix.Fstat(in, &st); err != nil {
		unix.Close(in)
		return nil, st, err
	}
	return os.NewFile(uintptr(in), path), st, nil
}

// openDir returns a descriptor that getdents works on.
func (s *source) openDir(path string) (int, unix.Stat_t, error) {
	fd, st, err := s.find(path)
	if err != nil {
		return -1, st, err
	}
	defer unix.Close(fd)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return -1, st, errNotDir
	}
	dir, err := reopen(fd, unix.O_DIRECTORY)
	return dir, st, err
}

// readlink returns the target of a link.
func (s *source) readlink(path string) (string, unix.Stat_t, error) {
	fd, st, err := s.find(path)
	if err != nil {
		return "", st, err
	}
	defer unix.Close(fd)
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", st, unix.ESTALE // readlinkat(2) would say that there is nothing
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	return string(buf[:max(n, 0)]), st, err
}

// identity is one state of one source file. Any write, rename or change of mode
// changes it sooner or later, but not at once (a write through a mapping shows
// in the times late or never), so it says which measurement belongs to a file
// and never that bytes are right.
type identity struct {
	kind         uint32 // S_IFMT bits
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// identityOf identifies what a name leads to. A directory is its name: what it
// lists is looked up name by name.
func identityOf(st *unix.Stat_t) identity {
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return identity{kind: kind}
	}
	return identity{kind: kind, dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

// mountDevice finds the device number of a mount point without touching it.
func mountDevice(mountpoint string) (dev uint64, known bool) {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(info)) {
		// 36 35 98:0 / /mnt rw,noatime - ext3 /dev/root rw: proc_pid_mountinfo(5).
		f := strings.Fields(line)
		if len(f) < 5 || unescape(f[4]) != mountpoint {
			continue
		}
		major, minor, ok := strings.Cut(f[2], ":")
		a, errA := strconv.ParseUint(major, 10, 32)
		b, errB := strconv.ParseUint(minor, 10, 32)
		if ok && errA == nil && errB == nil {
			dev, known = unix.Mkdev(uint32(a), uint32(b)), true // the last one is on top
		}
	}
	return dev, known
}

// unescape undoes the kernel's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
