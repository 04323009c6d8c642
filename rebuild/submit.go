package rebuild

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

const (
	// maxWaiting bounds the jobs that have not ended.
	maxWaiting = 1000
	// maxLocation bounds one hint in bytes, and maxHints all of a job.
	maxLocation = 4096
	maxHints    = 64 << 10
)

// Submit adds a job for an attestation, or returns the one that is pending,
// running, or minted with a capability that is neither revoked nor expired.
// sba is the envelope that att was verified from. A *Failure means that a
// revocation forbids the job. Submit returns after the job is on stable
// storage; after an error the queue is what it was.
func (q *Queue) Submit(sba []byte, att verifier.Attestation, loc capstore.Locations) (capstore.Job, error) {
	if att.IsZero() || !bytes.Equal(sba, att.Envelope()) {
		return capstore.Job{}, errors.New("submitting: the attestation was not verified from this envelope")
	}
	st := att.Ledger().Statement()
	if err := checkHints(loc, st); err != nil {
		return capstore.Job{}, fmt.Errorf("submitting %s: %w", st.Predicate.Model, err)
	}
	if f := q.revoked(att.Digest(), att.Publisher().ID()); f != nil {
		return capstore.Job{}, f
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	jobs, err := q.store.Jobs()
	if err != nil {
		return capstore.Job{}, fmt.Errorf("submitting %s: %w", st.Predicate.Model, err)
	}
	waiting := 0
	for _, job := range jobs {
		if !job.State.HasEnded() {
			waiting++
		}
		if job.SBA == att.Digest() && q.stands(job, time.Now()) {
			return job, nil
		}
	}
	if waiting >= maxWaiting {
		return capstore.Job{}, fmt.Errorf("submitting %s: %d jobs are waiting, at most %d may: try again when some have ended", st.Predicate.Model, waiting, maxWaiting)
	}
	if err := writeWhole(q.sbaFile(att.Digest()), sba); err != nil {
		return capstore.Job{}, fmt.Errorf("submitting %s: %w", st.Predicate.Model, err)
	}
	job, err := q.store.AddJob(capstore.Job{
		SBA: att.Digest(), Model: st.Predicate.Model, Version: st.Predicate.Version,
		State: capstore.JobPending, Locations: loc, CreatedAt: time.Now().UTC(),
	})
	if err != nil {
		os.Remove(q.sbaFile(att.Digest()))
		return capstore.Job{}, fmt.Errorf("submitting %s: %w", st.Predicate.Model, err)
	}
	q.nudge()
	return job, nil
}

// stands reports whether a job answers a further submission.
func (q *Queue) stands(job capstore.Job, now time.Time) bool {
	if !job.State.HasEnded() {
		return true
	}
	if !job.Verdict.Granted() {
		return false
	}
	for _, g := range q.store.All() {
		if g.ID() == job.Capability {
			_, revoked := g.Revoked()
			return !revoked && now.Before(g.NotAfter())
		}
	}
	return false
}

// checkHints refuses what no person types and what names no input.
func checkHints(loc capstore.Locations, st verifier.Statement) error {
	sum := 0
	check := func(what, hint string) error {
		if sum += len(hint); len(hint) > maxLocation || sum > maxHints {
			return fmt.Errorf("location of %s is too long: at most %d bytes each, %d in all", what, maxLocation, maxHints)
		}
		if escape(hint) != hint || bytes.ContainsAny([]byte(hint), "\n\t") {
			return fmt.Errorf("location of %s has control characters: %.100q", what, hint)
		}
		return nil
	}
	sets := st.Datasets()
	for name, hint := range loc.Datasets {
		if _, ok := sets[name]; !ok {
			return fmt.Errorf("a location for dataset %.100q, which the ledger does not name", name)
		}
		if err := check("dataset "+name, hint); err != nil {
			return err
		}
	}
	for name, hint := range loc.Inputs {
		if !st.HasInput(name) {
			return fmt.Errorf("a location for input %.100q, which the ledger does not name", name)
		}
		if err := check("input "+name, hint); err != nil {
			return err
		}
	}
	return errors.Join(check("source", loc.Source), check("image", loc.Image), check("lockfile", loc.Lockfile))
}

// Cancel ends a job that has not ended, so that it never mints; the row says
// so before the worker is stopped. capstore.ErrFinished: it has ended.
// capstore.ErrNotFound: there is none.
func (q *Queue) Cancel(id string) (capstore.Job, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	job, err := q.store.Job(id)
	if err != nil {
		return capstore.Job{}, fmt.Errorf("cancelling: %w", err)
	}
	job.State, job.Verdict, job.FinishedAt = capstore.JobCancelled, "", time.Now().UTC()
	if err := q.store.PutJob(job); err != nil {
		return capstore.Job{}, fmt.Errorf("cancelling: %w", err)
	}
	if stop := q.running[id]; stop != nil {
		stop()
	}
	os.Remove(q.sbaFile(job.SBA))
	return job, nil
}
