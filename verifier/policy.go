package verifier

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/pattern"
)

// Policy says whose ledgers may be rebuilt here and whose capabilities and
// revocations count. Its text is policy.json, described in docs/ledger.md. A
// Policy is only that text in Go's shape: ParsePolicy, Encode and New check it.
type Policy struct {
	Version    int64           `json:"version"`           // 1
	Revision   int64           `json:"revision,omitzero"` // of a policy with a root: one more than the last one's
	Expires    Time            `json:"expires,omitzero"`  // of a policy with a root
	Root       *Root           `json:"root,omitzero"`     // nil: whoever may write the file
	Publishers []PublisherRule `json:"publishers"`        // may be empty: then everything is denied
	Mints      []Operator      `json:"mints"`
	Revokers   []Operator      `json:"revokers"`
	Accept     []AcceptRule    `json:"accept,omitzero"` // nil: a capability of any mint is enough
	Logs       string          `json:"logs,omitzero"`   // a policy of package tlog
	Builds     Builds          `json:"builds"`
}

// PublisherRule lets a publisher's keys speak for some models.
type PublisherRule struct {
	Name            string           `json:"name"`
	Models          []string         `json:"models"` // "acme/langid", or "acme/*" for all below
	Keys            []dsse.PublicKey `json:"keys"`
	Threshold       int64            `json:"threshold"`                 // of different keys that must sign
	Images          []string         `json:"images"`                    // "sha256:<hex>" of manifests, or "*" alone
	MinimumSequence map[string]int64 `json:"minimumSequence,omitempty"` // by model
	Log             string           `json:"log,omitzero"`              // LogRequired or ""
	Budget          *Budget          `json:"budget,omitzero"`           // nil: as much as the machine gives
	// Windows bound when a key counts. A key that it does not name always does.
	Windows map[dsse.KeyID]Window `json:"windows,omitempty"`
}

// Budget bounds how much of a machine the rebuilds of one publisher may use. A
// bound that is 0 was not set; in the text it is left out, and 0 is an error.
type Budget struct {
	Concurrent         int64 `json:"concurrent,omitzero"`         // rebuilds that run at the same time
	JobsPerDay         int64 `json:"jobsPerDay,omitzero"`         // submissions in 24 hours
	BuildSecondsPerDay int64 `json:"buildSecondsPerDay,omitzero"` // of rebuilds that ended in the last 24 hours
}

// UnmarshalJSONFrom tells a bound of 0 from one that is not there.
func (b *Budget) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	var in struct {
		Concurrent         *int64 `json:"concurrent"`
		JobsPerDay         *int64 `json:"jobsPerDay"`
		BuildSecondsPerDay *int64 `json:"buildSecondsPerDay"`
	}
	if err := json.UnmarshalDecode(d, &in, json.RejectUnknownMembers(true)); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		from *int64
		to   *int64
	}{
		{"concurrent", in.Concurrent, &b.Concurrent},
		{"jobsPerDay", in.JobsPerDay, &b.JobsPerDay},
		{"buildSecondsPerDay", in.BuildSecondsPerDay, &b.BuildSecondsPerDay},
	} {
		if f.from == nil {
			continue
		}
		if *f.from < 1 || *f.from > maxInteger {
			return fmt.Errorf("budget: %s: expected 1 to 2^53-1, got %d; leave it out if there is no bound", f.name, *f.from)
		}
		*f.to = *f.from
	}
	if *b == (Budget{}) {
		return errors.New("budget is empty; leave it out")
	}
	return nil
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

// Limits bound one sandbox run. Each must be set: zero is an error, never
// "unlimited".
type Limits struct {
	MemoryBytes int64   `json:"memoryBytes"`
	Processes   int64   `json:"processes"`
	CPUs        float64 `json:"cpus"`
	WallSeconds int64   `json:"wallSeconds"`
	OutputBytes int64   `json:"outputBytes"`
	LogBytes    int64   `json:"logBytes"`
}

const (
	policyVersion = 1
	anyImage      = "*"
	imagePrefix   = "sha256:"
	maxProcesses  = 1 << 22 // the kernel's PID_MAX_LIMIT
	maxCPUs       = 8192    // the kernel's largest NR_CPUS
	maxRules      = 4096
	maxKeys       = 64
)

var partyPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// ParsePolicy decodes and checks a policy.json. An unreadable or empty policy
// is an error, because denying by accident looks like a broken tool and
// allowing by accident is one.
func ParsePolicy(data []byte) (*Policy, error) {
	var p Policy
	if err := decodeStrict(data, &p); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if err := p.check(); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return &p, nil
}

// Encode checks p and returns its one text, indented, with a newline at the
// end.
func (p *Policy) Encode() ([]byte, error) {
	if p == nil {
		return nil, errors.New("policy: there is none")
	}
	data, err := json.Marshal(p, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return nil, fmt.Errorf("policy: %w", dsse.JSONError(err))
	}
	data = append(data, '\n')
	if _, err := ParsePolicy(data); err != nil {
		return nil, err
	}
	return data, nil
}

// Rule returns the rule for model: the one with the most specific pattern that
// matches. No two rules have the same pattern, so there is one or none.
func (p *Policy) Rule(model string) (PublisherRule, bool) {
	lists := make([][]string, len(p.Publishers))
	for i, r := range p.Publishers {
		lists[i] = r.Models
	}
	i := pattern.Best(model, lists)
	if i < 0 {
		return PublisherRule{}, false
	}
	return p.Publishers[i], true
}

func (p *Policy) publisherKeys() []dsse.PublicKey {
	var keys []dsse.PublicKey
	seen := make(map[dsse.PublicKey]bool)
	for _, r := range p.Publishers {
		for _, k := range r.Keys {
			if !seen[k] {
				seen[k] = true
				keys = append(keys, k)
			}
		}
	}
	return keys
}

// allow checks what a ledger asks for against the rule that speaks for it.
func (p *Policy) allow(r PublisherRule, st Statement) error {
	model := st.Predicate.Model
	image := imagePrefix + st.Environment().Digest.SHA256.String()
	if !slices.Contains(r.Images, anyImage) && !slices.Contains(r.Images, image) {
		return refuse(ReasonPolicy, "SBA of %s: expected an environment image that the policy allows publisher %s, got %s", model, r.Name, image)
	}
	if least := r.MinimumSequence[model]; st.Predicate.Sequence < least {
		return refuse(ReasonRollback, "SBA of %s: expected sequence %d or later, got %d: this is an older ledger", model, least, st.Predicate.Sequence)
	}
	for _, g := range st.Predicate.BuildDefinition.ExternalParameters.Stages {
		for _, name := range slices.Sorted(maps.Keys(st.StageEnv(g))) {
			if !slices.Contains(p.Builds.Env, name) {
				return refuse(ReasonPolicy, "SBA of %s: stage %s sets the environment variable %s, which builds.env of the policy does not list", model, g.Name, name)
			}
		}
	}
	return nil
}

func (p *Policy) check() error {
	if p.Version != policyVersion {
		return fmt.Errorf("version: expected %d, got %d", policyVersion, p.Version)
	}
	if p.Publishers == nil {
		return errors.New("publishers is missing")
	}
	if len(p.Publishers) > maxRules {
		return fmt.Errorf("publishers: expected at most %d, got %d", maxRules, len(p.Publishers))
	}
	seen, patterns := make(names), make(names)
	for _, r := range p.Publishers {
		if err := checkParty(r.Name); err != nil {
			return fmt.Errorf("publishers: %w", err)
		}
		if err := seen.add("publishers", r.Name); err != nil {
			return err
		}
		if err := r.check(patterns); err != nil {
			return fmt.Errorf("publisher %s: %w", r.Name, err)
		}
	}
	for _, r := range p.Publishers {
		// A minimum that another rule's pattern hides would never be looked at.
		for model := range r.MinimumSequence {
			if best, ok := p.Rule(model); !ok || best.Name != r.Name {
				return fmt.Errorf("publisher %s: minimumSequence: %s is not a model of this rule", r.Name, model)
			}
		}
	}
	if err := checkOperators("mints", p.Mints); err != nil {
		return err
	}
	if err := checkOperators("revokers", p.Revokers); err != nil {
		return err
	}
	publishers := make(map[dsse.PublicKey]bool)
	for _, k := range p.publisherKeys() {
		publishers[k] = true
	}
	for _, o := range p.Mints {
		for _, k := range o.Keys {
			if publishers[k] {
				return fmt.Errorf("mints: operator %s: key %s is also a publisher's, so its rebuild would not be independent", o.Operator, k.ID())
			}
		}
	}
	if err := p.checkAccept(); err != nil {
		return err
	}
	if err := p.checkLogs(); err != nil {
		return err
	}
	if err := p.checkRoot(); err != nil {
		return err
	}
	return p.Builds.check()
}

func (r PublisherRule) check(patterns names) error {
	if err := count("models", len(r.Models), maxRules); err != nil {
		return err
	}
	for _, pattern := range r.Models {
		if err := checkPattern(pattern); err != nil {
			return err
		}
		if err := patterns.add("models", pattern); err != nil {
			return err
		}
	}
	if err := checkKeys(r.Keys); err != nil {
		return err
	}
	if r.Threshold < 1 || r.Threshold > int64(len(r.Keys)) {
		return fmt.Errorf("threshold: expected 1 to %d (the number of keys), got %d", len(r.Keys), r.Threshold)
	}
	if err := count("images", len(r.Images), maxRules); err != nil {
		return err
	}
	seen := make(names)
	for _, image := range r.Images {
		if err := seen.add("images", image); err != nil {
			return err
		}
		if image == anyImage && len(r.Images) > 1 {
			return errors.New(`images: "*" stands alone or not at all`)
		}
		if image == anyImage {
			continue
		}
		hex, ok := strings.CutPrefix(image, imagePrefix)
		if _, err := hashpipe.ParseDigest(hex); !ok || err != nil {
			return fmt.Errorf(`images: expected "sha256:<64 hex digits>" of a manifest or "*", got %q`, clip(image))
		}
	}
	if err := r.checkWindows(); err != nil {
		return err
	}
	if r.MinimumSequence != nil && len(r.MinimumSequence) == 0 {
		return errors.New("minimumSequence is empty; leave it out")
	}
	for model, least := range r.MinimumSequence {
		if err := checkModel(model); err != nil {
			return fmt.Errorf("minimumSequence: %w", err)
		}
		if least < 1 || least > maxInteger {
			return fmt.Errorf("minimumSequence: %s: expected 1 to 2^53-1, got %d", model, least)
		}
	}
	return nil
}

// checkPattern accepts a model, or a model's prefix and "/*". A bare "*" would
// trust one publisher with everybody's models.
func checkPattern(pattern string) error {
	prefix, ok := strings.CutSuffix(pattern, "/*")
	if ok && partyPattern.MatchString(prefix) || modelPattern.MatchString(prefix) {
		return nil
	}
	return fmt.Errorf(`models: expected "publisher/name" or "publisher/*", got %+q`, clip(pattern))
}

func checkParty(name string) error {
	if !partyPattern.MatchString(name) {
		return fmt.Errorf("expected a name of a-z, 0-9 and ._- (at most 64), got %+q", clip(name))
	}
	return nil
}

func checkKeys(keys []dsse.PublicKey) error {
	if err := count("keys", len(keys), maxKeys); err != nil {
		return err
	}
	for i, k := range keys {
		if k.IsZero() {
			return errors.New("keys: one is empty")
		}
		if slices.Contains(keys[:i], k) {
			return fmt.Errorf("keys: %s is given twice", k.ID())
		}
	}
	return nil
}

// checkOperators refuses one key under two names, which would count as two
// parties.
func checkOperators(what string, operators []Operator) error {
	if err := count(what, len(operators), maxRules); err != nil {
		return err
	}
	seen, keys := make(names), make(names)
	for _, o := range operators {
		if err := checkParty(o.Operator); err != nil {
			return fmt.Errorf("%s: operator: %w", what, err)
		}
		if err := seen.add(what+": operator", o.Operator); err != nil {
			return err
		}
		if err := checkKeys(o.Keys); err != nil {
			return fmt.Errorf("%s: operator %s: %w", what, o.Operator, err)
		}
		for _, k := range o.Keys {
			if err := keys.add(what+": key", string(k.ID())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (b Builds) check() error {
	if err := count("builds.env", len(b.Env), maxEnv); err != nil {
		return err
	}
	seen := make(names)
	for _, name := range b.Env {
		if !envPattern.MatchString(name) {
			return fmt.Errorf("builds.env: expected a name of letters, digits and _, got %q", clip(name))
		}
		if err := seen.add("builds.env", name); err != nil {
			return err
		}
	}
	l := b.Limits
	for _, f := range []struct {
		name      string
		got, most int64
	}{
		{"memoryBytes", l.MemoryBytes, maxInteger},
		{"processes", l.Processes, maxProcesses},
		{"wallSeconds", l.WallSeconds, maxTimeout},
		{"outputBytes", l.OutputBytes, maxInteger},
		{"logBytes", l.LogBytes, maxInteger},
	} {
		if f.got < 1 || f.got > f.most {
			return fmt.Errorf("builds.limits: %s: expected 1 to %d, got %d", f.name, f.most, f.got)
		}
	}
	if !(l.CPUs > 0 && l.CPUs <= maxCPUs) {
		return fmt.Errorf("builds.limits: cpus: expected more than 0 and at most %d, got %v", maxCPUs, l.CPUs)
	}
	return nil
}
