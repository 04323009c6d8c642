// Package compare says in what two builds of one output differ, for the person
// who has to make the build reproducible.
//
// It reads both files as streams with fixed buffers; a header is read only up
// to maxHeader bytes and maxParts entries, and a file whose header is larger,
// damaged or unknown is compared as plain bytes. Nothing is normalised and
// nothing here decides: equal bytes are equal, any other pair is different,
// whatever the diagnosis says.
package compare

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
)

const (
	// bufferSize is the number of bytes of each file held at a time.
	bufferSize = 256 << 10
	// maxHeader bounds in bytes what is read of a safetensors, GGUF or zip
	// header. The largest safetensors header its own reader takes is 100 MB;
	// models of 1,000 tensors have about 100 kB.
	maxHeader = 16 << 20
	// maxParts bounds the tensors or members of one file.
	maxParts = 200_000
	// maxNamed is the number of differing parts that are named.
	maxNamed = 5
)

// Difference is what Files found. The zero value is two equal empty files.
type Difference struct {
	Name           string // output name as given
	Format         Format // what both files are; Bytes when they are not alike
	SizeA, SizeB   int64  // bytes
	First          int64  // offset of the first differing byte; -1 when equal
	Differing      int64  // differing bytes, and the tail that only one file has
	Part           string // what Parts counts: "tensor", "member", "line"; empty for plain bytes
	Parts          int    // parts that both or either file has
	DifferingParts int    // parts whose bytes differ or that only one file has
	Named          []string
	HeaderOnly     bool     // every part has equal bytes; only framing or metadata differ
	Notes          []string // findings beyond the counts, one sentence each

	zipTimes, metadataOrder, reordered bool
}

// Equal reports whether the two files had the same bytes.
func (d Difference) Equal() bool { return d.First < 0 || d.SizeA == 0 && d.SizeB == 0 }

// Files compares a (sizeA bytes) with b (sizeB bytes). It reads each file at
// most twice and stops when ctx ends. An error means that a file could not be
// read; a damaged format is not an error but a comparison of plain bytes.
func Files(ctx context.Context, a, b io.ReaderAt, sizeA, sizeB int64, name string) (Difference, error) {
	if sizeA < 0 || sizeB < 0 {
		return Difference{}, fmt.Errorf("comparing %q: negative size", name)
	}
	d := Difference{Name: name, Format: Bytes, SizeA: sizeA, SizeB: sizeB, First: -1}
	var err error
	d.First, d.Differing, err = diffBytes(ctx, a, b, 0, 0, min(sizeA, sizeB))
	if err != nil {
		return Difference{}, fmt.Errorf("comparing %q: %w", name, err)
	}
	if sizeA != sizeB {
		if d.First < 0 {
			d.First = min(sizeA, sizeB)
		}
		d.Differing += max(sizeA, sizeB) - min(sizeA, sizeB)
	}
	if d.First < 0 {
		return d, nil
	}
	format, err := alike(a, b, sizeA, sizeB, name)
	if err != nil {
		return Difference{}, fmt.Errorf("comparing %q: %w", name, err)
	}
	d.Format = format
	if err := d.describe(ctx, a, b); err != nil {
		return Difference{}, fmt.Errorf("comparing %q: %w", name, err)
	}
	return d, nil
}

func (d *Difference) describe(ctx context.Context, a, b io.ReaderAt) error {
	var parse func(io.ReaderAt, int64) (layout, error)
	switch d.Format {
	case Safetensors:
		parse = parseSafetensors
	case GGUF:
		parse = parseGGUF
	case TorchZip, NPZ, Zip:
		parse = parseZip
	case Text:
		return d.describeText(a, b)
	default:
		return nil
	}
	la, err := parse(a, d.SizeA)
	if err == nil {
		err = la.check(d.SizeA)
	}
	if err != nil {
		d.Notes = append(d.Notes, "the first build's "+string(d.Format)+" header is unreadable: "+err.Error())
		return nil
	}
	lb, err := parse(b, d.SizeB)
	if err == nil {
		err = lb.check(d.SizeB)
	}
	if err != nil {
		d.Notes = append(d.Notes, "the second build's "+string(d.Format)+" header is unreadable: "+err.Error())
		return nil
	}
	return d.describeParts(ctx, a, b, la, lb)
}

// diffBytes compares n bytes of a from offA with b from offB: the first
// differing offset relative to the start (-1 when equal) and the number of
// differing bytes.
func diffBytes(ctx context.Context, a, b io.ReaderAt, offA, offB, n int64) (first, count int64, err error) {
	first = -1
	bufA, bufB := make([]byte, min(n, bufferSize)), make([]byte, min(n, bufferSize))
	for done := int64(0); done < n; {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		m := min(n-done, bufferSize)
		if err := readFull(a, bufA[:m], offA+done); err != nil {
			return 0, 0, err
		}
		if err := readFull(b, bufB[:m], offB+done); err != nil {
			return 0, 0, err
		}
		if !bytes.Equal(bufA[:m], bufB[:m]) {
			for i := range m {
				if bufA[i] != bufB[i] {
					if first < 0 {
						first = done + i
					}
					count++
				}
			}
		}
		done += m
	}
	return first, count, nil
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
