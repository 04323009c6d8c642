// Package record lays out what a rebuild worker says about a job when it has
// ended: SLSA Provenance v1 if it minted, and a failure statement if not. Both
// are in-toto Statements v1, signed in a DSSE envelope by the worker's key.
//
// Provenance has the outputs as subjects, the ledger's buildDefinition as it
// stands in the ledger, and as byproducts the attestation, each stage's
// artifacts and the assurance: what the two builds varied. A failure has the
// attestation as its subject, a verdict of the enum in package capstore, and
// what differed. It is as much worth keeping: it says that somebody tried.
//
// A record grants nothing: no reader of this program takes it for a capability.
package record

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
)

// The predicate types of a record.
const (
	// ProvenanceType is SLSA Provenance v1, https://slsa.dev/spec/v1.0/provenance.
	ProvenanceType = "https://slsa.dev/provenance/v1"
	FailureType    = "https://github.com/openclaw/clawfs/rebuild-failure/v1"
)

const (
	builderID     = "https://github.com/openclaw/clawfs/worker/v1"
	assuranceType = "https://github.com/openclaw/clawfs/assurance/v1"
	artifactType  = "https://github.com/openclaw/clawfs/stage-artifact/v1"
	logType       = "https://github.com/openclaw/clawfs/log-entry/v1"
	// attestationName is the byproduct that names the attestation.
	attestationName = "attestation"
)

// MaxSize bounds a signed record in bytes.
const MaxSize = 4 << 20

// Job is what both kinds of record say of a job. All fields but Builds and
// Logged are required.
type Job struct {
	ID         string
	Ledger     verifier.Ledger
	Logged     capstore.Logged // where the attestation was shown to lie; zero: nowhere
	StartedAt  time.Time
	FinishedAt time.Time
	Program    string // name and version of the worker
	Machine    Machine
	// Builds are those that ran to their end: two of a job that minted.
	Builds []Build
}

// Machine is where the job ran.
type Machine struct {
	OS          string   `json:"os"`
	Arch        string   `json:"arch"`
	CPUFeatures []string `json:"cpuFeatures,omitempty"` // by which libraries choose their code
	Kernel      string   `json:"kernel"`
	Executor    string   `json:"executor"` // name and version of what ran the containers
}

// Build is one of the two builds of a job.
type Build struct {
	Run     string  `json:"run"`
	Node    string  `json:"node,omitempty"` // where it ran, if not on the worker's machine
	Seconds float64 `json:"wallSeconds"`
	// Varied is what of its surroundings was chosen for this build, name=value.
	Varied []string `json:"varied"`
	Stages []Stage  `json:"stages"`
	// Outputs and Artifacts are what this build wrote, in the ledger's order.
	Outputs   []File `json:"-"`
	Artifacts []File `json:"-"`
}

// Stage is what one stage of a build used.
type Stage struct {
	Name       string  `json:"name"`
	Seconds    float64 `json:"wallSeconds"`
	CPUSeconds float64 `json:"cpuSeconds,omitempty"`
	PeakMemory int64   `json:"peakMemoryBytes,omitempty"`
}

// File is a file that a build wrote: an output, or an artifact of a stage.
type File struct {
	Stage  string          `json:"stage,omitempty"` // of an artifact
	Name   string          `json:"name"`
	Digest hashpipe.Digest `json:"sha256"`
	Size   int64           `json:"bytes"`
}

// Record is the payload of a record that nobody has signed yet. Only the
// constructors of this package make one, so whoever signs a Record signs
// neither a capability nor a revocation.
type Record struct {
	kind    string
	payload []byte
}

// Payload returns the text to sign; nil of the zero Record.
func (r Record) Payload() []byte { return r.payload }

// Type is the predicate type.
func (r Record) Type() string { return r.kind }

type statement struct {
	Type          string    `json:"_type"`
	Subject       []subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     any       `json:"predicate"`
}

type subject struct {
	Name   string    `json:"name"`
	Digest digestSet `json:"digest"`
}

type digestSet struct {
	SHA256 hashpipe.Digest `json:"sha256"`
}

// descriptor is in-toto's ResourceDescriptor.
type descriptor struct {
	Name        string     `json:"name"`
	URI         string     `json:"uri,omitempty"`
	Digest      *digestSet `json:"digest,omitempty"`
	MediaType   string     `json:"mediaType,omitempty"`
	Annotations any        `json:"annotations,omitempty"`
}

type provenance struct {
	BuildDefinition jsontext.Value `json:"buildDefinition"`
	RunDetails      runDetails     `json:"runDetails"`
}

type runDetails struct {
	Builder    builder      `json:"builder"`
	Metadata   metadata     `json:"metadata"`
	Byproducts []descriptor `json:"byproducts"`
}

type builder struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version"`
}

type metadata struct {
	InvocationID string        `json:"invocationId"`
	StartedOn    verifier.Time `json:"startedOn"`
	FinishedOn   verifier.Time `json:"finishedOn"`
}

// assurance is what lies behind the word "reproduced".
type assurance struct {
	Machine Machine `json:"machine"`
	Builds  []Build `json:"builds"`
}

// Provenance records a job that minted. Both builds must have the same outputs
// and artifacts: it does not compare for the mint, and refuses to write down
// what would be a lie.
func Provenance(j Job) (Record, error) {
	if err := j.check(); err != nil {
		return Record{}, fmt.Errorf("provenance: %w", err)
	}
	if len(j.Builds) != 2 || len(j.Builds[0].Outputs) == 0 {
		return Record{}, fmt.Errorf("provenance: %d builds with outputs, want 2", len(j.Builds))
	}
	if d := Differing(j.Builds[0], j.Builds[1]); len(d) > 0 {
		return Record{}, fmt.Errorf("provenance: the builds differ in %q", d[0].Name)
	}
	definition, err := buildDefinition(j.Ledger)
	if err != nil {
		return Record{}, fmt.Errorf("provenance: %w", err)
	}
	st := statement{Type: verifier.StatementType, PredicateType: ProvenanceType}
	for _, o := range j.Builds[0].Outputs {
		st.Subject = append(st.Subject, subject{o.Name, digestSet{o.Digest}})
	}
	by := []descriptor{
		{Name: attestationName, Digest: &digestSet{j.Ledger.Digest()}, MediaType: "application/vnd.in-toto+json"},
		{Name: "assurance", URI: assuranceType, Annotations: assurance{j.Machine, j.Builds}},
	}
	if l := j.Logged; !l.IsZero() {
		by = append(by, descriptor{Name: "log", URI: logType, Annotations: map[string]string{
			"origin": l.Origin, "index": strconv.FormatInt(l.Index, 10), "size": strconv.FormatInt(l.Size, 10),
		}})
	}
	for _, a := range j.Builds[0].Artifacts {
		by = append(by, descriptor{
			Name: a.Stage + "/" + a.Name, URI: artifactType, Digest: &digestSet{a.Digest},
			Annotations: map[string]string{"stage": a.Stage, "path": a.Name, "bytes": strconv.FormatInt(a.Size, 10)},
		})
	}
	st.Predicate = provenance{definition, runDetails{
		Builder:    builder{builderID, map[string]string{"clawfs": j.Program}},
		Metadata:   metadata{j.ID, verifier.At(j.StartedAt), verifier.At(j.FinishedAt)},
		Byproducts: by,
	}}
	return encode(st)
}

// failure is the predicate of FailureType.
type failure struct {
	Model      string           `json:"model"`
	Version    string           `json:"version"`
	Sequence   int64            `json:"sequence"`
	Verdict    capstore.Verdict `json:"verdict"`
	Reason     string           `json:"reason"`
	Diagnosis  string           `json:"diagnosis,omitempty"`
	Builder    builder          `json:"builder"`
	Metadata   metadata         `json:"metadata"`
	Assurance  assurance        `json:"assurance"`
	Differing  []Pair           `json:"differing,omitempty"`
	FirstStage string           `json:"firstDivergingStage,omitempty"`
}

// Failure records a job that ended with another verdict than MINTED. Reason and
// diagnosis are texts for people that are escaped already.
func Failure(j Job, v capstore.Verdict, reason, diagnosis string) (Record, error) {
	if err := j.check(); err != nil {
		return Record{}, fmt.Errorf("failure record: %w", err)
	}
	if !v.Valid() || v.Granted() {
		return Record{}, fmt.Errorf("failure record: verdict %q", v)
	}
	p := j.Ledger.Statement().Predicate
	f := failure{
		Model: p.Model, Version: p.Version, Sequence: p.Sequence, Verdict: v, Reason: reason, Diagnosis: diagnosis,
		Builder:   builder{builderID, map[string]string{"clawfs": j.Program}},
		Metadata:  metadata{j.ID, verifier.At(j.StartedAt), verifier.At(j.FinishedAt)},
		Assurance: assurance{j.Machine, j.Builds},
	}
	if f.Assurance.Builds == nil {
		f.Assurance.Builds = []Build{}
	}
	if len(j.Builds) == 2 {
		f.Differing = Differing(j.Builds[0], j.Builds[1])
		if len(f.Differing) > 0 {
			f.FirstStage = f.Differing[0].Stage
		}
	}
	return encode(statement{
		Type: verifier.StatementType, PredicateType: FailureType, Predicate: f,
		Subject: []subject{{p.Model, digestSet{j.Ledger.Digest()}}},
	})
}

func (j Job) check() error {
	if j.ID == "" || j.Ledger.IsZero() || j.StartedAt.IsZero() || j.FinishedAt.IsZero() || j.Program == "" || j.Machine.OS == "" {
		return errors.New("job, ledger, times, program and machine are required")
	}
	if j.FinishedAt.Before(j.StartedAt) {
		// A clock that was set back meanwhile: a record would be refused later.
		return fmt.Errorf("finished at %s, before it started at %s", j.FinishedAt.Format(time.RFC3339), j.StartedAt.Format(time.RFC3339))
	}
	return nil
}

func encode(st statement) (Record, error) {
	payload, err := json.Marshal(st, json.Deterministic(true), jsontext.PreserveRawStrings(true))
	if err != nil {
		return Record{}, err
	}
	// Base64 and the signatures come on top.
	if len(payload) > MaxSize*3/4-(16<<10) {
		return Record{}, fmt.Errorf("%d bytes: too long for a record", len(payload))
	}
	return Record{st.PredicateType, payload}, nil
}

// buildDefinition returns the ledger's, with the strings as they were signed.
func buildDefinition(l verifier.Ledger) (jsontext.Value, error) {
	var st struct {
		Predicate struct {
			BuildDefinition jsontext.Value `json:"buildDefinition"`
		} `json:"predicate"`
	}
	if err := json.Unmarshal(l.Payload(), &st); err != nil {
		return nil, err
	}
	return st.Predicate.BuildDefinition, nil
}

// Pair is one file that two builds wrote differently, or that one lacks.
type Pair struct {
	Stage  string          `json:"stage,omitempty"` // of an artifact; empty for an output
	Name   string          `json:"name"`
	First  hashpipe.Digest `json:"first,omitzero"`
	Second hashpipe.Digest `json:"second,omitzero"`
}

// Differing lists what two builds of one ledger wrote differently: artifacts in
// the order of their stages, then outputs. The first pair's stage is where they
// parted, as far as artifacts tell.
func Differing(a, b Build) []Pair {
	return append(differing(a.Artifacts, b.Artifacts), differing(a.Outputs, b.Outputs)...)
}

func differing(a, b []File) []Pair {
	type key struct{ stage, name string }
	second := make(map[key]File)
	for _, f := range b {
		second[key{f.Stage, f.Name}] = f
	}
	var pairs []Pair
	for _, f := range a {
		other, ok := second[key{f.Stage, f.Name}]
		delete(second, key{f.Stage, f.Name})
		if !ok || other.Digest != f.Digest || other.Size != f.Size {
			pairs = append(pairs, Pair{f.Stage, f.Name, f.Digest, other.Digest})
		}
	}
	for _, f := range b {
		if _, left := second[key{f.Stage, f.Name}]; left {
			pairs = append(pairs, Pair{Stage: f.Stage, Name: f.Name, Second: f.Digest})
		}
	}
	return pairs
}
