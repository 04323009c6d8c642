package rebuild

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

// publisherOf is how the tests tell publishers apart: by the model's prefix.
func publisherOf(budgets map[string]verifier.Budget) func(string) (string, verifier.Budget) {
	return func(model string) (string, verifier.Budget) {
		name, _, _ := strings.Cut(model, "/")
		return name, budgets[name]
	}
}

// row puts a job into the store as if it had been submitted, without its files.
func (b *bench) row(model, version string, created time.Time, priority int) capstore.Job {
	b.t.Helper()
	job, err := b.store.AddJob(capstore.Job{
		SBA: digest(model + version), Model: model, Version: version, State: capstore.JobPending, Priority: priority, CreatedAt: created.UTC(),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return job
}

// ended puts a job into the store that ran for took and then ended.
func (b *bench) ended(model, version string, at time.Time, took time.Duration) capstore.Job {
	b.t.Helper()
	job := b.row(model, version, at.Add(-took), 0)
	job.State, job.Attempts, job.StartedAt = capstore.JobRunning, 1, at.Add(-took).UTC()
	if err := b.store.PutJob(job); err != nil {
		b.t.Fatal(err)
	}
	job.Verdict, job.FinishedAt = capstore.BuildFailed, at.UTC()
	if _, err := b.store.FinishJob(job, nil); err != nil {
		b.t.Fatal(err)
	}
	return job
}

// TestTurns: who goes before whom. Jobs are started a minute after each other
// and go on.
func TestTurns(t *testing.T) {
	type job struct {
		name     string // "publisher/model"
		minute   int    // of its submission, before the first start
		priority int
	}
	for name, c := range map[string]struct {
		jobs []job
		want []string
	}{
		"oldest first": {
			[]job{{"a/3", 1, 0}, {"a/1", 9, 0}, {"a/2", 5, 0}},
			[]string{"a/1", "a/2", "a/3"},
		},
		"highest first": {
			[]job{{"a/4", 29, -1}, {"a/3", 9, 0}, {"a/1", 1, 10}, {"a/2", 5, 1}},
			[]string{"a/1", "a/2", "a/3", "a/4"},
		},
		"waiting counts": { // half an hour for each step
			[]job{{"a/1", 31, 0}, {"a/2", 0, 1}, {"a/4", 299, -10}, {"a/3", 1200, -10}, {"a/5", 0, 0}},
			[]string{"a/3", "a/1", "a/2", "a/5", "a/4"},
		},
		"publishers take turns": {
			[]job{{"a/1", 50, 0}, {"a/2", 49, 0}, {"a/3", 48, 0}, {"b/1", 2, 0}, {"b/2", 2, -1}, {"c/1", 1, 0}},
			[]string{"a/1", "b/1", "c/1", "a/2", "a/3", "b/2"},
		},
		"a flood of urgent jobs has an end": {
			[]job{{"a/1", 0, 1}, {"a/2", 0, 1}, {"a/3", 0, 1}, {"b/1", 0, 0}, {"b/2", 0, -10}},
			[]string{"a/1", "a/2", "a/3", "b/1", "b/2"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, mints)
			b.queue.Budget = publisherOf(nil)
			start := time.Now()
			for i, j := range c.jobs {
				b.row(j.name, "1", start.Add(-time.Duration(j.minute)*time.Minute+time.Duration(i)*time.Millisecond), j.priority)
			}
			var got []string
			for i := range c.jobs {
				job, _, err := b.queue.next(start.Add(time.Duration(i) * time.Minute))
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, job.Model)
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("jobs start in the order %q, want %q", got, c.want)
			}
			if job, _, err := b.queue.next(start.Add(time.Hour)); err != nil || job.ID != "" {
				t.Errorf("another job starts: %+v, %v", job, err)
			}
		})
	}
}

// TestNoStarvation: a stream of urgent jobs that never ends does not keep a job
// of the lowest priority waiting for ever, be it of the same publisher or not.
func TestNoStarvation(t *testing.T) {
	for _, model := range []string{"a/low", "b/low"} {
		b := newBench(t, mints)
		b.queue.Budget = publisherOf(nil)
		start := time.Now()
		b.row(model, "1", start, capstore.MinPriority)
		for hour := 0; ; hour++ {
			now := start.Add(time.Duration(hour) * time.Hour)
			b.row("a/urgent", fmt.Sprint(hour), now, capstore.MaxPriority)
			job, _, err := b.queue.next(now)
			if err != nil {
				t.Fatal(err)
			}
			if job.Model == model {
				if hour < 8 {
					t.Errorf("%s started after %d hours, before jobs of twenty steps more", model, hour)
				}
				break
			}
			if hour > 12 {
				t.Fatalf("%s has not started after %d hours", model, hour)
			}
		}
	}
}

// TestFlood: two hundred jobs of one publisher do not keep another's waiting.
func TestFlood(t *testing.T) {
	for name, c := range map[string]struct {
		parallel int
		budget   verifier.Budget
	}{"turns": {1, verifier.Budget{}}, "budget": {2, verifier.Budget{Concurrent: 1}}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			free := make(chan struct{})
			var flood, most atomic.Int32
			b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
				if strings.HasPrefix(l.Statement().Predicate.Model, "acme/") {
					most.Store(max(most.Load(), flood.Add(1)))
					defer flood.Add(-1)
					if c.budget.Concurrent > 0 {
						select {
						case <-free:
						case <-ctx.Done():
							return ctx.Err()
						}
					}
				}
				return mints(ctx, b, dir, job, l)
			})
			policy, err := b.policy.AddPublisher(verifier.PublisherRule{
				Name: "other", Models: []string{"other/*"}, Keys: b.policy.Publishers[0].Keys, Threshold: 1, Images: []string{"*"},
			})
			if err != nil {
				t.Fatal(err)
			}
			b.policy = policy
			b.queue.Budget = publisherOf(map[string]verifier.Budget{"acme": c.budget})
			b.queue.Parallel = c.parallel
			for i := range 200 {
				b.submit(fmt.Sprint(i))
			}
			st := b.statement("1.0.0", "train")
			st.Predicate.Model = "other/toy"
			envelope, att := b.attest(t, st)
			job, err := b.queue.Submit(envelope, att, capstore.Locations{}, 0)
			if err != nil {
				t.Fatal(err)
			}
			b.run()
			job = b.wait(job.ID)
			waiting := 0
			if c.budget.Concurrent > 0 {
				time.Sleep(200 * time.Millisecond) // for a second one to start, if it could
			}
			jobs, err := b.store.Jobs()
			if err != nil {
				t.Fatal(err)
			}
			for _, j := range jobs {
				if j.State == capstore.JobPending {
					waiting++
				}
			}
			if job.Verdict != capstore.Minted || waiting < 190 || most.Load() != 1 {
				t.Errorf("%s with %d of 200 still waiting, %d of them at a time; want it minted among the first, and one at a time", job.Verdict, waiting, most.Load())
			}
			close(free)
		})
	}
}

func TestSubmitBudget(t *testing.T) {
	b := newBench(t, mints)
	b.queue.Budget = publisherOf(map[string]verifier.Budget{"acme": {JobsPerDay: 3}})
	now := time.Now()
	b.ended("acme/old", "1", now.Add(-25*time.Hour), time.Minute)
	b.ended("other/new", "1", now.Add(-time.Hour), time.Minute)
	b.ended("acme/new", "1", now.Add(-20*time.Hour), 0)
	first := b.submit("1.0.0")
	if _, err := b.queue.Cancel(first.ID); err != nil { // a cancelled job was a job
		t.Fatal(err)
	}
	second := b.submit("2.0.0")
	envelope, att := b.attest(t, b.statement("3.0.0", "train"))
	var f *Failure
	_, err := b.queue.Submit(envelope, att, capstore.Locations{}, 0)
	again := now.Add(-20 * time.Hour).Add(day).UTC().Format(time.RFC3339)
	if !errors.As(err, &f) || f.Verdict != capstore.PolicyRefused || !strings.Contains(f.Detail, "publisher acme has used up the 3 jobs of 24 hours") || !strings.Contains(f.Detail, "budget.jobsPerDay") || !strings.Contains(f.Detail, again) {
		t.Errorf("the fourth job of a day: %v, want a refusal that names publisher, budget and %s", err, again)
	}
	if same := b.submit("2.0.0"); same.ID != second.ID {
		t.Error("a job that stands is not answered with itself when the budget is used up")
	}
	if left := b.envelopes(); len(left) != 1 {
		t.Errorf("%d envelopes, want that of the waiting job", len(left))
	}
	for n := range maxOfOne - 1 {
		b.row("acme/more", fmt.Sprint(n), now.Add(-30*time.Hour), 0)
	}
	b.queue.Budget = publisherOf(nil)
	if _, err := b.queue.Submit(envelope, att, capstore.Locations{}, 0); err == nil || !strings.Contains(err.Error(), "500 jobs of publisher acme are waiting") {
		t.Errorf("the job after %d of one publisher: %v", maxOfOne, err)
	}
}

func TestBuildBudget(t *testing.T) {
	b := newBench(t, mints)
	b.queue.Budget = publisherOf(map[string]verifier.Budget{"acme": {BuildSecondsPerDay: 3600}})
	now := time.Now()
	b.ended("acme/old", "1", now.Add(-25*time.Hour), 100*time.Hour)
	b.ended("acme/toy", "1", now.Add(-10*time.Hour), 20*time.Minute)
	b.ended("acme/toy", "2", now.Add(-5*time.Hour), 40*time.Minute)
	b.ended("other/toy", "1", now.Add(-5*time.Hour), 90*time.Hour)
	until := now.Add(-10 * time.Hour).Add(day).UTC()
	var ids []string
	for i := range 2*maxMarks + 1 { // more than one call marks
		ids = append(ids, b.row("acme/toy", fmt.Sprint("w", i), now.Add(-time.Hour), 0).ID)
	}
	other := b.row("other/toy", "2", now, 0)
	job, wait, err := b.queue.next(now)
	if err != nil || job.ID != other.ID {
		t.Fatalf("next = %+v, %v, want the job of the other publisher", job, err)
	}
	marked := 0
	for _, id := range ids {
		if row, err := b.store.Job(id); err == nil && row.Waits != "" {
			marked++
		}
	}
	if marked != maxMarks {
		t.Errorf("%d rows were marked at once, want %d", marked, maxMarks)
	}
	for range 3 {
		if job, wait, err = b.queue.next(now); err != nil || job.ID != "" {
			t.Fatalf("next = %+v, %v: a job over its publisher's budget starts", job, err)
		}
	}
	if wait != time.Minute {
		t.Errorf("the queue sleeps for %v, want a minute", wait)
	}
	for _, id := range ids {
		row, err := b.store.Job(id)
		if err != nil || row.State != capstore.JobPending || row.Waits != capstore.WaitBudget || !row.NotBefore.Equal(until) || !strings.Contains(row.Reason, "publisher acme") || !strings.Contains(row.Reason, "budget.buildSecondsPerDay") {
			t.Fatalf("a job over its publisher's budget: %+v, %v, want it to wait until %v and to say why", row, err, until)
		}
	}
	if _, wait, _ = b.queue.next(until.Add(-time.Second)); wait != time.Second {
		t.Errorf("a second before there is room the queue sleeps for %v", wait)
	}
	// A larger budget counts at once, whatever the rows say.
	b.queue.Budget = publisherOf(map[string]verifier.Budget{"acme": {BuildSecondsPerDay: 3601}})
	if job, _, err = b.queue.next(now); err != nil || job.ID == "" || job.Waits != "" || !job.NotBefore.IsZero() || job.Reason != "" {
		t.Errorf("after the budget was raised: %+v, %v, want a job to start", job, err)
	}
	b.queue.Budget = publisherOf(map[string]verifier.Budget{"acme": {BuildSecondsPerDay: 3600}})
	if job, _, err = b.queue.next(until); err != nil || job.ID == "" {
		t.Errorf("when there is room again: %+v, %v, want a job to start", job, err)
	}
}

// TestRoom: a machine that is full starts no second job, and always a first.
func TestRoom(t *testing.T) {
	b := newBench(t, mints)
	now := time.Now()
	for i := range 3 {
		b.row("acme/toy", fmt.Sprint(i), now, 0)
	}
	var asked []int
	room := false
	b.queue.Room = func(running int) bool { asked = append(asked, running); return room }
	if job, _, err := b.queue.next(now); err != nil || job.ID == "" || len(asked) != 0 {
		t.Fatalf("next = %+v, %v after %d questions: the first job needs no room", job, err, len(asked))
	}
	if job, wait, err := b.queue.next(now); err != nil || job.ID != "" || wait > roomPoll {
		t.Errorf("next = %+v, %v, %v without room", job, wait, err)
	}
	room = true
	for range 2 {
		if job, _, err := b.queue.next(now); err != nil || job.ID == "" {
			t.Errorf("next = %+v, %v with room", job, err)
		}
	}
	if want := []int{1, 1, 2}; !slices.Equal(asked, want) {
		t.Errorf("asked for room beside %v jobs, want %v", asked, want)
	}
}

func TestPriority(t *testing.T) {
	b := newBench(t, mints)
	one, two := b.submit("1"), b.submit("2")
	for n, want := range map[int]string{11: "want -10 to 10", -11: "want -10 to 10"} {
		if _, err := b.queue.SetPriority(two.ID, n); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("SetPriority(%d) = %v, want %q", n, err, want)
		}
		envelope, att := b.attest(t, b.statement("3", "train"))
		if _, err := b.queue.Submit(envelope, att, capstore.Locations{}, n); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Submit with priority %d: %v, want %q", n, err, want)
		}
	}
	if _, err := b.queue.SetPriority("aaaaaaaaaa", 1); !errors.Is(err, capstore.ErrNotFound) {
		t.Errorf("priority of an unknown job: %v", err)
	}
	if job, err := b.queue.SetPriority(two.ID, 3); err != nil || job.Priority != 3 {
		t.Errorf("SetPriority = %+v, %v", job, err)
	}
	again := func(version string, priority int) capstore.Job {
		envelope, att := b.attest(t, b.statement(version, "train"))
		job, err := b.queue.Submit(envelope, att, capstore.Locations{}, priority)
		if err != nil {
			t.Fatal(err)
		}
		return job
	}
	if job := again("2", 0); job.ID != two.ID || job.Priority != 3 {
		t.Errorf("submitted again with less: %+v, want priority 3", job)
	}
	if job := again("2", 5); job.ID != two.ID || job.Priority != 5 {
		t.Errorf("submitted again with more: %+v, want priority 5", job)
	}
	b.run()
	b.wait(one.ID)
	if want := []string{"2", "1"}; !slices.Equal(b.starts, want) {
		t.Errorf("workers began in the order %q, want %q", b.starts, want)
	}
	if _, err := b.queue.SetPriority(one.ID, 1); !errors.Is(err, capstore.ErrFinished) {
		t.Errorf("priority of a job that has ended: %v, want %v", err, capstore.ErrFinished)
	}
}

func TestPriorityOfRunning(t *testing.T) {
	began := make(chan struct{})
	b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		close(began)
		<-ctx.Done()
		return ctx.Err()
	})
	job := b.submit("1")
	b.run()
	<-began
	if _, err := b.queue.SetPriority(job.ID, 1); !errors.Is(err, ErrRunning) {
		t.Errorf("priority of a running job: %v, want %v", err, ErrRunning)
	}
}

// TestDamagedRow: a row that cannot be read keeps no other job from running.
func TestDamagedRow(t *testing.T) {
	b := newBench(t, mints)
	bad, good := b.submit("1"), b.submit("2")
	b.store.Close()
	db, err := badger.Open(badger.DefaultOptions(filepath.Join(b.dir, "store", "db")).WithLogger(nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(txn *badger.Txn) error { return txn.Set([]byte("job/"+bad.ID), []byte("rubbish")) }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b.open(mints)
	b.run()
	if job := b.wait(good.ID); job.Verdict != capstore.Minted {
		t.Errorf("the job beside a damaged row: %+v", job)
	}
	if _, err := b.store.Jobs(); !errors.Is(err, capstore.ErrDamaged) {
		t.Errorf("the damaged row is not reported: %v", err)
	}
}
