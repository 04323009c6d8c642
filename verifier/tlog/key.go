package tlog

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// The types of a verifier key, from C2SP signed-note.
const (
	typeLog     = 0x01 // Ed25519 over the text of a note
	typeWitness = 0x04 // timestamped Ed25519, cosignature/v1
	typeMLDSA44 = 0x06
)

const (
	ed25519Size = 32
	timeSize    = 8
	maxName     = 255
	// maxTime is the last second of the year 9999, beyond which times have no
	// RFC 3339 text.
	maxTime = 253402300799
)

// spkiPrefix is the DER of an Ed25519 SubjectPublicKeyInfo before the key
// (RFC 8410).
const spkiPrefix = "\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00"

// VerifierKey is a key of a log or of a witness, with the name and id that its
// signatures carry. It is a note.Verifier of golang.org/x/mod/sumdb/note. The
// zero VerifierKey verifies nothing.
type VerifierKey struct {
	name string
	id   uint32
	kind byte
	key  dsse.PublicKey
}

// LogKey returns the verifier key of a log's Ed25519 key.
func LogKey(origin string, key dsse.PublicKey) (VerifierKey, error) {
	return newKey(origin, typeLog, key)
}

// WitnessKey returns the verifier key of a witness's Ed25519 key.
func WitnessKey(name string, key dsse.PublicKey) (VerifierKey, error) {
	return newKey(name, typeWitness, key)
}

// ParseVerifierKey reads the text of a key of a log or of a witness. It refuses
// the Ed25519 keys that package dsse refuses, and a key id that is not the
// key's.
func ParseVerifierKey(s string) (VerifierKey, error) {
	k, err := parseVerifierKey(s)
	if err != nil {
		return VerifierKey{}, fmt.Errorf("verifier key %q: %w", clip(s), err)
	}
	return k, nil
}

func parseVerifierKey(s string) (VerifierKey, error) {
	name, rest, ok1 := strings.Cut(s, "+")
	id, text, ok2 := strings.Cut(rest, "+")
	if !ok1 || !ok2 {
		return VerifierKey{}, errors.New("expected <name>+<key id>+<base64>")
	}
	material, err := decodeBase64(text)
	if err != nil {
		return VerifierKey{}, err
	}
	switch {
	case len(material) > 0 && material[0] == typeMLDSA44:
		return VerifierKey{}, errors.New("ML-DSA-44 keys (type 0x06) are not supported by this version; use the party's Ed25519 key")
	case len(material) == 0 || material[0] != typeLog && material[0] != typeWitness:
		return VerifierKey{}, fmt.Errorf("expected type 0x%02x (a log) or 0x%02x (a witness), got 0x%x", typeLog, typeWitness, clip(string(material[:min(1, len(material))])))
	case len(material) != 1+ed25519Size:
		return VerifierKey{}, fmt.Errorf("expected %d bytes of Ed25519 after the type, got %d", ed25519Size, len(material)-1)
	}
	key, err := dsse.PublicKeyFromSPKI([]byte(spkiPrefix + string(material[1:])))
	if err != nil {
		return VerifierKey{}, err
	}
	k, err := newKey(name, material[0], key)
	if err != nil {
		return VerifierKey{}, err
	}
	if want := fmt.Sprintf("%08x", k.id); id != want {
		return VerifierKey{}, fmt.Errorf("expected key id %s, which this name and key have, got %q", want, clip(id))
	}
	return k, nil
}

func newKey(name string, kind byte, key dsse.PublicKey) (VerifierKey, error) {
	if err := checkName(name); err != nil {
		return VerifierKey{}, fmt.Errorf("name of the key: %w", err)
	}
	if a := key.Algorithm(); a != dsse.Ed25519 {
		return VerifierKey{}, fmt.Errorf("key %s: expected algorithm %s, got %q", name, dsse.Ed25519, a)
	}
	k := VerifierKey{name: name, kind: kind, key: key}
	sum := hashpipe.SumBytes([]byte(name + "\n" + string(k.material()))).Bytes()
	k.id = binary.BigEndian.Uint32(sum[:])
	return k, nil
}

// material returns the type byte and the 32 bytes of the key.
func (k VerifierKey) material() []byte {
	return append([]byte{k.kind}, k.key.SPKI()[len(spkiPrefix):]...)
}

// IsZero reports whether k is no key.
func (k VerifierKey) IsZero() bool { return k.key.IsZero() }

// String returns the text that ParseVerifierKey reads, "" for the zero key.
func (k VerifierKey) String() string {
	if k.IsZero() {
		return ""
	}
	return fmt.Sprintf("%s+%08x+%s", k.name, k.id, base64.StdEncoding.EncodeToString(k.material()))
}

// Name returns the name of the key: of a log, its origin.
func (k VerifierKey) Name() string { return k.name }

// KeyHash returns the key id.
func (k VerifierKey) KeyHash() uint32 { return k.id }

// Verify reports whether sig, without the key id before it, is the key's
// signature of the text of a note.
func (k VerifierKey) Verify(text, sig []byte) bool {
	switch k.kind {
	case typeLog:
		return k.key.Verify(text, sig)
	case typeWitness:
		if len(sig) < timeSize {
			return false
		}
		seconds := binary.BigEndian.Uint64(sig)
		return seconds <= maxTime && k.key.Verify(cosignedText(seconds, text), sig[timeSize:])
	}
	return false
}

// cosignedText is what a cosignature at that time is over.
func cosignedText(seconds uint64, text []byte) []byte {
	return fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", seconds, text)
}

func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("it is empty")
	case len(name) > maxName:
		return fmt.Errorf("%q: expected at most %d bytes, got %d", clip(name), maxName, len(name))
	case !utf8.ValidString(name):
		return fmt.Errorf("%q is not UTF-8", name)
	case strings.ContainsFunc(name, func(r rune) bool { return r < 0x20 || r == 0x7f || r == '+' || unicode.IsSpace(r) }):
		return fmt.Errorf("%q: expected no space, control character or '+'", name)
	}
	return nil
}
