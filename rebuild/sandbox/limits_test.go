package sandbox

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		verb   string
		change func(*Spec)
		kind   Kind
		detail string
	}{
		{"memory", nil, LimitExceeded, "memory limit of 134217728 bytes"},
		{"tmpfs", nil, LimitExceeded, "memory limit"},
		{"oomchild", nil, LimitExceeded, "memory limit"},
		{"fork", nil, LimitExceeded, "limit of 64"},
		{"fill /out/a", nil, LimitExceeded, "the limit is 8388608"},
		{"unlinked", nil, LimitExceeded, "the limit is 8388608"},
		{"inodes", nil, LimitExceeded, "files and directories, the limit is 2048"},
		{"sparse 8388609", nil, LimitExceeded, "the limit is 8388608"},
		{"sparse 1099511627776", nil, BuildFailed, ""},
		{"flood", nil, LimitExceeded, "log is longer than 65536 bytes"},
		{"sleep", func(s *Spec) { s.Limits.Wall = time.Second }, Timeout, "all stages together may take 1s"},
		{"stubborn", func(s *Spec) { s.Stages[0].Wall = time.Second }, Timeout, "this stage may take 1s"},
		{"burn", func(s *Spec) { s.Limits.CPUTime = 300 * time.Millisecond }, LimitExceeded, "of CPU time, the limit is 300ms"},
		{"burn", func(s *Spec) { s.Stages[0].Limits.CPUTime = 300 * time.Millisecond }, LimitExceeded, "of CPU time, the limit is 300ms"},
		{"spend 200ms", func(s *Spec) { s.Limits.CPUTime = 100 * time.Millisecond }, LimitExceeded, "of CPU time, the limit is 100ms"},
		{"memory", func(s *Spec) { s.Stages[0].Limits.MemoryBytes = 48 << 20 }, LimitExceeded, "memory limit of 50331648 bytes"},
		{"fork", func(s *Spec) { s.Stages[0].Limits.Processes = 20 }, LimitExceeded, "limit of 20"},
		{"fill /out/a", func(s *Spec) { s.Stages[0].Limits.OutputBytes = 1 << 20 }, LimitExceeded, "the limit is 1048576"},
		{"sparse 1048577", func(s *Spec) { s.Stages[0].Limits.OutputBytes = 1 << 20 }, LimitExceeded, "outputs are 1048577 bytes long, the limit is 1048576"},
		{"openfiles", nil, BuildFailed, ""},
		{"exit 3", nil, BuildFailed, "payload exited with status 3"},
		{"segv", nil, BuildFailed, "payload"},
	} {
		t.Run(tt.verb, func(t *testing.T) {
			r, s := spec(t, strings.Fields(tt.verb)...)
			if tt.change != nil {
				tt.change(&s)
			}
			begin := time.Now()
			_, log, err := run1(t, r, s)
			wantFailure(t, err, tt.kind, "build", tt.detail)
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("took %v", took)
			}
			if int64(len(log)) > s.Limits.LogBytes+s.Limits.LogBytes/MaxLine+1 {
				t.Errorf("log has %d bytes, the limit is %d", len(log), s.Limits.LogBytes)
			}
			if left, _ := filepath.Glob(s.Dir + "/*"); len(left) != 0 {
				t.Errorf("failed run left %q", left)
			}
		})
	}
}

// TestLimitsOfRunAndStage: what one stage used is not there for the next, and
// a stage may have as much as the run.
func TestLimitsOfRunAndStage(t *testing.T) {
	r, s := spec(t)
	s.Limits.CPUTime = 400 * time.Millisecond
	s.Limits.OpenFiles = 40
	s.Stages = []Stage{
		{Name: "one", Argv: []string{"payload", "spend", "200ms"}, Limits: StageLimits{s.Limits.MemoryBytes, s.Limits.Processes, s.Limits.CPUTime, s.Limits.OutputBytes}},
		{Name: "two", Argv: []string{"payload", "spend", "40ms"}},
	}
	var res Result
	var err error
	clean(t, func() { res, err = r.Run(t.Context(), s) })
	if err != nil {
		t.Fatal(err)
	}
	if cpu := res.Stages[0].CPU; cpu < 100*time.Millisecond || cpu > 400*time.Millisecond {
		t.Errorf("the first stage's CPU time = %v, want some 200ms", cpu)
	}
	s.Stages[1].Argv[2] = "400ms"
	_, _, err = run1(t, r, s)
	wantFailure(t, err, LimitExceeded, "two", "of CPU time")
	s.Stages[1].Argv = []string{"payload", "openfiles"}
	_, log, err := run1(t, r, s)
	wantFailure(t, err, BuildFailed, "two", "status 1")
	if !strings.Contains(log, "too many open files") || !strings.Contains(log, "3") || strings.Contains(log, "40 open") {
		t.Errorf("log = %q, want fewer than 40 open files", log)
	}
}

func TestFailureText(t *testing.T) {
	r, s := spec(t, "exit", "7")
	_, _, err := run1(t, r, s)
	f := wantFailure(t, err, BuildFailed, "build", "status 7")
	if want := "about to exit\\x1b[2J\n"; f.LogTail != want {
		t.Errorf("LogTail = %q, want %q", f.LogTail, want)
	}
	s.Stages[0].Argv = []string{"nosuchprogram"}
	_, _, err = run1(t, r, s)
	wantFailure(t, err, BuildFailed, "build", "nosuchprogram")
	s.Stages[0].Argv = []string{"/bin"}
	_, _, err = run1(t, r, s)
	wantFailure(t, err, BuildFailed, "build", "/bin")
	r, s = spec(t, "longline")
	s.Limits.LogBytes = 1 << 20
	_, log, err := run1(t, r, s)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(log) {
		if len(line) > MaxLine+1 {
			t.Errorf("log line of %d bytes, the limit is %d", len(line), MaxLine)
		}
	}
}

func TestOddOutputs(t *testing.T) {
	r, s := spec(t, "makeall")
	s.Outputs = nil
	var want []string
	for i, tt := range []struct{ make, path, detail string }{
		{"symlink /out/0/a /etc/passwd", "0/a", "is a symbolic link"},
		{"symlink /out/1/a b", "1/a", "is a symbolic link"},
		{"symlink /out/2/d /etc", "2/d/passwd", "is reached through a symbolic link"},
		{"symlink /out/3/d ../../../../../../etc", "3/d/passwd", "is reached through a symbolic link"},
		{"symlink /out/4/d .", "4/d/a", "is reached through a symbolic link"},
		{"hardlink /out/5/a", "5/a", "has 2 hard links, wanted 1"},
		{"fifo /out/6/a", "6/a", "is not a regular file"},
		{"socket /out/7/a", "7/a", "is not a regular file"},
		{"dir /out/8/a", "8/a", "is a directory"},
		{"setuid /out/9/a", "9/a", "has set-id bits (mode 4755)"},
		{"device /out/10/a", "10/a", "does not exist"},
		{"dir /out/11/b", "11/b/a", "does not exist"},
		{"setuid /out/12/a", "12/a/b", "does not exist"},
		{"dir /out/13", "13/" + strings.Repeat("x", 256), "has too long a name"},
	} {
		s.Stages[0].Argv = append(s.Stages[0].Argv, tt.make)
		name := fmt.Sprint("o", i)
		s.Outputs = append(s.Outputs, Wanted{name, tt.path})
		want = append(want, fmt.Sprintf("%s (/out/%s) %s", name, tt.path, tt.detail))
	}
	s.Stages[0].Argv = append(s.Stages[0].Argv, "unreadable /out/a")
	s.Outputs = append(s.Outputs, Wanted{"good", "a"})
	_, _, err := run1(t, r, s)
	wantFailure(t, err, OutputMissing, "build", "14 of 15 outputs: "+strings.Join(want, "; "))
	s.Outputs = s.Outputs[14:]
	if got, _, err := run1(t, r, s); err != nil || got != "secret of the build" {
		t.Errorf("mode 0 output: %q, %v", got, err)
	}
}
