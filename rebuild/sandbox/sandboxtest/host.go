// Package sandboxtest tells tests what a sandbox left on the host.
package sandboxtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Host lists what runs of sandboxes have on this host now: mounts and state
// below stateDir, cgroups and processes of cgroups whose names start with
// prefix, loop devices. What living other processes hold is left out, because
// the tests of several packages run at the same time.
func Host(t *testing.T, stateDir, prefix string) string {
	t.Helper()
	var b strings.Builder
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, stateDir) {
			b.WriteString("mount " + line)
		}
	}
	runs, _ := filepath.Glob(stateDir + "/[0-9a-f]*")
	for _, d := range runs {
		b.WriteString("state " + d + "\n")
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), prefix) {
			b.WriteString("cgroup " + path + "\n")
		}
		return nil
	})
	processes, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, f := range processes {
		groups, _ := os.ReadFile(f)
		status, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "status"))
		// A zombie is of a run that another process of this host swept.
		if bytes.Contains(groups, []byte("/"+prefix)) && !bytes.Contains(status, []byte("\nState:\tZ")) {
			b.WriteString("process " + f + " " + strings.ReplaceAll(string(groups), "\n", " ") + "\n")
		}
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range backing {
		// Other tests of this host mount disks of their own.
		if file, err := os.ReadFile(f); err == nil && strings.Contains(string(file), "/"+prefix) && strings.Contains(string(file), ".ext4") {
			b.WriteString("loop " + string(file))
		}
	}
	var mine strings.Builder
	others := foreign(t, stateDir)
	for line := range strings.Lines(b.String()) {
		if !slices.ContainsFunc(others, func(run string) bool { return strings.Contains(line, run) }) {
			mine.WriteString(line)
		}
	}
	return mine.String()
}

// foreign lists the runs that living other processes hold, such as the tests
// of other packages.
func foreign(t *testing.T, stateDir string) []string {
	t.Helper()
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	var runs []string
	files, _ := filepath.Glob(stateDir + "/*/lock")
	for _, f := range files {
		var st syscall.Stat_t
		if err := syscall.Stat(f, &st); err != nil {
			continue
		}
		for line := range strings.Lines(string(locks)) {
			// 1: FLOCK  ADVISORY  WRITE 4711 00:1a:12345 0 EOF
			at := strings.Fields(line)
			if len(at) > 5 && at[1] == "FLOCK" && strings.HasSuffix(at[5], fmt.Sprintf(":%d", st.Ino)) && at[4] != fmt.Sprint(os.Getpid()) {
				runs = append(runs, filepath.Base(filepath.Dir(f)))
			}
		}
	}
	return runs
}

// Clean runs f and waits until what it brought to the host is gone again, for
// at most a minute: loop devices detach a moment after their last user. It
// returns how long that took after f and what is still there.
func Clean(t *testing.T, stateDir, prefix string, f func()) (took time.Duration, left []string) {
	t.Helper()
	before := Host(t, stateDir, prefix)
	f()
	end := time.Now()
	for line := range strings.Lines(Host(t, stateDir, prefix)) {
		if !strings.Contains(before, line) {
			left = append(left, line)
		}
	}
	for took = time.Since(end); len(left) > 0 && took < time.Minute; took = time.Since(end) {
		time.Sleep(20 * time.Millisecond)
		now := Host(t, stateDir, prefix)
		left = slices.DeleteFunc(left, func(line string) bool { return !strings.Contains(now, line) })
	}
	return took, left
}
