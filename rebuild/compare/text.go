package compare

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"io"
)

// maxSums bounds in bytes the files whose lines are looked up in any order:
// the hash of a line costs as much as reading 100 bytes.
const maxSums = 64 << 20

// describeText compares by lines: what is left between the common first and
// the common last lines. It streams; the length of lines and of files does not
// matter.
func (c *comparison) describeText() error {
	d := c.d
	top, startA, err := c.lines(c.a, 0, d.First)
	if err != nil {
		return err
	}
	// The bytes before First are common, so the line begins at one offset in both.
	suffix, err := c.suffix()
	if err != nil {
		return err
	}
	fromA, fromB := d.SizeA-suffix, d.SizeB-suffix
	var all [2]struct{ lines, tail int64 } // tail: lines that begin inside the common suffix
	var sums [2][2]uint64
	seeds := [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}
	for i, f := range []struct {
		r          io.ReaderAt
		from, size int64
	}{{c.a, fromA, d.SizeA}, {c.b, fromB, d.SizeB}} {
		before, last, err := c.lines(f.r, startA, f.from)
		if err != nil {
			return err
		}
		breaks, _, err := c.lines(f.r, f.from, f.size)
		if err != nil {
			return err
		}
		all[i].lines, all[i].tail = top+before+breaks, breaks
		ends, err := c.endsLine(f.r, f.size)
		if err != nil {
			return err
		}
		switch {
		case !ends && f.size > 0:
			all[i].lines++ // the last line has no break
		case breaks > 0:
			all[i].tail--
		}
		if last == f.from && f.from < f.size {
			all[i].tail++ // a line begins where the suffix does
		}
		if max(d.SizeA, d.SizeB) > maxSums {
			sums[i][0] = uint64(i) // nobody looked
		} else if sums[i], err = c.lineSums(f.r, startA, f.size, seeds); err != nil {
			return err
		}
	}
	d.Part = "line"
	d.Parts = int(max(all[0].lines, all[1].lines))
	d.DifferingParts = max(1, d.Parts-int(top)-int(min(all[0].tail, all[1].tail)))
	shownA, err := c.showLine(c.a, d.SizeA, startA)
	if err != nil {
		return err
	}
	shownB, err := c.showLine(c.b, d.SizeB, startA)
	if err != nil {
		return err
	}
	d.Notes = append(d.Notes, fmt.Sprintf("line %d is %s in the first build and %s in the second", top+1, shownA, shownB))
	switch {
	case sums[0] != sums[1]:
	case d.SizeA != d.SizeB:
		d.Notes = append(d.Notes, "only one file ends its last line")
	default:
		d.found.reorderedLines = true
		d.Notes = append(d.Notes, "the lines are the same in another order")
	}
	return nil
}

// chunks calls f for the bytes of r from at to end.
func (c *comparison) chunks(r io.ReaderAt, at, end int64, f func([]byte)) error {
	c.room(end - at)
	for at < end {
		if err := c.alive(); err != nil {
			return err
		}
		b := c.bufA[:min(end-at, bufferSize)]
		if err := readFull(r, b, at); err != nil {
			return err
		}
		f(b)
		at += int64(len(b))
	}
	return nil
}

// lines counts line breaks between two offsets; start is where the line
// begins that end lies in, at least at.
func (c *comparison) lines(r io.ReaderAt, at, end int64) (breaks, start int64, err error) {
	start, seen := at, at
	err = c.chunks(r, at, end, func(b []byte) {
		breaks += int64(bytes.Count(b, []byte("\n")))
		if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
			start = seen + int64(i) + 1
		}
		seen += int64(len(b))
	})
	return breaks, start, err
}

// lineSums adds up two hashes of each line between two offsets: equal sums
// mean the same lines in any order. It is a hint only, so chance may mislead.
func (c *comparison) lineSums(r io.ReaderAt, at, end int64, seeds [2]maphash.Seed) (sums [2]uint64, err error) {
	var h [2]maphash.Hash
	for i := range h {
		h[i].SetSeed(seeds[i])
	}
	add := func(line []byte, whole bool) {
		for i := range h {
			h[i].Write(line)
			if whole {
				sums[i] += h[i].Sum64()
				h[i].Reset()
			}
		}
	}
	open := false
	err = c.chunks(r, at, end, func(b []byte) {
		for line := range bytes.Lines(b) {
			whole := line[len(line)-1] == '\n'
			add(bytes.TrimSuffix(line, []byte("\n")), whole)
			open = !whole
		}
	})
	if open {
		add(nil, true)
	}
	return sums, err
}

// suffix is the number of bytes at the end that both files have, not counting
// what lies before First.
func (c *comparison) suffix() (int64, error) {
	d := c.d
	most := min(d.SizeA, d.SizeB) - d.First
	c.room(most)
	for done := int64(0); done < most; {
		if err := c.alive(); err != nil {
			return 0, err
		}
		n := min(most-done, bufferSize)
		a, b := c.bufA[:n], c.bufB[:n]
		if err := readFull(c.a, a, d.SizeA-done-n); err != nil {
			return 0, err
		}
		if err := readFull(c.b, b, d.SizeB-done-n); err != nil {
			return 0, err
		}
		for i := n - 1; i >= 0; i-- {
			if a[i] != b[i] {
				return done + n - 1 - i, nil
			}
		}
		done += n
	}
	return most, nil
}

// endsLine reports whether the last byte is a line break.
func (c *comparison) endsLine(r io.ReaderAt, size int64) (bool, error) {
	if size == 0 {
		return false, nil
	}
	var last [1]byte
	err := readFull(r, last[:], size-1)
	return last[0] == '\n', err
}

// showLine quotes the line at start, around the first difference.
func (c *comparison) showLine(r io.ReaderAt, size, start int64) (string, error) {
	const before, shown = 24, 60
	if start >= size {
		return "absent", nil
	}
	from := max(start, c.d.First-before)
	b := make([]byte, min(size-from, shown+1))
	if err := readFull(r, b, from); err != nil {
		return "", err
	}
	line, _, ended := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	text := fmt.Sprintf("%q", line[:min(len(line), shown)])
	if from > start {
		text = "..." + text
	}
	if !ended && len(line) > shown {
		text += "..."
	}
	return text, nil
}
