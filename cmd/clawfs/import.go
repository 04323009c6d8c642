package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
)

func newImportCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE.cap",
		Short: "Take over a capability that another machine granted or handed on",
		Long: `import hands FILE.cap to the daemon, which checks every signature of it: the first
has to be of a mint that the policy names, each further one of a key that the
link before it names. When import returns, the capability is on stable storage.

It counts as the result of the operator whose mint signed it. Whether it opens a
file is what the policy, revocations and its own restrictions say; the state that
import prints is that of caps. A narrower capability takes nothing away from a
wider one in the same store.

Exit code 3: FILE.cap is no capability, or its links do not fit together. 4: a
signature, or who signed, is not acceptable.`,
		Example: "  clawfs import team.cap",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.importCapability(c.Context(), args[0])
		},
	}
}

// importedCapability is what became of a capability's text.
type importedCapability struct {
	control.RecordAnswer
	Capability *control.Capability `json:"capability,omitempty"`
}

func (a *app) importCapability(ctx context.Context, path string) error {
	text, err := readBounded(path, capstore.MaxRecord)
	if err != nil {
		return err
	}
	// The answer to a file of another kind comes from here.
	if _, err := describeCapability(path, text); err != nil {
		return err
	}
	c, err := a.daemon(ctx)
	if err != nil {
		return err
	}
	res, err := c.SubmitRecord(ctx, control.RecordSubmission{Kind: capstore.RecordCapability, Envelope: text})
	if err != nil {
		return fmt.Errorf("%s: %w", printable(path), a.answered(err))
	}
	if res.Outcome == control.RecordSkipped {
		return exitf(codeSignature, "%s: %s", printable(path), res.Reason)
	}
	answer := importedCapability{RecordAnswer: res}
	if answer.Capability, err = findCapability(ctx, c, res.ID); err != nil {
		return a.answered(err)
	}
	late := a.awaitMounts(ctx, c)
	return a.print(answer, func() {
		what := "added"
		if res.Outcome == control.RecordKnown {
			what = "there already"
		}
		a.printf("capability %s: %s\n", res.ID, what)
		if k := answer.Capability; k != nil {
			a.printf("  model        %s %s\n  operator     %s\n  state        %s\n", printable(k.Model), printable(k.Version), printable(k.Operator), k.State)
			for i, r := range k.Restrictions {
				label := "only"
				if i > 0 {
					label = "and only"
				}
				a.printf("  %-12s %s\n", label, printable(r))
			}
		}
		for _, m := range late {
			a.notef("the mount at %s has not confirmed it yet\n", printable(m))
		}
	})
}

func findCapability(ctx context.Context, c *control.Client, id hashpipe.Digest) (*control.Capability, error) {
	caps, err := c.Capabilities(ctx)
	for _, k := range caps {
		if k.ID == id {
			return &k, nil
		}
	}
	return nil, err
}
