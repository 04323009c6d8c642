package slurm

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/rebuild/sandbox"
)

func TestParseID(t *testing.T) {
	for text, want := range map[string]string{"17\n": "17", "17;alpha\n": "17", "17": "17"} {
		if got, err := parseID(text); err != nil || got != want {
			t.Errorf("parseID(%q) = %q, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "\n", "x", "-1\n", "17\n18\n", "17 \n", "Submitted batch job 17\n", "17;\n", "17;a b\n", "17_1\n", strings.Repeat("1", 21)} {
		if got, err := parseID(text); err == nil {
			t.Errorf("parseID(%q) = %q, want an error", text, got)
		}
	}
}

func TestParseJobs(t *testing.T) {
	got, err := parseJobs("1|PENDING||ReqNodeNotAvail, UnavailableNodes:n1|clawfs-a\n22|COMPLETED|n[1-2]|None|a|b c\n")
	if want := []job{{"1", "PENDING", "", "ReqNodeNotAvail, UnavailableNodes:n1", "clawfs-a"}, {"22", "COMPLETED", "n[1-2]", "None", "a|b c"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("parseJobs = %v, %v, want %v", got, err, want)
	}
	if got, err := parseJobs(""); err != nil || len(got) > 0 {
		t.Errorf("parseJobs of nothing = %v, %v", got, err)
	}
	for _, text := range []string{"\n", "1|RUNNING|n1|None\n", "x|RUNNING|n1|None|a\n", "1||n1|None|a\n", "slurm_load_jobs error\n", "1|RUNNING|n1|None|a\n\n"} {
		if got, err := parseJobs(text); err == nil {
			t.Errorf("parseJobs(%q) = %v, want an error", text, got)
		}
	}
	for state, want := range map[string]bool{"COMPLETED": true, "PREEMPTED": true, "NODE_FAIL": true, "COMPLETING": false, "RUNNING": false, "SUSPENDED": false} {
		if over, err := (job{state: state}).over(); err != nil || over != want {
			t.Errorf("%s is over: %t, %v", state, over, err)
		}
	}
	for _, state := range []string{"", "completed", "CANCELLED by 0", "R"} {
		if over, err := (job{state: state}).over(); err == nil {
			t.Errorf("%q is over: %t, want an error", state, over)
		}
	}
}

func TestParseNodes(t *testing.T) {
	got, err := parseNodes("n1|idle\nn2|down*\nn3|mixed\nn1|idle\nn4|drained\nn5|idle~\nn6|allocated\n")
	if want := []string{"n1", "n3", "n6"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("parseNodes = %q, %v, want %q", got, err, want)
	}
	for _, text := range []string{"n1\n", "|idle\n", "-x|idle\n", "n1,n2|idle\n"} {
		if got, err := parseNodes(text); err == nil {
			t.Errorf("parseNodes(%q) = %q, want an error", text, got)
		}
	}
}

// commands is a directory with programs of the right names that print text.
func commands(t *testing.T, script string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"sbatch", "squeue", "sinfo", "scancel"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestNewRefuses(t *testing.T) {
	good := commands(t, "exit 1")
	for _, tt := range []struct {
		c    Config
		want string
	}{
		{Config{}, "not an absolute path"},
		{Config{Commands: "bin"}, "not an absolute path"},
		{Config{Commands: t.TempDir()}, "apt-get install slurm-client"},
		{Config{Commands: good, Conf: "slurm.conf"}, "not an absolute path"},
		{Config{Commands: good, Partition: "-x"}, "partition"},
		{Config{Commands: good, Args: []string{"--export=ALL"}}, `"--export=ALL"`},
		{Config{Commands: good, Args: []string{"--array=1-9"}}, "--array"},
		{Config{Commands: good, Args: []string{"--requeue"}}, "--requeue"},
		{Config{Commands: good, Args: []string{"--account"}}, "--account"},
		{Config{Commands: good, Args: []string{"--account=a --array=1"}}, "--array"},
		{Config{Commands: good, Args: []string{""}}, "option"},
	} {
		if _, err := New(tt.c); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%+v): %v, want an error with %q", tt.c, err, tt.want)
		}
	}
}

func TestSubmitRefuses(t *testing.T) {
	l, err := New(Config{Commands: commands(t, "echo 1")})
	if err != nil {
		t.Fatal(err)
	}
	good := sandbox.Job{Name: "clawfs-a", Argv: []string{"/bin/true"}, Dir: t.TempDir(), CPUs: 1, MemoryBytes: 1, Wall: time.Second}
	for name, with := range map[string]func(*sandbox.Job){
		"no name":            func(j *sandbox.Job) { j.Name = "" },
		"name is an option":  func(j *sandbox.Job) { j.Name = "--wrap" },
		"name with a space":  func(j *sandbox.Job) { j.Name = "a b" },
		"no command":         func(j *sandbox.Job) { j.Argv = nil },
		"relative command":   func(j *sandbox.Job) { j.Argv = []string{"true"} },
		"relative directory": func(j *sandbox.Job) { j.Dir = "." },
		"pattern":            func(j *sandbox.Job) { j.Dir = "/tmp/%u" },
		"no processors":      func(j *sandbox.Job) { j.CPUs = 0 },
		"no memory":          func(j *sandbox.Job) { j.MemoryBytes = 0 },
		"no time":            func(j *sandbox.Job) { j.Wall = 0 },
	} {
		j := good
		with(&j)
		if id, err := l.Submit(t.Context(), j); err == nil {
			t.Errorf("%s: job %s was submitted", name, id)
		}
	}
}

// Commands that print what no Slurm prints, or without end.
func TestBounds(t *testing.T) {
	for _, tt := range []struct{ script, want string }{
		{"yes", "printed more than"},
		{"yes >&2 & echo garbage; kill $!", "want number|state|node|reason|name"},
		{`printf 'no\033]0;cluster' >&2; exit 7`, `exit status 7: "no\x1b]0;cluster"`},
		{"sleep 100", "deadline"},
	} {
		l, err := New(Config{Commands: commands(t, tt.script)})
		if err != nil {
			t.Fatal(err)
		}
		patience := time.Minute
		if tt.want == "deadline" {
			patience = time.Second
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if _, err := l.List(ctx, "clawfs-"); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %.300v, want an error with %q", tt.script, err, tt.want)
		}
		cancel()
	}
}
