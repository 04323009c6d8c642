package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

func TestMount(t *testing.T) {
	r := newRig(t)
	files := map[string]string{"good.bin": "the approved bytes"}
	r.admit(files)
	r.file("good.bin", files["good.bin"])
	r.file("bad.bin", "other bytes")
	var m mounted
	r.document(&m, "mount", r.src, r.mnt)
	if !r.isMounted() {
		t.Fatal("clawfs mount returned before the mount was in the mount table")
	}
	if m.Source != r.src || m.Mountpoint != r.mnt || m.PID != r.serverPID() {
		t.Errorf("mount -o json = %+v, want source, mount point and pid %d", m, r.serverPID())
	}
	if !r.opens("good.bin", files["good.bin"]) {
		t.Error("the granted file was refused right after clawfs mount returned")
	}
	if r.opens("bad.bin", "other bytes") {
		t.Error("a file without a capability opened")
	}
	r.eventually("the refusal is in the log with everything a person needs", func() bool {
		for _, l := range auditLines(t, m.Log) {
			if l.Decision == "refused" && l.Path == filepath.Join(r.mnt, "bad.bin") && l.Comm == "cat" && l.PID > 0 && l.Reason != "" && l.Detail != "" && l.Next != "" {
				return true
			}
		}
		return false
	})
	r.eventually("status shows tier and counters", func() bool {
		s := r.status()
		return len(s.Mounts) == 1 && s.Mounts[0].State == mountLive && s.Mounts[0].Report != nil &&
			s.Mounts[0].Report.Tier == "blocks" && s.Mounts[0].Report.Counters["granted"] > 0 && s.Mounts[0].Report.Counters["refused"] > 0
	})
	if out := r.ok("status"); !strings.Contains(out, r.mnt) || !strings.Contains(out, "1 live, 0 expired, 0 revoked") {
		t.Errorf("status table lacks the mount or the capability:\n%s", out)
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(r.src, "out")); err != nil {
		t.Fatal(err)
	}
	r.refused(codeRefused, []string{"why", filepath.Join(r.mnt, "out")}, "out: refused: a link that leads out")
	var rows []listed
	r.document(&rows, "ls", r.mnt)
	if i := slices.IndexFunc(rows, func(l listed) bool { return l.Name == "out" }); i < 0 || rows[i].State != "refused" || rows[i].Reason != "symlink" {
		t.Errorf("ls of a link that leads out: %+v, want it refused for symlink", rows)
	}
	r.ok("umount", r.mnt)
	if list := r.status().Mounts; len(list) != 0 {
		t.Errorf("status right after umount: %+v, want no mount", list)
	}
	if r.isMounted() || r.hasRecord() || r.serverPID() != 0 {
		t.Errorf("after umount: mounted %v, record %v, process %d; want nothing left", r.isMounted(), r.hasRecord(), r.serverPID())
	}
	r.ok("mount", r.src, r.mnt) // the place is free again
	if !r.opens("good.bin", files["good.bin"]) {
		t.Error("the granted file was refused on the second mount")
	}
}

func auditLines(t *testing.T, path string) []auditLine {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []auditLine
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var l auditLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatalf("%s: line %q: %v", path, lines.Text(), err)
		}
		if l.Event == "audit" {
			list = append(list, l)
		}
	}
	return list
}

func TestMountRefusals(t *testing.T) {
	for _, tt := range []struct {
		name string
		args func(t *testing.T, r *rig) (src, dir string)
		want []string
	}{
		{"no source", func(t *testing.T, r *rig) (string, string) { return r.src + "x", r.mnt }, []string{"source", "does not exist"}},
		{"source is a file", func(t *testing.T, r *rig) (string, string) { return r.state.Policy(), r.mnt }, []string{"source", "want a directory"}},
		{"no mount point", func(t *testing.T, r *rig) (string, string) { return r.src, r.mnt + "x" }, []string{"mount point", "mkdir -p"}},
		{"no parent of the mount point", func(t *testing.T, r *rig) (string, string) { return r.src, r.mnt + "x/y" }, []string{"mount point", "mkdir -p"}},
		{"mount point is a file", func(t *testing.T, r *rig) (string, string) {
			r.file("f", "")
			return r.src, filepath.Join(filepath.Dir(r.mnt), "src", "f")
		}, []string{"inside the source"}},
		{"mount point holds files", func(t *testing.T, r *rig) (string, string) {
			if err := os.WriteFile(filepath.Join(r.mnt, "keep"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return r.src, r.mnt
		}, []string{"holds keep", "empty directory"}},
		{"mount point is the source", func(t *testing.T, r *rig) (string, string) { return r.src, r.src }, []string{"inside the source"}},
		{"mount point in the source", func(t *testing.T, r *rig) (string, string) {
			dir := filepath.Join(r.src, "in")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			return r.src, dir
		}, []string{"inside the source"}},
		{"mount point in the source by a link", func(t *testing.T, r *rig) (string, string) {
			dir := filepath.Join(r.src, "in")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(dir, r.mnt+".link"); err != nil {
				t.Fatal(err)
			}
			return r.src, r.mnt + ".link"
		}, []string{"inside the source"}},
		{"source in the mount point", func(t *testing.T, r *rig) (string, string) { return r.src, filepath.Dir(r.src) }, []string{"inside the mount point"}},
		{"state in the mount point", func(t *testing.T, r *rig) (string, string) { return "/usr", filepath.Dir(string(r.state)) }, []string{"state directory", "inside the mount point"}},
		{"mount point in the state", func(t *testing.T, r *rig) (string, string) { return r.src, filepath.Join(string(r.state), "mnt") }, []string{"inside the state directory"}},
		{"source in the state", func(t *testing.T, r *rig) (string, string) {
			if err := os.Mkdir(r.state.Jobs(), 0o700); err != nil {
				t.Fatal(err)
			}
			return r.state.Jobs(), r.mnt
		}, []string{"inside the state directory"}},
		{"state in the source", func(t *testing.T, r *rig) (string, string) {
			return filepath.Dir(string(r.state)), filepath.Join(t.TempDir())
		}, []string{"inside the source", "--state"}},
		{"another file system", func(t *testing.T, r *rig) (string, string) {
			if err := syscall.Mount("none", r.mnt, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			return r.src, filepath.Join(r.mnt, "x")
		}, []string{"mount point", "mkdir -p"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			src, dir := tt.args(t, r)
			for _, args := range [][]string{{"mount", src, dir}, {"mount", "--foreground", src, dir}} {
				got := r.refused(codeMount, args, tt.want...)
				if got.stdout != "" {
					t.Errorf("a refusal wrote %q to standard output", got.stdout)
				}
			}
			if r.daemonPID() != 0 {
				t.Error("a refused mount started a daemon")
			}
		})
	}
}

func TestMountTwice(t *testing.T) {
	r := newRig(t)
	r.ok("mount", r.src, r.mnt)
	pid := r.serverPID()
	r.refused(codeMount, []string{"mount", r.src, r.mnt}, "already", "umount", r.mnt)
	r.refused(codeMount, []string{"mount", "--foreground", r.src, r.mnt}, "already", "umount")
	// Another state directory's daemon does not take it either.
	other := newRig(t)
	other.refused(codeMount, []string{"mount", other.src, r.mnt}, "already")
	if r.serverPID() != pid || !r.isMounted() {
		t.Error("a refused mount disturbed the one that was there")
	}
}

func TestForeground(t *testing.T) {
	r := newRig(t)
	r.file("a.bin", "a")
	cmd := exec.Command(r.bin, "--state", string(r.state), "mount", "--foreground", r.src, r.mnt)
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	r.eventually("the mount is live", func() bool { return r.isMounted() && r.hasRecord() })
	if r.serverPID() != cmd.Process.Pid {
		t.Errorf("process %d serves, want the foreground process %d", r.serverPID(), cmd.Process.Pid)
	}
	if r.opens("a.bin", "a") {
		t.Error("a file without a capability opened")
	}
	r.eventually("status shows it as a foreground mount", func() bool {
		s := r.status()
		return len(s.Mounts) == 1 && s.Mounts[0].Foreground && s.Mounts[0].State == mountLive
	})
	start := time.Now()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the foreground process ended with %v, want exit code 0", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v to end, want at most 5 s", took)
	}
	if r.isMounted() || r.hasRecord() {
		t.Error("the foreground mount left something")
	}
	if text := errs.String(); !strings.Contains(text, "refused: "+filepath.Join(r.mnt, "a.bin")+" by cat(") || !strings.Contains(text, "Next: ") {
		t.Errorf("standard error lacks the refusal as a sentence:\n%s", text)
	}
}

// A foreground mount whose process is killed is cleared, and not restarted
// behind its owner's back.
func TestForegroundKilled(t *testing.T) {
	r := newRig(t)
	cmd := exec.Command(r.bin, "--state", string(r.state), "mount", "--foreground", r.src, r.mnt)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.eventually("the daemon knows the mount", func() bool { s := r.run("status"); return s.code == 0 && strings.Contains(s.stdout, r.mnt) })
	cmd.Process.Kill()
	cmd.Wait()
	r.eventually("the dead mount is cleared", func() bool { return !r.isMounted() && !r.hasRecord() })
}

// A process of another user cannot be told by its paths to report anything
// that a log line or a terminal would take for something else.
func TestHostileNamesInTheLog(t *testing.T) {
	r := newRig(t)
	name := "a\nb\x1b[2J\xff.bin"
	r.file(name, "x")
	var m mounted
	r.document(&m, "mount", r.src, r.mnt)
	r.exec("cat", filepath.Join(r.mnt, name))
	r.eventually("one line tells of it", func() bool {
		for _, l := range auditLines(t, m.Log) { // fails if a name broke a line
			if l.Decision == "refused" && strings.HasPrefix(l.Path, r.mnt+"/a\nb") {
				return true
			}
		}
		return false
	})
	line := auditLine{Decision: "refused", Path: r.mnt + "/" + name, Comm: "c\x1bm", PID: 1, Detail: "d\r"}
	if s := line.sentence(time.Time{}); strings.ContainsAny(s, "\n\r\x1b") {
		t.Errorf("sentence %q can control a terminal", s)
	}
}

// The same as a user without rights, by fusermount3, in namespaces of its own
// with a /dev/fuse that everybody may open, as distributions have it.
func TestWithoutRoot(t *testing.T) {
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	base, err := os.MkdirTemp("/tmp", "clawfs-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	for _, dir := range []string{base, filepath.Join(base, "dev"), filepath.Join(base, "home")} {
		os.Mkdir(dir, 0o755)
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(base, "clawfs"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	const script = `set -eu
cd "$1"
mount -t tmpfs none dev && mknod -m 666 dev/fuse c 10 229 && mount --bind dev/fuse /dev/fuse
chown 65534:65534 home && cd home
exec setpriv --reuid 65534 --regid 65534 --clear-groups env -i PATH="$1:$PATH" HOME="$1/home" sh -eu -c '
mkdir src mnt; echo hello >src/a.txt
clawfs init >/dev/null
clawfs mount src mnt
if cat mnt/a.txt; then echo "OPENED"; fi
lock=$(ls .local/state/clawfs/run/mounts/*.lock)
kill -9 $(cat $lock)
for i in $(seq 100); do clawfs status | grep -q "live.*restarted 1 times" && break; sleep 0.1; done
clawfs status
if cat mnt/a.txt; then echo "OPENED"; fi
clawfs umount mnt
if grep " $HOME/mnt " /proc/self/mountinfo; then echo "STILL MOUNTED"; fi
kill $(cat .local/state/clawfs/run/daemon.lock)'`
	out, err := exec.Command("unshare", "-m", "-p", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "sh", base).CombinedOutput()
	if err != nil {
		t.Fatalf("%v; next: apt-get install fuse3\n%s", err, out)
	}
	text := string(out)
	if strings.Contains(text, "OPENED") || strings.Contains(text, "STILL MOUNTED") || strings.Count(text, "Permission denied") != 2 || !strings.Contains(text, "restarted 1 times") {
		t.Errorf("want two refusals, one restart and nothing left:\n%s", text)
	}
}
