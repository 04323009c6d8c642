package fs

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What the kernel is told of an error of the source. An error that is not
// understood is an I/O error, never success.
func TestStatusOf(t *testing.T) {
	for _, x := range []struct {
		err  error
		want fuse.Status
	}{
		{nil, fuse.OK},
		{unix.ENOENT, statusNoEntry},
		{fmt.Errorf("opening x: %w", unix.ENOENT), statusNoEntry},
		{unix.ELOOP, statusStale}, {unix.ENOTDIR, statusStale}, {unix.ESTALE, statusStale}, {unix.EAGAIN, statusStale},
		{unix.EXDEV, statusRefused}, {unix.EACCES, statusRefused}, {unix.EPERM, statusRefused}, {errOwnMount, statusRefused}, {errLeased, statusRefused},
		{unix.ENAMETOOLONG, fuse.Status(syscall.ENAMETOOLONG)},
		{unix.EIO, statusIO}, {unix.EMFILE, statusIO}, {unix.ENOMEM, statusIO}, {errors.New("anything"), statusIO}, {unix.Errno(0), statusIO},
	} {
		if got := statusOf(x.err); got != x.want {
			t.Errorf("statusOf(%v) = %v, want %v", x.err, got, x.want)
		}
	}
	for err, want := range map[error][2]bool{unix.ENOENT: {true, false}, unix.ENOTDIR: {true, false}, unix.ELOOP: {false, true}, unix.EIO: {false, false}, unix.EACCES: {false, false}} {
		if absent(err) != want[0] || behindLink(err) != want[1] {
			t.Errorf("%v: absent %v, behind a link %v, want %v", err, absent(err), behindLink(err), want)
		}
	}
}

func TestWantsWrite(t *testing.T) {
	for flags, want := range map[uint32]bool{
		unix.O_RDONLY: false, unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_DIRECT | unix.O_NOATIME: false,
		unix.O_WRONLY: true, unix.O_RDWR: true, unix.O_ACCMODE: true,
		unix.O_RDONLY | unix.O_TRUNC: true, unix.O_RDONLY | unix.O_APPEND: true, unix.O_RDONLY | unix.O_CREAT: true,
	} {
		if got := wantsWrite(flags); got != want {
			t.Errorf("wantsWrite(%#o) = %v, want %v", flags, got, want)
		}
	}
}

// An interrupted call is made again until it is not, one that a rename disturbs a
// few times.
func TestRetried(t *testing.T) {
	for _, x := range []struct {
		name  string
		err   error // of the first fails calls
		fails int
		calls int // that are made
		want  error
	}{
		{"at once", nil, 0, 1, nil},
		{"interrupted a thousand times", unix.EINTR, 1000, 1001, nil},
		{"disturbed", unix.EAGAIN, 32, 33, nil},
		{"disturbed for ever", unix.EAGAIN, 1 << 30, 33, unix.EAGAIN},
		{"another error", unix.EIO, 1 << 30, 1, unix.EIO},
	} {
		calls := 0
		err := retried(func() error {
			if calls++; calls <= x.fails {
				return x.err
			}
			return nil
		})
		if err != x.want || calls != x.calls {
			t.Errorf("%s: %v after %d calls, want %v after %d", x.name, err, calls, x.want, x.calls)
		}
	}
}
