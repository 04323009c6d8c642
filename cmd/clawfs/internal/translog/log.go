package translog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// maxCached bounds the tiles that a Log keeps: 32 MiB.
const maxCached = 4096

// Log reads one log. Its methods may be called from several goroutines.
type Log struct {
	src    source
	policy tlog.Policy

	mu     sync.Mutex // guards what follows
	newest tlog.Checkpoint
	tiles  map[merkle.Tile][]byte // that were checked against some checkpoint
}

// Open returns the log at a location: an http or https URL, a server's directory
// or a static copy. policy says whose checkpoints are believed.
func Open(location string, policy tlog.Policy) (*Log, error) {
	if policy.IsZero() {
		return nil, errors.New("log: there is no policy to check its checkpoints with")
	}
	src, err := openSource(location)
	if err != nil {
		return nil, err
	}
	return &Log{src: src, policy: policy, tiles: make(map[merkle.Tile][]byte)}, nil
}

// Checkpoint reads the log's checkpoint and checks it by the policy. What it does
// not show is a *tlog.Refusal.
func (l *Log) Checkpoint(ctx context.Context) (tlog.Checkpoint, error) {
	_, c, err := l.checkpoint(ctx)
	return c, err
}

// checkpoint returns also the text as it was read, with the signatures of keys
// that the policy does not know.
func (l *Log) checkpoint(ctx context.Context) ([]byte, tlog.Checkpoint, error) {
	text, err := l.src.read(ctx, CheckpointPath, tlog.MaxCheckpoint)
	if isMissing(err) {
		return nil, tlog.Checkpoint{}, fmt.Errorf("%w (a log has no checkpoint before its witnesses cosigned the first one)", err)
	}
	if err != nil {
		return nil, tlog.Checkpoint{}, err
	}
	c, err := l.policy.Checkpoint(text)
	if err != nil {
		return nil, tlog.Checkpoint{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.newest.IsZero() || c.Size() >= l.newest.Size() {
		l.newest = c
	}
	return text, c, nil
}

// Prove returns the proof that a leaf lies at index of the tree of c. It proves
// something only to whoever checks it with tlog.Verify.
func (l *Log) Prove(ctx context.Context, c tlog.Checkpoint, index int64) (tlog.Proof, error) {
	if c.IsZero() || index < 0 || index >= c.Size() {
		return tlog.Proof{}, fmt.Errorf("log: expected an index from 0 to %d, got %d", c.Size()-1, index)
	}
	path, err := merkle.ProveRecord(c.Size(), index, l.hashes(ctx, c))
	if err != nil {
		return tlog.Proof{}, fmt.Errorf("log: proving entry %d of %d: %w", index, c.Size(), err)
	}
	return tlog.Proof{Index: index, Path: path, Checkpoint: c.Note()}, nil
}

// Consistency returns the proof that the tree of size from is the beginning of
// that of size to, for a verifier that remembers one of the two. Both lie within
// the newest checkpoint that Checkpoint has seen; it asks for a newer one if they
// do not.
func (l *Log) Consistency(ctx context.Context, from, to int64) (tlog.Consistency, error) {
	if from < 0 || from > to {
		return nil, fmt.Errorf("log: expected sizes in ascending order, got %d and %d", from, to)
	}
	if from == 0 || from == to {
		return nil, nil
	}
	l.mu.Lock()
	c := l.newest
	l.mu.Unlock()
	if c.IsZero() || c.Size() < to {
		var err error
		if c, err = l.Checkpoint(ctx); err != nil {
			return nil, err
		}
	}
	if c.Size() < to {
		return nil, fmt.Errorf("log %s: expected a checkpoint of at least size %d, got size %d", clip(c.Origin()), to, c.Size())
	}
	p, err := merkle.ProveTree(to, from, l.hashes(ctx, c))
	if err != nil {
		return nil, fmt.Errorf("log: proving size %d from %d: %w", to, from, err)
	}
	return tlog.Consistency(p), nil
}

// Root returns the root that the first size leaves of the tree of c have.
func (l *Log) Root(ctx context.Context, c tlog.Checkpoint, size int64) (tlog.Hash, error) {
	if size < 0 || size > c.Size() {
		return tlog.Hash{}, fmt.Errorf("log: expected a size from 0 to %d, got %d", c.Size(), size)
	}
	h, err := merkle.TreeHash(size, l.hashes(ctx, c))
	if err != nil {
		return tlog.Hash{}, fmt.Errorf("log: root at size %d: %w", size, err)
	}
	return h, nil
}

// Find returns the index of a leaf in the tree of c, the first one if the leaf is
// there twice. It looks at hint first, if that is not negative, then reads 32
// bytes for each entry of the log. It is ErrNotLogged if the leaf is not there.
func (l *Log) Find(ctx context.Context, c tlog.Checkpoint, leaf tlog.Leaf, hint int64) (int64, error) {
	want, hashes := leaf.Hash(), l.hashes(ctx, c)
	if hint >= 0 && hint < c.Size() {
		got, err := hashes.ReadHashes([]int64{merkle.StoredHashIndex(0, hint)})
		if err != nil {
			return 0, fmt.Errorf("log: %w", err)
		}
		if got[0] == want {
			return hint, nil
		}
	}
	for from := int64(0); from < c.Size(); from += tileWidth {
		got, err := leafHashes(hashes, from, min(from+tileWidth, c.Size()))
		if err != nil {
			return 0, err
		}
		if i := slices.Index(got, want); i >= 0 {
			return from + int64(i), nil
		}
	}
	return 0, fmt.Errorf("%w: log %s has none of its %d entries for payload %s by key %s", ErrNotLogged, clip(c.Origin()), c.Size(), leaf.Payload(), leaf.Signer())
}

func leafHashes(r merkle.HashReader, from, to int64) ([]tlog.Hash, error) {
	var indexes []int64
	for i := from; i < to; i++ {
		indexes = append(indexes, merkle.StoredHashIndex(0, i))
	}
	hashes, err := r.ReadHashes(indexes)
	if err != nil {
		return nil, fmt.Errorf("log: hashes of entries %d to %d: %w", from, to-1, err)
	}
	return hashes, nil
}

// Entries calls visit with the record of each entry of the tree of c, from an
// index on, after it was checked against the tree. It ends at the first error.
func (l *Log) Entries(ctx context.Context, c tlog.Checkpoint, from int64, visit func(index int64, record []byte) error) error {
	if from < 0 || from > c.Size() {
		return fmt.Errorf("log: expected an index from 0 to %d, got %d", c.Size(), from)
	}
	for first := from - from%tileWidth; first < c.Size(); first += tileWidth {
		records, err := l.bundle(ctx, c, first)
		if err != nil {
			return err
		}
		for i, r := range records {
			if index := first + int64(i); index >= from {
				if err := visit(index, r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// bundle returns the records from first on, a multiple of tileWidth.
func (l *Log) bundle(ctx context.Context, c tlog.Checkpoint, first int64) ([][]byte, error) {
	width := int(min(tileWidth, c.Size()-first))
	data, err := l.tile(ctx, merkle.Tile{H: tileHeight, L: -1, N: first / tileWidth, W: width}, maxBundle)
	if err != nil {
		return nil, err
	}
	records, err := SplitBundle(data, width)
	if err != nil {
		return nil, fmt.Errorf("log: entries %d to %d: %w", first, first+int64(width)-1, err)
	}
	hashes, err := leafHashes(l.hashes(ctx, c), first, first+int64(width))
	if err != nil {
		return nil, err
	}
	for i, r := range records {
		if got := merkle.RecordHash(r); got != hashes[i] {
			return nil, fmt.Errorf("log: entry %d: expected leaf hash %v, as the tree of size %d has it, got %v", first+int64(i), hashes[i], c.Size(), got)
		}
	}
	return records, nil
}

// SplitBundle returns the first n records of a bundle of tlog-tiles: each a
// 16-bit big-endian length and as many bytes. A bundle may have more of them.
func SplitBundle(data []byte, n int) ([][]byte, error) {
	var records [][]byte
	for range n {
		if len(data) < 2 {
			return nil, fmt.Errorf("expected %d records, got %d", n, len(records))
		}
		size := int(binary.BigEndian.Uint16(data))
		if data = data[2:]; len(data) < size {
			return nil, fmt.Errorf("expected %d bytes of record %d, got %d", size, len(records)+1, len(data))
		}
		records = append(records, data[:size])
		data = data[size:]
	}
	return records, nil
}

// Envelope returns the envelope of an entry: one with the payload that the leaf
// names. Who signed it is not checked.
func (l *Log) Envelope(ctx context.Context, leaf tlog.Leaf) ([]byte, error) {
	data, err := l.src.read(ctx, BlobPath(leaf.Payload()), dsse.MaxEnvelope)
	if err != nil {
		return nil, err
	}
	e, err := dsse.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("log: blob %s: %w", leaf.Payload(), err)
	}
	if got := hashpipe.SumBytes(e.UnverifiedPayload()).Claim(); got != leaf.Payload() {
		return nil, fmt.Errorf("log: blob %s: expected an envelope of that payload, got one of payload %s", leaf.Payload(), got)
	}
	return data, nil
}

// hashes reads hashes of the tree of c, each checked against its root.
func (l *Log) hashes(ctx context.Context, c tlog.Checkpoint) merkle.HashReader {
	if c.Size() == 0 { // which TileHashReader does not expect
		return merkle.HashReaderFunc(func(indexes []int64) ([]merkle.Hash, error) {
			if len(indexes) > 0 {
				return nil, errors.New("the tree is empty")
			}
			return nil, nil
		})
	}
	return merkle.TileHashReader(merkle.Tree{N: c.Size(), Hash: c.Root()}, tileReader{ctx, l})
}

// tileReader is a merkle.TileReader for the length of one call.
type tileReader struct {
	ctx context.Context
	log *Log
}

// Height returns the height of the tiles.
func (r tileReader) Height() int { return tileHeight }

// ReadTiles returns tiles that nobody has checked yet.
func (r tileReader) ReadTiles(tiles []merkle.Tile) ([][]byte, error) {
	var all [][]byte
	for _, t := range tiles {
		r.log.mu.Lock()
		data, ok := r.log.tiles[t]
		r.log.mu.Unlock()
		if !ok {
			var err error
			if data, err = r.log.tile(r.ctx, t, maxTile); err != nil {
				return nil, err
			}
			if n := t.W * merkle.HashSize; len(data) < n {
				return nil, fmt.Errorf("log: %s: expected %d bytes, got %d", tilePath(t), n, len(data))
			} else {
				data = data[:n]
			}
		}
		all = append(all, data)
	}
	return all, nil
}

// SaveTiles keeps tiles that were checked. They are checked again at each use, so
// that a tile of another tree can only fail.
func (r tileReader) SaveTiles(tiles []merkle.Tile, data [][]byte) {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	if len(r.log.tiles)+len(tiles) > maxCached {
		clear(r.log.tiles)
	}
	for i, t := range tiles {
		r.log.tiles[t] = data[i]
	}
}

// tile reads a tile or bundle. A log may have removed a partial one when it had
// the whole one, which begins with the same bytes.
func (l *Log) tile(ctx context.Context, t merkle.Tile, limit int64) ([]byte, error) {
	data, err := l.src.read(ctx, tilePath(t), limit)
	if isMissing(err) && t.W != tileWidth {
		whole := t
		whole.W = tileWidth
		if data, err := l.src.read(ctx, tilePath(whole), limit); err == nil {
			return data, nil
		}
	}
	return data, err
}

// UnverifiedTiles reads the log's tiles for whoever knows a root to check them
// with, and is no use to anybody else.
func (l *Log) UnverifiedTiles(ctx context.Context) merkle.TileReader { return tileReader{ctx, l} }
