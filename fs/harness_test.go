package fs

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// The test binary is also the program that serves a mount and the program that
// uses it: a process that serves a mount must never touch it, and a client that
// hangs in one must not hang the test.
const roleVariable = "CLAWFS_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(m.Run())
	case "server":
		os.Exit(serve(os.Args[1]))
	case "client":
		os.Exit(client(os.Args[1:]))
	case "liar":
		os.Exit(liar(os.Args[1:]))
	case "loopback":
		os.Exit(loopback(os.Args[1], os.Args[2]))
	}
	fmt.Fprintln(os.Stderr, "unknown role")
	os.Exit(2)
}

// serverSpec is what a serving child is told at its start, requests and
// replies go over its stdin and stdout, one JSON text a line.
type serverSpec struct {
	Source, Mountpoint string
	Mint, Revoker      dsse.PublicKey
	Operators          map[string]dsse.PublicKey // further mints, by operator
	Quorum             int                       // how many of these and "test" have to agree on acme/*; 0: there is no rule
	Workers            int
	AllowOther         bool
	Verify             Verify
	CacheBytes         int64
	Seal               Seal
	SealFrom           int64
	Private            string
	PrivateBytes       int64
	Bind               Bind
	AuditUntil         time.Time
	Log                bool // to stderr
	Preverify          bool
	PreverifyEvery     int64    // seconds
	Hand               bool     // descriptor 3 is a socket that takes the session
	Panic              string   // an operation that panics once
	PanicBelow         string   // a function below which the clock panics once
	Panics             int64    // how many are meant to be at the end
	Admit              [][]byte // before it serves
	Revoke             [][]byte
	Resume             bool // descriptors 4 and 5 are the session of a predecessor
	asNobody           bool // the server runs without root
}

type request struct {
	Op       string // admit, revoke, list, clock, stats, records, unmount, abandon
	Envelope []byte
	Shift    int64 // clock: from now on the wall clock is off by this, in seconds
}

type reply struct {
	Err     string
	Stats   Stats
	Records []Record
	Leaked  []string // unmount: descriptors that were not open before Mount
	Tier    string   // the best one
	Why     string   // not a better one
}

func serve(arg string) int {
	spec, err := decodeArg[serverSpec](arg)
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		return 2
	}
	var mu sync.Mutex // guards records and shift
	var records []Record
	var shift time.Duration
	out := bufio.NewWriter(os.Stdout)
	say := func(r reply) {
		if err := json.MarshalWrite(out, r, jsontext.AllowInvalidUTF8(true)); err != nil {
			panic(err)
		}
		out.WriteByte('\n')
		out.Flush()
	}
	before := descriptors()
	hook := panicsIn(spec.PanicBelow)
	if spec.Resume { // they are the caller's to close
		delete(before, "4")
		delete(before, "5")
	}
	trust := capstore.Trust{
		Mints:    []capstore.Signer{{Operator: "test", Key: spec.Mint}},
		Revokers: []capstore.Signer{{Operator: "test", Key: spec.Revoker}},
	}
	operators := []string{"test"}
	for operator, key := range spec.Operators {
		trust.Mints = append(trust.Mints, capstore.Signer{Operator: operator, Key: key})
		operators = append(operators, operator)
	}
	if spec.Quorum > 0 {
		trust.Rules = []capstore.Rule{{Models: []string{"acme/*"}, Operators: operators, Threshold: spec.Quorum}}
	}
	view, err := capstore.NewView(trust)
	var s *Server
	for _, e := range spec.Admit {
		if err == nil {
			_, err = view.Admit(e)
		}
	}
	for _, e := range spec.Revoke {
		if err == nil {
			_, err = view.Revoke(e)
		}
	}
	if err == nil {
		c := Config{
			Source: spec.Source, Mountpoint: spec.Mountpoint, View: view,
			HashWorkers: spec.Workers, AllowOther: spec.AllowOther, Verify: spec.Verify, CacheBytes: spec.CacheBytes,
			Seal: spec.Seal, SealFrom: spec.SealFrom, Private: spec.Private, PrivateBytes: spec.PrivateBytes,
			Bind: spec.Bind, AuditUntil: spec.AuditUntil, Log: logTo(spec.Log),
			Preverify: spec.Preverify, PreverifyEvery: time.Duration(spec.PreverifyEvery) * time.Second,
			Audit: func(r Record) {
				mu.Lock()
				defer mu.Unlock()
				records = append(records, r)
			},
			Clock: func() time.Time {
				hook()
				mu.Lock()
				defer mu.Unlock()
				return time.Now().Add(shift)
			},
		}
		if spec.Panic != "" {
			c.wrap = func(fs fuse.RawFileSystem) fuse.RawFileSystem { return panicking{fs, spec.Panic, new(sync.Once)} }
		}
		if spec.Resume {
			from := Session{Device: os.NewFile(4, "/dev/fuse"), Journal: os.NewFile(5, "journal")}
			s, err = Resume(c, from)
			from.Close()
		} else {
			s, err = Mount(c)
		}
	}
	if err == nil && spec.Hand {
		err = hand(s, 3)
	}
	if err != nil {
		say(reply{Err: err.Error()})
		return 1
	}
	say(reply{})
	for in := bufio.NewReader(os.Stdin); ; {
		line, err := in.ReadBytes('\n')
		if err != nil {
			// The test is gone, or has killed the mount on purpose.
			_ = s.Abandon()
			return 0
		}
		var q request
		if err := json.Unmarshal(line, &q); err != nil {
			say(reply{Err: err.Error()})
			continue
		}
		var r reply
		switch q.Op {
		case "admit":
			_, err = view.Admit(q.Envelope)
		case "revoke":
			_, err = view.Revoke(q.Envelope)
		case "list":
			_, err = view.AdmitList(q.Envelope)
		case "clock":
			mu.Lock()
			shift = time.Duration(q.Shift) * time.Second
			mu.Unlock()
		case "stats":
		case "records":
			time.Sleep(3 * auditEvery) // what was decided before is here then
			mu.Lock()
			r.Records = slices.Clone(records)
			mu.Unlock()
		case "unmount":
			err = s.Unmount()
		case "abandon":
			err = s.Abandon()
		case "leaks":
			s.Wait()
			for fd, what := range descriptors() {
				if before[fd] != what && !strings.HasPrefix(what, "anon_inode:[event") {
					r.Leaked = append(r.Leaked, fd+" "+what)
				}
			}
		default:
			err = fmt.Errorf("unknown op %q", q.Op)
		}
		if err != nil {
			r.Err = err.Error()
		}
		r.Stats = s.Stats()
		r.Tier, r.Why = s.Tier()
		say(r)
	}
}

// logTo returns the log of a server; the test reads its stderr.
func logTo(stderr bool) *slog.Logger {
	if !stderr {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil))
}

// descriptors returns what this process has open, by number.
func descriptors() map[string]string {
	out := make(map[string]string)
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if link, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && !strings.HasPrefix(link, "/proc/") {
			out[e.Name()] = link
		}
	}
	return out
}

const nobody = 65534

// quickExit: under the race detector each child would sleep a second at its end.
const quickExit = "GORACE=atexit_sleep_ms=0"

// reachable copies the test binary to where every user may execute it.
func reachable(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(tempDir(t), "test")
	if err := os.WriteFile(p, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func encodeArg(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return base64.StdEncoding.EncodeToString(b)
}

func decodeArg[T any](s string) (v T, err error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(b, &v)
	}
	return v, err
}

// mounted is a live mount in a child, seen from a test.
type mounted struct {
	t         testing.TB
	src, dir  string
	mint, rev dsse.PrivateKey
	cmd       *exec.Cmd
	exited    chan struct{}
	stderr    *bytes.Buffer
	ended     bool
	gone      bool // the test has unmounted or killed it
	spec      serverSpec
	arrives   *os.File // the end of a socket where the session arrives
	mu        sync.Mutex
	in        io.WriteCloser
	out       *bufio.Reader
}

func needMounts(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("mounting needs root here: run the tests with sudo")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Fatalf("no FUSE device: modprobe fuse (%v)", err)
	}
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Fatal("no fusermount3: apt-get install fuse3")
	}
}

func newKey(t testing.TB) dsse.PrivateKey {
	t.Helper()
	k, err := dsse.GenerateKey("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// tempDir is t.TempDir, but every user may enter, and a mount that died inside
// does not fail the removal.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "clawfs-fs-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // nobody is a client too
		t.Fatal(err)
	}
	return dir
}

// mountEmpty mounts a fresh source directory.
func mountEmpty(t testing.TB, change ...func(*serverSpec)) *mounted {
	t.Helper()
	needMounts(t)
	dir := tempDir(t)
	m := &mounted{
		t: t, src: filepath.Join(dir, "src"), dir: filepath.Join(dir, "mnt"),
		mint: newKey(t), rev: newKey(t),
		exited: make(chan struct{}), stderr: new(bytes.Buffer),
	}
	for _, d := range []string{m.src, m.dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	spec := serverSpec{Source: m.src, Mountpoint: m.dir, Mint: m.mint.Public(), Revoker: m.rev.Public(), AllowOther: true}
	for _, c := range change {
		c(&spec)
	}
	m.start(spec)
	t.Cleanup(m.end)
	if r := m.receive(); r.Err != "" {
		m.gone = true
		t.Fatalf("mount: %s", r.Err)
	}
	return m
}

// start starts the process that serves, with further descriptors from 3 on.
func (m *mounted) start(spec serverSpec, files ...*os.File) {
	t := m.t
	t.Helper()
	program := os.Args[0]
	if spec.asNobody {
		program = reachable(t)
		if err := os.Chown(m.dir, nobody, nobody); err != nil { // fusermount3 wants to own it
			t.Fatal(err)
		}
	}
	m.cmd = exec.Command(program, encodeArg(spec))
	if spec.asNobody {
		m.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		m.cmd.Dir = "/"
	}
	m.cmd.Env = append(os.Environ(), roleVariable+"=server", quickExit)
	m.cmd.Stderr = m.stderr
	m.cmd.ExtraFiles = files
	m.spec = spec
	if spec.Hand {
		m.takes(files)
	}
	stdin, err := m.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	m.in, m.out = stdin, bufio.NewReader(stdout)
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// end unmounts and looks for what was left behind.
func (m *mounted) end() {
	if m.ended {
		return
	}
	if !m.gone {
		r := m.ask(request{Op: "unmount"})
		if r.Err != "" {
			m.t.Errorf("at the end: %s", r.Err)
			m.ask(request{Op: "abandon"})
		} else {
			r = m.ask(request{Op: "leaks"})
			if len(r.Leaked) > 0 {
				m.t.Errorf("descriptors left open after unmount: %q", r.Leaked)
			}
			if r.Stats.Handles != 0 || r.Stats.Verifying != 0 {
				m.t.Errorf("left after unmount: %+v", r.Stats)
			}
		}
		if r.Stats.Panics != m.spec.Panics || r.Stats.AuditDropped != 0 {
			m.t.Errorf("%d panics, %d audit records dropped", r.Stats.Panics, r.Stats.AuditDropped)
		}
	}
	m.in.Close()
	done := make(chan error, 1)
	go func() { done <- m.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil && !m.gone {
			m.t.Errorf("server: %v", err)
		}
	case <-time.After(20 * time.Second):
		m.t.Error("the server did not end in 20 s")
		m.cmd.Process.Kill()
		<-done
	}
	if m.stderr.Len() > 0 {
		m.t.Logf("server said:\n%s", m.stderr)
	}
	syscall.Unmount(m.dir, syscall.MNT_DETACH) // only if the test failed
}

func (m *mounted) ask(q request) reply {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, err := json.Marshal(q)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.in.Write(append(b, '\n')); err != nil {
		m.t.Fatalf("server: %v\n%s", err, m.stderr)
	}
	return m.receive()
}

func (m *mounted) receive() reply {
	line, err := m.out.ReadBytes('\n')
	if err != nil {
		m.t.Fatalf("server: %v\n%s", err, m.stderr)
	}
	var r reply
	if err := json.Unmarshal(line, &r); err != nil {
		m.t.Fatal(err)
	}
	return r
}

func (m *mounted) do(q request) {
	m.t.Helper()
	if r := m.ask(q); r.Err != "" {
		m.t.Fatalf("%s: %s", q.Op, r.Err)
	}
}

func (m *mounted) stats() Stats { return m.ask(request{Op: "stats"}).Stats }

// lastRecord waits for the newest record of a path.
func (m *mounted) lastRecord(path string, want Decision) Record {
	m.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		records := m.ask(request{Op: "records"}).Records
		for _, r := range slices.Backward(records) {
			if r.Path == path && r.Decision == want {
				return r
			}
		}
	}
	m.t.Fatalf("no %s record of %s", want, path)
	return Record{}
}

// write puts a file into the source.
func (m *mounted) write(name string, data []byte) string {
	m.t.Helper()
	p := filepath.Join(m.src, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(p, data, 0o644); err != nil {
		m.t.Fatal(err)
	}
	return p
}

// terms are what differs between the capabilities of these tests.
type terms struct {
	notBefore, notAfter time.Time
	sequence            int64
	version             string // empty: 1.2.0
	model               string // empty: acme/langid
	attestation         string // empty: another for other results
	restrict            *capstore.Restrict
	delegate            []dsse.KeyID
}

// grant makes the mint sign a capability for one file and admits it.
func (m *mounted) grant(name string, data []byte, change ...func(*terms)) []byte {
	m.t.Helper()
	e := signed(m.t, m.mint, []capstore.Subject{subject(m.t, name, data)}, change...)
	m.do(request{Op: "admit", Envelope: e})
	return e
}

func (m *mounted) revoke(kind capstore.Kind, target hashpipe.Digest) {
	m.t.Helper()
	m.do(request{Op: "revoke", Envelope: revocation(m.t, m.rev, kind, target)})
}

func subject(t testing.TB, name string, data []byte) capstore.Subject {
	t.Helper()
	got, err := hashpipe.Measure(t.Context(), bytes.NewReader(data), nil)
	if err != nil {
		t.Fatal(err)
	}
	return capstore.Subject{Name: name, Digest: got.Sum().Claim(), Verity: got.Tree().Claim(), Size: got.Size()}
}

// publisher is one for all tests of a run; nothing here depends on whose it is.
var publisher = sync.OnceValue(func() dsse.PublicKey {
	k, err := dsse.GenerateKey("ed25519")
	if err != nil {
		panic(err)
	}
	return k.Public()
})

// signed makes a capability as the mint would.
func signed(t testing.TB, mint dsse.PrivateKey, subjects []capstore.Subject, change ...func(*terms)) []byte {
	t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	w := terms{notBefore: now.Add(-time.Hour), notAfter: now.Add(time.Hour), sequence: 1}
	for _, c := range change {
		c(&w)
	}
	sba := attestationOf(subjects)
	if w.attestation != "" {
		sba = hashpipe.SumBytes([]byte(w.attestation)).Claim()
	}
	st := capstore.NewStatement(subjects, capstore.Predicate{
		Model: cmp.Or(w.model, "acme/langid"), Version: cmp.Or(w.version, "1.2.0"), Sequence: w.sequence,
		SBA:         capstore.Reference{Digest: capstore.DigestSet{SHA256: sba}},
		Environment: capstore.Reference{Digest: capstore.DigestSet{SHA256: hashpipe.SumBytes([]byte("an image")).Claim()}},
		Publisher:   capstore.Publisher{KeyID: publisher().ID(), PublicKey: publisher()},
		Minter:      capstore.Minter{KeyID: mint.Public().ID()},
		Platform:    capstore.Platform{OS: "linux", Arch: "amd64", Accelerator: "none"},
		Restrict:    w.restrict, Delegate: w.delegate,
		NotBefore: w.notBefore, NotAfter: w.notAfter,
	})
	payload, err := st.Payload()
	if err != nil {
		t.Fatal(err)
	}
	e, err := dsse.Sign(dsse.PayloadType, payload, mint)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// attestationOf is another attestation for other results, because two results of
// one are a dispute.
func attestationOf(subjects []capstore.Subject) hashpipe.Digest {
	text := "an attestation"
	for _, s := range subjects {
		text += " " + s.Name + " " + s.Digest.String()
	}
	return hashpipe.SumBytes([]byte(text)).Claim()
}

func revocation(t testing.TB, key dsse.PrivateKey, kind capstore.Kind, target hashpipe.Digest) []byte {
	t.Helper()
	st, err := capstore.NewRevocation(kind, target.String(), "planted in a test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	e, err := capstore.SignRevocation(st, key)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// sample makes n bytes that differ with the seed and have no short period.
func sample(seed byte, n int) []byte {
	out := make([]byte, n)
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	for i := range out {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		out[i] = byte(x >> 24)
	}
	return out
}

func sumOf(data []byte) string { return hashpipe.SumBytes(data).String() }
