package fs

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// draft is a private file that is being filled. Its fields do not change before
// finish, which no reader or writer outlives.
type draft struct {
	w    *os.File // nil: a clone, which has its bytes already
	r    *os.File
	size int64
}

// create makes an unnamed file.
func (v *vault) create() (*os.File, error) {
	var fd int
	err := retried(func() (err error) {
		fd, err = unix.Openat(v.dir, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making a private file (O_TMPFILE): %w", err)
	}
	return os.NewFile(uintptr(fd), "private file"), nil
}

// readOnly opens the same inode for reading alone.
func readOnly(f *os.File) (*os.File, error) {
	fd, err := reopen(int(f.Fd()), 0)
	if err != nil {
		return nil, fmt.Errorf("opening a private file for reading: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// clone makes a private file that shares the blocks of src as they are now.
func (v *vault) clone(src *os.File, size int64) (draft, error) {
	w, err := v.create()
	if err != nil {
		return draft{}, err
	}
	defer w.Close()
	if err := retried(func() error { return unix.IoctlFileClone(int(w.Fd()), int(src.Fd())) }); err != nil {
		return draft{}, fmt.Errorf("cloning into a private file (FICLONE): %w", err)
	}
	st, err := w.Stat()
	if err != nil {
		return draft{}, err
	}
	if st.Size() != size {
		return draft{}, fmt.Errorf("%w: expected %d bytes, got %d", hashpipe.ErrChanged, size, st.Size())
	}
	r, err := readOnly(w)
	return draft{r: r, size: size}, err
}

func (v *vault) fresh(src *os.File, size int64) (draft, error) {
	if v.how == SealReflink {
		return v.clone(src, size)
	}
	w, err := v.create()
	if err != nil {
		return draft{}, err
	}
	// A full disk shows here and not in the middle.
	if err := retried(func() error { return unix.Fallocate(int(w.Fd()), 0, 0, size) }); err != nil && err != unix.EOPNOTSUPP {
		w.Close()
		return draft{}, fmt.Errorf("reserving %d bytes for a private file: %w", size, err)
	}
	r, err := readOnly(w)
	if err != nil {
		w.Close()
	}
	return draft{w: w, r: r, size: size}, err
}

// draft begins to seal a source file of the given size, for which room may have
// been taken. A nil draft and a nil error mean that the file is to be served
// without.
func (v *vault) draft(src *os.File, size int64, room bool) (*draft, error) {
	if tier, _ := v.state(); tier == TierBlocks || size < v.from {
		if room {
			v.giveBack(size)
		}
		return nil, nil
	}
	if !room && !v.room(size) {
		return nil, v.full(size)
	}
	d, err := v.fresh(src, size)
	if err != nil {
		v.giveBack(size)
		return nil, err
	}
	return &d, nil
}

// discard gives a draft up.
func (v *vault) discard(d *draft) {
	if d == nil {
		return
	}
	v.giveBack(d.size)
	if d.w != nil {
		d.w.Close()
	}
	d.r.Close()
}

// finish closes the descriptor that could write. What was hashed is what was
// given to the page cache; if the disk does not take it, a later read would get
// something else.
func (d *draft) finish() error {
	if d.w == nil {
		return nil
	}
	err := retried(func() error { return unix.Fdatasync(int(d.w.Fd())) })
	err = errors.Join(err, d.w.Close())
	d.w = nil
	if err != nil {
		return fmt.Errorf("writing a private file: %w", err)
	}
	return nil
}

// seal ends a draft whose bytes, as they were written or cloned, are the proof's.
// From here on no descriptor can write them.
func (v *vault) seal(d *draft, p proof, claims claims) (*private, error) {
	err := d.finish()
	tier := TierSealed
	if err == nil {
		tier, err = v.enforce(d.r, p, claims)
	}
	if err != nil {
		v.discard(d)
		return nil, err
	}
	out := &private{file: d.r, size: d.size, tier: tier}
	v.mu.Lock()
	defer v.mu.Unlock()
	out.place = v.recent.PushFront(out)
	return out, nil
}

// enforce lets the kernel hold the file to what the capabilities say of it, if
// it can. Where it can and says something else, the file is not used.
func (v *vault) enforce(f *os.File, p proof, claims claims) (tier string, err error) {
	if tier, _ := v.state(); tier != TierVerity {
		return TierSealed, nil
	}
	err = hashpipe.EnableVerity(f)
	if errors.Is(err, hashpipe.ErrNoVerity) {
		v.noVerity(err)
		return TierSealed, nil
	}
	if err != nil {
		return "", err
	}
	if err := v.relink(f); err != nil {
		return "", err
	}
	// Pages that were read before are not checked by the kernel.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // advice
	enforced, err := hashpipe.MeasureVerity(f)
	if err != nil {
		return "", err
	}
	// The claims are those of a moment ago, and may not name the content yet.
	if !enforced.Is(p.tree.Claim()) {
		return "", fmt.Errorf("the kernel measures fs-verity sha256:%s, expected sha256:%s as measured here", enforced, p.tree.Claim())
	}
	if other, yes := claims.contradicts(p.digest, enforced); yes {
		return "", fmt.Errorf("the kernel measures fs-verity sha256:%s, expected sha256:%s", enforced, other)
	}
	return TierVerity, nil
}

// relinkPrefix begins the name that a private file has for a moment.
const relinkPrefix = ".clawfs-private-"

// relink gives a private file of ext4 a name and takes it away again. Enabling
// fs-verity takes an unnamed inode off the list of orphans (seen with Linux 6.1
// and 6.12): if the machine stopped while it is open, its blocks would be lost
// until the next e2fsck. Unlinking puts it back.
func (v *vault) relink(f *os.File) error {
	var st unix.Statfs_t
	if err := retried(func() error { return unix.Fstatfs(v.dir, &st) }); err != nil || st.Type != unix.EXT4_SUPER_MAGIC {
		return err
	}
	name := relinkPrefix + rand.Text()
	err := unix.Linkat(unix.AT_FDCWD, procName(int(f.Fd())), v.dir, name, unix.AT_SYMLINK_FOLLOW)
	if err == nil {
		err = unix.Unlinkat(v.dir, name, 0)
	}
	if err != nil && err != unix.ENOENT { // swept by another mount
		return fmt.Errorf("linking and unlinking a private file as %s: %w", name, err)
	}
	return nil
}

// sweep removes the names that a mount process left which was killed in relink.
func (v *vault) sweep() error {
	fd, err := reopen(v.dir, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), "directory of private files")
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			var st unix.Stat_t
			if strings.HasPrefix(name, relinkPrefix) && unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil &&
				st.Mode == unix.S_IFREG|0o600 && st.Uid == uint32(os.Geteuid()) {
				_ = unix.Unlinkat(fd, name, 0) // another mount may have done it
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
