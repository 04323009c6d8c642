package fs

import (
	"sync"
	"time"
)

// clock is the mount's time, and only goes forward: it is the newest of the
// wall clock, of the wall clock at the start plus the time that has really
// passed since, and of what it has said before. So a clock that is set back
// revives nothing that had expired. The price: a clock that was wrongly ahead
// counts until the mount is made again.
type clock struct {
	wall  func() time.Time
	base  time.Time // the wall clock at the start
	start time.Time // the same instant, with Go's monotonic reading

	mu     sync.Mutex // guards newest
	newest time.Time
}

func newClock(wall func() time.Time) *clock {
	if wall == nil {
		wall = time.Now
	}
	return &clock{wall: wall, base: wall().Round(0), start: time.Now()}
}

func (c *clock) now() time.Time {
	t := c.wall().Round(0) // Round(0) drops the monotonic reading: instants of the wall clock are compared
	passed := c.base.Add(time.Since(c.start))
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range []time.Time{passed, c.newest} {
		if other.After(t) {
			t = other
		}
	}
	c.newest = t
	return t
}
