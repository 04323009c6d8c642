package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// world is what all tests of this package share: a real runc and an image of
// one static program.
var world = sync.OnceValues(func() (w struct {
	runtime *Runtime
	image   string
}, err error) {
	if os.Geteuid() != 0 {
		return w, errors.New("the sandbox needs root: run the tests with sudo")
	}
	runc, err := filepath.Abs("../../bin/runc")
	if err != nil {
		return w, err
	}
	if _, err := os.Stat(runc); err != nil {
		build := exec.Command("go", "build", "-tags", "seccomp", "-trimpath", "-o", runc, "github.com/opencontainers/runc")
		build.Dir = "../../tools"
		if out, err := build.CombinedOutput(); err != nil {
			return w, fmt.Errorf("building runc: %w\n%s\napt-get install gcc pkg-config libseccomp-dev; %s", err, out, buildRunc)
		}
	}
	if w.runtime, err = Find(runc); err != nil {
		return w, err
	}
	// Below a directory that only root may search, like a state directory.
	parent, err := os.MkdirTemp("", "clawfs-image-")
	if err != nil {
		return w, err
	}
	w.image = filepath.Join(parent, "rootfs")
	if err := mkdirMode(w.image, 0o755); err != nil {
		return w, err
	}
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(w.image, "bin/payload"), "./testdata/payload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return w, fmt.Errorf("building the payload: %w\n%s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(w.image, "bin/payload"))
	if err != nil {
		return w, err
	}
	setid := filepath.Join(w.image, "bin/setid") // of root, as images have them
	if err := os.WriteFile(setid, program, 0o755); err != nil {
		return w, err
	}
	if err := syscall.Chmod(setid, 0o6755); err != nil {
		return w, err
	}
	return w, os.Chmod(filepath.Join(w.image, "bin"), 0o755)
})

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "build-run" {
		os.Exit(beNode(os.Args[2:])) // started by a Launcher of these tests
	}
	code := m.Run()
	if w, err := world(); err == nil {
		os.RemoveAll(filepath.Dir(w.image))
	}
	os.Exit(code)
}

var recipe = hashpipe.SumBytes([]byte("ledger")).Claim()

// spec is a run of one stage of the payload with limits that suffice for it.
func spec(t *testing.T, argv ...string) (*Runtime, Spec) {
	t.Helper()
	w, err := world()
	if err != nil {
		t.Fatal(err)
	}
	return w.runtime, Spec{
		Recipe:  recipe,
		Rootfs:  w.image,
		Stages:  []Stage{{Name: "build", Argv: append([]string{"payload"}, argv...)}},
		Outputs: []Wanted{{Name: "a", Path: "a"}},
		Limits:  Limits{MemoryBytes: 128 << 20, OutputBytes: 8 << 20, LogBytes: 64 << 10, Processes: 64, CPUs: 1, Wall: 30 * time.Second},
		Dir:     t.TempDir(),
	}
}

func read(t *testing.T, o Output) string {
	t.Helper()
	f, err := o.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if got := hashpipe.SumBytes(b); got != o.Measurement().Sum() {
		t.Fatalf("output %s: kept bytes hash to %v, measured %v", o.Name(), got, o.Measurement().Sum())
	}
	return string(b)
}

// tree makes a directory of files that others may read, below one they may not
// search.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "closed", "tree")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Dir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func run1(t *testing.T, r *Runtime, s Spec) (string, string, error) {
	t.Helper()
	var log bytes.Buffer
	s.Log = &log
	var res Result
	var err error
	clean(t, func() { res, err = r.Run(context.Background(), s) })
	if err != nil {
		return "", log.String(), err
	}
	return read(t, res.Outputs[0]), log.String(), nil
}

func TestRun(t *testing.T) {
	r, s := spec(t, "cat", "/out/model/a.bin", "/in/dataset/corpus/x", "/in/lock", "/in/source/run.sh")
	lock := filepath.Join(tree(t, map[string]string{"lock": "locked\n"}), "lock")
	s.Inputs = []Input{
		{"dataset/corpus", tree(t, map[string]string{"x": "hello\n"})},
		{"lock", lock},
		{"source", tree(t, map[string]string{"run.sh": "run\n"})},
	}
	s.Stages = append([]Stage{{Name: "mkdir", Argv: []string{"payload", "make", "dir", "/out/kept"}}}, s.Stages...)
	s.Stages[1].Argv[2] = "/out/a.bin"
	s.Outputs = []Wanted{{Name: "model", Path: "a.bin"}}
	var stages []string
	s.Progress = func(stage string) { stages = append(stages, stage) }
	var first, second Result
	clean(t, func() {
		var err error
		if first, err = r.Run(t.Context(), s); err != nil {
			t.Fatalf("Run: %v", err)
		}
		if second, err = r.Run(t.Context(), s); err != nil {
			t.Fatalf("second Run: %v", err)
		}
	})
	a, b := first.Outputs[0], second.Outputs[0]
	if got := read(t, a); got != "hello\nlocked\nrun\n" {
		t.Errorf("output = %q", got)
	}
	if a.Name() != "model" || a.Recipe() != recipe || a.Run() != first.Run || b.Run() != second.Run {
		t.Errorf("output says name %q, recipe %v, run %q of %q", a.Name(), a.Recipe(), a.Run(), first.Run)
	}
	if first.Run == second.Run || len(first.Run) != 32 {
		t.Errorf("runs are %q and %q, want two different ids", first.Run, second.Run)
	}
	if got := strings.Join(stages, " "); got != "mkdir build mkdir build" {
		t.Errorf("stages = %q", got)
	}
	for _, st := range first.Stages {
		if st.Wall <= 0 || st.PeakMemory <= 0 {
			t.Errorf("stage record %+v", st)
		}
	}
	left, _ := filepath.Glob(s.Dir + "/*")
	if len(left) != 2 {
		t.Errorf("Dir holds %q, want the outputs of two runs", left)
	}
}

func TestStages(t *testing.T) {
	r, s := spec(t)
	s.Stages = []Stage{
		{Name: "one", Argv: []string{"payload", "cat", "/out/x", "/in/data/x"}},
		{Name: "two", Argv: []string{"payload", "cat", "/out/y", "/in/stages/one/x", "/in/data/x"}},
		{Name: "three", Argv: []string{"payload", "cat", "/out/a", "/in/stages/one/x", "/in/stages/two/y"}},
	}
	s.Inputs = []Input{{"data", tree(t, map[string]string{"x": "1"})}}
	got, log, err := run1(t, r, s)
	if err != nil || got != "111" {
		t.Errorf("three stages = %q, %v, log %q; want 111", got, err, log)
	}
	// /out is fresh for each stage: what only an earlier stage wrote is absent.
	s.Stages = append(s.Stages, Stage{Name: "four", Argv: []string{"payload", "cat", "/out/b", "/in/data/x"}})
	_, _, err = run1(t, r, s)
	wantFailure(t, err, OutputMissing, "four", "does not exist")
	// Earlier stages are read-only for later ones.
	s.Stages = []Stage{s.Stages[0], {Name: "two", Argv: []string{"payload", "write", "/in/stages/one/y", "/in/stages/y"}}}
	if _, log, err = run1(t, r, s); err != nil {
		t.Errorf("writing to an earlier stage: %v %s", err, log)
	}
}

func wantFailure(t *testing.T, err error, kind Kind, stage, detail string) *Failure {
	t.Helper()
	var f *Failure
	if !errors.As(err, &f) {
		t.Errorf("Run: %v, want a Failure of kind %q", err, kind)
		return &Failure{}
	}
	if f.Kind != kind || f.Stage != stage || !strings.Contains(f.Detail, detail) {
		t.Errorf("Run: %q, want %q in stage %s with %q", f, kind, stage, detail)
	}
	return f
}

func TestIsolation(t *testing.T) {
	r, s := spec(t, "probe", "/out/a")
	s.Inputs = []Input{{"data", tree(t, map[string]string{"x": "1"})}}
	s.Variation = Variation{Hostname: "elsewhere", UID: 5 << 20, CPUs: []int{0}, Uptime: 1e6 * time.Second}
	got, log, err := run1(t, r, s)
	if err != nil {
		t.Fatalf("Run: %v %s", err, log)
	}
	for _, want := range []string{
		"Seccomp: 2", "NoNewPrivs: 1", "CapInh: 0000000000000000", "CapPrm: 0000000000000000",
		"CapEff: 0000000000000000", "CapBnd: 0000000000000000", "CapAmb: 0000000000000000",
		"Uid: 1000 1000 1000 1000", "Gid: 1000 1000 1000 1000", "Groups: ", "uid_map: 0 5242880 65536", "gid_map: 0 5242880 65536",
		"hostname: elsewhere", "interface: lo", "core: 0", "nofile: 1024", "processes: 1", "Cpus_allowed_list: 0",
		"entries /sys: 0", "entries /sys/fs/cgroup: 0", "entries /proc/acpi: 0", "entries /proc/scsi: 0",
		"kcore bytes: 0", "sysctl writable: false", "unshare: operation not permitted", "mount: operation not permitted",
	} {
		if !strings.Contains("\n"+got, "\n"+want+"\n") && !strings.Contains("\n"+got, "\n"+want+" \n") {
			t.Errorf("inside the sandbox: no line %q", want)
		}
	}
	if strings.Count(got, "interface:") != 1 {
		t.Errorf("more network than loopback")
	}
	var up int
	if _, after, _ := strings.Cut(got, "uptime: "); after != "" {
		fmt.Sscan(after, &up)
	}
	if r.timeNS && up < 1e6 {
		t.Errorf("uptime is %d s, want it shifted by 1e6", up)
	}
	if t.Failed() {
		t.Log(got)
	}
}

func TestNoNetwork(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	r, s := spec(t, "dial", listener.Addr().String(), "192.0.2.1:80", "[2001:db8::1]:80")
	if got, log, err := run1(t, r, s); err != nil || got != "no network\n" {
		t.Errorf("dial: %q, %v, log %s", got, err, log)
	}
}

func TestReadOnly(t *testing.T) {
	r, s := spec(t, "write", "/x", "/bin/x", "/in/x", "/in/data/x", "/in/data/sub/x", "/proc/x", "/dev/x", "/etc/passwd", "/bin/payload")
	s.Inputs = []Input{{"data", tree(t, map[string]string{"sub/f": "1"})}}
	if _, log, err := run1(t, r, s); err != nil {
		t.Errorf("write: %v, log %s", err, log)
	}
	s.Stages[0].Argv = []string{"payload", "chmod", "/bin/payload", "/in/data/sub/f", "/in/data", "/"}
	if _, log, err := run1(t, r, s); err != nil {
		t.Errorf("chmod: %v, log %s", err, log)
	}
}

// A process that outlives its parent and keeps standard output must neither
// hang the run nor write after it was measured.
func TestBackground(t *testing.T) {
	r, s := spec(t, "background")
	begin := time.Now()
	got, _, err := run1(t, r, s)
	if err != nil || got != "early\n" && got != "late\n" && got != "" {
		t.Errorf("Run = %q, %v", got, err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestCancel(t *testing.T) {
	r, s := spec(t, "stubborn")
	ctx, cancel := context.WithCancel(t.Context())
	s.Progress = func(string) { time.AfterFunc(time.Second, cancel) }
	begin := time.Now()
	clean(t, func() {
		_, err := r.Run(ctx, s)
		var f *Failure
		if !errors.Is(err, context.Canceled) || errors.As(err, &f) {
			t.Errorf("Run: %v, want the context's error", err)
		}
	})
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestReverseInputs(t *testing.T) {
	r, s := spec(t, "list", "/out/a", "/in/data", "/in/data/sub")
	data := tree(t, map[string]string{"a": "1", "b": "2", "c": "3", "sub/d": "4", "sub/e": "5", "sub/f": "6"})
	os.Symlink("a", filepath.Join(data, "link"))
	odd := tree(t, map[string]string{"x": "1"})
	if err := syscall.Mkfifo(filepath.Join(odd, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Inputs = []Input{{"data", data}, {"odd", odd}, {"file", filepath.Join(data, "a")}}
	var order [2][]string
	for i := range order {
		s.Variation.ReverseInputs = i == 1
		var res Result
		var err error
		clean(t, func() { res, err = r.Run(t.Context(), s) })
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"inputorder=as stored"}
		if i == 1 {
			want = []string{"inputorder=reversed:data", "inputorder=not varied: odd holds a file that is not plain", "inputorder=not varied: file is a single file"}
		}
		if got := slices.DeleteFunc(slices.Clone(res.Varied), func(v string) bool { return !strings.HasPrefix(v, "inputorder=") }); !slices.Equal(got, want) {
			t.Errorf("Varied of run %d = %q, want %q", i, got, want)
		}
		order[i] = strings.Fields(read(t, res.Outputs[0]))
	}
	if len(order[0]) != 8 {
		t.Fatalf("order = %q, want 8 names", order[0])
	}
	slices.Reverse(order[1][:5])
	slices.Reverse(order[1][5:])
	if !slices.Equal(order[0], order[1]) {
		t.Errorf("order %q is not the reverse of %q", order[1], order[0])
	}
	// The copy has the same bytes, modes, links and times.
	a, b := t.TempDir()+"/a", t.TempDir()+"/b"
	for _, dir := range []string{a, b} {
		if err := copyReversed(data, dir, dir == a); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{a, b} {
		filepath.WalkDir(data, func(path string, _ os.DirEntry, _ error) error {
			rel, _ := filepath.Rel(data, path)
			was, _ := os.Lstat(path)
			is, err := os.Lstat(filepath.Join(dir, rel))
			if err != nil || is.Mode() != was.Mode() || !is.ModTime().Equal(was.ModTime()) || !is.IsDir() && is.Size() != was.Size() {
				t.Errorf("copy of %s is %v, %v; want %v", rel, is, err, was)
			}
			return nil
		})
	}
}

func TestVariation(t *testing.T) {
	r, s := spec(t, "cwd")
	s.Variation.WorkDir = "/home/builder/w"
	if got, _, err := run1(t, r, s); err != nil || got != "/home/builder/w" {
		t.Errorf("work directory = %q, %v", got, err)
	}
	s.Stages[0].WorkDir = "/out"
	if got, _, err := run1(t, r, s); err != nil || got != "/out" {
		t.Errorf("stage's work directory = %q, %v", got, err)
	}
	t.Setenv("SECRET_OF_THE_WORKER", "x")
	r, s = spec(t, "env")
	s.Env = map[string]string{"B": "recipe", "A": "1"}
	s.Stages[0].Env = map[string]string{"B": "stage"}
	up, _, err := run1(t, r, s)
	if err != nil {
		t.Fatal(err)
	}
	s.Variation.ReverseEnv = true
	down, _, err := run1(t, r, s)
	if err != nil {
		t.Fatal(err)
	}
	if want := "A=1\nB=stage\nHOME=/tmp\nPATH="; !strings.HasPrefix(up, want) || strings.Contains(up, "SECRET") {
		t.Errorf("environment = %q, want prefix %q", up, want)
	}
	if !strings.HasSuffix(down, "\nHOME=/tmp\nB=stage\nA=1") {
		t.Errorf("descending environment = %q", down)
	}
}
