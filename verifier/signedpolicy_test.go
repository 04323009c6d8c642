package verifier_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// fleet makes revisions of one policy with the root's keys a, b, c.
type fleet struct {
	t       testing.TB
	a, b, c dsse.PrivateKey
	old     []dsse.PrivateKey // a, b, c
	base    *verifier.Policy
}

func newFleet(t testing.TB) fleet {
	f := fleet{t: t, a: newKey(t, dsse.Ed25519), b: newKey(t, dsse.ECDSAP256), c: newKey(t, dsse.Ed25519), base: newParty(t, dsse.Ed25519).policy}
	f.old = []dsse.PrivateKey{f.a, f.b, f.c}
	return f
}

// policy is a revision that ends a month after now, with these root keys.
func (f fleet) policy(revision, threshold int64, keys ...dsse.PrivateKey) *verifier.Policy {
	f.t.Helper()
	p := *f.base
	p.Revision, p.Expires, p.Root = revision, verifier.At(now.AddDate(0, 1, 0)), &verifier.Root{Threshold: threshold}
	for _, k := range keys {
		p.Root.Keys = append(p.Root.Keys, k.Public())
	}
	return &p
}

func (f fleet) sign(p *verifier.Policy, keys ...dsse.PrivateKey) []byte {
	f.t.Helper()
	envelope, err := verifier.SignPolicy(f.t.Context(), p, signersOf(keys)...)
	if err != nil {
		f.t.Fatal(err)
	}
	return envelope
}

func signersOf(keys []dsse.PrivateKey) []dsse.Signer {
	var list []dsse.Signer
	for _, k := range keys {
		list = append(list, k)
	}
	return list
}

// twice carries two different signatures of one ECDSA key.
func (f fleet) twice(p *verifier.Policy, key dsse.PrivateKey) []byte {
	f.t.Helper()
	envelope, err := dsse.Merge(f.sign(p, key), f.sign(p, key))
	if err != nil {
		f.t.Fatal(err)
	}
	e, err := dsse.Parse(envelope)
	if err != nil || len(e.UnverifiedKeyIDs()) != 2 {
		f.t.Fatalf("%d signatures, %v, want 2", len(e.UnverifiedKeyIDs()), err)
	}
	return envelope
}

// swapped has the payload of one envelope and the signatures of another.
func (f fleet) swapped(payload, signatures []byte) []byte {
	f.t.Helper()
	part := func(data []byte, name string) string {
		_, after, ok := strings.Cut(string(data), `"`+name+`":"`)
		value, _, closed := strings.Cut(after, `"`)
		if !ok || !closed {
			f.t.Fatalf("%s has no %s", data, name)
		}
		return value
	}
	out := strings.Replace(string(signatures), part(signatures, "payload"), part(payload, "payload"), 1)
	if out == string(signatures) {
		f.t.Fatal("both payloads are the same")
	}
	return []byte(out)
}

// TestNextPolicy is the rule for roots: the current root is 2 of a, b, c, at
// revision 4.
func TestNextPolicy(t *testing.T) {
	f := newFleet(t)
	x, y := newKey(t, dsse.Ed25519), newKey(t, dsse.Ed25519)
	current := f.policy(4, 2, f.old...)
	next := f.policy(5, 2, f.old...)
	rotated := f.policy(5, 2, f.b, x, y)
	lowered := f.policy(5, 1, f.old...)
	expired := f.policy(5, 2, f.old...)
	expired.Expires = verifier.At(now)
	unrooted := *f.base
	unrootedText, err := unrooted.Encode()
	if err != nil {
		t.Fatal(err)
	}
	seal := func(payloadType string, text []byte, keys ...dsse.PrivateKey) []byte {
		t.Helper()
		e, err := dsse.Sign(payloadType, text, keys...)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	nextText, err := next.Encode()
	if err != nil {
		t.Fatal(err)
	}
	unknown := bytes.Replace(nextText, []byte(`"version"`), []byte(`"insecure": true, "version"`), 1)

	for _, tt := range []struct {
		name     string
		envelope []byte
		reason   verifier.Reason // "" is accepted
		want     string
	}{
		{"two of three", f.sign(next, f.a, f.b), "", ""},
		{"all three", f.sign(next, f.c, f.b, f.a), "", ""},
		{"with a stranger", f.sign(next, x, f.a, f.b), "", ""},
		{"rotated: both roots, one key in both", f.sign(rotated, f.a, f.b, x), "", ""},
		{"rotated: both roots, no key in both", f.sign(f.policy(5, 1, x), f.a, f.b, x), "", ""},
		{"threshold lowered, signed by two", f.sign(lowered, f.a, f.c), "", ""},

		{"one of three", f.sign(next, f.a), verifier.ReasonSigner, "expected 2 of 3 keys, got 1"},
		{"one key twice", f.twice(next, f.b), verifier.ReasonSigner, "expected 2 of 3 keys, got 1"},
		{"one key and a stranger", f.sign(next, f.a, x), verifier.ReasonSigner, "got 1"},
		{"only strangers", f.sign(next, x, y), verifier.ReasonSigner, "got 0"},
		{"rotated: only old keys", f.sign(rotated, f.a, f.b), verifier.ReasonSigner, "its own root (revision 5)"},
		{"rotated: only new keys", f.sign(rotated, f.b, x, y), verifier.ReasonSigner, "the root of the policy here (revision 4)"},
		{"rotated: only keys that nobody knew", f.sign(f.policy(5, 1, x), x), verifier.ReasonSigner, "revision 4"},
		{"threshold lowered, signed by as many", f.sign(lowered, f.a), verifier.ReasonSigner, "expected 2 of 3 keys, got 1"},
		{"threshold raised, signed by two", f.sign(f.policy(5, 3, f.old...), f.a, f.b), verifier.ReasonSigner, "expected 3 of 3 keys, got 2"},
		{"revision after the next", f.sign(f.policy(6, 2, f.old...), f.a, f.b), verifier.ReasonRollback, "expected revision 5, got 6"},
		{"the same revision", f.sign(f.policy(4, 2, f.old...), f.a, f.b), verifier.ReasonRollback, "expected revision 5, got 4"},
		{"an older revision", f.sign(f.policy(3, 2, f.old...), f.a, f.b), verifier.ReasonRollback, "expected revision 5, got 3"},
		{"expired", f.sign(expired, f.a, f.b), verifier.ReasonPolicy, "expired at 2026-11-23T12:00:00Z"},
		{"root removed", seal(verifier.PolicyPayloadType, unrootedText, f.a, f.b), verifier.ReasonPolicy, "it has no root"},
		{"payload swapped", f.swapped(f.sign(rotated, f.a), f.sign(next, f.a, f.b)), verifier.ReasonSigner, "got 0"},
		{"another payload type", seal(dsse.PayloadType, nextText, f.a, f.b), verifier.ReasonMalformed, "payloadType"},
		{"unknown member", seal(verifier.PolicyPayloadType, unknown, f.a, f.b), verifier.ReasonMalformed, "insecure"},
		{"not a policy", seal(verifier.PolicyPayloadType, []byte("{}"), f.a, f.b), verifier.ReasonMalformed, "version"},
		{"two policies", seal(verifier.PolicyPayloadType, slices.Concat(nextText, nextText), f.a, f.b), verifier.ReasonMalformed, "policy"},
		{"too long", seal(verifier.PolicyPayloadType, bytes.Repeat([]byte(" "), 2<<20), f.a, f.b), verifier.ReasonMalformed, "at most"},
		{"the text, unsigned", nextText, verifier.ReasonMalformed, "envelope"},
		{"nothing", nil, verifier.ReasonMalformed, "envelope"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := verifier.NextPolicy(current, tt.envelope, now)
			if tt.reason == "" {
				if err != nil || got.IsZero() || got.Policy().Revision != 5 {
					t.Fatalf("NextPolicy: %v, want revision 5", err)
				}
				if e, err := dsse.Parse(tt.envelope); err != nil || !bytes.Equal(got.Text(), e.UnverifiedPayload()) {
					t.Errorf("the text is not what was signed: %s", got.Text())
				}
				return
			}
			var r *verifier.Refusal
			if !errors.As(err, &r) || r.Reason != tt.reason || !strings.Contains(err.Error(), tt.want) || !got.IsZero() {
				t.Errorf("NextPolicy = %v, want a refusal %s with %q", err, tt.reason, tt.want)
			}
		})
	}
	if _, err := verifier.NextPolicy(f.base, f.sign(next, f.a, f.b), now); err == nil || !strings.Contains(err.Error(), "has no root") {
		t.Errorf("after a policy without a root: %v, want it to say so", err)
	}
	if _, err := verifier.NextPolicy(nil, f.sign(next, f.a, f.b), now); err == nil {
		t.Error("after no policy: accepted")
	}
}

// A machine that was off takes all revisions in order, with an expired one in
// between, and none out of order.
func TestNextPolicies(t *testing.T) {
	f := newFleet(t)
	x, y := newKey(t, dsse.Ed25519), newKey(t, dsse.Ed25519)
	current := f.policy(1, 2, f.old...)
	second := f.policy(2, 1, x)
	second.Expires = verifier.At(now.AddDate(-1, 0, 0))
	e1, e2, e3 := f.sign(current, f.a, f.b), f.sign(second, f.a, f.b, x), f.sign(f.policy(3, 1, y), x, y)
	unrooted, err := dsse.Sign(verifier.PolicyPayloadType, encode(t, f.base), f.a, f.b)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		list [][]byte
		want string // "" is accepted
	}{
		{"in order", [][]byte{e2, e3}, ""},
		{"from the beginning", [][]byte{e1, e2, e3}, ""},
		{"one missing", [][]byte{e3}, "the root of the policy here (revision 1)"},
		{"out of order", [][]byte{e3, e2}, "the root of the policy here (revision 1)"},
		{"one twice", [][]byte{e2, e2, e3}, "expected revision 3, got 2"},
		{"the old one after the new one", [][]byte{e2, e1}, "not signed by the required keys"},
		{"the last has expired", [][]byte{e2}, "expired"},
		{"one without a root before them", [][]byte{unrooted, e2, e3}, "it has no root"},
		{"no envelope before them", [][]byte{[]byte("{}"), e2, e3}, "signed policy"},
		{"no envelope among them", [][]byte{e2, nil, e3}, "signed policy"},
		{"nothing new", [][]byte{e1}, "expected revision 2, got 1"},
		{"nothing", nil, "there is none"},
	} {
		got, err := verifier.NextPolicies(current, tt.list, now)
		switch {
		case tt.want == "" && (err != nil || got.Policy().Revision != 3):
			t.Errorf("%s: %v, want revision 3", tt.name, err)
		case tt.want != "" && (err == nil || !got.IsZero() || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestFirstPolicy(t *testing.T) {
	f := newFleet(t)
	p := f.policy(7, 2, f.old...)
	if got, err := verifier.FirstPolicy(f.base, f.sign(p, f.a, f.c), now); err != nil || got.Policy().Revision != 7 || len(got.Signers()) != 2 {
		t.Fatalf("FirstPolicy: %v", err)
	}
	var r *verifier.Refusal
	if _, err := verifier.FirstPolicy(f.policy(1, 1, f.a), f.sign(p, f.a, f.c), now); !errors.As(err, &r) || r.Reason != verifier.ReasonPolicy {
		t.Errorf("where there is a root: %v, want a refusal of the policy", err)
	}
	for what, err := range map[string]error{
		"signed by one":      errorOf(verifier.FirstPolicy(f.base, f.sign(p, f.a), now)),
		"expired":            errorOf(verifier.FirstPolicy(f.base, f.sign(p, f.a, f.c), p.Expires.Time())),
		"there is a root":    errorOf(verifier.FirstPolicy(f.policy(1, 1, f.a), f.sign(p, f.a, f.c), now)),
		"there is this root": errorOf(verifier.FirstPolicy(p, f.sign(p, f.a, f.c), now)),
	} {
		var r *verifier.Refusal
		if !errors.As(err, &r) {
			t.Errorf("%s: %v, want a refusal", what, err)
		}
	}
}

// broken is a signer whose machine does not answer.
type broken struct{ dsse.PrivateKey }

var errBroken = errors.New("the machine does not answer")

func (broken) Sign(context.Context, string, []byte) ([]byte, error) { return nil, errBroken }

func errorOf(_ verifier.SignedPolicy, err error) error { return err }

// Several desks sign one after the other, and the text stays the same.
func TestAddSignature(t *testing.T) {
	f := newFleet(t)
	p := f.policy(5, 2, f.old...)
	one := f.sign(p, f.b)
	two, err := verifier.AddSignature(t.Context(), one, f.a)
	if err != nil {
		t.Fatal(err)
	}
	got, err := verifier.NextPolicy(f.policy(4, 2, f.old...), two, now)
	if err != nil {
		t.Fatal(err)
	}
	if want := encode(t, p); !bytes.Equal(got.Text(), want) {
		t.Errorf("the text is %s, want %s", got.Text(), want)
	}
	if ids, err := verifier.PolicySigners(two, p.Root.Keys); err != nil || !slices.Equal(ids, []dsse.PublicKey{f.a.Public(), f.b.Public()}) {
		t.Errorf("signers %v, %v, want a and b", ids, err)
	}
	if _, err := verifier.AddSignature(t.Context(), two, f.a); err == nil || !strings.Contains(err.Error(), "signed it already") {
		t.Errorf("a second signature of one key: %v", err)
	}
	foreign, err := dsse.Sign(dsse.PayloadType, encode(t, p), f.a)
	if err != nil {
		t.Fatal(err)
	}
	unrooted, err := dsse.Sign(verifier.PolicyPayloadType, encode(t, f.base), f.a)
	if err != nil {
		t.Fatal(err)
	}
	if ids, err := verifier.PolicySigners(one, p.Root.Keys); err != nil || !slices.Equal(ids, []dsse.PublicKey{f.b.Public()}) {
		t.Errorf("signers %v, %v, want b", ids, err)
	}
	if e, err := verifier.AddSignature(t.Context(), one, broken{f.a}); !errors.Is(err, errBroken) || e != nil {
		t.Errorf("a signer that fails: %s, %v", e, err)
	}
	for what, bad := range map[string][]byte{"nothing": nil, "no envelope": []byte("{}"), "a bare policy": encode(t, p), "another type": foreign} {
		ids, err := verifier.PolicySigners(bad, []dsse.PublicKey{f.a.Public()})
		var r *verifier.Refusal
		if !errors.As(err, &r) || r.Reason != verifier.ReasonMalformed || ids != nil {
			t.Errorf("PolicySigners of %s = %v, %v, want a refusal", what, ids, err)
		}
	}
	if ids, err := verifier.PolicySigners(two, []dsse.PublicKey{f.c.Public()}); err != nil || len(ids) != 0 {
		t.Errorf("PolicySigners asked for another = %v, %v, want nobody", ids, err)
	}
	for _, bad := range [][]byte{nil, []byte("{}"), encode(t, p), foreign, unrooted} {
		if e, err := verifier.AddSignature(t.Context(), bad, f.b); err == nil {
			t.Errorf("%.100q was signed: %s", bad, e)
		}
	}
	if e, err := verifier.SignPolicy(t.Context(), f.base, f.a); err == nil {
		t.Errorf("a policy without a root was signed: %s", e)
	}
}

// The very text is signed, whatever its layout: nothing is marshalled again.
func TestSignedTextStays(t *testing.T) {
	f := newFleet(t)
	text := bytes.ReplaceAll(encode(t, f.policy(2, 1, f.a)), []byte("\n"), []byte("\n "))
	envelope, err := dsse.Sign(verifier.PolicyPayloadType, text, f.a)
	if err != nil {
		t.Fatal(err)
	}
	got, err := verifier.NextPolicy(f.policy(1, 1, f.a), envelope, now)
	if err != nil || !bytes.Equal(got.Text(), text) {
		t.Errorf("the text is %s, %v, want %s", got.Text(), err, text)
	}
}

func TestSplitPolicies(t *testing.T) {
	f := newFleet(t)
	one, two := f.sign(f.policy(1, 1, f.a), f.a), f.sign(f.policy(2, 1, f.a), f.a)
	pretty := bytes.Replace(one, []byte(`,"signatures"`), []byte(",\n  \"signatures\""), 1)
	for what, tt := range map[string]struct {
		data []byte
		want int // 0 is refused
	}{
		"one":              {one, 1},
		"one and a break":  {append(slices.Clone(one), '\n'), 1},
		"laid out":         {pretty, 1},
		"two":              {slices.Concat(one, []byte("\n"), two), 2},
		"two and a break":  {slices.Concat(one, []byte("\n"), two, []byte("\n")), 2},
		"an empty line":    {slices.Concat(one, []byte("\n\n"), two), 0},
		"two on one line":  {slices.Concat(one, two), 0},
		"a damaged second": {slices.Concat(one, []byte("\n"), two[1:]), 0},
		"a ledger's type":  {bytes.Replace(one, []byte("clawfs.policy"), []byte("in-toto"), 1), 0},
		"nothing":          {nil, 0},
		"too large":        {append(bytes.Repeat([]byte("\n"), verifier.MaxPolicyFile), one...), 0},
		"too many":         {bytes.Repeat(append(slices.Clone(one), '\n'), 1025), 0},
	} {
		got, err := verifier.SplitPolicies(tt.data)
		if (err == nil) != (tt.want > 0) || len(got) != tt.want {
			t.Errorf("%s: %d envelopes, %v, want %d", what, len(got), err, tt.want)
		}
		if bound := "at most 67108864 bytes"; (what == "too large") != (err != nil && strings.Contains(err.Error(), bound)) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// After its end a policy believes no ledger.
func TestVerifyAfterPolicyExpired(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	root := newKey(t, dsse.Ed25519)
	p.policy.Revision, p.policy.Expires, p.policy.Root = 3, verifier.At(now.Add(time.Minute)), &verifier.Root{Keys: []dsse.PublicKey{root.Public()}, Threshold: 1}
	sba := sign(t, dsse.PayloadType, payload(t, statement(t, p.publisher.Public())), p.publisher)
	if _, err := verify(t, p.policy, sba); err != nil {
		t.Fatal(err)
	}
	p.policy.Expires = verifier.At(now)
	var r *verifier.Refusal
	if _, err := verify(t, p.policy, sba); !errors.As(err, &r) || r.Reason != verifier.ReasonPolicy || !strings.Contains(err.Error(), "revision 3 expired") {
		t.Errorf("at its end: %v, want a refusal", err)
	}
}

// FuzzSignedPolicy: whatever arrives, what is accepted is what the root signed.
func FuzzSignedPolicy(f *testing.F) {
	fl := newFleet(f)
	current, next := fl.policy(1, 2, fl.old...), fl.policy(2, 2, fl.old...)
	good := fl.sign(next, fl.a, fl.b)
	f.Add(good)
	f.Add(fl.sign(next, fl.a))
	f.Add(slices.Concat(good, []byte("\n"), good))
	f.Add(encode(f, next))
	f.Add([]byte(`{"payloadType":"` + verifier.PolicyPayloadType + `","payload":"` + base64.StdEncoding.EncodeToString(encode(f, next)) + `","signatures":[{"sig":"AAAA"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := verifier.SplitPolicies(data)
		if err != nil {
			if got, err := verifier.NextPolicy(current, data, now); err == nil {
				t.Errorf("%q is no list of policies, and was accepted as %s", data, got.Text())
			}
			return
		}
		got, err := verifier.NextPolicies(current, list, now)
		if err == nil && !bytes.Equal(got.Text(), encode(t, next)) {
			t.Errorf("%q was accepted as %s: nobody signed that", data, got.Text())
		}
		for _, e := range list {
			if one, err := dsse.Merge(e); err != nil && !strings.Contains(err.Error(), "signatures in all") {
				t.Errorf("%q cannot be written again: %v", e, err)
			} else if err == nil {
				if _, err := verifier.SplitPolicies(one); err != nil {
					t.Errorf("%q written again as %q: %v", e, one, err)
				}
			}
		}
	})
}
