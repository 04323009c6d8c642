package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// opensAs reports whether a user's cat gets content. Any other answer than the
// content or "Permission denied" fails the test.
func (r *rig) opensAs(uid uint32, name, content string) bool {
	r.t.Helper()
	cmd := exec.Command("cat", filepath.Join(r.mnt, name))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	switch {
	case err == nil && out.String() == content:
		return true
	case err != nil && out.Len() == 0 && strings.Contains(errs.String(), "Permission denied"):
		return false
	}
	r.t.Fatalf("cat %s as user %d: %v, %q, %q; want %q or Permission denied", name, uid, err, &out, &errs, content)
	return false
}

// reachable lets every user reach the mount point.
func (r *rig) reachable() {
	r.t.Helper()
	for dir := filepath.Dir(r.mnt); dir != filepath.Dir(dir) && filepath.Base(dir) != filepath.Base(os.TempDir()); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
}

// From the flags of grant to an open by one user, and on: handed on twice and
// honoured by a machine that builds nothing.
func TestNarrow(t *testing.T) {
	r := newRig(t)
	r.reachable()
	sba := r.publish("counts", "count")
	const want = "a 2\nb 1\n"
	if err := os.Mkdir(filepath.Join(r.src, "team"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.file("counts.txt", want)
	r.file("team/counts.txt", want)
	lead, host := filepath.Join(filepath.Dir(r.src), "lead"), filepath.Join(filepath.Dir(r.src), "host")
	r.ok("keygen", "--out", lead)
	r.ok("keygen", "--out", host)
	r.ok("mount", r.src, r.mnt)
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	terms := []string{"--path-prefix", "team", "--uid", "1000,1001", "--not-after", until.Format(time.RFC3339), "--delegate-to", lead + ".pub"}
	r.ok(append([]string{"grant", sba, "--wait", "--timeout", "2m"}, terms...)...)
	caps := r.caps()
	if len(caps) != 1 || !caps[0].NotAfter.Equal(until) || len(caps[0].Delegates) != 1 || len(caps[0].Restrictions) != 1 || caps[0].State != capLive {
		t.Fatalf("capabilities %+v, want one until %v with one delegate", caps, until)
	}
	for _, x := range []struct {
		uid  uint32
		name string
		want bool
	}{{1000, "team/counts.txt", true}, {1000, "counts.txt", false}, {1002, "team/counts.txt", false}, {0, "team/counts.txt", false}} {
		if got := r.opensAs(x.uid, x.name, want); got != x.want {
			t.Errorf("user %d opens %s: %v, want %v", x.uid, x.name, got, x.want)
		}
	}
	got := r.run("why", filepath.Join(r.mnt, "team/counts.txt"))
	if got.code != codeRefused || !strings.Contains(got.stdout, "restricted") || !strings.Contains(got.stdout, "the users 1000, 1001 only, got user 0") || !strings.Contains(got.stdout, "  only ") {
		t.Errorf("why: %d, %s", got.code, got.stdout)
	}
	if out := r.ok("ls", "-l", filepath.Join(r.mnt, "team")); !strings.Contains(out, "restricted, only paths team/; uids [1000 1001]") {
		t.Errorf("ls -l:\n%s", out)
	}
	if out := r.ok("caps"); !strings.Contains(out, "live, restricted") {
		t.Errorf("caps:\n%s", out)
	}
	jobs := r.jobs()
	if out := r.ok("job", jobs[0].ID); !strings.Contains(out, "paths team/") || !strings.Contains(out, string(caps[0].Delegates[0])) {
		t.Errorf("job:\n%s", out)
	}

	// Equal terms are the job that is there, others another.
	r.ok(append([]string{"grant", sba}, terms...)...)
	if n := len(r.jobs()); n != 1 {
		t.Errorf("%d jobs after the same grant again, want 1", n)
	}
	r.ok("grant", sba, "--uid", "0", "--wait", "--timeout", "2m")
	if n := len(r.jobs()); n != 2 || !r.opensAs(0, "counts.txt", want) || r.opensAs(1002, "counts.txt", want) {
		t.Errorf("%d jobs, want 2, and root alone opens the file", n)
	}

	// Handed on: by an ID, and then by a file.
	team, one := filepath.Join(filepath.Dir(r.src), "team.cap"), filepath.Join(filepath.Dir(r.src), "one.cap")
	var d handedOn
	r.document(&d, "delegate", caps[0].ID.String()[:minPrefix], "--key", lead, "--to", host+".pub", "--uid", "1001", "--out", team)
	if len(d.DelegatedBy) != 1 || len(d.Restrictions) != 2 || !d.NotAfter.Equal(until) || d.Model != "acme/counts" {
		t.Errorf("delegate = %+v", d)
	}
	out := r.ok("delegate", team, "--key", host, "--mount", r.mnt, "--out", one)
	if !strings.Contains(out, "and only     mounts "+r.mnt) {
		t.Errorf("delegate:\n%s", out)
	}
	r.refused(codeRefused, []string{"delegate", one, "--key", lead, "--out", one + "2"}, "does not name the key")
	r.refused(codeUsage, []string{"delegate", "nosuch", "--key", lead, "--out", one + "2"}, "neither a file nor")
	r.refused(codeRefused, []string{"delegate", "00000000", "--key", lead, "--out", one + "2"}, "begins the IDs of 0 capabilities")
	r.refused(codeError, []string{"delegate", team, "--key", host, "--out", one}, one)
	r.ok("export", caps[0].ID.String()[:minPrefix], "--out", one+".root")
	if text, err := os.ReadFile(one + ".root"); err != nil || bytes.Count(text, []byte("\n")) > 0 {
		t.Errorf("export of what a mint signed has %d line breaks, %v", bytes.Count(text, []byte("\n")), err)
	}

	// A machine that trusts this mint and has no other capability.
	r.ok("umount", r.mnt)
	policy, err := os.ReadFile(r.state.Policy())
	if err != nil {
		t.Fatal(err)
	}
	other := newRig(t)
	other.reachable()
	other.src = r.src
	other.mnt = r.mnt
	r.refused(codeRefused, []string{"import", sba}, "capability")
	other.refused(codeSignature, []string{"import", one}, "is not pinned in the policy")
	if pid := other.daemonPID(); pid > 0 {
		other.stopDaemon(syscall.SIGTERM)
	}
	if err := os.WriteFile(other.state.Policy(), policy, 0o600); err != nil {
		t.Fatal(err)
	}
	other.ok("mount", r.src, r.mnt)
	if other.opensAs(1001, "team/counts.txt", want) {
		t.Error("it opens before the capability is there")
	}
	var in importedCapability
	other.document(&in, "import", one)
	if in.Outcome != control.RecordAdmitted || in.Capability == nil || len(in.Capability.DelegatedBy) != 2 || in.Capability.State != capLive {
		t.Errorf("import = %+v", in)
	}
	other.document(&in, "import", one)
	if in.Outcome != control.RecordKnown {
		t.Error("imported twice, and added twice")
	}
	for _, x := range []struct {
		uid  uint32
		name string
		want bool
	}{{1001, "team/counts.txt", true}, {1000, "team/counts.txt", false}, {1001, "counts.txt", false}, {0, "team/counts.txt", false}} {
		if got := other.opensAs(x.uid, x.name, want); got != x.want {
			t.Errorf("handed on: user %d opens %s: %v, want %v", x.uid, x.name, got, x.want)
		}
	}
	// A key that handed it on is taken back, and the capability falls.
	key, err := os.ReadFile(host + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	public, err := dsse.ParsePublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	other.ok("revoke", "--kind", "mint", string(public.ID())[:minPrefix], "--reason", "left the team", "--key", r.state.RevokeKey())
	if other.opensAs(1001, "team/counts.txt", want) {
		t.Error("it opens after the key that handed it on was revoked")
	}
	other.ok("umount", other.mnt)
}

func TestGrantTermsRefused(t *testing.T) {
	r := newRig(t)
	sba := r.publish("counts", "count")
	for _, x := range []struct {
		args []string
		want string
	}{
		{[]string{"--path-prefix", "/team"}, "relative to the root of the mount"},
		{[]string{"--path-prefix", "../team"}, "--path-prefix ../team: "},
		{[]string{"--path-prefix", "."}, "--path-prefix .: "},
		{[]string{"--path-prefix", ""}, "--path-prefix '': "},
		{[]string{"--path", "team", "--path-prefix", "other", "--path", "a//b"}, "--path a//b: "},
		{[]string{"--path", "team", "--path", "team"}, "--path, --path-prefix, --uid or --mount: paths: team follows team"},
		{[]string{"--path", "team/"}, "--path-prefix team/"},
		{[]string{"--uid", "65534"}, "--uid: uids: 65534 is no user id of its own"},
		{[]string{"--uid", "-1"}, "no user id of its own"},
		{[]string{"--uid", "root"}, "uid"},
		{[]string{"--mount", "models"}, "absolute"},
		{[]string{"--not-after", "2020-01-01"}, "in the past"},
		{[]string{"--not-after", "soon"}, "a time such as"},
		{[]string{"--delegate-to", "nobody.pub"}, "neither a key id"},
	} {
		r.refused(codeUsage, append([]string{"grant", sba}, x.args...), x.want)
	}
	r.startDaemon()
	// Nor does the daemon believe the verb.
	envelope, err := os.ReadFile(sba)
	if err != nil {
		t.Fatal(err)
	}
	c := control.NewClient(r.state.Socket())
	if j, err := c.Submit(t.Context(), control.Submission{SBA: envelope, Terms: capstore.Terms{Restrict: &capstore.Restrict{UIDs: []int64{}}}}); err == nil || !strings.Contains(err.Error(), "uids is empty") {
		t.Errorf("an empty list of users is job %s, %v", j.ID, err)
	}
	if res, err := c.SubmitRecord(t.Context(), control.RecordSubmission{Kind: "verdict", Envelope: envelope}); err == nil || !strings.Contains(err.Error(), "it is a sba") {
		t.Errorf("a record of no kind: %+v, %v", res, err)
	}
	if res, err := c.SubmitRecord(t.Context(), control.RecordSubmission{Kind: capstore.RecordCapability, Envelope: envelope}); err == nil || !strings.Contains(err.Error(), "it is a sba") {
		t.Errorf("an attestation as a capability: %+v, %v", res, err)
	}
	if n := len(r.jobs()); n != 0 {
		t.Errorf("%d jobs", n)
	}
}
