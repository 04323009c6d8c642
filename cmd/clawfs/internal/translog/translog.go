// Package translog reads a transparency log: its checkpoint, its tiles and the
// envelopes behind its leaves, over HTTP or from a directory. Package logserver
// is the other side.
//
// The layout is that of C2SP tlog-tiles (https://c2sp.org/tlog-tiles), below one
// root:
//
//	checkpoint                      signed by the log and a quorum of its witnesses
//	tile/<level>/<index>[.p/<w>]    hashes, 256 to a tile
//	tile/entries/<index>[.p/<w>]    leaves (package tlog), 256 to a bundle
//	blob/sha256/<hex>               the envelope whose payload has that SHA-256
//
// A log that takes entries answers POST /add, whose body is a DSSE envelope, with
// the text of a C2SP tlog-proof. The other answers are one line of text:
//
//	400  not an envelope, or not what its predicate type says
//	403  the log's own list does not let this signer add this
//	409  a store's head that goes back, or is of another history
//	413  longer than dsse.MaxEnvelope
//	503  not published, because the quorum of witnesses is missing or the log is
//	     busy or ending; the same request may be made again
//
// Nothing that arrives is believed. A checkpoint is checked by a tlog.Policy;
// every hash and every leaf is checked against the root of that checkpoint
// (golang.org/x/mod/sumdb/tlog, TileHashReader); an envelope by the digest in
// its leaf.
package translog

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	tileHeight = 8
	// tileWidth is how many hashes a tile and how many leaves a bundle has.
	tileWidth = 1 << tileHeight
	// maxTile bounds a tile in bytes.
	maxTile = tileWidth * merkle.HashSize
	// maxBundle bounds a bundle of leaves, each after two bytes of its length.
	maxBundle = tileWidth * (2 + tlog.MaxLeaf)

	// CheckpointPath is where the checkpoint of a log lies below its root.
	CheckpointPath = "checkpoint"
	blobPrefix     = "blob/sha256/"
)

// ErrNotLogged means that a log of that size does not have the leaf.
var ErrNotLogged = errors.New("the log does not have this entry")

// BlobPath is where the envelope of a payload lies below the root of a log.
func BlobPath(payload hashpipe.Digest) string { return blobPrefix + payload.String() }

// tilePath is where a tile of hashes, or for level -1 a bundle of leaves, lies
// below the root of a log. Unlike the checksum database of Go, tlog-tiles has no
// height in it.
func tilePath(t merkle.Tile) string {
	level := "entries"
	if t.L >= 0 {
		level = fmt.Sprint(t.L)
	}
	path := merkle.Tile{H: t.H, L: 0, N: t.N, W: t.W}.Path()
	return "tile/" + level + path[len("tile/8/0"):]
}

// PendingError says that a log has not published an entry yet. The same request
// may be made again.
type PendingError struct {
	Detail     string // of the log, not to be trusted
	RetryAfter time.Duration
}

// Error returns the log's words.
func (e *PendingError) Error() string { return "the log has not published it: " + e.Detail }

// RejectedError says that a log does not take an envelope.
type RejectedError struct {
	Status int
	Detail string // of the log, not to be trusted
}

// Error returns the log's words.
func (e *RejectedError) Error() string {
	return fmt.Sprintf("the log refuses it (%d %s): %s", e.Status, http.StatusText(e.Status), e.Detail)
}
