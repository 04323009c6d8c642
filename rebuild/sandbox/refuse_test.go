package sandbox

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
)

func TestVersions(t *testing.T) {
	for _, tt := range []struct {
		answer string
		want   string // in the error; "" for good
	}{
		{"runc version 1.5.2\nspec: 1.3.0\ngo: go1.26.8\nlibseccomp: 2.5.4\n", ""},
		{"runc version 1.2.8\nlibseccomp: 2.5.4\n", ""},
		{"runc version 1.3.3+dev\nlibseccomp: 2.5.4\n", ""},
		{"runc version 1.4.0\nlibseccomp: 2.5.4\n", ""},
		{"runc version 1.10.0-rc.1\nlibseccomp: 2.5.4\n", ""},
		{"runc version 2.0.0\nlibseccomp: 2.5.4\n", ""},
		{"runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\ngo: go1.19.8\nlibseccomp: 2.5.4\n", "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881"},
		{"runc version 1.2.7\nlibseccomp: 2.5.4\n", "fixed in 1.2.8, 1.3.3, 1.4.0"},
		{"runc version 1.3.2\nlibseccomp: 2.5.4\n", "CVE-2025-31133"},
		{"runc version 1.4.0-rc.1\nlibseccomp: 2.5.4\n", "CVE-2025-31133"},
		{"runc version 1.2.8-rc.1\nlibseccomp: 2.5.4\n", "CVE-2025-31133"},
		{"runc version 0.9.9\nlibseccomp: 2.5.4\n", "CVE-2025-31133"},
		{"runc version 1.5.2\nspec: 1.3.0\n", "without the seccomp tag"},
		{"runc version 1.5.2\nlibseccomp: \n", "without the seccomp tag"},
		{"runc version 1.5\nlibseccomp: 2.5.4\n", "not of the form"},
		{"runc version 1.-5.2\nlibseccomp: 2.5.4\n", "not of the form"},
		{"runc version one\nlibseccomp: 2.5.4\n", "not of the form"},
		{"runsc version release-20260905.0\nspec: 1.1.0-rc.1\n", "runsc version"},
		{"crun version 1.8.1\n", "crun version"},
		{"", "does not say"},
	} {
		_, err := checkVersion(tt.answer)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("checkVersion(%q) = %v, want %q", tt.answer, err, tt.want)
		}
	}
}

func TestFindRefuses(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tt := range []struct{ path, want string }{
		{filepath.Join(dir, "absent"), "no such file"},
		{dir, "permission denied"},
		{script("fails", "echo broken >&2; exit 3"), "broken"},
		{script("old", "echo runc version 1.1.5"), "CVE-2025-31133"},
		{script("unfiltered", "echo runc version 1.5.2"), "seccomp tag"},
		{script("mute", "case $1 in --version) printf 'runc version 1.5.2\\nlibseccomp: 2\\n';; *) echo '{}';; esac"), "no system-call filter"},
		{script("noise", "case $1 in --version) printf 'runc version 1.5.2\\nlibseccomp: 2\\n';; *) echo 'no json';; esac"), "features"},
		{script("nouser", "case $1 in --version) printf 'runc version 1.5.2\\nlibseccomp: 2\\n';; *) echo '{\"linux\":{\"seccomp\":{\"enabled\":true},\"namespaces\":[\"pid\"]}}';; esac"), "no user namespace"},
	} {
		r, err := Find(tt.path)
		if r != nil || err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "cd tools && go build -tags seccomp") {
			t.Errorf("Find(%s) = %v, %v, want an error with %q and the command", tt.path, r, err, tt.want)
		}
	}
}

func TestHierarchies(t *testing.T) {
	const (
		v1     = "30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
		memory = "36 30 0:31 / /sys/fs/cgroup/memory rw,nosuid shared:15 - cgroup cgroup rw,memory\n"
		cpu    = "37 30 0:32 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
		pids   = "38 30 0:33 /docker/x /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
		hybrid = "39 30 0:34 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n"
		v2     = "30 25 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	)
	h, err := parseHierarchy(v1+memory+cpu+pids+hybrid, false)
	if err != nil || h.version != 1 || h.mounts["memory"].dir != "/sys/fs/cgroup/memory" || h.mounts["cpu"].dir != "/sys/fs/cgroup/cpu,cpuacct" || h.mounts["pids"].root != "/docker/x" {
		t.Errorf("hybrid layout = %+v, %v", h, err)
	}
	if h, err = parseHierarchy(v2, true); err != nil || h.version != 2 || h.mounts[""].dir != "/sys/fs/cgroup" {
		t.Errorf("v2 layout = %+v, %v", h, err)
	}
	if _, err := parseHierarchy(memory, true); err == nil {
		t.Error("a v2 layout without its mount was accepted")
	}
	// Each controller alone is needed, in the half that runc uses.
	for _, missing := range []string{memory, cpu, pids} {
		h, err := parseHierarchy(strings.ReplaceAll(strings.ReplaceAll(v1+memory+cpu+pids+hybrid, missing, ""), "/docker/x", "/"), false)
		if err != nil {
			t.Fatal(err)
		}
		if err := h.probe(); err == nil || !strings.Contains(err.Error(), "controller: not mounted") {
			t.Errorf("probe without %q = %v, want a refusal", missing, err)
		}
	}
}

// A limit that the cgroup does not hold is noticed before the build starts.
func TestReadBack(t *testing.T) {
	l := Limits{MemoryBytes: 64 << 20, Processes: 20, CPUs: 0.5}
	good := map[int]map[string]string{
		1: {"memory.limit_in_bytes": "67108864", "memory.memsw.limit_in_bytes": "67108864", "pids.max": "20", "cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000", "cpuset.cpus": "0"},
		2: {"memory.max": "67108864", "memory.swap.max": "0", "pids.max": "20", "cpu.max": "50000 100000", "cpuset.cpus": "0"},
	}
	for version, files := range good {
		dir := t.TempDir()
		g := group{h: hierarchy{version: version, swap: true}, memory: dir, pids: dir, cpu: dir, cpuset: dir}
		for name, value := range files {
			os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o644)
		}
		if err := g.check(l, "0"); err != nil {
			t.Errorf("v%d: %v", version, err)
		}
		for name, value := range files {
			for _, bad := range []string{"max", "-1", "9223372036854771712", value + "0", ""} {
				os.WriteFile(filepath.Join(dir, name), []byte(bad+"\n"), 0o644)
				if err := g.check(l, "0"); err == nil || !strings.Contains(err.Error(), name) {
					t.Errorf("v%d: %s is %q: %v, want a refusal", version, name, bad, err)
				}
			}
			os.WriteFile(filepath.Join(dir, name), []byte(value+"\n"), 0o644)
		}
	}
}

// What no container may be started with.
func TestSpecRefuses(t *testing.T) {
	image := t.TempDir()
	os.Mkdir(filepath.Join(image, "usr"), 0o755)
	os.WriteFile(filepath.Join(image, "usr/file"), nil, 0o644)
	os.Symlink("usr", filepath.Join(image, "lib"))
	dir := t.TempDir()
	good := func() Spec {
		return Spec{
			Recipe: recipe, Rootfs: image, Dir: dir,
			Stages:  []Stage{{Name: "one", Argv: []string{"x"}}, {Name: "two", Argv: []string{"x"}, WorkDir: "/in/source"}},
			Inputs:  []Input{{"source", image}, {"dataset/a", image}, {"dataset/b", image}},
			Outputs: []Wanted{{"a", "a"}, {"b", "dir/b"}},
			Limits:  Limits{MemoryBytes: 64 << 20, OutputBytes: 1, LogBytes: 1, Processes: 16, CPUs: 0.5, Wall: 1},
		}
	}
	if _, err := good().complete(); err != nil {
		t.Fatalf("a good Spec: %v", err)
	}
	for name, break1 := range map[string]func(*Spec){
		"no recipe":                func(s *Spec) { s.Recipe = hashpipe.Digest{} },
		"no image":                 func(s *Spec) { s.Rootfs = "" },
		"image is a file":          func(s *Spec) { s.Rootfs = filepath.Join(image, "usr/file") },
		"no scratch directory":     func(s *Spec) { s.Dir = "" },
		"no stages":                func(s *Spec) { s.Stages = nil },
		"no outputs":               func(s *Spec) { s.Outputs = nil },
		"no limits":                func(s *Spec) { s.Limits = Limits{} },
		"no memory limit":          func(s *Spec) { s.Limits.MemoryBytes = 0 },
		"unlimited memory":         func(s *Spec) { s.Limits.MemoryBytes = -1 },
		"no process limit":         func(s *Spec) { s.Limits.Processes = 0 },
		"unlimited processes":      func(s *Spec) { s.Limits.Processes = -1 },
		"no CPU limit":             func(s *Spec) { s.Limits.CPUs = 0 },
		"CPUs is no number":        func(s *Spec) { s.Limits.CPUs = math.NaN() },
		"infinite CPUs":            func(s *Spec) { s.Limits.CPUs = math.Inf(1) },
		"no output limit":          func(s *Spec) { s.Limits.OutputBytes = 0 },
		"absurd output limit":      func(s *Spec) { s.Limits.OutputBytes = math.MaxInt64 },
		"no log limit":             func(s *Spec) { s.Limits.LogBytes = 0 },
		"no time limit":            func(s *Spec) { s.Limits.Wall = 0 },
		"negative stage time":      func(s *Spec) { s.Stages[0].Wall = -1 },
		"negative CPU time":        func(s *Spec) { s.Limits.CPUTime = -1 },
		"too few open files":       func(s *Spec) { s.Limits.OpenFiles = 3 },
		"negative open files":      func(s *Spec) { s.Limits.OpenFiles = -1 },
		"countless open files":     func(s *Spec) { s.Limits.OpenFiles = math.MaxInt64 },
		"stage above the memory":   func(s *Spec) { s.Stages[0].Limits.MemoryBytes = 64<<20 + 1 },
		"stage without memory":     func(s *Spec) { s.Stages[0].Limits.MemoryBytes = 1 },
		"negative stage memory":    func(s *Spec) { s.Stages[0].Limits.MemoryBytes = -1 },
		"stage above processes":    func(s *Spec) { s.Stages[0].Limits.Processes = 17 },
		"stage above the output":   func(s *Spec) { s.Stages[1].Limits.OutputBytes = 2 },
		"stage above the CPU time": func(s *Spec) { s.Limits.CPUTime, s.Stages[1].Limits.CPUTime = 1, 2 },
		"negative stage CPU time":  func(s *Spec) { s.Stages[1].Limits.CPUTime = -1 },
		"absolute artifact":        func(s *Spec) { s.Stages[0].Artifacts = []string{"/etc/passwd"} },
		"climbing artifact":        func(s *Spec) { s.Stages[0].Artifacts = []string{"a/../../x"} },
		"artifact is /out":         func(s *Spec) { s.Stages[0].Artifacts = []string{"."} },
		"artifact without path":    func(s *Spec) { s.Stages[0].Artifacts = []string{""} },
		"artifact twice":           func(s *Spec) { s.Stages[0].Artifacts = []string{"a", "b", "a"} },
		"zero byte in artifact":    func(s *Spec) { s.Stages[0].Artifacts = []string{"a\x00b"} },
		"stage twice":              func(s *Spec) { s.Stages[1].Name = "one" },
		"stage without name":       func(s *Spec) { s.Stages[0].Name = "" },
		"stage named ..":           func(s *Spec) { s.Stages[0].Name = ".." },
		"stage named a/b":          func(s *Spec) { s.Stages[0].Name = "a/b" },
		"stage without command":    func(s *Spec) { s.Stages[0].Argv = nil },
		"empty command":            func(s *Spec) { s.Stages[0].Argv = []string{""} },
		"zero byte in argument":    func(s *Spec) { s.Stages[0].Argv = []string{"x", "a\x00b"} },
		"relative work directory":  func(s *Spec) { s.Stages[0].WorkDir = "x" },
		"unclean work directory":   func(s *Spec) { s.Stages[0].WorkDir = "/x/../y" },
		"variable without name":    func(s *Spec) { s.Env = map[string]string{"": "x"} },
		"variable with =":          func(s *Spec) { s.Stages[0].Env = map[string]string{"A=B": "x"} },
		"zero byte in variable":    func(s *Spec) { s.Env = map[string]string{"A": "x\x00"} },
		"input twice":              func(s *Spec) { s.Inputs[1].Name = "source" },
		"input in an input":        func(s *Spec) { s.Inputs[1].Name = "source/x" },
		"input around an input":    func(s *Spec) { s.Inputs[0].Name = "dataset" },
		"input named stages":       func(s *Spec) { s.Inputs[0].Name = "stages" },
		"input below stages":       func(s *Spec) { s.Inputs[0].Name = "stages/one" },
		"input named ..":           func(s *Spec) { s.Inputs[0].Name = "../x" },
		"input without name":       func(s *Spec) { s.Inputs[0].Name = "" },
		"output twice":             func(s *Spec) { s.Outputs[1].Name = "a" },
		"output without name":      func(s *Spec) { s.Outputs[0].Name = "" },
		"output without path":      func(s *Spec) { s.Outputs[0].Path = "" },
		"output is /out":           func(s *Spec) { s.Outputs[0].Path = "." },
		"absolute output":          func(s *Spec) { s.Outputs[0].Path = "/etc/passwd" },
		"climbing output":          func(s *Spec) { s.Outputs[0].Path = "a/../../x" },
		"host name with a space":   func(s *Spec) { s.Variation.Hostname = "a b" },
		"work directory is /":      func(s *Spec) { s.Variation.WorkDir = "/" },
		"work directory is /in":    func(s *Spec) { s.Variation.WorkDir = "/in/x" },
		"work directory in proc":   func(s *Spec) { s.Variation.WorkDir = "/proc/x" },
		"work directory hides":     func(s *Spec) { s.Variation.WorkDir = "/usr" },
		"work directory is a file": func(s *Spec) { s.Variation.WorkDir = "/usr/file" },
		"work directory by a link": func(s *Spec) { s.Variation.WorkDir = "/lib/x" },
		"ids of people":            func(s *Spec) { s.Variation.UID = 1000 },
		"ids beyond 32 bits":       func(s *Spec) { s.Variation.UID = math.MaxUint32 - 100 },
		"CPU that is not there":    func(s *Spec) { s.Variation.CPUs = []int{1023} },
		"negative CPU":             func(s *Spec) { s.Variation.CPUs = []int{-1} },
		"uptime backwards":         func(s *Spec) { s.Variation.Uptime = -1 },
	} {
		s := good()
		break1(&s)
		if _, err := s.complete(); err == nil {
			t.Errorf("a Spec with %s was accepted", name)
		}
	}
}

func TestZeroRuntime(t *testing.T) {
	if _, err := new(Runtime).Run(t.Context(), Spec{}); !errors.Is(err, errNoRuntime) {
		t.Errorf("Run of the zero Runtime: %v", err)
	}
	var none *Runtime
	if _, err := none.Sweep(t.Context()); !errors.Is(err, errNoRuntime) {
		t.Errorf("Sweep of no Runtime: %v", err)
	}
	if o := (Output{}); !o.Recipe().IsZero() || o.Run() != "" || !o.Measurement().Sum().IsZero() {
		t.Error("the zero Output claims to be of a run")
	}
	if a := (Artifact{}); !a.Recipe().IsZero() || a.Run() != "" || !a.Measurement().Sum().IsZero() {
		t.Error("the zero Artifact claims to be of a run")
	}
}

func TestHostFaults(t *testing.T) {
	r, s := spec(t, "cat", "/out/a")
	s.Inputs = []Input{{"data", filepath.Join(s.Dir, "absent")}}
	var f *Failure
	clean(t, func() {
		if _, err := r.Run(t.Context(), s); err == nil || errors.As(err, &f) || !strings.Contains(err.Error(), "input data") {
			t.Errorf("Run with an absent input: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.Inputs = nil
		if _, err := r.Run(ctx, s); !errors.Is(err, context.Canceled) || errors.As(err, &f) {
			t.Errorf("Run after cancel: %v", err)
		}
		s.Log, s.Limits.LogBytes = failingWriter{}, 1<<20
		s.Stages[0].Argv = []string{"payload", "longline"}
		if _, err := r.Run(t.Context(), s); err == nil || errors.As(err, &f) || !strings.Contains(err.Error(), "no room for logs") {
			t.Errorf("Run with a failing log: %v", err)
		}
		broken := *r
		broken.path = filepath.Join(s.Dir, "gone")
		s.Log = nil
		if _, err := broken.Run(t.Context(), s); err == nil || errors.As(err, &f) {
			t.Errorf("Run with a runtime that is gone: %v", err)
		}
	})
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("no room for logs") }

func TestBuildLog(t *testing.T) {
	var got bytes.Buffer
	b := newBuildLog(&got, 3*MaxLine)
	in := strings.Repeat("x", MaxLine) + "\n" + strings.Repeat("y", MaxLine+1) + "\n"
	for part := range strings.SplitSeq(in, "y") {
		b.Write([]byte(part + "y")) // in pieces: the line's length goes across writes
	}
	for line := range strings.Lines(got.String()) {
		if len(line) > MaxLine+1 {
			t.Errorf("line of %d bytes", len(line))
		}
	}
	select {
	case <-b.full:
		t.Error("full too early")
	default:
	}
	n, err := b.Write(bytes.Repeat([]byte("z"), 2*MaxLine))
	if n != 2*MaxLine || err != nil {
		t.Errorf("Write beyond the limit = %d, %v: the build would block or stop", n, err)
	}
	<-b.full
	if b.bytes() != 3*MaxLine {
		t.Errorf("log counts %d bytes, the limit is %d", b.bytes(), 3*MaxLine)
	}
	if got := len(b.text()); got > tailBytes {
		t.Errorf("tail of %d bytes", got)
	}
	if got, want := escape([]byte("a\tb\n\x1b[31m\r\x00\xff\u202eé")), `a`+"\tb\n"+`\x1b[31m\x0d\x00\xff\xe2\x80\xaeé`; got != want {
		t.Errorf("escape = %q, want %q", got, want)
	}
}
