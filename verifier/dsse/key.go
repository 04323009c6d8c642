package dsse

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/openclaw/clawfs/hashpipe"
)

// The algorithms of a key. ECDSA signs the SHA-256 of the message and writes
// the signature in ASN.1 DER.
const (
	Ed25519   = "ed25519"
	ECDSAP256 = "ecdsa-p256"
)

// maxKeyFile bounds the text of a key in bytes.
const maxKeyFile = 64 << 10

// KeyID is the lower-case hex SHA-256 of a public key's SPKI DER.
type KeyID string

// PublicKey is a key that passed the checks of PublicKeyFromSPKI. Two are the
// same key if they are ==. The zero PublicKey verifies nothing.
type PublicKey struct{ spki string }

// ParsePublicKey reads the first of these forms that fits: one PEM block
// "PUBLIC KEY", or one line of OpenSSH's authorized_keys without options
// (ssh-ed25519 or ecdsa-sha2-nistp256, the content of an id_….pub file).
func ParsePublicKey(data []byte) (PublicKey, error) {
	text := bytes.TrimSpace(data)
	switch {
	case len(data) > maxKeyFile:
		return PublicKey{}, fmt.Errorf("public key: expected at most %d bytes, got %d", maxKeyFile, len(data))
	case bytes.Contains(text, []byte("PRIVATE KEY-----")):
		return PublicKey{}, errors.New("public key: this is a private key; give the public half of it")
	case bytes.HasPrefix(text, []byte("-----BEGIN ")):
		block, err := onePEM(text)
		if err != nil {
			return PublicKey{}, fmt.Errorf("public key: %w", err)
		}
		if block.Type != "PUBLIC KEY" {
			return PublicKey{}, fmt.Errorf("public key: expected a PEM block PUBLIC KEY, got %q", clip(block.Type))
		}
		return PublicKeyFromSPKI(block.Bytes)
	case len(text) == 0 || bytes.ContainsAny(text, "\r\n"):
		return PublicKey{}, errors.New("public key: expected a PEM block PUBLIC KEY or one line of authorized_keys")
	}
	key, _, options, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return PublicKey{}, errors.New("public key: expected a PEM block PUBLIC KEY or one line of authorized_keys")
	}
	if len(options) > 0 {
		return PublicKey{}, errors.New("public key: an authorized_keys line with options is not accepted; remove them")
	}
	if t := key.Type(); t != ssh.KeyAlgoED25519 && t != ssh.KeyAlgoECDSA256 {
		return PublicKey{}, fmt.Errorf("public key: expected %s or %s, got %s", ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256, t)
	}
	return publicKeyOf(key.(ssh.CryptoPublicKey).CryptoPublicKey())
}

// PublicKeyFromSPKI reads the DER of a SubjectPublicKeyInfo (RFC 5280). It
// refuses everything but Ed25519 and ECDSA P-256, a second encoding of the same
// key, and Ed25519 points of small order: Go accepts one fixed signature under
// the identity key for every message.
func PublicKeyFromSPKI(der []byte) (PublicKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key: %w", err)
	}
	k, err := publicKeyOf(parsed)
	if err != nil {
		return PublicKey{}, err
	}
	if k.spki != string(der) {
		return PublicKey{}, errors.New("public key: not the usual encoding of this key")
	}
	return k, nil
}

func publicKeyOf(parsed any) (PublicKey, error) {
	switch p := parsed.(type) {
	case ed25519.PublicKey:
		if err := checkPoint(p); err != nil {
			return PublicKey{}, fmt.Errorf("public key: %w", err)
		}
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() {
			return PublicKey{}, fmt.Errorf("public key: expected ECDSA on P-256, got %s", p.Curve.Params().Name)
		}
		// ECDH checks that the point lies on the curve and is not infinity.
		if _, err := p.ECDH(); err != nil {
			return PublicKey{}, fmt.Errorf("public key: %w", err)
		}
	default:
		return PublicKey{}, fmt.Errorf("public key: expected Ed25519 or ECDSA P-256, got %T", parsed)
	}
	der, err := x509.MarshalPKIXPublicKey(parsed)
	if err != nil {
		return PublicKey{}, fmt.Errorf("public key: %w", err)
	}
	return PublicKey{string(der)}, nil
}

// smallOrder holds the y coordinates, little-endian, of the eight points of
// small order on edwards25519: 0, 1, p-1 and the two of order 8. The top bit of
// an encoding is the sign of x and is cleared before the comparison.
var smallOrder = [...]string{
	strings.Repeat("\x00", 32),
	"\x01" + strings.Repeat("\x00", 31),
	minusOne,
	"\x26\xe8\x95\x8f\xc2\xb2\x27\xb0\x45\xc3\xf4\x89\xf2\xef\x98\xf0\xd5\xdf\xac\x05\xd3\xc6\x33\x39\xb1\x38\x02\x88\x6d\x53\xfc\x05",
	"\xc7\x17\x6a\x70\x3d\x4d\xd8\x4f\xba\x3c\x0b\x76\x0d\x10\x67\x0f\x2a\x20\x53\xfa\x2c\x39\xcc\xc6\x4e\xc7\xfd\x77\x92\xac\x03\x7a",
}

// minusOne is p-1 for the prime p = 2^255-19 of the curve.
var minusOne = "\xec" + strings.Repeat("\xff", 30) + "\x7f"

// checkPoint refuses points of small order, and every y that is not below p,
// because Go would take it as a second name of y-p.
func checkPoint(key ed25519.PublicKey) error {
	if len(key) != ed25519.PublicKeySize {
		return fmt.Errorf("expected %d bytes of Ed25519, got %d", ed25519.PublicKeySize, len(key))
	}
	y := []byte(string(key))
	y[31] &= 0x7f
	if slices.Contains(smallOrder[:], string(y)) {
		return errors.New("this Ed25519 point has small order: signatures under it prove nothing")
	}
	if y[0] > minusOne[0] && string(y[1:]) == minusOne[1:] {
		return errors.New("not the canonical encoding of an Ed25519 point")
	}
	return nil
}

// IsZero reports whether k is no key.
func (k PublicKey) IsZero() bool { return k.spki == "" }

// ID returns the key's id.
func (k PublicKey) ID() KeyID { return KeyID(hashpipe.SumBytes([]byte(k.spki)).String()) }

// SPKI returns the DER of the key's SubjectPublicKeyInfo.
func (k PublicKey) SPKI() []byte { return []byte(k.spki) }

// PEM returns the key as a PEM block "PUBLIC KEY".
func (k PublicKey) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.SPKI()})
}

// OpenSSH returns the key as a line of authorized_keys without comment and line
// break, and the fingerprint "SHA256:…" that ssh-add -l shows; both are empty
// for the zero key.
func (k PublicKey) OpenSSH() (line, fingerprint string) {
	key, err := ssh.NewPublicKey(k.crypto())
	if err != nil {
		return "", ""
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), ssh.FingerprintSHA256(key)
}

// Algorithm returns Ed25519, ECDSAP256, or "" for the zero key.
func (k PublicKey) Algorithm() string {
	switch k.crypto().(type) {
	case ed25519.PublicKey:
		return Ed25519
	case *ecdsa.PublicKey:
		return ECDSAP256
	}
	return ""
}

// Verify reports whether sig is this key's signature over msg.
func (k PublicKey) Verify(msg, sig []byte) bool {
	if len(sig) == 0 {
		return false
	}
	switch p := k.crypto().(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(p, msg, sig)
	case *ecdsa.PublicKey:
		hash := sha256.Sum256(msg)
		return ecdsa.VerifyASN1(p, hash[:], sig)
	}
	return false
}

// VerifySHA256 reports whether sig is this key's signature over a message of
// which the caller has computed the SHA-256. Whoever takes the digest from
// somebody else has verified nothing: signatures under a key can be made for
// digests of no known message. Ed25519 signs the message itself, so under such a
// key it is false.
func (k PublicKey) VerifySHA256(message hashpipe.Digest, sig []byte) bool {
	p, ok := k.crypto().(*ecdsa.PublicKey)
	if !ok || message.IsZero() || len(sig) == 0 {
		return false
	}
	b, err := hex.DecodeString(message.String())
	return err == nil && ecdsa.VerifyASN1(p, b, sig)
}

// crypto decodes the key at each use: a PublicKey that held the decoded form
// could not be compared with ==.
func (k PublicKey) crypto() any {
	if k.IsZero() {
		return nil
	}
	parsed, err := x509.ParsePKIXPublicKey([]byte(k.spki))
	if err != nil {
		return nil
	}
	return parsed
}

// MarshalText returns the standard base64 of the SPKI DER, as policy.json and
// capabilities carry it.
func (k PublicKey) MarshalText() ([]byte, error) {
	if k.IsZero() {
		return nil, errors.New("public key: empty")
	}
	return []byte(base64.StdEncoding.EncodeToString([]byte(k.spki))), nil
}

// UnmarshalText reads what MarshalText wrote.
func (k *PublicKey) UnmarshalText(text []byte) error {
	if bytes.ContainsAny(text, "\r\n") {
		return errors.New("public key: line break in base64")
	}
	der, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return fmt.Errorf("public key: expected base64 of an SPKI: %w", err)
	}
	*k, err = PublicKeyFromSPKI(der)
	return err
}

// onePEM demands that text is one PEM block without headers and nothing else:
// pem.Decode would skip what stands before it, a damaged block of the same type
// too.
func onePEM(text []byte) (*pem.Block, error) {
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, errors.New("the PEM block is damaged")
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("expected one PEM block, got more after it")
	case len(block.Headers) > 0:
		return nil, errors.New("PEM headers are not accepted")
	case !bytes.HasPrefix(text, []byte("-----BEGIN "+block.Type+"-----")), bytes.Count(text, []byte("-----BEGIN ")) != 1:
		return nil, errors.New("expected one PEM block, got more before it")
	}
	return block, nil
}
