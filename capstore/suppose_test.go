package capstore

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// told is what Suppose says, by file: "a.bin live>revoked 1/2".
func told(t *testing.T, v *View, k Kind, d hashpipe.Digest) (changed, built []string) {
	t.Helper()
	generation := v.Generation()
	list, from, err := v.Suppose(k, d, during)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		changed = append(changed, fmt.Sprintf("%s %s>%s %d/%d", c.Files[0].Name, c.Before, c.After, len(c.Agreement.Operators), c.Agreement.Needed))
	}
	for _, g := range from {
		built = append(built, g.Subjects()[0].Name)
	}
	if v.Generation() != generation || len(v.InForce()) != 0 {
		t.Fatal("supposing changed something")
	}
	slices.Sort(changed)
	slices.Sort(built)
	return changed, built
}

func TestSuppose(t *testing.T) {
	c := newCouncil(t)
	base := c.statement(t, "", "a.bin", "b.bin")
	derived := c.statement(t, "", "c.bin")
	derived.Predicate.Bases = []hashpipe.Digest{base.Predicate.Claim}
	derived.Predicate.Environment.Digest.SHA256 = digestOf("another image")
	derived.Predicate.SBA.Digest.SHA256 = digestOf("another attestation")
	derived = NewStatement(derived.subjects(), derived.Predicate)
	v := view(t, c.trust(twoOf("alice", "bob")), c.by(t, "alice", 0, base), c.by(t, "bob", 1, base), c.by(t, "alice", 0, derived), c.by(t, "bob", 0, derived))
	mint := func(operator string, n int) hashpipe.Digest { return keyDigest(c.keys[operator][n].Public().ID()) }
	for _, x := range []struct {
		kind    Kind
		target  hashpipe.Digest
		changed []string
		built   []string
	}{
		{KindClaim, base.Predicate.Claim, []string{"a.bin live>revoked 0/2", "a.bin live>revoked 0/2"}, []string{"c.bin", "c.bin"}},
		{KindSBA, base.Predicate.SBA.Digest.SHA256, []string{"a.bin live>revoked 0/2", "a.bin live>revoked 0/2"}, []string{"c.bin", "c.bin"}},
		{KindImage, digestOf("another image"), []string{"c.bin live>revoked 0/2", "c.bin live>revoked 0/2"}, nil},
		{KindFile, digestOf("b.bin"), []string{"b.bin live>revoked 0/2", "b.bin live>revoked 0/2"}, []string{"c.bin", "c.bin"}},
		// Of two operators one is left: nothing of them opens.
		{KindMint, mint("bob", 1), []string{"a.bin live>revoked 1/2", "a.bin live>waiting 1/2"}, nil},
		{KindMint, mint("alice", 0), []string{"a.bin live>revoked 1/2", "a.bin live>waiting 1/2", "c.bin live>revoked 1/2", "c.bin live>waiting 1/2"}, nil},
		{KindMint, mint("carol", 0), nil, nil},
		{KindPublisher, digestOf("nobody"), nil, nil},
	} {
		changed, built := told(t, v, x.kind, x.target)
		if !slices.Equal(changed, x.changed) || !slices.Equal(built, x.built) {
			t.Errorf("%s: changed %q built %q, want %q and %q", x.kind, changed, built, x.changed, x.built)
		}
	}
	if _, _, err := v.Suppose("model", digestOf("a.bin"), during); err == nil {
		t.Error("an unknown kind was supposed")
	}
}

// Taking back one side of a dispute opens the files of the other.
func TestSupposeDispute(t *testing.T) {
	c := newCouncil(t)
	right, wrong := c.statement(t, "", "a.bin"), c.statement(t, "other bytes", "a.bin")
	wrong.Predicate.SBA, wrong.Predicate.Environment = right.Predicate.SBA, right.Predicate.Environment
	wrong = NewStatement(wrong.subjects(), wrong.Predicate)
	v := view(t, c.trust(Rule{Models: []string{"acme/*"}, Operators: []string{"alice", "bob"}, Threshold: 1}), c.by(t, "alice", 0, right))
	if _, against, err := v.Peek(c.by(t, "bob", 0, wrong)); err != nil || against.Operator() != "alice" || len(v.All()) != 1 {
		t.Errorf("Peek: against %v, %v", against.Operator(), err)
	}
	if _, against, err := v.Peek(c.by(t, "bob", 0, right)); err != nil || !against.IsZero() {
		t.Errorf("Peek of the same result: %v, %v", against.Operator(), err)
	}
	if _, _, err := v.Peek(sign(t, payloadOf(t, right), c.stranger)); err == nil {
		t.Error("Peek believes a stranger")
	}
	if _, err := v.Admit(c.by(t, "bob", 0, wrong)); err != nil {
		t.Fatal(err)
	}
	changed, _ := told(t, v, KindClaim, wrong.Predicate.Claim)
	if want := []string{"a.bin disputed>live 1/1", "a.bin disputed>revoked 0/1"}; !slices.Equal(changed, want) {
		t.Errorf("%q, want %q", changed, want)
	}
}

// What a list takes back counts as what came alone, and the earliest is told.
func TestInForce(t *testing.T) {
	c := newCouncil(t)
	v := view(t, c.trust())
	if _, err := v.Revoke(c.revocation(t, KindFile, digestOf("a").String())); err != nil {
		t.Fatal(err)
	}
	single := v.RevokedBy(KindFile, digestOf("a"))
	before := ListEntry{KindFile, digestOf("a"), "known before", single.IssuedAt().Add(-time.Hour)}
	if _, err := v.AdmitList(c.list(t, 1, during, before, ListEntry{KindImage, digestOf("a"), "an image", during})); err != nil {
		t.Fatal(err)
	}
	list := v.InForce()
	if len(list) != 2 || len(v.Revocations()) != 1 || v.RevokedBy(KindFile, digestOf("a")).Reason() != "known before" {
		t.Errorf("in force: %d, alone: %d", len(list), len(v.Revocations()))
	}
	if v.RevokedBy(KindImage, digestOf("a")).Reason() != "an image" || !v.RevokedBy(KindSBA, digestOf("a")).IsZero() {
		t.Error("one kind's target is another's")
	}
	if !list[0].IssuedAt().Before(list[1].IssuedAt()) && !list[0].earlier(list[1]) {
		t.Error("not oldest first")
	}
}

func TestParents(t *testing.T) {
	c := newCouncil(t)
	text, _ := c.chain(t, c.statement(t, "", "a.bin"), Delegation{}, Delegation{})
	v := view(t, c.trust(), text)
	got := v.All()[0].Capability()
	if p := got.Parents(); len(p) != 2 || slices.Contains(p, got.ID()) {
		t.Errorf("parents %v", p)
	}
	if changed, _, err := v.Suppose(KindCapability, got.Parents()[0], during); err != nil || len(changed) != 1 || changed[0].After != StateRevoked {
		t.Errorf("without its parent: %+v, %v", changed, err)
	}
	if (Capability{}).Parents() != nil || (Grant{}).State(during) != StateRevoked {
		t.Error("the zero values say something")
	}
}

// A list that repeats what earlier ones say takes their place; one that leaves
// something out does not.
func TestListsAreOutgrown(t *testing.T) {
	c := newCouncil(t)
	dir := filepath.Join(t.TempDir(), "store")
	s, err := Open(dir, memoryOf(dir), c.trust())
	if err != nil {
		t.Fatal(err)
	}
	a, b := ListEntry{KindFile, digestOf("a"), "first", during}, ListEntry{KindFile, digestOf("b"), "second", during}
	texts := [][]byte{c.list(t, 1, during, a), c.list(t, 2, during, a, b), c.list(t, 3, during, b), c.list(t, 4, during, b)}
	for _, text := range texts {
		if _, err := s.AdmitList(text); err != nil {
			t.Fatal(err)
		}
	}
	check := func(v *View) {
		t.Helper()
		var kept []int64
		for _, l := range v.Lists() {
			kept = append(kept, l.Sequence())
		}
		if !slices.Equal(kept, []int64{2, 4}) || v.List().Sequence() != 4 || len(v.InForce()) != 2 {
			t.Errorf("lists %v, %d in force, %d taken back; want lists 2 and 4", kept, v.List().Sequence(), len(v.InForce()))
		}
	}
	check(s.View())
	generation := s.View().Generation()
	for _, text := range texts { // as they were seen before
		if l, err := s.AdmitList(text); err != nil || l.IsZero() {
			t.Errorf("again: %v", err)
		}
	}
	if s.View().Generation() != generation {
		t.Error("a list that was seen changed something")
	}
	snapshot, _, cancel := s.Subscribe(1)
	cancel()
	other := view(t, c.trust())
	for _, r := range recordsOf(t, snapshot) {
		if err := other.Apply(r); err != nil {
			t.Error(err)
		}
	}
	check(other)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(dir, memoryOf(dir), c.trust()); err != nil || len(s.Rejected()) != 0 {
		t.Fatalf("opened again: %v, %v", s.Rejected(), err)
	}
	defer s.Close()
	check(s.View())
	if _, err := s.AdmitList(c.list(t, 4, during, a)); !errors.Is(err, ErrOldList) {
		t.Errorf("another list 4: %v", err)
	}
}
