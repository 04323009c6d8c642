// Package slurm has builds run by a Slurm cluster, through the commands that
// every Slurm has: sbatch, squeue, sinfo and scancel. There is no accounting
// to set up and no library to match with the cluster's release.
//
// No text reaches a shell: the job script is constant and gets the command as
// its arguments. The commands get an environment of their own, so that no
// SBATCH_* variable changes a job, and jobs get none of it.
package slurm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/openclaw/clawfs/rebuild/sandbox"
)

// Config is what the operator says about the cluster.
type Config struct {
	// Commands is the absolute path of the directory with sbatch.
	Commands string
	// Conf is the absolute path of slurm.conf; empty: where the commands look.
	Conf string
	// Partition is where jobs go; empty: the cluster's default.
	Partition string
	// Args are more options of sbatch, such as "--account=models". Those that
	// New does not know are refused: they could run a job twice, or elsewhere.
	Args []string
	// Poll is how often the cluster is asked about a job that is not young;
	// zero means 2 s.
	Poll time.Duration
	// Patience is how long it may fail to answer before a job counts as lost;
	// zero means 5 min, which a controller takes to restart.
	Patience time.Duration
	// Queue is how long a job may wait for its machine; zero means 24 h. Slurm
	// lets jobs wait for ever that no machine can run.
	Queue time.Duration
}

// Launcher is a sandbox.Launcher.
type Launcher struct{ c Config }

var (
	arg       = regexp.MustCompile(`^--(account|qos|constraint|reservation|nice|nodelist)=[A-Za-z0-9._,:&|()*\[\]-]{1,256}$`)
	partition = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._,-]{0,255}$`)
	jobName   = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)
	jobID     = regexp.MustCompile(`^[0-9]{1,20}$`)
	nodeName  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

const (
	maxText     = 16 << 20 // bytes that a command may print
	maxErrors   = 4 << 10  // bytes of its error that are shown
	commandTime = time.Minute
	// firstPoll is half of the first pause: a worker that is told to end has
	// seconds to see its job cancelled.
	firstPoll = 50 * time.Millisecond
)

// New refuses a Config that this package cannot keep.
func New(c Config) (*Launcher, error) {
	if !filepath.IsAbs(c.Commands) {
		return nil, fmt.Errorf("slurm: directory of sbatch %q: not an absolute path", c.Commands)
	}
	for _, name := range []string{"sbatch", "squeue", "sinfo", "scancel"} {
		if fi, err := os.Stat(filepath.Join(c.Commands, name)); err != nil {
			return nil, fmt.Errorf("slurm: %w; apt-get install slurm-client", err)
		} else if !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 {
			return nil, fmt.Errorf("slurm: %s is not a program", filepath.Join(c.Commands, name))
		}
	}
	if c.Conf != "" && !filepath.IsAbs(c.Conf) {
		return nil, fmt.Errorf("slurm: slurm.conf %q: not an absolute path", c.Conf)
	}
	if c.Partition != "" && !partition.MatchString(c.Partition) {
		return nil, fmt.Errorf("slurm: partition %q is malformed", c.Partition)
	}
	for _, a := range c.Args {
		if !arg.MatchString(a) {
			return nil, fmt.Errorf("slurm: option %q of sbatch: want --account=, --qos=, --constraint=, --reservation=, --nice= or --nodelist= with a plain value", a)
		}
	}
	if c.Poll <= 0 {
		c.Poll = 2 * time.Second
	}
	if c.Patience <= 0 {
		c.Patience = 5 * time.Minute
	}
	if c.Queue <= 0 {
		c.Queue = 24 * time.Hour
	}
	return &Launcher{c}, nil
}

// script gets the command as its arguments.
const script = "#!/bin/sh\nexec \"$@\"\n"

// Submit is sandbox.Launcher's.
func (l *Launcher) Submit(ctx context.Context, j sandbox.Job) (string, error) {
	if !jobName.MatchString(j.Name) || len(j.Argv) == 0 || !filepath.IsAbs(j.Argv[0]) {
		return "", fmt.Errorf("slurm: job %q with command %q is malformed", j.Name, j.Argv)
	}
	// A % would start one of Slurm's own patterns for file names.
	if !filepath.IsAbs(j.Dir) || strings.ContainsAny(j.Dir, "%\\\n") {
		return "", fmt.Errorf("slurm: job directory %q is malformed", j.Dir)
	}
	if j.CPUs < 1 || j.MemoryBytes < 1 || j.Wall <= 0 {
		return "", fmt.Errorf("slurm: job %s asks for %d processors, %d bytes and %v", j.Name, j.CPUs, j.MemoryBytes, j.Wall)
	}
	path := filepath.Join(j.Dir, "job.sh")
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		return "", fmt.Errorf("slurm: %w", err)
	}
	exclude, err := l.exclude(ctx, j.NotOn)
	if err != nil {
		return "", err
	}
	for {
		id, err := l.named(ctx, j.Name)
		if id != "" || err != nil {
			return id, err
		}
		text, err := l.run(ctx, "sbatch", l.argv(j, path, exclude)...)
		if err == nil {
			return parseID(text)
		}
		if exclude == "" || ctx.Err() != nil {
			return "", err
		}
		exclude = "" // the other machines do not fit: the record will show one twice
	}
}

// argv is sbatch's. The operator's options come first, because the last of two
// equal ones counts.
func (l *Launcher) argv(j sandbox.Job, script, exclude string) []string {
	argv := slices.Clone(l.c.Args)
	if l.c.Partition != "" {
		argv = append(argv, "--partition="+l.c.Partition)
	}
	if exclude != "" {
		argv = append(argv, "--exclude="+exclude)
	}
	argv = append(argv,
		"--parsable", "--export=NONE", "--no-requeue", "--nodes=1", "--ntasks=1", "--chdir=/", "--input=/dev/null", "--open-mode=truncate",
		"--job-name="+j.Name,
		"--output="+filepath.Join(j.Dir, sandbox.JobLog),
		fmt.Sprintf("--cpus-per-task=%d", j.CPUs),
		fmt.Sprintf("--mem=%dM", (j.MemoryBytes+1<<20-1)>>20),
		fmt.Sprintf("--time=%d", (j.Wall+time.Minute-1)/time.Minute),
		script)
	return append(argv, j.Argv...)
}

// exclude names the machines of a list that are worth avoiding: all of them
// while others are up.
func (l *Launcher) exclude(ctx context.Context, notOn []string) (string, error) {
	notOn = slices.DeleteFunc(slices.Clone(notOn), func(n string) bool { return !nodeName.MatchString(n) })
	if len(notOn) == 0 {
		return "", nil
	}
	argv := []string{"--noheader", "--Node", "--responding", "--format=%N|%T"}
	if l.c.Partition != "" {
		argv = append(argv, "--partition="+l.c.Partition)
	}
	text, err := l.run(ctx, "sinfo", argv...)
	if err != nil {
		return "", err
	}
	nodes, err := parseNodes(text)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(nodes, func(n string) bool { return !slices.Contains(notOn, n) }) {
		return "", nil
	}
	return strings.Join(notOn, ","), nil
}

// Wait is sandbox.Launcher's.
func (l *Launcher) Wait(ctx context.Context, id string) (sandbox.Exit, error) {
	if !jobID.MatchString(id) {
		return sandbox.Exit{}, fmt.Errorf("slurm: job %q is no number", id)
	}
	answered, waits := time.Now(), time.Now()
	pause := firstPoll
	for {
		jobs, err := l.jobs(ctx)
		switch {
		case ctx.Err() != nil:
			return sandbox.Exit{}, context.Cause(ctx)
		case err != nil && time.Since(answered) > l.c.Patience:
			return sandbox.Exit{}, fmt.Errorf("no answer of the cluster for %v: %w", l.c.Patience, err)
		case err == nil:
			answered = time.Now()
			i := slices.IndexFunc(jobs, func(j job) bool { return j.id == id })
			if i < 0 {
				return sandbox.Exit{}, nil
			}
			if over, err := jobs[i].over(); err != nil {
				return sandbox.Exit{}, err
			} else if over {
				return sandbox.Exit{Done: jobs[i].state == "COMPLETED", State: jobs[i].state, Node: jobs[i].node}, nil
			}
			if jobs[i].state != "PENDING" {
				waits = time.Now()
			} else if time.Since(waits) > l.c.Queue {
				return sandbox.Exit{}, fmt.Errorf("no machine for %v (%.64q); next: squeue --me --long", l.c.Queue, jobs[i].reason)
			}
		}
		pause = min(2*pause, l.c.Poll)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return sandbox.Exit{}, context.Cause(ctx)
		}
	}
}

// Cancel is sandbox.Launcher's. Slurm sends SIGTERM and, KillWait later,
// SIGKILL.
func (l *Launcher) Cancel(ctx context.Context, id string) error {
	if !jobID.MatchString(id) {
		return fmt.Errorf("slurm: job %q is no number", id)
	}
	_, err := l.run(ctx, "scancel", id)
	return err
}

// List is sandbox.Launcher's.
func (l *Launcher) List(ctx context.Context, prefix string) ([]sandbox.Listed, error) {
	jobs, err := l.jobs(ctx)
	if err != nil {
		return nil, err
	}
	var list []sandbox.Listed
	for _, j := range jobs {
		if !strings.HasPrefix(j.name, prefix) {
			continue
		}
		if over, err := j.over(); err != nil {
			return nil, err
		} else if !over {
			list = append(list, sandbox.Listed{ID: j.id, Name: j.name})
		}
	}
	return list, nil
}

// named returns the job with a name, over or not; empty if there is none.
func (l *Launcher) named(ctx context.Context, name string) (string, error) {
	jobs, err := l.jobs(ctx)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(jobs, func(j job) bool { return j.name == name })
	if i < 0 {
		return "", nil
	}
	return jobs[i].id, nil
}

// jobs are this user's, also those that ended not long ago (MinJobAge).
func (l *Launcher) jobs(ctx context.Context) ([]job, error) {
	text, err := l.run(ctx, "squeue", "--noheader", "--me", "--states=all", "--format=%A|%T|%N|%r|%j")
	if err != nil {
		return nil, err
	}
	return parseJobs(text)
}

// run runs a command of Slurm and returns what it printed.
func (l *Launcher) run(ctx context.Context, name string, argv ...string) (string, error) {
	limited, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	cmd := exec.CommandContext(limited, filepath.Join(l.c.Commands, name), argv...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	if l.c.Conf != "" {
		cmd.Env = append(cmd.Env, "SLURM_CONF="+l.c.Conf)
	}
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	out, errs := &bounded{left: maxText}, &bounded{left: maxErrors, drop: true}
	cmd.Stdout, cmd.Stderr = out, errs
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case limited.Err() != nil:
		return "", fmt.Errorf("slurm: %s gave no answer in %v", name, commandTime)
	case out.left < 0:
		return "", fmt.Errorf("slurm: %s printed more than %d bytes", name, maxText)
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("slurm: %w; apt-get install slurm-client", err)
	case err != nil:
		return "", fmt.Errorf("slurm: %s: %w: %s", name, err, strings.TrimSpace(fmt.Sprintf("%q", errs.text.String())))
	}
	return out.text.String(), nil
}

// bounded keeps what fits, and fails or drops what does not.
type bounded struct {
	text bytes.Buffer
	left int
	drop bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 && !b.drop {
		return 0, errors.New("too long")
	}
	if keep := len(p) + min(b.left, 0); keep > 0 {
		b.text.Write(p[:keep])
	}
	return len(p), nil
}
