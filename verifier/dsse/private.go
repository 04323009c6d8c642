package dsse

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// PrivateKey signs envelopes. The zero PrivateKey signs nothing. Printing one
// with fmt shows the public half only.
type PrivateKey struct {
	// signer returns the key. It is a function because fmt calls no method of
	// an unexported field, Format neither: of a struct that holds a PrivateKey
	// it would print every byte, through pointers too.
	signer func() crypto.Signer
	public PublicKey
}

// GenerateKey makes a key for the algorithm Ed25519 or ECDSAP256.
func GenerateKey(algorithm string) (PrivateKey, error) {
	switch algorithm {
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return PrivateKey{}, fmt.Errorf("generating a key: %w", err)
		}
		return privateKeyOf(key)
	case ECDSAP256:
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return PrivateKey{}, fmt.Errorf("generating a key: %w", err)
		}
		return privateKeyOf(key)
	}
	return PrivateKey{}, fmt.Errorf("generating a key: expected algorithm %s or %s, got %q", Ed25519, ECDSAP256, clip(algorithm))
}

// ParsePrivateKey reads one PEM block: "PRIVATE KEY" (PKCS#8, RFC 5958) or
// "OPENSSH PRIVATE KEY". It calls passphrase only for an encrypted OpenSSH key;
// passphrase may be nil if there is nobody to ask.
func ParsePrivateKey(data []byte, passphrase func() ([]byte, error)) (PrivateKey, error) {
	if len(data) > maxKeyFile {
		return PrivateKey{}, fmt.Errorf("private key: expected at most %d bytes, got %d", maxKeyFile, len(data))
	}
	text := bytes.TrimSpace(data)
	if !bytes.HasPrefix(text, []byte("-----BEGIN ")) {
		return PrivateKey{}, errors.New("private key: expected a PEM block PRIVATE KEY or OPENSSH PRIVATE KEY")
	}
	block, err := onePEM(text)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("private key: %w", err)
	}
	switch block.Type {
	case "PRIVATE KEY":
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return PrivateKey{}, fmt.Errorf("private key: %w", err)
		}
		return privateKeyOf(key)
	case "OPENSSH PRIVATE KEY":
		key, err := parseOpenSSH(text, passphrase)
		if err != nil {
			return PrivateKey{}, fmt.Errorf("private key: %w", err)
		}
		return privateKeyOf(key)
	case "ENCRYPTED PRIVATE KEY":
		return PrivateKey{}, errors.New("private key: encrypted PKCS#8 is not accepted; use an OpenSSH key with a passphrase (ssh-keygen -t ed25519)")
	}
	return PrivateKey{}, fmt.Errorf("private key: expected a PEM block PRIVATE KEY or OPENSSH PRIVATE KEY, got %q", clip(block.Type))
}

func parseOpenSSH(text []byte, passphrase func() ([]byte, error)) (any, error) {
	key, err := ssh.ParseRawPrivateKey(text)
	var missing *ssh.PassphraseMissingError
	if !errors.As(err, &missing) {
		return key, err
	}
	if passphrase == nil {
		return nil, errors.New("it is encrypted and nobody can be asked for the passphrase")
	}
	secret, err := passphrase()
	if err != nil {
		return nil, fmt.Errorf("asking for the passphrase: %w", err)
	}
	defer clear(secret)
	return ssh.ParseRawPrivateKeyWithPassphrase(text, secret)
}

func privateKeyOf(parsed any) (PrivateKey, error) {
	var signer crypto.Signer
	switch k := parsed.(type) {
	case *ed25519.PrivateKey:
		return privateKeyOf(*k)
	case ed25519.PrivateKey:
		// An OpenSSH file stores the public half beside the seed. Signing with a
		// half that does not belong to the seed gives the seed away.
		if len(k) != ed25519.PrivateKeySize || !bytes.Equal(ed25519.NewKeyFromSeed(k.Seed()), k) {
			return PrivateKey{}, errors.New("private key: its public half does not belong to it")
		}
		signer = k
	case *ecdsa.PrivateKey:
		signer = k
	default:
		return PrivateKey{}, fmt.Errorf("private key: expected Ed25519 or ECDSA P-256, got %T", parsed)
	}
	public, err := publicKeyOf(signer.Public())
	if err != nil {
		return PrivateKey{}, err
	}
	return PrivateKey{func() crypto.Signer { return signer }, public}, nil
}

// Public returns the public half; it is zero if k is.
func (k PrivateKey) Public() PublicKey { return k.public }

// PEM returns the key, unencrypted, as a PEM block "PRIVATE KEY" (PKCS#8).
func (k PrivateKey) PEM() ([]byte, error) {
	if k.signer == nil {
		return nil, errors.New("private key: empty")
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.signer())
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Format keeps the secret out of logs and error texts, whatever the verb.
func (k PrivateKey) Format(f fmt.State, _ rune) {
	if k.signer == nil {
		fmt.Fprint(f, "private key (empty)")
		return
	}
	fmt.Fprintf(f, "private key of %s", k.public.ID())
}

func (k PrivateKey) sign(message []byte) ([]byte, error) {
	if k.signer == nil {
		return nil, errors.New("the private key is empty")
	}
	switch s := k.signer().(type) {
	case ed25519.PrivateKey:
		return s.Sign(nil, message, crypto.Hash(0))
	case *ecdsa.PrivateKey:
		hash := sha256.Sum256(message)
		return ecdsa.SignASN1(rand.Reader, s, hash[:])
	default:
		return nil, fmt.Errorf("a %T cannot sign here", s)
	}
}
