package capstore

import (
	"strings"
	"testing"
)

// A dissent whose text is lost still speaks against the other result: in the store,
// in a mount's view, after a change of the policy; until it is taken back, or there
// again.
func TestLostDissentRefuses(t *testing.T) {
	write := forge(t)
	for name, harm := range map[string]func(dir, key string){
		"deleted": func(dir, key string) { write(dir, key, nil, "-delete") },
		"emptied": func(dir, key string) { write(dir, key, nil) },
		"altered": func(dir, key string) { write(dir, key, []byte("{}")) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCouncil(t)
			one := c.trust(Rule{Models: []string{"acme/*"}, Operators: []string{"alice", "bob", "carol"}, Threshold: 1})
			dir := storeDir(t)
			s := openStore(t, dir, one)
			good := c.by(t, "alice", 0, c.statement(t, "", "a.bin"))
			other := c.by(t, "bob", 0, c.statement(t, "", "c.bin"))
			if _, err := s.Admit(good); err != nil {
				t.Fatal(err)
			}
			dissent, err := s.Admit(other)
			if err != nil {
				t.Fatal(err)
			}
			closeStore(t, s)
			harm(dir, "cap/"+dissent.ID().String())

			refuses := func(v *View, want bool) {
				t.Helper()
				g := v.Lookup(digestOf("a.bin"))
				if len(g) != 1 {
					t.Fatalf("%d grants, want 1", len(g))
				}
				id, operator, lost := g[0].Standing().Unread()
				if lost != want || want && (id != dissent.ID() || operator != "bob") {
					t.Errorf("unread: %s of %s, %v; want %v", id, operator, lost, want)
				}
				state := StateLive
				if want {
					state = StateDisputed
				}
				if got := g[0].State(during); got != state {
					t.Errorf("state %s, want %s", got, state)
				}
				if _, live := v.Live(g[0].Claim(), during); live == want {
					t.Errorf("live: %v, want %v", live, !want)
				}
			}
			s = openStore(t, dir, one)
			defer closeStore(t, s)
			refuses(s.View(), true)
			mount := view(t, one)
			fill := func() {
				t.Helper()
				snapshot, _, cancel := s.Subscribe(1)
				defer cancel()
				for _, r := range recordsOf(t, snapshot) {
					if err := mount.Apply(r); err != nil {
						t.Error(err)
					}
				}
			}
			fill()
			refuses(mount, true)
			fill() // once more
			refuses(mount, true)

			// Who does not count does not speak against anything.
			alone := c.trust(Rule{Models: []string{"acme/*"}, Operators: []string{"alice"}, Threshold: 1})
			for _, step := range []struct {
				trust Trust
				want  bool
			}{{alone, false}, {one, true}} {
				if err := s.Retrust(step.trust); err != nil {
					t.Fatal(err)
				}
				if err := mount.Retrust(step.trust); err != nil {
					t.Fatal(err)
				}
				refuses(s.View(), step.want)
				refuses(mount, step.want)
			}

			for what, envelope := range map[string][]byte{
				"itself":   c.revocation(t, KindCapability, dissent.ID().String()),
				"claim":    c.revocation(t, KindClaim, dissent.Claim().String()),
				"its mint": c.revocation(t, KindMint, string(dissent.Minter())),
			} {
				v := view(t, one)
				snapshot, _, cancel := s.Subscribe(1)
				for _, r := range recordsOf(t, snapshot) {
					if err := v.Apply(r); err != nil {
						t.Error(err)
					}
				}
				cancel()
				refuses(v, true)
				if _, err := v.Revoke(envelope); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				refuses(v, false)
			}

			// It is read again: a conflict as any other.
			if _, err := s.Admit(other); err != nil {
				t.Fatal(err)
			}
			fill()
			for _, v := range []*View{s.View(), mount} {
				g := v.Lookup(digestOf("a.bin"))
				if _, _, lost := g[0].Standing().Unread(); lost || g[0].Standing().Conflict().ID() != dissent.ID() {
					t.Errorf("unread %v, conflict %s; want the dissent itself", lost, g[0].Standing().Conflict().ID())
				}
			}
			if bad := s.Rejected(); len(bad) > 0 && !strings.Contains(bad[0].Key, dissent.ID().String()) {
				t.Errorf("rejected %v", bad)
			}
		})
	}
}

// A renewal or a copy of the same result that is lost speaks against nothing.
func TestLostPeerRefusesNothing(t *testing.T) {
	write := forge(t)
	c := newCouncil(t)
	trust := c.trust(Rule{Models: []string{"acme/*"}, Operators: []string{"alice", "bob", "carol"}, Threshold: 1})
	dir := storeDir(t)
	s := openStore(t, dir, trust)
	if _, err := s.Admit(c.by(t, "alice", 0, c.statement(t, "", "a.bin"))); err != nil {
		t.Fatal(err)
	}
	peer, err := s.Admit(c.by(t, "bob", 0, c.statement(t, "", "a.bin")))
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	write(dir, "cap/"+peer.ID().String(), nil, "-delete")
	s = openStore(t, dir, trust)
	defer closeStore(t, s)
	g := s.Lookup(digestOf("a.bin"))
	if len(g) != 1 || g[0].State(during) != StateLive {
		t.Errorf("%d grants, the first %v; want one that is live", len(g), g)
	}
}
