package capstore

import "testing"

// By its name a file is shown as revoked if its own content is, and not because
// another file of the release is.
func TestByNameShowsTheFilesOwnRevocation(t *testing.T) {
	w := newWorld(t)
	v := w.view(t)
	if _, err := v.Admit(w.capability(t, "", "dir/a.bin", "dir/b.bin")); err != nil {
		t.Fatal(err)
	}
	before := v.Extent()
	if _, err := v.Revoke(w.revocation(t, KindFile, digestOf("dir/a.bin").String())); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"a.bin": true, "b.bin": false} {
		grants := v.ByName(name)
		if len(grants) != 1 {
			t.Fatalf("ByName(%s) = %d capabilities, want 1", name, len(grants))
		}
		if _, revoked := grants[0].Revoked(); revoked != want {
			t.Errorf("ByName(%s): revoked %v, want %v", name, revoked, want)
		}
	}
	if got := v.ByName("dir"); got != nil {
		t.Errorf("ByName of a directory = %v", got)
	}
	// The extent counts capabilities, revocations and the number of the list.
	if after := v.Extent(); before != 1 || after != 2 {
		t.Errorf("extent %d, and after a revocation %d, want 1 and 2", before, after)
	}
	c := newCouncil(t)
	listed := view(t, c.trust())
	if _, err := listed.AdmitList(c.list(t, 7, during)); err != nil {
		t.Fatal(err)
	}
	if got := listed.Extent(); got != 7 {
		t.Errorf("extent under list 7: %d, want 7", got)
	}
}

// An empty output is one.
func TestEmptyOutput(t *testing.T) {
	w := newWorld(t)
	st := w.statement(t, "", "a.bin", "b.bin")
	subjects := st.subjects()
	subjects[0].Size = 0
	st = NewStatement(subjects, st.Predicate)
	c, err := w.view(t).Admit(sign(t, payloadOf(t, st), w.mint))
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := c.Subject("a.bin"); !ok || s.Size != 0 {
		t.Errorf("the empty output is %+v, %v", s, ok)
	}
}
