package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDaemonLife(t *testing.T) {
	r := newRig(t)
	r.refused(codeDaemon, []string{"status"}, r.state.Socket(), "clawfs --state", "daemon")
	for _, verb := range [][]string{{"jobs"}, {"caps"}, {"job", "x"}} {
		r.refused(codeDaemon, verb, r.state.Socket(), "next:")
	}
	cmd := r.startDaemon()
	s := r.status()
	if s.PID != cmd.Process.Pid || s.State != string(r.state) || len(s.Mounts) != 0 || len(s.Warnings) != 0 {
		t.Errorf("status = %+v, want pid %d, no mounts, no warnings", s, cmd.Process.Pid)
	}
	r.refused(codeError, []string{"daemon"}, "runs already", "pid "+strconv.Itoa(cmd.Process.Pid), "status")
	if r.status().PID != cmd.Process.Pid {
		t.Error("the second daemon disturbed the first")
	}
	fi, err := os.Lstat(r.state.Socket())
	if err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Errorf("socket: %v, %v, want mode 0600", fi.Mode(), err)
	}
	start := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the daemon ended with %v after SIGTERM, want exit code 0", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the daemon took %v to end, want less than 10 s", took)
	}
	r.refused(codeDaemon, []string{"status"}, "no daemon answers")
}

// A socket that a killed daemon left is replaced; a planted file is not.
func TestDaemonAfterKill(t *testing.T) {
	r := newRig(t)
	r.startDaemon()
	r.stopDaemon(syscall.SIGKILL)
	if _, err := os.Lstat(r.state.Socket()); err != nil {
		t.Fatalf("a killed daemon leaves its socket: %v", err)
	}
	r.startDaemon()
	r.stopDaemon(syscall.SIGTERM)
	if err := os.WriteFile(r.state.Socket(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.refused(codeError, []string{"daemon"}, r.state.Socket(), "somebody put")
	r.file("a.bin", "a")
	r.refused(codeDaemon, []string{"mount", r.src, r.mnt}, "somebody put", r.state.DaemonLog())
}

func TestDaemonRefusesToStart(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, r *rig)
		want  string
	}{
		{"no state", func(t *testing.T, r *rig) { os.RemoveAll(string(r.state)) }, "init"},
		{"open state", func(t *testing.T, r *rig) { os.Chmod(string(r.state), 0o777) }, "chmod"},
		{"policy of all", func(t *testing.T, r *rig) { os.Chmod(r.state.Policy(), 0o666) }, "chmod"},
		{"readable mint key", func(t *testing.T, r *rig) { os.Chmod(r.state.MintKey(), 0o644) }, "chmod"},
		{"foreign policy", func(t *testing.T, r *rig) { os.Chown(r.state.Policy(), 65534, 0) }, "uid 65534"},
		{"no policy", func(t *testing.T, r *rig) { os.Remove(r.state.Policy()) }, "policy.json"},
		{"empty policy", func(t *testing.T, r *rig) { os.Truncate(r.state.Policy(), 0) }, "policy"},
		{"empty object as policy", func(t *testing.T, r *rig) { os.WriteFile(r.state.Policy(), []byte("{}"), 0o600) }, "policy"},
		{"unknown setting", func(t *testing.T, r *rig) {
			os.WriteFile(r.state.Settings(), []byte("[build]\nskip = true\n"), 0o600)
		}, "unknown setting build.skip"},
		{"store is a file", func(t *testing.T, r *rig) { os.WriteFile(r.state.Store(), nil, 0o600) }, "store"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			tt.spoil(t, r)
			got := r.refused(codeError, []string{"daemon"}, tt.want)
			if strings.Contains(got.stderr, "goroutine ") {
				t.Errorf("a panic is no refusal:\n%s", got.stderr)
			}
			if _, err := os.Lstat(r.state.Socket()); err == nil {
				t.Error("a daemon that did not start left a socket")
			}
		})
	}
}

// A start is refused while others could have changed or read what it rests on, each
// time with the command that mends it; and that command mends it.
func TestDaemonRefusesLoosePermissions(t *testing.T) {
	r := newRig(t)
	if err := r.state.MakeRun(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{r.state.Memory(), r.state.Kept()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{filepath.Join(r.state.Memory(), "store.key"), r.state.Mount("0123456789ab")} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	base := filepath.Dir(string(r.state))
	for _, tt := range []struct {
		path string
		mode os.FileMode
		uid  int
	}{
		{base, 0o777, 0},
		{base, 0o775, 0},
		{base, 0o755, 65534},
		{base, 0o777 | os.ModeSticky, 65534},
		{string(r.state), 0o770, 0},
		{string(r.state), 0o707, 0},
		{string(r.state), 0o700, 65534},
		{r.state.Policy(), 0o664, 0},
		{r.state.Policy(), 0o646, 0},
		{r.state.Policy(), 0o644, 65534},
		{r.state.Settings(), 0o666, 0},
		{r.state.MintKey(), 0o640, 0},
		{r.state.MintKey(), 0o604, 0},
		{r.state.MintKey(), 0o600, 65534},
		{r.state.RevokeKey(), 0o644, 0},
		{r.state.MintPublic(), 0o666, 0},
		{r.state.Store(), 0o750, 0},
		{r.state.Store(), 0o705, 0},
		{r.state.Store(), 0o700, 65534},
		{r.state.Memory(), 0o711, 0},
		{filepath.Join(r.state.Memory(), "store.key"), 0o640, 0},
		{r.state.Kept(), 0o770, 0},
		{r.state.Run(), 0o755, 0},
		{r.state.Run(), 0o700, 65534},
		{r.state.Mounts(), 0o750, 0},
		{r.state.Mount("0123456789ab"), 0o606, 0},
		{r.state.Log(), 0o777, 0},
		{r.state.Jobs(), 0o777, 0},
		{r.state.Work(), 0o770, 0},
	} {
		before, err := os.Lstat(tt.path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(tt.path, tt.uid, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(tt.path, tt.mode); err != nil {
			t.Fatal(err)
		}
		got := r.refused(codeError, []string{"daemon"}, tt.path, "want")
		_, next, found := strings.Cut(strings.TrimSpace(got.stderr), "next: ")
		if words := strings.Fields(next); !found || len(words) != 3 || words[2] != tt.path || words[0] != "chmod" && words[0] != "chown" {
			t.Errorf("%s of uid %d with mode %v: %q, want a command that mends it at the end", tt.path, tt.uid, tt.mode, got.stderr)
			continue
		}
		if mended := r.exec("sh", "-c", next); mended.code != 0 {
			t.Errorf("%q: %s", next, mended.stderr)
		}
		if err := r.state.Check(); err != nil {
			t.Errorf("after %q: %v", next, err)
		}
		os.Chown(tt.path, 0, 0)
		os.Chmod(tt.path, before.Mode().Perm())
	}
	os.Remove(r.state.Mount("0123456789ab"))
	os.Remove(filepath.Join(r.state.Memory(), "store.key"))
	r.startDaemon()
}

// The daemon holds no private key: it starts and serves without any.
func TestDaemonNeedsNoKeys(t *testing.T) {
	r := newRig(t)
	for _, key := range []string{r.state.MintKey(), r.state.RevokeKey()} {
		if err := os.Remove(key); err != nil {
			t.Fatal(err)
		}
	}
	r.file("a.bin", "a")
	r.ok("mount", r.src, r.mnt)
	if r.opens("a.bin", "a") {
		t.Error("a file without a capability opened")
	}
}

// Another user cannot speak to the daemon even if somebody opened the way.
func TestDaemonRefusesForeignUser(t *testing.T) {
	r := newRig(t)
	r.startDaemon()
	for dir := string(r.state.Run()); dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(r.state.Socket(), 0o666); err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(filepath.Dir(string(r.state)), "clawfs")
	program, err := os.ReadFile(r.bin)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin, program, 0o755); err != nil {
		t.Fatal(err)
	}
	got := r.exec("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", bin, "--state", string(r.state), "status")
	if got.code != codeError || got.stdout != "" || !strings.Contains(got.stderr, "only root and the daemon's own user may connect") {
		t.Errorf("uid 65534: exit code %d, %q, %q, want a refusal by the daemon", got.code, got.stdout, got.stderr)
	}
	if got = r.exec(bin, "--state", string(r.state), "status"); got.code != 0 {
		t.Errorf("root through the same opened way: exit code %d, %q, want 0", got.code, got.stderr)
	}
	log, err := os.ReadFile(r.state.DaemonLog())
	if err != nil || !strings.Contains(string(log), `"uid":65534`) {
		t.Errorf("the refused connection is not in the log: %v\n%s", err, log)
	}
}

// A policy that breaks under a running daemon is told; another one is taken over.
func TestStatusWarns(t *testing.T) {
	r := newRig(t)
	r.startDaemon()
	policy, err := os.ReadFile(r.state.Policy())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.state.Policy(), policy[:len(policy)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if w := r.status().Warnings; len(w) != 1 || !strings.Contains(w[0], "nothing new is accepted") {
		t.Errorf("warnings with half a policy = %q", w)
	}
	other := newRig(t)
	foreign, err := os.ReadFile(other.state.Policy())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.state.Policy(), foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	if w := r.status().Warnings; len(w) != 0 {
		t.Errorf("warnings with another policy = %q, want none", w)
	}
	if err := os.WriteFile(r.state.Policy(), policy, 0o600); err != nil {
		t.Fatal(err)
	}
	if w := r.status().Warnings; len(w) != 0 {
		t.Errorf("warnings with the first policy again = %q, want none", w)
	}
}
