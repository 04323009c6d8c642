package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// startPatience bounds how long a daemon that was just started may take to answer: it
// opens the store twice, which takes some seconds for each million records, and goes
// without it if the first takes longer than probePatience.
const startPatience = 2*probePatience + time.Minute

func (a *app) config() config.State    { return config.State(a.state) }
func (a *app) client() *control.Client { return control.NewClient(a.config().Socket()) }

// command is a clawfs command line that a person can paste, for this state
// directory.
func (a *app) command(words ...string) string {
	args := []string{"clawfs"}
	if def, err := defaultState(os.Getenv, os.Geteuid()); err != nil || def != a.state {
		args = append(args, "--state", shellWord(a.state))
	}
	for _, w := range words {
		args = append(args, shellWord(w))
	}
	return strings.Join(args, " ")
}

// shellWord quotes s for a shell if it needs it.
func shellWord(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_-./:=@,+%", r))
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// stateless finds, behind "next:", commands of verbs that work on a state
// directory and do not name one.
var stateless = regexp.MustCompile(`(: |, |or |then )clawfs ((?:affected|bundle|caps|daemon|disputes|export|grant|import|jobs?|key adopt|memory|mount|umount|` +
	`policy (?:check|diff|edit|explain|export|install|show)|publisher|pull|push|record|resolve|revocations|revoke|status|store (?:verify|backup|restore|rebuild|compact|head))\b)`)

// here completes the next commands in a sentence by --state, where a command
// would go to another state directory without it. Packages, daemons and mounts do
// not know how theirs was named.
func (a *app) here(text string) string {
	said, next, ok := strings.Cut(text, "next:")
	if !ok || a.state == "" || a.command() == "clawfs" {
		return text
	}
	with := strings.ReplaceAll(a.command(), "$", "$$")
	return said + "next" + stateless.ReplaceAllString(":"+next, "${1}"+with+" ${2}")
}

// answered gives an error of the control socket its exit code and, when nobody
// answered, the next command.
func (a *app) answered(err error) error {
	var gone *control.UnreachableError
	var refused *control.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &gone):
		return exitf(codeDaemon, "%w; next: %s (clawfs mount and clawfs grant start it by themselves)", err, a.command("daemon"))
	case errors.As(err, &refused) && refused.Code > 0:
		return exit(refused.Code, err)
	}
	return err
}

// spoken is an error in other words.
type spoken struct {
	text string
	err  error
}

func (s *spoken) Error() string { return s.text }
func (s *spoken) Unwrap() error { return s.err }

// daemon returns a client of a running daemon, and starts one in the
// background if none answers.
func (a *app) daemon(ctx context.Context) (*control.Client, error) {
	c := a.client()
	_, err := c.Status(ctx)
	var gone *control.UnreachableError
	if !errors.As(err, &gone) {
		return c, a.answered(err)
	}
	if err := a.startDaemon(ctx, c); err != nil {
		return nil, exitf(codeDaemon, "starting the daemon: %w", err)
	}
	return c, nil
}

func (a *app) startDaemon(ctx context.Context, c *control.Client) error {
	if err := a.config().MakeRun(); err != nil {
		return err
	}
	log, err := openLog(a.config().DaemonLog())
	if err != nil {
		return err
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	cmd, err := a.selfCommand("daemon", "--background")
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	began := time.Now()
	told := time.NewTicker(lineEvery)
	defer told.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("it does not answer on %s after %v%s", a.config().Socket(), startPatience, logTail(log.Name(), before))
		case err := <-ended:
			// Another one may have been started in the same moment and have won.
			if pid, _ := control.Holder(a.config().Lock()); pid == 0 {
				return fmt.Errorf("it ended (%v)%s", err, logTail(log.Name(), before))
			}
		case <-told.C:
			a.notef("waiting for the daemon, which opens the store: %v\n", time.Since(began).Round(time.Second))
		case <-tick.C:
			if _, err := c.Status(ctx); err == nil {
				return nil
			}
		}
	}
}

// selfCommand is this program again, as a process of its own session that
// outlives its parent and its terminal.
func (a *app) selfCommand(args ...string) (*exec.Cmd, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	cmd := exec.Command(exe, append([]string{"--state", a.state}, args...)...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, nil
}

// openLog opens a log file for appending; nobody else may read it, because it
// names paths and callers.
func openLog(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
}

// logTail is what was written to the log after offset, at most its last lines,
// as the end of an error message.
func logTail(path string, offset int64) string {
	const most = 2 << 10
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err != nil || end <= offset {
		return fmt.Sprintf("; its log %s is empty", path)
	} else if end-offset > most {
		offset = end - most
	}
	b, err := io.ReadAll(io.NewSectionReader(f, offset, most))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return fmt.Sprintf("; the end of %s:\n  %s", path, strings.Join(lines[max(0, len(lines)-8):], "\n  "))
}
