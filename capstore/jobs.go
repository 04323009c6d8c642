package capstore

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/go-json-experiment/json"
)

const jobIDLen = 10 // base32: 50 bits of chance

func newJobID() string { return strings.ToLower(rand.Text()[:jobIDLen]) }

func isJobID(id string) bool {
	return len(id) == jobIDLen && strings.Trim(id, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// AddJob gives j an id, and its time of creation if it has none, and returns
// after it is on stable storage. Only a pending job can be added.
func (s *Store) AddJob(j Job) (Job, error) {
	if j.ID != "" || j.State != JobPending {
		return Job{}, fmt.Errorf("adding job: id %q and state %q: want none and %q", j.ID, j.State, JobPending)
	}
	if j.CreatedAt.IsZero() {
		j.CreatedAt = time.Now().UTC()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		j.ID = newJobID()
		_, err := s.get(prefixJob + j.ID)
		if errors.Is(err, ErrNotFound) {
			break
		}
		if err != nil {
			return Job{}, fmt.Errorf("adding job: %w", err)
		}
	}
	r, err := jobRow(j)
	if err != nil {
		return Job{}, fmt.Errorf("adding job: %w", err)
	}
	if err := s.commit(reserveWrite, s.head.n, r); err != nil {
		return Job{}, fmt.Errorf("adding job: %w", err)
	}
	return readJob(r)
}

// PutJob replaces the row of a job that exists (else ErrNotFound) and has not
// ended (else ErrFinished). What the job is about does not change: id,
// attestation, model, version, terms and time of creation. A verdict that grants
// is for FinishJob.
func (s *Store) PutJob(j Job) error {
	if j.Verdict.Granted() {
		return fmt.Errorf("writing job %s: verdict %s without its capability", j.ID, j.Verdict)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.nextRow(j)
	if err != nil {
		return fmt.Errorf("writing job %s: %w", j.ID, err)
	}
	if err := s.commit(reserveWrite, s.head.n, r); err != nil {
		return fmt.Errorf("writing job %s: %w", j.ID, err)
	}
	return nil
}

// FinishJob ends a job with j's verdict. If that is Minted, capability is the
// envelope that the mint signed for it; both are written in one transaction, so
// that after a crash there is either a finished job with its capability or a
// job to run again. The capability has to be of the job's attestation and terms.
// For any other verdict capability is empty, and the zero Capability is returned.
//
// Finishing a job a second time with the same capability changes nothing and
// succeeds; with any other end it is ErrFinished.
func (s *Store) FinishJob(j Job, capability []byte) (Capability, error) {
	c, err := s.finish(j, capability)
	if err != nil {
		return Capability{}, fmt.Errorf("finishing job %s: %w", j.ID, err)
	}
	return c, nil
}

func (s *Store) finish(j Job, envelope []byte) (Capability, error) {
	if j.Verdict.Granted() != (len(envelope) > 0) {
		return Capability{}, fmt.Errorf("verdict %q with a capability of %d bytes: %s has one and no other verdict has", j.Verdict, len(envelope), Minted)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j.State = JobDone
	if j.FinishedAt.IsZero() {
		j.FinishedAt = time.Now().UTC()
	}
	var c Capability
	if j.Verdict.Granted() {
		var err error
		if c, err = readCapability(s.view.mints, envelope); err != nil {
			return Capability{}, err
		}
		if c.SBA() != j.SBA || c.Model() != j.Model || c.Version() != j.Version {
			return Capability{}, fmt.Errorf("capability is for %s %s of attestation %s, the job for %s %s of %s",
				c.Model(), c.Version(), c.SBA(), j.Model, j.Version, j.SBA)
		}
		if why := j.Terms.keeps(c); why != "" || len(c.DelegatedBy()) > 0 {
			return Capability{}, fmt.Errorf("capability %s is not what the job is for: %s", c.ID(), cmp.Or(why, "it is a delegated one"))
		}
	}
	j.Capability = c.ID()
	r, err := s.nextRow(j)
	if errors.Is(err, ErrFinished) && !c.IsZero() {
		have, stored := s.view.capability(c.ID())
		if old, oldErr := s.job(j.ID); oldErr == nil && old.Capability == c.ID() {
			if stored {
				return have, nil
			}
			// Both rows were written, and the capability could not be kept.
			return c, s.admit(c)
		}
	}
	if err != nil {
		return Capability{}, err
	}
	if have, stored := s.view.capability(c.ID()); c.IsZero() || stored {
		return have, s.commit(reserveWrite, s.head.n, r)
	}
	if err := s.admit(c, r); err != nil {
		return Capability{}, err
	}
	return c, nil
}

// Job returns the job of that id, or ErrNotFound. A row that was damaged is an
// error, never a job.
func (s *Store) Job(id string) (Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, err := s.job(id)
	if err != nil {
		return Job{}, fmt.Errorf("job %q: %w", id, err)
	}
	return j, nil
}

func (s *Store) job(id string) (Job, error) {
	if !isJobID(id) {
		return Job{}, ErrNotFound
	}
	value, err := s.get(prefixJob + id)
	if err != nil {
		return Job{}, err
	}
	return readJob(row{[]byte(prefixJob + id), value})
}

// Jobs returns every job, oldest first. If some rows are damaged it returns the
// others together with an error that names those rows, so that one of them does
// not stop the queue; the caller reports it. A thousand jobs with long diagnoses
// take a second to read; no revocation waits for that.
func (s *Store) Jobs() ([]Job, error) {
	db, done, err := s.reader()
	if err != nil {
		return nil, fmt.Errorf("listing jobs: %w", err)
	}
	defer done()
	var jobs []Job
	var bad []error
	err = scan(db, prefixJob, afterJobs, func(item *badger.Item) error {
		r, err := rowOf(item)
		if err != nil {
			return err
		}
		j, err := s.openJob(r)
		if err != nil {
			bad = append(bad, fmt.Errorf("listing jobs: %w", err))
			return nil
		}
		jobs = append(jobs, j)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing jobs: %w", err)
	}
	slices.SortFunc(jobs, func(a, b Job) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return jobs, errors.Join(bad...)
}

// RemoveJob removes the row of a job that has ended (else ErrUnfinished). The
// row of a minted job stays while its capability opens files (ErrLive): it says
// where that came from. Removing what is not there succeeds. A row that comes
// back after a crash grants nothing, and is removed again.
func (s *Store) RemoveJob(id string) error {
	if err := s.remove(id, time.Now()); err != nil {
		return fmt.Errorf("removing job %q: %w", id, err)
	}
	return nil
}

func (s *Store) remove(id string, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	j, err := s.job(id)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case !j.State.HasEnded():
		return fmt.Errorf("%w: it is %s", ErrUnfinished, j.State)
	}
	if !j.Capability.IsZero() && s.view.opens(j.Capability, now) {
		return fmt.Errorf("%w: %s", ErrLive, j.Capability)
	}
	if err := s.room(reserveRevoke, false); err != nil {
		return err
	}
	return s.change(func(txn *badger.Txn) error { return txn.Delete([]byte(prefixJob + id)) })
}

// nextRow checks that j may replace the row that is there. Callers hold s.mu.
func (s *Store) nextRow(j Job) (row, error) {
	old, err := s.job(j.ID)
	if err != nil {
		return row{}, err
	}
	if old.State.HasEnded() {
		return row{}, fmt.Errorf("%w: it is %s %s", ErrFinished, old.State, old.Verdict)
	}
	if j.SBA != old.SBA || j.Model != old.Model || j.Version != old.Version || !j.CreatedAt.Equal(old.CreatedAt) || !j.Terms.Equal(old.Terms) {
		return row{}, fmt.Errorf("it is for %s %s of attestation %s and stays so, under the same terms", old.Model, old.Version, old.SBA)
	}
	return jobRow(j)
}

// jobRow encodes a job: the row's content is its JSON text.
func jobRow(j Job) (row, error) {
	j = j.printable()
	if err := j.check(); err != nil {
		return row{}, err
	}
	text, err := json.Marshal(&j, json.Deterministic(true))
	if err != nil {
		return row{}, fmt.Errorf("encoding: %w", err)
	}
	return row{[]byte(prefixJob + j.ID), text}, nil
}

// openJob reads a job's row as it lies in the database.
func (s *Store) openJob(r row) (Job, error) {
	_, text, err := s.key.open(r)
	if err != nil {
		return Job{}, fmt.Errorf("row %q: %w: %w", r.key, ErrDamaged, err)
	}
	return readJob(row{r.key, text})
}

// readJob reads what jobRow made.
func readJob(r row) (Job, error) {
	id := strings.TrimPrefix(string(r.key), prefixJob)
	damaged := func(why any) (Job, error) {
		return Job{}, fmt.Errorf("row %q: %w: %v", r.key, ErrDamaged, why)
	}
	var j Job
	if err := json.Unmarshal(r.value, &j, json.RejectUnknownMembers(true)); err != nil {
		return damaged(err)
	}
	if err := j.check(); err != nil {
		return damaged(err)
	}
	if j.ID != id {
		return damaged(fmt.Sprintf("it holds job %q", j.ID))
	}
	return j, nil
}
