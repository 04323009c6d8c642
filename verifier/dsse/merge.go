package dsse

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
)

// Merge returns the text of one envelope that carries the signatures of all of
// them, so that several can sign one payload at several places. The envelopes
// must have the same payloadType and the same payload. What cannot be decoded,
// what is there twice, and all hints are left out. No signature is verified.
func Merge(envelopes ...[]byte) ([]byte, error) {
	if len(envelopes) == 0 {
		return nil, errors.New("merging envelopes: there are none")
	}
	var w wireEnvelope
	var first Envelope
	var signatures [][]byte
	for i, data := range envelopes {
		e, err := Parse(data)
		if err != nil {
			return nil, fmt.Errorf("merging envelopes: %w", err)
		}
		if i == 0 {
			first = e
			w = wireEnvelope{PayloadType: e.payloadType, Payload: base64.StdEncoding.EncodeToString(e.payload)}
		}
		if e.payloadType != first.payloadType || !bytes.Equal(e.payload, first.payload) {
			return nil, fmt.Errorf("merging envelopes: number %d has another payload than the first", i+1)
		}
		for _, sig := range e.signatures {
			known := slices.ContainsFunc(signatures, func(s []byte) bool { return bytes.Equal(s, sig) })
			if sig != nil && !known {
				signatures = append(signatures, sig)
				w.Signatures = append(w.Signatures, wireSignature{Sig: base64.StdEncoding.EncodeToString(sig)})
			}
		}
	}
	if n := len(signatures); n == 0 || n > MaxSignatures {
		return nil, fmt.Errorf("merging envelopes: expected 1 to %d signatures in all, got %d", MaxSignatures, n)
	}
	data, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("merging envelopes: %w", err)
	}
	if len(data) > MaxEnvelope {
		return nil, fmt.Errorf("merging envelopes: the text has %d bytes, at most %d are allowed", len(data), MaxEnvelope)
	}
	return data, nil
}
