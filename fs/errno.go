package fs

import (
	"errors"
	"fmt"
	"os/exec"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Every answer to the kernel that is not success is one of these, and nothing
// outside this file knows an errno.
const (
	// statusRefused: EACCES, and not EPERM or EIO: web servers turn it into 403
	// and interpreters into a permission error, while EIO looks like a broken
	// disk and invites retries.
	statusRefused = fuse.Status(syscall.EACCES)
	// statusReadOnly answers every attempt to change anything.
	statusReadOnly = fuse.Status(syscall.EROFS)
	// statusIO: the bytes cannot be had, or are not approved any more. A mapping
	// gets SIGBUS.
	statusIO = fuse.Status(syscall.EIO)
	// statusStale makes the kernel look the name up again and retry by itself.
	statusStale = fuse.Status(syscall.ESTALE)
	// statusInterrupted is only for callers that are about to die or to stop.
	statusInterrupted = fuse.Status(syscall.EINTR)
	// statusTooSlow: still measuring; answered before the kernel's own request
	// time-out would end the whole mount. A later open finds the work done.
	statusTooSlow   = fuse.Status(syscall.EAGAIN)
	statusNoEntry   = fuse.Status(syscall.ENOENT)
	statusNoAttr    = fuse.Status(syscall.ENODATA)
	statusRange     = fuse.Status(syscall.ERANGE)
	statusBadHandle = fuse.Status(syscall.EBADF)
	statusInvalid   = fuse.Status(syscall.EINVAL)
	statusNotDir    = fuse.Status(syscall.ENOTDIR)
	statusNoIoctl   = fuse.Status(syscall.ENOTTY)
	// statusAbsent makes the kernel answer the operation by itself.
	statusAbsent = fuse.Status(syscall.ENOSYS)
)

// errNotDir is the source's answer where a directory was expected.
var errNotDir error = unix.ENOTDIR

const (
	mountFlags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	// writeFlags are the open flags that a reader does not need.
	writeFlags = unix.O_TRUNC | unix.O_APPEND | unix.O_CREAT
)

// wantsWrite reports whether an OPEN asks for more than reading.
func wantsWrite(flags uint32) bool {
	return flags&unix.O_ACCMODE != unix.O_RDONLY || flags&writeFlags != 0
}

// statusOf answers for an error of the source while a name is resolved. An
// error without a place here is an I/O error.
func statusOf(err error) fuse.Status {
	switch {
	case err == nil:
		return fuse.OK
	case errors.Is(err, unix.ENOENT):
		return statusNoEntry
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ESTALE), errors.Is(err, unix.EAGAIN):
		// A component became a link or a file since the kernel looked it up.
		return statusStale
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, errOwnMount), errors.Is(err, errLeased):
		return statusRefused
	case errors.Is(err, unix.ENAMETOOLONG):
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	return statusIO
}

// absent reports whether an error of the source says that nothing has the name.
func absent(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }

// behindLink reports whether it says that a directory on the way is a link.
func behindLink(err error) bool { return errors.Is(err, unix.ELOOP) }

// retried runs a system call again while it is interrupted, and a few times
// while a rename makes openat2's beneath check undecided.
func retried(call func() error) error {
	for try := 0; ; {
		switch err := call(); err {
		case unix.EINTR:
		case unix.EAGAIN:
			if try++; try > 32 {
				return err
			}
		default:
			return err
		}
	}
}

// unmount takes a mount away that nobody uses, as root directly and otherwise
// through fusermount3.
func unmount(mountpoint string) error {
	err := unix.Unmount(mountpoint, 0)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if out, err := exec.Command("fusermount3", "-u", mountpoint).CombinedOutput(); err != nil {
		return fmt.Errorf("fusermount3: %w: %s", err, out)
	}
	return nil
}

// detach unmounts lazily, as root directly and otherwise through fusermount3.
func detach(mountpoint string) error {
	err := unix.Unmount(mountpoint, unix.MNT_DETACH)
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	if out, err := exec.Command("fusermount3", "-u", "-z", mountpoint).CombinedOutput(); err != nil {
		return fmt.Errorf("fusermount3: %w: %s", err, out)
	}
	return nil
}

func haveFusermount() error {
	if _, err := exec.LookPath("fusermount3"); err != nil {
		return errors.New("no fusermount3, which mounting without root needs: apt-get install fuse3")
	}
	return nil
}
