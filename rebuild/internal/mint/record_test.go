package mint

import (
	"bytes"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild/record"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func TestSignRecord(t *testing.T) {
	k := newKey(t)
	att := attest(t, []string{"true"}, "a")
	now := time.Now().UTC().Truncate(time.Second)
	rec, err := record.Failure(record.Job{
		ID: "1", Ledger: att.Ledger(), StartedAt: now, FinishedAt: now, Program: "clawfs test", Machine: record.Machine{OS: "linux"},
	}, capstore.BuildFailed, "exit status 1", "")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		key  *Key
		rec  record.Record
		want string
	}{
		"no key":         {nil, rec, "no mint key"},
		"zero key":       {&Key{}, rec, "no mint key"},
		"no record":      {k, record.Record{}, "there is none"},
		"neither of two": {nil, record.Record{}, "no mint key"},
	} {
		envelope, err := tc.key.SignRecord(tc.rec)
		wantError(t, err, "signing record", tc.want)
		if envelope != nil {
			t.Errorf("%s: an envelope came with the error", name)
		}
	}

	envelope, err := k.SignRecord(rec)
	if err != nil {
		t.Fatal(err)
	}
	e, err := dsse.Parse(envelope)
	if err != nil {
		t.Fatal(err)
	}
	payload, _, err := e.Verify(dsse.PayloadType, []dsse.PublicKey{k.Public()}, 1)
	if err != nil || !bytes.Equal(payload, rec.Payload()) {
		t.Errorf("the signed record = %q, %v, want %q", payload, err, rec.Payload())
	}
	// It has the mint's signature, and yet grants and revokes nothing.
	self := []capstore.Signer{{Operator: "here", Key: k.Public()}}
	view, err := capstore.NewView(capstore.Trust{Mints: self, Revokers: self})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := view.Admit(envelope); err == nil {
		t.Error("a record was taken as a capability")
	}
	if _, err := view.Revoke(envelope); err == nil {
		t.Error("a record was taken as a revocation")
	}
}
