package rebuild

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild/record"
	"github.com/openclaw/clawfs/verifier"
)

// recorded is mints with something in the place of provenance.
func recorded(_ context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
	return answer(dir, job, Result{
		Verdict: capstore.Minted, Record: []byte("minted"),
		Capability: capability(b.t, job, l, b.publisher.Public(), b.mint, "weights"),
	})
}

// TestNoProvenanceWithoutMint: a daemon is killed after it wrote a job's
// provenance and before it wrote the row. What the job then becomes instead has
// no provenance.
func TestNoProvenanceWithoutMint(t *testing.T) {
	for name, instead := range map[string]func(b *bench, id string){
		"revoked": func(b *bench, id string) {
			b.revoke(b.t, b.store, capstore.KindMint, string(b.mint.Public().ID()))
			b.run()
			if job := b.wait(id); job.Verdict != capstore.PolicyRefused {
				b.t.Errorf("job ended as %s %s", job.Verdict, job.Reason)
			}
		},
		"cancelled": func(b *bench, id string) {
			if _, err := b.queue.Cancel(id); err != nil {
				b.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, recorded)
			id := b.submit("1.0.0").ID
			job, _, err := b.queue.next(time.Now())
			if err != nil || job.ID != id {
				t.Fatalf("next = %v, %v", job, err)
			}
			if err := b.queue.prepare(job, nil); err != nil {
				t.Fatal(err)
			}
			if err := b.queue.spawn(t.Context(), b.queue.JobDir(id)); err != nil {
				t.Fatal(err)
			}
			r, err := readResult(b.queue.JobDir(id), id, job.SBA)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.queue.keepRecord(job, r); err != nil { // and here it dies
				t.Fatal(err)
			}
			if got, err := b.queue.Record(id); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("Record of a job that runs = %q, %v", got, err)
			}
			instead(b, id)
			if got, err := b.queue.Record(id); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("Record of a job that was %s = %q, %v", name, got, err)
			}
			if _, err := os.Stat(b.queue.recordFile(id)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("its file: %v", err)
			}
		})
	}
	b := newBench(t, recorded)
	b.run()
	id := b.submit("1.0.0").ID
	b.wait(id)
	if got, err := b.queue.Record(id); err != nil || string(got) != "minted" {
		t.Errorf("Record of a job that minted = %q, %v", got, err)
	}
}

// TestRevokedWhileFull: what is taken back while the disk is full is not granted
// when there is room again.
func TestRevokedWhileFull(t *testing.T) {
	b := newBench(t, recorded)
	records := b.dir + "/jobs/" + recordDir
	if err := unix.Mount("tmpfs", records, "tmpfs", 0, "size=4k,nr_inodes=1"); err != nil {
		t.Fatal(err)
	}
	full := true
	room := func() {
		if full {
			full = false
			unix.Unmount(records, unix.MNT_DETACH)
		}
	}
	defer room()
	b.queue.fullDelay = 10 * time.Millisecond
	b.run()
	id := b.submit("1.0.0").ID
	for {
		if _, err := os.Stat(b.queue.JobDir(id) + "/" + ResultFile); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond) // offered, and not taken
	b.revoke(t, b.store, capstore.KindMint, string(b.mint.Public().ID()))
	time.Sleep(100 * time.Millisecond) // a try that began before has ended
	room()
	if job := b.wait(id); job.Verdict != capstore.PolicyRefused || len(b.store.All()) != 0 {
		t.Errorf("job ended as %s with %d capabilities", job.Verdict, len(b.store.All()))
	}
}

// TestRecordTooLong: what can have no provenance is not minted, and is not built
// again and again in the hope of it.
func TestRecordTooLong(t *testing.T) {
	s := newJobSite(t)
	s.config.Program = strings.Repeat("x", record.MaxSize)
	r, err := RunJob(t.Context(), s.config)
	if err != nil || r.Verdict != capstore.PolicyRefused || !strings.Contains(r.Reason, "too long for a record") || len(r.Capability)+len(r.Record) > 0 {
		t.Errorf("RunJob = %s %s with %d bytes of capability, %d of record, %v", r.Verdict, r.Reason, len(r.Capability), len(r.Record), err)
	}
	if stored, err := readResult(s.dir, r.Job, r.SBA); err != nil || stored.Verdict != r.Verdict {
		t.Errorf("the answer on disk is %+v, %v", stored, err)
	}
}
