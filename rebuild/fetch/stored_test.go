package fetch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestKernelFiles: with "/" a ledger may name any file, and none that the kernel
// makes up when it is read.
func TestKernelFiles(t *testing.T) {
	c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{LocalRoots: []string{"/"}})
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/proc/version", link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/proc/version", "/proc/self/environ", "/sys/kernel/uevent_seqnum", link} {
		if path, local, err := c.LocalPath(Place{URI: name}); err == nil || !local || !strings.Contains(err.Error(), "of the kernel's") {
			t.Errorf("LocalPath(%s) = %s, %t, %v", name, path, local, err)
		}
		if _, err := c.File(t.Context(), digest([]byte("x")), 1<<20, []Place{{URI: name}}, nil); err == nil || !strings.Contains(err.Error(), "of the kernel's") {
			t.Errorf("File of %s = %v", name, err)
		}
	}
	if path, _, err := c.LocalPath(Place{URI: t.TempDir()}); err != nil || path == "" {
		t.Errorf("LocalPath of a directory = %s, %v", path, err)
	}
}
