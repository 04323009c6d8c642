package rebuild

import (
	"context"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

// Spawn runs RunJob for a job directory in a process of its own and returns
// when that process is dead, which it must be soon after ctx ends.
type Spawn func(ctx context.Context, jobDir string) error

// Queue keeps rebuild jobs in a store and runs them, oldest first.
type Queue struct {
	// Parallel is the number of jobs that run at the same time; zero means
	// one. Set it before Run.
	Parallel int
}

// NewQueue returns a queue over the jobs of store, with job directories below
// dir, which only this queue may use. It starts nothing.
func NewQueue(store *capstore.Store, dir string, spawn Spawn) (*Queue, error) { panic("unwritten") }

// Run first ends what an earlier process left and then runs jobs until ctx
// ends. It returns after every worker is dead.
func (q *Queue) Run(ctx context.Context) error { panic("unwritten") }

// Submit adds a job for an attestation, or returns the one that is pending,
// running or minted and still good. sba is the envelope that att was verified
// from. A *Failure means that a revocation forbids the job.
func (q *Queue) Submit(sba []byte, att verifier.Attestation, loc capstore.Locations) (capstore.Job, error) {
	panic("unwritten")
}

// Cancel ends a job that has not ended, so that it never mints.
// capstore.ErrFinished: it has ended. capstore.ErrNotFound: there is none.
func (q *Queue) Cancel(id string) (capstore.Job, error) { panic("unwritten") }

// JobDir is where a job's log and events are.
func (q *Queue) JobDir(id string) string { panic("unwritten") }
