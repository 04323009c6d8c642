package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// feed keeps the view of a mount process up to date from the daemon's stream.
// The daemon is only a messenger: View checks each signature against the keys
// that this process pins. When the daemon is gone the view stays as it is:
// what was granted stays granted until it expires, and nothing new is.
type feed struct {
	client *control.Client
	view   *capstore.View
	log    *slog.Logger

	connected atomic.Bool
	heard     atomic.Int64  // sinceBoot when a daemon last spoke that had sent its whole store; 0: never
	complete  chan struct{} // closed after the first whole snapshot
	progress  atomic.Int64  // records that came by this stream
	reached   atomic.Uint64 // Extent of the daemon's store that all records were applied up to; 0: unknown
	changed   chan struct{} // holds one token when the daemon does not know yet how far this view is

	mu     sync.Mutex // guards cancel
	cancel context.CancelCauseFunc
}

// errAgain ends a stream whose beginning is wanted once more.
var errAgain = errors.New("the policy has changed")

func newFeed(c *control.Client, v *capstore.View, log *slog.Logger) *feed {
	return &feed{client: c, view: v, log: log, complete: make(chan struct{}), changed: make(chan struct{}, 1)}
}

// Pauses between attempts to reach the daemon.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 500 * time.Millisecond // a revocation by a daemon that has just started waits for it
)

// run follows the stream until ctx ends, and comes back whenever it breaks.
func (f *feed) run(ctx context.Context) {
	pause := firstPause
	for ctx.Err() == nil {
		err := f.follow(ctx)
		f.reached.Store(0)
		if f.connected.Swap(false) {
			pause = firstPause
			if ctx.Err() == nil && !errors.Is(err, errAgain) {
				f.log.Warn("the daemon's stream broke; serving what is known, looking for the daemon again", "error", errText(err))
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
			pause = min(2*pause, lastPause)
		}
	}
}

func (f *feed) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f.mu.Lock()
	f.cancel = cancel
	f.mu.Unlock()
	f.progress.Store(0)
	records := 0
	whole := false   // the daemon has said all that is in its store
	refused := false // a record was not accepted: this view is not what the store is
	err := f.client.View(ctx, func(l control.ViewLine) error {
		if whole = whole || l.Kind == control.LineSnapshot; whole {
			f.heard.Store(int64(sinceBoot()))
		}
		switch l.Kind {
		case control.LineHeartbeat:
		case control.LineSnapshot:
			capabilities, revocations := f.view.Count()
			f.log.Info("view complete", "records", records, "capabilities", capabilities, "revocations", revocations)
			if !refused {
				f.reached.Store(l.Extent)
			}
			f.begin()
		case control.LineNoStore:
			// Revocations come. What is known here counts; of a mount that starts now that
			// is nothing, and it refuses every file until the store is open.
			f.log.Error("the daemon cannot open its store: what is known counts, and nothing new is granted; next: clawfs status", "capabilities", count(f.view))
			f.begin()
		default:
			records++
			f.progress.Add(1)
			// One bad record must not keep the others out.
			if err := f.view.Apply(capstore.Record(l)); err != nil {
				f.log.Error("the daemon sent a record that this mount does not accept by the policy that it knows", "kind", l.Kind, "error", err)
				refused = true
				f.reached.Store(0)
			} else if whole && !refused {
				f.reached.Store(l.Extent)
			}
			if f.connected.Load() {
				f.tell()
			}
		}
		return nil
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// begin lets the mount go by the view.
func (f *feed) begin() {
	f.connected.Store(true)
	select {
	case <-f.complete:
	default:
		close(f.complete)
	}
	f.tell()
}

// resubscribe lets the daemon send all of its records again, of which the view
// would accept more by now.
func (f *feed) resubscribe() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cancel != nil {
		f.cancel(errAgain)
	}
}

// silence is how long ago the daemon said something when it had said everything. A
// daemon without its store has not: revocations that lie there may be missing here.
func (f *feed) silence() time.Duration {
	now := sinceBoot()
	if heard := time.Duration(f.heard.Load()); heard > 0 && now > 0 {
		return max(now-heard, 0)
	}
	return math.MaxInt64
}

// sinceBoot is a clock that nobody sets and that goes on while the machine sleeps,
// unlike the wall clock and Go's monotonic one. 0: there is none.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

func (f *feed) tell() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// tellEvery is how often a start that takes long is told of.
const tellEvery = 200 * time.Millisecond

// await waits for the first whole snapshot, for as long as it goes on coming. It tells
// each now and then how many records have come, and ends with its error.
func (f *feed) await(ctx context.Context, patience time.Duration, each func(records int64) error) error {
	tick := time.NewTicker(min(tellEvery, patience))
	defer tick.Stop()
	before, since := f.progress.Load(), time.Now()
	for {
		select {
		case <-f.complete:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		now := f.progress.Load()
		if err := each(now); err != nil {
			return err
		}
		if now != before {
			before, since = now, time.Now()
		} else if time.Since(since) >= patience {
			return fmt.Errorf("the daemon did not send the capabilities: nothing came for %v after %d records", patience, before)
		}
	}
}

func errText(err error) string {
	if err == nil {
		err = errors.New("the stream ended")
	}
	return err.Error()
}
