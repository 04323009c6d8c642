package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// censusAtOnce is how many capabilities are counted while somebody waits. Each takes
// about as long as two signatures to verify.
const censusAtOnce = 10_000

const censusWait = 100 * time.Millisecond

// census counts the capabilities by what they are good for. Of very many, it is made
// in the background, and what it last said is told. The zero census is ready.
type census struct {
	mu      sync.Mutex // guards all below
	last    headcount
	running bool
}

// headcount is what a census found at a time. The zero headcount is that of nobody.
type headcount struct {
	at         time.Time
	generation uint64
	states     control.Counts
	disputed   int
	unfounded  int // live, and built from a model that was taken back
}

// of returns the counts at now, or of an earlier time, or, if there is none yet, the
// zero headcount. One in the background waits while busy says so.
func (c *census) of(v *capstore.View, now time.Time, busy func() bool) headcount {
	if n, _ := v.Count(); n <= censusAtOnce {
		return countHeads(v, now, func() bool { return false })
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.running && (c.last.generation != v.Generation() || now.Sub(c.last.at) > time.Hour) {
		c.running = true
		go func() {
			counted := countHeads(v, now, busy)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.last, c.running = counted, false
		}()
	}
	return c.last
}

func countHeads(v *capstore.View, now time.Time, busy func() bool) headcount {
	h := headcount{at: now, generation: v.Generation()}
	for g := range v.Each() {
		for busy() {
			time.Sleep(censusWait)
		}
		switch g.State(now) {
		case capstore.StateLive:
			h.states.Live++
			if len(v.LostBases(g.Capability())) > 0 {
				h.unfounded++
			}
		case capstore.StateRevoked:
			h.states.Revoked++
		case capstore.StateWaiting:
			h.states.Waiting++
		case capstore.StateDisputed:
			h.states.Disputed++
			h.disputed++
		case capstore.StateStale:
			h.states.Stale++
		default:
			h.states.Expired++
		}
	}
	return h
}

func (h headcount) warnings(now time.Time, capabilities int) (list []string) {
	switch {
	case h.at.IsZero():
		list = append(list, fmt.Sprintf("the states of %d capabilities are being counted, and are shown as none; next: clawfs status, some minutes from now", capabilities))
	case !h.at.Equal(now):
		list = append(list, fmt.Sprintf("the states of capabilities were counted at %s: there are %d now", stamp(h.at), capabilities))
	}
	if h.unfounded > 0 {
		list = append(list, fmt.Sprintf("%d live capabilities are for models that were built from one that was taken back; next: clawfs caps, then clawfs revoke those that should fall too", h.unfounded))
	}
	if h.disputed > 0 {
		list = append(list, fmt.Sprintf("DISPUTED: %d capabilities are frozen, because operators got different bytes from the same attestation; next: clawfs disputes", h.disputed))
	}
	return list
}

// taken is how many things are taken back. Of very many revocations those are counted
// that came alone, although two of them may be of one thing.
func taken(v *capstore.View) int {
	if _, n := v.Count(); n > censusAtOnce {
		return n
	}
	return len(v.InForce())
}
