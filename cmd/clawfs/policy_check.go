package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/pattern"
)

// The rules of policy check. Their names are stable: people will filter by them.
const (
	ruleExpiry      = "expiry"       // has ended, or ends soon
	ruleRoot        = "root"         // one key alone changes the policy
	ruleThreshold   = "threshold"    // one of several is enough
	ruleAnyImage    = "any-image"    // builds in any environment
	ruleKeyRoles    = "key-roles"    // one key in two roles
	ruleQuorum      = "quorum"       // no witness is asked for
	ruleNeverOpens  = "never-opens"  // models that nothing accepts
	ruleUnreachable = "unreachable"  // a threshold that this machine cannot reach
	ruleLocalMint   = "local-mint"   // the local mint is required, and does not count
	ruleNoPublisher = "no-publisher" // accepted, and nobody speaks for it
	ruleWindow      = "window"       // a publisher's key counts no more, or not for long
	ruleSharedKey   = "shared-key"   // one publisher key in two rules
	ruleSignatures  = "signatures"   // an envelope with too few of them
)

// policyFinding is one thing that may be wrong with a policy.
type policyFinding struct {
	Rule  string `json:"rule"`
	Where string `json:"where"`
	Text  string `json:"text"`
}

func (f policyFinding) String() string {
	return fmt.Sprintf("warning: %s: %s (%s)", f.Where, f.Text, f.Rule)
}

// machine is what policy check knows of the machine that shall use a policy.
type machine struct {
	known    bool   // false: nothing
	operator string // whose mint it has, by the policy; "" if none
}

func newPolicyCheckCommand(a *app) *cobra.Command {
	var strict bool
	c := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Check a policy and warn of what is probably a mistake",
		Long: `Reads FILE, or the policy of the state directory, as the daemon would: a
policy.json, or signed policies, whose last is checked. Then it warns of

  expiry        it has ended, or ends within 14 days
  root          one key alone can sign the next policy
  threshold     one of several keys or operators is enough
  any-image     a publisher may build in any environment
  key-roles     a publisher's key revokes, or signs policies, too
  window        a publisher's key counts no more, or ends within 14 days
  shared-key    two publishers have the same key
  quorum        the logs need no witness
  never-opens   a publisher's models that no accept rule names
  no-publisher  an accept rule for models that no publisher speaks for
  unreachable   an accept rule whose threshold this machine cannot reach
  local-mint    the local mint is required, and this machine's does not count
  signatures    not signed by enough keys of its own root

A warning may be what you want.

Exit code 0: it is a policy. 3: it is none, or with --strict there are warnings.
The policy of the state directory must also be what its root signed: 1 if not.`,
		Example: `  clawfs policy check
  clawfs policy check next.json --strict
  clawfs policy check next.dsse -o json | jq '.warnings[].rule'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			doc, err := a.policyArgument(args)
			if err != nil {
				return err
			}
			here, err := a.machine(doc.policy)
			if err != nil {
				return err
			}
			now := time.Now()
			result := struct {
				SHA256     hashpipe.Digest `json:"sha256"`
				Revision   int64           `json:"revision,omitzero"`
				Expires    verifier.Time   `json:"expires,omitzero"`
				Signatures *rootSignatures `json:"signatures,omitempty"`
				Warnings   []policyFinding `json:"warnings"`
			}{SHA256: digestOf(doc.text), Revision: doc.policy.Revision, Expires: doc.policy.Expires, Warnings: lintPolicy(doc.policy, here, now)}
			if doc.envelope != nil && doc.policy.Root != nil {
				s, err := signaturesOf(doc.envelope, doc.policy)
				if err != nil {
					return refusal("policy", err)
				}
				result.Signatures = &s
				if !s.enough() {
					result.Warnings = append(result.Warnings, policyFinding{ruleSignatures, "envelope", "it has " + s.String()})
				}
			}
			err = a.print(result, func() {
				for _, f := range result.Warnings {
					a.printf("%s\n", printable(f.String()))
				}
				a.printf("it is a policy, sha256 %s: %s\n", result.SHA256, warnings(len(result.Warnings)))
				if result.Signatures != nil {
					a.printf("signatures  %s\n", result.Signatures)
				}
			})
			if err == nil && strict && len(result.Warnings) > 0 {
				return &quietExit{codeRefused}
			}
			return err
		},
	}
	c.Flags().BoolVar(&strict, "strict", false, "end with exit code 3 if there are warnings")
	return c
}

// machine looks whose mint this machine has.
func (a *app) machine(p *verifier.Policy) (machine, error) {
	if _, err := os.Lstat(a.state); err != nil {
		return machine{}, nil // a desk, where policies are written
	}
	operator, err := a.config().LocalOperator(p)
	if errors.Is(err, fs.ErrPermission) {
		return machine{}, nil
	}
	return machine{true, operator}, err
}

// lintPolicy looks for what is probably a mistake in a policy that is valid.
func lintPolicy(p *verifier.Policy, here machine, now time.Time) []policyFinding {
	list := []policyFinding{}
	warn := func(rule, where, format string, args ...any) {
		list = append(list, policyFinding{rule, where, fmt.Sprintf(format, args...)})
	}
	if w := expiryWarning(p, now); w != "" {
		warn(ruleExpiry, "policy", "%s", w)
	}
	if p.Root != nil && p.Root.Threshold == 1 {
		warn(ruleRoot, "root", "one key of %d alone signs the next policy", len(p.Root.Keys))
	}
	lintPublishers(p, now, warn)
	lintAccept(p, here, warn)
	if logs, err := p.LogPolicy(); err == nil && !logs.IsZero() && strings.HasSuffix("\n"+string(logs.Encode()), "\nquorum none\n") {
		warn(ruleQuorum, "logs", "no witness is asked for, so a log can show each machine a history of its own")
	}
	return list
}

func lintPublishers(p *verifier.Policy, now time.Time, warn func(rule, where, format string, args ...any)) {
	owner := make(map[dsse.PublicKey]string)
	for _, r := range p.Publishers {
		where := "publisher " + r.Name
		if r.Threshold == 1 && len(r.Keys) > 1 {
			warn(ruleThreshold, where, "one of its %d keys alone is enough", len(r.Keys))
		}
		if slices.Contains(r.Images, "*") {
			warn(ruleAnyImage, where, "it may build in any image that it names")
		}
		for _, k := range r.Keys {
			if hasKey(p.Revokers, k) {
				warn(ruleKeyRoles, where, "its key %s is a revoker's, too: whoever has it takes back other publishers' models", k.ID())
			}
			if p.Root != nil && slices.Contains(p.Root.Keys, k) {
				warn(ruleKeyRoles, where, "its key %s also signs policies", k.ID())
			}
			if end := r.Windows[k.ID()].NotAfter; !end.IsZero() && end.Time().Sub(now) < expiringSoon {
				warn(ruleWindow, where, "its key %s counts until %s", k.ID(), end)
			}
			if other, shared := owner[k]; shared {
				warn(ruleSharedKey, where, "its key %s is also that of publisher %s", k.ID(), other)
			}
			owner[k] = r.Name
		}
	}
}

func lintAccept(p *verifier.Policy, here machine, warn func(rule, where, format string, args ...any)) {
	if p.Accept == nil {
		return
	}
	var accepted, spoken []string
	for _, r := range p.Accept {
		accepted = append(accepted, r.Models...)
	}
	for _, r := range p.Publishers {
		spoken = append(spoken, r.Models...)
		for _, m := range r.Models {
			switch {
			case isCovered(m, accepted):
			case touches(m, accepted):
				warn(ruleNeverOpens, "publisher "+r.Name, "of %s only those models open that an accept rule names", m)
			default:
				warn(ruleNeverOpens, "publisher "+r.Name, "no accept rule names %s, so its files never open", m)
			}
		}
	}
	for i, r := range p.Accept {
		where := fmt.Sprintf("accept rule %d", i+1)
		if r.Threshold == 1 && len(r.Operators) > 1 {
			warn(ruleThreshold, where, "one of its %d operators alone is enough", len(r.Operators))
		}
		for _, m := range r.Models {
			if !isCovered(m, spoken) && !touches(m, spoken) {
				warn(ruleNoPublisher, where, "no publisher speaks for %s", m)
			}
		}
		mine := slices.Contains(r.Operators, here.operator)
		switch {
		case here.known && r.Local == verifier.LocalRequired && !mine:
			warn(ruleLocalMint, where, "it requires a capability of the local mint, and this machine's (%s) is not one of its operators: %s never opens here", dash(here.operator), strings.Join(r.Models, ", "))
		case here.known && r.Local == verifier.LocalIgnored && mine && r.Threshold == int64(len(r.Operators)):
			warn(ruleUnreachable, where, "it needs all of its %d operators and ignores the local one, %s: %s never opens here", r.Threshold, here.operator, strings.Join(r.Models, ", "))
		}
	}
}

// isCovered reports whether all that one pattern matches is matched by a pattern
// of the list.
func isCovered(one string, list []string) bool {
	return slices.ContainsFunc(list, func(p string) bool { return p == one || pattern.Matches(p, one) })
}

// touches reports whether some of what one pattern matches is matched by a
// pattern of the list.
func touches(one string, list []string) bool {
	return slices.ContainsFunc(list, func(p string) bool { return pattern.Matches(one, p) })
}
