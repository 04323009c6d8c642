package rebuild

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

const (
	// maxAttempts bounds how often one job is started. A worker that ends
	// without an answer three times is the job's fault or this machine's, and
	// both are for a person.
	maxAttempts = 3
	// retryDelay passes after a worker's death before a second attempt; twice as
	// much before a third. It counts from the start of the attempt, which the
	// store keeps.
	retryDelay = 2 * time.Second
	// lockPoll is how often a lock that a living worker holds is tried.
	lockPoll = 200 * time.Millisecond
	// sweepTime bounds one call of Sweep after a worker has ended.
	sweepTime = 30 * time.Second
	// fullDelay passes before a full disk is asked again for room for a row.
	fullDelay = 5 * time.Second
	// roomPoll is how often a machine without room for one more is asked again.
	roomPoll = 2 * time.Second
	// keepJobs is how long the row of a job that has ended is kept.
	keepJobs = 90 * day
)

// fetchRetry are the delays before the second and each later try to fetch the
// inputs of a job; up to a quarter is added to each by chance, so that many
// jobs do not come back to a server at once.
var fetchRetry = []time.Duration{time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour}

// Spawn runs RunJob for a job directory in a process of its own and returns
// when that process is dead, which it must be soon after ctx ends. The process
// should die with its parent (PR_SET_PDEATHSIG); the queue waits for it if it
// does not.
type Spawn func(ctx context.Context, jobDir string) error

// Queue keeps rebuild jobs in a store and runs them. Publishers take turns; of
// one publisher's jobs the highest priority goes first, then the oldest. Waiting
// counts as priority (see priorityStep), so that every job has its turn.
//
// What survives a kill at any point: a job is a row of the store from Submit
// on. A row that is "running" at the start of Run belongs to a dead daemon; if
// its directory has an answer, that is taken, else the job is run again, at
// most maxAttempts times in all. A job whose inputs could not be had for the
// moment runs again too, after the delays of FetchRetry; no other answer leads
// to a second run. A capability and the end of its job are one
// transaction of the store, so a job mints once.
type Queue struct {
	// Parallel is the number of jobs that run at the same time; zero means
	// one. Set it before Run.
	Parallel int
	// Sweep, if not nil, removes what dead workers left on this machine
	// (sandbox.Runtime.Sweep). It is called when Run starts and after a worker
	// ended without an answer. Set it before Run.
	Sweep func(context.Context) error
	// FetchRetry are the delays before further tries to fetch, as many as it
	// has; NewQueue sets it to those of fetchRetry. Set it before Run.
	FetchRetry []time.Duration
	// Budget, if not nil, says whose model it is by the policy, and what that
	// publisher may use. Publishers take turns by it. It is called with the
	// queue locked and for each model often. Set it before Run and Submit.
	Budget func(model string) (publisher string, b verifier.Budget)
	// Room, if not nil, says whether this machine has room for one more job
	// beside those that run, of which there is at least one. Set it before Run.
	Room func(running int) bool
	// Keep is how long the rows and directories of ended jobs are kept (see
	// Prune); zero means 90 days. Set it before Run.
	Keep time.Duration
	// Clock, if not nil, says the time by which capabilities have expired. Set it
	// before Run and Submit.
	Clock func() time.Time

	retryDelay, fullDelay time.Duration

	store *capstore.Store
	dir   string
	spawn Spawn
	wake  chan struct{} // holds one token when there may be work

	mu      sync.Mutex                    // guards running, started, and each change of a job's row
	running map[string]context.CancelFunc // workers by job
	started bool
}

// NewQueue returns a queue over the jobs of store, with job directories below
// dir, which only this queue may use. It starts nothing.
func NewQueue(store *capstore.Store, dir string, spawn Spawn) (*Queue, error) {
	if store == nil || spawn == nil || !filepath.IsAbs(dir) {
		return nil, errors.New("queue: a store, a spawn function and an absolute directory are required")
	}
	for _, d := range []string{dir, filepath.Join(dir, sbaDir), filepath.Join(dir, recordDir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("queue: %w", err)
		}
	}
	return &Queue{
		store: store, dir: dir, spawn: spawn, FetchRetry: fetchRetry, retryDelay: retryDelay, fullDelay: fullDelay,
		wake: make(chan struct{}, 1), running: make(map[string]context.CancelFunc),
	}, nil
}

// JobDir is where a job's log and events are.
func (q *Queue) JobDir(id string) string { return filepath.Join(q.dir, id) }

// Run first ends what an earlier process left and then runs jobs until ctx
// ends, which is no error. It returns after every worker is dead. An error is
// the store's or the disk's: nothing can be recorded any more.
func (q *Queue) Run(ctx context.Context) error {
	q.mu.Lock()
	again := q.started
	q.started = true
	q.mu.Unlock()
	if again {
		return errors.New("queue: already run")
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var workers sync.WaitGroup
	defer workers.Wait()
	slots := make(chan struct{}, max(q.Parallel, 1))
	start := func(job capstore.Job, work func(context.Context, capstore.Job) error) {
		workers.Go(func() {
			defer q.nudge()
			defer func() { <-slots }()
			if err := work(ctx, job); err != nil && ctx.Err() == nil {
				stop(fmt.Errorf("queue: %w", err))
			}
		})
	}
	orphans, err := q.recover(ctx)
	if err != nil {
		return fmt.Errorf("queue: %w", err)
	}
	for _, job := range orphans {
		select {
		case slots <- struct{}{}:
			start(job, q.adopt)
		case <-ctx.Done():
		}
	}
	var pruned time.Time
	for ctx.Err() == nil {
		if now := time.Now(); now.Sub(pruned) >= day {
			pruned = now
			// What could not be removed is tried again in a day.
			if err := q.Prune(cmp.Or(q.Keep, keepJobs)); errors.Is(err, capstore.ErrClosed) {
				stop(fmt.Errorf("queue: %w", err))
				break
			}
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			continue
		}
		job, wait, err := q.next(time.Now())
		if err != nil {
			stop(fmt.Errorf("queue: %w", err))
			break
		}
		if job.ID != "" {
			start(job, q.work)
			continue
		}
		<-slots
		timer := time.NewTimer(wait)
		select {
		case <-q.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	workers.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return nil
}

// work runs one claimed job to its next state.
func (q *Queue) work(ctx context.Context, job capstore.Job) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	q.mu.Lock()
	q.running[job.ID] = cancel
	now, err := q.store.Job(job.ID)
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.running, job.ID)
		q.mu.Unlock()
	}()
	if err != nil {
		return err
	}
	if now.State.HasEnded() {
		return nil // cancelled between next and here
	}
	st := q.queued(job.SBA)
	if f := q.revoked(job.SBA, st.Predicate.Publisher.KeyID, st.Environment().Digest.SHA256); f != nil {
		return q.offer(ctx, job, Result{Verdict: f.Verdict, Reason: f.Detail})
	}
	bases, err := LiveBases(q.store.View(), st, q.clock())
	if f := (*Failure)(nil); errors.As(err, &f) {
		return q.offer(ctx, job, Result{Verdict: f.Verdict, Reason: f.Detail})
	}
	spawnErr := q.prepare(job, bases)
	if spawnErr == nil {
		spawnErr = q.spawn(ctx, q.JobDir(job.ID))
	}
	return q.settle(ctx, job, spawnErr)
}

// adopt settles a job whose daemon died. Its worker may still be alive.
func (q *Queue) adopt(ctx context.Context, job capstore.Job) error {
	return q.settle(ctx, job, errors.New("the daemon died"))
}

func (q *Queue) clock() time.Time {
	if q.Clock != nil {
		return q.Clock()
	}
	return time.Now()
}

func (q *Queue) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}
