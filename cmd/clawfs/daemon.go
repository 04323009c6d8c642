package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
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
// parts. Workers get less, so that the queue can note how they ended. Together with
// settlePatience it stays below ten seconds.
const endPatience = 6 * time.Second

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

// daemon is what works on the store of a state directory, while that is open. It
// has no private key and never looks below a mount.
type daemon struct {
	state   config.State
	log     *slog.Logger
	store   *capstore.Store
	queue   *rebuild.Queue
	mounts  *supervisor
	pinned  pinned
	clock   *wallclock
	census  census
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
		pid := "not known"
		if held.PID > 0 {
			pid = strconv.Itoa(held.PID)
		}
		return fmt.Errorf("a daemon runs already for %s (pid %s); next: %s", s, pid, a.command("status"))
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
	h, err := a.newHost(log)
	if err == nil {
		err = h.begin(ctx)
	}
	if err != nil {
		log.Error("the daemon cannot start", "error", err)
		return err
	}
	l, err := control.Listen(lock, s.Socket(), func(p control.Peer, err error) {
		log.Warn("connection refused", "uid", p.UID, "gid", p.GID, "peer", p.PID, "error", err)
	})
	if err != nil {
		return errors.Join(err, h.close())
	}
	log.Info("daemon started", "version", readVersion().Version, "state", string(s), "socket", s.Socket())
	err = h.run(ctx, lock, l)
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

// newDaemon opens the store. What is wrong with the store alone is a *trouble.
func (h *host) newDaemon() (*daemon, error) {
	s, log := h.state, h.log
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
	store, err := openStore(s, policy)
	if err != nil {
		return nil, troubleOf(err)
	}
	if err := checkNewestList(memory.Dir(s.Memory()), policy.Trust().Revokers, store.View()); err != nil {
		return nil, errors.Join(&trouble{causeOlder, err}, store.Close())
	}
	queue, err := rebuild.NewQueue(store, s.Jobs(), h.app.spawnWorker(log))
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	bounds, err := newBounds(s, log, policy)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	bounds.share(queue, settings.Build)
	queue.Clock = h.clock.now
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
		state: s, log: log, store: store, queue: queue, clock: h.clock, started: h.started, mounts: h.mounts,
	}
	d.pinned.policy.Store(&policy)
	d.logRejected()
	return d, nil
}

// run works on the store until ctx ends or a part fails. It leaves the store open.
func (d *daemon) run(ctx context.Context) error {
	return together(ctx, d.log, map[string]func(context.Context) error{
		"rebuild queue": d.queue.Run,
		"policy":        func(ctx context.Context) error { d.watchPolicy(ctx); return nil },
		"store":         d.watchStore,
	})
}

// together runs parts until ctx ends or one of them does.
func together(ctx context.Context, log *slog.Logger, parts map[string]func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type end struct {
		part string
		err  error
	}
	ends := make(chan end, len(parts))
	for name, part := range parts {
		go func() { ends <- end{name, part(ctx)} }()
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
				log.Error("ending", "part", e.part, "error", e.err)
			}
			cancel()
		case <-stopping:
			stopping = nil
			late = time.After(endPatience)
		case <-late:
			// The store is not closed under its users; after this the process
			// ends, and whatever was acknowledged is on the disk already.
			return errors.Join(first, errLate)
		}
	}
	return first
}

var errLate = fmt.Errorf("parts of the daemon do not end within %v", endPatience)

func errOr(err error, text string) error {
	if err != nil {
		return err
	}
	return errors.New(text)
}
