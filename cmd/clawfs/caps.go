package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// shortID is how many hex digits of an identity a table shows; `revoke` takes
// as few as minPrefix.
const (
	shortID   = 16
	minPrefix = 8
)

func newCapsCommand(a *app) *cobra.Command {
	var files bool
	c := &cobra.Command{
		Use:   "caps",
		Short: "List the capabilities",
		Long: `caps lists every capability in the store with what it is good for now: live,
pending (not begun yet), expired, revoked, waiting (too few operators have the
same result), disputed (an operator has another result of the same attestation)
or stale (the revocation list or the policy is too old). "restricted" beside it
says that it opens for some users, paths or mounts alone; -o json says which.
"base revoked" beside it says that a model from which it was built was taken back;
it opens all the same until it is revoked itself. "N of M files revoked" beside it
says that these files were taken back by their content. LEVEL is "rebuilt" by one
operator or "reproduced-N" by N of them. --files shows each file that a capability
opens, with its full SHA-256.`,
		Example: `  clawfs caps
  clawfs caps --files
  clawfs caps -o json | jq -r '.[] | select(.state=="waiting") | .missing[]'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			caps, err := a.client().LoggedCapabilities(c.Context())
			if err != nil {
				return a.answered(err)
			}
			return a.print(caps, func() {
				header := []string{"ID", "STATE", "MODEL", "VERSION", "SEQ", "LEVEL", "OPERATOR", "NOT AFTER", "LOGGED", "FILES"}
				if files {
					header = []string{"ID", "STATE", "MODEL", "VERSION", "SHA256", "SIZE", "FILE"}
				}
				var rows [][]string
				for _, k := range caps {
					id, state := k.ID.String()[:shortID], k.State
					if n := k.LostFiles(); n > 0 {
						state += fmt.Sprintf(", %d of %d files revoked", n, len(k.Files))
					}
					if k.Lost() {
						state += ", base revoked"
					}
					if len(k.Restrictions) > 0 {
						state += ", restricted"
					}
					if !files {
						var names []string
						for _, f := range k.Files {
							names = append(names, f.Name)
						}
						rows = append(rows, []string{id, state, k.Model, k.Version, strconv.FormatInt(k.Sequence, 10), k.Level, k.Operator, stamp(k.NotAfter), dash(loggedText(k.Logged)), strings.Join(names, " ")})
						continue
					}
					for _, f := range k.Files {
						state := state
						if f.Revoked != nil {
							state = "revoked"
						}
						rows = append(rows, []string{id, state, k.Model, k.Version, f.SHA256.String(), strconv.FormatInt(f.Size, 10), f.Name})
					}
				}
				a.table(header, rows)
			})
		},
	}
	c.Flags().BoolVar(&files, "files", false, "one line for each file")
	return c
}
