package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// scratchEnv tells a node of these tests where its own files are.
const scratchEnv = "CLAWFS_SANDBOX_TEST_SCRATCH"

// beNode is `clawfs build-run` for these tests.
func beNode(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	r, err := Find("../../bin/runc")
	if err == nil {
		err = r.Answer(ctx, args[1], os.Getenv(scratchEnv))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// processes is a Launcher whose machines are processes of this one.
type processes struct {
	scratch string
	// then, if not nil, is done to each job's directory after it ended well.
	then func(dir string)
	// exit, if not nil, is what Wait says in place of the truth.
	exit *Exit
	// deaf loses the answer to a submission: the job runs and nobody knows.
	deaf bool

	mu   sync.Mutex // guards jobs and last
	jobs map[string]*process
	last Job
}

type process struct {
	job  Job
	cmd  *exec.Cmd
	done chan struct{}
}

func (p *processes) Submit(_ context.Context, j Job) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last = j
	for id, known := range p.jobs {
		if known.job.Name == j.Name {
			return id, nil
		}
	}
	log, err := os.Create(filepath.Join(j.Dir, JobLog))
	if err != nil {
		return "", err
	}
	defer log.Close()
	run := &process{job: j, cmd: exec.Command(j.Argv[0], j.Argv[1:]...), done: make(chan struct{})}
	run.cmd.Env = append(os.Environ(), scratchEnv+"="+p.scratch)
	run.cmd.Stdout, run.cmd.Stderr = log, log
	if err := run.cmd.Start(); err != nil {
		return "", err
	}
	go func() { run.cmd.Wait(); close(run.done) }()
	id := fmt.Sprint(run.cmd.Process.Pid)
	if p.jobs == nil {
		p.jobs = map[string]*process{}
	}
	p.jobs[id] = run
	if p.deaf {
		return "", errors.New("connection reset")
	}
	return id, nil
}

func (p *processes) find(id string) *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.jobs[id]
}

func (p *processes) Wait(ctx context.Context, id string) (Exit, error) {
	run := p.find(id)
	select {
	case <-run.done:
	case <-ctx.Done():
		return Exit{}, context.Cause(ctx)
	}
	e := Exit{Done: run.cmd.ProcessState.Success(), State: "COMPLETED", Node: "n1"}
	if !e.Done {
		e.State = "FAILED"
	}
	if p.exit != nil {
		e = *p.exit
	}
	if p.then != nil {
		p.then(run.job.Dir)
	}
	return e, nil
}

func (p *processes) Cancel(_ context.Context, id string) error {
	return p.find(id).cmd.Process.Signal(syscall.SIGTERM)
}

func (p *processes) List(_ context.Context, prefix string) (list []Listed, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, run := range p.jobs {
		select {
		case <-run.done:
		default:
			if strings.HasPrefix(run.job.Name, prefix) {
				list = append(list, Listed{id, run.job.Name})
			}
		}
	}
	return list, nil
}

// remote is a Remote and a Spec whose files are where its nodes have them.
func remote(t *testing.T, argv ...string) (*Remote, *processes, Spec) {
	t.Helper()
	_, s := spec(t, argv...)
	p := &processes{scratch: filepath.Join(t.TempDir(), "node")}
	r := &Remote{Launcher: p, Shared: t.TempDir(), Program: os.Args[0], Name: "test", Grace: time.Millisecond}
	dir, release, err := r.Scratch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(dir, "image")
	if err := os.CopyFS(image, os.DirFS(s.Rootfs)); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{image, image + "/bin"} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.Rootfs = image
	t.Cleanup(func() {
		if err := release(); err != nil {
			t.Error(err)
		}
		for _, d := range []string{r.Shared, p.scratch} {
			if left, _ := filepath.Glob(d + "/[^.]*"); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		}
	})
	return r, p, s
}

func TestRemoteRun(t *testing.T) {
	r, p, s := remote(t, "cat", "/out/b", "/in/data/x", "/in/stages/one/x")
	data := filepath.Join(filepath.Dir(s.Rootfs), "data")
	if err := errors.Join(os.Mkdir(data, 0o755), os.WriteFile(data+"/x", []byte("1"), 0o644)); err != nil {
		t.Fatal(err)
	}
	s.Inputs = []Input{{"data", data}}
	s.Stages = append([]Stage{{Name: "one", Argv: []string{"payload", "cat", "/out/x", "/in/data/x"}, Wall: 20 * time.Second}}, s.Stages...)
	// Two outputs with the same bytes are one file on their way.
	s.Outputs = []Wanted{{"model", "b"}, {"copy", "b"}}
	s.Stages[0].Artifacts = []string{"x"}
	s.Variation = Variation{Hostname: "elsewhere", OneCPULess: true, NotOn: []string{"n0"}, Uptime: time.Hour}
	s.Needs = Needs{OS: ThisHost().OS, Arch: ThisHost().Arch}
	var log bytes.Buffer
	var stages []string
	s.Log, s.Progress = &log, func(stage string) { stages = append(stages, stage) }
	var res Result
	var err error
	clean(t, func() { res, err = r.Run(t.Context(), s) })
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"model", "copy"} {
		o := res.Outputs[i]
		if got := read(t, o); got != "11" || o.Name() != want || o.Run() != res.Run || o.Recipe() != recipe {
			t.Errorf("output %d: %q named %q of run %q and recipe %v", i, got, o.Name(), o.Run(), o.Recipe())
		}
		if rel, err := filepath.Rel(s.Dir, o.kept); err != nil || !filepath.IsLocal(rel) {
			t.Errorf("output is kept at %s, want below %s", o.kept, s.Dir)
		}
	}
	if a := res.Stages[0].Artifacts; len(a) != 1 || a[0].Path() != "x" || a[0].Stage() != "one" || a[0].Run() != res.Run ||
		!a[0].Measurement().Sum().Is(hashpipe.SumBytes([]byte("1")).Claim()) {
		t.Errorf("artifacts of stage one: %+v", a)
	}
	if len(res.Run) != 32 || p.last.Name != jobPrefix+res.Run {
		t.Errorf("run %q of job %q", res.Run, p.last.Name)
	}
	if !slices.Equal(stages, []string{"one", "build"}) || len(res.Stages) != 2 || res.Stages[0].PeakMemory <= 0 {
		t.Errorf("stages %q, %+v", stages, res.Stages)
	}
	for _, want := range []string{"node=n1", "hostname=elsewhere", "kernel=" + ThisHost().Kernel, "processor=" + ThisHost().Processor} {
		if !slices.Contains(res.Varied, want) {
			t.Errorf("Varied = %q, want %s", res.Varied, want)
		}
	}
	if strings.Contains(strings.Join(res.Varied, "\n"), notVaried+"one machine") {
		t.Errorf("Varied = %q speaks of one machine", res.Varied)
	}
	if h := res.Host; h.Name != "n1" || !strings.HasPrefix(h.Runtime, "runc ") || h.Kernel == "" || len(h.CPUFeatures) == 0 {
		t.Errorf("Host = %+v", h)
	}
	if p.last.MemoryBytes <= s.Limits.MemoryBytes || p.last.Wall <= s.Limits.Wall || p.last.CPUs != 1 || !slices.Equal(p.last.NotOn, []string{"n0"}) {
		t.Errorf("job = %+v", p.last)
	}
	again, err := r.Run(t.Context(), s)
	if err != nil || again.Run == res.Run {
		t.Errorf("second run %q, %v", again.Run, err)
	}
}

// What the build did is an answer, with the node's words.
func TestRemoteFailure(t *testing.T) {
	r, _, s := remote(t, "exit", "3")
	var log bytes.Buffer
	s.Log = &log
	_, err := r.Run(t.Context(), s)
	wantFailure(t, err, BuildFailed, "build", "exited with status 3")
	s.Stages[0].Argv = []string{"payload", "make", "symlink", "/out/a", "/etc/passwd"}
	_, err = r.Run(t.Context(), s)
	wantFailure(t, err, OutputMissing, "build", "symbolic link")
	s.Needs = Needs{OS: "linux", Arch: ThisHost().Arch, CPUFeatures: []string{"avx99"}}
	_, err = r.Run(t.Context(), s)
	wantFailure(t, err, NotComparable, "", "lacks avx99")
	s.Needs = Needs{OS: "linux", Arch: "pdp11"}
	_, err = r.Run(t.Context(), s)
	wantFailure(t, err, NotComparable, "", "linux/pdp11")
}

// noAnswer checks that an error is none about the build.
func noAnswer(t *testing.T, err error, want string) {
	t.Helper()
	var f *Failure
	if errors.As(err, &f) || err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Run: %v, want an error with %q that is no Failure", err, want)
	}
}

// What the engine does to a job is no verdict about the build.
func TestRemoteLost(t *testing.T) {
	for _, state := range []string{"NODE_FAIL", "PREEMPTED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"} {
		t.Run(state, func(t *testing.T) {
			r, p, s := remote(t, "exit", "3")
			// Even if a failure of the build lies there.
			p.exit = &Exit{State: state, Node: "n\x1b7"}
			_, err := r.Run(t.Context(), s)
			noAnswer(t, err, "on a machine with a malformed name ended as "+state)
		})
	}
	t.Run("no answer", func(t *testing.T) {
		r, p, s := remote(t, "cat", "/out/a", "/bin/payload")
		p.then = func(dir string) { os.RemoveAll(filepath.Join(dir, answerDir)) }
		_, err := r.Run(t.Context(), s)
		noAnswer(t, err, "on n1: no answer")
	})
	t.Run("trouble of the node", func(t *testing.T) {
		r, p, s := remote(t, "cat", "/out/a", "/bin/payload")
		s.Rootfs = filepath.Join(filepath.Dir(s.Rootfs), "gone")
		if err := os.Mkdir(s.Rootfs, 0o700); err != nil {
			t.Fatal(err)
		}
		p.scratch = "/dev/null/none"
		_, err := r.Run(t.Context(), s)
		noAnswer(t, err, "it printed: tidying up")
		p.scratch = t.TempDir()
	})
	t.Run("forgotten job with an answer", func(t *testing.T) {
		r, p, s := remote(t, "exit", "3")
		p.exit = &Exit{}
		_, err := r.Run(t.Context(), s)
		wantFailure(t, err, BuildFailed, "build", "status 3")
	})
}

func TestRemoteCancel(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		r, p, s := remote(t, "stubborn")
		p.deaf = deaf
		ctx, cancel := context.WithCancelCause(t.Context())
		s.Progress = func(string) { cancel(errors.New("the operator changed his mind")) }
		clean(t, func() {
			_, err := r.Run(ctx, s)
			want := "the operator changed his mind"
			if deaf {
				want = "connection reset"
			}
			noAnswer(t, err, want)
		})
		if left, _ := p.List(t.Context(), ""); len(left) > 0 {
			t.Errorf("jobs left: %v", left)
		}
		cancel(nil)
	}
}

// What an attester that died left is ended by the next one, and by no other
// while it lives.
func TestRemoteSweep(t *testing.T) {
	r, p, s := remote(t, "stubborn")
	x, err := newExchange(t.Context(), r.Shared)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.order(s); err != nil {
		t.Fatal(err)
	}
	job := Job{Name: jobPrefix + x.run, Argv: []string{r.Program, "build-run", "--spec", filepath.Join(x.dir, orderFile)}, Dir: x.dir}
	clean(t, func() {
		if _, err := p.Submit(t.Context(), job); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat(filepath.Join(x.dir, stagesFile)); err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the job does not start")
			}
		}
		if swept, err := r.Sweep(t.Context()); err != nil || len(swept) > 0 {
			t.Errorf("Sweep beside a living attester = %q, %v", swept, err)
		}
		if jobs, _ := p.List(t.Context(), jobPrefix); len(jobs) != 1 {
			t.Errorf("jobs = %v, want the living one", jobs)
		}
		x.lock.Close() // as the kernel does
		swept, err := r.Sweep(t.Context())
		if err != nil || !slices.Equal(swept, []string{x.run}) {
			t.Errorf("Sweep = %q, %v, want %s", swept, err, x.run)
		}
		if jobs, _ := p.List(t.Context(), ""); len(jobs) > 0 {
			t.Errorf("jobs left: %v", jobs)
		}
	})
	// The inputs of a dead attester go too; what is not ours stays.
	dead, err := newShared(t.Context(), r.Shared, workPrefix)
	if err != nil {
		t.Fatal(err)
	}
	dead.lock.Close()
	other := filepath.Join(r.Shared, "run-of-somebody")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	if swept, err := r.Sweep(t.Context()); err != nil || !slices.Equal(swept, []string{"work-" + dead.run}) {
		t.Errorf("Sweep = %q, %v, want work-%s", swept, err, dead.run)
	}
	if err := os.Remove(other); err != nil {
		t.Error(err)
	}
}

// A node that was killed leaves nothing after the next one, or after Tidy.
func TestNodeKilled(t *testing.T) {
	r, p, s := remote(t, "stubborn")
	s.Progress = func(string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, run := range p.jobs {
			run.cmd.Process.Kill()
		}
	}
	clean(t, func() {
		_, err := r.Run(t.Context(), s)
		noAnswer(t, err, "ended as FAILED and gave no answer")
		w, err := world()
		if err != nil {
			t.Fatal(err)
		}
		if err := w.runtime.Tidy(t.Context(), p.scratch); err != nil {
			t.Error(err)
		}
	})
}

func TestRemoteRefuses(t *testing.T) {
	r, p, good := remote(t, "cat", "/out/a", "/bin/payload")
	outside := t.TempDir()
	link := filepath.Join(filepath.Dir(good.Rootfs), "link")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		with func(*Remote, *Spec)
		want string
	}{
		{"image elsewhere", func(_ *Remote, s *Spec) { s.Rootfs = outside }, "which the nodes do not have"},
		{"image behind a link", func(_ *Remote, s *Spec) { s.Rootfs = link }, "which the nodes do not have"},
		{"input elsewhere", func(_ *Remote, s *Spec) { s.Inputs = []Input{{"data", outside}} }, "input data is at"},
		{"all of the shared directory", func(r *Remote, s *Spec) { s.Inputs = []Input{{"data", r.Shared}} }, "input data is at"},
		{"processors of this machine", func(_ *Remote, s *Spec) { s.Variation.CPUs = []int{0} }, "OneCPULess"},
		{"no engine", func(r *Remote, _ *Spec) { r.Launcher = nil }, "no engine"},
		{"relative", func(r *Remote, _ *Spec) { r.Shared = "shared" }, "shared directory"},
		{"program with a blank", func(r *Remote, _ *Spec) { r.Program = "/opt/claw fs" }, "clawfs on the nodes"},
		{"no recipe", func(_ *Remote, s *Spec) { s.Recipe = hashpipe.Digest{} }, "recipe digest"},
		{"others write there", func(r *Remote, _ *Spec) { os.Chmod(r.Shared, 0o777) }, "only root writes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer os.Chmod(r.Shared, 0o755)
			bad, s := *r, good
			tt.with(&bad, &s)
			_, err := bad.Run(t.Context(), s)
			noAnswer(t, err, tt.want)
		})
	}
	if len(p.jobs) > 0 {
		t.Errorf("%d jobs were submitted", len(p.jobs))
	}
	var none *Remote
	_, err := none.Run(t.Context(), good)
	noAnswer(t, err, "no engine")
}

// TestHostileAnswer has one honest answer changed in each way that a node
// could. None may become an output, or a verdict about the build.
func TestHostileAnswer(t *testing.T) {
	r, p, s := remote(t, "cat", "/out/a", "/in/data/x", "/in/data/x")
	data := filepath.Join(filepath.Dir(s.Rootfs), "data")
	if err := errors.Join(os.Mkdir(data, 0o755), os.WriteFile(data+"/x", []byte("two"), 0o644)); err != nil {
		t.Fatal(err)
	}
	s.Inputs = []Input{{"data", data}}
	s.Stages[0].Artifacts = []string{"a"}
	kept := filepath.Join(t.TempDir(), "honest")
	p.then = func(dir string) {
		if err := os.CopyFS(kept, os.DirFS(filepath.Join(dir, answerDir))); err != nil {
			t.Error(err)
		}
	}
	if _, err := r.Run(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	sum := hashpipe.SumBytes([]byte("twotwo"))
	other := hashpipe.SumBytes([]byte("towtow"))
	text, err := os.ReadFile(filepath.Join(kept, resultFile))
	if err != nil {
		t.Fatal(err)
	}
	var honest answer
	if err := json.Unmarshal(text, &honest, wire); err != nil {
		t.Fatal(err)
	}
	file := func(dir string) string { return filepath.Join(dir, sum.String()) }
	change := func(f func(*answer)) func(string, *string) {
		return func(_ string, text *string) {
			var a answer
			if err := json.Unmarshal([]byte(*text), &a, wire); err != nil {
				t.Fatal(err)
			}
			f(&a)
			b, err := json.Marshal(&a, wire)
			if err != nil {
				t.Fatal(err)
			}
			*text = string(b)
		}
	}
	failure := func(f Failure) func(string, *string) {
		return change(func(a *answer) { a.Result, a.Failure = nil, &f })
	}
	files := func(f func(dir string) error) func(string, *string) {
		return func(dir string, _ *string) {
			if err := f(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tt := range []struct {
		name string
		with func(dir string, text *string)
		want string
	}{
		{"honest", func(string, *string) {}, ""},
		{"of another run", change(func(a *answer) { a.Run = strings.Repeat("ab", 16) }), "this is run"},
		{"of another recipe", change(func(a *answer) { a.Recipe = other.Claim() }), "it is for recipe"},
		{"other format", change(func(a *answer) { a.Format = "v2" }), "format"},
		{"failure and result", change(func(a *answer) { a.Failure = &Failure{Kind: BuildFailed, Stage: "build"} }), "one of them"},
		{"neither", change(func(a *answer) { a.Result = nil }), "one of them"},
		{"failure of no kind", failure(Failure{Kind: "MINTED", Stage: "build"}), "no failure has the kind"},
		{"failure of another stage", failure(Failure{Kind: BuildFailed, Stage: "deploy"}), "does not have"},
		{"long log", failure(Failure{Kind: BuildFailed, Stage: "build", LogTail: strings.Repeat("x", 1<<20)}), "bytes of log"},
		{"output missing", change(func(a *answer) { a.Result.Outputs = nil }), "0 outputs"},
		{"output twice", change(func(a *answer) { a.Result.Outputs = append(a.Result.Outputs, a.Result.Outputs[0]) }), "2 outputs"},
		{"artifact missing", change(func(a *answer) { a.Result.Stages[0].Artifacts = nil }), "0 artifacts of stage build"},
		{"artifact of another path", change(func(a *answer) { a.Result.Stages[0].Artifacts[0].Name = "b" }), "artifact 1 of stage build"},
		{"artifact of another size", change(func(a *answer) { a.Result.Stages[0].Artifacts[0].Size = 5 }), "not its size or tree"},
		{"artifact that is absent", change(func(a *answer) { a.Result.Stages[0].Artifacts[0].SHA256 = other.Claim() }), "artifact a of stage build: the file " + other.String()},
		{"artifact beyond the limit", change(func(a *answer) {
			a.Result.Stages[0].Artifacts[0].SHA256, a.Result.Stages[0].Artifacts[0].Size = other.Claim(), 8<<20
		}), "the limit for all"},
		{"output of another name", change(func(a *answer) { a.Result.Outputs[0].Name = "../a" }), `"../a"`},
		{"wrong digest", change(func(a *answer) { a.Result.Outputs[0].SHA256 = other.Claim() }), "does not exist"},
		{"file of the wrong digest", func(dir string, text *string) {
			*text = strings.ReplaceAll(*text, sum.String(), other.String())
			if err := os.Rename(file(dir), filepath.Join(dir, other.String())); err != nil {
				t.Fatal(err)
			}
		}, "SHA-256 " + sum.String()},
		{"wrong verity", change(func(a *answer) {
			a.Result.Outputs[0].Verity, _ = hashpipe.ParseVerityDigest(strings.Repeat("12", 32))
			a.Result.Stages[0].Artifacts[0].Verity = a.Result.Outputs[0].Verity
		}), "the node said"},
		{"wrong size", change(func(a *answer) { a.Result.Outputs[0].Size++; a.Result.Stages[0].Artifacts[0].Size++ }), "came back"},
		{"negative size", change(func(a *answer) { a.Result.Outputs[0].Size = -1 }), "-1 bytes"},
		{"more than the limit", change(func(a *answer) { a.Result.Outputs[0].Size = 1 << 62 }), "the limit for all"},
		{"other stages", change(func(a *answer) { a.Result.Stages[0].Name = "x" }), "stage 1"},
		{"negative time", change(func(a *answer) { a.Result.Stages[0].Wall = -1 }), "stage 1"},
		{"escape code", change(func(a *answer) { a.Result.Varied = []string{"\x1b]0;x"} }), "a variation"},
		{"escape code in its name", change(func(a *answer) { a.Host.Name = "\x1b7" }), "describes itself"},
		{"many features", change(func(a *answer) { a.Host.CPUFeatures = make([]string, maxFeatures+1) }), "processor features"},
		{"unknown member", func(_ string, text *string) { *text = strings.Replace(*text, "{", `{"Trust":true,`, 1) }, "Trust"},
		{"duplicate member", func(_ string, text *string) { *text = strings.Replace(*text, "{", `{"Run":"x",`, 1) }, "duplicate"},
		{"digest that is a path", func(_ string, text *string) {
			*text = strings.ReplaceAll(*text, sum.String(), "../../../../etc/passwd")
		}, resultFile},
		{"garbage", func(_ string, text *string) { *text = "\x00\x1b]" }, resultFile},
		{"empty", func(_ string, text *string) { *text = "" }, resultFile},
		{"huge", func(_ string, text *string) { *text += strings.Repeat(" ", maxAnswer) }, "the limit is"},
		{"deep", func(_ string, text *string) { *text = strings.Repeat("[", 1<<20) }, resultFile},
		{"other bytes", files(func(dir string) error { return os.WriteFile(file(dir), []byte("towtow"), 0o600) }), other.String()},
		{"file cut", files(func(dir string) error { return os.Truncate(file(dir), 1) }), "1 bytes came back"},
		{"sparse exabyte", files(func(dir string) error { return os.Truncate(file(dir), 1<<43) }), "came back"},
		{"file gone", files(func(dir string) error { return os.Remove(file(dir)) }), "does not exist"},
		{"link", files(func(dir string) error {
			return errors.Join(os.Rename(file(dir), filepath.Join(data, "y")), os.Symlink(filepath.Join(data, "y"), file(dir)))
		}), "symbolic link"},
		{"hard link", files(func(dir string) error { return os.Link(file(dir), filepath.Join(dir, "../second")) }), "2 hard links"},
		{"set-id", files(func(dir string) error { return unix.Chmod(file(dir), 0o4755) }), "set-id"},
		{"FIFO", files(func(dir string) error { return errors.Join(os.Remove(file(dir)), unix.Mkfifo(file(dir), 0o600)) }), "not a regular file"},
		{"device", files(func(dir string) error {
			return errors.Join(os.Remove(file(dir)), unix.Mknod(file(dir), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
		}), "not a regular file"},
		{"directory", files(func(dir string) error { return errors.Join(os.Remove(file(dir)), os.Mkdir(file(dir), 0o700)) }), "is a directory"},
		{"extra file", files(func(dir string) error { return os.WriteFile(filepath.Join(dir, "\x1bextra"), nil, 0o600) }), "no output of the recipe"},
		{"result is a FIFO", func(dir string, text *string) {
			*text = ""
			if err := unix.Mkfifo(filepath.Join(dir, resultFile), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a regular file"},
		{"answer is a link", files(func(dir string) error {
			return errors.Join(os.Rename(dir, dir+".x"), os.Symlink(dir+".x", dir))
		}), "its answer"},
		{"answer is a file", files(func(dir string) error { return errors.Join(os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)) }), "its answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := *r
			bad.Launcher = answering(func(run, dir string) {
				if err := os.CopyFS(dir, os.DirFS(kept)); err != nil {
					t.Fatal(err)
				}
				text := strings.Replace(string(text), honest.Run, run, 1)
				os.Remove(filepath.Join(dir, resultFile))
				tt.with(dir, &text)
				if _, err := os.Lstat(filepath.Join(dir, resultFile)); err != nil {
					os.WriteFile(filepath.Join(dir, resultFile), []byte(text), 0o600)
				}
			})
			s.Dir = t.TempDir()
			res, err := bad.Run(t.Context(), s)
			os.Remove(filepath.Join(data, "y"))
			if tt.want == "" {
				if err != nil || read(t, res.Outputs[0]) != "twotwo" {
					t.Errorf("the honest answer: %v", err)
				}
				return
			}
			noAnswer(t, err, tt.want)
			noAnswer(t, err, "on n6")
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' }) {
				t.Errorf("control characters in %q", err)
			}
			if left, _ := filepath.Glob(s.Dir + "/*"); len(left) > 0 {
				t.Errorf("left in Dir: %q", left)
			}
		})
	}
}

// answering is a Launcher whose one machine answers at once, as the function
// wants: what a node that lies could do.
type answering func(run, dir string)

func (f answering) Submit(_ context.Context, j Job) (string, error) {
	f(strings.TrimPrefix(j.Name, jobPrefix), filepath.Join(j.Dir, answerDir))
	return "1", nil
}
func (answering) Wait(context.Context, string) (Exit, error) {
	return Exit{Done: true, State: "COMPLETED", Node: "n6"}, nil
}
func (answering) Cancel(context.Context, string) error           { return nil }
func (answering) List(context.Context, string) ([]Listed, error) { return nil, nil }

// Every field of a Spec reaches the node, also those that come later.
func TestOrderIsWhole(t *testing.T) {
	var s Spec
	fill(t, reflect.ValueOf(&s).Elem(), "Spec")
	s.Recipe, s.Dir = recipe, ""
	x, err := newExchange(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer x.remove(t.Context())
	if err := x.order(s); err != nil {
		t.Fatal(err)
	}
	o, err := readOrder(filepath.Join(x.dir, orderFile))
	if err != nil {
		t.Fatal(err)
	}
	if s.Log, s.Progress = nil, nil; !reflect.DeepEqual(o.Spec, s) || o.Run != x.run {
		t.Errorf("read back %+v\nwant      %+v", o.Spec, s)
	}
	// What a stage is told to have used travels too.
	record, told := reflect.TypeFor[StageRecord](), reflect.TypeFor[answeredStage]()
	for i := range record.NumField() {
		if f := record.Field(i).Name; !slices.ContainsFunc(reflect.VisibleFields(told), func(g reflect.StructField) bool { return g.Name == f }) {
			t.Errorf("StageRecord.%s does not come back from a node", f)
		}
	}
}

// fill puts something other than zero everywhere.
func fill(t *testing.T, v reflect.Value, at string) {
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[hashpipe.Digest]() {
			v.Set(reflect.ValueOf(recipe))
			return
		}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.Tag.Get("json") != "-" {
				fill(t, v.Field(i), at+"."+f.Name)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, v.Index(0), at)
	case reflect.Map:
		v.Set(reflect.ValueOf(map[string]string{"k": "v"}))
	case reflect.String:
		v.SetString("text")
	case reflect.Int, reflect.Int64:
		v.SetInt(1<<53 + 1)
	case reflect.Uint32:
		v.SetUint(1 << 31)
	case reflect.Float64:
		v.SetFloat(0.5)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), at)
	default:
		t.Fatalf("%s is a %s, which this test does not know", at, v.Kind())
	}
}
