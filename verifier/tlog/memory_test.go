package tlog_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/verifier/tlog"
)

func advance(t testing.TB, m tlog.Memory, c tlog.Checkpoint, proof tlog.Consistency) tlog.Memory {
	t.Helper()
	m, err := m.Advance(c, proof)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// otherTree is a log of the same keys that differs from the world's after its
// first two leaves.
func otherTree(t testing.TB, w world) world {
	t.Helper()
	w.tree = newTree(t, append(w.leaves[:2:2], leaves(t, 11, "acme/other")...)...)
	return w
}

func TestAdvanceRefuses(t *testing.T) {
	w := newWorld(t)
	v := otherTree(t, w)
	m := advance(t, tlog.NewMemory(), w.checkpoint(t, 7), nil)
	before := m.Encode()
	good := w.tree.consistency(t, 7, 13)
	n := len(good)
	if n < 3 {
		t.Fatalf("the proof has %d hashes, this test expects some", n)
	}
	reversed := slices.Clone(good)
	slices.Reverse(reversed)
	tests := []struct {
		name   string
		c      tlog.Checkpoint
		proof  tlog.Consistency
		reason tlog.Reason
		want   string
	}{
		{"one older", w.checkpoint(t, 6), nil, tlog.ReasonOlder, "expected a checkpoint of size 7 or later, which was seen before, got size 6"},
		{"one older, with a proof", w.checkpoint(t, 6), w.tree.consistency(t, 6, 7), tlog.ReasonOlder, "got size 6"},
		{"the first one", w.checkpoint(t, 1), nil, tlog.ReasonOlder, "got size 1"},
		{"the empty log", w.checkpoint(t, 0), nil, tlog.ReasonOlder, "got size 0"},
		{"newer without proof", w.checkpoint(t, 13), nil, tlog.ReasonConsistency, "expected a consistency proof from size 7, root "},
		{"newer with the proof upside down", w.checkpoint(t, 13), reversed, tlog.ReasonConsistency, fmt.Sprintf("got %d hashes that lead elsewhere", n)},
		{"newer with part of the proof", w.checkpoint(t, 13), good[1:], tlog.ReasonConsistency, fmt.Sprintf("got %d hashes", n-1)},
		{"newer with one hash more", w.checkpoint(t, 13), append(slices.Clone(good), tlog.Hash{}), tlog.ReasonConsistency, fmt.Sprintf("got %d hashes", n+1)},
		{"newer with a proof from elsewhere", w.checkpoint(t, 13), w.tree.consistency(t, 6, 13), tlog.ReasonConsistency, "lead elsewhere"},
		{"newer with a proof to elsewhere", w.checkpoint(t, 13), w.tree.consistency(t, 7, 12), tlog.ReasonConsistency, "lead elsewhere"},
		{"newer of another tree", v.checkpoint(t, 13), v.tree.consistency(t, 7, 13), tlog.ReasonConsistency, "lead elsewhere"},
		{"newer of another tree with this one's proof", v.checkpoint(t, 13), good, tlog.ReasonConsistency, "lead elsewhere"},
		{"the same with a proof", w.checkpoint(t, 7), good, tlog.ReasonConsistency, "expected an empty consistency proof from size 7 to 7"},
	}
	for _, tt := range tests {
		got, err := m.Advance(tt.c, tt.proof)
		refused(t, tt.name, err, tt.reason, tt.want)
		if !bytes.Equal(got.Encode(), before) {
			t.Errorf("%s: the Memory changed", tt.name)
		}
	}

	_, err := tlog.Memory{}.Advance(w.checkpoint(t, 7), nil)
	failed(t, "zero Memory", err, "log memory: there is none")
	_, err = m.Advance(tlog.Checkpoint{}, nil)
	failed(t, "zero Checkpoint", err, "there is no checkpoint")
	_, err = tlog.NewMemory().Advance(w.checkpoint(t, 7), good)
	refused(t, "first with a proof", err, tlog.ReasonConsistency, "nothing is remembered of the log")
	empty := advance(t, tlog.NewMemory(), w.checkpoint(t, 0), nil)
	_, err = empty.Advance(w.checkpoint(t, 7), good)
	refused(t, "after an empty log, with a proof", err, tlog.ReasonConsistency, "expected an empty consistency proof from size 0 to 7")
	if _, _, ok := m.Fork(origin); ok {
		t.Error("a refusal that proves nothing was kept as a fork")
	}
}

func TestForkIsKept(t *testing.T) {
	w := newWorld(t)
	v := otherTree(t, w)
	old := advance(t, tlog.NewMemory(), w.checkpoint(t, 8), nil)
	before := old.Encode()
	m, err := old.Advance(v.checkpoint(t, 8), nil)
	refused(t, "fork", err, tlog.ReasonFork, "expected one tree of size 8, got two, with the roots "+w.tree.root(t, 8).String()+" and "+v.tree.root(t, 8).String())
	if !bytes.Equal(old.Encode(), before) {
		t.Error("Advance changed the Memory that it was called on")
	}
	// The log stays refused, whatever it shows, also after a restart.
	restarted, err := tlog.ParseMemory(m.Encode())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []tlog.Memory{m, restarted} {
		first, second, ok := m.Fork(origin)
		if !ok || string(first) != w.note(t, 8) || string(second) != v.note(t, 8) {
			t.Errorf("Fork = %s, %s, %v", first, second, ok)
		}
		for _, note := range [][]byte{first, second} {
			if _, err := w.policy.Checkpoint(note); err != nil {
				t.Errorf("the evidence is not signed: %v", err)
			}
		}
		for _, c := range []tlog.Checkpoint{w.checkpoint(t, 7), w.checkpoint(t, 8), v.checkpoint(t, 8), w.checkpoint(t, 13)} {
			got, err := m.Advance(c, w.tree.consistency(t, 8, 13))
			refused(t, fmt.Sprintf("size %d after the fork", c.Size()), err, tlog.ReasonFork, "got two")
			if !bytes.Equal(got.Encode(), m.Encode()) {
				t.Errorf("size %d after the fork: the Memory changed", c.Size())
			}
			refused(t, "Extends after the fork", m.Extends(c, nil), tlog.ReasonFork, "got two")
		}
	}
	// Another log is not touched by it.
	x := newSigner("other.example/log", typeLog)
	p := policy(t, "log "+x.vkey(), "quorum none")
	c, err := p.Checkpoint([]byte(signed(text(x.name, 3, w.tree.root(t, 3)), x)))
	if err != nil {
		t.Fatal(err)
	}
	m = advance(t, m, c, nil)
	if got, want := m.Origins(), []string{origin, x.name}; !slices.Equal(got, want) {
		t.Errorf("Origins = %q, want %q", got, want)
	}
	if back, err := tlog.ParseMemory(m.Encode()); err != nil || !bytes.Equal(back.Encode(), m.Encode()) {
		t.Errorf("ParseMemory = %s, %v, want %s", back.Encode(), err, m.Encode())
	}
}

func TestAdvanceEveryPair(t *testing.T) {
	w := newWorld(t)
	var cs []tlog.Checkpoint
	for size := range int64(14) {
		cs = append(cs, w.checkpoint(t, size))
	}
	for older := range int64(14) {
		m := advance(t, tlog.NewMemory(), cs[older], nil)
		for newer := older; newer < 14; newer++ {
			var proof tlog.Consistency
			if older > 0 {
				proof = w.tree.consistency(t, older, newer)
			}
			got, err := m.Advance(cs[newer], proof)
			if size, root, ok := got.Newest(origin); err != nil || !ok || size != newer || root != cs[newer].Root() {
				t.Errorf("Advance from %d to %d = %d, %v, %v", older, newer, size, ok, err)
			}
			if err := got.Extends(cs[older], proof); err != nil {
				t.Errorf("Extends of %d at %d: %v", older, newer, err)
			}
		}
	}
}

// The same tree, cosigned by others or later, changes nothing.
func TestAdvanceKeepsTheFirst(t *testing.T) {
	w := newWorld(t)
	m := advance(t, tlog.NewMemory(), w.checkpoint(t, 8), nil)
	c, err := w.policy.Checkpoint([]byte(signed(w.text(t, 8), w.log, w.w2, w.w3)))
	if err != nil {
		t.Fatal(err)
	}
	if again := advance(t, m, c, nil); !bytes.Equal(again.Encode(), m.Encode()) {
		t.Errorf("Advance = %s, want %s", again.Encode(), m.Encode())
	}
}

func TestExtendsRefuses(t *testing.T) {
	w := newWorld(t)
	v := otherTree(t, w)
	m := advance(t, tlog.NewMemory(), w.checkpoint(t, 8), nil)
	refused(t, "older without proof", m.Extends(w.checkpoint(t, 5), nil), tlog.ReasonConsistency, "expected a consistency proof from size 5")
	refused(t, "older of another tree", m.Extends(v.checkpoint(t, 5), v.tree.consistency(t, 5, 8)), tlog.ReasonConsistency, "lead elsewhere")
	refused(t, "older of another tree with this one's proof", m.Extends(v.checkpoint(t, 5), w.tree.consistency(t, 5, 8)), tlog.ReasonConsistency, "lead elsewhere")
	refused(t, "newer", m.Extends(w.checkpoint(t, 9), w.tree.consistency(t, 8, 9)), tlog.ReasonConsistency, "expected a checkpoint of at most size 8")
	refused(t, "fork", m.Extends(v.checkpoint(t, 8), nil), tlog.ReasonFork, "got two")
	refused(t, "new log", tlog.NewMemory().Extends(w.checkpoint(t, 8), nil), tlog.ReasonConsistency, "got one that is new here")
	failed(t, "zero Memory", tlog.Memory{}.Extends(w.checkpoint(t, 8), nil), "there is none")
	failed(t, "zero Checkpoint", m.Extends(tlog.Checkpoint{}, nil), "there is no checkpoint")
}

// The 257th log is refused, and a Memory of 256 can be read again.
func TestMemoryIsBounded(t *testing.T) {
	m := tlog.NewMemory()
	for i := range 257 {
		x := newSigner(fmt.Sprintf("log%03d.example", i), typeLog)
		c, err := policy(t, "log "+x.vkey(), "quorum none").Checkpoint([]byte(signed(text(x.name, 1, tlog.Hash{}), x)))
		if err != nil {
			t.Fatal(err)
		}
		next, err := m.Advance(c, nil)
		if i == 256 {
			failed(t, "257 logs", err, "256 logs are remembered, which is the most")
		} else if err != nil {
			t.Fatal(err)
		}
		m = next
	}
	if back, err := tlog.ParseMemory(m.Encode()); err != nil || len(back.Origins()) != 256 {
		t.Errorf("ParseMemory = %d logs, %v", len(back.Origins()), err)
	}
}

func TestParseMemoryRefuses(t *testing.T) {
	const head = "clawfs-log-memory/v1\n"
	w := newWorld(t)
	note := w.note(t, 8)
	fork := otherTree(t, w).note(t, 8)
	newest := func(n string) string { return fmt.Sprintf("newest %d\n%s", len(n), n) }
	pair := func(a, b string) string { return fmt.Sprintf("fork %d %d\n%s%s", len(a), len(b), a, b) }
	x := newSigner("a.example", typeLog)
	other := signed(text(x.name, 8, tlog.Hash{}), x)
	many := head
	for i := range 257 {
		x := newSigner(fmt.Sprintf("log%03d.example", i), typeLog)
		many += newest(signed(text(x.name, 1, tlog.Hash{}), x))
	}
	tests := []struct{ name, text, want string }{
		{"empty", "", "clawfs-log-memory/v1"},
		{"another version", "clawfs-log-memory/v2\n", "clawfs-log-memory/v1"},
		{"unknown line", head + "oldest 3\nabc", `expected "newest <bytes>" or "fork <bytes> <bytes>"`},
		{"newest of two", head + fmt.Sprintf("newest %d %d\n%s%s", len(note), len(fork), note, fork), "expected \"newest"},
		{"fork of one", head + strings.Replace(newest(note), "newest", "fork", 1), "expected \"newest"},
		{"no checkpoint", head + "newest 0\n", "expected a length from 1 to 0"},
		{"length beyond the end", head + fmt.Sprintf("newest %d\n%s", len(note)+1, note), "expected a length from 1 to"},
		{"length before the end", head + fmt.Sprintf("newest %d\n%s", len(note)-1, note), "and a newline"},
		{"length with a zero before it", head + fmt.Sprintf("newest 0%d\n%s", len(note), note), "expected a length"},
		{"length with a sign", head + fmt.Sprintf("newest +%d\n%s", len(note), note), "expected a length"},
		{"length below zero", head + "newest -1\n" + note, "expected a length"},
		{"length of a hundred digits", head + "newest " + strings.Repeat("9", 100) + "\n" + note, "expected a length"},
		{"cut short in a line", head + "newest 12", "expected \"newest"},
		{"something after it", head + newest(note) + "\n", "log 2: expected"},
		{"not a checkpoint", head + newest("abc\n"), "log 1: checkpoint: "},
		{"a log twice", head + newest(note) + newest(note), `log 2: expected an origin after "log.example/models", got "log.example/models"`},
		{"not sorted", head + newest(note) + newest(other), `got "a.example"`},
		{"fork of one tree", head + pair(note, note), "expected a fork"},
		{"fork of two sizes", head + pair(note, w.note(t, 9)), "expected a fork"},
		{"fork of two logs", head + pair(note, other), "expected a fork"},
		{"257 logs", many, "expected at most 256 logs"},
		{"as long as may be", strings.Repeat(" ", tlog.MaxMemory), "clawfs-log-memory/v1"},
		{"too long", head + strings.Repeat(" ", tlog.MaxMemory), "expected at most 16777216 bytes"},
	}
	for _, tt := range tests {
		m, err := tlog.ParseMemory([]byte(tt.text))
		failed(t, tt.name, err, tt.want)
		if !m.IsZero() {
			t.Errorf("%s: a Memory beside the error", tt.name)
		}
	}
	for _, good := range []string{head, head + newest(note), head + newest(other) + pair(note, fork)} {
		if m, err := tlog.ParseMemory([]byte(good)); err != nil || m.IsZero() || string(m.Encode()) != good {
			t.Errorf("ParseMemory(%q) = %q, %v", good, m.Encode(), err)
		}
	}
}

func TestMemoryNote(t *testing.T) {
	w := newWorld(t)
	m := advance(t, tlog.NewMemory(), w.checkpoint(t, 7), nil)
	m = advance(t, m, w.checkpoint(t, 8), w.tree.consistency(t, 7, 8))
	if got := m.Note(origin); string(got) != w.note(t, 8) {
		t.Errorf("Note = %q, want %q", got, w.note(t, 8))
	}
	if got := m.Note("other.example"); got != nil {
		t.Errorf("Note of a log that was not seen = %q", got)
	}
}
