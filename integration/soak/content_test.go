package soak

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
)

// blockSize is the grain in which contents are made and compared, in bytes.
const blockSize = 64 << 10

// content is what a file should hold. Reader and writer make it from its number
// alone: each block from a stream of its own, so that a reader can compare any
// part, and no two blocks of any two contents are alike.
type content struct {
	ID   int64
	Size int64
}

// block writes the content's i-th block into b and returns the part that is in
// the content.
func (c content) block(i int64, b *[blockSize]byte) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(c.ID))
	binary.LittleEndian.PutUint64(seed[8:], uint64(i))
	copy(seed[16:], "clawfs soak")
	rand.NewChaCha8(seed).Read(b[:])
	return b[:min(blockSize, c.Size-i*blockSize)]
}

// differs compares got, which was read at off, and says where it differs from
// the content; "" if it does not.
func (c content) differs(off int64, got []byte) string {
	var b [blockSize]byte
	if off+int64(len(got)) > c.Size {
		return fmt.Sprintf("%d bytes at %d of a content of %d", len(got), off, c.Size)
	}
	for len(got) > 0 {
		i := off / blockSize
		want := c.block(i, &b)[off%blockSize:]
		n := min(len(got), len(want))
		if !bytes.Equal(got[:n], want[:n]) {
			for k := range n {
				if got[k] != want[k] {
					return fmt.Sprintf("byte %d of content %d is %#02x, want %#02x", off+int64(k), c.ID, got[k], want[k])
				}
			}
		}
		got, off = got[n:], off+int64(n)
	}
	return ""
}

// WriteTo writes the whole content.
func (c content) WriteTo(w io.Writer) (n int64, err error) {
	var b [blockSize]byte
	for i := int64(0); i*blockSize < c.Size; i++ {
		k, err := w.Write(c.block(i, &b))
		if n += int64(k); err != nil {
			return n, err
		}
	}
	return n, nil
}

// reader is WriteTo the other way round.
func (c content) reader() io.Reader {
	r, w := io.Pipe()
	go func() {
		_, err := c.WriteTo(w)
		w.CloseWithError(err)
	}()
	return r
}
