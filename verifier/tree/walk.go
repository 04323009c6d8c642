package tree

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// Walk computes the root of the directory dir. A symlink dir itself is
// followed, nothing below it is: every file is opened from the descriptor of
// dir with openat2 (Linux 5.6), so that renaming directories meanwhile leads to
// an error and not elsewhere. Nothing is skipped, .git and hidden files
// included.
//
// A fifo, device, socket or symlink where the profile has none, a bad name, and
// a file or directory that changes while it is read are errors. Changes are
// noticed by size, mtime and ctime; a writer through a mapping can escape that,
// so a build hashes the copy that it mounts.
//
// progress may be nil; it is called with the number of bytes read since its
// last call. A cancelled ctx ends the walk with ctx's error.
func Walk(ctx context.Context, dir string, p Profile, progress func(bytes int64)) (Root, error) {
	if p != Data && p != Source {
		return Root{}, fmt.Errorf("hashing tree %s: no profile", dir)
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return Root{}, fmt.Errorf("hashing tree: %w", err)
	}
	defer f.Close()
	w := walker{ctx: ctx, root: int(f.Fd()), profile: p, progress: progress}
	if err := w.dir(""); err != nil {
		return Root{}, fmt.Errorf("hashing tree %s: %w", dir, err)
	}
	root, err := w.merkle.root()
	if err != nil {
		return Root{}, fmt.Errorf("hashing tree %s: %w", dir, err)
	}
	return root, nil
}

type walker struct {
	ctx      context.Context
	root     int // descriptor, owned by Walk
	profile  Profile
	progress func(int64)
	merkle   merkle
}

// entry is one name of a directory. key is the name, with "/" after that of a
// directory: sorted so, the files of the whole tree come in the order of their
// full paths.
type entry struct {
	key   string
	isDir bool
	mode  uint32 // S_IFMT bits
}

// dir adds all files below the directory rel; "" is the root. No descriptor is
// kept while it descends, so the depth of a tree costs none.
func (w *walker) dir(rel string) error {
	entries, before, err := w.list(rel)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := context.Cause(w.ctx); err != nil {
			return err
		}
		name := rel + e.key
		switch {
		case e.isDir:
			err = w.dir(name)
		case e.mode == unix.S_IFREG:
			err = w.file(name)
		case e.mode == unix.S_IFLNK && w.profile.allows(Symlink):
			err = w.link(name)
		default:
			err = fmt.Errorf("%q is a %s, which profile %v does not take", name, describe(e.mode), w.profile)
		}
		if err != nil {
			return err
		}
	}
	f, after, err := w.open(strings.TrimSuffix(rel, "/"), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	f.Close()
	return same(cmp.Or(rel, "."), before, after)
}

func (w *walker) list(rel string) ([]entry, unix.Stat_t, error) {
	f, st, err := w.open(strings.TrimSuffix(rel, "/"), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, st, err
	}
	defer f.Close()
	found, err := f.Readdirnames(-1)
	if err != nil {
		return nil, st, err
	}
	entries := make([]entry, 0, len(found))
	for _, name := range found {
		if err := CheckPath(rel + name); err != nil {
			return nil, st, err
		}
		var one unix.Stat_t
		if err := unix.Fstatat(int(f.Fd()), name, &one, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, st, &os.PathError{Op: "stat", Path: rel + name, Err: err}
		}
		e := entry{key: name, mode: one.Mode & unix.S_IFMT}
		if e.mode == unix.S_IFDIR {
			e.key, e.isDir = name+"/", true
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	return entries, st, nil
}

func (w *walker) file(name string) error {
	// O_NONBLOCK: a fifo that took the file's place must not hold us up.
	f, before, err := w.open(name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer f.Close()
	if before.Mode&unix.S_IFMT != unix.S_IFREG {
		return changed(name)
	}
	sum, n, err := hashpipe.SumReader(w.ctx, f, w.progress)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	var after unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &after); err != nil {
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	if err := same(name, before, after); err != nil {
		return err
	}
	if n != before.Size {
		return changed(name)
	}
	kind := File
	if w.profile.allows(Executable) && before.Mode&unix.S_IXUSR != 0 {
		kind = Executable
	}
	return w.merkle.add(kind, name, sum, n)
}

// link reads a symlink through a descriptor of the symlink itself.
func (w *walker) link(name string) error {
	f, st, err := w.open(name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer f.Close()
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return changed(name)
	}
	buf := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return &os.PathError{Op: "readlink", Path: name, Err: err}
	}
	target := string(buf[:n])
	if err := checkTarget(name, target); err != nil {
		return err
	}
	return w.merkle.add(Symlink, name, hashpipe.SumBytes(buf[:n]), int64(n))
}

// open opens a path below the root without following any link and returns the
// state it had then.
func (w *walker) open(name string, flags uint64) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{
		Flags:   flags | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(w.root, name, &how)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Openat2(w.root, name, &how)
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, st, changed(name)
	}
	if err != nil {
		return nil, st, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, st, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return f, st, nil
}

// same compares what a change of content or of a directory's names alters.
func same(name string, a, b unix.Stat_t) error {
	if a.Dev != b.Dev || a.Ino != b.Ino || a.Mode != b.Mode || a.Size != b.Size || a.Mtim != b.Mtim || a.Ctim != b.Ctim {
		return changed(name)
	}
	return nil
}

func changed(name string) error {
	return fmt.Errorf("%q: %w", name, hashpipe.ErrChanged)
}

func describe(mode uint32) string {
	switch mode {
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "device"
	}
	return "special file"
}
