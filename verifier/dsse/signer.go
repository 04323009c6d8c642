package dsse

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
)

// Signer makes signatures of one key that may lie anywhere: in this process
// (PrivateKey), with an agent, or in a machine. It signs PAE(payloadType,
// payload) and no other bytes, so that nobody who holds a Signer has anything
// else signed by the key.
type Signer interface {
	// Public returns the key; every signature is checked with it.
	Public() PublicKey
	// Sign returns the signature over PAE(payloadType, payload) in the form of
	// the key's algorithm: 64 bytes for Ed25519, ASN.1 DER over the SHA-256 for
	// ECDSA. It may take as long as ctx allows.
	Sign(ctx context.Context, payloadType string, payload []byte) ([]byte, error)
	// String names the signer in errors.
	String() string
}

// ErrWrongSignature means that what a Signer returned is not a signature of its
// key over the bytes that it was given.
var ErrWrongSignature = errors.New("its answer is not a signature of that key over these bytes")

// Sign is SignContext for keys that lie in this process, which nobody waits for.
func Sign(payloadType string, payload []byte, keys ...PrivateKey) ([]byte, error) {
	signers := make([]Signer, len(keys))
	for i, k := range keys {
		signers[i] = k
	}
	return SignContext(context.Background(), payloadType, payload, signers...)
}

// SignContext returns the text of an envelope that carries one signature of
// each signer, in their order. Each was verified with the signer's public key;
// one that does not verify is an ErrWrongSignature that names the signer.
//
// It writes no keyid: a hint is not covered by the signature, and without it
// every byte of the text counts.
func SignContext(ctx context.Context, payloadType string, payload []byte, signers ...Signer) ([]byte, error) {
	switch {
	case payloadType == "":
		return nil, errors.New("signing an envelope: payloadType is empty")
	case len(payload) == 0:
		return nil, errors.New("signing an envelope: the payload is empty")
	case len(signers) == 0 || len(signers) > MaxSignatures:
		return nil, fmt.Errorf("signing an envelope: expected 1 to %d keys, got %d", MaxSignatures, len(signers))
	}
	// Before the first signature: a person may have to touch a token for it.
	var keys []PublicKey
	for _, s := range signers {
		switch {
		case s == nil || s.Public().IsZero():
			return nil, errors.New("signing an envelope: the private key is empty")
		case slices.Contains(keys, s.Public()):
			return nil, fmt.Errorf("signing an envelope: key %s is given twice", s.Public().ID())
		}
		keys = append(keys, s.Public())
	}
	message := PAE(payloadType, payload)
	w := wireEnvelope{PayloadType: payloadType, Payload: base64.StdEncoding.EncodeToString(payload)}
	for i, s := range signers {
		// A copy: what is verified is what was asked for, whatever s does to it.
		sig, err := s.Sign(ctx, payloadType, slices.Clone(payload))
		if err != nil {
			return nil, fmt.Errorf("signing an envelope: %s: %w", s, err)
		}
		if !keys[i].Verify(message, sig) {
			return nil, fmt.Errorf("signing an envelope: %s (key id %s): %w", s, keys[i].ID(), ErrWrongSignature)
		}
		w.Signatures = append(w.Signatures, wireSignature{Sig: base64.StdEncoding.EncodeToString(sig)})
	}
	data, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("signing an envelope: %w", err)
	}
	if len(data) > MaxEnvelope {
		return nil, fmt.Errorf("signing an envelope: its text has %d bytes, at most %d are allowed", len(data), MaxEnvelope)
	}
	return data, nil
}
