package soak

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// world is a state directory with a source and a mount of each tier over it.
type world struct {
	t          *testing.T
	run        *soak
	name       string
	bin        string
	state, src string
	mounts     []*mountpoint
	client     *http.Client
	mint       dsse.PrivateKey
	revoker    dsse.PrivateKey
	publisher  dsse.PrivateKey
	seen       watcher
	socketOnly bool // no verbs: the client's socket is not the daemon's

	daemon outages
}

// mountpoint is one mount of a world.
type mountpoint struct {
	world *world
	seal  string
	dir   string

	outages
}

// outages are the times in which somebody meant a mount, or a daemon, to be away.
type outages struct {
	mu   sync.Mutex // guards list
	list []outage
}

type outage struct {
	what       string
	start, end int64 // monotonic; end is pending until it is over
	unnoticed  bool  // a successor goes on with all that is open
}

// away notes that it goes away, until the returned function is called.
func (o *outages) away(what string) func() { return o.gone(outage{what: what}) }

func (o *outages) gone(what outage) func() {
	o.mu.Lock()
	defer o.mu.Unlock()
	i := len(o.list)
	what.start, what.end = monotonic(), pending
	o.list = append(o.list, what)
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.list[i].end = monotonic()
	}
}

// wasAway reports whether it was away at some time of an interval, so that whoever
// used it then may have noticed.
func (o *outages) wasAway(from, to int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.list, func(o outage) bool { return o.start <= to && from <= o.end && !o.unnoticed })
}

// ended reports whether somebody has ended it in an interval.
func (o *outages) ended(from, to int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.list, func(o outage) bool { return o.start <= to && from <= o.end })
}

// told are the outages that began in the ten seconds before a time, or later.
func (o *outages) told(at int64) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	text := ""
	for _, o := range o.list {
		if o.end > at-10e9 {
			text += fmt.Sprintf(" %s [%.1f, ", o.what, float64(o.start-at)/1e6)
			if o.end == pending {
				text += "...]"
			} else {
				text += fmt.Sprintf("%.1f]", float64(o.end-at)/1e6)
			}
		}
	}
	if text == "" {
		return "none"
	}
	return text
}

func socketClient(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}
}

// newWorld initialises a state directory and mounts its source by each of seals.
// The source is on xfs, so that every tier can be had.
func newWorld(t *testing.T, s *soak, name string, seals ...string) *world {
	t.Helper()
	base := filepath.Join(s.dir, name)
	w := &world{
		t: t, run: s, name: name, bin: build(t), state: filepath.Join(base, "state"), src: filepath.Join(s.disk, name),
	}
	w.client = socketClient(filepath.Join(w.state, "run", "clawfs.sock"))
	if err := errors.Join(os.Mkdir(base, 0o755), os.Mkdir(w.src, 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.end)
	w.must("init")
	for file, key := range map[string]*dsse.PrivateKey{"mint.key": &w.mint, "revoke.key": &w.revoker} {
		text, err := os.ReadFile(filepath.Join(w.state, file))
		if err == nil {
			*key, err = dsse.ParsePrivateKey(text, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if w.publisher, err = dsse.GenerateKey(dsse.Ed25519); err != nil {
		t.Fatal(err)
	}
	if err := w.startDaemon(); err != nil {
		t.Fatal(err)
	}
	for _, seal := range seals {
		m := &mountpoint{world: w, seal: seal, dir: filepath.Join(base, seal)}
		if err := os.Mkdir(m.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		w.mounts = append(w.mounts, m)
		w.must("mount", "--seal", m.seal, w.src, m.dir)
	}
	return w
}

// environment lets every process of a world write what the race detector finds
// into files, and end without the pause that it makes by default.
func (w *world) environment() []string {
	return append(os.Environ(), "GORACE=atexit_sleep_ms=50 log_path="+filepath.Join(w.run.dir, "race"))
}

// result is how a command line ended.
type result struct {
	code           int
	stdout, stderr string
}

// verbPatience bounds a verb. The daemon gives up a request earlier.
const verbPatience = 5 * time.Minute

// verb runs a verb of clawfs on this world's state.
func (w *world) verb(args ...string) (result, error) {
	ctx, cancel := context.WithTimeout(context.Background(), verbPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.bin, append([]string{"--state", w.state}, args...)...)
	cmd.Env, cmd.WaitDelay = w.environment(), 5*time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exited *exec.ExitError
	if ctx.Err() != nil {
		return result{}, fmt.Errorf("clawfs %q has not ended after %v", args, verbPatience)
	}
	if err != nil && !errors.As(err, &exited) {
		return result{}, fmt.Errorf("clawfs %q: %w", args, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}, nil
}

// killedVerb runs a verb and kills it a moment later. If it has ended by then, it is
// as if it had been killed after its last act: the answer is not looked at.
func (w *world) killedVerb(args ...string) error {
	cmd := exec.Command(w.bin, append([]string{"--state", w.state}, args...)...)
	cmd.Env = w.environment()
	if err := cmd.Start(); err != nil {
		return err
	}
	time.Sleep(rand.N(w.run.phase / 2))
	cmd.Process.Kill()
	cmd.Wait()
	return errKilled
}

func (w *world) must(args ...string) {
	w.t.Helper()
	if r, err := w.verb(args...); err != nil || r.code != 0 {
		w.t.Fatalf("clawfs %q in world %s: %v, exit code %d\n%s%s", args, w.name, err, r.code, r.stdout, r.stderr)
	}
}

// refusal is an answer of the daemon that is no success.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return fmt.Sprintf("HTTP status %d: %s", r.status, r.text) }

// ask sends one request to the daemon. An error that is no refusal leaves open
// what became of it.
func (w *world) ask(method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 70*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://daemon"+path, body)
	if err != nil {
		return err
	}
	res, err := w.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return &refusal{res.StatusCode, string(text)}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

// status is the part of the daemon's status that the soak looks at.
type status struct {
	PID        int
	Generation uint64
	Resources  struct {
		Goroutines    int
		HeapLiveBytes int64
	}
	Capabilities struct{ Live, Expired, Revoked int }
	Revocations  int
	Rejected     []struct{ Key, Reason string }
	Warnings     []string
	Mounts       []struct {
		Mountpoint string
		State      string
		PID        int
		Restarts   int
		Report     *struct {
			PID        int
			Tier       string
			TierReason string
			Generation uint64
			Stale      bool
			Counters   map[string]int64
		}
	}
}

func (w *world) status() (s status, err error) { return s, w.ask("GET", "/v1/status", nil, &s) }

// startDaemon starts the daemon, if no verb has done so in the meantime, and
// returns when it answers.
func (w *world) startDaemon() error {
	begin := time.Now()
	cmd := exec.Command(w.bin, "--state", w.state, "daemon", "--background")
	cmd.Env, cmd.Dir = w.environment(), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := w.status(); err == nil {
			w.run.count.slowest("daemon start", time.Since(begin))
			return nil
		} else if time.Now().After(end) {
			return fmt.Errorf("the daemon of world %s does not answer after 30 s: %w", w.name, err)
		}
		select {
		case err := <-ended:
			if !strings.Contains(errs.String(), "runs already") {
				return fmt.Errorf("the daemon of world %s ended at its start: %v\n%s", w.name, err, errs.String())
			}
		default:
		}
	}
}

// processes are the pids that were started for this world's state with a verb.
func (w *world) processes(verb string) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		args := strings.Split(string(text), "\x00")
		if len(args) > 3 && args[0] == w.bin && args[1] == "--state" && args[2] == w.state && args[3] == verb {
			pids = append(pids, pid)
		}
	}
	return pids
}

// end kills what is left of the world and takes its mounts away.
func (w *world) end() {
	for _, verb := range []string{"daemon", "mount-process", "worker"} {
		for end := time.Now().Add(20 * time.Second); len(w.processes(verb)) > 0; time.Sleep(20 * time.Millisecond) {
			for _, pid := range w.processes(verb) {
				syscall.Kill(pid, syscall.SIGKILL)
			}
			if time.Now().After(end) {
				w.t.Errorf("processes %v (%s) of world %s do not die", w.processes(verb), verb, w.name)
				break
			}
		}
	}
	for _, m := range w.mounts {
		for unix.Unmount(m.dir, unix.MNT_DETACH) == nil {
		}
	}
	if w.t.Failed() {
		logs, _ := filepath.Glob(filepath.Join(w.state, "log", "*"))
		for _, l := range logs {
			b, _ := os.ReadFile(l)
			w.t.Logf("end of %s:\n%s", l, b[max(0, len(b)-4<<10):])
			os.WriteFile(filepath.Join(w.run.out, w.name+"-"+filepath.Base(l)), b, 0o644)
		}
	}
}

// capability signs a capability over one file: the soak is the worker here.
func (w *world) capability(name string, c content) (envelope []byte, p capstore.Predicate, s capstore.Subject, err error) {
	m, err := hashpipe.Measure(context.Background(), c.reader(), nil)
	if err != nil {
		return nil, p, s, err
	}
	s = capstore.Subject{Name: name, Digest: m.Sum().Claim(), Verity: m.Tree().Claim(), Size: m.Size()}
	now := time.Now().UTC().Truncate(time.Second)
	p = capstore.Predicate{
		Model: "acme/soak", Version: strconv.FormatInt(c.ID, 10), Sequence: c.ID,
		SBA:         capstore.Reference{Digest: capstore.DigestSet{SHA256: hashpipe.SumBytes([]byte("ledger of " + name)).Claim()}},
		Environment: capstore.Reference{Digest: capstore.DigestSet{SHA256: hashpipe.SumBytes([]byte("image of " + name)).Claim()}},
		Publisher:   capstore.Publisher{KeyID: w.publisher.Public().ID(), PublicKey: w.publisher.Public()},
		Minter:      capstore.Minter{KeyID: w.mint.Public().ID()},
		Platform:    capstore.Platform{OS: "linux", Arch: "amd64", Accelerator: "none"},
		NotBefore:   now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
	}
	st := capstore.NewStatement([]capstore.Subject{s}, p)
	payload, err := st.Payload()
	if err != nil {
		return nil, p, s, err
	}
	envelope, err = dsse.Sign(dsse.PayloadType, payload, w.mint)
	return envelope, st.Predicate, s, err
}

// revocation signs one that takes the file back, of any kind that hits it alone.
func (w *world) revocation(p capstore.Predicate, s capstore.Subject) ([]byte, error) {
	targets := map[capstore.Kind]hashpipe.Digest{
		capstore.KindClaim: p.Claim, capstore.KindSBA: p.SBA.Digest.SHA256, capstore.KindFile: s.Digest, capstore.KindImage: p.Environment.Digest.SHA256,
	}
	kinds := []capstore.Kind{capstore.KindClaim, capstore.KindSBA, capstore.KindFile, capstore.KindImage}
	kind := kinds[rand.IntN(len(kinds))]
	st, err := capstore.NewRevocation(kind, targets[kind].String(), "the soak takes it back", time.Now())
	if err != nil {
		return nil, err
	}
	return capstore.SignRevocation(st, w.revoker)
}

// watcher asks for the status on behalf of all who wait for it: they get one that
// was asked for after they came.
type watcher struct {
	mu      sync.Mutex // guards waiting, busy
	waiting []chan status
	busy    bool
}

// watchPause is how soon after an answer the next status is asked for.
const watchPause = 10 * time.Millisecond

// next returns a status that was asked for after the call. It is zero if the
// daemon did not answer.
func (w *world) next() status {
	ch := make(chan status, 1)
	w.seen.mu.Lock()
	w.seen.waiting = append(w.seen.waiting, ch)
	start := !w.seen.busy
	w.seen.busy = true
	w.seen.mu.Unlock()
	if start {
		go func() {
			for {
				w.seen.mu.Lock()
				list := w.seen.waiting
				w.seen.waiting = nil
				w.seen.busy = len(list) > 0
				w.seen.mu.Unlock()
				if len(list) == 0 {
					return
				}
				s, err := w.status()
				if err != nil {
					s = status{}
				}
				for _, ch := range list {
					ch <- s
				}
				time.Sleep(watchPause)
			}
		}()
	}
	return <-ch
}

// confirmPatience is how long a grant or revocation waits for the mounts. One that
// has not confirmed by then is taken to do it at any time, or never.
const confirmPatience = 10 * time.Second

// confirmed waits until each of the mounts has reported to be as far as the store,
// and hands the time to each.
func (w *world) confirmed(mounts []*mountpoint, each func(*mountpoint, int64)) {
	left := slices.Clone(mounts)
	for end := time.Now().Add(confirmPatience); len(left) > 0 && time.Now().Before(end); {
		s := w.next()
		now := monotonic()
		for _, m := range s.Mounts {
			if m.Report == nil || s.PID == 0 || m.Report.Generation < s.Generation {
				continue
			}
			left = slices.DeleteFunc(left, func(p *mountpoint) bool {
				if p.dir != m.Mountpoint {
					return false
				}
				each(p, now)
				return true
			})
		}
	}
}

// tally counts things by name, and keeps the longest times.
type tally struct {
	mu    sync.Mutex // guards what follows
	n     map[string]int64
	worst map[string]time.Duration
	all   map[string][]time.Duration
}

func newTally() *tally {
	return &tally{n: map[string]int64{}, worst: map[string]time.Duration{}, all: map[string][]time.Duration{}}
}

func (c *tally) add(what string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[what] += n
}

func (c *tally) get(what string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[what]
}

func (c *tally) slowest(what string, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.worst[what] = max(c.worst[what], d)
	c.all[what] = append(c.all[what], d)
}

// quantile is that of the times that were noted for what.
func (c *tally) quantile(what string, q float64) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := slices.Clone(c.all[what])
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(len(list)-1, int(q*float64(len(list))))]
}

var lastContent atomic.Int64
