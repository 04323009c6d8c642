package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// suite is the compiled tests of one package, with the mutants of some package
// in them.
type suite struct {
	ctx                 context.Context // done: the user wants to stop
	folder, dir, binary string
	tests               []test
}

// test is one test of a suite: how long it takes, and which mutants it passes.
type test struct {
	name  string
	took  time.Duration
	work  time.Duration // of processors; says more than took where others have the machine
	seen  map[int]bool
	fails bool // without any mutant: it says nothing
}

// build compiles the tests of a folder with the overlay.
func build(ctx context.Context, root, folder, tests, work string, overlay map[string]string) (*suite, error) {
	text, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		return nil, err
	}
	file := filepath.Join(work, "overlay.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	s := &suite{ctx: ctx, folder: folder, dir: filepath.Join(root, folder), binary: filepath.Join(work, strings.ReplaceAll(folder, "/", "-")+".test")}
	cmd := exec.Command("go", "test", "-c", "-vet=off", "-overlay", file, "-o", s.binary, "./"+folder)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compiling the tests of %s: %w\n%s", folder, err, out)
	}
	cmd = exec.Command(s.binary, "-test.list", tests)
	cmd.Dir = s.dir
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing the tests of %s: %w", folder, err)
	}
	for name := range strings.FieldsSeq(string(out)) {
		if unasked.MatchString(name) {
			continue
		}
		s.tests = append(s.tests, test{name: name})
	}
	if len(s.tests) == 0 {
		return nil, fmt.Errorf("%s has no tests", folder)
	}
	return s, nil
}

// record runs each test alone and without a mutant, and writes down which
// mutants it passes. Children of the test write into the same file.
func (s *suite) record(work string, out io.Writer) error {
	for i := range s.tests {
		if s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		t := &s.tests[i]
		seen := filepath.Join(work, "seen")
		if err := os.WriteFile(seen, nil, 0o666); err != nil {
			return err
		}
		if err := os.Chmod(seen, 0o666); err != nil { // a child may be somebody else
			return err
		}
		from := time.Now()
		r := s.run(work, []string{t.name}, 0, seen, 10*time.Minute)
		t.took, t.work, t.fails, t.seen = time.Since(from), r.work, r.noticed, map[int]bool{}
		text, err := os.ReadFile(seen)
		if err != nil {
			return err
		}
		for line := range strings.FieldsSeq(string(text)) {
			var id int
			if _, err := fmt.Sscan(line, &id); err != nil {
				return fmt.Errorf("reading what %s passed: %w", t.name, err)
			}
			t.seen[id] = true
		}
		if t.fails {
			fmt.Fprintf(out, "%s: %s fails without a mutant and is left out\n%s\n", s.folder, t.name, r.tail)
		}
	}
	return nil
}

type result struct {
	noticed bool
	by      string // the test, or "a timeout"
	failed  []string
	work    time.Duration
	tail    string // of the output
}

var failLine = regexp.MustCompile(`(?m)^--- FAIL: (\S+)`)

// run runs some tests of the suite with one mutant on. Everything that they
// started is ended, and every mount that they left is taken away.
func (s *suite) run(work string, names []string, mutant int, seen string, limit time.Duration) result {
	tmp, err := os.MkdirTemp(work, "t")
	if err != nil {
		panic(err)
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		panic(err)
	}
	defer clear(tmp)
	var quoted []string
	for _, n := range names {
		quoted = append(quoted, regexp.QuoteMeta(n))
	}
	ctx, cancel := context.WithTimeout(s.ctx, limit+10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.binary, "-test.run", "^("+strings.Join(quoted, "|")+")$", "-test.failfast", "-test.timeout", limit.String())
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), fmt.Sprintf("MUTANT=%d", mutant), "MUTANT_SEEN="+seen, "TMPDIR="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	kill := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = kill
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if cmd.Process != nil {
		_ = kill()
	}
	var r result
	if p := cmd.ProcessState; p != nil {
		r.work = p.UserTime() + p.SystemTime() // its children's too, which it has waited for
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		r.noticed = true
		r.tail = string(out[max(0, len(out)-1500):])
		for _, m := range failLine.FindAllStringSubmatch(string(out), -1) {
			r.failed = append(r.failed, m[1])
		}
		switch {
		case strings.Contains(string(out), "panic: test timed out") || ctx.Err() != nil:
			r.by = "a timeout"
		case len(r.failed) > 0:
			r.by = r.failed[0]
		default:
			r.by = "a crash"
		}
	}
	return r
}

// clear removes a directory and what is mounted in it.
func clear(dir string) {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	lines := strings.Split(string(mounts), "\n")
	slices.Reverse(lines)
	for _, line := range lines {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			// MNT_FORCE ends the requests that nobody will answer.
			_ = syscall.Unmount(fields[4], syscall.MNT_FORCE)
			_ = syscall.Unmount(fields[4], syscall.MNT_DETACH)
		}
	}
	_ = os.RemoveAll(dir)
}

// budget is how much time of processors the tests that a mutant is shown to may
// take without a mutant. Those that come after it are not asked.
const budget = 60 * time.Second

// show runs the tests that pass a mutant, the quick ones and those that pass
// few others first, until one notices it. A notice counts if the same test
// fails again, a timeout if three times the time is too short too.
func (s *suite) show(work string, id int) (r result, asked int) {
	var order []*test
	for i := range s.tests {
		if t := &s.tests[i]; t.seen[id] && !t.fails {
			order = append(order, t)
		}
	}
	cost := func(t *test) float64 { return t.work.Seconds() * math.Sqrt(float64(len(t.seen))) }
	slices.SortStableFunc(order, func(a, b *test) int {
		if cost(a) < cost(b) {
			return -1
		}
		return 1
	})
	var spent time.Duration
	for first := time.Second; len(order) > 0 && spent < budget; first *= 4 {
		var names []string
		var sum, effort time.Duration
		for len(order) > 0 && (len(names) == 0 || effort+order[0].work < first) {
			names, sum, effort, order = append(names, order[0].name), sum+order[0].took, effort+order[0].work, order[1:]
		}
		spent += effort
		asked += len(names)
		limit := 4*sum + 10*time.Second
		r = s.run(work, names, id, "", limit)
		if !r.noticed {
			continue
		}
		failed := r.failed
		if r.by == "a timeout" {
			failed, limit = names, 3*limit // others may have had the machine
		}
		if len(failed) == 0 {
			failed = names
		}
		if second := s.run(work, failed, id, "", limit); second.noticed {
			return second, asked
		}
		r = result{}
	}
	return r, asked
}
