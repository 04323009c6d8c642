package main

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
)

func newLogAddCommand(a *app) *cobra.Command {
	var where logFlags
	var out, key string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "add FILE",
		Short: "Hand an entry to a log and keep the proof",
		Long: `Hands a signed build attestation, a capability, a revocation or the head of a store
to a log, waits until a checkpoint with it is published and cosigned, checks the proof by the log policy,
and writes it to FILE.tlog-proof. Publish both files together: the proof is checked
without the log. An entry that the log has already gets a proof too.

While the quorum of witnesses is missing it asks again and says why. The entry is
not lost if it is interrupted; the same command goes on.

Exit code: 0 logged. 3 the log does not take it, or the proof proves nothing. 4 the
log does not take it from this signer, or the proof is of another log. 6 not
published within --timeout.`,
		Example: `  clawfs log add langid.sba --log https://log.example.org --log-policy log.policy
  clawfs log add langid.sba --log-policy log.policy --key acme.pub --timeout 2m`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if timeout < 0 {
				return exitf(codeUsage, "--timeout %v: want a time of at least 0", timeout)
			}
			return a.logAdd(c.Context(), args[0], where, key, cmp.Or(out, proofFile(args[0])), timeout)
		},
	}
	where.register(c, "`URL` of the log")
	c.Flags().StringVar(&out, "out", "", "`file` for the proof, - for standard output (default FILE.tlog-proof)")
	c.Flags().StringVar(&key, "key", "", "public `keyfile` that must have signed FILE (default the key that FILE names, unchecked)")
	c.Flags().DurationVar(&timeout, "timeout", 0, "how long to wait for the checkpoint (default for ever)")
	return c
}

func (a *app) logAdd(ctx context.Context, path string, where logFlags, key, out string, timeout time.Duration) error {
	e, err := readEntry(path, key)
	if err != nil {
		return err
	}
	policy, location, err := a.logs(where)
	if err != nil {
		return err
	}
	within := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		within, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var told string
	for {
		text, err := translog.Submit(within, location, e.envelope)
		if err == nil {
			return a.keepProof(policy, e, text, out)
		}
		var pending *translog.PendingError
		waits := errors.As(err, &pending)
		if waits {
			if pending.Detail != told {
				told = pending.Detail
				a.notef("waiting: %s\n", printable(told))
			}
			wait(within, time.After(pending.RetryAfter))
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case within.Err() != nil:
			return exitf(codePending, "%s is not published within %v: %s; next: the same command again", printable(path), timeout, printable(cmp.Or(told, "the log does not answer")))
		case !waits:
			return logRefusal(err)
		}
	}
}
