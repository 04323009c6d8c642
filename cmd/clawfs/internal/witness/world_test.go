package witness_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/witness"
	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	origin = "log.example/models"
	other  = "other.example/log"
	name   = "witness.example/w1"
)

// logger is a log that signs whatever it is asked to, without any code of clawfs.
type logger struct {
	origin string
	key    ed25519.PrivateKey
	hashes []merkle.Hash
}

// newLogger is a log of n leaves, which are told apart by salt. Its key is that
// of its origin.
func newLogger(t testing.TB, origin, salt string, n int64) *logger {
	t.Helper()
	seed := sha256.Sum256([]byte("test key of " + origin))
	l := &logger{origin: origin, key: ed25519.NewKeyFromSeed(seed[:])}
	for i := range n {
		leaf := fmt.Sprint("leaf ", i)
		if i >= 2 {
			leaf += salt
		}
		more, err := merkle.StoredHashes(i, []byte(leaf), l.reader())
		if err != nil {
			t.Fatal(err)
		}
		l.hashes = append(l.hashes, more...)
	}
	return l
}

func (l *logger) reader() merkle.HashReader {
	return merkle.HashReaderFunc(func(indexes []int64) (out []merkle.Hash, err error) {
		for _, i := range indexes {
			if i >= int64(len(l.hashes)) {
				return nil, errors.New("no such hash")
			}
			out = append(out, l.hashes[i])
		}
		return out, nil
	})
}

// keyed is the same log with another key.
func (l *logger) keyed(name string) *logger {
	seed := sha256.Sum256([]byte(name))
	c := *l
	c.key = ed25519.NewKeyFromSeed(seed[:])
	return &c
}

func (l *logger) material() string { return "\x01" + string(l.key.Public().(ed25519.PublicKey)) }

func (l *logger) id() string {
	sum := sha256.Sum256([]byte(l.origin + "\n" + l.material()))
	return string(sum[:4])
}

func (l *logger) vkey() string {
	return fmt.Sprintf("%s+%x+%s", l.origin, l.id(), base64.StdEncoding.EncodeToString([]byte(l.material())))
}

func (l *logger) line() string { return "log " + l.vkey() + "\n" }

func (l *logger) text(t testing.TB, size int64) string {
	t.Helper()
	root, err := merkle.TreeHash(size, l.reader())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s\n%d\n%v\n", l.origin, size, root)
}

func (l *logger) sign(text string) string {
	sig := l.id() + string(ed25519.Sign(l.key, []byte(text)))
	return "— " + l.origin + " " + base64.StdEncoding.EncodeToString([]byte(sig)) + "\n"
}

// note is the checkpoint of that size.
func (l *logger) note(t testing.TB, size int64) string {
	text := l.text(t, size)
	return text + "\n" + l.sign(text)
}

func (l *logger) proof(t testing.TB, old, size int64) string {
	t.Helper()
	if old == 0 {
		return ""
	}
	p, err := merkle.ProveTree(size, old, l.reader())
	if err != nil {
		t.Fatal(err)
	}
	lines := ""
	for _, h := range p {
		lines += h.String() + "\n"
	}
	return lines
}

// request is the body of add-checkpoint from one size to another.
func (l *logger) request(t testing.TB, old, size int64) string {
	return fmt.Sprintf("old %d\n", old) + l.proof(t, old, size) + "\n" + l.note(t, size)
}

// running is a witness behind a server.
type running struct {
	*witness.Witness
	dir string
	key tlog.VerifierKey
	url string
	log *strings.Builder
}

func initWitness(t testing.TB) (dir string, key tlog.VerifierKey) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "w")
	key, err := witness.Init(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return dir, key
}

// open serves the witness in dir for the logs of these lines until the test or
// close ends it.
func open(t testing.TB, dir string, key tlog.VerifierKey, lines ...string) *running {
	t.Helper()
	w, text, err := tryOpen(t, dir, lines...)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(w.Handler())
	t.Cleanup(func() { srv.Close(); w.Close() })
	return &running{w, dir, key, srv.URL, text}
}

func tryOpen(t testing.TB, dir string, lines ...string) (*witness.Witness, *strings.Builder, error) {
	t.Helper()
	var keys []tlog.VerifierKey
	if len(lines) > 0 {
		var err error
		if keys, err = tlog.ParseLogs([]byte(strings.Join(lines, ""))); err != nil {
			t.Fatal(err)
		}
	}
	text := new(strings.Builder)
	w, err := witness.Open(dir, keys, slog.New(slog.NewJSONHandler(text, nil)))
	return w, text, err
}

type reply struct {
	status      int
	contentType string
	body        string
}

func (r *running) post(t testing.TB, body string) reply {
	t.Helper()
	return receive(t)(http.Post(r.url+"/add-checkpoint", "text/plain", strings.NewReader(body)))
}

func (r *running) get(t testing.TB, path string) reply {
	t.Helper()
	return receive(t)(http.Get(r.url + path))
}

func receive(t testing.TB) func(*http.Response, error) reply {
	return func(res *http.Response, err error) reply {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return reply{res.StatusCode, res.Header.Get("Content-Type"), string(body)}
	}
}

// cosigned asks for a cosignature and checks it with the policy that a verifier
// would have.
func (r *running) cosigned(t testing.TB, l *logger, old, size int64) tlog.Checkpoint {
	t.Helper()
	got := r.post(t, l.request(t, old, size))
	if got.status != 200 {
		t.Fatalf("from %d to %d: %d %q, want 200", old, size, got.status, got.body)
	}
	return r.verify(t, l, l.note(t, size)+got.body)
}

func (r *running) verify(t testing.TB, l *logger, note string) tlog.Checkpoint {
	t.Helper()
	p, err := tlog.ParsePolicy([]byte(l.line() + witness.PolicyLine(r.key) + "quorum " + name + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Checkpoint([]byte(note))
	if err != nil {
		t.Fatalf("%v in %q", err, note)
	}
	return c
}

func stateOf(t testing.TB, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
