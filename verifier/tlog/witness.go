package tlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/openclaw/clawfs/verifier/dsse"
)

// ParseLogs reads the log lines of a policy, or of a text of such lines alone,
// and returns the keys in their order. The other lines have to be right, and
// have no meaning for a witness, which looks at what a log signed and not at who
// cosigned it. A log may have several keys, each on a line of its own.
func ParseLogs(text []byte) ([]VerifierKey, error) {
	var r policyReader
	if err := r.lines(text); err != nil {
		return nil, fmt.Errorf("list of logs: %w", err)
	}
	var keys []VerifierKey
	for _, l := range r.logs {
		keys = append(keys, l.key)
	}
	return keys, nil
}

// ClaimedOrigin returns the first line of a checkpoint that nobody has checked,
// so that the policy for it can be looked up. A text that is no checkpoint is a
// *Refusal for ReasonMalformed, or for ReasonConsistency if all that is wrong in
// its text is that an empty tree has the root of another one.
func ClaimedOrigin(signed []byte) (string, error) {
	h, err := parseHead(signed)
	var root *emptyRootError
	switch {
	case errors.As(err, &root):
		return "", refuse(ReasonConsistency, "%v", err)
	case err != nil:
		return "", refuse(ReasonMalformed, "%v", err)
	}
	return h.origin, nil
}

// CheckSigned returns nil if the note is a checkpoint that carries a signature
// of k. Signatures of others are not looked at. The error is a *Refusal.
func (k VerifierKey) CheckSigned(signed []byte) error {
	h, err := parseHead(signed)
	if err != nil {
		return refuse(ReasonMalformed, "%v", err)
	}
	if _, err := note.Open(signed, known{k}); err != nil {
		return refuse(ReasonSignature, "checkpoint of %s: expected a signature by key %s+%08x, got none that verifies", clip(h.origin), clip(k.name), k.id)
	}
	return nil
}

// Cosigner makes the cosignatures of a witness (C2SP tlog-cosignature, Ed25519).
// The zero Cosigner makes none. Whether a checkpoint may be cosigned it does not
// know: a Memory does.
type Cosigner struct {
	verifier VerifierKey
	key      dsse.PrivateKey
}

// NewCosigner takes an Ed25519 key under the name of the witness. A key signs
// under one name only: the signed bytes do not carry it.
func NewCosigner(name string, key dsse.PrivateKey) (Cosigner, error) {
	v, err := WitnessKey(name, key.Public())
	if err != nil {
		return Cosigner{}, err
	}
	return Cosigner{v, key}, nil
}

// VerifierKey returns the key that verifies the cosignatures.
func (c Cosigner) VerifierKey() VerifierKey { return c.verifier }

// Cosign returns the line of a note, with its newline, by which the witness says
// that at that time, in whole seconds after 1970, nothing newer than the
// checkpoint was shown to it.
func (c Cosigner) Cosign(checkpoint Checkpoint, at time.Time) ([]byte, error) {
	seconds := at.Unix()
	switch {
	case c.verifier.IsZero():
		return nil, errors.New("cosigning: there is no key")
	case checkpoint.IsZero():
		return nil, errors.New("cosigning: there is no checkpoint")
	case seconds < 1 || seconds > maxTime:
		return nil, fmt.Errorf("cosigning: expected a time after 1970 and before the year 10000, got %v", at)
	}
	sig, err := c.key.SignWithoutPAE(cosignedText(uint64(seconds), []byte(checkpoint.text())))
	if err != nil {
		return nil, fmt.Errorf("cosigning: %w", err)
	}
	rest := append(binary.BigEndian.AppendUint64(nil, uint64(seconds)), sig...)
	return []byte(signature{c.verifier.name, c.verifier.id, rest}.line()), nil
}
