// Package hashpipe separates a claim about bytes from a measurement of bytes.
//
// A Digest and a VerityDigest are claims: somebody wrote them down. A Sum and
// a Tree are measurements: this process read the bytes. The types have
// different field names, so Go converts none into another; a measurement is
// compared with a claim by Is, and the zero value of either never matches.
// Nothing can be decoded into a measurement.
//
// # Formats
//
// The text of either digest is 64 lower-case hex digits and nothing else: no
// prefix, no upper case, no space, not all zero.
//
// A Digest is the SHA-256 (FIPS 180-4) of the whole content.
//
// A VerityDigest is the fs-verity file digest, version 1, of the Linux kernel
// (Documentation/filesystems/fsverity.rst) with SHA-256, blocks of 4096 bytes
// and no salt: what `fsverity digest FILE` prints without options, and what
// FS_IOC_MEASURE_VERITY returns for a file enabled with these parameters.
//
//   - The content is cut into blocks of 4096 bytes; the last is padded with
//     zeros. The SHA-256 hashes of the blocks are written one behind the
//     other, 128 to a hash block of 4096 bytes, the last of which is padded
//     with zeros. These hash blocks are level 1.
//
//   - As long as a level has more than one hash, its hashes are written and
//     hashed in the same way into the next. The one hash that is left is the
//     root. So a content of one block has the hash of that block as its root,
//     and an empty content has 32 zero bytes.
//
// The digest is the SHA-256 of this descriptor of 256 bytes:
//
//	offset  size
//	     0     1  version: 1
//	     1     1  hash algorithm: 1, SHA-256
//	     2     1  log2 of the block size: 12
//	     3     1  salt size: 0
//	     4     4  zero
//	     8     8  size of the content in bytes, little-endian
//	    16    64  root hash: 32 bytes, then 32 zero bytes
//	    80    32  salt: zero
//	   112   144  zero
//
// The size is in the descriptor, so two contents of different length never
// share a digest even if they share a root.
//
// A unit is the span of one level-1 hash block: UnitSize bytes of the content,
// fewer for the last, and its hash is the hash of that block. (A content of at
// most one block has no level 1; the hash of its only unit is its root.) A
// Tree keeps the hashes of the units and the digest over them, so any unit can
// be checked alone, on any core, in any order.
//
// # One pass
//
// Measure computes both hashes of one content in one pass over the same
// memory, so that storage which answers differently the second time cannot
// give a Sum of one content and a Tree of another. A Digest and a VerityDigest
// that were measured together and are signed together can stand for each other
// from then on: a content that matches one and not the other is a collision of
// SHA-256.
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
