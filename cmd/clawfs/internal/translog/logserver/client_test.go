package logserver

import (
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// fill adds entries by the driver alone, faster than Add, and waits until they are
// published.
func (w *world) fill(t testing.TB, l *Log, from, to int) {
	t.Helper()
	l.mu.Lock()
	want := int64(len(l.index) + to - from + 1)
	l.mu.Unlock()
	for s := from; s <= to; s++ {
		a := &addition{done: make(chan struct{})}
		l.mu.Lock()
		l.pending[w.leaf(t, s).Hash()] = a
		l.mu.Unlock()
		go l.write(a, w.leaf(t, s), w.sba(t, s))
	}
	eventually(t, "the entries are published", func() bool { return l.Size() == want })
}

func openLog(t testing.TB, location string, policy tlog.Policy) *translog.Log {
	t.Helper()
	l, err := translog.Open(location, policy)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func newest(t testing.TB, l *translog.Log) tlog.Checkpoint {
	t.Helper()
	c, err := l.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func prove(t testing.TB, l *translog.Log, c tlog.Checkpoint, index int64) []byte {
	t.Helper()
	p, err := l.Prove(t.Context(), c, index)
	if err != nil {
		t.Fatal(err)
	}
	text, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// A log of more than two tiles, over HTTP, from its directory and from a copy.
func TestClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.open(t)
	w.fill(t, l, 1, 300)
	copied := filepath.Join(t.TempDir(), "public")
	if _, err := openLog(t, w.dir, w.trust(t)).Copy(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	older := newest(t, openLog(t, copied, w.trust(t)))
	w.fill(t, l, 301, 600)
	done, err := openLog(t, w.dir, w.trust(t)).Copy(t.Context(), copied)
	if err != nil || done.Size != 600 || done.New != 300 {
		t.Fatalf("second copy = %+v, %v, want 600 entries, 300 new", done, err)
	}
	if again, err := openLog(t, w.dir, w.trust(t)).Copy(t.Context(), copied); err != nil || again.New != 0 || again.Files > 10 {
		t.Errorf("third copy = %+v, %v, want nothing new", again, err)
	}
	for _, gone := range []string{"tile/0/001.p", "tile/entries/001.p"} {
		if exists(filepath.Join(copied, gone)) {
			t.Errorf("the copy keeps %s", gone)
		}
	}
	static := httptest.NewServer(http.FileServer(http.Dir(copied)))
	t.Cleanup(static.Close)
	for _, location := range []string{w.serve(t, l, time.Minute), w.dir, copied, static.URL, static.URL + "/"} {
		r := openLog(t, location, w.trust(t))
		c := newest(t, r)
		if c.Size() != 600 {
			t.Fatalf("%s: size %d, want 600", location, c.Size())
		}
		for _, sequence := range []int{1, 256, 257, 300, 512, 599, 600} {
			leaf := w.leaf(t, sequence)
			index, err := r.Find(t.Context(), c, leaf, -1)
			if err != nil {
				t.Fatalf("%s: %v", location, err)
			}
			text := prove(t, r, c, index)
			w.verify(t, w.trust(t), text, sequence)
			if again, err := r.Find(t.Context(), c, leaf, index); err != nil || again != index {
				t.Errorf("%s: Find with the hint %d = %d, %v", location, index, again, err)
			}
			envelope, err := r.Envelope(t.Context(), leaf)
			if err != nil || !bytes.Equal(envelope, w.sba(t, sequence)) {
				t.Errorf("%s: Envelope = %q, %v", location, envelope, err)
			}
		}
		if _, err := r.Find(t.Context(), c, w.leaf(t, 601), 3); !errors.Is(err, translog.ErrNotLogged) {
			t.Errorf("%s: Find of what is not there = %v, want ErrNotLogged", location, err)
		}
		m, err := tlog.NewMemory().Advance(older, nil)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := r.Consistency(t.Context(), older.Size(), c.Size())
		if err != nil {
			t.Fatalf("%s: %v", location, err)
		}
		if _, err := m.Advance(c, proof); err != nil {
			t.Errorf("%s: %v", location, err)
		}
		// A verifier that remembers a newer checkpoint than its proof has.
		m, err = tlog.NewMemory().Advance(c, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Extends(older, proof); err != nil {
			t.Errorf("%s: %v", location, err)
		}
		if _, err := r.Consistency(t.Context(), 1, 601); err == nil {
			t.Errorf("%s: Consistency beyond the log has no error", location)
		}
		if _, err := r.Consistency(t.Context(), 5, 4); err == nil {
			t.Errorf("%s: Consistency backwards has no error", location)
		}
		if _, err := r.Prove(t.Context(), c, 600); err == nil {
			t.Errorf("%s: Prove beyond the log has no error", location)
		}
	}
	if _, err := translog.Open(copied, tlog.Policy{}); err == nil {
		t.Error("Open without a policy has no error")
	}
	other := newWorld(t)
	if _, err := openLog(t, copied, other.trust(t)).Checkpoint(t.Context()); err == nil {
		t.Error("Checkpoint by another log's policy has no error")
	}
	for _, location := range []string{"ftp://log.example", "http://", "http://user@log.example", "http://log.example?a", filepath.Join(copied, "checkpoint"), copied + "x"} {
		if _, err := translog.Open(location, w.trust(t)); err == nil {
			t.Errorf("Open(%q) has no error", location)
		}
	}
}

// Whatever a mirror alters, a client notices before it uses it.
func TestClientNotices(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	l := w.open(t)
	w.fill(t, l, 1, 260)
	all := func(r *translog.Log, c tlog.Checkpoint) error {
		return r.Entries(t.Context(), c, 0, func(_ int64, record []byte) error {
			leaf, err := tlog.ParseLeaf(record)
			if err != nil {
				return err
			}
			_, err = r.Envelope(t.Context(), leaf)
			return err
		})
	}
	flip := func(path string) error {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		data[len(data)/2] ^= 1
		return os.WriteFile(path, data, 0o644)
	}
	whole := filepath.Join(t.TempDir(), "public")
	if _, err := openLog(t, w.dir, w.trust(t)).Copy(t.Context(), whole); err != nil {
		t.Fatal(err)
	}
	r := openLog(t, whole, w.trust(t))
	if err := all(r, newest(t, r)); err != nil {
		t.Fatalf("the copy as it was: %v", err)
	}
	blob := translog.BlobPath(w.leaf(t, 7).Payload())
	for _, tt := range []struct {
		name string
		harm func(dir string) error
		want string
	}{
		{"a tile", func(dir string) error { return flip(filepath.Join(dir, "tile/0/000")) }, "inconsistent tile"},
		{"the last tile", func(dir string) error { return flip(filepath.Join(dir, "tile/0/001.p/4")) }, "inconsistent tile"},
		{"an upper tile", func(dir string) error { return flip(filepath.Join(dir, "tile/1/000.p/1")) }, "inconsistent tile"},
		{"a tile that ends early", func(dir string) error { return os.Truncate(filepath.Join(dir, "tile/0/000"), 32) }, "expected 8192 bytes"},
		{"a tile that is too long", func(dir string) error { return os.Truncate(filepath.Join(dir, "tile/0/000"), 1<<20) }, "at most 8192 bytes"},
		{"a bundle", func(dir string) error { return flip(filepath.Join(dir, "tile/entries/000")) }, "entries 0 to 255|entry"},
		{"a bundle that ends early", func(dir string) error { return os.Truncate(filepath.Join(dir, "tile/entries/000"), 1000) }, "entries 0 to 255"},
		{"a bundle that is missing", func(dir string) error { return os.Remove(filepath.Join(dir, "tile/entries/000")) }, "no such file"},
		{"a bundle that is a pipe", func(dir string) error {
			path := filepath.Join(dir, "tile/entries/000")
			return errors.Join(os.Remove(path), mkfifo(path))
		}, "not a regular file"},
		{"a bundle that leads elsewhere", func(dir string) error {
			path := filepath.Join(dir, "tile/entries/000")
			return errors.Join(os.Remove(path), os.Symlink("/etc/hostname", path))
		}, "escapes"},
		{"a blob", func(dir string) error { return flip(filepath.Join(dir, blob)) }, "blob"},
		{"a blob of another entry", func(dir string) error {
			data, err := os.ReadFile(filepath.Join(dir, translog.BlobPath(w.leaf(t, 8).Payload())))
			return errors.Join(err, os.WriteFile(filepath.Join(dir, blob), data, 0o644))
		}, "expected an envelope of that payload"},
		{"the checkpoint", func(dir string) error { return flip(filepath.Join(dir, "checkpoint")) }, "checkpoint"},
	} {
		copied := filepath.Join(t.TempDir(), "public")
		if err := os.CopyFS(copied, os.DirFS(whole)); err != nil {
			t.Fatal(err)
		}
		if err := tt.harm(copied); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		r := openLog(t, copied, w.trust(t))
		c, err := r.Checkpoint(t.Context())
		if err == nil {
			err = all(r, c)
		}
		if err == nil || !containsAny(err.Error(), strings.Split(tt.want, "|")) {
			t.Errorf("%s is altered: %v, want an error with %q", tt.name, err, tt.want)
		}
	}
}

func containsAny(s string, parts []string) bool {
	for _, p := range parts {
		if strings.Contains(s, p) {
			return true
		}
	}
	return false
}

func TestCopyRefuses(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	l := w.mustOpen(t)
	w.fill(t, l, 1, 3)
	w.close(t, l)
	older := filepath.Join(t.TempDir(), "older")
	if err := os.CopyFS(older, os.DirFS(w.dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(older, keyFile), 0o600); err != nil {
		t.Fatal(err)
	}
	l = w.open(t)
	w.fill(t, l, 4, 6)
	out := filepath.Join(t.TempDir(), "public")
	if _, err := openLog(t, w.dir, w.trust(t)).Copy(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(out, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string, err error, want string) {
		t.Helper()
		after, readErr := os.ReadFile(filepath.Join(out, "checkpoint"))
		if err == nil || !strings.Contains(err.Error(), want) || readErr != nil || !bytes.Equal(before, after) {
			t.Errorf("%s: Copy = %v, want an error with %q and the copy as it was", name, err, want)
		}
	}
	_, err = openLog(t, older, w.trust(t)).Copy(t.Context(), out)
	check("an older log", err, "not older than its copy")
	// The same log with its key, and another history.
	w.dir = older
	f := w.open(t)
	w.fill(t, f, 14, 18)
	_, err = openLog(t, older, w.trust(t)).Copy(t.Context(), out)
	check("a fork", err, "two trees")
	o := other.open(t)
	other.fill(t, o, 1, 9)
	_, err = openLog(t, other.dir, other.trust(t)).Copy(t.Context(), out)
	check("another log", err, "signature")
}

func known(t testing.TB, envelopes ...[]byte) map[hashpipe.Digest]bool {
	t.Helper()
	all := make(map[hashpipe.Digest]bool)
	for _, e := range envelopes {
		envelope, err := dsse.Parse(e)
		if err != nil {
			t.Fatal(err)
		}
		all[hashpipe.SumBytes(envelope.UnverifiedPayload()).Claim()] = true
	}
	return all
}

// reload is what a monitor does between two looks.
func reload(t testing.TB, s translog.State, key dsse.PublicKey) translog.State {
	t.Helper()
	text, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := translog.ParseState(text, key.ID())
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func TestMonitor(t *testing.T) {
	w := newWorld(t)
	l := w.open(t)
	r, key := openLog(t, w.dir, w.trust(t)), w.publisher.Public()
	w.add(t, l, 1)
	if _, err := l.Add(t.Context(), w.revocation(t, w.revoker)); err != nil {
		t.Fatal(err)
	}
	mine := known(t, w.sba(t, 1))
	s, look, err := r.Monitor(t.Context(), translog.NewState(key.ID()), key, mine)
	if err != nil || look.Size != 2 || look.Looked != 2 || look.Own != 1 || len(look.Unknown) != 0 {
		t.Fatalf("first look = %+v, %v, want 2 entries, one of them own", look, err)
	}
	w.add(t, l, 2) // with the publisher's key, by somebody else
	w.add(t, l, 3)
	if err := os.WriteFile(filepath.Join(l.tree(), translog.BlobPath(w.leaf(t, 3).Payload())), sign(t, ledger(key, "acme/langid", 3), w.stranger), 0o644); err != nil {
		t.Fatal(err)
	}
	w.add(t, l, 4)
	if err := os.Remove(filepath.Join(l.tree(), translog.BlobPath(w.leaf(t, 4).Payload()))); err != nil {
		t.Fatal(err)
	}
	s, look, err = r.Monitor(t.Context(), reload(t, s, key), key, mine)
	if err != nil || look.Size != 5 || look.Looked != 3 || look.Own != 3 || len(look.Unknown) != 3 {
		t.Fatalf("second look = %+v, %v, want 3 entries more, all unknown", look, err)
	}
	for i, want := range []string{translog.EnvelopeSigned, translog.EnvelopeUnsigned, translog.EnvelopeMissing} {
		if f := look.Unknown[i]; f.Signed != want || f.Index != int64(2+i) || f.Payload != w.leaf(t, 2+i).Payload() || f.Kind != tlog.KindSBA || f.Model != "acme/langid" {
			t.Errorf("unknown entry %d = %+v, want %s", i, f, want)
		}
	}
	// They stay until they are known.
	s, look, err = r.Monitor(t.Context(), reload(t, s, key), key, known(t, w.sba(t, 1), w.sba(t, 2)))
	if err != nil || look.Looked != 0 || len(look.Unknown) != 2 {
		t.Errorf("third look = %+v, %v, want two unknown entries still", look, err)
	}
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "", "EOF"},
		{"another format", strings.Replace(encode(t, s), "monitor/v1", "monitor/v2", 1), "expected format"},
		{"another key", strings.Replace(encode(t, s), string(key.ID()), string(w.stranger.Public().ID()), 1), "the monitor is of key"},
		{"an unknown member", strings.Replace(encode(t, s), `"entries"`, `"extra": 1, "entries"`, 1), "extra"},
		{"less than no entries", strings.Replace(encode(t, s), `"entries": 5`, `"entries": -5`, 1), "entries"},
		{"a memory that is none", strings.Replace(encode(t, s), "clawfs-log-memory/v1", "clawfs-log-memory/v2", 1), "log memory"},
	} {
		if _, err := translog.ParseState([]byte(tt.text), key.ID()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("ParseState of %s = %v, want an error with %q", tt.name, err, tt.want)
		}
	}
}

func encode(t testing.TB, s translog.State) string {
	t.Helper()
	text, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A log that shows two trees is noticed whether they have one size or two, and
// the evidence stays.
func TestMonitorNoticesFork(t *testing.T) {
	w := newWorld(t)
	key := w.publisher.Public()
	l := w.mustOpen(t)
	w.fill(t, l, 1, 2)
	w.close(t, l)
	twin := *w
	twin.dir = filepath.Join(t.TempDir(), "twin")
	if err := os.CopyFS(twin.dir, os.DirFS(w.dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(twin.dir, keyFile), 0o600); err != nil {
		t.Fatal(err)
	}
	l, m := w.open(t), twin.open(t)
	a, b := openLog(t, w.dir, w.trust(t)), openLog(t, twin.dir, w.trust(t))
	none := known(t)
	s, _, err := a.Monitor(t.Context(), translog.NewState(key.ID()), key, none)
	if err != nil {
		t.Fatal(err)
	}
	w.fill(t, l, 3, 3)
	twin.fill(t, m, 13, 13)
	if s, _, err = a.Monitor(t.Context(), s, key, none); err != nil {
		t.Fatal(err)
	}
	forked, _, err := b.Monitor(t.Context(), s, key, none)
	var refusal *tlog.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != tlog.ReasonFork {
		t.Errorf("Monitor of a fork of one size = %v, want ReasonFork", err)
	}
	memory, err := tlog.ParseMemory([]byte(reload(t, forked, key).Memory))
	if err != nil {
		t.Fatal(err)
	}
	if first, second, ok := memory.Fork(origin); !ok || bytes.Equal(first, second) {
		t.Errorf("the state does not hold both checkpoints: %q, %q", first, second)
	}
	if _, _, err := a.Monitor(t.Context(), reload(t, forked, key), key, none); !errors.As(err, &refusal) || refusal.Reason != tlog.ReasonFork {
		t.Errorf("Monitor after a fork = %v, want ReasonFork", err)
	}
	twin.fill(t, m, 14, 15)
	split, _, err := b.Monitor(t.Context(), s, key, none)
	var two *translog.SplitError
	if !errors.As(err, &two) {
		t.Fatalf("Monitor of a fork of another size = %v, want a SplitError", err)
	}
	for _, note := range []string{split.Split.Older, split.Split.Newer} {
		if _, err := w.trust(t).Checkpoint([]byte(note)); err != nil {
			t.Errorf("the evidence %q: %v", note, err)
		}
	}
	if _, _, err := a.Monitor(t.Context(), reload(t, split, key), key, none); !errors.As(err, &two) {
		t.Errorf("Monitor after a split = %v, want a SplitError", err)
	}
	// An older checkpoint is no fork, and is refused.
	if s, _, err = b.Monitor(t.Context(), translog.NewState(key.ID()), key, none); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Monitor(t.Context(), s, key, none); !errors.As(err, &refusal) || refusal.Reason != tlog.ReasonOlder {
		t.Errorf("Monitor of an older checkpoint = %v, want ReasonOlder", err)
	}
	if _, err := openLog(t, t.TempDir(), w.trust(t)).Checkpoint(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Checkpoint of an empty directory = %v, want fs.ErrNotExist", err)
	}
}
