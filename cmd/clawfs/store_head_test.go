package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

// A state directory that is put back as a whole is noticed: by the log, and by
// whoever compares it with a head that lies elsewhere.
func TestStoreHead(t *testing.T) {
	r := newLogRig(t)
	base := filepath.Dir(r.dir)
	url, _ := r.serve()
	add := func(file string) []string {
		return []string{"log", "add", file, "--log", url, "--log-policy", r.policy}
	}
	at := func(name string) string { return filepath.Join(base, name) }
	copied := func(from, to string) {
		if got := r.exec("cp", "-a", from, to); got.code != 0 {
			t.Fatalf("cp: %s", got.stderr)
		}
	}
	r.refused(codeRefused, []string{"store", "head"}, "there is no such file", "store verify")
	r.admit(map[string]string{"a.bin": "a"})
	r.refused(codeSignature, []string{"store", "head", "--key", strings.TrimSuffix(r.key, ".pub")}, "no mint or revoker of the policy")
	var first, second capstore.Head
	r.document(&first, "store", "head", "--out", at("1.head"))
	r.ok(add(at("1.head"))...)
	copied(string(r.state), at("copy"))
	r.admit(map[string]string{"b.bin": "b"})
	r.document(&second, "store", "head", "--key", r.state.RevokeKey(), "--out", at("revoker.head"))
	r.ok("store", "head", "--out", at("2.head"))
	if first.Sequence != 1 || second.Sequence != 2 || first.Store != second.Store {
		t.Errorf("heads %+v and %+v, want facts 1 and 2 of one store", first, second)
	}
	for _, head := range []string{"1.head", "2.head", "revoker.head"} {
		var v verified
		r.document(&v, "store", "verify", "--head", at(head))
		if !v.Checked.Head || v.Found > 0 || v.By != "this process" {
			t.Errorf("store verify --head %s: %+v", head, v)
		}
	}
	r.startDaemon()
	if out := r.ok("store", "verify", "--head", at("2.head")); !strings.Contains(out, "the daemon") || !strings.Contains(out, ": contained") {
		t.Errorf("store verify --head printed\n%s", out)
	}
	r.stopDaemon(syscall.SIGTERM)

	// Where the policy has logs, a head is believed with its proof.
	text, err := os.ReadFile(r.policy)
	if err != nil {
		t.Fatal(err)
	}
	withLogs := func(p *verifier.Policy) { p.Logs = string(text) }
	r.change(withLogs)
	r.refused(codeRefused, []string{"store", "verify", "--head", at("2.head")}, "there is no proof", "next: clawfs log add")
	r.refused(codeRefused, []string{"store", "verify", "--head", at("2.head"), "--proof", at("1.head.tlog-proof")}, "next: clawfs log prove")
	r.ok(add(at("2.head"))...)
	r.ok("store", "verify", "--head", at("2.head"))
	r.refused(codeSignature, []string{"store", "verify", "--head", r.sba("mine.sba", "acme/langid", 1)}, "not signed by a trusted mint or revoker")
	r.refused(codeUsage, []string{"store", "verify", "--proof", at("1.head.tlog-proof")}, "--head")

	// All of it is put back.
	if err := os.Rename(string(r.state), at("newer")); err != nil {
		t.Fatal(err)
	}
	copied(at("copy"), string(r.state))
	r.change(withLogs)
	r.ok("store", "verify")
	older := func(want string) {
		t.Helper()
		got := r.run("store", "verify", "--head", at("2.head"))
		if got.code != codeRefused || !strings.Contains(got.stdout, want) || !strings.Contains(got.stdout, "NOT CONTAINED") || !strings.Contains(got.stdout, "next: ") {
			t.Errorf("store verify --head = %d, %s%s, want 3 and %q", got.code, got.stdout, got.stderr, want)
		}
	}
	older("THE STATE DIRECTORY IS OLDER")
	r.startDaemon()
	older("THE STATE DIRECTORY IS OLDER")
	r.stopDaemon(syscall.SIGTERM)
	r.ok("store", "head", "--out", at("3.head"))
	r.refused(codeRefused, add(at("3.head")), "409", "goes back", "store verify --head FILE")
	r.admit(map[string]string{"c.bin": "c"})
	older("THE STORE WAS PUT BACK")
	r.ok("store", "head", "--out", at("4.head"))
	r.refused(codeRefused, add(at("4.head")), "409", "two histories", "store verify --head FILE")

	// Another store is none.
	r.ok("store", "rebuild")
	older("and this is store ")
	r.ok("store", "head", "--out", at("5.head"))
	r.ok(add(at("5.head"))...)
	r.ok("store", "verify", "--head", at("5.head"))
}
