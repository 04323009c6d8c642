package slurm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/engine/slurm/slurmtest"
	"github.com/openclaw/clawfs/rebuild/sandbox"
)

// workerEnv makes the test binary a worker that the test then kills: the
// shared directory, the commands and slurm.conf, the directory of its outputs.
const workerEnv = "CLAWFS_SLURM_TEST_WORKER"

// programs are clawfs as nodes have it, with runc beside it, and what the
// tests' image holds.
var programs = sync.OnceValues(func() (p struct{ clawfs, payload string }, err error) {
	if os.Geteuid() != 0 {
		return p, errors.New("the sandbox needs root: run the tests with sudo")
	}
	bin, err := filepath.Abs("../../../bin")
	if err != nil {
		return p, err
	}
	p.clawfs, p.payload = filepath.Join(bin, "clawfs-of-a-node"), filepath.Join(bin, "payload-of-a-node")
	for _, b := range []struct{ dir, out, pkg, env, tags string }{
		{"../../../tools", filepath.Join(bin, "runc"), "github.com/opencontainers/runc", "CGO_ENABLED=1", "seccomp"},
		{".", p.clawfs, "../../../cmd/clawfs", "CGO_ENABLED=0", ""},
		{".", p.payload, "../../sandbox/testdata/payload", "CGO_ENABLED=0", ""},
	} {
		if _, err := os.Stat(b.out); err == nil && b.tags != "" {
			continue
		}
		build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-tags", b.tags, "-o", b.out, b.pkg)
		build.Dir, build.Env = b.dir, append(os.Environ(), b.env)
		if out, err := build.CombinedOutput(); err != nil {
			return p, fmt.Errorf("building %s: %w\n%s\nnext: make deps", b.pkg, err, out)
		}
	}
	return p, nil
})

func launcher(t *testing.T, c *slurmtest.Cluster) *Launcher {
	t.Helper()
	l, err := New(Config{Commands: c.Commands, Conf: c.Conf, Partition: "build", Args: []string{"--nice=0"}, Poll: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// rig is a worker's: a Remote on a cluster, and a recipe that its nodes can run.
func rig(t *testing.T, c *slurmtest.Cluster) (*sandbox.Remote, func(argv ...string) sandbox.Spec) {
	t.Helper()
	p, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	shared, err := os.MkdirTemp("", "clawfs-shared-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, _ := filepath.Glob(shared + "/[^.]*"); len(left) > 0 {
			t.Errorf("left in the shared directory: %q", left)
		}
		os.RemoveAll(shared)
	})
	r := &sandbox.Remote{Launcher: launcher(t, c), Shared: shared, Program: p.clawfs, Name: "slurm"}
	dir, release, err := r.Scratch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	})
	image := filepath.Join(dir, "image")
	if err := os.MkdirAll(filepath.Join(image, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(p.payload)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(image, "bin/payload"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	return r, func(argv ...string) sandbox.Spec { return spec(image, t.TempDir(), argv...) }
}

func spec(image, dir string, argv ...string) sandbox.Spec {
	return sandbox.Spec{
		Recipe: hashpipe.SumBytes([]byte("ledger")).Claim(), Rootfs: image, Dir: dir,
		Stages:  []sandbox.Stage{{Name: "build", Argv: append([]string{"payload"}, argv...)}},
		Outputs: []sandbox.Wanted{{Name: "a", Path: "a"}},
		Limits:  sandbox.Limits{MemoryBytes: 128 << 20, OutputBytes: 8 << 20, LogBytes: 64 << 10, Processes: 64, CPUs: 1, Wall: time.Minute},
	}
}

// noAnswer checks that an error is none about the build.
func noAnswer(t *testing.T, err error, want string) {
	t.Helper()
	var f *sandbox.Failure
	if errors.As(err, &f) || err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Run: %v, want an error with %q that is no Failure", err, want)
	}
}

// gone waits until no job and no files of this test are left.
func gone(t *testing.T, c *slurmtest.Cluster) {
	t.Helper()
	left := ""
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		nodes, _ := filepath.Glob("/var/tmp/clawfs-node/work-*")
		if left = c.Do("squeue", "-h") + strings.Join(nodes, "\n"); left == "" {
			return
		}
	}
	t.Errorf("left after two minutes:\n%s", left)
}

func TestCluster(t *testing.T) {
	if at := os.Getenv(workerEnv); at != "" {
		beWorker(t, strings.Split(at, ":"))
		return
	}
	c := slurmtest.Start(t, "../../../build/slurm")
	r, spec := rig(t, c)

	t.Run("run", func(t *testing.T) {
		t.Setenv("SBATCH_TIMELIMIT", "nonsense") // nothing of the worker's environment counts
		s := spec("cat", "/out/a", "/bin/payload")
		first, err := r.Run(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		s = spec("cat", "/out/a", "/bin/payload")
		s.Variation = sandbox.Variation{NotOn: []string{first.Host.Name}, OneCPULess: true}
		second, err := r.Run(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		a, b := first.Outputs[0], second.Outputs[0]
		if !a.Measurement().Sum().Is(b.Measurement().Sum().Claim()) || a.Run() == b.Run() {
			t.Errorf("two runs of cat: %v of %s and %v of %s", a.Measurement().Sum(), a.Run(), b.Measurement().Sum(), b.Run())
		}
		if !slices.Contains(c.Nodes, first.Host.Name) || !slices.Contains(c.Nodes, second.Host.Name) || first.Host.Name == second.Host.Name {
			t.Errorf("they ran on %q and %q, want both nodes", first.Host.Name, second.Host.Name)
		}
	})
	t.Run("failure", func(t *testing.T) {
		var log strings.Builder
		s := spec("exit", "7")
		s.Log = &log
		_, err := r.Run(t.Context(), s)
		var f *sandbox.Failure
		if !errors.As(err, &f) || f.Kind != sandbox.BuildFailed || !strings.Contains(f.Detail, "status 7") {
			t.Errorf("Run: %v, want the build's failure", err)
		}
	})
	t.Run("cancel", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		s := spec("stubborn")
		s.Progress = func(string) { cancel(errors.New("told to end")) }
		_, err := r.Run(ctx, s)
		noAnswer(t, err, "told to end")
		gone(t, c)
	})
	// The engine's own reasons to end a job.
	for name, command := range map[string][]string{
		"cancelled by the operator": {"scancel", "--me"},
		"node lost":                 {"scontrol", "update", "nodename=n1,n2", "state=down", "reason=test"},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				c.Do("scontrol", "update", "nodename=n1,n2", "state=resume")
				c.Idle()
			}()
			s := spec("stubborn")
			said := make(chan string, 1)
			s.Progress = func(string) { said <- c.Do(command[0], command[1:]...) }
			_, err := r.Run(t.Context(), s)
			noAnswer(t, err, "and gave no answer")
			select { // Run tells its stages before it returns
			case out := <-said:
				if out != "" {
					t.Errorf("%q: %s", command, out)
				}
			default:
				t.Error("the stage never began")
			}
			gone(t, c)
		})
	}
	t.Run("node killed", func(t *testing.T) {
		s := spec("stubborn")
		s.Progress = func(string) { c.Do("scancel", "--me", "--signal=KILL", "--full") }
		_, err := r.Run(t.Context(), s)
		noAnswer(t, err, "ended as ")
		// The next build on the node takes away what is left.
		if _, err := r.Run(t.Context(), spec("cat", "/out/a", "/bin/payload")); err != nil {
			t.Error(err)
		}
		gone(t, c)
	})
	t.Run("worker killed", func(t *testing.T) {
		s := spec("stubborn")
		worker := exec.Command(os.Args[0], "-test.run=^TestCluster$")
		worker.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%s:%s:%s:%s", workerEnv, r.Shared, c.Commands, c.Conf, s.Rootfs, s.Dir))
		out, err := worker.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := worker.Start(); err != nil {
			t.Fatal(err)
		}
		text := make([]byte, 8)
		io.ReadFull(out, text)
		if string(text) != "building" {
			t.Errorf("the worker says %q", text)
		}
		if swept, err := r.Sweep(t.Context()); err != nil || len(swept) > 0 {
			t.Errorf("Sweep beside a living worker = %q, %v", swept, err)
		}
		worker.Process.Kill()
		worker.Wait()
		if left := c.Do("squeue", "-h", "-o", "%j %T"); !strings.Contains(left, " RUNNING") {
			t.Errorf("squeue = %q, want the dead worker's job", left)
		}
		swept, err := r.Sweep(t.Context())
		if err != nil || len(swept) != 1 {
			t.Errorf("Sweep = %q, %v, want one run", swept, err)
		}
		gone(t, c)
	})
	t.Run("job", func(t *testing.T) { testJob(t, c) })
}

func beWorker(t *testing.T, at []string) {
	p, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(Config{Commands: at[1], Conf: at[2], Poll: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	s := spec(at[3], at[4], "stubborn")
	s.Progress = func(string) { fmt.Print("building") }
	_, err = (&sandbox.Remote{Launcher: l, Shared: at[0], Program: p.clawfs, Name: "slurm"}).Run(context.Background(), s)
	t.Fatal(err)
}

// testJob has the Launcher do what sandbox.Launcher promises.
func testJob(t *testing.T, c *slurmtest.Cluster) {
	l, ctx := launcher(t, c), t.Context()
	dir := t.TempDir()
	j := sandbox.Job{
		Name: "clawfs-0a", Argv: []string{"/bin/sh", "-c", "echo $0 $1 $SECRET; sleep 1; exit 3", `a "b" $(c)`, "*;d"}, Dir: dir,
		CPUs: 1, MemoryBytes: 100 << 20, Wall: 90 * time.Second,
	}
	t.Setenv("SECRET", "of the worker")
	id, err := l.Submit(ctx, j)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := l.Submit(ctx, j); err != nil || again != id {
		t.Errorf("Submit again = %q, %v, want job %s", again, err, id)
	}
	if list, err := l.List(ctx, "clawfs-0"); err != nil || !slices.Equal(list, []sandbox.Listed{{ID: id, Name: j.Name}}) {
		t.Errorf("List = %v, %v", list, err)
	}
	if list, err := l.List(ctx, "clawfs-1"); err != nil || len(list) > 0 {
		t.Errorf("List of another prefix = %v, %v", list, err)
	}
	told := c.Do("scontrol", "show", "job", id)
	for _, want := range []string{"Requeue=0", "TimeLimit=00:02:00", "MinMemoryNode=100M", "NumCPUs=1", "Partition=build"} {
		if !strings.Contains(told, want) {
			t.Errorf("scontrol show job: no %s in\n%s", want, told)
		}
	}
	exit, err := l.Wait(ctx, id)
	if err != nil || exit.Done || exit.State != "FAILED" || !slices.Contains(c.Nodes, exit.Node) {
		t.Errorf("Wait = %+v, %v, want FAILED on a node", exit, err)
	}
	if log, err := os.ReadFile(filepath.Join(dir, sandbox.JobLog)); err != nil || string(log) != "a \"b\" $(c) *;d\n" {
		t.Errorf("the job printed %q, %v, want its arguments and no secret", log, err)
	}
	if again, err := l.Submit(ctx, j); err != nil || again != id {
		t.Errorf("Submit of a job that is over = %q, %v, want job %s", again, err, id)
	}
	for _, over := range []string{id, "4000000"} {
		if err := l.Cancel(ctx, over); err != nil {
			t.Errorf("Cancel of job %s, which is over or was never: %v", over, err)
		}
	}
	if exit, err := l.Wait(ctx, "4000000"); err != nil || exit.Done || exit.State != "" {
		t.Errorf("Wait for a job that the cluster forgot = %+v, %v", exit, err)
	}
	// Where no other machine is up, one is used twice.
	if got, err := l.exclude(ctx, c.Nodes[:1]); err != nil || got != c.Nodes[0] {
		t.Errorf("exclude one of two = %q, %v", got, err)
	}
	if got, err := l.exclude(ctx, c.Nodes); err != nil || got != "" {
		t.Errorf("exclude both = %q, %v, want none", got, err)
	}
	// Slurm takes a job that no machine can run.
	j.Name, j.CPUs = "clawfs-0b", 4000
	waiting, err := l.Submit(ctx, j)
	if err != nil {
		t.Fatal(err)
	}
	short := *l
	short.c.Queue = time.Millisecond
	if _, err := short.Wait(ctx, waiting); err == nil || !strings.Contains(err.Error(), "no machine for 1ms") {
		t.Errorf("Wait for a job that never starts: %v", err)
	}
	if err := l.Cancel(ctx, waiting); err != nil {
		t.Error(err)
	}
	if exit, err := l.Wait(ctx, waiting); err != nil || exit.State != "CANCELLED" || exit.Node != "" {
		t.Errorf("Wait for the job that was cancelled = %+v, %v", exit, err)
	}
	away := *l
	away.c.Commands, away.c.Patience = commands(t, "echo no controller >&2; exit 1"), time.Millisecond
	if _, err := away.Wait(ctx, id); err == nil || !strings.Contains(err.Error(), "no answer of the cluster") {
		t.Errorf("Wait without a cluster: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := l.Wait(ended, id); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait after the end: %v", err)
	}
}
