package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newPolicyDiffCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "diff OLD [NEW]",
		Short: "Say what another policy changes",
		Long: `Compares the meaning of two policies, each a policy.json or signed policies, whose
last counts. Every change is one line: + is trusted or allowed in addition, - no
longer, ~ changed. The order of rules and keys means nothing and is no change.
Without NEW the policy of the state directory is OLD, and the file is NEW.

Exit code 0: they mean the same. 5: they differ.`,
		Example: `  clawfs policy diff next.dsse
  clawfs policy diff policy-6.dsse policy-7.dsse -o json | jq -r '.changes[].text'`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(_ *cobra.Command, args []string) error {
			var before policyDoc
			var err error
			if len(args) == 2 {
				before, err = readPolicyFile(args[0])
			} else {
				before, err = a.policyArgument(nil)
			}
			if err != nil {
				return err
			}
			after, err := readPolicyFile(args[len(args)-1])
			if err != nil {
				return err
			}
			changes := policyChanges(before.policy, after.policy)
			result := struct {
				Changes []policyChange `json:"changes"`
			}{changes}
			if err := a.print(result, func() { a.showChanges(changes) }); err != nil {
				return err
			}
			if len(changes) > 0 {
				return &quietExit{codeDiffers}
			}
			return nil
		},
	}
}

func (a *app) showChanges(changes []policyChange) {
	for _, c := range changes {
		a.printf("%s %s\n", c.Kind, printable(c.Text))
	}
}

// The kinds of a change.
const (
	added   = "+"
	removed = "-"
	altered = "~"
)

// policyChange is one difference between two policies.
type policyChange struct {
	Kind string `json:"kind"` // added, removed or altered
	Text string `json:"text"` // one line
}

// changeList collects changes below a common prefix.
type changeList struct {
	prefix string
	list   *[]policyChange
}

func (l changeList) add(kind, format string, args ...any) {
	*l.list = append(*l.list, policyChange{kind, l.prefix + fmt.Sprintf(format, args...)})
}

func (l changeList) below(prefix string) changeList { return changeList{l.prefix + prefix, l.list} }

// value compares two texts of one thing; "" is not there.
func (l changeList) value(name, before, after string) {
	switch {
	case before == after:
	case before == "":
		l.add(added, "%s %s", name, after)
	case after == "":
		l.add(removed, "%s %s", name, before)
	default:
		l.add(altered, "%s: %s, was %s", name, after, before)
	}
}

// set compares two lists whose order means nothing.
func (l changeList) set(name string, before, after []string) {
	for _, s := range before {
		if !slices.Contains(after, s) {
			l.add(removed, "%s %s", name, s)
		}
	}
	for _, s := range after {
		if !slices.Contains(before, s) {
			l.add(added, "%s %s", name, s)
		}
	}
}

func (l changeList) keys(name string, before, after []dsse.PublicKey) {
	l.set(name, texts(keyIDs(before)), texts(keyIDs(after)))
}

func texts(ids []dsse.KeyID) []string {
	list := make([]string, len(ids))
	for i, id := range ids {
		list[i] = string(id)
	}
	return list
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprint(n)
}

// policyChanges lists what after means other than before.
func policyChanges(before, after *verifier.Policy) []policyChange {
	list := []policyChange{}
	l := changeList{"", &list}
	l.value("revision", number(before.Revision), number(after.Revision))
	l.value("expires", timeText(before.Expires), timeText(after.Expires))
	rootChanges(l, before.Root, after.Root)
	publisherChanges(l, before.Publishers, after.Publishers)
	operatorChanges(l, "mint", before.Mints, after.Mints)
	operatorChanges(l, "revoker", before.Revokers, after.Revokers)
	acceptChanges(l, before.Accept, after.Accept)
	if before.Logs != after.Logs {
		logs := l.below("logs: ")
		logs.set("line", logLines(before), logLines(after))
	}
	l.set("builds: environment variable", before.Builds.Env, after.Builds.Env)
	b, n := before.Builds.Limits, after.Builds.Limits
	limits := l.below("builds: ")
	for _, f := range []struct {
		name          string
		before, after int64
	}{
		{"memoryBytes", b.MemoryBytes, n.MemoryBytes}, {"processes", b.Processes, n.Processes}, {"wallSeconds", b.WallSeconds, n.WallSeconds},
		{"outputBytes", b.OutputBytes, n.OutputBytes}, {"logBytes", b.LogBytes, n.LogBytes},
	} {
		limits.value(f.name, number(f.before), number(f.after))
	}
	limits.value("cpus", fmt.Sprint(b.CPUs), fmt.Sprint(n.CPUs))
	return list
}

func timeText(t verifier.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.String()
}

// logLines are the lines of a log policy that mean something.
func logLines(p *verifier.Policy) []string {
	logs, err := p.LogPolicy()
	if err != nil || logs.IsZero() {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(logs.Encode()), "\n"), "\n")
}

func rootChanges(l changeList, before, after *verifier.Root) {
	if before == nil && after == nil {
		return
	}
	if before == nil {
		before = &verifier.Root{}
	}
	if after == nil {
		after = &verifier.Root{}
	}
	l = l.below("root: ")
	l.value("threshold", number(before.Threshold), number(after.Threshold))
	l.keys("key", before.Keys, after.Keys)
}

func publisherChanges(l changeList, before, after []verifier.PublisherRule) {
	named := func(list []verifier.PublisherRule) map[string]verifier.PublisherRule {
		m := make(map[string]verifier.PublisherRule)
		for _, r := range list {
			m[r.Name] = r
		}
		return m
	}
	old, now := named(before), named(after)
	for _, name := range bothKeys(old, now) {
		b, was := old[name]
		n, is := now[name]
		l := l.below("publisher " + name + ": ")
		switch {
		case was && !is:
			l.add(removed, "models %s", strings.Join(b.Models, ", "))
			continue
		case is && !was:
			l.add(added, "models %s", strings.Join(n.Models, ", "))
		default:
			l.set("model", b.Models, n.Models)
		}
		l.keys("key", b.Keys, n.Keys)
		l.value("threshold", number(b.Threshold), number(n.Threshold))
		l.set("image", b.Images, n.Images)
		for _, model := range bothKeys(b.MinimumSequence, n.MinimumSequence) {
			l.value("minimum sequence of "+model, number(b.MinimumSequence[model]), number(n.MinimumSequence[model]))
		}
		for _, id := range bothKeys(b.Windows, n.Windows) {
			l.value("key "+string(id)+" from", timeText(b.Windows[id].NotBefore), timeText(n.Windows[id].NotBefore))
			l.value("key "+string(id)+" until", timeText(b.Windows[id].NotAfter), timeText(n.Windows[id].NotAfter))
		}
		l.value("log", b.Log, n.Log)
		budgetChanges(l.below("budget: "), b.Budget, n.Budget)
	}
}

func budgetChanges(l changeList, before, after *verifier.Budget) {
	var b, n verifier.Budget
	if before != nil {
		b = *before
	}
	if after != nil {
		n = *after
	}
	l.value("concurrent", number(b.Concurrent), number(n.Concurrent))
	l.value("jobsPerDay", number(b.JobsPerDay), number(n.JobsPerDay))
	l.value("buildSecondsPerDay", number(b.BuildSecondsPerDay), number(n.BuildSecondsPerDay))
}

func operatorChanges(l changeList, role string, before, after []verifier.Operator) {
	named := func(list []verifier.Operator) map[string][]dsse.PublicKey {
		m := make(map[string][]dsse.PublicKey)
		for _, o := range list {
			m[o.Operator] = o.Keys
		}
		return m
	}
	old, now := named(before), named(after)
	for _, name := range bothKeys(old, now) {
		l.keys(role+" "+name+": key", old[name], now[name])
	}
}

// acceptChanges compares the rules by model: that is what they are looked up by.
func acceptChanges(l changeList, before, after []verifier.AcceptRule) {
	switch {
	case before == nil && after != nil:
		l.add(altered, "accept: only what a rule names opens, was one capability of any mint")
	case before != nil && after == nil:
		l.add(altered, "accept: one capability of any mint is enough, was only what a rule names")
	}
	named := func(list []verifier.AcceptRule) map[string]verifier.AcceptRule {
		m := make(map[string]verifier.AcceptRule)
		for _, r := range list {
			for _, model := range r.Models {
				m[model] = r
			}
		}
		return m
	}
	old, now := named(before), named(after)
	for _, model := range bothKeys(old, now) {
		b, was := old[model]
		n, is := now[model]
		l := l.below("accept " + model + ": ")
		if was && !is {
			l.add(removed, "rule")
			continue
		}
		l.value("threshold", number(b.Threshold), number(n.Threshold))
		l.set("operator", b.Operators, n.Operators)
		if was || n.Local != "" {
			l.value("local mint", localText(b), localText(n))
		}
		l.value("maxListAgeSeconds", number(b.MaxListAgeSeconds), number(n.MaxListAgeSeconds))
	}
}

// bothKeys are the keys of two maps, sorted.
func bothKeys[K cmp.Ordered, V any](a, b map[K]V) []K {
	all := maps.Clone(a)
	if all == nil {
		all = make(map[K]V)
	}
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}
