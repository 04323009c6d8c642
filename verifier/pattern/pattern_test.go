package pattern

import "testing"

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, model string
		want           bool
	}{
		{"acme/langid", "acme/langid", true},
		{"acme/langid", "acme/langid2", false},
		{"acme/*", "acme/langid", true},
		{"acme/*", "acme/a/b", true},
		{"acme/*", "acme2/langid", false},
		{"acme/*", "acme", false},
		{"acme/a/*", "acme/ab", false},
		{"*", "acme/langid", false},
		{"acme*", "acme/langid", false},
		{"", "acme/langid", false},
	} {
		if got := Matches(c.pattern, c.model); got != c.want {
			t.Errorf("Matches(%q, %q) = %v, want %v", c.pattern, c.model, got, c.want)
		}
	}
}

func TestBest(t *testing.T) {
	lists := [][]string{{"other/*", "acme/*"}, {"acme/a/*"}, {"acme/x"}, {"acme/x"}, {"acme/*", "acme/a/*"}}
	for model, want := range map[string]int{
		"acme/b": 0, "acme/a/b": 1, "acme/x": 2, "acme/xy": 0, "other/z": 0, "third/z": -1, "": -1,
	} {
		if got := Best(model, lists); got != want {
			t.Errorf("Best(%q) = %d, want %d", model, got, want)
		}
	}
}
