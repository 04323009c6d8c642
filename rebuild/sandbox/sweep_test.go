package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openclaw/clawfs/rebuild/sandbox/sandboxtest"
)

// host is what a run must leave as it found it.
func host(t *testing.T) string { return sandboxtest.Host(t, StateDir, idPrefix) }

// clean runs f and checks that what it brought to the host goes away again.
func clean(t *testing.T, f func()) {
	t.Helper()
	_, left := sandboxtest.Clean(t, StateDir, idPrefix, f)
	for _, line := range left {
		t.Errorf("left on the host: %s", line)
	}
}

// workerEnv makes the test binary run one build that never ends, as a worker
// that the test then kills.
const workerEnv = "CLAWFS_SANDBOX_TEST_WORKER"

func TestWorkerKilled(t *testing.T) {
	if dir := os.Getenv(workerEnv); dir != "" {
		r, s := spec(t, "stubborn")
		s.Dir, s.Progress = dir, func(string) { time.AfterFunc(time.Second, func() { os.WriteFile(dir+"/started", nil, 0o644) }) }
		_, err := r.Run(context.Background(), s)
		t.Fatal(err)
	}
	r, s := spec(t, "cat", "/out/a")
	living, other := spec(t, "sleep")
	clean(t, func() {
		worker := exec.Command(os.Args[0], "-test.run=^TestWorkerKilled$")
		worker.Env = append(os.Environ(), workerEnv+"="+s.Dir)
		if err := worker.Start(); err != nil {
			t.Fatal(err)
		}
		for range 500 {
			if exists(s.Dir + "/started") {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		mine := exclusive(t, worker.Process.Pid)
		if len(mine) != 1 {
			t.Fatalf("the worker holds %q, want one run", mine)
		}
		// While the worker lives, a sweep leaves its run alone.
		if swept, err := r.Sweep(t.Context()); err != nil || slices.Contains(swept, mine[0]) {
			t.Errorf("Sweep = %q, %v: took a living worker's run", swept, err)
		}
		release := noSweeps(t)
		worker.Process.Kill()
		worker.Wait()
		if got := host(t); !strings.Contains(got, "cgroup") || !strings.Contains(got, mine[0]) {
			t.Errorf("the container died with its worker; the host has\n%s", got)
		}
		release()
		// A run that goes on meanwhile is not swept either.
		ctx, cancel := context.WithCancel(t.Context())
		started, ended := make(chan bool), make(chan error)
		other.Progress = func(string) { close(started) }
		go func() {
			_, err := living.Run(ctx, other)
			ended <- err
		}()
		<-started
		if _, err := r.Run(t.Context(), s); err != nil {
			t.Errorf("Run after a killed worker: %v", err)
		}
		if got := host(t); strings.Contains(got, mine[0]) {
			t.Errorf("the killed worker's run was not swept:\n%s", got)
		}
		select {
		case err := <-ended:
			t.Errorf("the other run ended: %v", err)
		default:
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the other run: %v", err)
		}
	})
	if left, _ := filepath.Glob(s.Dir + "/*.ext4"); len(left) != 0 {
		t.Errorf("the killed worker left %q", left)
	}
}

// exclusive lists the runs whose lock process pid holds open.
func exclusive(t *testing.T, pid int) []string {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	var runs []string
	for _, fd := range fds {
		if path, _ := os.Readlink(fd); strings.HasPrefix(path, StateDir+"/") && filepath.Base(path) == "lock" {
			runs = append(runs, filepath.Base(filepath.Dir(path)))
		}
	}
	return runs
}

// noSweeps holds the lock of StateDir until release: the tests of other
// packages sweep the same directory at the same time, and would take away what
// a test laid there to be swept.
func noSweeps(t *testing.T) (release func()) {
	t.Helper()
	all, err := lockStateDir(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { all.Close() }) // a second Close does nothing
	return func() { all.Close() }
}

func TestSweepRemains(t *testing.T) {
	r, _ := spec(t)
	defer noSweeps(t)()
	// A worker that died between making its directory and locking it.
	dir := filepath.Join(StateDir, "0123456789abcdef0123456789abcdef")
	if err := os.Mkdir(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	// A runc that died before it wrote any state leaves a cgroup.
	group, err := r.cgroups.dir("self", "pids")
	if err != nil {
		t.Fatal(err)
	}
	group = filepath.Join(group, idPrefix+filepath.Base(dir)+"-0")
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	sleeper := exec.Command("sleep", "600")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), fmt.Append(nil, sleeper.Process.Pid), 0); err != nil {
		sleeper.Process.Kill()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- sleeper.Wait() }()
	if swept, err := r.sweep(); err != nil || !slices.Contains(swept, filepath.Base(dir)) {
		t.Errorf("sweep = %q, %v", swept, err)
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the process in the leftover cgroup ended by itself")
		}
	case <-time.After(5 * time.Second):
		t.Error("the process in the leftover cgroup lives")
		sleeper.Process.Kill()
	}
	if exists(dir) || exists(group) {
		t.Error("directory or cgroup is still there")
	}
}

// TestSweepBesideOrphan: a runc of a dead worker is still at it, and puts files
// where the sweep removes them.
func TestSweepBesideOrphan(t *testing.T) {
	r, _ := spec(t)
	defer noSweeps(t)()
	run := "fedcba9876543210fedcba9876543210"
	dir := filepath.Join(StateDir, run)
	if err := os.Mkdir(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	made := make(chan int)
	go func() {
		n := 0
		for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); n++ {
			if os.WriteFile(filepath.Join(dir, fmt.Sprint(n)), nil, 0o600) != nil {
				break // it is gone
			}
		}
		made <- n
	}()
	for !exists(filepath.Join(dir, "0")) {
		time.Sleep(time.Millisecond)
	}
	swept, err := r.sweep()
	if n := <-made; err != nil || !slices.Contains(swept, run) || exists(dir) {
		t.Errorf("sweep = %q, %v, after %d files", swept, err, n)
	}
}

// TestAwaitEmpty: a stage whose cgroup holds a process is not looked at.
func TestAwaitEmpty(t *testing.T) {
	r, _ := spec(t)
	dir, err := r.cgroups.dir("self", "pids")
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = os.MkdirTemp(dir, idPrefix+"test-"); err != nil {
		t.Fatal(err)
	}
	defer removeGroup(dir)
	g := group{pids: dir}
	if err := g.awaitEmpty(); err != nil {
		t.Errorf("awaitEmpty of an empty cgroup: %v", err)
	}
	sleeper := exec.Command("sleep", "600")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, sleeper.Process.Pid), 0); err != nil {
		t.Error(err)
	}
	if err := g.awaitEmpty(); err == nil || !strings.Contains(err.Error(), fmt.Sprint(sleeper.Process.Pid)) {
		t.Errorf("awaitEmpty = %v, want an error that names process %d", err, sleeper.Process.Pid)
	}
	sleeper.Process.Kill()
	sleeper.Wait()
	if err := g.awaitEmpty(); err != nil {
		t.Errorf("awaitEmpty after the process's end: %v", err)
	}
}

// TestSweepBesideEndingRuns: a run that removes its directory and a sweep of
// another process meet; neither may fail and nothing may stay.
func TestSweepBesideEndingRuns(t *testing.T) {
	r, _ := spec(t)
	ctx := t.Context()
	done := make(chan struct{})
	var sweeps sync.WaitGroup
	for range 2 {
		sweeps.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(time.Millisecond): // the lock is free at times
				}
				if _, err := r.Sweep(ctx); err != nil {
					t.Errorf("Sweep: %v", err)
					return
				}
			}
		})
	}
	for range 100 {
		s, err := newState(ctx)
		if err != nil {
			t.Errorf("newState: %v", err)
			break
		}
		// Many entries make the removal long enough to be met.
		for i := range 50 {
			if _, err := s.mkdir("bundle", fmt.Sprint(i)); err != nil {
				t.Errorf("mkdir: %v", err)
			}
		}
		if err := s.close(r); err != nil {
			t.Errorf("close: %v", err)
		}
		if _, err := os.Lstat(s.dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s after close: %v, want it gone", s.dir, err)
		}
	}
	close(done)
	sweeps.Wait()
}
