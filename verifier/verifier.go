// Package verifier decides whether a Signed Build Attestation (SBA) may be
// rebuilt here.
//
// An SBA is a DSSE envelope (package dsse) around a build ledger, which is an
// in-toto Statement v1 written in strict JSON (Statement). What arrives is an
// SBA, which shows nothing of its content; what Verify returns is an
// Attestation, and nothing else makes one. Its identity is the SHA-256 of the
// payload, never of the envelope, because signatures can be added to an
// envelope by anybody.
//
// Whatever cannot be decided is refused: an empty policy, a zero SBA, a model
// that no rule names.
package verifier

import (
	"io"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// SBA is a Signed Build Attestation that has arrived: its size and shape are
// known, nothing else. The zero SBA is refused by Verify.
type SBA struct {
	raw      []byte
	envelope dsse.Envelope
}

// IsZero reports whether s holds nothing.
func (s SBA) IsZero() bool { return len(s.raw) == 0 }

// ParseSBA checks size and shape. The error is a *Refusal.
func ParseSBA(data []byte) (SBA, error) { panic("unwritten") }

// ReadSBA reads an SBA to EOF and parses it. It reads at most one byte more
// than an envelope may have.
func ReadSBA(r io.Reader) (SBA, error) { panic("unwritten") }

// Ledger is a well-formed build ledger. It says nothing about who signed it.
type Ledger struct {
	payload []byte
	digest  hashpipe.Digest
}

// ParseLedger checks that payload is a build ledger by every rule of
// docs/ledger.md. The error is a *Refusal.
func ParseLedger(payload []byte) (Ledger, error) { panic("unwritten") }

// IsZero reports whether l holds nothing.
func (l Ledger) IsZero() bool { return len(l.payload) == 0 }

// Digest returns the identity of the SBA: the SHA-256 of the payload.
func (l Ledger) Digest() hashpipe.Digest { return l.digest }

// Payload returns a copy of the very bytes that were parsed.
func (l Ledger) Payload() []byte { panic("unwritten") }

// Statement returns a fresh decoding of the payload, which nobody shares.
func (l Ledger) Statement() Statement { panic("unwritten") }

// Payload checks s by the rules of ParseLedger and encodes it: the same
// Statement always gives the same bytes.
func (s Statement) Payload() ([]byte, error) { panic("unwritten") }

// Attestation is an SBA that a Verifier believed: only Verify makes one. The
// zero Attestation attests nothing.
type Attestation struct {
	ledger     Ledger
	envelope   []byte
	publisher  dsse.PublicKey
	name       string
	verifiedAt time.Time
}

// IsZero reports whether a attests nothing.
func (a Attestation) IsZero() bool { return a.ledger.IsZero() || a.publisher.IsZero() }

// Digest returns the identity of the SBA: the SHA-256 of its payload.
func (a Attestation) Digest() hashpipe.Digest { return a.ledger.digest }

// Ledger returns the ledger that was verified.
func (a Attestation) Ledger() Ledger { return a.ledger }

// Envelope returns a copy of the envelope as it arrived.
func (a Attestation) Envelope() []byte { panic("unwritten") }

// Publisher returns the key that the ledger names and that signed it.
func (a Attestation) Publisher() dsse.PublicKey { return a.publisher }

// PublisherName returns the name of the policy rule that allowed the ledger.
func (a Attestation) PublisherName() string { return a.name }

// VerifiedAt returns the time that was given to Verify.
func (a Attestation) VerifiedAt() time.Time { return a.verifiedAt }

// Verifier holds one policy. The zero Verifier refuses everything.
type Verifier struct{ policy *Policy }

// New returns a Verifier for a copy of p. It refuses a policy that does not
// pass ParsePolicy's rules.
func New(p *Policy) (*Verifier, error) { panic("unwritten") }

// Verify checks s against the policy at the moment now. Every error is a
// *Refusal.
func (v *Verifier) Verify(s SBA, now time.Time) (Attestation, error) { panic("unwritten") }
