package rebuild

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// sbaDir holds the submitted envelopes by the digest of their payload until
// their jobs end. A file without a job is what a crash left within Submit.
const sbaDir = "sba"

func (q *Queue) sbaFile(sba hashpipe.Digest) string {
	return filepath.Join(q.dir, sbaDir, sba.String()+".json")
}

// proofFile holds the log proof that came with an envelope, if one did.
func (q *Queue) proofFile(sba hashpipe.Digest) string {
	return filepath.Join(q.dir, sbaDir, sba.String()+verifier.ProofSuffix)
}

// dropSubmission removes what was submitted for a job that has ended, unless
// another job of the same attestation, under other terms, still needs it. What
// stays by mistake goes at the next start. Callers hold q.mu.
func (q *Queue) dropSubmission(sba hashpipe.Digest) {
	jobs, err := q.list()
	if err != nil || slices.ContainsFunc(jobs, func(j capstore.Job) bool { return j.SBA == sba && !j.State.HasEnded() }) {
		return
	}
	os.Remove(q.sbaFile(sba))
	os.Remove(q.proofFile(sba))
}

// recover tidies up after a dead daemon and returns the jobs that it had
// started, oldest first.
func (q *Queue) recover(ctx context.Context) ([]capstore.Job, error) {
	if q.Sweep != nil {
		if err := q.Sweep(ctx); err != nil {
			return nil, err
		}
	}
	jobs, err := q.known()
	if err != nil {
		return nil, err
	}
	var orphans []capstore.Job
	for _, job := range jobs {
		switch job.State {
		case capstore.JobRunning:
			orphans = append(orphans, job)
		case capstore.JobDone, capstore.JobCancelled:
			q.removeWork(job.ID)
		}
	}
	return orphans, nil
}

// known lists all jobs and removes envelopes that belong to none of them. A
// Submit may be going on already, and its file comes before its row.
func (q *Queue) known() ([]capstore.Job, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	jobs, err := q.list()
	if err != nil {
		return nil, err
	}
	wanted := make(map[string]bool)
	for _, job := range jobs {
		if !job.State.HasEnded() {
			wanted[filepath.Base(q.sbaFile(job.SBA))] = true
			wanted[filepath.Base(q.proofFile(job.SBA))] = true
		}
	}
	left, err := os.ReadDir(filepath.Join(q.dir, sbaDir))
	if err != nil {
		return nil, err
	}
	for _, e := range left {
		if !wanted[e.Name()] {
			os.Remove(filepath.Join(q.dir, sbaDir, e.Name()))
		}
	}
	return jobs, nil
}

// list returns the jobs, oldest first. A row that is damaged is no job, and does
// not keep the others from running; whoever lists the jobs for people says so.
func (q *Queue) list() ([]capstore.Job, error) {
	jobs, err := q.store.Jobs()
	if len(jobs) > 0 && errors.Is(err, capstore.ErrDamaged) {
		return jobs, nil
	}
	return jobs, err
}

// removeWork removes the scratch files of a job that has ended, or ends its
// worker if that still lives.
func (q *Queue) removeWork(id string) {
	unlock, err := lockJob(q.JobDir(id))
	if errors.Is(err, errJobLocked) {
		endHolder(q.JobDir(id)) // it works for nobody; its files go when the next daemon starts
	}
	if err != nil {
		return
	}
	defer unlock()
	removeTree(filepath.Join(q.JobDir(id), workDir))
}

// prepare writes what the worker reads.
func (q *Queue) prepare(job capstore.Job, bases Bases) error {
	dir := q.JobDir(job.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if r, err := readResult(dir, job.ID, job.SBA); err == nil && r.Retry {
		// It sent the job back into the queue; now the inputs are tried again.
		if err := os.Remove(filepath.Join(dir, ResultFile)); err != nil {
			return err
		}
	}
	envelope, err := readBounded(q.sbaFile(job.SBA))
	if err != nil {
		return err
	}
	if err := durable.Replace(filepath.Join(dir, SBAFile), envelope, 0o600); err != nil {
		return err
	}
	proof, err := readProof(q.proofFile(job.SBA))
	if err == nil && proof != nil {
		err = durable.Replace(filepath.Join(dir, ProofFile), proof, 0o600)
	}
	if err != nil {
		return err
	}
	f := jobFile{ID: job.ID, SBA: job.SBA, Attempt: job.Attempts, Locations: job.Locations, Terms: job.Terms, Bases: bases.envelopes()}
	for _, r := range q.store.View().TakenMints() {
		f.RevokedMints = append(f.RevokedMints, dsse.KeyID(r.Target()))
	}
	return writeJSON(filepath.Join(dir, JobFile), &f)
}

// settle moves a job on after its worker ended: to its answer, or back into
// the queue, or to its end after too many attempts. It waits for a worker that
// outlived its daemon, and ends it if the job was cancelled meanwhile.
func (q *Queue) settle(ctx context.Context, job capstore.Job, spawnErr error) error {
	dir := q.JobDir(job.ID)
	unlock, err := lockJob(dir)
	for errors.Is(err, errJobLocked) && ctx.Err() == nil {
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
		}
		if now, err := q.store.Job(job.ID); err != nil {
			return err
		} else if now.State.HasEnded() {
			if err := endHolder(dir); err != nil {
				return err
			}
		}
		unlock, err = lockJob(dir)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		if ctx.Err() != nil {
			return nil // the row stays "running", and the next Run settles it
		}
		return err
	}
	if err == nil {
		defer unlock()
		defer removeTree(filepath.Join(dir, workDir))
	}
	r, err := readResult(dir, job.ID, job.SBA)
	if err == nil {
		return q.offer(ctx, job, r)
	}
	if !errors.Is(err, os.ErrNotExist) {
		spawnErr = errors.Join(spawnErr, err)
		os.Remove(filepath.Join(dir, ResultFile))
	}
	if q.Sweep != nil {
		// Also of a worker that was cancelled and had to be killed: its build
		// would run on, and nobody keeps its time.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sweepTime)
		spawnErr = errors.Join(spawnErr, q.Sweep(ctx))
		cancel()
	}
	return q.patiently(ctx, func() error { return q.retry(ctx, job, spawnErr) })
}

// retry puts a job without an answer back, or ends it.
func (q *Queue) retry(ctx context.Context, job capstore.Job, why error) error {
	q.mu.Lock()
	now, err := q.store.Job(job.ID)
	switch {
	case err != nil || now.State.HasEnded():
		q.mu.Unlock()
		return err
	case ctx.Err() != nil:
		// This daemon stopped the worker; that was no attempt.
		now.State = capstore.JobPending
		now.Attempts = max(now.Attempts-1, 0)
	case now.Attempts-now.Fetches >= maxAttempts:
		q.mu.Unlock()
		reason := fmt.Sprintf("the worker ended without an answer %d times, the last time: %v; it is not run again by itself: see what ended the worker, then submit it anew", now.Attempts-now.Fetches, why)
		return q.end(job, Result{Verdict: capstore.BuildFailed, Reason: escape(reason)})
	default:
		now.State = capstore.JobPending
		now.Reason = escape(fmt.Sprintf("attempt %d ended without an answer: %v", now.Attempts, why))
	}
	err = q.store.PutJob(now)
	q.mu.Unlock()
	return err
}

// putBack puts a job whose inputs could not be had for the moment back into the
// queue, and reports whether it did.
func (q *Queue) putBack(job capstore.Job, r Result) (bool, error) {
	if r.Verdict != capstore.FetchFailed || !r.Retry {
		return false, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now, err := q.store.Job(job.ID)
	if err != nil || now.State.HasEnded() || now.Fetches >= len(q.FetchRetry) {
		return false, err
	}
	delay := max(q.FetchRetry[now.Fetches], time.Millisecond)
	now.Fetches++
	now.State, now.Waits = capstore.JobPending, capstore.WaitFetch
	now.NotBefore = time.Now().Add(delay + rand.N(delay/4+1)).UTC()
	now.Reason = fmt.Sprintf("%s at try %d of %d: %s", r.Verdict, now.Fetches, len(q.FetchRetry)+1, r.Reason)
	return true, q.store.PutJob(now)
}

// offer ends a job with its worker's answer, or puts it back. A store that is
// only full gets it again later, and what was taken back meanwhile is seen then.
func (q *Queue) offer(ctx context.Context, job capstore.Job, r Result) error {
	return q.patiently(ctx, func() error {
		if r.Verdict.Granted() {
			if f := q.takenBack(job.SBA, r.Capability); f != nil {
				r = Result{Verdict: f.Verdict, Reason: f.Detail}
			}
		}
		if back, err := q.putBack(job, r); back || err != nil {
			return err
		}
		return q.end(job, r)
	})
}

// patiently repeats a write while the disk is full. It gives up when ctx ends:
// then the row stays "running", the answer on the disk, and the next Run
// settles it.
func (q *Queue) patiently(ctx context.Context, write func() error) error {
	for {
		err := write()
		if !isFull(err) {
			return err
		}
		select {
		case <-time.After(q.fullDelay):
		case <-ctx.Done():
			return nil
		}
	}
}

// end writes the last row of a job, with its capability in the same
// transaction. A capability that the store refuses is an answer too.
func (q *Queue) end(job capstore.Job, r Result) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	now, err := q.store.Job(job.ID)
	if err != nil {
		return err
	}
	if now.State.HasEnded() {
		if now.Verdict.Granted() && r.Verdict.Granted() {
			// Its rows may be written, and its capability not be acknowledged yet.
			if _, err = q.store.FinishJob(now, r.Capability); errors.Is(err, capstore.ErrFinished) {
				err = nil
			}
			if err == nil {
				q.dropSubmission(job.SBA)
			}
		}
		return err
	}
	if err := q.keepRecord(job, r); err != nil {
		return err
	}
	now.Verdict, now.Reason, now.Diagnosis, now.FinishedAt = r.Verdict, r.Reason, r.Diagnosis, time.Now().UTC()
	if r.Retry && now.Fetches > 0 {
		now.Reason = fmt.Sprintf("%s (the last of %d tries)", r.Reason, now.Fetches+1)
	}
	if r.Verdict.Granted() {
		now.Reason = q.dispute(r.Capability)
	}
	_, err = q.store.FinishJob(now, r.Capability)
	if err != nil && r.Verdict.Granted() && !isStoreTrouble(err) {
		if row, lost := q.store.Job(job.ID); lost != nil || row.State.HasEnded() {
			return err // its rows are written, and its capability is in no journal
		}
		now.Verdict, now.Reason = capstore.PolicyRefused, escape(fmt.Sprintf("the store does not take the capability: %v", err))
		if err := q.dropRecord(job.ID); err != nil { // it says that the job minted
			return err
		}
		_, err = q.store.FinishJob(now, nil)
	}
	if err == nil {
		q.dropSubmission(job.SBA)
	}
	return err
}

func isFull(err error) bool { return errors.Is(err, capstore.ErrNoSpace) }

func isStoreTrouble(err error) bool {
	return isFull(err) || errors.Is(err, capstore.ErrClosed) || errors.Is(err, capstore.ErrDamaged)
}

// revoked says whether a revocation forbids to mint for an attestation. A result
// of this machine's own operator that was taken back forbids that too, because the
// rebuild would lead there again, unless another result is known that was not. What
// others measured and lost keeps nobody from measuring again.
func (q *Queue) revoked(sba hashpipe.Digest, publisher dsse.KeyID, image hashpipe.Digest) *Failure {
	f := q.findRevocation(map[capstore.Kind][]string{
		capstore.KindSBA: {sba.String()}, capstore.KindPublisher: {string(publisher)}, capstore.KindImage: {image.String()},
	})
	if f != nil {
		return f
	}
	for _, g := range q.store.View().OfSBA(sba) {
		found := q.findRevocation(map[capstore.Kind][]string{capstore.KindClaim: {g.Claim().String()}})
		if found == nil {
			return nil
		}
		if local := g.Standing().Local(); local == "" || local == g.Operator() {
			f = found
		}
	}
	return f
}

// queued reads the ledger of a queued job. It was verified when it was
// submitted, and is again before anything is minted; the zero Statement stands
// for one that cannot be read.
func (q *Queue) queued(sba hashpipe.Digest) verifier.Statement {
	text, err := readBounded(q.sbaFile(sba))
	if err != nil {
		return verifier.Statement{}
	}
	e, err := dsse.Parse(text)
	if err != nil {
		return verifier.Statement{}
	}
	l, err := verifier.ParseLedger(e.UnverifiedPayload())
	if err != nil {
		return verifier.Statement{}
	}
	return l.Statement()
}

// takenBack says whether a capability is revoked before it is admitted. What
// it reads is unverified and can only lead to a refusal.
func (q *Queue) takenBack(sba hashpipe.Digest, envelope []byte) *Failure {
	e, err := dsse.Parse(envelope)
	if err != nil {
		return fail(capstore.PolicyRefused, "the worker's capability: %v", err)
	}
	var st capstore.Statement
	if err := json.Unmarshal(e.UnverifiedPayload(), &st, json.RejectUnknownMembers(true)); err != nil {
		return fail(capstore.PolicyRefused, "the worker's capability: %v", err)
	}
	targets := map[capstore.Kind][]string{
		capstore.KindSBA:        {sba.String()},
		capstore.KindPublisher:  {string(st.Predicate.Publisher.KeyID)},
		capstore.KindMint:       {string(st.Predicate.Minter.KeyID)},
		capstore.KindImage:      {st.Predicate.Environment.Digest.SHA256.String()},
		capstore.KindClaim:      {st.Predicate.Claim.String()},
		capstore.KindCapability: {hashpipe.SumBytes(e.UnverifiedPayload()).String()},
	}
	for _, s := range st.Subject {
		targets[capstore.KindFile] = append(targets[capstore.KindFile], s.Digest.SHA256.String())
	}
	for _, claim := range st.Predicate.Bases {
		if _, live := q.store.View().Live(claim, q.clock()); !live {
			return fail(capstore.PolicyRefused, "the model of claim %s, which this build started from, was taken back or expired meanwhile", claim)
		}
	}
	return q.findRevocation(targets)
}

func (q *Queue) findRevocation(targets map[capstore.Kind][]string) *Failure {
	for _, kind := range slices.Sorted(maps.Keys(targets)) {
		for _, text := range targets[kind] {
			d, err := hashpipe.ParseDigest(strings.ToLower(text))
			if err != nil {
				continue // the zero Statement of a ledger that cannot be read; its worker refuses it
			}
			if r := q.store.View().RevokedBy(kind, d); !r.IsZero() {
				return fail(capstore.PolicyRefused, "%s %s was revoked on %s: %s", kind, d, r.IssuedAt().Format(time.RFC3339), r.Reason())
			}
		}
	}
	return nil
}

// dispute says that a worker's capability has another result than that of another
// operator for the same attestation. It is admitted all the same: it is this
// machine's dissent.
func (q *Queue) dispute(envelope []byte) string {
	c, other, err := q.store.View().Peek(envelope)
	if err != nil || other.IsZero() {
		return "" // Admit says what is wrong
	}
	return escape(fmt.Sprintf("%s: this machine's rebuild gave claim %s, and operator %s got claim %s from the same attestation: no file of either opens until that is resolved", capstore.Disputed, c.Claim(), other.Operator(), other.Claim()))
}
