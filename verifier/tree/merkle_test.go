package tree

import (
	"math"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
)

// The list below the root is strictly ascending, whoever fills it: two records
// of one path, or two orders of the same records, would be two roots of what
// looks like one tree.
func TestMerkleRefuses(t *testing.T) {
	sum := hashpipe.SumBytes([]byte("content"))
	for name, tc := range map[string]struct {
		path string
		sum  hashpipe.Sum
		size int64
		want string
	}{
		"the same path":     {"b", sum, 1, "expected ascending paths"},
		"an earlier path":   {"a", sum, 1, "expected ascending paths"},
		"not measured":      {"c", hashpipe.Sum{}, 1, "was not measured"},
		"a negative size":   {"c", sum, -1, "out of range"},
		"too many bytes":    {"c", sum, maxBytes - 9, "out of range"},
		"a size that wraps": {"c", sum, math.MaxInt64, "out of range"},
	} {
		var m merkle
		if err := m.add(File, "b", sum, 10); err != nil {
			t.Fatal(err)
		}
		before, err := m.root()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.add(File, tc.path, tc.sum, tc.size); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: add = %v, want %q", name, err, tc.want)
		}
		if after, err := m.root(); err != nil || after != before {
			t.Errorf("%s: the root is %v, %v, and was %v", name, after, err, before)
		}
	}
	var m merkle
	for i, path := range []string{"a", "b", "b/c", "c"} {
		if err := m.add(File, path, sum, maxBytes/4); err != nil {
			t.Errorf("record %d: %v", i, err)
		}
	}
	if _, err := new(merkle).root(); err == nil {
		t.Error("a tree of nothing has a root")
	}
}

func TestLongestPath(t *testing.T) {
	long := strings.Repeat(strings.Repeat("d", maxComponent)+"/", maxPath/(maxComponent+1)+1)[:maxPath]
	if strings.HasSuffix(long, "/") {
		long = long[:maxPath-1] + "d"
	}
	if err := CheckPath(long); err != nil {
		t.Errorf("a path of %d bytes: %v", len(long), err)
	}
	if err := CheckPath(long[:maxPath-2] + "/dd"); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("a path of %d bytes: %v, want a refusal", maxPath+1, err)
	}
	if err := CheckPath(strings.Repeat("d", maxComponent)); err != nil {
		t.Errorf("a component of %d bytes: %v", maxComponent, err)
	}
	if err := CheckPath("a/" + strings.Repeat("d", maxComponent+1)); err == nil || !strings.Contains(err.Error(), "components of at most") {
		t.Errorf("a component of %d bytes: %v, want a refusal", maxComponent+1, err)
	}
}
