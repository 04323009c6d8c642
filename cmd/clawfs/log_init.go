package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog/logserver"
	"github.com/openclaw/clawfs/verifier"
)

func newLogInitCommand(a *app) *cobra.Command {
	var origin, policy string
	c := &cobra.Command{
		Use:   "init DIR --origin NAME --policy FILE",
		Short: "Make the directory and the key of a log",
		Long: `Makes DIR, which must not exist, with a new Ed25519 key and a copy of FILE as its
policy.json: the list of who may add what. It has the format of a state directory's
policy.json. A ledger is taken from the publishers that may speak for its model, if
a rebuild by that policy would be allowed too; a capability from the mints; a
revocation from the revokers. Edit DIR/policy.json at any time: a log that is being
served reads it again, and keeps the one before if the new one is broken.

NAME is the origin: what the log is called in every checkpoint, for good. Take a
name that nobody else takes, such as log.example.org/models.

Standard output is the line of a tlog policy by which verifiers know the log. DIR
may not lie on a network file system. Keep DIR/log.key: who has it can sign a second
tree, and without it the log is at its end.`,
		Example: `  clawfs log init /srv/log --origin log.example.org/models --policy policy.json >>log.policy`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := noEmptyPath(c, args); err != nil {
				return err
			}
			text, err := readBounded(policy, config.MaxFile)
			if err != nil {
				return err
			}
			if _, err := verifier.ParsePolicy(text); err != nil {
				return fmt.Errorf("--policy %s: %w", shellWord(policy), notThat(err, text, anyFile))
			}
			key, err := logserver.Create(args[0], origin, text)
			if err != nil {
				return err
			}
			result := struct {
				Directory string `json:"directory"`
				Origin    string `json:"origin"`
				Key       string `json:"key"`
				Policy    string `json:"policy"`
			}{args[0], origin, key.String(), logserver.PolicyFile(args[0])}
			return a.print(result, func() {
				a.printf("log %s\n", result.Key)
				a.notef("the log's list of who may add what is %s; next: clawfs log serve %s\n", printable(result.Policy), shellWord(args[0]))
			})
		},
	}
	c.Flags().StringVar(&origin, "origin", "", "`name` of the log in its checkpoints")
	c.Flags().StringVar(&policy, "policy", "", "policy.json `file`: who may add what")
	c.MarkFlagRequired("origin")
	c.MarkFlagRequired("policy")
	return c
}
