package compare

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestText(t *testing.T) {
	long := strings.Repeat("x", 3*bufferSize)
	for _, c := range []struct {
		name, a, b string
		parts      int
		differing  int
		want       string
	}{
		{"in the middle", "a\nb\nc\n", "a\nB\nc\n", 3, 1, `line 2 is "b" in the first build and "B" in the second`},
		{"inserted", "a\nc\n", "a\nb\nc\n", 3, 1, `line 2 is "c" in the first build and "b" in the second`},
		{"appended", "a\n", "a\nb\n", 2, 1, `line 2 is absent in the first build and "b"`},
		{"removed at the start", "x\na\n", "a\n", 2, 1, `line 1 is "x" in the first build and "a"`},
		{"last break", "a\nb", "a\nb\n", 2, 1, "only one file ends its last line"},
		{"all", "a\n", "b\n", 1, 1, `line 1 is "a" in the first build and "b"`},
		{"empty", "", "a\n", 1, 1, `line 1 is absent`},
		{"order", "1\n2\n3\n", "3\n2\n1\n", 3, 3, "the same in another order"},
		{"carriage return", "a\r\nb\r\n", "a\nb\n", 2, 2, `line 1 is "a" in`},
		{"one long line", long + "1" + long, long + "2" + long, 1, 1, `line 1 is ..."xxxxxxxxxxxxxxxxxxxxxxxx1xxx`},
		{"behind many", strings.Repeat("same\n", bufferSize) + "1\n", strings.Repeat("same\n", bufferSize) + "2\n", bufferSize + 1, 1, fmt.Sprintf(`line %d is "1"`, bufferSize+1)},
	} {
		d := files(t, []byte(c.a), []byte(c.b), "x.txt")
		if d.Format == Bytes && c.a == "" { // an empty file is no text
			continue
		}
		if d.Format != Text || d.Parts != c.parts || d.DifferingParts != c.differing {
			t.Errorf("%s: %q, %d of %d lines, want %d of %d", c.name, d.Format, d.DifferingParts, d.Parts, c.differing, c.parts)
		}
		if s := d.String(); !strings.Contains(s, c.want) || len(s) > 600 {
			t.Errorf("%s: String() = %q, want %q in it", c.name, s, c.want)
		}
	}
}

// FuzzText counts against a comparison of all lines in memory.
func FuzzText(f *testing.F) {
	f.Add("a\nb\nc\n", "a\nc\n")
	f.Add("a\n\n\nb", "a\n\nb")
	f.Add("x\na\na\n", "a\na\n")
	f.Fuzz(func(t *testing.T, a, b string) {
		d := files(t, []byte(a), []byte(b), "x.txt")
		if d.Format != Text || d.Equal() {
			return
		}
		la, lb := slices.Collect(strings.Lines(a)), slices.Collect(strings.Lines(b))
		top := 0
		for top < min(len(la), len(lb)) && la[top] == lb[top] {
			top++
		}
		end := 0
		for end < min(len(la), len(lb))-top && la[len(la)-1-end] == lb[len(lb)-1-end] {
			end++
		}
		if want := max(len(la), len(lb)); d.Parts != want || d.DifferingParts != max(1, want-top-end) {
			t.Errorf("%q and %q: %d of %d lines, want %d of %d", a, b, d.DifferingParts, d.Parts, want-top-end, want)
		}
		slices.Sort(la)
		slices.Sort(lb)
		if d.found.reorderedLines && !slices.Equal(la, lb) && len(a) == len(b) && bytes.Count([]byte(a), []byte("\n")) == bytes.Count([]byte(b), []byte("\n")) && strings.HasSuffix(a, "\n") == strings.HasSuffix(b, "\n") {
			t.Errorf("%q and %q: not the same lines", a, b)
		}
	})
}
