package main

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newPolicyCommand(a *app) *cobra.Command {
	return group("policy", "Check, compare and explain policies, and share one by signatures",
		`policy.json in the state directory says whose ledgers are rebuilt here and whose
capabilities open files. For one machine, clawfs publisher changes it. For many
machines it gets a root: keys that sign each next version, several of them if
one stolen key shall not be enough. Then a machine takes a version only if the
roots of both the version before and the new one have signed it, and if it is
the very next.`,
		newPolicyNewCommand(a), newPolicyCheckCommand(a), newPolicyShowCommand(a), newPolicyDiffCommand(a), newPolicyExplainCommand(a),
		newPolicyEditCommand(a), newPolicySignCommand(a), newPolicyInstallCommand(a), newPolicyExportCommand(a))
}

// policyDoc is a policy as it was read, from a text or out of an envelope.
type policyDoc struct {
	policy   *verifier.Policy
	text     []byte
	envelope []byte // nil: nobody signed the text
}

// readPolicyFile reads a policy.json, or the last policy in a file of signed
// ones. It looks at no signature. What is no policy is refused.
func readPolicyFile(path string) (policyDoc, error) {
	data, err := readBounded(path, verifier.MaxPolicyFile)
	if err != nil {
		return policyDoc{}, err
	}
	if !bytes.Contains(data, []byte(`"payload"`)) {
		p, err := verifier.ParsePolicy(data)
		if err != nil {
			return policyDoc{}, exitf(codeRefused, "%s: %w", printable(path), notThat(err, data, aSignedPolicy))
		}
		return policyDoc{policy: p, text: data}, nil
	}
	envelopes, err := verifier.SplitPolicies(data)
	if err != nil {
		return policyDoc{}, refusal(printable(path), notThat(err, data, aSignedPolicy))
	}
	last := envelopes[len(envelopes)-1]
	p, text, err := verifier.UnverifiedPolicy(last)
	if err != nil {
		return policyDoc{}, refusal(printable(path), notThat(err, data, aSignedPolicy))
	}
	return policyDoc{policy: p, text: text, envelope: last}, nil
}

// policyArgument is the policy of the file that a verb was given, or of the
// state directory, where it must be the one that is in force.
func (a *app) policyArgument(args []string) (policyDoc, error) {
	if len(args) == 1 {
		return readPolicyFile(args[0])
	}
	p, err := a.readPolicy()
	if err != nil {
		// What is no policy in a file is none in place either.
		if _, parsing := readPolicyFile(a.config().Policy()); exitCode(parsing) == codeRefused {
			return policyDoc{}, exit(codeRefused, err)
		}
		return policyDoc{}, err
	}
	doc := policyDoc{policy: p.Policy, text: p.Text}
	if p.Root != nil {
		installed, err := a.config().InstalledPolicy()
		if err != nil {
			return doc, err
		}
		doc.envelope = installed.Envelope()
	}
	return doc, nil
}

// rootSignatures says how many of a root's keys signed a policy.
type rootSignatures struct {
	Revision  int64        `json:"revision"` // of the policy whose root it is
	Signed    []dsse.KeyID `json:"signed"`
	Threshold int64        `json:"threshold"`
	Keys      int          `json:"keys"`
}

func (s rootSignatures) enough() bool { return int64(len(s.Signed)) >= s.Threshold }

func (s rootSignatures) String() string {
	return fmt.Sprintf("%d of the %d that the root of revision %d needs", len(s.Signed), s.Threshold, s.Revision)
}

// signaturesOf counts the signatures of an envelope under the root of p.
func signaturesOf(envelope []byte, p *verifier.Policy) (rootSignatures, error) {
	s := rootSignatures{Revision: p.Revision, Signed: []dsse.KeyID{}, Threshold: p.Root.Threshold, Keys: len(p.Root.Keys)}
	signers, err := verifier.PolicySigners(envelope, p.Root.Keys)
	for _, k := range signers {
		s.Signed = append(s.Signed, k.ID())
	}
	return s, err
}

// expiringSoon is how long before the end of a policy clawfs begins to warn.
const expiringSoon = 14 * 24 * time.Hour

// expiryWarning is what a person should know of the end of a policy, "" if it is
// far.
func expiryWarning(p *verifier.Policy, now time.Time) string {
	if p.Root == nil {
		return ""
	}
	switch left := p.Expires.Time().Sub(now); {
	case left <= 0:
		return fmt.Sprintf("THE POLICY HAS EXPIRED: revision %d ended at %s; nothing is granted, and no file opens; next: clawfs policy install FILE, with revision %d", p.Revision, p.Expires, p.Revision+1)
	case left < expiringSoon:
		return fmt.Sprintf("the policy expires soon: revision %d ends at %s, in %s; then nothing more is granted, and no file opens; next: clawfs policy install FILE, with revision %d", p.Revision, p.Expires, days(left), p.Revision+1)
	}
	return ""
}

func days(d time.Duration) string {
	if d < 48*time.Hour {
		return fmt.Sprintf("%d hours", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// rootText says who signs the next policy.
func rootText(p *verifier.Policy) string {
	if p.Root == nil {
		return "none: whoever can write policy.json decides"
	}
	return fmt.Sprintf("%d of %d keys", p.Root.Threshold, len(p.Root.Keys))
}

func keyIDs(keys []dsse.PublicKey) []dsse.KeyID {
	ids := make([]dsse.KeyID, len(keys))
	for i, k := range keys {
		ids[i] = k.ID()
	}
	return ids
}

func digestOf(text []byte) hashpipe.Digest { return hashpipe.SumBytes(text).Claim() }

// hasKey reports whether one of the operators has the key.
func hasKey(operators []verifier.Operator, key dsse.PublicKey) bool {
	return slices.ContainsFunc(operators, func(o verifier.Operator) bool { return slices.Contains(o.Keys, key) })
}
