package witness_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	formatsnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/witness"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// Each request is refused with the status of the protocol, and leaves the state
// as it was.
func TestRefuses(t *testing.T) {
	dir, key := initWitness(t)
	l := newLogger(t, origin, "", 20)
	fork := newLogger(t, origin, " of a fork", 20)
	x := newLogger(t, other, "", 20)
	empty := newLogger(t, "empty.example", "", 20)
	r := open(t, dir, key, l.line(), x.line(), empty.line())
	r.cosigned(t, l, 0, 8)
	before := stateOf(t, dir)

	good := l.request(t, 8, 13)
	sub := func(old, new string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("no %q in the request", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	proof := l.proof(t, 8, 13)
	emptyText := strings.Replace(x.text(t, 5), "\n5\n", "\n0\n", 1)
	foreign := l.keyed("another key")
	broken := []byte(l.sign(l.text(t, 12)))
	note13 := l.text(t, 13)
	tests := []struct {
		name, body string
		status     int
		want       string
	}{
		{"nothing", "", 400, "expected an empty line"},
		{"proof alone", "old 8\n" + proof, 400, "expected an empty line"},
		{"checkpoint alone", l.note(t, 13), 400, `expected a line "old <size>" first`},
		{"no old line", proof + "\n" + l.note(t, 13), 400, `expected a line "old <size>" first`},
		{"empty line first", "\n\n" + good, 400, `expected a line "old <size>"`},
		{"old in capitals", sub("old 8", "Old 8"), 400, `expected a line "old`},
		{"old without size", sub("old 8", "old "), 400, `expected a line "old`},
		{"old with a sign", sub("old 8", "old +8"), 400, `expected a line "old`},
		{"old below zero", sub("old 8", "old -8"), 400, `expected a line "old`},
		{"old with a zero before it", sub("old 8", "old 08"), 400, `expected a line "old`},
		{"old in hex", sub("old 8", "old 0x8"), 400, `expected a line "old`},
		{"old with a space after it", sub("old 8", "old 8 "), 400, `expected a line "old`},
		{"carriage return", sub("old 8\n", "old 8\r\n"), 400, `expected a line "old`},
		{"old of 20 digits", sub("old 8", "old 99999999999999999999"), 400, `expected a line "old`},
		{"old beyond every size", sub("old 8", "old 18446744073709551615"), 400, "expected an old size of at most 13"},
		{"old above the checkpoint's size", sub("old 8", "old 14"), 400, "expected an old size of at most 13, the checkpoint's, got 14"},
		{"hash that is too short", sub("old 8\n", "old 8\nAAAA\n"), 400, "expected 44 bytes of base64"},
		{"hash that is no base64", sub("old 8\n", "old 8\n"+strings.Repeat("!", 44)+"\n"), 400, "expected padded standard base64"},
		{"64 hashes", "old 8\n" + strings.Repeat(proof[:45], 64) + "\n" + l.note(t, 13), 400, "expected at most 63 hashes, got 64"},
		{"checkpoint without signature", "old 8\n" + proof + "\n" + note13, 400, "checkpoint: "},
		{"checkpoint without its last newline", strings.TrimSuffix(good, "\n"), 400, "checkpoint: "},
		{"checkpoint with something after it", good + "x\n", 400, "checkpoint: "},
		{"signed twice", good + l.sign(note13), 400, "signs twice"},
		{"too large", good + strings.Repeat("x", 200<<10), 413, "expected at most"},

		{"unknown log", newLogger(t, "unknown.example", "", 13).request(t, 0, 13), 404, `does not know the log "unknown.example"`},
		{"unknown log with a wrong old size", newLogger(t, "unknown.example", "", 13).request(t, 7, 13), 404, "unknown.example"},
		{"another origin signed by this log", "old 0\n\n" + strings.Replace(note13, origin, "unknown.example", 1) + "\n" + l.sign(note13), 404, "unknown.example"},

		{"signed by nobody that is known", foreign.request(t, 8, 13), 403, "expected a signature by the log's own key"},
		{"signed by another log of the list", "old 8\n" + proof + "\n" + note13 + "\n" + x.sign(note13), 403, "expected a signature by the log's own key"},
		{"a signature of another text", "old 8\n" + proof + "\n" + note13 + "\n" + string(broken), 403, "does not verify"},
		{"a bad signature and a wrong old size", "old 0\n\n" + note13 + "\n" + string(broken), 403, "does not verify"},
		{"another key and an old size too large", strings.Replace(foreign.request(t, 8, 13), "old 8", "old 14", 1), 403, "own key"},

		{"older old size", l.request(t, 5, 13), 409, "8\n"},
		{"old size zero", l.request(t, 0, 13), 409, "8\n"},
		{"old size of another checkpoint", l.request(t, 10, 13), 409, "8\n"},
		{"a checkpoint of the past", l.request(t, 5, 7), 409, "8\n"},
		{"a checkpoint of the past, from zero", l.request(t, 0, 7), 409, "8\n"},
		{"a wrong old size with a wrong proof", "old 5\n" + proof + "\n" + l.note(t, 13), 409, "8\n"},
		{"nothing seen yet", x.request(t, 5, 13), 409, "0\n"},

		{"no proof", "old 8\n\n" + l.note(t, 13), 422, "expected a consistency proof from size 8"},
		{"proof of another step", "old 8\n" + l.proof(t, 8, 12) + "\n" + l.note(t, 13), 422, "lead elsewhere"},
		{"proof from another size", "old 8\n" + l.proof(t, 7, 13) + "\n" + l.note(t, 13), 422, "lead elsewhere"},
		{"one hash more", "old 8\n" + proof + proof[:45] + "\n" + l.note(t, 13), 422, "lead elsewhere"},
		{"one hash less", "old 8\n" + proof[45:] + "\n" + l.note(t, 13), 422, "lead elsewhere"},
		{"63 hashes", "old 8\n" + strings.Repeat(proof[:45], 63) + "\n" + l.note(t, 13), 422, "lead elsewhere"},
		{"another tree", fork.request(t, 8, 13), 422, "lead elsewhere"},
		{"another tree with this proof", "old 8\n" + proof + "\n" + fork.note(t, 13), 422, "lead elsewhere"},
		{"the same size with a proof", "old 8\n" + proof + "\n" + l.note(t, 8), 422, "expected an empty consistency proof"},
		{"the first one with a proof", "old 0\n" + proof + "\n" + x.note(t, 13), 422, "expected an empty consistency proof"},
		{"an empty tree with a root", "old 0\n\n" + emptyText + "\n" + x.sign(emptyText), 422, "for an empty log"},
	}
	for _, tt := range tests {
		got := r.post(t, tt.body)
		if got.status != tt.status || !strings.Contains(got.body, tt.want) {
			t.Errorf("%s: %d %q, want %d and %q", tt.name, got.status, got.body, tt.status, tt.want)
		}
		if strings.Contains(got.body, "— "+name) {
			t.Errorf("%s: a signature in %q", tt.name, got.body)
		}
		if conflict := got.contentType == "text/x.tlog.size"; conflict != (tt.status == 409) || conflict && got.body != tt.want {
			t.Errorf("%s: Content-Type %q, body %q with status %d", tt.name, got.contentType, got.body, got.status)
		}
		if after := stateOf(t, dir); after != before {
			t.Fatalf("%s: the state changed to %q", tt.name, after)
		}
	}
	for _, tt := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/add-checkpoint", 405},
		{"PUT", "/add-checkpoint", 405},
		{"POST", "/add-checkpoint/", 404},
		{"POST", "/", 404},
		{"GET", "/state", 404},
		{"GET", "/witness.key", 404},
		{"GET", "/../witness.key", 404},
		{"GET", "/" + hashOf(other) + "/checkpoint", 404}, // known and not cosigned
		{"GET", "/" + hashOf("unknown.example") + "/checkpoint", 404},
		{"GET", "/" + strings.ToUpper(hashOf(origin)) + "/checkpoint", 404},
		{"GET", "/" + origin + "/checkpoint", 404},
		{"GET", "//checkpoint", 404},
	} {
		req, err := http.NewRequest(tt.method, r.url+tt.path, strings.NewReader(good))
		if err != nil {
			t.Fatal(err)
		}
		if got := receive(t)(http.DefaultTransport.RoundTrip(req)); got.status != tt.status && got.status != 301 && got.status != 307 || strings.Contains(got.body, "— "+name) {
			t.Errorf("%s %s = %d %q, want %d", tt.method, tt.path, got.status, got.body, tt.status)
		}
	}
	if after := stateOf(t, dir); after != before {
		t.Errorf("the state changed to %q", after)
	}
	// After all that, the right one.
	r.cosigned(t, l, 8, 13)
}

func hashOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func TestCosigns(t *testing.T) {
	dir, key := initWitness(t)
	l := newLogger(t, origin, "", 40)
	x := newLogger(t, other, "", 40)
	r := open(t, dir, key, l.line(), x.line())
	old := int64(0)
	for _, size := range []int64{0, 0, 1, 2, 3, 8, 8, 13, 40} {
		start := time.Now()
		c := r.cosigned(t, l, old, size)
		cs := c.Cosignatures()
		if c.Size() != size || len(cs) != 1 || cs[0].Witness != name {
			t.Fatalf("size %d: %v", c.Size(), cs)
		}
		if at := cs[0].Time; at.Before(start.Truncate(time.Second)) || at.After(time.Now()) {
			t.Errorf("size %d: cosigned at %v, expected between %v and now", size, at, start)
		}
		old = size
	}
	r.cosigned(t, x, 0, 5)

	// Others' code takes it.
	got := r.post(t, l.request(t, 40, 40))
	v, err := formatsnote.NewVerifierForCosignatureV1(key.String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := note.Open([]byte(l.note(t, 40)+got.body), note.VerifierList(v))
	if err != nil || len(n.Sigs) != 1 || n.Text != l.text(t, 40) {
		t.Errorf("note.Open = %v, %v", n, err)
	}

	// Extensions, signatures of others and old cosignatures are no obstacle.
	text := l.text(t, 40) + "extension\n"
	body := "old 40\n\n" + text + "\n" + x.sign(text) + l.keyed("unknown").sign(text) + l.sign(text) + got.body
	if got := r.post(t, body); got.status != 200 {
		t.Errorf("with other signatures: %d %q", got.status, got.body)
	} else {
		r.verify(t, l, text+"\n"+l.sign(text)+got.body)
	}

	for _, l := range []*logger{l, x} {
		got := r.get(t, "/"+hashOf(l.origin)+"/checkpoint")
		if got.status != 200 {
			t.Fatalf("checkpoint of %s: %d", l.origin, got.status)
		}
		want := int64(40)
		if l == x {
			want = 5
		}
		if c := r.verify(t, l, got.body); c.Size() != want {
			t.Errorf("checkpoint of %s: size %d, want %d", l.origin, c.Size(), want)
		}
	}
}

// Either key of a log is enough, and a key that is taken off the list is not.
func TestKeysOfALogRotate(t *testing.T) {
	dir, key := initWitness(t)
	l := newLogger(t, origin, "", 20)
	next := l.keyed("the next key")
	r := open(t, dir, key, l.line(), next.line())
	r.cosigned(t, l, 0, 5)
	r.cosigned(t, next, 5, 6)
	r.Close()
	r = open(t, dir, key, next.line())
	if got := r.post(t, l.request(t, 6, 7)); got.status != 403 {
		t.Errorf("the old key: %d %q, want 403", got.status, got.body)
	}
	r.cosigned(t, next, 6, 8)
	r.Close()
	// A log that was taken off the list is remembered.
	x := newLogger(t, other, "", 20)
	r = open(t, dir, key, x.line())
	r.cosigned(t, x, 0, 3)
	if got := r.post(t, next.request(t, 8, 9)); got.status != 404 {
		t.Errorf("a log that is off the list: %d %q, want 404", got.status, got.body)
	}
	r.Close()
	r = open(t, dir, key, x.line(), next.line())
	if got := r.post(t, next.request(t, 0, 9)); got.status != 409 || got.body != "8\n" {
		t.Errorf("back on the list: %d %q, want 409 and 8", got.status, got.body)
	}
}

// The times of cosignatures never go back, across restarts too.
func TestClock(t *testing.T) {
	dir, key := initWitness(t)
	l := newLogger(t, origin, "", 20)
	r := open(t, dir, key, l.line())
	const start = 1764230400
	want := int64(0)
	for i, clock := range []int64{start, start - 1, start + 5, start + 5, start - 100_000, -1, 0, start + 6} {
		want = max(want, clock)
		r.SetClock(func() time.Time { return time.Unix(clock, 999) })
		if got := r.cosigned(t, l, int64(i), int64(i+1)).Cosignatures()[0].Time.Unix(); got != want {
			t.Errorf("clock %d: cosigned at %d, want %d", clock, got, want)
		}
	}
	if !strings.Contains(r.log.String(), "the clock is behind") {
		t.Errorf("the log says nothing of the clock: %s", r.log)
	}
	r.Close()
	r = open(t, dir, key, l.line())
	r.SetClock(func() time.Time { return time.Unix(start-100_000, 0) })
	if got := r.cosigned(t, l, 8, 8).Cosignatures()[0].Time.Unix(); got != want {
		t.Errorf("after a restart: cosigned at %d, want %d", got, want)
	}
	r.SetClock(func() time.Time { return time.Unix(253402300800, 0) })
	if got := r.post(t, l.request(t, 8, 9)); got.status != 500 || strings.Contains(got.body, "— "+name) {
		t.Errorf("after the year 9999: %d %q, want 500", got.status, got.body)
	}
	if got := r.post(t, l.request(t, 0, 9)); got.body != "8\n" {
		t.Errorf("the state moved without a cosignature to %q", got.body)
	}
	// A witness without a clock signs nothing.
	dir, key = initWitness(t)
	r = open(t, dir, key, l.line())
	r.SetClock(func() time.Time { return time.Unix(0, 0) })
	if got := r.post(t, l.request(t, 0, 9)); got.status != 500 || strings.Contains(got.body, "— "+name) {
		t.Errorf("in 1970: %d %q, want 500", got.status, got.body)
	}
}

func TestFork(t *testing.T) {
	for _, old := range []int64{8, 0, 5} {
		t.Run(fmt.Sprint("old ", old), func(t *testing.T) {
			dir, key := initWitness(t)
			l := newLogger(t, origin, "", 20)
			fork := newLogger(t, origin, " of a fork", 20)
			x := newLogger(t, other, "", 20)
			r := open(t, dir, key, l.line(), x.line())
			r.cosigned(t, l, 0, 8)
			r.cosigned(t, x, 0, 8)

			request := fork.request(t, old, 8)
			got := r.post(t, request)
			switch {
			case old == 8 && (got.status != 422 || !strings.Contains(got.body, "expected one tree of size 8, got two")):
				t.Errorf("the fork: %d %q, want 422", got.status, got.body)
			case old != 8 && (got.status != 409 || got.body != "8\n"):
				t.Errorf("the fork: %d %q, want 409", got.status, got.body)
			}
			if !strings.Contains(r.log.String(), "FORK") || !strings.Contains(r.log.String(), fork.text(t, 8)[len(origin)+3:40]) {
				t.Errorf("the log does not tell of the fork: %s", r.log)
			}
			for range 2 { // before and after a restart
				for _, body := range []string{l.request(t, 8, 9), fork.request(t, 8, 9), l.request(t, 8, 8), request} {
					if got := r.post(t, body); got.status == 200 || strings.Contains(got.body, "— "+name) {
						t.Errorf("after the fork: %d %q", got.status, got.body)
					}
				}
				if got := r.post(t, l.request(t, 8, 9)); got.status != 422 || !strings.Contains(got.body, "do not use this log") {
					t.Errorf("after the fork: %d %q, want 422", got.status, got.body)
				}
				r.Close()
				for _, path := range mustGlob(t, filepath.Join(dir, "forks", "*")) {
					os.Remove(path)
				}
				r = open(t, dir, key, l.line(), x.line())
			}
			// Both notes lie there, written again after they were lost, and verify.
			s, err := witness.Inspect(dir)
			if err != nil || len(s.Logs) != 2 || len(s.Logs[0].Evidence) != 2 || len(s.Logs[1].Evidence) != 0 {
				t.Fatalf("Inspect = %+v, %v", s, err)
			}
			var roots []tlog.Hash
			p, err := tlog.ParsePolicy([]byte(l.line() + "quorum none\n"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range s.Logs[0].Evidence {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				c, err := p.Checkpoint(b)
				if err != nil || c.Size() != 8 {
					t.Fatalf("evidence %s: size %d, %v", path, c.Size(), err)
				}
				roots = append(roots, c.Root())
			}
			if roots[0] == roots[1] {
				t.Errorf("the evidence shows one root twice: %v", roots)
			}
			r.cosigned(t, x, 8, 9)
		})
	}
}

func mustGlob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("nothing matches %s: %v", pattern, err)
	}
	return paths
}

func TestOpenRefuses(t *testing.T) {
	l := newLogger(t, origin, "", 20)
	foreignKey := func(t *testing.T) []byte {
		other, _ := initWitness(t)
		b, err := os.ReadFile(filepath.Join(other, "witness.key"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	write := func(name, text string, perm os.FileMode) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			os.Remove(path)
			if err := os.WriteFile(path, []byte(text), perm); err != nil {
				t.Fatal(err)
			}
		}
	}
	edit := func(old, new string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			text := stateOf(t, dir)
			if !strings.Contains(text, old) {
				t.Fatalf("no %q in the state", old)
			}
			write("state", strings.Replace(text, old, new, 1), 0o600)(t, dir)
		}
	}
	for _, tt := range []struct {
		name  string
		spoil func(*testing.T, string)
		want  string
	}{
		{"no state", func(_ *testing.T, dir string) { os.Remove(filepath.Join(dir, "state")) }, "state is missing, and with it what this witness has cosigned"},
		{"empty state", write("state", "", 0o600), "state is damaged"},
		{"state of an older format", write("state", "clawfs-witness/v0\n", 0o600), "state is damaged"},
		{"state cut short", func(t *testing.T, dir string) {
			text := stateOf(t, dir)
			write("state", text[:len(text)-10], 0o600)(t, dir)
		}, "state is damaged"},
		{"state without time", edit("cosigned ", "signed "), `expected a line "cosigned`},
		{"state with a time below zero", edit("cosigned ", "cosigned -"), `expected a line "cosigned`},
		{"state without memory", write("state", "clawfs-witness/v1\ncosigned 0\n", 0o600), "clawfs-log-memory/v1"},
		{"state with another size", edit("\n8\n", "\n9\n"), "was not written by this witness"},
		{"state without the own cosignature", func(t *testing.T, dir string) {
			n := l.note(t, 8)
			write("state", fmt.Sprintf("clawfs-witness/v1\ncosigned 5\nclawfs-log-memory/v1\nnewest %d\n%s", len(n), n), 0o600)(t, dir)
		}, "was not written by this witness"},
		{"state of another witness", func(t *testing.T, dir string) {
			d, key := initWitness(t)
			r := open(t, d, key, l.line())
			r.cosigned(t, l, 0, 3)
			write("state", stateOf(t, d), 0o600)(t, dir)
		}, "was not written by this witness"},
		{"state is a directory", func(t *testing.T, dir string) {
			os.Remove(filepath.Join(dir, "state"))
			os.Mkdir(filepath.Join(dir, "state"), 0o700)
		}, "witness state"},
		{"state is a link", func(t *testing.T, dir string) {
			os.Rename(filepath.Join(dir, "state"), filepath.Join(dir, "elsewhere"))
			os.Symlink("elsewhere", filepath.Join(dir, "state"))
		}, "witness state"},
		{"no key", func(_ *testing.T, dir string) { os.Remove(filepath.Join(dir, "witness.key")) }, "witness.key"},
		{"key that others may read", func(_ *testing.T, dir string) { os.Chmod(filepath.Join(dir, "witness.key"), 0o644) }, "chmod 0600"},
		{"key of another witness", func(t *testing.T, dir string) { write("witness.key", string(foreignKey(t)), 0o600)(t, dir) }, "expected the private half of"},
		{"no key at all", write("witness.key", "", 0o600), "expected a PEM block"},
		{"no name", func(_ *testing.T, dir string) { os.Remove(filepath.Join(dir, "witness.vkey")) }, "is not the directory of a witness"},
		{"a log's key as its own", write("witness.vkey", l.vkey()+"\n", 0o644), "expected the private half of"},
		{"no directory", func(_ *testing.T, dir string) { os.RemoveAll(dir) }, "is not the directory of a witness"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, key := initWitness(t)
			r := open(t, dir, key, l.line())
			r.cosigned(t, l, 0, 8)
			r.Close()
			tt.spoil(t, dir)
			w, _, err := tryOpen(t, dir, l.line())
			if err == nil {
				w.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want %q", err, tt.want)
			}
		})
	}

	dir, key := initWitness(t)
	r := open(t, dir, key, l.line())
	if _, _, err := tryOpen(t, dir, l.line()); err == nil || !strings.Contains(err.Error(), "pid "+strconv.Itoa(os.Getpid())) {
		t.Errorf("a second process: %v, want the pid of the first", err)
	}
	r.Close()
	if _, _, err := tryOpen(t, dir); err == nil || !strings.Contains(err.Error(), "expected at least one log") {
		t.Errorf("no logs: %v", err)
	}
	// A log with the witness's own key would cosign itself.
	private, err := os.ReadFile(filepath.Join(dir, "witness.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(private)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	self := *l
	self.key = parsed.(ed25519.PrivateKey)
	if _, _, err := tryOpen(t, dir, self.line()); err == nil || !strings.Contains(err.Error(), "the same one") {
		t.Errorf("a log with the key of the witness: %v", err)
	}
	// None of these errors kept the lock.
	open(t, dir, key, l.line())
}

func TestInit(t *testing.T) {
	base := t.TempDir()
	for _, name := range []string{"", "none", "a b", "a+b", "a\nb", strings.Repeat("a", 256)} {
		if _, err := witness.Init(filepath.Join(base, "w"), name); err == nil {
			t.Errorf("Init with the name %q made one", name)
		}
	}
	if left, err := os.ReadDir(base); err != nil || len(left) > 0 {
		t.Fatalf("refused Inits left %v, %v", left, err)
	}
	dir := filepath.Join(base, "w")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	key, err := witness.Init(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tlog.ParsePolicy([]byte("log " + newLogger(t, origin, "", 1).vkey() + "\n" + witness.PolicyLine(key) + "quorum " + name + "\n")); err != nil {
		t.Errorf("the line for policies: %v", err)
	}
	before := stateOf(t, dir)
	if _, err := witness.Init(dir, name); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("Init over a witness: %v", err)
	}
	if stateOf(t, dir) != before {
		t.Error("a refused Init changed the state")
	}
	for path, want := range map[string]os.FileMode{".": 0o700, "witness.key": 0o600, "state": 0o600, "witness.vkey": 0o644} {
		if fi, err := os.Lstat(filepath.Join(dir, path)); err != nil || fi.Mode().Perm() != want {
			t.Errorf("mode of %s = %v, %v, want %v", path, fi.Mode().Perm(), err, want)
		}
	}
	if s, err := witness.Inspect(dir); err != nil || len(s.Logs) != 0 || !s.Cosigned.IsZero() || s.Serving != 0 || s.Key != key {
		t.Errorf("Inspect = %+v, %v", s, err)
	}
}

// What a process that was killed left is swept away, and nothing else.
func TestSweep(t *testing.T) {
	dir, key := initWitness(t)
	l := newLogger(t, origin, "", 9)
	for _, name := range []string{".state.new-123", "notes.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open(t, dir, key, l.line())
	if _, err := os.Lstat(filepath.Join(dir, ".state.new-123")); err == nil {
		t.Error("half a state stays")
	}
	if _, err := os.Lstat(filepath.Join(dir, "notes.txt")); err != nil {
		t.Error(err)
	}
}

// Of requests that begin at the same size at once, one is cosigned: otherwise
// two could roll each other back.
func TestConcurrent(t *testing.T) {
	dir, key := initWitness(t)
	const size = 64
	l := newLogger(t, origin, "", size)
	x := newLogger(t, other, "", size)
	r := open(t, dir, key, l.line(), x.line())
	var mu sync.Mutex
	won := make(map[string][]int64) // sizes that were cosigned, by log and old size
	var all sync.WaitGroup
	for worker := range 8 {
		all.Add(1)
		go func() {
			defer all.Done()
			l := []*logger{l, x}[worker%2]
			old := int64(0)
			for old < size {
				next := min(old+1+int64(worker/2), size)
				res, err := http.Post(r.url+"/add-checkpoint", "", strings.NewReader(l.request(t, old, next)))
				if err != nil {
					t.Error(err)
					return
				}
				got := receive(t)(res, nil)
				switch got.status {
				case 200:
					mu.Lock()
					id := fmt.Sprint(l.origin, " ", old)
					won[id] = append(won[id], next)
					mu.Unlock()
					old = next
				case 409:
					n, err := strconv.ParseInt(strings.TrimSuffix(got.body, "\n"), 10, 64)
					if err != nil || n < old {
						t.Errorf("409 with %q after %d", got.body, old)
						return
					}
					old = n
				default:
					t.Errorf("%d %q", got.status, got.body)
					return
				}
			}
		}()
	}
	all.Wait()
	if len(won) < 10 {
		t.Fatalf("only %d requests were cosigned", len(won))
	}
	for id, sizes := range won {
		if len(sizes) != 1 {
			t.Errorf("after %s the sizes %v were cosigned", id, sizes)
		}
	}
	for _, l := range []*logger{l, x} {
		if got := r.post(t, l.request(t, 0, 1)); got.body != "64\n" {
			t.Errorf("%s ends at %q", l.origin, got.body)
		}
	}
}

// A disk without space cosigns nothing, and a fork that it could not keep is
// refused all the same.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("mounting here needs root; run: sudo go test ./cmd/clawfs/internal/witness")
	}
	mnt := t.TempDir()
	if err := unix.Mount("none", mnt, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatalf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	dir := filepath.Join(mnt, "w")
	key, err := witness.Init(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	l := newLogger(t, origin, "", 20)
	x := newLogger(t, other, "", 20)
	fork := newLogger(t, other, " of a fork", 20)
	r := open(t, dir, key, l.line(), x.line())
	r.cosigned(t, l, 0, 5)
	r.cosigned(t, x, 0, 5)
	before := stateOf(t, dir)

	filler := filepath.Join(mnt, "filler")
	fill := func() {
		f, err := os.OpenFile(filler, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for block := make([]byte, 4096); err == nil; {
			_, err = f.Write(block)
		}
	}
	fill()
	for range 3 {
		if got := r.post(t, l.request(t, 5, 8)); got.status != 500 || strings.Contains(got.body, "— "+name) {
			t.Fatalf("on a full disk: %d %q, want 500", got.status, got.body)
		}
	}
	if !strings.Contains(r.log.String(), "the state cannot be written") {
		t.Errorf("the log does not say why: %s", r.log)
	}
	if got := r.post(t, fork.request(t, 5, 5)); got.status != 500 {
		t.Errorf("a fork on a full disk: %d %q, want 500", got.status, got.body)
	}
	if !strings.Contains(r.log.String(), "FORK") {
		t.Errorf("the log does not hold the fork: %s", r.log)
	}
	if got := r.post(t, x.request(t, 5, 8)); got.status != 500 || strings.Contains(got.body, "— "+name) {
		t.Errorf("the log that forked: %d %q, want 500", got.status, got.body)
	}
	if got := stateOf(t, dir); got != before {
		t.Errorf("the state changed to %q", got)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	r.cosigned(t, l, 5, 8)
	if got := r.post(t, x.request(t, 5, 8)); got.status != 422 {
		t.Errorf("the log that forked: %d %q, want 422", got.status, got.body)
	}
	if s, err := witness.Inspect(dir); err != nil || len(s.Logs[1].Evidence) != 2 {
		t.Errorf("Inspect = %+v, %v, want the fork", s, err)
	}
	mustGlob(t, filepath.Join(dir, "forks", "*-b.checkpoint"))
}

// No body breaks the witness, and only the log's own words are cosigned.
func FuzzAddCheckpoint(f *testing.F) {
	dir, key := initWitness(f)
	l := newLogger(f, origin, "", 20)
	r := open(f, dir, key, l.line())
	r.cosigned(f, l, 0, 8)
	before := stateOf(f, dir)
	f.Add([]byte(l.request(f, 8, 9)[:40]))
	f.Add([]byte("old 8\n\n" + l.text(f, 9) + "\n" + l.sign(l.text(f, 8))))
	f.Add([]byte(l.keyed("another key").request(f, 8, 13)))
	f.Fuzz(func(t *testing.T, body []byte) {
		r.log.Reset()
		rec := httptest.NewRecorder()
		r.Handler().ServeHTTP(rec, httptest.NewRequest("POST", "/add-checkpoint", bytes.NewReader(body)))
		if rec.Code == 200 || rec.Code >= 500 || strings.Contains(rec.Body.String(), "— "+name) {
			t.Errorf("%d %q", rec.Code, rec.Body)
		}
		if stateOf(t, dir) != before {
			t.Error("the state changed")
		}
	})
}
