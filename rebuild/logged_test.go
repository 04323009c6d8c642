package rebuild

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
	"github.com/openclaw/clawfs/verifier/tlog/tlogtest"
)

// logged signs a ledger and returns it with its index in a log.
func (b *bench) logged(l *tlogtest.Log, version string) (envelope []byte, index int64) {
	b.t.Helper()
	payload, err := b.statement(version, "train").Payload()
	if err != nil {
		b.t.Fatal(err)
	}
	if envelope, err = dsse.Sign(dsse.PayloadType, payload, b.publisher); err != nil {
		b.t.Fatal(err)
	}
	leaf, err := tlog.LeafOf(tlog.KindSBA, payload, b.publisher.Public(), "acme/toy")
	if err != nil {
		b.t.Fatal(err)
	}
	return envelope, l.Add(b.t, leaf)
}

// The proof goes with its attestation to the worker, and away with it.
func TestQueueKeepsLogProofs(t *testing.T) {
	proofs := make(chan []byte, 10)
	b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		_, _, proof, err := readJob(dir)
		if err != nil {
			return err
		}
		proofs <- proof
		return mints(ctx, b, dir, job, l)
	})
	log := tlogtest.New("log.example/models", "alice")
	log.Fill(t, 2)
	envelope, index := b.logged(log, "1.0.0")
	log.Fill(t, 4)
	b.policy.Logs = log.Policy("")
	b.policy.Publishers = slices.Clone(b.policy.Publishers)
	submit := func(proof []byte) capstore.Job {
		t.Helper()
		att, err := believe(b.policy, envelope, proof)
		if err != nil {
			t.Fatal(err)
		}
		job, err := b.queue.Submit(envelope, att, capstore.Locations{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return job
	}
	job := submit(nil)
	if !job.Logged.IsZero() {
		t.Errorf("a job without a proof is logged at %+v", job.Logged)
	}
	// Given with a later submission, it goes to the job that waits already.
	first, second := log.Proof(t, index, index+1), log.Proof(t, index, log.Size())
	for _, proof := range [][]byte{first, second, nil} {
		again := submit(proof)
		if again.ID != job.ID {
			t.Fatalf("submitted again it is job %s, want %s", again.ID, job.ID)
		}
	}
	want := capstore.Logged{Origin: log.Origin, Index: index, Size: log.Size()}
	if job, err := b.store.Job(job.ID); err != nil || job.Logged != want {
		t.Errorf("the job is logged at %+v, %v, want %+v", job.Logged, err, want)
	}
	if left := b.envelopes(); len(left) != 2 {
		t.Errorf("the queue keeps %v, want the envelope and its proof", left)
	}
	// A policy that became stricter meanwhile asks the worker for it.
	b.policy.Publishers[0].Log = verifier.LogRequired
	// A restart removes what belongs to no job, and leaves these.
	stray := filepath.Join(b.dir, "jobs", sbaDir, digest("stray").String()+verifier.ProofSuffix)
	if err := os.WriteFile(stray, first, 0o600); err != nil {
		t.Fatal(err)
	}
	b.run()
	if done := b.wait(job.ID); done.Verdict != capstore.Minted || done.Logged != want {
		t.Errorf("job %s %s, logged at %+v", done.Verdict, done.Reason, done.Logged)
	}
	if got := <-proofs; !bytes.Equal(got, second) {
		t.Errorf("the worker got %d bytes of proof, want the last one's %d", len(got), len(second))
	}
	if left := b.envelopes(); len(left) != 0 {
		t.Errorf("%v is left of the submission", left)
	}
}

// What an earlier submission left is not taken for the proof of the next.
func TestQueueForgetsOldProof(t *testing.T) {
	b := newBench(t, mints)
	envelope, att := b.attest(t, b.statement("1.0.0", "train"))
	if err := os.WriteFile(b.queue.proofFile(att.Digest()), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.queue.Submit(envelope, att, capstore.Locations{}, 0); err != nil {
		t.Fatal(err)
	}
	if left := b.envelopes(); len(left) != 1 {
		t.Errorf("the queue keeps %v, want the envelope alone", left)
	}
}

// A submission under other terms, for which nobody asks for a proof, takes none
// away from a job that waits with one.
func TestQueueKeepsProofOfOtherTerms(t *testing.T) {
	b := newBench(t, mints)
	log := tlogtest.New("log.example/models", "alice")
	envelope, index := b.logged(log, "1.0.0")
	log.Fill(t, 2)
	b.policy.Logs = log.Policy("")
	submit := func(proof []byte, terms capstore.Terms) {
		t.Helper()
		att, err := believe(b.policy, envelope, proof)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.queue.SubmitTerms(envelope, att, capstore.Locations{}, 0, terms); err != nil {
			t.Fatal(err)
		}
	}
	proof := log.Proof(t, index, log.Size())
	submit(proof, capstore.Terms{})
	r, err := capstore.NewRestrict(nil, []int64{1000}, nil)
	if err != nil {
		t.Fatal(err)
	}
	submit(nil, capstore.Terms{Restrict: r})
	jobs, err := b.store.Jobs()
	if err != nil || len(jobs) != 2 || jobs[0].Logged.IsZero() {
		t.Fatalf("jobs: %+v, %v", jobs, err)
	}
	if kept, err := os.ReadFile(b.queue.proofFile(jobs[0].SBA)); err != nil || !bytes.Equal(kept, proof) {
		t.Errorf("of the first job's proof are left %d bytes, %v, want %d", len(kept), err, len(proof))
	}
}
