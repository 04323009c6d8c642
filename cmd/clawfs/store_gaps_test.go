package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// What has ended stays where leaving it out would open something: one that
// contradicts another, and the base of something.
func TestCompactKeepsWhatSpeaksAgainst(t *testing.T) {
	r := newRig(t)
	publisher, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().UTC().Truncate(time.Second)
	signed := func(name, content string, change func(*capstore.Predicate)) capstore.Capability {
		return r.admitText(r.capabilityFor(r.measured(map[string]string{name: content}), func(p *capstore.Predicate) {
			p.Publisher = capstore.Publisher{KeyID: publisher.Public().ID(), PublicKey: publisher.Public()}
			change(p)
		}))
	}
	ended := func(p *capstore.Predicate) { p.NotBefore, p.NotAfter = at.Add(-2*time.Hour), at.Add(-time.Hour) }
	dissent := signed("a.bin", "other bytes", ended)
	signed("a.bin", "a", func(*capstore.Predicate) {})
	sba := func(name string) capstore.Reference {
		return capstore.Reference{Digest: capstore.DigestSet{SHA256: hashpipe.SumBytes([]byte(name)).Claim()}}
	}
	base := signed("base.bin", "base", func(p *capstore.Predicate) { p.SBA = sba("base") })
	signed("built.bin", "built", func(p *capstore.Predicate) {
		p.SBA, p.Bases = sba("built"), []hashpipe.Digest{base.Claim()}
	})
	over := signed("over.bin", "over", func(p *capstore.Predicate) { ended(p); p.SBA = sba("over") })
	r.startDaemon()
	r.ok("revoke", "--kind", "capability", base.ID().String(), "--reason", "no good")
	r.stopDaemon(syscall.SIGTERM)
	standing := func(what string) {
		t.Helper()
		policy, err := r.state.LoadPolicy()
		if err != nil {
			t.Fatal(err)
		}
		store, err := openStore(r.state, policy)
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		grants := store.Lookup(hashpipe.SumBytes([]byte("a")).Claim())
		if len(grants) != 1 || grants[0].Standing().Conflict().ID() != dissent.ID() {
			t.Errorf("%s: nothing contradicts the file that two results contradict each other about", what)
		}
		if store.View().Lost(base.Claim()).By.IsZero() {
			t.Errorf("%s: the base that was revoked is none that was", what)
		}
	}
	standing("before")
	var c compacted
	r.document(&c, "store", "compact", "--drop-ended")
	standing("after")
	if c.Dropped[capstore.RecordCapability] != 1 || c.Records[capstore.RecordCapability] != 4 {
		t.Errorf("%+v, %+v; want %s alone to be left out", c, c.remade, over.ID())
	}
}

// A source in which there is nothing does not replace a store in which there is
// something.
func TestRebuildFromNothing(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"a.bin": "a"})
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"oci-layout", "index.json"} {
		text := map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`, "index.json": `{"schemaVersion":2,"manifests":[]}`}[name]
		if err := os.WriteFile(filepath.Join(empty, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(r.state.Kept()); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"kept", empty} {
		r.refused(codeRefused, []string{"store", "rebuild", "--from", from}, "no source has a record", "nothing was changed")
	}
	r.startDaemon()
	if s := r.status(); s.Capabilities.Live != 1 {
		t.Errorf("after a rebuild of nothing: %+v", s.Capabilities)
	}
	r.stopDaemon(syscall.SIGTERM)
	// An empty store that can be read is one that may be made again.
	fresh := newRig(t)
	fresh.startDaemon()
	fresh.stopDaemon(syscall.SIGTERM)
	fresh.ok("store", "rebuild")
	fresh.ok("store", "compact")
}
