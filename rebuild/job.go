package rebuild

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/rebuild/internal/mint"
	"github.com/openclaw/clawfs/rebuild/record"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// NewMintKey makes the key that signs this machine's capabilities, at path,
// readable by its owner alone, and returns what the policy pins. It never
// overwrites a file.
func NewMintKey(path string) (dsse.PublicKey, error) { return mint.Generate(path) }

// Files of a job directory.
const (
	SBAFile    = "sba.json"                        // the envelope, as submitted
	ProofFile  = "sba.json" + verifier.ProofSuffix // the log proof that came with it, if one did
	JobFile    = "job.json"                        // what the queue tells the worker
	ResultFile = "result.json"                     // the worker's answer; written once, whole or not at all
	LogFile    = "log"                             // text, escaped, bounded
	EventFile  = "events.ndjson"                   // one Event a line
)

// JobConfig is what a worker process knows beside its job directory. All
// fields but Scratch, Inputs and Observer are required.
type JobConfig struct {
	Dir      string // the job directory
	Policy   *verifier.Policy
	Executor Executor
	// Scratch is a directory for inputs and outputs that the Executor's
	// machines have, and nobody else uses meanwhile; empty means Dir.
	Scratch string
	// MintKey is the path of the key file. It is opened after both builds are
	// dead and only if their outputs are equal.
	MintKey string
	// Inputs is where fetched inputs are kept; zero: with the job.
	Inputs Inputs
	// Program is the name and version of the program that runs this.
	Program string
	// Validity is how long a capability holds from its minting.
	Validity time.Duration
	// Observer gets progress beside EventFile.
	Observer Observer
}

// Result is the answer to one job.
type Result struct {
	Job        string           `json:"job"`
	SBA        hashpipe.Digest  `json:"sba"`
	Verdict    capstore.Verdict `json:"verdict"`
	Reason     string           `json:"reason,omitzero"`
	Diagnosis  string           `json:"diagnosis,omitzero"`
	Capability []byte           `json:"capability,omitzero"` // the envelope, of MINTED only
	Record     []byte           `json:"record,omitzero"`     // the envelope of package record
	Retry      bool             `json:"retry,omitzero"`      // of FETCH_FAILED: later it may be otherwise
	StartedAt  time.Time        `json:"startedAt"`
	FinishedAt time.Time        `json:"finishedAt"`
}

// RunJob does one job in a worker process: it verifies the SBA again by the
// policy, rebuilds, mints, and writes ResultFile. An error means that there is
// no answer and no ResultFile; the queue decides whether to try again. If the
// directory already has an answer, RunJob returns it and does nothing.
func RunJob(ctx context.Context, c JobConfig) (Result, error) {
	if c.Dir == "" || c.Policy == nil || c.Executor == nil || c.MintKey == "" || c.Program == "" || c.Validity <= 0 {
		return Result{}, errors.New("running a job: directory, policy, executor, mint key, program and validity are required")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return Result{}, fmt.Errorf("running a job: %w", err)
	}
	c.Dir = dir
	unlock, err := lockJob(c.Dir)
	if err != nil {
		return Result{}, fmt.Errorf("running a job: %w", err)
	}
	defer unlock()
	job, envelope, proof, err := readJob(c.Dir)
	if err != nil {
		return Result{}, fmt.Errorf("running a job: %w", err)
	}
	if done, err := readResult(c.Dir, job.ID, job.SBA); err == nil {
		return done, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return Result{}, fmt.Errorf("job %s: %w", job.ID, err)
	}
	r, err := c.run(ctx, job, envelope, proof)
	if err != nil {
		return Result{}, fmt.Errorf("job %s: %w", job.ID, err)
	}
	return r, nil
}

// run clears what an earlier attempt left, works, and writes the answer last.
func (c JobConfig) run(ctx context.Context, job jobFile, envelope, proof []byte) (Result, error) {
	log, err := openLog(c, job)
	if err != nil {
		return Result{}, err
	}
	defer log.close()
	if swept, err := c.Executor.Sweep(ctx); err != nil {
		return Result{}, log.trouble(err)
	} else if len(swept) > 0 {
		log.text.printf("removed what dead workers left: %s", strings.Join(swept, ", "))
	}
	work := filepath.Join(cmp.Or(c.Scratch, c.Dir), workDir)
	if err := errors.Join(removeTree(work), os.Mkdir(work, 0o700)); err != nil {
		return Result{}, log.trouble(err)
	}
	defer removeTree(work)
	began := time.Now()
	r := Result{Job: job.ID, SBA: job.SBA, StartedAt: began.UTC()}
	var e earned
	r.Capability, e, err = c.earn(ctx, job, envelope, proof, work, log)
	var f *Failure
	switch {
	case errors.As(err, &f):
		r.Verdict, r.Reason, r.Diagnosis = f.Verdict, f.Detail, f.Diagnosis
		r.Retry = f.Temporary && f.Verdict == capstore.FetchFailed
	case err != nil:
		return Result{}, log.trouble(err)
	default:
		r.Verdict = capstore.Minted
	}
	// By the clock that nobody sets: a job cannot end before it began.
	r.FinishedAt = began.Add(time.Since(began)).UTC()
	r.Record, err = c.record(job, e, r)
	if r.Verdict.Granted() && errors.As(err, &f) {
		r.Verdict, r.Reason, r.Capability = f.Verdict, f.Detail, nil
		r.Record, err = c.record(job, e, r)
	}
	if err != nil && r.Verdict.Granted() {
		return Result{}, log.trouble(err)
	} else if err != nil {
		log.text.printf("this answer is not signed: %v", err)
	}
	log.text.printf("%s", strings.TrimSpace(string(r.Verdict)+" "+r.Reason))
	if r.Diagnosis != "" {
		log.text.printf("%s", r.Diagnosis)
	}
	if err := writeJSON(filepath.Join(c.Dir, ResultFile), &r); err != nil {
		return Result{}, log.trouble(err)
	}
	return r, nil
}

// earned is what a job came to know on the way to its answer, as far as it got.
type earned struct {
	ledger verifier.Ledger // of an attestation that was believed
	logged capstore.Logged // where it lies
	builds []record.Build  // that ran to their end
}

// earn verifies, rebuilds and mints. The mint key is read at the very end:
// while a build runs, this process does not have it.
func (c JobConfig) earn(ctx context.Context, job jobFile, envelope, proof []byte, work string, log *jobLog) (_ []byte, e earned, _ error) {
	log.event(Event{Time: time.Now().UTC(), Phase: PhaseVerify, Message: "attestation " + job.SBA.String()})
	att, err := believe(c.Policy, envelope, proof)
	if err != nil {
		return nil, e, err
	}
	if att.Digest() != job.SBA {
		return nil, e, fmt.Errorf("%s holds attestation %s, the job is for %s", SBAFile, att.Digest(), job.SBA)
	}
	e.ledger, e.logged = att.Ledger(), entry(att)
	if f := over(job.Terms, time.Now()); f != nil {
		return nil, e, f
	}
	bases, err := readBases(c.Policy, att.Ledger().Statement(), job.Bases, time.Now())
	if err != nil {
		return nil, e, err
	}
	cache, err := c.Inputs.Open(func(n fetch.Note) { log.text.printf("fetch: %s", n) })
	if err != nil {
		return nil, e, err
	}
	if cache != nil {
		defer cache.Close()
	}
	rep, err := Reproduce(ctx, Config{
		Cache: cache, Hosts: c.Inputs.Hosts,
		Executor: c.Executor, Dir: work, Limits: SandboxLimits(c.Policy.Builds.Limits),
		Bases: bases, AllowedEnv: c.Policy.Builds.Env, Log: log.builds, Observer: log.event,
	}, att.Ledger(), job.Locations)
	if err != nil {
		if f := (*Failure)(nil); errors.As(err, &f) {
			e.builds = f.builds
		}
		return nil, e, err
	}
	defer rep.Close()
	first, second := rep.Builds()
	e.builds = []record.Build{evidence(first), evidence(second)}
	if err := ctx.Err(); err != nil {
		return nil, e, context.Cause(ctx)
	}
	log.event(Event{Time: time.Now().UTC(), Phase: PhaseMint})
	capability, err := c.mint(att, rep, job)
	return capability, e, err
}

// believe verifies an envelope by a policy, with the log proof that came with
// it, if it is not nil; a refusal is the job's answer. What was seen of the log
// before was compared when the job was submitted.
func believe(policy *verifier.Policy, envelope, proof []byte) (verifier.Attestation, error) {
	sba, err := verifier.ParseSBA(envelope)
	if err == nil && proof != nil {
		sba, err = sba.WithProof(proof)
	}
	if err != nil {
		return verifier.Attestation{}, fail(capstore.PolicyRefused, "attestation: %v", err)
	}
	v, err := verifier.New(policy)
	if err != nil {
		return verifier.Attestation{}, err
	}
	att, err := v.Verify(sba, time.Now())
	if err != nil {
		return verifier.Attestation{}, fail(capstore.PolicyRefused, "attestation: %v", err)
	}
	return att, nil
}

// key opens the mint key. A *Failure says that nobody would honour it.
func (c JobConfig) key(revoked []dsse.KeyID) (*mint.Key, error) {
	key, err := mint.Open(c.MintKey)
	if err != nil {
		return nil, err
	}
	id := key.Public().ID()
	if slices.Contains(revoked, id) {
		return nil, fail(capstore.PolicyRefused, "this machine's mint key %s is revoked: make another and pin it in the policy", id)
	}
	pinned := slices.ContainsFunc(c.Policy.Mints, func(o verifier.Operator) bool {
		return slices.ContainsFunc(o.Keys, func(k dsse.PublicKey) bool { return k.ID() == id })
	})
	if !pinned {
		return nil, fail(capstore.PolicyRefused, "this machine's mint key %s is not one of the policy's mints: no mount would honour it", id)
	}
	return key, nil
}

// mint signs under the terms of the job, for as long as the mint gives and no
// longer than they say.
func (c JobConfig) mint(att verifier.Attestation, rep *Reproduction, job jobFile) ([]byte, error) {
	key, err := c.key(job.RevokedMints)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	if f := over(job.Terms, now); f != nil {
		return nil, f
	}
	until := now.Add(c.Validity)
	if end := job.Terms.NotAfter; !end.IsZero() && end.Before(until) {
		until = end
	}
	first, second := rep.Builds()
	envelope, err := key.Sign(att, first, second, mint.Terms{NotBefore: now, NotAfter: until, Restrict: job.Terms.Restrict, Delegate: job.Terms.Delegate})
	switch {
	case errors.Is(err, mint.ErrDiffers):
		return nil, fail(capstore.Nondeterministic, "%v", err)
	case errors.Is(err, mint.ErrNamed):
		return nil, fail(capstore.CopiedInput, "%v", err)
	case err != nil:
		// Sign reads nothing but its arguments: again would end the same way.
		return nil, fail(capstore.PolicyRefused, "%v", err)
	}
	return envelope, nil
}
