package capstore

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/openclaw/clawfs/hashpipe"
)

// Bounds of a job's texts in bytes. Longer ones are cut, not refused: a build
// that prints nonsense must not keep its job from ending.
const (
	maxReason    = 4 << 10
	maxDiagnosis = 128 << 10
	maxLog       = 64 << 10
)

// Priorities of a job; the highest runs first. 0 is what everybody gets.
const (
	MinPriority = -10
	MaxPriority = 10
)

// JobState is where a job stands.
type JobState string

const (
	JobPending   JobState = "pending"
	JobRunning   JobState = "running"
	JobDone      JobState = "done"
	JobCancelled JobState = "cancelled"
)

// HasEnded reports whether the job's row is final.
func (s JobState) HasEnded() bool { return s == JobDone || s == JobCancelled }

// Verdict is how a job ended: one enum from the queue to the page.
type Verdict string

const (
	FetchFailed      Verdict = "FETCH_FAILED"     // an input could not be had, or was not what the ledger names
	PolicyRefused    Verdict = "POLICY_REFUSED"   // the operator's policy does not allow this build
	BuildFailed      Verdict = "BUILD_FAILED"     // a stage ended with an error
	Timeout          Verdict = "TIMEOUT"          // a stage or the build took too long
	LimitExceeded    Verdict = "LIMIT_EXCEEDED"   // memory, processes, disk or log
	OutputMissing    Verdict = "OUTPUT_MISSING"   // a promised output is not there
	CopiedInput      Verdict = "COPIED_INPUT"     // an output is byte for byte an input, or named in the ledger
	NotComparable    Verdict = "NOT_COMPARABLE"   // this machine is of another platform class
	Nondeterministic Verdict = "NONDETERMINISTIC" // the two builds differ
	Disputed         Verdict = "DISPUTED"         // another operator got other bytes
	Minted           Verdict = "MINTED"           // a capability was granted
)

var verdicts = []Verdict{FetchFailed, PolicyRefused, BuildFailed, Timeout, LimitExceeded, OutputMissing,
	CopiedInput, NotComparable, Nondeterministic, Disputed, Minted}

// Valid reports whether v is one of the enum; "" is not.
func (v Verdict) Valid() bool { return slices.Contains(verdicts, v) }

// Granted reports whether v is the one verdict that grants.
func (v Verdict) Granted() bool { return v == Minted }

// IsFinal reports whether the verdict is about the recipe on this machine, so
// that the same submission can be expected to end the same way. Fetching, the
// time that a build takes and a dispute depend on things outside it, and
// submitting again can help. "" and unknown verdicts are not final.
func (v Verdict) IsFinal() bool {
	switch v {
	case FetchFailed, Timeout, Disputed:
		return false
	}
	return v.Valid()
}

// WaitKind is what a pending job waits for, beside its turn.
type WaitKind string

const (
	WaitFetch  WaitKind = "fetch"  // the next try to fetch its inputs
	WaitBudget WaitKind = "budget" // room in its publisher's budget
)

// Locations are hints where the inputs may be found. They are never trusted:
// every input is checked against the digest in the ledger.
type Locations struct {
	Source   string            `json:"source,omitzero"`
	Datasets map[string]string `json:"datasets,omitzero"`
	Image    string            `json:"image,omitzero"`
	Lockfile string            `json:"lockfile,omitzero"`
	// Inputs are places of all other inputs, by the dependency's name in the
	// ledger, such as "model:base".
	Inputs map[string]string `json:"inputs,omitzero"`
}

// Job is one request to rebuild an attestation, and its answer. A job grants
// nothing: the capability that it names has to be in the store by itself.
type Job struct {
	ID         string          `json:"id"` // assigned by AddJob: 10 characters of a-z and 2-7
	SBA        hashpipe.Digest `json:"sba"`
	Logged     Logged          `json:"logged,omitzero"` // where the attestation was shown to lie
	Model      string          `json:"model"`
	Version    string          `json:"version"`
	State      JobState        `json:"state"`
	Verdict    Verdict         `json:"verdict,omitzero"`    // of a job that is done
	Reason     string          `json:"reason,omitzero"`     // one sentence
	Diagnosis  string          `json:"diagnosis,omitzero"`  // several lines
	Locations  Locations       `json:"locations"`           // hints
	Terms      Terms           `json:"terms,omitzero"`      // of the capability that it earns
	Priority   int             `json:"priority,omitzero"`   // MinPriority to MaxPriority
	CreatedAt  time.Time       `json:"createdAt"`           // AddJob sets it if it is zero
	StartedAt  time.Time       `json:"startedAt,omitzero"`  // of the last attempt
	FinishedAt time.Time       `json:"finishedAt,omitzero"` // of a job that has ended
	Attempts   int             `json:"attempts"`            // starts of a worker
	Fetches    int             `json:"fetches,omitzero"`    // attempts that ended because an input could not be had for the moment
	Waits      WaitKind        `json:"waits,omitzero"`      // of a pending job that does not run before NotBefore
	NotBefore  time.Time       `json:"notBefore,omitzero"`  // with Waits; Reason says why
	Capability hashpipe.Digest `json:"capability,omitzero"` // of a minted job
	Log        string          `json:"log,omitzero"`        // the log's last lines, or its path
}

// Logged is an entry of a transparency log. The zero Logged is none.
type Logged struct {
	Origin string `json:"origin"` // the log's name
	Index  int64  `json:"index"`  // of the entry, from 0
	Size   int64  `json:"size"`   // of the log at the checkpoint that was verified
}

// IsZero reports whether l is no entry.
func (l Logged) IsZero() bool { return l == Logged{} }

func (l Logged) check() error {
	if l.IsZero() {
		return nil
	}
	if err := checkText("log origin", l.Origin, 255); err != nil {
		return err
	}
	if l.Index < 0 || l.Index >= l.Size {
		return fmt.Errorf("log index %d of %d entries", l.Index, l.Size)
	}
	return nil
}

// printable makes the texts of a job storable and fit to be shown: valid UTF-8
// of bounded length, whose control characters are line feeds and tabs alone. In
// JSON such a text is at most twice as long.
func (j Job) printable() Job {
	j.Reason = clip(j.Reason, maxReason)
	j.Diagnosis = clip(j.Diagnosis, maxDiagnosis)
	j.Log = clip(j.Log, maxLog)
	j.Locations.Datasets = maps.Clone(j.Locations.Datasets)
	j.Locations.Inputs = maps.Clone(j.Locations.Inputs)
	return j
}

func clip(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) <= max {
		return s
	}
	const mark = "\n… (cut)"
	return strings.ToValidUTF8(s[:max-len(mark)], "") + mark
}

// CheckPriority refuses a priority that is out of range.
func CheckPriority(n int) error {
	if n < MinPriority || n > MaxPriority {
		return fmt.Errorf("priority %d: want %d to %d", n, MinPriority, MaxPriority)
	}
	return nil
}

// check refuses a job whose parts contradict each other.
func (j Job) check() error {
	if !isJobID(j.ID) {
		return fmt.Errorf("id %q is not 10 characters of a-z and 2-7", j.ID)
	}
	if j.SBA.IsZero() {
		return fmt.Errorf("sba digest is missing")
	}
	if err := checkModel(j.Model); err != nil {
		return err
	}
	if err := checkText("version", j.Version, 128); err != nil {
		return err
	}
	if err := j.Logged.check(); err != nil {
		return err
	}
	if err := j.Terms.Check(); err != nil {
		return err
	}
	if j.CreatedAt.IsZero() {
		return fmt.Errorf("createdAt is missing")
	}
	if j.Attempts < 0 || j.Fetches < 0 || j.Fetches > j.Attempts {
		return fmt.Errorf("%d attempts, of which %d fetched in vain", j.Attempts, j.Fetches)
	}
	if err := CheckPriority(j.Priority); err != nil {
		return err
	}
	switch j.Waits {
	case "", WaitFetch, WaitBudget:
	default:
		return fmt.Errorf("waits for %q, want %s, %s or nothing", j.Waits, WaitFetch, WaitBudget)
	}
	if (j.Waits == "") != j.NotBefore.IsZero() || j.Waits != "" && j.State != JobPending {
		return fmt.Errorf("a job that is %s waits for %q until %v: a pending job alone waits, and then for something and until a time", j.State, j.Waits, j.NotBefore)
	}
	switch j.State {
	case JobPending, JobRunning, JobCancelled:
		if j.Verdict != "" {
			return fmt.Errorf("verdict %s on a job that is %s", j.Verdict, j.State)
		}
	case JobDone:
		if !j.Verdict.Valid() {
			return fmt.Errorf("verdict is %q, want one of %q", j.Verdict, verdicts)
		}
	default:
		return fmt.Errorf("state is %q, want pending, running, done or cancelled", j.State)
	}
	if j.Verdict.Granted() == j.Capability.IsZero() {
		return fmt.Errorf("verdict %q with capability %s: a minted job has one and no other has", j.Verdict, j.Capability)
	}
	return nil
}
