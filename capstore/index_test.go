package capstore

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// A table finds what was added, in order, among many tags, some of which have very
// many numbers, and nothing for tags that nobody added.
func TestTagTable(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	table, want := newTagTable(), make(map[tag][]uint32)
	tags := make([]tag, 20000)
	for i := range tags {
		tags[i] = tag(rng.Uint64())
	}
	tags[0], tags[1], tags[2] = 0, 1, 1<<63 // sizes are tags, too
	for n := uint32(1); n <= 60000; n++ {
		k := tags[rng.IntN(len(tags))]
		if n%4 == 0 {
			k = tags[n%8]
		}
		table.add(k, n)
		table.add(k, n) // two outputs of one capability
		want[k] = append(want[k], n)
	}
	for _, k := range tags {
		if got := table.all(k); !slices.Equal(got, want[k]) {
			t.Fatalf("tag %x: %d numbers, want %d", uint64(k), len(got), len(want[k]))
		}
		if table.has(k) != (len(want[k]) > 0) {
			t.Errorf("has(%x) = %v", uint64(k), table.has(k))
		}
	}
	for range 20000 {
		if k := tag(rng.Uint64()); table.has(k) && want[k] == nil {
			t.Errorf("a tag that nobody added is found: %x", uint64(k))
		}
	}
	if got := table.find(tags[0], 2); !slices.Equal(got, []uint32{want[tags[0]][len(want[tags[0]])-1], want[tags[0]][len(want[tags[0]])-2]}) {
		t.Errorf("the two newest are %d", got)
	}
	if bytes := table.bytes(); bytes > 40*60000 {
		t.Errorf("%d bytes for 60000 numbers", bytes)
	}
}

// entryOf is a record as a snapshot has it.
func entryOf(f fact, envelope []byte) Record {
	return Record{Kind: f.kind, Envelope: envelope, Entry: f.body()}
}

// What an entry says can lose a grant and never make one; what it says of a
// revocation refuses, whatever its text is.
func TestEntriesAreHints(t *testing.T) {
	w := newWorld(t)
	read := func(envelope []byte) Capability {
		t.Helper()
		c, err := readCapability(w.trust2(w.stranger).mintsOf(t), envelope)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	real := read(w.capability(t, "", "real.bin"))
	about := func(f fact, content string) fact {
		f.outputs = []outputTags{{content: tagOf(digestOf(content)), name: nameTag(content), size: int64(len(content))}}
		return f
	}
	st := w.statement(t, "", "stranger.bin")
	st.Predicate.Minter.KeyID = w.stranger.Public().ID()
	strangers := read(sign(t, payloadOf(t, st), w.stranger))
	claimed := strangers.fact()
	claimed.signer = keyDigest(w.mint.Public().ID())
	other := real.fact()
	other.id = digestOf("another id")
	for name, tc := range map[string]struct {
		r       Record
		refused string // "" if it is found out when it is asked for
		asked   []string
		bad     int
	}{
		"of a stranger":                  {entryOf(strangers.fact(), strangers.Envelope()), "not signed by a trusted mint", []string{"stranger.bin"}, 0},
		"of a stranger, as the mint's":   {entryOf(claimed, strangers.Envelope()), "", []string{"stranger.bin"}, 1},
		"of another content":             {entryOf(about(real.fact(), "other.bin"), real.Envelope()), "", []string{"other.bin", "real.bin"}, 0},
		"without a text":                 {entryOf(real.fact(), nil), "", []string{"real.bin"}, 0}, // and speaks against others: TestLostDissentRefuses
		"with the text of no capability": {entryOf(real.fact(), []byte("{}")), "", []string{"real.bin"}, 1},
		"under another id":               {entryOf(other, real.Envelope()), "", []string{"real.bin"}, 1},
		"of another kind":                {Record{Kind: RecordRevocation, Envelope: real.Envelope(), Entry: real.fact().body()}, "is of a capability", []string{"real.bin"}, 0},
		"that is cut":                    {Record{Kind: RecordCapability, Envelope: real.Envelope(), Entry: real.fact().body()[:40]}, "its entry", []string{"real.bin"}, 0},
		"too long":                       {entryOf(real.fact(), make([]byte, MaxRecord+1)), "at most", []string{"real.bin"}, 0},
	} {
		v := w.view(t)
		err := v.Apply(tc.r)
		if tc.refused == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if tc.refused != "" && (err == nil || !strings.Contains(err.Error(), tc.refused)) {
			t.Errorf("%s: %v, want %q", name, err, tc.refused)
		}
		for _, content := range tc.asked {
			if g := v.Lookup(digestOf(content)); len(g) != 0 {
				t.Errorf("%s: %s is granted", name, content)
			}
		}
		if len(v.All()) > 0 && name != "of another content" {
			t.Errorf("%s: All has it", name)
		}
		if got := len(v.Rejected()); got != tc.bad {
			t.Errorf("%s: rejected %v, want %d", name, v.Rejected(), tc.bad)
		}
	}

	// Revocations.
	envelope := w.revocation(t, KindFile, digestOf("real.bin").String())
	r, err := readRevocation(w.roleOf(t), envelope)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := readRevocation(w.roleOf(t), w.revocation(t, KindFile, digestOf("elsewhere.bin").String()))
	if err != nil {
		t.Fatal(err)
	}
	byStranger := r.fact()
	byStranger.signer = keyDigest(w.stranger.Public().ID())
	for name, tc := range map[string]struct {
		r       Record
		revoked bool
		lost    bool
	}{
		"intact":                        {entryOf(r.fact(), envelope), true, false},
		"without its text":              {entryOf(r.fact(), nil), true, true},
		"with the text of another":      {entryOf(r.fact(), elsewhere.Envelope()), true, true},
		"with the text of a capability": {entryOf(r.fact(), real.Envelope()), true, true},
		"by a key that is not pinned":   {entryOf(byStranger, envelope), false, false},
	} {
		v := w.view(t)
		if _, err := v.Admit(real.Envelope()); err != nil {
			t.Fatal(err)
		}
		if err := v.Apply(tc.r); (err == nil) != tc.revoked {
			t.Errorf("%s: %v", name, err)
		}
		g := v.Lookup(digestOf("real.bin"))
		by, revoked := g[0].Revoked()
		if revoked != tc.revoked || tc.lost != strings.Contains(by.Reason(), "text is lost") || (len(v.Rejected()) > 0) != tc.lost {
			t.Errorf("%s: revoked %v by %q, rejected %v", name, revoked, by.Reason(), v.Rejected())
		}
		if n := len(v.InForce()); (n == 1) != tc.revoked {
			t.Errorf("%s: %d in force", name, n)
		}
		// Its text mends it.
		if tc.r.Envelope == nil {
			for range 2 {
				if err := v.Apply(entryOf(r.fact(), envelope)); err != nil {
					t.Fatal(err)
				}
			}
			if by, _ := v.Lookup(digestOf("real.bin"))[0].Revoked(); by.Reason() != r.Reason() {
				t.Errorf("%s: after its text came: %q", name, by.Reason())
			}
			if _, n := v.Count(); n != 1 {
				t.Errorf("%s: %d revocations", name, n)
			}
		}
	}
}

// trust2 is the world's trust, with another mint.
func (w world) trust2(mint dsse.PrivateKey) Trust {
	t := w.trust()
	t.Mints = append(t.Mints, Signer{"other", mint.Public()})
	return t
}

func (t Trust) mintsOf(tb testing.TB) role {
	tb.Helper()
	r, err := newRole("mint", t.Mints)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

func (w world) roleOf(t testing.TB) role {
	t.Helper()
	r, err := newRole("revoker", w.trust().Revokers)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The file of a view's records is private to it, and a byte that changes there is a
// grant less, or a refusal.
func TestSpoolIsNotBelieved(t *testing.T) {
	w := newWorld(t)
	v, err := NewViewIn(t.TempDir(), w.trust())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Admit(w.capability(t, "", "b.bin")); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Revoke(w.revocation(t, KindFile, digestOf("b.bin").String())); err != nil {
		t.Fatal(err)
	}
	if len(v.Lookup(digestOf("a.bin"))) != 1 || !isRevoked(t, v.Lookup(digestOf("b.bin"))) {
		t.Fatal("what was admitted and revoked is not so")
	}
	whole := make([]byte, v.spool.end)
	if _, err := v.spool.file.ReadAt(whole, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	granted, refused := 0, 0
	for at := 0; at < len(whole); at += 7 {
		b := slices.Clone(whole)
		b[at] ^= 1 << (at % 8)
		if _, err := v.spool.file.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		v.cache = newCache()
		if g := v.Lookup(digestOf("a.bin")); len(g) == 1 {
			granted++
		} else {
			refused++
		}
		for _, g := range v.Lookup(digestOf("b.bin")) {
			if _, revoked := g.Revoked(); !revoked {
				t.Fatalf("byte %d changed, and what was revoked is granted", at)
			}
		}
	}
	if granted == 0 || refused == 0 {
		t.Errorf("granted %d times and refused %d times: want some of each", granted, refused)
	}
}

// What leaves the cache comes back verified, and so does what was there.
func TestCacheIsBounded(t *testing.T) {
	w := newWorld(t)
	v := w.view(t)
	const n = 300
	for i := range n {
		if _, err := v.Admit(w.capability(t, fmt.Sprint(i), "a.bin")); err != nil {
			t.Fatal(err)
		}
	}
	v.cache = newCache()
	v.cache.size = maxCached - 10<<10 // as if much else were in it
	for round := range 2 {
		for i := range n {
			if g := v.Lookup(digestOf(fmt.Sprint("a.bin", i))); len(g) != 1 {
				t.Fatalf("round %d: capability %d is granted %d times", round, i, len(g))
			}
		}
	}
	if have := len(v.cache.capabilities); have >= n || have == 0 {
		t.Errorf("%d capabilities are kept of %d", have, n)
	}
	if len(v.All()) != n || len(v.Within("a.bin")) != n || v.Names("none") || !v.Names("a.bin") {
		t.Error("not all are there")
	}
	sizes := 0
	outputs, whole := v.OfSize(int64(len("a.bin1")))
	for s := range outputs {
		if s.Digest == (hashpipe.Digest{}) {
			t.Error("an output without a digest")
		}
		sizes++
	}
	if sizes != 10 || !whole || v.HasSize(1) {
		t.Errorf("%d of one size, whole %v", sizes, whole)
	}
}
