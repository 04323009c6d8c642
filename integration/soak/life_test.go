package soak

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/openclaw/clawfs/capstore"
)

// life is one content from its file's appearance in the source to its end: it is
// refused, granted, opened, revoked and refused again.
type life struct {
	world   *world
	name    string // of the file
	content content
	churned bool // others write to the file
	seats   []*seat

	sum string // SHA-256 in hex

	revoking atomic.Int64 // when the revocation was sent; 0: not yet
}

// fate is a grant or a revocation: it begins for all mounts at a time, and returns
// at each.
type fate struct {
	kind kind
	how  string

	calls   []int64 // of the attempts
	replied int64   // by the daemon or the verb, to the last of them; 0: nobody knows

	mu  sync.Mutex // guards ret
	ret map[*mountpoint]int64
}

func (f *fate) returned(m *mountpoint, at int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.ret[m]; !known {
		f.ret[m] = at
	}
}

func (f *fate) at(m *mountpoint) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at, known := f.ret[m]; known {
		return at
	}
	return pending
}

// cell leads one life after the other until the soak is over.
func (w *world) cell(i int, churned bool) {
	for large := i == 0; w.run.goesOn(); large = false {
		if err := w.live(i, churned, large); err != nil {
			w.run.fail("world %s, cell %d: %v", w.name, i, err)
			return
		}
	}
}

// sizes are those at which something changes: around a block of the fs-verity tree,
// the 512 KiB unit, the MiB from which files are sealed; and, now and then, above
// the 64 MiB from which a file is measured by its tree. The first of each
// world is as large, so that no later one is the first to need that much memory.
func someSize(large bool) int64 {
	switch n := rand.IntN(60); {
	case n == 0 || large:
		return 64<<20 + rand.Int64N(1<<20)
	case n < 10:
		return []int64{1, 4095, 4096, 4097, 512 << 10, 512<<10 + 1, 1<<20 - 1, 1 << 20, 1<<20 + 1}[n-1]
	case n < 35:
		return 1 + rand.Int64N(1<<20)
	}
	return 1<<20 + rand.Int64N(7<<20)
}

func (w *world) live(i int, churned, large bool) error {
	c := content{ID: lastContent.Add(1), Size: someSize(large)}
	l := &life{world: w, content: c, churned: churned, name: fmt.Sprintf("model-%d-%d.bin", i, c.ID)}
	path := filepath.Join(w.src, l.name)
	// A name is given to the whole file, as a downloader does it.
	if err := writeFile(filepath.Join(w.src, ".part-"+l.name), c); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(w.src, ".part-"+l.name), path); err != nil {
		return err
	}
	for _, m := range w.mounts {
		s := &seat{key: w.run.keys.Add(1), path: filepath.Join(m.dir, l.name), at: m, life: l, given: c}
		l.seats = append(l.seats, s)
	}
	taken := make(map[*seat][]*reader)
	for _, s := range l.seats {
		for _, k := range rand.Perm(len(w.run.readers))[:min(2, len(w.run.readers))] {
			w.run.readers[k].take(s)
			taken[s] = append(taken[s], w.run.readers[k])
		}
	}
	stop := make(chan struct{})
	var churner sync.WaitGroup
	if churned {
		churner.Go(func() { w.churn(path, c, stop) })
	}

	w.run.sleep(rand.N(w.run.phase))
	granted, p, s, err := l.grant()
	if err != nil {
		return err
	}
	l.sum = s.Digest.String()
	w.run.sleep(w.run.phase + rand.N(3*w.run.phase))
	text, err := w.revocation(p, s)
	if err != nil {
		return err
	}
	revoked, err := l.revoke(text)
	if err != nil {
		return err
	}
	// Long enough for a reader to look: a history without an open after the
	// revocation shows nothing of it.
	w.run.sleep(w.run.phase + rand.N(w.run.phase))

	close(stop)
	churner.Wait()
	for s, list := range taken {
		for _, r := range list {
			r.drop(s)
		}
	}
	for _, s := range l.seats {
		if err := s.left(); err != nil {
			return err
		}
		l.judge(s, granted, revoked)
	}
	w.run.count.add("contents", 1)
	if revoked.replied == 0 {
		// What stays granted keeps its private file, which is not what a curve should show.
		if err := l.send(&fate{kind: revoke, how: "a last revocation"}, func() ([]*mountpoint, error) {
			return nil, w.ask(http.MethodPost, "/v1/revocations", map[string]any{"envelope": text}, nil)
		}); err != nil {
			return err
		}
	}
	return os.Remove(path)
}

// left waits until no reader is at the seat any more. Who hangs is told of
// elsewhere.
func (s *seat) left() error {
	done := make(chan struct{})
	go func() { s.readers.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-time.After(2 * hangPatience):
		return fmt.Errorf("the readers of %s do not end", s.path)
	}
}

func writeFile(path string, c content) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = c.WriteTo(f)
	return errors.Join(err, f.Close())
}

// sendPatience bounds how long a record is sent again. The daemon is never away
// for so long.
const sendPatience = 90 * time.Second

// send hands a record over until the daemon takes it, by the socket or by a verb.
// It returns the mounts that a verb said nothing of: they have the record.
func (l *life) send(f *fate, attempt func() (confirmed []*mountpoint, err error)) error {
	w := l.world
	f.ret = make(map[*mountpoint]int64)
	for end := time.Now().Add(sendPatience); ; w.run.count.add("sent again", 1) {
		f.calls = append(f.calls, monotonic())
		sure, err := attempt()
		now := monotonic()
		var no *refusal
		if err == nil {
			f.replied = now
			for _, m := range sure {
				f.returned(m, now)
			}
			w.confirmed(w.mounts, f.returned)
			for _, m := range w.mounts {
				if f.at(m) == pending {
					w.run.count.add("not confirmed in "+confirmPatience.String(), 1)
				} else {
					w.run.count.slowest("reply to confirmation", time.Duration(f.at(m)-now))
				}
			}
			return nil
		}
		if errors.As(err, &no) && no.status < 500 {
			return fmt.Errorf("%s of %s refused: %w", f.how, l.name, err)
		}
		if errors.Is(err, errKilled) {
			w.run.count.add("clients killed", 1)
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s of %s: not taken in %v: %w", f.how, l.name, sendPatience, err)
		}
		w.run.count.add("answers lost: "+cause(err), 1)
		time.Sleep(100 * time.Millisecond)
	}
}

// cause is the last part of an error, without paths and numbers.
func cause(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e.Error()
	}
	parts := strings.Split(strings.TrimSpace(err.Error()), ": ")
	return parts[len(parts)-1]
}

// errKilled says that the client was killed, and that nobody asks again.
var errKilled = errors.New("the client was killed")

// byVerb runs a verb that takes a record. Only what the daemon's absence explains
// is tried again.
func (l *life) byVerb(args ...string) ([]*mountpoint, error) {
	r, err := l.world.verb(args...)
	if err != nil {
		return nil, &refusal{text: err.Error()}
	}
	switch r.code {
	case 0:
		var sure []*mountpoint
		for _, m := range l.world.mounts {
			if !strings.Contains(r.stderr, m.dir+" has not confirmed") {
				sure = append(sure, m)
			}
		}
		return sure, nil
	case 1, 7: // an answer that was cut off; nobody answers
		return nil, fmt.Errorf("clawfs %s: exit code %d: %s", args[0], r.code, r.stderr)
	}
	return nil, &refusal{text: fmt.Sprintf("clawfs %q: exit code %d\n%s%s", args, r.code, r.stdout, r.stderr)}
}

// submission is the body of POST /v1/records.
type submission struct {
	Kind     string `json:"kind"`
	Envelope []byte `json:"envelope"`
}

func (l *life) revoke(text []byte) (*fate, error) {
	f := &fate{kind: revoke, how: "revocation by the socket"}
	l.revoking.Store(monotonic())
	ask := func() ([]*mountpoint, error) {
		return nil, l.world.ask(http.MethodPost, "/v1/revocations", map[string]any{"envelope": text}, nil)
	}
	switch n := rand.IntN(12); {
	case l.world.socketOnly:
	case n < 3:
		f.how = "revocation by the verb"
		ask = func() ([]*mountpoint, error) {
			// A revocation of its own: the verb signs one at each attempt.
			return l.byVerb("revoke", "--kind", "file", l.sum, "--reason", "the soak takes it back")
		}
	case n == 3:
		f.how = "revocation by a verb that is killed"
		ask = func() ([]*mountpoint, error) {
			return nil, l.world.killedVerb("revoke", "--kind", "file", l.sum, "--reason", "the soak takes it back")
		}
	}
	err := l.send(f, ask)
	l.world.run.count.add("revocations", 1)
	return f, err
}

func (l *life) grant() (*fate, capstore.Predicate, capstore.Subject, error) {
	f := &fate{kind: grant, how: "grant by the socket"}
	text, p, s, err := l.world.capability(l.name, l.content)
	if err != nil {
		return f, p, s, err
	}
	ask := func() ([]*mountpoint, error) {
		var answer struct{ Outcome, Reason string }
		err := l.world.ask(http.MethodPost, "/v1/records", submission{"capability", text}, &answer)
		if err == nil && answer.Outcome == "skipped" {
			return nil, &refusal{text: answer.Reason}
		}
		return nil, err
	}
	if rand.IntN(4) == 0 && !l.world.socketOnly {
		f.how = "grant by the verb"
		file := filepath.Join(l.world.run.dir, l.name+"."+l.world.name+".cap")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return f, p, s, err
		}
		defer os.Remove(file)
		ask = func() ([]*mountpoint, error) { return l.byVerb("import", file) }
	}
	err = l.send(f, ask)
	l.world.run.count.add("grants", 1)
	return f, p, s, err
}
