package rebuild

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

// TestRecoverDuringSubmit: what the start of a queue tidies up is not the
// envelope of a job that is being submitted.
func TestRecoverDuringSubmit(t *testing.T) {
	b := newBench(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		var err error
		for ctx.Err() == nil && err == nil {
			_, err = b.queue.recover(context.Background())
		}
		done <- err
	}()
	for i := range 100 {
		job := b.submit(fmt.Sprintf("1.0.%d", i))
		if _, err := os.Stat(b.queue.sbaFile(job.SBA)); err != nil {
			t.Errorf("job %s has lost its attestation: %v", job.ID, err)
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestCancelSweeps: a cancelled worker may have been killed in the middle of a
// build, which nobody would stop until the next job.
func TestCancelSweeps(t *testing.T) {
	begun, swept := make(chan struct{}), make(chan error, 8)
	b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		close(begun)
		<-ctx.Done()
		return ctx.Err()
	})
	job := b.submit("1.0.0")
	b.queue.Sweep = func(ctx context.Context) error {
		select {
		case <-begun:
			swept <- ctx.Err()
		default: // Run sweeps when it starts, too
		}
		return nil
	}
	b.run()
	<-begun
	if _, err := b.queue.Cancel(job.ID); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-swept:
		if err != nil {
			t.Errorf("swept with a context that had ended: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was swept")
	}
}

// TestCancelAdopted: a worker that outlived its daemon is ended when its job is
// cancelled, and does not keep the jobs behind it waiting.
func TestCancelAdopted(t *testing.T) {
	for name, late := range map[string]bool{"before the daemon starts": false, "while it waits": true} {
		t.Run(name, func(t *testing.T) { testCancelAdopted(t, late) })
	}
}

func testCancelAdopted(t *testing.T, late bool) {
	b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		return writeJSON(filepath.Join(dir, ResultFile), &Result{Job: job.ID, SBA: job.SBA, Verdict: capstore.OutputMissing})
	})
	job := b.submit("1.0.0")
	job.State, job.Attempts, job.StartedAt = capstore.JobRunning, 1, time.Now().UTC()
	if err := b.store.PutJob(job); err != nil {
		t.Fatal(err)
	}
	dir := b.queue.JobDir(job.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	orphan := exec.Command(os.Args[0])
	orphan.Env = append(os.Environ(), crashRole+"=holder "+dir)
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- orphan.Wait() }()
	defer orphan.Process.Kill()
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if text, err := os.ReadFile(filepath.Join(dir, lockName)); err == nil && len(text) > 0 {
			break
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatal("the orphan has not taken the lock")
		}
	}
	behind := b.submit("2.0.0")
	if late {
		b.run()
		time.Sleep(500 * time.Millisecond)
	}
	if _, err := b.queue.Cancel(job.ID); err != nil {
		t.Fatal(err)
	}
	if !late {
		b.run()
	}
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the orphan ended by itself")
		}
	case <-time.After(10 * time.Second):
		t.Error("the orphan lives")
	}
	if done := b.wait(behind.ID); done.Verdict != capstore.OutputMissing {
		t.Errorf("the job behind it ended as %s: %s", done.Verdict, done.Reason)
	}
}

// holder is an orphaned worker that would never end.
func holder(dir string) error {
	unlock, err := lockJob(dir)
	if err != nil {
		return err
	}
	defer unlock()
	time.Sleep(time.Minute)
	return nil
}
