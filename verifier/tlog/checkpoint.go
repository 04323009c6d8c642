package tlog

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/verifier/dsse"
)

const (
	// MaxCheckpoint bounds a checkpoint and its signatures in bytes. 16
	// post-quantum signatures of 5 kB, which we ignore, have their place in it.
	MaxCheckpoint = 128 << 10
	// maxCheckpointText bounds what is signed: three lines and extensions.
	maxCheckpointText = 4096
	maxSignatures     = 64
	signaturePrefix   = "— "
)

// Checkpoint is a size and root that a log of the policy signed and a quorum of
// its witnesses cosigned. Only Policy.Checkpoint and Verify make one. The zero
// Checkpoint is none.
type Checkpoint struct {
	head
	cosignatures []Cosignature
}

// Cosignature says when a witness saw a checkpoint as the newest one of its log.
type Cosignature struct {
	Witness string // the name that the policy gives it
	Time    time.Time
}

// IsZero reports whether c is no checkpoint.
func (c Checkpoint) IsZero() bool { return c.origin == "" }

// Origin returns the name of the log.
func (c Checkpoint) Origin() string { return c.origin }

// Size returns the number of leaves.
func (c Checkpoint) Size() int64 { return c.size }

// Root returns the root of the tree of these leaves.
func (c Checkpoint) Root() Hash { return c.root }

// Note returns the text of the checkpoint with those signatures that were
// verified, in their order.
func (c Checkpoint) Note() []byte { return []byte(c.note) }

// Cosignatures returns the cosignatures that were verified, also beyond the
// quorum, in the order of the policy's witnesses.
func (c Checkpoint) Cosignatures() []Cosignature { return slices.Clone(c.cosignatures) }

// Checkpoint believes a signed note if it is a checkpoint of a log of the
// policy, signed by that log and by a quorum of witnesses. What the note does
// not show is a *Refusal; the zero Policy is another error.
func (p Policy) Checkpoint(signed []byte) (Checkpoint, error) {
	if p.IsZero() {
		return Checkpoint{}, errors.New("checkpoint: there is no log policy to check it with")
	}
	h, err := parseHead(signed)
	if err != nil {
		return Checkpoint{}, refuse(ReasonMalformed, "%v", err)
	}
	origins := p.origins()
	if !slices.Contains(origins, h.origin) {
		return Checkpoint{}, refuse(ReasonOrigin, "checkpoint: expected a log of the policy (%s), got %+q", clip(strings.Join(origins, ", ")), clip(h.origin))
	}
	keys := known(p.keys())
	n, err := note.Open(signed, keys)
	var invalid *note.InvalidSignatureError
	var unverified *note.UnverifiedNoteError
	switch {
	case errors.As(err, &invalid):
		return Checkpoint{}, refuse(ReasonSignature, "checkpoint of %s: expected a signature by key %s+%08x, got one that does not verify", clip(h.origin), clip(invalid.Name), invalid.Hash)
	case errors.As(err, &unverified):
		n = unverified.Note // without Sigs, so that the log's is missed below
	case err != nil:
		return Checkpoint{}, refuse(ReasonMalformed, "checkpoint: %v", err)
	}
	signers := make(map[dsse.PublicKey]note.Signature)
	byLog := false
	for _, s := range n.Sigs {
		if k, ok := keys.find(s.Name, s.Hash); ok {
			signers[k.key] = s
			byLog = byLog || k.kind == typeLog && k.name == h.origin
		}
	}
	if !byLog {
		return Checkpoint{}, refuse(ReasonSignature, "checkpoint of %s: expected a signature by the log's own key, got %s", clip(h.origin), clip(h.signers()))
	}
	c := Checkpoint{head: h}
	for _, w := range p.parties {
		s, ok := signers[w.key.key]
		if w.isGroup() || !ok {
			continue
		}
		t, err := cosignedAt(s)
		if err != nil {
			return Checkpoint{}, err
		}
		c.cosignatures = append(c.cosignatures, Cosignature{w.name, t})
	}
	if !p.satisfied(func(k dsse.PublicKey) bool { _, ok := signers[k]; return ok }) {
		return Checkpoint{}, refuse(ReasonQuorum, "checkpoint of %s: expected cosignatures of %s, got %s", clip(h.origin), clip(p.describe()), clip(c.witnesses()))
	}
	// What nobody verified must not be read or kept by anybody.
	c.signatures = slices.DeleteFunc(slices.Clone(h.signatures), func(s signature) bool {
		_, ok := keys.find(s.name, s.id)
		return !ok
	})
	c.note = c.print()
	return c, nil
}

func (c Checkpoint) witnesses() string {
	if len(c.cosignatures) == 0 {
		return "none"
	}
	var names []string
	for _, s := range c.cosignatures {
		names = append(names, s.Witness)
	}
	return strings.Join(names, ", ")
}

// cosignedAt reads the time of a verified cosignature.
func cosignedAt(s note.Signature) (time.Time, error) {
	b, err := decodeBase64(s.Base64)
	if err != nil || len(b) < idSize+timeSize {
		return time.Time{}, fmt.Errorf("cosignature of %s: it has no time", clip(s.Name))
	}
	return time.Unix(int64(binary.BigEndian.Uint64(b[idSize:])), 0).UTC(), nil
}

// known are the keys whose signatures count; it is a note.Verifiers.
type known []VerifierKey

func (keys known) find(name string, id uint32) (VerifierKey, bool) {
	for _, k := range keys {
		if k.name == name && k.id == id {
			return k, true
		}
	}
	return VerifierKey{}, false
}

// Verifier returns the key of that name and id, or an UnknownVerifierError.
func (keys known) Verifier(name string, id uint32) (note.Verifier, error) {
	k, ok := keys.find(name, id)
	if !ok {
		return nil, &note.UnknownVerifierError{Name: name, KeyHash: id}
	}
	return k, nil
}

// head is a checkpoint as it is written, whoever signed it.
type head struct {
	origin     string
	size       int64
	root       Hash
	extensions []string
	signatures []signature
	note       string // all of it
}

const idSize = 4

// signature is one line below a note.
type signature struct {
	name string
	id   uint32
	rest []byte // what comes after the id
}

// parseHead reads the form of a checkpoint. It refuses what note.Open lets
// through: base64 with trailing bits, a key that signs twice (of whose second
// signature note.Open does not look at a byte), and much of both.
func parseHead(signed []byte) (head, error) {
	h, err := parseNote(signed)
	if err != nil {
		return head{}, fmt.Errorf("checkpoint: %w", err)
	}
	return h, nil
}

func parseNote(signed []byte) (head, error) {
	if len(signed) > MaxCheckpoint {
		return head{}, fmt.Errorf("expected at most %d bytes, got %d", MaxCheckpoint, len(signed))
	}
	h := head{note: string(signed)}
	if !utf8.ValidString(h.note) {
		return head{}, errors.New("it is not UTF-8")
	}
	if i := strings.IndexFunc(h.note, func(r rune) bool { return r < 0x20 && r != '\n' }); i >= 0 {
		return head{}, fmt.Errorf("expected no control character but newlines, got %q at byte %d", h.note[i], i)
	}
	i := strings.LastIndex(h.note, "\n\n")
	if i < 0 {
		return head{}, fmt.Errorf("expected an empty line and signatures after the text, got %q", clip(h.note))
	}
	if i+1 > maxCheckpointText {
		return head{}, fmt.Errorf("expected a text of at most %d bytes, got %d", maxCheckpointText, i+1)
	}
	if err := h.parseText(h.note[:i]); err != nil {
		return head{}, err
	}
	for line := range strings.Lines(h.note[i+2:]) {
		if len(h.signatures) == maxSignatures {
			return head{}, fmt.Errorf("expected at most %d signatures, got more", maxSignatures)
		}
		s, err := parseSignature(line)
		if err != nil {
			return head{}, fmt.Errorf("signature %d: %w", len(h.signatures)+1, err)
		}
		if slices.ContainsFunc(h.signatures, func(o signature) bool { return o.name == s.name && o.id == s.id }) {
			return head{}, fmt.Errorf("signature %d: key %s+%08x signs twice", len(h.signatures)+1, clip(s.name), s.id)
		}
		h.signatures = append(h.signatures, s)
	}
	if len(h.signatures) == 0 {
		return head{}, errors.New("expected a signature after the empty line, got none")
	}
	return h, nil
}

// parseText reads the text without its last newline.
func (h *head) parseText(text string) (err error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 3 {
		return fmt.Errorf("expected lines of origin, size and root, got %q", clip(text))
	}
	if slices.Contains(lines, "") {
		return fmt.Errorf("expected no empty line in the text, got %q", clip(text))
	}
	h.origin, h.extensions = lines[0], lines[3:]
	if h.size, err = parseDecimal(lines[1]); err != nil {
		return fmt.Errorf("size: %w", err)
	}
	if h.root, err = parseHash(lines[2]); err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if empty, _ := merkle.TreeHash(0, nil); h.size == 0 && h.root != empty {
		return &emptyRootError{empty, h.root}
	}
	return nil
}

// emptyRootError says that a tree without leaves has the root of one with some.
type emptyRootError struct{ want, got Hash }

func (e *emptyRootError) Error() string {
	return fmt.Sprintf("root: expected %v for an empty log, got %v", e.want, e.got)
}

func parseSignature(line string) (signature, error) {
	text, ended := strings.CutSuffix(line, "\n")
	body, ok := strings.CutPrefix(text, signaturePrefix)
	name, encoded, ok2 := strings.Cut(body, " ")
	if !ended || !ok || !ok2 {
		return signature{}, fmt.Errorf("expected \"%s<key name> <base64>\" and a newline, got %q", signaturePrefix, clip(line))
	}
	if err := checkName(name); err != nil {
		return signature{}, fmt.Errorf("key name: %w", err)
	}
	b, err := decodeBase64(encoded)
	if err != nil {
		return signature{}, err
	}
	if len(b) <= idSize {
		return signature{}, fmt.Errorf("expected a key id and a signature, got %d bytes", len(b))
	}
	return signature{name, binary.BigEndian.Uint32(b), b[idSize:]}, nil
}

// text writes what is signed.
func (h head) text() string {
	text := fmt.Sprintf("%s\n%d\n%v\n", h.origin, h.size, h.root)
	for _, line := range h.extensions {
		text += line + "\n"
	}
	return text
}

// print writes the note from its parts.
func (h head) print() string {
	note := h.text() + "\n"
	for _, s := range h.signatures {
		note += s.line()
	}
	return note
}

func (s signature) line() string {
	raw := append(binary.BigEndian.AppendUint32(nil, s.id), s.rest...)
	return fmt.Sprintf("%s%s %s\n", signaturePrefix, s.name, base64.StdEncoding.EncodeToString(raw))
}

// signers lists who is said to have signed.
func (h head) signers() string {
	var names []string
	for _, s := range h.signatures {
		names = append(names, fmt.Sprintf("%s+%08x", s.name, s.id))
	}
	return strings.Join(names, ", ")
}
