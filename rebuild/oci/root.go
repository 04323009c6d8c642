package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// rootDir is the tree being unpacked. Directories on the way to an entry are
// resolved by the kernel as if the tree were "/" (RESOLVE_IN_ROOT), so that
// links of an image work and none leads out; the entry itself is always made
// anew by name and never written through.
type rootDir struct {
	f *os.File
	// times are of directories, set at the end because each new entry changes
	// its directory's.
	times map[string]time.Time
	// dirs is how many directories may still be made: one archive entry may
	// need thousands above it.
	dirs int64
	// names is how many bytes of paths may still come; they are kept in memory.
	names int64
}

func openRoot(dir string, dirs int64) (*rootDir, error) {
	f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return &rootDir{f: f, times: map[string]time.Time{}, dirs: dirs, names: maxNames}, nil
}

func (r *rootDir) close() { r.f.Close() }

// open resolves a directory of the image.
func (r *rootDir) open(dir string) (*os.File, error) {
	if dir == "" {
		dir = "."
	}
	fd, err := unix.Openat2(int(r.f.Fd()), dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/" + dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// parent resolves the directory of path and makes what is missing of it.
func (r *rootDir) parent(path string) (*os.File, string, error) {
	dir, base := splitPath(path)
	f, err := r.open(dir)
	if errors.Is(err, unix.ENOENT) && dir != "" {
		if err := r.mkdir(dir, time.Unix(0, 0)); err != nil {
			return nil, "", err
		}
		f, err = r.open(dir)
	}
	return f, base, err
}

// mkdir keeps a directory that is there and replaces anything else, links too,
// as overlay does.
func (r *rootDir) mkdir(path string, mtime time.Time) error {
	r.times[path] = mtime
	if path == "" {
		return nil
	}
	p, base, err := r.parent(path)
	if err != nil {
		return err
	}
	defer p.Close()
	var st unix.Stat_t
	err = unix.Fstatat(int(p.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := remove(p, base); err != nil {
		return err
	}
	if r.dirs--; r.dirs < 0 {
		return fmt.Errorf("%w: directories", errBudget)
	}
	if err := unix.Mkdirat(int(p.Fd()), base, 0o755); err != nil {
		return fmt.Errorf("making the directory: %w", err)
	}
	return unix.Fchmodat(int(p.Fd()), base, 0o755, 0) // whatever the umask
}

func (r *rootDir) file(path string, h *tar.Header, content io.Reader) error {
	p, base, err := r.fresh(path)
	if err != nil {
		return err
	}
	defer p.Close()
	fd, err := unix.Openat(int(p.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("making the file: %w", err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	if n, err := io.Copy(f, content); err != nil {
		return err
	} else if n != h.Size {
		return fmt.Errorf("has %d bytes, its header says %d", n, h.Size)
	}
	mode := os.FileMode(h.Mode&0o777) | 0o444
	if mode&0o111 != 0 {
		mode |= 0o111
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return setTime(p, base, h.ModTime)
}

func (r *rootDir) symlink(path, target string, mtime time.Time) error {
	if target == "" || len(target) > 4095 || strings.ContainsRune(target, 0) {
		return fmt.Errorf("symbolic link to %q", clip(target))
	}
	p, base, err := r.fresh(path)
	if err != nil {
		return err
	}
	defer p.Close()
	if err := unix.Symlinkat(target, int(p.Fd()), base); err != nil {
		return fmt.Errorf("making the symbolic link: %w", err)
	}
	return setTime(p, base, mtime)
}

// link makes a hard link to a file of the image; the last component of target
// is not followed.
func (r *rootDir) link(path, target string) error {
	if path == target {
		return errors.New("hard link to itself")
	}
	dir, name := splitPath(target)
	from, err := r.open(dir)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", clip(target), err)
	}
	defer from.Close()
	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("hard link to %q: %w", clip(target), err)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFLNK {
		return fmt.Errorf("hard link to %q, which is no file", clip(target))
	}
	p, base, err := r.parent(path)
	if err != nil {
		return err
	}
	defer p.Close()
	var old unix.Stat_t
	if err := unix.Fstatat(int(p.Fd()), base, &old, unix.AT_SYMLINK_NOFOLLOW); err == nil && old.Ino == st.Ino && old.Dev == st.Dev {
		return nil // already that file, by another way through links
	}
	if err := remove(p, base); err != nil {
		return err
	}
	if err := unix.Linkat(int(from.Fd()), name, int(p.Fd()), base, 0); err != nil {
		return fmt.Errorf("hard link to %q: %w", clip(target), err)
	}
	return nil
}

// fresh resolves the directory of path and removes what has its name.
func (r *rootDir) fresh(path string) (*os.File, string, error) {
	if path == "" {
		return nil, "", errors.New("takes the place of the root directory")
	}
	p, base, err := r.parent(path)
	if err != nil {
		return nil, "", err
	}
	if err := remove(p, base); err != nil {
		p.Close()
		return nil, "", err
	}
	return p, base, nil
}

// whiteout removes what lower layers have (image-spec, layer.md): ".wh.NAME"
// one name, ".wh..wh..opq" all that is in the directory. Paths that this layer
// wrote stay, in whatever order the archive has them.
func (r *rootDir) whiteout(dir, base string, written map[string]bool) error {
	name := strings.TrimPrefix(base, ".wh.")
	opaque := name == ".wh..opq"
	if !opaque && (name == "" || name == "." || name == ".." || strings.HasPrefix(name, ".wh.")) {
		return fmt.Errorf("whiteout of %q", name)
	}
	p, err := r.open(dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if opaque {
		return removeLower(p, dir, written)
	}
	if written[joinPath(dir, name)] {
		return nil
	}
	return remove(p, name)
}

// removeLower removes what is in a directory except what the layer wrote.
func removeLower(dir *os.File, path string, written map[string]bool) error {
	list, err := os.ReadDir(fdPath(dir))
	if err != nil {
		return err
	}
	for _, e := range list {
		at := joinPath(path, e.Name())
		if !written[at] {
			if err := remove(dir, e.Name()); err != nil {
				return err
			}
			continue
		}
		if !e.IsDir() {
			continue
		}
		fd, err := unix.Openat(int(dir.Fd()), e.Name(), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		sub := os.NewFile(uintptr(fd), at)
		err = removeLower(sub, at, written)
		sub.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// finish sets the times of directories. What a later layer removed or replaced
// is passed over.
func (r *rootDir) finish() error {
	for path, mtime := range r.times {
		dir, base := splitPath(path)
		if path == "" {
			dir, base = "", "."
		}
		p, err := r.open(dir)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(p.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = setTime(p, base, mtime)
			if err != nil {
				p.Close()
				return err
			}
		}
		p.Close()
	}
	return nil
}

// remove deletes a name and everything below it, following no link.
func remove(dir *os.File, name string) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return os.RemoveAll(fdPath(dir) + "/" + name)
}

func setTime(dir *os.File, name string, t time.Time) error {
	ts := unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
	return unix.UtimesNanoAt(int(dir.Fd()), name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
