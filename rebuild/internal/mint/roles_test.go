package mint

import (
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// One key that is publisher, mint and revoker at once: every envelope has the
// same payload type, and yet what it signed in one role counts in no other.
func TestOneKeyInEveryRole(t *testing.T) {
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	other := newKey(t).Public() // a policy refuses a mint that is a publisher too
	policy, err := verifier.NewPolicy("local", other, key.Public(), verifier.Builds{Env: []string{"LANG"},
		Limits: verifier.Limits{MemoryBytes: 1, Processes: 1, CPUs: 1, WallSeconds: 1, OutputBytes: 1, LogBytes: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if policy, err = policy.AddPublisher(verifier.PublisherRule{Name: "acme", Models: []string{"acme/*"},
		Keys: []dsse.PublicKey{key.Public()}, Threshold: 1, Images: []string{"*"}}); err != nil {
		t.Fatal(err)
	}
	v, err := verifier.New(policy)
	if err != nil {
		t.Fatal(err)
	}
	self := []capstore.Signer{{Operator: "local", Key: key.Public()}}
	view, err := capstore.NewView(capstore.Trust{Mints: self, Revokers: self})
	if err != nil {
		t.Fatal(err)
	}

	st := attest(t, []string{"true"}, "a").Ledger().Statement()
	st.Predicate.Publisher.KeyID = key.Public().ID()
	ledger, err := st.Payload()
	if err != nil {
		t.Fatal(err)
	}
	m := hashpipe.SumBytes([]byte("a")).Claim()
	verity, err := hashpipe.ParseVerityDigest(m.String())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	capability, err := capstore.NewStatement([]capstore.Subject{{Name: "a", Digest: m, Verity: verity, Size: 1}}, capstore.Predicate{
		Model: "acme/toy", Version: "1", Sequence: 1, SBA: capstore.Reference{Digest: capstore.DigestSet{SHA256: m}},
		Environment: capstore.Reference{Digest: capstore.DigestSet{SHA256: m}},
		Publisher:   capstore.Publisher{KeyID: key.Public().ID(), PublicKey: key.Public()}, Minter: capstore.Minter{KeyID: key.Public().ID()},
		Platform: capstore.Platform{OS: "linux", Arch: "amd64", Accelerator: "none"}, NotBefore: now, NotAfter: now.Add(time.Hour),
	}).Payload()
	if err != nil {
		t.Fatal(err)
	}
	// A revocation whose target is the digest of everything else here, itself
	// excepted: no text can contain its own hash.
	revocation, err := capstore.NewRevocation(capstore.KindCapability, hashpipe.SumBytes(capability).String(), "x", now)
	if err != nil {
		t.Fatal(err)
	}
	revocation.Predicate.Revoker.KeyID = key.Public().ID()
	taken, err := revocation.Payload()
	if err != nil {
		t.Fatal(err)
	}

	for name, payload := range map[string][]byte{"ledger": ledger, "capability": capability, "revocation": taken} {
		envelope, err := dsse.Sign(dsse.PayloadType, payload, key)
		if err != nil {
			t.Fatal(err)
		}
		s, err := verifier.ParseSBA(envelope)
		if err != nil {
			t.Fatal(err)
		}
		_, asSBA := v.Verify(s, now)
		_, asCapability := view.Admit(envelope)
		_, asRevocation := view.Revoke(envelope)
		for role, err := range map[string]error{"ledger": asSBA, "capability": asCapability, "revocation": asRevocation} {
			if (err == nil) != (role == name) {
				t.Errorf("a %s taken as a %s: %v", name, role, err)
			}
		}
	}
}
