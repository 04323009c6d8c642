package logserver

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

func TestCreateRefuses(t *testing.T) {
	w := newWorld(t)
	good := w.policy(t, "acme/*")
	free := filepath.Join(t.TempDir(), "log")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, dir, origin, policy, want string }{
		{"an existing log", w.dir, origin, string(good), "exists already"},
		{"an existing file", file, origin, string(good), "exists already"},
		{"an existing empty directory", t.TempDir(), origin, string(good), "exists already"},
		{"no parent directory", filepath.Join(free, "a", "b"), origin, string(good), "no such file"},
		{"an empty policy", free, origin, "", "it is empty"},
		{"a policy that is none", free, origin, "{}", "version"},
		{"an empty origin", free, "", string(good), "it is empty"},
		{"an origin with a space", free, "log example", string(good), "no space"},
		{"an origin with a plus", free, "log+example", string(good), "no '+'"},
		{"an origin of two lines", free, "log\nexample", string(good), "no space"},
	} {
		if _, err := Create(tt.dir, tt.origin, []byte(tt.policy)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Create = %v, want an error with %q", tt.name, err, tt.want)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(free), "*")); len(left) > 0 {
			t.Errorf("%s: Create left %q", tt.name, left)
		}
	}
}

func TestCreate(t *testing.T) {
	w := newWorld(t)
	for name, want := range map[string]os.FileMode{keyFile: 0o600, vkeyFile: 0o644, "": 0o700} {
		fi, err := os.Stat(filepath.Join(w.dir, name))
		if err != nil || fi.Mode().Perm() != want {
			t.Errorf("mode of %q = %v, %v, want %v", name, fi.Mode(), err, want)
		}
	}
	if got, err := VerifierKey(w.dir); err != nil || got != w.vkey {
		t.Errorf("VerifierKey = %v, %v, want %v", got, err, w.vkey)
	}
	if w.vkey.Name() != origin {
		t.Errorf("the key's name = %q, want the origin", w.vkey.Name())
	}
}

func TestOpenRefuses(t *testing.T) {
	w := newWorld(t)
	other := newWorld(t)
	a, b := newWitness(t, "a", w.vkey), newWitness(t, "b", w.vkey)
	noURL := strings.TrimSuffix(a.line(), a.url)
	for _, tt := range []struct {
		name      string
		harm      func(dir string) error
		witnesses []string
		want      string
	}{
		{name: "another key", want: "another one", harm: func(dir string) error {
			key, err := os.ReadFile(filepath.Join(other.dir, keyFile))
			return errors.Join(err, os.WriteFile(filepath.Join(dir, keyFile), key, 0o600))
		}},
		{name: "a damaged key", want: "damaged", harm: func(dir string) error {
			return os.WriteFile(filepath.Join(dir, keyFile), []byte("PRIVATE+KEY+x"), 0o600)
		}},
		{name: "a key that others can read", want: "lets others in", harm: func(dir string) error { return os.Chmod(filepath.Join(dir, keyFile), 0o644) }},
		{name: "no key", want: "no such file", harm: func(dir string) error { return os.Remove(filepath.Join(dir, keyFile)) }},
		{name: "no verifier key", want: "not the directory of a log", harm: func(dir string) error { return os.Remove(filepath.Join(dir, vkeyFile)) }},
		{name: "a broken list", want: "policy.json", harm: func(dir string) error { return os.WriteFile(PolicyFile(dir), []byte("{"), 0o644) }},
		{name: "a list that others can write", want: "lets others in", harm: func(dir string) error { return os.Chmod(PolicyFile(dir), 0o666) }},
		{name: "witnesses without a quorum", witnesses: []string{a.line()}, want: "one quorum line"},
		{name: "a witness without an address", witnesses: []string{noURL, "quorum a"}, want: "needs the http or https URL"},
		{name: "two witnesses at one address", witnesses: []string{a.line(), strings.TrimSuffix(b.line(), b.url) + a.url, "group g all a b", "quorum g"}, want: "have the same address"},
		{name: "a threshold of 0", witnesses: []string{a.line(), "group g 0 a", "quorum g"}, want: "from 1 to 1"},
		{name: "one member twice", witnesses: []string{a.line(), "group g 2 a a", "quorum g"}, want: "would count twice"},
		{name: "two quorum lines", witnesses: []string{a.line(), "quorum a", "quorum none"}, want: "a second one"},
	} {
		w := newWorld(t)
		cfg := w.config()
		if tt.witnesses != nil {
			cfg.Witnesses = []byte("log " + w.vkey.String() + "\n" + strings.Join(tt.witnesses, "\n") + "\n")
		}
		if tt.harm != nil {
			if err := tt.harm(w.dir); err != nil {
				t.Fatal(err)
			}
		}
		if l, err := Open(cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Open = %v, want an error with %q", tt.name, err, tt.want)
			if err == nil {
				w.close(t, l)
			}
		}
	}
	cfg := w.config()
	cfg.Witnesses = []byte("log " + other.vkey.String() + "\nquorum none\n")
	if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "expected the line") {
		t.Errorf("a policy of another log: Open = %v", err)
	}
	l := w.open(t)
	if _, err := Open(w.config()); err == nil || !strings.Contains(err.Error(), "serves the log") {
		t.Errorf("Open while %p is open = %v, want that another process serves it", l, err)
	}
}

// What the list does not allow is not added, and leaves no blob.
func TestAddRefuses(t *testing.T) {
	w := newWorld(t)
	l := w.open(t)
	good := w.sba(t, 1)
	future := []byte(strings.Replace(string(ledger(w.publisher.Public(), "acme/langid", 1)), "2026-11-20T09:00:00Z", "2999-01-01T00:00:00Z", 1))
	unknown := []byte(strings.Replace(string(ledger(w.publisher.Public(), "acme/langid", 1)), "build-ledger/v1", "policy/v1", 1))
	image := []byte(strings.Replace(string(ledger(w.publisher.Public(), "acme/langid", 1)), `"SEED"`, `"LD_PRELOAD"`, 1))
	raw, err := dsse.Sign("text/plain", ledger(w.publisher.Public(), "acme/langid", 1), w.publisher)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name      string
		envelope  []byte
		malformed bool
		want      string
	}{
		{"nothing", nil, true, "reading JSON"},
		{"no envelope", []byte("weights"), true, "reading JSON"},
		{"two envelopes", append(append([]byte{}, good...), good...), true, "reading JSON"},
		{"too large", append(append([]byte{}, good...), make([]byte, dsse.MaxEnvelope)...), true, "at most 4194304 bytes"},
		{"another payload type", raw, true, "payloadType"},
		{"a payload that is no statement", sign(t, []byte("weights"), w.publisher), true, "in-toto statement"},
		{"an unknown predicate", sign(t, unknown, w.publisher), true, "predicateType"},
		{"a ledger with an unknown field", sign(t, []byte(strings.Replace(string(ledger(w.publisher.Public(), "acme/langid", 1)), `"version"`, `"weights":"x","version"`, 1)), w.publisher), true, "weights"},
		{"a foreign signer", sign(t, ledger(w.stranger.Public(), "acme/langid", 1), w.stranger), false, "not signed by the required keys"},
		{"a foreign signer of the publisher's ledger", sign(t, ledger(w.publisher.Public(), "acme/langid", 1), w.stranger), false, "not signed by the required keys"},
		{"the publisher's signature under a foreign name", sign(t, ledger(w.stranger.Public(), "acme/langid", 1), w.publisher), false, "names the publisher key"},
		{"a model that is not the publisher's", sign(t, ledger(w.publisher.Public(), "rival/langid", 1), w.publisher), false, "names no publisher for this model"},
		{"a variable that the list does not have", sign(t, image, w.publisher), false, "LD_PRELOAD"},
		{"a ledger from the future", sign(t, future, w.publisher), false, "clocks is wrong"},
		{"a ledger by the mint", sign(t, ledger(w.mint.Public(), "acme/langid", 1), w.mint), false, "not signed by the required keys"},
		{"a ledger by the revoker", sign(t, ledger(w.revoker.Public(), "acme/langid", 1), w.revoker), false, "not signed by the required keys"},
		{"a capability by the publisher", w.capability(t, w.publisher), false, "not signed by the required keys"},
		{"a capability by the revoker", w.capability(t, w.revoker), false, "not signed by the required keys"},
		{"a capability by a stranger", w.capability(t, w.stranger), false, "not signed by the required keys"},
		{"a revocation by the publisher", w.revocation(t, w.publisher), false, "not signed by the required keys"},
		{"a revocation by the mint", w.revocation(t, w.mint), false, "not signed by the required keys"},
		{"a store's head by the publisher", w.head(t, w.publisher, 1, "a"), false, "not signed by the required keys"},
		{"a store's head by a stranger", w.head(t, w.stranger, 1, "a"), false, "not signed by the required keys"},
		{"a store's head under another's name", sign(t, payload(t, w.head(t, w.stranger, 1, "a")), w.mint), false, "signer.keyid"},
		{"a store's head of another type", sign(t, []byte(strings.Replace(string(payload(t, w.head(t, w.mint, 1, "a"))), "store-head/v1", "store-tail/v1", 1)), w.mint), true, "predicateType"},
	} {
		proof, err := l.Add(t.Context(), tt.envelope)
		var r *Refusal
		if !errors.As(err, &r) || r.Malformed != tt.malformed || !strings.Contains(err.Error(), tt.want) || proof != nil {
			t.Errorf("%s: Add = %q, %v, want a Refusal (malformed: %t) with %q", tt.name, proof, err, tt.malformed, tt.want)
		}
	}
	if exists(filepath.Join(l.tree(), "blob")) || len(l.index) > 0 {
		t.Errorf("something was kept of what was refused")
	}
	if got := w.add(t, l, 1).Index; got != 0 {
		t.Errorf("index of the first entry = %d, want 0", got)
	}
}

func TestAdd(t *testing.T) {
	w := newWorld(t)
	l := w.open(t)
	for i, e := range [][]byte{w.sba(t, 1), w.capability(t, w.mint), w.revocation(t, w.revoker), w.head(t, w.mint, 1, "a"), w.head(t, w.revoker, 1, "a")} {
		text, err := l.Add(t.Context(), e)
		if err != nil {
			t.Fatalf("envelope %d: %v", i, err)
		}
		envelope, err := dsse.Parse(e)
		if err != nil {
			t.Fatal(err)
		}
		// What anybody finds out about an entry is what the log found out.
		leaf, err := translog.ClaimedLeaf(envelope)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tlog.Verify(w.trust(t), text, leaf); err != nil {
			t.Errorf("%s: %v", leaf.Kind(), err)
		}
		if p, err := tlog.ParseProof(text); err != nil || p.Index != int64(i) {
			t.Errorf("%s: proof of index %d, %v, want %d", leaf.Kind(), p.Index, err, i)
		}
		blob, err := os.ReadFile(filepath.Join(l.tree(), translog.BlobPath(leaf.Payload())))
		if err != nil || string(blob) != string(e) {
			t.Errorf("%s: blob = %q, %v, want the envelope", leaf.Kind(), blob, err)
		}
	}
}

func TestAddConcurrently(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.mustOpen(t)
	const entries, times = 50, 4
	var mu sync.Mutex
	indexes := make(map[int]map[int64]bool) // by sequence
	var all sync.WaitGroup
	for i := range entries * times {
		all.Go(func() {
			sequence := 1 + i%entries
			p := w.add(t, l, sequence)
			mu.Lock()
			defer mu.Unlock()
			if indexes[sequence] == nil {
				indexes[sequence] = make(map[int64]bool)
			}
			indexes[sequence][p.Index] = true
		})
	}
	all.Wait()
	seen := make(map[int64]bool)
	for sequence, at := range indexes {
		if len(at) != 1 {
			t.Errorf("entry %d has the indexes %v, want one", sequence, at)
		}
		for i := range at {
			seen[i] = true
		}
	}
	if len(indexes) != entries || len(seen) != entries {
		t.Errorf("%d entries have %d indexes, want %d of each", len(indexes), len(seen), entries)
	}
	w.close(t, l)
	// The same entries after a restart, and signed again with a hint in between.
	l = w.open(t)
	for sequence, at := range indexes {
		if p := w.add(t, l, sequence); !at[p.Index] {
			t.Errorf("entry %d after a restart has the index %d, want %v", sequence, p.Index, at)
		}
	}
	if l.Size() != entries {
		t.Errorf("size after a restart = %d, want %d", l.Size(), entries)
	}
}

// A list that changes counts at once; one that is broken leaves the old one in
// force and is told of.
func TestListIsReadAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.open(t)
	rival := sign(t, ledger(w.publisher.Public(), "rival/langid", 1), w.publisher)
	var refused *Refusal
	if _, err := l.Add(t.Context(), rival); !errors.As(err, &refused) {
		t.Fatalf("Add before = %v, want a Refusal", err)
	}
	if err := os.WriteFile(PolicyFile(w.dir), []byte(`{"version":1}`), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the broken list is told of", func() bool { return strings.Contains(messages.String(), "THE NEW policy.json CANNOT BE USED") })
	if _, err := l.Add(t.Context(), rival); !errors.As(err, &refused) {
		t.Errorf("Add under a broken list = %v, want a Refusal", err)
	}
	w.add(t, l, 1)
	if err := os.WriteFile(PolicyFile(w.dir), w.policy(t, "acme/*", "rival/*"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Add(t.Context(), rival); err != nil {
		t.Errorf("Add under the new list = %v", err)
	}
	if err := os.Remove(PolicyFile(w.dir)); err != nil {
		t.Fatal(err)
	}
	w.add(t, l, 2)
}

func TestQuorum(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b, c := newWitness(t, "a", w.vkey), newWitness(t, "b", w.vkey), newWitness(t, "c", w.vkey)
	lines := []string{a.line(), b.line(), c.line(), "group inner any b c", "group both all a inner", "quorum both"}
	b.setDown(true)
	l := w.open(t, lines...)
	w.add(t, l, 1)
	checkpoint := filepath.Join(l.tree(), "checkpoint")
	before, err := os.ReadFile(checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	c.setDown(true)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err = l.Add(ctx, w.sba(t, 2))
	var pending *PendingError
	if !errors.As(err, &pending) || pending.Index != 1 || !strings.Contains(err.Error(), "witness c: it answers 500") {
		t.Errorf("Add without a quorum = %v, want a PendingError of index 1 that names witness c", err)
	}
	if after, err := os.ReadFile(checkpoint); err != nil || string(after) != string(before) {
		t.Errorf("without a quorum this was published: %s, %v", after, err)
	}
	b.setDown(false)
	if p := w.add(t, l, 2); p.Index != 1 {
		t.Errorf("index of the entry that waited = %d, want 1", p.Index)
	}
	text, err := l.Add(t.Context(), w.sba(t, 2))
	if err != nil {
		t.Fatal(err)
	}
	proof := w.verify(t, w.trust(t, lines...), text, 2)
	got, err := w.trust(t, lines...).Checkpoint(proof.Checkpoint)
	if err != nil || len(got.Cosignatures()) < 2 {
		t.Errorf("cosignatures = %v, %v, want two", got.Cosignatures(), err)
	}
}

// The first checkpoint, of the empty tree, waits for the witnesses too. A log that
// gets witnesses later does not show the checkpoint that they have not seen.
func TestQuorumComesLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := newWitness(t, "a", w.vkey)
	a.setDown(true)
	l := w.mustOpen(t, a.line(), "quorum a")
	if exists(filepath.Join(l.tree(), "checkpoint")) {
		t.Error("a checkpoint was published without its witness")
	}
	a.setDown(false)
	eventually(t, "the first checkpoint", func() bool { return exists(filepath.Join(l.tree(), "checkpoint")) })
	w.close(t, l)
	l = w.mustOpen(t)
	w.add(t, l, 1)
	w.close(t, l)
	b := newWitness(t, "b", w.vkey)
	l = w.open(t, a.line(), b.line(), "group g all a b", "quorum g")
	w.add(t, l, 1)
	if a.count() < 2 || b.count() < 1 {
		t.Errorf("the witnesses cosigned %d and %d times", a.count(), b.count())
	}
}

// A directory that does not have what its log has signed is not served: the log
// would sign a second tree.
func TestOpenNoticesDamage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		harm func(w *world) error
		want string
	}{
		{"an entry is altered", func(w *world) error {
			path := filepath.Join(Tree(w.dir), "tile/entries/000.p/3")
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, []byte(strings.Replace(string(data), "acme/langid", "acme/langie", 1)), 0o644)
		}, "which the log has signed"},
		{"a tile is altered", func(w *world) error {
			path := filepath.Join(Tree(w.dir), "tile/0/000.p/3")
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			data[40] ^= 1
			return os.WriteFile(path, data, 0o644)
		}, "tiles do not belong"},
		{"the tree is older", func(w *world) error {
			path := filepath.Join(Tree(w.dir), ".state/treeState")
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, []byte(strings.Replace(string(data), `"size":3`, `"size":2`, 1)), 0o644)
		}, "not older"},
		{"the entries are gone", func(w *world) error { return os.RemoveAll(filepath.Join(Tree(w.dir), "tile/entries")) }, "no such file"},
		{"the checkpoint is another log's", func(w *world) error {
			return os.WriteFile(filepath.Join(Tree(w.dir), "checkpoint"), []byte("other.example\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n— other.example AAAAAAAA\n"), 0o644)
		}, "its own checkpoint"},
	} {
		w := newWorld(t)
		l := w.mustOpen(t)
		for i := range 3 {
			w.add(t, l, 1+i)
		}
		w.close(t, l)
		if err := tt.harm(w); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if l, err := Open(w.config()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Open = %v, want an error with %q", tt.name, err, tt.want)
			if err == nil {
				w.close(t, l)
			}
		}
	}
}

// A disk that does not take a blob or a leaf refuses that entry, loudly, and the
// next one is taken when it does.
func TestAddSurvivesFaults(t *testing.T) {
	w := newWorld(t)
	l := w.open(t)
	w.add(t, l, 1)
	for i, place := range []string{"blob/sha256", "tile/entries", "tile/0", ".state/treeState"} {
		path := filepath.Join(l.tree(), place)
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		// Not a directory and not a file that can be replaced.
		obstacle := filepath.Join(path, "obstacle")
		err := os.WriteFile(path, nil, 0o644)
		if place == ".state/treeState" {
			err = errors.Join(os.Remove(path), os.MkdirAll(obstacle, 0o755))
		}
		if err != nil {
			t.Fatal(err)
		}
		proof, err := l.Add(t.Context(), w.sba(t, 2+i))
		var refused *Refusal
		if err == nil || errors.As(err, &refused) || proof != nil {
			t.Errorf("%s is in the way: Add = %q, %v, want an error that is no Refusal", place, proof, err)
		}
		if err := errors.Join(os.RemoveAll(path), os.Rename(path+".away", path)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		text, err := l.Add(ctx, w.sba(t, 2+i))
		if err != nil {
			t.Fatalf("%s is back: %v", place, err)
		}
		if p := w.verify(t, l.Policy(), text, 2+i); p.Index != int64(1+i) {
			t.Errorf("%s: index %d, want %d", place, p.Index, 1+i)
		}
	}
}

// A log that was restored from an older copy has nothing published: its witness
// has seen more.
func TestOlderCopyIsNotPublished(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := newWitness(t, "a", w.vkey)
	l := w.mustOpen(t, a.line(), "quorum a")
	w.add(t, l, 1)
	w.close(t, l)
	older := filepath.Join(t.TempDir(), "older")
	if err := os.CopyFS(older, os.DirFS(w.dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(older, keyFile), 0o600); err != nil {
		t.Fatal(err)
	}
	l = w.mustOpen(t, a.line(), "quorum a")
	for i := range 3 {
		w.add(t, l, 2+i)
	}
	w.close(t, l)
	w.dir = older
	l = w.open(t, a.line(), "quorum a")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := l.Add(ctx, w.sba(t, 9))
	var pending *PendingError
	if !errors.As(err, &pending) || !strings.Contains(err.Error(), "another size of the log") || l.Size() != 1 {
		t.Errorf("Add to an older copy = %v, size %d, want a PendingError, and nothing published", err, l.Size())
	}
	before := a.count()
	for i := range 2 { // to the size that the witness has, and beyond
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.Add(ctx, w.sba(t, 10+2*i)); !errors.As(err, &pending) {
			t.Errorf("Add %d to an older copy = %v, want a PendingError", i, err)
		}
		if _, err := l.Add(ctx, w.sba(t, 11+2*i)); !errors.As(err, &pending) {
			t.Errorf("Add %d to an older copy = %v, want a PendingError", i, err)
		}
	}
	if a.count() != before {
		t.Errorf("the witness cosigned a second tree")
	}
}
