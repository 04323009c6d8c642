package tiles_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/verifier/tlog"
	"github.com/openclaw/clawfs/verifier/tlog/tiles"
)

// hashes is a tree in the storage of golang.org/x/mod/sumdb/tlog.
type hashes []merkle.Hash

func (h hashes) ReadHashes(indexes []int64) ([]merkle.Hash, error) {
	var out []merkle.Hash
	for _, i := range indexes {
		if i >= int64(len(h)) {
			return nil, errors.New("no such hash")
		}
		out = append(out, h[i])
	}
	return out, nil
}

// grow makes a tree of n leaves; those from other on have another text.
func grow(t *testing.T, n, other int64) hashes {
	t.Helper()
	var h hashes
	for i := range n {
		text := fmt.Sprintf("leaf %d", i)
		if i >= other {
			text += " of another tree"
		}
		more, err := merkle.StoredHashes(i, []byte(text), h)
		if err != nil {
			t.Fatal(err)
		}
		h = append(h, more...)
	}
	return h
}

func (h hashes) at(t *testing.T, size int64) tiles.Tree {
	t.Helper()
	root, err := merkle.TreeHash(size, h)
	if err != nil {
		t.Fatal(err)
	}
	return tiles.Tree{Size: size, Root: root}
}

// write puts the tiles of the tree of size leaves into dir.
func (h hashes) write(t *testing.T, dir string, size int64) {
	t.Helper()
	for _, tile := range merkle.NewTiles(8, 0, size) {
		data, err := merkle.ReadTileData(tile, h)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, tiles.Path(tile.L, tile.N, tile.W))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func directory(dir string) tiles.Fetch {
	return func(_ context.Context, path string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, path)) }
}

func TestPath(t *testing.T) {
	for _, tt := range []struct {
		level int
		index int64
		width int
		want  string
	}{
		{0, 0, 256, "tile/0/000"},
		{0, 0, 1, "tile/0/000.p/1"},
		{1, 255, 7, "tile/1/255.p/7"},
		{0, 1234067, 256, "tile/0/x001/x234/067"},
		{8, 8, 256, "tile/8/008"},
	} {
		if got := tiles.Path(tt.level, tt.index, tt.width); got != tt.want {
			t.Errorf("Path(%d, %d, %d) = %q, want %q", tt.level, tt.index, tt.width, got, tt.want)
		}
	}
}

// Three levels of tiles, and sizes on both sides of each boundary.
func TestProofs(t *testing.T) {
	const size = 65536 + 300
	h := grow(t, size, size)
	dir := t.TempDir()
	h.write(t, dir, size)
	fetch := directory(dir)
	newer := h.at(t, size)
	for _, n := range []int64{0, 1, 2, 255, 256, 257, 300, 65535, 65536, 65537, size - 1, size} {
		older := h.at(t, n)
		proof, err := tiles.Consistency(t.Context(), fetch, older, newer)
		if err != nil {
			t.Errorf("Consistency(%d, %d): %v", n, size, err)
			continue
		}
		if n == 0 || n == size {
			if len(proof) != 0 {
				t.Errorf("Consistency(%d, %d) has %d hashes, want none", n, size, len(proof))
			}
		} else if err := merkle.CheckTree(merkle.TreeProof(proof), newer.Size, newer.Root, older.Size, older.Root); err != nil {
			t.Errorf("Consistency(%d, %d): %v", n, size, err)
		}
		if n == size {
			continue
		}
		path, err := tiles.Inclusion(t.Context(), fetch, newer, n)
		if err != nil {
			t.Errorf("Inclusion(%d): %v", n, err)
			continue
		}
		leaf, err := tiles.LeafHash(t.Context(), fetch, newer, n)
		if want := merkle.RecordHash(fmt.Appendf(nil, "leaf %d", n)); err != nil || leaf != want {
			t.Errorf("LeafHash(%d) = %v, %v, want %v", n, leaf, err, want)
		}
		if err := merkle.CheckRecord(path, newer.Size, newer.Root, n, leaf); err != nil {
			t.Errorf("Inclusion(%d): %v", n, err)
		}
	}
}

// A log deletes its partial tiles when the full ones are there.
func TestFullTileInPlaceOfAPartialOne(t *testing.T) {
	h := grow(t, 600, 600)
	dir := t.TempDir()
	h.write(t, dir, 300)
	h.write(t, dir, 600)
	if err := os.RemoveAll(filepath.Join(dir, "tile/0/001.p")); err != nil {
		t.Fatal(err)
	}
	full := directory(dir)
	var asked []string
	fetch := func(ctx context.Context, path string) ([]byte, error) {
		asked = append(asked, path)
		return full(ctx, path)
	}
	if _, err := tiles.Inclusion(t.Context(), fetch, h.at(t, 300), 299); err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(asked, " "); !strings.Contains(all, "tile/0/001.p/44 tile/0/001") {
		t.Errorf("asked for %s, want the partial tile and then the full one", all)
	}
}

func TestRefuses(t *testing.T) {
	const size = 700
	h, other := grow(t, size, size), grow(t, size, 100)
	dir := t.TempDir()
	h.write(t, dir, size)
	fetch := directory(dir)
	newer := h.at(t, size)
	corrupt := func(change func([]byte) []byte) tiles.Fetch {
		return func(ctx context.Context, path string) ([]byte, error) {
			data, err := fetch(ctx, path)
			if err == nil && strings.HasPrefix(path, "tile/0/000") {
				data = change(data)
			}
			return data, err
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	failing := errors.New("the network is down")
	for _, tt := range []struct {
		name         string
		ctx          context.Context
		fetch        tiles.Fetch
		older, newer tiles.Tree
		want         string
		is           error
	}{
		{"another beginning", t.Context(), fetch, other.at(t, 300), newer, "size 300", tiles.ErrNotExtended},
		{"two roots of one size", t.Context(), fetch, other.at(t, size), newer, "size 700 has the roots", tiles.ErrNotExtended},
		{"older than older", t.Context(), fetch, newer, h.at(t, 300), "expected a newer tree of at least size 700, got 300", nil},
		{"tiles of another tree", t.Context(), fetch, h.at(t, 50), other.at(t, size), "inconsistent tile", nil},
		{"one bit", t.Context(), corrupt(func(b []byte) []byte { b[40] ^= 1; return b }), h.at(t, 50), newer, "inconsistent tile", nil},
		{"short tile", t.Context(), corrupt(func(b []byte) []byte { return b[1:] }), h.at(t, 50), newer, "tile/0/000: expected 8192 bytes, got 8191", nil},
		{"long tile", t.Context(), corrupt(func(b []byte) []byte { return append(b, 0) }), h.at(t, 50), newer, "expected 8192 bytes, got 8193", nil},
		{"empty tile", t.Context(), corrupt(func([]byte) []byte { return nil }), h.at(t, 50), newer, "expected 8192 bytes, got 0", nil},
		{"no tiles", t.Context(), directory(t.TempDir()), h.at(t, 50), newer, "tile/", fs.ErrNotExist},
		{"no network", t.Context(), func(context.Context, string) ([]byte, error) { return nil, failing }, h.at(t, 50), newer, "tile/", failing},
		{"ended", ended, fetch, h.at(t, 50), newer, "", context.Canceled},
		{"size below 0", t.Context(), fetch, tiles.Tree{Size: -1}, newer, "got -1", nil},
		{"size above 2^53", t.Context(), fetch, h.at(t, 50), tiles.Tree{Size: 1 << 53}, "got 9007199254740992", nil},
	} {
		proof, err := tiles.Consistency(tt.ctx, tt.fetch, tt.older, tt.newer)
		if err == nil || !strings.Contains(err.Error(), tt.want) || tt.is != nil && !errors.Is(err, tt.is) || proof != nil {
			t.Errorf("%s: Consistency = %d hashes, %v, want an error with %q", tt.name, len(proof), err, tt.want)
		}
		if tt.is == nil && errors.Is(err, tiles.ErrNotExtended) {
			t.Errorf("%s: %v says that the log shows two trees, which nothing here shows", tt.name, err)
		}
	}
	for _, index := range []int64{-1, size, 1 << 60} {
		if path, err := tiles.Inclusion(t.Context(), fetch, newer, index); err == nil || path != nil {
			t.Errorf("Inclusion(%d) = %d hashes, %v, want an error", index, len(path), err)
		}
		if _, err := tiles.LeafHash(t.Context(), fetch, newer, index); err == nil {
			t.Errorf("LeafHash(%d) succeeds", index)
		}
	}
	if _, err := tiles.Inclusion(t.Context(), corrupt(func(b []byte) []byte { b[0] ^= 1; return b }), newer, 5); err == nil {
		t.Error("Inclusion believes a changed tile")
	}
	var none tlog.Consistency
	if got, err := tiles.Consistency(t.Context(), nil, tiles.Tree{}, newer); err != nil || len(got) != len(none) {
		t.Errorf("Consistency from an empty tree = %v, %v, want an empty proof", got, err)
	}
}
