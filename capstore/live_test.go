package capstore

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// Of several capabilities of one claim the one that holds longest is live, and
// never one that is revoked, not begun, over or restricted, however long it holds.
func TestLiveAmongRenewals(t *testing.T) {
	w := newWorld(t)
	v := w.view(t)
	admit := func(change func(*Predicate)) Capability { return w.admit(t, v, change) }
	first := admit(func(*Predicate) {})
	now := first.NotBefore().Add(time.Hour)
	live := func() hashpipe.Digest {
		c, _ := v.Live(first.Claim(), now)
		return c.ID()
	}
	if live() != first.ID() {
		t.Fatalf("Live = %s, want the only one", live())
	}
	later := func(d time.Duration) time.Time { return first.NotAfter().Add(d) }
	admit(func(p *Predicate) { p.NotBefore, p.NotAfter = now.Add(time.Second), later(5*time.Hour) })
	admit(func(p *Predicate) { p.NotBefore, p.NotAfter = p.NotBefore.Add(-time.Hour), now })
	admit(func(p *Predicate) { p.NotAfter, p.Restrict = later(4*time.Hour), restrict(t, nil, []int64{1000}, nil) })
	revoked := admit(func(p *Predicate) { p.NotAfter = later(3 * time.Hour) })
	if live() != revoked.ID() {
		t.Errorf("Live = %s, want the renewal %s", live(), revoked.ID())
	}
	if _, err := v.Revoke(w.revocation(t, KindCapability, revoked.ID().String())); err != nil {
		t.Fatal(err)
	}
	if live() != first.ID() {
		t.Errorf("Live = %s, want %s: what holds longer is revoked, not begun, over or restricted", live(), first.ID())
	}
	renewed := admit(func(p *Predicate) { p.NotAfter = later(time.Hour) })
	admit(func(p *Predicate) { p.NotAfter = later(-time.Hour) })
	if live() != renewed.ID() {
		t.Errorf("Live = %s, want the longest %s", live(), renewed.ID())
	}
}

// A mint can sign a ring of claims, each built from the other. Whoever follows it
// comes to an end.
func TestRingOfClaims(t *testing.T) {
	w := newWorld(t)
	v := w.view(t)
	one, two := w.statement(t, "one", "a.bin"), w.statement(t, "two", "b.bin")
	// And the ring hangs on a claim outside of it.
	outside := digestOf("outside")
	one.Predicate.Bases, two.Predicate.Bases = []hashpipe.Digest{two.Predicate.Claim, outside}, []hashpipe.Digest{one.Predicate.Claim}
	slices.SortFunc(one.Predicate.Bases, func(a, b hashpipe.Digest) int { return strings.Compare(a.String(), b.String()) })
	var ring []Capability
	for _, st := range []Statement{one, two} {
		c, err := v.Admit(sign(t, payloadOf(t, st), w.mint))
		if err != nil {
			t.Fatal(err)
		}
		ring = append(ring, c)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if built := v.BuiltFrom(ring[0].Claim()); len(built) != 2 {
			t.Errorf("BuiltFrom = %d capabilities, want both", len(built))
		}
		if built := v.BuiltFrom(outside); len(built) != 2 {
			t.Errorf("BuiltFrom the claim outside = %d capabilities, want both", len(built))
		}
		if _, ok := v.Live(ring[0].Claim(), ring[0].NotBefore()); !ok {
			t.Error("nothing was taken back, and it is not live")
		}
		if _, err := v.Revoke(w.revocation(t, KindClaim, ring[1].Claim().String())); err != nil {
			t.Error(err)
		}
		if _, ok := v.Live(ring[0].Claim(), ring[0].NotBefore()); ok {
			t.Error("its base was taken back, and it is live")
		}
		if lost := v.LostBases(ring[0]); len(lost) != 1 || !lost[0].Direct {
			t.Errorf("LostBases = %+v", lost)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("a ring of two claims is followed without an end")
	}
}
