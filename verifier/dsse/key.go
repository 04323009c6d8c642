package dsse

import (
	"crypto"
	"errors"
)

// ErrUnverified means that too few acceptable signatures were found.
var ErrUnverified = errors.New("no acceptable signature")

// FormatError says why bytes are not an envelope.
type FormatError struct{ Detail string }

func (e *FormatError) Error() string { return "envelope: " + e.Detail }

// KeyID is the lower-case hex SHA-256 of a key's SPKI DER.
type KeyID string

// PublicKey is a usable public key, comparable with ==.
type PublicKey struct{ spki string }

// Algorithm names.
const (
	Ed25519   = "ed25519"
	ECDSAP256 = "ecdsa-p256"
)

func ParsePublicKey(data []byte) (PublicKey, error)   { panic("unwritten") }
func PublicKeyFromSPKI(der []byte) (PublicKey, error) { panic("unwritten") }
func (k PublicKey) ID() KeyID                         { panic("unwritten") }
func (k PublicKey) SPKI() []byte                      { panic("unwritten") }
func (k PublicKey) PEM() []byte                       { panic("unwritten") }
func (k PublicKey) Algorithm() string                 { panic("unwritten") }
func (k PublicKey) IsZero() bool                      { return k.spki == "" }
func (k PublicKey) Verify(msg, sig []byte) bool       { panic("unwritten") }
func (k PublicKey) MarshalText() ([]byte, error)      { panic("unwritten") }
func (k *PublicKey) UnmarshalText(text []byte) error  { panic("unwritten") }

// PrivateKey is a signing key. The zero PrivateKey signs nothing.
type PrivateKey struct {
	signer crypto.Signer
	public PublicKey
}

func GenerateKey(algorithm string) (PrivateKey, error) { panic("unwritten") }
func ParsePrivateKey(data []byte, passphrase func() ([]byte, error)) (PrivateKey, error) {
	panic("unwritten")
}
func (k PrivateKey) Public() PublicKey    { panic("unwritten") }
func (k PrivateKey) PEM() ([]byte, error) { panic("unwritten") }
