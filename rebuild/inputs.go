package rebuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tree"
)

// maxLockfile bounds the lock file in bytes.
const maxLockfile = 64 << 20

// inputTime is the modification time, in Unix seconds, of everything a build
// sees below /in: 1980-01-02, which a zip member can hold in every time zone.
const inputTime = 315619200

// copyDataset copies the regular files below from into dest, which it creates,
// and stops when there are more than the ledger says (size may be nil). What
// the build sees is the copy, so the copy is what the caller verifies; the
// original may change at any time.
func copyDataset(ctx context.Context, from, dest string, size *verifier.Annotations, seen func(int64)) error {
	source, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer source.Close()
	if err := os.Mkdir(dest, 0o700); err != nil {
		return err
	}
	target, err := os.OpenRoot(dest)
	if err != nil {
		return err
	}
	defer target.Close()
	var files, bytes int64
	return fs.WalkDir(source.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case e.IsDir():
			if name == "." {
				return nil
			}
			return target.Mkdir(name, 0o755)
		case !e.Type().IsRegular():
			return fmt.Errorf("%s is a %s: a dataset holds regular files only", filepath.Join(from, name), kindOf(e.Type()))
		}
		most := int64(math.MaxInt64)
		if size != nil {
			most = size.Bytes - bytes
		}
		n, err := copyFile(ctx, source, target, name, most, seen)
		files, bytes = files+1, bytes+n
		if err == nil && size != nil && (files > size.Files || bytes > size.Bytes) {
			err = fmt.Errorf("%s holds more than the %d files and %d bytes of the ledger", from, size.Files, size.Bytes)
		}
		return err
	})
}

// copyFile copies one file in steps, so that it can be stopped, and little more
// than most bytes of it: a ledger may name a place where files have no end.
// os.File uses copy_file_range, which shares blocks where the file system can.
func copyFile(ctx context.Context, source, target *os.Root, name string, most int64, seen func(int64)) (int64, error) {
	in, err := source.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	if info, err := in.Stat(); err != nil || !info.Mode().IsRegular() {
		return 0, errors.Join(fmt.Errorf("%s is no regular file any more", name), err)
	}
	out, err := target.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return 0, err
	}
	var sum int64
	for err == nil && ctx.Err() == nil && sum <= most {
		var n int64
		n, err = io.CopyN(out, in, 8<<20)
		sum += n
		if seen != nil && n > 0 {
			seen(n)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return sum, errors.Join(err, context.Cause(ctx), out.Close())
}

func kindOf(m fs.FileMode) string {
	switch m.Type() {
	case fs.ModeSymlink:
		return "symlink"
	case fs.ModeNamedPipe:
		return "named pipe"
	case fs.ModeSocket:
		return "socket"
	}
	return "device"
}

// checkTree compares a measured root with the ledger's claim.
func checkTree(what string, got tree.Root, want verifier.Dependency) error {
	claim := want.Digest.ClawfsTree1
	// A SHA-256 commit binds its files by itself: git hashed every object of
	// the fetch. For all else the tree root is the binding.
	bound := len(want.Digest.GitCommit) == 64 && claim.IsZero()
	if got.Digest != claim && !bound {
		return fmt.Errorf("%s: tree root is %s (%d files, %d bytes), the ledger says %s", what, got.Digest, got.Files, got.Bytes, claim)
	}
	if a := want.Annotations; a != nil && (a.Files != got.Files || a.Bytes != got.Bytes) {
		return fmt.Errorf("%s: %d files of %d bytes, the ledger says %d files of %d bytes", what, got.Files, got.Bytes, a.Files, a.Bytes)
	}
	return nil
}

// copyLockfile copies one regular file and compares the copy's SHA-256.
func copyLockfile(ctx context.Context, from, dest string, want hashpipe.Digest) error {
	in, err := os.OpenFile(from, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > maxLockfile {
		return fmt.Errorf("%s: expected a regular file of at most %d bytes", from, maxLockfile)
	}
	out, err := os.OpenFile(dest, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	m, err := hashpipe.Measure(ctx, io.TeeReader(io.LimitReader(in, maxLockfile+1), out), nil)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	if !m.Sum().Is(want) {
		return fmt.Errorf("lockfile %s: SHA-256 is %s, the ledger says %s", from, m.Sum(), want)
	}
	return nil
}

// freeze makes everything below dir read-only with one modification time.
func freeze(dir string) error {
	stamp := []unix.Timespec{{Sec: inputTime}, {Sec: inputTime}}
	var dirs []string
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			dirs = append(dirs, name)
			return nil
		}
		return freezeOne(name, e.Type(), stamp)
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = freezeOne(dirs[i], fs.ModeDir, stamp)
	}
	if err != nil {
		return fmt.Errorf("making inputs read-only: %w", err)
	}
	return nil
}

func freezeOne(name string, kind fs.FileMode, stamp []unix.Timespec) error {
	if kind&fs.ModeSymlink == 0 {
		info, err := os.Lstat(name)
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o444)
		if info.IsDir() || info.Mode()&0o100 != 0 {
			mode = 0o555
		}
		if err := os.Chmod(name, mode); err != nil {
			return err
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, stamp, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return nil
}

// removeTree removes a scratch directory whose parts may be read-only.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			os.Chmod(name, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// localPath turns a hint into the path of a local file or directory.
func localPath(what, option, hint string) (string, error) {
	p, isFile := strings.CutPrefix(hint, "file://")
	if !isFile {
		p = hint
	}
	if hint == "" || strings.Contains(hint, "://") && !isFile {
		return "", fmt.Errorf("%s: no local copy is known; fetch it and name it with %s", what, option)
	}
	if !path.IsAbs(p) {
		return "", fmt.Errorf("%s: %q is no absolute path; name it with %s", what, hint, option)
	}
	return filepath.Clean(p), nil
}
