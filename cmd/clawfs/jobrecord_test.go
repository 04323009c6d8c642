package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/capstore"
)

// A record whose mint was revoked since is shown with a warning.
func TestRecordOfARevokedMint(t *testing.T) {
	r := newRig(t)
	sba := r.publish("counts", "count")
	if got := r.run("grant", sba, "--wait", "--timeout", "2m"); got.code != codeDone {
		t.Fatalf("grant: %d, %s", got.code, got.stderr)
	}
	id, file := r.jobs()[0].ID, filepath.Join(t.TempDir(), "provenance.json")
	if got := r.run("record", id, "--out", file); got.code != codeDone || strings.Contains(got.stderr, "revoked") || !strings.Contains(got.stdout, "MINTED") {
		t.Errorf("record: %d\n%s\n%s", got.code, got.stdout, got.stderr)
	}
	var before, after signedRecord
	r.document(&before, "record", id)
	if before.Verdict != capstore.Minted || before.Revoked != nil {
		t.Errorf("record = %+v", before)
	}
	r.ok("revoke", "--kind", "mint", string(before.Signer), "--reason", "stolen key")
	for _, args := range [][]string{{"record", id}, {"record", "--file", file}} {
		if got := r.run(args...); got.code != codeDone || !strings.Contains(got.stderr, "WARNING: the mint key that signed this was revoked") {
			t.Errorf("%q: %d, %q", args, got.code, got.stderr)
		}
		r.document(&after, args...)
		if after.Revoked == nil || after.Revoked.Target != string(before.Signer) {
			t.Errorf("%q = %+v, want it marked", args, after)
		}
	}
}
