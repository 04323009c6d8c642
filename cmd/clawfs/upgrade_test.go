package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// opener opens and reads a file again and again until it is told to stop, and
// keeps what went wrong.
type opener struct {
	stop chan struct{}
	done chan struct{}

	opens  atomic.Int64
	mu     sync.Mutex // guards errors
	errors []string
}

// openAgain starts one in a process of its own for each open, as a user would; a
// mount must never notice that a daemon comes or goes.
func (r *rig) openAgain(name, content string) *opener {
	o := &opener{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(o.done)
		for {
			select {
			case <-o.stop:
				return
			default:
			}
			out, err := exec.Command("cat", filepath.Join(r.mnt, name)).CombinedOutput()
			if err != nil || string(out) != content {
				o.mu.Lock()
				o.errors = append(o.errors, string(out))
				o.mu.Unlock()
			}
			o.opens.Add(1)
		}
	}()
	return o
}

// end stops it and fails the test for every open that did not give the content.
func (o *opener) end(t *testing.T, least int64) {
	t.Helper()
	close(o.stop)
	<-o.done
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := o.opens.Load(); len(o.errors) > 0 || n < least {
		t.Errorf("%d of %d opens failed, want 0 of %d or more: %.300q", len(o.errors), n, least, o.errors)
	} else {
		t.Logf("%d opens, 0 errors", n)
	}
}

// otherVersion builds a program that speaks another version of the protocol.
func otherVersion(t *testing.T, protocol string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "clawfs-"+protocol)
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags", "-X github.com/openclaw/clawfs/cmd/clawfs/internal/control.protocol=" + protocol, "-o", path}
	if raceEnabled {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// Daemons come and go, killed, ended, of this binary, of a copy elsewhere, and of
// another version, while the mounts of the first one live: no open fails, what is
// granted and revoked meanwhile arrives, and versions that do not fit say so.
func TestUpgrade(t *testing.T) {
	r := newRig(t)
	content := strings.Repeat("model ", 1000)
	r.admit(map[string]string{"m.bin": content})
	for _, name := range []string{"a", "b", "c", "d"} {
		r.file(name+".bin", name)
	}
	r.file("m.bin", content)
	next := otherVersion(t, "2")
	r.ok("mount", r.src, r.mnt)
	server := r.serverPID()
	reading := r.openAgain("m.bin", content)

	elsewhere := filepath.Join(t.TempDir(), "clawfs")
	program, err := os.ReadFile(r.bin)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(elsewhere, program, 0o755); err != nil {
		t.Fatal(err)
	}
	old := r.bin
	for i, tt := range []struct {
		how syscall.Signal
		bin string
	}{{syscall.SIGKILL, old}, {syscall.SIGTERM, old}, {syscall.SIGTERM, elsewhere}, {syscall.SIGKILL, next}} {
		r.stopDaemon(tt.how)
		name := string(rune('a' + i))
		granted := r.admit(map[string]string{name + ".bin": name}) // while nobody is there
		if r.opens(name+".bin", name) {
			t.Errorf("%s: it opened before a daemon told of it", name)
		}
		r.bin = tt.bin
		r.startDaemon()
		r.eventually("the view catches up", func() bool { return r.opens(name+".bin", name) })
		r.ok("revoke", granted.ID().String(), "--reason", "tested")
		if r.opens(name+".bin", name) {
			t.Errorf("%s: it opens after revoke returned", name)
		}
		if now := r.serverPID(); now != server {
			t.Fatalf("%s: the mount is served by %d, want still %d", name, now, server)
		}
	}

	// The daemon is of another version than the mount process and the verbs.
	r.eventually("the new daemon knows the old mount's version", func() bool {
		m := r.status().Mounts
		return len(m) == 1 && m[0].PID == server && m[0].Report != nil && m[0].Report.Protocol == control.Protocol() && m[0].Report.Version != "" && !m[0].Report.Stale
	})
	if s := r.status(); s.Protocol != "2" {
		t.Errorf("the daemon speaks %q, want 2", s.Protocol)
	}
	for _, text := range []string{"served by version", "(control protocol " + control.Protocol() + " and 2)", "umount " + r.mnt} {
		if out := r.ok("status"); !strings.Contains(out, text) {
			t.Errorf("status of the new version says\n%s\nwant %q", out, text)
		}
	}
	r.bin = old
	words := []string{"(pid " + strconv.Itoa(r.daemonPID()) + ")", "is of another version than this program", `control protocol "2"`, "mounts go on", "next: end it"}
	r.refused(codeError, []string{"status"}, words...)
	r.refused(codeError, []string{"revoke", "0123456789", "--reason", "x"}, words...)
	other := filepath.Join(filepath.Dir(r.mnt), "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	r.refused(codeError, []string{"mount", r.src, other}, words...)

	// And the other way round: an old daemon, and a mount process of the new version.
	reading.end(t, 20)
	r.ok("umount", r.mnt)
	r.bin = next
	r.ok("mount", r.src, r.mnt)
	reading = r.openAgain("m.bin", content)
	r.stopDaemon(syscall.SIGTERM)
	r.bin = old
	r.startDaemon()
	r.eventually("the old daemon knows the new mount's version", func() bool {
		m := r.status().Mounts
		return len(m) == 1 && m[0].Report != nil && m[0].Report.Protocol == "2" && !m[0].Report.Stale
	})
	r.bin = next
	r.refused(codeError, []string{"status"}, "is of another version", `control protocol "1"`, "next: end it")
	r.bin = old
	reading.end(t, 1)
}

// The program is replaced under a running daemon: what it starts afterwards is the
// new one, and if there is none, that is said.
func TestProgramReplaced(t *testing.T) {
	r := newRig(t)
	program, err := os.ReadFile(r.bin)
	if err != nil {
		t.Fatal(err)
	}
	installed := filepath.Join(t.TempDir(), "clawfs")
	install := func() {
		t.Helper()
		if err := os.WriteFile(installed+".new", program, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(installed+".new", installed); err != nil {
			t.Fatal(err)
		}
	}
	install()
	r.bin = installed
	r.admit(map[string]string{"m.bin": "m"})
	r.file("m.bin", "m")
	r.ok("mount", r.src, r.mnt)
	server, daemon := r.serverPID(), r.daemonPID()
	install()
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.eventually("the mount is back", func() bool {
		now := r.serverPID()
		return now != 0 && now != server && r.isMounted() && exec.Command("cat", filepath.Join(r.mnt, "m.bin")).Run() == nil
	})
	if r.daemonPID() != daemon {
		t.Error("the daemon is another")
	}
	if err := os.Remove(installed); err != nil {
		t.Fatal(err)
	}
	server = r.serverPID()
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.bin, err = binary()
	if err != nil {
		t.Fatal(err)
	}
	r.eventually("status says that the program is gone", func() bool {
		m := r.status().Mounts
		return len(m) == 1 && m[0].State == mountDead && strings.Contains(m[0].LastError, installed)
	})
	install()
	r.within(30, "the mount is back with the program", func() bool { return r.serverPID() != 0 && r.isMounted() })
}

// Of two daemons that start in the same instant one serves and the other names it.
func TestTwoDaemonsAtOnce(t *testing.T) {
	r := newRig(t)
	base := filepath.Dir(string(r.state))
	bound := filepath.Join(base, "bound")
	if err := os.Mkdir(bound, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(string(r.state), bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(bound, unix.MNT_DETACH) })
	if err := os.Symlink(base, filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	states := []string{string(r.state), filepath.Join(base, "link", "state"), bound}
	for round := range 100 {
		type daemon struct {
			cmd *exec.Cmd
			say *strings.Builder
		}
		var both []daemon
		ended := make(chan int, 2)
		for i := range 2 {
			d := daemon{exec.Command(r.bin, "--state", states[(round+i)%3], "daemon"), &strings.Builder{}}
			d.cmd.Stderr = d.say
			both = append(both, d)
		}
		for _, d := range both {
			if err := d.cmd.Start(); err != nil {
				t.Fatal(err)
			}
		}
		for i, d := range both {
			go func() { d.cmd.Wait(); ended <- i }()
		}
		loser := <-ended
		winner := both[1-loser]
		want := "a daemon runs already for " + states[(round+loser)%3] + " (pid " + strconv.Itoa(winner.cmd.Process.Pid) + ")"
		if got := both[loser].say.String(); !strings.Contains(got, want) {
			t.Errorf("round %d: the second daemon says %q, want %q", round, got, want)
		}
		if round%20 == 0 {
			r.eventually("the first one answers", func() bool { return r.run("status").code == 0 })
		}
		select {
		case <-ended:
			t.Fatalf("round %d: both daemons ended: %s", round, winner.say)
		default:
		}
		winner.cmd.Process.Kill()
		<-ended
		if t.Failed() {
			return
		}
	}
}

// Whoever takes the daemon's lock or socket away does not get a second daemon in
// beside it, and the daemon does not stay where nobody finds it. Mounts go on.
func TestDaemonLosesItsPlace(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(r *rig) error
		want  string
	}{
		{"lock removed", func(r *rig) error { return os.Remove(r.state.Lock()) }, "daemon.lock was removed"},
		{"lock replaced", func(r *rig) error {
			os.Remove(r.state.Lock())
			return os.WriteFile(r.state.Lock(), []byte("1"), 0o600)
		}, "daemon.lock was replaced"},
		{"socket removed", func(r *rig) error { return os.Remove(r.state.Socket()) }, "clawfs.sock was removed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.admit(map[string]string{"m.bin": "m"})
			r.file("m.bin", "m")
			cmd := exec.Command(r.bin, "--state", string(r.state), "daemon")
			var said strings.Builder
			cmd.Stderr = &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill() })
			r.eventually("the daemon answers", func() bool { return r.run("status").code == 0 })
			r.ok("mount", r.src, r.mnt)
			server := r.serverPID()
			// Stopped, it cannot notice; it keeps others out all the same.
			syscall.Kill(cmd.Process.Pid, syscall.SIGSTOP)
			if err := tt.spoil(r); err != nil {
				t.Fatal(err)
			}
			r.refused(codeError, []string{"daemon"}, "runs already", "pid "+strconv.Itoa(cmd.Process.Pid))
			syscall.Kill(cmd.Process.Pid, syscall.SIGCONT)
			if err := cmd.Wait(); err == nil {
				t.Error("the daemon ended without an error")
			}
			if !strings.Contains(said.String(), tt.want) || !strings.Contains(said.String(), strconv.Itoa(cmd.Process.Pid)) {
				t.Errorf("the daemon says %q, want %q", said.String(), tt.want)
			}
			if !r.opens("m.bin", "m") {
				t.Error("the mount does not serve")
			}
			start := time.Now()
			r.startDaemon()
			t.Logf("the next daemon answers after %v", time.Since(start))
			r.eventually("the next daemon has the mount", func() bool { m := r.status().Mounts; return len(m) == 1 && m[0].PID == server })
		})
	}
}
