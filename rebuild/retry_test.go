package rebuild

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

// unreachable answers that an input cannot be had for the moment.
func unreachable(dir string, job jobFile) error {
	return answer(dir, job, Result{Verdict: capstore.FetchFailed, Reason: "the dataset's server does not answer", Retry: true})
}

// TestFetchRetry: which answers lead to another try, and how that ends.
func TestFetchRetry(t *testing.T) {
	var mu sync.Mutex
	tries := make(map[string]int)
	b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		version := l.Statement().Predicate.Version
		mu.Lock()
		tries[version]++
		n := tries[version]
		mu.Unlock()
		if _, err := os.Stat(filepath.Join(dir, ResultFile)); err == nil {
			b.t.Errorf("%s: the answer of the try before is still there", version)
		}
		switch {
		case version == "mismatch":
			return answer(dir, job, Result{Verdict: capstore.FetchFailed, Reason: "wrong bytes at every place"})
		case version == "lies": // only FETCH_FAILED is ever tried again
			return answer(dir, job, Result{Verdict: capstore.BuildFailed, Retry: true, Reason: "exit status 1"})
		case version == "dies" && n%2 == 1:
			return errors.New("signal: killed")
		case version == "never" || version == "third" && n < 3 || version == "dies" && n < 6:
			return unreachable(dir, job)
		}
		return mints(ctx, b, dir, job, l)
	})
	b.queue.FetchRetry = []time.Duration{30 * time.Millisecond, 30 * time.Millisecond, 30 * time.Millisecond}
	b.queue.retryDelay = time.Millisecond
	want := map[string]struct {
		verdict           capstore.Verdict
		attempts, fetches int
		reason            string
	}{
		"never":    {capstore.FetchFailed, 4, 3, "does not answer (the last of 4 tries)"},
		"third":    {capstore.Minted, 3, 2, ""},
		"mismatch": {capstore.FetchFailed, 1, 0, "wrong bytes"},
		"lies":     {capstore.BuildFailed, 1, 0, "exit status 1"},
		"dies":     {capstore.BuildFailed, 5, 2, "without an answer 3 times"},
		"good":     {capstore.Minted, 1, 0, ""},
	}
	jobs := make(map[string]string)
	for _, version := range []string{"never", "third", "mismatch", "lies", "dies", "good"} {
		jobs[version] = b.submit(version).ID
	}
	b.run()
	for version, w := range want {
		job := b.wait(jobs[version])
		if job.Verdict != w.verdict || job.Attempts != w.attempts || job.Fetches != w.fetches || !strings.Contains(job.Reason, w.reason) {
			t.Errorf("%s: %s after %d attempts and %d vain fetches: %q; want %s, %d, %d, %q", version, job.Verdict, job.Attempts, job.Fetches, job.Reason, w.verdict, w.attempts, w.fetches, w.reason)
		}
		mu.Lock()
		if n := tries[version]; n != w.attempts {
			t.Errorf("%s: %d workers, want %d", version, n, w.attempts)
		}
		mu.Unlock()
	}
	if n := len(b.store.All()); n != 2 {
		t.Errorf("%d capabilities, want 2", n)
	}
	if left := b.envelopes(); len(left) != 0 {
		t.Errorf("%d envelopes left after all jobs ended", len(left))
	}
}

// TestFullDisk: while there is no room for a row the queue waits, and then goes
// on where it was. Each job meets a full disk when its worker has ended.
func TestFullDisk(t *testing.T) {
	b := &bench{parties: newParties(t), t: t, dir: t.TempDir()}
	if err := unix.Mount("tmpfs", b.dir, "tmpfs", 0, "size=256m"); err != nil {
		t.Fatalf("mounting needs root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(b.dir, unix.MNT_DETACH) })
	filler := filepath.Join(b.dir, "filler")
	full := make(chan struct{})
	fill := func() error {
		var st unix.Statfs_t
		if err := unix.Statfs(b.dir, &st); err != nil {
			return err
		}
		f, err := os.Create(filler)
		if err != nil {
			return err
		}
		defer f.Close()
		full <- struct{}{}
		return unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-(16<<20))
	}
	b.open(func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		if err := answerOf[l.Statement().Predicate.Version](ctx, b, dir, job, l); err != nil {
			return errors.Join(err, fill())
		}
		return fill()
	})
	b.queue.fullDelay, b.queue.retryDelay = 20*time.Millisecond, time.Millisecond
	b.queue.FetchRetry = []time.Duration{time.Millisecond}
	want := map[string]capstore.Verdict{"mints": capstore.Minted, "dies": capstore.BuildFailed, "fetches": capstore.FetchFailed}
	ids := make(map[string]string)
	for version := range want {
		ids[version] = b.submit(version).ID
	}
	b.run()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-full:
				time.Sleep(100 * time.Millisecond)
				os.Remove(filler)
			case <-stop:
				return
			}
		}
	}()
	for version, verdict := range want {
		if job := b.wait(ids[version]); job.Verdict != verdict {
			t.Errorf("%s: %s %q, want %s", version, job.Verdict, job.Reason, verdict)
		}
	}
}

// TestFullJournal: the rows of a job are in the store, and the journal has no room
// for its capability. The job is minted when there is room, once, and its provenance
// stays.
func TestFullJournal(t *testing.T) {
	b := &bench{parties: newParties(t), t: t, dir: t.TempDir()}
	journal := filepath.Join(b.dir, capstore.KeptName)
	if err := os.Mkdir(journal, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", journal, "tmpfs", 0, "size=64k,mode=700"); err != nil {
		t.Fatalf("mounting needs root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(journal, unix.MNT_DETACH) })
	filler := filepath.Join(journal, "filler")
	b.open(func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		if l.Statement().Predicate.Version == "0.9.0" {
			return recorded(ctx, b, dir, job, l)
		}
		f, err := os.Create(filler)
		if err != nil {
			return err
		}
		defer f.Close()
		for chunk := make([]byte, 4096); err == nil; _, err = f.Write(chunk) {
		}
		if !errors.Is(err, unix.ENOSPC) {
			return err
		}
		// The journal's page has room for one capability, and not for two.
		return recorded(ctx, b, dir, job, l)
	})
	b.queue.fullDelay = 10 * time.Millisecond
	b.run()
	b.wait(b.submit("0.9.0").ID)
	id := b.submit("1.0.0").ID
	for {
		if job, err := b.store.Job(id); err == nil && job.State.HasEnded() {
			break
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond) // some tries
	if n := len(b.store.All()); n != 1 {
		t.Errorf("%d capabilities grant, want the one that is in the journal", n)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); len(b.store.All()) == 1 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	job, err := b.store.Job(id)
	if err != nil || job.Verdict != capstore.Minted || !slices.ContainsFunc(b.store.All(), func(g capstore.Grant) bool { return g.ID() == job.Capability }) {
		t.Errorf("job %+v, %v, with %d capabilities, want one minted", job, err, len(b.store.All()))
	}
	if _, err := b.queue.Record(id); err != nil {
		t.Errorf("the provenance of a job that minted: %v", err)
	}
}

// answerOf are workers of TestFullDisk by the version of their ledgers.
var answerOf = map[string]worker{
	"mints": mints,
	"dies": func(context.Context, *bench, string, jobFile, verifier.Ledger) error {
		return errors.New("signal: killed")
	},
	"fetches": func(_ context.Context, _ *bench, dir string, job jobFile, _ verifier.Ledger) error {
		return unreachable(dir, job)
	},
}

// TestFetchRetryRestart: a job that waits is not started before its time by a
// queue that is started again, says why it waits, and can be cancelled.
func TestFetchRetryRestart(t *testing.T) {
	b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		return unreachable(dir, job)
	})
	begin := time.Now()
	job, other := b.submit("1"), b.submit("2")
	b.run()
	waits := func(id string) capstore.Job {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			now, err := b.store.Job(id)
			if err != nil {
				t.Fatal(err)
			}
			if now.Waits != "" {
				return now
			}
			if time.Now().After(deadline) {
				t.Fatalf("job %+v does not wait", now)
			}
		}
	}
	got := waits(job.ID)
	if got.State != capstore.JobPending || got.Waits != capstore.WaitFetch || got.Fetches != 1 ||
		got.NotBefore.Before(begin.Add(fetchRetry[0])) || got.NotBefore.After(time.Now().Add(fetchRetry[0]*5/4+time.Second)) ||
		got.Reason != "FETCH_FAILED at try 1 of 5: the dataset's server does not answer" {
		t.Errorf("after a first try: %+v, want it to wait for a minute and a bit and to say why", got)
	}
	waits(other.ID)
	b.stop()
	b.store.Close()
	b.open(mints)
	b.run()
	// A job that need not wait shows that the queue is past the two.
	third := b.submit("3")
	b.wait(third.ID)
	for _, id := range []string{job.ID, other.ID} {
		if now, err := b.store.Job(id); err != nil || now.State != capstore.JobPending || now.Attempts != 1 {
			t.Errorf("after a restart: %+v, %v, want it to wait on", now, err)
		}
	}
	now, err := b.queue.Cancel(job.ID)
	if err != nil || now.State != capstore.JobCancelled || now.Waits != "" || !now.StartedAt.IsZero() {
		t.Errorf("cancelling a job that waits: %+v, %v", now, err)
	}
	// When its time has come it starts, with a new answer.
	b.stop()
	got, err = b.store.Job(other.ID)
	if err != nil {
		t.Fatal(err)
	}
	if early, wait, err := b.queue.next(got.NotBefore.Add(-time.Second)); err != nil || early.ID != "" || wait > time.Second {
		t.Errorf("a second before its time: %+v, %v, %v", early, wait, err)
	}
	late, _, err := b.queue.next(got.NotBefore)
	if err != nil || late.ID != other.ID || late.Waits != "" || !late.NotBefore.IsZero() || late.Reason != "" || late.Attempts != 2 {
		t.Errorf("at its time: %+v, %v, want the job started", late, err)
	}
}

// TestFetchRetryKilled: a daemon that died between an answer that sends a job
// back and the row that says so.
func TestFetchRetryKilled(t *testing.T) {
	b := newBench(t, mints)
	b.queue.FetchRetry = []time.Duration{time.Millisecond}
	b.submit("1")
	job, _, err := b.queue.next(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.queue.prepare(job, nil); err != nil {
		t.Fatal(err)
	}
	dir := b.queue.JobDir(job.ID)
	if err := unreachable(dir, jobFile{ID: job.ID, SBA: job.SBA}); err != nil {
		t.Fatal(err)
	}
	b.store.Close()
	b.open(mints)
	b.queue.FetchRetry = []time.Duration{time.Millisecond}
	b.run()
	if job = b.wait(job.ID); job.Verdict != capstore.Minted || job.Attempts != 2 || job.Fetches != 1 {
		t.Errorf("after the daemon's death: %+v, want minted at the second try", job)
	}
}
