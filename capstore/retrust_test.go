package capstore

import (
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/openclaw/clawfs/verifier/dsse"
)

// operators are those whose capabilities a view has, in the order of All.
func operators(v *View) (list []string) {
	for _, g := range v.All() {
		list = append(list, g.Operator())
	}
	slices.Sort(list)
	return list
}

// without is a Trust without the keys of an operator.
func without(t Trust, operator string) Trust {
	theirs := func(s Signer) bool { return s.Operator == operator }
	t.Mints = slices.DeleteFunc(slices.Clone(t.Mints), theirs)
	t.Revokers = slices.DeleteFunc(slices.Clone(t.Revokers), theirs)
	return t
}

func retrust(t testing.TB, r interface{ Retrust(Trust) error }, trust Trust) {
	t.Helper()
	if err := r.Retrust(trust); err != nil {
		t.Fatal(err)
	}
}

// signedBy is what another revoker takes back, alone and in a list.
func signedBy(t testing.TB, key dsse.PrivateKey, sequence int64, alone, listed string) (revocation, list []byte) {
	t.Helper()
	st, err := NewRevocation(KindFile, digestOf(alone).String(), "x", during)
	if err != nil {
		t.Fatal(err)
	}
	if revocation, err = SignRevocation(st, key); err != nil {
		t.Fatal(err)
	}
	l, err := NewList(sequence, during, during.AddDate(0, 0, 7), []ListEntry{{KindFile, digestOf(listed), "x", during}})
	if err != nil {
		t.Fatal(err)
	}
	if list, err = SignList(l, key); err != nil {
		t.Fatal(err)
	}
	return revocation, list
}

func TestRetrustView(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	v := view(t, c.trust(twoOf("alice", "bob")), c.by(t, "alice", 0, st), c.by(t, "bob", 0, st))
	agreed := func() int {
		a, _ := enough(t, v, during)
		if !a.Enough() {
			return -len(a.Operators)
		}
		return len(a.Operators)
	}
	if agreed() != 2 {
		t.Fatal("two of two do not agree")
	}
	before := v.Generation()
	step := func(what string, trust Trust, want int) {
		t.Helper()
		retrust(t, v, trust)
		if before++; v.Generation() != before {
			t.Errorf("%s: generation %d, want %d", what, v.Generation(), before)
		}
		if got := agreed(); got != want {
			t.Errorf("%s: %d operators agree (negative: not enough), want %d", what, got, want)
		}
	}
	three := twoOf("alice", "bob", "carol")
	three.Threshold = 3
	step("higher threshold", c.trust(three), -2)
	step("the first rule again", c.trust(twoOf("alice", "bob")), 2)
	step("bob is struck off", without(c.trust(twoOf("alice", "carol")), "bob"), -1)
	if got := operators(v); !slices.Equal(got, []string{"alice"}) || len(v.ByName("a.bin")) != 1 {
		t.Errorf("capabilities of %q, want alice's alone", got)
	}
	step("bob is back, and his capability is gone", c.trust(twoOf("alice", "bob")), -1)
	if _, err := v.Admit(c.by(t, "bob", 1, st)); err != nil {
		t.Fatal(err)
	}
	before++
	trust := c.trust(twoOf("alice", "bob"))
	trust.Expires, trust.Local = during, "bob"
	step("another end", trust, 2)
	if s := v.Lookup(digestOf("a.bin"))[0].Standing(); !s.PolicyExpires().Equal(during) || s.Local() != "bob" {
		t.Errorf("until %v, local operator %q", s.PolicyExpires(), s.Local())
	}
	// One key under another operator's name: whoever has it counts once.
	for i := range trust.Mints {
		trust.Mints[i].Operator = "alice"
	}
	trust.Rules = []Rule{{Models: []string{"acme/*"}, Operators: []string{"alice"}, Threshold: 1}}
	step("all keys are alice's", trust, 1)
}

// A Trust that is none changes nothing, of a view and of a store.
func TestRetrustRefusals(t *testing.T) {
	w := newWorld(t)
	v, s := w.view(t), openStore(t, storeDir(t), w.trust())
	for _, admit := range []func([]byte) (Capability, error){v.Admit, s.Admit} {
		if _, err := admit(w.capability(t, "", "a.bin")); err != nil {
			t.Fatal(err)
		}
	}
	_, updates, cancel := s.Subscribe(1)
	defer cancel()
	for name, tc := range map[string]struct {
		trust Trust
		want  string
	}{
		"empty":       {Trust{}, "no mint key"},
		"no revoker":  {Trust{Mints: w.trust().Mints}, "no revoker key"},
		"a bad rule":  {Trust{Mints: w.trust().Mints, Revokers: w.trust().Revokers, Rules: []Rule{twoOf("local")}}, "threshold 2 of 1"},
		"a key twice": {Trust{Mints: append(w.trust().Mints, w.trust().Mints...), Revokers: w.trust().Revokers}, "pinned twice"},
	} {
		wantError(t, v.Retrust(tc.trust), tc.want)
		wantError(t, s.Retrust(tc.trust), tc.want)
		for _, v := range []*View{v, s.View()} {
			if len(v.Lookup(digestOf("a.bin"))) != 1 || v.Generation() != 1 {
				t.Errorf("%s: %d grants, generation %d", name, len(v.Lookup(digestOf("a.bin"))), v.Generation())
			}
		}
	}
	if _, err := v.Admit(w.capability(t, "2", "a.bin")); err != nil {
		t.Errorf("the mint does not count any more: %v", err)
	}
	wantError(t, s.View().Retrust(w.trust()), "belongs to a store")
	select {
	case <-updates:
		t.Error("a subscription ended")
	default:
	}
	closeStore(t, s)
	wantError(t, s.Retrust(w.trust()), ErrClosed.Error())
}

// What a revoker took back ends with him, and with nobody else, also if a later
// list of another one repeats all of it.
func TestRetrustRevokers(t *testing.T) {
	w := newWorld(t)
	both := w.trust()
	both.Revokers = append(both.Revokers, Signer{"other", w.stranger.Public()})
	alone, listed := signedBy(t, w.revoker, 1, "alone.bin", "listed.bin")
	theirs, repeated := signedBy(t, w.stranger, 2, "theirs.bin", "listed.bin")
	records := []Record{{Kind: RecordRevocation, Envelope: alone}, {Kind: RecordList, Envelope: listed}, {Kind: RecordRevocation, Envelope: theirs}, {Kind: RecordList, Envelope: repeated}}
	held, inStore := view(t, both), openStore(t, storeDir(t), both)
	for _, name := range []string{"alone.bin", "listed.bin", "theirs.bin"} {
		envelope := w.capability(t, "", name)
		if _, err := held.Admit(envelope); err != nil {
			t.Fatal(err)
		}
		if _, err := inStore.Admit(envelope); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range records {
		if err := held.Apply(r); err != nil {
			t.Fatal(err)
		}
		var err error
		if r.Kind == RecordList {
			_, err = inStore.AdmitList(r.Envelope)
		} else {
			_, err = inStore.Revoke(r.Envelope)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, x := range map[string]struct {
		v *View
		r interface{ Retrust(Trust) error }
	}{"view": {held, held}, "store": {inStore.View(), inStore}} {
		check := func(what string, sequence int64, want ...string) {
			t.Helper()
			var revoked []string
			for _, n := range []string{"alone.bin", "listed.bin", "theirs.bin"} {
				if isRevoked(t, x.v.Lookup(digestOf(n))) {
					revoked = append(revoked, n)
				}
			}
			if !slices.Equal(revoked, want) || x.v.List().Sequence() != sequence {
				t.Errorf("%s, %s: revoked %q under list %d, want %q and %d", name, what, revoked, x.v.List().Sequence(), want, sequence)
			}
		}
		check("both", 2, "alone.bin", "listed.bin", "theirs.bin")
		retrust(t, x.r, without(both, "other"))
		check("without the other", 1, "alone.bin", "listed.bin")
		retrust(t, x.r, without(Trust{Mints: append(both.Mints, Signer{"other", w.publisher.Public()}), Revokers: both.Revokers}, "local"))
		if len(x.v.All()) != 0 {
			t.Errorf("%s: capabilities of a mint that was struck off: %q", name, operators(x.v))
		}
	}
	if got := len(inStore.Rejected()); got != 5 {
		t.Errorf("%d rows are rejected, want 3 capabilities, a revocation and a list", got)
	}
	retrust(t, inStore, both)
	if len(inStore.Rejected()) != 0 || len(inStore.All()) != 3 || !isRevoked(t, inStore.Lookup(digestOf("alone.bin"))) {
		t.Errorf("with all keys again: %d capabilities, rejected %v", len(inStore.All()), inStore.Rejected())
	}
	// A mount's view, which has the newer list, takes the older one of a key that is
	// trusted again.
	if err := held.Apply(Record{Kind: RecordList, Envelope: repeated}); err != nil {
		t.Fatal(err)
	}
	retrust(t, held, without(Trust{Mints: both.Mints, Revokers: append(both.Revokers, Signer{"mint", w.publisher.Public()})}, "nobody"))
	snapshot, _, cancel := inStore.Subscribe(1)
	cancel()
	for _, r := range recordsOf(t, snapshot) {
		if err := held.Apply(r); err != nil {
			t.Error(err)
		}
	}
	if held.Extent() != inStore.View().Extent() || len(held.InForce()) != 3 || len(held.All()) != 3 {
		t.Errorf("extent %d and %d, %d taken back", held.Extent(), inStore.View().Extent(), len(held.InForce()))
	}
}

// Rows of a mint that nobody trusted come in with it, those of one that was struck
// off go, and who subscribes is told to do so again.
func TestRetrustStore(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	dir := filepath.Join(t.TempDir(), "store")
	all := c.trust(twoOf("alice", "carol"))
	s := openStore(t, dir, all)
	for _, o := range []string{"alice", "bob", "carol"} {
		if _, err := s.Admit(c.by(t, o, 0, st)); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
	some := without(c.trust(twoOf("alice", "bob")), "carol")
	s = openStore(t, dir, some)
	if got := operators(s.View()); !slices.Equal(got, []string{"alice", "bob"}) || len(s.Rejected()) != 1 {
		t.Fatalf("capabilities of %q, rejected %v", got, s.Rejected())
	}
	_, updates, cancel := s.Subscribe(8)
	defer cancel()
	before := s.View().Generation()
	next := without(all, "bob")
	retrust(t, s, next)
	select {
	case r, open := <-updates:
		if open {
			t.Errorf("the subscription goes on, with a %s", r.Kind)
		}
	default:
		t.Error("the subscription goes on")
	}
	if got := operators(s.View()); !slices.Equal(got, []string{"alice", "carol"}) || len(s.Rejected()) != 1 || s.View().Generation() != before+1 {
		t.Errorf("capabilities of %q, rejected %v, generation %d after %d", got, s.Rejected(), s.View().Generation(), before)
	}
	if a, _ := enough(t, s.View(), during); !a.Enough() {
		t.Errorf("the rule of now is not met: %+v", a)
	}
	_, err := s.Admit(c.by(t, "bob", 1, st))
	wantError(t, err, "not signed by a trusted mint")
	// What is written afterwards leads on from what was.
	if _, err := s.Admit(c.by(t, "carol", 0, c.statement(t, "2", "b.bin"))); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = openStore(t, dir, next)
	if len(s.All()) != 3 || len(s.Rejected()) != 1 {
		t.Errorf("opened again: %d capabilities, rejected %v", len(s.All()), s.Rejected())
	}
}

// A revocation that is in force and could not be written stays in force, unless its
// revoker was struck off.
func TestRetrustKeepsWhatIsNotOnDisk(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	alone, listed := signedBy(t, w.revoker, 1, "alone.bin", "listed.bin")
	for _, name := range []string{"alone.bin", "listed.bin"} {
		if _, err := s.Admit(w.capability(t, "", name)); err != nil {
			t.Fatal(err)
		}
	}
	r, err := readRevocation(s.view.revokers, alone)
	if err != nil {
		t.Fatal(err)
	}
	l, err := readList(s.view.revokers, listed)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.view.addLoose(r)
	s.view.addList(l)
	s.unsaved[r.ID()], s.unsaved[l.ID()] = true, true
	s.mu.Unlock()
	more := w.trust()
	more.Revokers = append(more.Revokers, Signer{"other", w.stranger.Public()})
	retrust(t, s, more)
	if !isRevoked(t, s.Lookup(digestOf("alone.bin"))) || !isRevoked(t, s.Lookup(digestOf("listed.bin"))) {
		t.Error("what was revoked is granted again")
	}
	more.Revokers = more.Revokers[1:]
	retrust(t, s, more)
	if len(s.View().InForce()) != 0 {
		t.Error("what a revoker took back who was struck off is in force")
	}
}

// Lookups and records at the same time as a Retrust, for the race detector: nobody
// sees half of a Trust, and no record of a key that was struck off stays.
func TestRetrustConcurrently(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	trusts := []Trust{c.trust(twoOf("alice", "bob")), without(c.trust(twoOf("alice", "carol")), "bob")}
	envelopes := [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, st), c.by(t, "carol", 0, st)}
	s := openStore(t, storeDir(t), trusts[0])
	v := view(t, trusts[0], envelopes...)
	for _, e := range envelopes {
		if _, err := s.Admit(e); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	during := func(f func()) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		})
	}
	for _, v := range []*View{v, s.View()} {
		during(func() {
			for _, g := range v.Lookup(digestOf("a.bin")) {
				rule, _ := g.Standing().Rule()
				peers := fmt.Sprint(g.Standing().Peers())
				for _, p := range g.Standing().Peers() {
					if p.Operator() == "bob" && !slices.Contains(rule.Operators, "bob") {
						t.Errorf("a peer of bob's under a rule without him: %s", peers)
					}
				}
			}
			v.Peek(envelopes[1])
			v.Suppose(KindFile, digestOf("a.bin"), time.Now())
		})
	}
	during(func() { v.Admit(envelopes[1]); v.Apply(Record{Kind: RecordCapability, Envelope: envelopes[2]}) })
	during(func() { s.Admit(envelopes[1]); s.Rejected() })
	for i := range 20 {
		retrust(t, v, trusts[(i+1)%2])
		retrust(t, s, trusts[(i+1)%2])
	}
	retrust(t, v, trusts[1])
	retrust(t, s, trusts[1])
	close(stop)
	wg.Wait()
	for _, v := range []*View{v, s.View()} {
		if got := operators(v); slices.Contains(got, "bob") || !slices.Contains(got, "alice") {
			t.Errorf("capabilities of %q after bob was struck off", got)
		}
	}
}
