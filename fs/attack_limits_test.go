package fs

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
)

// A server that has no descriptor left refuses, and goes on as before when it has
// some again.
func TestNoDescriptorsLeft(t *testing.T) {
	const files = 60
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		var subjects []capstore.Subject
		data := make(map[string][]byte)
		for i := range files {
			name := fmt.Sprintf("model-%02d.bin", i)
			data[name] = sample(byte(i), 40_000)
			m.write(name, data[name])
			subjects = append(subjects, subject(t, name, data[name]))
		}
		m.do(request{Op: "admit", Envelope: signed(t, m.mint, subjects)})
		m.reads("model-00.bin", data["model-00.bin"])
		h := m.hold("model-00.bin")
		pid := m.cmd.Process.Pid
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		var before unix.Rlimit
		// The lowest free number must be refused soon: numbers, not files, are limited.
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
			t.Fatal(err)
		}
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(open)) + 6, Max: before.Max}, nil); err != nil {
			t.Fatal(err)
		}
		good, failed := 0, 0
		for range 3 {
			got := m.attack("answers", m.dir)
			if got.Text != "" { // the directory itself could not be read
				failed++
				continue
			}
			for name, r := range got.Results {
				switch {
				case r.Errno == 0 && r.SHA256 == sumOf(data[name]):
					good++
				case r.Errno == syscall.EIO || r.Errno == syscall.EACCES:
					failed++
				default:
					t.Errorf("%s: %v (%s)", name, r, r.Text)
				}
			}
		}
		h.sees(data["model-00.bin"])
		t.Logf("%d approved, %d refused; %+v", good, failed, m.stats())
		if failed == 0 {
			t.Error("no open failed: the limit was not reached and the test shows nothing")
		}
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil); err != nil {
			t.Fatal(err)
		}
		for name, r := range m.attack("answers", m.dir).Results {
			if r.Errno != 0 || r.SHA256 != sumOf(data[name]) {
				t.Errorf("%s, with descriptors again: %v", name, r)
			}
		}
		h.quit()
		m.leavesNothing()
	})
}
