package hashpipe

import (
	"fmt"
	"io"
)

// CheckedReader reads a content that others can change and returns only bytes
// whose unit hashed right: the hash is taken of the very buffer that is
// returned, and nothing is read again. It is safe for concurrent use if its
// source is.
type CheckedReader struct {
	src  io.ReaderAt
	tree *Tree
}

// NewCheckedReader returns a reader of src that checks every unit against t.
// With a nil or zero tree every read is an error.
func NewCheckedReader(src io.ReaderAt, t *Tree) *CheckedReader {
	return &CheckedReader{src, t.clone()}
}

// ReadUnit reads one unit into buf, whose capacity is at least UnitSize, and
// returns the checked bytes, a part of buf: UnitSize of them, fewer only for
// the last unit. Bytes that differ or are missing are a *UnitError; an error
// of the source is returned as it is. After any error buf holds zeros instead
// of what was read.
func (c *CheckedReader) ReadUnit(unit int64, buf []byte) ([]byte, error) {
	if cap(buf) < UnitSize {
		return nil, fmt.Errorf("buffer of %d bytes: a unit needs %d", cap(buf), UnitSize)
	}
	off, length, err := c.tree.span(unit)
	if err != nil {
		return nil, err
	}
	return c.read(unit, off, buf[:length])
}

// read fills data, which is as long as the unit.
func (c *CheckedReader) read(unit, off int64, data []byte) ([]byte, error) {
	n, err := readAt(c.src, data, off)
	if err == nil {
		err = c.tree.VerifyUnit(unit, data[:n])
	}
	if err != nil {
		clear(data)
		return nil, err
	}
	return data, nil
}

// ReadAt implements io.ReaderAt over the measured content: it ends where the
// content was measured to end. The n bytes before an error are checked bytes.
// While a unit is being read, p may hold bytes that are not checked yet.
func (c *CheckedReader) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, fmt.Errorf("reading at byte %d", off)
	}
	if !c.tree.measured() {
		return 0, errNoTree
	}
	for n < len(p) && off < c.tree.size {
		k, err := c.readPart(p[n:], off)
		if err != nil {
			return n, err
		}
		n += k
		off += int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readPart reads the bytes from off to the end of its unit, or fewer if p is
// shorter. A whole unit is read and hashed in p; a part is copied out of the
// buffer that was hashed.
func (c *CheckedReader) readPart(p []byte, off int64) (int, error) {
	unit := off / UnitSize
	start, length, err := c.tree.span(unit)
	if err != nil {
		return 0, err
	}
	if start == off && len(p) >= length {
		data, err := c.read(unit, start, p[:length])
		return len(data), err
	}
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	data, err := c.read(unit, start, buf[:length])
	if err != nil {
		return 0, err
	}
	return copy(p, data[off-start:]), nil
}
