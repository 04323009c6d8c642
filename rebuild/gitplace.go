package rebuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tree"
)

// CheckedOut is a tree that stands for a submodule.
type CheckedOut struct {
	// Commit is what Dir was checked out of; the gitlink must name it.
	Commit verifier.GitCommit
	// Dir holds the files.
	Dir string
	// Root is what package tree says of Dir, profile Source. Of a submodule
	// without parts of its own it is what CheckOut returned.
	Root tree.Root
}

// File is an object that stands for an LFS pointer.
type File struct {
	// Digest and Size are the pointer's oid and size.
	Digest hashpipe.Digest
	Size   int64
	Path   string
}

// maxPointer bounds an LFS pointer in bytes (git-lfs's specification).
const maxPointer = 1024

// pointerVersions are the first lines of LFS pointers, of today and of before.
var pointerVersions = []string{"version https://git-lfs.github.com/spec/", "version https://hawser.github.com/spec/", "version http://git-media.io/v/"}

// pointer is what a file of the tree says of an object kept elsewhere.
type pointer struct {
	oid        hashpipe.Digest // zero: not a SHA-256 of the object itself
	size       int64
	executable bool
}

// parsePointer reads an LFS pointer as leniently as git-lfs does, so that what
// it would replace is known as a pointer here.
func parsePointer(text []byte) (pointer, bool) {
	s := strings.TrimSpace(string(text))
	if !slices.ContainsFunc(pointerVersions, func(v string) bool { return strings.HasPrefix(s, v) }) {
		return pointer{}, false
	}
	var p pointer
	var oid, size, extended bool
	for line := range strings.Lines(s) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case key == "oid":
			hex, ok := strings.CutPrefix(value, "sha256:")
			if d, err := hashpipe.ParseDigest(hex); ok && err == nil {
				p.oid = d
			}
			oid = true
		case key == "size":
			if n, err := strconv.ParseInt(value, 10, 64); err == nil {
				p.size, size = n, true
			}
		case strings.HasPrefix(key, "ext-"):
			extended = true // a program made something else of the object
		}
	}
	if extended {
		p.oid = hashpipe.Digest{}
	}
	return p, oid && size
}

// missing is what a commit's own tree refers to and does not hold.
type missing struct {
	submodules map[string]string // path to commit
	pointers   map[string]pointer
}

// checkSubmodules compares gitlinks with what the ledger names, both ways.
func (m missing) checkSubmodules(s Source) error {
	var unnamed []string
	for _, p := range slices.Sorted(maps.Keys(m.submodules)) {
		got, ok := s.Submodules[p]
		if !ok {
			unnamed = append(unnamed, fmt.Sprintf("%.200q with the digest gitCommit %s", "submodule:"+p, m.submodules[p]))
		} else if string(got.Commit) != m.submodules[p] {
			return fmt.Errorf("%.200q is a submodule of commit %s, the ledger says %s for %.200q", p, m.submodules[p], got.Commit, "submodule:"+p)
		}
	}
	if len(unnamed) > 0 {
		return fmt.Errorf("the commit has submodules that the ledger does not name: add to its dependencies %s", enumerate(unnamed))
	}
	for _, p := range slices.Sorted(maps.Keys(s.Submodules)) {
		if _, ok := m.submodules[p]; !ok {
			return fmt.Errorf("the ledger names %.200q, and the commit has no submodule there", "submodule:"+p)
		}
	}
	return nil
}

// checkLFS compares pointers with what the ledger names, both ways.
func (m missing) checkLFS(s Source) error {
	var unnamed []string
	for _, p := range slices.Sorted(maps.Keys(m.pointers)) {
		want := m.pointers[p]
		got, ok := s.LFS[p]
		switch {
		case want.oid.IsZero():
			return fmt.Errorf("%.200q is an LFS pointer to something that is not named by the SHA-256 of its bytes; put the file into the commit or into a dataset", p)
		case !ok:
			unnamed = append(unnamed, fmt.Sprintf("%.200q with the digest sha256 %v (%d bytes)", "lfs:"+p, want.oid, want.size))
		case got.Digest != want.oid || got.Size != want.size:
			return fmt.Errorf("%.200q is an LFS pointer to %v of %d bytes, the ledger says %v of %d bytes for %.200q", p, want.oid, want.size, got.Digest, got.Size, "lfs:"+p)
		}
	}
	if len(unnamed) > 0 {
		return fmt.Errorf("the commit has LFS pointers that the ledger does not name: add to its dependencies %s", enumerate(unnamed))
	}
	for _, p := range slices.Sorted(maps.Keys(s.LFS)) {
		if _, ok := m.pointers[p]; !ok {
			return fmt.Errorf("the ledger names %.200q, and the commit has no LFS pointer there", "lfs:"+p)
		}
	}
	return nil
}

// enumerate lists the first of many things.
func enumerate(names []string) string {
	const most = 8
	if len(names) > most {
		names = append(slices.Clone(names[:most]), fmt.Sprintf("and %d more", len(names)-most))
	}
	return strings.Join(names, ", ")
}

// place puts submodules and LFS objects into a tree whose own files were
// measured, and measures them there.
func place(ctx context.Context, s Source, m missing, dest string) error {
	root, err := os.OpenRoot(dest)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, p := range slices.Sorted(maps.Keys(m.pointers)) {
		if err := placeFile(ctx, root, p, m.pointers[p].executable, s.LFS[p]); err != nil {
			return fmt.Errorf("lfs:%.200s: %w", p, err)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(m.submodules)) {
		if err := placeTree(ctx, root, p, s.Submodules[p]); err != nil {
			return fmt.Errorf("submodule:%.200s: %w", p, err)
		}
		got, err := tree.Walk(ctx, filepath.Join(dest, p), tree.Source, nil)
		if err != nil {
			return fmt.Errorf("submodule:%.200s: %w", p, err)
		}
		if want := s.Submodules[p].Root; got != want {
			return fmt.Errorf("submodule:%.200s: %s has the tree root %s (%d files, %d bytes), and it was checked as %s", p, s.Submodules[p].Dir, got.Digest, got.Files, got.Bytes, want.Digest)
		}
	}
	return nil
}

// placeFile replaces a pointer by its object.
func placeFile(ctx context.Context, root *os.Root, name string, executable bool, f File) error {
	in, err := os.OpenFile(f.Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	if info, err := in.Stat(); err != nil || !info.Mode().IsRegular() {
		return errors.Join(fmt.Errorf("%s is no regular file", f.Path), err)
	}
	mode := fs.FileMode(0o644)
	if executable {
		mode = 0o755
	}
	if err := root.Remove(name); err != nil {
		return err
	}
	out, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	sum, n, err := hashpipe.SumReader(ctx, io.TeeReader(io.LimitReader(in, f.Size+1), out), nil)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	if n != f.Size || !sum.Is(f.Digest) {
		return fmt.Errorf("%s: SHA-256 is %v (%d bytes read), the ledger says %v of %d bytes", f.Path, sum, n, f.Digest, f.Size)
	}
	return nil
}

// placeTree copies files and links to a place where nothing is yet.
func placeTree(ctx context.Context, root *os.Root, name string, c CheckedOut) error {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if info, err := root.Lstat(dir); err == nil && !info.IsDir() {
			return fmt.Errorf("%.200q above it is a %s", dir, fetch.KindOf(info.Mode()))
		}
	}
	source, err := os.OpenRoot(c.Dir)
	if err != nil {
		return err
	}
	defer source.Close()
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	if err := root.Mkdir(name, 0o755); err != nil {
		return err
	}
	target, err := root.OpenRoot(name)
	if err != nil {
		return err
	}
	defer target.Close()
	left := c.Root.Bytes
	return fs.WalkDir(source.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case p == ".":
			return nil
		case e.IsDir():
			return target.Mkdir(p, 0o755)
		case e.Type() == fs.ModeSymlink:
			to, err := source.Readlink(p)
			if err != nil {
				return err
			}
			return target.Symlink(to, p)
		case !e.Type().IsRegular():
			return fmt.Errorf("%s is a %s", filepath.Join(c.Dir, p), fetch.KindOf(e.Type()))
		}
		n, err := copyFile(ctx, source, target, p, left, nil)
		if err != nil {
			return err
		}
		if left -= n; left < 0 {
			return fmt.Errorf("%s has more than the %d bytes that were checked", c.Dir, c.Root.Bytes)
		}
		if info, err := e.Info(); err != nil || info.Mode()&0o100 != 0 {
			return errors.Join(err, target.Chmod(p, 0o755))
		}
		return nil
	})
}
