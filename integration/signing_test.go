package integration

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A capability's text is public and so is signing: whoever can read a key file
// could put the two together. The compiler cannot refuse that, so this does:
// only the mint lays out a capability.
func TestOnlyTheMintLaysOutCapabilities(t *testing.T) {
	layout := regexp.MustCompile(`\bcapstore\.(NewStatement\b|Predicate\b|Statement\{)`)
	mint, files := false, 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		files++
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !layout.Match(source) {
			return nil
		}
		if filepath.ToSlash(filepath.Dir(path)) == "../rebuild/internal/mint" {
			mint = true
			return nil
		}
		t.Errorf("%s lays out a capability: only rebuild/internal/mint may, from outputs of a sandbox", path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !mint || files < 50 {
		t.Errorf("%d files read, the mint among those that match: %v; the search looks for the wrong thing", files, mint)
	}
}
