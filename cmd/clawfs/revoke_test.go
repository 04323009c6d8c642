package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

func TestRevoke(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH")+":"+filepath.Join(repository(t), "cmd/clawfs/testdata/signer"))
	r := newRig(t)
	first := r.admit(map[string]string{"a.bin": "a"})
	second := r.admit(map[string]string{"b.bin": "b"})
	for _, name := range []string{"a", "b"} {
		r.file(name+".bin", name)
	}
	r.ok("mount", r.src, r.mnt)
	if !r.opens("a.bin", "a") || !r.opens("b.bin", "b") {
		t.Fatal("the granted files are refused")
	}
	stranger := filepath.Join(t.TempDir(), "stranger")
	r.ok("keygen", "--out", stranger)
	id := first.ID().String()
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no reason", []string{id}, codeUsage, "reason"},
		{"empty reason", []string{id, "--reason", ""}, codeUsage, "reason"},
		{"reason of two lines", []string{id, "--reason", "a\nb"}, codeUsage, "reason"},
		{"no ID", []string{"--reason", "x"}, codeUsage, "want `clawfs revoke ID...`"},
		{"unknown prefix", []string{"0123456789", "--reason", "x"}, codeRefused, "names 0 things"},
		{"short prefix", []string{id[:7], "--reason", "x"}, codeRefused, "want at least 8 digits"},
		{"one good and one bad", []string{id, "nonsense", "--reason", "x"}, codeRefused, "nothing is revoked"},
		{"unknown kind", []string{id, "--kind", "everything", "--reason", "x"}, codeUsage, "kind"},
		{"stranger's key", []string{id, "--reason", "x", "--key", stranger}, codeSignature, "sign"},
		{"the mint's key", []string{id, "--reason", "x", "--key", r.state.MintKey()}, codeSignature, "sign"},
		{"stranger's key of a signer program", []string{id, "--reason", "x", "--key", "openssl:" + stranger}, codeSignature, "sign"},
		{"no key", []string{id, "--reason", "x", "--key", stranger + "x"}, codeError, "no such file"},
	} {
		r.refused(tt.code, append([]string{"revoke"}, tt.args...), tt.want)
	}
	if !r.opens("a.bin", "a") || r.status().Revocations != 0 {
		t.Fatal("a refused revocation revoked")
	}
	var done []revoked
	r.document(&done, "revoke", id[:minPrefix], "--reason", "training data withdrawn")
	if len(done) != 1 || done[0].Kind != capstore.KindClaim || done[0].Target != first.Claim().String() || done[0].Reason != "training data withdrawn" {
		t.Errorf("revoke -o json = %+v, want the claim %s of capability %s", done, first.Claim(), id)
	}
	// With the key behind a signer program.
	r.document(&done, "revoke", id[:minPrefix], "--reason", "training data withdrawn", "--key", "openssl:"+r.state.RevokeKey())
	if len(done) != 1 || done[0].Target != first.Claim().String() {
		t.Errorf("revoke with a signer program = %+v, want the claim %s", done, first.Claim())
	}
	// One thing named twice is taken back once.
	r.document(&done, "revoke", id[:minPrefix], id, "--reason", "training data withdrawn")
	if len(done) != 1 {
		t.Errorf("revoke of one ID given twice made %d revocations, want 1", len(done))
	}
	// The full id means the same as its first digits.
	r.document(&done, "revoke", id, "--reason", "training data withdrawn")
	if len(done) != 1 || done[0].Target != first.Claim().String() {
		t.Errorf("revoke of the full id = %+v, want the claim %s", done, first.Claim())
	}
	// No sleep: revoke returns when the mounts know.
	if r.opens("a.bin", "a") {
		t.Error("the file opened after revoke returned")
	}
	if !r.opens("b.bin", "b") {
		t.Error("revoking one capability took another's file")
	}
	var caps []control.Capability
	r.document(&caps, "caps")
	for _, c := range caps {
		if c.ID == first.ID() && (c.State != capRevoked || c.Revoked == nil) || c.ID == second.ID() && c.State != capLive {
			t.Errorf("caps shows %s as %s", c.ID, c.State)
		}
	}
	// It holds over every restart.
	r.stopDaemon(syscall.SIGKILL)
	r.startDaemon()
	if err := syscall.Kill(r.serverPID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.eventually("the mount is back", func() bool {
		return r.serverPID() != 0 && r.isMounted() && exec.Command("cat", filepath.Join(r.mnt, "b.bin")).Run() == nil
	})
	if r.opens("a.bin", "a") {
		t.Error("the revoked file opened after everything was restarted")
	}
	r.ok("revoke", "--kind", "file", second.Subjects()[0].Digest.String(), "--reason", "wrong file")
	if r.opens("b.bin", "b") {
		t.Error("a file that was revoked by its content opened")
	}
	if list := r.ok("caps"); strings.Count(list, "live, 1 of 1 files revoked") != 1 {
		t.Errorf("caps:\n%s", list)
	}
	digest := second.Subjects()[0].Digest.String()
	if list := r.ok("caps", "--files"); !regexp.MustCompile(`(?m)^\S+ +revoked .* ` + digest + ` `).MatchString(list) {
		t.Errorf("caps --files:\n%s", list)
	}
	r.document(&caps, "caps")
	for _, c := range caps {
		for _, f := range c.Files {
			if want := f.SHA256.String() == digest; (f.Revoked != nil) != want || want && f.Revoked.Reason != "wrong file" {
				t.Errorf("%s: revoked by %+v", f.SHA256, f.Revoked)
			}
		}
	}
}

// A model that was built from one that is taken back is marked wherever it is
// shown, opens all the same, and falls with --derived.
func TestRevokedBase(t *testing.T) {
	r := newRig(t)
	base := r.admit(map[string]string{"base.bin": "base"})
	middle := r.admitSubjects(r.measured(map[string]string{"middle.bin": "middle"}), base.Claim())
	top := r.admitSubjects(r.measured(map[string]string{"top.bin": "top"}), middle.Claim())
	other := r.admit(map[string]string{"other.bin": "other"})
	kept := r.admitSubjects(r.measured(map[string]string{"kept.bin": "kept"}), other.Claim())
	for _, name := range []string{"base", "middle", "top", "other", "kept"} {
		r.file(name+".bin", name)
	}
	r.ok("mount", r.src, r.mnt)
	before := r.ok("caps")
	if strings.Contains(before, "base revoked") {
		t.Errorf("marked before anything was revoked:\n%s", before)
	}
	got := r.run("revoke", base.ID().String(), "--reason", "poisoned data")
	for _, c := range []capstore.Capability{middle, top} {
		if !strings.Contains(got.stderr, c.ID().String()[:shortID]+") was built from what was taken back") {
			t.Errorf("revoke does not name %s:\n%s", c.ID(), got.stderr)
		}
	}
	if strings.Contains(got.stderr, other.ID().String()[:shortID]) {
		t.Errorf("revoke names what was built from nothing:\n%s", got.stderr)
	}
	if r.opens("base.bin", "base") || !r.opens("middle.bin", "middle") || !r.opens("top.bin", "top") {
		t.Error("revoking the base alone did not end the base alone")
	}
	if list := r.ok("caps"); strings.Count(list, "live, base revoked") != 2 {
		t.Errorf("caps:\n%s", list)
	}
	var s control.Status
	r.document(&s, "status")
	if !strings.Contains(strings.Join(s.Warnings, "\n"), "2 live capabilities are for models that were built from one that was taken back") {
		t.Errorf("status warns %q", s.Warnings)
	}
	if why := r.ok("why", filepath.Join(r.mnt, "top.bin")); !strings.Contains(why, "WARNING: built from a model that was taken back since: claim "+middle.Claim().String()) || !strings.Contains(why, "poisoned data") {
		t.Errorf("why:\n%s", why)
	}
	// What is built from something else that is taken back is another's decision.
	var done []revoked
	r.document(&done, "revoke", other.ID().String(), "--reason", "another", "--derived")
	if len(done) != 2 || !slices.ContainsFunc(done, func(d revoked) bool { return d.Target == kept.Claim().String() }) {
		t.Errorf("revoke --derived took back %+v, want other and what was built from it", done)
	}
	if r.opens("kept.bin", "kept") || !r.opens("middle.bin", "middle") || !r.opens("top.bin", "top") {
		t.Error("--derived did not take back what was built from other, and that alone")
	}
	r.document(&done, "revoke", base.ID().String(), "--reason", "poisoned data", "--derived")
	if len(done) != 3 {
		t.Errorf("revoke --derived took back %+v, want the base and two models", done)
	}
	if r.opens("middle.bin", "middle") || r.opens("top.bin", "top") {
		t.Error("--derived did not take back what was built from the base")
	}
}
