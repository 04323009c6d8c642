package main

import (
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
)

// nodeScratch is where builds on a node have their files: on its own disk.
const nodeScratch = "/var/tmp/clawfs-node"

// newBuildRunCommand is what a cluster runs on a node for a worker elsewhere:
// one run of a recipe, without keys, policy or store. Exit code 0 means that
// the answer is whole, also when it is that the build failed.
func newBuildRunCommand(a *app) *cobra.Command {
	var spec, scratch string
	var sweep bool
	c := &cobra.Command{
		Use:    "build-run --spec FILE",
		Short:  "Run one build on a cluster's node",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(c *cobra.Command, _ []string) error {
			if (spec == "") != sweep {
				return exitf(codeUsage, "want --spec FILE or --sweep, one of them")
			}
			if !sweep && !filepath.IsAbs(spec) {
				return exitf(codeUsage, "--spec %q: want an absolute path", spec)
			}
			unix.Umask(0o077)
			settings, err := config.State(a.state).LoadSettings(os.Geteuid())
			if err != nil {
				return err
			}
			runtime, err := findRuntime(settings)
			if err != nil {
				return err
			}
			if sweep {
				return runtime.Tidy(c.Context(), scratch)
			}
			return runtime.Answer(c.Context(), spec, scratch)
		},
	}
	f := c.Flags()
	f.StringVar(&spec, "spec", "", "the order of a worker: a `file` in an exchange directory")
	f.BoolVar(&sweep, "sweep", false, "remove what builds that were killed left on this node")
	f.StringVar(&scratch, "scratch", nodeScratch, "`directory` for the build's files")
	return c
}
