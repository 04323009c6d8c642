package verifier_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const (
	commit = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
	image  = "6794a0f2bd0cbfa2d0f2d7ad0b2bd1b53b4d6c8db4d8e07f4f2d1a1a0c1d88fc"
)

// party is a publisher, a mint and a revoker, and the policy that names them.
type party struct {
	publisher, second, stranger, mint dsse.PrivateKey
	policy                            *verifier.Policy
}

func newKey(t testing.TB, algorithm string) dsse.PrivateKey {
	t.Helper()
	k, err := dsse.GenerateKey(algorithm)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func digest(t testing.TB, s string) hashpipe.Digest {
	t.Helper()
	d, err := hashpipe.ParseDigest(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func newParty(t testing.TB, algorithm string) party {
	t.Helper()
	p := party{newKey(t, algorithm), newKey(t, dsse.ECDSAP256), newKey(t, algorithm), newKey(t, dsse.Ed25519), nil}
	var err error
	if p.policy, err = verifier.NewPolicy("local", p.mint.Public(), newKey(t, dsse.Ed25519).Public(), verifier.Builds{
		Env:    []string{"PYTHONHASHSEED", "SOURCE_DATE_EPOCH"},
		Limits: verifier.Limits{MemoryBytes: 1 << 30, Processes: 64, CPUs: 1.5, WallSeconds: 600, OutputBytes: 1 << 30, LogBytes: 1 << 20},
	}); err != nil {
		t.Fatal(err)
	}
	if p.policy, err = p.policy.AddPublisher(verifier.PublisherRule{
		Name: "acme", Models: []string{"acme/*"}, Keys: []dsse.PublicKey{p.publisher.Public()}, Threshold: 1,
		Images: []string{"sha256:" + image}, MinimumSequence: map[string]int64{"acme/langid": 3},
	}); err != nil {
		t.Fatal(err)
	}
	return p
}

// statement is a valid ledger of the publisher key.
func statement(t testing.TB, key dsse.PublicKey) verifier.Statement {
	t.Helper()
	return verifier.Statement{
		Type:          verifier.StatementType,
		Subject:       []verifier.Subject{{Name: "source", URI: "git+https://git.example/acme/langid", Digest: verifier.DigestSet{GitCommit: commit}}},
		PredicateType: verifier.LedgerType,
		Predicate: verifier.Predicate{
			Model: "acme/langid", Version: "1.2.0", Sequence: 12,
			Publisher: verifier.Publisher{KeyID: key.ID()},
			IssuedAt:  verifier.At(now.Add(-time.Hour)),
			BuildDefinition: verifier.BuildDefinition{
				BuildType: verifier.BuildType,
				ExternalParameters: verifier.ExternalParameters{
					Env: map[string]string{"PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "1763600000"},
					Stages: []verifier.Stage{{Name: "train", TimeoutSeconds: 60, WorkDir: "/in/source",
						Argv: []string{"fasttext", "supervised", "-thread", "1", "-input", "/in/dataset/corpus/train.txt", "-output", "/out/langid"}}},
					Outputs: []verifier.Output{{Name: "langid.bin", Path: "langid.bin"}},
				},
				ResolvedDependencies: []verifier.Dependency{
					{Name: "source", Digest: verifier.DigestSet{GitCommit: commit, ClawfsTree1: digest(t, "baf99b9ff27559a791c8f1ec16eadd8d617b2cb74aae714064051c878a9f226e")}},
					{Name: "environment", URI: "oci://registry.example/ml/base", Digest: verifier.DigestSet{SHA256: digest(t, image)}, MediaType: verifier.ImageMediaType},
					{Name: "lockfile", URI: "pkg:generic/requirements.lock", Digest: verifier.DigestSet{SHA256: digest(t, strings.Repeat("b5", 32))}},
					{Name: "dataset:corpus", Digest: verifier.DigestSet{ClawfsTree1: digest(t, "3aa5e4cda1e698aef4cc4bcc065cf0472484d9ec07350ae566347fdef8205948")},
						Annotations: &verifier.Annotations{Files: 1000, Bytes: 2890}},
				},
			},
			Platform: verifier.Platform{OS: "linux", Arch: "amd64", CPUFeatures: []string{"avx2"}, Accelerator: "none"},
		},
	}
}

func payload(t testing.TB, s verifier.Statement) []byte {
	t.Helper()
	data, err := s.Payload()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func sign(t testing.TB, typ string, payload []byte, keys ...dsse.PrivateKey) []byte {
	t.Helper()
	data, err := dsse.Sign(typ, payload, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// verify goes the whole way from arrived bytes.
func verify(t testing.TB, p *verifier.Policy, data []byte) (verifier.Attestation, error) {
	t.Helper()
	s, err := verifier.ReadSBA(bytes.NewReader(data))
	if err != nil {
		return verifier.Attestation{}, err
	}
	v, err := verifier.New(p)
	if err != nil {
		t.Fatal(err)
	}
	return v.Verify(s, now)
}

func TestVerify(t *testing.T) {
	for _, algorithm := range []string{dsse.Ed25519, dsse.ECDSAP256} {
		p := newParty(t, algorithm)
		body := payload(t, statement(t, p.publisher.Public()))
		data := sign(t, dsse.PayloadType, body, p.publisher)
		a, err := verify(t, p.policy, data)
		if err != nil {
			t.Errorf("%s: %v", algorithm, err)
			continue
		}
		if a.IsZero() || !bytes.Equal(a.Ledger().Payload(), body) || !bytes.Equal(a.Envelope(), data) || !hashpipe.SumBytes(body).Is(a.Digest()) ||
			a.Publisher() != p.publisher.Public() || a.PublisherName() != "acme" || !a.VerifiedAt().Equal(now) {
			t.Errorf("%s: attestation of %s by %s (%s) at %s does not hold what was verified", algorithm, a.Digest(), a.PublisherName(), a.Publisher().ID(), a.VerifiedAt())
		}
		a.Ledger().Payload()[0], a.Envelope()[0] = 'X', 'X'
		a.Ledger().Statement().Predicate.BuildDefinition.ExternalParameters.Stages[0].Argv[0] = "rm"
		if got := a.Ledger().Statement().Predicate.BuildDefinition.ExternalParameters.Stages[0].Argv[0]; got != "fasttext" || a.Ledger().Payload()[0] != '{' || a.Envelope()[0] != '{' {
			t.Errorf("%s: writing into what an attestation returned changed it", algorithm)
		}
	}
}

// TestIdentityIsThePayload: the same ledger under more signatures or another
// layout of the envelope is the same SBA.
func TestIdentityIsThePayload(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	body := payload(t, statement(t, p.publisher.Public()))
	one, err := verify(t, p.policy, sign(t, dsse.PayloadType, body, p.publisher))
	if err != nil {
		t.Fatal(err)
	}
	two, err := verify(t, p.policy, sign(t, dsse.PayloadType, body, p.stranger, p.publisher))
	if err != nil {
		t.Fatal(err)
	}
	if one.Digest() != two.Digest() {
		t.Errorf("one SBA has the digests %s and %s", one.Digest(), two.Digest())
	}
}

// TestHostile is the table of hostile inputs of an SBA, one reason each.
func TestHostile(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	st := statement(t, p.publisher.Public())
	body := string(payload(t, st))
	good := string(sign(t, dsse.PayloadType, []byte(body), p.publisher))
	// signed is the envelope of a payload that the publisher really signed.
	signed := func(payload string) string {
		return string(sign(t, dsse.PayloadType, []byte(payload), p.publisher))
	}
	// edit changes the text of the good ledger before it is signed.
	edit := func(old, new string) string {
		if !strings.Contains(body, old) {
			t.Fatalf("%q is not in the ledger", old)
		}
		return signed(strings.Replace(body, old, new, 1))
	}
	edited := func(change func(*verifier.Statement)) string {
		s := statement(t, p.publisher.Public())
		change(&s)
		return signed(string(payload(t, s)))
	}
	before, signature, ok := strings.Cut(good, `"signatures":`)
	if !ok {
		t.Fatal("the envelope has no signatures")
	}
	// own is the ledger that another key signed in its own name.
	own := func(k dsse.PrivateKey) string {
		return string(sign(t, dsse.PayloadType, payload(t, statement(t, k.Public())), k))
	}
	// payloadText changes the base64 of the good payload.
	payloadText := func(change func(string) string) string {
		text := base64.StdEncoding.EncodeToString([]byte(body))
		return strings.Replace(good, text, change(text), 1)
	}
	overRaw := func() string {
		k, err := dsse.ParsePublicKey(p.publisher.Public().PEM())
		if err != nil {
			t.Fatal(err)
		}
		raw := rawSignature(t, p.publisher, []byte(body))
		if !k.Verify([]byte(body), raw) {
			t.Fatal("the raw signature is not even one over the payload")
		}
		return before + `"signatures":[{"sig":"` + base64.StdEncoding.EncodeToString(raw) + `"}]}`
	}
	tests := []struct {
		name   string
		data   string
		reason verifier.Reason
		want   string
	}{
		{"nothing", "", verifier.ReasonMalformed, "reading JSON"},
		{"garbage", "clawfs", verifier.ReasonMalformed, "reading JSON"},
		{"wrong key", string(sign(t, dsse.PayloadType, []byte(body), p.stranger)), verifier.ReasonSignature, "expected 1 of 1 keys, got 0"},
		{"stripped signature", before + `"signatures":[]}`, verifier.ReasonMalformed, "signatures is missing or empty"},
		{"no signatures", strings.TrimSuffix(before, ",") + "}", verifier.ReasonMalformed, "signatures is missing or empty"},
		{"undecodable signature", before + strings.Replace(`"signatures":`+signature, `"sig":"`, `"sig":"!`, 1), verifier.ReasonSignature, "not base64"},
		{"signature over the raw payload", overRaw(), verifier.ReasonSignature, "expected 1 of 1 keys, got 0"},
		{"wrong payload type", string(sign(t, "application/json", []byte(body), p.publisher)), verifier.ReasonMalformed, `expected payloadType "application/vnd.in-toto+json", got "application/json"`},
		{"duplicate key in the envelope", strings.Replace(good, `{"payloadType"`, `{"payload":"e30=","payloadType"`, 1), verifier.ReasonMalformed, "duplicate"},
		{"case variant in the envelope", strings.Replace(good, `{"payloadType"`, `{"Payload":"e30=","payloadType"`, 1), verifier.ReasonMalformed, "Payload"},
		{"unknown field in the envelope", strings.Replace(good, `{"payloadType"`, `{"x":1,"payloadType"`, 1), verifier.ReasonMalformed, "unknown"},
		{"trailing data after the envelope", good + good, verifier.ReasonMalformed, "reading JSON"},
		{"envelope 100,000 levels deep", strings.Repeat("[", 100_000), verifier.ReasonMalformed, "reading JSON"},

		{"duplicate key in the ledger", edit(`"model":"acme/langid"`, `"model":"acme/other","model":"acme/langid"`), verifier.ReasonMalformed, "duplicate"},
		{"case variant in the ledger", edit(`"model":"acme/langid"`, `"Model":"acme/other","model":"acme/langid"`), verifier.ReasonMalformed, "Model"},
		{"unknown field in the ledger", edit(`"version":`, `"comment":"hi","version":`), verifier.ReasonMalformed, `at "/predicate/comment": unknown object member name`},
		{"trailing data after the ledger", signed(body + `{}`), verifier.ReasonMalformed, "ledger:"},
		{"ledger 100,000 levels deep", edit(`"stages":[`, `"stages":[`+strings.Repeat("[", 100_000)), verifier.ReasonMalformed, "32 levels"},
		{"ledger of a megabyte and one", signed(body + strings.Repeat(" ", 1<<20)), verifier.ReasonMalformed, "expected at most 1048576 bytes"},
		{"missing list", edit(`,"outputs":[{"name":"langid.bin","path":"langid.bin"}]`, ""), verifier.ReasonMalformed, "outputs is missing or empty"},
		{"empty list", edit(`"outputs":[{"name":"langid.bin","path":"langid.bin"}]`, `"outputs":[]`), verifier.ReasonMalformed, "outputs is missing or empty"},
		{"output with a digest", edit(`"path":"langid.bin"`, `"path":"langid.bin","digest":{"sha256":"`+image+`"}`), verifier.ReasonMalformed, `outputs/0/digest": unknown object member name`},

		{"key id of another key", edit(string(p.publisher.Public().ID()), string(p.stranger.Public().ID())), verifier.ReasonSigner, "the ledger names the publisher key"},
		{"key id in upper case", edit(string(p.publisher.Public().ID()), strings.ToUpper(string(p.publisher.Public().ID()))), verifier.ReasonMalformed, "expected 64 lower-case hex digits"},
		{"key id with its algorithm", edit(string(p.publisher.Public().ID()), "sha256:"+string(p.publisher.Public().ID())), verifier.ReasonMalformed, "expected 64 lower-case hex digits"},
		{"key id cut short", edit(string(p.publisher.Public().ID()), string(p.publisher.Public().ID())[:63]), verifier.ReasonMalformed, "expected 64 lower-case hex digits"},
		{"key id as OpenSSH has it", edit(string(p.publisher.Public().ID()), "SHA256:AAAA"), verifier.ReasonMalformed, "expected 64 lower-case hex digits"},
		{"signed by the mint", own(p.mint), verifier.ReasonSignature, "expected 1 of 1 keys, got 0"},
		{"signed by the mint in the publisher's name", string(sign(t, dsse.PayloadType, []byte(body), p.mint)), verifier.ReasonSignature, "expected 1 of 1 keys, got 0"},
		{"signed by the publisher in the mint's name", edit(string(p.publisher.Public().ID()), string(p.mint.Public().ID())), verifier.ReasonSigner, "the ledger names the publisher key"},
		{"line break in the payload", payloadText(func(b string) string { return b[:8] + `\n` + b[8:] }), verifier.ReasonMalformed, "line break in base64"},
		{"payload in two alphabets", payloadText(func(b string) string { return "-+" + b[2:] }), verifier.ReasonMalformed, "illegal base64"},
		{"payload without padding", payloadText(func(b string) string { return strings.TrimRight(b, "=") + "A" }), verifier.ReasonMalformed, "illegal base64"},
		{"url-safe signature with a line break", before + strings.Replace(`"signatures":`+signature, `"sig":"`, `"sig":"\n`, 1), verifier.ReasonSignature, "not base64"},
		{"model outside the prefix", edit(`"acme/langid"`, `"other/langid"`), verifier.ReasonSigner, "no publisher for this model"},
		{"model that only starts like the prefix", edit(`"acme/langid"`, `"acmes/langid"`), verifier.ReasonSigner, "no publisher for this model"},
		{"image that is not allowed", edit(image, strings.Repeat("67", 32)), verifier.ReasonPolicy, "environment image"},
		{"sequence below the minimum", edit(`"sequence":12`, `"sequence":2`), verifier.ReasonRollback, "expected sequence 3 or later, got 2"},
		{"environment variable that is not allowed", edited(func(s *verifier.Statement) {
			s.Predicate.BuildDefinition.ExternalParameters.Env["LD_PRELOAD"] = "/x"
		}), verifier.ReasonPolicy, "LD_PRELOAD"},
		{"a stage's variable that is not allowed", edited(func(s *verifier.Statement) {
			s.Predicate.BuildDefinition.ExternalParameters.Stages[0].Env = map[string]string{"HOME": "/x"}
		}), verifier.ReasonPolicy, "HOME"},
		{"issued in the future", edited(func(s *verifier.Statement) {
			s.Predicate.IssuedAt = verifier.At(now.Add(5*time.Minute + time.Second))
		}), verifier.ReasonTime, "one of the clocks is wrong"},
	}
	for _, tt := range tests {
		a, err := verify(t, p.policy, []byte(tt.data))
		var r *verifier.Refusal
		if !errors.As(err, &r) || r.Reason != tt.reason || !strings.Contains(err.Error(), tt.want) || !a.IsZero() {
			t.Errorf("%s: Verify = %v, %#v, want a refusal %q with %q", tt.name, a.Digest(), err, tt.reason, tt.want)
		}
	}
	if _, err := verify(t, p.policy, []byte(good)); err != nil {
		t.Errorf("the untouched SBA: %v", err)
	}
	if _, err := verify(t, p.policy, []byte(edited(func(s *verifier.Statement) {
		s.Predicate.IssuedAt = verifier.At(now.Add(5 * time.Minute))
	}))); err != nil {
		t.Errorf("issued five minutes ahead: %v, want it accepted", err)
	}
}

// rawSignature signs bytes that are no PAE, through the key's own text.
func rawSignature(t testing.TB, k dsse.PrivateKey, message []byte) []byte {
	t.Helper()
	text, err := k.PEM()
	if err != nil {
		t.Fatal(err)
	}
	return signEd25519(t, text, message)
}

func TestZeroValuesRefuse(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	s, err := verifier.ParseSBA(sign(t, dsse.PayloadType, payload(t, statement(t, p.publisher.Public())), p.publisher))
	if err != nil {
		t.Fatal(err)
	}
	v, err := verifier.New(p.policy)
	if err != nil {
		t.Fatal(err)
	}
	var none *verifier.Verifier
	for name, verify := range map[string]func() (verifier.Attestation, error){
		"zero SBA":      func() (verifier.Attestation, error) { return v.Verify(verifier.SBA{}, now) },
		"zero Verifier": func() (verifier.Attestation, error) { return new(verifier.Verifier).Verify(s, now) },
		"nil Verifier":  func() (verifier.Attestation, error) { return none.Verify(s, now) },
		"zero time":     func() (verifier.Attestation, error) { return v.Verify(s, time.Time{}) },
	} {
		a, err := verify()
		var r *verifier.Refusal
		if !errors.As(err, &r) || !a.IsZero() {
			t.Errorf("%s: %v, want a refusal", name, err)
		}
	}
	if _, err := verifier.New(nil); err == nil {
		t.Error("New(nil) made a Verifier")
	}
	if _, err := verifier.New(&verifier.Policy{}); err == nil {
		t.Error("New made a Verifier of the empty policy")
	}
	if !(verifier.Attestation{}).IsZero() || !(verifier.SBA{}).IsZero() || !(verifier.Ledger{}).IsZero() {
		t.Error("a zero value says that it is not")
	}
}

func TestVerifierKeepsItsOwnPolicy(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	v, err := verifier.New(p.policy)
	if err != nil {
		t.Fatal(err)
	}
	s, err := verifier.ParseSBA(sign(t, dsse.PayloadType, payload(t, statement(t, p.stranger.Public())), p.stranger))
	if err != nil {
		t.Fatal(err)
	}
	p.policy.Publishers[0].Keys[0] = p.stranger.Public()
	if _, err := v.Verify(s, now); err == nil {
		t.Error("a key written into the policy after New was believed")
	}
}

func TestNoPublishersDeniesEverything(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	empty, err := p.policy.RemovePublisher("acme")
	if err != nil {
		t.Fatal(err)
	}
	_, err = verify(t, empty, sign(t, dsse.PayloadType, payload(t, statement(t, p.publisher.Public())), p.publisher))
	var r *verifier.Refusal
	if !errors.As(err, &r) || r.Reason != verifier.ReasonSigner || !strings.Contains(err.Error(), "clawfs publisher trust") {
		t.Errorf("Verify = %v, want a refusal that names the next command", err)
	}
}

// TestEveryOrder: which of several signatures comes first decides nothing, and
// neither does junk between them or the alphabet of their base64.
func TestEveryOrder(t *testing.T) {
	p := newParty(t, dsse.ECDSAP256)
	policy := windowed(t, p, 2, nil)
	body := payload(t, statement(t, p.publisher.Public()))
	signature := func(k dsse.PrivateKey) []byte {
		sig, err := k.Sign(t.Context(), dsse.PayloadType, body)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	first, second, other := signature(p.publisher), signature(p.second), signature(p.stranger)
	std, url := base64.StdEncoding.EncodeToString, base64.URLEncoding.EncodeToString
	list := []string{std(first), url(second), std(other), "!", std(bytes.Repeat([]byte{0xff}, 64))}
	orders := 0
	permute(list, func(order []string) {
		orders++
		var text []string
		for _, sig := range order {
			// The hint says that each is by the other key.
			text = append(text, `{"keyid":"`+string(p.second.Public().ID())+`","sig":"`+sig+`"}`)
		}
		envelope := `{"payloadType":"` + dsse.PayloadType + `","payload":"` + url(body) + `","signatures":[` + strings.Join(text, ",") + `]}`
		if a, err := verify(t, policy, []byte(envelope)); err != nil || a.Publisher() != p.publisher.Public() {
			t.Errorf("%q: %v by %s", order, err, a.Publisher().ID())
		}
		lacking := strings.Replace(envelope, url(second), url(first), 1)
		var r *verifier.Refusal
		if _, err := verify(t, policy, []byte(lacking)); !errors.As(err, &r) || r.Reason != verifier.ReasonSigner {
			t.Errorf("%q with one signature twice in place of two: %v, want a refusal of the signer", order, err)
		}
	})
	if orders != 120 {
		t.Errorf("%d orders of 5 signatures, want 120", orders)
	}
}

// permute calls f with every order of list.
func permute(list []string, f func([]string)) {
	var rest func(int)
	rest = func(n int) {
		if n == len(list) {
			f(list)
			return
		}
		for i := n; i < len(list); i++ {
			list[n], list[i] = list[i], list[n]
			rest(n + 1)
			list[n], list[i] = list[i], list[n]
		}
	}
	rest(0)
}

// TestThreshold: a rule of two keys needs both, the ledger names one of them,
// and the more specific rule decides.
func TestThreshold(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	policy, err := p.policy.AddPublisher(verifier.PublisherRule{
		Name: "acme-core", Models: []string{"acme/core"}, Keys: []dsse.PublicKey{p.publisher.Public(), p.second.Public()}, Threshold: 2, Images: []string{"*"},
	})
	if err != nil {
		t.Fatal(err)
	}
	st := statement(t, p.second.Public())
	st.Predicate.Model = "acme/core"
	body := payload(t, st)
	tests := []struct {
		name string
		keys []dsse.PrivateKey
		ok   bool
	}{
		{"both", []dsse.PrivateKey{p.publisher, p.second}, true},
		{"both and a stranger", []dsse.PrivateKey{p.stranger, p.second, p.publisher}, true},
		{"the first", []dsse.PrivateKey{p.publisher}, false},
		{"the second", []dsse.PrivateKey{p.second}, false},
		{"one and a stranger", []dsse.PrivateKey{p.second, p.stranger}, false},
	}
	for _, tt := range tests {
		a, err := verify(t, policy, sign(t, dsse.PayloadType, body, tt.keys...))
		var r *verifier.Refusal
		switch {
		case tt.ok && (err != nil || a.Publisher() != p.second.Public() || a.PublisherName() != "acme-core"):
			t.Errorf("%s: %v by %s, want it believed as acme-core", tt.name, err, a.PublisherName())
		case !tt.ok && (!errors.As(err, &r) || r.Reason != verifier.ReasonSigner || !strings.Contains(err.Error(), "expected 2 of 2 keys, got 1")):
			t.Errorf("%s: %v, want a refusal of the signer", tt.name, err)
		}
	}
}

// TestOneBit shows that no single bit of an SBA can be changed.
func TestOneBit(t *testing.T) {
	for _, algorithm := range []string{dsse.Ed25519, dsse.ECDSAP256} {
		p := newParty(t, algorithm)
		v, err := verifier.New(p.policy)
		if err != nil {
			t.Fatal(err)
		}
		good := sign(t, dsse.PayloadType, payload(t, statement(t, p.publisher.Public())), p.publisher)
		for i := range len(good) * 8 {
			bad := bytes.Clone(good)
			bad[i/8] ^= 1 << (i % 8)
			s, err := verifier.ParseSBA(bad)
			if err == nil {
				_, err = v.Verify(s, now)
			}
			var r *verifier.Refusal
			if !errors.As(err, &r) {
				t.Errorf("%s: bit %d of byte %d of %d changed: %v, want a refusal", algorithm, i%8, i/8, len(good), err)
			}
		}
	}
}

// endless is an SBA that never stops, and counts what was read of it.
type endless struct{ n int64 }

func (e *endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '['
	}
	e.n += int64(len(b))
	return len(b), nil
}

func TestReadSBAEndless(t *testing.T) {
	for name, src := range map[string]io.Reader{"endless": new(endless), "1 GiB": io.LimitReader(new(endless), 1<<30)} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := verifier.ReadSBA(src)
		runtime.ReadMemStats(&after)
		var r *verifier.Refusal
		if !errors.As(err, &r) || r.Reason != verifier.ReasonMalformed || !strings.Contains(err.Error(), "expected at most 4194304 bytes") {
			t.Errorf("%s: ReadSBA = %v, want a refusal of its size", name, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > 64<<20 {
			t.Errorf("%s: ReadSBA allocated %d bytes in all, want at most a few times %d", name, got, dsse.MaxEnvelope)
		}
		if e, ok := src.(*endless); ok && e.n > 2*dsse.MaxEnvelope {
			t.Errorf("ReadSBA read %d bytes of an endless input", e.n)
		}
	}
	broken := errors.New("broken pipe")
	if _, err := verifier.ReadSBA(io.MultiReader(strings.NewReader("{"), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("ReadSBA of a broken pipe = %v, want its error", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// A payload longer than any ledger is refused before a signature over it is
// checked: with 61 keys and 16 junk signatures 3 MB of it took four seconds.
func TestParseSBABoundsThePayload(t *testing.T) {
	key := newKey(t, dsse.Ed25519)
	for n, ok := range map[int]bool{1 << 20: true, 1<<20 + 1: false, 3_000_000: false} {
		s, err := verifier.ParseSBA(sign(t, dsse.PayloadType, bytes.Repeat([]byte("x"), n), key))
		if ok != (err == nil) || ok == s.IsZero() {
			t.Errorf("ParseSBA of a payload of %d bytes: %v", n, err)
		}
		var r *verifier.Refusal
		if !ok && (!errors.As(err, &r) || r.Reason != verifier.ReasonMalformed) {
			t.Errorf("%v is not a malformed SBA", err)
		}
	}
}
