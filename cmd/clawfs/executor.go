package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/rebuild/engine/slurm"
	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/rebuild/sandbox"
)

// newExecutor is where the builds of jobs run.
func newExecutor(s config.Settings) (rebuild.Executor, error) {
	if s.Build.Executor != "slurm" {
		return findRuntime(s)
	}
	c := s.Build.Slurm
	if c.Commands == "" {
		sbatch, err := exec.LookPath("sbatch")
		if errors.Is(err, exec.ErrNotFound) {
			return nil, errors.New("build.executor is slurm, and sbatch is not on PATH; next: apt-get install slurm-client, or set build.slurm.commands in clawfs.toml")
		}
		if err == nil {
			sbatch, err = filepath.Abs(sbatch)
		}
		if err != nil {
			return nil, fmt.Errorf("sbatch: %w", err)
		}
		c.Commands = filepath.Dir(sbatch)
	}
	l, err := slurm.New(slurm.Config{Commands: c.Commands, Conf: c.Conf, Partition: c.Partition, Args: c.SbatchArgs})
	if err != nil {
		return nil, fmt.Errorf("build.%w", err)
	}
	return &sandbox.Remote{Launcher: l, Shared: c.SharedDir, Program: c.Clawfs, Name: "slurm"}, nil
}

// scratchFor makes a directory for a job's inputs that the executor's machines
// have; "" where the job's own will do.
func scratchFor(ctx context.Context, e rebuild.Executor) (dir string, release func() error, err error) {
	if r, ok := e.(*sandbox.Remote); ok {
		return r.Scratch(ctx)
	}
	return "", func() error { return nil }, nil
}

// inputs are the settings for fetching what ledgers name. A cluster's nodes read
// the cache too.
func (a *app) inputs(s config.Settings) rebuild.Inputs {
	f := s.Fetch
	dir := f.CacheDir
	if dir == "" && s.Build.Executor == "slurm" {
		dir = filepath.Join(s.Build.Slurm.SharedDir, "cache")
	} else if dir == "" {
		dir = a.config().Cache()
	}
	in := rebuild.Inputs{
		Dir: dir, Budget: int64(f.CacheBytes),
		Options: fetch.Options{Hosts: f.Hosts, LocalRoots: f.LocalRoots},
		Hosts: rebuild.Hosts{
			Git:          rebuild.Access{CAFile: f.GitCA, KeyFile: f.SSHKey, KnownHosts: f.SSHKnownHosts},
			DockerConfig: f.DockerConfig, PlainHTTP: f.PlainHTTP,
		},
	}
	for _, m := range f.Mirrors {
		in.Options.Mirrors = append(in.Options.Mirrors, fetch.Mirror{Prefix: m.Prefix, URLs: m.URLs})
	}
	return in
}
