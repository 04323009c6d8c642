package compare

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
)

// layout is where the parts of one file lie.
type layout struct {
	noun  string
	parts map[string]part
	order []string // names as the header lists them
	notes []string
}

// check refuses parts that overlap: they would be read more often than the
// file is long, as often as a hostile header likes.
func (l layout) check(size int64) error {
	var sum int64
	for _, p := range l.parts {
		if sum += p.size; sum > size {
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
}

func (d *Difference) describeParts(ctx context.Context, a, b io.ReaderAt, la, lb layout) error {
	d.Part = la.noun
	names := make([]string, 0, len(la.parts))
	for name := range la.parts {
		names = append(names, name)
	}
	for name := range lb.parts {
		if _, ok := la.parts[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	d.Parts = len(names)
	var onlyA, onlyB, reshaped, times int
	for _, name := range names {
		pa, inA := la.parts[name]
		pb, inB := lb.parts[name]
		same := false
		switch {
		case !inB:
			onlyA++
		case !inA:
			onlyB++
		case pa.shape != pb.shape || pa.size != pb.size:
			reshaped++
		default:
			first, _, err := diffBytes(ctx, a, b, pa.offset, pb.offset, pa.size)
			if err != nil {
				return err
			}
			same = first < 0
			if pa.time != pb.time {
				times++
			}
		}
		if same {
			continue
		}
		d.DifferingParts++
		if len(d.Named) < maxNamed {
			d.Named = append(d.Named, shorten(name))
		}
	}
	d.HeaderOnly = d.DifferingParts == 0
	d.zipTimes = times > 0
	if onlyA+onlyB > 0 {
		d.Notes = append(d.Notes, fmt.Sprintf("%s only the first build has, %s only the second", count(onlyA, d.Part), count(onlyB, d.Part)))
	}
	if reshaped > 0 {
		d.Notes = append(d.Notes, fmt.Sprintf("%s with another size, type or shape", count(reshaped, d.Part)))
	}
	if times > 0 {
		d.Notes = append(d.Notes, fmt.Sprintf("%s with another modification time", count(times, d.Part)))
	}
	if !slices.Equal(la.order, lb.order) && onlyA+onlyB == 0 {
		d.metadataOrder = true
		d.Notes = append(d.Notes, "the header lists its entries in another order")
	}
	if !slices.Equal(la.notes, lb.notes) {
		d.Notes = append(d.Notes, "the metadata differs")
	}
	return nil
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// shorten makes a hostile name fit for one line of a log.
func shorten(name string) string {
	q := fmt.Sprintf("%q", name)
	q = strings.TrimSuffix(strings.TrimPrefix(q, `"`), `"`)
	if len(q) > 80 {
		q = q[:77] + "..."
	}
	return q
}
