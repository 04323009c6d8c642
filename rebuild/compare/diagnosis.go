package compare

import (
	"fmt"
	"strconv"
	"strings"
)

// Build is what a ledger says about how the files were made; Hints reads it.
type Build struct {
	Env    map[string]string // for every stage
	Stages []Stage
	// Runs are the surroundings of the two builds; the zero value knows none.
	Runs [2]Environment
}

// Stage is one command of a build, with the environment it adds.
type Stage struct {
	Name string
	Argv []string
	Env  map[string]string
}

// String is the diagnosis without hints, one line.
func (d Difference) String() string {
	if d.Equal() {
		return d.Name + ": equal"
	}
	var s strings.Builder
	fmt.Fprintf(&s, "%s: ", shorten(d.Name))
	if d.SizeA != d.SizeB {
		fmt.Fprintf(&s, "%d bytes in the first build and %d in the second; ", d.SizeA, d.SizeB)
	}
	fmt.Fprintf(&s, "%d of %d bytes differ (%s), the first at offset %d", d.Differing, max(d.SizeA, d.SizeB), share(d.Differing, max(d.SizeA, d.SizeB)), d.First)
	if d.Format != Bytes {
		fmt.Fprintf(&s, "; %s", d.Format)
	}
	switch {
	case d.Part == "":
	case d.HeaderOnly:
		fmt.Fprintf(&s, ", only the header differs: all %s have equal bytes", count(d.Parts, d.Part))
	default:
		fmt.Fprintf(&s, ", %d of %s differ", d.DifferingParts, count(d.Parts, d.Part))
		if len(d.Named) > 0 {
			fmt.Fprintf(&s, " (%s", strings.Join(d.Named, ", "))
			if d.DifferingParts > len(d.Named) {
				s.WriteString(", ...")
			}
			s.WriteString(")")
		}
	}
	if d.Tensors > 0 && !d.HeaderOnly {
		fmt.Fprintf(&s, "; %d of %s differ", d.DifferingTensors, count(d.Tensors, "tensor"))
	}
	for _, f := range d.Floats {
		if f.Values > 0 {
			s.WriteString("; " + f.String())
		}
	}
	for _, n := range d.Notes {
		s.WriteString("; " + n)
	}
	return s.String()
}

// share prints a part in percent and never rounds a difference to nothing.
func share(part, whole int64) string {
	p := 100 * float64(part) / float64(whole)
	if p < 0.01 {
		return "less than 0.01 %"
	}
	return strconv.FormatFloat(p, 'f', 2, 64) + " %"
}
