// Package hashpipe separates a claim about bytes from a measurement of bytes.
//
// A Digest and a VerityDigest are claims: somebody wrote them down. A Sum and
// a Tree are measurements: this process read the bytes. The types have
// different field names, so Go converts none into another; a measurement is
// compared with a claim by Is, and the zero value of either never matches.
package hashpipe

const (
	// BlockSize is the fs-verity block size in bytes.
	BlockSize = 4096
	// UnitSize is the span in bytes of one level-1 hash block of the fs-verity
	// tree: 128 hashes of 4096-byte blocks. It is the unit of checked reads.
	UnitSize = 128 * BlockSize
)

// Digest is a claimed SHA-256 of a whole content. The zero Digest is no claim
// and matches nothing.
type Digest struct{ claim [32]byte }

// Sum is a measured SHA-256 of a whole content; only this package makes one.
type Sum struct{ measured [32]byte }

// VerityDigest is a claimed fs-verity v1 digest (SHA-256, 4096-byte blocks,
// no salt), as `fsverity digest` prints it. The zero value matches nothing.
type VerityDigest struct{ verity [32]byte }
