package capstore

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// seeded is the Ed25519 key whose seed is 32 times a byte.
func seeded(t testing.TB, b byte) dsse.PrivateKey {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	k, err := dsse.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestDocs makes the delegated capability of docs/capability.md again.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../docs/capability.md")
	if err != nil {
		t.Fatal(err)
	}
	mint, publisher, lead, host := seeded(t, 1), seeded(t, 2), seeded(t, 3), seeded(t, 4)
	measured, err := hashpipe.Measure(t.Context(), strings.NewReader("hello\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	day := time.Date(2026, 11, 27, 0, 0, 0, 0, time.UTC)
	payload, err := NewStatement([]Subject{{"langid.bin", measured.Sum().Claim(), measured.Tree().Claim(), measured.Size()}}, Predicate{
		Model: "acme/langid", Version: "1.2.0", Sequence: 12,
		SBA:         Reference{DigestSet{hashpipe.SumBytes([]byte("attestation")).Claim()}},
		Environment: Reference{DigestSet{hashpipe.SumBytes([]byte("image")).Claim()}},
		Publisher:   Publisher{publisher.Public().ID(), publisher.Public()},
		Minter:      Minter{KeyID: mint.Public().ID()},
		Platform:    Platform{OS: "linux", Arch: "amd64", CPUFeatures: []string{"avx2"}, Accelerator: "none"},
		NotBefore:   day, NotAfter: day.AddDate(0, 3, 0),
		Restrict: restrict(t, nil, []int64{1000, 1001}, nil),
		Delegate: []dsse.KeyID{lead.Public().ID()},
	}).Payload()
	if err != nil {
		t.Fatal(err)
	}
	root, err := dsse.Sign(dsse.PayloadType, payload, mint)
	if err != nil {
		t.Fatal(err)
	}
	text, err := Delegate(root, Delegation{NotBefore: day, NotAfter: day.AddDate(0, 1, 0), Restrict: restrict(t, []string{"team/"}, nil, nil), Delegate: []dsse.KeyID{host.Public().ID()}}, lead)
	if err != nil {
		t.Fatal(err)
	}
	v := view(t, Trust{Mints: []Signer{{"alice", mint.Public()}}, Revokers: []Signer{{"root", host.Public()}}}, text)
	c := v.All()[0].Capability()
	chain, err := UnverifiedChain(text)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	for _, link := range chain {
		payload, err := link.Statement.Payload()
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, string(payload), link.ID.String())
	}
	for _, key := range []dsse.PrivateKey{mint, lead, host} {
		want = append(want, string(key.Public().ID()))
	}
	for _, line := range append(want, c.Result().String(), c.Claim().String()) {
		if !strings.Contains(string(doc), line) {
			t.Errorf("docs/capability.md lacks\n%s", line)
		}
	}
	// The other examples are of the same format.
	examples := regexp.MustCompile("(?ms)^```json\n(.*?)^```$").FindAllSubmatch(doc, -1)
	if len(examples) < 2 {
		t.Fatalf("%d examples, want a capability and a revocation", len(examples))
	}
	undocumented := map[string]bool{
		"subject": true, "name": true, "outputs": true, "claim": true, "model": true, "version": true, "sequence": true, "sba": true,
		"environment": true, "parent": true, "publisher": true, "minter": true, "platform": true, "bases": true,
		"notBefore": true, "notAfter": true, "restrict": true, "delegate": true, "level": true,
		"paths": true, "uids": true, "mounts": true,
	}
	for _, member := range regexp.MustCompile(`(?m)^\| ([^|]+) \|`).FindAllStringSubmatch(string(doc), -1) {
		for _, name := range regexp.MustCompile("`([a-zA-Z]+)`").FindAllStringSubmatch(member[1], -1) {
			delete(undocumented, name[1])
		}
	}
	for name := range undocumented {
		t.Errorf("docs/capability.md has no row for %s", name)
	}
}
