package main

import (
	"errors"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// adopted is what `key adopt` reports.
type adopted struct {
	rotation
	// ValidUntil is when the old key ends; it is not set for mints and revokers,
	// whose old keys stay.
	ValidUntil verifier.Time `json:"oldValidUntil,omitzero"`
}

func newKeyAdoptCommand(a *app) *cobra.Command {
	retireAfter := 720 * time.Hour
	var draft string
	c := &cobra.Command{
		Use:   "adopt FILE",
		Short: "Let policy.json trust the key that a rotation record names",
		Long: `Adds the new key of the record to the publisher or operator in policy.json to
which the old one belongs. Both must have signed the record, and the old key must
count at this moment. The record does not say that the old key was not stolen:
compare the new key's id with its owner's.

Of a publisher the old key goes on counting for --retire-after, and ends then;
publisher list shows it. Grants that were made before stay. A rule that needs
more than one signature takes --retire-after 0 only, because one holder would
have two of the keys that must be different.

The old keys of mints and revokers stay in the policy: the capabilities and the
revocations that they signed would end with them.`,
		Example: `  clawfs key adopt acme.rotation
  clawfs key adopt acme.rotation --retire-after 0`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			text, err := readBounded(args[0], dsse.MaxEnvelope)
			if err != nil {
				return err
			}
			r, err := verifier.ParseRotation(text)
			if err != nil {
				return refusal(args[0], notThat(err, text, anyFile))
			}
			p := r.Predicate()
			if p.Role != verifier.RolePublisher && c.Flags().Changed("retire-after") {
				return exitf(codeUsage, "--retire-after is for publishers; the old key of a %s stays in the policy, because what it signed would end with it", p.Role)
			}
			var edited *verifier.Policy
			err = a.editPolicy(draft, func(old *verifier.Policy) (*verifier.Policy, error) {
				var err error
				edited, err = old.AdoptRotation(r, retireAfter, time.Now())
				return edited, err
			})
			if errors.Is(err, config.ErrSigned) {
				return err
			}
			if err != nil {
				return refusal(args[0], err)
			}
			result := adopted{rotation: shownRotation(args[0], r)}
			if p.Role == verifier.RolePublisher {
				i := slices.IndexFunc(edited.Publishers, func(r verifier.PublisherRule) bool { return r.Name == p.Name })
				result.ValidUntil = edited.Publishers[i].Windows[p.Old.KeyID].NotAfter
			}
			a.noteOtherRules(edited, p)
			return a.print(result, func() {
				a.printf("adopted for %s %s: %s\n", result.Role, result.Name, printable(result.Reason))
				a.printf("new key  %s, from %s\n", result.New, result.NotBefore)
				if result.ValidUntil.IsZero() {
					a.printf("old key  %s, stays\n", result.Old)
				} else {
					a.printf("old key  %s, until %s\n", result.Old, result.ValidUntil)
				}
			})
		},
	}
	registerDraft(c, &draft)
	c.Flags().DurationVar(&retireAfter, "retire-after", retireAfter, "how long a publisher's old key goes on counting beside the new one")
	return c
}

// noteOtherRules names the rules that the record does not speak of and in which
// the old key counts all the same.
func (a *app) noteOtherRules(p *verifier.Policy, q verifier.RotationPredicate) {
	for _, r := range p.Publishers {
		if (q.Role != verifier.RolePublisher || r.Name != q.Name) && slices.Contains(r.Keys, q.Old.PublicKey) {
			a.notef("the old key is a key of publisher %s too, and stays one; it needs a record for that name\n", r.Name)
		}
	}
}
