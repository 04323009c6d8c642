package integration

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A row that another program writes into Badger is not a grant, whatever it
// says and under whichever key; nor is a capability that another mint signed.
func TestForgedRowGrantsNothing(t *testing.T) {
	// A second consumer with a mint of its own makes a real capability.
	mallory := newWorld(t)
	sba := mallory.ledger("pairs", 1)
	model := mallory.published("pairs")
	mallory.trust()
	mallory.mount()
	mallory.must(done, "grant", sba, "--wait")
	mallory.must(done, "umount", mallory.mnt)
	mallory.stopDaemon(syscall.SIGTERM)
	theirs := forge(t, mallory, "-list")
	var row string
	for line := range strings.Lines(theirs) {
		key, err := strconv.Unquote(strings.TrimSpace(line))
		if err != nil {
			t.Fatalf("forger -list printed %q: %v", line, err)
		}
		if strings.HasPrefix(key, "cap/") {
			row = key
		}
	}
	if row == "" {
		t.Fatalf("no capability row among\n%s", theirs)
	}
	envelope := filepath.Join(t.TempDir(), "envelope")
	out, err := exec.Command(built.forger, filepath.Join(mallory.state, "store", "db"), "-get", row).Output()
	if err != nil || len(out) == 0 {
		t.Fatalf("forger -get %q: %v, %d bytes", row, err, len(out))
	}

	w := newWorld(t)
	w.trust()
	w.write(filepath.Join(w.src, "pairs.bin"), string(model))
	w.mount()
	w.must(done, "umount", w.mnt)
	w.stopDaemon(syscall.SIGTERM)
	w.write(envelope, string(out))
	words := filepath.Join(t.TempDir(), "words")
	w.write(words, "granted")
	// The same key and value as in the other store, the value under another
	// key, and words under a key of the right form.
	last := row[len(row)-1]
	twisted := row[:len(row)-1] + string(last^1)
	forge(t, w, row+"="+envelope, twisted+"="+words)
	w.mount()
	w.wantErrno(filepath.Join(w.mnt, "pairs.bin"), syscall.EACCES)
	var caps []struct{ State string }
	w.query(&caps, "caps")
	if len(caps) != 0 {
		t.Errorf("caps = %+v after forged rows, want none", caps)
	}
	if out := w.must(done, "status"); !strings.Contains(out, "rejected") {
		t.Errorf("status does not tell of the rejected rows:\n%s", out)
	}
}

func forge(t *testing.T, w *world, args ...string) string {
	t.Helper()
	out, err := exec.Command(built.forger, append([]string{filepath.Join(w.state, "store", "db")}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("forger %v: %v\n%s", args, err, out)
	}
	return string(out)
}
