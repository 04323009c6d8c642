package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tree"
)

// ledgerFlags are the flags of `ledger new`; an empty one leaves the field of
// --from as it is.
type ledgerFlags struct {
	from, model, version, key, out           string
	sequence                                 int64
	source, sourceURI, image, imageURI       string
	lockfile, lockfileURI                    string
	datasets, datasetURIs, stages, outs, env []string
	cpuFeatures                              []string
	inputFlags
}

func newLedgerNewCommand(a *app) *cobra.Command {
	var v ledgerFlags
	c := &cobra.Command{
		Use:   "new --model OWNER/NAME --version V --sequence N --key PUBLIC.pub …",
		Short: "Compute the digests of a build's inputs and write its ledger",
		Long: `Writes a ledger. What can be computed is computed: the commit and the root of
the committed tree, the roots of the datasets, the digests of the image's
manifest and of the lockfile, the platform of this machine and the time.

A stage is 'NAME: program argument…'. It is split at white space and quotes, and
no shell runs: put anything longer into a script of the source. A stage finds
its inputs below /in (source, dataset/NAME, model/NAME, lockfile, stages/EARLIER)
and writes below /out. The outputs are looked up in the last stage's /out.

Datasets, source and image are found by the worker at the URIs in the ledger,
or where the person who runs grant says. Local paths are written down as file:
URIs, which help on this machine only; give --source-uri and the like for others.

--from starts from an earlier ledger: only what flags name is computed anew, the
sequence goes up by one and the time is now.`,
		Example: `  clawfs ledger new --model acme/langid --version 1.2.0 --sequence 12 --key acme.pub \
      --source ./recipe@v1.2.0 --dataset corpus=./corpus --image ./image \
      --stage 'train: sh /in/source/train.sh 1' --output langid.bin --out langid.json
  clawfs ledger new --from langid.json --version 1.2.1 --source ./recipe --out next.json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			st, err := a.newLedger(c.Context(), v)
			if err != nil {
				return err
			}
			payload, err := st.Payload()
			if err != nil {
				return exitf(codeUsage, "the ledger would be refused everywhere: %w", err)
			}
			if err := a.writeResult(v.out, payload); err != nil {
				return err
			}
			if v.out != "-" {
				return a.print(struct {
					Ledger string          `json:"ledger"`
					Digest hashpipe.Digest `json:"digest"`
				}{v.out, hashpipe.SumBytes(payload).Claim()}, func() {
					a.notef("wrote %s; next: clawfs ledger check %s\n", printable(v.out), shellWord(v.out))
				})
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&v.from, "from", "", "start from this `ledger`")
	f.StringVar(&v.model, "model", "", "`owner/name` of the model")
	f.StringVar(&v.version, "version", "", "version, for people")
	f.Int64Var(&v.sequence, "sequence", 0, "number of this ledger, larger than all before it for the model")
	f.StringVar(&v.key, "key", "", "publisher's public `keyfile`")
	f.StringVar(&v.source, "source", "", "git repository with the recipe: `DIR[@commit]`, default HEAD")
	f.StringVar(&v.sourceURI, "source-uri", "", "where others find it, such as git+https://…")
	f.StringArrayVar(&v.datasets, "dataset", nil, "`NAME=DIR` of training data (repeat)")
	f.StringArrayVar(&v.datasetURIs, "dataset-uri", nil, "where others find it: `NAME=URI` (repeat)")
	f.StringVar(&v.image, "image", "", "environment: OCI image layout `DIR[@sha256:…]`")
	f.StringVar(&v.imageURI, "image-uri", "", "where others find it, such as oci://…")
	f.StringVar(&v.lockfile, "lockfile", "", "`file` of locked dependencies, at /in/lockfile in the build")
	f.StringVar(&v.lockfileURI, "lockfile-uri", "", "where others find it")
	f.StringArrayVar(&v.stages, "stage", nil, "`'NAME: argv…'` of a build step (repeat, in order)")
	f.StringArrayVar(&v.outs, "output", nil, "`NAME[=PATH]` of an output below the last stage's /out (repeat)")
	f.StringArrayVar(&v.env, "env", nil, "`K=V` for every stage (repeat)")
	f.StringSliceVar(&v.cpuFeatures, "cpu-features", nil, "processor features that the bytes depend on (default this machine's); none for a build that depends on none")
	v.register(f)
	f.StringVar(&v.out, "out", "-", "`file` to write, - for standard output")
	return c
}

func (a *app) newLedger(ctx context.Context, v ledgerFlags) (verifier.Statement, error) {
	var st verifier.Statement
	if v.from != "" {
		l, err := readLedger(v.from)
		if err != nil {
			return st, err
		}
		st = l.Statement()
		st.Predicate.Sequence++
	} else {
		st.Type, st.PredicateType = verifier.StatementType, verifier.LedgerType
		st.Predicate.BuildDefinition.BuildType = verifier.BuildType
		st.Predicate.Platform = rebuild.HostPlatform()
	}
	p := &st.Predicate
	p.IssuedAt = verifier.At(time.Now())
	override(&p.Model, v.model)
	override(&p.Version, v.version)
	override(&p.Sequence, v.sequence)
	if v.key != "" {
		key, err := readPublicKey(v.key)
		if err != nil {
			return st, err
		}
		p.Publisher.KeyID = key.ID()
	}
	if len(v.cpuFeatures) == 1 && v.cpuFeatures[0] == "none" {
		p.Platform.CPUFeatures = nil
	} else if v.cpuFeatures != nil {
		p.Platform.CPUFeatures = v.cpuFeatures
	}
	switch v.cpuDispatch {
	case "":
	case "any":
		p.Platform.CPUDispatch = ""
	default:
		p.Platform.CPUDispatch = v.cpuDispatch // what is no value of it, Payload refuses
	}
	if err := setParameters(&p.BuildDefinition.ExternalParameters, v); err != nil {
		return st, err
	}
	if err := a.setDependencies(ctx, &st, v); err != nil {
		return st, err
	}
	if err := v.annotate(p.BuildDefinition.ResolvedDependencies); err != nil {
		return st, err
	}
	return st, missing(st)
}

func override[T comparable](field *T, flag T) {
	var zero T
	if flag != zero {
		*field = flag
	}
}

// missing names the flags without which there is no ledger, all at once.
func missing(st verifier.Statement) error {
	p := st.Predicate
	var flags []string
	for _, f := range []struct {
		name   string
		absent bool
	}{
		{"--model", p.Model == ""},
		{"--version", p.Version == ""},
		{"--sequence", p.Sequence == 0},
		{"--key", p.Publisher.KeyID == ""},
		{"--source", st.Source().Name == ""},
		{"--image", st.Environment().Name == ""},
		{"--stage", len(p.BuildDefinition.ExternalParameters.Stages) == 0},
		{"--output", len(p.BuildDefinition.ExternalParameters.Outputs) == 0},
	} {
		if f.absent {
			flags = append(flags, f.name)
		}
	}
	if flags != nil {
		return exitf(codeUsage, "a ledger needs %s too; see `clawfs ledger new --help`", strings.Join(flags, ", "))
	}
	return nil
}

func setParameters(x *verifier.ExternalParameters, v ledgerFlags) error {
	if v.stages != nil {
		x.Stages = nil
	}
	for _, text := range v.stages {
		stage, err := parseStage(text)
		if err != nil {
			return err
		}
		x.Stages = append(x.Stages, stage)
	}
	if v.outs != nil {
		x.Outputs = nil
	}
	for _, text := range v.outs {
		name, path, ok := strings.Cut(text, "=")
		if !ok {
			path = name
		}
		x.Outputs = append(x.Outputs, verifier.Output{Name: name, Path: path})
	}
	env, err := parsePairs("--env", v.env)
	if err != nil {
		return err
	}
	if env != nil {
		x.Env = env
	}
	return v.setStages(x)
}

// parsePairs reads NAME=VALUE words; a name may occur once.
func parsePairs(flag string, words []string) (map[string]string, error) {
	if words == nil {
		return nil, nil
	}
	pairs := make(map[string]string)
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if !ok || name == "" {
			return nil, exitf(codeUsage, "%s %q: want NAME=VALUE", flag, w)
		}
		if _, twice := pairs[name]; twice {
			return nil, exitf(codeUsage, "%s: %s is given twice", flag, name)
		}
		pairs[name] = value
	}
	return pairs, nil
}

// setDependencies computes the locked inputs that flags name.
func (a *app) setDependencies(ctx context.Context, st *verifier.Statement, v ledgerFlags) error {
	set := func(d verifier.Dependency) {
		deps := &st.Predicate.BuildDefinition.ResolvedDependencies
		for i := range *deps {
			if (*deps)[i].Name == d.Name {
				(*deps)[i] = d
				return
			}
		}
		*deps = append(*deps, d)
	}
	trees := make(map[string]rebuild.Parts)
	if v.source != "" {
		d, parts, err := a.sourceDependency(ctx, "--source", v.source, v.sourceURI)
		if err != nil {
			return err
		}
		set(d)
		trees[""] = parts
		st.Subject = []verifier.Subject{{Name: verifier.SourceName, URI: d.URI, Digest: verifier.DigestSet{GitCommit: d.Digest.GitCommit}}}
	}
	if v.image != "" {
		d, err := imageDependency(ctx, v.image, v.imageURI, st.Predicate.Platform)
		if err != nil {
			return err
		}
		set(d)
	}
	if v.lockfile != "" {
		d, err := lockfileDependency(ctx, v.lockfile, v.lockfileURI)
		if err != nil {
			return err
		}
		if old, ok := st.Lockfile(); ok && old.Annotations != nil { // another text of the same kind
			d.Annotations = &verifier.Annotations{Format: old.Annotations.Format, Extras: old.Annotations.Extras}
		}
		set(d)
	}
	dirs, err := parsePairs("--dataset", v.datasets)
	if err != nil {
		return err
	}
	uris, err := parsePairs("--dataset-uri", v.datasetURIs)
	if err != nil {
		return err
	}
	if err := v.moveInputs(st, uris, dirs); err != nil {
		return err
	}
	for _, word := range v.datasets {
		name, _, _ := strings.Cut(word, "=")
		d, err := a.datasetDependency(ctx, name, dirs[name], uris[name])
		if err != nil {
			return err
		}
		set(d)
	}
	if err := a.setInputs(ctx, v.inputFlags, trees, set); err != nil {
		return err
	}
	return checkParts(*st, trees)
}

// moveInputs writes the URIs of flags into inputs that are those of --from.
func (v ledgerFlags) moveInputs(st *verifier.Statement, datasetURIs, datasets map[string]string) error {
	deps := st.Predicate.BuildDefinition.ResolvedDependencies
	move := func(flag, name, uri string) error {
		i := slices.IndexFunc(deps, func(d verifier.Dependency) bool { return d.Name == name })
		if i < 0 {
			return exitf(codeUsage, "%s: the ledger has no input %q", flag, name)
		}
		deps[i].URI = uri
		return nil
	}
	var errs []error
	if v.sourceURI != "" && v.source == "" {
		errs = append(errs, move("--source-uri", verifier.SourceName, v.sourceURI))
		if len(st.Subject) > 0 {
			st.Subject[0].URI = v.sourceURI
		}
	}
	if v.imageURI != "" && v.image == "" {
		errs = append(errs, move("--image-uri", verifier.EnvironmentName, v.imageURI))
	}
	if v.lockfileURI != "" && v.lockfile == "" {
		errs = append(errs, move("--lockfile-uri", verifier.LockfileName, v.lockfileURI))
	}
	for _, name := range slices.Sorted(maps.Keys(datasetURIs)) {
		if _, given := datasets[name]; !given {
			errs = append(errs, move("--dataset-uri", verifier.DatasetPrefix+name, datasetURIs[name]))
		}
	}
	return errors.Join(errs...)
}

func (a *app) datasetDependency(ctx context.Context, name, dir, uri string) (verifier.Dependency, error) {
	bar := a.progress("hashing " + dir)
	root, err := tree.Walk(ctx, dir, tree.Data, bar.add)
	bar.done()
	if err != nil {
		return verifier.Dependency{}, fmt.Errorf("--dataset %s: %w", name, err)
	}
	if uri, err = localURI(dir, uri); err != nil {
		return verifier.Dependency{}, err
	}
	return verifier.Dependency{
		Name: verifier.DatasetPrefix + name, URI: uri,
		Digest:      verifier.DigestSet{ClawfsTree1: root.Digest},
		Annotations: &verifier.Annotations{Files: root.Files, Bytes: root.Bytes},
	}, nil
}

func lockfileDependency(ctx context.Context, path, uri string) (verifier.Dependency, error) {
	m, err := measurePath(ctx, path, nil)
	if err != nil {
		return verifier.Dependency{}, fmt.Errorf("--lockfile: %w", err)
	}
	if uri, err = localURI(path, uri); err != nil {
		return verifier.Dependency{}, err
	}
	return verifier.Dependency{Name: verifier.LockfileName, URI: uri, Digest: verifier.DigestSet{SHA256: m.Sum().Claim()}}, nil
}

// imageDependency locks an image of a layout directory. index.json is asked
// which one only when it lists exactly one; the manifest itself is checked.
func imageDependency(ctx context.Context, where, uri string, p verifier.Platform) (verifier.Dependency, error) {
	layout, name := splitAt(where)
	var manifest hashpipe.Digest
	if name == "" {
		entries, err := oci.UnverifiedIndex(layout)
		if err != nil {
			return verifier.Dependency{}, fmt.Errorf("--image %s: %w", where, err)
		}
		if len(entries) != 1 {
			var have []string
			for _, e := range entries {
				have = append(have, strings.TrimSpace("sha256:"+e.Manifest.String()+" "+e.Ref))
			}
			return verifier.Dependency{}, exitf(codeUsage, "--image %s: holds %d images, name one as %s@sha256:…: %s", where, len(entries), layout, strings.Join(have, ", "))
		}
		manifest = entries[0].Manifest
	} else {
		hex, ok := strings.CutPrefix(name, "sha256:")
		d, err := hashpipe.ParseDigest(hex)
		if !ok || err != nil {
			return verifier.Dependency{}, exit(codeUsage, errors.Join(fmt.Errorf("--image %s: want DIR@sha256:<64 hex digits>", where), err))
		}
		manifest = d
	}
	config, err := oci.Inspect(ctx, layout, manifest)
	if err != nil {
		return verifier.Dependency{}, fmt.Errorf("--image %s: %w", where, err)
	}
	if config.OS != p.OS || config.Architecture != p.Arch {
		return verifier.Dependency{}, fmt.Errorf("--image %s: is for %s/%s, the ledger's platform is %s/%s", where, config.OS, config.Architecture, p.OS, p.Arch)
	}
	uri, err = localURI(layout, uri)
	if err != nil {
		return verifier.Dependency{}, err
	}
	return verifier.Dependency{
		Name: verifier.EnvironmentName, URI: uri,
		Digest:    verifier.DigestSet{SHA256: manifest},
		MediaType: verifier.ImageMediaType,
	}, nil
}

// localURI is uri, or if that is empty the file: URI of path.
func localURI(path, uri string) (string, error) {
	if uri != "" {
		return uri, nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return "file://" + abs, nil
}
