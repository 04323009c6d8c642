package capstore

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// chain is base <- middle <- top and, beside it, stranger.
type chain struct {
	v                           *View
	base, middle, top, stranger Capability
}

func newChain(t *testing.T, w world) chain {
	t.Helper()
	c := chain{v: w.view(t)}
	admit := func(model string, bases ...hashpipe.Digest) Capability {
		st := w.statement(t, model, model+".bin")
		st.Predicate.Model, st.Predicate.Bases = model, bases
		got, err := c.v.Admit(sign(t, payloadOf(t, st), w.mint))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	c.base = admit("acme/base")
	c.middle = admit("acme/middle", c.base.Claim())
	c.top = admit("acme/top", c.middle.Claim())
	c.stranger = admit("acme/stranger")
	return c
}

func TestRevokedBaseMarksWhatWasBuiltFromIt(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name   string
		kind   Kind
		target func(chain) string
	}{
		{"its claim", KindClaim, func(c chain) string { return c.base.Claim().String() }},
		{"its only capability", KindCapability, func(c chain) string { return c.base.ID().String() }},
		{"its attestation", KindSBA, func(c chain) string { return c.base.SBA().String() }},
		{"its file", KindFile, func(c chain) string { return c.base.Subjects()[0].Digest.String() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t, w)
			now := c.base.NotBefore()
			for _, good := range []Capability{c.base, c.middle, c.top} {
				if _, ok := c.v.Live(good.Claim(), now); !ok || len(c.v.LostBases(good)) != 0 {
					t.Fatalf("%s is lost before anything was revoked", good.Model())
				}
			}
			if _, err := c.v.Revoke(w.revocation(t, tc.kind, tc.target(c))); err != nil {
				t.Fatal(err)
			}
			if lost := c.v.LostBases(c.middle); len(lost) != 1 || lost[0].Claim != c.base.Claim() || !lost[0].Direct {
				t.Errorf("LostBases(middle) = %v", lost)
			}
			if lost := c.v.LostBases(c.top); len(lost) != 1 || lost[0].Claim != c.middle.Claim() || lost[0].Direct {
				t.Errorf("LostBases(top) = %v", lost)
			}
			if len(c.v.LostBases(c.stranger))+len(c.v.LostBases(c.base)) != 0 {
				t.Error("a capability without a lost base is marked")
			}
			for _, g := range c.v.All() {
				_, revoked := g.Revoked()
				if revoked && g.ID() != c.base.ID() {
					t.Errorf("%s fell with its base", g.Model())
				}
			}
			for _, lost := range []Capability{c.base, c.middle, c.top} {
				if got, ok := c.v.Live(lost.Claim(), now); ok {
					t.Errorf("Live(%s) = %s after its base fell", lost.Model(), got.ID())
				}
			}
			if _, ok := c.v.Live(c.stranger.Claim(), now); !ok {
				t.Error("the stranger fell too")
			}
		})
	}
}

func TestLive(t *testing.T) {
	w := newWorld(t)
	c := newChain(t, w)
	for _, tc := range []struct {
		name  string
		claim hashpipe.Digest
		now   time.Time
	}{
		{"no claim", hashpipe.Digest{}, c.base.NotBefore()},
		{"unknown", digestOf("x"), c.base.NotBefore()},
		{"not yet", c.base.Claim(), c.base.NotBefore().Add(-time.Second)},
		{"expired", c.base.Claim(), c.base.NotAfter()},
	} {
		if got, ok := c.v.Live(tc.claim, tc.now); ok || !got.IsZero() {
			t.Errorf("%s: Live = %s", tc.name, got.ID())
		}
	}
	if got, ok := c.v.Live(c.base.Claim(), c.base.NotBefore()); !ok || got.ID() != c.base.ID() {
		t.Errorf("Live = %s, %v", got.ID(), ok)
	}
	var models []string
	for _, g := range c.v.BuiltFrom(c.base.Claim()) {
		models = append(models, g.Model())
	}
	if !slices.Equal(models, []string{"acme/middle", "acme/top"}) {
		t.Errorf("BuiltFrom(base) = %q", models)
	}
	if got := c.v.BuiltFrom(c.top.Claim()); len(got) != 0 {
		t.Errorf("BuiltFrom(top) = %v", got)
	}
}

func TestBasesRefused(t *testing.T) {
	w := newWorld(t)
	a, b := digestOf("a"), digestOf("b")
	if a.String() > b.String() {
		a, b = b, a
	}
	for name, bases := range map[string][]hashpipe.Digest{
		"empty": {}, "a zero": {{}}, "twice": {a, a}, "unsorted": {b, a},
		"too many": make([]hashpipe.Digest, maxBases+1),
	} {
		st := w.statement(t, "", "a.bin")
		st.Predicate.Bases = bases
		if _, err := st.Payload(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	st := w.statement(t, "", "a.bin")
	st.Predicate.Bases = []hashpipe.Digest{a, b}
	if _, err := st.Payload(); err != nil {
		t.Error(err)
	}
}

// TestLongChain: however many models deep, what was built from something that
// was taken back is lost, and is found.
func TestLongChain(t *testing.T) {
	const deep = 200
	w := newWorld(t)
	v := w.view(t)
	var chain []Capability
	for i := range deep {
		st := w.statement(t, fmt.Sprint(i), "model.bin")
		if i > 0 {
			st.Predicate.Bases = []hashpipe.Digest{chain[i-1].Claim()}
		}
		c, err := v.Admit(sign(t, payloadOf(t, st), w.mint))
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, c)
	}
	top, now := chain[deep-1], chain[0].NotBefore()
	if _, ok := v.Live(top.Claim(), now); !ok {
		t.Error("the top is not live")
	}
	for range 5 { // maps have another order each time
		if n := len(v.BuiltFrom(chain[0].Claim())); n != deep-1 {
			t.Errorf("BuiltFrom finds %d of %d", n, deep-1)
		}
	}
	if _, err := v.Revoke(w.revocation(t, KindClaim, chain[0].Claim().String())); err != nil {
		t.Fatal(err)
	}
	if _, ok := v.Live(top.Claim(), now); ok {
		t.Error("the top is live after the first base was taken back")
	}
	if lost := v.LostBases(top); len(lost) != 1 || lost[0].By.Target() != chain[0].Claim().String() {
		t.Errorf("LostBases = %v", lost)
	}
}
