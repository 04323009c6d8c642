package capstore

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// keyOf is the key of the rows of the store in dir.
func keyOf(t *testing.T, dir string) rowKey {
	t.Helper()
	k, found, err := readKey(memoryOf(dir))
	if err != nil || !found {
		t.Fatalf("the store's key: %v, %v", found, err)
	}
	return k
}

// getRowOf reads a row of a closed store as it lies in the database.
func getRowOf(t *testing.T, dir, key string) (row, error) {
	t.Helper()
	db, err := openBadger(filepath.Join(dir, "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	value, err := getRow(db, key)
	return row{[]byte(key), value}, err
}

func change(t *testing.T, path string, f func([]byte)) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A row is one under its own key, with its own number, in its own store; every
// changed byte makes it none.
func TestRowKey(t *testing.T) {
	k := newRowKey()
	r := k.seal([]byte("cap/x"), 7, []byte("content"))
	if n, content, err := k.open(r); err != nil || n != 7 || string(content) != "content" {
		t.Fatalf("open = %d, %q, %v", n, content, err)
	}
	for i := range r.value {
		broken := bytes.Clone(r.value)
		broken[i] ^= 1
		if _, _, err := k.open(row{r.key, broken}); err == nil {
			t.Errorf("byte %d changed, and it is a row", i)
		}
		if _, _, err := k.open(row{r.key, r.value[:i]}); err == nil {
			t.Errorf("cut to %d bytes, and it is a row", i)
		}
	}
	other, renamed := newRowKey(), k
	renamed.id = other.id
	for name, err := range map[string]error{
		"under another key":                     second(k.open(row{[]byte("cap/y"), r.value})),
		"with another secret":                   second(other.open(r)),
		"in a store of this key, of another id": second(renamed.open(r)),
		"without a key":                         second(rowKey{}.open(rowKey{}.seal(r.key, 7, []byte("content")))),
		"empty content":                         second(k.open(k.seal(r.key, 7, nil))),
		"longer":                                second(k.open(row{r.key, append(bytes.Clone(r.value), 0)})),
		"content moved to key":                  second(k.open(row{append(bytes.Clone(r.key), 'c'), append(bytes.Clone(r.value[:rowHeader]), r.value[rowHeader+1:]...)})),
	} {
		if err == nil {
			t.Errorf("%s: it is a row", name)
		}
	}
}

func second(_ uint64, _ []byte, err error) error { return err }

// A fact reads as it was written, and nothing else does.
func TestFact(t *testing.T) {
	w := newWorld(t)
	derived := w.statement(t, "", "a/b.bin", "c.bin")
	derived.Predicate.Bases = []hashpipe.Digest{digestOf("base")}
	v := w.view(t)
	c, err := v.Admit(sign(t, payloadOf(t, derived), w.mint))
	if err != nil {
		t.Fatal(err)
	}
	r, err := v.Revoke(w.revocation(t, KindFile, digestOf("x").String()))
	if err != nil {
		t.Fatal(err)
	}
	k := newRowKey()
	at := firstHead(k)
	for _, f := range []fact{
		{kind: RecordCapability, at: 1764000000, id: c.ID(), envelope: digestOf("e"), entry: c.entry()},
		{kind: RecordRevocation, at: 1764000000, id: r.ID(), envelope: digestOf("e"), entry: r.entry()},
		{kind: RecordList, at: 1764000001, id: digestOf("l"), envelope: digestOf("e"), entry: entry{signer: digestOf("k")}},
	} {
		next, content := at.follow(f)
		got, read, err := at.add(k, k.seal(logKey(next.n), next.n, content))
		if err != nil || !got.is(next) || got.at != f.at || string(read.body()) != string(f.body()) || read.kind != f.kind {
			t.Fatalf("%s reads as %+v, %+v, %v", f.kind, got, read, err)
		}
		for i := range content {
			if _, _, err := at.add(k, k.seal(logKey(next.n), next.n, content[:i])); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s cut to %d bytes: %v", f.kind, i, err)
			}
			broken := bytes.Clone(content)
			broken[i] ^= 1
			if _, _, err := at.add(k, k.seal(logKey(next.n), next.n, broken)); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s, byte %d changed: %v", f.kind, i, err)
			}
		}
		for name, r := range map[string]row{
			"as another fact":       k.seal(logKey(next.n+1), next.n+1, content),
			"with another number":   k.seal(logKey(next.n), next.n+1, content),
			"of another store":      newRowKey().seal(logKey(next.n), next.n, content),
			"with something behind": k.seal(logKey(next.n), next.n, append(bytes.Clone(content), 0)),
		} {
			if _, _, err := at.add(k, r); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s %s: %v", f.kind, name, err)
			}
		}
		if _, _, err := next.add(k, k.seal(logKey(next.n+1), next.n+1, content)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s twice: %v", f.kind, err)
		}
		at = next
	}
	_, older := at.follow(fact{kind: RecordList, at: 1763999999, id: digestOf("l"), envelope: digestOf("e"), entry: entry{signer: digestOf("k")}})
	if _, _, err := at.add(k, k.seal(logKey(at.n+1), at.n+1, older)); !errors.Is(err, ErrDamaged) {
		t.Errorf("a fact older than the one before it: %v", err)
	}
}

// What makes the rows of a store its own.
func TestForeignStoreIsRefused(t *testing.T) {
	w := newWorld(t)
	fill := func(t *testing.T, name string) string {
		dir := storeDir(t)
		s := openStore(t, dir, w.trust())
		if _, err := s.Admit(w.capability(t, "", name)); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
		return dir
	}
	move := func(t *testing.T, to, from string) {
		t.Helper()
		if err := os.RemoveAll(to); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		harm func(t *testing.T, dir, other string)
		want string
		is   error
	}{
		"the store of another machine": {func(t *testing.T, dir, other string) { move(t, dir, other) }, "expected the id", ErrForeign},
		"its database":                 {func(t *testing.T, dir, other string) { move(t, filepath.Join(dir, "db"), filepath.Join(other, "db")) }, "expected the id", ErrForeign},
		"its memory":                   {func(t *testing.T, dir, other string) { move(t, memoryOf(dir), memoryOf(other)) }, "expected the id", ErrForeign},
		"its key": {func(t *testing.T, dir, other string) {
			move(t, filepath.Join(memoryOf(dir), KeyName), filepath.Join(memoryOf(other), KeyName))
		}, "expected the id", ErrForeign},
		"its head": {func(t *testing.T, dir, other string) {
			move(t, filepath.Join(memoryOf(dir), HeadName), filepath.Join(memoryOf(other), HeadName))
		}, "store-head is of the store", ErrForeign},
		"the key lost":    {func(t *testing.T, dir, _ string) { os.Remove(filepath.Join(memoryOf(dir), KeyName)) }, "store.key is not there", ErrForeign},
		"the memory lost": {func(t *testing.T, dir, _ string) { os.RemoveAll(memoryOf(dir)) }, "store.key is not there", ErrForeign},
		"another secret": {func(t *testing.T, dir, _ string) {
			k := keyOf(t, dir)
			k.secret[0] ^= 1
			if err := writeKey(memoryOf(dir), k); err != nil {
				t.Fatal(err)
			}
		}, "not the one that its rows were written with", ErrForeign},
		"the format row lost": {func(t *testing.T, dir, _ string) { forge(t)(dir, formatKey, nil, "-delete") }, "its rows name none", ErrForeign},
		"an earlier format": {func(t *testing.T, dir, _ string) {
			forge(t)(dir, formatKey, nil, "-delete")
			os.RemoveAll(memoryOf(dir))
		}, "an earlier version wrote them", ErrForeign},
		"all rows and the head lost": {func(t *testing.T, dir, _ string) {
			os.RemoveAll(filepath.Join(dir, "db"))
			os.Remove(filepath.Join(memoryOf(dir), HeadName))
		}, "no head file", ErrDamaged},
		"all rows and the key lost": {func(t *testing.T, dir, _ string) {
			os.RemoveAll(filepath.Join(dir, "db"))
			os.Remove(filepath.Join(memoryOf(dir), KeyName))
		}, "1 facts were acknowledged", ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			dir := fill(t, "a.bin")
			tc.harm(t, dir, fill(t, "b.bin"))
			s, err := Open(dir, memoryOf(dir), w.trust())
			wantError(t, err, tc.want, "next: clawfs store rebuild")
			if !errors.Is(err, tc.is) || s != nil {
				t.Errorf("%v: want %v", err, tc.is)
			}
		})
	}
}

// Rows that were written by this store, and lie where it did not put them.
func TestMovedRowsAreNotHonoured(t *testing.T) {
	w, dir, write := newWorld(t), storeDir(t), forge(t)
	s := openStore(t, dir, w.trust())
	short := w.statement(t, "", "short.bin")
	short.Predicate.NotAfter = short.Predicate.NotBefore.Add(time.Hour)
	a, err := s.Admit(sign(t, payloadOf(t, short), w.mint))
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Admit(w.capability(t, "", "b.bin"))
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	rowA, err := getRowOf(t, dir, "cap/"+a.ID().String())
	if err != nil {
		t.Fatal(err)
	}
	rowB, err := getRowOf(t, dir, "cap/"+b.ID().String())
	if err != nil {
		t.Fatal(err)
	}
	// The same capability, valid for longer, in the place of the short one: signed by
	// the mint, by nobody, and sealed with the store's own key.
	longer := short
	longer.Predicate.NotAfter = longer.Predicate.NotBefore.Add(9000 * time.Hour)
	signed := sign(t, payloadOf(t, longer), w.mint)
	k := keyOf(t, dir)
	for name, value := range map[string][]byte{
		"another capability's row":   rowB.value,
		"the longer one, as it is":   signed,
		"the longer one, sealed":     k.seal(rowA.key, 1, signed).value,
		"a MAC with a bit changed":   append([]byte{rowA.value[0], 0, 0, 0, 0, 0, 0, 0, 1, rowA.value[9] ^ 1}, rowA.value[10:]...),
		"the number of another fact": k.seal(rowA.key, 2, a.Envelope()).value,
		"an empty value":             nil,
	} {
		write(dir, string(rowA.key), value)
		s := openStore(t, dir, w.trust())
		if g := s.Lookup(digestOf("short.bin")); len(g) != 0 {
			t.Errorf("%s: granted until %v", name, g[0].NotAfter())
		}
		if g := s.Lookup(digestOf("b.bin")); len(g) != 1 {
			t.Errorf("%s: the other capability is granted %d times", name, len(g))
		}
		if r := s.Rejected(); len(r) != 1 || r[0].Key != string(rowA.key) {
			t.Errorf("%s: rejected %v", name, r)
		}
		closeStore(t, s)
	}
	write(dir, string(rowA.key), rowA.value)
	s = openStore(t, dir, w.trust())
	if len(s.Lookup(digestOf("short.bin"))) != 1 || len(s.Rejected()) != 0 {
		t.Error("put back, and not granted")
	}
}

// Whoever has the store's key, its head and the database can write facts; a grant
// is none without the mint's signature, and a revocation none without the revoker's.
func TestForgedFactsAreNotHonoured(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	real, err := s.Admit(w.capability(t, "", "real.bin"))
	if err != nil {
		t.Fatal(err)
	}
	byStranger := w.statement(t, "", "stranger.bin")
	byStranger.Predicate.Minter.KeyID = w.stranger.Public().ID()
	claimed := payloadOf(t, w.statement(t, "", "claimed.bin"))
	st, err := NewRevocation(KindCapability, real.ID().String(), "x", real.NotBefore())
	if err != nil {
		t.Fatal(err)
	}
	strangersRevocation, err := SignRevocation(st, w.stranger)
	if err != nil {
		t.Fatal(err)
	}
	forged := []struct {
		kind     string
		envelope []byte
		want     string
	}{
		{RecordCapability, sign(t, payloadOf(t, byStranger), w.stranger), "not signed by a trusted mint"},
		{RecordCapability, sign(t, claimed, w.stranger), "not signed by a trusted mint"},
		{RecordCapability, claimed, "envelope"},
		{RecordCapability, []byte(`{"granted":true}`), "envelope"},
		{RecordCapability, real.Envelope(), "the row holds capability " + real.ID().String()},
		{RecordRevocation, strangersRevocation, "not signed by a trusted revoker"},
		{RecordRevocation, real.Envelope(), "not signed by a trusted revoker"},
	}
	for i, f := range forged {
		e := real.entry() // what the index is told is signed by a pinned key
		if f.kind == RecordRevocation {
			e = entry{signer: keyDigest(w.stranger.Public().ID()), target: target{KindCapability, real.ID()}}
		}
		if err := s.record(reserveWrite, newFact(f.kind, digestOf(string(rune('a'+i))), f.envelope, e), f.envelope); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
	s = openStore(t, dir, w.trust())
	if all := s.All(); len(all) != 1 || all[0].ID() != real.ID() || isRevoked(t, s.Lookup(digestOf("real.bin"))) {
		t.Errorf("the store grants %d capabilities, want the real one alone", len(all))
	}
	for _, content := range []string{"stranger.bin", "claimed.bin"} {
		if g := s.Lookup(digestOf(content)); len(g) != 0 {
			t.Errorf("%s is granted by a forged fact", content)
		}
	}
	rejected := s.Rejected()
	if len(rejected) != len(forged) {
		t.Errorf("%d rows rejected, want %d: %v", len(rejected), len(forged), rejected)
	}
	for i, f := range forged {
		found := false
		for _, r := range rejected {
			if r.Key == string(recordKey(f.kind, digestOf(string(rune('a'+i))))) {
				found = true
				if !strings.Contains(r.Reason, f.want) {
					t.Errorf("forged fact %d is rejected with %q, want %q", i, r.Reason, f.want)
				}
			}
		}
		if !found {
			t.Errorf("forged fact %d is not among the rejected", i)
		}
	}
}

// A crash at any moment of making a store leaves one that can be made.
func TestNewStoreGoesOn(t *testing.T) {
	w := newWorld(t)
	for name, left := range map[string]func(t *testing.T, memory string, k rowKey){
		"nothing": func(*testing.T, string, rowKey) {},
		"the head": func(t *testing.T, memory string, k rowKey) {
			if err := writeHead(memory, k, firstHead(k)); err != nil {
				t.Fatal(err)
			}
		},
		"head and key": func(t *testing.T, memory string, k rowKey) {
			if err := errors.Join(writeHead(memory, k, firstHead(k)), writeKey(memory, k)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := storeDir(t)
			mkdir(t, memoryOf(dir), 0o700)
			k := newRowKey()
			left(t, memoryOf(dir), k)
			for range 2 {
				s := openStore(t, dir, w.trust())
				if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
					t.Fatal(err)
				}
				closeStore(t, s)
			}
			if got := keyOf(t, dir); name == "head and key" && got != k || got.isZero() {
				t.Error("the store has another key than the one that was there")
			}
			if info, err := os.Stat(filepath.Join(memoryOf(dir), KeyName)); err != nil || info.Mode() != 0o600 {
				t.Errorf("the key's file: %v, %v, want mode 0600", info.Mode(), err)
			}
		})
	}
}
