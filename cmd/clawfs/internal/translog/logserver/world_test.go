package logserver

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	merkle "golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

const origin = "log.example/models"

// messages collects what the servers of the tests say.
var messages sink

type sink struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *sink) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

var logger = slog.New(slog.NewTextHandler(&messages, nil))

func TestMain(m *testing.M) {
	Redirect(logger)
	if dir := os.Getenv("LOGSERVER_CHILD"); dir != "" {
		child(dir)
		return
	}
	os.Exit(m.Run())
}

// world is a log directory and everybody who may add to it.
type world struct {
	dir                                string
	vkey                               tlog.VerifierKey
	publisher, mint, revoker, stranger dsse.PrivateKey
}

func newKey(t testing.TB) dsse.PrivateKey {
	t.Helper()
	k, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{publisher: newKey(t), mint: newKey(t), revoker: newKey(t), stranger: newKey(t)}
	w.dir = filepath.Join(t.TempDir(), "log")
	var err error
	if w.vkey, err = Create(w.dir, origin, w.policy(t, "acme/*")); err != nil {
		t.Fatal(err)
	}
	return w
}

// policy lets the publisher speak for some models.
func (w *world) policy(t testing.TB, models ...string) []byte {
	t.Helper()
	p, err := verifier.NewPolicy("lab", w.mint.Public(), w.revoker.Public(), verifier.Builds{
		Env:    []string{"SEED"},
		Limits: verifier.Limits{MemoryBytes: 1 << 30, Processes: 64, CPUs: 1, WallSeconds: 60, OutputBytes: 1 << 30, LogBytes: 1 << 20},
	})
	if err == nil {
		p, err = p.AddPublisher(verifier.PublisherRule{Name: "acme", Models: models, Keys: []dsse.PublicKey{w.publisher.Public()}, Threshold: 1, Images: []string{"*"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// open serves the log at a short interval until the test ends.
func (w *world) open(t testing.TB, witnesses ...string) *Log {
	t.Helper()
	l := w.mustOpen(t, witnesses...)
	t.Cleanup(func() { w.close(t, l) })
	return l
}

func (w *world) mustOpen(t testing.TB, witnesses ...string) *Log {
	t.Helper()
	l, err := Open(w.config(witnesses...))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (w *world) config(witnesses ...string) Config {
	cfg := Config{Dir: w.dir, Interval: 100 * time.Millisecond, Log: logger}
	if len(witnesses) > 0 {
		cfg.Witnesses = []byte("log " + w.vkey.String() + "\n" + strings.Join(witnesses, "\n") + "\n")
	}
	return cfg
}

func (w *world) close(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// serve answers for the log on loopback and returns its URL.
func (w *world) serve(t testing.TB, l *Log, patience time.Duration) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.serve(ctx, listener, patience) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return "http://" + listener.Addr().String()
}

// ledger is the payload of an SBA.
func ledger(key dsse.PublicKey, model string, sequence int) []byte {
	const commit = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
	return fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1",`+
		`"subject":[{"name":"source","uri":"git+https://git.example/acme/langid","digest":{"gitCommit":"%s"}}],`+
		`"predicateType":"https://github.com/openclaw/clawfs/build-ledger/v1",`+
		`"predicate":{"model":"%s","version":"1.2.0","sequence":%d,"publisher":{"keyid":"%s"},"issuedAt":"2026-11-20T09:00:00Z",`+
		`"buildDefinition":{"buildType":"https://github.com/openclaw/clawfs/buildtypes/stages/v1",`+
		`"externalParameters":{"env":{"SEED":"7"},"stages":[{"name":"train","argv":["train"]}],"outputs":[{"name":"langid.bin","path":"langid.bin"}]},`+
		`"resolvedDependencies":[{"name":"source","digest":{"gitCommit":"%[1]s","clawfsTree1":"baf99b9ff27559a791c8f1ec16eadd8d617b2cb74aae714064051c878a9f226e"}},`+
		`{"name":"environment","uri":"oci://registry.example/ml/base","digest":{"sha256":"6794a0f2bd0cbfa2d0f2d7ad0b2bd1b53b4d6c8db4d8e07f4f2d1a1a0c1d88fc"},"mediaType":"application/vnd.oci.image.manifest.v1+json"}]},`+
		`"platform":{"os":"linux","arch":"amd64","accelerator":"none"}}}`, commit, model, sequence, key.ID())
}

func sign(t testing.TB, payload []byte, key dsse.PrivateKey) []byte {
	t.Helper()
	e, err := dsse.Sign(dsse.PayloadType, payload, key)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (w *world) sba(t testing.TB, sequence int) []byte {
	t.Helper()
	return sign(t, ledger(w.publisher.Public(), "acme/langid", sequence), w.publisher)
}

func (w *world) leaf(t testing.TB, sequence int) tlog.Leaf {
	t.Helper()
	l, err := tlog.LeafOf(tlog.KindSBA, ledger(w.publisher.Public(), "acme/langid", sequence), w.publisher.Public(), "acme/langid")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// capability is one that key signs and says that it minted.
func (w *world) capability(t testing.TB, key dsse.PrivateKey) []byte {
	t.Helper()
	data := hashpipe.SumBytes([]byte("weights"))
	verity, err := hashpipe.ParseVerityDigest(data.String())
	if err != nil {
		t.Fatal(err)
	}
	st := capstore.NewStatement([]capstore.Subject{{Name: "langid.bin", Digest: data.Claim(), Verity: verity, Size: 7}}, capstore.Predicate{
		Model: "acme/langid", Version: "1.2.0", Sequence: 1,
		SBA:         capstore.Reference{Digest: capstore.DigestSet{SHA256: w.leaf(t, 1).Payload()}},
		Environment: capstore.Reference{Digest: capstore.DigestSet{SHA256: w.leaf(t, 1).Payload()}},
		Publisher:   capstore.Publisher{KeyID: w.publisher.Public().ID(), PublicKey: w.publisher.Public()},
		Minter:      capstore.Minter{KeyID: key.Public().ID()},
		Platform:    capstore.Platform{OS: "linux", Arch: "amd64", Accelerator: "none"},
		NotBefore:   time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2027, 2, 20, 0, 0, 0, 0, time.UTC),
	})
	payload, err := st.Payload()
	if err != nil {
		t.Fatal(err)
	}
	return sign(t, payload, key)
}

func (w *world) revocation(t testing.TB, key dsse.PrivateKey) []byte {
	t.Helper()
	st, err := capstore.NewRevocation(capstore.KindSBA, w.leaf(t, 1).Payload().String(), "key stolen", time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	e, err := capstore.SignRevocation(st, key)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// add adds an envelope that must be taken, and checks its proof by policy.
func (w *world) add(t testing.TB, l *Log, sequence int) tlog.Proof {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	text, err := l.Add(ctx, w.sba(t, sequence))
	if err != nil {
		t.Fatal(err)
	}
	return w.verify(t, l.Policy(), text, sequence)
}

func (w *world) verify(t testing.TB, policy tlog.Policy, text []byte, sequence int) tlog.Proof {
	t.Helper()
	if _, err := tlog.Verify(policy, text, w.leaf(t, sequence)); err != nil {
		t.Fatal(err)
	}
	p, err := tlog.ParseProof(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (w *world) trust(t testing.TB, lines ...string) tlog.Policy {
	t.Helper()
	if len(lines) == 0 {
		lines = []string{"quorum none"}
	}
	p, err := tlog.ParsePolicy([]byte("log " + w.vkey.String() + "\n" + strings.Join(lines, "\n") + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// witness is a C2SP tlog-witness of one log, in memory.
type witness struct {
	name string
	key  ed25519.PrivateKey
	log  tlog.VerifierKey
	url  string

	mu     sync.Mutex
	down   bool
	size   int64
	root   tlog.Hash
	signed int
}

func newWitness(t testing.TB, name string, log tlog.VerifierKey) *witness {
	t.Helper()
	seed := sha256.Sum256([]byte(t.Name() + name))
	w := &witness{name: name, key: ed25519.NewKeyFromSeed(seed[:]), log: log}
	srv := httptest.NewServer(w)
	t.Cleanup(srv.Close)
	w.url = srv.URL
	return w
}

func (w *witness) material() []byte {
	return append([]byte{4}, w.key.Public().(ed25519.PublicKey)...)
}

func (w *witness) id() []byte {
	sum := sha256.Sum256([]byte(w.name + "\n" + string(w.material())))
	return sum[:4]
}

// line is the witness's line of a policy.
func (w *witness) line() string {
	return fmt.Sprintf("witness %s %s+%x+%s %s", w.name, w.name, w.id(), base64.StdEncoding.EncodeToString(w.material()), w.url)
}

func (w *witness) setDown(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
}

func (w *witness) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.signed
}

func (w *witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		http.Error(rw, "down", http.StatusInternalServerError)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || r.URL.Path != "/add-checkpoint" {
		http.Error(rw, "no", http.StatusNotFound)
		return
	}
	status, text := w.cosign(string(body))
	if status == http.StatusConflict {
		rw.Header().Set("Content-Type", "text/x.tlog.size")
	}
	rw.WriteHeader(status)
	io.WriteString(rw, text)
}

func (w *witness) cosign(body string) (int, string) {
	head, signed, ok := strings.Cut(body, "\n\n")
	lines := strings.Split(head, "\n")
	old, err := strconv.ParseInt(strings.TrimPrefix(lines[0], "old "), 10, 64)
	if !ok || err != nil {
		return http.StatusBadRequest, "malformed"
	}
	n, err := note.Open([]byte(signed), note.VerifierList(w.log))
	if err != nil {
		return http.StatusForbidden, err.Error()
	}
	parts := strings.Split(n.Text, "\n")
	size, err1 := strconv.ParseInt(parts[1], 10, 64)
	root, err2 := merkle.ParseHash(parts[2])
	if err := errors.Join(err1, err2); err != nil {
		return http.StatusBadRequest, err.Error()
	}
	if old != w.size {
		return http.StatusConflict, fmt.Sprintf("%d\n", w.size)
	}
	proof, err := tlog.ParseConsistency([]byte(strings.Join(append(lines[1:], ""), "\n")))
	if err != nil {
		return http.StatusBadRequest, err.Error()
	}
	switch {
	case old == size && old > 0 && root != w.root:
		return http.StatusConflict, fmt.Sprintf("%d\n", w.size)
	case old > 0 && old < size:
		if err := merkle.CheckTree(merkle.TreeProof(proof), size, root, w.size, w.root); err != nil {
			return http.StatusUnprocessableEntity, err.Error()
		}
	}
	w.size, w.root = size, root
	w.signed++
	now := uint64(time.Now().Unix())
	sig := ed25519.Sign(w.key, fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", now, n.Text))
	raw := append(binary.BigEndian.AppendUint64(w.id(), now), sig...)
	return http.StatusOK, "— " + w.name + " " + base64.StdEncoding.EncodeToString(raw) + "\n"
}

// eventually waits for something that comes about by itself.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

func mkfifo(path string) error { return unix.Mkfifo(path, 0o644) }
