package tlog

import (
	"errors"
	"fmt"
	"strings"

	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// MaxLeaf bounds the text of a leaf in bytes. Logs take at most 65,535.
const MaxLeaf = 1024

const (
	leafHeader = "clawfs-leaf/v1\n"
	// maxModel is the length of the longest model that a ledger can name.
	maxModel = 484
)

// Kind is what the envelope behind a leaf holds.
type Kind string

// The kinds. A leaf of any other is refused.
const (
	KindSBA        Kind = "sba"
	KindCapability Kind = "capability"
	KindRevocation Kind = "revocation"
	KindPolicy     Kind = "policy"
	KindStoreHead  Kind = "store-head"
)

func (k Kind) check(model string) error {
	switch k {
	case KindSBA, KindCapability:
		if model == "" {
			return fmt.Errorf("a leaf of kind %s needs a model", k)
		}
	case KindRevocation, KindPolicy, KindStoreHead:
		if model != "" {
			return fmt.Errorf("a leaf of kind %s has no model, got %q", k, clip(model))
		}
	default:
		return fmt.Errorf("expected kind %s, %s, %s, %s or %s, got %q", KindSBA, KindCapability, KindRevocation, KindPolicy, KindStoreHead, clip(string(k)))
	}
	if len(model) > maxModel {
		return fmt.Errorf("model: expected at most %d bytes, got %d", maxModel, len(model))
	}
	if i := strings.IndexFunc(model, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("._-/", r)
	}); i >= 0 {
		return fmt.Errorf("model: expected a-z, 0-9 and ._-/ only, got %q at byte %d", clip(model[i:]), i)
	}
	return nil
}

// Leaf is the record by which a log knows an envelope. It is a claim: that there
// is one says nothing about its being in a log or signed by anybody. The zero
// Leaf is in no log.
type Leaf struct {
	kind    Kind
	payload hashpipe.Digest
	pae     hashpipe.Digest
	signer  dsse.KeyID
	model   string
}

// LeafOf makes the leaf of an envelope that carries payload under
// dsse.PayloadType. signer is the key that vouches for the payload: of a ledger
// the publisher that it names, whose signature the caller has checked. It takes
// the payload and not its digests, so that a leaf is always of bytes in hand.
func LeafOf(kind Kind, payload []byte, signer dsse.PublicKey, model string) (Leaf, error) {
	if signer.IsZero() {
		return Leaf{}, errors.New("log leaf: there is no signer")
	}
	return UnverifiedLeafOf(kind, payload, signer.ID(), model)
}

// UnverifiedLeafOf is LeafOf for whoever knows only the id of the key, as a
// payload says it of itself: to look for an entry, never to believe one.
func UnverifiedLeafOf(kind Kind, payload []byte, signer dsse.KeyID, model string) (Leaf, error) {
	if len(payload) == 0 {
		return Leaf{}, errors.New("log leaf: the payload is empty")
	}
	if _, err := hashpipe.ParseDigest(string(signer)); err != nil {
		return Leaf{}, fmt.Errorf("log leaf: signer: %w", err)
	}
	if err := kind.check(model); err != nil {
		return Leaf{}, fmt.Errorf("log leaf: %w", err)
	}
	return Leaf{
		kind:    kind,
		payload: hashpipe.SumBytes(payload).Claim(),
		pae:     hashpipe.SumBytes(dsse.PAE(dsse.PayloadType, payload)).Claim(),
		signer:  signer,
		model:   model,
	}, nil
}

// ParseLeaf reads a record of a log, to show or index what the log holds. It
// refuses everything that Encode does not write.
func ParseLeaf(text []byte) (Leaf, error) {
	l, err := parseLeaf(text)
	if err != nil {
		return Leaf{}, fmt.Errorf("log leaf: %w", err)
	}
	return l, nil
}

func parseLeaf(text []byte) (Leaf, error) {
	if len(text) > MaxLeaf {
		return Leaf{}, fmt.Errorf("expected at most %d bytes, got %d", MaxLeaf, len(text))
	}
	rest, ok := strings.CutPrefix(string(text), leafHeader)
	if !ok {
		return Leaf{}, fmt.Errorf("expected the line %q first, got %q", leafHeader, clip(string(text)))
	}
	next := func(field string) (value string, err error) {
		line, after, ok := strings.Cut(rest, "\n")
		value, named := strings.CutPrefix(line, field+" ")
		if !ok || !named {
			return "", fmt.Errorf("expected a line %q with a value, got %q", field, clip(rest))
		}
		rest = after
		return value, nil
	}
	digest := func(field string) (hashpipe.Digest, error) {
		value, err := next(field)
		if err != nil {
			return hashpipe.Digest{}, err
		}
		d, err := hashpipe.ParseDigest(value)
		if err != nil {
			return hashpipe.Digest{}, fmt.Errorf("%s: %w", field, err)
		}
		return d, nil
	}
	kind, err := next("kind")
	if err != nil {
		return Leaf{}, err
	}
	l := Leaf{kind: Kind(kind)}
	if l.payload, err = digest("payload"); err != nil {
		return Leaf{}, err
	}
	if l.pae, err = digest("pae"); err != nil {
		return Leaf{}, err
	}
	signer, err := digest("signer")
	if err != nil {
		return Leaf{}, err
	}
	l.signer = dsse.KeyID(signer.String())
	if rest != "" {
		if l.model, err = next("model"); err != nil {
			return Leaf{}, err
		}
		if l.model == "" {
			return Leaf{}, errors.New("model: it is empty")
		}
	}
	if rest != "" {
		return Leaf{}, fmt.Errorf("expected nothing after the last line, got %q", clip(rest))
	}
	return l, l.kind.check(l.model)
}

// IsZero reports whether l is no leaf.
func (l Leaf) IsZero() bool { return l == Leaf{} }

// Encode returns the text of the leaf, nil for the zero Leaf.
func (l Leaf) Encode() []byte {
	if l.IsZero() {
		return nil
	}
	text := fmt.Sprintf("%skind %s\npayload %s\npae %s\nsigner %s\n", leafHeader, l.kind, l.payload, l.pae, l.signer)
	if l.model != "" {
		text += fmt.Sprintf("model %s\n", l.model)
	}
	return []byte(text)
}

// Hash returns the leaf hash of RFC 6962: SHA-256 of a zero byte and the text.
func (l Leaf) Hash() Hash { return merkle.RecordHash(l.Encode()) }

// Kind returns what the envelope holds.
func (l Leaf) Kind() Kind { return l.kind }

// Payload returns the SHA-256 of the envelope's payload: of a ledger, the
// identity of its SBA, under which the log keeps the envelope.
func (l Leaf) Payload() hashpipe.Digest { return l.payload }

// PAE returns the SHA-256 of what the signatures of the envelope are over.
func (l Leaf) PAE() hashpipe.Digest { return l.pae }

// Signer returns the id of the key that vouches for the payload.
func (l Leaf) Signer() dsse.KeyID { return l.signer }

// Model returns the model that the envelope is about, "" if it is about none.
func (l Leaf) Model() string { return l.model }
