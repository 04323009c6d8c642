package capstore

import (
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The entries of a list have one order, and each target stands in it once.
func TestListEntriesAreSorted(t *testing.T) {
	c := newCouncil(t)
	entry := func(kind Kind, name, reason string, at time.Time) ListEntry {
		return ListEntry{kind, digestOf(name), reason, at}
	}
	later := during.Add(time.Hour)
	for name, x := range map[string]struct {
		entries []ListEntry
		ok      bool
	}{
		"one":                         {[]ListEntry{entry(KindFile, "a", "x", during)}, true},
		"one twice":                   {[]ListEntry{entry(KindFile, "a", "x", during), entry(KindFile, "a", "x", during)}, false},
		"one twice, for two reasons":  {[]ListEntry{entry(KindFile, "a", "x", during), entry(KindFile, "a", "y", during)}, false},
		"one twice, of two times":     {[]ListEntry{entry(KindFile, "a", "x", during), entry(KindFile, "a", "x", later)}, false},
		"one digest as two kinds":     {[]ListEntry{entry(KindClaim, "a", "x", during), entry(KindFile, "a", "x", during)}, true},
		"the other way round":         {[]ListEntry{entry(KindFile, "a", "x", during), entry(KindClaim, "a", "x", during)}, false},
		"an entry without its target": {[]ListEntry{{Kind: KindFile, Reason: "x", IssuedAt: during}}, false},
	} {
		st, err := NewList(1, during, later, []ListEntry{entry(KindFile, "a", "x", during)})
		if err != nil {
			t.Fatal(err)
		}
		st.Predicate.Revoked = x.entries
		st.Subject[0].Digest.SHA256 = st.Predicate.digest()
		envelope, err := SignList(st, c.revoker)
		if (err == nil) != x.ok || (envelope != nil) != x.ok {
			t.Errorf("%s: SignList = %v, want it signed: %v", name, err, x.ok)
		}
		if !x.ok && name != "an entry without its target" && !strings.Contains(err.Error(), "entries are unique and sorted") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// In either order of two digests exactly one is sorted.
	for _, kind := range []Kind{KindClaim, KindFile} {
		sorted := 0
		for _, names := range [][2]string{{"a", "b"}, {"b", "a"}} {
			st, err := NewList(1, during, later, nil)
			if err != nil {
				t.Fatal(err)
			}
			st.Predicate.Revoked = []ListEntry{entry(kind, names[0], "x", during), entry(kind, names[1], "x", during)}
			st.Subject[0].Digest.SHA256 = st.Predicate.digest()
			if _, err := SignList(st, c.revoker); err == nil {
				sorted++
			}
		}
		if sorted != 1 {
			t.Errorf("%s: %d of 2 orders are signed", kind, sorted)
		}
	}
}

// A list that no store would take is not signed.
func TestSignListRefusesWhatNoStoreTakes(t *testing.T) {
	c := newCouncil(t)
	var entries []ListEntry
	for i := range 600 {
		entries = append(entries, ListEntry{KindFile, digestOf(strings.Repeat("x", i)), strings.Repeat("r", 1024), during})
	}
	st, err := NewList(1, during, during.AddDate(0, 0, 1), entries)
	if err != nil {
		t.Fatal(err)
	}
	if envelope, err := SignList(st, c.revoker); err == nil || !strings.Contains(err.Error(), "shorten the reasons") || envelope != nil {
		t.Errorf("600 long reasons: %d bytes, %v, want a refusal", len(envelope), err)
	}
}

// The same list a second time changes nothing: neither the view, nor the store.
func TestListTwice(t *testing.T) {
	c := newCouncil(t)
	list := c.list(t, 3, during, ListEntry{KindFile, digestOf("a"), "x", during})
	v := view(t, c.trust())
	for i := range 3 {
		before := v.Generation()
		if err := v.Apply(Record{Kind: RecordList, Envelope: list}); err != nil {
			t.Fatal(err)
		}
		if rose := v.Generation() != before; rose != (i == 0) {
			t.Errorf("time %d: the generation rose: %v", i+1, rose)
		}
	}
	dir := filepath.Join(t.TempDir(), "store")
	s, err := Open(dir, memoryOf(dir), c.trust())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.AdmitList(list); err != nil {
		t.Fatal(err)
	}
	_, before, found, err := readHead(memoryOf(dir))
	if err != nil || !found || before.n != 1 {
		t.Fatalf("after one list: %+v, %v, %v", before, found, err)
	}
	if _, err := s.AdmitList(list); err != nil {
		t.Fatal(err)
	}
	if _, after, _, err := readHead(memoryOf(dir)); err != nil || !after.is(before) {
		t.Errorf("after the same list again: fact %d, %v, want %d", after.n, err, before.n)
	}
}
