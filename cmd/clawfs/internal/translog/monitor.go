package translog

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	monitorFormat = "clawfs-log-monitor/v1"
	// MaxState bounds the text of a State in bytes.
	MaxState = 64 << 20
	// maxUnknown bounds the entries that a State keeps.
	maxUnknown = 4096
)

// State is what a monitor of one key keeps between two looks at a log. It belongs
// where only the monitor writes. NewState and ParseState make one.
type State struct {
	Format string `json:"format"` // "clawfs-log-monitor/v1"
	// Key is whose entries are looked for.
	Key dsse.KeyID `json:"key"`
	// Entries is how many entries of the log were looked at.
	Entries int64 `json:"entries"`
	// Memory is the text of a tlog.Memory: the newest checkpoint that was seen,
	// or the two of one size that a log signed.
	Memory string `json:"memory"`
	// Split are two checkpoints that the log signed of which the newer one does
	// not extend the older one, as the log's own tiles show.
	Split *Split `json:"split,omitempty"`
	// Unknown are the entries under the key that were not among the known ones.
	Unknown []Finding `json:"unknown"`
}

// Split is the evidence that a log shows two trees.
type Split struct {
	Older string `json:"older"` // a checkpoint
	Newer string `json:"newer"` // a checkpoint
}

// Finding is an entry under a key that the monitor's owner did not make.
type Finding struct {
	Index   int64           `json:"index"`
	Kind    tlog.Kind       `json:"kind"`
	Payload hashpipe.Digest `json:"payload"`
	Model   string          `json:"model,omitempty"`
	// Signed is what the log shows for the entry: EnvelopeSigned, EnvelopeUnsigned
	// or EnvelopeMissing.
	Signed string `json:"signed"`
}

// The values of Finding.Signed.
const (
	// EnvelopeSigned: the key did sign it, so somebody else has the key.
	EnvelopeSigned = "signed"
	// EnvelopeUnsigned: the key did not sign it, so the log took what it must not.
	EnvelopeUnsigned = "unsigned"
	// EnvelopeMissing: the log does not show the envelope.
	EnvelopeMissing = "missing"
)

// NewState returns the State of a monitor that has seen nothing.
func NewState(key dsse.KeyID) State {
	return State{Format: monitorFormat, Key: key, Memory: string(tlog.NewMemory().Encode()), Unknown: []Finding{}}
}

// ParseState reads what Encode wrote, for the monitor of a key.
func ParseState(text []byte, key dsse.KeyID) (State, error) {
	if len(text) > MaxState {
		return State{}, fmt.Errorf("monitor state: expected at most %d bytes, got %d", MaxState, len(text))
	}
	var s State
	if err := json.Unmarshal(text, &s, json.RejectUnknownMembers(true)); err != nil {
		return State{}, fmt.Errorf("monitor state: %w", err)
	}
	switch {
	case s.Format != monitorFormat:
		return State{}, fmt.Errorf("monitor state: expected format %q, got %q", monitorFormat, clip(s.Format))
	case s.Key != key:
		return State{}, fmt.Errorf("monitor state: it is of key %s, and the monitor is of key %s", clip(string(s.Key)), key)
	case s.Entries < 0:
		return State{}, fmt.Errorf("monitor state: entries: expected at least 0, got %d", s.Entries)
	case s.Unknown == nil:
		return State{}, errors.New("monitor state: unknown is missing")
	}
	if _, err := tlog.ParseMemory([]byte(s.Memory)); err != nil {
		return State{}, fmt.Errorf("monitor state: %w", err)
	}
	return s, nil
}

// Encode returns the text that ParseState reads.
func (s State) Encode() ([]byte, error) {
	b, err := json.Marshal(s, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		return nil, fmt.Errorf("monitor state: %w", err)
	}
	return append(b, '\n'), nil
}

// Look is what one look at a log found.
type Look struct {
	Origin  string `json:"origin"`
	Size    int64  `json:"size"`    // of the log
	Looked  int64  `json:"looked"`  // entries that no look before had seen
	Own     int64  `json:"own"`     // of these, entries under the key
	Foreign int64  `json:"foreign"` // of these, records that are no leaves of clawfs
	// Unknown are all entries under the key that are not among the known ones, of
	// this look and of those before.
	Unknown []Finding `json:"unknown"`
}

// SplitError says that a log signed two checkpoints of which the newer one does
// not extend the older one. The State holds both.
type SplitError struct{ Detail string }

// Error returns the detail.
func (e *SplitError) Error() string { return e.Detail }

// Monitor looks at what a log holds beyond the state: it checks that the newest
// checkpoint extends the one that is remembered, every new record against it, and
// which of those under key have a payload that is not known.
//
// The State that it returns is to be stored also with an error. A log that shows
// two trees is a *tlog.Refusal of ReasonFork or a *SplitError, now and at every
// later look.
func (l *Log) Monitor(ctx context.Context, s State, key dsse.PublicKey, known map[hashpipe.Digest]bool) (State, Look, error) {
	if s.Split != nil {
		return s, Look{}, split(s.Split)
	}
	memory, err := tlog.ParseMemory([]byte(s.Memory))
	if err != nil {
		return s, Look{}, fmt.Errorf("monitor state: %w", err)
	}
	c, err := l.Checkpoint(ctx)
	if err != nil {
		return s, Look{}, err
	}
	proof, err := l.extends(ctx, memory, c)
	var two *SplitError
	if errors.As(err, &two) {
		s.Split = &Split{Older: string(memory.Note(c.Origin())), Newer: string(c.Note())}
		return s, Look{}, split(s.Split)
	}
	if err != nil {
		return s, Look{}, err
	}
	memory, err = memory.Advance(c, proof)
	s.Memory = string(memory.Encode())
	if err != nil {
		return s, Look{}, err
	}
	look := Look{Origin: c.Origin(), Size: c.Size()}
	s.Unknown = slices.DeleteFunc(slices.Clone(s.Unknown), func(f Finding) bool { return known[f.Payload] })
	err = l.Entries(ctx, c, s.Entries, func(index int64, record []byte) error {
		leaf, err := tlog.ParseLeaf(record)
		switch {
		case err != nil:
			look.Foreign++
		case leaf.Signer() == key.ID():
			look.Own++
			if !known[leaf.Payload()] {
				if len(s.Unknown) == maxUnknown {
					return fmt.Errorf("%d unknown entries are under the key, which is the most that a state holds", maxUnknown)
				}
				signed, err := l.signed(ctx, leaf, key)
				if err != nil {
					return err
				}
				s.Unknown = append(s.Unknown, Finding{index, leaf.Kind(), leaf.Payload(), leaf.Model(), signed})
			}
		}
		look.Looked++
		s.Entries = index + 1
		return nil
	})
	if s.Unknown == nil {
		s.Unknown = []Finding{}
	}
	look.Unknown = s.Unknown
	return s, look, err
}

// extends returns the proof that c extends what is remembered. A tree that does
// not is a *SplitError: the log's tiles, checked against the root that it signed,
// have another beginning.
func (l *Log) extends(ctx context.Context, memory tlog.Memory, c tlog.Checkpoint) (tlog.Consistency, error) {
	size, root, ok := memory.Newest(c.Origin())
	if !ok || size >= c.Size() || size == 0 {
		return nil, nil // Advance compares
	}
	got, err := l.Root(ctx, c, size)
	if err != nil {
		return nil, err
	}
	if got != root {
		return nil, &SplitError{}
	}
	p, err := merkle.ProveTree(c.Size(), size, l.hashes(ctx, c))
	if err != nil {
		return nil, fmt.Errorf("log: proving size %d from %d: %w", c.Size(), size, err)
	}
	return tlog.Consistency(p), nil
}

func split(s *Split) *SplitError {
	return &SplitError{fmt.Sprintf("the log signed two checkpoints of which the newer one does not extend the older one: do not use this log, and show both to its operator and its witnesses:\n%s\n%s", s.Older, s.Newer)}
}

// signed reports whether the log's envelope of a leaf carries the key's
// signature.
func (l *Log) signed(ctx context.Context, leaf tlog.Leaf, key dsse.PublicKey) (string, error) {
	data, err := l.Envelope(ctx, leaf)
	if isMissing(err) {
		return EnvelopeMissing, nil
	}
	if err != nil {
		return "", err
	}
	e, err := dsse.Parse(data)
	if err != nil {
		return "", err
	}
	if _, _, err := e.Verify(dsse.PayloadType, []dsse.PublicKey{key}, 1); err != nil {
		return EnvelopeUnsigned, nil
	}
	return EnvelopeSigned, nil
}
