package main

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// inspection is what `ledger inspect` reports. Signature is "valid", "none"
// (an unsigned ledger) or "not checked".
type inspection struct {
	File      string          `json:"file"`
	Digest    hashpipe.Digest `json:"digest"`
	Signature string          `json:"signature"`
	Signer    dsse.KeyID      `json:"signer,omitempty"`
	Log       *logEntry       `json:"log,omitempty"` // of the log proof beside it
	Ledger    jsontext.Value  `json:"ledger"`
}

func newLedgerInspectCommand(a *app) *cobra.Command {
	var keyFile, proof, logPolicy string
	c := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show a ledger or an SBA",
		Long: `Shows what a ledger or a signed attestation says. Without --publisher-key
nothing is verified, and the output says so: do not act on it. With it, the log
proof FILE.tlog-proof is verified too, by the logs of --log-policy or policy.json.`,
		Example: `  clawfs ledger inspect langid.sba --publisher-key acme.pub
  clawfs ledger inspect langid.sba -o json | jq .ledger.predicate.buildDefinition`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			in, l, err := inspect(args[0], keyFile)
			if err != nil {
				return err
			}
			if err := a.inspectProof(&in, keyFile, proof, logPolicy); err != nil {
				return err
			}
			return a.print(in, func() { a.showLedger(in, l) })
		},
	}
	c.Flags().StringVar(&keyFile, "publisher-key", "", "public `keyfile` that must have signed")
	registerProof(c, &proof)
	registerLogPolicy(c, &logPolicy)
	return c
}

// inspectProof adds what the log proof of an SBA says, if there is one.
func (a *app) inspectProof(in *inspection, keyFile, named, logPolicy string) error {
	if in.Signature == "none" {
		return nil
	}
	proof, err := readProof(named, in.File)
	if err != nil || proof == nil {
		return err
	}
	var att verifier.Attestation
	logs, err := a.logPolicy(logPolicy)
	if err != nil {
		return err
	}
	if logs != "" && keyFile != "" {
		if att, err = a.verifyWithKey(in.File, keyFile, proof, logs); err != nil {
			return err
		}
	}
	if named == "" {
		named = in.File + verifier.ProofSuffix
	}
	in.Log, err = inspectLog(named, proof, att)
	return err
}

func inspect(path, keyFile string) (inspection, verifier.Ledger, error) {
	none := verifier.Ledger{}
	data, err := readBounded(path, dsse.MaxEnvelope)
	if err != nil {
		return inspection{}, none, err
	}
	in := inspection{File: path, Signature: "none"}
	payload := data
	envelope, envelopeErr := dsse.Parse(data)
	if envelopeErr == nil {
		in.Signature = "not checked"
		payload = envelope.UnverifiedPayload()
	}
	if keyFile != "" {
		if envelopeErr != nil {
			return inspection{}, none, exitf(codeSignature, "%s carries no signature: %w", path, envelopeErr)
		}
		key, err := readPublicKey(keyFile)
		if err != nil {
			return inspection{}, none, err
		}
		payload, _, err = envelope.Verify(dsse.PayloadType, []dsse.PublicKey{key}, 1)
		if err != nil {
			return inspection{}, none, exitf(codeSignature, "%s: not signed by %s (key id %s): %w", path, keyFile, key.ID(), err)
		}
		in.Signature, in.Signer = "valid", key.ID()
	}
	l, err := verifier.ParseLedger(payload)
	if err != nil {
		return inspection{}, none, exitf(codeRefused, "%s: %w", path, err)
	}
	if named := l.Statement().Predicate.Publisher.KeyID; in.Signer != "" && named != in.Signer {
		return inspection{}, none, exitf(codeSignature, "%s: the ledger names publisher key %s, but the signature is by %s", path, named, in.Signer)
	}
	in.Digest, in.Ledger = l.Digest(), l.Payload()
	return in, l, nil
}

// showLedger prints a ledger for people. Every text of it was chosen by
// somebody else and is escaped.
func (a *app) showLedger(in inspection, l verifier.Ledger) {
	st := l.Statement()
	p := st.Predicate
	width := len("environment")
	for _, d := range p.BuildDefinition.ResolvedDependencies {
		width = max(width, min(len(d.Name), 32))
	}
	line := func(label, format string, args ...any) {
		a.printf("%-*s %s\n", width, label, printable(fmt.Sprintf(format, args...)))
	}
	line("model", "%s %s (sequence %d)", p.Model, p.Version, p.Sequence)
	line("publisher", "%s", p.Publisher.KeyID)
	switch in.Signature {
	case "valid":
		line("signature", "valid, by %s", in.Signer)
	case "none":
		line("signature", "none; next: clawfs ledger sign")
	default:
		line("signature", "NOT CHECKED; next: clawfs ledger inspect %s --publisher-key KEYFILE", in.File)
	}
	line("issued", "%s", p.IssuedAt)
	line("sba digest", "%s", l.Digest())
	if e := in.Log; e != nil {
		line("log", "%s, index %d of %d, root %s", e.Origin, e.Index, e.Size, e.Root)
		if e.Status != "valid" {
			line("log", "NOT CHECKED; next: clawfs ledger inspect %s --publisher-key KEYFILE --log-policy FILE", in.File)
		}
		for _, w := range e.Witnesses {
			line("witness", "%s, at %s", w.Name, stamp(w.Time))
		}
	}
	line("platform", "%s", platformText(p.Platform))
	for _, d := range p.BuildDefinition.ResolvedDependencies {
		line(d.Name, "%s", dependencyText(d))
	}
	params := p.BuildDefinition.ExternalParameters
	for _, name := range slices.Sorted(maps.Keys(params.Env)) {
		line("env", "%s=%s", name, params.Env[name])
	}
	for _, s := range params.Stages {
		line("stage", "%s: %s", s.Name, quoteWords(s.Argv))
		if text := limitsText(s); text != "" {
			line("limit", "%s: %s", s.Name, text)
		}
		for _, path := range s.Artifacts {
			line("artifact", "%s: /out/%s", s.Name, path)
		}
	}
	for _, o := range params.Outputs {
		line("output", "%s from /out/%s", o.Name, o.Path)
	}
}

// limitsText is what a stage may use by its ledger; empty: what the policy says.
func limitsText(s verifier.Stage) string {
	var texts []string
	if s.TimeoutSeconds > 0 {
		texts = append(texts, (time.Duration(s.TimeoutSeconds) * time.Second).String())
	}
	if l := s.Limits; l != nil {
		for _, f := range []struct {
			n    int64
			text string
		}{
			{l.MemoryBytes, humanize.IBytes(uint64(l.MemoryBytes)) + " of memory"},
			{l.Processes, fmt.Sprintf("%d processes", l.Processes)},
			{l.CPUSeconds, (time.Duration(l.CPUSeconds) * time.Second).String() + " of CPU time"},
			{l.OutputBytes, humanize.IBytes(uint64(l.OutputBytes)) + " of output"},
		} {
			if f.n > 0 {
				texts = append(texts, f.text)
			}
		}
	}
	return strings.Join(texts, ", ")
}

func platformText(p verifier.Platform) string {
	s := p.OS + "/" + p.Arch
	if len(p.CPUFeatures) > 0 {
		s += " with " + strings.TrimSpace(strings.Replace(p.CPUDispatch, "exact", "exactly ", 1)+strings.Join(p.CPUFeatures, ","))
	}
	return s + ", accelerator " + p.Accelerator
}

func dependencyText(d verifier.Dependency) string {
	var s []string
	if d.Digest.GitCommit != "" {
		s = append(s, "commit "+string(d.Digest.GitCommit))
	}
	if !d.Digest.ClawfsTree1.IsZero() {
		s = append(s, "tree "+d.Digest.ClawfsTree1.String())
	}
	if !d.Digest.SHA256.IsZero() {
		s = append(s, "sha256:"+d.Digest.SHA256.String())
	}
	if !d.Digest.ClawfsClaim1.IsZero() {
		s = append(s, "the model of claim "+d.Digest.ClawfsClaim1.String())
	}
	a := d.Annotations
	if a == nil {
		a = &verifier.Annotations{}
	}
	switch {
	case a.Files > 0:
		s = append(s, fmt.Sprintf("%d files of %d bytes", a.Files, a.Bytes))
	case a.Bytes > 0:
		s = append(s, fmt.Sprintf("%d bytes", a.Bytes))
	}
	if a.Format != "" {
		s = append(s, fmt.Sprintf("read as %s, extra packages of the image %s", a.Format, a.Extras))
	}
	if places := d.Places(); len(places) > 0 {
		s = append(s, "at "+strings.Join(places, " or "))
	}
	return strings.Join(s, ", ")
}

// quoteWords shows an argv so that its words can be told apart.
func quoteWords(argv []string) string {
	words := make([]string, len(argv))
	for i, w := range argv {
		if w == "" || strings.ContainsAny(w, " \t\n\"'\\|&;<>()$`*?") {
			w = strconv.Quote(w)
		}
		words[i] = w
	}
	return strings.Join(words, " ")
}
