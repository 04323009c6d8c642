package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// logRig is a rig with a publisher and a log.
type logRig struct {
	*rig
	dir, policy, key string // the log's, a tlog policy, the publisher's public key
}

func newLogRig(t *testing.T) *logRig {
	t.Helper()
	r := newRig(t)
	base := filepath.Dir(string(r.state))
	l := &logRig{rig: r, dir: filepath.Join(base, "log"), policy: filepath.Join(base, "log.policy"), key: filepath.Join(base, "acme.pub")}
	r.ok("keygen", "--out", filepath.Join(base, "acme"))
	r.ok("publisher", "trust", l.key, "--name", "acme", "--models", "acme/*", "--image", "*")
	line := r.ok("log", "init", l.dir, "--origin", "log.example/models", "--policy", r.state.Policy())
	if err := os.WriteFile(l.policy, []byte(line+"quorum none\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return l
}

// sba signs a ledger of the publisher.
func (r *logRig) sba(name, model string, sequence int) string {
	r.t.Helper()
	key, err := readPublicKey(r.key)
	if err != nil {
		r.t.Fatal(err)
	}
	const commit = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
	text := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1",`+
		`"subject":[{"name":"source","digest":{"gitCommit":"%s"}}],`+
		`"predicateType":"https://github.com/openclaw/clawfs/build-ledger/v1",`+
		`"predicate":{"model":"%s","version":"1.2.0","sequence":%d,"publisher":{"keyid":"%s"},"issuedAt":"2026-11-20T09:00:00Z",`+
		`"buildDefinition":{"buildType":"https://github.com/openclaw/clawfs/buildtypes/stages/v1",`+
		`"externalParameters":{"stages":[{"name":"train","argv":["train"]}],"outputs":[{"name":"langid.bin","path":"langid.bin"}]},`+
		`"resolvedDependencies":[{"name":"source","digest":{"gitCommit":"%[1]s","clawfsTree1":"baf99b9ff27559a791c8f1ec16eadd8d617b2cb74aae714064051c878a9f226e"}},`+
		`{"name":"environment","uri":"oci://registry.example/ml/base","digest":{"sha256":"6794a0f2bd0cbfa2d0f2d7ad0b2bd1b53b4d6c8db4d8e07f4f2d1a1a0c1d88fc"},"mediaType":"application/vnd.oci.image.manifest.v1+json"}]},`+
		`"platform":{"os":"linux","arch":"amd64","accelerator":"none"}}}`, commit, model, sequence, key.ID())
	path := filepath.Join(filepath.Dir(r.dir), name)
	if err := os.WriteFile(path+".json", []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	r.ok("ledger", "sign", path+".json", "--key", strings.TrimSuffix(r.key, ".pub"), "--out", path)
	return path
}

// serve starts the log and returns its URL and what ends it with a signal and
// returns its exit code.
func (r *logRig) serve(args ...string) (url string, end func(syscall.Signal) int) {
	r.t.Helper()
	cmd := exec.Command(r.bin, append([]string{"log", "serve", r.dir, "--listen", "127.0.0.1:0"}, args...)...)
	errs, err := cmd.StderrPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := make(chan struct{})
	end = func(sig syscall.Signal) int {
		cmd.Process.Signal(sig)
		<-ended
		return cmd.ProcessState.ExitCode()
	}
	r.t.Cleanup(func() { end(syscall.SIGKILL) })
	said := make(chan string, 1)
	go func() {
		defer close(ended)
		defer cmd.Wait()
		for lines := bufio.NewScanner(errs); lines.Scan(); {
			var line struct{ Msg, URL string }
			if err := json.Unmarshal(lines.Bytes(), &line, json.MatchCaseInsensitiveNames(true)); err != nil {
				line.Msg = lines.Text()
			}
			if line.URL != "" {
				said <- line.URL
			}
		}
	}()
	select {
	case url = <-said:
	case <-ended:
		r.t.Fatal("clawfs log serve ended at once")
	case <-time.After(time.Minute):
		r.t.Fatal("clawfs log serve did not start within a minute")
	}
	return url, end
}

func TestLog(t *testing.T) {
	r := newLogRig(t)
	base := filepath.Dir(r.dir)
	url, end := r.serve()
	r.refused(codeError, []string{"log", "serve", r.dir}, "serves the log")
	mine, other := r.sba("mine.sba", "acme/langid", 1), r.sba("other.sba", "rival/langid", 1)
	r.refused(codeSignature, []string{"log", "add", other, "--log", url, "--log-policy", r.policy}, "403", "names no publisher for this model")
	r.refused(codeRefused, []string{"log", "prove", mine, "--log", url, "--log-policy", r.policy}, "does not have this entry", "next: clawfs log add")

	out := r.ok("log", "add", mine, "--log", url, "--log-policy", r.policy, "--key", r.key)
	for _, want := range []string{"proof      " + mine + ".tlog-proof", "entry      0 of 1 (sba)", "witnesses  none"} {
		if !strings.Contains(out, want) {
			t.Errorf("log add printed\n%swant %q in it", out, want)
		}
	}
	before, err := os.ReadFile(mine + ".tlog-proof")
	if err != nil {
		t.Fatal(err)
	}
	var again logged
	r.document(&again, "log", "add", mine, "--log", url, "--log-policy", r.policy, "--out", filepath.Join(base, "again"))
	if again.Index != 0 || again.Size != 1 || again.Witness == nil {
		t.Errorf("log add of the same again = %+v, want entry 0 of 1", again)
	}

	// A monitor that knows the entry is content; one of a stolen key is not.
	state := filepath.Join(base, "monitor.json")
	watch := func(known string) []string {
		return []string{"log", "monitor", "--log", url, "--log-policy", r.policy, "--key", r.key, "--state", state, "--known", known}
	}
	if out := r.ok(watch(mine)...); !strings.Contains(out, "size 1, looked at 1, of these under the key 1; unknown 0") {
		t.Errorf("log monitor printed %q", out)
	}
	stolen := r.sba("stolen.sba", "acme/langid", 2)
	r.ok("log", "add", stolen, "--log", url, "--log-policy", r.policy)
	for range 2 {
		got := r.refused(codeRefused, watch(mine), "not among --known")
		if !strings.Contains(got.stdout, "signed") || !strings.Contains(got.stdout, "acme/langid") {
			t.Errorf("log monitor printed\n%s", got.stdout)
		}
	}
	got := r.run(append(watch(mine), "-o", "json")...)
	var look translog.Look
	if err := json.Unmarshal([]byte(got.stdout), &look); err != nil || got.code != codeRefused || len(look.Unknown) != 1 || look.Unknown[0].Index != 1 {
		t.Errorf("log monitor -o json = %d, %q, %v", got.code, got.stdout, err)
	}
	r.refused(codeRefused, append(watch(mine), "--every", "1h"), "not among --known")
	r.ok(watch(base)...) // a directory with both

	// The old proof holds; a fresh one is at the newest checkpoint, from every place.
	public := filepath.Join(base, "public")
	if out := r.ok("log", "static", r.dir, public); !strings.Contains(out, "log.example/models: size 2, new 2") {
		t.Errorf("log static printed %q", out)
	}
	for _, location := range []string{url, r.dir, public} {
		var fresh logged
		r.document(&fresh, "log", "prove", mine, "--log", location, "--log-policy", r.policy)
		if fresh.Index != 0 || fresh.Size != 2 {
			t.Errorf("log prove from %s = %+v, want entry 0 of 2", location, fresh)
		}
	}
	if after, err := os.ReadFile(mine + ".tlog-proof"); err != nil || string(after) == string(before) {
		t.Errorf("log prove left the old proof, %v", err)
	}
	for _, secret := range []string{"log.key", ".state", "policy.json", "lock"} {
		if _, err := os.Lstat(filepath.Join(public, secret)); err == nil {
			t.Errorf("the copy has %s", secret)
		}
	}
	// With a verifier key alone; with another log's, the checkpoint is a stranger's.
	vkey, err := os.ReadFile(filepath.Join(r.dir, "log.vkey"))
	if err != nil {
		t.Fatal(err)
	}
	r.ok("log", "prove", mine, "--log", public, "--log-policy", strings.TrimSpace(string(vkey)))
	foreign := r.ok("log", "init", filepath.Join(base, "foreign"), "--origin", "log.example/models", "--policy", r.state.Policy())
	r.refused(codeSignature, []string{"log", "prove", mine, "--log", public, "--log-policy", strings.TrimSpace(strings.TrimPrefix(foreign, "log "))}, "own key")

	started := time.Now()
	if code := end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code after SIGTERM = %d, want 0", code)
	}
	t.Logf("ended after %v", time.Since(started))
	url, _ = r.serve()
	r.document(&again, "log", "add", mine, "--log", url, "--log-policy", r.policy)
	if again.Index != 0 || again.Size != 2 {
		t.Errorf("log add after a restart = %+v, want entry 0 of 2", again)
	}
}

// Without the witnesses an addition waits, says for whom, and gives up in time.
func TestLogWaitsForWitnesses(t *testing.T) {
	r := newLogRig(t)
	text, err := os.ReadFile(r.policy)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	key, err := tlog.WitnessKey("w.example", secret.Public())
	if err != nil {
		t.Fatal(err)
	}
	witness := "witness w " + key.String() + " http://127.0.0.1:1\nquorum w\n"
	if err := os.WriteFile(r.policy, []byte(strings.Replace(string(text), "quorum none\n", witness, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	url, end := r.serve("--witness-policy", r.policy)
	mine := r.sba("mine.sba", "acme/langid", 1)
	r.refused(codePending, []string{"log", "add", mine, "--log", url, "--log-policy", r.policy, "--timeout", "1s"}, "not published within 1s", "next: the same command again")
	r.refused(codeError, []string{"log", "prove", mine, "--log", url, "--log-policy", r.policy}, "no checkpoint before")
	if _, err := os.Lstat(mine + ".tlog-proof"); err == nil {
		t.Error("there is a proof without a checkpoint")
	}
	if code := end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code after SIGTERM = %d, want 0", code)
	}
}
