package verifier_test

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"testing"
)

// signEd25519 signs with the standard library alone, as a wrong tool would.
func signEd25519(t testing.TB, key, message []byte) []byte {
	t.Helper()
	block, _ := pem.Decode(key)
	if block == nil {
		t.Fatal("the key has no PEM block")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return ed25519.Sign(parsed.(ed25519.PrivateKey), message)
}
