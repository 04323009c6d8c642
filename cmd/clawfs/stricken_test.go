package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// startStricken starts a daemon whose store cannot be opened, and waits until it
// says so.
func (r *rig) startStricken() *exec.Cmd {
	r.t.Helper()
	cmd := exec.Command(r.bin, "--state", string(r.state), "daemon")
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	r.eventually("the daemon says that it has no store", func() bool { return r.run("status").code == codeRefused })
	return cmd
}

// troubled is what status says of a store that cannot be opened.
func (r *rig) troubled() control.StoreTrouble {
	r.t.Helper()
	got := r.run("status", "-o", "json")
	var s control.Status
	if err := json.Unmarshal([]byte(got.stdout), &s, json.RejectUnknownMembers(true)); err != nil || got.code != codeRefused || s.Store == nil {
		r.t.Fatalf("status: exit code %d, %v, want %d and why there is no store\n%s%s", got.code, err, codeRefused, got.stdout, got.stderr)
	}
	return *s.Store
}

// spoilt are ways to break a store that was closed.
var spoilt = map[string]struct {
	cause string // "": any that is none of those that pass by themselves
	spoil func(t *testing.T, r *rig)
}{
	"MANIFEST flipped": {causeDamaged, func(t *testing.T, r *rig) {
		rewrite(t, filepath.Join(r.state.Store(), "db", "MANIFEST"), func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	}},
	"MANIFEST removed": {causeDamaged, func(t *testing.T, r *rig) { remove(t, filepath.Join(r.state.Store(), "db", "MANIFEST")) }},
	"table removed":    {causeDamaged, func(t *testing.T, r *rig) { remove(t, filepath.Join(r.state.Store(), "db", "*.sst")) }},
	"foreign store": {causeForeign, func(t *testing.T, r *rig) {
		other := newRig(t)
		other.admit(map[string]string{"m.bin": "another model"})
		if err := os.RemoveAll(r.state.Store()); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(other.state.Store(), r.state.Store()); err != nil {
			t.Fatal(err)
		}
	}},
}

func rewrite(t *testing.T, pattern string, change func([]byte) []byte) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(files), err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil {
			err = os.WriteFile(f, change(b), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func remove(t *testing.T, pattern string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(files), err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
}

// A daemon whose store is broken comes up, and so do mounts: those that run serve
// what they know, one that starts refuses every file, and both learn what is
// revoked. Whatever needs the store is refused with the damage and the next
// command.
func TestStoreIsBroken(t *testing.T) {
	for name, c := range spoilt {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			files := map[string]string{"a.bin": "a", "b.bin": "b", "c.bin": "c"}
			for name, content := range files {
				r.admit(map[string]string{name: content})
				r.file(name, content)
			}
			r.file("d.bin", "d")
			r.ok("mount", r.src, r.mnt)
			digest := func(s string) string { return hashpipe.SumBytes([]byte(s)).String() }
			r.ok("revoke", "--kind", "file", digest("c"), "--reason", "before")
			server := r.serverPID()
			r.stopDaemon(syscall.SIGTERM)
			c.spoil(t, r)
			r.startStricken()

			if s := r.troubled(); c.cause != "" && s.Cause != c.cause || s.Cause == causeLocked || s.Cause == causeFull || !strings.Contains(s.Next, "store rebuild") {
				t.Errorf("status says %+v, want cause %q", s, c.cause)
			}
			text := r.run("status")
			if !strings.HasPrefix(text.stdout, "NO STORE since ") || !strings.Contains(text.stdout, "clawfs --state "+string(r.state)+" store verify") || !strings.Contains(text.stdout, r.mnt) {
				t.Errorf("status prints\n%s", text.stdout)
			}
			for _, name := range []string{"a.bin", "d.bin"} { // granted and refused
				if why := r.run("why", filepath.Join(r.mnt, name)); !strings.Contains(why.stdout, "the daemon has NO STORE since ") || !strings.Contains(why.stdout, "next: clawfs --state "+string(r.state)+" status") {
					t.Errorf("why %s prints\n%s", name, why.stdout)
				}
			}
			for _, verb := range [][]string{{"caps"}, {"jobs"}, {"revocations", "list"}, {"job", "abcdefghij"}, {"disputes"}} {
				got := r.refused(codeRefused, verb, "the store cannot be opened", "next: clawfs --state "+string(r.state)+" store verify")
				if got.stdout != "" {
					t.Errorf("clawfs %q prints %q", verb, got.stdout)
				}
			}
			if !r.opens("a.bin", "a") || !r.opens("b.bin", "b") || r.opens("c.bin", "c") || r.opens("d.bin", "d") || r.serverPID() != server {
				t.Error("the mount that runs does not serve what it knew, and nothing else")
			}

			r.refused(codeRefused, []string{"revoke", "--kind", "file", digest("a")[:12], "--reason", "now"}, "whole ID", "nothing is revoked")
			out := r.run("revoke", "--kind", "file", digest("a"), "--reason", "now")
			if out.code != 0 || !strings.Contains(out.stdout, "revoked file "+digest("a")) || !strings.Contains(out.stderr, "takes it when it opens") {
				t.Errorf("revoking: exit code %d, %q, %q", out.code, out.stdout, out.stderr)
			}
			r.eventually("the mount has the revocation", func() bool { return !r.opens("a.bin", "a") })
			if s := r.troubled(); s.Waiting != 1 {
				t.Errorf("%d records wait, want 1", s.Waiting)
			}

			// A mount process that starts now is there, and refuses.
			if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			r.eventually("another process serves the mount", func() bool { now := r.serverPID(); return now != 0 && now != server && r.isMounted() })
			r.eventually("it answers", func() bool { return exec.Command("stat", filepath.Join(r.mnt, "b.bin")).Run() == nil })
			for name, content := range files {
				if r.opens(name, content) {
					t.Errorf("a mount that has seen no store opens %s", name)
				}
			}

			// A daemon that starts now knows what was revoked without a store.
			r.stopDaemon(syscall.SIGKILL)
			r.startStricken()
			if s := r.troubled(); s.Waiting != 1 {
				t.Errorf("after a restart %d records wait, want 1", s.Waiting)
			}

			found := r.run("store", "verify", "-o", "json")
			var v verified
			if err := json.Unmarshal([]byte(found.stdout), &v, json.RejectUnknownMembers(true)); err != nil || found.code != codeRefused || v.Found == 0 || v.Checked.Kept != 4 || v.Checked.Waiting != 1 {
				t.Errorf("store verify: exit code %d, %v, %s%s", found.code, err, found.stdout, found.stderr)
			}
			var made remade
			r.document(&made, "store", "rebuild")
			if made.Records[capstore.RecordCapability] != 3 || made.Records[capstore.RecordRevocation] != 1 || made.Waiting != 1 || made.Daemon != "opened it" || len(made.Missing) > 0 {
				t.Errorf("store rebuild: %+v", made)
			}
			if _, err := os.Stat(filepath.Join(made.Old, "db")); err != nil {
				t.Errorf("the store of before is not at %q: %v", made.Old, err)
			}
			r.eventually("the mount has the capabilities", func() bool { return r.opens("b.bin", "b") })
			if r.opens("a.bin", "a") || r.opens("c.bin", "c") || r.opens("d.bin", "d") {
				t.Error("a revocation is lost, or something is granted that never was")
			}
			if s := r.status(); s.Store != nil || s.Revocations != 2 || s.Capabilities.Live != 3 && s.Capabilities.Live != 1 || len(s.Rejected) > 0 {
				t.Errorf("status after the rebuild: %+v", s)
			}
			r.document(&v, "store", "verify")
			if v.Found > 0 || v.By != "the daemon" || v.Checked.Waiting != 0 || v.Checked.Facts != 5 {
				t.Errorf("store verify after the rebuild: %+v", v)
			}
		})
	}
}

// What keeps the store from being opened and goes away needs nobody: the daemon
// opens it, and takes what was revoked meanwhile.
func TestStoreComesBack(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"a.bin": "a"})
	r.admit(map[string]string{"b.bin": "b"})
	r.file("a.bin", "a")
	r.file("b.bin", "b")
	policy, err := r.state.LoadPolicy()
	if err != nil {
		t.Fatal(err)
	}
	store, err := openStore(r.state, policy)
	if err != nil {
		t.Fatal(err)
	}
	r.startStricken()
	if s := r.troubled(); s.Cause != causeLocked || !strings.Contains(s.Error, "another process") {
		t.Errorf("status says %+v, want cause %s", s, causeLocked)
	}
	r.ok("mount", r.src, r.mnt)
	if r.opens("a.bin", "a") {
		t.Error("a file opens that no store has granted")
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	r.eventually("the store is open", func() bool { return r.run("status").code == 0 })
	r.eventually("the mount has the capabilities", func() bool { return r.opens("a.bin", "a") })
	r.ok("caps")
}

// The journal is held by another process: what is revoked is in force on the
// mounts, the answer says that it is recorded nowhere, and it is recorded later.
func TestRevocationThatCannotBeKept(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"a.bin": "a"})
	r.file("a.bin", "a")
	r.ok("mount", r.src, r.mnt)
	r.stopDaemon(syscall.SIGTERM)
	policy, err := r.state.LoadPolicy()
	if err != nil {
		t.Fatal(err)
	}
	store, err := openStore(r.state, policy) // has the journal, too
	if err != nil {
		t.Fatal(err)
	}
	r.startStricken()
	digest := hashpipe.SumBytes([]byte("a")).String()
	r.refused(codeError, []string{"revoke", "--kind", "file", digest, "--reason", "now"}, "in force on the mounts until they end", "not recorded")
	r.eventually("the mount has the revocation", func() bool { return !r.opens("a.bin", "a") })
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	r.eventually("the store is open", func() bool { return r.run("status").code == 0 })
	if out := r.ok("revocations", "list"); !strings.Contains(out, digest[:16]) {
		t.Errorf("the store did not take the revocation:\n%s", out)
	}
}

// The disk is full when the daemon starts: it works without the store, the mount
// serves, what is revoked is kept, and with room all is well by itself.
func TestStoreOnAFullDisk(t *testing.T) {
	disk, err := os.MkdirTemp("", "clawfs-full-disk-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(disk) })
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=256m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("TMPDIR", disk) // of the directories of the rig
	r := newRig(t)
	r.admit(map[string]string{"a.bin": "a"})
	r.admit(map[string]string{"b.bin": "b"})
	r.file("a.bin", "a")
	r.file("b.bin", "b")
	r.ok("mount", r.src, r.mnt)
	r.stopDaemon(syscall.SIGTERM)
	if err := os.Remove(filepath.Join(r.state.Store(), "ballast")); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(disk, "filler")
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-4<<20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	r.startStricken()
	if s := r.troubled(); s.Cause != causeFull || !strings.Contains(s.Next, "make room") {
		t.Errorf("status says %+v, want cause %s", s, causeFull)
	}
	digest := hashpipe.SumBytes([]byte("a")).String()
	r.ok("revoke", "--kind", "file", digest, "--reason", "now")
	r.eventually("the mount has the revocation", func() bool { return !r.opens("a.bin", "a") })
	if !r.opens("b.bin", "b") {
		t.Error("the mount does not serve on a full disk")
	}
	r.refused(codeRefused, []string{"caps"}, "make room")
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	r.eventually("the store is open", func() bool { return r.run("status").code == 0 })
	if out := r.ok("revocations", "list"); !strings.Contains(out, digest[:16]) {
		t.Errorf("the revocation is lost:\n%s", out)
	}
	if r.opens("a.bin", "a") || !r.opens("b.bin", "b") {
		t.Error("with room: the revoked file opens, or the granted one does not")
	}
}

// A write of the database fails in the middle of the daemon's life: the store is
// opened again, and what was revoked meanwhile is in it.
func TestStoreThatFailsIsOpenedAgain(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is missing; run: apt-get install strace")
	}
	r := newRig(t)
	r.admit(map[string]string{"a.bin": "a"})
	r.admit(map[string]string{"b.bin": "b"})
	r.file("a.bin", "a")
	r.file("b.bin", "b")
	r.ok("mount", r.src, r.mnt)
	daemon := r.daemonPID()
	trace := exec.Command("strace", "-f", "-p", strconv.Itoa(daemon), "-e", "trace=msync", "-e", "inject=msync:error=EIO", "-o", filepath.Join(t.TempDir(), "trace"))
	said, err := trace.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := trace.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { trace.Process.Kill(); trace.Wait() })
	if _, err := said.Read(make([]byte, 1)); err != nil { // it is attached
		t.Fatal(err)
	}
	go io.Copy(io.Discard, said)
	digest := hashpipe.SumBytes([]byte("a")).String()
	r.refused(codeError, []string{"revoke", "--kind", "file", digest, "--reason", "now"}, "is in force until this process ends", "the journal keeps it")
	if err := trace.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	trace.Wait()
	r.eventually("the mount has the revocation", func() bool { return !r.opens("a.bin", "a") })
	r.eventually("the store is open again", func() bool { return r.run("status").code == 0 })
	if out := r.ok("revocations", "list"); !strings.Contains(out, digest[:16]) {
		t.Errorf("the revocation is lost:\n%s", out)
	}
	log, err := os.ReadFile(r.state.DaemonLog())
	if err != nil || !strings.Contains(string(log), "THE STORE IS OPEN AGAIN") || r.daemonPID() != daemon {
		t.Errorf("the daemon was not the same, or does not tell: %v", err)
	}
	r.ok("revoke", "--kind", "file", hashpipe.SumBytes([]byte("b")).String(), "--reason", "again")
	r.eventually("the mount has the next one, too", func() bool { return !r.opens("b.bin", "b") })
}

// On a disk that is only slow the child that opens the store first says that it opens,
// although what a dead daemon had in memory is not written as soon as the child waits.
func TestStoreOnASlowDisk(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("strace is missing; run: apt-get install strace")
	}
	r := newRig(t)
	r.startDaemon()
	r.ok("revoke", "--kind", "file", hashpipe.SumBytes([]byte("a")).String(), "--reason", "now")
	r.stopDaemon(syscall.SIGKILL)
	got := r.exec("strace", "-f", "-e", "trace=fsync,fdatasync,msync", "-e", "inject=fsync,fdatasync,msync:delay_enter=400000",
		"-o", filepath.Join(t.TempDir(), "trace"), r.bin, "--state", string(r.state), "store-probe")
	if got.code != 0 || got.stdout != "{}\n" {
		t.Errorf("opening the store first, where each fsync takes 0.4 s: exit code %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	r.startDaemon()
	if out := r.ok("revocations", "list"); !strings.Contains(out, hashpipe.SumBytes([]byte("a")).String()[:16]) {
		t.Errorf("the revocation is lost:\n%s", out)
	}
}

// A stranger's revocation takes nothing back, and is not kept.
func TestStrickenChecksSignatures(t *testing.T) {
	r, other := newRig(t), newRig(t)
	r.admit(map[string]string{"a.bin": "a"})
	r.file("a.bin", "a")
	r.ok("mount", r.src, r.mnt)
	r.stopDaemon(syscall.SIGTERM)
	remove(t, filepath.Join(r.state.Store(), "db", "MANIFEST"))
	r.startStricken()
	text, err := config.ReadSecret(other.state.RevokeKey())
	if err != nil {
		t.Fatal(err)
	}
	key, err := dsse.ParsePrivateKey(text, nil)
	if err != nil {
		t.Fatal(err)
	}
	st, err := capstore.NewRevocation(capstore.KindFile, hashpipe.SumBytes([]byte("a")).String(), "a stranger", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := capstore.SignRevocation(st, key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = control.NewClient(r.state.Socket()).Revoke(t.Context(), envelope)
	if err == nil || !strings.Contains(err.Error(), "not signed by a trusted revoker") {
		t.Errorf("a stranger revoked: %v", err)
	}
	n := 0
	if _, err := kept.ReadWaiting(r.state.Kept(), func(kept.Record) error { n++; return nil }); err != nil || n != 0 {
		t.Errorf("%d records of a stranger were kept: %v", n, err)
	}
	if !r.opens("a.bin", "a") {
		t.Error("a stranger took a file back")
	}
}

func TestJudgeProbe(t *testing.T) {
	const crashed = "some line\npanic: runtime error: index out of range [3]\n\ngoroutine 12 [running]:\nx()\n"
	for name, c := range map[string]struct {
		code      int
		status    syscall.WaitStatus
		out, errs string
		cause     string
		says      string
	}{
		"opened":              {0, 0, "{}", "", "", ""},
		"refused":             {0, 0, `{"cause":"damaged","error":"a row is lost"}`, "", causeDamaged, "a row is lost"},
		"a panic":             {2, 2 << 8, "", crashed, causeCrashed, "exit code 2: panic: runtime error"},
		"a panic after words": {2, 2 << 8, "{}", crashed, causeCrashed, "panic"},
		"a signal":            {-1, syscall.WaitStatus(syscall.SIGBUS), "", "", causeCrashed, "by signal bus error: it said nothing"},
		"silence":             {0, 0, "", "", causeCrashed, "exit code 0"},
		"other words":         {0, 0, `{"opened":true}`, "", causeCrashed, "exit code 0"},
		"two answers":         {0, 0, "{}{}", "", causeCrashed, "exit code 0"},
	} {
		err := judgeProbe(c.code, c.status, []byte(c.out), []byte(c.errs))
		if c.cause == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if tr, ok := err.(*trouble); !ok || tr.cause != c.cause || !strings.Contains(tr.Error(), c.says) {
			t.Errorf("%s: %v, want cause %s and %q", name, err, c.cause, c.says)
		}
	}
}
