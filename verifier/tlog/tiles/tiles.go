// Package tiles computes the proofs of a log from its tiles (C2SP tlog-tiles,
// https://c2sp.org/tlog-tiles): the hash tiles of height 8 at
//
//	tile/<level>/<index>[.p/<width>]
//
// where the index is written in groups of three digits, all but the last of them
// after an "x": tile/0/x001/234, and a partial tile has a width of 1 to 255
// hashes. Where the tiles come from is the caller's matter: Fetch brings one. No
// tile is believed. Each is checked against the root of the tree that the caller
// names, so that a log can withhold a proof and cannot invent one.
package tiles

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	height = 8
	// MaxTile bounds a tile in bytes: 256 hashes. A Fetch need not read more.
	MaxTile = merkle.HashSize << height
	maxSize = 1<<53 - 1 // as in package tlog
)

// Fetch returns the file at path, which is relative to the log's prefix and has
// no empty, "." or ".." component. Its error matches fs.ErrNotExist if the log
// has no such file, and only then.
type Fetch func(ctx context.Context, path string) ([]byte, error)

// Tree is the size and root of a log's tree, as a checkpoint says them.
type Tree struct {
	Size int64 // leaves
	Root tlog.Hash
}

// ErrNotExtended: the tiles are those of the newer tree, and the older one is
// not its beginning. If both roots were signed by the log, it has shown two
// trees.
var ErrNotExtended = errors.New("the newer tree does not extend the older one")

// Consistency returns the proof that newer extends older: empty if the trees are
// equal or older is empty. If the tiles fit newer and not older it is
// ErrNotExtended; a tile that is missing or that does not fit newer is another
// error.
func Consistency(ctx context.Context, fetch Fetch, older, newer Tree) (tlog.Consistency, error) {
	if err := errors.Join(older.check(), newer.check()); err != nil {
		return nil, fmt.Errorf("consistency proof: %w", err)
	}
	switch {
	case older.Size > newer.Size:
		return nil, fmt.Errorf("consistency proof: expected a newer tree of at least size %d, got %d", older.Size, newer.Size)
	case older.Size == newer.Size && older.Root != newer.Root:
		return nil, fmt.Errorf("consistency proof: size %d has the roots %v and %v: %w", older.Size, older.Root, newer.Root, ErrNotExtended)
	case older.Size == newer.Size || older.Size == 0:
		return nil, nil
	}
	proof, err := merkle.ProveTree(newer.Size, older.Size, newer.reader(ctx, fetch))
	if err != nil {
		return nil, fmt.Errorf("consistency proof from size %d to %d: %w", older.Size, newer.Size, err)
	}
	if err := merkle.CheckTree(proof, newer.Size, newer.Root, older.Size, older.Root); err != nil {
		return nil, fmt.Errorf("consistency proof from size %d, root %v, to size %d, root %v: %w", older.Size, older.Root, newer.Size, newer.Root, ErrNotExtended)
	}
	return tlog.Consistency(proof), nil
}

// Inclusion returns the path from the leaf at index to the root of tree, leaf's
// sibling first. Which leaf that is, is the caller's to check: tlog.Verify does.
func Inclusion(ctx context.Context, fetch Fetch, tree Tree, index int64) ([]tlog.Hash, error) {
	if err := tree.check(); err != nil {
		return nil, fmt.Errorf("inclusion proof: %w", err)
	}
	if index < 0 || index >= tree.Size {
		return nil, fmt.Errorf("inclusion proof: expected an index below %d, the size of the tree, got %d", tree.Size, index)
	}
	path, err := merkle.ProveRecord(tree.Size, index, tree.reader(ctx, fetch))
	if err != nil {
		return nil, fmt.Errorf("inclusion proof of index %d at size %d: %w", index, tree.Size, err)
	}
	return path, nil
}

// LeafHash returns the hash of the leaf at index of tree.
func LeafHash(ctx context.Context, fetch Fetch, tree Tree, index int64) (tlog.Hash, error) {
	if err := tree.check(); err != nil {
		return tlog.Hash{}, fmt.Errorf("leaf: %w", err)
	}
	if index < 0 || index >= tree.Size {
		return tlog.Hash{}, fmt.Errorf("leaf: expected an index below %d, the size of the tree, got %d", tree.Size, index)
	}
	hashes, err := tree.reader(ctx, fetch).ReadHashes([]int64{merkle.StoredHashIndex(0, index)})
	if err != nil {
		return tlog.Hash{}, fmt.Errorf("leaf %d at size %d: %w", index, tree.Size, err)
	}
	return hashes[0], nil
}

func (t Tree) check() error {
	if t.Size < 0 || t.Size > maxSize {
		return fmt.Errorf("expected a size from 0 to 2^53-1, got %d", t.Size)
	}
	return nil
}

func (t Tree) reader(ctx context.Context, fetch Fetch) merkle.HashReader {
	return merkle.TileHashReader(merkle.Tree{N: t.Size, Hash: t.Root}, &reader{ctx, fetch})
}

// reader is a merkle.TileReader for one call.
type reader struct {
	ctx   context.Context
	fetch Fetch
}

func (r *reader) Height() int { return height }

func (r *reader) SaveTiles([]merkle.Tile, [][]byte) {}

// ReadTiles takes the beginning of a full tile where the log no longer has the
// partial one.
func (r *reader) ReadTiles(tiles []merkle.Tile) ([][]byte, error) {
	all := make([][]byte, len(tiles))
	for i, t := range tiles {
		data, err := r.read(t, t.W)
		if t.W < 1<<height && errors.Is(err, fs.ErrNotExist) {
			data, err = r.read(t, 1<<height)
		}
		if err != nil {
			return nil, err
		}
		all[i] = data[:t.W*merkle.HashSize]
	}
	return all, nil
}

func (r *reader) read(t merkle.Tile, width int) ([]byte, error) {
	if err := r.ctx.Err(); err != nil {
		return nil, err
	}
	t.W = width
	path := Path(t.L, t.N, t.W)
	data, err := r.fetch(r.ctx, path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if want := width * merkle.HashSize; len(data) != want {
		return nil, fmt.Errorf("%s: expected %d bytes, got %d", path, want, len(data))
	}
	return data, nil
}

// Path returns the path of a hash tile: level and index are at least 0, width is
// 1 to 256.
func Path(level int, index int64, width int) string {
	// The library writes the height, which tlog-tiles fixes, as the first element.
	return "tile/" + strings.TrimPrefix(merkle.Tile{H: height, L: level, N: index, W: width}.Path(), fmt.Sprintf("tile/%d/", height))
}
