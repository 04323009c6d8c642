package capstore

import (
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// world is one operator's mint and revoker, a publisher, and a stranger.
type world struct {
	mint, revoker, publisher, stranger dsse.PrivateKey
}

func newWorld(t testing.TB) world {
	t.Helper()
	key := func(algorithm string) dsse.PrivateKey {
		k, err := dsse.GenerateKey(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	return world{key(dsse.Ed25519), key(dsse.ECDSAP256), key(dsse.Ed25519), key(dsse.Ed25519)}
}

func (w world) trust() Trust {
	return Trust{
		Mints:    []Signer{{"local", w.mint.Public()}},
		Revokers: []Signer{{"local", w.revoker.Public()}},
	}
}

func (w world) view(t testing.TB) *View {
	t.Helper()
	v, err := NewView(w.trust())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// admit gives a view a capability for "a.bin" with something changed before the mint
// signs it.
func (w world) admit(t testing.TB, v *View, change func(*Predicate)) Capability {
	t.Helper()
	st := w.statement(t, "", "a.bin")
	change(&st.Predicate)
	c, err := v.Admit(sign(t, payloadOf(t, st), w.mint))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// statement is a valid capability over files whose contents are their names and tag.
func (w world) statement(t testing.TB, tag string, names ...string) Statement {
	t.Helper()
	var subjects []Subject
	for _, n := range names {
		content := []byte(n + tag)
		v, err := hashpipe.ParseVerityDigest(hashpipe.SumBytes(append(content, "verity"...)).String())
		if err != nil {
			t.Fatal(err)
		}
		subjects = append(subjects, Subject{Name: n, Digest: digestOf(string(content)), Verity: v, Size: int64(len(content))})
	}
	return NewStatement(subjects, Predicate{
		Model: "acme/langid", Version: "1.2.0", Sequence: 12,
		SBA:         Reference{DigestSet{digestOf("ledger" + tag)}},
		Environment: Reference{DigestSet{digestOf("image" + tag)}},
		Publisher:   Publisher{w.publisher.Public().ID(), w.publisher.Public()},
		Minter:      Minter{KeyID: w.mint.Public().ID()},
		Platform:    Platform{OS: "linux", Arch: "amd64", CPUFeatures: []string{"avx2"}, Accelerator: "none"},
		NotBefore:   time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC),
		NotAfter:    time.Date(2027, 2, 23, 9, 0, 0, 0, time.UTC),
	})
}

func digestOf(s string) hashpipe.Digest { return hashpipe.SumBytes([]byte(s)).Claim() }

// sign signs any bytes, so that tests can sign what Payload refuses to print.
func sign(t testing.TB, payload []byte, keys ...dsse.PrivateKey) []byte {
	t.Helper()
	e, err := dsse.Sign(dsse.PayloadType, payload, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func payloadOf(t testing.TB, st Statement) []byte {
	t.Helper()
	p, err := st.Payload()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// capability returns the signed envelope of a valid capability.
func (w world) capability(t testing.TB, tag string, names ...string) []byte {
	t.Helper()
	return sign(t, payloadOf(t, w.statement(t, tag, names...)), w.mint)
}

func (w world) revocation(t testing.TB, kind Kind, target string) []byte {
	t.Helper()
	st, err := NewRevocation(kind, target, "training data withdrawn", time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	e, err := SignRevocation(st, w.revoker)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// wantError fails unless err is one and its text has all parts.
func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Fatalf("error is %q, want one with %q", err, p)
		}
	}
}

func TestTrustIsRequired(t *testing.T) {
	w := newWorld(t)
	mint, revoker := Signer{"local", w.mint.Public()}, Signer{"local", w.revoker.Public()}
	for name, tc := range map[string]struct {
		trust Trust
		want  string
	}{
		"zero":         {Trust{}, "no mint key"},
		"no mint":      {Trust{Revokers: []Signer{revoker}}, "no mint key"},
		"no revoker":   {Trust{Mints: []Signer{mint}}, "no revoker key"},
		"zero key":     {Trust{Mints: []Signer{{Operator: "local"}}, Revokers: []Signer{revoker}}, "has no key"},
		"no operator":  {Trust{Mints: []Signer{{Key: w.mint.Public()}}, Revokers: []Signer{revoker}}, "operator is missing"},
		"pinned twice": {Trust{Mints: []Signer{mint, {"other", w.mint.Public()}}, Revokers: []Signer{revoker}}, "pinned twice"},
		"escape":       {Trust{Mints: []Signer{{"a\x1b[2J", w.mint.Public()}}, Revokers: []Signer{revoker}}, "cannot be printed"},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := NewView(tc.trust)
			wantError(t, err, tc.want)
			if v != nil {
				t.Error("a view came with the error")
			}
			_, err = Open(t.TempDir(), t.TempDir(), tc.trust)
			wantError(t, err, tc.want)
		})
	}
}
