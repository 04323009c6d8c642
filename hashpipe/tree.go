package hashpipe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

const (
	hashSize = 32
	// descriptorSize is sizeof(struct fsverity_descriptor) in bytes.
	descriptorSize = 256
)

// Tree is the measured fs-verity tree of a content, kept down to the hashes of
// its units: 32 bytes for each 512 KiB. It is immutable and safe for
// concurrent use; only this package fills one. A nil or zero Tree matches
// nothing and verifies nothing.
type Tree struct {
	size   int64
	units  [][hashSize]byte
	digest [hashSize]byte // of the descriptor: it binds root and size; zero only in the zero Tree
}

// clone keeps a Tree out of reach of who holds a pointer to it: Go lets anybody
// assign a whole struct. The hashes of the units are shared, because only this
// package can reach them.
func (t *Tree) clone() *Tree {
	if t == nil {
		return nil
	}
	c := *t
	return &c
}

// Size returns the size of the content in bytes.
func (t *Tree) Size() int64 {
	if t == nil {
		return 0
	}
	return t.size
}

// Units returns the number of units; an empty content has none.
func (t *Tree) Units() int64 { return unitsOf(t.Size()) }

// Is reports whether the measured content is the claimed one, size included.
// It is false when either side is zero.
func (t *Tree) Is(d VerityDigest) bool {
	return t.measured() && t.digest == d.verity
}

// Claim writes the measurement down; the nil or zero Tree gives the zero
// VerityDigest.
func (t *Tree) Claim() VerityDigest {
	if !t.measured() {
		return VerityDigest{}
	}
	return VerityDigest{t.digest}
}

func (t *Tree) measured() bool { return t != nil && t.digest != [hashSize]byte{} }

// Hashes returns the hashes of the units, 32 bytes each, for RecallTree.
func (t *Tree) Hashes() []byte {
	if !t.measured() {
		return nil
	}
	b := make([]byte, 0, len(t.units)*hashSize)
	for _, u := range t.units {
		b = append(b, u[:]...)
	}
	return b
}

// RecallTree returns the tree of a content that somebody measured, from the hashes
// of its units. They need no trust: unless they fold up to the claimed digest,
// which binds the size too, the result is an error. Nothing was measured here. The
// tree says what the bytes of the claimed content are, and that some file has them
// only a CheckedReader over it can say.
func RecallTree(size int64, hashes []byte, claim VerityDigest) (*Tree, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	if int64(len(hashes)) != unitsOf(size)*hashSize {
		return nil, fmt.Errorf("hashes of units: %d bytes for a content of %d bytes", len(hashes), size)
	}
	units := make([][hashSize]byte, unitsOf(size))
	for i := range units {
		units[i] = [hashSize]byte(hashes[i*hashSize:])
	}
	t := newTree(size, units)
	if !t.Is(claim) {
		return nil, fmt.Errorf("hashes of units: expected a tree of fs-verity sha256:%s, got sha256:%s", claim, t.Claim())
	}
	return t, nil
}

var errNoTree = errors.New("no measured tree to check against")

// VerifyUnit returns nil only if data is exactly the bytes of the unit: all of
// them, and no more. A mismatch is a *UnitError. Calls on one Tree may run on
// all cores at once.
func (t *Tree) VerifyUnit(unit int64, data []byte) error {
	off, length, err := t.span(unit)
	if err != nil {
		return err
	}
	if len(data) != length {
		return &UnitError{Unit: unit, Offset: off, Length: length, Read: len(data)}
	}
	u := unitHashers.Get().(*unitHasher)
	defer unitHashers.Put(u)
	if got := u.sum(data, t.size <= BlockSize); got != t.units[unit] {
		return &UnitError{Unit: unit, Offset: off, Length: length, Read: length, Want: t.units[unit], Got: got}
	}
	return nil
}

// span returns where a unit lies in the content.
func (t *Tree) span(unit int64) (off int64, length int, err error) {
	if !t.measured() {
		return 0, 0, errNoTree
	}
	if unit < 0 || unit >= int64(len(t.units)) {
		return 0, 0, fmt.Errorf("unit %d: the content has %d units", unit, len(t.units))
	}
	off = unit * UnitSize
	return off, int(min(UnitSize, t.size-off)), nil
}

// UnitError reports a unit that is not the measured one.
type UnitError struct {
	Unit   int64          // number of the unit, from 0
	Offset int64          // first byte of the unit in the content
	Length int            // bytes the unit has in the measured content
	Read   int            // bytes that were there; the hashes are set only if this is Length
	Want   [hashSize]byte // hash of the measured unit (a level-1 fs-verity hash block)
	Got    [hashSize]byte // hash of what was there
}

func (e *UnitError) Error() string {
	if e.Read != e.Length {
		return fmt.Sprintf("unit %d at byte %d: expected %d bytes, got %d", e.Unit, e.Offset, e.Length, e.Read)
	}
	return fmt.Sprintf("unit %d at byte %d: expected hash %x, got %x", e.Unit, e.Offset, e.Want, e.Got)
}

// Unwrap returns ErrChanged.
func (e *UnitError) Unwrap() error { return ErrChanged }

// unitsOf returns the number of units of a content of size bytes.
func unitsOf(size int64) int64 { return (size + UnitSize - 1) / UnitSize }

// newTree folds the unit hashes of a content of size bytes up to its digest.
// It keeps units.
func newTree(size int64, units [][hashSize]byte) *Tree {
	h := getHasher()
	defer hashers.Put(h)
	level := units
	for len(level) > 1 {
		var next [][hashSize]byte
		for len(level) > 0 {
			n := min(len(level), BlockSize/hashSize)
			h.reset()
			for i := range n {
				h.write(level[i][:])
			}
			h.write(zeros[n*hashSize:])
			var sum [hashSize]byte
			h.sum(sum[:])
			next = append(next, sum)
			level = level[n:]
		}
		level = next
	}
	var root [hashSize]byte // stays zero for an empty content
	if len(level) == 1 {
		root = level[0]
	}
	t := &Tree{size: size, units: units}
	d := descriptor(size, root)
	h.reset()
	h.write(d[:])
	h.sum(t.digest[:])
	return t
}

// descriptor lays out struct fsverity_descriptor; see the package comment.
func descriptor(size int64, root [hashSize]byte) (d [descriptorSize]byte) {
	d[0] = 1  // version
	d[1] = 1  // hash_algorithm: FS_VERITY_HASH_ALG_SHA256
	d[2] = 12 // log_blocksize
	binary.LittleEndian.PutUint64(d[8:], uint64(size))
	copy(d[16:], root[:])
	return d
}

// zeros pads the last block of a content and of each level.
var zeros [BlockSize]byte

// unitHasher hashes one unit at a time; it is not for concurrent use.
type unitHasher struct {
	h     *hasher
	block [BlockSize]byte // the level-1 hash block
	out   [hashSize]byte
}

var unitHashers = sync.Pool{New: func() any { return &unitHasher{h: newHasher()} }}

// sum returns the hash of the level-1 block above data, at most UnitSize bytes
// of which only the last block of a content may be partial. whole says that
// data is all of a content of at most one block: such a content has no level 1
// and its root is the hash of the block itself.
func (u *unitHasher) sum(data []byte, whole bool) [hashSize]byte {
	done := 0
	if twoLanes {
		done = hashPairs(u.block[:], data)
	}
	return u.rest(data, done, whole)
}

// rest is sum for a unit the hashes of whose first done bytes are in u.block.
func (u *unitHasher) rest(data []byte, done int, whole bool) [hashSize]byte {
	data = data[done:]
	end := done / BlockSize * hashSize
	for len(data) > 0 {
		n := min(len(data), BlockSize)
		u.h.reset()
		u.h.write(data[:n])
		if n < BlockSize {
			u.h.write(zeros[n:])
		}
		u.h.sum(u.block[end : end+hashSize])
		end += hashSize
		data = data[n:]
	}
	if whole {
		return [hashSize]byte(u.block[:hashSize])
	}
	clear(u.block[end:])
	u.h.reset()
	u.h.write(u.block[:])
	u.h.sum(u.out[:])
	return u.out
}
