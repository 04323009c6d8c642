package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// A machine whose store and journal are gone has from the log what was granted and
// what was taken back there, and takes nothing that its policy does not know.
func TestRebuildFromLog(t *testing.T) {
	r, foreign := newLogRig(t), newRig(t)
	url, _ := r.serve()
	r.admit(map[string]string{"a.bin": "a"})
	taken := r.admit(map[string]string{"b.bin": "b"})
	for name, content := range map[string]string{"a.bin": "a", "b.bin": "b"} {
		r.file(name, content)
	}
	r.ok("mount", r.src, r.mnt)
	r.ok("revoke", taken.ID().String(), "--reason", "wrong data")
	var records []kept.Record
	if _, err := kept.Read(r.state.Kept(), func(rec kept.Record) error { records = append(records, rec); return nil }); err != nil || len(records) != 3 {
		t.Fatalf("%d records in the journal, %v, want 3", len(records), err)
	}
	dir := t.TempDir()
	for i, rec := range records {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(path, rec.Envelope, 0o644); err != nil {
			t.Fatal(err)
		}
		r.ok("log", "add", path, "--log", url, "--log-policy", r.policy)
	}
	r.ok("log", "add", r.sba("langid.sba", "acme/langid", 1), "--log", url, "--log-policy", r.policy)
	r.ok("umount", r.mnt)
	r.stopDaemon(syscall.SIGKILL)
	for _, lost := range []string{r.state.Store(), r.state.Kept()} {
		if err := os.RemoveAll(lost); err != nil {
			t.Fatal(err)
		}
	}
	from := []string{"store", "rebuild", "--from", "log", "--log", url, "--log-policy", r.policy}
	if got := foreign.run(from...); got.code != codeRefused || !strings.Contains(got.stderr, "nothing was changed") {
		t.Errorf("rebuild by another policy: exit code %d, %s", got.code, got.stderr)
	}
	var made remade
	r.document(&made, from...)
	if made.Records[capstore.RecordCapability] != 2 || made.Records[capstore.RecordRevocation] != 1 || len(made.Missing) > 0 {
		t.Errorf("rebuilt %+v, missing %q, want 2 capabilities and 1 revocation", made.Records, made.Missing)
	}
	r.ok("mount", r.src, r.mnt)
	if !r.opens("a.bin", "a") || r.opens("b.bin", "b") {
		t.Error("want what the log has granted, and what it takes back refused")
	}
	if caps := r.caps(); len(caps) != 2 || !slices.ContainsFunc(caps, func(c control.Capability) bool { return c.ID == taken.ID() && c.State == capRevoked }) {
		t.Errorf("%+v, want 2 capabilities, %s revoked", caps, taken.ID())
	}
}
