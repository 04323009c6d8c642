package compare

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"time"
)

// traceMargin is how much around a differing stretch is searched: two times
// share their first digits.
const traceMargin = 64

// Trace looks into the places where two files differ for what surrounded their
// builds: the time, the host name, the working directory, the user's id on the
// host, and for UUIDs. It reads at most maxRegions stretches of each file, so it
// may miss one. What it finds is in d.Notes and turns into Hints.
func (d *Difference) Trace(ctx context.Context, a, b io.ReaderAt, first, second Environment) error {
	t := tracer{d: d, first: first, second: second}
	for _, r := range d.regions {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("searching %q: %w", d.Name, err)
		}
		before := min(traceMargin, r.a, r.b)
		var windows [2][]byte
		for i, f := range []struct {
			r        io.ReaderAt
			at, size int64
		}{{a, r.a - before, d.SizeA}, {b, r.b - before, d.SizeB}} {
			windows[i] = make([]byte, max(0, min(before+r.n+traceMargin, f.size-f.at)))
			if err := readFull(f.r, windows[i], f.at); err != nil {
				return fmt.Errorf("searching %q: %w", d.Name, err)
			}
		}
		t.search(windows[0], windows[1], r.a-before)
	}
	return nil
}

type tracer struct {
	d             *Difference
	first, second Environment
}

func (t *tracer) search(a, b []byte, at int64) {
	f := &t.d.found
	for _, x := range []struct {
		found      *bool
		name, what string
	}{
		{&f.host, "hostname", "host name"},
		{&f.workDir, "workdir", "working directory"},
		{&f.uid, "uidmap", "user id"},
	} {
		va, vb := t.first.value(x.name), t.second.value(x.name)
		if *x.found || va == "" || vb == "" || va == vb {
			continue
		}
		if i := bytes.Index(a, []byte(va)); i >= 0 && bytes.Contains(b, []byte(vb)) {
			t.note(x.found, "each file holds the %s of its build (%s and %s), near offset %d", x.what, shorten(va), shorten(vb), at+int64(i))
		}
	}
	if !f.time {
		if va, vb, i := t.times(a, b); i >= 0 {
			t.note(&f.time, "each file holds the time of its build (%s and %s), near offset %d", va, vb, at+int64(i))
		}
	}
	if !f.uuid {
		ua, ub := uuid.FindIndex(a), uuid.FindIndex(b)
		if ua != nil && ub != nil && !bytes.Equal(a[ua[0]:ua[1]], b[ub[0]:ub[1]]) {
			t.note(&f.uuid, "each file holds another UUID, near offset %d", at+int64(ua[0]))
		}
	}
}

func (t *tracer) note(found *bool, format string, args ...any) {
	*found = true
	t.d.Notes = append(t.d.Notes, fmt.Sprintf(format, args...))
}

var (
	uuid    = regexp.MustCompile(`(?i)\b[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\b`)
	digits  = regexp.MustCompile(`\d+`)
	written = []struct { // forms of a date with a time, in UTC
		form   *regexp.Regexp
		layout string
	}{
		{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d`), "2006-01-02T15:04:05"},
		{regexp.MustCompile(`[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}`), "Jan _2 15:04:05 2006"},       // ctime
		{regexp.MustCompile(`\d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d`), "02 Jan 2006 15:04:05"},          // mail, HTTP
		{regexp.MustCompile(`\b\d{8}[T_-]?\d{6}\b`), "20060102150405"},                                   // file names
		{regexp.MustCompile(`[A-Z][a-z]{2} [ \d]\d \d{4}\W{1,3}\d\d:\d\d:\d\d`), "Jan _2 2006 15:04:05"}, // __DATE__ and __TIME__
	}
)

// near reports whether a time is within a day of a build.
func near(seconds float64, e Environment) bool {
	return math.Abs(seconds-float64(e.Began.Unix())) <= 24*3600
}

// times looks for a time near the first build in a and near the second in b:
// written in digits, or as a number at one place of both. i is -1 if there is
// none.
func (t *tracer) times(a, b []byte) (va, vb string, i int) {
	if t.first.Began.IsZero() || t.second.Began.IsZero() {
		return "", "", -1
	}
	ta, i := text(a, t.first)
	if tb, j := text(b, t.second); i >= 0 && j >= 0 && ta != tb {
		return ta, tb, i
	}
	for i := range min(len(a), len(b)) {
		for _, n := range numbers(a[i:]) {
			if !near(n.seconds, t.first) {
				continue
			}
			for _, m := range numbers(b[i:]) {
				if m.kind == n.kind && m.seconds != n.seconds && near(m.seconds, t.second) {
					return n.String(), m.String(), i
				}
			}
		}
	}
	return "", "", -1
}

// text finds the first time near e in decimal digits, or as a date.
func text(b []byte, e Environment) (string, int) {
	for _, at := range digits.FindAllIndex(b, -1) {
		s := string(b[at[0]:at[1]])
		unit := map[int]float64{10: 1, 13: 1e3, 16: 1e6, 19: 1e9}[len(s)]
		if unit == 0 {
			continue
		}
		if n, err := strconv.ParseInt(s, 10, 64); err == nil && near(float64(n)/unit, e) {
			return s, at[0]
		}
	}
	for _, w := range written {
		for _, at := range w.form.FindAllIndex(b, -1) {
			s := string(b[at[0]:at[1]])
			if when, err := time.Parse(w.layout, normal(s, w.layout)); err == nil && near(float64(when.Unix()), e) {
				return s, at[0]
			}
		}
	}
	return "", -1
}

// normal gives a date the separators of its layout.
func normal(s, layout string) string {
	switch layout {
	case "2006-01-02T15:04:05":
		return s[:10] + "T" + s[11:]
	case "20060102150405":
		return s[:8] + s[len(s)-6:]
	case "Jan _2 2006 15:04:05":
		return s[:11] + " " + s[len(s)-8:]
	}
	return s
}

// number is a time in one binary form.
type number struct {
	kind    string
	seconds float64
}

func (n number) String() string {
	return time.Unix(int64(n.seconds), 0).UTC().Format(time.RFC3339) + " as " + n.kind
}

// numbers reads the times that may begin at b: seconds in 32 or 64 bits,
// micro- and nanoseconds in 64, and Python's float.
func numbers(b []byte) []number {
	if len(b) < 4 {
		return nil
	}
	all := []number{
		{"32 bits", float64(binary.LittleEndian.Uint32(b))},
		{"32 bits, big-endian", float64(binary.BigEndian.Uint32(b))},
	}
	if len(b) < 8 {
		return all
	}
	n := binary.LittleEndian.Uint64(b)
	return append(all, number{"microseconds", float64(n) / 1e6}, number{"nanoseconds", float64(n) / 1e9},
		number{"a double", math.Float64frombits(n)})
}

// describeTimes reads the times in the headers of gzip (RFC 1952, MTIME) and
// of tar members (POSIX ustar, octal digits at offset 136).
func (c *comparison) describeTimes() error {
	const block, magic, mtime, mtimeEnd, gzipTime = 512, 257, 136, 148, 4
	d := c.d
	read := func(at, n int64) (a, b []byte, err error) {
		c.room(n)
		a, b = c.bufA[:n], c.bufB[:n]
		if err := readFull(c.a, a, at); err != nil {
			return nil, nil, err
		}
		return a, b, readFull(c.b, b, at)
	}
	if d.Format == Gzip {
		if min(d.SizeA, d.SizeB) < 10 {
			return nil
		}
		a, b, err := read(0, 10)
		if err != nil {
			return err
		}
		if !bytes.Equal(a[gzipTime:8], b[gzipTime:8]) {
			d.found.gzipTime = true
			d.Notes = append(d.Notes, "the gzip headers carry different times")
		}
		return nil
	}
	for _, r := range d.regions {
		at := r.a &^ (block - 1)
		if r.a != r.b || at+block > min(d.SizeA, d.SizeB) {
			continue
		}
		a, b, err := read(at, block)
		if err != nil {
			return err
		}
		if bytes.HasPrefix(a[magic:], []byte("ustar")) && bytes.HasPrefix(b[magic:], []byte("ustar")) && !bytes.Equal(a[mtime:mtimeEnd], b[mtime:mtimeEnd]) {
			d.found.tarTime = true
			name, _, _ := bytes.Cut(a[:100], []byte{0})
			d.Notes = append(d.Notes, "the tar member "+shorten(string(name))+" has another time")
			return nil
		}
	}
	return nil
}
