package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog/logserver"
	"github.com/openclaw/clawfs/verifier/tlog"
)

func newLogStaticCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "static DIR OUT",
		Short: "Copy what is public of a log, for any web server",
		Long: `Copies the checkpoint, the tiles and the envelopes of the log in DIR to the directory
OUT, which any web server can serve as files. The checkpoint comes last, after all
that it promises is on stable storage. Run it again to add what is new; DIR may be
served in the meantime. What is copied is checked against the log's key and root. An
OUT that is newer than DIR, or of another log, is refused and stays as it is.`,
		Example: `  clawfs log static /srv/log /var/www/log`,
		Args:    cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := noEmptyPath(c, args); err != nil {
				return err
			}
			key, err := logserver.VerifierKey(args[0])
			if err != nil {
				return err
			}
			policy, err := tlog.ParsePolicy(fmt.Appendf(nil, "log %s\nquorum none\n", key))
			if err != nil {
				return err
			}
			l, err := translog.Open(args[0], policy)
			if err != nil {
				return err
			}
			done, err := l.Copy(c.Context(), args[1])
			if err != nil {
				return logRefusal(err)
			}
			return a.print(done, func() {
				a.printf("%s: size %d, new %d, files written %d\n", printable(done.Origin), done.Size, done.New, done.Files)
			})
		},
	}
	return c
}
