package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// publish makes a source, a dataset and an image, and signs a ledger whose one
// stage runs the test image's trainer in a mode: acme/NAME promises NAME.txt.
// It returns the attestation's file.
func (r *rig) publish(name, mode string) string {
	r.t.Helper()
	tools.once.Do(buildTools)
	if tools.err != nil {
		r.t.Fatal(tools.err)
	}
	dir := filepath.Join(filepath.Dir(r.src), "publisher")
	recipe, corpus, image := filepath.Join(dir, "recipe"), filepath.Join(dir, "corpus"), filepath.Join(dir, "image")
	key, sba, ledger := filepath.Join(dir, "acme"), filepath.Join(dir, name+".sba"), filepath.Join(dir, name+".json")
	if _, err := os.Lstat(dir); err != nil {
		for _, d := range []string{recipe, corpus} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				r.t.Fatal(err)
			}
		}
		for path, text := range map[string]string{filepath.Join(recipe, "README"): "counts words\n", filepath.Join(corpus, "words.txt"): "a b a\n"} {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				r.t.Fatal(err)
			}
		}
		for _, line := range [][]string{
			{"init", "-q", "-b", "main"}, {"add", "-A"},
			{"-c", "user.name=acme", "-c", "user.email=ci@acme.example", "commit", "-q", "-m", "recipe"},
		} {
			if got := r.exec("git", append([]string{"-C", recipe}, line...)...); got.code != 0 {
				r.t.Fatalf("git %q: %s", line, got.stderr)
			}
		}
		layer, err := os.Open(tools.layer)
		if err != nil {
			r.t.Fatal(err)
		}
		defer layer.Close()
		if _, err := oci.AppendImage(context.Background(), image, oci.Image{Config: oci.Config{OS: "linux", Architecture: hostArch(), Env: []string{"PATH=/bin"}}}, layer); err != nil {
			r.t.Fatal(err)
		}
		r.ok("keygen", "--out", key)
		r.ok("publisher", "trust", key+".pub", "--name", "acme", "--models", "acme/*")
		runc := filepath.Join(repository(r.t), "bin", "runc")
		if err := os.WriteFile(r.state.Settings(), []byte("[build]\nruntime = \""+runc+"\"\n"), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
	r.ok("ledger", "new", "--model", "acme/"+name, "--version", "1.0", "--sequence", "1", "--key", key+".pub", "--source", recipe,
		"--dataset", "corpus="+corpus, "--image", image, "--stage", "train: trainer "+mode+" /in/dataset/corpus/words.txt /out/"+name+".txt",
		"--output", name+".txt", "--out", ledger)
	r.ok("ledger", "sign", ledger, "--key", key, "--out", sba)
	return sba
}

func (r *rig) jobs() []capstore.Job {
	r.t.Helper()
	var list []capstore.Job
	r.document(&list, "jobs")
	return list
}

// The main road: refused, rebuilt, granted, opened; a tampered copy is not.
func TestGrant(t *testing.T) {
	r := newRig(t)
	sba := r.publish("counts", "count")
	const want = "a 2\nb 1\n"
	r.file("counts.txt", want)
	r.ok("mount", r.src, r.mnt)
	if r.opens("counts.txt", want) {
		t.Fatal("the file opened before anything was granted")
	}
	got := r.run("grant", sba, "--wait", "--timeout", "2m")
	if got.code != codeDone || !strings.Contains(got.stdout, "granted acme/counts 1.0") {
		t.Fatalf("grant --wait: exit code %d, %q, %q", got.code, got.stdout, got.stderr)
	}
	// No sleep: grant --wait returns when the mounts know.
	if !r.opens("counts.txt", want) {
		t.Error("the file was refused right after grant --wait returned")
	}
	r.file("counts.txt", "a 2\nb 9\n")
	if r.opens("counts.txt", "a 2\nb 9\n") {
		t.Error("a tampered copy opened")
	}
	var caps []control.Capability
	r.document(&caps, "caps")
	if len(caps) != 1 || caps[0].State != capLive || caps[0].Model != "acme/counts" || caps[0].Files[0].SHA256 != hashpipe.SumBytes([]byte(want)).Claim() {
		t.Errorf("caps = %+v, want the one live capability of the rebuilt bytes", caps)
	}
	if out := r.ok("caps", "--files"); !strings.Contains(out, caps[0].Files[0].SHA256.String()) {
		t.Errorf("caps --files lacks the digest:\n%s", out)
	}
	jobs := r.jobs()
	if len(jobs) != 1 || jobs[0].Verdict != capstore.Minted || jobs[0].Capability != caps[0].ID {
		t.Fatalf("jobs = %+v, want one, minted, naming the capability", jobs)
	}
	if out := r.ok("job", jobs[0].ID, "--logs"); !strings.Contains(out, "MINTED") {
		t.Errorf("the log lacks the verdict:\n%s", out)
	}
	if out := r.ok("record", jobs[0].ID); !strings.Contains(out, "\n  \"subject\": [\n") {
		t.Errorf("record is not indented for people:\n%s", out)
	}
	// Asked again, nothing is built again.
	if got := r.run("grant", sba, "--wait"); got.code != codeDone || len(r.jobs()) != 1 {
		t.Errorf("a second grant: exit code %d, %d jobs, want 0 and 1", got.code, len(r.jobs()))
	}
}

func TestGrantVerdicts(t *testing.T) {
	r := newRig(t)
	r.startDaemon()
	race, fail, count := r.publish("race", "race"), r.publish("fail", "nonsense"), r.publish("counts", "count")
	for _, tt := range []struct {
		name    string
		args    []string
		code    int
		verdict capstore.Verdict
		want    []string
	}{
		// Before the cache has it: what is there is not looked for.
		{"no dataset there", []string{count, "--dataset", "corpus=" + r.mnt + "/none"}, codeRefused, capstore.FetchFailed, []string{"FETCH_FAILED", "corpus"}},
		{"another dataset there", []string{count, "--dataset", "corpus=" + filepath.Dir(count) + "/recipe"}, codeRefused, capstore.FetchFailed, []string{"FETCH_FAILED", "corpus"}},
		{"nondeterministic", []string{race}, codeDiffers, capstore.Nondeterministic, []string{"NONDETERMINISTIC", "race.txt", "--logs"}},
		{"build fails", []string{fail}, codeRefused, capstore.BuildFailed, []string{"BUILD_FAILED", "train"}},
	} {
		before := len(r.jobs())
		got := r.refused(tt.code, append([]string{"grant", "--wait", "--timeout", "2m"}, tt.args...), tt.want...)
		if n := strings.Count(got.stderr, "next:"); n != 1 {
			t.Errorf("%s: %d times what to do next, want it once: %s", tt.name, n, got.stderr)
		}
		jobs := r.jobs()
		if len(jobs) != before+1 || jobs[before].Verdict != tt.verdict || jobs[before].Reason == "" {
			t.Errorf("%s: jobs = %+v, want one more, %s, with a reason", tt.name, jobs, tt.verdict)
		}
	}
	got := r.run("grant", "--wait", race, "-o", "json")
	if got.code != codeDiffers || !strings.Contains(got.stdout, `"verdict": "NONDETERMINISTIC"`) {
		t.Errorf("grant --wait -o json: exit code %d, %q, want 5 and the job as a document", got.code, got.stdout)
	}
	if s := r.status(); s.Capabilities.Live != 0 {
		t.Errorf("%d capabilities after refusals, want none", s.Capabilities.Live)
	}
}

// What cannot be granted leaves the queue and its directory as they were.
func TestGrantGarbage(t *testing.T) {
	r := newRig(t)
	sba := r.publish("counts", "count")
	r.startDaemon()
	text, err := os.ReadFile(sba)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	put := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	hash := hashpipe.SumBytes(text).String()
	ledger, err := os.ReadFile(strings.TrimSuffix(sba, ".sba") + ".json")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := dsse.Sign(dsse.PayloadType, ledger, stranger)
	if err != nil {
		t.Fatal(err)
	}
	flipped := slices.Clone(text)
	flipped[len(flipped)/2] ^= 1
	for _, tt := range []struct {
		name, arg string
		code      int
		want      string
	}{
		{"a hash", hash, codeRefused, "a hash cannot be granted"},
		{"a hash in capitals", strings.ToUpper(hash), codeRefused, "a hash cannot be granted"},
		{"a hash with its name", "sha256:" + hash, codeRefused, "a hash cannot be granted"},
		{"a file with a hash", put("hash", hash+"\n"), codeRefused, "a hash cannot be granted"},
		{"a file of sha256sum", put("sums", hash+"  model.bin\n"), codeRefused, "a hash cannot be granted"},
		{"no file", filepath.Join(dir, "none"), codeError, "no such file"},
		{"a directory", dir, codeError, "directory"},
		{"an empty file", put("empty", ""), codeRefused, "not a model file"},
		{"a model", put("model", strings.Repeat("\x00\xff", 1000)), codeRefused, "not a model file"},
		{"an empty object", put("object", "{}"), codeRefused, "not a model file"},
		{"a capability", put("cap", string(r.capability(r.measured(map[string]string{"a": "a"})))), codeSignature, "sign"},
		{"the ledger unsigned", put("unsigned", string(ledger)), codeRefused, "a ledger that nobody has signed"},
		{"signed by a stranger", put("stranger", string(forged)), codeSignature, "sign"},
		{"one bit flipped", put("flipped", string(flipped)), 0, ""},
		{"cut short", put("short", string(text[:len(text)-20])), codeRefused, ""},
		{"twice", put("twice", string(text)+string(text)), codeRefused, ""},
		{"longer than an envelope", put("long", string(text)+strings.Repeat(" ", dsse.MaxEnvelope)), codeRefused, "is longer than that"},
	} {
		got := r.run("grant", tt.arg)
		if got.code == 0 || tt.code != 0 && got.code != tt.code || !strings.Contains(got.stderr, tt.want) || got.stdout != "" {
			t.Errorf("grant of %s: exit code %d, %q, %q; want code %d and %q", tt.name, got.code, got.stdout, got.stderr, tt.code, tt.want)
		}
	}
	// Past the verb, straight to the daemon: it verifies by itself.
	c := control.NewClient(r.state.Socket())
	for _, body := range [][]byte{nil, []byte("{}"), []byte(hash), forged, flipped, ledger} {
		if job, err := c.Submit(t.Context(), control.Submission{SBA: body}); err == nil {
			t.Errorf("the daemon queued %.40q as job %s", body, job.ID)
		}
	}
	if jobs := r.jobs(); len(jobs) != 0 {
		t.Errorf("%d jobs in the queue, want none", len(jobs))
	}
	left, err := filepath.Glob(filepath.Join(r.state.Jobs(), "*", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("files below jobs/: %q, %v, want none", left, err)
	}
	if entries, _ := os.ReadDir(r.state.Jobs()); len(entries) > 2 {
		t.Errorf("jobs/ holds %v, want the queue's own two directories at most", entries)
	}
	r.refused(codeUsage, []string{"grant", sba, "--dataset", "curpus=" + r.src}, "--dataset curpus: the ledger has no such dataset")
	r.refused(codeUsage, []string{"grant", sba, "--model", "base=" + r.src}, "model:base: the ledger has no such input")
	// No worker could read this, which would look as if each had died.
	if err := os.WriteFile(r.state.Settings(), []byte("[fetch]\nhost = []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.refused(codeError, []string{"grant", sba}, r.state.Settings()+": unknown setting fetch.host")
	if jobs := r.jobs(); len(jobs) != 0 {
		t.Errorf("jobs after refusals: %+v", jobs)
	}
}

func TestGrantIsPending(t *testing.T) {
	r := newRig(t)
	sba := r.publish("slow", "slow")
	start := time.Now()
	r.refused(codePending, []string{"grant", sba, "--wait", "--timeout", "1s"}, "it goes on", "clawfs --state")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("--timeout 1s took %v", took)
	}
	r.refused(codeUsage, []string{"grant", sba, "--timeout", "1s"}, "--wait")
	jobs := r.jobs()
	if len(jobs) != 1 || jobs[0].State.HasEnded() {
		t.Fatalf("jobs = %+v, want one that goes on", jobs)
	}
	out := r.ok("job", jobs[0].ID, "--cancel")
	if !strings.Contains(out, "cancelled") {
		t.Errorf("job --cancel printed %q", out)
	}
	r.refused(codeError, []string{"job", jobs[0].ID, "--cancel"}, "ended")
	r.refused(codeError, []string{"job", "aaaaaaaaaa"}, "no such job")
	r.eventually("nothing of the build runs any more", func() bool {
		return exec.Command("pgrep", "-f", "trainer slow /in/dataset/corpus/words.txt /out/slow.txt").Run() != nil
	})
	if n := r.status().Capabilities.Live; n != 0 {
		t.Errorf("%d capabilities after a cancelled job", n)
	}
}

// The daemon is kill -9'd while a build runs: the worker goes on, and the next
// daemon takes its answer without building again.
func TestWorkerOutlivesDaemon(t *testing.T) {
	r := newRig(t)
	sba := r.publish("slow", "slow")
	id := strings.TrimSpace(r.ok("grant", sba))
	r.eventually("the build runs", func() bool {
		log, _ := os.ReadFile(filepath.Join(r.state.Job(id), "log"))
		return strings.Contains(string(log), "build 1 of 2")
	})
	r.stopDaemon(syscall.SIGKILL)
	r.startDaemon()
	follow := exec.Command(r.bin, "--state", string(r.state), "job", id, "--logs", "-f")
	log, err := follow.Output()
	if err != nil || !strings.Contains(string(log), "MINTED") {
		t.Errorf("job --logs -f: %v, want it to end with the verdict:\n%s", err, log)
	}
	jobs := r.jobs()
	if len(jobs) != 1 || jobs[0].Verdict != capstore.Minted || jobs[0].Attempts != 1 {
		t.Errorf("jobs = %+v, want one, minted at the first attempt", jobs)
	}
}

// A daemon that is told to end stops its build, in time; the next one builds
// again, and that was no failed attempt.
func TestDaemonEndsDuringBuild(t *testing.T) {
	r := newRig(t)
	sba := r.publish("slow", "slow")
	cmd := r.startDaemon()
	id := strings.TrimSpace(r.ok("grant", sba))
	r.eventually("the build runs", func() bool {
		log, _ := os.ReadFile(filepath.Join(r.state.Job(id), "log"))
		return strings.Contains(string(log), "build 1 of 2")
	})
	start := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the daemon ended with %v, want exit code 0", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the daemon took %v to end during a build, want less than 10 s", took)
	}
	r.startDaemon()
	got := r.run("grant", sba, "--wait", "--timeout", "1m")
	jobs := r.jobs()
	if got.code != codeDone || len(jobs) != 1 || jobs[0].ID != id || jobs[0].Attempts != 1 {
		t.Errorf("after the restart: exit code %d, jobs %+v, want job %s minted at its first attempt\n%s", got.code, jobs, id, got.stderr)
	}
}

// A waiting grant outlives a daemon that is killed and started again.
func TestWaitOutlivesDaemon(t *testing.T) {
	r := newRig(t)
	sba := r.publish("slow", "slow")
	r.startDaemon()
	grant := exec.Command(r.bin, "--state", string(r.state), "grant", sba, "--wait", "--timeout", "2m")
	var errs strings.Builder
	grant.Stderr = &errs
	if err := grant.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { grant.Process.Kill() })
	r.eventually("the build runs", func() bool {
		jobs := r.jobs()
		return len(jobs) == 1 && jobs[0].State == capstore.JobRunning
	})
	r.stopDaemon(syscall.SIGKILL)
	time.Sleep(time.Second)
	r.startDaemon()
	if err := grant.Wait(); err != nil {
		t.Errorf("grant --wait over a killed daemon: %v, want exit code 0\n%s", err, errs.String())
	}
}
