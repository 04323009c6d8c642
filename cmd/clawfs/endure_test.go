package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

var (
	endureGiB  = flag.Int64("endure.gib", 1, "size of the file that TestMountInSmallMemory opens, in GiB")
	endureStop = flag.Duration("endure.stop", 3*time.Second, "how long TestStoppedMountProcess stops it")
)

// A mount process that is stopped and goes on: who asks meanwhile waits and then gets
// the right answer. Nobody unmounts, and nobody starts a second process beside it.
func TestStoppedMountProcess(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"m.bin": "model"})
	r.file("m.bin", "model")
	r.file("other.bin", "nobody granted this")
	r.ok("mount", r.src, r.mnt)
	r.eventually("the daemon holds the session", func() bool { return r.sessions() == 1 })
	line, pid := r.mountLine(), r.serverPID()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGCONT) })
	r.eventually("all its threads are stopped", func() bool {
		states, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		return err == nil && len(states) > 0 && !slices.ContainsFunc(states, func(path string) bool {
			b, err := os.ReadFile(path)
			return err == nil && !strings.Contains(string(b), ") T ")
		})
	})
	type answer struct {
		out []byte
		err error
	}
	answers := make(chan answer, 20)
	for i := range cap(answers) {
		name := "m.bin"
		if i%2 == 1 {
			name = "other.bin"
		}
		go func() {
			out, err := exec.Command("cat", filepath.Join(r.mnt, name)).Output()
			answers <- answer{out, err}
		}()
	}
	for end := time.Now().Add(*endureStop); time.Now().Before(end); time.Sleep(*endureStop / 10) {
		if now := r.serverPID(); now != pid {
			t.Fatalf("process %d serves, want the stopped %d to be left alone", now, pid)
		}
		if now := r.mountLine(); now != line {
			t.Fatalf("mount table: %q, want %q", now, line)
		}
		if s := r.status(); len(s.Mounts) != 1 || s.Mounts[0].PID != pid || s.Mounts[0].Restarts != 0 {
			t.Fatalf("status: %+v, want process %d, no restart", s.Mounts, pid)
		}
		if len(answers) > 0 {
			a := <-answers
			t.Fatalf("somebody was answered while the process is stopped: %q, %v", a.out, a.err)
		}
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	right, refused := 0, 0
	for range cap(answers) {
		select {
		case a := <-answers:
			switch {
			case a.err == nil && string(a.out) == "model":
				right++
			case a.err != nil && len(a.out) == 0:
				refused++
			default:
				t.Errorf("answer %q, %v", a.out, a.err)
			}
		case <-time.After(time.Minute):
			t.Fatal("a client is not answered after the process goes on")
		}
	}
	if right != 10 || refused != 10 {
		t.Errorf("%d right answers and %d refusals, want 10 and 10", right, refused)
	}
	if r.serverPID() != pid || r.mountLine() != line {
		t.Error("the mount is another one after SIGCONT")
	}
	r.ok("umount", r.mnt)
}

// A mount process that runs out of descriptors answers with errors, and works as
// before when files are closed. Meanwhile its audit log and its line to the daemon
// work, and the daemon can have its session.
func TestMountWithoutDescriptors(t *testing.T) {
	const files = 60
	r := newRig(t)
	content := make(map[string]string)
	for i := range files {
		name := fmt.Sprintf("m%02d.bin", i)
		content[name] = strings.Repeat(name, 10_000)
		r.file(name, content[name])
	}
	r.file("other.bin", "nobody granted this")
	r.admit(content)
	r.ok("mount", "--seal", "off", r.src, r.mnt)
	r.eventually("the daemon holds the session", func() bool { return r.sessions() == 1 })
	pid := r.serverPID()
	fds := func() int {
		list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before := fds()
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(before) + 20, Max: limit.Max}, nil); err != nil {
		t.Fatal(err)
	}
	var held []*os.File
	failed := 0
	for name := range content {
		f, err := os.Open(filepath.Join(r.mnt, name))
		if err != nil {
			failed++
			continue
		}
		held = append(held, f)
	}
	if failed == 0 || len(held) == 0 {
		t.Fatalf("%d files opened, %d failed: want the limit to be met", len(held), failed)
	}
	for _, f := range held {
		b, err := io.ReadAll(f)
		if want := content[filepath.Base(f.Name())]; err != nil || string(b) != want {
			t.Errorf("%s, open when the limit was met: %d bytes, %v", f.Name(), len(b), err)
		}
	}
	r.eventually("a failure is in the audit log", func() bool {
		b, err := os.ReadFile(r.mountLog())
		return err == nil && strings.Contains(string(b), "too many open files")
	})
	at := r.status().Mounts[0].Report.At
	r.eventually("the mount goes on to report", func() bool { m := r.status().Mounts[0]; return m.Report != nil && m.Report.At.After(at) })
	for _, f := range held {
		f.Close()
	}
	var wg sync.WaitGroup // by many, a few at a time
	var mu sync.Mutex
	wrong := 0
	slots := make(chan struct{}, 4)
	for name, want := range content {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if b, err := os.ReadFile(filepath.Join(r.mnt, name)); err != nil || string(b) != want {
				mu.Lock()
				wrong++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if wrong > 0 {
		t.Errorf("%d of %d files do not open when there are descriptors again", wrong, files)
	}
	if r.opens("other.bin", "nobody granted this") {
		t.Error("a file that nobody granted opens")
	}
	r.eventually("no descriptor is left behind", func() bool { return fds() <= before+4 })
	r.ok("umount", r.mnt)
}

// mountLog is the log of the one mount.
func (r *rig) mountLog() string {
	r.t.Helper()
	list, err := filepath.Glob(filepath.Join(r.state.Log(), "mount-*.log"))
	if err != nil || len(list) != 1 {
		r.t.Fatalf("logs of mounts: %q, %v", list, err)
	}
	return list[0]
}

// memoryGroup is a cgroup of this machine that bounds memory.
type memoryGroup struct {
	dir string
	v2  bool
}

func newMemoryGroup(t *testing.T, limit int64) memoryGroup {
	t.Helper()
	g := memoryGroup{dir: "/sys/fs/cgroup/memory"}
	if _, err := os.Stat(filepath.Join(g.dir, "memory.limit_in_bytes")); err != nil {
		g = memoryGroup{dir: "/sys/fs/cgroup", v2: true}
		if b, err := os.ReadFile(filepath.Join(g.dir, "cgroup.controllers")); err != nil || !strings.Contains(string(b), "memory") {
			t.Fatalf("no cgroup bounds memory here (%q, %v): run as root on the host, or in a container that may make cgroups", b, err)
		}
		_ = os.WriteFile(filepath.Join(g.dir, "cgroup.subtree_control"), []byte("+memory"), 0)
	}
	g.dir = filepath.Join(g.dir, "clawfs-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for end := time.Now().Add(10 * time.Second); os.Remove(g.dir) != nil && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
		}
	})
	name := "memory.limit_in_bytes"
	if g.v2 {
		name = "memory.max"
	}
	g.write(t, name, limit)
	return g
}

func (g memoryGroup) write(t *testing.T, name string, n int64) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(strconv.FormatInt(n, 10)), 0); err != nil {
		t.Fatal(err)
	}
}

// kills is how often the kernel has killed something in it for its memory.
func (g memoryGroup) kills(t *testing.T) string {
	t.Helper()
	name := "memory.oom_control"
	if g.v2 {
		name = "memory.events"
	}
	b, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strings.TrimSpace(n)
		}
	}
	t.Fatalf("%s does not tell of kills: %s", name, b)
	return ""
}

// A large file is opened and read in each tier by a mount process that may have
// 256 MiB, page cache included: it is not killed, and its own memory stays far below.
func TestMountInSmallMemory(t *testing.T) {
	const limit = 256 << 20
	size := *endureGiB << 30
	// Not in the tree of the project: whoever commits there meanwhile would take it.
	dir := t.TempDir()
	source := filepath.Join(dir, "large.bin")
	if err := os.WriteFile(source, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(source, size); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := hashpipe.MeasureFile(t.Context(), f, size, nil)
	if err != nil {
		t.Fatal(err)
	}
	subject := capstore.Subject{Name: "large.bin", Digest: got.Sum().Claim(), Verity: got.Tree().Claim(), Size: size}
	for _, seal := range []string{"off", "copy"} {
		t.Run(seal, func(t *testing.T) {
			r := newRig(t)
			r.src = dir
			r.admitSubjects([]capstore.Subject{subject})
			r.ok("mount", "--seal", seal, r.src, r.mnt)
			g := newMemoryGroup(t, limit)
			pid := r.serverPID()
			g.write(t, "cgroup.procs", int64(pid))
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
			defer cancel()
			start := time.Now()
			sum, err := exec.CommandContext(ctx, "sha256sum", filepath.Join(r.mnt, "large.bin")).Output()
			if err != nil || !strings.HasPrefix(string(sum), subject.Digest.String()) {
				t.Errorf("reading it: %q, %v", sum, err)
			}
			if now := r.serverPID(); now != pid {
				t.Errorf("process %d serves, want %d to have lived", now, pid)
			}
			if n := g.kills(t); n != "0" {
				t.Errorf("the kernel has killed %s times for memory", n)
			}
			peak, anon := residentOf(t, pid)
			t.Logf("%d GiB in %v: at most %d MiB resident, %d MiB of them its own now", *endureGiB, time.Since(start).Round(time.Second), peak>>20, anon>>20)
			own := int64(limit / 2)
			if raceEnabled { // whose shadow memory is more than what it watches
				own = limit
			}
			if anon > own {
				t.Errorf("%d MiB of its own, want less than %d", anon>>20, own>>20)
			}
			if s := r.status(); s.Mounts[0].Restarts != 0 {
				t.Errorf("restarted %d times", s.Mounts[0].Restarts)
			}
			r.ok("umount", r.mnt)
		})
	}
}

// residentOf returns the most that a process ever had resident, and what it has of
// its own now, in bytes.
func residentOf(t *testing.T, pid int) (peak, anon int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		for name, into := range map[string]*int64{"VmHWM:": &peak, "RssAnon:": &anon} {
			if rest, ok := strings.CutPrefix(line, name); ok {
				n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				*into = n << 10
			}
		}
	}
	if peak == 0 || anon == 0 {
		t.Fatalf("no memory in the status of %d", pid)
	}
	return peak, anon
}
