package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog/logserver"
	"github.com/openclaw/clawfs/verifier/tlog"
)

func newLogServeCommand(a *app) *cobra.Command {
	var listen, witnesses string
	c := &cobra.Command{
		Use:   "serve DIR",
		Short: "Answer for a log over HTTP, and take entries",
		Long: `Serves the log in DIR: GET /checkpoint, /tile/… and /blob/sha256/…, and POST /add,
which takes a DSSE envelope and answers with the proof. Nothing else of DIR can be
read. There is one process for each DIR.

With --witness-policy no checkpoint is published, and no entry acknowledged, before
the quorum of that tlog policy has cosigned it. The policy names this log, and its
witnesses have the URLs at which they take checkpoints (C2SP tlog-witness). While
the quorum is missing, additions are answered with 503 and a reason; the entry is
kept, and asking again returns its proof when there is one.

What was acknowledged is on stable storage. At its start the log reads all its
entries, and it does not start if they are not those that it has signed. It ends on
SIGTERM or SIGINT within ten seconds. Its own log is JSON on standard error. Put a
web server with TLS before it, or give readers a copy: clawfs log static.`,
		Example: `  clawfs log serve /srv/log --listen 127.0.0.1:2026 --witness-policy witnesses.policy`,
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := noEmptyPath(c, args); err != nil {
				return err
			}
			return a.serveLog(c.Context(), args[0], listen, witnesses)
		},
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:2026", "`address` and port to answer on")
	c.Flags().StringVar(&witnesses, "witness-policy", "", "tlog policy `file`: whose cosignatures a checkpoint needs (default nobody's)")
	return c
}

func (a *app) serveLog(ctx context.Context, dir, listen, witnesses string) error {
	unix.Umask(0o022)
	log := slog.New(slog.NewJSONHandler(a.stderr, nil)).With("pid", os.Getpid())
	logserver.Redirect(log)
	slog.SetDefault(log) // for the library
	cfg := logserver.Config{Dir: dir, Log: log}
	if witnesses != "" {
		var err error
		if cfg.Witnesses, err = readBounded(witnesses, tlog.MaxPolicy); err != nil {
			return err
		}
		if len(cfg.Witnesses) == 0 { // which would mean no witnesses
			return fmt.Errorf("%s: it is empty", printable(witnesses))
		}
	}
	l, err := logserver.Open(cfg)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return errors.Join(err, l.Close(ctx))
	}
	log.Info("log is served", "dir", dir, "url", "http://"+listener.Addr().String(), "size", l.Size())
	err = l.Serve(ctx, listener)
	end, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = errors.Join(err, l.Close(end))
	if err == nil {
		log.Info("log ended")
	}
	return err
}
