package rebuild

import (
	"context"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/internal/mint"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// NewMintKey makes the key that signs this machine's capabilities, at path,
// readable by its owner alone, and returns what the policy pins. It never
// overwrites a file.
func NewMintKey(path string) (dsse.PublicKey, error) { return mint.Generate(path) }

// Files of a job directory.
const (
	SBAFile    = "sba.json"      // the envelope, as submitted
	JobFile    = "job.json"      // what the queue tells the worker
	ResultFile = "result.json"   // the worker's answer; written once, whole or not at all
	LogFile    = "log"           // text, escaped, bounded
	EventFile  = "events.ndjson" // one Event a line
)

// JobConfig is what a worker process knows beside its job directory. All
// fields but Observer are required.
type JobConfig struct {
	Dir     string // the job directory
	Policy  *verifier.Policy
	Runtime *sandbox.Runtime
	// MintKey is the path of the key file. It is opened after both builds are
	// dead and only if their outputs are equal.
	MintKey string
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
	StartedAt  time.Time        `json:"startedAt"`
	FinishedAt time.Time        `json:"finishedAt"`
}

// RunJob does one job in a worker process: it verifies the SBA again by the
// policy, rebuilds, mints, and writes ResultFile. An error means that there is
// no answer and no ResultFile; the queue decides whether to try again. If the
// directory already has an answer, RunJob returns it and does nothing.
func RunJob(ctx context.Context, c JobConfig) (Result, error) { panic("unwritten") }
