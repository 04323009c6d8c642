// Package mint holds the key that signs capabilities, and the only code that
// signs one.
//
// Sign takes evidence, not a conclusion: an Attestation, which only a verifier
// makes, and the Outputs of two runs, which only a sandbox makes. Hashing a
// published file and calling it a rebuild does not compile. Being internal to
// rebuild, the package can be imported from nowhere else.
package mint

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// ErrDiffers: the two runs did not write the same bytes.
var ErrDiffers = errors.New("the two builds differ")

// ErrNamed: an output's digest stands in the ledger. A ledger promises a
// process; one that knows the result may have copied it.
var ErrNamed = errors.New("the ledger names the digest of an output")

// Terms are the mint's own conditions. Both times are required and are cut to
// whole seconds of UTC.
type Terms struct {
	NotBefore time.Time
	NotAfter  time.Time // first instant at which the capability is no longer valid
	// Restrict narrows the capability; nil: it is not narrowed. Delegate are the
	// keys that may derive narrower ones from it.
	Restrict *capstore.Restrict
	Delegate []dsse.KeyID
}

// Sign grants the outputs of first, which second has to repeat byte for byte,
// and returns the envelope of the capability. Every output that differs is
// named, not the first alone.
//
// It signs only if att was verified, every output and artifact of both runs is
// of that very ledger, first and second are two different runs, each has all outputs of the
// ledger and no other, and no digest of an output occurs in the ledger.
func (k *Key) Sign(att verifier.Attestation, first, second sandbox.Result, t Terms) ([]byte, error) {
	envelope, err := k.sign(att, first, second, t)
	if err != nil {
		return nil, fmt.Errorf("minting: %w", err)
	}
	return envelope, nil
}

func (k *Key) sign(att verifier.Attestation, first, second sandbox.Result, t Terms) ([]byte, error) {
	if k == nil || k.key.Public().IsZero() {
		return nil, errors.New("no mint key")
	}
	if att.IsZero() {
		return nil, errors.New("no verified attestation")
	}
	ledger := att.Ledger()
	st := ledger.Statement()
	wanted := st.Predicate.BuildDefinition.ExternalParameters.Outputs
	one, err := collect("first", first, att.Digest(), wanted)
	if err != nil {
		return nil, err
	}
	two, err := collect("second", second, att.Digest(), wanted)
	if err != nil {
		return nil, err
	}
	if one.run == two.run {
		return nil, fmt.Errorf("both sets of outputs are of run %s: two runs are needed", one.run)
	}
	subjects, err := agree(one, two, wanted)
	if err != nil {
		return nil, err
	}
	if err := artifactsAgree(st, att.Digest(), first, second); err != nil {
		return nil, err
	}
	if err := unnamed(ledger.Payload(), subjects); err != nil {
		return nil, err
	}
	p := st.Predicate
	payload, err := capstore.NewStatement(subjects, capstore.Predicate{
		Model:       p.Model,
		Version:     p.Version,
		Sequence:    p.Sequence,
		SBA:         capstore.Reference{Digest: capstore.DigestSet{SHA256: att.Digest()}},
		Environment: capstore.Reference{Digest: capstore.DigestSet{SHA256: st.Environment().Digest.SHA256}},
		Publisher:   capstore.Publisher{KeyID: att.Publisher().ID(), PublicKey: att.Publisher()},
		Minter:      capstore.Minter{KeyID: k.key.Public().ID()},
		Platform: capstore.Platform{
			OS: p.Platform.OS, Arch: p.Platform.Arch,
			CPUFeatures: p.Platform.CPUFeatures, CPUDispatch: p.Platform.CPUDispatch, Accelerator: p.Platform.Accelerator,
		},
		Bases:     bases(st),
		Restrict:  t.Restrict,
		Delegate:  t.Delegate,
		NotBefore: t.NotBefore.UTC().Truncate(time.Second),
		NotAfter:  t.NotAfter.UTC().Truncate(time.Second),
	}).Payload()
	if err != nil {
		return nil, err
	}
	envelope, err := dsse.Sign(dsse.PayloadType, payload, k.key)
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	if err := k.readBack(envelope); err != nil {
		return nil, err
	}
	return envelope, nil
}

// bases are the claims of the models that the ledger starts from.
func bases(st verifier.Statement) []hashpipe.Digest {
	var claims []hashpipe.Digest
	for _, d := range st.Models() {
		claims = append(claims, d.Digest.ClawfsClaim1)
	}
	slices.SortFunc(claims, func(a, b hashpipe.Digest) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(claims)
}

// readBack refuses to hand out what a store would refuse: a capability that is
// too large or malformed has to be the build's error, not the store's.
func (k *Key) readBack(envelope []byte) error {
	self := []capstore.Signer{{Operator: "this mint", Key: k.key.Public()}}
	view, err := capstore.NewView(capstore.Trust{Mints: self, Revokers: self})
	if err != nil {
		return err
	}
	_, err = view.Admit(envelope)
	return err
}

// outputs are those of one run, by name.
type outputs struct {
	run string
	by  map[string]hashpipe.Measurement
}

// collect checks that a build is one run of that recipe with exactly the wanted names.
func collect(which string, res sandbox.Result, recipe hashpipe.Digest, wanted []verifier.Output) (outputs, error) {
	list := res.Outputs
	if len(list) == 0 {
		return outputs{}, fmt.Errorf("the %s build has no outputs", which)
	}
	got := outputs{run: list[0].Run(), by: make(map[string]hashpipe.Measurement, len(list))}
	if got.run == "" {
		return outputs{}, fmt.Errorf("output %q of the %s build belongs to no run", list[0].Name(), which)
	}
	for _, o := range list {
		name := o.Name()
		if o.Recipe() != recipe {
			return outputs{}, fmt.Errorf("output %q of the %s build is of recipe %s, want %s", name, which, o.Recipe(), recipe)
		}
		if o.Run() != got.run {
			return outputs{}, fmt.Errorf("output %q of the %s build is of run %s, the others of run %s", name, which, o.Run(), got.run)
		}
		if o.Run() != res.Run {
			return outputs{}, fmt.Errorf("output %q of the %s build is of run %s, and the build is run %s", name, which, o.Run(), res.Run)
		}
		if m := o.Measurement(); m.Sum().IsZero() || m.Tree() == nil {
			return outputs{}, fmt.Errorf("output %q of the %s build was not measured", name, which)
		}
		if _, twice := got.by[name]; twice {
			return outputs{}, fmt.Errorf("output %q of the %s build is there twice", name, which)
		}
		got.by[name] = o.Measurement()
	}
	var missing []string
	for _, w := range wanted {
		if _, ok := got.by[w.Name]; !ok {
			missing = append(missing, w.Name)
		}
	}
	if len(missing) > 0 {
		return outputs{}, fmt.Errorf("the %s build lacks outputs %q of the ledger", which, missing)
	}
	if len(got.by) != len(wanted) {
		return outputs{}, fmt.Errorf("the %s build has %d outputs, the ledger %d", which, len(got.by), len(wanted))
	}
	return got, nil
}

// agree returns the subjects if every output has the same bytes in both runs.
func agree(one, two outputs, wanted []verifier.Output) ([]capstore.Subject, error) {
	var subjects []capstore.Subject
	var differ []string
	for _, w := range wanted {
		a, b := one.by[w.Name], two.by[w.Name]
		digest, verity := a.Sum().Claim(), a.Tree().Claim()
		if !b.Sum().Is(digest) || !b.Tree().Is(verity) || a.Size() != b.Size() {
			differ = append(differ, fmt.Sprintf("%q (%s, %d bytes; %s, %d bytes)", w.Name, a.Sum(), a.Size(), b.Sum(), b.Size()))
			continue
		}
		subjects = append(subjects, capstore.Subject{Name: w.Name, Digest: digest, Verity: verity, Size: a.Size()})
	}
	if len(differ) > 0 {
		return nil, fmt.Errorf("%w in %d of %d outputs: %s", ErrDiffers, len(differ), len(wanted), strings.Join(differ, ", "))
	}
	return subjects, nil
}

// artifactsAgree checks that both runs left every artifact that the ledger
// declares, and the same bytes in each: the promise is of each step and not of
// the last alone.
func artifactsAgree(st verifier.Statement, recipe hashpipe.Digest, first, second sandbox.Result) error {
	stages := st.Predicate.BuildDefinition.ExternalParameters.Stages
	if len(first.Stages) != len(stages) || len(second.Stages) != len(stages) {
		return fmt.Errorf("the builds have %d and %d stages, the ledger %d", len(first.Stages), len(second.Stages), len(stages))
	}
	var differ []string
	for i, g := range stages {
		one, two := first.Stages[i].Artifacts, second.Stages[i].Artifacts
		if len(one) != len(g.Artifacts) || len(two) != len(g.Artifacts) {
			return fmt.Errorf("stage %q left %d and %d artifacts, the ledger has %d", g.Name, len(one), len(two), len(g.Artifacts))
		}
		for j, path := range g.Artifacts {
			a, b := one[j], two[j]
			for _, x := range []struct {
				sandbox.Artifact
				run string
			}{{a, first.Run}, {b, second.Run}} {
				if x.Stage() != g.Name || x.Path() != path || x.Recipe() != recipe || x.Run() == "" || x.Run() != x.run {
					return fmt.Errorf("stage %q: artifact %q belongs to another run or recipe", g.Name, path)
				}
				if m := x.Measurement(); m.Sum().IsZero() {
					return fmt.Errorf("stage %q: artifact %q was not measured", g.Name, path)
				}
			}
			if !a.Measurement().Sum().Is(b.Measurement().Sum().Claim()) || a.Measurement().Size() != b.Measurement().Size() {
				differ = append(differ, fmt.Sprintf("%q of stage %q", path, g.Name))
			}
		}
	}
	if len(differ) > 0 {
		return fmt.Errorf("%w in artifacts: %s", ErrDiffers, strings.Join(differ, ", "))
	}
	return nil
}

// unnamed refuses a ledger in which a digest of an output occurs, in hex of
// either case or in base64, written plainly or through JSON escapes.
//
// BUG: a digest that is cut into pieces, or encoded otherwise, is not found;
// that an output equals an input file is checked where the inputs are.
func unnamed(payload []byte, subjects []capstore.Subject) error {
	text, err := decodedStrings(payload)
	if err != nil {
		return fmt.Errorf("reading the ledger's texts: %w", err)
	}
	lower := bytes.ToLower(text)
	for _, s := range subjects {
		for _, h := range []string{s.Digest.String(), s.Verity.String()} {
			raw, err := hex.DecodeString(h)
			if err != nil {
				return fmt.Errorf("digest of output %q: %w", s.Name, err)
			}
			if bytes.Contains(lower, []byte(h)) ||
				bytes.Contains(text, []byte(base64.RawStdEncoding.EncodeToString(raw))) ||
				bytes.Contains(text, []byte(base64.RawURLEncoding.EncodeToString(raw))) {
				return fmt.Errorf("%w: %q, %s", ErrNamed, s.Name, h)
			}
		}
	}
	return nil
}

// decodedStrings returns every string of a JSON text, names too, one a line.
func decodedStrings(payload []byte) ([]byte, error) {
	var out bytes.Buffer
	d := jsontext.NewDecoder(bytes.NewReader(payload))
	for {
		tok, err := d.ReadToken()
		if err == io.EOF {
			return out.Bytes(), nil
		}
		if err != nil {
			return nil, err
		}
		if tok.Kind() == '"' {
			out.WriteString(tok.String())
			out.WriteByte('\n')
		}
	}
}
