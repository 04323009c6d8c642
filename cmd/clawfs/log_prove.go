package main

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/verifier/tlog"
)

func newLogProveCommand(a *app) *cobra.Command {
	var where logFlags
	var out, key string
	c := &cobra.Command{
		Use:   "prove FILE",
		Short: "Ask for a proof of an entry at the log's newest checkpoint",
		Long: `Finds the entry of FILE in a log, and writes a proof at the log's newest checkpoint
to FILE.tlog-proof. The log is read like any other client reads it, from its URL,
from a copy on a web server, or from a directory; each hash is checked against the
checkpoint. A proof that lies there already says where to look first; without one,
32 bytes are read for each entry of the log.

Exit code: 0 proved. 3 the log does not have it, or shows no checkpoint with the
policy's quorum. 4 the checkpoint is of another log.`,
		Example: `  clawfs log prove langid.sba --log https://log.example.org --log-policy log.policy
  clawfs log prove langid.sba --log /srv/mirror/log --log-policy log.policy --out -`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.logProve(c.Context(), args[0], where, key, cmp.Or(out, proofFile(args[0])))
		},
	}
	where.register(c, "`URL` or directory of the log")
	c.Flags().StringVar(&out, "out", "", "`file` for the proof, - for standard output (default FILE.tlog-proof)")
	c.Flags().StringVar(&key, "key", "", "public `keyfile` that must have signed FILE (default the key that FILE names, unchecked)")
	return c
}

func (a *app) logProve(ctx context.Context, path string, where logFlags, key, out string) error {
	e, err := readEntry(path, key)
	if err != nil {
		return err
	}
	policy, location, err := a.logs(where)
	if err != nil {
		return err
	}
	l, err := translog.Open(location, policy)
	if err != nil {
		return err
	}
	c, err := l.Checkpoint(ctx)
	if err != nil {
		return logRefusal(err)
	}
	index, err := l.Find(ctx, c, e.leaf, indexOf(proofFile(path)))
	if err != nil {
		return logRefusal(fmt.Errorf("%s: %w; next: clawfs log add", printable(path), err))
	}
	p, err := l.Prove(ctx, c, index)
	if err != nil {
		return err
	}
	text, err := p.Encode()
	if err != nil {
		return err
	}
	return a.keepProof(policy, e, text, out)
}

// indexOf reads the index of a proof that lies there, -1 if there is none. It is a
// hint, and whoever gets it looks.
func indexOf(path string) int64 {
	text, err := readBounded(path, tlog.MaxProof)
	if err != nil {
		return -1
	}
	p, err := tlog.ParseProof(text)
	if err != nil {
		return -1
	}
	return p.Index
}
