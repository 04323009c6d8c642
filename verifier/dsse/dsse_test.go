package dsse_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	oracle "github.com/secure-systems-lab/go-securesystemslib/dsse"

	"github.com/openclaw/clawfs/verifier/dsse"
)

const payload = `{"_type":"https://in-toto.io/Statement/v1"}`

func newKey(t testing.TB, algorithm string) dsse.PrivateKey {
	t.Helper()
	k, err := dsse.GenerateKey(algorithm)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, keys ...dsse.PrivateKey) []byte {
	t.Helper()
	data, err := dsse.Sign(dsse.PayloadType, []byte(payload), keys...)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func publics(keys ...dsse.PrivateKey) []dsse.PublicKey {
	var ps []dsse.PublicKey
	for _, k := range keys {
		ps = append(ps, k.Public())
	}
	return ps
}

// signatureOf returns the base64 text of the first signature of an envelope.
func signatureOf(t testing.TB, envelope []byte) string {
	t.Helper()
	var e oracle.Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		t.Fatal(err)
	}
	return e.Signatures[0].Sig
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestSignVerify(t *testing.T) {
	for _, algorithm := range []string{dsse.Ed25519, dsse.ECDSAP256} {
		a, b, c := newKey(t, algorithm), newKey(t, dsse.Ed25519), newKey(t, dsse.ECDSAP256)
		e, err := dsse.Parse(sign(t, a, b))
		if err != nil {
			t.Fatal(err)
		}
		got, signers, err := e.Verify(dsse.PayloadType, publics(c, b, a), 2)
		if err != nil || string(got) != payload || !slices.Equal(signers, publics(b, a)) {
			t.Errorf("%s: Verify = %q, %v, %v, want the payload and both signers in the order asked", algorithm, got, signers, err)
		}
		got[0] = 'X'
		if again, _, err := e.Verify(dsse.PayloadType, publics(a), 1); err != nil || string(again) != payload {
			t.Errorf("%s: after a caller wrote into its payload Verify = %q, %v", algorithm, again, err)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	a, b := newKey(t, dsse.Ed25519), newKey(t, dsse.ECDSAP256)
	good := string(sign(t, a))
	sig := signatureOf(t, []byte(good))
	twice := strings.Replace(good, `[{"sig":"`+sig+`"}]`, `[{"sig":"`+sig+`"},{"sig":"`+sig+`"}]`, 1)
	if twice == good {
		t.Fatal("the envelope does not look as this test expects")
	}
	raw, err := a.SignRaw([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name      string
		envelope  string
		typ       string
		keys      []dsse.PublicKey
		threshold int
		want      string
	}{
		{"another key", good, dsse.PayloadType, publics(b), 1, "not signed by the required keys: expected 1 of 1 keys, got 0"},
		{"no keys", good, dsse.PayloadType, nil, 1, "no keys to verify with"},
		{"zero key", good, dsse.PayloadType, append(publics(a), dsse.PublicKey{}), 1, "one of the keys is empty"},
		{"threshold 0", good, dsse.PayloadType, publics(a), 0, "threshold is 0"},
		{"threshold -1", good, dsse.PayloadType, publics(a), -1, "threshold is -1"},
		{"threshold 2, one signer", good, dsse.PayloadType, publics(a, b), 2, "expected 2 of 2 keys, got 1"},
		{"threshold 2, one signature twice", twice, dsse.PayloadType, publics(a, b), 2, "expected 2 of 2 keys, got 1"},
		{"threshold 2, one key twice", twice, dsse.PayloadType, publics(a, a), 2, "expected 2 of 2 keys, got 1"},
		{"another payload type asked", good, "text/plain", publics(a), 1, `expected payloadType "text/plain"`},
		{"empty payload type asked", good, "", publics(a), 1, `expected payloadType ""`},
		{"another payload type sent", strings.Replace(good, "vnd.in-toto", "vnd.other", 1), dsse.PayloadType, publics(a), 1, `got "application/vnd.other+json"`},
		{"signature over the raw payload", strings.Replace(good, sig, base64.StdEncoding.EncodeToString(raw), 1), dsse.PayloadType, publics(a), 1, "got 0"},
		{"undecodable signature alone", strings.Replace(good, sig, "!"+sig[1:], 1), dsse.PayloadType, publics(a), 1, "got 0 (1 of 1 signatures are not base64)"},
		{"line break in the signature", strings.Replace(good, sig, sig[:4]+`\n`+sig[4:], 1), dsse.PayloadType, publics(a), 1, "(1 of 1 signatures are not base64)"},
		{"signature without padding", strings.Replace(good, sig, strings.TrimRight(sig, "="), 1), dsse.PayloadType, publics(a), 1, "(1 of 1 signatures are not base64)"},
		{"another payload", strings.Replace(good, b64(payload), b64(payload+" "), 1), dsse.PayloadType, publics(a), 1, "got 0"},
	}
	for _, tt := range tests {
		e, err := dsse.Parse([]byte(tt.envelope))
		if err != nil {
			t.Errorf("%s: Parse: %v, want a refusal by Verify", tt.name, err)
			continue
		}
		got, signers, err := e.Verify(tt.typ, tt.keys, tt.threshold)
		if err == nil || !strings.Contains(err.Error(), tt.want) || got != nil || signers != nil {
			t.Errorf("%s: Verify = %q, %v, %v, want nothing and an error with %q", tt.name, got, signers, err, tt.want)
		}
	}
	for _, typ := range []string{dsse.PayloadType, ""} {
		var form *dsse.FormatError
		if _, _, err := (dsse.Envelope{}).Verify(typ, publics(a), 1); !errors.As(err, &form) {
			t.Errorf("the zero Envelope as %q: %v, want a *FormatError", typ, err)
		}
	}
}

func TestUndecodableSignatureDoesNotSinkTheEnvelope(t *testing.T) {
	a := newKey(t, dsse.Ed25519)
	good := string(sign(t, a))
	mixed := strings.Replace(good, `"signatures":[`, `"signatures":[{"keyid":"x","sig":"%%%"},`, 1)
	e, err := dsse.Parse([]byte(mixed))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.Verify(dsse.PayloadType, publics(a), 1); err != nil {
		t.Errorf("Verify with a junk signature beside the good one: %v", err)
	}
}

func TestBase64Alphabets(t *testing.T) {
	a := newKey(t, dsse.Ed25519)
	// "~~~???" contains both characters in which the alphabets differ.
	const body = `"~~~???>>>"`
	data, err := dsse.Sign(dsse.PayloadType, []byte(body), a)
	if err != nil {
		t.Fatal(err)
	}
	var e oracle.Envelope
	if err := json.Unmarshal(data, &e); err != nil {
		t.Fatal(err)
	}
	urlSafe := strings.NewReplacer("+", "-", "/", "_")
	if urlSafe.Replace(e.Payload) == e.Payload {
		t.Fatalf("payload %q is the same in both alphabets", e.Payload)
	}
	for _, p := range []string{e.Payload, urlSafe.Replace(e.Payload)} {
		text := fmt.Sprintf(`{"payloadType":%q,"payload":%q,"signatures":[{"sig":%q}]}`, dsse.PayloadType, p, urlSafe.Replace(e.Signatures[0].Sig))
		env, err := dsse.Parse([]byte(text))
		if err != nil {
			t.Errorf("Parse(%s): %v", text, err)
			continue
		}
		if got, _, err := env.Verify(dsse.PayloadType, publics(a), 1); err != nil || string(got) != body {
			t.Errorf("Verify(%s) = %q, %v", text, got, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := string(sign(t, newKey(t, dsse.Ed25519)))
	sub := func(old, new string) string {
		s := strings.Replace(good, old, new, 1)
		if s == good {
			t.Fatalf("%q is not in the envelope", old)
		}
		return s
	}
	sig := `{"sig":"` + signatureOf(t, []byte(good)) + `"}`
	tests := []struct{ name, data, want string }{
		{"empty", "", "reading JSON"},
		{"null", "null", "payloadType is missing"},
		{"a list", "[]", "reading JSON"},
		{"cut short", good[:len(good)-1], "reading JSON"},
		{"trailing data", good + "{}", "reading JSON"},
		{"two envelopes", good + "\n" + good, "reading JSON"},
		{"unknown field", sub(`{"payloadType"`, `{"extra":1,"payloadType"`), `reading JSON: at "/extra": unknown`},
		{"unknown field of a signature", sub(`{"sig"`, `{"alg":"none","sig"`), "alg"},
		{"case variant", sub(`"payload":`, `"Payload":`), "Payload"},
		{"case variant beside", sub(`"payload":`, `"PAYLOAD":"e30=","payload":`), "PAYLOAD"},
		{"duplicate payload", sub(`"payload":`, `"payload":"e30=","payload":`), "duplicate"},
		{"duplicate signatures", sub(`"signatures":`, `"signatures":[],"signatures":`), "duplicate"},
		{"duplicate sig", sub(`{"sig":`, `{"sig":"AAAA","sig":`), "duplicate"},
		{"byte order mark", "\ufeff" + good, "reading JSON"},
		{"invalid UTF-8", sub("application", "appl\xffcation"), "reading JSON"},
		{"no payloadType", `{"payload":"e30=","signatures":[` + sig + `]}`, "payloadType is missing"},
		{"no payload", `{"payloadType":"t","signatures":[` + sig + `]}`, "payload is missing"},
		{"null payload", `{"payloadType":"t","payload":null,"signatures":[` + sig + `]}`, "payload is missing"},
		{"number as payload", `{"payloadType":"t","payload":7,"signatures":[` + sig + `]}`, "reading JSON"},
		{"stripped signatures", `{"payloadType":"t","payload":"e30="}`, "signatures is missing or empty"},
		{"empty signatures", `{"payloadType":"t","payload":"e30=","signatures":[]}`, "signatures is missing or empty"},
		{"null signatures", `{"payloadType":"t","payload":"e30=","signatures":null}`, "signatures is not a list"},
		{"signatures is an object", `{"payloadType":"t","payload":"e30=","signatures":{}}`, "signatures is not a list"},
		{"null signature", `{"payloadType":"t","payload":"e30=","signatures":[null]}`, "signature 1 of 1 has no sig"},
		{"signature without sig", `{"payloadType":"t","payload":"e30=","signatures":[` + sig + `,{"keyid":"a"}]}`, "signature 2 of 2 has no sig"},
		{"17 signatures", `{"payloadType":"t","payload":"e30=","signatures":[` + strings.Repeat(sig+",", 16) + sig + `]}`, "more than 16 signatures"},
		{"payload with a line break", sub(b64(payload)[:8], b64(payload)[:8]+`\n`), "line break"},
		{"payload not base64", sub(b64(payload)[:8], "*"+b64(payload)[1:8]), "payload: illegal base64"},
		{"payload without padding", `{"payloadType":"t","payload":"e30","signatures":[` + sig + `]}`, "payload: illegal base64"},
		{"payload with trailing bits", `{"payloadType":"t","payload":"e31=","signatures":[` + sig + `]}`, "payload: illegal base64"},
		{"payload in two alphabets", `{"payloadType":"t","payload":"+-AA","signatures":[` + sig + `]}`, "payload: illegal base64"},
		{"payload with text after padding", `{"payloadType":"t","payload":"e30=e30=","signatures":[` + sig + `]}`, "payload: illegal base64"},
		{"100,000 levels", `{"payload":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`, "reading JSON"},
		{"100,000 levels unclosed", strings.Repeat(`{"signatures":[`, 50_000), "reading JSON"},
		{"too large", good + strings.Repeat(" ", dsse.MaxEnvelope), "expected at most 4194304 bytes"},
	}
	for _, tt := range tests {
		_, err := dsse.Parse([]byte(tt.data))
		var format *dsse.FormatError
		if !errors.As(err, &format) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Parse = %v, want a *FormatError with %q", tt.name, err, tt.want)
		}
	}
	if _, err := dsse.Parse([]byte(" " + good + "\n")); err != nil {
		t.Errorf("Parse with space around: %v", err)
	}
}

func TestParseMillionSignatures(t *testing.T) {
	data := []byte(`{"signatures":[` + strings.Repeat(`{},`, (dsse.MaxEnvelope-64)/3) + `{}]}`)
	got := testing.AllocsPerRun(1, func() {
		if _, err := dsse.Parse(data); err == nil {
			t.Error("a million signatures parsed")
		}
	})
	if got > 1000 {
		t.Errorf("Parse made %.0f allocations for %d bytes of empty signatures, want it to stop after %d", got, len(data), dsse.MaxSignatures)
	}
}

func TestSignRefuses(t *testing.T) {
	a := newKey(t, dsse.Ed25519)
	many := make([]dsse.PrivateKey, dsse.MaxSignatures+1)
	for i := range many {
		many[i] = newKey(t, dsse.Ed25519)
	}
	tests := []struct {
		name, typ string
		payload   []byte
		keys      []dsse.PrivateKey
	}{
		{"no key", dsse.PayloadType, []byte(payload), nil},
		{"zero key", dsse.PayloadType, []byte(payload), []dsse.PrivateKey{{}}},
		{"one key twice", dsse.PayloadType, []byte(payload), []dsse.PrivateKey{a, a}},
		{"17 keys", dsse.PayloadType, []byte(payload), many},
		{"no payload", dsse.PayloadType, nil, []dsse.PrivateKey{a}},
		{"no type", "", []byte(payload), []dsse.PrivateKey{a}},
		{"too large", dsse.PayloadType, make([]byte, dsse.MaxEnvelope), []dsse.PrivateKey{a}},
	}
	for _, tt := range tests {
		if got, err := dsse.Sign(tt.typ, tt.payload, tt.keys...); err == nil {
			t.Errorf("%s: Sign = %d bytes, want an error", tt.name, len(got))
		}
	}
}

// TestOneBit shows that no bit of an envelope that Sign wrote is free.
func TestOneBit(t *testing.T) {
	for _, algorithm := range []string{dsse.Ed25519, dsse.ECDSAP256} {
		k := newKey(t, algorithm)
		good := sign(t, k)
		for i := range len(good) * 8 {
			bad := bytes.Clone(good)
			bad[i/8] ^= 1 << (i % 8)
			e, err := dsse.Parse(bad)
			if err != nil {
				continue
			}
			if _, _, err := e.Verify(dsse.PayloadType, publics(k), 1); err == nil {
				t.Errorf("%s: bit %d of byte %d changed and verified: %s", algorithm, i%8, i/8, bad)
			}
		}
	}
}

// oracleKey is one key in the shape that go-securesystemslib wants, using the
// standard library only.
type oracleKey struct {
	private crypto.Signer
	public  crypto.PublicKey
}

func (k oracleKey) KeyID() (string, error)   { return "a hint", nil }
func (k oracleKey) Public() crypto.PublicKey { return k.public }

func (k oracleKey) Sign(_ context.Context, data []byte) ([]byte, error) {
	if _, ok := k.public.(ed25519.PublicKey); ok {
		return k.private.Sign(nil, data, crypto.Hash(0))
	}
	hash := sha256.Sum256(data)
	return k.private.Sign(nil, hash[:], crypto.SHA256)
}

func (k oracleKey) Verify(_ context.Context, data, sig []byte) error {
	hash := sha256.Sum256(data)
	switch p := k.public.(type) {
	case ed25519.PublicKey:
		if ed25519.Verify(p, data, sig) {
			return nil
		}
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(p, hash[:], sig) {
			return nil
		}
	}
	return errors.New("the oracle says no")
}

// TestOracle compares with go-securesystemslib, which verifies ours and signs
// what we verify. It is an oracle for PAE and signatures, not for strictness.
func TestOracle(t *testing.T) {
	for _, body := range []string{"", "x", payload, strings.Repeat("é\n", 1000)} {
		for _, typ := range []string{"", dsse.PayloadType, "é"} {
			if got, want := dsse.PAE(typ, []byte(body)), oracle.PAE(typ, []byte(body)); !bytes.Equal(got, want) {
				t.Errorf("PAE(%q, %q) = %q, want %q", typ, body, got, want)
			}
		}
	}
	for _, algorithm := range []string{dsse.Ed25519, dsse.ECDSAP256} {
		k := newKey(t, algorithm)
		block, err := k.PEM()
		if err != nil {
			t.Fatal(err)
		}
		private := pkcs8(t, block)
		public, err := x509.ParsePKIXPublicKey(k.Public().SPKI())
		if err != nil {
			t.Fatal(err)
		}
		ok := oracleKey{private, public}
		verifier, err := oracle.NewEnvelopeVerifier(ok)
		if err != nil {
			t.Fatal(err)
		}
		var ours oracle.Envelope
		if err := json.Unmarshal(sign(t, k), &ours); err != nil {
			t.Fatal(err)
		}
		if _, err := verifier.Verify(t.Context(), &ours); err != nil {
			t.Errorf("%s: the oracle refuses our envelope: %v", algorithm, err)
		}
		signer, err := oracle.NewEnvelopeSigner(ok)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := signer.SignPayload(t.Context(), dsse.PayloadType, []byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(theirs)
		if err != nil {
			t.Fatal(err)
		}
		e, err := dsse.Parse(data)
		if err != nil {
			t.Fatalf("%s: Parse of the oracle's envelope: %v", algorithm, err)
		}
		if hints := e.UnverifiedKeyIDs(); !slices.Equal(hints, []string{"a hint"}) {
			t.Errorf("%s: UnverifiedKeyIDs = %q, want the oracle's hint", algorithm, hints)
		}
		if _, _, err := e.Verify(dsse.PayloadType, publics(k), 1); err != nil {
			t.Errorf("%s: we refuse the oracle's envelope: %v", algorithm, err)
		}
	}
}

func FuzzEnvelope(f *testing.F) {
	k := newKey(f, dsse.Ed25519)
	good := sign(f, k)
	f.Add(good)
	f.Add([]byte(`{"payloadType":"t","payload":"e30=","signatures":[{"keyid":"a","sig":"AA=="},{"sig":"-_-_"}]}`))
	f.Add([]byte(`{"payload":"e30=","payload":"e30="}`))
	f.Add([]byte(strings.Repeat(`{"signatures":[`, 64)))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := dsse.Parse(data)
		if err != nil {
			return
		}
		// The payload's bytes are one with their text: printed again in either
		// alphabet they are what was parsed.
		var w struct{ Payload, PayloadType string }
		if err := json.Unmarshal(data, &w); err != nil {
			t.Fatalf("Parse accepted %q, encoding/json does not: %v", data, err)
		}
		p := e.UnverifiedPayload()
		if w.Payload != base64.StdEncoding.EncodeToString(p) && w.Payload != base64.URLEncoding.EncodeToString(p) {
			t.Errorf("payload %q parsed as %q, which does not print back", w.Payload, p)
		}
		got, _, err := e.Verify(dsse.PayloadType, publics(k), 1)
		if err == nil && string(got) != payload {
			t.Errorf("%q verified as %q, which the key never signed", data, got)
		}
	})
}

// Merge keeps what was signed and every signature once; it takes no payload that
// differs.
func TestMerge(t *testing.T) {
	a, b := newKey(t, dsse.Ed25519), newKey(t, dsse.ECDSAP256)
	sign := func(typ, payload string, keys ...dsse.PrivateKey) []byte {
		t.Helper()
		data, err := dsse.Sign(typ, []byte(payload), keys...)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	one, two := sign("t", "text", a), sign("t", "text", b)
	junk := bytes.Replace(one, []byte(`"signatures":[`), []byte(`"signatures":[{"keyid":"x","sig":"!"},`), 1)
	got, err := dsse.Merge(one, junk, two, one)
	if err != nil {
		t.Fatal(err)
	}
	e, err := dsse.Parse(got)
	if err != nil || len(e.UnverifiedKeyIDs()) != 2 {
		t.Fatalf("%s has %d signatures, %v, want 2", got, len(e.UnverifiedKeyIDs()), err)
	}
	if text, signers, err := e.Verify("t", []dsse.PublicKey{a.Public(), b.Public()}, 2); err != nil || string(text) != "text" || len(signers) != 2 {
		t.Errorf("Verify = %q, %v, %v, want text by both", text, signers, err)
	}
	many := [][]byte{}
	for range dsse.MaxSignatures + 1 {
		many = append(many, sign("t", "text", newKey(t, dsse.Ed25519)))
	}
	// Each of two is as large as may be; together they are larger.
	text := strings.Repeat("x", (dsse.MaxEnvelope-200)/4*3)
	large := [][]byte{sign("t", text, a), sign("t", text, newKey(t, dsse.Ed25519))}
	for _, e := range large {
		if _, err := dsse.Parse(e); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := dsse.Merge(large[0]); err != nil || len(got) > dsse.MaxEnvelope {
		t.Errorf("one large envelope: %d bytes, %v", len(got), err)
	}
	for what, list := range map[string][][]byte{
		"too large together":  large,
		"nothing":             nil,
		"another payload":     {one, sign("t", "Text", b)},
		"another type":        {one, sign("u", "text", b)},
		"no envelope":         {one, []byte("{}")},
		"too many signatures": many,
		"only junk":           {bytes.Replace(one, []byte(`"sig":"`), []byte(`"sig":"!`), 1)},
	} {
		if got, err := dsse.Merge(list...); err == nil {
			t.Errorf("%s: merged as %s", what, got)
		}
	}
}
