package verifier_test

import (
	"os"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/verifier"
)

// TestDocs parses the examples of docs/ledger.md, and sees that the policy
// there trusts the ledger's key for its model.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/ledger.md")
	if err != nil {
		t.Fatal(err)
	}
	example := func(kind string) []byte {
		_, after, ok := strings.Cut(string(text), "```json "+kind+"\n")
		body, _, closed := strings.Cut(after, "\n```")
		if !ok || !closed {
			t.Fatalf("docs/ledger.md has no example of a %s", kind)
		}
		return []byte(body)
	}
	l, err := verifier.ParseLedger(example("ledger"))
	if err != nil {
		t.Fatalf("the ledger of docs/ledger.md: %v", err)
	}
	p, err := verifier.ParsePolicy(example("policy"))
	if err != nil {
		t.Fatalf("the policy of docs/ledger.md: %v", err)
	}
	st := l.Statement()
	rule, ok := p.Rule(st.Predicate.Model)
	if !ok || rule.Keys[0].ID() != st.Predicate.Publisher.KeyID {
		t.Errorf("the policy's rule for %s is %q with key %s, want the ledger's key %s", st.Predicate.Model, rule.Name, rule.Keys[0].ID(), st.Predicate.Publisher.KeyID)
	}
	// The record of docs/ledger.md is shown on several lines.
	var record strings.Builder
	for line := range strings.Lines(string(example("rotation"))) {
		record.WriteString(strings.TrimSpace(line))
	}
	r, err := verifier.ParseRotationStatement([]byte(record.String()))
	if err != nil {
		t.Fatalf("the rotation of docs/ledger.md: %v", err)
	}
	if q := r.Predicate; q.Role != verifier.RolePublisher || q.Name != "acme" || q.Old.PublicKey.Algorithm() == q.New.PublicKey.Algorithm() {
		t.Errorf("the rotation of docs/ledger.md is %+v", q)
	}
}
