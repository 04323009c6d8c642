package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/rebuild"
)

// endPatience bounds how long a daemon that was told to end waits for its
// parts. Workers get less, so that the queue can note how they ended.
const endPatience = 8 * time.Second

func newDaemonCommand(a *app) *cobra.Command {
	var background bool
	c := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon of a state directory in the foreground",
		Long: `daemon keeps the store of capabilities and the queue of rebuilds, answers the
other verbs on a socket in the state directory, and starts and watches mount
processes and workers. It holds no private key. There is one for each state
directory; clawfs mount and clawfs grant start it when it is not running.

It ends on SIGTERM or SIGINT within ten seconds. Mounts stay: they go on serving
what is granted, and the next daemon finds them. Its log is log/daemon.log.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.runDaemon(c.Context(), background) },
	}
	c.Flags().BoolVar(&background, "background", false, "write the log to the file only")
	c.Flags().MarkHidden("background")
	return c
}

// daemon is the process that owns the store of a state directory. It has no
// private key and never looks below a mount.
type daemon struct {
	state   config.State
	log     *slog.Logger
	store   *capstore.Store
	queue   *rebuild.Queue
	mounts  *supervisor
	pinned  pinned
	clock   *wallclock
	started time.Time

	listener net.Listener // set by run
}

func (a *app) runDaemon(ctx context.Context, background bool) error {
	unix.Umask(0o077)
	s := a.config()
	if err := s.MakeRun(); err != nil {
		return err
	}
	lock, err := control.TakePlace(s.Lock())
	var held *control.LockedError
	if errors.As(err, &held) {
		return fmt.Errorf("a daemon runs already for %s (pid %d); next: %s", s, held.PID, a.command("status"))
	}
	if err != nil {
		return err
	}
	defer lock.Release()
	file, err := newLogFile(s.DaemonLog())
	if err != nil {
		return err
	}
	var out io.Writer = file
	if !background {
		out = io.MultiWriter(file, a.stderr)
	}
	log := slog.New(slog.NewJSONHandler(out, nil)).With("pid", os.Getpid())
	d, err := a.newDaemon(log)
	if err != nil {
		log.Error("the daemon cannot start", "error", err)
		return err
	}
	l, err := control.Listen(lock, s.Socket(), func(p control.Peer, err error) {
		log.Warn("connection refused", "uid", p.UID, "gid", p.GID, "peer", p.PID, "error", err)
	})
	if err != nil {
		return errors.Join(err, d.store.Close())
	}
	log.Info("daemon started", "version", readVersion().Version, "state", string(s), "socket", s.Socket())
	err = d.run(ctx, lock, l)
	if lock.Lost() == nil { // or the socket there is somebody else's
		err = errors.Join(err, removeIfThere(s.Socket()))
	}
	if err != nil {
		log.Error("daemon ended", "error", err)
		return err
	}
	log.Info("daemon ended")
	return nil
}

func (a *app) newDaemon(log *slog.Logger) (*daemon, error) {
	s := a.config()
	policy, err := s.LoadPolicy()
	if err != nil {
		return nil, err
	}
	if err := s.RememberPolicy(policy); err != nil {
		return nil, err
	}
	settings, err := s.LoadSettings(os.Geteuid())
	if err != nil {
		return nil, err
	}
	store, err := capstore.Open(s.Store(), policy.Trust())
	if err != nil {
		return nil, err
	}
	seen := memory.Dir(s.Memory())
	clock, err := newWallclock(seen)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	if err := checkNewestList(seen, policy.Trust().Revokers, store.View()); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	queue, err := rebuild.NewQueue(store, s.Jobs(), a.spawnWorker(log))
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	bounds, err := newBounds(s, log, policy)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	bounds.share(queue, settings.Build)
	queue.Clock = clock.now
	queue.Sweep = func(ctx context.Context) error {
		// Without a runtime nothing can have been left, and jobs say what is missing.
		executor, err := newExecutor(settings)
		if err != nil {
			log.Warn("rebuilds cannot run here", "error", err)
			return nil
		}
		if _, err := executor.Sweep(ctx); err != nil {
			log.Error("something that a dead worker left stays", "error", err)
		}
		return nil
	}
	d := &daemon{
		state: s, log: log, store: store, queue: queue, clock: clock, started: time.Now().UTC(),
		mounts: newSupervisor(s, log, a.selfCommand),
	}
	d.pinned.policy.Store(&policy)
	d.logRejected()
	return d, nil
}

// run works until ctx ends or a part fails. Mount processes are left alone.
func (d *daemon) run(ctx context.Context, lock *control.Lock, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.listener = l
	parts := map[string]func() error{
		"control socket": func() error { return control.Serve(ctx, l, d.repinned(d.handler()), d.log) },
		"rebuild queue":  func() error { return d.queue.Run(ctx) },
		"mounts":         func() error { return d.mounts.run(ctx) },
		"clock":          func() error { d.clock.run(ctx, d.log); return nil },
		"policy":         func() error { d.watchPolicy(ctx); return nil },
		"place":          func() error { return control.KeepPlace(ctx.Done(), lock, l) },
	}
	type end struct {
		part string
		err  error
	}
	ends := make(chan end, len(parts))
	for name, part := range parts {
		go func() { ends <- end{name, part()} }()
	}
	var first error
	var late <-chan time.Time
	stopping := ctx.Done()
	for left := len(parts); left > 0; {
		select {
		case e := <-ends:
			left--
			if ctx.Err() == nil {
				// A daemon without one of its parts would answer half of the
				// questions; its supervisor should start a whole one.
				first = fmt.Errorf("%s ended by itself: %w", e.part, errOr(e.err, "without an error"))
			} else if e.err != nil && !errors.Is(e.err, context.Canceled) {
				d.log.Error("ending", "part", e.part, "error", e.err)
			}
			cancel()
		case <-stopping:
			stopping = nil
			late = time.After(endPatience)
		case <-late:
			// The store is not closed under its users; after this the process
			// ends, and whatever was acknowledged is on the disk already.
			return errors.Join(first, fmt.Errorf("parts of the daemon do not end within %v", endPatience))
		}
	}
	return errors.Join(first, d.store.Close())
}

func errOr(err error, text string) error {
	if err != nil {
		return err
	}
	return errors.New(text)
}
