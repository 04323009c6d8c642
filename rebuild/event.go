package rebuild

import (
	"sync"
	"time"
)

// Phase is a step of a rebuild, in the order of the constants.
type Phase string

// The phases.
const (
	PhaseVerify  Phase = "verify"
	PhaseSource  Phase = "source"
	PhaseDataset Phase = "dataset"
	PhaseModel   Phase = "model"
	PhaseImage   Phase = "image"
	PhaseLock    Phase = "lock"
	PhaseBuild   Phase = "build"
	PhaseCompare Phase = "compare"
	PhaseMint    Phase = "mint"
)

// Event is one line of progress. Bytes counts up within a phase; Total is 0
// when nobody knows it.
type Event struct {
	Time    time.Time `json:"time"`
	Phase   Phase     `json:"phase"`
	Message string    `json:"message,omitempty"`
	Bytes   int64     `json:"bytes,omitempty"`
	Total   int64     `json:"total,omitempty"`
}

// Observer receives the events of one rebuild, one at a time. It must not
// block: the build waits for it. The nil Observer drops them.
type Observer func(Event)

// quiet is the shortest time between two counts of bytes of one phase.
const quiet = 250 * time.Millisecond

// progress turns increments of bytes into events that are at least quiet apart.
type progress struct {
	observe Observer
	mu      sync.Mutex // guards what follows and serialises observe
	phase   Phase
	message string
	bytes   int64
	total   int64
	last    time.Time
}

// say starts a phase or reports a step of it at once.
func (p *progress) say(phase Phase, message string, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase, p.message, p.bytes, p.total = phase, message, 0, total
	p.send()
}

// add counts bytes within the step that say named.
func (p *progress) add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes += n
	if time.Since(p.last) >= quiet {
		p.send()
	}
}

func (p *progress) send() {
	p.last = time.Now()
	if p.observe != nil {
		p.observe(Event{Time: p.last.UTC(), Phase: p.phase, Message: p.message, Bytes: p.bytes, Total: p.total})
	}
}
