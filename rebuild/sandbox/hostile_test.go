package sandbox

import (
	"strings"
	"syscall"
	"testing"
)

// Everything that could give a build privileges, a network or a place to write
// is refused, each by itself.
func TestPrivileges(t *testing.T) {
	r, s := spec(t, "privileges")
	s.Inputs = []Input{{"data", tree(t, map[string]string{"x": "1"})}}
	_, log, err := run1(t, r, s)
	if err != nil {
		t.Fatalf("Run: %v %s", err, log)
	}
	refused := 0
	for line := range strings.Lines(log) {
		if strings.HasPrefix(line, "ALLOWED ") {
			t.Error(strings.TrimSpace(line))
		}
		if strings.HasPrefix(line, "refused ") {
			refused++
		}
	}
	if refused < 60 {
		t.Errorf("%d attempts were refused, want 60 or more", refused)
	}
	if t.Failed() {
		t.Log(log)
	}
}

// TestSecrets: the worker holds a secret in its environment, in a file that is
// open, also for its children, and as shared memory; a build finds none of it.
func TestSecrets(t *testing.T) {
	const secret = "mint-key-4f1d9e"
	t.Setenv("CLAWFS_SECRET", secret)
	closed := tree(t, map[string]string{"key": secret})
	fd, err := syscall.Open(closed+"/key", syscall.O_RDONLY, 0) // without O_CLOEXEC
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	r, s := spec(t, "secrets", secret)
	_, log, err := run1(t, r, s)
	if err != nil {
		t.Fatalf("Run: %v %s", err, log)
	}
	var variables, descriptors int
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		switch what, rest, _ := strings.Cut(line, " "); what {
		case "SECRET":
			t.Error(line)
		case "variable":
			variables++
			if name, _, _ := strings.Cut(rest, "="); name != "HOME" && name != "PATH" && name != "TMPDIR" {
				t.Errorf("unexpected %s", line)
			}
		case "descriptor":
			descriptors++
			_, to, _ := strings.Cut(rest, " ")
			if to != "/dev/null" && to != "/proc/1/fd" && !strings.HasPrefix(to, "pipe:") && !strings.HasPrefix(to, "anon_inode:") {
				t.Errorf("unexpected %s", line)
			}
		}
	}
	if variables != 3 || descriptors < 3 || !strings.Contains(log, "processes 1 found its own argument true") {
		t.Errorf("%d variables, %d descriptors; the search says %q", variables, descriptors, log)
	}
}
