// Package rebuild turns an attestation into a capability, or says why not.
//
// Reproduce fetches a ledger's inputs, checks each against its digest, runs
// the build twice in varied surroundings and compares the outputs. RunJob does
// that in a worker process for one job and lets the mint sign. Queue keeps the
// jobs, starts the workers and admits what they minted.
//
// Every way in which a rebuild can end is a capstore.Verdict; an error that is
// no *Failure means that this machine could not find out, and the job is tried
// again. The two never mix: a full disk is not a build that failed.
package rebuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/rebuild/record"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
)

// imageLimits bounds an unpacked environment image.
var imageLimits = oci.Limits{Bytes: 64 << 30, Entries: 2_000_000}

// maxUnpack bounds the time for it. Links that lead through thousands of
// directories make each entry cost milliseconds (measured: 28 s for 73 entries).
const maxUnpack = time.Hour

// Config is what this machine allows a rebuild. Executor, Dir and Limits are
// required.
type Config struct {
	Executor Executor
	// Dir is the absolute path of a directory for inputs and outputs, readable
	// by nobody else. Reproduce makes one directory in it.
	Dir    string
	Limits sandbox.Limits
	// Cache holds what was fetched. nil makes one below Dir for this rebuild.
	Cache *fetch.Cache
	// Hosts is what the operator gives for reaching others.
	Hosts Hosts
	// Bases are the capabilities of the models that the ledger starts from.
	Bases Bases
	// AllowedEnv are the environment names that a ledger may set; none if nil.
	AllowedEnv []string
	// Log gets what the builds print, escaped. nil drops it.
	Log io.Writer
	// Observer gets progress. nil drops it.
	Observer Observer
}

// SandboxLimits converts the policy's limits.
func SandboxLimits(l verifier.Limits) sandbox.Limits {
	return sandbox.Limits{
		MemoryBytes: l.MemoryBytes, OutputBytes: l.OutputBytes, LogBytes: l.LogBytes,
		Processes: l.Processes, CPUs: l.CPUs, Wall: time.Duration(l.WallSeconds) * time.Second,
	}
}

// Failure is the answer of a rebuild that ran and does not grant.
type Failure struct {
	Verdict   capstore.Verdict
	Detail    string // one sentence: expected, found, what to do
	Diagnosis string // lines for a person: differing outputs, or the end of the log
	// Temporary says of FETCH_FAILED that a later try may find the input.
	Temporary bool

	builds []record.Build // that ran to their end, of a build that failed
}

func (f *Failure) Error() string { return string(f.Verdict) + ": " + f.Detail }

func fail(v capstore.Verdict, format string, args ...any) *Failure {
	return &Failure{Verdict: v, Detail: escape(fmt.Sprintf(format, args...))}
}

// Reproduction holds two equal builds of one ledger until Close.
type Reproduction struct {
	first, second sandbox.Result
	dir           string
	in            inputs
}

// Outputs returns the first build's outputs, in the ledger's order.
func (r *Reproduction) Outputs() []sandbox.Output { return slices.Clone(r.first.Outputs) }

// Builds returns both builds.
func (r *Reproduction) Builds() (first, second sandbox.Result) { return r.first, r.second }

// Close removes inputs and outputs.
func (r *Reproduction) Close() error {
	if r == nil || r.dir == "" {
		return nil
	}
	if err := errors.Join(r.in.close(), removeTree(r.dir)); err != nil {
		return fmt.Errorf("removing the files of a rebuild: %w", err)
	}
	return nil
}

// Reproduce rebuilds l twice. A *Failure is the answer that it cannot be
// granted; any other error, also the context's, is no answer. In both cases
// nothing is left in c.Dir.
func Reproduce(ctx context.Context, c Config, l verifier.Ledger, loc capstore.Locations) (*Reproduction, error) {
	if c.Executor == nil || l.IsZero() || !filepath.IsAbs(c.Dir) {
		return nil, errors.New("rebuilding: executor, ledger and an absolute scratch directory are required")
	}
	st := l.Statement()
	if here, ok := c.Executor.(hosted); ok {
		if err := onHost(here.Host(), st, nil); err != nil {
			return nil, err
		}
	}
	if err := c.Bases.check(st); err != nil {
		return nil, err
	}
	if err := allowed(c, st); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(c.Dir, "rebuild-")
	if err != nil {
		return nil, fmt.Errorf("rebuilding: %w", err)
	}
	r := &Reproduction{dir: dir}
	if err := r.run(ctx, c, l, st, loc); err != nil {
		if f := (*Failure)(nil); errors.As(err, &f) {
			for _, b := range []sandbox.Result{r.first, r.second} {
				if b.Run != "" {
					f.builds = append(f.builds, evidence(b))
				}
			}
		}
		err = errors.Join(err, r.Close())
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return r, nil
}

func (r *Reproduction) run(ctx context.Context, c Config, l verifier.Ledger, st verifier.Statement, loc capstore.Locations) error {
	p := &progress{observe: c.Observer}
	if c.Cache == nil {
		own, err := fetch.Open(filepath.Join(r.dir, "cache"), ownCache, fetch.Options{LocalRoots: []string{"/"}})
		if err != nil {
			return err
		}
		defer own.Close()
		c.Cache = own
	}
	g := &gatherer{cache: c.Cache, hosts: c.Hosts, bases: c.Bases, dir: r.dir, st: st, loc: loc, p: p, within: maxGather}
	err := g.gather(ctx)
	r.in = g.in
	if err != nil {
		return err
	}
	in := g.in
	if here, ok := c.Executor.(hosted); ok {
		if err := onHost(here.Host(), st, in.env); err != nil {
			return err
		}
	}
	if err := g.locked(ctx); err != nil {
		return err
	}
	spec := recipe(c, l, st, in)
	var log io.Writer
	if c.Log != nil {
		// Twice the limit: the escaped text is longer than what was printed.
		log = &logWriter{w: c.Log, left: 4*c.Limits.LogBytes + 4096}
	}
	spec.Log = log
	var began time.Time
	var ran []string // machines
	for i, v := range variations(in.rootfs) {
		if err := sleep(ctx, apart-time.Since(began)); err != nil {
			return err
		}
		began = time.Now()
		spec.Dir = filepath.Join(r.dir, fmt.Sprint("build", i+1))
		if err := os.Mkdir(spec.Dir, 0o700); err != nil {
			return fmt.Errorf("rebuilding: %w", err)
		}
		spec.Variation = v
		spec.Progress = func(stage string) {
			p.say(PhaseBuild, escape(fmt.Sprintf("build %d of 2, stage %s", i+1, stage)), 0)
		}
		spec.Variation.NotOn = ran
		result, err := c.Executor.Run(ctx, spec)
		if err != nil {
			return buildFailure(i+1, err)
		}
		if err := onHost(result.Host, st, in.env); err != nil {
			return onNode(result.Host, err)
		}
		ran = append(ran, result.Host.Name)
		if i == 0 {
			r.first = result
		} else {
			r.second = result
		}
	}
	if err := agree(ctx, r.first, r.second, st, p); err != nil {
		return err
	}
	return notCopied(ctx, in, l, r.first.Outputs)
}

// ownCache bounds in bytes the inputs of a rebuild without a shared cache.
const ownCache = 1 << 50

// apart is the least time between the starts of the two builds, so that a date
// in an output shows: zip members carry it in steps of two seconds. A variable
// for the test that kills a hundred jobs, which would mostly hit this sleep.
var apart = 2100 * time.Millisecond

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// recipe lays out what both builds have in common.
func recipe(c Config, l verifier.Ledger, st verifier.Statement, in inputs) sandbox.Spec {
	params, want := st.Predicate.BuildDefinition.ExternalParameters, st.Predicate.Platform
	spec := sandbox.Spec{
		Recipe: l.Digest(), Rootfs: in.rootfs, Inputs: in.mounts, Limits: c.Limits, Env: make(map[string]string),
		Needs: sandbox.Needs{OS: want.OS, Arch: want.Arch, CPUFeatures: want.CPUFeatures},
	}
	for _, e := range in.env {
		if name, value, ok := strings.Cut(e, "="); ok {
			spec.Env[name] = value
		}
	}
	maps.Copy(spec.Env, params.Env)
	for _, g := range params.Stages {
		spec.Stages = append(spec.Stages, sandbox.Stage{
			Name: g.Name, Argv: g.Argv, Env: g.Env, WorkDir: g.WorkDir, Wall: time.Duration(g.TimeoutSeconds) * time.Second,
			Limits: stageLimits(g.Limits), Artifacts: g.Artifacts,
		})
	}
	for _, o := range params.Outputs {
		spec.Outputs = append(spec.Outputs, sandbox.Wanted{Name: o.Name, Path: o.Path})
	}
	return spec
}

func stageLimits(l *verifier.StageLimits) sandbox.StageLimits {
	if l == nil {
		return sandbox.StageLimits{}
	}
	return sandbox.StageLimits{
		MemoryBytes: l.MemoryBytes, Processes: l.Processes, OutputBytes: l.OutputBytes, CPUTime: time.Duration(l.CPUSeconds) * time.Second,
	}
}

// variations are the surroundings of the two builds. The second has one
// processor less where there are two, and another machine where the executor
// has several.
//
// BUG: inputs larger than sandbox.Variation.ReverseInputs allows list in the
// same order for both builds.
func variations(rootfs string) [2]sandbox.Variation {
	return [2]sandbox.Variation{
		{Hostname: "build", WorkDir: freeDir(rootfs, "work"), UID: 1 << 30},
		{Hostname: "rebuilder-2", WorkDir: freeDir(rootfs, "again") + "/work", UID: 1<<30 + 1<<20, OneCPULess: true, ReverseEnv: true, ReverseInputs: true, Uptime: 37*24*time.Hour + 11*time.Hour},
	}
}

// freeDir returns the first of /name, /name-1, … that the image does not have:
// the sandbox puts an empty directory there.
func freeDir(rootfs, name string) string {
	dir := "/" + name
	for i := 1; ; i++ {
		if _, err := os.Lstat(filepath.Join(rootfs, dir)); err != nil {
			return dir
		}
		dir = fmt.Sprintf("/%s-%d", name, i)
	}
}

// onNode says of which machine a failure is.
func onNode(h sandbox.Host, err error) error {
	var f *Failure
	if errors.As(err, &f) {
		f.Detail = escape("on "+h.Name+": ") + f.Detail
	}
	return err
}

// buildFailure translates what the sandbox says about the build; what it says
// about this host stays an error.
func buildFailure(build int, err error) error {
	var f *sandbox.Failure
	if !errors.As(err, &f) {
		return fmt.Errorf("build %d of 2: %w", build, err)
	}
	verdict, known := map[sandbox.Kind]capstore.Verdict{
		sandbox.BuildFailed: capstore.BuildFailed, sandbox.Timeout: capstore.Timeout,
		sandbox.LimitExceeded: capstore.LimitExceeded, sandbox.OutputMissing: capstore.OutputMissing,
		sandbox.NotComparable: capstore.NotComparable,
	}[f.Kind]
	if !known {
		return fmt.Errorf("build %d of 2: %w", build, err)
	}
	out := fail(verdict, "build %d of 2: %v", build, f)
	out.Diagnosis = escape(f.LogTail)
	return out
}

// allowed checks what the policy says about environment names and time.
func allowed(c Config, st verifier.Statement) error {
	params := st.Predicate.BuildDefinition.ExternalParameters
	check := func(where string, env map[string]string) error {
		for _, name := range slices.Sorted(maps.Keys(env)) {
			if !slices.Contains(c.AllowedEnv, name) {
				return fail(capstore.PolicyRefused, "%s sets the variable %q, which the policy's builds.env does not allow", where, name)
			}
		}
		return nil
	}
	if err := check("the ledger", params.Env); err != nil {
		return err
	}
	for _, g := range params.Stages {
		if err := check(fmt.Sprintf("stage %q", g.Name), g.Env); err != nil {
			return err
		}
		if wall := time.Duration(g.TimeoutSeconds) * time.Second; wall < 0 || wall > c.Limits.Wall {
			return fail(capstore.PolicyRefused, "stage %q asks for %v, the policy's builds.limits allow %v", g.Name, wall, c.Limits.Wall)
		}
		l := stageLimits(g.Limits)
		for _, f := range []struct {
			name       string
			asks, most int64
		}{
			{"memoryBytes", l.MemoryBytes, c.Limits.MemoryBytes}, {"processes", l.Processes, c.Limits.Processes},
			{"outputBytes", l.OutputBytes, c.Limits.OutputBytes},
		} {
			if f.asks > f.most {
				return fail(capstore.PolicyRefused, "stage %q asks for %s %d, the policy's builds.limits allow %d", g.Name, f.name, f.asks, f.most)
			}
		}
		if err := l.Check(c.Limits); err != nil { // too little for any container
			return fail(capstore.PolicyRefused, "stage %q: %v", g.Name, err)
		}
	}
	return nil
}
