package record

import (
	"bytes"
	"strings"
	"testing"
	"time"

	provenancev1 "github.com/in-toto/attestation/go/predicates/provenance/v1"
	statementv1 "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func digest(text string) hashpipe.Digest { return hashpipe.SumBytes([]byte(text)).Claim() }

func newKey(t *testing.T) dsse.PrivateKey {
	t.Helper()
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// ledger spells one argument with an escape, which must survive.
func ledger(t *testing.T) verifier.Ledger {
	t.Helper()
	commit := verifier.GitCommit(strings.Repeat("4b", 20))
	st := verifier.Statement{
		Type: verifier.StatementType, PredicateType: verifier.LedgerType,
		Subject: []verifier.Subject{{Name: "source", Digest: verifier.DigestSet{GitCommit: commit}}},
		Predicate: verifier.Predicate{
			Model: "acme/langid", Version: "1", Sequence: 3, IssuedAt: verifier.At(time.Now()),
			Publisher: verifier.Publisher{KeyID: newKey(t).Public().ID()},
			BuildDefinition: verifier.BuildDefinition{
				BuildType: verifier.BuildType,
				ExternalParameters: verifier.ExternalParameters{
					Stages:  []verifier.Stage{{Name: "train", Argv: []string{"train", "<fast>"}, Artifacts: []string{"features.npz"}}},
					Outputs: []verifier.Output{{Name: "m.bin", Path: "m.bin"}},
				},
				ResolvedDependencies: []verifier.Dependency{
					{Name: "source", Digest: verifier.DigestSet{GitCommit: commit, ClawfsTree1: digest("tree")}},
					{Name: "environment", Digest: verifier.DigestSet{SHA256: digest("image")}, MediaType: verifier.ImageMediaType},
					{Name: "dataset:d", URI: "https://a.example/", Digest: verifier.DigestSet{ClawfsTree1: digest("data")},
						Annotations: &verifier.Annotations{Files: 1, Bytes: 2, Mirrors: []string{"https://b.example/"}}},
				},
			},
			Platform: verifier.Platform{OS: "linux", Arch: "amd64", Accelerator: "none"},
		},
	}
	payload, err := st.Payload()
	if err != nil {
		t.Fatal(err)
	}
	payload = bytes.Replace(payload, []byte(`<fast>`), []byte(`\u003cfast\u003e`), 1)
	l, err := verifier.ParseLedger(payload)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func job(t *testing.T) Job {
	build := func(run string) Build {
		return Build{
			Run: run, Seconds: 1.5, Varied: []string{"hostname=" + run},
			Stages:    []Stage{{Name: "train", Seconds: 1.4, PeakMemory: 4096}},
			Outputs:   []File{{Name: "m.bin", Digest: digest("m"), Size: 1}},
			Artifacts: []File{{Stage: "train", Name: "features.npz", Digest: digest("f"), Size: 1}},
		}
	}
	start := time.Now().Add(-time.Minute)
	return Job{
		ID: "abcdefghij", Ledger: ledger(t), StartedAt: start, FinishedAt: start.Add(time.Second), Program: "clawfs test",
		Machine: Machine{OS: "linux", Arch: "amd64", CPUFeatures: []string{"avx2"}, Kernel: "6.1", Executor: "runc"},
		Builds:  []Build{build("one"), build("two")},
	}
}

func TestRecordRefused(t *testing.T) {
	for name, change := range map[string]func(*Job){
		"no job":                 func(j *Job) { j.ID = "" },
		"no ledger":              func(j *Job) { j.Ledger = verifier.Ledger{} },
		"no start":               func(j *Job) { j.StartedAt = time.Time{} },
		"an end before":          func(j *Job) { j.FinishedAt = j.StartedAt.Add(-time.Hour) },
		"no machine":             func(j *Job) { j.Machine = Machine{} },
		"one build":              func(j *Job) { j.Builds = j.Builds[:1] },
		"no outputs":             func(j *Job) { j.Builds[0].Outputs = nil },
		"another output":         func(j *Job) { j.Builds[1].Outputs[0].Digest = digest("x") },
		"another artifact":       func(j *Job) { j.Builds[1].Artifacts[0].Digest = digest("x") },
		"an artifact more":       func(j *Job) { j.Builds[1].Artifacts = append(j.Builds[1].Artifacts, File{Name: "y"}) },
		"an output of no size":   func(j *Job) { j.Builds[1].Outputs[0].Size = 0 },
		"outputs beyond a store": func(j *Job) { j.Builds[0].Varied = []string{strings.Repeat("x", MaxSize)} },
	} {
		j := job(t)
		change(&j)
		if r, err := Provenance(j); err == nil || r.Payload() != nil {
			t.Errorf("%s: Provenance = %s", name, r.Payload())
		}
	}
	for _, v := range []capstore.Verdict{"", "GOOD", capstore.Minted} {
		if r, err := Failure(job(t), v, "reason", ""); err == nil || r.Payload() != nil {
			t.Errorf("Failure with verdict %q was written", v)
		}
	}
}

// TestProvenanceIsSLSA reads provenance with the types that in-toto publishes,
// which refuse fields that they do not know.
func TestProvenanceIsSLSA(t *testing.T) {
	j := job(t)
	r, err := Provenance(j)
	if err != nil {
		t.Fatal(err)
	}
	var st statementv1.Statement
	if err := protojson.Unmarshal(r.Payload(), &st); err != nil {
		t.Fatalf("%v\n%s", err, r.Payload())
	}
	if err := st.Validate(); err != nil {
		t.Error(err)
	}
	text, err := protojson.Marshal(st.Predicate)
	if err != nil {
		t.Fatal(err)
	}
	var p provenancev1.Provenance
	if err := protojson.Unmarshal(text, &p); err != nil {
		t.Fatal(err)
	}
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	if st.Subject[0].Name != "m.bin" || st.Subject[0].Digest["sha256"] != digest("m").String() {
		t.Errorf("subject is %v", st.Subject)
	}
	var found bool
	for _, b := range p.RunDetails.Byproducts {
		found = found || b.Name == "train/features.npz" && b.Digest["sha256"] == digest("f").String()
	}
	if !found || p.RunDetails.Metadata.InvocationId != j.ID {
		t.Errorf("run details are %v", p.RunDetails)
	}
	logged := job(t)
	logged.Logged = capstore.Logged{Origin: "log.example/models", Index: 5, Size: 9}
	if r, err := Provenance(logged); err != nil || !strings.Contains(string(r.Payload()), `"annotations":{"index":"5","origin":"log.example/models","size":"9"}`) {
		t.Errorf("provenance of a logged attestation: %v\n%s", err, r.Payload())
	}
	// The ledger's own spelling, byte for byte.
	_, rest, _ := strings.Cut(string(j.Ledger.Payload()), `"buildDefinition":`)
	definition, _, _ := strings.Cut(rest, `,"platform":`)
	if !strings.Contains(string(r.Payload()), definition) || !strings.Contains(definition, `\u003cfast`) {
		t.Errorf("the build definition is not the ledger's:\n%s\n%s", definition, r.Payload())
	}
}

func TestFailureNamesWhereTheBuildsParted(t *testing.T) {
	j := job(t)
	j.Builds[1].Artifacts[0].Digest = digest("other")
	j.Builds[1].Outputs[0].Digest = digest("other")
	r, err := Failure(j, capstore.Nondeterministic, "two builds differ", "lines")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"verdict":"NONDETERMINISTIC"`, `"firstDivergingStage":"train"`, `"first":"` + digest("m").String(), `"second":"` + digest("other").String(),
		`"subject":[{"name":"acme/langid","digest":{"sha256":"` + j.Ledger.Digest().String(),
	} {
		if !strings.Contains(string(r.Payload()), want) {
			t.Errorf("no %s in\n%s", want, r.Payload())
		}
	}
	var st statementv1.Statement
	if err := protojson.Unmarshal(r.Payload(), &st); err != nil {
		t.Fatal(err)
	}
	if err := st.Validate(); err != nil {
		t.Error(err)
	}
	j.Builds = nil
	if _, err := Failure(j, capstore.FetchFailed, "nobody had it", ""); err != nil {
		t.Error(err)
	}
}

func TestRead(t *testing.T) {
	key, stranger := newKey(t), newKey(t)
	sign := func(payload []byte, k dsse.PrivateKey) []byte {
		t.Helper()
		e, err := dsse.Sign(dsse.PayloadType, payload, k)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	good, err := Provenance(job(t))
	if err != nil {
		t.Fatal(err)
	}
	bad, err := Failure(job(t), capstore.Timeout, "too slow", "")
	if err != nil {
		t.Fatal(err)
	}
	trusted := []dsse.PublicKey{key.Public()}
	for name, envelope := range map[string][]byte{
		"nothing":          nil,
		"no signature":     good.Payload(),
		"a stranger's":     sign(good.Payload(), stranger),
		"a ledger":         sign(ledger(t).Payload(), key),
		"no statement":     sign([]byte(`{}`), key),
		"a minted failure": sign(bytes.Replace(bad.Payload(), []byte("TIMEOUT"), []byte("MINTED"), 1), key),
		"cut":              sign(good.Payload()[:len(good.Payload())-1], key),
	} {
		if v, err := Read(envelope, trusted); err == nil || v.Payload != nil {
			t.Errorf("%s: Read = %+v", name, v)
		}
	}
	if v, err := Read(sign(good.Payload(), key), trusted); err != nil || v.Verdict != capstore.Minted || v.Job != "abcdefghij" || v.Signer != key.Public().ID() {
		t.Errorf("Read(provenance) = %+v, %v", v, err)
	}
	if v, err := Read(sign(bad.Payload(), key), trusted); err != nil || v.Verdict != capstore.Timeout || v.Job != "abcdefghij" {
		t.Errorf("Read(failure) = %+v, %v", v, err)
	}
	// The key that signs records also signs capabilities: neither is the other.
	self := []capstore.Signer{{Operator: "local", Key: key.Public()}}
	view, err := capstore.NewView(capstore.Trust{Mints: self, Revokers: self})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []Record{good, bad} {
		if _, err := view.Admit(sign(r.Payload(), key)); err == nil {
			t.Errorf("a record of type %s was admitted as a capability", r.Type())
		}
		if _, err := view.Revoke(sign(r.Payload(), key)); err == nil {
			t.Errorf("a record of type %s was admitted as a revocation", r.Type())
		}
	}
}
