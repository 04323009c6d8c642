package main

import (
	"log/slog"
	"sync"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/verifier"
)

// bounds are what the queue asks of the policy and of the machine. It asks for
// each job, so policy.json is read once a second at most. While it cannot be
// read the last one counts: that it is broken is for whoever submits, and the
// workers, which read it themselves, do not build by it.
type bounds struct {
	state   config.State
	log     *slog.Logger
	machine rebuild.Machine

	mu     sync.Mutex // guards policy and read
	policy config.Policy
	read   time.Time
}

func newBounds(s config.State, log *slog.Logger, p config.Policy) (*bounds, error) {
	m, err := rebuild.ThisMachine()
	if err != nil {
		return nil, err
	}
	return &bounds{state: s, log: log, machine: m, policy: p, read: time.Now()}, nil
}

func (b *bounds) now() config.Policy {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.read) < time.Second {
		return b.policy
	}
	b.read = time.Now()
	p, err := b.state.LoadPolicy()
	if err != nil {
		b.log.Error("the budgets of publishers are as they were", "error", err)
		return b.policy
	}
	b.policy = p
	return p
}

// budget is rebuild.Queue.Budget. What no rule speaks for any more has no
// publisher and no budget: its worker will refuse it.
func (b *bounds) budget(model string) (string, verifier.Budget) {
	r, ok := b.now().Rule(model)
	if !ok || r.Budget == nil {
		return r.Name, verifier.Budget{}
	}
	return r.Name, *r.Budget
}

// share tells a queue how much it may run at once, by the settings. Builds
// elsewhere take their memory elsewhere, where a scheduler gives it to them; here
// a job then fetches and hashes, which is a processor's work.
func (b *bounds) share(q *rebuild.Queue, s config.Build) {
	q.Budget, q.Parallel = b.budget, s.Concurrency
	here := s.Executor == "local"
	if here {
		q.Room = b.room
	}
	switch {
	case s.Concurrency > 0:
	case here:
		q.Parallel = b.machine.Parallel(b.now().Builds.Limits)
	default:
		q.Parallel = b.machine.CPUs
	}
}

// room is rebuild.Queue.Room.
func (b *bounds) room(running int) bool {
	return b.machine.HasRoom(b.now().Builds.Limits, running)
}
