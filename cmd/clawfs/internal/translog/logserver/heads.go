package logserver

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// The heads of one store under one key only go forward: a state directory that was
// put back is told so when it hands in its head. It counts for each key by itself,
// so that nobody can keep another one's store from being logged.

// headOf is whose heads are compared.
type headOf struct {
	signer dsse.KeyID
	store  string
}

// knownHead is the furthest head that was admitted, and the payload that says so.
type knownHead struct {
	head    capstore.Head
	payload hashpipe.Digest
}

// learnHead takes a head that is in the tree, from its envelope. Called with mu
// held.
func (l *Log) learnHead(leaf tlog.Leaf) error {
	if leaf.Kind() != tlog.KindStoreHead {
		return nil
	}
	path := filepath.Join(l.tree(), filepath.FromSlash(translog.BlobPath(leaf.Payload())))
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("the envelope of a store's head: %w", err)
	}
	e, err := dsse.Parse(text)
	if err != nil {
		return fmt.Errorf("the envelope of a store's head: %s: %w", path, err)
	}
	if got := hashpipe.SumBytes(e.UnverifiedPayload()).Claim(); got != leaf.Payload() {
		return fmt.Errorf("the envelope of a store's head: %s: expected the payload %s, got %s", path, leaf.Payload(), got)
	}
	h, _, err := capstore.UnverifiedHead(e.UnverifiedPayload())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	of := headOf{leaf.Signer(), h.Store}
	if h.Sequence > l.heads[of].head.Sequence {
		l.heads[of] = knownHead{h, leaf.Payload()}
	}
	return nil
}

// nextHead refuses a head that is not further than those before it, and remembers
// it, also if it cannot be written then: the newest one may be handed in again. An
// older one is refused also if it is in the tree, because that is what a machine that
// was put back hands in; clawfs log prove has a proof of it. leaf is of envelope,
// whose signature was checked. Called with mu held.
func (l *Log) nextHead(leaf tlog.Leaf, envelope []byte) error {
	if leaf.Kind() != tlog.KindStoreHead {
		return nil
	}
	e, err := dsse.Parse(envelope)
	if err != nil {
		return malformed(err)
	}
	h, _, err := capstore.UnverifiedHead(e.UnverifiedPayload())
	if err != nil {
		return malformed(err)
	}
	of := headOf{leaf.Signer(), h.Store}
	k := l.heads[of]
	switch {
	case h.Sequence < k.head.Sequence, h.Newest.Before(k.head.Newest):
		return backward("store %s goes back: its head here is fact %d of %s (payload %s), and this one is fact %d of %s: its state directory was put back to an older copy, or this is an old file; next: clawfs store verify --head FILE with the envelope %s of this log",
			h.Store, k.head.Sequence, k.head.Newest.Format(time.RFC3339), k.payload, h.Sequence, h.Newest.Format(time.RFC3339), translog.BlobPath(k.payload))
	case h.Sequence == k.head.Sequence && h != k.head:
		return backward("store %s has two histories: fact %d has the hash %s here (payload %s), and %s in this head: its state directory was put back to an older copy, and went on from there; next: clawfs store verify --head FILE with the envelope %s of this log",
			h.Store, h.Sequence, k.head.Hash, k.payload, h.Hash, translog.BlobPath(k.payload))
	}
	l.heads[of] = knownHead{h, leaf.Payload()}
	return nil
}

func backward(format string, args ...any) *Refusal {
	return &Refusal{Backward: true, Detail: fmt.Sprintf(format, args...)}
}
