package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// app is what every verb shares: the streams and the persistent flags. state
// is absolute and output is "table" or "json" once a verb's RunE is called.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	state          string
	output         string
	quiet          bool
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	out := &resultWriter{w: stdout}
	a := &app{stdin: stdin, stdout: out, stderr: stderr}
	root := newRootCommand(a)
	root.SetArgs(args)
	c, err := root.ExecuteContextC(ctx)
	var quiet *quietExit
	if out.err != nil && (err == nil || errors.As(err, &quiet) || errors.Is(err, out.err)) {
		err = fmt.Errorf("the result could not be written: %w", out.err)
	}
	if err == nil {
		return codeDone
	}
	var coded *exitError
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = errors.New("interrupted; nothing was left half done")
	}
	if !errors.As(err, &coded) && isUsage(err) {
		err = exit(codeUsage, usageError(c, err))
	}
	err = a.stateError(err)
	err = &spoken{a.here(err.Error()), err}
	reportError(stderr, err, a.output)
	return exitCode(err)
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "clawfs",
		Short: "Open only those model files that a rebuild of their signed recipe produced",
		Long: `clawfs mounts a directory of model files. A file opens only if its bytes are
the bytes that an independent rebuild of a publisher's signed recipe produced.
Where the file was downloaded from does not matter, and who is asking neither.`,
		Example: `  clawfs init
  clawfs publisher trust acme.pub --name acme --models 'acme/*'
  clawfs mount /srv/downloads /models
  clawfs grant langid.sba --wait
  clawfs why /models/langid.bin`,
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
		Args:                       unknownVerb,
		RunE:                       func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE:          func(*cobra.Command, []string) error { return a.resolve() },
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return exitf(codeUsage, "%s; see `%s --help`", goParsing.ReplaceAllString(err.Error(), ""), c.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVar(&a.state, "state", "", "state `directory` (default $CLAWFS_STATE, else /var/lib/clawfs for root, else $XDG_STATE_HOME/clawfs)")
	f.StringVarP(&a.output, "format", "o", "table", "output `format`: table or json")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no progress on standard error")
	for _, g := range verbGroups {
		if g.id != "" {
			root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		}
		for _, verb := range g.verbs {
			c := verb(a)
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	root.InitDefaultHelpCmd()
	for _, c := range root.Commands() {
		if c.Name() == "help" { // it would print the help of what is left of the line
			c.Args = func(_ *cobra.Command, args []string) error {
				verb, rest, err := root.Find(args)
				if err != nil {
					return err
				}
				return unknownVerb(verb, rest)
			}
		}
	}
	return root
}

// resolve settles the persistent flags.
func (a *app) resolve() error {
	if a.output != "table" && a.output != "json" {
		got := a.output
		a.output = "table"
		return exitf(codeUsage, "--format %q: want table or json", got)
	}
	if a.state == "" {
		dir, err := defaultState(os.Getenv, os.Geteuid())
		if err != nil {
			return exit(codeUsage, err)
		}
		a.state = dir
	}
	abs, err := filepath.Abs(a.state)
	if err != nil {
		return err
	}
	a.state = abs
	return nil
}

// defaultState is the state directory of a process whose effective user is uid.
func defaultState(getenv func(string) string, uid int) (string, error) {
	if dir := getenv("CLAWFS_STATE"); dir != "" {
		return dir, nil
	}
	if uid == 0 {
		return "/var/lib/clawfs", nil
	}
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "clawfs"), nil
	}
	if home := getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "clawfs"), nil
	}
	return "", errors.New("no state directory: HOME is not set; give --state DIR")
}

// unknownVerb refuses a verb that does not exist and names the nearest ones.
func unknownVerb(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	msg := fmt.Sprintf("no verb %q in `%s`", args[0], c.CommandPath())
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		msg += "; did you mean " + strings.Join(near, ", ") + "?"
	}
	return exitf(codeUsage, "%s; see `%s --help`", msg, c.CommandPath())
}

// group is a verb that only holds other verbs.
// completes lets shells offer the values of a flag that takes no others.
func completes(c *cobra.Command, flag string, values []string) {
	c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

func group(use, short, long string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Long: long,
		Args:                       unknownVerb,
		SuggestionsMinimumDistance: 2,
		RunE: func(c *cobra.Command, _ []string) error {
			return exitf(codeUsage, "`%s` needs a verb; see `%s --help`", c.CommandPath(), c.CommandPath())
		},
	}
	c.AddCommand(verbs...)
	return c
}

// noEmptyPath refuses arguments that an unset variable left empty: they would
// mean the working directory.
func noEmptyPath(c *cobra.Command, args []string) error {
	if slices.Contains(args, "") {
		return exitf(codeUsage, "want `%s`, got an empty path; see `%s --help`", strings.TrimSuffix(c.UseLine(), " [flags]"), c.CommandPath())
	}
	return nil
}

// goParsing is what Go's number parser puts before its reason.
var goParsing = regexp.MustCompile(`strconv\.\w+: parsing "[^"]*": `)

// usageError says in cobra's place what the verb wants: cobra counts arguments
// without naming them.
func usageError(c *cobra.Command, err error) error {
	s := err.Error()
	if flags, ok := strings.CutPrefix(s, "required flag(s) "); ok {
		flags = strings.TrimSuffix(flags, " not set")
		return fmt.Errorf("`%s` needs --%s too; see `%[1]s --help`", c.CommandPath(), strings.ReplaceAll(strings.ReplaceAll(flags, `"`, ""), ", ", ", --"))
	}
	wants, _, _ := strings.Cut(strings.TrimSuffix(c.UseLine(), " [flags]"), " --")
	wants = "`" + wants + "`"
	if wants == "`"+c.CommandPath()+"`" {
		wants += " without arguments"
	}
	got := "1 argument"
	if n := c.Flags().NArg(); n != 1 {
		got = fmt.Sprintf("%d arguments", n)
	}
	return fmt.Errorf("want %s, got %s; see `%s --help`", wants, got, c.CommandPath())
}

// resultWriter remembers that a result did not arrive, as on a full disk, for
// the writers of tables that look at no error.
type resultWriter struct {
	w   io.Writer
	err error
}

func (r *resultWriter) Write(p []byte) (int, error) {
	n, err := r.w.Write(p)
	if err != nil && r.err == nil {
		r.err = err
	}
	return n, err
}

// stateError adds the next command to an error of the file system in the state
// directory: that it is not there, or that it belongs to somebody else.
func (a *app) stateError(err error) error {
	var path *fs.PathError
	var gone *control.UnreachableError
	switch {
	case a.state == "" || errors.Is(err, config.ErrNoState):
		return err
	case errors.As(err, &gone):
	case !errors.As(err, &path) || !below(path.Path, a.state):
		return err
	}
	code := exitCode(err)
	fi, statErr := os.Stat(a.state)
	switch {
	case errors.Is(statErr, fs.ErrNotExist):
		return exitf(code, "%w %s; next: %s", config.ErrNoState, a.state, a.command("init"))
	case statErr == nil && !fi.IsDir():
		return exitf(code, "the state directory %s is not a directory; give --state DIR", a.state)
	case errors.Is(err, fs.ErrPermission):
		return exitf(code, "this user (uid %d) may not use the state directory %s; run it as its owner, such as with sudo, or give --state DIR", os.Geteuid(), a.state)
	}
	return err
}

// isUsage recognises the errors that cobra makes itself for a wrong number of
// arguments or a missing required flag; it gives them no type.
func isUsage(err error) bool {
	s := err.Error()
	for _, p := range []string{"accepts ", "requires at least ", "required flag(s) ", "unknown command ", "if any flags in the group ", "at least one of the flags "} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}
