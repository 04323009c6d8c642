package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	vsav1 "github.com/in-toto/attestation/go/predicates/vsa/v1"
	statementv1 "github.com/in-toto/attestation/go/v1"
	oracle "github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/secure-systems-lab/go-securesystemslib/signerverifier"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/record"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// result is what another operator's worker would sign for an attestation, and
// hands it to the daemon.
func (r *rig) result(sba string, mint dsse.PrivateKey, files map[string]string) capstore.Capability {
	r.t.Helper()
	text, err := os.ReadFile(sba)
	if err != nil {
		r.t.Fatal(err)
	}
	policy, err := r.state.LoadPolicy()
	if err != nil {
		r.t.Fatal(err)
	}
	att, err := policy.Verify(text, nil, time.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	st := att.Ledger().Statement()
	now := time.Now().UTC().Truncate(time.Second)
	p := st.Predicate
	payload, err := capstore.NewStatement(r.measured(files), capstore.Predicate{
		Model: p.Model, Version: p.Version, Sequence: p.Sequence,
		SBA:         capstore.Reference{Digest: capstore.DigestSet{SHA256: att.Digest()}},
		Environment: capstore.Reference{Digest: capstore.DigestSet{SHA256: st.Environment().Digest.SHA256}},
		Publisher:   capstore.Publisher{KeyID: att.Publisher().ID(), PublicKey: att.Publisher()},
		Minter:      capstore.Minter{KeyID: mint.Public().ID()},
		Platform:    capstore.Platform{OS: p.Platform.OS, Arch: p.Platform.Arch, CPUFeatures: p.Platform.CPUFeatures, Accelerator: p.Platform.Accelerator},
		NotBefore:   now, NotAfter: now.Add(time.Hour),
	}).Payload()
	if err != nil {
		r.t.Fatal(err)
	}
	envelope, err := dsse.Sign(dsse.PayloadType, payload, mint)
	if err != nil {
		r.t.Fatal(err)
	}
	res, err := control.NewClient(r.state.Socket()).SubmitRecord(r.t.Context(), control.RecordSubmission{Kind: capstore.RecordCapability, Envelope: envelope})
	if err != nil || res.Outcome != control.RecordAdmitted {
		r.t.Fatalf("%+v, %v", res, err)
	}
	view, err := capstore.NewView(policy.Trust())
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := view.Admit(envelope)
	if err != nil || c.ID() != res.ID {
		r.t.Fatalf("%s, want %s: %v", res.ID, c.ID(), err)
	}
	return c
}

// A rebuild that gave other bytes than another operator's is told loudly, freezes
// both, is resolved by hand, and then counts; what is revoked is not built again.
func TestDispute(t *testing.T) {
	const want = "a 2\nb 1\n"
	r := newRig(t)
	sba := r.publish("counts", "count")
	bob := r.operator("bob")
	r.change(func(p *verifier.Policy) {
		p.Accept = []verifier.AcceptRule{{Models: []string{"acme/*"}, Operators: []string{"local", "bob"}, Threshold: 1}}
	})
	r.file("counts.txt", want)
	r.ok("mount", r.src, r.mnt)
	if out := r.ok("disputes"); !strings.Contains(out, "no disputes") {
		t.Errorf("disputes:\n%s", out)
	}
	theirs := r.result(sba, bob, map[string]string{"counts.txt": "a 2\nb 7\n"})
	got := r.run("grant", sba, "--wait", "--timeout", "2m")
	var caps []control.Capability
	r.document(&caps, "caps")
	own := caps[slices.IndexFunc(caps, func(k control.Capability) bool { return k.Operator == "local" })]
	for _, text := range []string{"DISPUTED", "operator local got claim " + own.Claim.String(), "operator bob got claim " + theirs.Claim().String(), "resolve " + own.SBA.String()[:shortID] + " --uphold CLAIM"} {
		if got.code != codeDiffers || !strings.Contains(got.stderr, text) {
			t.Errorf("grant --wait: exit code %d, want %d and %q in\n%s", got.code, codeDiffers, text, got.stderr)
		}
	}
	if len(caps) != 2 || own.State != capDisputed || own.Conflict == nil {
		t.Errorf("caps: %+v", caps)
	}
	// The dissent is kept, and asking again gives the same answer.
	jobs := r.jobs()
	if len(jobs) != 1 || jobs[0].Verdict != capstore.Minted || jobs[0].Capability != own.ID || !strings.HasPrefix(jobs[0].Reason, "DISPUTED: ") {
		t.Errorf("jobs: %+v", jobs)
	}
	r.refused(codeDiffers, []string{"grant", sba, "--wait", "-o", "json"}, `"verdict": "DISPUTED"`)
	if r.opens("counts.txt", want) {
		t.Error("a disputed file opens")
	}
	why := r.run("why", filepath.Join(r.mnt, "counts.txt"))
	for _, text := range []string{"disputed", "operator local got claim", "operator bob got claim", "clawfs resolve"} {
		if !strings.Contains(why.stdout, text) {
			t.Errorf("why does not say %q:\n%s", text, why.stdout)
		}
	}
	if s := r.status(); s.Capabilities.Disputed != 2 || !r.warns("DISPUTED: 2 capabilities are frozen") {
		t.Errorf("status: %+v, %q", s.Capabilities, s.Warnings)
	}
	var list []dispute
	r.document(&list, "disputes")
	if len(list) != 1 || list[0].SBA != own.SBA || len(list[0].Sides) != 2 {
		t.Fatalf("disputes: %+v", list)
	}
	var affected []control.Affected
	r.document(&affected, "affected", "--by", theirs.Claim().String())
	if len(affected[0].Changed) != 2 || !slices.ContainsFunc(affected[0].Changed, func(c control.Consequence) bool {
		return c.ID == own.ID && c.Before == capDisputed && c.After == capLive
	}) {
		t.Errorf("affected: %+v", affected)
	}
	stranger := filepath.Join(t.TempDir(), "stranger")
	r.ok("keygen", "--out", stranger)
	r.refused(codeRefused, []string{"export", "--vsa", own.ID.String(), "--key", stranger, "--out", "-"}, "is disputed", "operator bob got claim")
	id, claim := own.SBA.String(), own.Claim.String()
	for _, x := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{id, "--uphold", claim}, codeUsage, "reason"},
		{[]string{id, "--reason", "x"}, codeUsage, "uphold"},
		{[]string{id, "--uphold", claim, "--reason", "a\nb"}, codeUsage, "reason"},
		{[]string{id, "--uphold", claim[:7], "--reason", "x"}, codeRefused, "at least 8 digits"},
		{[]string{id, "--uphold", strings.Repeat("ab", 32), "--reason", "x"}, codeRefused, "is a side of 0 disputes"},
		{[]string{claim, "--uphold", claim, "--reason", "x"}, codeRefused, "no dispute over attestation"},
		{[]string{id, "--uphold", claim, "--reason", "x", "--key", stranger}, codeSignature, "is no revoker of the policy"},
	} {
		r.refused(x.code, append([]string{"resolve"}, x.args...), x.want)
	}
	if n := r.status().Revocations; n != 0 {
		t.Fatalf("%d revocations after refusals", n)
	}
	out := r.ok("resolve", id[:minPrefix], "--uphold", claim[:minPrefix], "--reason", "bob: faulty memory")
	for _, text := range []string{"upheld claim " + claim, "revoked claim " + theirs.Claim().String(), "upheld: bob: faulty memory", theirs.Subjects()[0].Digest.String()} {
		if !strings.Contains(out, text) {
			t.Errorf("resolve does not say %q:\n%s", text, out)
		}
	}
	// No sleep: resolve returns when the mounts know.
	if !r.opens("counts.txt", want) {
		t.Error("the upheld result is refused")
	}
	r.refused(codeRefused, []string{"resolve", id, "--uphold", claim, "--reason", "x"}, "no dispute")
	r.ok("grant", sba, "--wait")
	r.exports(sba, own, bob, jobs[0].ID, stranger)

	// Whoever submits it again is told why not.
	r.ok("revoke", "--kind", "sba", id, "--reason", "training data withdrawn")
	r.refused(codeRefused, []string{"grant", sba, "--wait"}, "POLICY_REFUSED", "sba "+id+" was revoked", "training data withdrawn")
	r.refused(codeRefused, []string{"export", "--vsa", own.ID.String(), "--key", stranger, "--out", "-"}, "is revoked", "training data withdrawn")
	if n := len(r.jobs()); n != 1 {
		t.Errorf("%d jobs, want the first alone", n)
	}
}

// exports checks the summaries of a capability, by the libraries of in-toto.
func (r *rig) exports(sba string, own control.Capability, bob dsse.PrivateKey, job, key string) {
	t := r.t
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	alice, bobs, failed, foreign := file("alice"), file("bob"), file("failed"), file("foreign")
	r.ok("record", job, "--out", alice)
	text, err := os.ReadFile(alice)
	if err != nil {
		t.Fatal(err)
	}
	e, err := dsse.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(path string, payload []byte, key dsse.PrivateKey) {
		envelope, err := dsse.Sign(dsse.PayloadType, payload, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, envelope, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	payload := e.UnverifiedPayload()
	sign(bobs, payload, bob)
	sign(foreign, []byte(strings.Replace(string(payload), own.Files[0].SHA256.String(), hashpipe.SumBytes([]byte("x")).String(), 1)), bob)
	private, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := dsse.ParsePrivateKey(private, nil)
	if err != nil {
		t.Fatal(err)
	}
	sign(failed, payload, stranger)
	id := own.ID.String()[:minPrefix]
	base := []string{"export", "--vsa", id, "--key", key}
	for _, x := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"export", "--vsa", id[:7], "--key", key, "--out", "-"}, codeRefused, "want exactly 1"},
		{[]string{"export", "--vsa", id, "--key", r.state.MintKey(), "--out", "-"}, codeRefused, "the mint of operator local"},
		{[]string{"export", "--vsa", id, "--key", r.state.RevokeKey(), "--out", "-"}, codeRefused, "the revoker of operator"},
		{append(slices.Clone(base), "--out", "-", "--resource", "no uri"), codeUsage, "want a URI"},
		{append(slices.Clone(base), "--out", "-", "--provenance", failed), codeSignature, "failed: record"},
		{append(slices.Clone(base), "--out", "-", "--provenance", foreign), codeRefused, "want provenance of " + own.Files[0].SHA256.String()},
		{append(slices.Clone(base), "--out", "-", "--provenance", sba), codeSignature, "record"},
		{base, codeUsage, "out"},
	} {
		r.refused(x.code, x.args, x.want)
	}
	// One operator is no reproduction, and bob's word without bob's capability neither.
	for name, provenance := range map[string][]string{"nobody": nil, "one": {alice}, "one twice": {alice, alice}, "without a capability": {alice, bobs}} {
		if _, p := r.summary(base, key, file("vsa"), provenance...); !slices.Equal(p.VerifiedLevels, []string{levelIdentical}) || len(p.InputAttestations) != 1+len(provenance) {
			t.Errorf("%s: levels %q, %d inputs", name, p.VerifiedLevels, len(p.InputAttestations))
		}
	}
	r.result(sba, bob, map[string]string{"counts.txt": "a 2\nb 1\n"})
	if _, p := r.summary(base, key, file("vsa"), alice); !slices.Equal(p.VerifiedLevels, []string{levelIdentical}) {
		t.Errorf("two agree and one has shown provenance: %q", p.VerifiedLevels)
	}
	st, p := r.summary(base, key, file("vsa"), alice, bobs)
	if !slices.Equal(p.VerifiedLevels, []string{levelIdentical, levelReproduced}) || p.VerificationResult != "PASSED" || p.Verifier.Id != verifierID || p.ResourceUri != "pkg:generic/acme/counts@1.0" || p.SlsaVersion != slsaVersion || time.Since(p.TimeVerified.AsTime()).Abs() > time.Hour {
		t.Errorf("summary: %+v", p)
	}
	if len(st.Subject) != 1 || st.Subject[0].Name != "counts.txt" || st.Subject[0].Digest["sha256"] != own.Files[0].SHA256.String() {
		t.Errorf("subjects: %+v", st.Subject)
	}
	policy, err := r.state.LoadPolicy()
	if err != nil {
		t.Fatal(err)
	}
	if p.Policy.Digest["sha256"] != policy.Digest.String() || p.InputAttestations[0].Digest["sha256"] != own.SBA.String() || p.InputAttestations[1].Digest["sha256"] != hashpipe.SumBytes(text).String() || p.InputAttestations[1].Uri != record.ProvenanceType {
		t.Errorf("policy %+v, inputs %+v", p.Policy, p.InputAttestations)
	}
}

// summary exports one and reads it as others would.
func (r *rig) summary(base []string, key, file string, provenance ...string) (*statementv1.Statement, *vsav1.VerificationSummary) {
	t := r.t
	t.Helper()
	args := append(slices.Clone(base), "--out", file)
	for _, p := range provenance {
		args = append(args, "--provenance", p)
	}
	var v exported
	r.document(&v, args...)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(public)
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	known, err := signerverifier.NewED25519SignerVerifierFromSSLibKey(&signerverifier.SSLibKey{
		KeyType: signerverifier.ED25519KeyType, Scheme: signerverifier.ED25519KeyType, KeyID: string(v.Signer),
		KeyVal: signerverifier.KeyVal{Public: hex.EncodeToString(parsed.(ed25519.PublicKey))},
	})
	if err != nil {
		t.Fatal(err)
	}
	verify, err := oracle.NewEnvelopeVerifier(known)
	if err != nil {
		t.Fatal(err)
	}
	var e oracle.Envelope
	if err := json.Unmarshal(text, &e); err != nil {
		t.Fatal(err)
	}
	if keys, err := verify.Verify(t.Context(), &e); err != nil || len(keys) != 1 {
		t.Fatalf("go-securesystemslib: %v, %v", keys, err)
	}
	payload, err := e.DecodeB64Payload()
	if err != nil {
		t.Fatal(err)
	}
	var st statementv1.Statement
	if err := protojson.Unmarshal(payload, &st); err != nil {
		t.Fatalf("%v in %s", err, payload)
	}
	if err := st.Validate(); err != nil {
		t.Error(err)
	}
	predicate, err := protojson.Marshal(st.Predicate)
	if err != nil {
		t.Fatal(err)
	}
	var p vsav1.VerificationSummary
	if err := protojson.Unmarshal(predicate, &p); err != nil {
		t.Fatalf("%v in %s", err, predicate)
	}
	if st.PredicateType != summaryType {
		t.Errorf("predicateType %s", st.PredicateType)
	}
	return &st, &p
}
