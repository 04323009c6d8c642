package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// within is eventually with another patience, in seconds.
func (r *rig) within(seconds int, what string, done func() bool) {
	r.t.Helper()
	for end := time.Now().Add(time.Duration(seconds) * time.Second); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not so after %d seconds: %s", seconds, what)
		}
	}
}

// With a bound on the daemon's silence nothing new opens when it is away, in words,
// and by itself again when it is back; what is open goes on.
func TestSilentDaemon(t *testing.T) {
	r := newRig(t)
	if err := os.WriteFile(r.state.Settings(), []byte("[mount]\nmax_daemon_age = \"10s\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	content := strings.Repeat("model ", 1<<16)
	r.admit(map[string]string{"m.bin": content, "n.bin": "n"})
	r.file("m.bin", content)
	r.file("n.bin", "n")
	r.ok("mount", "--seal", "off", r.src, r.mnt)
	r.eventually("status tells of the bound", func() bool {
		return strings.Contains(r.ok("status"), "opens only while the daemon was heard within 10s")
	})
	held := r.hold("fd", filepath.Join(r.mnt, "m.bin"), "1")
	if !r.opens("n.bin", "n") {
		t.Fatal("the granted file is refused while the daemon is there")
	}
	for _, tt := range []struct {
		name string
		away func() (back func())
	}{
		{"stopped", func() func() {
			pid := r.daemonPID()
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			return func() { syscall.Kill(pid, syscall.SIGCONT) }
		}},
		{"killed", func() func() {
			r.stopDaemon(syscall.SIGKILL)
			return func() { r.startDaemon() }
		}},
	} {
		back := tt.away()
		if !r.opens("n.bin", "n") {
			t.Errorf("%s: refused at once, before the bound is reached", tt.name)
		}
		r.within(30, tt.name+": opens are refused", func() bool { return !r.opens("n.bin", "n") })
		if strings.HasPrefix(tt.name, "killed") {
			got := r.run("why", filepath.Join(r.mnt, "n.bin"))
			for _, text := range []string{"reason       stale-daemon", "was heard last", "mount.max_daemon_age", "next: clawfs status, then clawfs daemon"} {
				if !strings.Contains(got.stdout, text) {
					t.Errorf("why says\n%s\nwant %q", got.stdout, text)
				}
			}
			buf := make([]byte, 64)
			if n, err := unix.Getxattr(filepath.Join(r.mnt, "n.bin"), "user.clawfs.reason", buf); err != nil || string(buf[:n]) != "stale-daemon" {
				t.Errorf("user.clawfs.reason = %q, %v", buf[:max(n, 0)], err)
			}
			if got := r.refused(codeDaemon, []string{"status"}, "no daemon answers"); !strings.Contains(got.stdout, "silent for 10s (mount.max_daemon_age)") {
				t.Errorf("status without a daemon says\n%s", got.stdout)
			}
		}
		back()
		r.within(30, tt.name+": it opens again", func() bool { return r.opens("n.bin", "n") })
	}
	if got := held.reads(); got != hashpipe.SumBytes([]byte(content)).String() {
		t.Errorf("a handle from before reads %s, want the approved bytes", got)
	}
	log, err := os.ReadFile(r.state.MountLog(mountID(r.mnt)))
	if err != nil || !strings.Contains(string(log), `"reason":"stale-daemon"`) {
		t.Errorf("the mount's log does not tell of the refusals: %v", err)
	}
}
