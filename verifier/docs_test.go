package verifier_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
	"github.com/openclaw/clawfs/verifier/tlog/tlogtest"
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
	// The log of the example: entries of other people before and after.
	log := tlogtest.New("log.example/models", "alice")
	entry := leaf(t, l.Payload(), rule.Keys[0], st.Predicate.Model)
	log.Fill(t, 2)
	index := log.Add(t, entry)
	log.Fill(t, 1)
	for kind, want := range map[string][]byte{
		"log-policy": []byte(log.Policy("https://log.example/models")), "log-proof": log.Proof(t, index, log.Size()), "log-leaf": entry.Encode(),
	} {
		if _, after, _ := strings.Cut(string(text), "```text "+kind+"\n"); !strings.HasPrefix(after, string(want)+"```") {
			t.Errorf("docs/ledger.md: the %s is not this:\n%s", kind, want)
		}
	}
	logs, err := tlog.ParsePolicy([]byte(log.Policy("https://log.example/models")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tlog.Verify(logs, log.Proof(t, index, log.Size()), entry); err != nil {
		t.Errorf("the proof of docs/ledger.md: %v", err)
	}
}

// TestDocsSharedPolicy signs the shared policy of docs/ledger.md with the keys
// that are named there, and finds the digest, the PAE's beginning and the
// signatures of the document.
func TestDocsSharedPolicy(t *testing.T) {
	text, err := os.ReadFile("../docs/ledger.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(text), "```json shared-policy\n")
	body, after, closed := strings.Cut(after, "\n```")
	if !ok || !closed {
		t.Fatal("docs/ledger.md has no example of a shared policy")
	}
	p, err := verifier.ParsePolicy([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	keys := []dsse.PrivateKey{seeded(t, 1), seeded(t, 2), seeded(t, 3)}
	for i, k := range keys {
		if p.Root.Keys[i] != k.Public() {
			t.Errorf("root key %d is %s, want %s", i+1, p.Root.Keys[i].ID(), k.Public().ID())
		}
	}
	envelope, err := verifier.SignPolicy(t.Context(), p, keys[0], keys[2])
	if err != nil {
		t.Fatal(err)
	}
	got, err := verifier.FirstPolicy(nil, envelope, p.Expires.Time().Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	e, err := dsse.Parse(envelope)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"sha256 " + got.Digest().String(),
		fmt.Sprintf("`%.51s`", dsse.PAE(e.UnverifiedPayloadType(), e.UnverifiedPayload())),
	}
	for _, part := range strings.Split(string(envelope), `"sig":"`)[1:] {
		sig, _, _ := strings.Cut(part, `"`)
		want = append(want, sig)
	}
	if len(want) != 4 {
		t.Fatalf("%d things to look for, want 4", len(want))
	}
	for _, w := range want {
		if !strings.Contains(after, w) {
			t.Errorf("docs/ledger.md does not say %q after the shared policy", w)
		}
	}
}

// seeded is the Ed25519 key whose seed is 32 times the byte b.
func seeded(t *testing.T, b byte) dsse.PrivateKey {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	k, err := dsse.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
