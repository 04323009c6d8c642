package fs

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// profileVariable names the file into which a serving child writes its CPU profile,
// between one SIGUSR1 and the next.
const profileVariable = "CLAWFS_TEST_PROFILE"

func init() {
	file := os.Getenv(profileVariable)
	if os.Getenv(roleVariable) != "server" || file == "" {
		return
	}
	told := make(chan os.Signal, 2)
	signal.Notify(told, syscall.SIGUSR1)
	go func() {
		<-told
		f, err := os.Create(file + ".part")
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
			return
		}
		<-told
		pprof.StopCPUProfile()
		f.Close()
		if err := os.Rename(f.Name(), file); err != nil {
			fmt.Fprintln(os.Stderr, "profile:", err)
		}
	}()
}

// needOut checks the flags that the end of a long run would stumble over.
func needOut(tb testing.TB) {
	tb.Helper()
	if *benchProfile == "" && *benchOut == "" {
		return
	}
	if *benchOut == "" {
		tb.Fatal("-bench-profile needs a directory: -bench-out DIR")
	}
	if err := os.MkdirAll(*benchOut, 0o755); err != nil {
		tb.Fatal(err)
	}
	if *benchProfile == "" {
		return
	}
	if _, err := exec.LookPath("perf"); err != nil {
		tb.Fatal("no perf: apt-get install linux-perf")
	}
	tier, _, _ := strings.Cut(*benchProfile, "/")
	for _, t := range tiers {
		if t.name == tier {
			return
		}
	}
	tb.Fatalf("-bench-profile %s: no such tier", tier)
}

// profile does rows of this disk once more: those that -bench-profile names, or the
// two in which its tier is slowest against what is wanted, or else against 1.
func (c *contest) profile(b *testing.B) {
	tier, text, some := strings.Cut(*benchProfile, "/")
	i := slices.IndexFunc(c.kinds, func(k kind) bool { return k.name == tier })
	if i < 0 {
		return
	}
	k := c.kinds[i]
	rows := slices.DeleteFunc(slices.Clone(c.table.lines), func(l *line) bool {
		return l.disk != c.disk.name || l.inMiB || l.columns[k.name] == nil || !strings.Contains(l.name, text)
	})
	short := func(l *line) float64 {
		want, some := l.wanted(k.name)
		if !some {
			want = 1
		}
		return wall(l.columns[k.name]) / want
	}
	slices.SortStableFunc(rows, func(a, b *line) int { return cmp.Compare(short(a), short(b)) })
	if !some {
		rows = rows[:min(2, len(rows))]
	}
	for _, l := range rows {
		name := regexp.MustCompile("[^A-Za-z0-9]+").ReplaceAllString(l.disk+"-"+k.name+"-"+l.name, "-")
		profileLine(b, l, k, filepath.Join(*benchOut, name))
	}
}

// profileLine writes where the time of a row goes: NAME.mount.pprof (the mount
// process, by its own account), NAME.mount.perf and NAME.client.perf (with the
// kernel's functions), and what is on top of each.
func profileLine(b *testing.B, l *line, k kind, name string) {
	b.Helper()
	waitFor := func(file string) {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if _, err := os.Stat(file); err == nil {
				return
			}
			if time.Now().After(deadline) {
				b.Fatalf("no %s after 10 s: the mount process did not write its profile", file)
			}
		}
	}
	perf := func(file string, args ...string) []string {
		return append([]string{"perf", "record", "-q", "-e", "cpu-clock", "-F", "4000", "-g", "-o", name + file}, args...)
	}
	file := name + ".mount.pprof"
	for _, old := range []string{file, file + ".part"} {
		if err := os.RemoveAll(old); err != nil {
			b.Fatal(err)
		}
	}
	b.Setenv(profileVariable, file)
	l.again(b, k, func(p *peer, do func(*peer)) {
		server, err := os.FindProcess(p.pid)
		if err != nil {
			b.Fatal(err)
		}
		server.Signal(syscall.SIGUSR1)
		waitFor(file + ".part")
		watched := *p
		watched.wrap = append(perf(".mount.perf", "-p", strconv.Itoa(p.pid), "--"), perf(".client.perf", "--")...)
		do(&watched)
		server.Signal(syscall.SIGUSR1)
		waitFor(file)
	})
	fmt.Printf("\nprofile of %q, %s on %s (a ratio of %s): %s.*\n", l.name, k.name, l.disk, digits(wall(l.columns[k.name])), name)
	for _, who := range []string{".mount.perf", ".client.perf"} {
		out, err := exec.Command("perf", "report", "-i", name+who, "--stdio", "--no-children", "-g", "none", "--percent-limit", "2", "--sort", "symbol").Output()
		if err != nil {
			b.Fatalf("perf report: %v", err)
		}
		fmt.Printf("%s\n%s", who[1:], regexp.MustCompile(`(?m)^(#.*)?\s*\n`).ReplaceAllString(string(out), ""))
	}
}
