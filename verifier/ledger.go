package verifier

import (
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// Ledger is a well-formed build ledger. It says nothing about who signed it.
// The zero Ledger is none.
type Ledger struct {
	payload []byte
	digest  hashpipe.Digest
}

// ParseLedger checks that payload is a build ledger by every rule of
// docs/ledger.md. The error is a *Refusal of ReasonMalformed.
func ParseLedger(payload []byte) (Ledger, error) {
	var s Statement
	if err := decodeStrict(payload, &s); err != nil {
		return Ledger{}, refuse(ReasonMalformed, "ledger: %v", err)
	}
	if err := s.check(); err != nil {
		return Ledger{}, refuse(ReasonMalformed, "ledger: %v", err)
	}
	return Ledger{slices.Clone(payload), hashpipe.SumBytes(payload).Claim()}, nil
}

// IsZero reports whether l holds nothing.
func (l Ledger) IsZero() bool { return len(l.payload) == 0 }

// Digest returns the identity of the SBA: the SHA-256 of the payload.
func (l Ledger) Digest() hashpipe.Digest { return l.digest }

// Payload returns a copy of the very bytes that were parsed.
func (l Ledger) Payload() []byte { return slices.Clone(l.payload) }

// Statement returns a fresh decoding of the payload, which nobody shares. It is
// the zero Statement for the zero Ledger.
func (l Ledger) Statement() Statement {
	if l.IsZero() {
		return Statement{}
	}
	var s Statement
	if err := decodeStrict(l.payload, &s); err != nil {
		panic("verifier: a parsed ledger does not parse: " + err.Error())
	}
	return s
}

// Payload encodes s and checks the text by the rules of ParseLedger. The same
// Statement always gives the same bytes.
func (s Statement) Payload() ([]byte, error) {
	data, err := json.Marshal(s, json.Deterministic(true))
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", dsse.JSONError(err))
	}
	if _, err := ParseLedger(data); err != nil {
		return nil, err
	}
	return data, nil
}
