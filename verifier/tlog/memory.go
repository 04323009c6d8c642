package tlog

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	merkle "golang.org/x/mod/sumdb/tlog"
)

const (
	memoryHeader = "clawfs-log-memory/v1\n"
	// MaxMemory bounds the text of a Memory in bytes.
	MaxMemory = 16 << 20
	// maxRemembered bounds the logs of a Memory: policies come and go, and what
	// was seen of a log stays.
	maxRemembered = 256
)

// Memory is the newest checkpoint that was seen of each log, so that an older
// one, or one of another tree, is noticed. Of a log that showed two trees of one
// size it keeps both checkpoints, whose signatures are the evidence, and refuses
// the log from then on.
//
// A Memory is a value: its methods change nothing, and somebody else stores what
// Encode returns, before acting on it and where no store can be rolled back. The
// zero Memory refuses everything, because a lost one must not look like a new
// one.
type Memory struct {
	logs map[string]remembered // by origin; nil in the zero Memory
}

type remembered struct {
	newest head
	fork   *head // of the size of newest and another root
}

// NewMemory returns the Memory of somebody who has seen nothing yet: the first
// checkpoint of each log will be believed.
func NewMemory() Memory { return Memory{map[string]remembered{}} }

// IsZero reports whether m is no Memory.
func (m Memory) IsZero() bool { return m.logs == nil }

// Newest returns size and root of the newest checkpoint seen of a log. A proof
// from there to a newer one is what Advance wants.
func (m Memory) Newest(origin string) (size int64, root Hash, ok bool) {
	r, ok := m.logs[origin]
	return r.newest.size, r.newest.root, ok
}

// Note returns the newest checkpoint seen of a log with the signatures that were
// verified when Advance was given it, nil if none was seen.
func (m Memory) Note(origin string) []byte {
	if r, ok := m.logs[origin]; ok {
		return []byte(r.newest.note)
	}
	return nil
}

// Fork returns the two checkpoints of one size that a log signed, if it did.
func (m Memory) Fork(origin string) (first, second []byte, ok bool) {
	r := m.logs[origin]
	if r.fork == nil {
		return nil, nil, false
	}
	return []byte(r.newest.note), []byte(r.fork.note), true
}

// Origins returns the logs of which something was seen, sorted.
func (m Memory) Origins() []string { return slices.Sorted(maps.Keys(m.logs)) }

// Advance returns the Memory after c was seen. proof shows that the tree of c
// extends the one that is remembered; it is empty for the first checkpoint of a
// log and for one of the same size.
//
// The Memory that it returns is to be stored also with an error: of a fork it
// holds both checkpoints, and with any other refusal it is m. An older
// checkpoint, a fork, a log that forked before and a proof that does not fit are
// each a *Refusal. A proof that does not fit is no evidence of a fork, because
// anybody can write one.
func (m Memory) Advance(c Checkpoint, proof Consistency) (Memory, error) {
	r, seen, err := m.recall(c)
	switch {
	case err != nil:
		return m, err
	case !seen && len(proof) > 0:
		return m, refuse(ReasonConsistency, "log %s: expected an empty consistency proof, because nothing is remembered of the log, got %d hashes", clip(c.origin), len(proof))
	case !seen && len(m.logs) == maxRemembered:
		return m, fmt.Errorf("log %s: %d logs are remembered, which is the most", clip(c.origin), maxRemembered)
	case !seen:
		return m.with(remembered{newest: c.head}), nil
	case c.size < r.newest.size:
		return m, refuse(ReasonOlder, "log %s: expected a checkpoint of size %d or later, which was seen before, got size %d: ask the log for a proof of today", clip(c.origin), r.newest.size, c.size)
	case c.size == r.newest.size && c.root != r.newest.root:
		return m.with(remembered{r.newest, &c.head}), forked(r.newest, c.head)
	}
	if err := extends(r.newest, c.head, proof); err != nil {
		return m, err
	}
	if c.size == r.newest.size {
		return m, nil
	}
	return m.with(remembered{newest: c.head}), nil
}

// Extends returns nil if proof shows that the newest tree that was seen of the
// log of c extends the tree of c: that a checkpoint is old and no other log's.
// Its errors are those of Advance; a fork should be given to Advance, which
// keeps it.
func (m Memory) Extends(c Checkpoint, proof Consistency) error {
	r, seen, err := m.recall(c)
	switch {
	case err != nil:
		return err
	case !seen:
		return refuse(ReasonConsistency, "log %s: expected a log of which a checkpoint was seen before, got one that is new here", clip(c.origin))
	case c.size > r.newest.size:
		return refuse(ReasonConsistency, "log %s: expected a checkpoint of at most size %d, the newest that was seen, got size %d", clip(c.origin), r.newest.size, c.size)
	case c.size == r.newest.size && c.root != r.newest.root:
		return forked(r.newest, c.head)
	}
	return extends(c.head, r.newest, proof)
}

// recall returns what is remembered of the log of c, if it may be asked.
func (m Memory) recall(c Checkpoint) (r remembered, seen bool, err error) {
	switch {
	case m.IsZero():
		return r, false, errors.New("log memory: there is none, so nothing can be compared; if nothing was ever seen here, begin a new one")
	case c.IsZero():
		return r, false, errors.New("log memory: there is no checkpoint to compare")
	}
	r, seen = m.logs[c.origin]
	if r.fork != nil {
		return r, seen, forked(r.newest, *r.fork)
	}
	return r, seen, nil
}

func forked(first, second head) *Refusal {
	return refuse(ReasonFork, "log %s: expected one tree of size %d, got two, with the roots %v and %v, both signed: do not use this log, and show both checkpoints to its operator and its witnesses",
		clip(first.origin), first.size, first.root, second.root)
}

// extends checks that the tree of newer, which is not the smaller one, begins
// with that of older.
func extends(older, newer head, proof Consistency) error {
	if older.size == newer.size || older.size == 0 {
		// The caller compared the roots of trees of one size.
		if len(proof) > 0 {
			return refuse(ReasonConsistency, "log %s: expected an empty consistency proof from size %d to %d, got %d hashes", clip(newer.origin), older.size, newer.size, len(proof))
		}
		return nil
	}
	if err := merkle.CheckTree(merkle.TreeProof(proof), newer.size, newer.root, older.size, older.root); err != nil {
		return refuse(ReasonConsistency, "log %s: expected a consistency proof from size %d, root %v, to size %d, root %v, got %d hashes that lead elsewhere: ask the log for the proof once more; if it never fits, the log shows two trees",
			clip(newer.origin), older.size, older.root, newer.size, newer.root, len(proof))
	}
	return nil
}

// with returns m with another entry for one log.
func (m Memory) with(r remembered) Memory {
	logs := maps.Clone(m.logs)
	logs[r.newest.origin] = r
	return Memory{logs}
}

// Encode returns the text that ParseMemory reads, nil for the zero Memory.
func (m Memory) Encode() []byte {
	if m.IsZero() {
		return nil
	}
	b := []byte(memoryHeader)
	for _, origin := range m.Origins() {
		r := m.logs[origin]
		if r.fork == nil {
			b = fmt.Appendf(b, "newest %d\n%s", len(r.newest.note), r.newest.note)
		} else {
			b = fmt.Appendf(b, "fork %d %d\n%s%s", len(r.newest.note), len(r.fork.note), r.newest.note, r.fork.note)
		}
	}
	return b
}

// ParseMemory reads what Encode wrote. It checks the form of the checkpoints and
// not who signed them: a policy that has dropped a key must not make a verifier
// forget. Whoever can write the text can also delete it, so it belongs where
// only the verifier writes.
func ParseMemory(text []byte) (Memory, error) {
	m, err := parseMemory(text)
	if err != nil {
		return Memory{}, fmt.Errorf("log memory: %w", err)
	}
	return m, nil
}

func parseMemory(text []byte) (Memory, error) {
	if len(text) > MaxMemory {
		return Memory{}, fmt.Errorf("expected at most %d bytes, got %d", MaxMemory, len(text))
	}
	rest, ok := bytes.CutPrefix(text, []byte(memoryHeader))
	if !ok {
		return Memory{}, fmt.Errorf("expected the line %q first, got %q", memoryHeader, clip(string(text)))
	}
	m := NewMemory()
	last := ""
	for len(rest) > 0 {
		if len(m.logs) == maxRemembered {
			return Memory{}, fmt.Errorf("expected at most %d logs, got more", maxRemembered)
		}
		r, after, err := parseRemembered(rest)
		if err != nil {
			return Memory{}, fmt.Errorf("log %d: %w", len(m.logs)+1, err)
		}
		if r.newest.origin <= last {
			return Memory{}, fmt.Errorf("log %d: expected an origin after %q, got %q", len(m.logs)+1, clip(last), clip(r.newest.origin))
		}
		last, rest = r.newest.origin, after
		m.logs[last] = r
	}
	return m, nil
}

func parseRemembered(b []byte) (r remembered, rest []byte, err error) {
	line, rest, ok := bytes.Cut(b, []byte("\n"))
	words := strings.Split(string(line[:min(len(line), 64)]), " ")
	if !ok || (words[0] != "newest" || len(words) != 2) && (words[0] != "fork" || len(words) != 3) {
		return r, nil, fmt.Errorf(`expected "newest <bytes>" or "fork <bytes> <bytes>", got %q`, clip(string(line)))
	}
	var heads []head
	for _, w := range words[1:] {
		n, err := strconv.Atoi(w)
		if err != nil || n < 1 || n > len(rest) || strconv.Itoa(n) != w {
			return r, nil, fmt.Errorf("expected a length from 1 to %d, got %q", len(rest), clip(w))
		}
		h, err := parseHead(rest[:n])
		if err != nil {
			return r, nil, err
		}
		heads, rest = append(heads, h), rest[n:]
	}
	r.newest = heads[0]
	if len(heads) == 2 {
		r.fork = &heads[1]
		if a, b := r.newest, *r.fork; a.origin != b.origin || a.size != b.size || a.root == b.root {
			return r, nil, fmt.Errorf("expected a fork: one origin and size with two roots, got %q size %d root %v and %q size %d root %v",
				clip(a.origin), a.size, a.root, clip(b.origin), b.size, b.root)
		}
	}
	return r, rest, nil
}
