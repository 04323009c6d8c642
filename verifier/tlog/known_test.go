package tlog_test

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// The files of testdata were written by known.py, which has its own trees,
// signatures and texts.
func TestKnownAnswers(t *testing.T) {
	key, err := dsse.ParsePublicKey(known(t, "publisher.pem"))
	if err != nil {
		t.Fatal(err)
	}
	payload := known(t, "payload")
	leaf, err := tlog.LeafOf(tlog.KindSBA, payload, key, "acme/langid")
	if err != nil || string(leaf.Encode()) != string(known(t, "leaf")) {
		t.Errorf("LeafOf = %s, %v, want %s", leaf.Encode(), err, known(t, "leaf"))
	}
	h := leaf.Hash()
	if got, want := hex.EncodeToString(h[:])+"\n", string(known(t, "leaf.hash")); got != want {
		t.Errorf("Hash = %s, want %s", got, want)
	}
	leaf9, err := tlog.LeafOf(tlog.KindRevocation, payload, key, "")
	if err != nil || string(leaf9.Encode()) != string(known(t, "leaf9")) {
		t.Errorf("LeafOf = %s, %v, want %s", leaf9.Encode(), err, known(t, "leaf9"))
	}

	policy, err := tlog.ParsePolicy(known(t, "policy"))
	if err != nil || string(policy.Encode()) != string(known(t, "policy")) {
		t.Fatalf("ParsePolicy = %s, %v", policy.Encode(), err)
	}
	old, err := tlog.Verify(policy, known(t, "11.tlog-proof"), leaf)
	if err != nil || old.Size() != 11 || string(old.Note()) != string(known(t, "11.checkpoint")) {
		t.Errorf("Verify = %s, %v", old.Note(), err)
	}
	if p, err := tlog.ParseProof(known(t, "11.tlog-proof")); err != nil || p.Index != 0 || len(p.Path) != 4 {
		t.Errorf("ParseProof = %v, %v", p, err)
	}
	newer, err := tlog.Verify(policy, known(t, "13.tlog-proof"), leaf9)
	if err != nil || newer.Size() != 13 {
		t.Errorf("Verify = %s, %v", newer.Note(), err)
	}
	proof, err := tlog.ParseConsistency(known(t, "11to13.consistency"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := tlog.NewMemory().Advance(old, nil)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = m.Advance(newer, proof); err != nil {
		t.Fatal(err)
	}
	if size, root, ok := m.Newest(newer.Origin()); !ok || size != 13 || root != newer.Root() {
		t.Errorf("Newest = %d, %v, %v", size, root, ok)
	}
	fork, err := policy.Checkpoint(known(t, "13fork.checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	m, err = m.Advance(fork, nil)
	refused(t, "fork", err, tlog.ReasonFork, "one tree of size 13")
	if string(m.Encode()) != string(known(t, "memory")) {
		t.Errorf("Encode = %s, want %s", m.Encode(), known(t, "memory"))
	}
}

// The example of C2SP signed-note.
func TestKnownVerifierKey(t *testing.T) {
	const text = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
	k, err := tlog.ParseVerifierKey(text)
	if err != nil || k.String() != text || k.Name() != "example.com/foo" || k.KeyHash() != 0x530d903a {
		t.Fatalf("ParseVerifierKey(%q) = %v, %v", text, k, err)
	}
	sig := unbase64(t, "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=")[4:]
	if !k.Verify([]byte("This is an example message.\n"), sig) {
		t.Error("the example's signature does not verify")
	}
	if k.Verify([]byte("This is an example message."), sig) || k.Verify([]byte("This is an example message.\n"), slices.Repeat(sig, 2)) {
		t.Error("another text or signature verifies")
	}
}

func TestParseVerifierKeyRefuses(t *testing.T) {
	w := newWorld(t)
	good := w.w1.vkey()
	short := w.w1
	long := strings.Repeat("a", 255)
	tests := []struct{ name, text, want string }{
		{"empty", "", "expected <name>+<key id>+<base64>"},
		{"a name only", "witness1.example", "expected <name>+<key id>+<base64>"},
		{"no key", "witness1.example+1a61c7f4", "expected <name>+<key id>+<base64>"},
		{"empty key", "witness1.example+1a61c7f4+", "expected type 0x01"},
		{"no name", strings.TrimPrefix(good, "witness1.example"), "name of the key: it is empty"},
		{"space in the name", newSigner("a b", typeWitness).vkey(), "expected no space"},
		{"no-break space in the name", newSigner("a\u00a0b", typeWitness).vkey(), "expected no space"},
		{"newline in the name", newSigner("a\nb", typeWitness).vkey(), "expected no space, control character"},
		{"delete in the name", newSigner("a\x7fb", typeWitness).vkey(), "expected no space, control character"},
		{"name that is not UTF-8", newSigner("a\xffb", typeWitness).vkey(), "not UTF-8"},
		{"name of 256 bytes", newSigner(long+"a", typeWitness).vkey(), "at most 255 bytes"},
		{"id of another key", strings.Replace(good, good[17:25], "00000000", 1), "expected key id " + good[17:25]},
		{"id in capitals", strings.Replace(good, good[17:25], strings.ToUpper(good[17:25]), 1), "expected key id"},
		{"id of seven digits", strings.Replace(good, good[17:25], good[18:25], 1), "expected key id"},
		{"id of the other type", newSigner("witness1.example", typeLog).vkey()[:26] + good[26:], "expected key id"},
		{"key without padding", newSigner("x", typeLog).vkey() + "=", "expected padded standard base64"},
		{"line break in the key", good[:30] + "\n" + good[30:], "expected padded standard base64"},
		{"url-safe key", good[:26] + strings.Repeat("_", 44), "expected padded standard base64"},
		{"type 0x02, ECDSA", typed(short, 2), "expected type 0x01 (a log) or 0x04 (a witness), got 0x02"},
		{"type 0x06, ML-DSA-44", typed(short, 6), "use the party's Ed25519 key"},
		{"type 0xff", typed(short, 0xff), "got 0xff"},
		{"key of 31 bytes", "x+00000000+BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "expected 32 bytes"},
		{"key of 33 bytes", "x+00000000+BAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA==", "expected 32 bytes"},
		{"key of small order", "x+00000000+BAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "small order"},
		{"a signing key", "PRIVATE+KEY+x+00000000+AQAA", "expected padded standard base64"},
	}
	for _, tt := range tests {
		if k, err := tlog.ParseVerifierKey(tt.text); err == nil || !strings.Contains(err.Error(), tt.want) || !k.IsZero() {
			t.Errorf("%s: ParseVerifierKey(%q) = %v, %v, want an error with %q", tt.name, tt.text, k, err, tt.want)
		}
	}
	if k, err := tlog.ParseVerifierKey(newSigner(long, typeLog).vkey()); err != nil || k.Name() != long {
		t.Errorf("ParseVerifierKey with a name of 255 bytes: %v", err)
	}
}

func typed(s signer, kind byte) string { s.kind = kind; return s.vkey() }

func TestNewKeys(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		s    signer
		make func(string, dsse.PublicKey) (tlog.VerifierKey, error)
	}{{w.log, tlog.LogKey}, {w.w1, tlog.WitnessKey}} {
		k, err := tt.make(tt.s.name, tt.s.public(t))
		if err != nil || k.String() != tt.s.vkey() {
			t.Errorf("key of %s = %v, %v, want %s", tt.s.name, k, err, tt.s.vkey())
		}
		if back, err := tlog.ParseVerifierKey(k.String()); err != nil || back != k {
			t.Errorf("ParseVerifierKey(%s) = %v, %v", k, back, err)
		}
	}
	ecdsa, err := dsse.GenerateKey(dsse.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		key  dsse.PublicKey
		want string
	}{
		{"a", dsse.PublicKey{}, `expected algorithm ed25519, got ""`},
		{"a", ecdsa.Public(), `expected algorithm ed25519, got "ecdsa-p256"`},
		{"", w.log.public(t), "it is empty"},
		{"a+b", w.log.public(t), "'+'"},
	} {
		if k, err := tlog.LogKey(tt.name, tt.key); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("LogKey(%q) = %v, %v, want an error with %q", tt.name, k, err, tt.want)
		}
	}
}
