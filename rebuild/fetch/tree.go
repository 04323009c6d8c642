package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/tree"
)

// Size is the size of a tree, as its root has it.
type Size struct {
	Files, Bytes int64
}

const (
	// maxFiles bounds a tree whose size is not known.
	maxFiles = 10_000_000
	// maxBytes bounds every tree (package tree).
	maxBytes = 1<<53 - 1
)

// Tree leases a read-only directory whose clawfs-tree/v1 root, profile data, is
// want, and fetches it first if it is not here. No more files and bytes are
// taken than size says; if it is nil, no more than the cache's budget. Then the
// directory is measured again, and a size that differs from what the root says
// is an error that no place can mend.
//
// A place is a directory, or an archive: tar, tar in gzip, tar in zstd, or zip.
// Both hold regular files whose paths package tree takes (a leading "./" of an
// archive is left out), each once; a link, device or anything else is an error.
// Directories exist only where a file needs them, for empty ones are not part
// of a tree. Of an archive these are tried, in this order:
//
//  1. what is in it, as it is;
//  2. if that has another root, and all of it lies in one directory, what lies
//     in that directory;
//  3. the archive itself as the only file of the tree, under the last component
//     of the place's name. This is also what any other file is.
//
// The root decides. seen is that of File, and counts the bytes of a download as
// they come, which are fewer if they are compressed. Errors are those of File.
func (c *Cache) Tree(ctx context.Context, want hashpipe.Digest, size *Size, places []Place, seen func(bytes int64)) (*Lease, error) {
	if want.IsZero() {
		return nil, errors.New("fetching a tree: no root says which")
	}
	what := "tree " + want.String()
	t := wanted{root: want, size: size, most: Size{maxFiles, min(c.budget, maxBytes)}}
	if size != nil {
		t.most = *size
	}
	if t.most.Files < 1 || t.most.Files > 1<<32 || t.most.Bytes < 0 || t.most.Bytes > maxBytes {
		return nil, fmt.Errorf("fetching %s: a size of %d files and %d bytes", what, t.most.Files, t.most.Bytes)
	}
	return c.lease(ctx, recipe{
		name: "tree-" + want.String(),
		check: func(ctx context.Context, data string) error {
			if err := Frozen(data); err != nil {
				return err
			}
			return t.check(ctx, data, seen)
		},
		fill: func(ctx context.Context, name, work string) error {
			return c.each(ctx, what, name, work, places, func(ctx context.Context, p Place, u *url.URL) error {
				return c.treeFrom(ctx, name, work, p, u, t, seen)
			})
		},
	})
}

// wanted is what a tree has to be.
type wanted struct {
	root hashpipe.Digest
	size *Size
	most Size
}

// check measures a directory.
func (t wanted) check(ctx context.Context, dir string, seen func(int64)) error {
	got, err := tree.Walk(ctx, dir, tree.Data, seen)
	switch {
	case err != nil && (ctx.Err() != nil || exhausted(err)):
		return &local{err}
	case err != nil:
		return &wrong{"tree root " + t.root.String(), err.Error()}
	case got.Digest != t.root:
		return &wrong{"tree root " + t.root.String(), fmt.Sprintf("%s (%d files, %d bytes)", got.Digest, got.Files, got.Bytes)}
	case t.size != nil && (got.Files != t.size.Files || got.Bytes != t.size.Bytes):
		return &claimError{fmt.Errorf("tree %s has %d files of %d bytes, not %d files of %d bytes", t.root, got.Files, got.Bytes, t.size.Files, t.size.Bytes)}
	}
	return nil
}

// archiveBytes is how long an archive of the tree can be: each file with its
// name in a tar header and its extension, or twice in a zip, and padding. If the
// number of files is not known, their names count with the bytes.
func (t wanted) archiveBytes() int64 {
	most := t.most.Bytes + t.most.Bytes/64 + 16<<20
	if t.size != nil {
		most += t.most.Files * (16 << 10)
	}
	return most
}

func (c *Cache) treeFrom(ctx context.Context, name, work string, p Place, u *url.URL, t wanted, seen func(int64)) error {
	if u.Scheme == "" {
		f, err := c.openLocal(p, u.Path)
		if err != nil {
			return err
		}
		defer f.Close()
		return c.treeFromLocal(ctx, f, path.Base(u.Path), work, t, seen)
	}
	return c.newDownload(name, p, u, t.archiveBytes(), seen).use(ctx, func(file string) error {
		if err := empty(work); err != nil {
			return &local{err}
		}
		f, err := os.Open(file)
		if err != nil {
			return &local{err}
		}
		defer f.Close()
		return c.treeFromLocal(ctx, f, path.Base(u.Path), work, t, nil)
	})
}

// treeFromLocal makes work/data from an open directory or file.
func (c *Cache) treeFromLocal(ctx context.Context, f *os.File, base, work string, t wanted, seen func(int64)) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	found := filepath.Join(work, "found")
	if info.IsDir() {
		if err := copyTree(ctx, f, found, t.most, seen); err != nil {
			return err
		}
		return t.settle(ctx, work, found)
	}
	err = unpack(ctx, f, info.Size(), found, t, seen)
	if err == nil {
		err = t.settleOrStrip(ctx, work, found)
	}
	if err == nil || !errors.As(err, new(*wrong)) && !errors.Is(err, errNoArchive) {
		return err
	}
	e := t.single(ctx, f, info.Size(), base, work, seen)
	if errors.As(e, new(*wrong)) && !errors.Is(err, errNoArchive) {
		return err
	}
	return e
}

// settleOrStrip tries what was unpacked as it is, and then without the one
// directory that all of it lies in.
func (t wanted) settleOrStrip(ctx context.Context, work, found string) error {
	err := t.settle(ctx, work, found)
	var whole, part *wrong
	if !errors.As(err, &whole) {
		return err
	}
	one, e := oneDirectory(found)
	if e != nil {
		return &local{e}
	}
	if one == "" {
		return err
	}
	if err = t.settle(ctx, work, filepath.Join(found, one)); errors.As(err, &part) {
		return &wrong{whole.expected, fmt.Sprintf("%s, and without its directory %.200q %s", whole.got, one, part.got)}
	}
	return err
}

// settle makes found the data if it is what is wanted.
func (t wanted) settle(ctx context.Context, work, found string) error {
	if err := Freeze(found); err != nil {
		return &local{err}
	}
	if err := t.check(ctx, found, nil); err != nil {
		return err
	}
	// Only root can move what cannot be written, or out of what cannot be.
	if err := errors.Join(os.Chmod(found, 0o755), os.Chmod(filepath.Dir(found), 0o700)); err != nil {
		return &local{err}
	}
	data := filepath.Join(work, "data")
	if err := os.Rename(found, data); err != nil {
		return &local{err}
	}
	if err := freezeDir(data); err != nil {
		return &local{err}
	}
	// What is left of an archive is no part of the entry.
	for _, left := range []string{"found", "single"} {
		if err := remove(filepath.Join(work, left)); err != nil {
			return &local{err}
		}
	}
	return nil
}

// oneDirectory returns the name of the directory that is all there is in dir.
func oneDirectory(dir string) (string, error) {
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 1 || !list[0].IsDir() {
		return "", ignoreGone(err)
	}
	return list[0].Name(), nil
}

// single makes the data of one file.
func (t wanted) single(ctx context.Context, f *os.File, size int64, base, work string, seen func(int64)) error {
	if t.size != nil && (t.size.Files != 1 || t.size.Bytes != size) {
		return &wrong{fmt.Sprintf("an archive (tar, tar in gzip, tar in zstd, zip) of %d files", t.size.Files), fmt.Sprintf("a file of %d bytes that is none", size)}
	}
	if err := tree.CheckPath(base); err != nil || base == "/" {
		return &wrong{"an archive, or a file with a name", fmt.Sprintf("a file called %q", base)}
	}
	if _, err := f.Seek(0, 0); err != nil {
		return err
	}
	dir := filepath.Join(work, "single")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return &local{err}
	}
	if err := copyTo(ctx, f, filepath.Join(dir, base), t.most.Bytes, seen); err != nil {
		return err
	}
	return t.settle(ctx, work, dir)
}

// copyTree copies the regular files below an open directory into dest, which it
// creates, and stops when there are more than most says. What the build sees is
// the copy, so the copy is what is measured; the original may change at any
// time.
func copyTree(ctx context.Context, from *os.File, dest string, most Size, seen func(int64)) error {
	source, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", from.Fd()))
	if err != nil {
		return err
	}
	defer source.Close()
	w, err := newWriter(dest, most)
	if err != nil {
		return err
	}
	defer w.close()
	return fs.WalkDir(source.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case e.IsDir():
			return nil
		case !e.Type().IsRegular():
			return &wrong{"regular files only", fmt.Sprintf("a %s at %q", KindOf(e.Type()), name)}
		}
		in, err := source.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer in.Close()
		info, err := in.Stat()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return &wrong{"regular files only", fmt.Sprintf("a %s at %q", KindOf(info.Mode()), name)}
		}
		out, err := w.create(name, info.Size())
		if err != nil {
			return err
		}
		n, err := copySteps(ctx, in, out, w.left.Bytes, seen)
		w.left.Bytes -= n
		if e := out.Close(); err == nil && e != nil {
			err = &local{e}
		}
		return err
	})
}
