package fs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// fio writes a file with its own checksums into the source, and verifies it
// through the mount by each of its ways to read.
func TestFioVerify(t *testing.T) {
	fio, err := exec.LookPath("fio")
	if err != nil {
		t.Fatal("no fio: apt-get install fio")
	}
	run := func(args ...string) ([]byte, error) {
		cmd := exec.Command(fio, append([]string{"--name=verify", "--size=24M", "--bs=128k", "--verify=crc32c", "--verify_fatal=1"}, args...)...)
		cmd.Dir = tempDir(t) // fio leaves its state in the working directory
		timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		defer timer.Stop()
		return cmd.CombinedOutput()
	}
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		p := filepath.Join(m.src, "data.bin")
		if out, err := run("--filename="+p, "--rw=write", "--do_verify=0", "--ioengine=psync"); err != nil {
			t.Fatalf("fio: %v\n%s", err, out)
		}
		good, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		engines := map[string][]string{
			"psync": nil, "pvsync2": nil, "mmap": nil, "libaio": {"--iodepth=16", "--direct=1"},
			"io_uring": {"--iodepth=16", "--fixedbufs=1", "--registerfiles=1"},
		}
		check := func(engine string) ([]byte, error) {
			return run(append([]string{"--filename=" + m.at("data.bin"), "--readonly", "--rw=read", "--ioengine=" + engine}, engines[engine]...)...)
		}
		if out, err := check("psync"); err == nil || !bytes.Contains(out, []byte("Permission denied")) {
			t.Errorf("without a capability: %v\n%s", err, out)
		}
		m.grant("data.bin", good)
		for engine := range engines {
			if out, err := check(engine); err != nil || !bytes.Contains(out, []byte("err= 0")) {
				t.Errorf("%s: %v\n%s", engine, err, out)
			}
		}
	})
}

// The file system tests of go-fuse, on a mount that cannot be written: each
// passes, or is stopped by EROFS, and the source stays as it is.
func TestPosix(t *testing.T) {
	const at = "CLAWFS_TEST_POSIX"
	if dir := os.Getenv(at); dir != "" {
		for name, test := range posixtest.All {
			t.Run(name, func(t *testing.T) { test(t, dir) })
		}
		return
	}
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		good := sample(85, 300_000)
		m.write("file", good)
		m.write("file.txt", good)
		m.grant("file", good)
		m.grant("file.txt", good)
		before := m.run("list", m.dir).Text
		cmd := exec.Command(os.Args[0], "-test.run=^TestPosix$", "-test.v", "-test.count=1")
		cmd.Env = append(os.Environ(), at+"="+m.dir)
		timer := time.AfterFunc(2*time.Minute, func() { cmd.Process.Signal(syscall.SIGQUIT) })
		defer timer.Stop()
		out, _ := cmd.CombinedOutput()
		outcome := regexp.MustCompile(`(?m)^ +--- (PASS|FAIL|SKIP): TestPosix/(\w+)`).FindAllStringSubmatch(string(out), -1)
		for _, o := range outcome {
			if o[1] == "PASS" {
				t.Logf("%s passes", o[2])
			}
			if text := section(string(out), o[2]); o[1] != "PASS" && !strings.Contains(text, syscall.EROFS.Error()) {
				t.Errorf("%s: %s, want it to pass or %q:\n%s", o[2], o[1], syscall.EROFS, text)
			}
		}
		if len(outcome) != len(posixtest.All) {
			t.Errorf("%d tests ran, want %d:\n%s", len(outcome), len(posixtest.All), out)
		}
		if after := m.run("list", m.dir).Text; after != before || before == "" {
			t.Errorf("the mount had\n%sand now has\n%s", before, after)
		}
	})
}

// section returns what one test printed.
func section(out, name string) string {
	var lines []string
	inside := false
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "=== ") {
			inside = strings.Contains(line, "TestPosix/"+name+"\n")
		}
		if inside || strings.Contains(line, "TestPosix/"+name+" ") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}
