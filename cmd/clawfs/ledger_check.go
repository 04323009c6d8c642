package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/rebuild/lint"
	"github.com/openclaw/clawfs/rebuild/sandbox"
)

// builtOutput is one output of a rebuild as the verbs report it.
type builtOutput struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
	File   string `json:"file,omitempty"`
}

// checked is what `ledger check` reports; Outputs are absent with --lint-only.
type checked struct {
	Ledger  string          `json:"ledger"`
	Digest  hashpipe.Digest `json:"digest"`
	Model   string          `json:"model"`
	Version string          `json:"version"`
	Lint    []lint.Finding  `json:"lint"`
	Outputs []builtOutput   `json:"outputs,omitempty"`
}

func newLedgerCheckCommand(a *app) *cobra.Command {
	var v rebuildFlags
	var outputDir string
	var lintOnly bool
	c := &cobra.Command{
		Use:   "check LEDGER",
		Short: "Build a ledger twice here, before anybody signs it",
		Long: `Fetches the inputs, checks their digests, runs the build twice in the sandbox in
varied surroundings, and compares every output byte for byte. That is what each
consumer's worker will do. A ledger that passes may still differ on another kind
of processor: see --cpu-features of ledger new.

Before it builds it warns of what is known to keep a build from repeating:
threads that nothing bounds, Python without PYTHONHASHSEED, archives with times,
commands that ask the clock or the network, tags that move. A warning changes
neither the exit code nor what the builds show. --lint-only stops after them.

Exit code 0: both builds gave the same bytes, or --lint-only. 5: they differ; the
diagnosis says where and hints why. 3: the build does not run, or what it does is
not allowed.`,
		Example: `  clawfs ledger check langid.json
  clawfs ledger check langid.json --lint-only
  clawfs ledger check langid.json --output-dir ./built --log -`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if lintOnly && outputDir != "" {
				return exitf(codeUsage, "--lint-only builds nothing that --output-dir could keep; leave one of them out")
			}
			l, err := readLedger(args[0])
			if err != nil {
				return err
			}
			p := l.Statement().Predicate
			result := checked{Ledger: args[0], Digest: l.Digest(), Model: p.Model, Version: p.Version, Lint: lint.Check(l.Statement(), nil)}
			if lintOnly {
				return a.print(result, func() {
					for _, f := range result.Lint {
						a.printf("%s\n", printable(f.String()))
					}
					a.printf("%s in %s %s; nothing was built\n", warnings(len(result.Lint)), printable(p.Model), printable(p.Version))
				})
			}
			if a.output != "json" { // there they are part of the result
				for _, f := range result.Lint {
					a.notef("%s\n", printable(f.String()))
				}
			}
			r, closeAll, err := a.reproduce(c.Context(), l, v)
			if err != nil {
				return err
			}
			defer closeAll()
			if result.Outputs, err = keepOutputs(r.Outputs(), outputDir); err != nil {
				return err
			}
			return a.print(result, func() {
				a.printf("two builds of %s %s gave the same bytes\n", printable(p.Model), printable(p.Version))
				for _, o := range result.Outputs {
					a.printf("  %s  %s  %s\n", o.SHA256, humanize.IBytes(uint64(o.Size)), printable(o.Name))
				}
				a.printf("next: clawfs ledger sign %s --key KEYFILE --out FILE.sba\n", args[0])
			})
		},
	}
	v.register(c)
	c.Flags().BoolVar(&lintOnly, "lint-only", false, "print the warnings and build nothing; needs no root and fetches nothing")
	c.Flags().StringVar(&outputDir, "output-dir", "", "keep the built outputs in this `directory`")
	return c
}

func warnings(n int) string {
	if n == 1 {
		return "1 warning"
	}
	return fmt.Sprintf("%d warnings", n)
}

// keepOutputs describes outputs and, with a directory, copies them there: all,
// or on an error none.
func keepOutputs(outputs []sandbox.Output, dir string) ([]builtOutput, error) {
	var built []builtOutput
	var kept []string
	undo := func(err error) ([]builtOutput, error) {
		for _, path := range kept {
			os.Remove(path)
		}
		return nil, err
	}
	for _, o := range outputs {
		m := o.Measurement()
		b := builtOutput{Name: o.Name(), SHA256: m.Sum().String(), Size: m.Size()}
		if dir != "" {
			b.File = filepath.Join(dir, filepath.FromSlash(o.Name()))
			if err := copyOutput(o, b.File); err != nil {
				return undo(err)
			}
			kept = append(kept, b.File)
		}
		built = append(built, b)
	}
	return built, nil
}

// copyOutput copies one output to path, whole or not at all. An existing file
// is not overwritten.
func copyOutput(o sandbox.Output, path string) error {
	in, err := o.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return durable.CreateFrom(path, 0o644, func(f *os.File) error {
		if _, err := io.Copy(f, in); err != nil {
			return fmt.Errorf("copying output %s: %w", o.Name(), err)
		}
		return nil
	})
}
