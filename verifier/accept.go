package verifier

import (
	"errors"
	"fmt"

	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/pattern"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// AcceptRule says how many operators must have rebuilt a model with equal bytes
// before its files open. Absent operators count as absent: the threshold is never
// lowered to those who answered.
type AcceptRule struct {
	Models    []string `json:"models"`    // as in a PublisherRule
	Operators []string `json:"operators"` // of the mints, who are counted
	Threshold int64    `json:"threshold"` // of different operators
	Local     string   `json:"local,omitzero"`

	// MaxListAgeSeconds makes the files open only under a revocation list that was
	// issued no longer ago. 0: no list is needed.
	MaxListAgeSeconds int64 `json:"maxListAgeSeconds,omitzero"`
}

// What the capability of this machine's own mint means; "" is LocalCounts.
const (
	LocalRequired = "required" // without it nothing opens
	LocalCounts   = "counts"   // as every other operator's
	LocalIgnored  = "ignored"
)

// Root says who signs the next version of a policy.
type Root struct {
	Keys      []dsse.PublicKey `json:"keys"`
	Threshold int64            `json:"threshold"` // of different keys
}

// LogRequired as PublisherRule.Log: the SBA needs a proof that it lies in a log
// of the policy.
const LogRequired = "required"

// AcceptRule returns the rule for model: the one with the most specific pattern
// that matches. A policy without any such rule takes one capability of any mint;
// one that has rules and none for the model takes none.
func (p *Policy) AcceptRule(model string) (AcceptRule, bool) {
	lists := make([][]string, len(p.Accept))
	for i, r := range p.Accept {
		lists[i] = r.Models
	}
	i := pattern.Best(model, lists)
	if i < 0 {
		return AcceptRule{}, false
	}
	return p.Accept[i], true
}

// LogPolicy returns the logs that the policy believes; the zero Policy of tlog,
// which believes nothing, if it names none.
func (p *Policy) LogPolicy() (tlog.Policy, error) {
	if p.Logs == "" {
		return tlog.Policy{}, nil
	}
	return tlog.ParsePolicy([]byte(p.Logs))
}

func (p *Policy) checkAccept() error {
	if p.Accept == nil {
		return nil
	}
	if err := count("accept", len(p.Accept), maxRules); err != nil {
		return err
	}
	operators := make(map[string]bool)
	for _, o := range p.Mints {
		operators[o.Operator] = true
	}
	patterns := make(names)
	for i, r := range p.Accept {
		if err := r.check(patterns, operators); err != nil {
			return fmt.Errorf("accept: rule %d: %w", i+1, err)
		}
	}
	return nil
}

func (r AcceptRule) check(patterns names, mints map[string]bool) error {
	if err := count("models", len(r.Models), maxRules); err != nil {
		return err
	}
	for _, p := range r.Models {
		if err := checkPattern(p); err != nil {
			return err
		}
		if err := patterns.add("models", p); err != nil {
			return err
		}
	}
	if err := count("operators", len(r.Operators), maxRules); err != nil {
		return err
	}
	seen := make(names)
	for _, o := range r.Operators {
		if err := seen.add("operators", o); err != nil {
			return err
		}
		if !mints[o] {
			return fmt.Errorf("operators: %q is not an operator of mints", clip(o))
		}
	}
	if r.Threshold < 1 || r.Threshold > int64(len(r.Operators)) {
		return fmt.Errorf("threshold: expected 1 to %d (the number of operators), got %d", len(r.Operators), r.Threshold)
	}
	switch r.Local {
	case "", LocalRequired, LocalCounts, LocalIgnored:
	default:
		return fmt.Errorf("local: expected %s, %s or %s, got %q", LocalRequired, LocalCounts, LocalIgnored, clip(r.Local))
	}
	if r.MaxListAgeSeconds < 0 || r.MaxListAgeSeconds > maxTimeout {
		return fmt.Errorf("maxListAgeSeconds: expected 1 to %d, got %d", maxTimeout, r.MaxListAgeSeconds)
	}
	return nil
}

func (p *Policy) checkLogs() error {
	if p.Logs != "" {
		if _, err := p.LogPolicy(); err != nil {
			return fmt.Errorf("logs: %w", err)
		}
	}
	for _, r := range p.Publishers {
		switch {
		case r.Log == "":
		case r.Log != LogRequired:
			return fmt.Errorf("publisher %s: log: expected %q or nothing, got %q", r.Name, LogRequired, clip(r.Log))
		case p.Logs == "":
			return fmt.Errorf("publisher %s: log is %s, and the policy has no logs", r.Name, r.Log)
		}
	}
	return nil
}

// checkRoot wants the parts of a policy that is signed all together.
func (p *Policy) checkRoot() error {
	if p.Root == nil {
		if p.Revision != 0 || !p.Expires.IsZero() {
			return errors.New("revision and expires belong to a policy with a root, whose keys sign the next one")
		}
		return nil
	}
	switch {
	case p.Revision < 1 || p.Revision > maxInteger:
		return fmt.Errorf("revision: expected 1 to 2^53-1, got %d", p.Revision)
	case p.Expires.IsZero():
		return errors.New("expires is missing: a signed policy is valid until a time")
	}
	if err := checkKeys(p.Root.Keys); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if p.Root.Threshold < 1 || p.Root.Threshold > int64(len(p.Root.Keys)) {
		return fmt.Errorf("root: threshold: expected 1 to %d (the number of keys), got %d", len(p.Root.Keys), p.Root.Threshold)
	}
	return nil
}
