// Package dsse reads and writes DSSE v1.0.2 envelopes, strictly.
//
// An envelope is the JSON object
//
//	{"payloadType":"…","payload":"<base64>","signatures":[{"keyid":"…","sig":"<base64>"},…]}
//
// of at most MaxEnvelope bytes and 1 to MaxSignatures signatures. A signature
// is over PAE(payloadType, payload), so that type and bytes are bound together
// and nothing is ever made canonical. Base64 is the standard or the url-safe
// alphabet of RFC 4648, padded, without line breaks, with zero trailing bits.
// Unknown, duplicate or differently cased fields, bytes after the object, a
// missing sig and an empty payload are errors. One thing is lenient: a
// signature that cannot be decoded counts as one that does not verify, because
// anybody can add one to an envelope.
//
// The field keyid is an unauthenticated hint that this package never uses and
// never writes; which algorithm is used is a property of the key.
// The protocol is https://github.com/secure-systems-lab/dsse, protocol.md and
// envelope.md.
package dsse

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

const (
	// PayloadType is the type of every payload of clawfs: an in-toto statement.
	PayloadType = "application/vnd.in-toto+json"
	// MaxEnvelope bounds the text of an envelope in bytes.
	MaxEnvelope = 4 << 20
	// MaxSignatures bounds the signatures of one envelope.
	MaxSignatures = 16
)

// ErrUnverified means that an envelope does not carry the signatures that were
// asked for.
var ErrUnverified = errors.New("not signed by the required keys")

// FormatError says why bytes are not an acceptable envelope, whoever signed it.
type FormatError struct{ Detail string }

// Error returns the detail after the word "envelope".
func (e *FormatError) Error() string { return "envelope: " + e.Detail }

// Envelope is a well-formed envelope whose signatures nobody has checked. The
// zero Envelope verifies under no key.
type Envelope struct {
	payloadType string
	payload     []byte
	signatures  [][]byte // nil for one that could not be decoded
	hints       []string
}

type wireEnvelope struct {
	PayloadType string         `json:"payloadType"`
	Payload     string         `json:"payload"`
	Signatures  wireSignatures `json:"signatures"`
}

type wireSignature struct {
	KeyID string `json:"keyid,omitempty"`
	Sig   string `json:"sig"`
}

type wireSignatures []wireSignature

// UnmarshalJSONFrom stops at MaxSignatures, so that four megabytes of empty
// objects do not become forty of memory.
func (s *wireSignatures) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	if k := dec.PeekKind(); k != '[' {
		return errors.New("signatures is not a list")
	}
	if _, err := dec.ReadToken(); err != nil {
		return err
	}
	for dec.PeekKind() != ']' {
		if len(*s) == MaxSignatures {
			return fmt.Errorf("more than %d signatures", MaxSignatures)
		}
		var one wireSignature
		if err := json.UnmarshalDecode(dec, &one); err != nil {
			return err
		}
		*s = append(*s, one)
	}
	_, err := dec.ReadToken()
	return err
}

// Parse reads an envelope. The error is a *FormatError.
func Parse(data []byte) (Envelope, error) {
	if len(data) > MaxEnvelope {
		return Envelope{}, &FormatError{fmt.Sprintf("expected at most %d bytes, got %d", MaxEnvelope, len(data))}
	}
	var w wireEnvelope
	if err := json.Unmarshal(data, &w, json.RejectUnknownMembers(true)); err != nil {
		return Envelope{}, &FormatError{fmt.Sprintf("reading JSON: %v", JSONError(err))}
	}
	switch {
	case w.PayloadType == "":
		return Envelope{}, &FormatError{"payloadType is missing"}
	case w.Payload == "":
		return Envelope{}, &FormatError{"payload is missing"}
	case len(w.Signatures) == 0:
		return Envelope{}, &FormatError{"signatures is missing or empty"}
	}
	e := Envelope{payloadType: w.PayloadType}
	var err error
	if e.payload, err = decodeBase64(w.Payload); err != nil {
		return Envelope{}, &FormatError{fmt.Sprintf("payload: %v", err)}
	}
	for i, s := range w.Signatures {
		if s.Sig == "" {
			return Envelope{}, &FormatError{fmt.Sprintf("signature %d of %d has no sig", i+1, len(w.Signatures))}
		}
		sig, err := decodeBase64(s.Sig)
		if err != nil {
			sig = nil
		}
		e.signatures = append(e.signatures, sig)
		e.hints = append(e.hints, s.KeyID)
	}
	return e, nil
}

// Verify returns the payload and those of keys that signed it, in the order of
// keys, if at least threshold different keys did. Keys are different if their
// SPKI bytes are, whatever their number in keys or in the envelope.
//
// A payloadType other than the one asked for is a *FormatError. Too few
// signatures are ErrUnverified. A threshold below 1, an empty list of keys or a
// zero key is an error too: a question that anything would satisfy is refused.
func (e Envelope) Verify(payloadType string, keys []PublicKey, threshold int) (payload []byte, signers []PublicKey, err error) {
	switch {
	case threshold < 1:
		return nil, nil, fmt.Errorf("verifying an envelope: threshold is %d, expected at least 1", threshold)
	case len(keys) == 0:
		return nil, nil, errors.New("verifying an envelope: no keys to verify with")
	case slices.ContainsFunc(keys, PublicKey.IsZero):
		return nil, nil, errors.New("verifying an envelope: one of the keys is empty")
	case payloadType == "" || e.payloadType != payloadType:
		return nil, nil, &FormatError{fmt.Sprintf("expected payloadType %q, got %q", payloadType, clip(e.payloadType))}
	}
	message := PAE(e.payloadType, e.payload)
	for _, k := range keys {
		if slices.Contains(signers, k) {
			continue
		}
		if slices.ContainsFunc(e.signatures, func(sig []byte) bool { return k.Verify(message, sig) }) {
			signers = append(signers, k)
		}
	}
	if len(signers) < threshold {
		return nil, nil, fmt.Errorf("%w: expected %d of %d keys, got %d%s", ErrUnverified, threshold, len(keys), len(signers), e.undecodable())
	}
	return slices.Clone(e.payload), signers, nil
}

func (e Envelope) undecodable() string {
	n := 0
	for _, sig := range e.signatures {
		if sig == nil {
			n++
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d of %d signatures are not base64)", n, len(e.signatures))
}

// UnverifiedPayload returns a copy of the payload, which anybody may have
// written. It serves to show an envelope, never to decide about one.
func (e Envelope) UnverifiedPayload() []byte { return slices.Clone(e.payload) }

// UnverifiedPayloadType returns the payloadType that the envelope claims.
func (e Envelope) UnverifiedPayloadType() string { return e.payloadType }

// UnverifiedKeyIDs returns the keyid hint of each signature, "" where there is
// none.
func (e Envelope) UnverifiedKeyIDs() []string { return slices.Clone(e.hints) }

// PAE is DSSE's pre-authentication encoding: "DSSEv1" SP len(type) SP type SP
// len(payload) SP payload, lengths in decimal bytes.
func PAE(payloadType string, payload []byte) []byte {
	head := fmt.Sprintf("DSSEv1 %d %s %d ", len(payloadType), payloadType, len(payload))
	return append([]byte(head), payload...)
}

// decodeBase64 accepts both alphabets, never mixed. The check for line breaks
// is needed because encoding/base64 skips them, also in strict mode.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("line break in base64")
	}
	enc := base64.StdEncoding
	if strings.ContainsAny(s, "-_") {
		enc = base64.URLEncoding
	}
	return enc.Strict().DecodeString(s)
}

// clip bounds hostile text in an error message.
func clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
