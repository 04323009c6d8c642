package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// explainedPolicy is what a policy says of one model.
type explainedPolicy struct {
	Model     string              `json:"model"`
	Opens     bool                `json:"opens"` // whether anything can ever open it
	Publisher *explainedPublisher `json:"publisher,omitempty"`
	Accept    *explainedAccept    `json:"accept,omitempty"`
	Notes     []string            `json:"notes"`
}

type explainedPublisher struct {
	Name      string       `json:"name"`
	Models    []string     `json:"models"`
	Keys      []dsse.KeyID `json:"keyids"`
	Threshold int64        `json:"threshold"`

	Windows map[dsse.KeyID]verifier.Window `json:"windows,omitempty"`

	Images          []string         `json:"images"`
	MinimumSequence int64            `json:"minimumSequence,omitzero"`
	Log             string           `json:"log,omitzero"`
	Budget          *verifier.Budget `json:"budget,omitempty"`
}

type explainedAccept struct {
	Rule      int                 `json:"rule,omitzero"` // its number, from 1; 0: the policy has no rules
	Operators []explainedOperator `json:"operators"`
	Threshold int64               `json:"threshold"`
	Local     string              `json:"local"`

	MaxListAgeSeconds int64 `json:"maxListAgeSeconds,omitzero"`
}

type explainedOperator struct {
	Operator string       `json:"operator"`
	Keys     []dsse.KeyID `json:"keyids"`
}

func newPolicyExplainCommand(a *app) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "explain MODEL",
		Short: "Say what it takes until the files of a model open",
		Long: `Says which rules of the policy count for MODEL, and what they demand: who must
sign its ledger, in which image it may build, who must have rebuilt it, and how
old the list of revocations may be. Of each kind one rule counts, that with the
most specific pattern.

Exit code 0: the policy names the model. 3: it does not, so nothing of it opens.`,
		Example: `  clawfs policy explain acme/langid
  clawfs policy explain acme/langid --policy next.dsse -o json | jq .accept`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if strings.ContainsAny(args[0], "*") || !strings.Contains(args[0], "/") {
				return exitf(codeUsage, "%q: want one model, such as acme/langid", args[0])
			}
			var files []string
			if file != "" {
				files = []string{file}
			}
			doc, err := a.policyArgument(files)
			if err != nil {
				return err
			}
			e := explainPolicy(doc.policy, args[0], time.Now())
			if err := a.print(e, func() { a.showExplainedPolicy(e) }); err != nil {
				return err
			}
			if !e.Opens {
				return &quietExit{codeRefused}
			}
			return nil
		},
	}
	c.Flags().StringVar(&file, "policy", "", "a policy `file`, signed or not, instead of the policy of the state directory")
	return c
}

func explainPolicy(p *verifier.Policy, model string, now time.Time) explainedPolicy {
	e := explainedPolicy{Model: model, Opens: true, Notes: []string{}}
	refuse := func(format string, args ...any) {
		e.Opens = false
		e.Notes = append(e.Notes, fmt.Sprintf(format, args...))
	}
	if w := expiryWarning(p, now); w != "" {
		e.Notes = append(e.Notes, w)
		e.Opens = now.Before(p.Expires.Time())
	}
	if r, ok := p.Rule(model); ok {
		e.Publisher = &explainedPublisher{
			Name: r.Name, Models: r.Models, Keys: keyIDs(r.Keys), Threshold: r.Threshold, Windows: r.Windows, Images: r.Images,
			MinimumSequence: r.MinimumSequence[model], Log: r.Log, Budget: r.Budget,
		}
	} else {
		refuse("no publisher's rule names %s, so every ledger of it is refused; next: clawfs publisher trust KEYFILE --name NAME --models %s", model, shellWord(model))
	}
	rule, ok := p.AcceptRule(model)
	switch {
	case p.Accept == nil:
		e.Accept = &explainedAccept{Threshold: 1, Local: verifier.LocalCounts}
		for _, o := range p.Mints {
			e.Accept.Operators = append(e.Accept.Operators, explainedOperator{o.Operator, keyIDs(o.Keys)})
		}
	case !ok:
		refuse("no accept rule names %s, and the policy has some, so no capability of it opens a file", model)
	default:
		e.Accept = &explainedAccept{
			Rule:      1 + slices.IndexFunc(p.Accept, func(r verifier.AcceptRule) bool { return slices.Equal(r.Models, rule.Models) }),
			Threshold: rule.Threshold, Local: localText(rule), MaxListAgeSeconds: rule.MaxListAgeSeconds,
		}
		for _, o := range p.Mints {
			if slices.Contains(rule.Operators, o.Operator) {
				e.Accept.Operators = append(e.Accept.Operators, explainedOperator{o.Operator, keyIDs(o.Keys)})
			}
		}
	}
	return e
}

func (a *app) showExplainedPolicy(e explainedPolicy) {
	a.printf("%s\n", printable(e.Model))
	line := func(label, format string, args ...any) {
		a.printf("  %-12s %s\n", label, printable(fmt.Sprintf(format, args...)))
	}
	if r := e.Publisher; r != nil {
		line("publisher", "%s, by the rule for %s", r.Name, strings.Join(r.Models, ", "))
		line("signed by", "%d of %d keys", r.Threshold, len(r.Keys))
		for _, k := range r.Keys {
			line("", "%s", strings.TrimSpace(string(k)+" "+windowText(r.Windows[k])))
		}
		if slices.Contains(r.Images, "*") {
			line("image", "any that the signed ledger names")
		}
		for _, image := range r.Images {
			if image != "*" {
				line("image", "%s", image)
			}
		}
		if r.MinimumSequence > 0 {
			line("sequence", "%d or later", r.MinimumSequence)
		}
		if r.Log != "" {
			line("log", "the ledger must lie in a log of the policy")
		}
		if b := r.Budget; b != nil {
			for _, f := range []struct {
				name string
				n    int64
			}{{"rebuilds at a time", b.Concurrent}, {"jobs a day", b.JobsPerDay}, {"seconds of rebuilds a day", b.BuildSecondsPerDay}} {
				if f.n > 0 {
					line("budget", "%d %s", f.n, f.name)
				}
			}
		}
	}
	if r := e.Accept; r != nil {
		var names []string
		for _, o := range r.Operators {
			names = append(names, o.Operator)
		}
		by := fmt.Sprintf("accept rule %d", r.Rule)
		if r.Rule == 0 {
			by = "the policy has no accept rules"
		}
		line("rebuilt by", "%d of %s (%s)", r.Threshold, strings.Join(names, ", "), by)
		line("local mint", "%s", r.Local)
		if r.MaxListAgeSeconds > 0 {
			line("revocations", "a list that is not older than %s", time.Duration(r.MaxListAgeSeconds)*time.Second)
		}
	}
	for _, n := range e.Notes {
		a.printf("%s\n", printable(n))
	}
}
