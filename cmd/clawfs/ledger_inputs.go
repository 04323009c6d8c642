package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/pflag"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
)

// inputFlags are the flags of `ledger new` for what not every ledger has.
type inputFlags struct {
	models, submodules, largeFiles, uris, mirrors []string
	lockFormat, lockExtras                        string
	artifacts, limits, timeouts                   []string
	cpuDispatch                                   string
}

func (v *inputFlags) register(f *pflag.FlagSet) {
	f.StringArrayVar(&v.models, "model-input", nil, "`NAME=MODEL` that the build starts from, at /in/model/NAME: its claim, a capability's id, or owner/name of a live one (repeat)")
	f.StringArrayVar(&v.submodules, "submodule", nil, "`PATH=DIR[@commit]` of a git submodule of the source (repeat)")
	f.StringArrayVar(&v.largeFiles, "lfs", nil, "`PATH=FILE` that git LFS keeps for the source (repeat)")
	f.StringArrayVar(&v.uris, "input-uri", nil, "where others find one of those: `model:NAME=URI`, submodule:PATH=URI, lfs:PATH=URI (repeat)")
	f.StringArrayVar(&v.mirrors, "mirror", nil, "another place of an input: `INPUT=URI`, such as dataset:corpus=https://… (repeat)")
	f.StringVar(&v.lockFormat, "lock-format", "", "compare the image with the lockfile, which is in this `format`: "+strings.Join(verifier.LockFormats, ", "))
	f.StringVar(&v.lockExtras, "lock-extras", "", "whether the image may have packages that the lockfile does not name: refused or allowed")
	f.StringArrayVar(&v.artifacts, "artifact", nil, "`STAGE=PATH` below the /out of a stage that every rebuild has to repeat (repeat)")
	f.StringArrayVar(&v.limits, "stage-limit", nil, "`'STAGE: memory=2GiB cpu=10m processes=64 output=1GiB'`, any of them (repeat)")
	f.StringArrayVar(&v.timeouts, "stage-timeout", nil, "`STAGE=DURATION` (repeat)")
	f.StringVar(&v.cpuDispatch, "cpu-dispatch", "", "exact: the bytes depend on a processor having the --cpu-features and no others to choose code by; any: they do not")
}

// setStages applies what flags say of stages that are there.
func (v inputFlags) setStages(x *verifier.ExternalParameters) error {
	find := func(flag, name string) (*verifier.Stage, error) {
		i := slices.IndexFunc(x.Stages, func(g verifier.Stage) bool { return g.Name == name })
		if i < 0 {
			return nil, exitf(codeUsage, "%s: there is no stage %q", flag, name)
		}
		return &x.Stages[i], nil
	}
	cleared := make(map[string]bool)
	for _, word := range v.artifacts {
		name, path, ok := strings.Cut(word, "=")
		if !ok || path == "" {
			return exitf(codeUsage, "--artifact %q: want STAGE=PATH", word)
		}
		g, err := find("--artifact", name)
		if err != nil {
			return err
		}
		if !cleared[name] {
			g.Artifacts, cleared[name] = nil, true
		}
		g.Artifacts = append(g.Artifacts, path)
	}
	for _, text := range v.limits {
		name, words, ok := strings.Cut(text, ":")
		if !ok {
			return exitf(codeUsage, "--stage-limit %q: want 'STAGE: memory=2GiB cpu=10m'", text)
		}
		g, err := find("--stage-limit", strings.TrimSpace(name))
		if err != nil {
			return err
		}
		if g.Limits, err = parseLimits(words); err != nil {
			return exitf(codeUsage, "--stage-limit %q: %w", text, err)
		}
	}
	timeouts, err := parsePairs("--stage-timeout", v.timeouts)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(timeouts)) {
		g, err := find("--stage-timeout", name)
		if err != nil {
			return err
		}
		if g.TimeoutSeconds, err = parseSeconds(timeouts[name]); err != nil {
			return exitf(codeUsage, "--stage-timeout %s: %w", name, err)
		}
	}
	return nil
}

func parseLimits(words string) (*verifier.StageLimits, error) {
	var l verifier.StageLimits
	for _, word := range strings.Fields(words) {
		name, value, _ := strings.Cut(word, "=")
		var err error
		switch name {
		case "memory":
			l.MemoryBytes, err = parseBytes(value)
		case "output":
			l.OutputBytes, err = parseBytes(value)
		case "cpu":
			l.CPUSeconds, err = parseSeconds(value)
		case "processes":
			if l.Processes, err = strconv.ParseInt(value, 10, 64); err != nil || l.Processes < 1 {
				err = fmt.Errorf("%q is not a number of processes", value)
			}
		default:
			err = fmt.Errorf("want memory, cpu, processes or output, got %q", name)
		}
		if err != nil {
			return nil, err
		}
	}
	return &l, nil
}

func parseBytes(text string) (int64, error) {
	n, err := humanize.ParseBytes(text)
	if err != nil || n == 0 || n > 1<<52 {
		return 0, fmt.Errorf("%q is not a number of bytes such as 2GiB", text)
	}
	return int64(n), nil
}

func parseSeconds(text string) (int64, error) {
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second || d%time.Second != 0 {
		return 0, fmt.Errorf("%q is not a whole number of seconds such as 10m", text)
	}
	return int64(d / time.Second), nil
}

// setInputs adds the dependencies that flags name; set replaces one of the same
// name.
func (a *app) setInputs(ctx context.Context, v inputFlags, set func(verifier.Dependency)) error {
	uris, err := parsePairs("--input-uri", v.uris)
	if err != nil {
		return err
	}
	used := make(map[string]bool)
	add := func(d verifier.Dependency, local string) {
		if uri, ok := uris[d.Name]; ok {
			d.URI, used[d.Name] = uri, true
		} else if local != "" {
			d.URI = local
		}
		set(d)
	}
	models, err := parsePairs("--model-input", v.models)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(models)) {
		claim, err := a.findClaim(ctx, models[name])
		if err != nil {
			return fmt.Errorf("--model-input %s: %w", name, err)
		}
		add(verifier.Dependency{Name: verifier.ModelPrefix + name, Digest: verifier.DigestSet{ClawfsClaim1: claim}}, "")
	}
	submodules, err := parsePairs("--submodule", v.submodules)
	if err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(submodules)) {
		d, err := a.sourceDependency(ctx, submodules[path], "")
		if err != nil {
			return fmt.Errorf("--submodule %s: %w", path, err)
		}
		d.Name = verifier.SubmodulePrefix + path
		add(d, d.URI)
	}
	files, err := parsePairs("--lfs", v.largeFiles)
	if err != nil {
		return err
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		m, err := measurePath(ctx, files[path], nil)
		if err != nil {
			return fmt.Errorf("--lfs %s: %w", path, err)
		}
		local, err := localURI(files[path], "")
		if err != nil {
			return err
		}
		add(verifier.Dependency{
			Name: verifier.LFSPrefix + path, Digest: verifier.DigestSet{SHA256: m.Sum().Claim()},
			Annotations: &verifier.Annotations{Bytes: m.Size()},
		}, local)
	}
	for name := range uris {
		if !used[name] {
			return exitf(codeUsage, "--input-uri %s: no --model-input, --submodule or --lfs of that name", name)
		}
	}
	return nil
}

// annotate adds mirrors and the lockfile's format to dependencies that are there.
func (v inputFlags) annotate(deps []verifier.Dependency) error {
	at := func(flag, name string) (*verifier.Annotations, error) {
		i := slices.IndexFunc(deps, func(d verifier.Dependency) bool { return d.Name == name })
		if i < 0 {
			return nil, exitf(codeUsage, "%s: the ledger has no input %q", flag, name)
		}
		if deps[i].Annotations == nil {
			deps[i].Annotations = &verifier.Annotations{}
		}
		return deps[i].Annotations, nil
	}
	for _, word := range v.mirrors {
		name, uri, ok := strings.Cut(word, "=")
		if !ok || uri == "" {
			return exitf(codeUsage, "--mirror %q: want INPUT=URI", word)
		}
		a, err := at("--mirror", name)
		if err != nil {
			return err
		}
		a.Mirrors = append(a.Mirrors, uri)
	}
	if v.lockFormat == "" && v.lockExtras == "" {
		return nil
	}
	a, err := at("--lock-format", verifier.LockfileName)
	if err != nil {
		return err
	}
	override(&a.Format, v.lockFormat)
	override(&a.Extras, v.lockExtras)
	if a.Extras == "" {
		a.Extras = verifier.ExtrasRefused
	}
	return nil
}

// findClaim turns what a person names a model by into the claim of a
// capability: the claim itself, the id of a capability of the daemon here (16
// digits or more), or the name of a model that has a live one here.
func (a *app) findClaim(ctx context.Context, text string) (hashpipe.Digest, error) {
	caps, err := a.client().Capabilities(ctx)
	claim, notHex := hashpipe.ParseDigest(text)
	if err != nil && notHex != nil {
		return hashpipe.Digest{}, a.answered(err)
	}
	var found *control.Capability
	for i, c := range caps {
		named := c.Model == text && c.State == capLive
		if named && (found == nil || c.Sequence > found.Sequence) || len(text) >= shortID && strings.HasPrefix(c.ID.String(), text) {
			found = &caps[i]
		}
	}
	switch {
	case found != nil:
		return found.Claim, nil
	case notHex == nil:
		return claim, nil
	}
	return hashpipe.Digest{}, exitf(codeUsage, "%q is neither a claim (64 hex digits), nor the id of a capability here, nor a model with a live one; next: %s", text, a.command("caps", "-o", "json"))
}
