// Package hashpipe separates a claim about bytes from a measurement of bytes.
//
// A Digest and a VerityDigest are claims: somebody wrote them down. A Sum and
// a Tree are measurements: this process read the bytes. The types have
// different field names, so Go converts none into another; a measurement is
// compared with a claim by Is, and the zero value of either never matches.
package hashpipe

import "errors"

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
