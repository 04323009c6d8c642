package rebuild

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/compare"
	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
)

const (
	// maxDiagnosed bounds the differing outputs that are compared in depth; all
	// are named.
	maxDiagnosed = 20
	// maxDiagnosis bounds the time for that. The verdict does not wait for it:
	// what was seen until then is told.
	maxDiagnosis = 10 * time.Minute
)

// left is what a build left: an output, or a stage's artifact.
type left interface {
	Measurement() hashpipe.Measurement
	Open() (*os.File, error)
}

// pair is the same file of two builds.
type pair struct {
	name string // an output's, or stage/path
	a, b left
}

func (p pair) differs() bool { return !same(p.a.Measurement(), p.b.Measurement()) }

// pairs puts the files of two builds side by side: artifacts in the order of
// the stages, then outputs.
func pairs(first, second sandbox.Result) (artifacts, outputs []pair, err error) {
	if len(first.Stages) != len(second.Stages) || len(first.Outputs) != len(second.Outputs) || len(first.Outputs) == 0 {
		return nil, nil, fmt.Errorf("%d stages with %d outputs and %d with %d", len(first.Stages), len(first.Outputs), len(second.Stages), len(second.Outputs))
	}
	if first.Run == second.Run {
		return nil, nil, fmt.Errorf("both are run %s", first.Run)
	}
	for i, g := range first.Stages {
		h := second.Stages[i]
		if g.Name != h.Name || len(g.Artifacts) != len(h.Artifacts) {
			return nil, nil, fmt.Errorf("stage %d is %q with %d artifacts and %q with %d", i, g.Name, len(g.Artifacts), h.Name, len(h.Artifacts))
		}
		for j, a := range g.Artifacts {
			b := h.Artifacts[j]
			if a.Path() != b.Path() {
				return nil, nil, fmt.Errorf("artifact %d of stage %q is %q and %q", j, g.Name, a.Path(), b.Path())
			}
			artifacts = append(artifacts, pair{g.Name + "/" + a.Path(), a, b})
		}
	}
	for i, a := range first.Outputs {
		b := second.Outputs[i]
		if a.Name() != b.Name() {
			return nil, nil, fmt.Errorf("output %d is %q and %q", i, a.Name(), b.Name())
		}
		outputs = append(outputs, pair{a.Name(), a, b})
	}
	return artifacts, outputs, nil
}

// agree compares every artifact and every output of two builds and names all
// that differ.
func agree(ctx context.Context, first, second sandbox.Result, st verifier.Statement, p *progress) error {
	artifacts, outputs, err := pairs(first, second)
	if err != nil {
		return fmt.Errorf("comparing builds: %w", err)
	}
	badArtifacts, badOutputs := differing(artifacts), differing(outputs)
	var what []string
	if len(badOutputs) > 0 {
		what = append(what, fmt.Sprintf("%d of %d outputs: %s", len(badOutputs), len(outputs), names(badOutputs)))
	}
	if len(badArtifacts) > 0 {
		what = append(what, fmt.Sprintf("%d of %d artifacts of stages: %s", len(badArtifacts), len(artifacts), names(badArtifacts)))
	}
	if what == nil {
		return nil
	}
	f := fail(capstore.Nondeterministic, "two builds of the same recipe differ in %s", strings.Join(what, "; and in "))
	lines, err := diagnose(ctx, append(badArtifacts, badOutputs...), first, second, st, p)
	if err != nil {
		return fmt.Errorf("comparing builds: %w", err)
	}
	f.Diagnosis = escape(strings.Join(lines, "\n"))
	return f
}

func differing(list []pair) (bad []pair) {
	for _, p := range list {
		if p.differs() {
			bad = append(bad, p)
		}
	}
	return bad
}

func names(list []pair) string {
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = p.name
	}
	return strings.Join(texts, ", ")
}

// diagnose says in what files differ and hints why, for a person.
func diagnose(ctx context.Context, bad []pair, first, second sandbox.Result, st verifier.Statement, p *progress) ([]string, error) {
	runs := surroundings(first, second)
	build := buildOf(st)
	build.Runs = runs
	bounded, cancel := context.WithTimeout(ctx, maxDiagnosis)
	defer cancel()
	var lines, hints []string
	if text := compare.Diverge(artifactsOf(first), artifactsOf(second)).String(); text != "" {
		lines = append(lines, text)
	}
	for i, x := range bad {
		if i == maxDiagnosed {
			lines = append(lines, fmt.Sprintf("and %d more files", len(bad)-i))
			break
		}
		p.say(PhaseCompare, escape(x.name), x.a.Measurement().Size())
		d, err := difference(bounded, x, runs)
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			lines = append(lines, fmt.Sprintf("%s: no difference was found within %v, but the digests differ", x.name, maxDiagnosis))
			continue
		}
		if err != nil {
			return nil, err
		}
		lines = append(lines, d.String())
		for _, h := range d.Hints(build) {
			if !strings.Contains(strings.Join(hints, "\n"), h) {
				hints = append(hints, "hint: "+h)
			}
		}
	}
	if len(hints) == 0 {
		hints = []string{"hint: no known cause fits; look among what differed between the builds"}
	}
	for _, line := range compare.Delta(runs[0], runs[1]) {
		hints = append(hints, "varied: "+line)
	}
	return append(lines, hints...), nil
}

func artifactsOf(r sandbox.Result) (list []compare.Artifact) {
	for _, g := range r.Stages {
		for _, a := range g.Artifacts {
			list = append(list, compare.Artifact{Stage: g.Name, Path: a.Path(), Size: a.Measurement().Size(), Digest: a.Measurement().Sum().Claim()})
		}
	}
	return list
}

func same(a, b hashpipe.Measurement) bool {
	return a.Size() == b.Size() && a.Sum().Is(b.Sum().Claim()) && a.Tree().Is(b.Tree().Claim())
}

// surroundings are those of two builds that ran one after the other until now.
func surroundings(first, second sandbox.Result) [2]compare.Environment {
	began := time.Now().Add(-second.Wall)
	return [2]compare.Environment{
		{Began: began.Add(-first.Wall), Varied: first.Varied, Features: platformOf(first.Host).CPUFeatures},
		{Began: began, Varied: second.Varied, Features: platformOf(second.Host).CPUFeatures},
	}
}

func difference(ctx context.Context, x pair, runs [2]compare.Environment) (compare.Difference, error) {
	fa, err := x.a.Open()
	if err != nil {
		return compare.Difference{}, err
	}
	defer fa.Close()
	fb, err := x.b.Open()
	if err != nil {
		return compare.Difference{}, err
	}
	defer fb.Close()
	d, err := compare.Files(ctx, fa, fb, x.a.Measurement().Size(), x.b.Measurement().Size(), x.name)
	if err != nil {
		return compare.Difference{}, err
	}
	// A search that has no time left finds nothing: the difference stands.
	if err := d.Trace(ctx, fa, fb, runs[0], runs[1]); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return compare.Difference{}, err
	}
	return d, nil
}

func buildOf(st verifier.Statement) compare.Build {
	params := st.Predicate.BuildDefinition.ExternalParameters
	b := compare.Build{Env: params.Env}
	for _, g := range params.Stages {
		b.Stages = append(b.Stages, compare.Stage{Name: g.Name, Argv: g.Argv, Env: g.Env})
	}
	return b
}

// notCopied refuses outputs that the ledger already determined: those whose
// digest stands in it, and those that are byte for byte one of its inputs.
// A build that only copies has reproduced nothing.
func notCopied(ctx context.Context, in inputs, l verifier.Ledger, outputs []sandbox.Output) error {
	wanted := make([]hashpipe.Measurement, len(outputs))
	for i, o := range outputs {
		wanted[i] = o.Measurement()
	}
	where := []sandbox.Input{{Name: "", Path: in.rootfs}}
	for _, m := range in.mounts {
		where = append(where, sandbox.Input{Name: "in/" + m.Name, Path: m.Path})
	}
	for _, place := range where {
		copies, err := oci.Copies(ctx, place.Path, wanted)
		if err != nil {
			return fmt.Errorf("looking for outputs among the inputs: %w", err)
		}
		for _, c := range copies {
			for _, o := range outputs {
				if c.Sum.Is(o.Measurement().Sum().Claim()) {
					return fail(capstore.CopiedInput, "output %q has the very bytes of the input %s: a build that only copies has reproduced nothing", o.Name(), path.Join("/", place.Name, c.Path))
				}
			}
		}
	}
	for _, o := range outputs {
		if form := mentions(l.Payload(), o.Measurement()); form != "" {
			return fail(capstore.CopiedInput, "output %q: its digest stands in the ledger (%s), which promises a process and no result", o.Name(), form)
		}
	}
	return nil
}

// mentions looks for a digest of an output in a ledger's bytes and, because
// JSON can spell a character in several ways, in each of its strings.
func mentions(payload []byte, m hashpipe.Measurement) (form string) {
	texts := [][]byte{payload}
	dec := jsontext.NewDecoder(bytes.NewReader(payload))
	for {
		t, err := dec.ReadToken()
		if err != nil {
			break // the end; the payload was parsed before
		}
		if t.Kind() == '"' {
			texts = append(texts, []byte(t.String()))
		}
	}
	for _, d := range []struct{ name, hex string }{
		{"SHA-256", m.Sum().String()}, {"fs-verity", m.Tree().Claim().String()},
	} {
		raw, err := hex.DecodeString(d.hex)
		if err != nil || len(raw) != 32 {
			return "unknown form" // a measurement that measured nothing
		}
		for _, text := range texts {
			switch {
			case bytes.Contains(bytes.ToLower(text), []byte(d.hex)):
				return d.name + " in hex"
			case bytes.Contains(text, []byte(base64.RawStdEncoding.EncodeToString(raw))),
				bytes.Contains(text, []byte(base64.RawURLEncoding.EncodeToString(raw))):
				return d.name + " in base64"
			}
		}
	}
	return ""
}
