package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
)

// probePatience bounds how long the child may take that opens the store first.
const probePatience = 2 * time.Minute

// openStore opens the store of a state directory by its policy.
func openStore(s config.State, policy config.Policy) (*capstore.Store, error) {
	return capstore.Open(s.Store(), s.Memory(), policy.Trust())
}

// slowClose bounds how long closeSlowly waits.
const slowClose = 30 * time.Second

// closeSlowly closes a store for a process that ends when it is closed. On a slow disk
// that takes longer than Close waits, and whoever ended before would leave all of that
// work to the next one, which would not come to its end either.
func closeSlowly(s *capstore.Store) error {
	err := s.Close()
	if !errors.Is(err, capstore.ErrClosing) {
		return err
	}
	select {
	case <-s.Closed():
		return nil
	case <-time.After(slowClose):
		return err
	}
}

// Causes of a trouble, as `clawfs status -o json` names them.
const (
	causeLocked  = "locked"  // another process has the store open
	causeFull    = "full"    // there is no room to open it safely
	causeDamaged = "damaged" // rows or files are lost or changed
	causeForeign = "foreign" // it is another store than the one of this machine
	causeOlder   = "older"   // a revocation list that was seen is not in it
	causeCrashed = "crashed" // opening it ends the process
	causeSlow    = "slow"    // opening it does not end
	causeFailed  = "failed"  // something else

	causeForgotten = "forgotten" // the time that this machine has seen is lost
)

// trouble is why the store cannot be opened. It is nothing that keeps the daemon
// from its other work.
type trouble struct {
	cause string
	err   error
}

// Error is without what the error says of the next command: next knows more of that.
func (t *trouble) Error() string {
	said, _, _ := strings.Cut(t.err.Error(), nextMark)
	return said
}

const nextMark = "; next: "

func (t *trouble) Unwrap() error { return t.err }

// passes says that the cause can go without anybody working on the store.
func (t *trouble) passes() bool { return t.cause == causeLocked || t.cause == causeFull }

func troubleOf(err error) *trouble {
	cause := causeFailed
	switch {
	case errors.Is(err, capstore.ErrLocked):
		cause = causeLocked
	case errors.Is(err, capstore.ErrNoSpace), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		cause = causeFull
	case errors.Is(err, capstore.ErrForeign):
		cause = causeForeign
	case errors.Is(err, capstore.ErrDamaged):
		cause = causeDamaged
	}
	return &trouble{cause, err}
}

// next is what a person should do.
func (t *trouble) next(s config.State) string {
	switch t.cause {
	case causeFull:
		return fmt.Sprintf("make room in the file system of %s; the daemon tries again by itself", s.Store())
	case causeLocked:
		return "end the process that has the store open; the daemon tries again by itself"
	case causeForgotten:
		return fmt.Sprintf("put %s back from a backup of the same day, or, if you take that risk, clawfs memory reset --yes", s.Memory())
	case causeFailed, causeSlow:
		return fmt.Sprintf("look at %s and at the log %s; the daemon tries again by itself", s.Store(), s.DaemonLog())
	}
	if _, own, said := strings.Cut(t.err.Error(), nextMark); said && t.cause == causeOlder {
		return own
	}
	return "clawfs store verify, then clawfs store rebuild, or clawfs store restore FILE with a backup"
}

// probed is what the child that opened the store first says of it.
type probed struct {
	Cause string `json:"cause,omitzero"` // "": it opened and closed
	Error string `json:"error,omitzero"`
}

// newStoreProbeCommand is what the daemon starts before it opens the store itself:
// Badger ends a process that opens a damaged table, or writes on a full disk, and
// no recover holds that. What ends is this process then.
func newStoreProbeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "store-probe [check HEAD|dump]",
		Short:  "Open the store and close it, in the daemon's place",
		Args:   cobra.MaximumNArgs(2),
		Hidden: true,
		RunE: func(c *cobra.Command, args []string) error {
			unix.Umask(0o077)
			switch {
			case len(args) == 2 && args[0] == "check":
				return a.checkClosed(c.Context(), args[1])
			case len(args) == 1 && args[0] == "dump":
				return a.dumpStore(c.Context())
			case len(args) > 0:
				return exitf(codeUsage, "%q: want check HEAD or dump", args)
			}
			policy, err := a.config().LoadPolicy()
			if err != nil {
				return err
			}
			var answer probed
			s, err := openStore(a.config(), policy)
			if err == nil {
				err = closeSlowly(s)
			}
			if err != nil {
				t := troubleOf(err)
				answer = probed{t.cause, t.Error()}
			}
			b, err := json.Marshal(answer)
			if err != nil {
				return err
			}
			a.printf("%s\n", b)
			return nil
		},
	}
}

// probe opens the store in a child. Its error is a *trouble, or says that there
// could be no child.
func (a *app) probe(ctx context.Context) error {
	cmd, err := a.selfCommand("store-probe")
	if err != nil {
		return err
	}
	var out, errs cut
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("opening the store in a child: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	late := time.NewTimer(probePatience)
	defer late.Stop()
	select {
	case <-ended:
	case <-ctx.Done():
		cmd.Process.Kill()
		<-ended
		return ctx.Err()
	case <-late.C:
		cmd.Process.Kill()
		<-ended
		return &trouble{causeSlow, fmt.Errorf("opening the store takes longer than %v", probePatience)}
	}
	return judgeProbe(cmd.ProcessState.ExitCode(), cmd.ProcessState.Sys().(syscall.WaitStatus), out.Bytes(), errs.Bytes())
}

// judgeProbe says what the end of the child means. A child that did not say in so
// many words that the store opened did not open it.
func judgeProbe(code int, status syscall.WaitStatus, out, errs []byte) error {
	var answer probed
	if err := json.Unmarshal(out, &answer, json.RejectUnknownMembers(true)); err == nil && code == 0 {
		if answer.Cause == "" && answer.Error == "" {
			return nil
		}
		return &trouble{answer.Cause, errors.New(answer.Error)}
	}
	how := fmt.Sprintf("with exit code %d", code)
	if status.Signaled() {
		how = fmt.Sprintf("by signal %v", status.Signal())
	}
	return &trouble{causeCrashed, fmt.Errorf("opening the store ends the process that does it, %s: %s", how, lastWords(errs))}
}

// lastWords is the line with which Go ended a process, else the last one.
func lastWords(errs []byte) string {
	lines := strings.Split(strings.TrimSpace(string(errs)), "\n")
	said := lines[len(lines)-1]
	for _, l := range lines {
		if strings.HasPrefix(l, "panic: ") || strings.HasPrefix(l, "fatal error: ") || strings.HasPrefix(l, "SIGBUS") || strings.HasPrefix(l, "unexpected fault address") {
			said = l
			break
		}
	}
	if said == "" {
		return "it said nothing"
	}
	return printable(said[:min(len(said), 500)])
}

// cut keeps the beginning of what is written to it.
type cut struct{ bytes.Buffer }

func (c *cut) Write(p []byte) (int, error) {
	if room := 64<<10 - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}
