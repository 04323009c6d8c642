// Package cas is a directory of immutable blobs named by their SHA-256.
package cas

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/openclaw/clawfs/hashpipe"
)

// ErrNotFound means that the store has no blob of that digest.
var ErrNotFound = errors.New("blob not found")

// Store is a directory of blobs.
type Store struct{ root *os.Root }

// Open opens or creates the store in dir.
func Open(dir string) (*Store, error) { panic("unwritten") }

// Close releases the directory.
func (s *Store) Close() error { return s.root.Close() }

// Put stores what r gives to its end.
func (s *Store) Put(ctx context.Context, r io.Reader) (hashpipe.Measurement, error) {
	panic("unwritten")
}

// PutBytes stores b.
func (s *Store) PutBytes(b []byte) (hashpipe.Sum, error) { panic("unwritten") }

// ReadAll returns the verified blob of at most max bytes.
func (s *Store) ReadAll(d hashpipe.Digest, max int64) ([]byte, error) { panic("unwritten") }

// Open returns an unverified handle: the caller measures.
func (s *Store) Open(d hashpipe.Digest) (*os.File, error) { panic("unwritten") }

// Has reports whether a blob of that name exists; its bytes are not read.
func (s *Store) Has(d hashpipe.Digest) bool { panic("unwritten") }

// Remove removes the blob.
func (s *Store) Remove(d hashpipe.Digest) error { panic("unwritten") }
