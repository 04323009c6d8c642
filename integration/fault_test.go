package integration

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// The tests of faults have a short form, which the suite runs, and a long one,
// which `make faults` runs. What differs is how often, never what is checked.
var faultFlags = struct {
	rounds, power *int
	full          *bool
	within        *time.Duration
	seed          *uint64
}{
	flag.Int("rounds", 15, "kills of the daemon while it grants and revokes"),
	flag.Int("power", 2, "power losses on each file system"),
	flag.Bool("full", false, "every call of every operation, every damage of every file"),
	flag.Duration("within", 0, "longest start of a daemon that is not a failure; 0: it is only told"),
	flag.Uint64("seed", 0, "of what is chosen at random; 0: another one each time"),
}

// dice are the random choices of a test, which its log makes repeatable.
func dice(t *testing.T) *rand.Rand {
	t.Helper()
	seed := *faultFlags.seed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// host is one machine: a state directory, a daemon that the test starts and
// kills, and a client outside that keeps a manifest of what it was told.
type host struct {
	*world
	mint, revoker, publisher dsse.PrivateKey
	http                     *http.Client

	pid   int
	ended chan struct{} // closed when the daemon that was started last has ended
	said  string        // path of what it wrote to standard error

	serial int    // of names
	undo   func() // of the operation that is tried

	mu    sync.Mutex       // guards facts
	facts map[string]*fact // by the record's id
}

// fact is one signed record that the client sent.
type fact struct {
	kind, name string
	envelope   []byte
	target     string // of a revocation: the capability that is taken back
	sequence   int64  // of a list
	acked      bool   // the daemon has answered that it is recorded
}

func (f *fact) id() string { return recordID(f.envelope) }

// newHost initialises a state directory in parent, which may be another file
// system than that of the source and the mount point.
func newHost(t *testing.T, parent string) *host {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, dir: dir, state: filepath.Join(parent, "state"), src: filepath.Join(dir, "downloads"), mnt: filepath.Join(dir, "models")}
	for _, d := range []string{w.src, w.mnt} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	w.must(done, "init")
	return hostOf(w)
}

func hostOf(w *world) *host {
	w.t.Helper()
	h := &host{world: w, facts: make(map[string]*fact), said: filepath.Join(w.dir, "daemon.stderr")}
	for name, key := range map[string]*dsse.PrivateKey{"mint.key": &h.mint, "revoke.key": &h.revoker} {
		var err error
		if *key, err = dsse.ParsePrivateKey(w.read(filepath.Join(w.state, name)), nil); err != nil {
			w.t.Fatal(err)
		}
	}
	var err error
	if h.publisher, err = dsse.GenerateKey(dsse.Ed25519); err != nil {
		w.t.Fatal(err)
	}
	socket := filepath.Join(w.state, "run", "clawfs.sock")
	h.http = &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	w.t.Cleanup(h.end)
	return h
}

// end kills what the host has started and takes its mounts away.
func (h *host) end() { h.dropMounts() }

// dropMounts kills everything that runs for this state directory, as a machine
// does that loses its power, and takes the mounts away.
func (h *host) dropMounts() {
	h.kill()
	h.killAll()
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		h.t.Error(err)
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[1], h.dir+"/") && strings.HasPrefix(f[2], "fuse") {
			syscall.Unmount(f[1], syscall.MNT_FORCE|syscall.MNT_DETACH)
		}
	}
}

// killAll kills the processes whose command line has this state directory and
// all of the words, until there is none.
func (h *host) killAll(words ...string) {
	h.eventually("the processes are gone", func() bool {
		gone := true
		for _, pid := range h.processes(words...) {
			gone = false
			syscall.Kill(pid, syscall.SIGKILL)
		}
		return gone
	})
}

func (h *host) processes(words ...string) (list []int) {
	all, err := os.ReadDir("/proc")
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range all {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		line, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		args := strings.Split(string(line), "\x00")
		has := slices.Contains(args, h.state) && alive(pid)
		for _, w := range words {
			has = has && slices.Contains(args, w)
		}
		if has {
			list = append(list, pid)
		}
	}
	return list
}

func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func (h *host) eventually(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("not so after a minute: %s", what)
		}
	}
}

// launch starts a daemon and returns without waiting for it.
func (h *host) launch() {
	h.t.Helper()
	log, err := os.Create(h.said)
	if err != nil {
		h.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(built.clawfs, "--state", h.state, "daemon")
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	h.pid, h.ended = cmd.Process.Pid, ended
}

// start starts a daemon and returns how long it took until it answered. A
// daemon that ends instead, or does not answer within a minute, is an error.
func (h *host) start() (time.Duration, error) {
	h.t.Helper()
	begun := time.Now()
	h.launch()
	return h.answers(begun)
}

func (h *host) answers(begun time.Time) (time.Duration, error) {
	for {
		if h.get("/v1/status", nil) == nil {
			return time.Since(begun), nil
		}
		select {
		case <-h.ended:
			return 0, fmt.Errorf("the daemon has ended: %s%s", h.tail(), h.who())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Since(begun) > time.Minute {
			return 0, fmt.Errorf("the daemon does not answer after a minute: %s", h.tail())
		}
	}
}

// who are the processes of this state directory, for a person who wonders.
func (h *host) who() (text string) {
	for _, pid := range h.processes() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		text += fmt.Sprintf("pid %d: %s\n", pid, strings.ReplaceAll(string(line), "\x00", " "))
	}
	return text
}

// mustStart starts a daemon that has to come up by itself, with its store.
func (h *host) mustStart() time.Duration {
	h.t.Helper()
	took, err := h.start()
	if err != nil {
		h.t.Fatal(err)
	}
	if s := h.trouble(); s != nil {
		h.t.Fatalf("the daemon is up without its store: %v", s)
	}
	if w := *faultFlags.within; w > 0 && took > w {
		h.t.Errorf("the daemon answered after %v, want at most %v", took, w)
	}
	return took
}

// trouble is why a daemon works without its store.
type trouble struct{ Cause, Error, Next string }

func (s *trouble) String() string {
	return fmt.Sprintf("%s: %s; next: %s", s.Cause, s.Error, s.Next)
}

// trouble asks the daemon, which has to answer, whether it has its store: nil.
func (h *host) trouble() *trouble {
	h.t.Helper()
	var status struct{ Store *trouble }
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		err := h.get("/v1/status", &status)
		if err == nil {
			break
		}
		// Between a store that has failed and somebody who answers without it.
		if r := asRefusal(err); r == nil || !strings.Contains(r.text, "next: the same again") || time.Now().After(end) {
			h.t.Fatalf("%v\n%s", err, h.tail())
		}
	}
	if s := status.Store; s != nil && (s.Cause == "" || s.Error == "" || s.Next == "") {
		h.t.Errorf("a daemon without its store says %v, want a cause, an error and what to do", s)
	}
	return status.Store
}

// wantDenies wants of a daemon without its store that it grants nothing, in words,
// and that it gives no capability to a mount.
func (h *host) wantDenies() {
	h.t.Helper()
	probe, err := h.admit(h.fresh("denied")+".bin", "denied")
	// The last words of a child that died of the store are told, as they are.
	if r := asRefusal(err); r == nil || !strings.Contains(r.text, "nothing new is granted") || !strings.Contains(r.text, "next: ") {
		h.t.Errorf("a daemon without its store answers a grant with %v, want a refusal with what to do", err)
	}
	delete(h.facts, probe.id())
	records, _, err := h.view()
	if err != nil {
		h.t.Error(err)
	}
	for _, r := range records {
		if r.Kind == capstore.RecordCapability {
			h.t.Errorf("a daemon without its store gives capability %s to mounts", r.id())
		}
	}
}

// wantRecovery waits until the daemon has its store again, by itself.
func (h *host) wantRecovery() {
	h.t.Helper()
	h.eventually("the daemon has its store again", func() bool { return h.trouble() == nil })
}

// tail is the end of what the daemon wrote to standard error.
func (h *host) tail() string {
	text, _ := os.ReadFile(h.said)
	return string(text[max(0, len(text)-1500):])
}

// lastWords are the lines with which a process that died began to die, else the
// end of what it wrote.
func (h *host) lastWords() string {
	text, _ := os.ReadFile(h.said)
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "SIGBUS") || strings.HasPrefix(line, "panic") || strings.HasPrefix(line, "fatal") {
			return strings.TrimSpace(line)
		}
	}
	return strings.TrimSpace(h.tail())
}

// kill is kill -9 of the daemon, if there is one, also of one that a verb has
// started.
func (h *host) kill() {
	if h.pid == 0 {
		return
	}
	syscall.Kill(h.pid, syscall.SIGKILL)
	<-h.ended
	h.pid = 0
	h.killAll("daemon")
}

// hasEnded reports whether the daemon is gone.
func (h *host) hasEnded() bool {
	select {
	case <-h.ended:
		return true
	default:
		return false
	}
}

// refusal is an answer of the daemon that is no success.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

func (h *host) get(path string, into any) error { return h.ask(http.MethodGet, path, nil, into) }

// ask sends one request to the daemon's socket. A *refusal is the daemon's
// word; any other error says that it did not answer.
func (h *host) ask(method, path string, in, into any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, "http://clawfs"+path, body)
	if err != nil {
		return err
	}
	resp, err := h.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		var said struct{ Message, Error string }
		json.Unmarshal(text, &said)
		return &refusal{resp.StatusCode, said.Message + said.Error}
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(text, into)
}

// capability signs a capability over a content, as a worker does.
func (h *host) capability(name, content string) []byte {
	m, err := hashpipe.Measure(context.Background(), strings.NewReader(content), nil)
	if err != nil {
		panic(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	p := capstore.Predicate{
		Model: "acme/pairs", Version: "1.0.0", Sequence: 1,
		SBA:         capstore.Reference{Digest: capstore.DigestSet{SHA256: hashpipe.SumBytes([]byte("ledger of " + name)).Claim()}},
		Environment: capstore.Reference{Digest: capstore.DigestSet{SHA256: hashpipe.SumBytes([]byte("an image")).Claim()}},
		Publisher:   capstore.Publisher{KeyID: h.publisher.Public().ID(), PublicKey: h.publisher.Public()},
		Minter:      capstore.Minter{KeyID: h.mint.Public().ID()},
		Platform:    capstore.Platform{OS: "linux", Arch: "amd64", Accelerator: "none"},
		NotBefore:   now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
	}
	payload, err := capstore.NewStatement([]capstore.Subject{{Name: name, Digest: m.Sum().Claim(), Verity: m.Tree().Claim(), Size: m.Size()}}, p).Payload()
	if err != nil {
		panic(err)
	}
	envelope, err := dsse.Sign(dsse.PayloadType, payload, h.mint)
	if err != nil {
		panic(err)
	}
	return envelope
}

func (h *host) revocation(capability string) []byte {
	st, err := capstore.NewRevocation(capstore.KindCapability, capability, "a test of faults", time.Now())
	if err != nil {
		panic(err)
	}
	envelope, err := capstore.SignRevocation(st, h.revoker)
	if err != nil {
		panic(err)
	}
	return envelope
}

func recordID(envelope []byte) string {
	e, err := dsse.Parse(envelope)
	if err != nil {
		panic(err)
	}
	return hashpipe.SumBytes(e.UnverifiedPayload()).String()
}

// send hands a record to the daemon. The manifest has it before it is sent, and
// its acknowledgement only when the daemon has given it.
func (h *host) send(f fact) (*fact, error) {
	id := recordID(f.envelope)
	h.mu.Lock()
	sent, again := h.facts[id]
	if !again {
		sent = &f
		h.facts[id] = sent
	}
	h.mu.Unlock()
	var err error
	if f.kind == capstore.RecordRevocation {
		err = h.ask(http.MethodPost, "/v1/revocations", map[string][]byte{"envelope": f.envelope}, nil)
	} else {
		err = h.ask(http.MethodPost, "/v1/records", map[string]any{"kind": f.kind, "envelope": f.envelope}, nil)
	}
	if err == nil {
		h.mu.Lock()
		sent.acked = true
		h.mu.Unlock()
	}
	return sent, err
}

// admit asks for a grant of a content under a name.
func (h *host) admit(name, content string) (*fact, error) {
	return h.send(fact{kind: capstore.RecordCapability, name: name, envelope: h.capability(name, content)})
}

// revoke takes a capability back.
func (h *host) revoke(capability *fact) (*fact, error) {
	id := capability.id()
	return h.send(fact{kind: capstore.RecordRevocation, name: "revocation of " + capability.name, envelope: h.revocation(id), target: id})
}

// mustAdmit and mustRevoke are for what no fault may keep from working.
func (h *host) mustAdmit(name, content string) *fact {
	h.t.Helper()
	f, err := h.admit(name, content)
	if err != nil {
		h.t.Fatalf("admitting %s: %v\n%s", name, err, h.tail())
	}
	return f
}

func (h *host) mustRevoke(capability *fact) *fact {
	h.t.Helper()
	f, err := h.revoke(capability)
	if err != nil {
		h.t.Fatalf("revoking %s: %v\n%s", capability.name, err, h.tail())
	}
	return f
}

// work sends grants and revocations one after the other, until the daemon does
// not answer any more, and returns how that looked. begun is called once.
func (h *host) work(tag string, begun func()) error {
	var grants []*fact
	for i := 0; ; i++ {
		f, err := h.admit(fmt.Sprintf("%s-%d.bin", tag, i), tag+strconv.Itoa(i))
		if err != nil {
			return err
		}
		if grants = append(grants, f); i%3 == 2 {
			if _, err := h.revoke(grants[i-1]); err != nil {
				return err
			}
		}
		if i == 2 {
			begun()
		}
	}
}

// found is what a comparison of a store with the manifest brought.
type found struct {
	acked            int      // facts of the manifest that were acknowledged
	lost             []string // acknowledged, and not there
	revived          []string // revoked, and granted
	half             []string // there, and not as it was sent
	never            []string // there, and never sent
	unacked, present int      // sent and not acknowledged, and how many of these are there
	cut              int      // unfinished ends of journals that the start cut off, and told of
}

func (f found) bad() bool {
	return len(f.lost)+len(f.revived)+len(f.half)+len(f.never) > 0
}

func (f found) String() string {
	return fmt.Sprintf("%d acknowledged: lost %d, revived %d, half %d, never sent %d; of %d that were not acknowledged %d are there",
		f.acked, len(f.lost), len(f.revived), len(f.half), len(f.never), f.unacked, f.present)
}

// viewLine is a line of /v1/view.
type viewLine struct {
	Kind            string
	Envelope, Entry []byte
}

// id is that of the record. A revocation whose text is lost is in force by its entry
// (see capstore/fact.go): a byte of kind, eight of time, the id.
func (l viewLine) id() string {
	if len(l.Envelope) == 0 && len(l.Entry) > 41 {
		return hex.EncodeToString(l.Entry[9:41])
	}
	return recordID(l.Envelope)
}

// view reads every signed record that the daemon gives to a mount. whole is false
// where the daemon has no store, and says so first.
func (h *host) view() (records []viewLine, whole bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://clawfs/v1/view", nil)
	if err != nil {
		return nil, false, err
	}
	resp, err := h.http.Do(req)
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return nil, false, fmt.Errorf("the view: %s: %s", resp.Status, text)
	}
	whole = true
	for lines := json.NewDecoder(resp.Body); ; {
		var l viewLine
		if err := lines.Decode(&l); err != nil {
			return nil, false, fmt.Errorf("the view ends after %d records: %w", len(records), err)
		}
		switch {
		case l.Kind == "snapshot":
			return records, whole, nil
		case l.Kind == "no-store":
			whole = false
		case l.Kind == "heartbeat" && !whole:
			return records, false, nil
		case l.Kind != "heartbeat":
			records = append(records, l)
		}
	}
}

// compare holds what the daemon has against the manifest.
func (h *host) compare() found {
	h.t.Helper()
	records, whole, err := h.view()
	if err != nil || !whole {
		h.t.Fatalf("the view is whole: %v, %v, %v\n%s", whole, err, h.trouble(), h.tail())
	}
	var status struct {
		Rejected []struct{ Key, Reason string }
	}
	if err := h.get("/v1/status", &status); err != nil {
		h.t.Fatal(err)
	}
	var caps []struct{ ID, State string }
	if err := h.get("/v1/capabilities", &caps); err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var f found
	there := make(map[string]bool)
	var newest int64 // list
	for _, r := range records {
		id := r.id()
		sent, known := h.facts[id]
		switch {
		case known && len(r.Envelope) == 0 && r.Kind == capstore.RecordRevocation:
			f.half = append(f.half, "in force without its text: revocation "+id)
		case !known:
			f.never = append(f.never, r.Kind+" "+id)
		case !bytes.Equal(sent.envelope, r.Envelope) || sent.kind != r.Kind:
			f.half = append(f.half, r.Kind+" "+id)
		}
		there[id] = true
		if known {
			newest = max(newest, sent.sequence)
		}
	}
	for _, r := range status.Rejected {
		if strings.HasPrefix(r.Key, "kept/") && strings.Contains(r.Reason, "nobody was told of") {
			f.cut++
			continue
		}
		f.half = append(f.half, "rejected row "+r.Key+": "+r.Reason)
	}
	takenBack := make(map[string]bool) // capabilities, by an acknowledged revocation
	for id, sent := range h.facts {
		switch {
		case sent.acked:
			f.acked++
			if outgrown := sent.sequence > 0 && sent.sequence <= newest; !there[id] && !outgrown {
				f.lost = append(f.lost, sent.kind+" "+id)
			}
			if sent.target != "" {
				takenBack[sent.target] = true
			}
		default:
			f.unacked++
			if there[id] {
				f.present++
			}
		}
	}
	listed := make(map[string]bool)
	for _, k := range caps {
		listed[k.ID] = true
		if takenBack[k.ID] && k.State != "revoked" {
			f.revived = append(f.revived, fmt.Sprintf("capability %s is %s", k.ID, k.State))
		}
	}
	for id, sent := range h.facts {
		if sent.acked && sent.kind == capstore.RecordCapability && !listed[id] {
			f.lost = append(f.lost, "capability "+id+" is not listed")
		}
	}
	return f
}

// wantAll is compare for a store that has to hold every acknowledged fact.
func (h *host) wantAll(when string) found {
	h.t.Helper()
	f := h.compare()
	if f.bad() {
		h.t.Fatalf("%s: %v\nlost %q\nrevived %q\nhalf %q\nnever %q\n%s", when, f, f.lost, f.revived, f.half, f.never, h.tail())
	}
	return f
}

// mountModels admits good.bin and gone.bin, takes gone.bin back, and mounts.
func (h *host) mountModels() {
	h.t.Helper()
	for _, name := range []string{"good.bin", "gone.bin", "never.bin"} {
		h.write(filepath.Join(h.src, name), "content of "+name)
	}
	h.mustAdmit("good.bin", "content of good.bin")
	h.mustRevoke(h.mustAdmit("gone.bin", "content of gone.bin"))
	h.mount()
	h.wantServes(h.mnt)
}

// wantServes reads through a mount: what is granted opens, what was taken back
// and what nobody granted do not.
func (h *host) wantServes(mnt string) {
	h.t.Helper()
	for name, want := range map[string]string{"good.bin": "content of good.bin", "gone.bin": "", "never.bin": ""} {
		if got, errs := h.cat(filepath.Join(mnt, name)); got != want || want == "" && !strings.Contains(errs, "Permission denied") {
			h.t.Errorf("%s through the mount: %q %s, want %q", name, got, errs, want)
		}
	}
}

// cat reads a file in a process of its own, and not for ever.
func (h *host) cat(path string) (out, errs string) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "cat", path)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, time.Second
	cmd.Run()
	if ctx.Err() != nil {
		h.t.Fatalf("reading %s hangs", path)
	}
	return stdout.String(), stderr.String()
}

// asRefusal is err as the daemon's word. A connection that broke is none.
func asRefusal(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	return nil
}

// inWords wants an error to be a sentence of the daemon with all of the texts.
func (h *host) inWords(err error, texts ...string) {
	h.t.Helper()
	r := asRefusal(err)
	if r == nil {
		h.t.Errorf("got %v, want a refusal that says %q\n%s", err, texts, h.tail())
		return
	}
	for _, text := range texts {
		if !strings.Contains(r.text, text) {
			h.t.Errorf("the refusal is %q, want %q in it", r.text, text)
		}
	}
	for _, word := range []string{"panic", "goroutine ", "runtime error", "%!", "<nil>"} {
		if strings.Contains(r.text, word) {
			h.t.Errorf("the refusal has %q: %s", word, r.text)
		}
	}
}

// command runs a program that a test needs, and says what to install if it is
// missing.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("%v; next: sudo make deps", err)
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// longest are the starts that a test has seen.
type longest []time.Duration

func (l longest) String() string {
	if len(l) == 0 {
		return "none"
	}
	s := slices.Sorted(slices.Values(l))
	return fmt.Sprintf("%d starts, median %v, longest %v", len(s), s[len(s)/2].Round(time.Millisecond), s[len(s)-1].Round(time.Millisecond))
}
