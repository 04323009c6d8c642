package capstore

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// The examples of docs/capability.md, made anew: the revoker's key is the Ed25519
// seed 00 01 … 1f, whose signatures have no chance in them.
func TestExamplesInDocs(t *testing.T) {
	seed := make([]byte, ed25519.SeedSize)
	for i := range seed {
		seed[i] = byte(i)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ed25519.NewKeyFromSeed(seed))
	if err != nil {
		t.Fatal(err)
	}
	key, err := dsse.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil)
	if err != nil {
		t.Fatal(err)
	}
	hello := digestOf("hello\n")
	at := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	single, err := NewRevocation(KindFile, hello.String(), "training data withdrawn", at)
	if err != nil {
		t.Fatal(err)
	}
	list, err := NewList(7, at.Add(time.Hour), at.AddDate(0, 0, 7), []ListEntry{
		{KindFile, hello, "training data withdrawn", at},
		{KindImage, digestOf("an image"), "compiler backdoor", at.Add(time.Minute)},
	})
	if err != nil {
		t.Fatal(err)
	}
	alone, err := SignRevocation(single, key)
	if err != nil {
		t.Fatal(err)
	}
	listed, err := SignList(list, key)
	if err != nil {
		t.Fatal(err)
	}
	trust := newWorld(t).trust()
	trust.Revokers = []Signer{{"fleet", key.Public()}}
	v := view(t, trust)
	r, err := v.Revoke(alone)
	if err != nil {
		t.Fatal(err)
	}
	l, err := v.AdmitList(listed)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../docs/capability.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		what     string
		id       hashpipe.Digest
		envelope []byte
	}{{"revocation", r.ID(), alone}, {"revocation list", l.ID(), listed}} {
		e, err := dsse.Parse(x.envelope)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("```\n%s\n```\n\nIts id is `%s`, and its envelope\n\n```\n%s\n```\n", e.UnverifiedPayload(), x.id, bytes.TrimSpace(x.envelope))
		if !bytes.Contains(doc, []byte(want)) {
			t.Errorf("docs/capability.md: the example of a %s is not\n\n%s", x.what, want)
		}
	}
}
