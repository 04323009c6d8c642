package rebuild

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// parties are the keys of a publisher, a mint and a revoker, and a policy that
// names them.
type parties struct {
	publisher, mint, revoker dsse.PrivateKey
	policy                   *verifier.Policy
}

func newParties(t *testing.T) parties {
	t.Helper()
	var p parties
	for _, k := range []*dsse.PrivateKey{&p.publisher, &p.mint, &p.revoker} {
		key, err := dsse.GenerateKey(dsse.Ed25519)
		if err != nil {
			t.Fatal(err)
		}
		*k = key
	}
	p.setPolicy(t, p.mint.Public())
	return p
}

func (p *parties) setPolicy(t *testing.T, mint dsse.PublicKey) {
	t.Helper()
	policy, err := verifier.NewPolicy("local", mint, p.revoker.Public(), verifier.Builds{
		Env:    []string{"PYTHONHASHSEED", "SOURCE_DATE_EPOCH"},
		Limits: verifier.Limits{MemoryBytes: 256 << 20, Processes: 64, CPUs: 2, WallSeconds: 20, OutputBytes: 16 << 20, LogBytes: 64 << 10},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.policy, err = policy.AddPublisher(verifier.PublisherRule{
		Name: "acme", Models: []string{"acme/*"}, Keys: []dsse.PublicKey{p.publisher.Public()}, Threshold: 1, Images: []string{"*"},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (p parties) store(t *testing.T, dir string) *capstore.Store {
	t.Helper()
	s, err := capstore.Open(dir, dir+".memory", p.trust())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func (p parties) trust() capstore.Trust {
	return capstore.Trust{
		Mints:    []capstore.Signer{{Operator: "local", Key: p.mint.Public()}},
		Revokers: []capstore.Signer{{Operator: "local", Key: p.revoker.Public()}},
	}
}

// digest is the digest of a text that stands for something.
func digest(s string) hashpipe.Digest { return hashpipe.SumBytes([]byte(s)).Claim() }

// statement is a ledger of one stage; version tells ledgers apart.
func (p parties) statement(version string, argv ...string) verifier.Statement {
	commit := verifier.GitCommit(strings.Repeat("4b", 20))
	return verifier.Statement{
		Type: verifier.StatementType, PredicateType: verifier.LedgerType,
		Subject: []verifier.Subject{{Name: verifier.SourceName, Digest: verifier.DigestSet{GitCommit: commit}}},
		Predicate: verifier.Predicate{
			Model: "acme/toy", Version: version, Sequence: 1, IssuedAt: verifier.At(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)),
			Publisher: verifier.Publisher{KeyID: p.publisher.Public().ID()},
			Platform:  verifier.Platform{OS: "linux", Arch: HostPlatform().Arch, Accelerator: "none"},
			BuildDefinition: verifier.BuildDefinition{
				BuildType: verifier.BuildType,
				ExternalParameters: verifier.ExternalParameters{
					Stages:  []verifier.Stage{{Name: "train", Argv: argv}},
					Outputs: []verifier.Output{{Name: "model.bin", Path: "model.bin"}},
				},
				ResolvedDependencies: []verifier.Dependency{
					{Name: verifier.SourceName, Digest: verifier.DigestSet{GitCommit: commit, ClawfsTree1: digest("source")}},
					{Name: verifier.EnvironmentName, Digest: verifier.DigestSet{SHA256: digest("image")}, MediaType: verifier.ImageMediaType},
				},
			},
		},
	}
}

// attest signs a ledger and verifies it, as a daemon does before it submits.
func (p parties) attest(t *testing.T, st verifier.Statement) ([]byte, verifier.Attestation) {
	t.Helper()
	payload, err := st.Payload()
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := dsse.Sign(dsse.PayloadType, payload, p.publisher)
	if err != nil {
		t.Fatal(err)
	}
	att, err := believe(p.policy, envelope, nil)
	if err != nil {
		t.Fatal(err)
	}
	return envelope, att
}

// revoke signs a revocation and puts it into the store.
func (p parties) revoke(t *testing.T, s *capstore.Store, kind capstore.Kind, target string) {
	t.Helper()
	if _, err := s.Revoke(p.revocation(t, kind, target)); err != nil {
		t.Fatal(err)
	}
}

func (p parties) revocation(t *testing.T, kind capstore.Kind, target string) []byte {
	t.Helper()
	st, err := capstore.NewRevocation(kind, target, "a test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := capstore.SignRevocation(st, p.revoker)
	if err != nil {
		t.Fatal(err)
	}
	return envelope
}

// capability is what a mint would sign for an attestation; the queue's tests
// need one without a build. Who signs is the caller's.
func capability(t *testing.T, job jobFile, l verifier.Ledger, publisher dsse.PublicKey, mint dsse.PrivateKey, content string) []byte {
	t.Helper()
	envelope, err := signCapability(job, l, publisher, mint, content)
	if err != nil {
		t.Fatal(err)
	}
	return envelope
}

func signCapability(job jobFile, l verifier.Ledger, publisher dsse.PublicKey, mint dsse.PrivateKey, content string) ([]byte, error) {
	m, err := hashpipe.Measure(context.Background(), strings.NewReader(content), nil)
	if err != nil {
		return nil, err
	}
	p := l.Statement().Predicate
	now := time.Now().UTC().Truncate(time.Second)
	until := now.Add(time.Hour)
	if end := job.Terms.NotAfter; !end.IsZero() && end.Before(until) {
		until = end
	}
	payload, err := capstore.NewStatement(
		[]capstore.Subject{{Name: "model.bin", Digest: m.Sum().Claim(), Verity: m.Tree().Claim(), Size: m.Size()}},
		capstore.Predicate{
			Model: p.Model, Version: p.Version, Sequence: p.Sequence,
			SBA:         capstore.Reference{Digest: capstore.DigestSet{SHA256: job.SBA}},
			Environment: capstore.Reference{Digest: capstore.DigestSet{SHA256: l.Statement().Environment().Digest.SHA256}},
			Publisher:   capstore.Publisher{KeyID: publisher.ID(), PublicKey: publisher},
			Minter:      capstore.Minter{KeyID: mint.Public().ID()},
			Platform:    capstore.Platform{OS: "linux", Arch: "amd64", Accelerator: "none"},
			Restrict:    job.Terms.Restrict, Delegate: job.Terms.Delegate,
			NotBefore: now, NotAfter: until,
		}).Payload()
	if err != nil {
		return nil, err
	}
	return dsse.Sign(dsse.PayloadType, payload, mint)
}
