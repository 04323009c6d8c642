package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

var errNoRuntime = errors.New("sandbox: no runtime: use Find")

const (
	// pollInterval is how often /out and the CPU time are measured against their
	// limits while a stage runs. The file system of /out itself ends soon after
	// the limit.
	pollInterval = 50 * time.Millisecond
	// killTime bounds the wait for the processes of a stage after SIGKILL. One
	// that the kernel cannot end by then waits for a device or a server.
	killTime = time.Minute
)

// run is one Run in progress.
type run struct {
	r     *Runtime
	spec  Spec
	state *state
	log   *buildLog
	root  string
	cpus  string
	// outs are the /out of the stages so far, in order.
	outs []*outFS
	left int64 // of Limits.OutputBytes
	cpu  time.Duration
	kept keptFiles
	// reversed names the inputs whose directories list in reverse order;
	// unreversed those that should and do not, each with the reason.
	reversed, unreversed []string
}

// Run runs the stages in order and returns after every process is dead and
// everything outside Spec.Dir is removed. A *Failure is the build's own fault;
// any other error is the caller's or this host's. Outputs are copied below
// Spec.Dir and measured after the last stage.
//
// Run makes this process the reaper of orphaned grandchildren (see
// PR_SET_CHILD_SUBREAPER), because a container's first process must be its
// child. Two Runs may go on at once.
func (r *Runtime) Run(ctx context.Context, s Spec) (result Result, err error) {
	if r == nil || r.path == "" {
		return Result{}, errNoRuntime
	}
	if s, err = s.complete(); err != nil {
		return Result{}, fmt.Errorf("sandbox: %w", err)
	}
	host := r.Host()
	if err := s.Needs.check(host); err != nil {
		return Result{}, fmt.Errorf("sandbox: %w", err)
	}
	if _, err := r.Sweep(ctx); err != nil {
		return Result{}, err
	}
	begin := time.Now()
	st, err := newState(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("sandbox: %w", err)
	}
	x := &run{r: r, spec: s, state: st, log: newBuildLog(s.Log, s.Limits.LogBytes), left: s.Limits.OutputBytes}
	x.kept.dir = filepath.Join(s.Dir, "outputs-"+st.run)
	result, err = x.all(ctx)
	if closed := x.close(); closed != nil {
		err = errors.Join(err, fmt.Errorf("cleaning up: %w", closed))
	}
	if err != nil {
		return Result{}, fmt.Errorf("sandbox: %w", errors.Join(err, os.RemoveAll(x.kept.dir)))
	}
	result.Run, result.Wall, result.Host = st.run, time.Since(begin), host
	return result, nil
}

func (x *run) all(ctx context.Context) (Result, error) {
	if err := x.prepare(); err != nil {
		return Result{}, err
	}
	whole, cancel := context.WithTimeoutCause(ctx, x.spec.Limits.Wall, errWall)
	defer cancel()
	var res Result
	for i, stage := range x.spec.Stages {
		if x.spec.Progress != nil {
			x.spec.Progress(stage.Name)
		}
		record, err := x.stage(whole, i, stage)
		if err != nil {
			return Result{}, err
		}
		if record.Artifacts, err = x.artifacts(ctx, i); err != nil {
			return Result{}, err
		}
		res.Stages = append(res.Stages, record)
	}
	if err := x.log.writeError(); err != nil {
		return Result{}, err
	}
	var err error
	res.Outputs, err = x.outputs(ctx)
	res.Varied = x.varied()
	return res, err
}

// prepare mounts the image.
func (x *run) prepare() (err error) {
	if x.cpus, err = x.spec.Variation.cpuList(); err != nil {
		return err
	}
	if !x.r.cgroups.cpuset {
		x.cpus = ""
	}
	if x.spec.Variation.ReverseInputs {
		if err := x.reverseInputs(); err != nil {
			return err
		}
	}
	points, err := x.state.mkdir("points")
	if err != nil {
		return err
	}
	if err := makePoints(points, x.spec); err != nil {
		return err
	}
	if x.root, err = x.state.mkdir("root"); err != nil {
		return err
	}
	return mountRoot(x.spec.Rootfs, points, x.root)
}

func (x *run) close() error {
	var errs []error
	for _, o := range x.outs {
		errs = append(errs, o.close())
	}
	return errors.Join(append(errs, x.state.close(x.r))...)
}

// stage runs one stage; when it returns, every process of it is dead.
func (x *run) stage(ctx context.Context, i int, stage Stage) (StageRecord, error) {
	if stage.Wall > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, stage.Wall, errWall)
		defer cancel()
	}
	l := x.spec.Limits.of(stage)
	if x.left <= 0 {
		return StageRecord{}, x.fail(LimitExceeded, stage, fmt.Sprintf("earlier stages used up all %d bytes of /out", x.spec.Limits.OutputBytes))
	}
	l.OutputBytes = min(l.OutputBytes, x.left)
	if run := x.spec.Limits.CPUTime; run > 0 {
		if x.cpu >= run {
			return StageRecord{}, x.fail(LimitExceeded, stage, fmt.Sprintf("earlier stages used up all %v of CPU time", run))
		}
		l.CPUTime = min(l.CPUTime, run-x.cpu)
	}
	point, err := x.state.mkdir("out", stage.Name)
	if err != nil {
		return StageRecord{}, err
	}
	out, err := newOutFS(x.r.mkfs, filepath.Join(x.spec.Dir, x.state.container(i)+".ext4"), point, l.OutputBytes, x.spec.Variation.UID+buildUID)
	if err != nil {
		return StageRecord{}, err
	}
	b := bundle{spec: x.spec, stage: stage, limits: l, root: x.root, out: out.dir, before: map[string]string{},
		cpus: x.cpus, timeNS: x.r.timeNS, swap: x.r.cgroups.swap}
	for j, o := range x.outs {
		b.before[x.spec.Stages[j].Name] = o.dir
	}
	x.outs = append(x.outs, out)
	dir, err := x.state.mkdir("bundle", stage.Name)
	if err != nil {
		return StageRecord{}, err
	}
	if err := b.write(dir); err != nil {
		return StageRecord{}, err
	}
	begin, logged := time.Now(), x.log.bytes()
	end, err := x.execute(ctx, x.state.container(i), dir, out, l)
	if err != nil {
		var said *runcError
		if errors.As(err, &said) && said.ofBuild(stage.WorkDir) {
			return StageRecord{}, x.fail(BuildFailed, stage, said.said)
		}
		return StageRecord{}, fmt.Errorf("stage %s: %w", stage.Name, err)
	}
	if err := x.judge(stage, l, end); err != nil {
		return StageRecord{}, err
	}
	if err := out.sync(); err != nil {
		return StageRecord{}, fmt.Errorf("stage %s: %w", stage.Name, err)
	}
	x.left -= end.out.bytes
	x.cpu += end.usage.cpu
	return StageRecord{
		Name: stage.Name, Wall: time.Since(begin), CPU: end.usage.cpu, PeakMemory: end.usage.peak,
		OutBytes: end.out.bytes, LogBytes: x.log.bytes() - logged,
	}, nil
}

// ending is how a stage ended.
type ending struct {
	status syscall.WaitStatus
	usage  usage
	out    usedDisk
	excess string // of /out, log or CPU time, in words
	cause  error  // why the context ended, if it did first
}

// execute creates, checks, starts, watches and removes one container.
func (x *run) execute(ctx context.Context, id, bundle string, out *outFS, l Limits) (end ending, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return ending{}, err
	}
	log := startPump(r, x.log)
	defer log.stop()
	c, err := x.r.create(x.state.dir, id, bundle, w)
	w.Close()
	// Whatever create left behind goes, in every case and before outputs are
	// looked at: the container, then cgroups that runc does not know of.
	defer func() {
		if c != nil {
			err = errors.Join(err, c.end())
		}
		if exists(filepath.Join(x.state.dir, "runc", id)) {
			if gone := x.r.destroy(x.state.dir, id); gone != nil {
				err = errors.Join(err, gone)
			}
		}
		if gone := x.r.cgroups.removeGroups(id); gone != nil {
			err = errors.Join(err, gone)
		}
	}()
	if err != nil {
		return ending{}, err
	}
	group, err := x.r.cgroups.container(c.pid, id, l, x.cpus)
	if err != nil {
		return ending{}, fmt.Errorf("refusing to start: %w", err)
	}
	before, err := group.usage() // runc's own start counts against pids and CPU time
	if err != nil {
		return ending{}, err
	}
	if err := c.start(); err != nil {
		return ending{}, err
	}
	used := func() (time.Duration, error) {
		cpu, err := group.cpuTime()
		return cpu - before.cpu, err
	}
	if end.excess, end.cause, err = x.watch(ctx, c, out, used, l); err != nil {
		return ending{}, err
	}
	if err := c.end(); err != nil {
		return ending{}, err
	}
	// By the kernel's rule for pid namespaces none can be left; this looks.
	if err := group.awaitEmpty(); err != nil {
		return ending{}, err
	}
	log.stop()
	end.status = c.status
	if end.usage, err = group.usage(); err != nil {
		return ending{}, err
	}
	end.usage.forkDenied -= before.forkDenied
	end.usage.cpu -= before.cpu
	var excess string
	if end.out, excess, err = out.check(); err != nil {
		return ending{}, err
	}
	end.excess = cmp.Or(end.excess, excess, cpuExcess(end.usage.cpu, l))
	return end, nil
}

// watch returns when the first process died, or when it should.
func (x *run) watch(ctx context.Context, c *container, out *outFS, used func() (time.Duration, error), l Limits) (excess string, cause, err error) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return "", nil, nil
		case <-ctx.Done():
			return "", context.Cause(ctx), nil
		case <-x.log.full:
			return x.logExcess(), nil, nil
		case <-tick.C:
			if _, excess, err = out.check(); excess != "" || err != nil {
				return excess, nil, err
			}
			cpu, err := used()
			if excess = cpuExcess(cpu, l); excess != "" || err != nil {
				return excess, nil, err
			}
		}
	}
}

func cpuExcess(cpu time.Duration, l Limits) string {
	if l.CPUTime == 0 || cpu <= l.CPUTime {
		return ""
	}
	return fmt.Sprintf("its processes used %v of CPU time, the limit is %v", cpu, l.CPUTime)
}

func (x *run) logExcess() string {
	return fmt.Sprintf("the log is longer than %d bytes", x.spec.Limits.LogBytes)
}

// errWall is the cause of a context that ended by a limit of the recipe.
var errWall = errors.New("time limit reached")

// judge turns an ending into a failure, the most telling reason first. A limit
// that was met is a failure even if the stage then exited with status 0: what
// it wrote may depend on where the limit struck.
func (x *run) judge(stage Stage, l Limits, end ending) error {
	select {
	case <-x.log.full:
		end.excess = x.logExcess()
	default:
	}
	switch {
	case end.usage.oomKills > 0:
		return x.fail(LimitExceeded, stage, fmt.Sprintf("the kernel killed %d of its processes at the memory limit of %d bytes", end.usage.oomKills, l.MemoryBytes))
	case end.usage.forkDenied > 0:
		return x.fail(LimitExceeded, stage, fmt.Sprintf("the kernel refused %d new processes or threads at the limit of %d", end.usage.forkDenied, l.Processes))
	case end.excess != "":
		return x.fail(LimitExceeded, stage, end.excess)
	case errors.Is(end.cause, errWall):
		limit := fmt.Sprintf("all stages together may take %v", l.Wall)
		if stage.Wall > 0 && stage.Wall < l.Wall {
			limit = fmt.Sprintf("this stage may take %v", stage.Wall)
		}
		return x.fail(Timeout, stage, "still running at the end of its time: "+limit)
	case end.cause != nil:
		return fmt.Errorf("stage %s: %w", stage.Name, end.cause)
	case end.status.Signaled():
		return x.fail(BuildFailed, stage, fmt.Sprintf("%s was killed by signal %d (%v)", stage.Argv[0], end.status.Signal(), end.status.Signal()))
	case end.status.ExitStatus() != 0:
		return x.fail(BuildFailed, stage, fmt.Sprintf("%s exited with status %d", stage.Argv[0], end.status.ExitStatus()))
	}
	return nil
}

func (x *run) fail(k Kind, stage Stage, detail string) error {
	return &Failure{Kind: k, Stage: stage.Name, Detail: escape([]byte(detail)), LogTail: x.log.text()}
}
