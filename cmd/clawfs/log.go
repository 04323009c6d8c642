package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

func newLogCommand(a *app) *cobra.Command {
	return group("log", "Keep, fill and watch a transparency log",
		`A transparency log shows everybody the same list of attestations, capabilities,
revocations and heads of stores (clawfs store head), to which entries are only added. Its operator signs the list's size
and root, a checkpoint; witnesses cosign it. Who holds a proof (FILE.tlog-proof)
knows that an entry can be found by all who watch the log, without asking anybody.

  init     makes the directory and the key of a log
  serve    answers for it over HTTP, and takes entries from those whom it knows
  add      hands an entry to a log and keeps the proof
  prove    asks for a proof of an entry at the log's newest checkpoint
  static   copies what is public, for any web server
  monitor  tells a publisher of entries under its key that it did not make

The formats are those of C2SP: tlog-tiles, tlog-checkpoint, tlog-cosignature,
tlog-proof, tlog-policy.`,
		newLogInitCommand(a), newLogServeCommand(a), newLogAddCommand(a), newLogProveCommand(a), newLogStaticCommand(a), newLogMonitorCommand(a))
}

// logFlags say which log is asked and by which policy it is believed.
type logFlags struct{ location, policy string }

func (f *logFlags) register(c *cobra.Command, location string) {
	c.Flags().StringVar(&f.location, "log", "", location+" (default the URL of the policy's only log)")
	c.Flags().StringVar(&f.policy, "log-policy", "", "`file` with a tlog policy, or a log's verifier key alone: then no witness is needed (default the logs of policy.json in the state directory)")
}

// logs returns the policy, and where the log is.
func (a *app) logs(f logFlags) (policy tlog.Policy, location string, err error) {
	from := f.policy
	if from == "" {
		from = a.config().Policy()
		policy, err = a.ownLogs()
	} else {
		policy, err = readLogPolicy(from)
	}
	if err != nil || f.location != "" {
		return policy, f.location, err
	}
	logs := policy.Logs()
	if len(logs) != 1 || logs[0].URL == "" {
		return policy, "", exitf(codeUsage, "%s names no URL of one log; give --log", printable(from))
	}
	return policy, logs[0].URL, nil
}

// ownLogs are the logs that this machine believes.
func (a *app) ownLogs() (tlog.Policy, error) {
	p, err := a.config().LoadPolicy()
	if err != nil {
		return tlog.Policy{}, fmt.Errorf("no --log-policy was given: %w", err)
	}
	policy, err := p.LogPolicy()
	if err == nil && policy.IsZero() {
		err = exitf(codeUsage, "%s names no logs; give --log-policy", printable(a.config().Policy()))
	}
	return policy, err
}

// readLogPolicy takes the name of a file, or a verifier key.
func readLogPolicy(s string) (tlog.Policy, error) {
	text, err := readBounded(s, tlog.MaxPolicy)
	if err != nil {
		if key, notKey := tlog.ParseVerifierKey(s); notKey == nil {
			return tlog.ParsePolicy(fmt.Appendf(nil, "log %s\nquorum none\n", key))
		}
		return tlog.Policy{}, fmt.Errorf("log policy: %w", err)
	}
	policy, err := tlog.ParsePolicy(text)
	if err != nil {
		return tlog.Policy{}, fmt.Errorf("%s: %w", printable(s), err)
	}
	return policy, nil
}

// entry is an envelope and the leaf that a log has for it.
type entry struct {
	envelope []byte
	leaf     tlog.Leaf
}

// readEntry reads an SBA, a capability, a revocation or a store's head. With a key it must be
// signed by that key, and name it.
func readEntry(path, keyFile string) (entry, error) {
	data, err := readBounded(path, dsse.MaxEnvelope)
	if err != nil {
		return entry{}, err
	}
	e, err := dsse.Parse(data)
	if err != nil {
		return entry{}, exitf(codeRefused, "%s: %w", printable(path), notThat(err, data, anyFile))
	}
	leaf, err := translog.ClaimedLeaf(e)
	if err != nil {
		return entry{}, exitf(codeRefused, "%s: %w", printable(path), notThat(err, data, anyFile))
	}
	if keyFile == "" {
		return entry{data, leaf}, nil
	}
	key, err := readPublicKey(keyFile)
	if err != nil {
		return entry{}, err
	}
	if _, _, err := e.Verify(dsse.PayloadType, []dsse.PublicKey{key}, 1); err != nil {
		return entry{}, exitf(codeSignature, "%s: %w", printable(path), err)
	}
	if leaf.Signer() != key.ID() {
		return entry{}, exitf(codeSignature, "%s: it names the key %s, and --key is %s", printable(path), leaf.Signer(), key.ID())
	}
	return entry{data, leaf}, nil
}

// logged is what add and prove print.
type logged struct {
	Proof   string          `json:"proof"` // the file
	Log     string          `json:"log"`
	Index   int64           `json:"index"`
	Size    int64           `json:"size"`
	Kind    tlog.Kind       `json:"kind"`
	Payload hashpipe.Digest `json:"payload"`
	Witness []string        `json:"witnesses"`
}

// keepProof checks the text of a proof and writes it.
func (a *app) keepProof(policy tlog.Policy, e entry, text []byte, out string) error {
	c, err := tlog.Verify(policy, text, e.leaf)
	if err != nil {
		return logRefusal(fmt.Errorf("the proof that the log gave: %w", err))
	}
	p, err := tlog.ParseProof(text)
	if err != nil {
		return logRefusal(err)
	}
	if err := a.writeResult(out, text); err != nil {
		return err
	}
	if out == "-" {
		return nil
	}
	r := logged{Proof: out, Log: c.Origin(), Index: p.Index, Size: c.Size(), Kind: e.leaf.Kind(), Payload: e.leaf.Payload(), Witness: []string{}}
	for _, s := range c.Cosignatures() {
		r.Witness = append(r.Witness, s.Witness)
	}
	return a.print(r, func() {
		a.printf("proof      %s\n", printable(r.Proof))
		a.printf("log        %s\n", printable(r.Log))
		a.printf("entry      %d of %d (%s)\n", r.Index, r.Size, r.Kind)
		a.printf("payload    %s\n", r.Payload)
		a.printf("witnesses  %s\n", printable(orNone(r.Witness)))
	})
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// proofFile is where the proof of an entry lies, if nothing else is said.
func proofFile(path string) string { return path + ".tlog-proof" }

// logRefusal gives what package tlog or a log refuses its exit code.
func logRefusal(err error) error {
	var r *tlog.Refusal
	var split *translog.SplitError
	var rejected *translog.RejectedError
	switch {
	case errors.As(err, &r) && (r.Reason == tlog.ReasonSignature || r.Reason == tlog.ReasonOrigin):
		return exit(codeSignature, err)
	case errors.As(err, &rejected) && rejected.Status == 403:
		return exitf(codeSignature, "%s", printable(err.Error()))
	case errors.As(err, &rejected):
		return exitf(codeRefused, "%s", printable(err.Error()))
	case errors.As(err, &r), errors.As(err, &split), errors.Is(err, translog.ErrNotLogged):
		return exit(codeRefused, err)
	}
	return err
}
