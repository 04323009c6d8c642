package registry

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json"
	goregistry "github.com/google/go-containerregistry/pkg/registry"
	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/rebuild/oci/ocitest"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func key(t testing.TB) dsse.PrivateKey {
	t.Helper()
	k, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func sign(t testing.TB, payload string, keys ...dsse.PrivateKey) []byte {
	t.Helper()
	if len(keys) == 0 {
		keys = []dsse.PrivateKey{key(t)}
	}
	e, err := dsse.Sign(dsse.PayloadType, []byte(payload), keys...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

const (
	keyID  = "0449aaaaaaaaaaaa0449aaaaaaaaaaaa0449aaaaaaaaaaaa0449aaaaaaaaaaaa"
	sbaHex = "7d6e000000000000000000000000000000000000000000000000000000000001"
)

func sbaPayload(model string) string {
	return `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"source","digest":{"gitCommit":"4b82"}}],` +
		`"predicateType":"https://github.com/openclaw/clawfs/build-ledger/v1",` +
		`"predicate":{"model":"` + model + `","version":"1.2.0","sequence":12,"publisher":{"keyid":"` + keyID + `"}}}`
}

func capPayload(notAfter string) string {
	return `{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"https://github.com/openclaw/clawfs/capability/v1",` +
		`"predicate":{"model":"acme/langid","version":"1.2.0","sequence":12,"sba":{"digest":{"sha256":"` + sbaHex + `"}},"minter":{"keyid":"` + keyID + `"},"notAfter":"` + notAfter + `"}}`
}

func revPayload(reason string) string {
	return `{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"https://github.com/openclaw/clawfs/revocation/v1",` +
		`"predicate":{"kind":"sba","reason":"` + reason + `","revoker":{"keyid":"` + keyID + `"}}}`
}

// statementOf is a statement of any type.
func statementOf(predicateType, subject, predicate string) string {
	return `{"_type":"https://in-toto.io/Statement/v1","subject":[` + subject + `],"predicateType":"` + predicateType + `","predicate":` + predicate + `}`
}

func identify(t testing.TB, envelope []byte) Record {
	t.Helper()
	r, err := Identify(envelope)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func proof(t testing.TB) []byte {
	t.Helper()
	text, err := os.ReadFile("../../../../verifier/tlog/testdata/11.tlog-proof")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func options() oci.Options {
	return oci.Options{Transport: http.DefaultTransport, Trusted: true}
}

func open(t testing.TB, location string) *Place {
	t.Helper()
	p, err := Open(location, options())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func inProcess(t testing.TB) string {
	t.Helper()
	srv := httptest.NewServer(goregistry.New(goregistry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// places are one of each kind.
func places(t testing.TB) map[string]*Place {
	addr, _ := ocitest.Distribution(t, "")
	return map[string]*Place{
		"distribution": open(t, "oci://"+addr+"/acme/trust"),
		"in process":   open(t, "oci://"+inProcess(t)+"/acme/trust"),
		"layout":       open(t, filepath.Join(t.TempDir(), "trust")),
	}
}

func TestIdentify(t *testing.T) {
	short := func(s string) string { return s[:16] }
	id := func(payload string) string { return hashpipe.SumBytes([]byte(payload)).String() }
	failure := statementOf("https://github.com/openclaw/clawfs/rebuild-failure/v1", `{"name":"acme/langid","digest":{"sha256":"`+sbaHex+`"}}`, `{"model":"acme/langid","version":"1","sequence":3}`)
	provenance := statementOf("https://slsa.dev/provenance/v1", `{"name":"langid.bin","digest":{"sha256":"`+keyID+`"}}`,
		`{"runDetails":{"byproducts":[{"name":"attestation","digest":{"sha256":"`+sbaHex+`"}},{"name":"assurance"}]}}`)
	list := statementOf("https://github.com/openclaw/clawfs/revocation-list/v1", "", `{"sequence":41}`)
	policy := `{"revision":7}`
	for _, tt := range []struct {
		payload string
		kind    Kind
		tag     string
	}{
		{sbaPayload("acme/langid"), SBA, "sba-" + id(sbaPayload("acme/langid"))},
		{capPayload("2027"), Capability, "cap-" + sbaHex + "-0449aaaaaaaaaaaa-" + short(id(capPayload("2027")))},
		{revPayload("x"), Revocation, "rev-" + id(revPayload("x"))},
		{failure, Provenance, "rec-" + sbaHex + "-" + short(id(failure))},
		{provenance, Provenance, "rec-" + sbaHex + "-" + short(id(provenance))},
		{list, RevocationList, "list-41-" + short(id(list))},
		{policy, Policy, "policy-7-" + short(id(policy))},
	} {
		envelope := sign(t, tt.payload)
		if tt.kind == Policy {
			var err error
			if envelope, err = dsse.Sign("application/vnd.clawfs.policy+json", []byte(tt.payload), key(t)); err != nil {
				t.Fatal(err)
			}
		}
		r := identify(t, envelope)
		if r.Kind != tt.kind || r.Tag() != tt.tag || r.ID.String() != id(tt.payload) {
			t.Errorf("Identify = %s %s %s, want %s %s", r.Kind, r.Tag(), r.ID, tt.kind, tt.tag)
		}
		if k, ok := KindOf(r.Tag()); !ok || k != tt.kind {
			t.Errorf("KindOf(%s) = %s, %v", r.Tag(), k, ok)
		}
	}
	// A renewed capability of one mint for one attestation has a tag of its own.
	if identify(t, sign(t, capPayload("2027"))).Tag() == identify(t, sign(t, capPayload("2028"))).Tag() {
		t.Error("two capabilities have one tag")
	}
	// The tag does not depend on who signed.
	if identify(t, sign(t, capPayload("2027"))).Tag() != identify(t, sign(t, capPayload("2027"), key(t), key(t))).Tag() {
		t.Error("one capability has two tags")
	}
	// A chain is about what its root is about and identified by its last line.
	child := statementOf("https://example.com/narrower/v1", "", `{}`)
	chain := append(append(sign(t, capPayload("2027")), '\n'), sign(t, child)...)
	if r := identify(t, chain); r.Kind != Capability || r.Tag() != "cap-"+sbaHex+"-0449aaaaaaaaaaaa-"+short(id(child)) {
		t.Errorf("Identify of a chain = %s %s", r.Kind, r.Tag())
	}
}

// What takes back comes first, and lists one after the other.
func TestOrder(t *testing.T) {
	want := []string{
		"rev-" + keyID, "rev-" + sbaHex, "list-9-0449aaaaaaaaaaaa", "list-10-0000aaaaaaaaaaaa", "policy-2-0449aaaaaaaaaaaa", "policy-11-0449aaaaaaaaaaaa",
		"sba-" + sbaHex, "rec-" + sbaHex + "-0449aaaaaaaaaaaa", "cap-" + sbaHex + "-0449aaaaaaaaaaaa-0449aaaaaaaaaaaa", "latest",
	}
	got := slices.Clone(want)
	slices.Sort(got)
	slices.SortFunc(got, Order)
	if !slices.Equal(got, want) {
		t.Errorf("sorted: %q, want %q", got, want)
	}
}

func TestIdentifyRefuses(t *testing.T) {
	other, err := dsse.Sign("text/plain", []byte(sbaPayload("a/b")), key(t))
	if err != nil {
		t.Fatal(err)
	}
	line := func(payload string) string { return string(sign(t, payload)) }
	for name, tt := range map[string]struct {
		envelope string
		text     string
		unknown  bool
	}{
		"nothing":                   {"", "reading JSON", false},
		"garbage":                   {"{}", "payloadType is missing", false},
		"other payload type":        {string(other), "payloadType", true},
		"no statement":              {line(`[]`), "no statement", true},
		"other statement":           {line(`{"_type":"x"}`), "_type", true},
		"unknown predicate":         {line(statementOf("https://example.com/x", "", "{}")), "https://example.com/x", true},
		"doubled member":            {line(`{"_type":"https://in-toto.io/Statement/v1","_type":"x"}`), "duplicate", true},
		"key id in capitals":        {line(strings.ReplaceAll(sbaPayload("a/b"), keyID, strings.ToUpper(keyID))), "publisher.keyid", false},
		"no attestation":            {line(strings.ReplaceAll(capPayload("1"), sbaHex, "")), "digest", false},
		"attestation with a slash":  {line(strings.ReplaceAll(capPayload("1"), sbaHex, strings.Repeat("../", 21)+"a")), "digest", false},
		"list without a sequence":   {line(statementOf("https://github.com/openclaw/clawfs/revocation-list/v1", "", "{}")), "sequence", false},
		"record about nothing":      {line(statementOf("https://slsa.dev/provenance/v1", "", "{}")), "attestation", false},
		"two attestations":          {line(sbaPayload("a/b")) + "\n" + line(sbaPayload("a/c")), "only a capability", false},
		"chain with an empty line":  {line(capPayload("1")) + "\n\n" + line(capPayload("2")), "reading JSON", false},
		"chain of too many":         {strings.Repeat(line(capPayload("1"))+"\n", 9), "reading JSON", false},
		"model instead of a record": {"\x00\x01GGUF", "reading JSON", false},
	} {
		r, err := Identify([]byte(tt.envelope))
		if err == nil || !strings.Contains(err.Error(), tt.text) || errors.Is(err, ErrKind) != tt.unknown {
			t.Errorf("%s: Identify = %v, %v; want an error with %q", name, r.Tag(), err, tt.text)
		}
	}
	for _, tag := range []string{"", "latest", "sba-", "sba-" + sbaHex + "x", "sba-" + sbaHex[1:], "rev-1", "cap-" + sbaHex, "list-0-0449aaaaaaaaaaaa", "list--0449aaaaaaaaaaaa", "sba-../" + sbaHex[3:]} {
		if k, ok := KindOf(tag); ok {
			t.Errorf("KindOf(%q) = %s", tag, k)
		}
	}
}

// Every kind comes back as it went, from every kind of place.
func TestRoundTrip(t *testing.T) {
	for name, p := range places(t) {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			if _, err := p.Tags(ctx); !errors.Is(err, oci.ErrAbsent) {
				t.Errorf("Tags of what is not there: %v, want ErrAbsent", err)
			}
			sba := identify(t, sign(t, sbaPayload("acme/langid")))
			capability := identify(t, sign(t, strings.ReplaceAll(capPayload("2027"), sbaHex, sba.ID.String())))
			revocation := identify(t, sign(t, revPayload("x")))
			for _, r := range []Record{sba, capability, revocation} {
				for _, want := range []Outcome{Pushed, Present} {
					if got, err := p.Push(ctx, r, false); got != want || err != nil {
						t.Fatalf("Push of %s = %q, %v, want %q", r.Kind, got, err, want)
					}
				}
			}
			tags, err := p.Tags(ctx)
			if want := []string{capability.Tag(), revocation.Tag(), sba.Tag()}; err != nil || !slices.Equal(tags, want) {
				t.Errorf("Tags = %q, %v, want %q", tags, err, want)
			}
			for _, r := range []Record{sba, capability, revocation} {
				got, err := p.Fetch(ctx, r.Tag())
				if err != nil || string(got.Envelope) != string(r.Envelope) || got.ID != r.ID || got.Claims != r.Claims || got.Proof != nil {
					t.Errorf("Fetch of %s = %+v, %v", r.Tag(), got, err)
				}
			}
			// A proof can be added, and is kept by a push without one.
			proved, err := sba.WithProof(proof(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, push := range []struct {
				r    Record
				want Outcome
			}{{proved, ProofAdded}, {proved, Present}, {sba, Present}} {
				if got, err := p.Push(ctx, push.r, false); got != push.want || err != nil {
					t.Errorf("Push = %q, %v, want %q", got, err, push.want)
				}
			}
			got, err := p.Fetch(ctx, sba.Tag())
			if err != nil || string(got.Proof) != string(proof(t)) {
				t.Errorf("Fetch of an SBA with proof: %d bytes of proof, %v", len(got.Proof), err)
			}
			// Other signatures under the same statement are not put over those that are there.
			again := identify(t, sign(t, sbaPayload("acme/langid"), key(t)))
			var conflict *ConflictError
			if _, err := p.Push(ctx, again, false); !errors.As(err, &conflict) {
				t.Errorf("Push of other signatures: %v, want a ConflictError", err)
			}
			if got, err := p.Fetch(ctx, sba.Tag()); err != nil || string(got.Envelope) != string(sba.Envelope) {
				t.Errorf("a refused push changed the tag: %v", err)
			}
			if got, err := p.Push(ctx, again, true); got != Replaced || err != nil {
				t.Errorf("Push with replace = %q, %v", got, err)
			}
			if got, err := p.Fetch(ctx, sba.Tag()); err != nil || string(got.Envelope) != string(again.Envelope) || got.Proof == nil {
				t.Errorf("after a replacement: %d bytes of proof, %v", len(got.Proof), err)
			}
			if _, err := p.Fetch(ctx, "rev-"+sbaHex); !errors.Is(err, oci.ErrAbsent) {
				t.Errorf("Fetch of a tag that is not there: %v", err)
			}
		})
	}
}

// What many push at the same time is all there, and is the same in every place.
func TestConcurrentPushes(t *testing.T) {
	var records []Record
	for i := range 16 {
		records = append(records, identify(t, sign(t, capPayload(fmt.Sprint(2027+i)))))
	}
	for name, p := range places(t) {
		t.Run(name, func(t *testing.T) {
			var group sync.WaitGroup
			for _, r := range records {
				// A Place of its own, as in a process of its own.
				own := open(t, p.String())
				group.Go(func() {
					if got, err := own.Push(t.Context(), r, false); got != Pushed || err != nil {
						t.Errorf("Push = %q, %v", got, err)
					}
				})
			}
			group.Wait()
			tags, err := p.Tags(t.Context())
			if err != nil || len(tags) != 16 {
				t.Errorf("%d tags of 16 concurrent pushes, %v", len(tags), err)
			}
		})
	}
}

// The manifest of a record is decided by the record alone. Another program can
// compute it: see the text.
func TestManifestIsDeterministic(t *testing.T) {
	payload := revPayload("training data withdrawn")
	envelope := `{"payloadType":"application/vnd.in-toto+json","payload":"` + base64Of(payload) + `","signatures":[{"sig":"AAAA"}]}`
	r := identify(t, []byte(envelope))
	want := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/vnd.clawfs.revocation.v1+json",` +
		`"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},` +
		`"layers":[{"mediaType":"application/vnd.dsse.envelope.v1+json","digest":"sha256:` + hashpipe.SumBytes([]byte(envelope)).String() + `","size":` + fmt.Sprint(len(envelope)) + `}],` +
		`"annotations":{"org.opencontainers.image.created":"1970-01-01T00:00:00Z"}}`
	dir := filepath.Join(t.TempDir(), "trust")
	if _, err := open(t, dir).Push(t.Context(), r, false); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", hashpipe.SumBytes([]byte(want)).String()))
	if err != nil || string(text) != want {
		t.Errorf("the manifest is not the one above: %v", err)
	}
	host := inProcess(t)
	if _, err := open(t, "oci://"+host+"/acme/trust").Push(t.Context(), r, false); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + host + "/v2/acme/trust/manifests/" + r.Tag())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != want {
		t.Errorf("the registry has %s, %v, want %s", text, err, want)
	}
}

// A manifest names what it is about only where the registry itself answers who
// refers to it.
func TestSubject(t *testing.T) {
	addr, _ := ocitest.Distribution(t, "")
	native := httptest.NewServer(goregistry.New(goregistry.Logger(log.New(io.Discard, "", 0)), goregistry.WithReferrersSupport(true)))
	defer native.Close()
	sba := identify(t, sign(t, sbaPayload("acme/langid")))
	capability := identify(t, sign(t, strings.ReplaceAll(capPayload("2027"), sbaHex, sba.ID.String())))
	for host, want := range map[string]bool{addr: false, inProcess(t): false, strings.TrimPrefix(native.URL, "http://"): true} {
		p := open(t, "oci://"+host+"/acme/trust")
		for _, r := range []Record{sba, capability} {
			if _, err := p.Push(t.Context(), r, false); err != nil {
				t.Fatal(err)
			}
		}
		var m v1.Manifest
		resp, err := http.Get("http://" + host + "/v2/acme/trust/manifests/" + capability.Tag())
		if err != nil {
			t.Fatal(err)
		}
		err = json.UnmarshalRead(resp.Body, &m)
		resp.Body.Close()
		if err != nil || (m.Subject != nil) != want {
			t.Errorf("subject %+v, %v; want one: %v", m.Subject, err, want)
		}
		if want {
			var index v1.Index
			resp, err := http.Get("http://" + host + "/v2/acme/trust/referrers/" + string(m.Subject.Digest))
			if err != nil {
				t.Fatal(err)
			}
			err = json.UnmarshalRead(resp.Body, &index)
			resp.Body.Close()
			if err != nil || len(index.Manifests) != 1 {
				t.Errorf("referrers %+v, %v", index.Manifests, err)
			}
		}
		tags, err := p.Tags(t.Context())
		if err != nil || len(tags) != 2 {
			t.Errorf("tags %q, %v: a push left something else", tags, err)
		}
		if got, err := p.Push(t.Context(), capability, false); got != Present || err != nil {
			t.Errorf("pushing it again = %q, %v", got, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for location, text := range map[string]string{
		"":                                "absolute path",
		"trust":                           "absolute path",
		"https://registry.example/a":      "absolute path",
		"oci://registry.example":          "expected oci://",
		"oci://registry.example/a:latest": "without a tag",
		"oci://registry.example/a@sha256:" + keyID: "without a tag",
		"oci://user:pw@registry.example/a":         "credentials belong",
		"oci://registry.example/a\nb":              "control characters",
		"oci://registry.example/A":                 "expected oci://",
	} {
		if p, err := Open(location, options()); err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "pw") {
			t.Errorf("Open(%q) = %v, %v; want an error with %q", location, p, err, text)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := identify(t, sign(t, revPayload("x")))
	if _, err := open(t, dir).Push(t.Context(), r, false); err == nil || !strings.Contains(err.Error(), "other things in it") {
		t.Errorf("Push into a directory of something else: %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Error("the refused push left something")
	}
	if _, err := open(t, dir).Push(t.Context(), Record{}, false); err == nil {
		t.Error("a zero Record was pushed")
	}
}

func base64Of(s string) string {
	var out struct {
		B []byte `json:"b"`
	}
	out.B = []byte(s)
	b, _ := json.Marshal(out)
	return strings.TrimSuffix(strings.TrimPrefix(string(b), `{"b":"`), `"}`)
}

func blobDigest(b []byte) digest.Digest {
	return digest.Digest("sha256:" + hashpipe.SumBytes(b).String())
}
