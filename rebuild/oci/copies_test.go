package oci

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
)

func TestCopies(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{"a": "model", "sub/b": "model", "c": "mode1", "d": "other size"} {
		os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755)
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("a", filepath.Join(root, "link"))
	measure := func(s string) hashpipe.Measurement {
		m, err := hashpipe.Measure(t.Context(), strings.NewReader(s), nil)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	got, err := Copies(t.Context(), root, []hashpipe.Measurement{measure("model"), measure("absent")})
	sum := measure("model").Sum()
	if want := []Copy{{"a", sum}, {"sub/b", sum}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Copies = %v, %v, want %v", got, err, want)
	}
	if got, err := Copies(t.Context(), root, []hashpipe.Measurement{measure("nowhere")}); err != nil || len(got) != 0 {
		t.Errorf("Copies of an absent file = %v, %v", got, err)
	}
	if _, err := Copies(t.Context(), root, []hashpipe.Measurement{{}}); err == nil {
		t.Error("Copies of an unmeasured file was allowed")
	}
	if _, err := Copies(t.Context(), filepath.Join(root, "absent"), nil); err == nil {
		t.Error("Copies in an absent directory was allowed")
	}
}
