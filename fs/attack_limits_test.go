package fs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
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
			got := m.attack("answers", m.dir, "1000")
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
		for name, r := range m.attack("answers", m.dir, "1000").Results {
			if r.Errno != 0 || r.SHA256 != sumOf(data[name]) {
				t.Errorf("%s, with descriptors again: %v", name, r)
			}
		}
		h.quit()
		m.leavesNothing()
	})
}

// Private files are descriptors. They leave enough for requests, however few the
// process may have.
func TestPrivateFilesLeaveDescriptors(t *testing.T) {
	const files, limit = 150, 160
	const again = "CLAWFS_TEST_FEW_DESCRIPTORS"
	if os.Getenv(again) == "" {
		// A limit that was lowered stays so: a test process of its own.
		cmd := exec.Command("sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, limit), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), again+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name()+" ")) {
			t.Errorf("with %d descriptors: %v\n%s", limit, err, out)
		}
		return
	}
	sealing(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		var subjects []capstore.Subject
		for i := range files {
			name, data := fmt.Sprintf("model-%03d.bin", i), sample(byte(i), 4000+i)
			m.write("all/"+name, data)
			if i < 30 {
				m.write("some/"+name, data)
			}
			subjects = append(subjects, subject(t, name, data))
		}
		m.do(request{Op: "admit", Envelope: signed(t, m.mint, subjects)})
		// One after the other, which leaves the private files, and then all at once.
		for _, c := range [][]string{{"all", "1"}, {"some", "30"}} {
			got := m.attack("answers", m.at(c[0]), c[1])
			if got.Text != "" || len(got.Results) == 0 {
				t.Fatalf("%d answers: %s", len(got.Results), got.Text)
			}
			for name, r := range got.Results {
				if r.Errno != 0 {
					t.Errorf("%s/%s: %v", c[0], name, r)
				}
			}
		}
		if s := m.stats(); s.Private == 0 || s.Private > limit/4+10 || s.Errors != 0 {
			t.Errorf("stats: %+v", s)
		}
	})
}
