package compare

import (
	"bytes"
	"fmt"
	"io"
	"slices"
)

// describeText compares by lines: what is left between the common first and
// the common last lines. Both files are at most maxText bytes.
func (d *Difference) describeText(a, b io.ReaderAt) error {
	ta, tb := make([]byte, d.SizeA), make([]byte, d.SizeB)
	if err := readFull(a, ta, 0); err != nil {
		return err
	}
	if err := readFull(b, tb, 0); err != nil {
		return err
	}
	la, lb := slices.Collect(bytes.Lines(ta)), slices.Collect(bytes.Lines(tb))
	top := 0
	for top < min(len(la), len(lb)) && bytes.Equal(la[top], lb[top]) {
		top++
	}
	end := 0
	for end < min(len(la), len(lb))-top && bytes.Equal(la[len(la)-1-end], lb[len(lb)-1-end]) {
		end++
	}
	d.Part = "line"
	d.Parts = max(len(la), len(lb))
	d.DifferingParts = d.Parts - top - end
	d.Notes = append(d.Notes, fmt.Sprintf("line %d is %s in the first build and %s in the second", top+1, line(la, top), line(lb, top)))
	slices.SortFunc(la, bytes.Compare)
	slices.SortFunc(lb, bytes.Compare)
	if slices.EqualFunc(la, lb, bytes.Equal) {
		d.reordered = true
		d.Notes = append(d.Notes, "the lines are the same in another order")
	}
	return nil
}

func line(all [][]byte, i int) string {
	if i >= len(all) {
		return "absent"
	}
	return `"` + shorten(string(bytes.TrimRight(all[i], "\r\n"))) + `"`
}
