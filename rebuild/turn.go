package rebuild

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

const (
	// priorityStep is how much waiting one step of priority is worth: a job of
	// priority 1 goes before those of priority 0 that have waited up to half an
	// hour longer. So no job is overtaken by one that was submitted more than
	// twenty steps after it.
	priorityStep = 30 * time.Minute
	// day is how far back budgets look. Nothing younger is ever pruned.
	day = 24 * time.Hour
	// maxMarks bounds the rows that one call of next marks as waiting for a
	// budget. Each costs a sync of the disk, and Submit waits for it; the next
	// call goes on.
	maxMarks = 16
)

// account is what the rows say about one publisher.
type account struct {
	publisher string
	budget    verifier.Budget
	waiting   int       // jobs that have not ended
	running   int64     // jobs that run
	lastStart time.Time // of any of its jobs
	submitted []time.Time
	built     []built
	again     *time.Time // what buildAgain found
}

// built is the time that a job took which ended within the last day.
type built struct {
	ended time.Time
	took  time.Duration
}

// accounts finds the account of a model.
type accounts struct {
	q       *Queue
	byModel map[string]*account
	byName  map[string]*account
	running int
}

// accounts adds up the rows. Nothing else is kept, so that a restart forgets
// nothing. Who a model's publisher is, is today's policy's to say.
func (q *Queue) accounts(jobs []capstore.Job, now time.Time) *accounts {
	all := &accounts{q: q, byModel: make(map[string]*account), byName: make(map[string]*account)}
	since := now.Add(-day)
	for _, job := range jobs {
		a := all.of(job.Model)
		if !job.State.HasEnded() {
			a.waiting++
		}
		if job.State == capstore.JobRunning {
			a.running++
			all.running++
		}
		if job.StartedAt.After(a.lastStart) {
			a.lastStart = job.StartedAt
		}
		if job.CreatedAt.After(since) {
			a.submitted = append(a.submitted, job.CreatedAt)
		}
		if job.State.HasEnded() && job.FinishedAt.After(since) && !job.StartedAt.IsZero() {
			a.built = append(a.built, built{job.FinishedAt, max(job.FinishedAt.Sub(job.StartedAt), 0)})
		}
	}
	return all
}

func (all *accounts) of(model string) *account {
	if a := all.byModel[model]; a != nil {
		return a
	}
	var name string
	var budget verifier.Budget
	if all.q.Budget != nil {
		name, budget = all.q.Budget(model)
	}
	a := all.byName[name]
	if a == nil {
		a = &account{publisher: name, budget: budget}
		all.byName[name] = a
	}
	all.byModel[model] = a
	return a
}

// submitAgain is when another job may be submitted: the zero time is now.
func (a *account) submitAgain() time.Time {
	most := a.budget.JobsPerDay
	if most == 0 || int64(len(a.submitted)) < most {
		return time.Time{}
	}
	slices.SortFunc(a.submitted, time.Time.Compare)
	return a.submitted[int64(len(a.submitted))-most].Add(day)
}

// buildAgain is when the builds that ended leave room for another one: the
// zero time is now.
func (a *account) buildAgain() time.Time {
	most := a.budget.BuildSecondsPerDay
	if most == 0 {
		return time.Time{}
	}
	if a.again != nil {
		return *a.again
	}
	var sum time.Duration
	for _, b := range a.built {
		sum += b.took
	}
	slices.SortFunc(a.built, func(x, y built) int { return x.ended.Compare(y.ended) })
	var again time.Time
	for _, b := range a.built {
		// As a number of seconds: most may be more than a Duration holds.
		if sum.Seconds() < float64(most) {
			break
		}
		sum -= b.took
		again = b.ended.Add(day)
	}
	a.again = &again
	return again
}

// ready reports when a pending job may start for its own sake.
func (q *Queue) ready(job capstore.Job) time.Time {
	var due time.Time
	if died := job.Attempts - job.Fetches; died > 0 {
		due = job.StartedAt.Add(q.retryDelay << min(died-1, maxAttempts))
	}
	if job.Waits == capstore.WaitFetch && job.NotBefore.After(due) {
		due = job.NotBefore
	}
	return due
}

// turn is a job that could start now.
type turn struct {
	job *capstore.Job
	of  *account
}

// own orders the jobs of one publisher: the earlier, the sooner.
func (t turn) own() time.Time {
	return t.job.CreatedAt.Add(-priorityStep * time.Duration(t.job.Priority))
}

// among orders the first jobs of all publishers. A publisher begins to wait
// again whenever one of its jobs starts, so that publishers take turns and a
// thousand jobs of one do not stand before the first of another.
func (t turn) among() time.Time {
	begin := t.job.CreatedAt
	if t.of.lastStart.After(begin) {
		begin = t.of.lastStart
	}
	return begin.Add(-priorityStep * time.Duration(t.job.Priority))
}

// first picks the job whose turn it is, nil if there is none. jobs are oldest
// first.
func first(turns []turn) *capstore.Job {
	best := make(map[*account]turn)
	for _, t := range turns {
		if b, ok := best[t.of]; !ok || t.own().Before(b.own()) {
			best[t.of] = t
		}
	}
	var next turn
	for _, t := range turns {
		if best[t.of].job == t.job && (next.job == nil || t.among().Before(next.among())) {
			next = t
		}
	}
	return next.job
}

// next claims the job whose turn it is, with its attempt recorded, or says how
// long there is nothing to do.
func (q *Queue) next(now time.Time) (capstore.Job, time.Duration, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	jobs, err := q.list()
	if err != nil {
		return capstore.Job{}, 0, err
	}
	all := q.accounts(jobs, now)
	wait := time.Minute
	marks := 0
	var turns []turn
	for i := range jobs {
		job := &jobs[i]
		if job.State != capstore.JobPending {
			continue
		}
		if d := q.ready(*job).Sub(now); d > 0 {
			wait = min(wait, d)
			continue
		}
		a := all.of(job.Model)
		until := a.buildAgain()
		if mark(job, a, until) {
			if marks++; marks > maxMarks {
				wait = 0
			} else if err := q.store.PutJob(*job); err != nil {
				return q.unclaimed(err)
			}
		}
		switch {
		case !until.IsZero():
			wait = min(wait, max(until.Sub(now), 0))
		case a.budget.Concurrent > 0 && a.running >= a.budget.Concurrent:
			// The end of one of them wakes the queue.
		default:
			turns = append(turns, turn{job, a})
		}
	}
	job := first(turns)
	switch {
	case job == nil:
		return capstore.Job{}, wait, nil
	case all.running > 0 && q.Room != nil && !q.Room(all.running):
		return capstore.Job{}, min(wait, roomPoll), nil
	}
	if job.Waits != "" {
		job.Waits, job.NotBefore, job.Reason = "", time.Time{}, ""
	}
	job.State, job.StartedAt = capstore.JobRunning, now.UTC()
	job.Attempts++
	job.Log = filepath.Join(q.JobDir(job.ID), LogFile)
	if err := q.store.PutJob(*job); err != nil {
		return q.unclaimed(err)
	}
	return *job, 0, nil
}

// unclaimed waits for room on a full disk; any other error is the store's end.
func (q *Queue) unclaimed(err error) (capstore.Job, time.Duration, error) {
	if isFull(err) {
		return capstore.Job{}, fullDelay, nil
	}
	return capstore.Job{}, 0, err
}

// mark notes on a job that it waits for its publisher's budget until a time,
// or that it does so no longer, and reports whether its row changes.
func mark(job *capstore.Job, a *account, until time.Time) bool {
	waits := job.Waits == capstore.WaitBudget
	if until.IsZero() {
		if waits {
			job.Waits, job.NotBefore, job.Reason = "", time.Time{}, ""
		}
		return waits
	}
	if waits && job.NotBefore.Equal(until) {
		return false
	}
	job.Waits, job.NotBefore = capstore.WaitBudget, until.UTC()
	job.Reason = fmt.Sprintf("publisher %s has used up the %d build seconds of 24 hours that its budget.buildSecondsPerDay in the policy allows", a.publisher, a.budget.BuildSecondsPerDay)
	return true
}
