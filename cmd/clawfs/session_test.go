package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// held reports how often the daemon has got a mount's session.
func (r *rig) sessions() int {
	r.t.Helper()
	b, err := os.ReadFile(r.state.DaemonLog())
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Count(string(b), "the mount outlives its process now")
}

// mountLine is the mount's line in the mount table.
func (r *rig) mountLine() string {
	r.t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == r.mnt {
			return line
		}
	}
	r.t.Fatalf("%s is not mounted", r.mnt)
	return ""
}

// users hold files of a mount open and mapped, and read them without a pause.
type users struct {
	wg    sync.WaitGroup
	end   atomic.Bool
	right atomic.Int64
	mu    sync.Mutex // guards wrong
	wrong []string
}

func (u *users) said(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.wrong = append(u.wrong, fmt.Sprintf(format, args...))
}

// use opens a file and begins to use it.
func (u *users) use(t *testing.T, path string, want []byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, len(want), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	u.wg.Go(func() {
		defer f.Close()
		defer unix.Munmap(data)
		buf := make([]byte, len(want))
		for !u.end.Load() {
			// Out of the page cache, so that somebody has to serve.
			unix.Madvise(data, unix.MADV_DONTNEED)
			unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
			if _, err := f.ReadAt(buf, 0); err != nil {
				u.said("read %s: %v", path, err)
			} else if !bytes.Equal(buf, want) || !bytes.Equal(data, want) {
				u.said("read %s: other bytes", path)
			} else {
				u.right.Add(1)
			}
			if g, err := os.Open(path); err != nil {
				u.said("open %s: %v", path, err)
			} else {
				g.Close()
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
}

// stop ends them and fails the test if anything was not as it should be.
func (u *users) stop(t *testing.T) {
	t.Helper()
	u.end.Store(true)
	u.wg.Wait()
	if len(u.wrong) > 0 || u.right.Load() == 0 {
		t.Errorf("%d right answers, %d wrong: %s", u.right.Load(), len(u.wrong), strings.Join(u.wrong[:min(len(u.wrong), 5)], "; "))
	}
}

// The mount process is kill -9'd while a hundred handles are open and in use: a
// successor goes on, in the same mount, and nobody sees an error. Neither does a
// restart of the daemon change that.
func TestKilledMountProcessLosesNothing(t *testing.T) {
	for _, seal := range []string{"off", "copy"} {
		t.Run(seal, func(t *testing.T) {
			r := newRig(t)
			content := make(map[string]string)
			for i := range 4 {
				name := fmt.Sprintf("m%d.bin", i)
				content[name] = strings.Repeat(fmt.Sprintf("model %d ", i), 8<<10)
				r.file(name, content[name])
			}
			r.admit(content)
			r.ok("mount", "--seal", seal, r.src, r.mnt)
			line := r.mountLine()
			var u users
			for name, text := range content {
				for range 25 {
					u.use(t, filepath.Join(r.mnt, name), []byte(text))
				}
			}
			for round := 1; round <= 5; round++ {
				if round == 4 { // another daemon asks for the session again
					r.stopDaemon(syscall.SIGKILL)
					r.startDaemon()
				}
				want := 1
				if round >= 4 {
					want = 2
				}
				r.eventually("the daemon holds the session", func() bool { return r.sessions() == want })
				pid := r.serverPID()
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				r.eventually("a successor serves", func() bool { now := r.serverPID(); return now > 0 && now != pid })
				if !r.opens("m0.bin", content["m0.bin"]) {
					t.Fatalf("round %d: the granted file is refused", round)
				}
				t.Logf("round %d: back after %v", round, time.Since(start))
				time.Sleep(2 * quickDeath)
			}
			u.stop(t)
			if now := r.mountLine(); now != line {
				t.Errorf("the mount is another: %q, was %q", now, line)
			}
			s := r.status()
			if len(s.Mounts) != 1 || s.Mounts[0].Report == nil || s.Mounts[0].Report.Counters["resumed"] < 100 {
				t.Errorf("status shows %+v, want 100 handles taken over", s.Mounts)
			}
			t.Logf("%d right answers", u.right.Load())
			r.ok("umount", r.mnt)
		})
	}
}
