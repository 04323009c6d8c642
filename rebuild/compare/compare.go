// Package compare says in what two builds of one output differ, for the person
// who has to make the build reproducible.
//
// It reads both files as streams with fixed buffers: once as bytes, and
// again by tensors, members or lines if both are of a format that it
// knows. A header is read only up to maxHeader bytes and maxParts entries, and
// what a zip member inflates to only up to maxInflate bytes; a file whose header
// is larger, damaged or unknown is compared as plain bytes. Nothing is
// normalised and nothing here decides: equal bytes are equal, any other pair is
// different, whatever the diagnosis says.
//
// Beside single files it compares what the stages of two builds left (Diverge)
// and what surrounded the two builds (Delta).
package compare

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
)

const (
	// bufferSize is the number of bytes of each file held at a time, a multiple
	// of every float's width.
	bufferSize = 256 << 10
	// maxHeader bounds in bytes what is read of a header or directory. The
	// largest safetensors header its own reader takes is 100 MB; models of
	// 1,000 tensors have about 100 kB.
	maxHeader = 16 << 20
	// maxParts bounds the tensors or members of one file.
	maxParts = 200_000
	// maxNamed is the number of differing parts, or of differing entries of the
	// metadata, that are named.
	maxNamed = 5
	// maxInflate bounds in bytes what is inflated of each file.
	maxInflate = 256 << 20
)

// Difference is what Files found. The zero value is two equal empty files.
type Difference struct {
	Name             string // output name as given
	Format           Format // what both files are; Bytes when they are not alike
	SizeA, SizeB     int64  // bytes
	First            int64  // offset of the first differing byte; -1 when equal
	Differing        int64  // differing bytes, and the tail that only one file has
	Compared         int64  // bytes of the smaller file that were looked at before the time was up
	Part             string // what Parts counts: "tensor", "member", "line"; empty for plain bytes
	Parts            int    // parts that both or either file has
	DifferingParts   int    // parts whose bytes differ or that only one file has
	Named            []string
	Tensors          int      // of the parts, those that hold a tensor; 0 when nobody knows
	DifferingTensors int      // of those
	HeaderOnly       bool     // every part has equal bytes; only framing or metadata differ
	Floats           []Floats // how far apart the tensors' values are, one for each data type
	Notes            []string // findings beyond the counts, one sentence each

	found   finding
	regions []region
}

// finding is what Hints needs and String has in words.
type finding struct {
	zipTimes, reorderedHeader, reorderedLines, recompressed bool
	time, host, workDir, uid, uuid                          bool // by Trace
	gzipTime, tarTime                                       bool
}

// Equal reports whether the two files had the same bytes.
func (d Difference) Equal() bool { return d.First < 0 || d.SizeA == 0 && d.SizeB == 0 }

// Complete reports whether all bytes were compared. Else ctx's deadline came
// first, and the counts are of what was seen until then.
func (d Difference) Complete() bool { return d.Compared == min(d.SizeA, d.SizeB) }

// errTime ends a comparison whose time is up, with what it has.
var errTime = errors.New("the time for the comparison is up")

// Files compares a (sizeA bytes) with b (sizeB bytes). It reads each file at
// most twice, text four times, apart from headers. When the deadline of ctx
// comes after a difference was found, the answer says what was seen until then;
// when it comes before, and when ctx is cancelled, that is an error, because
// nothing is known. Any other error means that a file could not be read; a
// damaged format is not an error but a comparison of plain bytes.
func Files(ctx context.Context, a, b io.ReaderAt, sizeA, sizeB int64, name string) (Difference, error) {
	if sizeA < 0 || sizeB < 0 {
		return Difference{}, fmt.Errorf("comparing %q: negative size", name)
	}
	d := Difference{Name: name, Format: Bytes, SizeA: sizeA, SizeB: sizeB, First: -1}
	c := &comparison{ctx: ctx, a: a, b: b, d: &d, inflate: maxInflate}
	if err := c.run(); err != nil {
		if !errors.Is(err, errTime) || d.First < 0 {
			return Difference{}, fmt.Errorf("comparing %q: %w", name, err)
		}
		d.Notes = append(d.Notes, "the time for the comparison was up: more may differ than was counted")
	}
	return d, nil
}

// comparison is one call of Files.
type comparison struct {
	ctx        context.Context
	a, b       io.ReaderAt
	bufA, bufB []byte
	d          *Difference
	inflate    int64 // bytes of each file that may still be inflated
	inflaters  [2]io.ReadCloser
}

func (c *comparison) run() error {
	d := c.d
	var err error
	d.First, d.Differing, d.Compared, err = c.diff(0, 0, min(d.SizeA, d.SizeB), nil)
	if err != nil {
		return err
	}
	if d.SizeA != d.SizeB {
		if d.First < 0 {
			d.First = min(d.SizeA, d.SizeB)
		}
		d.Differing += max(d.SizeA, d.SizeB) - min(d.SizeA, d.SizeB)
		d.note(region{d.First, d.First, min(max(d.SizeA, d.SizeB)-d.First, maxRegion)})
	}
	if d.First < 0 {
		return nil
	}
	if d.Format, err = alike(c.a, c.b, d.SizeA, d.SizeB, d.Name); err != nil {
		return err
	}
	return c.describe()
}

// describe looks at the parts of two files of one format.
func (c *comparison) describe() error {
	d := c.d
	var parse func(io.ReaderAt, int64) (layout, error)
	switch d.Format {
	case Safetensors:
		parse = parseSafetensors
	case GGUF:
		parse = parseGGUF
	case ONNX:
		parse = parseONNX
	case NPY:
		parse = parseNPY
	case TorchZip, NPZ, Zip:
		parse = parseZip
	case Text, XGBoostJSON:
		return c.describeText()
	case Gzip, Tar:
		return c.describeTimes()
	default:
		return nil
	}
	var layouts [2]layout
	for i, f := range []struct {
		which string
		r     io.ReaderAt
		size  int64
	}{{"first", c.a, d.SizeA}, {"second", c.b, d.SizeB}} {
		if err := c.alive(); err != nil {
			return err
		}
		l, err := parse(f.r, f.size)
		if err == nil {
			err = l.check(f.size)
		}
		if err != nil {
			d.Notes = append(d.Notes, fmt.Sprintf("the %s build's %s header is unreadable: %s", f.which, d.Format, shorten(err.Error())))
			return nil
		}
		layouts[i] = l
	}
	return c.describeParts(layouts[0], layouts[1])
}

// alive is nil while there is time.
func (c *comparison) alive() error {
	err := c.ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", errTime, err)
	}
	return err
}

// diff compares n bytes of a from offA with b from offB: the first differing
// offset relative to the start (-1 when equal), the number of differing bytes
// and how many bytes were compared. On errTime these are of what was seen.
// visit, if not nil, gets each pair of buffers that differ.
func (c *comparison) diff(offA, offB, n int64, visit visitor) (first, count, done int64, err error) {
	first = -1
	c.room(n)
	for done < n {
		if err := c.alive(); err != nil {
			return first, count, done, err
		}
		a, b := c.bufA[:min(n-done, bufferSize)], c.bufB[:min(n-done, bufferSize)]
		if err := readFull(c.a, a, offA+done); err != nil {
			return first, count, done, err
		}
		if err := readFull(c.b, b, offB+done); err != nil {
			return first, count, done, err
		}
		if at, differing := c.d.mark(a, b, offA+done, offB+done); at >= 0 {
			if first < 0 {
				first = done + at
			}
			count += differing
			if visit != nil {
				visit(a, b, done)
			}
		}
		done += int64(len(a))
	}
	return first, count, done, nil
}

// visitor gets two buffers of equal length that differ, and where they lie.
type visitor func(a, b []byte, at int64)

// room sees to buffers for n bytes. They grow only for small files.
func (c *comparison) room(n int64) {
	if n = min(n, bufferSize); int64(len(c.bufA)) < n {
		c.bufA, c.bufB = make([]byte, n), make([]byte, n)
	}
}

// readFull fills p from off. ReadAt may answer io.EOF together with all bytes.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%d bytes at offset %d: %w", len(p), off, err)
}

const (
	// maxRegions and maxRegion bound what is remembered of where files differ:
	// enough to find a time or a name in it.
	maxRegions = 64
	maxRegion  = 1 << 10
	// regionGap joins differences that lie so close together: two times differ
	// in their last digits only.
	regionGap = 32
)

// region is a stretch of both files in which they differ, with its bounds.
type region struct{ a, b, n int64 }

// mark compares two buffers of equal length that lie at offA and offB: the
// first differing offset in them (-1 when equal) and how many bytes differ. It
// remembers where.
func (d *Difference) mark(a, b []byte, offA, offB int64) (first, count int64) {
	if bytes.Equal(a, b) {
		return -1, 0
	}
	first = -1
	last := int64(-1) // where the region that grows ends, in this buffer
	for i := range a {
		if a[i] == b[i] {
			continue
		}
		at := int64(i)
		if first < 0 {
			first = at
		}
		count++
		if at < last {
			continue
		}
		if r := len(d.regions) - 1; last >= 0 && at-last < regionGap && d.regions[r].n < maxRegion {
			last = at + 1
			d.regions[r].n = offA + last - d.regions[r].a
			continue
		}
		if !d.note(region{offA + at, offB + at, 1}) {
			last = int64(len(a)) // no room: count only
			continue
		}
		last = at + 1
	}
	return first, count
}

// note remembers a region, if there is room.
func (d *Difference) note(r region) bool {
	if len(d.regions) == maxRegions {
		return false
	}
	d.regions = append(d.regions, r)
	return true
}
