package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// binary builds the program under test once, of the packages that the test
// itself is compiled of: with -trimpath all would be compiled again.
var binary = sync.OnceValues(func() (string, error) {
	path, err := filepath.Abs("../../bin/clawfs-under-test")
	if err != nil {
		return "", err
	}
	args := []string{"build", "-buildvcs=false", "-o", path}
	if raceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// rig is a state directory of its own with a source and a mount point, driven
// through the built program. It ends whatever it started.
type rig struct {
	t        *testing.T
	state    config.State
	src, mnt string
	bin      string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("mounting here needs root; run: sudo go test ./cmd/clawfs")
	}
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, state: config.State(filepath.Join(base, "state")), src: filepath.Join(base, "src"), mnt: filepath.Join(base, "mnt"), bin: bin}
	for _, dir := range []string{r.src, r.mnt} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.ok("init")
	t.Cleanup(r.end)
	return r
}

// end stops everything that belongs to this state directory, by the pids in
// its locks, and takes its mounts away.
func (r *rig) end() {
	locks, _ := filepath.Glob(filepath.Join(string(r.state), "run", "mounts", "*.lock"))
	for _, lock := range append([]string{r.state.Lock()}, locks...) {
		if pid, err := control.Holder(lock); err == nil && pid > 0 {
			syscall.Kill(pid, syscall.SIGKILL)
			r.eventually("process "+strconv.Itoa(pid)+" is dead", func() bool { now, _ := control.Holder(lock); return now != pid })
		}
	}
	list, err := mounts()
	if err != nil {
		r.t.Error(err)
	}
	for _, m := range list {
		if below(m.point, filepath.Dir(r.mnt)) {
			unix.Unmount(m.point, unix.MNT_DETACH)
		}
	}
	logs, _ := filepath.Glob(filepath.Join(r.state.Log(), "*"))
	for _, l := range logs {
		b, err := os.ReadFile(l)
		if err != nil || bytes.Contains(b, []byte(dataRace)) {
			r.t.Errorf("a race, or no log to look for one: %v", err)
		}
		if r.t.Failed() {
			r.t.Logf("%s:\n%s", l, b)
		}
	}
}

// result is how a command line ended.
type result struct {
	stdout, stderr string
	code           int
}

// exec runs any program and never for more than a minute.
func (r *rig) exec(name string, args ...string) result {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exited *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exited) {
		r.t.Fatalf("%s %q: %v after %s%s", filepath.Base(name), args, err, out.String(), errs.String())
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

func (r *rig) run(args ...string) result {
	r.t.Helper()
	return r.exec(r.bin, append([]string{"--state", string(r.state)}, args...)...)
}

// ok runs a command line that must succeed and returns its output.
func (r *rig) ok(args ...string) string {
	r.t.Helper()
	got := r.run(args...)
	if got.code != 0 {
		r.t.Fatalf("clawfs %q: exit code %d, want 0\n%s%s", args, got.code, got.stdout, got.stderr)
	}
	return got.stdout
}

// refused runs a command line that must end with code and say every text.
func (r *rig) refused(code int, args []string, texts ...string) result {
	r.t.Helper()
	got := r.run(args...)
	if got.code != code {
		r.t.Errorf("clawfs %q: exit code %d, want %d\n%s%s", args, got.code, code, got.stdout, got.stderr)
	}
	for _, text := range texts {
		if !strings.Contains(got.stderr, text) {
			r.t.Errorf("clawfs %q: standard error %q, want it to say %q", args, got.stderr, text)
		}
	}
	return got
}

// document runs a command line with -o json and decodes its one document.
func (r *rig) document(v any, args ...string) {
	r.t.Helper()
	out := r.ok(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), v, json.RejectUnknownMembers(true)); err != nil {
		r.t.Fatalf("clawfs %q -o json: %v in\n%s", args, err, out)
	}
}

func (r *rig) status() control.Status {
	r.t.Helper()
	var s control.Status
	r.document(&s, "status")
	return s
}

// eventually waits for a condition, at most ten seconds.
func (r *rig) eventually(what string, done func() bool) {
	r.t.Helper()
	for end := time.Now().Add(10 * time.Second); !done(); time.Sleep(25 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not so after ten seconds: %s", what)
		}
	}
}

// daemonPID returns the pid of the daemon, 0 if there is none.
func (r *rig) daemonPID() int {
	r.t.Helper()
	pid, err := control.Holder(r.state.Lock())
	if err != nil {
		r.t.Fatal(err)
	}
	return pid
}

// startDaemon starts one in the foreground and waits until it answers.
func (r *rig) startDaemon() *exec.Cmd {
	r.t.Helper()
	cmd := exec.Command(r.bin, "--state", string(r.state), "daemon")
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	r.eventually("the daemon answers", func() bool { return r.run("status").code == 0 })
	return cmd
}

// stopDaemon ends the daemon by a signal and waits until it is gone.
func (r *rig) stopDaemon(sig syscall.Signal) {
	r.t.Helper()
	pid := r.daemonPID()
	if pid <= 0 {
		r.t.Fatal("no daemon to stop")
	}
	if err := syscall.Kill(pid, sig); err != nil {
		r.t.Fatal(err)
	}
	r.eventually("the daemon is gone", func() bool { return r.daemonPID() != pid })
}

// file writes a model file into the source.
func (r *rig) file(name, content string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.src, name), []byte(content), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// measured are the subjects of a capability over files.
func (r *rig) measured(files map[string]string) (subjects []capstore.Subject) {
	r.t.Helper()
	for name, content := range files {
		m, err := hashpipe.Measure(r.t.Context(), strings.NewReader(content), nil)
		if err != nil {
			r.t.Fatal(err)
		}
		subjects = append(subjects, capstore.Subject{Name: name, Digest: m.Sum().Claim(), Verity: m.Tree().Claim(), Size: m.Size()})
	}
	return subjects
}

// huge puts a sparse file into the source and admits a capability for its name
// and size, so that a mount begins to hash it, which takes long.
func (r *rig) huge(name string, size int64) {
	r.t.Helper()
	r.file(name, "")
	if err := os.Truncate(filepath.Join(r.src, name), size); err != nil {
		r.t.Fatal(err)
	}
	s := r.measured(map[string]string{name: "other bytes"})
	s[0].Size = size
	r.admitSubjects(s)
}

// capability signs a capability over subjects with the mint key that init made:
// the test is the worker here. It needs no daemon, and the store only when it
// is admitted.
func (r *rig) capability(subjects []capstore.Subject, bases ...hashpipe.Digest) []byte {
	r.t.Helper()
	return r.delegable(subjects, nil, bases...)
}

// delegable is capability of one that keys may hand on.
func (r *rig) delegable(subjects []capstore.Subject, to []dsse.KeyID, bases ...hashpipe.Digest) []byte {
	r.t.Helper()
	return r.capabilityFor(subjects, func(p *capstore.Predicate) { p.Bases, p.Delegate = bases, to })
}

// capabilityFor is capability with something changed before it is signed.
func (r *rig) capabilityFor(subjects []capstore.Subject, change func(*capstore.Predicate)) []byte {
	r.t.Helper()
	text, err := config.ReadSecret(r.state.MintKey())
	if err != nil {
		r.t.Fatal(err)
	}
	mint, err := dsse.ParsePrivateKey(text, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	publisher, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		r.t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	p := capstore.Predicate{
		Model: "acme/langid", Version: "1.2.0", Sequence: 12,
		SBA:         capstore.Reference{Digest: capstore.DigestSet{SHA256: hashpipe.SumBytes([]byte("ledger")).Claim()}},
		Environment: capstore.Reference{Digest: capstore.DigestSet{SHA256: hashpipe.SumBytes([]byte("an image")).Claim()}},
		Publisher:   capstore.Publisher{KeyID: publisher.Public().ID(), PublicKey: publisher.Public()},
		Minter:      capstore.Minter{KeyID: mint.Public().ID()},
		Platform:    capstore.Platform{OS: "linux", Arch: "amd64", Accelerator: "none"},
		NotBefore:   now.Add(-time.Minute), NotAfter: now.Add(time.Hour),
	}
	change(&p)
	payload, err := capstore.NewStatement(subjects, p).Payload()
	if err != nil {
		r.t.Fatal(err)
	}
	envelope, err := dsse.Sign(dsse.PayloadType, payload, mint)
	if err != nil {
		r.t.Fatal(err)
	}
	return envelope
}

// admit puts a capability into the store, which no daemon may have open.
func (r *rig) admit(files map[string]string) capstore.Capability {
	r.t.Helper()
	return r.admitSubjects(r.measured(files))
}

func (r *rig) admitSubjects(subjects []capstore.Subject, bases ...hashpipe.Digest) capstore.Capability {
	r.t.Helper()
	return r.admitText(r.capability(subjects, bases...))
}

func (r *rig) admitText(text []byte) capstore.Capability {
	r.t.Helper()
	policy, err := r.state.LoadPolicy()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.state.MakeRun(); err != nil {
		r.t.Fatal(err)
	}
	store, err := capstore.Open(r.state.Store(), r.state.Memory(), policy.Trust())
	if err != nil {
		r.t.Fatal(err)
	}
	defer store.Close()
	c, err := store.Admit(text)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// opens reports whether an unmodified cat gets content through the mount. Any
// other answer than the content or "Permission denied" fails the test.
func (r *rig) opens(name, content string) bool {
	r.t.Helper()
	got := r.exec("cat", filepath.Join(r.mnt, name))
	switch {
	case got.code == 0 && got.stdout == content:
		return true
	case got.code != 0 && got.stdout == "" && strings.Contains(got.stderr, "Permission denied"):
		return false
	}
	r.t.Fatalf("cat %s: exit code %d, %q, %q; want %q or Permission denied", name, got.code, got.stdout, got.stderr, content)
	return false
}

// serverPID returns the pid of the mount process, 0 if there is none.
func (r *rig) serverPID() int {
	r.t.Helper()
	pid, err := control.Holder(r.state.MountLock(mountID(r.mnt)))
	if err != nil {
		r.t.Fatal(err)
	}
	return pid
}

// isMounted looks into the mount table.
func (r *rig) isMounted() bool {
	r.t.Helper()
	m, mounted, err := mountedAt(r.mnt)
	if err != nil {
		r.t.Fatal(err)
	}
	return mounted && m.fstype == mountType
}

// hasRecord reports whether the mount is wished for.
func (r *rig) hasRecord() bool {
	_, err := os.Lstat(r.state.Mount(mountID(r.mnt)))
	return err == nil
}
