package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/rebuild"
)

// workerPatience is how long a worker may take to take its containers down.
const workerPatience = 5 * time.Second

// newWorkerCommand is what the daemon starts for a job: the only process that
// reads the mint key, and it reads it after both builds are dead.
func newWorkerCommand(a *app) *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:    "worker --job DIR",
		Short:  "Run one rebuild for the daemon",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(c *cobra.Command, _ []string) error {
			unix.Umask(0o077)
			return a.runWorker(c.Context(), dir)
		},
	}
	c.Flags().StringVar(&dir, "job", "", "job `directory`")
	c.MarkFlagRequired("job")
	return c
}

func (a *app) runWorker(ctx context.Context, dir string) error {
	s := a.config()
	if err := s.Check(); err != nil {
		return err
	}
	policy, err := s.LoadPolicy()
	if err != nil {
		return err
	}
	settings, err := s.LoadSettings(os.Geteuid())
	if err != nil {
		return err
	}
	executor, err := newExecutor(settings)
	if err != nil {
		return err
	}
	scratch, release, err := scratchFor(ctx, executor)
	if err != nil {
		return err
	}
	result, err := rebuild.RunJob(ctx, rebuild.JobConfig{
		Dir: dir, Policy: policy.Policy, Executor: executor, Scratch: scratch, MintKey: s.MintKey(),
		Program:  "clawfs " + readVersion().Version,
		Inputs:   a.inputs(settings),
		Validity: time.Duration(settings.Capability.Lifetime),
	})
	if err := errors.Join(err, release()); err != nil {
		return err
	}
	a.notef("%s %s\n", result.Job, result.Verdict)
	return nil
}

// spawnWorker returns how the queue runs a worker: in a session of its own, so
// that a signal to the daemon's terminal does not reach it, and a daemon that
// is killed leaves it to finish; the queue of the next daemon finds its lock
// and its answer. A daemon that ends in order, or cancels the job, ends it.
func (a *app) spawnWorker(log *slog.Logger) rebuild.Spawn {
	return func(ctx context.Context, dir string) error {
		out, err := openLog(filepath.Join(dir, "worker.log"))
		if err != nil {
			return err
		}
		defer out.Close()
		cmd, err := a.selfCommand("worker", "--job", dir)
		if err != nil {
			return err
		}
		cmd.Stdout, cmd.Stderr = out, out
		before, err := out.Seek(0, 2)
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("starting a worker: %w", err)
		}
		log.Info("worker started", "job", filepath.Base(dir), "worker", cmd.Process.Pid)
		dead := make(chan error, 1)
		go func() { dead <- cmd.Wait() }()
		select {
		case err = <-dead:
		case <-ctx.Done():
			err = errors.Join(context.Cause(ctx), endWorker(cmd.Process.Pid, dead))
		}
		if err != nil {
			return fmt.Errorf("worker: %w%s", err, logTail(out.Name(), before))
		}
		return nil
	}
}

// endWorker asks the worker to take its containers down, then kills its whole
// process group. The sandbox of a worker that was killed is swept by the next.
func endWorker(pid int, dead <-chan error) error {
	syscall.Kill(pid, syscall.SIGTERM)
	select {
	case <-dead:
		return nil
	case <-time.After(workerPatience):
	}
	// A session leader's pid is its process group.
	if err := syscall.Kill(-pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("killing worker %d: %w", pid, err)
	}
	<-dead
	return nil
}
