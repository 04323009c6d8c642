package sandbox

import (
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
	for _, tt := range []struct{ make, path, detail string }{
		{"symlink /out/a /etc/passwd", "a", "is a symbolic link"},
		{"symlink /out/a b", "a", "is a symbolic link"},
		{"symlink /out/d /etc", "d/passwd", "through a symbolic link"},
		{"symlink /out/d ../../../../../../etc", "d/passwd", "through a symbolic link"},
		{"symlink /out/d .", "d/a", "through a symbolic link"},
		{"hardlink /out/a", "a", "has 2 hard links"},
		{"fifo /out/a", "a", "not a regular file"},
		{"socket /out/a", "a", "not a regular file"},
		{"dir /out/a", "a", "is a directory"},
		{"setuid /out/a", "a", "set-id bits"},
		{"device /out/a", "a", "does not exist"},
		{"dir /out/b", "b/a", "does not exist"},
		{"setuid /out/a", "a/b", "does not exist"},
	} {
		t.Run(tt.make, func(t *testing.T) {
			r, s := spec(t, append([]string{"make"}, strings.Fields(tt.make)...)...)
			s.Outputs = []Wanted{{"other", "not/there"}, {"a", tt.path}}
			_, _, err := run1(t, r, s)
			f := wantFailure(t, err, OutputMissing, "build", tt.detail)
			if !strings.Contains(f.Detail, "2 of 2 outputs: other (/out/not/there) does not exist; a (/out/"+tt.path+")") {
				t.Errorf("detail %q does not list both outputs", f.Detail)
			}
		})
	}
	r, s := spec(t, "make", "unreadable", "/out/a")
	if got, _, err := run1(t, r, s); err != nil || got != "secret of the build" {
		t.Errorf("mode 0 output: %q, %v", got, err)
	}
}
