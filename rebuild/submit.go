package rebuild

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier"
)

const (
	// maxWaiting bounds the jobs that have not ended, maxOfOne those of one
	// publisher, so that there is room for others.
	maxWaiting = 1000
	maxOfOne   = 500
	// maxLocation bounds one hint in bytes, and maxHints all of a job.
	maxLocation = 4096
	maxHints    = 64 << 10
)

// Submit is SubmitTerms without terms.
func (q *Queue) Submit(sba []byte, att verifier.Attestation, loc capstore.Locations, priority int) (capstore.Job, error) {
	return q.SubmitTerms(sba, att, loc, priority, capstore.Terms{})
}

// SubmitTerms adds a job for an attestation, or returns the one under the same
// terms that is pending, running, or minted with a capability that is neither
// revoked nor expired. Other terms are another job, which rebuilds again: a mint
// signs what it has just seen.
//
// sba is the envelope that att was verified from; a higher priority than the
// job has is given to it if it is still pending. A *Failure means that a
// revocation, the publisher's budget or terms that are over forbid the job.
// SubmitTerms returns after the job is on stable storage; after an error the
// queue is what it was.
func (q *Queue) SubmitTerms(sba []byte, att verifier.Attestation, loc capstore.Locations, priority int, terms capstore.Terms) (capstore.Job, error) {
	if att.IsZero() || !bytes.Equal(sba, att.Envelope()) {
		return capstore.Job{}, errors.New("submitting: the attestation was not verified from this envelope")
	}
	st := att.Ledger().Statement()
	if err := checkHints(loc, st); err != nil {
		return capstore.Job{}, fmt.Errorf("submitting %s: %w", st.Predicate.Model, err)
	}
	if err := capstore.CheckPriority(priority); err != nil {
		return capstore.Job{}, fmt.Errorf("submitting %s: %w", st.Predicate.Model, err)
	}
	if err := terms.Check(); err != nil {
		return capstore.Job{}, fmt.Errorf("submitting %s: %w", st.Predicate.Model, err)
	}
	if f := over(terms, q.clock()); f != nil {
		return capstore.Job{}, f
	}
	if f := q.revoked(att.Digest(), att.Publisher().ID(), st.Environment().Digest.SHA256); f != nil {
		return capstore.Job{}, f
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	jobs, err := q.list()
	if err != nil {
		return capstore.Job{}, fmt.Errorf("submitting %s: %w", st.Predicate.Model, err)
	}
	now, waiting := time.Now(), 0
	for _, job := range jobs {
		if !job.State.HasEnded() {
			waiting++
		}
		if job.SBA == att.Digest() && job.Terms.Equal(terms) && q.stands(job, q.clock()) {
			if job, err = q.attach(job, att); err != nil || job.State != capstore.JobPending || priority <= job.Priority {
				return job, err
			}
			return q.prioritize(job, priority)
		}
	}
	a := q.accounts(jobs, now).of(st.Predicate.Model)
	switch {
	case waiting >= maxWaiting:
		return capstore.Job{}, fmt.Errorf("submitting %s: %d jobs are waiting, at most %d may: try again when some have ended", st.Predicate.Model, waiting, maxWaiting)
	case q.Budget != nil && a.waiting >= maxOfOne:
		return capstore.Job{}, fmt.Errorf("submitting %s: %d jobs of publisher %s are waiting, at most %d of one publisher may: try again when some have ended", st.Predicate.Model, a.waiting, a.publisher, maxOfOne)
	}
	if again := a.submitAgain(); !again.IsZero() {
		return capstore.Job{}, fail(capstore.PolicyRefused, "publisher %s has used up the %d jobs of 24 hours that its budget.jobsPerDay in the policy allows; there is room again at %s", a.publisher, a.budget.JobsPerDay, again.UTC().Format(time.RFC3339))
	}
	if err := errors.Join(durable.Replace(q.sbaFile(att.Digest()), sba, 0o600), q.keepProof(att, jobs)); err != nil {
		return capstore.Job{}, fmt.Errorf("submitting %s: %w", st.Predicate.Model, err)
	}
	job, err := q.store.AddJob(capstore.Job{
		SBA: att.Digest(), Logged: entry(att), Model: st.Predicate.Model, Version: st.Predicate.Version,
		State: capstore.JobPending, Locations: loc, Terms: terms, Priority: priority, CreatedAt: now.UTC(),
	})
	if err != nil {
		q.dropSubmission(att.Digest())
		return capstore.Job{}, fmt.Errorf("submitting %s: %w", st.Predicate.Model, err)
	}
	q.nudge()
	return job, nil
}

// keepProof is writeProof for a new job among others. One that still waits for the
// same attestation under other terms, and whose row says where that is logged, does
// not lose its proof to a submission without one.
func (q *Queue) keepProof(att verifier.Attestation, jobs []capstore.Job) error {
	if att.Proof() == nil && slices.ContainsFunc(jobs, func(j capstore.Job) bool {
		return j.SBA == att.Digest() && !j.State.HasEnded() && !j.Logged.IsZero()
	}) {
		return nil
	}
	return q.writeProof(att)
}

// writeProof puts the log proof of an attestation beside its envelope, and takes
// away one that an earlier submission left.
func (q *Queue) writeProof(att verifier.Attestation) error {
	name := q.proofFile(att.Digest())
	if proof := att.Proof(); proof != nil {
		return durable.Replace(name, proof, 0o600)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// attach gives a pending job the log proof of a later submission, in place of
// none or of another. Callers hold q.mu.
func (q *Queue) attach(job capstore.Job, att verifier.Attestation) (capstore.Job, error) {
	e := entry(att)
	if job.State != capstore.JobPending || e.IsZero() || e == job.Logged {
		return job, nil
	}
	if err := q.writeProof(att); err != nil {
		return job, fmt.Errorf("submitting %s: %w", job.Model, err)
	}
	job.Logged = e
	if err := q.store.PutJob(job); err != nil {
		return job, fmt.Errorf("submitting %s: %w", job.Model, err)
	}
	return job, nil
}

// entry is where the log proof of an attestation says that it lies.
func entry(att verifier.Attestation) capstore.Logged {
	c := att.Checkpoint()
	if c.IsZero() {
		return capstore.Logged{}
	}
	return capstore.Logged{Origin: c.Origin(), Index: att.LogIndex(), Size: c.Size()}
}

// over refuses terms under which no capability would open anything any more.
func over(t capstore.Terms, now time.Time) *Failure {
	if t.NotAfter.IsZero() || now.Before(t.NotAfter) {
		return nil
	}
	return fail(capstore.PolicyRefused, "the capability was asked for until %s, and now it is %s", t.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}

// stands reports whether a job answers a further submission under its terms.
func (q *Queue) stands(job capstore.Job, now time.Time) bool {
	if !job.State.HasEnded() {
		return true
	}
	if !job.Verdict.Granted() {
		return false
	}
	g, ok := q.store.View().Get(job.Capability)
	_, revoked := g.Revoked()
	return ok && !revoked && now.Before(g.NotAfter())
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

// ErrRunning: the job runs already, and its turn does not matter any more.
var ErrRunning = errors.New("job runs already")

// SetPriority gives a pending job another priority. ErrRunning: it runs.
// capstore.ErrFinished: it has ended. capstore.ErrNotFound: there is none.
func (q *Queue) SetPriority(id string, priority int) (capstore.Job, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	job, err := q.store.Job(id)
	switch {
	case err != nil:
		return capstore.Job{}, fmt.Errorf("changing the priority: %w", err)
	case job.State.HasEnded():
		return capstore.Job{}, fmt.Errorf("changing the priority of job %s: %w", id, capstore.ErrFinished)
	case job.State == capstore.JobRunning:
		return capstore.Job{}, fmt.Errorf("changing the priority of job %s: %w", id, ErrRunning)
	}
	return q.prioritize(job, priority)
}

// prioritize writes a pending job's priority. Callers hold q.mu.
func (q *Queue) prioritize(job capstore.Job, priority int) (capstore.Job, error) {
	job.Priority = priority
	if err := q.store.PutJob(job); err != nil {
		return capstore.Job{}, fmt.Errorf("changing the priority: %w", err)
	}
	q.nudge()
	return job, nil
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
	if job.State == capstore.JobPending {
		job.StartedAt = time.Time{} // what was waited for took no build time
	}
	job.Waits, job.NotBefore = "", time.Time{}
	job.State, job.Verdict, job.FinishedAt = capstore.JobCancelled, "", time.Now().UTC()
	if err := q.store.PutJob(job); err != nil {
		return capstore.Job{}, fmt.Errorf("cancelling: %w", err)
	}
	if stop := q.running[id]; stop != nil {
		stop()
	}
	q.dropSubmission(job.SBA)
	q.dropRecord(job.ID) // of an answer that came too late; Record hands it out no more
	return job, nil
}
