package rebuild

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// bench is a queue over a real store, with a worker that the test makes up.
type bench struct {
	parties
	t     *testing.T
	dir   string
	store *capstore.Store
	queue *Queue
	stop  func()

	mu     sync.Mutex // guards starts
	starts []string   // versions of the jobs in the order in which workers began
}

// worker is what a test puts in the place of the worker process. It reads and
// writes the same files.
type worker func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error

func newBench(t *testing.T, w worker) *bench {
	t.Helper()
	b := &bench{parties: newParties(t), t: t, dir: t.TempDir()}
	b.open(w)
	return b
}

func (b *bench) open(w worker) {
	b.t.Helper()
	b.store = b.parties.store(b.t, filepath.Join(b.dir, "store"))
	q, err := NewQueue(b.store, filepath.Join(b.dir, "jobs"), func(ctx context.Context, dir string) error {
		job, envelope, proof, err := readJob(dir)
		if err != nil {
			return err
		}
		att, err := believe(b.policy, envelope, proof)
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.starts = append(b.starts, att.Ledger().Statement().Predicate.Version)
		b.mu.Unlock()
		unlock, err := lockJob(dir)
		if err != nil {
			return err
		}
		defer unlock()
		return w(ctx, b, dir, job, att.Ledger())
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.queue = q
}

func (b *bench) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.queue.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run = %v", err)
		}
	})
	b.t.Cleanup(b.stop)
}

func (b *bench) submit(version string) capstore.Job {
	b.t.Helper()
	envelope, att := b.attest(b.t, b.statement(version, "train"))
	job, err := b.queue.Submit(envelope, att, capstore.Locations{}, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	return job
}

// wait returns a job that has ended.
func (b *bench) wait(id string) capstore.Job {
	b.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		job, err := b.store.Job(id)
		if err != nil {
			b.t.Fatal(err)
		}
		if job.State.HasEnded() {
			return job
		}
	}
	b.t.Fatalf("job %s did not end within 20 s", id)
	return capstore.Job{}
}

// envelopes lists those that the queue keeps. A job's goes after its last row,
// under the same lock.
func (b *bench) envelopes() []os.DirEntry {
	b.t.Helper()
	b.queue.mu.Lock()
	defer b.queue.mu.Unlock()
	left, err := os.ReadDir(filepath.Join(b.dir, "jobs", sbaDir))
	if err != nil {
		b.t.Error(err)
	}
	return left
}

// answer writes a result as RunJob does.
func answer(dir string, job jobFile, r Result) error {
	r.Job, r.SBA = job.ID, job.SBA
	return writeJSON(filepath.Join(dir, ResultFile), &r)
}

// mints answers with a capability that the policy's mint signed.
func mints(_ context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
	return answer(dir, job, Result{Verdict: capstore.Minted, Capability: capability(b.t, job, l, b.publisher.Public(), b.mint, "weights")})
}

func TestQueueMints(t *testing.T) {
	b := newBench(t, mints)
	job := b.submit("1.0.0")
	if job.State != capstore.JobPending {
		t.Errorf("a submitted job is %s", job.State)
	}
	b.run()
	job = b.wait(job.ID)
	if job.Verdict != capstore.Minted || job.Attempts != 1 || len(b.store.All()) != 1 || b.store.All()[0].ID() != job.Capability {
		t.Errorf("job %+v with %d capabilities, want one minted", job, len(b.store.All()))
	}
	// The same attestation again is the same job, and nothing runs.
	if again := b.submit("1.0.0"); again.ID != job.ID {
		t.Errorf("submitted again it is job %s, want %s", again.ID, job.ID)
	}
	// After its revocation the attestation cannot be submitted.
	b.revoke(t, b.store, capstore.KindCapability, job.Capability.String())
	if again := b.submit("1.0.0"); again.ID == job.ID {
		t.Error("a job whose capability is revoked still answers a submission")
	}
	b.revoke(t, b.store, capstore.KindSBA, job.SBA.String())
	envelope, att := b.attest(t, b.statement("1.0.0", "train"))
	var f *Failure
	if _, err := b.queue.Submit(envelope, att, capstore.Locations{}, 0); !errors.As(err, &f) || f.Verdict != capstore.PolicyRefused {
		t.Errorf("submitting a revoked attestation: %v, want %s", err, capstore.PolicyRefused)
	}
}

func TestSubmitRefuses(t *testing.T) {
	b := newBench(t, mints)
	envelope, att := b.attest(t, b.statement("1.0.0", "train"))
	other, _ := b.attest(t, b.statement("2.0.0", "train"))
	for _, c := range []struct {
		name string
		sba  []byte
		att  verifier.Attestation
		loc  capstore.Locations
	}{
		{"no attestation", envelope, verifier.Attestation{}, capstore.Locations{}},
		{"no envelope", nil, att, capstore.Locations{}},
		{"another envelope", other, att, capstore.Locations{}},
		{"garbage", []byte("{}"), att, capstore.Locations{}},
		{"trailing bytes", append(slices.Clone(envelope), '\n'), att, capstore.Locations{}},
		{"control character", envelope, att, capstore.Locations{Source: "/a\x1b[2J"}},
		{"newline", envelope, att, capstore.Locations{Image: "/a\nb"}},
		{"long hint", envelope, att, capstore.Locations{Lockfile: "/" + strings.Repeat("a", maxLocation)}},
		{"unknown dataset", envelope, att, capstore.Locations{Datasets: map[string]string{"x": "/x"}}},
	} {
		if job, err := b.queue.Submit(c.sba, c.att, c.loc, 0); err == nil {
			t.Errorf("%s: submitted as %s", c.name, job.ID)
		}
	}
	jobs, err := b.store.Jobs()
	if err != nil || len(jobs) != 0 {
		t.Errorf("%d jobs after refusals, %v", len(jobs), err)
	}
	if left := b.envelopes(); len(left) != 0 {
		t.Errorf("%d files left by refused submissions", len(left))
	}
	if _, err := b.queue.Cancel("aaaaaaaaaa"); !errors.Is(err, capstore.ErrNotFound) {
		t.Errorf("cancelling an unknown job: %v", err)
	}
	for _, dir := range []string{"", "jobs"} {
		if _, err := NewQueue(b.store, dir, func(context.Context, string) error { return nil }); err == nil {
			t.Errorf("NewQueue(%q) succeeded", dir)
		}
	}
}

// TestQueueRetries: workers that die in every way, and what becomes of their
// jobs and of those behind them.
func TestQueueRetries(t *testing.T) {
	var attempts sync.Map
	b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		version := l.Statement().Predicate.Version
		attempts.Store(fmt.Sprint(version, " ", job.Attempt), true)
		switch version {
		case "poison":
			return errors.New("signal: \x1b[31mkilled")
		case "second":
			if job.Attempt == 1 {
				return errors.New("out of memory")
			}
		case "after": // died after the answer was written
			mints(ctx, b, dir, job, l)
			return errors.New("signal: killed")
		case "torn":
			if job.Attempt == 1 {
				return os.WriteFile(filepath.Join(dir, ResultFile), []byte(`{"job":"`), 0o600)
			}
		case "other": // an answer to another job
			if job.Attempt == 1 {
				return writeJSON(filepath.Join(dir, ResultFile), &Result{Job: "aaaaaaaaaa", SBA: job.SBA, Verdict: capstore.FetchFailed})
			}
		case "forged":
			key, err := dsse.GenerateKey(dsse.Ed25519)
			if err != nil {
				return err
			}
			return answer(dir, job, Result{Verdict: capstore.Minted, Capability: capability(b.t, job, l, b.publisher.Public(), key, "weights")})
		case "fails":
			return answer(dir, job, Result{Verdict: capstore.BuildFailed, Reason: "exit status 1"})
		}
		return mints(ctx, b, dir, job, l)
	})
	want := map[string]struct {
		verdict  capstore.Verdict
		attempts int
		reason   string
	}{
		"poison": {capstore.BuildFailed, 3, `3 times, the last time: signal: \x1b[31mkilled`},
		"second": {capstore.Minted, 2, ""},
		"after":  {capstore.Minted, 1, ""},
		"torn":   {capstore.Minted, 2, ""},
		"other":  {capstore.Minted, 2, ""},
		"forged": {capstore.PolicyRefused, 1, "does not take the capability"},
		"fails":  {capstore.BuildFailed, 1, "exit status 1"},
		"good":   {capstore.Minted, 1, ""},
	}
	order := []string{"poison", "second", "after", "torn", "other", "forged", "fails", "good"}
	jobs := make(map[string]string)
	for _, version := range order {
		jobs[version] = b.submit(version).ID
	}
	b.run()
	// The good job is last, and the poisoned one does not keep it waiting.
	b.wait(jobs["good"])
	if first, err := b.store.Job(jobs["poison"]); err != nil || first.State.HasEnded() {
		t.Errorf("the poisoned job is %s (%v) when the last one ended, want waiting for its next attempt", first.State, err)
	}
	for version, w := range want {
		job := b.wait(jobs[version])
		if job.Verdict != w.verdict || job.Attempts != w.attempts || !strings.Contains(job.Reason, w.reason) {
			t.Errorf("%s: %s after %d attempts: %q; want %s after %d: %q", version, job.Verdict, job.Attempts, job.Reason, w.verdict, w.attempts, w.reason)
		}
	}
	if got := b.starts[:len(order)]; !slices.Equal(got, order) {
		t.Errorf("workers began in the order %q, want %q", got, order)
	}
	if n := len(b.store.All()); n != 5 {
		t.Errorf("%d capabilities, want 5", n)
	}
	if left := b.envelopes(); len(left) != 0 {
		t.Errorf("%d envelopes left after all jobs ended", len(left))
	}
}

// TestQueueRevokedMint: a mint that was revoked while its worker ran.
func TestQueueRevokedMint(t *testing.T) {
	for _, kind := range []capstore.Kind{capstore.KindMint, capstore.KindPublisher, capstore.KindSBA, capstore.KindFile} {
		b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
			targets := map[capstore.Kind]string{
				capstore.KindMint: string(b.mint.Public().ID()), capstore.KindPublisher: string(b.publisher.Public().ID()),
				capstore.KindSBA: job.SBA.String(), capstore.KindFile: digest("weights").String(),
			}
			b.revoke(b.t, b.store, kind, targets[kind])
			return mints(ctx, b, dir, job, l)
		})
		b.run()
		job := b.wait(b.submit("1.0.0").ID)
		if job.Verdict != capstore.PolicyRefused || !strings.Contains(job.Reason, "was revoked") || len(b.store.All()) != 0 {
			t.Errorf("%s: %s %q with %d capabilities, want a refusal", kind, job.Verdict, job.Reason, len(b.store.All()))
		}
	}
}

// TestQueueRevokedWhileWaiting: no worker starts for what was revoked since.
func TestQueueRevokedWhileWaiting(t *testing.T) {
	b := newBench(t, mints)
	job := b.submit("1.0.0")
	b.revoke(t, b.store, capstore.KindPublisher, string(b.publisher.Public().ID()))
	b.run()
	if job = b.wait(job.ID); job.Verdict != capstore.PolicyRefused || !strings.Contains(job.Reason, "was revoked") || len(b.starts) != 0 {
		t.Errorf("%s %q after %d workers, want a refusal and none", job.Verdict, job.Reason, len(b.starts))
	}
}

func TestCancel(t *testing.T) {
	began := make(chan struct{}, 1)
	b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		began <- struct{}{}
		<-ctx.Done()
		// The worker is killed, but its answer was already there.
		mints(context.Background(), b, dir, job, l)
		return ctx.Err()
	})
	waiting := b.submit("1.0.0")
	if job, err := b.queue.Cancel(waiting.ID); err != nil || job.State != capstore.JobCancelled {
		t.Fatalf("cancelling a waiting job: %+v, %v", job, err)
	}
	b.run()
	running := b.submit("2.0.0")
	<-began
	if _, err := b.queue.Cancel(running.ID); err != nil {
		t.Fatal(err)
	}
	b.stop()
	for _, id := range []string{waiting.ID, running.ID} {
		job, err := b.store.Job(id)
		if err != nil || job.State != capstore.JobCancelled || job.Verdict != "" {
			t.Errorf("job %s: %+v, %v, want it cancelled", id, job, err)
		}
		if _, err := b.queue.Cancel(id); !errors.Is(err, capstore.ErrFinished) {
			t.Errorf("cancelling again: %v, want %v", err, capstore.ErrFinished)
		}
	}
	if n := len(b.store.All()); n != 0 {
		t.Errorf("%d capabilities from cancelled jobs", n)
	}
}

// TestStopAndGo: a daemon that stops orderly does not use up an attempt.
func TestStopAndGo(t *testing.T) {
	began := make(chan struct{}, 1)
	b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		began <- struct{}{}
		if err := os.MkdirAll(filepath.Join(dir, workDir, "in"), 0o555); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	})
	job := b.submit("1.0.0")
	b.run()
	<-began
	b.stop()
	if now, err := b.store.Job(job.ID); err != nil || now.State != capstore.JobPending || now.Attempts != 0 {
		t.Errorf("after an orderly stop: %+v, %v, want pending without an attempt", now, err)
	}
	if _, err := os.Stat(filepath.Join(b.queue.JobDir(job.ID), workDir)); !os.IsNotExist(err) {
		t.Errorf("scratch files after a stop: %v", err)
	}
	b.store.Close()
	b.open(mints)
	b.run()
	if job = b.wait(job.ID); job.Verdict != capstore.Minted || job.Attempts != 1 {
		t.Errorf("after a new start: %+v, want minted in one attempt", job)
	}
}

// TestParallel: jobs at a time are bounded, and with a bound of two there are two.
func TestParallel(t *testing.T) {
	var now, most atomic.Int32
	b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		time.Sleep(50 * time.Millisecond)
		return mints(ctx, b, dir, job, l)
	})
	b.queue.Parallel = 2
	b.run()
	var ids []string
	for i := range 6 {
		ids = append(ids, b.submit(fmt.Sprint(i)).ID)
	}
	for _, id := range ids {
		b.wait(id)
	}
	if most.Load() != 2 {
		t.Errorf("%d jobs at a time, want 2", most.Load())
	}
	if err := b.queue.Run(context.Background()); err == nil {
		t.Error("a second Run was accepted")
	}
}

// TestConcurrentSubmit: many callers, few attestations, one job for each.
func TestConcurrentSubmit(t *testing.T) {
	b := newBench(t, mints)
	b.run()
	var wg sync.WaitGroup
	ids := make([]sync.Map, 3)
	for i := range 24 {
		version := fmt.Sprint(i % len(ids))
		envelope, att := b.attest(t, b.statement(version, "train"))
		wg.Go(func() {
			job, err := b.queue.Submit(envelope, att, capstore.Locations{}, 0)
			if err != nil {
				t.Error(err)
				return
			}
			ids[i%len(ids)].Store(job.ID, true)
			b.queue.Cancel("aaaaaaaaaa")
		})
	}
	wg.Wait()
	for i := range ids {
		n := 0
		ids[i].Range(func(id, _ any) bool {
			n++
			b.wait(id.(string))
			return true
		})
		if n != 1 {
			t.Errorf("%d jobs for attestation %d, want 1", n, i)
		}
	}
	jobs, err := b.store.Jobs()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, j := range jobs {
		if seen[j.SBA.String()] {
			t.Errorf("two jobs for attestation %s", j.SBA)
		}
		seen[j.SBA.String()] = true
	}
	if len(b.store.All()) != len(seen) {
		t.Errorf("%d capabilities for %d attestations", len(b.store.All()), len(seen))
	}
}
