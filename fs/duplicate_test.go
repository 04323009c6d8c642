package fs

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A session is asked for while the mount ends: there is one, or an error, and never
// the descriptor of another file. The race detector sees what is rare.
func TestDuplicateWhileClosing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("own"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		var closed sync.WaitGroup
		closed.Go(func() { f.Close() })
		d, err := duplicate(f)
		closed.Wait()
		if err != nil {
			continue
		}
		if b, err := io.ReadAll(d); err != nil || string(b) != "own" {
			t.Fatalf("the duplicate gives %q, %v", b, err)
		}
		d.Close()
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if d, err := duplicate(f); err == nil {
		d.Close()
		t.Error("a closed file was duplicated")
	}
}

// A writer of the source chooses its names, and must not be able to keep a mount from
// outliving its process.
func TestIsBelow(t *testing.T) {
	for path, want := range map[string]bool{
		"a": true, "a/b.bin": true, "not\xff\xfeutf8": true, strings.Repeat("\xef", 255): true, "..a/.b": true, "a\nb": true, " ": true,
		"": false, ".": false, "..": false, "/a": false, "a/": false, "a//b": false, "a/../b": false, "../a": false, "a/.": false, "a\x00": false,
	} {
		if got := isBelow(path); got != want {
			t.Errorf("isBelow(%q) = %v, want %v", path, got, want)
		}
	}
}
