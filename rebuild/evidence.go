package rebuild

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/rebuild/record"
	"github.com/openclaw/clawfs/rebuild/sandbox"
)

// evidence is what a build was, for the record.
func evidence(r sandbox.Result) record.Build {
	b := record.Build{Run: r.Run, Seconds: r.Wall.Seconds(), Varied: r.Varied}
	if r.Host.Name != sandbox.ThisHost().Name {
		b.Node = r.Host.Name
	}
	for _, s := range r.Stages {
		b.Stages = append(b.Stages, record.Stage{Name: s.Name, Seconds: s.Wall.Seconds(), CPUSeconds: s.CPU.Seconds(), PeakMemory: s.PeakMemory})
		for _, a := range s.Artifacts {
			m := a.Measurement()
			b.Artifacts = append(b.Artifacts, record.File{Stage: s.Name, Name: a.Path(), Digest: m.Sum().Claim(), Size: m.Size()})
		}
	}
	for _, o := range r.Outputs {
		b.Outputs = append(b.Outputs, record.File{Name: o.Name(), Digest: o.Measurement().Sum().Claim(), Size: o.Measurement().Size()})
	}
	return b
}

// machine describes where a job runs.
func machine(executor string) record.Machine {
	p := HostPlatform()
	return record.Machine{
		OS: p.OS, Arch: p.Arch, CPUFeatures: p.CPUFeatures, Kernel: readLine("/proc/sys/kernel/osrelease"), Executor: executor,
	}
}

// record signs what became of a job whose attestation was believed. A worker
// that cannot sign a failure says so in its log and answers all the same: that
// a build failed is true without a signature. A capability without provenance
// is not handed out.
func (c JobConfig) record(job jobFile, e earned, r Result) ([]byte, error) {
	if e.ledger.IsZero() {
		return nil, nil
	}
	j := record.Job{
		ID: job.ID, Ledger: e.ledger, Logged: e.logged, StartedAt: r.StartedAt, FinishedAt: r.FinishedAt, Program: c.Program,
		Machine: machine(c.Executor.String()), Builds: e.builds,
	}
	var rec record.Record
	var err error
	if r.Verdict.Granted() {
		if rec, err = record.Provenance(j); err != nil {
			err = fail(capstore.PolicyRefused, "%v", err)
		}
	} else {
		rec, err = record.Failure(j, r.Verdict, r.Reason, r.Diagnosis)
	}
	if err != nil {
		return nil, err
	}
	key, err := c.key(job.RevokedMints)
	if err != nil {
		return nil, err
	}
	return key.SignRecord(rec)
}

// recordDir holds the signed records of jobs that have ended, one file each.
const recordDir = "records"

func (q *Queue) recordFile(id string) string { return q.dir + "/" + recordDir + "/" + id + ".json" }

// Record returns the signed record of a job: provenance, or a failure.
// os.ErrNotExist: it has none, because it has not ended, its attestation was not
// believed, or the worker had no key to sign with.
func (q *Queue) Record(id string) ([]byte, error) {
	if strings.ContainsAny(id, "/.") || id == "" {
		return nil, os.ErrNotExist
	}
	// A record comes before its row: until then the job can still end otherwise.
	if job, err := q.store.Job(id); err == nil && job.State != capstore.JobDone {
		return nil, os.ErrNotExist
	} else if err != nil && !errors.Is(err, capstore.ErrNotFound) { // provenance outlives its row
		return nil, err
	}
	return readBounded(q.recordFile(id))
}

// keepRecord puts the record of an answer where Record finds it, in the place of
// one that a dead daemon left there for an answer that did not become the job's.
// A job's row comes after its record, so that a job that has ended has one.
func (q *Queue) keepRecord(job capstore.Job, r Result) error {
	if len(r.Record) == 0 {
		return q.dropRecord(job.ID)
	}
	err := durable.Replace(q.recordFile(job.ID), r.Record, 0o600)
	if err != nil && exhausted(err) {
		err = fmt.Errorf("%w: %w", capstore.ErrNoSpace, err)
	}
	return err
}

func (q *Queue) dropRecord(id string) error {
	if err := os.Remove(q.recordFile(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
