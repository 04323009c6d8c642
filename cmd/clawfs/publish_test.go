package main

import (
	"bufio"
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/crypto/bcrypt"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/registry"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/rebuild/oci/ocitest"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// trusts makes r's policy name the mint and the revoker of other. A daemon that
// runs goes on without them.
func (r *rig) trusts(other *rig) {
	r.t.Helper()
	mine, err := r.state.LoadPolicy()
	if err != nil {
		r.t.Fatal(err)
	}
	theirs, err := other.state.LoadPolicy()
	if err != nil {
		r.t.Fatal(err)
	}
	p := mine.Policy
	for _, o := range theirs.Mints {
		if p, err = p.AddMint("other", o.Keys[0]); err != nil {
			r.t.Fatal(err)
		}
	}
	for _, o := range theirs.Revokers {
		if p, err = p.AddRevoker("other", o.Keys[0]); err != nil {
			r.t.Fatal(err)
		}
	}
	text, err := p.Encode()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := durable.Replace(r.state.Policy(), text, 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// answer runs a command line with -o json that must end with code.
func (r *rig) answer(code int, v any, args ...string) result {
	r.t.Helper()
	got := r.run(append(args, "-o", "json")...)
	if got.code != code {
		r.t.Fatalf("clawfs %q: exit code %d, want %d\n%s%s", args, got.code, code, got.stdout, got.stderr)
	}
	if err := json.Unmarshal([]byte(got.stdout), v, json.RejectUnknownMembers(true)); err != nil {
		r.t.Fatalf("clawfs %q -o json: %v in\n%s", args, err, got.stdout)
	}
	return got
}

func (r *rig) pull(code int, args ...string) (pullResult, result) {
	r.t.Helper()
	var p pullResult
	got := r.answer(code, &p, append([]string{"pull"}, args...)...)
	return p, got
}

func (r *rig) caps() []control.Capability {
	r.t.Helper()
	var list []control.Capability
	r.document(&list, "caps")
	return list
}

// One machine publishes an attestation, rebuilds it, and pushes what it found;
// another, which builds nothing, opens the file by it until it is taken back.
func TestPublishAndPull(t *testing.T) {
	addr, _ := ocitest.Distribution(t, "")
	place := "oci://" + addr + "/acme/trust"
	builder, reader := newRig(t), newRig(t)
	sba := builder.publish("counts", "count")
	proof, err := os.ReadFile("../../verifier/tlog/testdata/11.tlog-proof")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sba+proofSuffix, proof, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := builder.run("grant", sba, "--wait", "--timeout", "2m"); got.code != 0 {
		t.Fatalf("grant: %d, %s", got.code, got.stderr)
	}
	job := builder.jobs()[0]
	var out []pushed
	builder.document(&out, "push", place, sba, "--job", job.ID)
	if len(out) != 3 || out[0].Kind != registry.SBA || out[1].Kind != registry.Provenance || out[2].Kind != registry.Capability || out[2].ID != job.Capability || out[2].Outcome != registry.Pushed {
		t.Fatalf("push = %+v, want the SBA, the record and the capability of the job", out)
	}
	builder.document(&out, "push", place, "--all-capabilities", "--revocations", "--capability", job.Capability.String()[:minPrefix])
	if len(out) != 1 || out[0].Outcome != registry.Present {
		t.Errorf("pushing it again = %+v, want one that is present", out)
	}

	// Whoever does not know the mint takes nothing, and that is no error.
	const want = "a 2\nb 1\n"
	reader.file("counts.txt", want)
	p, _ := reader.pull(0, place, "--admit")
	if len(p.Records) != 3 || p.Counts[control.RecordSkipped] != 1 || len(reader.caps()) != 0 {
		t.Errorf("pull by one who knows no mint = %+v", p)
	}
	reader.stopDaemon(syscall.SIGTERM)
	reader.trusts(builder)
	dir := filepath.Join(t.TempDir(), "trust")
	p, _ = reader.pull(0, place, "--admit", "--out", dir, "--model", "acme/*")
	if p.Counts[control.RecordAdmitted] != 1 || p.Counts["new"] != 3 {
		t.Errorf("pull = %+v, want one admitted of three", p)
	}
	for _, o := range []string{"sba-" + job.SBA.String() + ".sba", "sba-" + job.SBA.String() + ".sba" + proofSuffix} {
		from := sba + strings.TrimPrefix(o, "sba-"+job.SBA.String()+".sba")
		have, err := os.ReadFile(filepath.Join(dir, o))
		if published, _ := os.ReadFile(from); err != nil || string(have) != string(published) {
			t.Errorf("%s is not what was published: %v", o, err)
		}
	}
	if got := reader.run("record", "--file", recordFiles(t, dir, "rec-")[0]); got.code != 0 || !strings.Contains(got.stdout, "MINTED") {
		t.Errorf("the record that was pulled: %d, %s", got.code, got.stderr)
	}
	reader.ok("mount", reader.src, reader.mnt)
	if !reader.opens("counts.txt", want) {
		t.Error("the file is refused under the capability that was pulled")
	}
	if p, _ = reader.pull(0, place, "--admit", "--out", dir); p.Counts["new"] != 0 || p.Counts[control.RecordKnown] != 1 {
		t.Errorf("pulling again = %+v, want nothing new", p)
	}
	if p, _ = reader.pull(0, place, "--out", t.TempDir(), "--model", "acme/other"); len(p.Records) != 0 {
		t.Errorf("pull of another model = %+v", p)
	}
	if p, _ = reader.pull(0, place, "--out", t.TempDir(), "--sba", "sha256:"+strings.Repeat("0", 63)+"1"); len(p.Records) != 0 {
		t.Errorf("pull of another SBA = %+v", p)
	}

	// A watcher hears of the revocation by itself, and ends when it is told to.
	watcher := exec.Command(reader.bin, "--state", string(reader.state), "pull", place, "--admit", "--watch", "1s", "-o", "json")
	var said strings.Builder
	watcher.Stdout = &said
	if err := watcher.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { watcher.Process.Kill() })
	builder.ok("revoke", job.Capability.String(), "--reason", "training data withdrawn")
	builder.ok("push", place, "--revocations")
	reader.eventually("the revocation has arrived", func() bool { return reader.status().Revocations == 1 })
	reader.eventually("the file is refused", func() bool { return !reader.opens("counts.txt", want) })
	if err := watcher.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := watcher.Wait(); err != nil {
		t.Errorf("pull --watch after SIGTERM: %v, want exit code 0", err)
	}
	if err := json.Unmarshal([]byte(said.String()), &p, json.RejectUnknownMembers(true)); err != nil {
		t.Errorf("pull --watch -o json wrote %q: %v", said.String(), err)
	}

	// search shows what the policy here says of it.
	var list []found
	reader.document(&list, "search", place, "acme/counts")
	if len(list) != 2 || list[0].Kind != registry.SBA || list[0].Verified || !list[0].Proof ||
		list[1].Kind != registry.Capability || !list[1].Verified || list[1].By != "other" || list[1].Revoked == nil {
		t.Errorf("search = %+v, want an SBA by an unknown publisher and a capability that was revoked", list)
	}
	builder.document(&list, "search", place)
	if len(list) != 2 || !list[0].Verified || list[0].By != "acme" || list[0].Revoked != nil {
		t.Errorf("search by the builder = %+v", list)
	}
	if got := reader.run("search", place); !strings.Contains(got.stdout, "NOT VERIFIED") || !strings.Contains(got.stdout, "revoked: training data withdrawn") {
		t.Errorf("search:\n%s%s", got.stdout, got.stderr)
	}
	reader.document(&list, "search", place, "acme/other")
	if len(list) != 0 {
		t.Errorf("search of another model = %+v", list)
	}
}

// recordFiles are the files of a directory of records whose names begin so.
func recordFiles(t *testing.T, dir, prefix string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no file %s* in %s: %v", prefix, dir, err)
	}
	return files
}

// A place that leaves out, alters or swaps revocations does not undo one, and
// keeps nobody from noticing.
func TestPullFromHostilePlace(t *testing.T) {
	builder, reader := newRig(t), newRig(t)
	reader.trusts(builder)
	first := builder.admit(map[string]string{"a.bin": "a"})
	place := filepath.Join(t.TempDir(), "trust")
	builder.startDaemon()
	builder.ok("revoke", first.ID().String(), "--kind", "capability", "--reason", "one")
	builder.ok("push", place, "--all-capabilities", "--revocations")
	dir := filepath.Join(t.TempDir(), "fetched")
	if p, _ := reader.pull(0, place, "--admit", "--out", dir); p.Counts[control.RecordAdmitted] != 2 {
		t.Fatalf("pull = %+v, want a revocation and a capability", p)
	}
	index := filepath.Join(place, "index.json")
	whole, err := os.ReadFile(index)
	if err != nil {
		t.Fatal(err)
	}
	revocation := strings.TrimSuffix(filepath.Base(recordFiles(t, dir, "rev-")[0]), ".dsse")
	write := func(file string, text []byte) {
		t.Helper()
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	// Withheld: reported each time, also to one who starts anew with an empty store.
	write(index, []byte(strings.Replace(string(whole), revocation, "latest", 1)))
	p, got := reader.pull(codeRefused, place, "--admit", "--out", dir)
	if len(p.Withheld) != 1 || p.Withheld[0] != revocation || !strings.Contains(got.stderr, "WITHHELD") {
		t.Errorf("pull from a place that withholds = %+v, %q", p, got.stderr)
	}
	fresh := newRig(t)
	fresh.trusts(builder)
	p, _ = fresh.pull(codeRefused, place, "--admit", "--out", dir)
	if s := fresh.status(); len(p.Withheld) != 1 || s.Revocations != 1 || s.Capabilities.Live != 0 {
		t.Errorf("an empty store with a full directory: %+v, %+v; want the saved revocation in force", p, s)
	}

	// Altered, dropped or swapped: no capability is admitted past it.
	blob, err := os.ReadFile(recordFiles(t, dir, "rev-")[0])
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(place, "blobs/sha256", hashpipe.SumBytes(blob).String())
	capability := strings.TrimSuffix(filepath.Base(recordFiles(t, dir, "cap-")[0]), ".dsse")
	for name, tt := range map[string]struct {
		do   func() error
		text string
	}{
		"altered": {func() error { return os.WriteFile(file, append(blob[:len(blob)-1:len(blob)-1], ' '), 0o644) }, "serves something else under the tag " + revocation},
		"dropped": {func() error { return os.Remove(file) }, "lists it and does not serve it"},
		"swapped": {func() error {
			return os.WriteFile(index, []byte(strings.NewReplacer(revocation, capability, capability, revocation).Replace(string(whole))), 0o644)
		}, "artifactType"},
	} {
		write(index, whole)
		write(file, blob)
		if err := tt.do(); err != nil {
			t.Fatal(err)
		}
		empty := newRig(t)
		empty.trusts(builder)
		p, got := empty.pull(codeRefused, place, "--admit")
		if p.Counts[control.RecordAdmitted] != 0 || p.Counts[outcomeHeld] != 1 || len(empty.caps()) != 0 || !strings.Contains(got.stderr, tt.text) {
			t.Errorf("%s: pull = %+v\n%s", name, p, got.stderr)
		}
		empty.end()
	}
	write(index, whole)
	write(file, blob)

	// A revocation by nobody who is pinned takes nothing back, and says so.
	alone := newRig(t)
	if p, got := alone.pull(codeRefused, place, "--admit"); p.Counts[outcomeRefused] != 1 || p.Counts[control.RecordSkipped] != 1 || !strings.Contains(got.stderr, "not signed by a trusted revoker") {
		t.Errorf("pull by one who pins nobody = %+v, %q", p, got.stderr)
	}

	// A place that is away is waited for, longer each time.
	away := exec.Command(alone.bin, "--state", string(alone.state), "pull", place+"-away", "--admit", "--watch", "1s")
	complaints, err := away.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := away.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { away.Process.Kill() })
	lines := bufio.NewScanner(complaints)
	for _, pause := range []string{"2s", "4s"} {
		if !lines.Scan() || !strings.Contains(lines.Text(), "no OCI image layout") || !strings.HasSuffix(lines.Text(), "trying again in "+pause) {
			t.Errorf("pull --watch of nothing says %q, want that it waits %s", lines.Text(), pause)
		}
	}
	if err := away.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := away.Wait(); err != nil {
		t.Errorf("pull --watch after SIGTERM: %v", err)
	}

	// What lies in the directory is not written over, and not believed either.
	saved := recordFiles(t, dir, "cap-")[0]
	write(saved, blob)
	p, got = reader.pull(codeRefused, place, "--admit", "--out", dir)
	if p.Counts[outcomeRefused] != 1 || len(p.Withheld) != 0 || !strings.Contains(got.stderr, "not what its name says") {
		t.Errorf("pull over another file = %+v, %q", p, got.stderr)
	}
	if have, _ := os.ReadFile(saved); string(have) != string(blob) {
		t.Error("pull wrote over a file")
	}
	reader.refused(codeUsage, []string{"pull", filepath.Join(t.TempDir(), "another"), "--out", dir}, "holds what came from")
	reader.refused(codeUsage, []string{"pull", place}, "nothing to do")
	reader.refused(codeError, []string{"pull", filepath.Join(t.TempDir(), "none"), "--admit"}, "no OCI image layout")

	// Other signatures under one statement do not get over those that are there.
	forged := filepath.Join(t.TempDir(), "forged")
	write(forged, []byte(strings.Replace(string(blob), `"sig":"`, `"sig":"AAAA"},{"sig":"`, 1)))
	if got := builder.run("push", place, forged); got.code != codeRefused || !strings.Contains(got.stderr, "--replace") {
		t.Errorf("push of other signatures: %d, %q", got.code, got.stderr)
	}
	builder.refused(codeUsage, []string{"push", place}, "nothing to push")
	builder.refused(codeRefused, []string{"push", place, index}, "want a signed record")
	builder.refused(codeRefused, []string{"push", place, "--capability", "0123456789"}, "names 0 capabilities")
}

// Credentials are those that docker login wrote, and a registry without them says
// what is missing.
func TestPushCredentials(t *testing.T) {
	r := newRig(t)
	hash, err := bcrypt.GenerateFromPassword([]byte("letmein"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	passwords, record := filepath.Join(dir, "htpasswd"), filepath.Join(dir, "capability")
	if err := os.WriteFile(record, r.capability(r.measured(map[string]string{"a.bin": "a"})), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(passwords, []byte("worker:"+string(hash)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr, _ := ocitest.Distribution(t, "auth: {htpasswd: {realm: acme, path: "+passwords+"}}\n")
	place := "oci://" + addr + "/acme/trust"
	t.Setenv("DOCKER_CONFIG", dir)
	for _, verb := range [][]string{{"push", place, record}, {"search", place}, {"pull", place, "--out", filepath.Join(dir, "out")}} {
		r.refused(codeError, verb, "docker login")
	}
	config := `{"auths":{"` + addr + `":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("worker:letmein")) + `"}}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r.ok("push", place, record)
	if p, _ := r.pull(0, place, "--out", filepath.Join(dir, "out")); len(p.Records) != 1 {
		t.Errorf("pull with credentials = %+v", p)
	}
	// What fetch.docker_config names goes before what the environment names.
	if err := os.WriteFile(r.state.Settings(), []byte("[fetch]\ndocker_config = \""+filepath.Join(dir, "absent.json")+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.refused(codeError, []string{"search", place}, "docker login")
}

// What the control socket refuses, it refuses by the signature alone.
func TestSubmitRecord(t *testing.T) {
	builder, reader := newRig(t), newRig(t)
	reader.trusts(builder)
	reader.startDaemon()
	c := control.NewClient(reader.state.Socket())
	good := builder.capability(builder.measured(map[string]string{"a.bin": "a"}))
	forged := []byte(strings.Replace(string(good), `"sig":"`, `"sig":"AAAA`, 1))
	stranger := newRig(t).capability(builder.measured(map[string]string{"a.bin": "a"}))
	sba := builder.publish("counts", "count")
	attestation, err := os.ReadFile(sba)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, kind string
		envelope   []byte
		outcome    string
		text       string
	}{
		{"nothing", "capability", nil, "", "envelope"},
		{"forged", "capability", forged, "", "not signed by a trusted mint"},
		{"as a revocation", "revocation", good, "", "handed over as"},
		{"attestation", "sba", attestation, "", "keeps no records of kind sba"},
		{"mint that is not pinned", "capability", stranger, control.RecordSkipped, ""},
		{"good", "capability", good, control.RecordAdmitted, ""},
		{"again", "capability", good, control.RecordKnown, ""},
	} {
		got, err := c.SubmitRecord(t.Context(), control.RecordSubmission{Kind: tt.kind, Envelope: tt.envelope})
		if tt.text == "" && (err != nil || got.Outcome != tt.outcome) {
			t.Errorf("%s: SubmitRecord = %+v, %v, want %s", tt.name, got, err, tt.outcome)
		}
		if tt.text != "" && (!refusedByDaemon(err) || !strings.Contains(err.Error(), tt.text)) {
			t.Errorf("%s: SubmitRecord = %+v, %v, want a refusal with %q", tt.name, got, err, tt.text)
		}
	}
	if n := len(reader.caps()); n != 1 {
		t.Errorf("%d capabilities, want 1", n)
	}
}

func TestMatchesAny(t *testing.T) {
	for _, tt := range []struct {
		pattern, model string
		want           bool
	}{
		{"acme/langid", "acme/langid", true}, {"acme/*", "acme/langid", true}, {"acme/*", "acmeinc/langid", false},
		{"acme*", "acme/langid", false}, {"*", "acme/langid", false}, {"acme/langid", "acme/langid2", false}, {"acme/*", "", false},
	} {
		if got := matchesAny([]string{tt.pattern}, tt.model); got != tt.want {
			t.Errorf("matchesAny(%q, %q) = %v", tt.pattern, tt.model, got)
		}
	}
}

// Lists are taken one after the other, so that what an earlier one names is not
// lost; removing an earlier one is in order, removing the newest is not.
func TestPullLists(t *testing.T) {
	builder, reader := newRig(t), newRig(t)
	reader.trusts(builder)
	text, err := config.ReadSecret(builder.state.RevokeKey())
	if err != nil {
		t.Fatal(err)
	}
	key, err := dsse.ParsePrivateKey(text, nil)
	if err != nil {
		t.Fatal(err)
	}
	named := builder.admit(map[string]string{"a.bin": "a"})
	now := time.Now().UTC()
	place, dir := filepath.Join(t.TempDir(), "trust"), filepath.Join(t.TempDir(), "fetched")
	files := []string{}
	for _, sequence := range []int64{10, 9} {
		target := named.Claim()
		if sequence == 10 {
			target = hashpipe.SumBytes([]byte("another")).Claim()
		}
		st, err := capstore.NewList(sequence, now, now.Add(time.Hour), []capstore.ListEntry{{
			Kind: capstore.KindClaim, Target: target, Reason: "withdrawn", IssuedAt: now.Truncate(time.Second),
		}})
		if err != nil {
			t.Fatal(err)
		}
		envelope, err := capstore.SignList(st, key)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, filepath.Join(t.TempDir(), "list"))
		if err := os.WriteFile(files[len(files)-1], envelope, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	builder.ok(append([]string{"push", place, "--all-capabilities"}, files...)...)
	bundle := filepath.Join(t.TempDir(), "lists.jsonl")
	first, _ := os.ReadFile(files[0])
	second, _ := os.ReadFile(files[1])
	if err := os.WriteFile(bundle, []byte(string(first)+"\n"+string(second)+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var in importAnswer
	reader.answer(0, &in, "bundle", "import", bundle, "--dry-run")
	if in.Counts[outcomeWould] != 2 {
		t.Errorf("import of two lists, the newer first = %+v", in)
	}
	if p, _ := reader.pull(0, place, "--admit", "--out", dir); p.Counts[control.RecordAdmitted] != 3 {
		t.Errorf("pull = %+v, want both lists and the capability", p)
	}
	if caps := reader.caps(); len(caps) != 1 || caps[0].State != capRevoked {
		t.Errorf("caps = %+v, want the one that the earlier list names, revoked", caps)
	}
	if p, _ := reader.pull(0, place, "--admit"); p.Counts[control.RecordKnown] != 3 {
		t.Errorf("pull again = %+v, want all known", p)
	}
	index, err := os.ReadFile(filepath.Join(place, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		gone     string
		code     int
		withheld int
	}{{"list-9-", 0, 0}, {"list-10-", codeRefused, 1}} {
		if err := os.WriteFile(filepath.Join(place, "index.json"), []byte(strings.Replace(string(index), `"`+tt.gone, `"x-`+tt.gone, 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		if p, _ := reader.pull(tt.code, place, "--admit", "--out", dir); len(p.Withheld) != tt.withheld {
			t.Errorf("without %s: %+v, want %d withheld", tt.gone, p, tt.withheld)
		}
	}
}

// A capability of several envelopes travels as a whole, in each of the ways.
func TestDelegatedCapabilityTravels(t *testing.T) {
	builder, reader := newRig(t), newRig(t)
	reader.trusts(builder)
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	root := builder.delegable(builder.measured(map[string]string{"a.bin": "a"}), []dsse.KeyID{key.Public().ID()})
	restrict, err := capstore.NewRestrict(nil, []int64{1000}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	chain, err := capstore.Delegate(root, capstore.Delegation{NotBefore: now, NotAfter: now.Add(time.Minute), Restrict: restrict}, key)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := reader.state.LoadPolicy()
	if err != nil {
		t.Fatal(err)
	}
	view, err := capstore.NewView(policy.Trust())
	if err != nil {
		t.Fatal(err)
	}
	want, err := view.Admit(chain)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, place, packed := filepath.Join(dir, "narrow"), filepath.Join(dir, "trust"), filepath.Join(dir, "b.jsonl")
	if err := os.WriteFile(file, chain, 0o644); err != nil {
		t.Fatal(err)
	}
	var out []pushed
	builder.document(&out, "push", place, file)
	if len(out) != 1 || out[0].ID != want.ID() || out[0].Kind != registry.Capability {
		t.Fatalf("push = %+v, want the id %s", out, want.ID())
	}
	builder.ok("bundle", "export", "--out", packed, file)
	var in importAnswer
	reader.answer(0, &in, "bundle", "import", packed, "--dry-run")
	if len(in.Lines) != 1 || in.Lines[0].Outcome != outcomeWould || in.Lines[0].ID != want.ID() {
		t.Errorf("import = %+v", in)
	}
	if p, _ := reader.pull(0, place, "--admit"); p.Counts[control.RecordAdmitted] != 1 {
		t.Errorf("pull = %+v", p)
	}
	if caps := reader.caps(); len(caps) != 1 || caps[0].ID != want.ID() {
		t.Errorf("caps = %+v, want %s", caps, want.ID())
	}
	// Without its root it is nobody's.
	_, derived, _ := strings.Cut(string(chain), "\n")
	if err := os.WriteFile(file, []byte(derived), 0o644); err != nil {
		t.Fatal(err)
	}
	builder.ok("push", place+"2", file)
	if p, _ := reader.pull(0, place+"2", "--admit"); p.Counts[control.RecordSkipped] != 1 {
		t.Errorf("pull of a link without its root = %+v", p)
	}
}
