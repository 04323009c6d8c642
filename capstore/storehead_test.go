package capstore

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/verifier/dsse"
)

// known is a head whose text stands in docs/capability.md.
func known() Head {
	return Head{Store: "0102030405060708090a0b0c0d0e0f10", Sequence: 12, Hash: digestOf("a chain"), Newest: time.Date(2026, 11, 27, 20, 0, 0, 0, time.UTC)}
}

func TestHeadRefuses(t *testing.T) {
	mint, revoker, stranger := seeded(t, 1), seeded(t, 4), seeded(t, 5)
	trust := Trust{Mints: []Signer{{"alice", mint.Public()}}, Revokers: []Signer{{"root", revoker.Public()}}}
	for name, harm := range map[string]func(*Head){
		"zero":              func(h *Head) { *h = Head{} },
		"no store":          func(h *Head) { h.Store = "" },
		"a short store":     func(h *Head) { h.Store = h.Store[2:] },
		"upper case":        func(h *Head) { h.Store = strings.ToUpper(h.Store) },
		"no fact":           func(h *Head) { h.Sequence = 0 },
		"too large":         func(h *Head) { h.Sequence = math.MaxInt64 },
		"no hash":           func(h *Head) { h.Hash = Head{}.Hash },
		"no time":           func(h *Head) { h.Newest = time.Time{} },
		"half a second":     func(h *Head) { h.Newest = h.Newest.Add(time.Second / 2) },
		"another time zone": func(h *Head) { h.Newest = h.Newest.In(time.FixedZone("", 3600)) },
	} {
		h := known()
		harm(&h)
		if e, err := SignHead(t.Context(), h, mint); err == nil {
			t.Errorf("%s: SignHead = %s, want an error", name, e)
		}
	}
	good, err := SignHead(t.Context(), known(), mint)
	if err != nil {
		t.Fatal(err)
	}
	payload := string(unverified(t, good))
	sign := func(text string, key dsse.PrivateKey) []byte {
		e, err := dsse.Sign(dsse.PayloadType, []byte(text), key)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	for _, x := range []struct {
		name     string
		envelope []byte
		foreign  bool
	}{
		{"nothing", nil, false},
		{"a stranger's", sign(payload, stranger), true},
		{"the mint's, signed by the revoker", sign(payload, revoker), true},
		{"another type", sign(strings.Replace(payload, "store-head/v1", "revocation/v1", 1), mint), false},
		{"white space", sign(payload+" ", mint), false},
		{"a field more", sign(strings.Replace(payload, `"sequence":12`, `"sequence":12,"weights":1`, 1), mint), false},
		{"two subjects", sign(strings.Replace(payload, `"subject":[`, `"subject":[{"name":"store-head","digest":{"sha256":"`+digestOf("x").String()+`"}},`, 1), mint), false},
		{"a subject of another name", sign(strings.Replace(payload, `"name":"store-head"`, `"name":"head"`, 1), mint), false},
		{"a sequence of 0", sign(strings.Replace(payload, `"sequence":12`, `"sequence":0`, 1), mint), false},
	} {
		h, key, err := VerifyHead(trust, x.envelope)
		if err == nil || errors.Is(err, dsse.ErrUnverified) != x.foreign || !h.IsZero() || !key.IsZero() {
			t.Errorf("%s: VerifyHead = %+v, %v, want an error (of the signature: %t)", x.name, h, err, x.foreign)
		}
	}
	if _, _, err := VerifyHead(Trust{}, good); err == nil {
		t.Error("nobody is trusted, and a head is believed")
	}
	for _, key := range []dsse.PrivateKey{mint, revoker} {
		e, err := SignHead(t.Context(), known(), key)
		if err != nil {
			t.Fatal(err)
		}
		if h, by, err := VerifyHead(trust, e); err != nil || h != known() || by != key.Public() {
			t.Errorf("VerifyHead = %+v, %v, %v, want %+v", h, by, err, known())
		}
	}
	doc, err := os.ReadFile("../docs/capability.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{payload, string(mint.Public().ID())} {
		if !strings.Contains(string(doc), line) {
			t.Errorf("docs/capability.md lacks\n%s", line)
		}
	}
}

func unverified(t *testing.T, envelope []byte) []byte {
	t.Helper()
	e, err := dsse.Parse(envelope)
	if err != nil {
		t.Fatal(err)
	}
	return e.UnverifiedPayload()
}

// A chain contains the heads that it had, and no other one: not one of later facts,
// of another store, or of another history.
func TestCheckHead(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	if h, err := ReadHead(memoryOf(dir)); err == nil {
		t.Errorf("ReadHead of an empty store = %+v, want an error", h)
	}
	var heads []Head
	for _, name := range []string{"a.bin", "b.bin", "c.bin"} {
		if _, err := s.Admit(w.capability(t, "", name)); err != nil {
			t.Fatal(err)
		}
		h, err := ReadHead(memoryOf(dir))
		if err != nil || h.Sequence != uint64(len(heads)+1) {
			t.Fatalf("ReadHead = %+v, %v", h, err)
		}
		heads = append(heads, h)
	}
	later, foreign, rewritten := heads[2], heads[1], heads[1]
	later.Sequence = 4
	foreign.Store = known().Store
	rewritten.Hash = digestOf("another chain")
	for _, x := range []struct {
		name string
		head Head
		want string
	}{
		{"later facts", later, "the chain ends at fact 3: THE STATE DIRECTORY IS OLDER"},
		{"another store", foreign, "and this is store " + heads[0].Store},
		{"another history", rewritten, "THE STORE WAS PUT BACK"},
		{"the first", heads[0], ""}, {"the second", heads[1], ""}, {"the newest", heads[2], ""}, {"none", Head{}, ""},
	} {
		for _, closed := range []bool{false, true} {
			var got []Finding
			var checked Checked
			var err error
			tell := func(f Finding) { got = append(got, f) }
			if closed {
				closeStore(t, s)
				checked, err = CheckClosed(t.Context(), dir, memoryOf(dir), w.trust(), x.head, tell, nil)
				s = openStore(t, dir, w.trust())
			} else {
				checked, err = s.Check(t.Context(), w.trust(), x.head, tell, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			contained := x.want == "" && !x.head.IsZero()
			if checked.Head != contained || (x.want == "") != (len(got) == 0) || x.want != "" && !strings.Contains(got[0].What, x.want) {
				t.Errorf("%s (closed: %t): %+v, %+v, want contained: %t, %q", x.name, closed, checked, got, contained, x.want)
			}
		}
	}
	// A store that cannot be opened contains nothing.
	closeStore(t, s)
	if err := os.Remove(filepath.Join(dir, "db", "MANIFEST")); err != nil {
		t.Fatal(err)
	}
	var got []string
	if checked, err := CheckClosed(t.Context(), dir, memoryOf(dir), w.trust(), heads[0], func(f Finding) { got = append(got, f.Where) }, nil); err != nil || checked.Head || !slices.Contains(got, headSubject) {
		t.Errorf("without the database: %+v, %q, %v, want a finding of the head", checked, got, err)
	}
}
