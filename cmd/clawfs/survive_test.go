package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// One mount process is kill -9'd, and with it its mount. It comes back by
// itself and serves.
func TestKilledMountProcessComesBack(t *testing.T) {
	r := newRig(t)
	files := map[string]string{"m.bin": "model"}
	r.admit(files)
	r.file("m.bin", "model")
	r.ok("mount", r.src, r.mnt)
	for round := 1; round <= 3; round++ {
		pid := r.serverPID()
		if !r.opens("m.bin", "model") {
			t.Fatalf("round %d: the granted file is refused", round)
		}
		start := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		r.eventually("another process serves the mount", func() bool {
			now := r.serverPID()
			return now != 0 && now != pid && r.isMounted() && exec.Command("cat", filepath.Join(r.mnt, "m.bin")).Run() == nil
		})
		t.Logf("round %d: back after %v", round, time.Since(start))
	}
	r.eventually("status tells of the restarts", func() bool { s := r.status(); return s.Mounts[0].Restarts >= 3 })
	r.ok("umount", r.mnt)
}

// The daemon is kill -9'd: the mount serves on; the next daemon takes it over
// as it is, and what was granted meanwhile arrives.
func TestMountOutlivesDaemon(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"old.bin": "old"})
	r.file("old.bin", "old")
	r.file("new.bin", "new")
	r.ok("mount", r.src, r.mnt)
	server := r.serverPID()
	r.stopDaemon(syscall.SIGKILL)
	if !r.opens("old.bin", "old") || r.opens("new.bin", "new") {
		t.Error("without a daemon: want the granted file served and the other refused")
	}
	got := r.refused(codeDaemon, []string{"status"}, "no daemon answers")
	if !strings.Contains(got.stdout, r.mnt) || !strings.Contains(got.stdout, "live") {
		t.Errorf("status without a daemon does not show the live mount:\n%s", got.stdout)
	}
	r.admit(map[string]string{"new.bin": "new"})
	r.startDaemon()
	r.eventually("the new capability reaches the old mount", func() bool { return r.opens("new.bin", "new") })
	if r.serverPID() != server {
		t.Errorf("mount process %d was replaced by %d; want it adopted", server, r.serverPID())
	}
	s := r.status()
	if len(s.Mounts) != 1 || s.Mounts[0].PID != server || s.Mounts[0].State != mountLive || s.Mounts[0].Restarts != 0 {
		t.Errorf("mounts after adoption = %+v, want pid %d, live, no restart", s.Mounts, server)
	}
	// An adopted process is watched like any other.
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.eventually("the adopted mount comes back", func() bool { now := r.serverPID(); return now != 0 && now != server && r.isMounted() })
	// SIGTERM leaves the mount alone too.
	server = r.serverPID()
	r.stopDaemon(syscall.SIGTERM)
	if r.serverPID() != server || !r.opens("old.bin", "old") {
		t.Error("a daemon that ended in order took the mount with it")
	}
	r.ok("umount", r.mnt) // needs no daemon
	if r.isMounted() || r.hasRecord() {
		t.Error("umount without a daemon left something")
	}
}

// Daemon and mount process die together, as in a crash of the machine's
// memory: the next daemon finds the wish and a dead mount, and mends it.
func TestBothKilled(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"m.bin": "model"})
	r.file("m.bin", "model")
	r.ok("mount", r.src, r.mnt)
	server := r.serverPID()
	r.stopDaemon(syscall.SIGKILL)
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.eventually("the mount is dead", func() bool { return r.serverPID() == 0 })
	if out := r.exec("cat", filepath.Join(r.mnt, "m.bin")); !strings.Contains(out.stderr, "not connected") {
		t.Errorf("a dead mount says %q", out.stderr)
	}
	r.startDaemon()
	r.eventually("the mount is back", func() bool { return r.serverPID() != 0 && r.isMounted() })
	if !r.opens("m.bin", "model") {
		t.Error("the granted file is refused after the repair")
	}
}

// A dead mount that no record names any more is cleared by the next mount.
func TestStaleMountIsCleared(t *testing.T) {
	r := newRig(t)
	r.ok("mount", r.src, r.mnt)
	server := r.serverPID()
	r.stopDaemon(syscall.SIGKILL)
	syscall.Kill(server, syscall.SIGKILL)
	r.eventually("the mount is dead", func() bool { return r.serverPID() == 0 })
	if err := os.Remove(r.state.Mount(mountID(r.mnt))); err != nil {
		t.Fatal(err)
	}
	r.ok("mount", r.src, r.mnt)
	list, err := mounts()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, m := range list {
		if m.point == r.mnt {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d mounts lie at %s, want the new one alone", n, r.mnt)
	}
}

// The kernel's connection is aborted by an administrator: that is no wish to
// unmount.
func TestAbortedConnectionComesBack(t *testing.T) {
	r := newRig(t)
	r.ok("mount", r.src, r.mnt)
	pid := r.serverPID()
	m, _, err := mountedAt(r.mnt)
	if err != nil {
		t.Fatal(err)
	}
	abort := "/sys/fs/fuse/connections/" + strconv.Itoa(int(m.device.minor)) + "/abort"
	script := "test -e " + abort + " || mount -t fusectl none /sys/fs/fuse/connections && echo 1 > " + abort
	if got := r.exec("unshare", "-m", "sh", "-c", script); got.code != 0 {
		t.Fatalf("aborting the connection: %s", got.stderr)
	}
	r.eventually("another process serves the mount", func() bool { now := r.serverPID(); return now != 0 && now != pid && r.isMounted() })
}

// The mount process is kill -9'd while others wait in open and hold a hundred
// files: nobody hangs, the mount comes back, and what a private file serves is
// read as if nothing had happened.
func TestKilledWithOpenHandles(t *testing.T) {
	for _, seal := range []string{"off", "copy"} {
		t.Run(seal, func(t *testing.T) {
			r := newRig(t)
			content := strings.Repeat("model ", 1<<18)
			r.admit(map[string]string{"m.bin": content})
			r.file("m.bin", content)
			r.huge("huge.bin", 1<<40) // more than there is room for, so it is not copied
			r.ok("mount", "--seal", seal, r.src, r.mnt)
			var holders []*held
			for range 10 {
				holders = append(holders, r.hold("fd", filepath.Join(r.mnt, "m.bin"), "9"))
			}
			mapped := r.hold("map", filepath.Join(r.mnt, "m.bin"))
			waiting := exec.Command("cat", filepath.Join(r.mnt, "huge.bin"))
			if err := waiting.Start(); err != nil {
				t.Fatal(err)
			}
			r.eventually("100 handles are open and one more process waits", func() bool {
				m := r.status().Mounts[0]
				return m.Report != nil && m.Report.Counters["handles"] >= 100 && m.Report.Counters["verifying"] > 0
			})
			pid, start := r.serverPID(), time.Now()
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			for _, h := range append(holders, mapped) {
				r.eventually("no process waits in the kernel", func() bool { return processState(t, h.pid) != "D" })
			}
			r.eventually("the mount is back", func() bool {
				now := r.serverPID()
				return now != 0 && now != pid && r.isMounted() && exec.Command("cat", filepath.Join(r.mnt, "m.bin")).Run() == nil
			})
			t.Logf("back after %v", time.Since(start))
			// What was asked of the dead process waits for its successor, and can be killed.
			waiting.Process.Kill()
			waiting.Wait() // hangs if the kernel does
			want := hashpipe.SumBytes([]byte(content)).String()
			for _, h := range holders {
				if got := h.reads(); got != want {
					t.Errorf("a handle of the killed process gives %s, want the approved bytes", got)
				}
			}
			if got := mapped.reads(); got != want {
				t.Errorf("a mapping of the killed process gives %s, want the approved bytes", got)
			}
		})
	}
}

// processState is the letter of proc(5): D waits in the kernel and cannot be
// killed.
func processState(t *testing.T, pid int) string {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return rest[:1]
}

// A mount process ends in time however much it has still to hash.
func TestEndsWhileHashing(t *testing.T) {
	for _, seal := range []string{"off", "copy"} {
		t.Run(seal, func(t *testing.T) {
			r := newRig(t)
			r.huge("huge.bin", 16<<30)
			r.ok("mount", "--seal", seal, r.src, r.mnt)
			cat := exec.Command("cat", filepath.Join(r.mnt, "huge.bin"))
			if err := cat.Start(); err != nil {
				t.Fatal(err)
			}
			r.eventually("the file is being hashed", func() bool {
				m := r.status().Mounts[0]
				return m.Report != nil && m.Report.Counters["verifying"] > 0
			})
			start := time.Now()
			if err := syscall.Kill(r.serverPID(), syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			r.eventually("the process has ended and the mount is gone", func() bool { return r.serverPID() == 0 && !r.isMounted() && !r.hasRecord() })
			t.Logf("ended after %v", time.Since(start))
			if err := cat.Wait(); err == nil {
				t.Error("a file that was not verified opened")
			}
		})
	}
}
