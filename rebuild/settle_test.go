package rebuild

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

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
