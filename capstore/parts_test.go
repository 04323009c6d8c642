package capstore

import (
	"strings"
	"testing"
)

// A view that is full says so and grants nothing; a revocation counts all the same.
func TestViewIsFull(t *testing.T) {
	w := newWorld(t)
	v, err := NewView(w.trust())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	last := v.spool.last
	v.spool.last = maxNumber
	if c, err := v.Admit(w.capability(t, "", "b.bin")); err == nil || !c.IsZero() || !strings.Contains(err.Error(), "are the most that a view holds") {
		t.Errorf("Admit = %v, %v", c.ID(), err)
	}
	if _, err := v.Revoke(w.revocation(t, KindFile, digestOf("a.bin").String())); err != nil {
		t.Error(err)
	}
	v.spool.last = last
	if g := v.Lookup(digestOf("b.bin")); len(g) != 0 {
		t.Errorf("%d grants of what was not admitted", len(g))
	}
	if !isRevoked(t, v.Lookup(digestOf("a.bin"))) {
		t.Error("what was revoked is granted")
	}
}

// A revocation of which only the entry is left is one, however often it comes.
func TestTextlessRevocationOnce(t *testing.T) {
	w := newWorld(t)
	v, err := NewView(w.trust())
	if err != nil {
		t.Fatal(err)
	}
	r, err := readRevocation(v.revokers, w.revocation(t, KindFile, digestOf("a.bin").String()))
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := v.Apply(Record{Kind: RecordRevocation, Entry: r.fact().body()}); err != nil {
			t.Fatal(err)
		}
	}
	if _, n := v.Count(); n != 1 || len(v.InForce()) != 1 {
		t.Errorf("%d revocations, %d in force, want 1", n, len(v.InForce()))
	}
}
