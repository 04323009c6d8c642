package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
)

// The long listing shows state and tier of each file in columns that neither a
// long name nor a directory moves.
func TestListLong(t *testing.T) {
	r := newRig(t)
	content := strings.Repeat("model ", 1<<18)
	long := strings.Repeat("a-long-name-", 12) + ".bin"
	r.admit(map[string]string{"large.bin": content, "small.bin": "small"})
	for name, text := range map[string]string{"large.bin": content, "small.bin": "small", "small.bin.part": "smal", long: "nobody granted it"} {
		r.file(name, text)
	}
	if err := os.Mkdir(filepath.Join(r.src, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("large.bin", filepath.Join(r.src, "link")); err != nil {
		t.Fatal(err)
	}
	r.ok("mount", "--seal", "copy", r.src, r.mnt)
	if !r.opens("large.bin", content) || !r.opens("small.bin", "small") || r.opens(long, "nobody granted it") {
		t.Fatal("want the granted files to open and the other one not")
	}
	digest := hashpipe.SumBytes([]byte(content)).String()[:shortID]
	text := r.ok("ls", "-l", r.mnt)
	for _, want := range []string{
		`STATE +SIZE +TIER +LEVEL +SHA256 +REASON +NAME`,
		`granted +1\.5 MiB +sealed +rebuilt +` + digest + ` +- +large\.bin`,
		`granted +5 B +blocks +rebuilt +[0-9a-f]{16} +- +small\.bin`,
		`refused +17 B +- +- +- +no-capability +` + long,
		`- +- +- +- +- +dir/`,
		`- +- +- +- +- +link -> large\.bin`,
	} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(text) {
			t.Errorf("no line %q in\n%s", want, text)
		}
	}
	column := strings.Index(text, "NAME")
	for _, line := range strings.Split(strings.TrimSpace(text), "\n") {
		if len(line) < column || line[column-1] != ' ' || line[column] == ' ' {
			t.Errorf("the name in %q does not begin in column %d", line, column)
		}
	}
	var rows []listed
	r.document(&rows, "ls", r.mnt)
	for _, row := range rows {
		if want := map[string]string{"large.bin": "granted", "small.bin": "granted", long: "refused"}[row.Name]; want != "" && row.State != want {
			t.Errorf("state of %s = %q, want %q", row.Name, row.State, want)
		}
	}
}
