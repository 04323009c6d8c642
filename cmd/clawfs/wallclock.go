package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
)

// rememberEvery is how often a process writes the time down. What was seen less
// long before a crash is lost.
const rememberEvery = time.Minute

// aheadBy is how far the remembered time may be ahead of the wall clock before
// somebody is told.
const aheadBy = 5 * time.Minute

// wallclock is the time by which a process judges dates. It goes forward only,
// also over a restart: it is the newest of the wall clock, of the wall clock at the
// start plus the time that has really passed since, of what it has said before, and
// of what this machine remembers. So a clock that is set back revives neither a
// capability that had expired nor a revocation list that was too old.
type wallclock struct {
	memory memory.Dir
	base   time.Time // the wall clock at the start
	start  time.Time // the same instant, with Go's monotonic reading

	mu     sync.Mutex // guards newest
	newest time.Time
}

// newWallclock returns a clock also with an error: one that knows of no time before
// this process.
func newWallclock(m memory.Dir) (*wallclock, error) {
	now := time.Now()
	c := &wallclock{memory: m, base: now.Round(0), start: now}
	return c, c.recall()
}

// recall takes in what this machine remembers.
func (c *wallclock) recall() error {
	seen, _, err := c.memory.Newest(memory.Time)
	if err != nil {
		return fmt.Errorf("the newest time seen: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := time.Unix(seen, 0); t.After(c.newest) {
		c.newest = t
	}
	return nil
}

func (c *wallclock) now() time.Time {
	t := time.Now().Round(0) // Round(0) drops the monotonic reading: instants of the wall clock are compared
	passed := c.base.Add(time.Since(c.start))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range []time.Time{passed, c.newest} {
		if other.After(t) {
			t = other
		}
	}
	c.newest = t
	return t.UTC()
}

// remember writes the wall clock down, as it is then: one that was wrong for a
// moment after the boot is not remembered.
func (c *wallclock) remember() error {
	_, err := c.memory.Raise(memory.Time, time.Now().Unix())
	return err
}

// run remembers until ctx ends, and then once more.
func (c *wallclock) run(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(rememberEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		if err := c.remember(); err != nil {
			log.Error("the time is not remembered: after a restart a clock that is set back is not noticed", "error", err)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// warnings tell of a wall clock that was set back, or was wrongly ahead before.
func (c *wallclock) warnings(wall time.Time) []string {
	now := c.now()
	if now.Sub(wall) < aheadBy {
		return nil
	}
	return []string{fmt.Sprintf("the clock says %s, and this machine has seen %s, which counts: what expired until then stays so; next: set the clock, or, if it was wrongly ahead before: stop the daemon and the mounts, then clawfs memory reset --yes",
		wall.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))}
}
