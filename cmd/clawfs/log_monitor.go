package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newLogMonitorCommand(a *app) *cobra.Command {
	var where logFlags
	var m monitor
	c := &cobra.Command{
		Use:   "monitor --key PUB --state FILE",
		Short: "Tell of entries under a key that its owner did not make",
		Long: `Reads what a log has beyond the last look, and lists the entries under the key whose
files are not among --known: a directory of .sba and other envelope files, or such a
file. Each checkpoint is checked by the log policy, and must extend the one before;
each entry is checked against it.

Of an entry that is not known it says what the log shows: "signed" (the key did sign
it: somebody else has the key), "unsigned" (the log took what it must not), or
"missing" (the log hides the envelope). Such an entry is told of at every look until
its file is among --known.

FILE keeps what was seen. If the log shows two trees, FILE holds both signed
checkpoints, which prove it, and every later look fails. With --every it looks again
and again, until it finds something.

Exit code: 0 nothing unknown. 3 unknown entries, a log that shows two trees, or an
older checkpoint than before. 4 the checkpoint is of another log.`,
		Example: `  clawfs log monitor --key acme.pub --known releases/ --log https://log.example.org --log-policy log.policy --state monitor.json
  clawfs log monitor --key acme.pub --known releases/ --log-policy log.policy --state monitor.json --every 10m`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("every") && m.every < time.Second {
				return exitf(codeUsage, "--every %v: want at least 1s", m.every)
			}
			if m.every > 0 && a.output == "json" {
				return exitf(codeUsage, "--every gives no single result; leave out --every or -o json")
			}
			return a.logMonitor(c.Context(), where, m)
		},
	}
	where.register(c, "`URL` or directory of the log")
	f := c.Flags()
	f.StringVar(&m.key, "key", "", "public `keyfile` whose entries are looked for")
	f.StringArrayVar(&m.known, "known", nil, "`file` or directory of envelopes that you made (repeat)")
	f.StringVar(&m.state, "state", "", "`file` that keeps what was seen; made if it is not there")
	f.DurationVar(&m.every, "every", 0, "look again after this time, until something is found")
	c.MarkFlagRequired("key")
	c.MarkFlagRequired("state")
	return c
}

// monitor is what the flags of log monitor say.
type monitor struct {
	key, state string
	known      []string
	every      time.Duration
}

func (a *app) logMonitor(ctx context.Context, where logFlags, m monitor) error {
	policy, location, err := a.logs(where)
	if err != nil {
		return err
	}
	key, err := readPublicKey(m.key)
	if err != nil {
		return err
	}
	l, err := translog.Open(location, policy)
	if err != nil {
		return err
	}
	lock, err := control.TakeLock(m.state + ".lock")
	var held *control.LockedError
	if errors.As(err, &held) {
		return fmt.Errorf("another monitor (pid %d) has the state %s", held.PID, printable(m.state))
	}
	if err != nil {
		return err
	}
	defer lock.Release()
	for {
		look, err := a.look(ctx, l, m, key)
		switch {
		case m.every == 0 || err == nil && len(look.Unknown) > 0 || err != nil && exitCode(err) != codeError:
			if err != nil {
				return err
			}
			return a.showLook(look)
		case ctx.Err() != nil:
			return nil
		case err != nil:
			a.notef("%s; looking again in %v\n", printable(oneLine(err.Error())), m.every)
		case look.Looked > 0:
			a.notef("%s\n", looked(look))
		}
		wait(ctx, time.After(m.every))
	}
}

// look looks once. The state is stored before anything is told.
func (a *app) look(ctx context.Context, l *translog.Log, m monitor, key dsse.PublicKey) (translog.Look, error) {
	known, err := knownPayloads(m.known)
	if err != nil {
		return translog.Look{}, err
	}
	state := translog.NewState(key.ID())
	text, err := readBounded(m.state, translog.MaxState)
	if _, missing := os.Lstat(m.state); err != nil && !errors.Is(missing, fs.ErrNotExist) {
		return translog.Look{}, err
	}
	if err == nil {
		if state, err = translog.ParseState(text, key.ID()); err != nil {
			return translog.Look{}, fmt.Errorf("%s: %w", printable(m.state), err)
		}
	}
	state, look, err := l.Monitor(ctx, state, key, known)
	after, encoding := state.Encode()
	if encoding == nil {
		encoding = durable.Replace(m.state, after, 0o600)
	}
	if encoding != nil {
		return look, errors.Join(encoding, err)
	}
	return look, logRefusal(err)
}

func (a *app) showLook(look translog.Look) error {
	err := a.print(look, func() {
		a.printf("%s\n", looked(look))
		if len(look.Unknown) == 0 {
			return
		}
		var rows [][]string
		for _, f := range look.Unknown {
			rows = append(rows, []string{fmt.Sprint(f.Index), string(f.Kind), f.Signed, f.Payload.String(), f.Model})
		}
		a.table([]string{"ENTRY", "KIND", "ENVELOPE", "PAYLOAD", "MODEL"}, rows)
	})
	if err != nil {
		return err
	}
	if len(look.Unknown) > 0 {
		if a.output == "json" {
			return &quietExit{codeRefused}
		}
		return exitf(codeRefused, "entries under the key that are not among --known: %d; whoever made them has the key, or the log took what it must not", len(look.Unknown))
	}
	return nil
}

func looked(look translog.Look) string {
	return fmt.Sprintf("%s: size %d, looked at %d, of these under the key %d; unknown %d", printable(look.Origin), look.Size, look.Looked, look.Own, len(look.Unknown))
}

// knownPayloads reads the envelopes that somebody made, and returns the SHA-256 of
// their payloads. In a directory what is no envelope is passed over.
func knownPayloads(paths []string) (map[hashpipe.Digest]bool, error) {
	known := make(map[hashpipe.Digest]bool)
	add := func(path string) error {
		data, err := readBounded(path, dsse.MaxEnvelope)
		if err != nil {
			return err
		}
		e, err := dsse.Parse(data)
		if err != nil {
			return fmt.Errorf("%s: %w", printable(path), err)
		}
		known[hashpipe.SumBytes(e.UnverifiedPayload()).Claim()] = true
		return nil
	}
	for _, path := range paths {
		fi, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("--known: %w", err)
		}
		if !fi.IsDir() {
			if err := add(path); err != nil {
				return nil, fmt.Errorf("--known: %w", err)
			}
			continue
		}
		err = filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || strings.HasSuffix(p, ".tlog-proof") {
				return err
			}
			if fi, err := d.Info(); err != nil || fi.Size() > dsse.MaxEnvelope {
				return err
			}
			var format *dsse.FormatError
			if err := add(p); !errors.As(err, &format) {
				return err
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("--known: %w", err)
		}
	}
	return known, nil
}
