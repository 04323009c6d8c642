// Package hashpipe separates a claim about bytes from a measurement of bytes.
//
// A Digest and a VerityDigest are claims: somebody wrote them down. A Sum and
// a Tree are measurements: this process read the bytes. The types have
// different field names, so Go converts none into another; a measurement is
// compared with a claim by Is, and the zero value of either never matches.
package hashpipe

import (
	"context"
	"errors"
	"io"
)

const (
	// BlockSize is the fs-verity block size in bytes.
	BlockSize = 4096
	// UnitSize is the span in bytes of one level-1 hash block of the fs-verity
	// tree: 128 hashes of 4096-byte blocks. It is the unit of checked reads.
	UnitSize = 128 * BlockSize
	// MaxSize bounds a content in bytes: 4 TiB, whose tree holds 256 MiB of
	// unit hashes. A sparse file can claim any size for nothing.
	MaxSize = 4 << 40
)

// ErrChanged means that a content is not the one that was sized or measured:
// it is shorter, longer, or a unit differs.
var ErrChanged = errors.New("content changed")

// SumBytes measures b.
func SumBytes(b []byte) Sum { panic("unwritten") }

// SumReader measures r to its end by SHA-256 alone, at half the cost of
// Measure, and returns the number of bytes beside the sum.
func SumReader(ctx context.Context, r io.Reader, progress func(bytes int64)) (Sum, int64, error) {
	panic("unwritten")
}

// Tree is the measured fs-verity tree of a content, kept down to its units.
type Tree struct {
	size int64
}

// Size returns the size of the content in bytes.
func (t *Tree) Size() int64 { return t.size }

// Units returns the number of units; an empty content has none.
func (t *Tree) Units() int64 { panic("unwritten") }

// Is reports whether the measured content is the claimed one.
func (t *Tree) Is(d VerityDigest) bool { panic("unwritten") }

// Claim writes the measurement down.
func (t *Tree) Claim() VerityDigest { panic("unwritten") }

// VerifyUnit returns nil only if data is exactly the bytes of the unit.
func (t *Tree) VerifyUnit(unit int64, data []byte) error { panic("unwritten") }

// MeasureTree measures size bytes of r on all workers.
func MeasureTree(ctx context.Context, r io.ReaderAt, size int64, workers int, progress func(bytes int64)) (*Tree, error) {
	panic("unwritten")
}

// Measurement is what one pass over a content measured.
type Measurement struct {
	sum  Sum
	tree *Tree
}

// Sum returns the SHA-256 of the content.
func (m Measurement) Sum() Sum { return m.sum }

// Size returns the size of the content in bytes.
func (m Measurement) Size() int64 { panic("unwritten") }

// Tree returns the fs-verity tree of the content.
func (m Measurement) Tree() *Tree { return m.tree }

// Measure measures r to its end.
func Measure(ctx context.Context, r io.Reader, progress func(bytes int64)) (Measurement, error) {
	panic("unwritten")
}

// MeasureFile measures exactly size bytes of r.
func MeasureFile(ctx context.Context, r io.ReaderAt, size int64, progress func(bytes int64)) (Measurement, error) {
	panic("unwritten")
}

// CheckedReader returns only bytes whose unit hashed right.
type CheckedReader struct {
	src  io.ReaderAt
	tree *Tree
}

// NewCheckedReader returns a reader of src that checks every unit against t.
func NewCheckedReader(src io.ReaderAt, t *Tree) *CheckedReader { panic("unwritten") }

// ReadUnit reads and checks one unit into buf.
func (c *CheckedReader) ReadUnit(unit int64, buf []byte) ([]byte, error) { panic("unwritten") }

// ReadAt implements io.ReaderAt.
func (c *CheckedReader) ReadAt(p []byte, off int64) (int, error) { panic("unwritten") }

// UnitError reports a unit that is not the measured one.
type UnitError struct {
	Unit   int64 // number of the unit, from 0
	Offset int64 // first byte of the unit in the content
	Length int   // bytes the unit has in the measured content
	Read   int   // bytes that were there; the hashes are set only if it equals Length
	Want   [32]byte
	Got    [32]byte
}

func (e *UnitError) Error() string { panic("unwritten") }

// Unwrap returns ErrChanged.
func (e *UnitError) Unwrap() error { return ErrChanged }
