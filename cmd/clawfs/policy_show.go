package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newPolicyShowCommand(a *app) *cobra.Command {
	var text bool
	c := &cobra.Command{
		Use:   "show [FILE]",
		Short: "Show a policy",
		Long: `Shows FILE, a policy.json or signed policies, whose last is shown, or the policy
of the state directory. Keys are shown by their ids. --text writes the text
itself, byte for byte: what policy.json is after an installation.`,
		Example: `  clawfs policy show
  clawfs policy show next.dsse --text | diff policy.json -
  clawfs policy show -o json | jq .policy.accept`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if text && a.output == "json" {
				return exitf(codeUsage, "--text writes the policy as it is; leave out -o json")
			}
			doc, err := a.policyArgument(args)
			if err != nil {
				return err
			}
			if text {
				_, err := a.stdout.Write(doc.text)
				return err
			}
			result := struct {
				SHA256     hashpipe.Digest  `json:"sha256"`
				Signatures *rootSignatures  `json:"signatures,omitempty"`
				Policy     *verifier.Policy `json:"policy"`
			}{digestOf(doc.text), nil, doc.policy}
			if doc.envelope != nil && doc.policy.Root != nil {
				s, err := signaturesOf(doc.envelope, doc.policy)
				if err != nil {
					return refusal("policy", err)
				}
				result.Signatures = &s
			}
			return a.print(result, func() { a.showPolicy(doc, result.Signatures) })
		},
	}
	c.Flags().BoolVar(&text, "text", false, "write the text of the policy")
	return c
}

func (a *app) showPolicy(doc policyDoc, signed *rootSignatures) {
	p := doc.policy
	rows := [][]string{{"root", rootText(p)}}
	if p.Root != nil {
		rows = append(rows, []string{"revision", strconv.FormatInt(p.Revision, 10)}, []string{"expires", p.Expires.String()})
		for _, k := range p.Root.Keys {
			rows = append(rows, []string{"root key", string(k.ID())})
		}
	}
	if signed != nil {
		rows = append(rows, []string{"signatures", signed.String()})
	}
	l := p.Builds.Limits
	rows = append(rows,
		[]string{"logs", dash(logsText(p))},
		[]string{"builds", fmt.Sprintf("%d bytes of memory, %d processes, %v cpus, %d s, %d bytes out", l.MemoryBytes, l.Processes, l.CPUs, l.WallSeconds, l.OutputBytes)},
		[]string{"environment", strings.Join(p.Builds.Env, " ")})
	a.table([]string{"sha256", digestOf(doc.text).String()}, rows)
	a.printf("\n")
	var cells [][]string
	for _, r := range p.Publishers {
		cells = appendKeys(cells, []string{r.Name, strings.Join(r.Models, ","), fmt.Sprintf("%d of %d", r.Threshold, len(r.Keys)), dash(r.Log)}, r.Keys, r.Windows)
	}
	if len(cells) == 0 {
		a.printf("no publisher is trusted, so every ledger is refused\n")
	} else {
		a.table([]string{"PUBLISHER", "MODELS", "KEYS", "LOG", "KEY IDS"}, cells)
	}
	a.printf("\n")
	cells = nil
	for _, o := range p.Mints {
		cells = appendKeys(cells, []string{"mint", o.Operator}, o.Keys, nil)
	}
	for _, o := range p.Revokers {
		cells = appendKeys(cells, []string{"revoker", o.Operator}, o.Keys, nil)
	}
	a.table([]string{"ROLE", "OPERATOR", "KEY IDS"}, cells)
	a.printf("\n")
	if p.Accept == nil {
		a.printf("one capability of any mint is enough\n")
		return
	}
	cells = nil
	for _, r := range p.Accept {
		cells = append(cells, []string{strings.Join(r.Models, ","), fmt.Sprintf("%d of %s", r.Threshold, strings.Join(r.Operators, ",")), localText(r), ageText(r)})
	}
	a.table([]string{"ACCEPT", "OPERATORS", "LOCAL MINT", "LIST AGE"}, cells)
}

// appendKeys adds a row for the first key, and one for each further key.
func appendKeys(rows [][]string, first []string, keys []dsse.PublicKey, windows map[dsse.KeyID]verifier.Window) [][]string {
	for i, k := range keys {
		row := make([]string, len(first), len(first)+1)
		if i == 0 {
			copy(row, first)
		}
		rows = append(rows, append(row, strings.TrimSpace(string(k.ID())+" "+windowText(windows[k.ID()]))))
	}
	return rows
}

func localText(r verifier.AcceptRule) string {
	if r.Local == "" {
		return verifier.LocalCounts
	}
	return r.Local
}

// ageText is how old the list of revocations may be.
func ageText(r verifier.AcceptRule) string {
	if r.MaxListAgeSeconds == 0 {
		return "-"
	}
	return (time.Duration(r.MaxListAgeSeconds) * time.Second).String()
}

// logsText names the logs of a policy and their quorum in one line.
func logsText(p *verifier.Policy) string {
	var words []string
	for line := range strings.Lines(p.Logs) {
		switch f := strings.Fields(line); {
		case len(f) > 1 && f[0] == "log":
			name, _, _ := strings.Cut(f[1], "+")
			words = append(words, name)
		case len(f) > 1 && f[0] == "quorum":
			words = append(words, "quorum "+f[1])
		}
	}
	return strings.Join(words, ", ")
}

func newPolicyExportCommand(a *app) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use:   "export",
		Short: "Write the signed policy of this machine, for another one",
		Long: `Writes the envelope of the policy that is installed here, with its signatures, on
one line. clawfs policy install takes it on a machine that has the revision
before; lines of several revisions in one file bring a machine along that has
missed some.`,
		Example: `  clawfs policy export --out policy-7.dsse
  clawfs policy export >> all-policies.dsse`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			// What is not in force here is not for others.
			p, err := a.readPolicy()
			if err != nil {
				return err
			}
			if p.Root == nil {
				return exitf(codeRefused, "the policy here has no root, so nobody signed it; next: clawfs policy edit --root KEY.pub --out DRAFT.json, to begin")
			}
			installed, err := a.config().InstalledPolicy()
			if err != nil {
				return err
			}
			envelope, err := dsse.Merge(installed.Envelope()) // on one line
			if err != nil {
				return err
			}
			return a.writeResult(out, append(envelope, '\n'))
		},
	}
	c.Flags().StringVar(&out, "out", "-", "`file` to write, - for standard output")
	return c
}
