package sandbox

import (
	"context"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A Launcher has jobs run on machines of the operator's: it queues, places and
// ends them. What a job computed is never learnt from it.
type Launcher interface {
	// Submit queues a job and returns the engine's name for it. A job with this
	// Name that is there already is returned, not queued again.
	Submit(context.Context, Job) (id string, err error)
	// Wait returns when a job is over, however it ended, or with an error when
	// the engine cannot be asked any more.
	Wait(ctx context.Context, id string) (Exit, error)
	// Cancel ends a job. That it is over, or unknown, is no error. Its processes
	// may live for a while; Wait tells.
	Cancel(ctx context.Context, id string) error
	// List names the jobs that are not over and whose Name starts with prefix.
	List(ctx context.Context, prefix string) ([]Listed, error)
}

// Job is one command on one machine.
type Job struct {
	Name string   // [a-z0-9-]; no other job of this cluster has it
	Argv []string // absolute paths that the machines have in common
	// Dir is a directory that the machines have in common, for what the
	// Launcher has to write: the job's output goes to JobLog in it.
	Dir string
	// What the engine reserves, and the time after which it may end the job:
	// more than the build's own limits, which the sandbox keeps.
	CPUs        int
	MemoryBytes int64
	Wall        time.Duration
	// NotOn names machines to avoid where there are others.
	NotOn []string
}

// JobLog is what a job prints for people, in Job.Dir.
const JobLog = "job.log"

// Exit is how a job ended, by the engine's account.
type Exit struct {
	// Done is true only if the command was run once and exited with status 0.
	Done bool
	// State is the engine's word, such as PREEMPTED; empty if the engine has
	// forgotten the job.
	State string
	Node  string // empty if it never started
}

// Listed is a job that is not over.
type Listed struct{ ID, Name string }

// Remote runs recipes on other machines of the operator's. Its fields are
// required but Grace.
//
// One Run is one directory in Shared, which the attester (this process) makes
// and removes:
//
//	lock         held by the attester for as long as it lives
//	order.json   the recipe, in strict JSON
//	stages, log  what the node tells while it works
//	job.log      what the job prints for people
//	answer/      renamed into place when it is complete: result.json and, named
//	             by its SHA-256, each output
//
// The attester opens what came back beneath that directory without following
// links, copies it to Spec.Dir and measures the copy. A node that says other
// digests than are measured has given no answer. What no measurement here can
// show is whether the node ran the recipe at all: nodes are machines of the
// operator's own.
//
// A node that is lost, a job that is cancelled or preempted, an answer that is
// missing or malformed: these are errors, and never a Failure of the build.
type Remote struct {
	Launcher Launcher
	// Shared is a directory of root's that all machines have under this
	// absolute path, where only root writes, with working locks. The images and
	// inputs of a Spec must lie below it.
	Shared string
	// Program is the absolute path of clawfs on the nodes.
	Program string
	// Name is for the record, such as "slurm".
	Name string
	// Grace is how long a file may take to be seen here after the job that
	// wrote it ended well; zero means 30 s. Network file systems keep listings
	// of directories for that long.
	Grace time.Duration
}

const (
	// jobPrefix starts the name of every job; the rest is the run.
	jobPrefix = "clawfs-"
	// jobMemory is what a node needs beside the build, for clawfs itself.
	jobMemory = 512 << 20
	// jobWall is how long a node may take beside the build: to copy and hash.
	jobWall = 30 * time.Minute
	// endWait bounds the wait for a cancelled job to be over.
	endWait = 2 * time.Minute
)

// plainPath is a path that needs no quoting anywhere.
var plainPath = regexp.MustCompile(`^(/[A-Za-z0-9._+@=-]+)+$`)

func (r *Remote) check() error {
	switch {
	case r == nil || r.Launcher == nil || r.Name == "":
		return errors.New("no engine to run builds on")
	case !plainPath.MatchString(r.Shared) || filepath.Clean(r.Shared) != r.Shared:
		return fmt.Errorf("shared directory %q: want a clean absolute path of letters, digits and ._+@=-", r.Shared)
	case !plainPath.MatchString(r.Program) || filepath.Clean(r.Program) != r.Program:
		return fmt.Errorf("clawfs on the nodes, %q: want a clean absolute path of letters, digits and ._+@=-", r.Program)
	}
	return nil
}

// String names the engine, for the record.
func (r *Remote) String() string { return r.Name + " with " + r.Shared }

// Run is Runtime.Run on a machine that the engine chooses. The run's id is
// drawn here, and the answer must carry it.
func (r *Remote) Run(ctx context.Context, s Spec) (result Result, err error) {
	if err := r.check(); err != nil {
		return Result{}, fmt.Errorf("sandbox: %w", err)
	}
	if len(s.Variation.CPUs) > 0 {
		return Result{}, errors.New("sandbox: Variation.CPUs numbers this machine's processors, the build runs on another; use OneCPULess")
	}
	if s, err = s.complete(); err != nil {
		return Result{}, fmt.Errorf("sandbox: %w", err)
	}
	if s, err = r.shared(s); err != nil {
		return Result{}, fmt.Errorf("sandbox: %w", err)
	}
	if _, err := r.Sweep(ctx); err != nil {
		return Result{}, err
	}
	begin := time.Now()
	x, err := newExchange(ctx, r.Shared)
	if err != nil {
		return Result{}, fmt.Errorf("sandbox: %w", err)
	}
	result, err = r.exchange(ctx, x, s)
	if ended := r.end(ctx, x); ended != nil {
		err = errors.Join(err, fmt.Errorf("cleaning up: %w", ended))
	}
	if err != nil {
		return Result{}, fmt.Errorf("sandbox: %s: %w", r.Name, err)
	}
	result.Run, result.Wall = x.run, time.Since(begin)
	return result, nil
}

func (r *Remote) exchange(ctx context.Context, x *exchange, s Spec) (Result, error) {
	if err := x.order(s); err != nil {
		return Result{}, err
	}
	id, err := r.Launcher.Submit(ctx, Job{
		Name: jobPrefix + x.run, Argv: []string{r.Program, "build-run", "--spec", filepath.Join(x.dir, orderFile)}, Dir: x.dir,
		CPUs: int(math.Ceil(s.Limits.CPUs)), MemoryBytes: s.Limits.MemoryBytes + jobMemory, Wall: s.Limits.Wall + jobWall,
		NotOn: s.Variation.NotOn,
	})
	if err != nil {
		return Result{}, fmt.Errorf("submitting: %w", err)
	}
	tell := x.follow(s)
	exit, err := r.Launcher.Wait(ctx, id)
	told := tell()
	if err != nil {
		return Result{}, fmt.Errorf("job %s: %w", id, err)
	}
	if ctx.Err() != nil {
		return Result{}, fmt.Errorf("job %s: %w", id, context.Cause(ctx))
	}
	where := nodeName(exit.Node)
	if !exit.Done && exit.State != "" {
		return Result{}, fmt.Errorf("job %s on %s ended as %s and gave no answer%s", id, where, escape([]byte(exit.State)), x.jobTail())
	}
	grace := r.Grace
	if grace == 0 {
		grace = 30 * time.Second
	}
	a, root, err := x.answer(ctx, s, grace)
	if err != nil {
		return Result{}, fmt.Errorf("job %s on %s: %w%s", id, where, err, x.jobTail())
	}
	defer root.Close()
	if exit.Node != "" {
		a.Host.Name = where // what the engine can be asked to avoid
	}
	if a.Failure != nil {
		return Result{}, a.Failure
	}
	if told != nil {
		return Result{}, fmt.Errorf("job %s on %s: its log: %w", id, where, told)
	}
	result, err := x.attest(ctx, s, a, root)
	if err != nil {
		return Result{}, fmt.Errorf("job %s on %s: %w", id, where, err)
	}
	return result, nil
}

// nodeName makes an engine's name of a machine fit for an error and a record.
func nodeName(s string) string {
	switch {
	case s == "":
		return "no machine"
	case !name.MatchString(s):
		return "a machine with a malformed name"
	}
	return s
}

// shared resolves the paths of a Spec and refuses those that nodes do not have.
func (r *Remote) shared(s Spec) (Spec, error) {
	root, err := filepath.EvalSymlinks(r.Shared)
	if err != nil {
		return s, err
	}
	place := func(what, path string) (string, error) {
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			return "", err
		}
		rel, err := filepath.Rel(root, real)
		if err != nil || !filepath.IsLocal(rel) || rel == "." {
			return "", fmt.Errorf("%s is at %s, which the nodes do not have: it must lie below the shared directory %s", what, real, r.Shared)
		}
		return filepath.Join(r.Shared, rel), nil
	}
	if s.Rootfs, err = place("the image", s.Rootfs); err != nil {
		return s, err
	}
	s.Inputs = slices.Clone(s.Inputs)
	for i, in := range s.Inputs {
		if s.Inputs[i].Path, err = place("input "+in.Name, in.Path); err != nil {
			return s, err
		}
	}
	return s, nil
}

// end takes a run off the cluster and away from the shared directory. It also
// finds a job whose submission gave no answer. Where the job cannot be ended
// the directory stays, and a Sweep tries again.
func (r *Remote) end(ctx context.Context, x *exchange) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWait)
	defer cancel()
	if x.ordered() {
		jobs, err := r.Launcher.List(ctx, jobPrefix+x.run)
		if err != nil {
			return errors.Join(err, x.lock.Close())
		}
		for _, j := range jobs {
			if j.Name != jobPrefix+x.run {
				continue
			}
			if err := r.Launcher.Cancel(ctx, j.ID); err != nil {
				return errors.Join(err, x.lock.Close())
			}
			if _, err := r.Launcher.Wait(ctx, j.ID); err != nil {
				return errors.Join(err, x.lock.Close())
			}
		}
	}
	return x.remove(ctx)
}

// Sweep cancels the jobs of dead attesters, removes their directories and those
// that Scratch gave them, and returns the names of what it removed. It leaves
// alone what belongs to a living one, also on another machine.
func (r *Remote) Sweep(ctx context.Context) ([]string, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("sandbox: sweeping: %w", err)
	}
	dead, err := abandoned(ctx, r.Shared)
	if err != nil {
		return nil, fmt.Errorf("sandbox: sweeping: %w", err)
	}
	var swept []string
	var errs []error
	for _, x := range dead {
		if len(errs) > 0 {
			x.lock.Close() // a job that lives may read what is next
			continue
		}
		if err := r.end(ctx, x); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", x.dir, err))
		} else {
			swept = append(swept, strings.TrimPrefix(filepath.Base(x.dir), runPrefix))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return swept, fmt.Errorf("sandbox: sweeping: %w", err)
	}
	return swept, nil
}

// Scratch makes a directory in Shared for the inputs of a Spec. It goes with
// release, or with the Sweep that comes after this process died.
func (r *Remote) Scratch(ctx context.Context) (dir string, release func() error, err error) {
	if err := r.check(); err != nil {
		return "", nil, fmt.Errorf("sandbox: %w", err)
	}
	x, err := newShared(ctx, r.Shared, workPrefix)
	if err != nil {
		return "", nil, fmt.Errorf("sandbox: %w", err)
	}
	return x.dir, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWait)
		defer cancel()
		return x.remove(ctx)
	}, nil
}
