package main

import (
	"errors"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// The daemon takes records of every kind, once, and of no stranger.
func TestRecords(t *testing.T) {
	r := newRig(t)
	text, err := config.ReadSecret(r.state.RevokeKey())
	if err != nil {
		t.Fatal(err)
	}
	revoker, err := dsse.ParsePrivateKey(text, nil)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	revocation := func(key dsse.PrivateKey) []byte {
		st, err := capstore.NewRevocation(capstore.KindFile, hashpipe.SumBytes([]byte("evil")).String(), "planted in a test", now)
		if err != nil {
			t.Fatal(err)
		}
		e, err := capstore.SignRevocation(st, key)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	list := func(sequence int64) []byte {
		st, err := capstore.NewList(sequence, now, now.Add(time.Hour), nil)
		if err != nil {
			t.Fatal(err)
		}
		e, err := capstore.SignList(st, revoker)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	r.startDaemon()
	c := control.NewClient(r.state.Socket())
	granted := r.capability(r.measured(map[string]string{"a.txt": "a"}))
	ids := make(map[hashpipe.Digest]bool)
	for _, in := range []control.RecordRequest{
		{Kind: capstore.RecordCapability, Envelope: granted},
		{Kind: capstore.RecordRevocation, Envelope: revocation(revoker)},
		{Kind: capstore.RecordList, Envelope: list(2)},
	} {
		for _, added := range []bool{true, false} {
			res, err := c.Admit(t.Context(), in)
			if err != nil || res.Added != added || res.ID.IsZero() {
				t.Errorf("%s: %+v, %v, want added %v", in.Kind, res, err, added)
			}
			ids[res.ID] = true
		}
	}
	if len(ids) != 3 {
		t.Errorf("%d ids of 3 records", len(ids))
	}
	for name, x := range map[string]struct {
		in   control.RecordRequest
		code int
	}{
		"an older list":               {control.RecordRequest{Kind: capstore.RecordList, Envelope: list(1)}, codeRefused},
		"a stranger's revocation":     {control.RecordRequest{Kind: capstore.RecordRevocation, Envelope: revocation(stranger)}, codeSignature},
		"a revocation as a list":      {control.RecordRequest{Kind: capstore.RecordList, Envelope: revocation(revoker)}, codeSignature},
		"a capability as a list":      {control.RecordRequest{Kind: capstore.RecordList, Envelope: granted}, codeSignature},
		"a revocation that permits":   {control.RecordRequest{Kind: capstore.RecordCapability, Envelope: revocation(revoker)}, codeSignature},
		"nothing":                     {control.RecordRequest{Kind: capstore.RecordCapability}, codeSignature},
		"of no kind":                  {control.RecordRequest{Envelope: granted}, codeUsage},
		"as long as no record may be": {control.RecordRequest{Kind: capstore.RecordCapability, Envelope: make([]byte, capstore.MaxRecord+1)}, codeSignature},
	} {
		res, err := c.Admit(t.Context(), x.in)
		var refused *control.Error
		if !errors.As(err, &refused) || refused.Code != x.code || res.Added {
			t.Errorf("%s: %+v, %v, want exit code %d", name, res, err, x.code)
		}
	}
	if got, err := c.CapabilityText(t.Context(), r.caps()[0].ID); err != nil || string(got) != string(granted) {
		t.Errorf("text of the capability: %q, %v", got, err)
	}
	if _, err := c.CapabilityText(t.Context(), hashpipe.SumBytes([]byte("x")).Claim()); err == nil {
		t.Error("the text of a capability that is not there")
	}
	if s := r.status(); s.Capabilities.Live != 1 || s.Revocations != 1 || len(s.Rejected) != 0 {
		t.Errorf("status %+v", s)
	}
}
