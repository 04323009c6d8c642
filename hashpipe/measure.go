package hashpipe

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// Measurement is what one pass over a content measured. The zero Measurement
// measured nothing and matches nothing.
type Measurement struct {
	sum  Sum
	tree *Tree
}

// Sum returns the SHA-256 of the content.
func (m Measurement) Sum() Sum { return m.sum }

// Size returns the size of the content in bytes.
func (m Measurement) Size() int64 { return m.tree.Size() }

// Tree returns the fs-verity tree of the content; nil if m is zero. Each call
// returns another pointer: what is written through it does not reach m.
func (m Measurement) Tree() *Tree { return m.tree.clone() }

// SumBytes measures b.
func SumBytes(b []byte) Sum {
	h := getHasher()
	defer hashers.Put(h)
	h.write(b)
	return h.measured()
}

// SumReader measures r to its end by SHA-256 alone, and returns the number of
// bytes beside the sum. Context and progress are those of Measure.
func SumReader(ctx context.Context, r io.Reader, progress func(bytes int64)) (Sum, int64, error) {
	h := getHasher()
	defer hashers.Put(h)
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	var size int64
	for {
		// Half a unit stays in a second-level cache between read and hash.
		n, end, err := fill(ctx, r, buf[:UnitSize/2])
		if err != nil {
			return Sum{}, 0, err
		}
		h.write(buf[:n])
		if size += int64(n); size > MaxSize {
			return Sum{}, 0, errTooLong
		}
		report(progress, n)
		if end {
			return h.measured(), size, nil
		}
	}
}

// Measure measures r to its end in one pass: both hashes see the same memory.
// progress, if not nil, is called on the caller's goroutine with the number of
// bytes that were added. ctx is looked at before each Read; a Read that blocks
// is not interrupted. A content longer than MaxSize is an error. After an
// error the Measurement is zero.
func Measure(ctx context.Context, r io.Reader, progress func(bytes int64)) (Measurement, error) {
	if twoLanes {
		return measureInLanes(ctx, r, progress)
	}
	stream := getHasher()
	defer hashers.Put(stream)
	t := startTree()
	defer t.stop()
	var size int64
	for {
		buf := t.buffer()
		n, end, err := fill(ctx, r, buf[:])
		if err != nil {
			return Measurement{}, err
		}
		if size += int64(n); size > MaxSize {
			return Measurement{}, errTooLong
		}
		t.hash(buf, n, end)
		stream.write(buf[:n])
		report(progress, n)
		if end {
			return Measurement{stream.measured(), newTree(size, t.stop())}, nil
		}
	}
}

// measureInLanes is Measure on one core: the tree costs next to nothing beside
// the stream.
func measureInLanes(ctx context.Context, r io.Reader, progress func(bytes int64)) (Measurement, error) {
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	u := unitHashers.Get().(*unitHasher)
	defer unitHashers.Put(u)
	var (
		size   int64
		stream = fresh
		units  [][hashSize]byte
	)
	for {
		n, end, err := fill(ctx, r, buf[:])
		if err != nil {
			return Measurement{}, err
		}
		if size += int64(n); size > MaxSize {
			return Measurement{}, errTooLong
		}
		done := hashBoth(&stream, u.block[:], buf[:n])
		if n > 0 {
			units = append(units, u.rest(buf[:n], done, size <= BlockSize))
		}
		report(progress, n)
		if end {
			return Measurement{stream.end(buf[done:n], size), newTree(size, units)}, nil
		}
	}
}

// MeasureFile measures exactly size bytes of r, from byte 0, as Measure does.
// A content that turns out shorter or longer is ErrChanged: the reader sized
// it, and somebody changed it since.
func MeasureFile(ctx context.Context, r io.ReaderAt, size int64, progress func(bytes int64)) (Measurement, error) {
	if err := checkSize(size); err != nil {
		return Measurement{}, err
	}
	// One byte more, so that a longer content shows.
	m, err := Measure(ctx, io.NewSectionReader(r, 0, size+1), progress)
	if err != nil {
		return Measurement{}, err
	}
	if m.Size() < size {
		return Measurement{}, fmt.Errorf("%w: expected %d bytes, got %d", ErrChanged, size, m.Size())
	}
	if m.Size() > size {
		return Measurement{}, fmt.Errorf("%w: expected %d bytes, got more", ErrChanged, size)
	}
	return m, nil
}

var errTooLong = fmt.Errorf("content is longer than %d bytes", int64(MaxSize))

func checkSize(size int64) error {
	if size < 0 {
		return fmt.Errorf("size %d is negative", size)
	}
	if size > MaxSize {
		return errTooLong
	}
	return nil
}

func report(progress func(int64), n int) {
	if progress != nil && n > 0 {
		progress(int64(n))
	}
}

type buffer [UnitSize]byte

var buffers = sync.Pool{New: func() any { return new(buffer) }}

// maxIdleReads bounds the Reads in a row that return nothing.
const maxIdleReads = 100

// fill reads until buf is full or r ends, and says which.
func fill(ctx context.Context, r io.Reader, buf []byte) (n int, end bool, err error) {
	for idle := 0; n < len(buf); {
		if err := ctx.Err(); err != nil {
			return n, false, context.Cause(ctx)
		}
		k, err := r.Read(buf[n:])
		if k < 0 || k > len(buf)-n {
			return n, false, fmt.Errorf("reader returned %d bytes for a buffer of %d", k, len(buf)-n)
		}
		n += k
		if err == io.EOF {
			return n, true, nil
		}
		if err != nil {
			return n, false, err
		}
		if idle++; k > 0 {
			idle = 0
		}
		if idle == maxIdleReads {
			return n, false, io.ErrNoProgress
		}
	}
	return n, false, nil
}
