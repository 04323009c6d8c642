package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// signedBy is a capability over files that another operator's mint signs.
func (r *rig) signedBy(mint dsse.PrivateKey, files map[string]string) []byte {
	r.t.Helper()
	var st capstore.Statement
	r.capabilityFor(r.measured(files), func(p *capstore.Predicate) {
		p.Minter.KeyID = mint.Public().ID()
		st = capstore.NewStatement(r.measured(files), *p)
	})
	payload, err := st.Payload()
	if err != nil {
		r.t.Fatal(err)
	}
	envelope, err := dsse.Sign(dsse.PayloadType, payload, mint)
	if err != nil {
		r.t.Fatal(err)
	}
	return envelope
}

func accepts(threshold int64, operators ...string) func(*verifier.Policy) {
	return func(p *verifier.Policy) {
		p.Accept = []verifier.AcceptRule{{Models: []string{"acme/*"}, Operators: operators, Threshold: threshold}}
	}
}

// A policy that changes counts in the daemon and in a mount within seconds, with or
// without each other.
func TestRepinMount(t *testing.T) {
	r := newRig(t)
	first, err := os.ReadFile(r.state.Policy())
	if err != nil {
		t.Fatal(err)
	}
	bob := r.operator("bob")
	r.admit(map[string]string{"model.bin": "weights"})
	r.admitText(r.signedBy(bob, map[string]string{"other.bin": "bob's"}))
	withBob, err := os.ReadFile(r.state.Policy())
	if err != nil {
		t.Fatal(err)
	}
	write := func(text []byte) {
		t.Helper()
		if err := os.WriteFile(r.state.Policy(), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(first)
	r.file("model.bin", "weights")
	r.file("other.bin", "bob's")
	r.ok("mount", r.src, r.mnt)
	server := r.serverPID()
	if !r.opens("model.bin", "weights") || r.opens("other.bin", "bob's") || len(r.status().Rejected) != 1 {
		t.Fatal("want one file granted, and a row of a mint that nobody trusts")
	}
	become := func(what string, model, other bool) {
		t.Helper()
		r.eventually(what, func() bool { return r.opens("model.bin", "weights") == model && r.opens("other.bin", "bob's") == other })
	}
	write(withBob)
	become("the row of a mint that is trusted now opens a file", true, true)
	held, err := os.Open(filepath.Join(r.mnt, "model.bin"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	readable := func() bool { _, err := held.ReadAt(make([]byte, 7), 0); return err == nil }
	if !readable() {
		t.Error("what is open and granted cannot be read")
	}
	r.change(accepts(2, "local", "bob"))
	become("two operators are needed, and each file has one", false, false)
	r.eventually("what was opened under the lower threshold is taken back", func() bool { return !readable() })
	r.change(accepts(1, "local", "bob"))
	become("one is enough again", true, true)
	if s := r.status(); len(s.Warnings) != 0 || len(s.Rejected) != 0 {
		t.Errorf("warnings %q, rejected %v", s.Warnings, s.Rejected)
	}
	r.eventually("the mount says that it has everything", func() bool {
		s := r.status()
		return len(s.Mounts) == 1 && s.Mounts[0].Report != nil && s.Mounts[0].Report.Generation == s.Generation && !s.Mounts[0].Report.OldKeys
	})

	// A request is answered by the policy as it is at its moment.
	carol := r.operator("carol")
	r.change(accepts(1, "local", "bob", "carol"))
	r.file("third.bin", "carol's")
	text := filepath.Join(t.TempDir(), "carol.cap")
	if err := os.WriteFile(text, r.signedBy(carol, map[string]string{"third.bin": "carol's"}), 0o644); err != nil {
		t.Fatal(err)
	}
	r.ok("import", text)
	r.eventually("a capability of a mint that came with the policy opens a file", func() bool { return r.opens("third.bin", "carol's") })

	r.stopDaemon(syscall.SIGKILL)
	r.change(func(p *verifier.Policy) {
		accepts(1, "bob")(p)
		p.Mints = slices.DeleteFunc(p.Mints, func(o verifier.Operator) bool { return o.Operator != "bob" })
	})
	become("without a daemon, a mint that was struck off opens nothing", false, true)
	r.startDaemon()
	become("and with a daemon again", false, true)
	if s := r.status(); len(s.Rejected) != 2 || slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, "older policy") }) {
		t.Errorf("rejected %v, warnings %q", s.Rejected, s.Warnings)
	}
	if r.serverPID() != server {
		t.Errorf("process %d serves the mount, and %d did", r.serverPID(), server)
	}
}

// A signed policy that has ended is replaced by its next revision without a restart,
// and an older one that is put back is not taken.
func TestRepinSignedPolicy(t *testing.T) {
	r := newRig(t)
	root, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	r.admit(map[string]string{"model.bin": "weights"})
	r.file("model.bin", "weights")
	r.sharedPolicy(1, time.Now().AddDate(1, 0, 0), root)
	r.ok("mount", r.src, r.mnt)
	server := r.serverPID()
	if !r.opens("model.bin", "weights") {
		t.Fatal("the granted file is refused")
	}
	old, err := os.ReadFile(r.state.Policy())
	if err != nil {
		t.Fatal(err)
	}
	r.sharedPolicy(2, time.Now().Add(time.Second), root)
	r.eventually("nothing opens after the end of the policy", func() bool { return !r.opens("model.bin", "weights") })
	if err := os.WriteFile(r.state.Policy(), old, 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * repinEvery) // nothing may happen in it
	if r.opens("model.bin", "weights") {
		t.Error("an older revision that was put back opens files")
	}
	if !r.warns("goes on with the policy before") {
		t.Errorf("warnings with an older policy: %q", r.status().Warnings)
	}
	r.ok("policy", "install", r.state.SignedPolicy())
	r.sharedPolicy(3, time.Now().AddDate(1, 0, 0), root)
	r.eventually("the next revision opens files", func() bool { return r.opens("model.bin", "weights") })
	if r.serverPID() != server || len(r.status().Warnings) != 0 {
		t.Errorf("process %d serves the mount, and %d did; warnings %q", r.serverPID(), server, r.status().Warnings)
	}
}
