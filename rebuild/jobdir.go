package rebuild

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier/dsse"
)

const (
	// workDir holds a worker's inputs and outputs, and goes with it.
	workDir = "work"
	// lockName is locked by a worker for its life, so that a queue that was
	// restarted knows whether the worker of its predecessor still lives.
	lockName = "lock"
	// maxJobFile bounds in bytes what is read of JobFile and ResultFile.
	maxJobFile = 8 << 20
	// maxEvents bounds the lines that one attempt adds to EventFile.
	maxEvents = 20_000
)

// jobFile is what the queue tells the worker.
type jobFile struct {
	ID           string             `json:"id"`
	SBA          hashpipe.Digest    `json:"sba"`
	Attempt      int                `json:"attempt"`
	Locations    capstore.Locations `json:"locations"`
	Terms        capstore.Terms     `json:"terms,omitzero"`
	RevokedMints []dsse.KeyID       `json:"revokedMints,omitzero"`
	// Bases are the capabilities of the models that the ledger starts from, by
	// the models' own names.
	Bases map[string][]byte `json:"bases,omitzero"`
}

func readJob(dir string) (job jobFile, envelope, proof []byte, err error) {
	if err := readJSON(filepath.Join(dir, JobFile), &job); err != nil {
		return jobFile{}, nil, nil, err
	}
	if job.ID == "" || job.SBA.IsZero() {
		return jobFile{}, nil, nil, fmt.Errorf("%s names no job", filepath.Join(dir, JobFile))
	}
	if err := job.Terms.Check(); err != nil {
		return jobFile{}, nil, nil, fmt.Errorf("%s: %w", filepath.Join(dir, JobFile), err)
	}
	envelope, err = readBounded(filepath.Join(dir, SBAFile))
	if err != nil {
		return jobFile{}, nil, nil, err
	}
	proof, err = readProof(filepath.Join(dir, ProofFile))
	return job, envelope, proof, err
}

// readProof returns the log proof in a file, nil if there is no such file. An
// empty file is an empty proof, which nobody believes.
func readProof(name string) ([]byte, error) {
	proof, err := readBounded(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return proof, err
}

// readResult returns the answer in dir, os.ErrNotExist if there is none yet.
func readResult(dir, id string, sba hashpipe.Digest) (Result, error) {
	var r Result
	name := filepath.Join(dir, ResultFile)
	if err := readJSON(name, &r); err != nil {
		return Result{}, err
	}
	if r.Job != id || r.SBA != sba || !r.Verdict.Valid() || r.Verdict.Granted() != (len(r.Capability) > 0) {
		return Result{}, fmt.Errorf("%s is no answer to job %s for attestation %s", name, id, sba)
	}
	return r, nil
}

func readJSON(name string, into any) error {
	text, err := readBounded(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxJobFile+1))
	if err == nil && len(text) > maxJobFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxJobFile)
	}
	return text, err
}

func writeJSON(name string, v any) error {
	text, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return durable.Replace(name, append(text, '\n'), 0o600)
}

// errJobLocked: another worker lives in this job directory.
var errJobLocked = errors.New("another worker has this job")

// lockJob takes the lock of a job directory without waiting. The lock goes
// with its process, however that ends; the file holds the process id.
func lockJob(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errJobLocked
		}
		return nil, fmt.Errorf("locking %s: %w", f.Name(), err)
	}
	if _, err := f.WriteAt(fmt.Appendf(nil, "%-10d", os.Getpid()), 0); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// endHolder asks the process that holds the lock of a job directory to end,
// which may not be a child of this one. The descriptor of the process is
// opened while the lock is held, so that no other process gets the signal.
func endHolder(dir string) error {
	text, err := readBounded(filepath.Join(dir, lockName))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 2 || pid == os.Getpid() {
		return nil // this process, or one that has not yet written
	}
	process, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("worker %d: %w", pid, err)
	}
	defer unix.Close(process)
	unlock, err := lockJob(dir)
	if err == nil {
		unlock()
		return nil
	}
	if !errors.Is(err, errJobLocked) {
		return err
	}
	if err := unix.PidfdSendSignal(process, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending worker %d: %w", pid, err)
	}
	return nil
}

// jobLog is what a worker writes for people while it works.
type jobLog struct {
	text   *logWriter // LogFile, escaped here
	builds io.Writer  // LogFile, escaped by Reproduce

	logFile, eventFile *os.File
	observer           Observer
	mu                 sync.Mutex // guards events
	events             int
}

func openLog(c JobConfig, job jobFile) (*jobLog, error) {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	log, err := os.OpenFile(filepath.Join(c.Dir, LogFile), flags, 0o600)
	if err != nil {
		return nil, err
	}
	events, err := os.OpenFile(filepath.Join(c.Dir, EventFile), flags, 0o600)
	if err != nil {
		log.Close()
		return nil, err
	}
	r := &jobLog{
		text: &logWriter{w: log, left: 1 << 20}, builds: log,
		logFile: log, eventFile: events, observer: c.Observer,
	}
	r.text.printf("job %s, attempt %d, attestation %s, %s", job.ID, job.Attempt, job.SBA, c.Executor)
	return r, nil
}

// event writes one line and tells the observer. A line that cannot be written
// is dropped: progress is for people, and the answer is a file of its own.
func (r *jobLog) event(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.events++; r.events <= maxEvents {
		if line, err := json.Marshal(&e); err == nil {
			r.eventFile.Write(append(line, '\n'))
		}
	}
	if e.Message != "" && e.Bytes == 0 {
		r.text.printf("%s: %s", e.Phase, e.Message)
	}
	if r.observer != nil {
		r.observer(e)
	}
}

// trouble logs an error that is no answer and returns it.
func (r *jobLog) trouble(err error) error {
	r.text.printf("no answer: %v", err)
	return err
}

func (r *jobLog) close() {
	r.logFile.Close()
	r.eventFile.Close()
}
