package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newPublisherCommand(a *app) *cobra.Command {
	return group("publisher", "Say whose ledgers may be rebuilt here",
		`A ledger is rebuilt only if its signer is listed in policy.json for its model.
Nobody is listed after init, so everything is refused. The most specific rule
for a model wins; a model that no rule names is refused.`,
		newPublisherTrustCommand(a), newPublisherListCommand(a), newPublisherRemoveCommand(a))
}

func newPublisherTrustCommand(a *app) *cobra.Command {
	rule := verifier.PublisherRule{}
	var minimum []string
	var draft string
	c := &cobra.Command{
		Use:   "trust KEYFILE... --name NAME --models PATTERN",
		Short: "Trust a publisher's key for some models",
		Long: `Adds a rule to policy.json: ledgers of the models PATTERN count when the keys
in KEYFILE signed them. PATTERN is a model such as acme/langid, or a prefix
such as 'acme/*'. The key must reach you on a way that you trust; compare the
key id that is printed with the publisher's.

A policy that is signed for many machines is not changed here: with --draft the
rule goes into a draft of its next revision (clawfs policy edit).`,
		Example: `  clawfs publisher trust acme.pub --name acme --models 'acme/*'
  clawfs publisher trust a.pub b.pub --name acme --models acme/langid --threshold 2
  clawfs publisher trust acme.pub --name acme --models 'acme/*' --minimum-sequence acme/langid=12`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, path := range args {
				key, err := readPublicKey(path)
				if err != nil {
					return err
				}
				rule.Keys = append(rule.Keys, key)
			}
			pins, err := parseSequences(minimum)
			if err != nil {
				return err
			}
			rule.MinimumSequence = pins
			if err := a.editPolicy(draft, func(p *verifier.Policy) (*verifier.Policy, error) { return p.AddPublisher(rule) }); err != nil {
				return err
			}
			return a.print(rule, func() {
				a.printf("trusted %s for %s\n", rule.Name, strings.Join(rule.Models, ", "))
				for _, key := range rule.Keys {
					a.printf("key id  %s\n", key.ID())
				}
				if draft == "" {
					a.printf("next    %s\n", a.command("grant", "LEDGER.sba", "--wait"))
				} else {
					a.printf("next    clawfs policy sign %s --key KEYFILE\n", shellWord(draft))
				}
			})
		},
	}
	f := c.Flags()
	f.StringVar(&rule.Name, "name", "", "`name` of the rule, shown in refusals and capabilities")
	f.StringSliceVar(&rule.Models, "models", nil, "models the keys may speak for: owner/model or 'owner/*' (repeat or separate by commas)")
	f.Int64Var(&rule.Threshold, "threshold", 1, "how many of the keys must have signed")
	f.StringSliceVar(&rule.Images, "image", []string{"*"}, "environment images its builds may use: sha256:<hex>, or * for any that the signed ledger names")
	f.StringArrayVar(&minimum, "minimum-sequence", nil, "refuse older ledgers: `MODEL=N` (repeat)")
	registerDraft(c, &draft)
	c.MarkFlagRequired("name")
	c.MarkFlagRequired("models")
	return c
}

// parseSequences reads MODEL=N words.
func parseSequences(words []string) (map[string]int64, error) {
	if len(words) == 0 {
		return nil, nil
	}
	pins := make(map[string]int64)
	for _, w := range words {
		model, number, ok := strings.Cut(w, "=")
		n, err := strconv.ParseInt(number, 10, 64)
		if !ok || err != nil || n < 1 {
			return nil, exitf(codeUsage, "--minimum-sequence %q: want MODEL=N with N from 1", w)
		}
		pins[model] = n
	}
	return pins, nil
}

// publisherRow is a rule as `publisher list` shows it.
type publisherRow struct {
	Name            string           `json:"name"`
	Models          []string         `json:"models"`
	KeyIDs          []dsse.KeyID     `json:"keyids"`
	Threshold       int64            `json:"threshold"`
	Images          []string         `json:"images"`
	MinimumSequence map[string]int64 `json:"minimumSequence,omitempty"`
	// Windows say when a key counts; one that is not there always does.
	Windows map[dsse.KeyID]verifier.Window `json:"windows,omitempty"`
}

func newPublisherListCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the trusted publishers",
		Example: "  clawfs publisher list\n  clawfs publisher list -o json | jq '.[].keyids'",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			p, err := a.readPolicy()
			if err != nil {
				return err
			}
			rows := []publisherRow{}
			for _, r := range p.Publishers {
				row := publisherRow{Name: r.Name, Models: r.Models, Threshold: r.Threshold, Images: r.Images, MinimumSequence: r.MinimumSequence, Windows: r.Windows}
				for _, k := range r.Keys {
					row.KeyIDs = append(row.KeyIDs, k.ID())
				}
				rows = append(rows, row)
			}
			return a.print(rows, func() { a.publisherTable(rows) })
		},
	}
}

func (a *app) publisherTable(rows []publisherRow) {
	if len(rows) == 0 {
		a.printf("no publisher is trusted, so every ledger is refused\nnext: %s --models 'owner/*'\n", a.command("publisher", "trust", "KEYFILE", "--name", "NAME"))
		return
	}
	header := []string{"NAME", "MODELS", "THRESHOLD", "KEY IDS"}
	if slices.ContainsFunc(rows, func(r publisherRow) bool { return len(r.Windows) > 0 }) {
		header = append(header, "VALID")
	}
	var cells [][]string
	for _, r := range rows {
		for i, id := range r.KeyIDs {
			row := []string{"", "", "", string(id), windowText(r.Windows[id])}
			if i == 0 {
				row = []string{r.Name, strings.Join(r.Models, ","), strconv.FormatInt(r.Threshold, 10), string(id), windowText(r.Windows[id])}
			}
			cells = append(cells, row[:len(header)])
		}
	}
	a.table(header, cells)
}

func windowText(w verifier.Window) string {
	var words []string
	if !w.NotBefore.IsZero() {
		words = append(words, "from "+w.NotBefore.String())
	}
	if !w.NotAfter.IsZero() {
		words = append(words, "until "+w.NotAfter.String())
	}
	return strings.Join(words, " ")
}

// registerDraft is for the verbs that change a policy.
func registerDraft(c *cobra.Command, draft *string) {
	c.Flags().StringVar(draft, "draft", "", "change this `file` of clawfs policy edit, instead of the policy of the state directory")
}

func newPublisherRemoveCommand(a *app) *cobra.Command {
	var draft string
	c := &cobra.Command{
		Use:   "remove NAME",
		Short: "Stop trusting a publisher for new ledgers",
		Long: `Removes the rule NAME from policy.json. Ledgers of that publisher are refused
from now on. Capabilities that were minted before stay valid until they expire;
to take them back, revoke them.`,
		Example: "  clawfs publisher remove acme\n  clawfs revoke --kind publisher KEYID --reason 'key lost'",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			err := a.editPolicy(draft, func(p *verifier.Policy) (*verifier.Policy, error) { return p.RemovePublisher(args[0]) })
			if err != nil {
				return err
			}
			return a.print(map[string]string{"removed": args[0]}, func() {
				a.printf("removed %s; capabilities that were minted before stay valid, see `clawfs caps`\n", args[0])
			})
		},
	}
	registerDraft(c, &draft)
	return c
}

func (a *app) readPolicy() (config.Policy, error) {
	p, err := a.config().LoadPolicy()
	if errors.Is(err, fs.ErrNotExist) {
		return p, a.noPolicy()
	}
	return p, err
}

// noPolicy is the error where policy.json is missing.
func (a *app) noPolicy() error {
	signed := a.config().SignedPolicy()
	if _, err := os.Lstat(signed); err == nil {
		return fmt.Errorf("no policy.json in %s, and a signed policy beside it; next: %s", a.state, a.command("policy", "install", signed))
	}
	return fmt.Errorf("no policy in %s; next: clawfs init --state %s", a.state, a.state)
}

// editPolicy replaces policy.json, or with a draft that file, by what edit makes
// of it. The lock on the state directory keeps two edits from losing one.
func (a *app) editPolicy(draft string, edit func(*verifier.Policy) (*verifier.Policy, error)) error {
	if draft != "" {
		doc, err := readPolicyFile(draft)
		if err != nil {
			return err
		}
		if doc.envelope != nil {
			return exitf(codeRefused, "%s is signed, and a change would not be; next: clawfs policy edit --out DRAFT.json", shellWord(draft))
		}
		text, err := editedText(doc.policy, edit)
		if err != nil {
			return err
		}
		return durable.Replace(draft, text, 0o644)
	}
	s := a.config()
	unlock, err := s.LockPolicy()
	if err != nil {
		return err
	}
	defer unlock()
	old, err := s.EditablePolicy()
	switch {
	case errors.Is(err, config.ErrSigned):
		return exitf(codeRefused, "%w; with --draft DRAFT.json this verb changes the draft", err)
	case errors.Is(err, fs.ErrNotExist):
		return a.noPolicy()
	case err != nil:
		return err
	}
	text, err := editedText(old.Policy, edit)
	if err != nil {
		return err
	}
	return durable.Replace(s.Policy(), text, 0o600)
}

func editedText(p *verifier.Policy, edit func(*verifier.Policy) (*verifier.Policy, error)) ([]byte, error) {
	edited, err := edit(p)
	if err != nil {
		return nil, fmt.Errorf("policy is unchanged: %w", err)
	}
	text, err := edited.Encode()
	if err != nil {
		return nil, fmt.Errorf("policy is unchanged: %w", err)
	}
	return text, nil
}
