package capstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/verifier/dsse"
)

// council is a world of three operators, of whom bob has two keys.
type council struct {
	world
	keys map[string][]dsse.PrivateKey
}

func newCouncil(t testing.TB) council {
	t.Helper()
	c := council{world: newWorld(t), keys: make(map[string][]dsse.PrivateKey)}
	for operator, n := range map[string]int{"alice": 1, "bob": 2, "carol": 1} {
		for range n {
			k, err := dsse.GenerateKey(dsse.Ed25519)
			if err != nil {
				t.Fatal(err)
			}
			c.keys[operator] = append(c.keys[operator], k)
		}
	}
	return c
}

func (c council) trust(rules ...Rule) Trust {
	t := Trust{Revokers: []Signer{{"root", c.revoker.Public()}}, Rules: rules}
	for operator, keys := range c.keys {
		for _, k := range keys {
			t.Mints = append(t.Mints, Signer{operator, k.Public()})
		}
	}
	return t
}

func twoOf(operators ...string) Rule {
	return Rule{Models: []string{"acme/*"}, Operators: operators, Threshold: 2}
}

// by signs a statement as an operator's nth key would.
func (c council) by(t testing.TB, operator string, n int, st Statement) []byte {
	t.Helper()
	k := c.keys[operator][n]
	st.Predicate.Minter.KeyID = k.Public().ID()
	return sign(t, payloadOf(t, st), k)
}

func view(t testing.TB, trust Trust, envelopes ...[]byte) *View {
	t.Helper()
	v, err := NewView(trust)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range envelopes {
		if _, err := v.Admit(e); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

var during = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC) // while statement is valid

// enough says what View tells of the file "a.bin" of statement, at a time.
func enough(t testing.TB, v *View, now time.Time) (a Agreement, conflict Capability) {
	t.Helper()
	grants := v.Lookup(digestOf("a.bin"))
	if len(grants) == 0 {
		t.Fatal("there is no grant")
	}
	for _, g := range grants {
		got := g.Standing().Agree(func(p Grant) bool { return p.Valid(now) })
		if g.Valid(now) && got.Enough() {
			a = got
		} else if !a.Enough() {
			a = got
		}
		rule, _ := g.Standing().Rule()
		if o := g.Standing().Conflict(); !o.IsZero() && rule.counts(g.Operator()) && g.revocation.IsZero() {
			conflict = o
		}
	}
	return a, conflict
}

func TestAgreement(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin", "b.bin")
	later, other, sized, verity := st, c.statement(t, "", "a.bin", "c.bin"), c.statement(t, "", "a.bin", "b.bin"), c.statement(t, "", "a.bin", "b.bin")
	later.Predicate.NotBefore = during.AddDate(0, 0, -1)
	later.Predicate.NotAfter = during.AddDate(1, 0, 0)
	ended := st
	ended.Predicate.NotAfter = during
	begins := st
	begins.Predicate.NotBefore = during.Add(time.Second)
	sized.Predicate.Outputs[1].Size++
	verity.Predicate.Outputs[1].FSVerity = verity.Predicate.Outputs[0].FSVerity
	elsewhere := c.statement(t, "", "a.bin", "b.bin")
	elsewhere.Predicate.Platform.CPUFeatures = []string{"avx512f"}
	two := twoOf("alice", "bob", "carol")
	local := func(l LocalVote) Rule { r := two; r.Local = l; return r }

	for name, x := range map[string]struct {
		rule      Rule
		local     string
		envelopes [][]byte
		want      string // the operators that count
		enough    bool
		disputed  bool
	}{
		"one of two":                 {two, "", [][]byte{c.by(t, "alice", 0, st)}, "alice", false, false},
		"two of two":                 {two, "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, later)}, "alice bob", true, false},
		"one operator with two keys": {two, "", [][]byte{c.by(t, "bob", 0, st), c.by(t, "bob", 1, st)}, "bob", false, false},
		"one key twice":              {two, "", [][]byte{c.by(t, "bob", 0, st), c.by(t, "bob", 0, later)}, "bob", false, false},
		"three":                      {two, "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 1, st), c.by(t, "carol", 0, st)}, "alice bob carol", true, false},
		"one whom nobody asked":      {twoOf("alice", "bob"), "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "carol", 0, st)}, "alice", false, false},
		"one that has ended":         {two, "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, ended)}, "alice", false, false},
		"one that has not begun":     {two, "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, begins)}, "alice", false, false},
		"another class of machine":   {two, "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, elsewhere)}, "alice", false, false},
		"a dissent":                  {two, "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, st), c.by(t, "carol", 0, other)}, "alice bob", true, true},
		"a dissent of one file":      {two, "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, other)}, "alice", false, true},
		"another size":               {two, "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, sized)}, "alice", false, true},
		"another fs-verity digest":   {two, "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, verity)}, "alice", false, true},
		"a dissent that has ended": {two, "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, st), func() []byte {
			o := other
			o.Predicate.NotAfter = during
			return c.by(t, "carol", 0, o)
		}()}, "alice bob", true, true},
		"a dissent of one whom nobody asked": {twoOf("alice", "bob"), "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, st), c.by(t, "carol", 0, other)}, "alice bob", true, false},
		"two results of one operator":        {Rule{Models: []string{"acme/*"}, Operators: []string{"alice"}, Threshold: 1}, "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "alice", 0, other)}, "alice", true, true},

		"local required and there":     {local(LocalRequired), "alice", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, st)}, "alice bob", true, false},
		"local required and missing":   {local(LocalRequired), "carol", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, st)}, "alice bob", false, false},
		"local required and no mint":   {local(LocalRequired), "", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, st)}, "alice bob", false, false},
		"local counts":                 {local(LocalCounts), "alice", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, st)}, "alice bob", true, false},
		"local ignored":                {local(LocalIgnored), "alice", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, st)}, "bob", false, false},
		"local ignored and two others": {local(LocalIgnored), "alice", [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, st), c.by(t, "carol", 0, st)}, "bob carol", true, false},
		"a rule for other models":      {Rule{Models: []string{"other/*"}, Operators: []string{"alice"}, Threshold: 1}, "", [][]byte{c.by(t, "alice", 0, st)}, "", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			trust := c.trust(x.rule)
			trust.Local = x.local
			// The order of arrival decides nothing.
			for range 2 {
				v := view(t, trust, x.envelopes...)
				a, conflict := enough(t, v, during)
				if got := strings.Join(a.Operators, " "); got != x.want && x.want != "alice" || a.Enough() != x.enough {
					t.Errorf("operators %q, enough %v (%+v), want %q, %v", got, a.Enough(), a, x.want, x.enough)
				}
				if disputed := !conflict.IsZero(); disputed != x.disputed {
					t.Errorf("disputed: %v, want %v", disputed, x.disputed)
				}
				// A base is live under the same conditions.
				if _, live := v.Live(st.Predicate.Claim, during); live != (x.enough && !x.disputed) {
					t.Errorf("as a base it is live: %v, want %v", live, x.enough && !x.disputed)
				}
				slices.Reverse(x.envelopes)
			}
		})
	}
}

func TestLevel(t *testing.T) {
	for n, want := range []string{"", "rebuilt", "reproduced-2", "reproduced-3"} {
		if got := (Agreement{Operators: make([]string, n)}).Level(); got != want {
			t.Errorf("%d operators: %q, want %q", n, got, want)
		}
	}
	if (Agreement{}).Enough() || (Agreement{Operators: []string{"a"}}).Enough() {
		t.Error("an agreement that nothing asks for is enough")
	}
	if (Standing{}).Agree(func(Grant) bool { return true }).Enough() {
		t.Error("the zero Standing is enough")
	}
}

// A dissent holds until somebody takes one of the results back, on the record;
// which ends a vote ends its dissent too.
func TestDisputeResolved(t *testing.T) {
	c := newCouncil(t)
	st, other := c.statement(t, "", "a.bin", "b.bin"), c.statement(t, "", "a.bin", "c.bin")
	wrong := c.by(t, "carol", 0, other)
	v := view(t, c.trust(twoOf("alice", "bob", "carol")), c.by(t, "alice", 0, st), c.by(t, "bob", 0, st), wrong)
	if _, conflict := enough(t, v, during); conflict.Operator() != "carol" && conflict.Operator() != "alice" && conflict.Operator() != "bob" {
		t.Fatalf("conflict with %q", conflict.Operator())
	}
	for _, target := range []struct {
		kind Kind
		id   string
	}{{KindClaim, other.Predicate.Claim.String()}, {KindMint, string(c.keys["carol"][0].Public().ID())}} {
		v := view(t, c.trust(twoOf("alice", "bob", "carol")), c.by(t, "alice", 0, st), c.by(t, "bob", 0, st), wrong)
		if _, err := v.Revoke(c.revocation(t, target.kind, target.id)); err != nil {
			t.Fatal(err)
		}
		if a, conflict := enough(t, v, during); !a.Enough() || !conflict.IsZero() {
			t.Errorf("after revoking the %s: %+v, conflict %v", target.kind, a, !conflict.IsZero())
		}
	}
	// A revoked vote does not count.
	if _, err := v.Revoke(c.revocation(t, KindMint, string(c.keys["bob"][0].Public().ID()))); err != nil {
		t.Fatal(err)
	}
	if a, _ := enough(t, v, during); a.Enough() {
		t.Errorf("with bob's mint revoked: %+v", a)
	}
}

func TestRevokedImage(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	v := view(t, c.trust(), c.by(t, "alice", 0, st))
	if _, err := v.Revoke(c.revocation(t, KindImage, st.Predicate.Environment.Digest.SHA256.String())); err != nil {
		t.Fatal(err)
	}
	if r, revoked := v.Lookup(digestOf("a.bin"))[0].Revoked(); !revoked || r.Kind() != KindImage {
		t.Errorf("revoked: %v, by %s", revoked, r.Kind())
	}
}

func TestRuleRefusals(t *testing.T) {
	c := newCouncil(t)
	for name, r := range map[string]Rule{
		"no models":          {Operators: []string{"alice"}, Threshold: 1},
		"no operators":       {Models: []string{"acme/*"}, Threshold: 1},
		"threshold 0":        {Models: []string{"acme/*"}, Operators: []string{"alice"}},
		"threshold 2 of 1":   {Models: []string{"acme/*"}, Operators: []string{"alice"}, Threshold: 2},
		"an unknown one":     {Models: []string{"acme/*"}, Operators: []string{"mallory"}, Threshold: 1},
		"one twice":          {Models: []string{"acme/*"}, Operators: []string{"alice", "alice"}, Threshold: 2},
		"another local":      {Models: []string{"acme/*"}, Operators: []string{"alice"}, Threshold: 1, Local: "maybe"},
		"a list of tomorrow": {Models: []string{"acme/*"}, Operators: []string{"alice"}, Threshold: 1, MaxListAge: -time.Second},
	} {
		if _, err := NewView(c.trust(r)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// handed on as a chain: what the mint signed names a first key, and so on.
func (c council) chain(t testing.TB, st Statement, links ...Delegation) (text []byte, keys []dsse.PrivateKey) {
	t.Helper()
	for range len(links) + 1 {
		k, err := dsse.GenerateKey(dsse.Ed25519)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	st.Predicate.Delegate = []dsse.KeyID{keys[0].Public().ID()}
	text = c.by(t, "alice", 0, st)
	for i, d := range links {
		d.Delegate = []dsse.KeyID{keys[i+1].Public().ID()}
		if d.NotBefore.IsZero() {
			d.NotBefore, d.NotAfter = st.Predicate.NotBefore, st.Predicate.NotAfter
		}
		var err error
		if text, err = Delegate(text, d, keys[i]); err != nil {
			t.Fatal(err)
		}
	}
	return text, keys
}

func restrict(t testing.TB, paths []string, uids []int64, mounts []string) *Restrict {
	t.Helper()
	r, err := NewRestrict(paths, uids, mounts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDelegation(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	st.Predicate.Restrict = restrict(t, nil, []int64{1000, 1001}, nil)
	text, _ := c.chain(t, st,
		Delegation{Restrict: restrict(t, []string{"team/"}, nil, nil)},
		Delegation{Restrict: restrict(t, nil, []int64{0, 1001}, []string{"/models"}), NotBefore: during, NotAfter: during.AddDate(5, 0, 0)})
	v := view(t, c.trust(), text)
	g := v.Lookup(digestOf("a.bin"))[0]
	got := g.Capability()
	if len(got.DelegatedBy()) != 2 || got.Operator() != "alice" || len(got.Delegates()) != 1 || got.ID().IsZero() {
		t.Fatalf("delegated by %v, operator %s, delegates %v", got.DelegatedBy(), got.Operator(), got.Delegates())
	}
	// A later link cannot widen: not the time, and not the users.
	if !got.NotBefore().Equal(during) || !got.NotAfter().Equal(st.Predicate.NotAfter) {
		t.Errorf("valid from %v to %v, want %v to %v", got.NotBefore(), got.NotAfter(), during, st.Predicate.NotAfter)
	}
	for _, x := range []struct {
		use  Use
		want bool
	}{
		{Use{Path: "team/a.bin", Mount: "/models", UID: 1001}, true},
		{Use{Path: "team/a.bin", Mount: "/models", Anyone: true}, true},
		{Use{Path: "team/a.bin", Mount: "/models", UID: 1000}, false}, // the last link does not name it
		{Use{Path: "team/a.bin", Mount: "/models", UID: 0}, false},    // the first does not
		{Use{Path: "team/a.bin", Mount: "/other", UID: 1001}, false},
		{Use{Path: "a.bin", Mount: "/models", UID: 1001}, false},
		{Use{Path: "teams/a.bin", Mount: "/models", UID: 1001}, false},
		{Use{Path: "team", Mount: "/models", UID: 1001}, false},
		{Use{}, false},
	} {
		if only := got.Permits(x.use); (only == "") != x.want {
			t.Errorf("%+v: permitted to %q, want permitted %v", x.use, only, x.want)
		}
	}
	// It counts as its mint's vote, once, beside the mint's own.
	if _, err := v.Admit(c.by(t, "alice", 0, st)); err != nil {
		t.Fatal(err)
	}
	if a, _ := enough(t, v, during); len(a.Operators) != 1 {
		t.Errorf("operators %v, want alice alone", a.Operators)
	}
	// Admitting it again, or its text read from a store, is the same capability.
	again, err := v.Admit(text)
	if err != nil || again.ID() != got.ID() {
		t.Errorf("again: %v, %v", again.ID(), err)
	}
	if (Capability{}).Permits(Use{Anyone: true}) == "" {
		t.Error("the zero Capability permits something")
	}
}

func TestChainRevoked(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	text, keys := c.chain(t, st, Delegation{}, Delegation{})
	got := view(t, c.trust(), text).Lookup(digestOf("a.bin"))[0].Capability()
	for i, id := range got.rec.ids {
		for _, r := range [][]byte{c.revocation(t, KindCapability, id.String()), c.revocation(t, KindMint, string(got.rec.chain[i].Predicate.Minter.KeyID))} {
			v := view(t, c.trust(), text)
			if _, err := v.Revoke(r); err != nil {
				t.Fatal(err)
			}
			if _, revoked := v.Lookup(digestOf("a.bin"))[0].Revoked(); !revoked {
				t.Errorf("link %d was revoked, and the capability is not", i)
			}
		}
	}
	// Who may hand it on further has handed nothing on.
	v := view(t, c.trust(), text)
	if _, err := v.Revoke(c.revocation(t, KindMint, string(keys[2].Public().ID()))); err != nil {
		t.Fatal(err)
	}
	if _, revoked := v.Lookup(digestOf("a.bin"))[0].Revoked(); revoked {
		t.Error("a key that signed nothing was revoked, and with it the capability")
	}
}

func TestDelegationRefusals(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	text, keys := c.chain(t, st, Delegation{}, Delegation{})
	lines := strings.SplitAfter(string(text), "\n")
	other, _ := c.chain(t, c.statement(t, "", "a.bin", "b.bin"), Delegation{})
	stranger, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	// forge changes the last link and signs it again as its own author would.
	forge := func(change func(*Statement), key dsse.PrivateKey) string {
		e, err := dsse.Parse([]byte(strings.TrimSpace(lines[2])))
		if err != nil {
			t.Fatal(err)
		}
		st, err := parseStatement(e.UnverifiedPayload())
		if err != nil {
			t.Fatal(err)
		}
		st.Predicate.Minter = Minter{key.Public().ID(), key.Public()}
		change(&st)
		return lines[0] + lines[1] + string(sign(t, payloadOf(t, st), key)) + "\n"
	}
	for name, x := range map[string]struct{ text, want string }{
		"without the mint's":          {lines[1] + lines[2], "not signed by a trusted mint"},
		"a link left out":             {lines[0] + lines[2], "its parent is"},
		"links in another order":      {lines[0] + lines[2] + lines[1], "its parent is"},
		"a link twice":                {lines[0] + lines[1] + lines[1], "its parent is"},
		"two mints":                   {lines[0] + lines[0], "it names no parent"},
		"an empty line":               {lines[0] + "\n" + lines[1], "envelope"},
		"a link of another result":    {lines[0] + strings.SplitAfter(string(other), "\n")[1], "its parent is"},
		"a link that says more":       {forge(func(s *Statement) { s.Predicate.Version = "9" }, keys[1]), "not of the parent's result"},
		"a link of another operator":  {forge(func(s *Statement) { s.Predicate.Platform.Accelerator = "gpu" }, keys[1]), "not of the parent's result"},
		"a link of other models":      {forge(func(s *Statement) { s.Predicate.Bases = append(s.Predicate.Bases, digestOf("x")) }, keys[1]), "not of the parent's result"},
		"signed by nobody's delegate": {forge(func(*Statement) {}, stranger), "may not derive"},
		"signed by an earlier one":    {forge(func(*Statement) {}, keys[0]), "may not derive"},
		"a key that is not the id's":  {forge(func(s *Statement) { s.Predicate.Minter = Minter{keys[1].Public().ID(), keys[1].Public()} }, stranger), "not signed by the required keys"},
		"cut":                         {lines[0] + lines[1] + lines[2][:40], "link 2"},
		"five links":                  {lines[0] + strings.Repeat(lines[1], MaxDelegations+1), "more than 4 delegations"},
	} {
		v := view(t, c.trust())
		if _, err := v.Admit([]byte(x.text)); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, x.want)
		}
		if len(v.All()) != 0 {
			t.Errorf("%s: it was admitted", name)
		}
	}
	// A mint's statement may not carry a key, and a derived one alone is none.
	if _, err := Delegate(text, Delegation{NotBefore: during, NotAfter: during.AddDate(0, 1, 0)}, stranger); err == nil || !strings.Contains(err.Error(), "does not name the key") {
		t.Errorf("a stranger delegates: %v", err)
	}
	if _, err := Delegate(text, Delegation{NotBefore: during, NotAfter: during}, keys[2]); err == nil {
		t.Error("a delegation without an end was signed")
	}
	deep, last := c.chain(t, st, Delegation{}, Delegation{}, Delegation{}, Delegation{})
	if _, err := view(t, c.trust()).Admit(deep); err != nil {
		t.Errorf("%d delegations: %v", MaxDelegations, err)
	}
	if _, err := Delegate(deep, Delegation{NotBefore: during, NotAfter: during.AddDate(0, 1, 0)}, last[MaxDelegations]); err == nil || !strings.Contains(err.Error(), "handed on 4 times") {
		t.Errorf("one more: %v", err)
	}
}

// A mint's envelope may be written on several lines; a chain from it is not.
func TestDelegateFromIndentedText(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	k, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	st.Predicate.Delegate = []dsse.KeyID{k.Public().ID()}
	indented := strings.ReplaceAll(string(c.by(t, "alice", 0, st)), ",", ",\n ")
	if _, err := view(t, c.trust()).Admit([]byte(indented)); err != nil {
		t.Fatal(err)
	}
	text, err := Delegate([]byte(indented), Delegation{NotBefore: during, NotAfter: during.AddDate(0, 1, 0)}, k)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := view(t, c.trust()).Admit(text); err != nil || strings.Count(string(text), "\n") != 2 {
		t.Errorf("%q: %v", text, err)
	}
}

func (c council) list(t testing.TB, sequence int64, issued time.Time, entries ...ListEntry) []byte {
	t.Helper()
	st, err := NewList(sequence, issued, issued.AddDate(0, 0, 7), entries)
	if err != nil {
		t.Fatal(err)
	}
	e, err := SignList(st, c.revoker)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestList(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	entry := ListEntry{KindClaim, st.Predicate.Claim, "training data withdrawn", during}
	rule := Rule{Models: []string{"acme/*"}, Operators: []string{"alice"}, Threshold: 1, MaxListAge: 24 * time.Hour}
	v := view(t, c.trust(rule), c.by(t, "alice", 0, st))
	standing := func() Standing { return v.Lookup(digestOf("a.bin"))[0].Standing() }
	if until, needed := standing().ListUntil(); !needed || !until.IsZero() {
		t.Errorf("without a list: until %v, needed %v", until, needed)
	}
	if _, err := v.AdmitList(c.list(t, 2, during)); err != nil {
		t.Fatal(err)
	}
	if until, needed := standing().ListUntil(); !needed || !until.Equal(during.Add(24*time.Hour)) {
		t.Errorf("until %v, needed %v, want a day", until, needed)
	}
	for name, envelope := range map[string][]byte{
		"older":              c.list(t, 1, during.AddDate(0, 0, 1), entry),
		"another of the two": c.list(t, 2, during.AddDate(0, 0, 1), entry),
	} {
		if _, err := v.AdmitList(envelope); !errors.Is(err, ErrOldList) {
			t.Errorf("%s: %v, want %v", name, err, ErrOldList)
		}
	}
	generation := v.Generation()
	if l, err := v.AdmitList(c.list(t, 3, during.AddDate(0, 0, 2), entry, entry)); err != nil || len(l.Entries()) != 1 || v.List().Sequence() != 3 {
		t.Fatalf("%v, %+v", err, l)
	}
	if v.Generation() == generation {
		t.Error("the generation did not rise")
	}
	if r, revoked := v.Lookup(digestOf("a.bin"))[0].Revoked(); !revoked || r.Kind() != KindClaim || r.Reason() != "training data withdrawn" {
		t.Errorf("revoked: %v, %s", revoked, r.Reason())
	}
	// A list that leaves something out gives nothing back.
	if _, err := v.AdmitList(c.list(t, 4, during.AddDate(0, 0, 3))); err != nil {
		t.Fatal(err)
	}
	if _, revoked := v.Lookup(digestOf("a.bin"))[0].Revoked(); !revoked {
		t.Error("a later list without it gave it back")
	}
}

func TestListRefusals(t *testing.T) {
	c := newCouncil(t)
	good, err := NewList(1, during, during.AddDate(0, 0, 1), []ListEntry{{KindFile, digestOf("b"), "x", during}, {KindClaim, digestOf("a"), "x", during}})
	if err != nil {
		t.Fatal(err)
	}
	good.Predicate.Revoker.KeyID = c.revoker.Public().ID()
	payload, err := good.Payload()
	if err != nil {
		t.Fatal(err)
	}
	text := string(payload)
	swap := func(old, new string) string {
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in %s", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
	for name, x := range map[string]struct{ payload, want string }{
		"sequence 0":        {swap(`"sequence":1`, `"sequence":0`), "sequence"},
		"another sequence":  {swap(`"sequence":1`, `"sequence":2`), "these entries make"},
		"empty":             {text[:strings.Index(text, `,"revoked":`)] + `,"revoked":[]}}`, "revoked is empty"},
		"an entry left out": {text[:strings.Index(text, `,"revoked":`)] + `}}`, "these entries make"},
		"another kind":      {swap(`"kind":"claim"`, `"kind":"model"`), "kind is"},
		"unknown member":    {swap(`"sequence":1`, `"sequence":1,"final":true`), "unknown"},
		"ends before":       {swap(`"validUntil":"2026-12-02T`, `"validUntil":"2026-12-01T`), "is not before validUntil"},
		"a revocation":      {swap(ListType, RevocationType), "predicateType"},
		"white space":       {text + "\n", "canonical"},
	} {
		if _, err := view(t, c.trust()).AdmitList(sign(t, []byte(x.payload), c.revoker)); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, x.want)
		}
	}
	for name, key := range map[string]dsse.PrivateKey{"a mint": c.keys["alice"][0], "a stranger": c.stranger} {
		if _, err := view(t, c.trust()).AdmitList(sign(t, payload, key)); err == nil || !strings.Contains(err.Error(), "not signed by a trusted revoker") {
			t.Errorf("signed by %s: %v", name, err)
		}
	}
	if _, err := NewList(1, during, during.AddDate(0, 0, 1), make([]ListEntry, maxEntries+1)); err == nil {
		t.Error("a list without targets was laid out")
	}
	if (List{}).ID() != (Capability{}).ID() || (List{}).Sequence() != 0 || (List{}).Entries() != nil || (List{}).Envelope() != nil {
		t.Error("the zero List says something")
	}
}

// A revoker that signs two lists with one number is told of, because what the second
// one takes back is not in force.
func TestTwoListsWithOneSequence(t *testing.T) {
	c := newCouncil(t)
	v := view(t, c.trust())
	entry := func(name string) ListEntry { return ListEntry{KindFile, digestOf(name), "x", during} }
	if _, err := v.AdmitList(c.list(t, 3, during, entry("a"), entry("b"))); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		list []byte
		want string
	}{
		{c.list(t, 3, during, entry("a"), entry("c")), "two lists have the sequence 3"},
		{c.list(t, 3, during.Add(time.Second), entry("a")), "expected a sequence above 3, got 3"},
		{c.list(t, 2, during, entry("c")), "expected a sequence above 3, got 2"},
	} {
		if _, err := v.AdmitList(x.list); !errors.Is(err, ErrOldList) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("AdmitList = %v, want %q", err, x.want)
		}
	}
}

// Lists are records of the store: what one took back stays so, whatever is opened.
func TestStoredLists(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	entry := ListEntry{KindClaim, st.Predicate.Claim, "training data withdrawn", during}
	dir := filepath.Join(t.TempDir(), "store")
	trust := c.trust(Rule{Models: []string{"acme/*"}, Operators: []string{"alice"}, Threshold: 1, MaxListAge: time.Hour})
	s, err := Open(dir, memoryOf(dir), trust)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admit(c.by(t, "alice", 0, st)); err != nil {
		t.Fatal(err)
	}
	for i, e := range [][]byte{c.list(t, 5, during, entry), c.list(t, 7, during)} {
		if _, err := s.AdmitList(e); err != nil {
			t.Fatal(err)
		}
		if _, err := s.AdmitList(e); err != nil {
			t.Errorf("list %d again: %v", i, err)
		}
	}
	if _, err := s.View().AdmitList(c.list(t, 9, during)); !errors.Is(err, errStored) {
		t.Errorf("past the store: %v", err)
	}
	snapshot, _, cancel := s.Subscribe(1)
	cancel()
	var order []string
	other := view(t, trust)
	for _, r := range recordsOf(t, snapshot) {
		order = append(order, r.Kind)
		if err := other.Apply(r); err != nil {
			t.Error(err)
		}
	}
	if got := fmt.Sprint(order); got != "[revocation-list revocation-list capability]" {
		t.Errorf("the snapshot is %s", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = Open(dir, memoryOf(dir), trust)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if len(s.Rejected()) != 0 {
		t.Errorf("rejected: %v", s.Rejected())
	}
	for name, v := range map[string]*View{"the store opened again": s.View(), "a mount's view": other} {
		if _, revoked := v.Lookup(digestOf("a.bin"))[0].Revoked(); !revoked || v.List().Sequence() != 7 {
			t.Errorf("%s: revoked %v, list %d", name, revoked, v.List().Sequence())
		}
	}
	if _, err := s.AdmitList(c.list(t, 6, during)); !errors.Is(err, ErrOldList) {
		t.Errorf("an older list: %v", err)
	}
}

// No list is no restriction; a list that came out empty is not that.
func TestNewRestrict(t *testing.T) {
	if r, err := NewRestrict(nil, nil, nil); err != nil || r != nil {
		t.Errorf("NewRestrict of nothing = %v, %v", r, err)
	}
	for name, make := range map[string]func() (*Restrict, error){
		"no path":        func() (*Restrict, error) { return NewRestrict([]string{}, nil, nil) },
		"no user":        func() (*Restrict, error) { return NewRestrict(nil, []int64{}, nil) },
		"no mount":       func() (*Restrict, error) { return NewRestrict(nil, nil, []string{}) },
		"overflow user":  func() (*Restrict, error) { return NewRestrict(nil, []int64{65534}, nil) },
		"negative user":  func() (*Restrict, error) { return NewRestrict(nil, []int64{-1}, nil) },
		"absolute path":  func() (*Restrict, error) { return NewRestrict([]string{"/team/"}, nil, nil) },
		"the root":       func() (*Restrict, error) { return NewRestrict([]string{"/"}, nil, nil) },
		"up":             func() (*Restrict, error) { return NewRestrict([]string{"team/../"}, nil, nil) },
		"two slashes":    func() (*Restrict, error) { return NewRestrict([]string{"team//"}, nil, nil) },
		"relative mount": func() (*Restrict, error) { return NewRestrict(nil, nil, []string{"models"}) },
		"unclean mount":  func() (*Restrict, error) { return NewRestrict(nil, nil, []string{"/models/"}) },
		"twice":          func() (*Restrict, error) { return NewRestrict(nil, []int64{1, 1}, nil) },
	} {
		if r, err := make(); err == nil {
			t.Errorf("%s: %q", name, r)
		}
	}
}

// Grants of one result and model share what stands beside them: with one
// capability for each user of a machine, each open would else cost the square of
// their number.
func TestStandingShared(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	var envelopes [][]byte
	for uid := range int64(3) {
		st.Predicate.Restrict = restrict(t, nil, []int64{uid}, nil)
		envelopes = append(envelopes, c.by(t, "alice", 0, st), c.by(t, "bob", 0, st))
	}
	other := c.statement(t, "", "a.bin", "b.bin")
	v := view(t, c.trust(twoOf("alice", "bob")), append(envelopes, c.by(t, "alice", 0, other))...)
	places := make(map[*Standing]int)
	for _, g := range v.Lookup(digestOf("a.bin")) {
		places[g.standing]++
		if n := len(g.Standing().Peers()); n != 6 && n != 1 {
			t.Errorf("%d peers", n)
		}
		// A revocation of one is not one of its neighbour.
		if _, revoked := g.Revoked(); revoked {
			t.Error("revoked")
		}
	}
	if len(places) != 2 {
		t.Errorf("%d standings of two results", len(places))
	}
	if _, err := v.Revoke(c.revocation(t, KindCapability, v.All()[0].ID().String())); err != nil {
		t.Fatal(err)
	}
	revoked := 0
	for _, g := range v.Lookup(digestOf("a.bin")) {
		if _, gone := g.Revoked(); gone {
			revoked++
		}
	}
	if revoked != 1 {
		t.Errorf("%d grants are revoked, want 1", revoked)
	}
}

// A mint that lies can do so as often as it likes, and a lie that was taken back
// stays where it is. The deadline is for work that grows with the square of that.
func TestManyConflicts(t *testing.T) {
	const n = 4000
	c := newCouncil(t)
	v := view(t, c.trust(twoOf("alice", "bob")))
	for i := range n {
		if _, err := v.Admit(c.by(t, "alice", 0, c.statement(t, "", fmt.Sprintf("%d.bin", i)))); err != nil {
			t.Fatal(err)
		}
	}
	honest := c.statement(t, "", "a.bin")
	if _, err := v.Admit(c.by(t, "bob", 0, honest)); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Revoke(c.revocation(t, KindMint, string(c.keys["alice"][0].Public().ID()))); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		st := honest
		st.Predicate.Restrict = restrict(t, nil, []int64{int64(i)}, nil)
		if _, err := v.Admit(c.by(t, "bob", 0, st)); err != nil {
			t.Fatal(err)
		}
	}
	// Reading is what the machine makes of it.
	began := time.Now()
	v.readAll()
	reading := time.Since(began)
	done := make(chan [3]int, 1)
	go func() {
		var of [3]int
		for _, g := range v.All() {
			switch {
			case g.State(during) == StateRevoked:
				of[0]++
			case g.Standing().Conflict().IsZero():
				of[1]++
			default:
				of[2]++
			}
		}
		if _, live := v.Live(honest.Predicate.Claim, during); live {
			t.Error("one of two operators is enough")
		}
		done <- of
	}()
	select {
	case of := <-done:
		if want := [3]int{n, n + 1, 0}; of != want {
			t.Errorf("revoked, waiting, disputed: %d, want %d", of, want)
		}
	case <-time.After(20*time.Second + 4*reading):
		t.Fatalf("no state of %d capabilities within 20 s and four times what reading them takes, which is %v", 2*n, reading)
	}
}

// Lists of which none repeats another are all kept. The deadline is for work that
// looks at every entry of each whenever one comes.
func TestManyLongLists(t *testing.T) {
	const n = 400
	c := newCouncil(t)
	var entries []ListEntry
	for i := range 1900 {
		entries = append(entries, ListEntry{KindFile, digestOf(fmt.Sprint(i)), "x", during})
	}
	l, err := readList(view(t, c.trust()).revokers, c.list(t, 1, during, entries...))
	if err != nil {
		t.Fatal(err)
	}
	v := view(t, c.trust())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range n {
			one, err := NewRevocation(KindFile, digestOf(fmt.Sprint("own", i)).String(), "x", during)
			if err != nil {
				t.Error(err)
				return
			}
			rec := *l.rec // with an entry of its own; who signed it is not what is tested
			rec.id = digestOf(fmt.Sprint("list", i))
			rec.st.Predicate.Sequence = int64(i + 1)
			rec.entries = append([]Revocation{{&revocation{id: rec.id, st: one}}}, rec.entries[1:]...)
			rec.named = named(rec.entries)
			v.addList(List{&rec})
		}
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%d lists take longer than 20 s", n)
	}
	if got := len(v.Lists()); got != n {
		t.Errorf("%d lists are kept, want %d", got, n)
	}
}

// What a build starts from is granted to everybody, under a list and a policy that
// are in force.
func TestLiveBase(t *testing.T) {
	c := newCouncil(t)
	st := c.statement(t, "", "a.bin")
	narrow := st
	narrow.Predicate.Restrict = restrict(t, nil, []int64{0}, nil)
	both := func(second Statement) [][]byte { return [][]byte{c.by(t, "alice", 0, st), c.by(t, "bob", 0, second)} }
	two := twoOf("alice", "bob")
	listed := two
	listed.MaxListAge = time.Hour
	for name, x := range map[string]struct {
		trust     func(*Trust)
		envelopes [][]byte
		list      time.Time // issued; zero: none
		want      bool
	}{
		"two":                     {func(t *Trust) { t.Rules = []Rule{two} }, both(st), time.Time{}, true},
		"one of two restricted":   {func(t *Trust) { t.Rules = []Rule{two} }, both(narrow), time.Time{}, false},
		"one, restricted":         {func(*Trust) {}, [][]byte{c.by(t, "alice", 0, narrow)}, time.Time{}, false},
		"one restricted, one not": {func(*Trust) {}, both(narrow), time.Time{}, true},
		"no list":                 {func(t *Trust) { t.Rules = []Rule{listed} }, both(st), time.Time{}, false},
		"an old list":             {func(t *Trust) { t.Rules = []Rule{listed} }, both(st), during.Add(-time.Hour), false},
		"a list":                  {func(t *Trust) { t.Rules = []Rule{listed} }, both(st), during.Add(-time.Minute), true},
		"an old policy":           {func(t *Trust) { t.Expires = during }, both(st), time.Time{}, false},
		"a policy":                {func(t *Trust) { t.Expires = during.Add(time.Second) }, both(st), time.Time{}, true},
	} {
		trust := c.trust()
		x.trust(&trust)
		v := view(t, trust, x.envelopes...)
		if !x.list.IsZero() {
			if _, err := v.AdmitList(c.list(t, 1, x.list)); err != nil {
				t.Fatal(err)
			}
		}
		got, live := v.Live(st.Predicate.Claim, during)
		if live != x.want || got.Restricted() {
			t.Errorf("%s: live %v, restricted %v, want live %v", name, live, got.Restricted(), x.want)
		}
	}
}
