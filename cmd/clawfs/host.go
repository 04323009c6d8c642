package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/openclaw/clawfs/capstore/kept"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
)

// probeEnds is how long a start waits for a store that another process has open.
const probeEnds = 5 * time.Second

// host is the process of the daemon, which lives also while the store cannot be
// opened: it answers on the control socket and watches the mounts. A daemon works
// on the store while that is open, and a stricken says why it is not.
type host struct {
	app     *app
	state   config.State
	log     *slog.Logger
	mounts  *supervisor
	clock   *wallclock
	started time.Time
	front   front

	listener net.Listener // of the control socket; set by run before its parts

	// Of the goroutine of serveStore, once run has begun.
	daemon   *daemon         // nil: the store is not open
	stricken *stricken       // nil: it is
	closing  <-chan struct{} // closed when the store that has failed is; nil: none has
}

// front passes each request to who answers now.
type front struct{ now atomic.Pointer[http.Handler] }

func (f *front) set(h http.Handler) { f.now.Store(&h) }

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*f.now.Load()).ServeHTTP(w, r) }

// newHost fails where no daemon can work: without a policy, or without settings.
func (a *app) newHost(log *slog.Logger) (*host, error) {
	s := a.config()
	if _, err := s.LoadPolicy(); err != nil {
		return nil, err
	}
	clock, err := newWallclock(memory.Dir(s.Memory()))
	if err != nil {
		log.Error("the time that was seen before is lost", "error", err) // open says so again, and denies
	}
	return &host{
		app: a, state: s, log: log, mounts: newSupervisor(s, log, a.selfCommand), clock: clock, started: time.Now().UTC(),
	}, nil
}

// begin opens the store, or finds out why that cannot be done.
func (h *host) begin(ctx context.Context) error {
	h.log.Info("opening the store", "store", h.state.Store())
	err := h.open(ctx)
	var t *trouble
	// The child of a daemon that was killed may be closing the store still.
	for end := time.Now().Add(probeEnds); errors.As(err, &t) && t.cause == causeLocked && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(lookEvery / 5)
		err = h.open(ctx)
	}
	if errors.As(err, &t) {
		h.stricken = newStricken(h, t)
		h.front.set(h.stricken.handler())
		return nil
	}
	return err
}

// open opens the store first in a child, which is the one to die of it.
func (h *host) open(ctx context.Context) error {
	if h.closing != nil {
		select {
		case <-h.closing:
		default:
			return &trouble{causeFull, errors.New("the store is not closed yet: what it has in memory cannot be written")}
		}
	}
	if err := h.clock.recall(); err != nil {
		return &trouble{causeForgotten, err}
	}
	if err := h.app.probe(ctx); err != nil {
		return err
	}
	d, err := h.newDaemon()
	if err != nil {
		return err
	}
	h.daemon = d
	d.listener = h.listener
	h.front.set(d.repinned(d.handler()))
	return nil
}

// run works until ctx ends or a part fails. Mount processes are left alone.
func (h *host) run(ctx context.Context, lock *control.Lock, l net.Listener) error {
	h.listener = l
	if h.daemon != nil {
		h.daemon.listener = l
	}
	// Mount processes that are just starting need the store's records, or what they
	// go on with is lost.
	parts, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() { h.mounts.settle(); end() })()
	err := together(parts, h.log, map[string]func(context.Context) error{
		"control socket": func(ctx context.Context) error { return control.Serve(ctx, l, &h.front, h.log) },
		"mounts":         h.mounts.run,
		"clock":          func(ctx context.Context) error { h.clock.run(ctx, h.log); return nil },
		"store":          h.serveStore,
		"place":          func(ctx context.Context) error { return control.KeepPlace(ctx.Done(), lock, l) },
	})
	if errors.Is(err, errLate) {
		return err
	}
	return errors.Join(err, h.close())
}

func (h *host) close() error {
	if h.daemon == nil {
		return nil
	}
	return closeLast(h.daemon.store)
}

// serveStore works on the store until ctx ends; where it cannot be opened, it
// tries again and again.
func (h *host) serveStore(ctx context.Context) error {
	for {
		for h.stricken != nil {
			if !h.stricken.wait(ctx) {
				return nil
			}
			h.reopen(ctx)
		}
		err := h.daemon.run(ctx)
		var failed *storeFailedError
		if ctx.Err() != nil || errors.Is(err, errLate) || !errors.As(err, &failed) {
			return err
		}
		h.fail(failed)
	}
}

// storeFailedError: a write ended in a way that the store cannot go on from. What
// became of it is known when the store is opened again.
type storeFailedError struct{ err error }

func (e *storeFailedError) Error() string { return "the store takes nothing more: " + e.err.Error() }
func (e *storeFailedError) Unwrap() error { return e.err }

// watchStore ends with a storeFailedError when the store has failed.
func (d *daemon) watchStore(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := d.store.Failed(); err != nil {
				return &storeFailedError{err}
			}
		}
	}
}

// fail lets go of a store that has failed, so that it can be opened again. What it
// had in memory alone is kept.
func (h *host) fail(failed *storeFailedError) {
	s := newStricken(h, &trouble{causeFailed, failed})
	store := h.daemon.store
	h.front.set(s.handler())
	if err := store.Close(); err != nil {
		h.log.Error("closing the store", "error", err)
	}
	// Whoever still asks the daemon is refused by the closed store: this is all.
	for _, r := range store.Unsaved() {
		s.publish(r, kept.Record{Kind: r.Kind, Envelope: r.Envelope})
	}
	h.daemon, h.stricken, h.closing = nil, s, store.Closed()
}

// reopen tries once.
func (h *host) reopen(ctx context.Context) {
	err := h.stricken.pause(func() error { return h.open(ctx) })
	if err == nil {
		h.log.Warn("THE STORE IS OPEN AGAIN: what is granted counts, and new things can be granted", "without", time.Since(h.stricken.since).Round(time.Second).String())
		h.stricken = nil
	} else if ctx.Err() == nil {
		h.stricken.note(err)
	}
}
