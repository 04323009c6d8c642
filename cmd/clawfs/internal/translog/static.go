package translog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	merkle "golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/verifier/tlog"
)

// Copied says what Copy wrote.
type Copied struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"` // entries of the copy
	New    int64  `json:"new"`  // of these, entries that it did not have before
	Files  int64  `json:"files"`
}

// Copy brings the directory out, which it makes if needed, to the log's newest
// checkpoint: blobs first, then tiles, and the checkpoint after all of them are on
// stable storage, so that at each moment whoever reads out finds everything that
// its checkpoint promises. Everything is checked on the way but the signatures of
// keys that the policy does not know, which are copied too. A copy that is newer
// than the log, or of another log or tree, is an error and stays as it is.
func (l *Log) Copy(ctx context.Context, out string) (Copied, error) {
	text, c, err := l.checkpoint(ctx)
	if err != nil {
		return Copied{}, err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return Copied{}, fmt.Errorf("copy: %w", err)
	}
	root, err := os.OpenRoot(out)
	if err != nil {
		return Copied{}, fmt.Errorf("copy: %w", err)
	}
	defer root.Close()
	have, err := l.copied(ctx, directory{root}, c)
	if err != nil {
		return Copied{}, err
	}
	w := &copier{root: root, done: Copied{Origin: c.Origin(), Size: c.Size(), New: c.Size() - have}}
	if err := l.copyEntries(ctx, w, c, have); err != nil {
		return w.done, err
	}
	for _, t := range merkle.NewTiles(tileHeight, have, c.Size()) {
		data, err := merkle.ReadTileData(t, l.hashes(ctx, c))
		if err != nil {
			return w.done, fmt.Errorf("log: %s: %w", tilePath(t), err)
		}
		if err := w.write(tilePath(t), data); err != nil {
			return w.done, err
		}
	}
	if err := w.sync(); err != nil {
		return w.done, err
	}
	if err := w.write(CheckpointPath, text); err != nil {
		return w.done, err
	}
	if err := w.sync(); err != nil {
		return w.done, err
	}
	return w.done, w.prune(have, c.Size())
}

// copied returns how many entries the copy has, 0 if there is none.
func (l *Log) copied(ctx context.Context, out directory, c tlog.Checkpoint) (int64, error) {
	text, err := out.read(ctx, CheckpointPath, tlog.MaxCheckpoint)
	if isMissing(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	old, err := l.policy.Checkpoint(text)
	if err != nil {
		return 0, fmt.Errorf("copy %s: %w", out.root.Name(), err)
	}
	if old.Size() > c.Size() {
		return 0, fmt.Errorf("copy %s: it has %d entries, and the log has %d: expected a log that is not older than its copy", out.root.Name(), old.Size(), c.Size())
	}
	got, err := l.Root(ctx, c, old.Size())
	if err != nil {
		return 0, err
	}
	if old.Size() > 0 && got != old.Root() {
		return 0, fmt.Errorf("copy %s: at size %d it has the root %v, and the log has %v: they are two trees", out.root.Name(), old.Size(), old.Root(), got)
	}
	return old.Size(), nil
}

func (l *Log) copyEntries(ctx context.Context, w *copier, c tlog.Checkpoint, have int64) error {
	for first := have - have%tileWidth; first < c.Size(); first += tileWidth {
		records, err := l.bundle(ctx, c, first)
		if err != nil {
			return err
		}
		var data []byte
		for i, r := range records {
			data = append(data, byte(len(r)>>8), byte(len(r)))
			data = append(data, r...)
			if first+int64(i) < have {
				continue
			}
			leaf, err := tlog.ParseLeaf(r)
			if err != nil {
				return fmt.Errorf("log: entry %d: %w", first+int64(i), err)
			}
			envelope, err := l.Envelope(ctx, leaf)
			if err != nil {
				return fmt.Errorf("entry %d: %w", first+int64(i), err)
			}
			if err := w.write(BlobPath(leaf.Payload()), envelope); err != nil {
				return err
			}
		}
		t := merkle.Tile{H: tileHeight, L: -1, N: first / tileWidth, W: len(records)}
		if err := w.write(tilePath(t), data); err != nil {
			return err
		}
	}
	return nil
}

type copier struct {
	root *os.Root
	done Copied
}

// write puts a file in its place whole or not at all. It is on stable storage
// after sync.
func (w *copier) write(path string, data []byte) error {
	path = filepath.FromSlash(path)
	if err := w.root.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	temporary := path + ".new"
	if err := w.root.WriteFile(temporary, data, 0o644); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if err := w.root.Rename(temporary, path); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	w.done.Files++
	return nil
}

// sync waits until everything that was written to the file system is on stable
// storage. It is one call, because a first copy writes as many files as the log
// has entries.
func (w *copier) sync() error {
	f, err := w.root.Open(".")
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("copy: syncing %s: %w", w.root.Name(), err)
	}
	return nil
}

// prune removes the partial tiles and bundles that have become whole ones.
// Readers of an older checkpoint find the whole ones in their place.
func (w *copier) prune(from, to int64) error {
	for level := -1; from>>(tileHeight*max(level, 0)) > 0; level++ {
		shift := tileHeight * max(level, 0)
		n := from >> shift >> tileHeight
		if to>>shift>>tileHeight == n {
			continue
		}
		t := merkle.Tile{H: tileHeight, L: level, N: n, W: tileWidth}
		if err := w.root.RemoveAll(filepath.FromSlash(tilePath(t) + ".p")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("copy: %w", err)
		}
	}
	return nil
}
