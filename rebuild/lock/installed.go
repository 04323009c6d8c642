package lock

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of one file or path of an image.
const (
	maxDepth    = 256      // directories in each other
	maxPath     = 4000     // bytes
	maxMetadata = 1 << 20  // bytes of a METADATA's header
	maxDatabase = 64 << 20 // bytes of a dpkg status, or a file of conda-meta
)

// bounds are of an image as a whole.
type bounds struct {
	names    int // of all directories
	waiting  int // bytes of names that are kept at one time
	packages int
	read     int64 // bytes of all files
}

// wide is far above any real image.
var wide = bounds{names: 4_000_000, waiting: 64 << 20, packages: 200_000, read: 1 << 30}

// Package is one thing that is installed in an image, at one place. What is
// there at two places is two Packages.
type Package struct {
	Ecosystem string // PyPI, Conda or Deb, or "python" for an interpreter
	Name      string // normalised as in Row
	Arch      string // of Deb
	// Version is empty if the place does not say it.
	Version string
	// Path is where it was found, relative to the root: a *.dist-info or
	// *.egg-info, a file of conda-meta, a dpkg database, a library of Python.
	Path string
}

func (p Package) String() string {
	v := p.Version
	if v == "" {
		v = "of unknown version"
	}
	return title(p.Name, p.Arch) + " " + v
}

// python is the ecosystem of interpreters. No lock has rows of it.
const python = "python"

// Python returns the version ("3.11") of the only Python 3 of an image, or ""
// if it has none or several.
func Python(have []Package) string {
	found := ""
	for _, p := range have {
		if p.Ecosystem != python || p.Version == found {
			continue
		}
		if found != "" {
			return ""
		}
		found = p.Version
	}
	return found
}

// Installed lists what the unpacked image at rootfs has, sorted: Python packages
// by their *.dist-info/METADATA and *.egg-info, Conda's by conda-meta/*.json, Debian's by
// /var/lib/dpkg/status and status.d, and the Python 3 libraries. The whole tree
// is searched, so environments and odd prefixes are found; not searched for
// Python packages are directories of a Python package (with an __init__.py):
// what such a one bundles is its own, as pip sees it too; and Conda's cache
// (pkgs beside conda-meta).
//
// No link is followed out of rootfs, nothing but regular files is opened, and
// nothing is executed. What cannot be read or is out of bounds is an error:
// half a list would look like missing packages.
func Installed(ctx context.Context, rootfs string) ([]Package, error) {
	return installed(ctx, rootfs, wide)
}

func installed(ctx context.Context, rootfs string, most bounds) ([]Package, error) {
	root, err := os.OpenFile(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("listing the image's packages: %w", err)
	}
	defer root.Close()
	s := search{ctx: ctx, root: root, most: most}
	err = s.walk(".", false, 0)
	if err == nil {
		err = s.dpkg()
	}
	if err != nil {
		return nil, fmt.Errorf("listing the image's packages: %w", err)
	}
	slices.SortFunc(s.found, func(a, b Package) int {
		return cmp.Or(cmp.Compare(a.Ecosystem, b.Ecosystem), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Arch, b.Arch),
			cmp.Compare(a.Version, b.Version), cmp.Compare(a.Path, b.Path))
	})
	return s.found, nil
}

// search is one call of Installed.
type search struct {
	ctx     context.Context
	root    *os.File
	most    bounds
	names   int
	waiting int
	read    int64
	found   []Package
}

// listing is what matters of one directory.
type listing struct {
	dirs      []string
	metadata  []string // *.dist-info, *.egg-info, *.egg of whatever kind
	json      []string // *.json
	isPackage bool     // has an __init__.py
	isLibrary bool     // has an os.py
	isConda   bool     // has conda-meta
}

// walk searches the directory at path. inPackage says that a directory above it
// is a Python package.
func (s *search) walk(path string, inPackage bool, depth int) error {
	if depth > maxDepth || len(path) > maxPath {
		return fmt.Errorf("%s: expected at most %d directories in each other and %d bytes of path", shown(path), maxDepth, maxPath)
	}
	dir, err := s.open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	l, kept, err := s.list(dir, path)
	dir.Close()
	if err != nil {
		return err
	}
	base := path[strings.LastIndexByte(path, '/')+1:]
	inPackage = (inPackage || l.isPackage) && base != "site-packages" && base != "dist-packages"
	if !inPackage {
		for _, name := range l.metadata {
			if err := s.python(join(path, name)); err != nil {
				return err
			}
		}
	}
	if base == "conda-meta" {
		for _, name := range l.json {
			if err := s.condaMeta(join(path, name)); err != nil {
				return err
			}
		}
	}
	if v, is := strings.CutPrefix(base, "python"); is && l.isLibrary && pythonVersion.MatchString(v) {
		if err := s.add(Package{Ecosystem: python, Name: "python", Version: v, Path: path}); err != nil {
			return err
		}
	}
	for _, name := range l.dirs {
		if l.isConda && name == "pkgs" {
			continue
		}
		if err := s.walk(join(path, name), inPackage, depth+1); err != nil {
			return err
		}
	}
	s.waiting -= kept
	return nil
}

// list reads a directory in parts: one may have a million names.
func (s *search) list(dir *os.File, path string) (l listing, kept int, err error) {
	keep := func(list *[]string, name string) {
		*list = append(*list, name)
		kept += len(name) + 16
		s.waiting += len(name) + 16
	}
	for {
		part, err := dir.ReadDir(1024)
		if errors.Is(err, io.EOF) {
			slices.Sort(l.dirs)
			return l, kept, nil
		}
		if err != nil {
			return l, kept, fmt.Errorf("%s: %w", shown(path), err)
		}
		if s.names += len(part); s.names > s.most.names {
			return l, kept, fmt.Errorf("the image has more than %d names", s.most.names)
		}
		for _, e := range part {
			name := e.Name()
			switch {
			case name == "__init__.py":
				l.isPackage = true
			case name == "os.py":
				l.isLibrary = true
			case strings.HasSuffix(name, ".dist-info"), strings.HasSuffix(name, ".egg-info"), strings.HasSuffix(name, ".egg"):
				keep(&l.metadata, name)
			case strings.HasSuffix(name, ".json") && strings.HasSuffix("/"+path, "/conda-meta"):
				keep(&l.json, name)
			case e.IsDir():
				l.isConda = l.isConda || name == "conda-meta"
				keep(&l.dirs, name)
			}
		}
		if s.waiting > s.most.waiting {
			return l, kept, fmt.Errorf("%s: the names of directories up to here have more than %d bytes", shown(path), s.most.waiting)
		}
		if err := s.ctx.Err(); err != nil {
			return l, kept, err
		}
	}
}

func (s *search) add(p Package) error {
	if len(s.found) >= s.most.packages {
		return fmt.Errorf("the image has more than %d packages", s.most.packages)
	}
	s.found = append(s.found, p)
	return nil
}

// open resolves path as if the image were "/": its links work, and none leads
// out, to /proc, or to another file system.
func (s *search) open(path string, flags int) (*os.File, error) {
	fd, err := unix.Openat2(int(s.root.Fd()), path, &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case errors.Is(err, unix.EXDEV):
		return nil, fmt.Errorf("%s is on another file system, expected one unpacked tree (%w)", shown(path), err)
	case errors.Is(err, unix.ELOOP):
		return nil, fmt.Errorf("%s is a symbolic link in a circle, or into /proc (%w)", shown(path), err)
	case err != nil:
		return nil, fmt.Errorf("opening %s: %w", shown(path), err)
	}
	// The name serves ReadDir where the file system does not say what an entry is.
	return os.NewFile(uintptr(fd), fmt.Sprintf("/proc/self/fd/%d", fd)), nil
}

// file reads at most most bytes of a regular file, and one more if there are. It
// opens a FIFO or a device only as a name.
func (s *search) file(path string, most int64) ([]byte, error) {
	if err := s.ctx.Err(); err != nil {
		return nil, err
	}
	name, err := s.open(path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer name.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(name.Fd()), &st); err != nil {
		return nil, fmt.Errorf("%s: %w", shown(path), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is %s, expected a regular file", shown(path), kind(st.Mode))
	}
	f, err := os.Open(name.Name()) // the very file: by its descriptor
	if err != nil {
		return nil, fmt.Errorf("%s: %w", shown(path), err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", shown(path), err)
	}
	if s.read += int64(len(b)); s.read > s.most.read {
		return nil, fmt.Errorf("%s: the image's package databases have more than %d bytes", shown(path), s.most.read)
	}
	return b, nil
}

func kind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFIFO:
		return "a FIFO"
	case unix.S_IFSOCK:
		return "a socket"
	}
	return "a device"
}

// absent reports whether err says that there is no such name.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}
