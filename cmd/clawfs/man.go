package main

import (
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// newManCommand is hidden: packagers run it once.
func newManCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages into a directory",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			date := time.Unix(0, 0).UTC()
			if t, err := time.Parse(time.RFC3339, readVersion().Time); err == nil {
				date = t // of the commit, so that two builds give the same pages
			}
			header := &doc.GenManHeader{Section: "1", Source: "clawfs", Manual: "clawfs manual", Date: &date}
			root := c.Root()
			root.DisableAutoGenTag = true
			keepTables(root)
			if err := doc.GenManTree(root, header, args[0]); err != nil {
				return err
			}
			a.notef("wrote the manual pages to %s\n", args[0])
			return nil
		},
	}
}

// keepTables makes the indented lines of every long text a block that Markdown,
// from which the pages are made, does not flow together.
func keepTables(c *cobra.Command) {
	var out []string
	inside := false
	for _, line := range strings.Split(c.Long, "\n") {
		indented := strings.HasPrefix(line, "  ")
		if indented != inside {
			out = append(out, "")
			inside = indented
		}
		if indented {
			line = "  " + line
		}
		out = append(out, line)
	}
	c.Long = strings.Join(out, "\n")
	for _, sub := range c.Commands() {
		keepTables(sub)
	}
}
