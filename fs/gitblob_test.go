package fs

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
)

func gitIDOf(data []byte) string {
	id := sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(data), data))
	return hex.EncodeToString(id[:])
}

func TestGitAddress(t *testing.T) {
	id := gitIDOf([]byte("x"))
	for name, want := range map[string]bool{
		id: true, strings.ToUpper(id): strings.ToUpper(id) == id, id[1:]: false, id + "0": false, "sha1-" + id: false, "": false,
		strings.Repeat("g", 40): false, strings.Repeat("0", 40): true,
	} {
		if _, ok := gitAddress(name); ok != want {
			t.Errorf("gitAddress(%q) = %v, want %v", name, ok, want)
		}
	}
}

// The id is git's own, and is found of checked bytes only.
func TestGitIDOfContent(t *testing.T) {
	data := sample(90, hashpipe.UnitSize+77)
	p := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(p, data, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("git", "hash-object", "--no-filters", p).Output()
	if err != nil {
		t.Fatalf("git hash-object: %v (apt-get install git)", err)
	}
	want := strings.TrimSpace(string(out))
	m, err := hashpipe.Measure(t.Context(), bytes.NewReader(data), nil)
	if err != nil {
		t.Fatal(err)
	}
	proven := func() proof { return proof{tree: m.Tree(), sum: m.Sum(), digest: m.Sum().Claim(), git: new(gitID)} }
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pr := proven()
	if err := pr.compare("data", f); err != nil || pr.git.is(want) {
		t.Errorf("a name that is no id: %v, computed %v", err, pr.git.is(want))
	}
	if err := pr.compare(want, f); err != nil || !pr.git.is(want) || pr.git.is(gitIDOf(nil)) {
		t.Errorf("compare: %v, is %v", err, pr.git.is(want))
	}
	if _, err := f.WriteAt([]byte{data[5] ^ 1}, 5); err != nil {
		t.Fatal(err)
	}
	if pr := proven(); pr.compare(want, f) == nil || pr.git.is(want) {
		t.Error("changed bytes have an id")
	}
}

// Between the answer of a link and the open the blob is exchanged: for another
// approved content, and for a link to one.
func TestGitLinkExchanged(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		config, other := sample(91, 5000), sample(92, 5000)
		m.grant("config.json", config)
		m.grant("other.json", other)
		id := gitIDOf(config)
		blob := m.write("blobs/"+id, config)
		m.write("snapshots/r/other.json", other)
		if err := os.Symlink("../../blobs/"+id, filepath.Join(m.src, "snapshots/r/config.json")); err != nil {
			t.Fatal(err)
		}
		m.reads("snapshots/r/config.json", config)
		m.reads("blobs/"+id, config)
		if err := os.WriteFile(blob, other, 0o644); err != nil {
			t.Fatal(err)
		}
		m.refuses("blobs/"+id, syscall.EACCES, ReasonWrongName)
		if err := os.Remove(blob); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../snapshots/r/other.json", blob); err != nil {
			t.Fatal(err)
		}
		m.refuses("blobs/"+id, syscall.EACCES, ReasonWrongName)
		if r := m.run("read", m.at("snapshots/r/config.json")); r.Errno != syscall.EACCES {
			t.Errorf("a link to a link: %v, want EACCES", r)
		}
	})
}
