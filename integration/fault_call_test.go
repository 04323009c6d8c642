package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
)

// faulty is a file system whose calls can be made to fail (testdata/faultfs).
type faulty struct {
	t      *testing.T
	at     string
	server *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
}

func newFaulty(t *testing.T) *faulty {
	t.Helper()
	dir := t.TempDir()
	f := &faulty{t: t, at: filepath.Join(dir, "at")}
	back := filepath.Join(dir, "back")
	for _, d := range []string{f.at, back} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	f.server = exec.Command(built.faultfs, back, f.at)
	f.server.Stderr = os.Stderr
	var err error
	if f.in, err = f.server.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := f.server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	f.out = bufio.NewReader(out)
	if err := f.server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.in.Close()
		syscall.Unmount(f.at, syscall.MNT_DETACH)
		f.server.Process.Kill()
		f.server.Wait()
	})
	if answer := f.line(); answer != "ready" {
		t.Fatalf("faultfs says %q, want ready", answer)
	}
	return f
}

func (f *faulty) line() string {
	f.t.Helper()
	line, err := f.out.ReadString('\n')
	if err != nil {
		f.t.Fatalf("faultfs has ended: %v", err)
	}
	return strings.TrimSpace(line)
}

func (f *faulty) arm(word, kind string, n, pid int) {
	f.t.Helper()
	fmt.Fprintln(f.in, "arm", word, kind, n, pid)
	if answer := f.line(); answer != "ok" {
		f.t.Fatalf("faultfs says %q, want ok", answer)
	}
}

// calls are those that were counted, and the one that failed.
type calls struct {
	Count int
	Fired string
	Calls []string
}

func (f *faulty) disarm() (c calls) {
	f.t.Helper()
	fmt.Fprintln(f.in, "disarm")
	if err := json.Unmarshal([]byte(f.line()), &c); err != nil {
		f.t.Fatal(err)
	}
	return c
}

// faultKinds are the ways in which one call fails. The first fail in the eyes of
// the program, with or without having done it; the others end it there.
var faultKinds = []string{"error", "done", "nospace", "quota", "gone", "kill", "killdone", "torn"}

func kills(kind string) bool { return kind == "kill" || kind == "killdone" || kind == "torn" }

// operation is what is interrupted.
type operation struct {
	name string
	word string // argument of the process whose calls are counted
	// prepare returns the attempt, which can be made again.
	prepare func(h *host) func() error
	stopped bool // no daemon runs before it
}

// operations are everything that writes into a state directory.
var operations = []operation{
	{name: "grant", word: "daemon", prepare: func(h *host) func() error {
		return h.sender(fact{kind: capstore.RecordCapability, name: "model.bin", envelope: h.capability(h.fresh("model"), h.fresh("content"))})
	}},
	{name: "revocation", word: "daemon", prepare: func(h *host) func() error {
		victim := h.mustAdmit(h.fresh("victim"), h.fresh("content"))
		return h.sender(fact{kind: capstore.RecordRevocation, name: "revocation", envelope: h.revocation(victim.id()), target: victim.id()})
	}},
	{name: "list", word: "daemon", prepare: func(h *host) func() error {
		n := int64(h.next())
		return h.sender(fact{kind: capstore.RecordList, name: "list", envelope: h.list(n), sequence: n})
	}},
	{name: "mount", word: "daemon", prepare: func(h *host) func() error {
		at := filepath.Join(h.dir, h.fresh("mount"))
		if err := os.Mkdir(at, 0o755); err != nil {
			h.t.Fatal(err)
		}
		h.undo = func() {
			if h.isMounted(at) {
				h.wantServes(at)
				h.must(done, "umount", at)
			}
		}
		return func() error {
			if h.isMounted(at) {
				return nil
			}
			err := h.verb("mount", h.src, at)
			if r := asRefusal(err); r != nil && (strings.Contains(r.text, "is mounted already") || strings.Contains(r.text, "a clawfs mount is there already")) {
				h.eventually("the daemon has brought back "+at, func() bool { return h.isMounted(at) })
				return nil // the wish was recorded, and nobody was told
			}
			return err
		}
	}},
	{name: "policy", word: "policy", prepare: func(h *host) func() error {
		file := h.nextPolicy()
		return func() error { return h.verb("policy", "install", file) }
	}},
	{name: "start", word: "daemon", stopped: true, prepare: func(h *host) func() error {
		return func() error {
			if h.pid == 0 || h.hasEnded() {
				if _, err := h.start(); err != nil {
					return err
				}
			}
			var status struct{ Store *trouble }
			if err := h.get("/v1/status", &status); err != nil {
				return err
			}
			if status.Store != nil {
				return &refusal{0, status.Store.String()} // it is up, and says so
			}
			return nil
		}
	}},
}

func (h *host) next() int { h.serial++; return h.serial }

func (h *host) fresh(name string) string { return name + strconv.Itoa(h.next()) }

func (h *host) sender(f fact) func() error {
	return func() error { _, err := h.send(f); return err }
}

func (h *host) list(sequence int64) []byte {
	st, err := capstore.NewList(sequence, time.Now(), time.Now().Add(time.Hour), nil)
	if err != nil {
		panic(err)
	}
	envelope, err := capstore.SignList(st, h.revoker)
	if err != nil {
		panic(err)
	}
	return envelope
}

// verb runs a command line and gives its failure as what it wrote. A connection
// that broke is no refusal.
func (h *host) verb(args ...string) error {
	h.t.Helper()
	code, out, errs := h.run(args...)
	switch {
	case code == done:
		return nil
	case code == -1 && errs == "": // killed
		return fmt.Errorf("killed")
	case code == unreachable || strings.Contains(errs, "EOF") || strings.Contains(errs, "connection reset"):
		return fmt.Errorf("exit %d: %s", code, errs)
	}
	return &refusal{code, out + errs}
}

func (h *host) isMounted(at string) bool {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.Contains(string(table), " "+at+" fuse")
}

// nextPolicy signs the revision that follows the one that is installed.
func (h *host) nextPolicy() string {
	h.t.Helper()
	draft := filepath.Join(h.dir, h.fresh("draft")+".json")
	h.must(done, "policy", "edit", "--out", draft)
	h.must(done, "policy", "sign", draft, "--key", filepath.Join(h.dir, "root"), "--out", draft+".dsse")
	return draft + ".dsse"
}

// revision is that of the policy that is installed.
func (h *host) revision() int64 {
	h.t.Helper()
	var shown struct{ Policy struct{ Revision int64 } }
	h.query(&shown, "policy", "show")
	return shown.Policy.Revision
}

// outcome is what was seen of one kind of fault in one operation.
type outcome struct {
	faults, acked, refused, killed, died, restarted int
}

// Every call of every operation fails once, in every way, or the process is
// killed there. Whatever happens, nothing is granted that was not sent, nothing
// acknowledged is lost, mounts serve, the error is a sentence, and the next
// attempt without the fault works; at most the daemon has to be started again.
func TestFaultCalls(t *testing.T) {
	rng := dice(t)
	f := newFaulty(t)
	h := newHost(t, f.at)
	h.must(done, "keygen", "--out", filepath.Join(h.dir, "root"))
	first := filepath.Join(h.dir, "first.json")
	h.must(done, "policy", "edit", "--root", filepath.Join(h.dir, "root.pub"), "--threshold", "1", "--out", first)
	h.must(done, "policy", "sign", first, "--key", filepath.Join(h.dir, "root"), "--out", first+".dsse")
	h.must(done, "policy", "install", first+".dsse", "--first")
	h.mustStart()
	h.mountModels()

	seen := make(map[string]*outcome)
	total, death := 0, make(map[string]int)
	for _, op := range operations {
		n := h.count(f, op)
		t.Logf("%s: %d calls: %v", op.name, n.Count, tally(n.Calls))
		if n.Count < 5 {
			t.Errorf("%s makes %d calls: it was not counted", op.name, n.Count)
		}
		for _, kind := range faultKinds {
			o := &outcome{}
			seen[op.name+" "+kind] = o
			for _, at := range h.places(rng, n.Count) {
				fired := h.try(f, op, kind, at, o, death)
				if !fired && *faultFlags.full {
					break // it has passed
				}
			}
			total += o.faults
		}
	}
	t.Log("operation kind: faults, acknowledged, refused in words, killed, died, needed a new daemon")
	for _, op := range operations {
		for _, kind := range faultKinds {
			o := seen[op.name+" "+kind]
			t.Logf("%-10s %-8s %4d %4d %4d %4d %4d %4d", op.name, kind, o.faults, o.acked, o.refused, o.killed, o.died, o.restarted)
		}
	}
	for _, words := range slices.Sorted(maps.Keys(death)) {
		t.Logf("died %d times: %s", death[words], words)
	}
	if total == 0 {
		t.Error("no fault happened")
	}
	t.Logf("%d faults; %v", total, h.wantAll("after all"))
	h.dropMounts()
}

// places are the calls that fail: all of them, and some more, or one.
func (h *host) places(rng *rand.Rand, count int) (list []int) {
	if !*faultFlags.full {
		return []int{1 + rng.IntN(count)}
	}
	for n := range count + 5 {
		list = append(list, n+1)
	}
	return list
}

// count runs an operation without a fault.
func (h *host) count(f *faulty, op operation) calls {
	h.t.Helper()
	h.undo = nil
	attempt := op.prepare(h)
	if op.stopped {
		h.kill()
	}
	f.arm(op.word, "error", 0, h.pid)
	err := attempt()
	c := f.disarm()
	if err != nil {
		h.t.Fatalf("%s: %v", op.name, err)
	}
	if h.undo != nil {
		h.undo()
	}
	return c
}

// try runs an operation with one fault, checks what is there, and runs it again
// without.
func (h *host) try(f *faulty, op operation, kind string, at int, o *outcome, death map[string]int) (fired bool) {
	h.t.Helper()
	h.undo = nil
	attempt := op.prepare(h)
	before := h.revision()
	if op.stopped {
		h.kill()
	}
	f.arm(op.word, kind, at, h.pid)
	err := attempt()
	c := f.disarm()
	if c.Fired == "" {
		if err != nil {
			h.t.Errorf("%s without a fault: %v", op.name, err)
		}
		h.settle(op, attempt, "no fault", before)
		return false
	}
	o.faults++
	where := fmt.Sprintf("%s, %s at call %d, %s", op.name, kind, at, c.Fired)
	if kills(kind) && op.word == "daemon" {
		// It may take a moment, or it was a child that had not become another program yet.
		for time.Sleep(20 * time.Millisecond); h.pid != 0 && !h.hasEnded() && h.get("/v1/status", nil) != nil; {
			time.Sleep(5 * time.Millisecond)
		}
	}
	dead := h.pid == 0 || h.hasEnded()
	switch {
	case err == nil:
		o.acked++
	case kills(kind):
		o.killed++
	case asRefusal(err) != nil:
		o.refused++
		h.inWords(err)
	case op.stopped && dead && strings.Contains(err.Error(), "input/output error") || strings.Contains(err.Error(), "clawfs: "):
		o.refused++ // it has ended with a sentence
	default:
		o.died++
		death[fmt.Sprintf("%s: %.300s", op.name, h.lastWords())]++
		h.t.Logf("%s: %.200v: %.300s", where, err, h.lastWords())
	}
	h.wantServes(h.mnt)
	if !dead && err != nil {
		again := attempt()
		for end := time.Now().Add(10 * time.Second); asRefusal(again) != nil && time.Now().Before(end); again = attempt() {
			h.inWords(again)
			time.Sleep(50 * time.Millisecond)
		}
		if again != nil {
			o.restarted++
			dead = true
			h.t.Logf("%s: needs another daemon: %v", where, again)
		}
	}
	if !dead && err == nil && op.stopped && attempt() != nil {
		// It had answered, and then a part of it met the fault.
		for end := time.Now().Add(5 * time.Second); !h.hasEnded() && time.Now().Before(end); {
			time.Sleep(20 * time.Millisecond)
		}
		if dead = h.hasEnded(); dead {
			o.restarted++
			h.t.Logf("%s: needs another daemon: %.300s", where, h.lastWords())
		}
	}
	if dead {
		h.kill()
		h.startAfter(where)
		h.wantNothingLost(where)
	}
	h.settle(op, attempt, where, before)
	return true
}

// settle makes the attempt work, and looks at what is there after one more kill.
func (h *host) settle(op operation, attempt func() error, where string, before int64) {
	h.t.Helper()
	if err := attempt(); err != nil {
		h.t.Errorf("%s: the next attempt: %v\n%s", where, err, h.tail())
	}
	if op.name == "policy" {
		if now := h.revision(); now != before+1 {
			h.t.Errorf("%s: the policy is revision %d, want %d", where, now, before+1)
		}
	}
	if h.undo != nil {
		h.undo()
	}
	h.kill()
	h.startAfter(where)
	h.wantNothingLost(where)
}

// startAfter starts a daemon after a fault. What a memory map could not write is
// told by the kernel to the next process that syncs the file, once; and a child that
// was about to become another program holds the lock of a dead daemon for a moment.
// A start that fails by that is made again, as a supervisor does.
func (h *host) startAfter(where string) {
	h.t.Helper()
	_, err := h.start()
	if err != nil && (strings.Contains(err.Error(), "input/output error") || strings.Contains(err.Error(), "a daemon runs already")) {
		h.t.Logf("%s: the next start fails once: %.600v", where, err)
		time.Sleep(100 * time.Millisecond)
		_, err = h.start()
	}
	if err != nil {
		h.t.Fatalf("%s: starting again: %v", where, err)
	}
	if s := h.trouble(); s != nil {
		h.t.Logf("%s: the next daemon begins without its store: %v", where, s)
		h.wantRecovery()
	}
}

func (h *host) wantNothingLost(where string) {
	h.t.Helper()
	if f := h.compare(); f.bad() {
		h.t.Errorf("%s: %v\nlost %q\nrevived %q\nhalf %q\nnever %q", where, f, f.lost, f.revived, f.half, f.never)
	}
}

// tally counts calls by their names.
func tally(list []string) string {
	n := make(map[string]int)
	for _, c := range list {
		name, _, _ := strings.Cut(c, " ")
		n[name]++
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(n)) {
		parts = append(parts, fmt.Sprintf("%d %s", n[name], name))
	}
	return strings.Join(parts, ", ")
}
