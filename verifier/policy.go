package verifier

import (
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// Policy says whose ledgers may be rebuilt here and whose capabilities and
// revocations count. Its text is policy.json; docs/ledger.md describes it.
// A Policy in Go's hands is only a text; ParsePolicy, Encode and New check it.
type Policy struct {
	Version    int64           `json:"version"` // 1
	Publishers []PublisherRule `json:"publishers"`
	Mints      []Operator      `json:"mints"`
	Revokers   []Operator      `json:"revokers"`
	Builds     Builds          `json:"builds"`
}

// PublisherRule allows a publisher's keys to speak for some models.
type PublisherRule struct {
	Name            string           `json:"name"`
	Models          []string         `json:"models"` // "acme/langid" or "acme/*"
	Keys            []dsse.PublicKey `json:"keys"`
	Threshold       int64            `json:"threshold"`                 // distinct keys that must sign
	Images          []string         `json:"images"`                    // "sha256:<hex>" of manifests, or "*" alone
	MinimumSequence map[string]int64 `json:"minimumSequence,omitempty"` // by model
}

// Operator is one party and its keys. Parties are counted, not keys.
type Operator struct {
	Operator string           `json:"operator"`
	Keys     []dsse.PublicKey `json:"keys"`
}

// Builds bounds what a rebuild may use.
type Builds struct {
	Env    []string `json:"env"` // names that a ledger may set
	Limits Limits   `json:"limits"`
}

// Limits are the bounds of one sandbox run. Each must be set: zero is an error,
// not "unlimited".
type Limits struct {
	MemoryBytes int64   `json:"memoryBytes"`
	Processes   int64   `json:"processes"`
	CPUs        float64 `json:"cpus"`
	WallSeconds int64   `json:"wallSeconds"` // of the whole build
	OutputBytes int64   `json:"outputBytes"`
	LogBytes    int64   `json:"logBytes"`
}

// ParsePolicy decodes and checks a policy.json.
func ParsePolicy(data []byte) (*Policy, error) { panic("unwritten") }

// Encode checks p and returns its one text, indented, with a newline at the end.
func (p *Policy) Encode() ([]byte, error) { panic("unwritten") }

// Rule returns the rule for model: the one with the most specific pattern.
func (p *Policy) Rule(model string) (PublisherRule, bool) { panic("unwritten") }

// NewPolicy returns a policy that has no publishers yet, so denies everything.
func NewPolicy(operator string, mint, revoker dsse.PublicKey, builds Builds) (*Policy, error) {
	panic("unwritten")
}

// AddPublisher returns a copy of p with the rule r added.
func (p *Policy) AddPublisher(r PublisherRule) (*Policy, error) { panic("unwritten") }

// RemovePublisher returns a copy of p without the rule named name.
func (p *Policy) RemovePublisher(name string) (*Policy, error) { panic("unwritten") }

// PinSequence returns a copy of p that refuses ledgers of model below minimum.
func (p *Policy) PinSequence(model string, minimum int64) (*Policy, error) { panic("unwritten") }

// AllowImage returns a copy of p that lets the publisher named name use image.
func (p *Policy) AllowImage(name string, image hashpipe.Digest) (*Policy, error) {
	panic("unwritten")
}

// AllowEnv returns a copy of p that lets ledgers set the variable name.
func (p *Policy) AllowEnv(name string) (*Policy, error) { panic("unwritten") }

// AddMint returns a copy of p in which capabilities signed by key count as
// operator's.
func (p *Policy) AddMint(operator string, key dsse.PublicKey) (*Policy, error) { panic("unwritten") }

// AddRevoker returns a copy of p in which revocations signed by key count.
func (p *Policy) AddRevoker(operator string, key dsse.PublicKey) (*Policy, error) {
	panic("unwritten")
}
