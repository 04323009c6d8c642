package verifier_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// rotation is a record of old and fresh for acme, issued an hour ago.
func rotation(t testing.TB, old, fresh dsse.PrivateKey, change ...func(*verifier.RotationPredicate)) verifier.RotationStatement {
	t.Helper()
	at := now.Add(-time.Hour)
	st, err := verifier.NewRotation(verifier.RolePublisher, "acme", old.Public(), fresh.Public(), at, "yearly", at)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range change {
		c(&st.Predicate)
	}
	return st
}

func parsed(t testing.TB, st verifier.RotationStatement, old, fresh dsse.PrivateKey) verifier.Rotation {
	t.Helper()
	envelope, err := verifier.SignRotation(context.Background(), st, old, fresh)
	if err != nil {
		t.Fatal(err)
	}
	r, err := verifier.ParseRotation(envelope)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRotationText holds the format.
func TestRotationText(t *testing.T) {
	old, fresh := newKey(t, dsse.Ed25519), newKey(t, dsse.ECDSAP256)
	st := rotation(t, old, fresh)
	key := func(k dsse.PrivateKey) string {
		return fmt.Sprintf(`{"keyid":"%s","publicKey":"%s"}`, k.Public().ID(), base64.StdEncoding.EncodeToString(k.Public().SPKI()))
	}
	want := fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"%s"}}],`+
		`"predicateType":"https://github.com/openclaw/clawfs/key-rotation/v1","predicate":{"role":"publisher","name":"acme",`+
		`"old":%s,"new":%s,"notBefore":"2026-11-23T11:00:00Z","reason":"yearly","issuedAt":"2026-11-23T11:00:00Z"}}`, old.Public().ID(), key(old), key(fresh))
	got, err := st.Payload()
	if err != nil || string(got) != want {
		t.Fatalf("Payload() = %s, %v\nwant %s", got, err, want)
	}
	r := parsed(t, st, old, fresh)
	if r.Predicate() != st.Predicate || r.Digest().IsZero() {
		t.Errorf("ParseRotation = %+v, want %+v", r.Predicate(), st.Predicate)
	}
}

// Both keys have to sign; others may, in any order.
func TestRotationSignatures(t *testing.T) {
	old, fresh, stranger := newKey(t, dsse.Ed25519), newKey(t, dsse.ECDSAP256), newKey(t, dsse.Ed25519)
	body, err := rotation(t, old, fresh).Payload()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		keys []dsse.PrivateKey
		ok   bool
	}{
		{"old, new", []dsse.PrivateKey{old, fresh}, true},
		{"new, old", []dsse.PrivateKey{fresh, old}, true},
		{"stranger, new, old", []dsse.PrivateKey{stranger, fresh, old}, true},
		{"new, stranger, old", []dsse.PrivateKey{fresh, stranger, old}, true},
		{"old", []dsse.PrivateKey{old}, false},
		{"new", []dsse.PrivateKey{fresh}, false},
		{"old, stranger", []dsse.PrivateKey{old, stranger}, false},
		{"new, stranger", []dsse.PrivateKey{fresh, stranger}, false},
	} {
		_, err := verifier.ParseRotation(sign(t, dsse.PayloadType, body, tt.keys...))
		var r *verifier.Refusal
		if tt.ok != (err == nil) || !tt.ok && (!errors.As(err, &r) || r.Reason != verifier.ReasonSignature || !strings.Contains(err.Error(), "expected 2 of 2 keys, got 1")) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	for _, pair := range [][2]dsse.PrivateKey{{fresh, old}, {old, stranger}, {stranger, fresh}, {old, old}} {
		if data, err := verifier.SignRotation(context.Background(), rotation(t, old, fresh), pair[0], pair[1]); err == nil {
			t.Errorf("SignRotation with other keys = %d bytes", len(data))
		}
	}
}

func TestRotationRefused(t *testing.T) {
	old, fresh, third := newKey(t, dsse.Ed25519), newKey(t, dsse.ECDSAP256), newKey(t, dsse.Ed25519)
	text, err := rotation(t, old, fresh).Payload()
	if err != nil {
		t.Fatal(err)
	}
	body := string(text)
	oldID, newID, thirdID := string(old.Public().ID()), string(fresh.Public().ID()), string(third.Public().ID())
	oldKey, thirdKey := base64.StdEncoding.EncodeToString(old.Public().SPKI()), base64.StdEncoding.EncodeToString(third.Public().SPKI())
	for _, tt := range []struct{ name, old, new, want string }{
		{"another type", "Statement/v1", "Statement/v0.1", "_type"},
		{"another predicate", "key-rotation/v1", "key-rotation/v2", "predicateType"},
		{"a ledger's predicate", "key-rotation/v1", "build-ledger/v1", "predicateType"},
		{"an unknown role", `"role":"publisher"`, `"role":"root"`, "role: expected one of"},
		{"a role in another case", `"role":"publisher"`, `"role":"Publisher"`, "role: expected one of"},
		{"no role", `"role":"publisher",`, ``, "role"},
		{"a name with a space", `"name":"acme"`, `"name":"ac me"`, "expected a name"},
		{"a homoglyph", `"name":"acme"`, `"name":"аcme"`, "expected a name"},
		{"no name", `"name":"acme",`, ``, "expected a name"},
		{"no subject", `[{"digest":{"sha256":"` + oldID + `"}}]`, `[]`, "subject"},
		{"the new key as the subject", `"sha256":"` + oldID + `"`, `"sha256":"` + newID + `"`, "subject"},
		{"two subjects", `{"digest":{"sha256":"` + oldID + `"}}`, `{"digest":{"sha256":"` + oldID + `"}},{"digest":{"sha256":"` + newID + `"}}`, "got 2 subjects"},
		{"two digests", `"sha256":"` + oldID + `"`, `"clawfsTree1":"` + oldID + `","sha256":"` + oldID + `"`, "subject"},
		{"another algorithm", `"sha256":"` + oldID + `"`, `"sha512":"` + oldID + `"`, "sha512"},
		{"an upper-case subject", `"sha256":"` + oldID + `"`, `"sha256":"` + strings.ToUpper(oldID) + `"`, "lower-case"},
		{"an upper-case key id", `"keyid":"` + newID + `"`, `"keyid":"` + strings.ToUpper(newID) + `"`, "new: expected a publicKey and its keyid"},
		{"a short key id", `"keyid":"` + newID + `"`, `"keyid":"` + newID[:16] + `"`, "new: expected a publicKey and its keyid"},
		{"a key under another's id", `"keyid":"` + oldID + `"`, `"keyid":"` + thirdID + `"`, "old: expected a publicKey and its keyid"},
		{"another key under the id", oldKey, thirdKey, "old: expected a publicKey and its keyid"},
		{"no key", `"publicKey":"` + oldKey + `"`, `"publicKey":""`, "public key"},
		{"url-safe base64", oldKey, strings.NewReplacer("+", "-", "/", "_", "M", "-").Replace(oldKey), "base64"},
		{"a line break in base64", oldKey, oldKey[:8] + `\n` + oldKey[8:], "line break"},
		{"no padding", oldKey, strings.TrimRight(oldKey, "="), "base64"},
		{"backdated", `"notBefore":"2026-11-23T11:00:00Z"`, `"notBefore":"2026-11-23T10:59:59Z"`, "notBefore: expected"},
		{"no notBefore", `"notBefore":"2026-11-23T11:00:00Z",`, ``, "notBefore or issuedAt is missing"},
		{"no issuedAt", `,"issuedAt":"2026-11-23T11:00:00Z"`, ``, "notBefore or issuedAt is missing"},
		{"another zone", `"notBefore":"2026-11-23T11:00:00Z"`, `"notBefore":"2026-11-23T12:00:00+01:00"`, "notBefore"},
		{"no reason", `"reason":"yearly"`, `"reason":""`, "reason"},
		{"a reason that moves the cursor", `"reason":"yearly"`, `"reason":"\u001b[2J"`, "reason"},
		{"a reason that reads backwards", `"reason":"yearly"`, `"reason":"a\u202eb"`, "reason"},
		{"a reason with a space before it", `"reason":"yearly"`, `"reason":" yearly"`, "reason"},
		{"a reason with a space after it", `"reason":"yearly"`, `"reason":"yearly "`, "reason"},
		{"a long reason", `"reason":"yearly"`, `"reason":"` + strings.Repeat("x", 1025) + `"`, "reason"},
		{"an unknown field", `"role":`, `"threshold":1,"role":`, "threshold"},
		{"a field twice", `"name":"acme"`, `"name":"other","name":"acme"`, "duplicate"},
		{"null", `"reason":"yearly"`, `"reason":null`, "null"},
		{"a space", `"role":`, ` "role":`, "one text"},
		{"an escape that is not needed", `"acme"`, `"\u0061cme"`, "one text"},
		{"trailing data", `"yearly","issuedAt":"2026-11-23T11:00:00Z"}}`, `"yearly","issuedAt":"2026-11-23T11:00:00Z"}}{}`, "rotation"},
	} {
		if !strings.Contains(body, tt.old) {
			t.Fatalf("%s: %q is not in the record", tt.name, tt.old)
		}
		r, err := verifier.ParseRotation(sign(t, dsse.PayloadType, []byte(strings.Replace(body, tt.old, tt.new, 1)), old, fresh, third))
		var refusal *verifier.Refusal
		if !errors.As(err, &refusal) || refusal.Reason != verifier.ReasonMalformed || !strings.Contains(err.Error(), tt.want) || !r.Digest().IsZero() {
			t.Errorf("%s: ParseRotation = %v, want a malformed record with %q", tt.name, err, tt.want)
		}
	}
	var refusal *verifier.Refusal
	if r, err := verifier.ParseRotation(sign(t, "application/json", text, old, fresh)); !errors.As(err, &refusal) || refusal.Reason != verifier.ReasonMalformed {
		t.Errorf("another payload type: %v, %v, want a malformed record", r.Predicate(), err)
	}
	if envelope, err := verifier.SignRotation(t.Context(), rotation(t, old, fresh, func(p *verifier.RotationPredicate) { p.Reason = "" }), old, fresh); err == nil || envelope != nil {
		t.Errorf("a record without a reason was signed: %s", envelope)
	}
	// A ledger is no rotation, and a rotation is no ledger.
	p := newParty(t, dsse.Ed25519)
	if _, err := verifier.ParseRotation(sign(t, dsse.PayloadType, payload(t, statement(t, p.publisher.Public())), p.publisher)); err == nil {
		t.Error("a ledger was taken for a rotation")
	}
	if _, err := verify(t, p.policy, sign(t, dsse.PayloadType, text, p.publisher)); err == nil {
		t.Error("a rotation was taken for a ledger")
	}
	for _, same := range []func() (verifier.RotationStatement, error){
		func() (verifier.RotationStatement, error) {
			return verifier.NewRotation(verifier.RoleMint, "a", old.Public(), old.Public(), now, "x", now)
		},
		func() (verifier.RotationStatement, error) {
			return verifier.NewRotation(verifier.RoleMint, "a", dsse.PublicKey{}, old.Public(), now, "x", now)
		},
		func() (verifier.RotationStatement, error) {
			return verifier.NewRotation(verifier.RoleMint, "a", old.Public(), dsse.PublicKey{}, now, "x", now)
		},
		func() (verifier.RotationStatement, error) {
			return verifier.NewRotation("", "a", old.Public(), fresh.Public(), now, "x", now)
		},
	} {
		if st, err := same(); err == nil {
			t.Errorf("NewRotation = %+v, want an error", st)
		}
	}
}

// No single bit of a record can be changed.
func TestRotationOneBit(t *testing.T) {
	old, fresh := newKey(t, dsse.Ed25519), newKey(t, dsse.Ed25519)
	good, err := verifier.SignRotation(context.Background(), rotation(t, old, fresh), old, fresh)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(good) * 8 {
		bad := bytes.Clone(good)
		bad[i/8] ^= 1 << (i % 8)
		_, err := verifier.ParseRotation(bad)
		var r *verifier.Refusal
		if !errors.As(err, &r) {
			t.Errorf("bit %d of byte %d of %d changed: %v, want a refusal", i%8, i/8, len(good), err)
		}
	}
}

// Adoption as a story: the old key, both, the new one.
func TestAdoptRotation(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	fresh := newKey(t, dsse.ECDSAP256)
	const overlap = 24 * time.Hour
	counts := func(policy *verifier.Policy, k dsse.PrivateKey, at time.Time) bool {
		t.Helper()
		s, err := verifier.ParseSBA(sign(t, dsse.PayloadType, payload(t, statement(t, k.Public())), k))
		if err != nil {
			t.Fatal(err)
		}
		v, err := verifier.New(policy)
		if err != nil {
			t.Fatal(err)
		}
		_, err = v.Verify(s, at)
		return err == nil
	}
	before := encode(t, p.policy)
	for name, start := range map[string]time.Time{"at once": now, "adopted late": now.Add(-time.Hour), "in two hours": now.Add(2 * time.Hour)} {
		r := parsed(t, rotation(t, p.publisher, fresh, func(q *verifier.RotationPredicate) { q.NotBefore = verifier.At(start) }), p.publisher, fresh)
		policy, err := p.policy.AdoptRotation(r, overlap, now)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if start.Before(now) {
			start = now
		}
		for _, tt := range []struct {
			what     string
			at       time.Time
			old, new bool
		}{
			{"just before", start.Add(-1), true, !start.After(now)}, // a policy does not judge the past
			{"at the beginning", start, true, true},
			{"before the end", start.Add(overlap - 1), true, true},
			{"at the end", start.Add(overlap), false, true},
			{"a year later", start.AddDate(1, 0, 0), false, true},
		} {
			if got := counts(policy, p.publisher, tt.at); got != tt.old {
				t.Errorf("%s, %s: the old key counts: %v, want %v", name, tt.what, got, tt.old)
			}
			if got := counts(policy, fresh, tt.at); got != tt.new {
				t.Errorf("%s, %s: the new key counts: %v, want %v", name, tt.what, got, tt.new)
			}
		}
		// The record is worth nothing after that, also if the new key was thrown out.
		if _, err := policy.AdoptRotation(r, overlap, now); err == nil || !strings.Contains(err.Error(), "already") {
			t.Errorf("%s: adopted twice: %v", name, err)
		}
		later := *policy
		later.Publishers = []verifier.PublisherRule{policy.Publishers[0]}
		later.Publishers[0].Keys = later.Publishers[0].Keys[:1]
		later.Publishers[0].Windows = map[dsse.KeyID]verifier.Window{p.publisher.Public().ID(): policy.Publishers[0].Windows[p.publisher.Public().ID()]}
		var refusal *verifier.Refusal
		if _, err := later.AdoptRotation(r, overlap, start.Add(overlap)); !errors.As(err, &refusal) || refusal.Reason != verifier.ReasonSigner || !strings.Contains(err.Error(), "is valid until") {
			t.Errorf("%s: a retired key handed on again: %v", name, err)
		}
	}
	if after := encode(t, p.policy); !bytes.Equal(after, before) {
		t.Errorf("the policy itself changed: %s", after)
	}
	// A window that ends earlier stays.
	early := verifier.Window{NotAfter: verifier.At(now.Add(time.Minute))}
	id := p.publisher.Public().ID()
	bounded := windowed(t, p, 1, map[dsse.KeyID]verifier.Window{id: early})
	policy, err := bounded.AdoptRotation(parsed(t, rotation(t, p.publisher, fresh), p.publisher, fresh), overlap, now)
	if err != nil || policy.Publishers[0].Windows[id] != early {
		t.Errorf("a window that ends earlier: %+v, %v, want it kept", policy, err)
	}
	// A rule of two has never three keys that count.
	two := windowed(t, p, 2, nil)
	r := parsed(t, rotation(t, p.publisher, fresh, func(q *verifier.RotationPredicate) { q.NotBefore = verifier.At(now.Add(time.Hour)) }), p.publisher, fresh)
	if policy, err = two.AdoptRotation(r, 0, now); err != nil {
		t.Fatal(err)
	}
	body := payload(t, statement(t, p.second.Public()))
	for _, tt := range []struct {
		at   time.Time
		keys []dsse.PrivateKey
		ok   bool
	}{
		{now, []dsse.PrivateKey{p.publisher, p.second}, true},
		{now, []dsse.PrivateKey{fresh, p.second}, false},
		{now.Add(time.Hour), []dsse.PrivateKey{p.publisher, p.second}, false},
		{now.Add(time.Hour), []dsse.PrivateKey{fresh, p.second}, true},
		{now.Add(time.Hour), []dsse.PrivateKey{p.publisher, fresh}, false},
	} {
		s, err := verifier.ParseSBA(sign(t, dsse.PayloadType, body, tt.keys...))
		if err != nil {
			t.Fatal(err)
		}
		v, err := verifier.New(policy)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Verify(s, tt.at); (err == nil) != tt.ok {
			t.Errorf("at %s: %v, want accepted %v", tt.at, err, tt.ok)
		}
	}
}

func TestAdoptRotationRefused(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	fresh, stranger := newKey(t, dsse.Ed25519), newKey(t, dsse.Ed25519)
	as := func(role verifier.Role, name string) func(*verifier.RotationPredicate) {
		return func(q *verifier.RotationPredicate) { q.Role, q.Name = role, name }
	}
	issued := func(at time.Time) func(*verifier.RotationPredicate) {
		return func(q *verifier.RotationPredicate) { q.IssuedAt, q.NotBefore = verifier.At(at), verifier.At(at) }
	}
	id := p.publisher.Public().ID()
	window := func(w verifier.Window) *verifier.Policy {
		return windowed(t, p, 1, map[dsse.KeyID]verifier.Window{id: w})
	}
	for _, tt := range []struct {
		name       string
		policy     *verifier.Policy
		old, fresh dsse.PrivateKey
		change     func(*verifier.RotationPredicate)
		retire     time.Duration
		reason     verifier.Reason
		want       string
	}{
		{"a stranger's key", p.policy, stranger, fresh, as("publisher", "acme"), 0, verifier.ReasonSigner, "is not a key of publisher acme"},
		{"another publisher", p.policy, p.publisher, fresh, as("publisher", "other"), 0, verifier.ReasonSigner, "no publisher"},
		{"a publisher's key as a mint", p.policy, p.publisher, fresh, as("mint", "local"), 0, verifier.ReasonSigner, "is not a key of mint local"},
		{"a mint's key as a publisher", p.policy, p.mint, fresh, as("publisher", "acme"), 0, verifier.ReasonSigner, "is not a key of publisher acme"},
		{"a mint's key as a revoker", p.policy, p.mint, fresh, as("revoker", "local"), 0, verifier.ReasonSigner, "is not a key of revoker local"},
		{"another operator", p.policy, p.mint, fresh, as("mint", "bob"), 0, verifier.ReasonSigner, "no mint"},
		{"an expired key", window(verifier.Window{NotAfter: verifier.At(now)}), p.publisher, fresh, as("publisher", "acme"), 0, verifier.ReasonSigner, "is valid until"},
		{"a key that is not yet valid", window(verifier.Window{NotBefore: verifier.At(now.Add(time.Second))}), p.publisher, fresh, as("publisher", "acme"), 0, verifier.ReasonSigner, "is valid from"},
		{"to a key that is there", windowed(t, p, 1, nil), p.publisher, p.second, as("publisher", "acme"), 0, verifier.ReasonPolicy, "already"},
		{"from the future", p.policy, p.publisher, fresh, issued(now.Add(5*time.Minute + time.Second)), 0, verifier.ReasonTime, "one of the clocks is wrong"},
		{"an overlap in a rule of two", windowed(t, p, 2, nil), p.publisher, fresh, as("publisher", "acme"), time.Second, verifier.ReasonPolicy, "--retire-after 0"},
		{"a mint's key of next week", p.policy, p.mint, fresh, func(q *verifier.RotationPredicate) {
			q.Role, q.Name, q.NotBefore = "mint", "local", verifier.At(now.Add(time.Second))
		}, 0, verifier.ReasonTime, "adopt it then"},
		{"a mint's key that publishes", p.policy, p.mint, p.publisher, as("mint", "local"), 0, "", "would not be independent"},
		{"a publisher's key that mints", p.policy, p.publisher, p.mint, as("publisher", "acme"), 0, "", "would not be independent"},
		{"a negative time", p.policy, p.publisher, fresh, as("publisher", "acme"), -1, "", "0 or more"},
	} {
		r := parsed(t, rotation(t, tt.old, tt.fresh, tt.change), tt.old, tt.fresh)
		got, err := tt.policy.AdoptRotation(r, tt.retire, now)
		var refusal *verifier.Refusal
		if err == nil || !strings.Contains(err.Error(), tt.want) || got != nil || tt.reason != "" && (!errors.As(err, &refusal) || refusal.Reason != tt.reason) {
			t.Errorf("%s: AdoptRotation = %v, want %q with %q", tt.name, err, tt.reason, tt.want)
		}
	}
	if _, err := p.policy.AdoptRotation(verifier.Rotation{}, 0, now); err == nil {
		t.Error("the zero Rotation was adopted")
	}
	// What is right: a mint's and a revoker's key stay beside the new one.
	policy, err := p.policy.AdoptRotation(parsed(t, rotation(t, p.mint, fresh, as("mint", "local")), p.mint, fresh), 0, now)
	if err != nil || len(policy.Mints[0].Keys) != 2 || policy.Mints[0].Keys[0] != p.mint.Public() || policy.Mints[0].Keys[1] != fresh.Public() {
		t.Errorf("a mint's rotation: %+v, %v, want both keys", policy, err)
	}
	if _, err = p.policy.AdoptRotation(parsed(t, rotation(t, p.publisher, fresh, issued(now.Add(5*time.Minute))), p.publisher, fresh), 0, now); err != nil {
		t.Errorf("issued five minutes ahead: %v", err)
	}
}

// FuzzRotation: what parses has one printed form.
func FuzzRotation(f *testing.F) {
	old, fresh := newKey(f, dsse.Ed25519), newKey(f, dsse.ECDSAP256)
	text, err := rotation(f, old, fresh).Payload()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{}}],"predicate":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		st, err := verifier.ParseRotationStatement(data)
		if err != nil {
			return
		}
		again, err := st.Payload()
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q prints as %q, %v", data, again, err)
		}
	})
}
