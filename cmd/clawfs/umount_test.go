package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Whoever unmounts by other means means it too.
func TestPlainUmount(t *testing.T) {
	r := newRig(t)
	r.ok("mount", r.src, r.mnt)
	if got := r.exec("umount", r.mnt); got.code != 0 {
		t.Fatalf("umount(8): %s", got.stderr)
	}
	r.eventually("the wish is gone", func() bool { return !r.hasRecord() && r.serverPID() == 0 && len(r.status().Mounts) == 0 })
	time.Sleep(3 * lookEvery)
	if r.isMounted() {
		t.Error("the daemon brought back what was unmounted")
	}
	// SIGTERM to the mount process as well.
	r.ok("mount", r.src, r.mnt)
	if err := syscall.Kill(r.serverPID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.eventually("the mount is gone", func() bool { return !r.isMounted() && !r.hasRecord() && r.serverPID() == 0 })
}

func TestUmountRefusals(t *testing.T) {
	r := newRig(t)
	r.refused(codeMount, []string{"umount", r.mnt}, "nothing is mounted", "status")
	r.refused(codeMount, []string{"umount", filepath.Join(r.mnt, "x", "y")}, "x")
	r.refused(codeMount, []string{"umount", "/proc"}, "proc", "not clawfs")
	r.refused(codeUsage, []string{"umount"}, "want `clawfs umount DIR`, got 0")
}

// A mount in use stays, and the message names who uses it; --lazy lets the
// reader finish and frees the place at once.
func TestUmountBusy(t *testing.T) {
	r := newRig(t)
	content := strings.Repeat("model ", 1<<20)
	r.admit(map[string]string{"m.bin": content})
	r.file("m.bin", content)
	r.ok("mount", r.src, r.mnt)
	reader := exec.Command("sh", "-c", "exec 9<"+filepath.Join(r.mnt, "m.bin")+"; echo open; read go; cat <&9 | cksum")
	in, _ := reader.StdinPipe()
	pipe, _ := reader.StdoutPipe()
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Process.Kill(); reader.Wait() })
	out := bufio.NewReader(pipe)
	if line, err := out.ReadString('\n'); line != "open\n" {
		t.Fatalf("the reader said %q, %v", line, err)
	}
	r.refused(codeMount, []string{"umount", r.mnt}, "in use", "sh("+strconv.Itoa(reader.Process.Pid), "open file", "--lazy")
	if !r.isMounted() || !r.hasRecord() {
		t.Error("a refused umount took something away")
	}
	old := r.serverPID()
	r.ok("umount", "--lazy", r.mnt)
	if r.isMounted() {
		t.Error("the mount is still in the mount table after --lazy")
	}
	r.ok("mount", r.src, r.mnt)
	if r.serverPID() == old {
		t.Error("the detached process serves the new mount")
	}
	in.Write([]byte("go\n"))
	sum, err := out.ReadString('\n')
	want := r.exec("cksum", filepath.Join(r.src, "m.bin")).stdout
	if err != nil || strings.Fields(sum)[0] != strings.Fields(want)[0] {
		t.Errorf("the reader of the detached mount got %q, %v, want %q", sum, err, want)
	}
	if err := reader.Wait(); err != nil {
		t.Error(err)
	}
	r.eventually("the detached process ends after its last reader", func() bool { return syscall.Kill(old, 0) != nil })
	if !r.isMounted() || !r.hasRecord() {
		t.Error("the end of the detached process took the new mount's record")
	}
}

// A directory for private files that is gone costs the tier and not the mount.
func TestPrivateDirectoryGone(t *testing.T) {
	r := newRig(t)
	private := filepath.Join(filepath.Dir(r.mnt), "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	r.ok("mount", "--seal", "copy", "--private-dir", private, r.src, r.mnt)
	if err := os.Remove(private); err != nil {
		t.Fatal(err)
	}
	old := r.serverPID()
	syscall.Kill(old, syscall.SIGKILL)
	r.eventually("the mount is back, and status says what it lacks", func() bool {
		m := r.status().Mounts[0]
		return m.State == mountLive && m.PID != old && m.Report != nil && m.Report.Tier == "blocks" && strings.Contains(m.Report.TierReason, private)
	})
}

// A mount that cannot come back is said to be dead, with what it lacks, and is
// gone from status once umount has returned.
func TestUmountDead(t *testing.T) {
	r := newRig(t)
	r.ok("mount", r.src, r.mnt)
	if err := os.Rename(r.src, r.src+".away"); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(r.serverPID(), syscall.SIGKILL)
	r.eventually("the mount is dead and status says why", func() bool {
		m := r.status().Mounts[0]
		return m.State == mountDead && !r.isMounted() && strings.Contains(m.LastError, r.src)
	})
	r.ok("umount", r.mnt)
	if list := r.status().Mounts; len(list) != 0 {
		t.Errorf("mounts after umount = %+v, want none", list)
	}
}

// An open that waits for hashing keeps a mount busy, and is in no table of open
// files: the message says that it may be one.
func TestUmountWhileHashing(t *testing.T) {
	r := newRig(t)
	r.huge("h.bin", 1<<40)
	r.ok("mount", "--preverify=false", r.src, r.mnt)
	cat := exec.Command("cat", filepath.Join(r.mnt, "h.bin"))
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cat.Process.Kill(); cat.Wait() })
	r.eventually("the file is being hashed", func() bool {
		m := r.status().Mounts[0].Report
		return m != nil && m.Counters["verifying"] == 1
	})
	r.refused(codeMount, []string{"umount", r.mnt}, "in use by a process", "waits until a file it opens is verified", "--lazy")
	cat.Process.Kill()
	cat.Wait()
	r.ok("umount", r.mnt)
}

// A mount whose last reader lets go a moment later is taken away after all.
func TestUmountRetries(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"m.bin": "model"})
	r.file("m.bin", "model")
	r.ok("mount", r.src, r.mnt)
	h := r.hold("fd", filepath.Join(r.mnt, "m.bin"))
	var closed atomic.Bool
	time.AfterFunc(500*time.Millisecond, func() { closed.Store(true); h.cmd.Process.Kill() })
	r.ok("umount", r.mnt)
	if !closed.Load() {
		t.Error("umount succeeded while the file was open")
	}
	if r.isMounted() || r.hasRecord() {
		t.Error("umount left something")
	}
}
