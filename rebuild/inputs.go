package rebuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tree"
)

// maxLockfile bounds the lock file in bytes.
const maxLockfile = 64 << 20

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

// errOtherTree is in an error of a place that gave other files than the ledger
// names.
var errOtherTree = errors.New("tree root")

// checkTree compares a measured root with the ledger's claim.
func checkTree(what string, got tree.Root, want verifier.Dependency) error {
	claim := want.Digest.ClawfsTree1
	// A SHA-256 commit binds its files by itself: git hashed every object of
	// the fetch. For all else the tree root is the binding.
	bound := len(want.Digest.GitCommit) == 64 && claim.IsZero()
	if got.Digest != claim && !bound {
		return fmt.Errorf("%s: %w is %s (%d files, %d bytes), the ledger says %s", what, errOtherTree, got.Digest, got.Files, got.Bytes, claim)
	}
	if a := want.Annotations; a != nil && a.Files > 0 && (a.Files != got.Files || a.Bytes != got.Bytes) {
		return fmt.Errorf("%s: %d files of %d bytes, the ledger says %d files of %d bytes", what, got.Files, got.Bytes, a.Files, a.Bytes)
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
