package main

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/verifier/dsse"
)

// A capability is handed on with a key in a file, in an agent, and behind a
// signer program: each is the key that the capability names, or it signs nothing.
func TestDelegateWithAnyKey(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	t.Setenv("SSH_AUTH_SOCK", startAgent(t.Fatalf, t.Cleanup))
	signers := path("bin")
	if err := os.Mkdir(signers, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", signers+":"+filepath.Join(repository(t), "cmd/clawfs/testdata/signer")+":"+os.Getenv("PATH"))
	liar := `#!/bin/sh
request=$(cat)
case $request in
*'"op":"public"'*) jq -n --rawfile pem "$(printf '%s' "$request" | jq -r .key)" '{publicKey: $pem}' ;;
*) echo '{"signature":"AAAA"}' ;;
esac
`
	if err := os.WriteFile(filepath.Join(signers, "clawfs-signer-liar"), []byte(liar), 0o755); err != nil {
		t.Fatal(err)
	}

	var ids []dsse.KeyID
	for _, name := range []string{"lead", "agent"} {
		if got := r.exec("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path(name)); got.code != 0 {
			t.Fatalf("ssh-keygen: %+v", got)
		}
	}
	r.ok("keygen", "--algorithm", "ecdsa-p256", "--out", path("program"))
	r.ok("keygen", "--out", path("stranger"))
	for _, name := range []string{"agent.pub", "lead.pub", "program.pub"} {
		text, err := os.ReadFile(path(name))
		if err != nil {
			t.Fatal(err)
		}
		key, err := dsse.ParsePublicKey(text)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, key.ID())
	}
	if got := r.exec("ssh-add", "-q", path("agent")); got.code != 0 {
		t.Fatalf("ssh-add: %+v", got)
	}
	if err := os.Remove(path("agent")); err != nil {
		t.Fatal(err)
	}
	root := r.delegable(r.measured(map[string]string{"a.bin": "a"}), slices.Sorted(slices.Values(ids)))
	if err := os.WriteFile(path("all.cap"), root, 0o644); err != nil {
		t.Fatal(err)
	}

	for i, ref := range []string{"ssh-agent:" + path("agent.pub"), path("lead"), "openssl:" + path("program")} {
		out := path("narrow" + strconv.Itoa(i))
		var d handedOn
		r.document(&d, "delegate", path("all.cap"), "--key", ref, "--uid", "1000", "--out", out)
		if len(d.DelegatedBy) != 1 || d.DelegatedBy[0] != ids[i] {
			t.Errorf("--key %s: delegated by %q, want %s", ref, d.DelegatedBy, ids[i])
		}
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.admitText(text); got.ID() != d.ID {
			t.Errorf("--key %s: the store has %s, want %s", ref, got.ID(), d.ID)
		}
	}

	// To standard output goes the capability, and to a file only if there is none.
	if got := r.ok("delegate", path("all.cap"), "--key", path("lead"), "--out", "-"); strings.Count(got, "\n") != 2 || !strings.HasPrefix(got, "{") {
		t.Errorf("--out - printed %q, want two envelopes", got)
	}
	r.refused(1, []string{"delegate", path("all.cap"), "--key", path("lead"), "--out", path("narrow0")}, "exists already", "next: give another --out")

	out := path("none.cap")
	for _, tt := range []struct {
		code  int
		key   string
		texts []string
	}{
		{3, path("stranger"), []string{"it may not be handed on", "does not name the key"}},
		{4, "liar:" + path("program.pub"), []string{"its answer is not a signature of that key"}},
		{1, "ssh-agent:" + path("lead.pub"), []string{"none of its 1 keys", "next: ssh-add"}},
		{1, "nosuch:key", []string{"next: install clawfs-signer-nosuch"}},
		{2, "ssh-agent:", []string{"want a key after the colon"}},
		{1, path("lead.pub"), []string{"is a public key"}},
	} {
		r.refused(tt.code, []string{"delegate", path("all.cap"), "--key", tt.key, "--uid", "1000", "--out", out}, tt.texts...)
	}
	if _, err := os.Lstat(out); err == nil {
		t.Error("a delegation that was refused wrote its file")
	}
}
