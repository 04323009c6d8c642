package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

func newStoreHeadCommand(a *app) *cobra.Command {
	var keyRef, out string
	c := &cobra.Command{
		Use:   "head",
		Short: "Show and sign the newest fact that the store acknowledged",
		Long: `head shows the store's id, how many facts it has acknowledged, the hash of the chain
of them, and the time of the newest. With --key or --out it signs that: keep the file
elsewhere, or hand it to a transparency log with clawfs log add. Whoever puts the
whole state directory back to an older copy is then noticed: the log does not take a
head that goes back, and clawfs store verify --head FILE says so.

The daemon need not run, and has no part in it. The key is one of a mint or of a
revoker of the policy. The same head has the same text, so that a log has it once.

Exit code 3: the store has acknowledged nothing. 4: the key is none of the policy.`,
		Example: `  clawfs store head
  clawfs store head --out host7.head && clawfs log add host7.head
  clawfs store head --key ssh-agent:mint.pub --out host7.head`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.storeHead(c.Context(), keyRef, out) },
	}
	c.Flags().StringVar(&keyRef, "key", "", keyHelp+" (default mint.key in the state directory)")
	c.Flags().StringVar(&out, "out", "", "write the signed head to this `file`, - for standard output (default -, if --key is given)")
	return c
}

func (a *app) storeHead(ctx context.Context, keyRef, out string) error {
	s := a.config()
	h, err := capstore.ReadHead(s.Memory())
	if err != nil {
		return exitf(codeRefused, "%w; next: %s", err, a.command("store", "verify"))
	}
	if keyRef != "" || out != "" {
		if keyRef == "" {
			keyRef = "file:" + s.MintKey()
		}
		if out == "" {
			out = "-"
		}
		key, err := a.openOperator(ctx, keyRef, "mint or revoker", func(p config.Policy) []verifier.Operator { return slices.Concat(p.Mints, p.Revokers) })
		if err != nil {
			return err
		}
		envelope, err := capstore.SignHead(ctx, h, key)
		if err != nil {
			return signed(err)
		}
		if err := a.writeResult(out, envelope); err != nil || out == "-" {
			return err
		}
	}
	return a.print(h, func() {
		a.table([]string{"store", h.Store}, [][]string{
			{"sequence", strconv.FormatUint(h.Sequence, 10)},
			{"hash", h.Hash.String()},
			{"newest", stamp(h.Newest)},
		})
		if out != "" {
			a.notef("next: clawfs log add %s, or keep it on another machine\n", shellWord(out))
		}
	})
}

// readHead reads a signed head, and, where the policy has logs, its proof.
func (a *app) readHead(path, proof string) (capstore.Head, error) {
	none := capstore.Head{}
	policy, err := a.config().LoadPolicy()
	if err != nil {
		return none, err
	}
	text, err := readBounded(path, capstore.MaxRecord)
	if err != nil {
		return none, err
	}
	h, key, err := capstore.VerifyHead(policy.Trust(), text)
	if err != nil {
		return none, exitf(recordCode(err), "%s: %w", printable(path), notThat(err, text, anyFile))
	}
	logs, err := policy.LogPolicy()
	if err != nil {
		return none, err
	}
	if logs.IsZero() {
		if proof != "" {
			return none, exitf(codeUsage, "--proof %s: the policy names no logs, so nothing shows whether it is one; next: leave --proof out", printable(proof))
		}
		return h, nil
	}
	log, err := readBeside(proof, proofFile(path), tlog.MaxProof)
	if err != nil {
		return none, err
	}
	if log == nil {
		return none, exitf(codeRefused, "%s: the policy names logs, and there is no proof that this head lies in one: expected %s; next: clawfs log add %s", printable(path), printable(proofFile(path)), shellWord(path))
	}
	e, err := dsse.Parse(text)
	if err != nil {
		return none, err
	}
	leaf, err := tlog.LeafOf(tlog.KindStoreHead, e.UnverifiedPayload(), key, "")
	if err != nil {
		return none, err
	}
	if _, err := tlog.Verify(logs, log, leaf); err != nil {
		return none, logRefusal(fmt.Errorf("%s: %w; next: clawfs log prove %s", printable(path), err, shellWord(path)))
	}
	return h, nil
}
