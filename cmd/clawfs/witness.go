package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/witness"
	"github.com/openclaw/clawfs/verifier/tlog"
)

func newWitnessCommand(a *app) *cobra.Command {
	return group("witness", "Cosign the checkpoints of transparency logs",
		`A witness cosigns a checkpoint of a log if that extends every checkpoint of
the log that it cosigned before, and so keeps the log from showing different
trees to different people. It needs a key, a directory and a port, and nothing
of the rest of clawfs. The protocol is C2SP's tlog-witness.`,
		newWitnessInitCommand(a), newWitnessServeCommand(a), newWitnessStatusCommand(a))
}

func newWitnessInitCommand(a *app) *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "init DIR --name NAME",
		Short: "Make a witness: its key and its empty state",
		Long: `Makes the directory DIR with a key, readable by its owner only, and the state of
a witness that has cosigned nothing, and prints the line by which a policy
(C2SP tlog-policy) names the witness. Whoever lets a log ask the witness adds the
URL to the line: witness NAME KEY https://….

NAME should be an address without scheme that you control, such as
witness.example/w1. Spaces and '+' are refused.

The state must never be restored from a backup: a witness that forgets signs
forks. If it is lost, make another witness.`,
		Example: "  clawfs witness init /var/lib/clawfs-witness --name witness.example/w1",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := noEmptyPath(c, args); err != nil {
				return err
			}
			dir, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			key, err := witness.Init(dir, name)
			if err != nil {
				return err
			}
			result := struct {
				Directory  string `json:"directory"`
				Name       string `json:"name"`
				Key        string `json:"key"`
				PolicyLine string `json:"policyLine"`
			}{dir, key.Name(), key.String(), witness.PolicyLine(key)}
			return a.print(result, func() {
				a.printf("%s", result.PolicyLine)
				a.notef("made %s\nnext: clawfs witness serve %s --listen ADDR --logs FILE\n", printable(dir), shellWord(dir))
			})
		},
	}
	c.Flags().StringVar(&name, "name", "", "`name` of the key")
	c.MarkFlagRequired("name")
	return c
}

func newWitnessServeCommand(a *app) *cobra.Command {
	var listen, logs string
	c := &cobra.Command{
		Use:   "serve DIR --listen ADDR --logs FILE",
		Short: "Cosign for some logs, over HTTP",
		Long: `Serves the witness in DIR on ADDR, one process for each DIR:

  POST /add-checkpoint             a consistency proof and a checkpoint; answers
                                   with the cosignature
  GET  /SHA256-OF-ORIGIN/checkpoint  the newest checkpoint that was cosigned

FILE names the logs: a policy (C2SP tlog-policy), of which the log lines count,
or lines "log KEY" alone. It is read at the start. A checkpoint counts if a key
that FILE has for its origin signed it.

The new state is on the disk before the cosignature is given away. If the disk is
full, nothing is cosigned. A log that signs two trees of one size is refused from
then on; both checkpoints stay in DIR/forks, and clawfs witness status shows it.

There is no TLS here: put a reverse proxy before it where the network is not
yours. The log of the process is JSON on standard error. SIGTERM ends it within
ten seconds.`,
		Example: "  clawfs witness serve /var/lib/clawfs-witness --listen 127.0.0.1:7600 --logs logs.txt",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := noEmptyPath(c, args); err != nil {
				return err
			}
			return a.serveWitness(c.Context(), args[0], listen, logs)
		},
	}
	c.Flags().StringVar(&listen, "listen", "", "`address` such as 127.0.0.1:7600")
	c.Flags().StringVar(&logs, "logs", "", "`file` that names the logs")
	c.MarkFlagRequired("listen")
	c.MarkFlagRequired("logs")
	return c
}

func (a *app) serveWitness(ctx context.Context, dir, listen, logs string) error {
	unix.Umask(0o077)
	text, err := readBounded(logs, tlog.MaxPolicy)
	if err != nil {
		return err
	}
	keys, err := tlog.ParseLogs(text)
	if err != nil {
		return fmt.Errorf("%s: %w", logs, err)
	}
	log := slog.New(slog.NewJSONHandler(a.stderr, nil))
	w, err := witness.Open(dir, keys, log)
	var held *control.LockedError
	if errors.As(err, &held) {
		return fmt.Errorf("the witness %s is served already (pid %d)", dir, held.PID)
	}
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return errors.Join(err, w.Close())
	}
	log.Info("witness started", "name", w.VerifierKey().Name(), "address", l.Addr().String(), "logs", len(keys))
	err = errors.Join(w.Serve(ctx, l), w.Close())
	if err == nil {
		log.Info("witness ended")
	}
	return err
}

// witnessStatus is the document of witness status.
type witnessStatus struct {
	Name     string       `json:"name"`
	Key      string       `json:"key"`
	Serving  int          `json:"serving"`           // pid; 0 if no process serves it
	Cosigned string       `json:"cosigned,omitzero"` // time of the last cosignature
	Logs     []witnessLog `json:"logs"`
}

type witnessLog struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Root   string `json:"root"`
	Forked bool   `json:"forked"`
	// Evidence are the files of both checkpoints of a log that forked.
	Evidence []string `json:"evidence,omitzero"`
}

func newWitnessStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status DIR",
		Short: "Show what a witness has cosigned, and which logs forked",
		Long: `Reads the state of the witness in DIR, whether it is served or not, and shows the
size and root of the newest checkpoint of each log that it cosigned.

Exit code 0: no log forked. 3: one did; its evidence is named.`,
		Example: "  clawfs witness status /var/lib/clawfs-witness -o json | jq '.logs[] | select(.forked)'",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := noEmptyPath(c, args); err != nil {
				return err
			}
			s, err := witness.Inspect(args[0])
			if err != nil {
				return err
			}
			doc, forks := describeWitness(s)
			if err := a.print(doc, func() { a.showWitness(doc) }); err != nil {
				return err
			}
			if forks > 0 {
				return &quietExit{codeRefused}
			}
			return nil
		},
	}
}

func describeWitness(s witness.Status) (doc witnessStatus, forks int) {
	doc = witnessStatus{Name: s.Key.Name(), Key: s.Key.String(), Serving: s.Serving, Logs: []witnessLog{}}
	if !s.Cosigned.IsZero() {
		doc.Cosigned = s.Cosigned.Format(time.RFC3339)
	}
	for _, l := range s.Logs {
		forked := len(l.Evidence) > 0
		if forked {
			forks++
		}
		doc.Logs = append(doc.Logs, witnessLog{l.Origin, l.Size, l.Root.String(), forked, l.Evidence})
	}
	return doc, forks
}

func (a *app) showWitness(doc witnessStatus) {
	a.printf("witness   %s\nkey       %s\n", printable(doc.Name), printable(doc.Key))
	if doc.Serving == 0 {
		a.printf("serving   no\n")
	} else {
		a.printf("serving   pid %d\n", doc.Serving)
	}
	if doc.Cosigned == "" {
		a.printf("cosigned  nothing yet\n")
		return
	}
	a.printf("cosigned  %s\n", doc.Cosigned)
	var rows [][]string
	for _, l := range doc.Logs {
		state := "ok"
		if l.Forked {
			state = "FORKED"
		}
		rows = append(rows, []string{l.Origin, fmt.Sprint(l.Size), l.Root, state})
	}
	a.table([]string{"LOG", "SIZE", "ROOT", "STATE"}, rows)
	for _, l := range doc.Logs {
		if l.Forked {
			a.printf("WARNING: %s signed two trees of size %d, and is refused for good; show both to its operator and to the other witnesses:\n", printable(l.Origin), l.Size)
			for _, path := range l.Evidence {
				a.printf("  %s\n", printable(path))
			}
		}
	}
}
