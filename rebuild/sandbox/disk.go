package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	loopControl = "/dev/loop-control"
	// maxOutFiles bounds the files and directories of one stage's /out.
	maxOutFiles = 1 << 17
	// outBlock is the block size of /out in bytes.
	outBlock = 4096
)

// outFS is the /out of one stage: an ext4 file system in a sparse file that
// has no name any more, so its space returns when the mount goes away, also
// after SIGKILL and a sweep. Its size and inode count are limits that the
// kernel keeps, against sparse and unlinked files too, which a watcher of file
// sizes would miss. The kernel draws its directory hash seed anew each time,
// so directory order in /out differs between runs.
type outFS struct {
	mount string // mount point
	dir   string // the build's /out in it, without lost+found
	root  *os.File
	base  usedDisk
	limit usedDisk
}

type usedDisk struct{ bytes, files int64 }

// newOutFS makes room for bytes of files owned by host user uid. The backing
// file is image; it must not exist.
func newOutFS(mkfs, image, mount string, bytes int64, uid uint32) (*outFS, error) {
	file, err := os.OpenFile(image, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	defer os.Remove(file.Name())
	inodes := min(max(bytes/outBlock, 1024), maxOutFiles)
	// Room for inodes and for the file system's own maps, extents and reserve,
	// so that a build that stays within its limit never meets a full disk. What
	// it writes beyond the limit is noticed by check.
	size := bytes + inodes*256 + bytes/16 + 16<<20
	size = (size + outBlock - 1) / outBlock * outBlock
	if err := file.Truncate(size); err != nil {
		return nil, err
	}
	out, err := exec.Command(mkfs, "-q", "-F", "-t", "ext4", "-m", "0", "-b", strconv.Itoa(outBlock),
		"-N", strconv.FormatInt(inodes+16, 10), "-O", "^has_journal,^resize_inode",
		"-E", "nodiscard,lazy_itable_init=1", file.Name()).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("making a file system for /out: %s: %w: %s", mkfs, err, firstLine(string(out)))
	}
	loop, err := attachLoop(file)
	if err != nil {
		return nil, fmt.Errorf("attaching a loop device for /out: %w", err)
	}
	defer loop.Close() // the mount keeps it; the last unmount detaches it
	if err := unix.Mount(loop.Name(), mount, "ext4", unix.MS_NOSUID|unix.MS_NODEV, "noinit_itable,errors=remount-ro"); err != nil {
		return nil, fmt.Errorf("mounting %s for /out: %w", loop.Name(), err)
	}
	o := &outFS{mount: mount, dir: filepath.Join(mount, "out"), limit: usedDisk{bytes, inodes}}
	if err := o.prepare(uid); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func (o *outFS) prepare(uid uint32) (err error) {
	if err := os.Mkdir(o.dir, 0o755); err != nil {
		return err
	}
	if err := os.Chown(o.dir, int(uid), int(uid)); err != nil {
		return err
	}
	if o.root, err = os.Open(o.dir); err != nil {
		return err
	}
	st, err := o.statfs()
	if err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < o.limit.bytes {
		return fmt.Errorf("file system for /out has %d bytes free, wanted %d", free, o.limit.bytes)
	}
	o.base = usedDisk{int64(st.Blocks-st.Bfree) * st.Bsize, int64(st.Files - st.Ffree)}
	return nil
}

func (o *outFS) statfs() (st unix.Statfs_t, err error) {
	if err := unix.Fstatfs(int(o.root.Fd()), &st); err != nil {
		return st, fmt.Errorf("statfs of /out: %w", err)
	}
	return st, nil
}

// check tells what is in use now, and in words whether that is too much.
func (o *outFS) check() (used usedDisk, excess string, err error) {
	st, err := o.statfs()
	if err != nil {
		return usedDisk{}, "", err
	}
	used = usedDisk{int64(st.Blocks-st.Bfree)*st.Bsize - o.base.bytes, int64(st.Files-st.Ffree) - o.base.files}
	switch {
	case used.bytes > o.limit.bytes:
		excess = fmt.Sprintf("/out holds %d bytes, the limit is %d", used.bytes, o.limit.bytes)
	case st.Ffree == 0 || used.files > o.limit.files:
		excess = fmt.Sprintf("/out holds %d files and directories, the limit is %d", used.files, o.limit.files)
	}
	return used, excess, nil
}

// sync brings everything to the disk, so that a full host disk is an error
// here and not a hole in an output.
func (o *outFS) sync() error {
	if err := unix.Syncfs(int(o.root.Fd())); err != nil {
		return fmt.Errorf("writing /out to disk: %w; is the host's disk full?", err)
	}
	return nil
}

func (o *outFS) close() error {
	if o.root != nil {
		o.root.Close()
		o.root = nil
	}
	return unmount(o.mount)
}

// attachLoop binds file to a free loop device that detaches itself at the last
// close or unmount.
func attachLoop(file *os.File) (*os.File, error) {
	ctl, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer ctl.Close()
	for range 64 { // another process may take the free one first
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", loopControl, err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &unix.LoopConfig{
			Fd:   uint32(file.Fd()),
			Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("%s: %w", dev.Name(), err)
		}
	}
	return nil, errors.New("every free loop device was taken by another process, 64 times")
}

// unmount waits up to a second for the last user, then detaches: the kernel
// finishes when that user is gone.
func unmount(dir string) error {
	for range 50 {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil // EINVAL: not a mount point
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmounting %s: %w", dir, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	return nil
}

// unmountBelow unmounts everything below dir, the last mounted first.
func unmountBelow(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(info)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	var errs []error
	for _, p := range slices.Backward(points) {
		errs = append(errs, unmount(p))
	}
	return errors.Join(errs...)
}
