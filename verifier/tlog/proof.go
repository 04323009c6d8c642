package tlog

import (
	"bytes"
	"fmt"
	"strings"
)

// MaxProof bounds the text of a proof in bytes: a checkpoint and 64 hashes of 45
// bytes below two lines.
const MaxProof = MaxCheckpoint + maxPath*45 + 64

const proofHeader = "c2sp.org/tlog-proof@v1\n"

// Proof is the text of a .tlog-proof file in Go's shape. Nothing in it is
// checked but its form; Verify believes one.
type Proof struct {
	Index      int64  // of the leaf, from 0
	Path       []Hash // from the leaf's sibling to the root's child
	Checkpoint []byte // a signed note, to its last newline
}

// ParseProof reads a proof. Its checkpoint has the form of one, whoever signed
// it. The error is a *Refusal.
func ParseProof(text []byte) (Proof, error) {
	p, err := parseProof(text)
	if err != nil {
		return Proof{}, refuse(ReasonMalformed, "log proof: %v", err)
	}
	return p, nil
}

func parseProof(text []byte) (Proof, error) {
	if len(text) > MaxProof {
		return Proof{}, fmt.Errorf("expected at most %d bytes, got %d", MaxProof, len(text))
	}
	rest, ok := bytes.CutPrefix(text, []byte(proofHeader))
	if !ok {
		return Proof{}, fmt.Errorf("expected the line %q first, got %q", proofHeader, clip(string(text)))
	}
	if bytes.HasPrefix(rest, []byte("extra ")) {
		return Proof{}, fmt.Errorf("expected no extra line, because nothing authenticates it, got %q", clip(string(rest)))
	}
	line, rest, ok := bytes.Cut(rest, []byte("\n"))
	index, named := strings.CutPrefix(string(line), "index ")
	if !ok || !named {
		return Proof{}, fmt.Errorf("expected a line \"index <number>\" second, got %q", clip(string(line)))
	}
	var p Proof
	var err error
	if p.Index, err = parseDecimal(index); err != nil {
		return Proof{}, fmt.Errorf("index: %w", err)
	}
	// The hashes end at the first empty line, which is at once if there are none.
	path, ok := []byte(nil), bytes.HasPrefix(rest, []byte("\n"))
	if ok {
		rest = rest[1:]
	} else if i := bytes.Index(rest, []byte("\n\n")); i >= 0 {
		path, rest, ok = rest[:i+1], rest[i+2:], true
	}
	if !ok {
		return Proof{}, fmt.Errorf("expected an empty line and a checkpoint after the hashes, got %q", clip(string(rest)))
	}
	if p.Path, err = parseHashes(path); err != nil {
		return Proof{}, err
	}
	if _, err := parseHead(rest); err != nil {
		return Proof{}, err
	}
	p.Checkpoint = bytes.Clone(rest)
	return p, nil
}

// Encode returns the text that ParseProof reads, or says why it would not.
func (p Proof) Encode() ([]byte, error) {
	b, err := appendHashes(fmt.Appendf(nil, "%sindex %d\n", proofHeader, p.Index), p.Path)
	if err != nil {
		return nil, fmt.Errorf("log proof: %w", err)
	}
	b = append(append(b, '\n'), p.Checkpoint...)
	if _, err := ParseProof(b); err != nil {
		return nil, err
	}
	return b, nil
}

// Consistency is a proof of RFC 6962 section 2.1.2 that one tree is the
// beginning of another. Which trees is said elsewhere. Between equal trees, and
// from an empty one, it is empty.
type Consistency []Hash

// ParseConsistency reads lines of base64, one hash each. No bytes are the empty
// proof. The error is a *Refusal.
func ParseConsistency(text []byte) (Consistency, error) {
	hashes, err := parseHashes(text)
	if err != nil {
		return nil, refuse(ReasonMalformed, "consistency proof: %v", err)
	}
	return hashes, nil
}

// Encode returns the text that ParseConsistency reads. More hashes than any tree
// needs are an error.
func (c Consistency) Encode() ([]byte, error) {
	b, err := appendHashes(nil, c)
	if err != nil {
		return nil, fmt.Errorf("consistency proof: %w", err)
	}
	return b, nil
}
