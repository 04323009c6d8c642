package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/verifier"
)

// rebuildFlags are what `ledger check` and `validate` share: where the inputs
// are and where the build's own output goes.
type rebuildFlags struct {
	source, image, lockfile, log, work string
	datasets, models, inputs           []string
}

func (v *rebuildFlags) register(c *cobra.Command) {
	v.registerPlaces(c)
	f := c.Flags()
	f.StringVar(&v.log, "log", "", "`file` for what the builds print, - for standard error")
	f.StringVar(&v.work, "work", "", "scratch `directory` for inputs and outputs (default below $TMPDIR)")
}

// registerPlaces are the flags that say where the inputs are. Where one is
// given, nothing else is tried for that input.
func (v *rebuildFlags) registerPlaces(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&v.source, "source", "", "git repository or bundle, path or URL, to fetch the commit from (default the ledger's URI)")
	f.StringArrayVar(&v.datasets, "dataset", nil, "`NAME=WHERE` a dataset is: directory, tar or zip, path, URL or oci:// artifact (repeat; default the ledger's URIs)")
	f.StringVar(&v.image, "image", "", "`where` the environment is: OCI image layout directory, archive, or oci://registry/name (default the ledger's URIs)")
	f.StringVar(&v.lockfile, "lockfile", "", "the lockfile, path or URL (default the ledger's URIs)")
	f.StringArrayVar(&v.models, "model", nil, "`NAME=DIR` where the files of a model are that the build starts from (repeat; default the ledger's URIs)")
	f.StringArrayVar(&v.inputs, "input", nil, "`submodule:PATH=WHERE` or lfs:PATH=WHERE (repeat; default the ledger's URIs)")
}

// locations are the flags as the worker wants them: absolute paths, or URLs.
func (v *rebuildFlags) locations() (capstore.Locations, error) {
	loc := capstore.Locations{Datasets: map[string]string{}}
	dirs, err := parsePairs("--dataset", v.datasets)
	if err != nil {
		return loc, err
	}
	for name, dir := range dirs {
		if loc.Datasets[name], err = absolute(dir); err != nil {
			return loc, err
		}
	}
	models, err := parsePairs("--model", v.models)
	if err != nil {
		return loc, err
	}
	inputs, err := parsePairs("--input", v.inputs)
	if err != nil {
		return loc, err
	}
	for name, dir := range models {
		if inputs == nil {
			inputs = make(map[string]string)
		}
		inputs[verifier.ModelPrefix+name] = dir
	}
	for name, where := range inputs {
		if inputs[name], err = absolute(where); err != nil {
			return loc, err
		}
	}
	loc.Inputs = inputs
	for _, f := range []struct {
		value string
		field *string
	}{{v.source, &loc.Source}, {v.image, &loc.Image}, {v.lockfile, &loc.Lockfile}} {
		if *f.field, err = absolute(f.value); err != nil {
			return loc, err
		}
	}
	return loc, nil
}

// known refuses a location of an input that the ledger does not have: a
// mistyped name would be ignored otherwise.
func known(st verifier.Statement, loc capstore.Locations) error {
	sets := st.Datasets()
	for name := range loc.Datasets {
		if _, ok := sets[name]; !ok {
			return exitf(codeUsage, "--dataset %s: the ledger has no such dataset, but %q", name, slices.Sorted(maps.Keys(sets)))
		}
	}
	for name := range loc.Inputs {
		if !st.HasInput(name) {
			return exitf(codeUsage, "%s: the ledger has no such input; next: clawfs ledger inspect FILE", name)
		}
	}
	if _, ok := st.Lockfile(); !ok && loc.Lockfile != "" {
		return exitf(codeUsage, "--lockfile: the ledger has none")
	}
	return nil
}

// absolute makes a path absolute and leaves URLs and "" alone.
func absolute(where string) (string, error) {
	if where == "" || strings.Contains(where, "://") {
		return where, nil
	}
	return filepath.Abs(where)
}

// builds are the limits for builds started by hand: the policy's, where there
// is a state directory, else the ones that init writes.
func (a *app) builds() (verifier.Builds, error) {
	if _, err := os.Lstat(config.State(a.state).Policy()); errors.Is(err, fs.ErrNotExist) {
		return defaultBuilds(), nil
	}
	p, err := a.readPolicy()
	if err != nil {
		return verifier.Builds{}, err
	}
	return p.Builds, nil
}

// reproduce rebuilds l twice in this process, without daemon, store or key.
// The caller calls the function that it returns when it needs the outputs no
// more. An error carries its exit code.
func (a *app) reproduce(ctx context.Context, l verifier.Ledger, v rebuildFlags) (*rebuild.Reproduction, func(), error) {
	loc, err := v.locations()
	if err != nil {
		return nil, nil, err
	}
	if err := known(l.Statement(), loc); err != nil {
		return nil, nil, err
	}
	bases, err := a.bases(ctx, l.Statement())
	if err != nil {
		return nil, nil, rebuildError(err)
	}
	builds, err := a.builds()
	if err != nil {
		return nil, nil, err
	}
	settings, err := config.State(a.state).LoadSettings(os.Geteuid())
	if err != nil {
		return nil, nil, err
	}
	// Here, whatever build.executor says: what is tried by hand is tried on
	// this machine.
	runtime, err := findRuntime(settings)
	if err != nil {
		return nil, nil, err
	}
	scratch, err := os.MkdirTemp(v.work, "clawfs-rebuild-")
	if err != nil {
		return nil, nil, err
	}
	if scratch, err = filepath.Abs(scratch); err != nil {
		return nil, nil, err
	}
	log, closeLog, err := a.openLog(v.log)
	if err != nil {
		removeTree(scratch)
		return nil, nil, err
	}
	bar := a.progress("")
	inputs := a.inputs(settings)
	inputs.Dir = filepath.Join(scratch, "cache") // what is tried by hand is not kept
	cache, err := inputs.Open(func(n fetch.Note) {
		if n.Event == fetch.Lied || n.Event == fetch.Failed {
			a.notef("fetch: %s\n", printable(n.String()))
		}
	})
	if err != nil {
		removeTree(scratch)
		return nil, nil, errors.Join(err, closeLog())
	}
	defer cache.Close()
	r, err := rebuild.Reproduce(ctx, rebuild.Config{
		Cache: cache, Hosts: inputs.Hosts,
		Executor: runtime, Dir: scratch, Limits: rebuild.SandboxLimits(builds.Limits),
		Bases: bases, AllowedEnv: builds.Env, Log: log, Observer: bar.observe,
	}, l, loc)
	bar.done()
	err = errors.Join(err, closeLog())
	if err != nil {
		r.Close()
		removeTree(scratch)
		return nil, nil, rebuildError(err)
	}
	return r, func() { r.Close(); removeTree(scratch) }, nil
}

func (a *app) openLog(path string) (io.Writer, func() error, error) {
	switch path {
	case "":
		return nil, func() error { return nil }, nil
	case "-":
		return a.stderr, func() error { return nil }, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("--log: %w", err)
	}
	return f, f.Close, nil
}

// rebuildError gives the error of a rebuild its exit code.
func rebuildError(err error) error {
	var f *rebuild.Failure
	if errors.As(err, &f) {
		return exit(verdictCode(f.Verdict), err)
	}
	return fmt.Errorf("rebuilding: %w", err)
}
