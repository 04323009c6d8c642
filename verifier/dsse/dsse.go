// Package dsse reads and writes signature envelopes.
package dsse

// MaxEnvelope bounds an envelope in bytes, MaxSignatures its signatures.
const (
	PayloadType   = "application/vnd.in-toto+json"
	MaxEnvelope   = 4 << 20
	MaxSignatures = 16
)

// Envelope is a well-formed envelope whose signatures are not yet checked.
type Envelope struct {
	payloadType string
	payload     []byte
	signatures  [][]byte
}

// Parse reads an envelope strictly.
func Parse(data []byte) (Envelope, error) { panic("unwritten") }

// Verify checks the signatures.
func (e Envelope) Verify(payloadType string, keys []PublicKey, threshold int) (payload []byte, signers []PublicKey, err error) {
	panic("unwritten")
}

// UnverifiedPayload returns the payload that nobody has checked.
func (e Envelope) UnverifiedPayload() []byte { panic("unwritten") }

// Sign returns the text of an envelope.
func Sign(payloadType string, payload []byte, keys ...PrivateKey) ([]byte, error) {
	panic("unwritten")
}

// PAE is DSSE's pre-authentication encoding.
func PAE(payloadType string, payload []byte) []byte { panic("unwritten") }
