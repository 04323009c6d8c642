package compare

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/flate"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// layout is where the parts of one file lie.
type layout struct {
	noun  string
	parts map[string]part
	order []string        // names as the header lists them
	meta  map[string]meta // what the header says beside them
}

// check refuses parts that overlap: they would be read more often than the
// file is long, as often as a hostile header likes.
func (l layout) check(size int64) error {
	var sum int64
	for _, p := range l.parts {
		if sum += p.size; sum > size || p.size < 0 {
			return fmt.Errorf("its %ss overlap", l.noun)
		}
	}
	return nil
}

// part is one tensor or member. shape is everything but position and bytes
// that must be equal: data type and dimensions, or the compression method.
type part struct {
	offset, size int64
	shape        string
	time         string // zip: modification time and extra fields
	deflated     int64  // zip: bytes that a deflated member claims to hold; 0 for a stored one
	tensor       string // name of the tensor that a zip member holds
	floats       floatRange
}

// floatRange is the stretch of a part that holds floats of one type. at is
// relative to the part and a multiple of 8.
type floatRange struct {
	dtype   string
	at, end int64
}

// meta is one entry of a header's metadata: enough to tell two apart and to
// show them.
type meta struct {
	sum  [sha256.Size]byte
	text string
}

func metaOf(value []byte, text string) meta { return meta{sha256.Sum256(value), excerpt(text)} }

func (c *comparison) describeParts(la, lb layout) error {
	d := c.d
	d.Part = la.noun
	// What the parts differ in tells more than what lies at equal offsets.
	d.regions = d.regions[:min(len(d.regions), maxRegions/8)]
	type at struct {
		name   string
		offset int64
	}
	names := make([]at, 0, max(len(la.parts), len(lb.parts)))
	for name, p := range la.parts {
		names = append(names, at{name, p.offset})
	}
	for name, p := range lb.parts {
		if _, ok := la.parts[name]; !ok {
			names = append(names, at{name, p.offset})
		}
	}
	// In the order of the first file, for streaming.
	slices.SortFunc(names, func(x, y at) int { return cmp.Or(cmp.Compare(x.offset, y.offset), cmp.Compare(x.name, y.name)) })
	d.Parts = len(names)
	var onlyA, onlyB, reshaped, times, recompressed int
	for _, n := range names {
		name := n.name
		pa, inA := la.parts[name]
		pb, inB := lb.parts[name]
		tensor := cmp.Or(pa.tensor, pb.tensor)
		if tensor != "" {
			d.Tensors++
		}
		same := false
		switch {
		case !inB:
			onlyA++
		case !inA:
			onlyB++
		case pa.shape != pb.shape || pa.size != pb.size && pa.deflated == 0:
			reshaped++
		default:
			var packed bool
			var err error
			if same, packed, err = c.diffPart(pa, pb, cmp.Or(tensor, name)); err != nil {
				return err
			}
			if packed {
				recompressed++
			}
			if pa.time != pb.time {
				times++
			}
		}
		if same {
			continue
		}
		d.DifferingParts++
		if tensor != "" {
			d.DifferingTensors++
		}
		if len(d.Named) < maxNamed {
			if tensor != "" {
				name += " (tensor " + tensor + ")"
			}
			d.Named = append(d.Named, shorten(name))
		}
	}
	d.HeaderOnly = d.DifferingParts == 0
	d.found.zipTimes = times > 0
	d.found.recompressed = recompressed > 0
	if onlyA+onlyB > 0 {
		d.Notes = append(d.Notes, fmt.Sprintf("%s only the first build has, %s only the second", count(onlyA, d.Part), count(onlyB, d.Part)))
	}
	if reshaped > 0 {
		d.Notes = append(d.Notes, fmt.Sprintf("%s with another size, type or shape", count(reshaped, d.Part)))
	}
	if times > 0 {
		d.Notes = append(d.Notes, fmt.Sprintf("%s with another modification time", count(times, d.Part)))
	}
	if recompressed > 0 {
		d.Notes = append(d.Notes, fmt.Sprintf("%s with the same contents, compressed otherwise", count(recompressed, d.Part)))
	}
	if !slices.Equal(la.order, lb.order) && onlyA+onlyB == 0 {
		d.found.reorderedHeader = true
		d.Notes = append(d.Notes, "the header lists its entries in another order")
	}
	d.describeMeta(la.meta, lb.meta)
	return nil
}

// describeMeta names the entries of the metadata that differ.
func (d *Difference) describeMeta(a, b map[string]meta) {
	var keys []string
	for key, m := range a {
		if b[key] != m {
			keys = append(keys, key)
		}
	}
	for key := range b {
		if _, ok := a[key]; !ok {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return
	}
	slices.Sort(keys)
	var named []string
	for _, key := range keys[:min(len(keys), maxNamed)] {
		show := func(all map[string]meta) string {
			m, ok := all[key]
			if !ok {
				return "absent"
			}
			return m.text
		}
		named = append(named, fmt.Sprintf("%s is %s and %s", shorten(key), show(a), show(b)))
	}
	if len(keys) > maxNamed {
		named = append(named, "...")
	}
	d.Notes = append(d.Notes, fmt.Sprintf("the metadata differs in %s: %s", count(len(keys), "value"), strings.Join(named, ", ")))
}

// diffPart compares one part of both files, and where floats lie in it, counts
// how far they are apart. recompressed means that the parts hold the same in
// other compressed bytes.
func (c *comparison) diffPart(pa, pb part, tensor string) (same, recompressed bool, err error) {
	var visit visitor
	if f := c.d.floats(pa.floats.dtype); f != nil && pa.floats == pb.floats && pa.deflated == 0 {
		visit = floatVisitor(f, pa.floats, tensor)
	}
	n := min(pa.size, pb.size)
	first, _, _, err := c.diff(pa.offset, pb.offset, n, visit)
	if err != nil {
		return false, false, err
	}
	if first < 0 && pa.size == pb.size {
		return true, false, nil
	}
	if pa.deflated == 0 || pb.deflated == 0 {
		return false, false, nil
	}
	equal, err := c.diffInflated(pa, pb, tensor)
	return false, equal, err
}

// floatVisitor counts the floats of the buffers that lie in r.
func floatVisitor(f *Floats, r floatRange, tensor string) visitor {
	return func(a, b []byte, at int64) {
		skip := max(r.at-at, 0)
		if skip < int64(len(a)) {
			f.add(a[skip:], b[skip:], at+skip-r.at, r.end-r.at, tensor)
		}
	}
}

// diffInflated compares what two deflated members hold, as far as the budget
// reaches. Members that cannot be inflated are as different as their bytes.
func (c *comparison) diffInflated(pa, pb part, tensor string) (equal bool, err error) {
	if pa.deflated != pb.deflated || pa.deflated > c.inflate {
		return false, nil
	}
	ra, rb := c.inflater(0, c.a, pa), c.inflater(1, c.b, pb)
	c.room(pa.deflated)
	equal = true
	var visit visitor
	for done := int64(0); done < pa.deflated; {
		if err := c.alive(); err != nil {
			return false, err
		}
		n := min(pa.deflated-done, bufferSize)
		a, b := c.bufA[:n], c.bufB[:n]
		_, errA := io.ReadFull(ra, a)
		_, errB := io.ReadFull(rb, b)
		c.inflate -= n
		if errA != nil || errB != nil {
			return false, nil
		}
		if done == 0 {
			ha, _ := npyHeader(a, pa.deflated)
			hb, _ := npyHeader(b, pb.deflated)
			if f := c.d.floats(ha.floats.dtype); f != nil && ha == hb {
				visit = floatVisitor(f, ha.floats, tensor)
			}
		}
		if !bytes.Equal(a, b) {
			equal = false
			if visit != nil {
				visit(a, b, done)
			}
		}
		done += n
	}
	return equal && ended(ra) && ended(rb), nil
}

// inflater reads what a deflated member holds. One decoder for each file is
// used again and again: a new one is 44 kB.
func (c *comparison) inflater(file int, r io.ReaderAt, p part) io.Reader {
	in := bufio.NewReaderSize(io.NewSectionReader(r, p.offset, p.size), 4096)
	if c.inflaters[file] == nil {
		c.inflaters[file] = flate.NewReader(in)
		return c.inflaters[file]
	}
	// The error is that of a dictionary, and there is none.
	_ = c.inflaters[file].(flate.Resetter).Reset(in, nil)
	return c.inflaters[file]
}

// ended reports whether nothing follows: a member may hold more than it claims.
func ended(r io.Reader) bool {
	_, err := io.ReadFull(r, make([]byte, 1))
	return errors.Is(err, io.EOF)
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// maxShown bounds in bytes what is shown of one name.
const maxShown = 80

// shorten makes a hostile name fit for one line of a log.
func shorten(name string) string {
	cut := len(name) > maxShown
	if cut {
		name = name[:maxShown]
	}
	q := fmt.Sprintf("%q", name)
	q = strings.TrimSuffix(strings.TrimPrefix(q, `"`), `"`)
	if cut || len(q) > maxShown {
		q = q[:min(len(q), maxShown-3)] + "..."
	}
	return q
}

// excerpt quotes the beginning of a value.
func excerpt(s string) string {
	const most = 40
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
