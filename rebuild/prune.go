package rebuild

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/openclaw/clawfs/capstore"
)

const (
	// maxEnded bounds the rows of ended jobs that are older than a day, whatever
	// their age: each start of a job reads all rows.
	maxEnded = 5000
	// goneSuffix ends the name of a job directory that is being removed.
	goneSuffix = ".gone"
)

// jobDirName matches the ids that capstore gives to jobs.
var jobDirName = regexp.MustCompile(`^[a-z2-7]{10}$`)

// Prune removes the rows of jobs that ended longer ago than keep, which counts
// as a day at least, and of the oldest beyond maxEnded, and the directories of
// jobs that have no row, with their logs. The row of a minted job stays while
// its capability opens files. The signed record of a job goes with its row, but
// the provenance of what was minted stays: it is evidence, and as little as the
// capabilities, which stay too. An error says what stays; whatever could be
// removed is gone.
func (q *Queue) Prune(keep time.Duration) error {
	q.mu.Lock()
	jobs, err := q.list()
	q.mu.Unlock()
	if err != nil {
		return fmt.Errorf("pruning jobs: %w", err)
	}
	var old []capstore.Job // younger than a day are none
	now := time.Now()
	for _, job := range jobs {
		if job.State.HasEnded() && now.Sub(job.FinishedAt) >= day {
			old = append(old, job)
		}
	}
	var errs []error
	for i, job := range old { // in the order of their submission
		if now.Sub(job.FinishedAt) < keep && len(old)-i <= maxEnded {
			continue
		}
		if !job.Verdict.Granted() {
			if err := os.Remove(q.recordFile(job.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
		if err := q.store.RemoveJob(job.ID); err != nil && !errors.Is(err, capstore.ErrLive) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(append(errs, q.removeGone())...); err != nil {
		return fmt.Errorf("pruning jobs: %w", err)
	}
	return nil
}

// removeGone removes the directories of jobs that have no row. A row comes
// before its directory, and goes before it.
func (q *Queue) removeGone() error {
	entries, err := os.ReadDir(q.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(q.dir, e.Name())
		if strings.HasSuffix(e.Name(), goneSuffix) {
			errs = append(errs, removeTree(dir))
			continue
		}
		// Whatever else lies here was not made for a job.
		if _, err := os.Lstat(filepath.Join(dir, lockName)); err != nil || !jobDirName.MatchString(e.Name()) {
			continue
		}
		if _, err := q.store.Job(e.Name()); !errors.Is(err, capstore.ErrNotFound) {
			continue // a row that is damaged is still a row
		}
		if err := q.removeDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeDir removes a job directory, or ends the worker that still lives in it
// and leaves the directory for the next time. It is renamed first, so that a
// crash leaves something that is recognized.
func (q *Queue) removeDir(dir string) error {
	unlock, err := lockJob(dir)
	if errors.Is(err, errJobLocked) {
		return endHolder(dir)
	}
	if err != nil {
		return err
	}
	defer unlock()
	if err := removeTree(dir + goneSuffix); err != nil {
		return err
	}
	if err := os.Rename(dir, dir+goneSuffix); err != nil {
		return err
	}
	return removeTree(dir + goneSuffix)
}
