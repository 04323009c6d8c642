package rebuild

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// takeBack brings a revocation into force, alone or as an entry of a list.
func (b *bench) takeBack(t *testing.T, listed bool, kind capstore.Kind, target string) {
	t.Helper()
	if !listed {
		b.revoke(t, b.store, kind, target)
		return
	}
	d, err := hashpipe.ParseDigest(target)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	st, err := capstore.NewList(b.store.View().List().Sequence()+1, now, now.Add(time.Hour), []capstore.ListEntry{{Kind: kind, Target: d, Reason: "a list", IssuedAt: now}})
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := capstore.SignList(st, b.revoker)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.AdmitList(envelope); err != nil {
		t.Fatal(err)
	}
}

// TestTakenBackDoesNotMint: whatever of an attestation is taken back, and however
// that became known, it is refused when it is submitted, and when it comes back
// from its worker.
func TestTakenBackDoesNotMint(t *testing.T) {
	targets := func(b *bench, l verifier.Ledger, sba, claim hashpipe.Digest) map[capstore.Kind]string {
		return map[capstore.Kind]string{
			capstore.KindSBA:       sba.String(),
			capstore.KindPublisher: string(b.publisher.Public().ID()),
			capstore.KindImage:     l.Statement().Environment().Digest.SHA256.String(),
			capstore.KindClaim:     claim.String(),
		}
	}
	claimOf := func(b *bench, job jobFile, l verifier.Ledger) hashpipe.Digest {
		c, _, err := b.store.View().Peek(capability(b.t, job, l, b.publisher.Public(), b.mint, "weights"))
		if err != nil {
			b.t.Fatal(err)
		}
		return c.Claim()
	}
	for _, listed := range []bool{false, true} {
		for _, kind := range []capstore.Kind{capstore.KindSBA, capstore.KindPublisher, capstore.KindImage, capstore.KindClaim} {
			var claim hashpipe.Digest
			during := false
			b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
				claim = claimOf(b, job, l)
				if during {
					b.takeBack(b.t, listed, kind, targets(b, l, job.SBA, claim)[kind])
				}
				return mints(ctx, b, dir, job, l)
			})
			b.run()
			job := b.wait(b.submit("1.0.0").ID)
			if job.Verdict != capstore.Minted {
				t.Fatalf("%s: %s %s", kind, job.Verdict, job.Reason)
			}
			during = true
			second := b.wait(b.submit("2.0.0").ID)
			if second.Verdict != capstore.PolicyRefused || !strings.Contains(second.Reason, string(kind)+" ") || !strings.Contains(second.Reason, "was revoked") {
				t.Errorf("%s revoked during the build (in a list: %v): %s %q", kind, listed, second.Verdict, second.Reason)
			}
			if n := len(b.store.All()); n != 1 {
				t.Errorf("%s: %d capabilities, want the first alone", kind, n)
			}
			envelope, att := b.attest(t, b.statement("1.0.0", "train"))
			first := b.store.All()[0]
			b.takeBack(t, listed, kind, targets(b, att.Ledger(), att.Digest(), first.Claim())[kind])
			jobs, err := b.store.Jobs()
			if err != nil {
				t.Fatal(err)
			}
			var f *Failure
			if _, err := b.queue.Submit(envelope, att, capstore.Locations{}, 0); !errors.As(err, &f) || f.Verdict != capstore.PolicyRefused || !strings.Contains(f.Detail, "was revoked") {
				t.Errorf("%s: submitted again: %v", kind, err)
			}
			if now, err := b.store.Jobs(); err != nil || len(now) != len(jobs) {
				t.Errorf("%s: the refused submission left a job (%v)", kind, err)
			}
		}
	}
}

// TestRevokedMintInList: a worker is told of mints that a list takes back.
func TestRevokedMintInList(t *testing.T) {
	var told []dsse.KeyID
	b := newBench(t, func(ctx context.Context, b *bench, dir string, job jobFile, l verifier.Ledger) error {
		told = job.RevokedMints
		return mints(ctx, b, dir, job, l)
	})
	b.takeBack(t, true, capstore.KindMint, string(b.mint.Public().ID()))
	b.run()
	job := b.wait(b.submit("1.0.0").ID)
	if len(told) != 1 || told[0] != b.mint.Public().ID() || job.Verdict != capstore.PolicyRefused {
		t.Errorf("told of %v, ended as %s", told, job.Verdict)
	}
}

// TestDissent: a result that is not another operator's is signed and kept, and the
// job says that it is disputed. Whose claim was taken back has no say.
func TestDissent(t *testing.T) {
	other, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, mints)
	trust := b.parties.trust()
	trust.Local = trust.Mints[0].Operator
	trust.Mints = append(trust.Mints, capstore.Signer{Operator: "bob", Key: other.Public()})
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	store, err := capstore.Open(filepath.Join(b.dir, "store"), filepath.Join(b.dir, "store.memory"), trust)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	b.store, b.queue.store = store, store
	_, att := b.attest(t, b.statement("1.0.0", "train"))
	foreign := func(version, content string) capstore.Capability {
		_, att = b.attest(t, b.statement(version, "train"))
		c, err := store.Admit(capability(t, jobFile{SBA: att.Digest()}, att.Ledger(), b.publisher.Public(), other, content))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	theirs := foreign("1.0.0", "other weights")
	wrong := foreign("2.0.0", "other weights")
	b.revoke(t, store, capstore.KindClaim, wrong.Claim().String())
	foreign("3.0.0", "weights")
	b.run()
	job := b.wait(b.submit("1.0.0").ID)
	if job.Verdict != capstore.Minted || job.Capability.IsZero() || !strings.HasPrefix(job.Reason, "DISPUTED: ") || !strings.Contains(job.Reason, theirs.Claim().String()) || !strings.Contains(job.Reason, "operator bob") {
		t.Errorf("%s %q", job.Verdict, job.Reason)
	}
	// Another's result of 2.0.0 was taken back: that keeps nobody here from measuring.
	if job := b.wait(b.submit("2.0.0").ID); job.Verdict != capstore.Minted || job.Reason != "" {
		t.Errorf("the attestation of another's revoked claim: %s %q", job.Verdict, job.Reason)
	}
	if job := b.wait(b.submit("3.0.0").ID); job.Verdict != capstore.Minted || job.Reason != "" {
		t.Errorf("the same result as another's: %s %q", job.Verdict, job.Reason)
	}
	// A dispute that was resolved in favour of one of them is none.
	b.revoke(t, store, capstore.KindClaim, theirs.Claim().String())
	if again := b.submit("1.0.0"); again.ID != job.ID {
		t.Errorf("the job of the upheld claim does not answer a submission: %+v", again)
	}
	// Ours is taken back, too: the rebuild would lead there again.
	for _, g := range store.All() {
		if g.ID() == job.Capability {
			b.revoke(t, store, capstore.KindClaim, g.Claim().String())
		}
	}
	envelope, att := b.attest(t, b.statement("1.0.0", "train"))
	var f *Failure
	if _, err := b.queue.Submit(envelope, att, capstore.Locations{}, 0); !errors.As(err, &f) || !strings.Contains(f.Detail, "was revoked") {
		t.Errorf("the attestation of our revoked claim: %v", err)
	}
	// Unless another result is known that holds.
	foreign("1.0.0", "the right weights")
	if _, err := b.queue.Submit(envelope, att, capstore.Locations{}, 0); err != nil {
		t.Errorf("beside an upheld result: %v", err)
	}
}
