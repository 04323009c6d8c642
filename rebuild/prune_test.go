package rebuild

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
)

func TestPrune(t *testing.T) {
	b := newBench(t, mints)
	now := time.Now()
	pending := b.row("acme/toy", "pending", now.Add(-200*day), 0)
	old := b.ended("acme/toy", "old", now.Add(-91*day), time.Minute)
	young := b.ended("acme/toy", "young", now.Add(-89*day), time.Minute)
	today := b.ended("acme/toy", "today", now.Add(-23*time.Hour), time.Minute)
	locked := b.ended("acme/toy", "locked", now.Add(-91*day), time.Minute)
	minted := b.row("acme/toy", "minted", now.Add(-100*day), 0)
	_, att := b.attest(t, b.statement("minted", "train"))
	l := att.Ledger()
	minted, err := b.store.AddJob(capstore.Job{SBA: att.Digest(), Model: "acme/toy", Version: "minted", State: capstore.JobPending, CreatedAt: now.Add(-100 * day).UTC()})
	if err != nil {
		t.Fatal(err)
	}
	minted.Verdict, minted.FinishedAt = capstore.Minted, now.Add(-100*day).UTC()
	c, err := b.store.FinishJob(minted, capability(t, jobFile{ID: minted.ID, SBA: minted.SBA}, l, b.publisher.Public(), b.mint, "weights"))
	if err != nil {
		t.Fatal(err)
	}
	gone := b.queue.JobDir("aaaaaaaaaa") // of a row that went before a crash
	dirs := map[string]bool{gone: false, gone + goneSuffix: false, filepath.Join(b.dir, "jobs", "cache"): true, filepath.Join(b.dir, "jobs", sbaDir): true}
	for _, job := range []capstore.Job{pending, young, today, minted, locked} {
		dirs[b.queue.JobDir(job.ID)] = true
	}
	dirs[b.queue.JobDir(old.ID)] = false
	for dir := range dirs {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "sub"), 0o700), os.WriteFile(filepath.Join(dir, lockName), nil, 0o600), os.Chmod(filepath.Join(dir, "sub"), 0o500)); err != nil {
			t.Fatal(err)
		}
	}
	for _, job := range []capstore.Job{old, young, minted} {
		if err := os.WriteFile(b.queue.recordFile(job.ID), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	unlock, err := lockJob(b.queue.JobDir(locked.ID))
	if err != nil {
		t.Fatal(err)
	}
	check := func(rows ...capstore.Job) {
		t.Helper()
		for dir, want := range dirs {
			if _, err := os.Stat(dir); (err == nil) != want {
				t.Errorf("directory %s: %v, want it there: %t", dir, err, want)
			}
		}
		jobs, err := b.store.Jobs()
		if err != nil {
			t.Fatal(err)
		}
		for _, job := range jobs {
			if !slices.ContainsFunc(rows, func(r capstore.Job) bool { return r.ID == job.ID }) && job.Version != "minted" {
				t.Errorf("the row of %s is still there", job.Version)
			}
		}
		for _, job := range rows {
			if _, err := b.store.Job(job.ID); err != nil {
				t.Errorf("the row of %s: %v", job.Version, err)
			}
		}
	}
	if err := b.queue.Prune(90 * day); err != nil {
		t.Fatal(err)
	}
	check(pending, young, today, minted)
	unlock()
	dirs[b.queue.JobDir(locked.ID)] = false
	if err := b.queue.Prune(90 * day); err != nil {
		t.Fatal(err)
	}
	check(pending, young, today, minted)
	// What budgets are computed from stays for a day, whoever asks.
	if err := b.queue.Prune(0); err != nil {
		t.Fatal(err)
	}
	dirs[b.queue.JobDir(young.ID)] = false
	check(pending, today, minted)
	if n := len(b.store.All()); n != 1 {
		t.Errorf("%d capabilities, want 1", n)
	}
	b.revoke(t, b.store, capstore.KindCapability, c.ID().String())
	if err := b.queue.Prune(90 * day); err != nil {
		t.Fatal(err)
	}
	dirs[b.queue.JobDir(minted.ID)] = false
	check(pending, today)
	for job, want := range map[string]bool{old.ID: false, young.ID: false, minted.ID: true} {
		if _, err := b.queue.Record(job); (err == nil) != want {
			t.Errorf("the record of %s: %v, want it kept: %t", job, err, want)
		}
	}
}

// TestRunPrunes: a queue that starts removes what is older than Keep.
func TestRunPrunes(t *testing.T) {
	b := newBench(t, mints)
	old := b.ended("acme/toy", "old", time.Now().Add(-49*time.Hour), time.Minute)
	b.queue.Keep = 2 * day
	job := b.submit("1")
	b.run()
	b.wait(job.ID)
	if _, err := b.store.Job(old.ID); !errors.Is(err, capstore.ErrNotFound) {
		t.Errorf("the old row: %v, want it gone", err)
	}
}
