package dsse_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func pkcs8(t testing.TB, text []byte) crypto.Signer {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatalf("no PEM block in %q", text)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(crypto.Signer)
}

// tool finds a program of Debian or fails.
func tool(t testing.TB, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("this test needs %s: apt-get install %s", name, debian)
	}
	return path
}

func run(t testing.TB, path string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", path, args, err, out)
	}
	return out
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestKeyRoundTrips(t *testing.T) {
	for _, algorithm := range []string{dsse.Ed25519, dsse.ECDSAP256} {
		k := newKey(t, algorithm)
		if got := k.Public().Algorithm(); got != algorithm {
			t.Errorf("Algorithm() = %q, want %q", got, algorithm)
		}
		block, err := k.PEM()
		if err != nil {
			t.Fatal(err)
		}
		again, err := dsse.ParsePrivateKey(block, nil)
		if err != nil || again.Public() != k.Public() {
			t.Errorf("%s: ParsePrivateKey(PEM()) = %v, %v, want the same key", algorithm, again.Public().ID(), err)
		}
		public, err := dsse.ParsePublicKey(k.Public().PEM())
		if err != nil || public != k.Public() {
			t.Errorf("%s: ParsePublicKey(PEM()) = %v, %v, want the same key", algorithm, public.ID(), err)
		}
		text, err := k.Public().MarshalText()
		if err != nil {
			t.Fatal(err)
		}
		var back dsse.PublicKey
		if err := back.UnmarshalText(text); err != nil || back != k.Public() {
			t.Errorf("%s: UnmarshalText(%s) = %v, %v, want the same key", algorithm, text, back.ID(), err)
		}
	}
}

// TestKeyID compares with openssl, which hashes the DER it made itself.
func TestKeyID(t *testing.T) {
	openssl := tool(t, "openssl", "openssl")
	for algorithm, args := range map[string][]string{
		dsse.Ed25519:   {"genpkey", "-algorithm", "ed25519"},
		dsse.ECDSAP256: {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
	} {
		dir := t.TempDir()
		private, der := filepath.Join(dir, "key.pem"), filepath.Join(dir, "pub.der")
		run(t, openssl, append(args, "-out", private)...)
		run(t, openssl, "pkey", "-in", private, "-pubout", "-outform", "DER", "-out", der)
		want, _, _ := strings.Cut(string(run(t, openssl, "dgst", "-sha256", "-r", der)), " ")
		k, err := dsse.ParsePrivateKey(read(t, private), nil)
		if err != nil {
			t.Fatalf("%s key of openssl: %v", algorithm, err)
		}
		if got := k.Public(); string(got.ID()) != want || got.Algorithm() != algorithm {
			t.Errorf("key of openssl: ID %s, %s, want %s, %s", got.ID(), got.Algorithm(), want, algorithm)
		}
	}
}

func TestOpenSSHKeys(t *testing.T) {
	keygen := tool(t, "ssh-keygen", "openssh-client")
	for _, typ := range []string{"ed25519", "ecdsa"} {
		for _, passphrase := range []string{"", "correct horse"} {
			file := filepath.Join(t.TempDir(), "key")
			run(t, keygen, "-q", "-t", typ, "-N", passphrase, "-C", "a comment", "-f", file)
			asked := 0
			k, err := dsse.ParsePrivateKey(read(t, file), func() ([]byte, error) {
				asked++
				return []byte(passphrase), nil
			})
			if err != nil {
				t.Errorf("%s, passphrase %q: %v", typ, passphrase, err)
				continue
			}
			if want := min(len(passphrase), 1); asked != want {
				t.Errorf("%s, passphrase %q: asked %d times, want %d", typ, passphrase, asked, want)
			}
			public, err := dsse.ParsePublicKey(read(t, file+".pub"))
			if err != nil || public != k.Public() {
				t.Errorf("%s: ParsePublicKey(.pub) = %v, %v, want the private key's half", typ, public.ID(), err)
			}
			e, err := dsse.Parse(sign(t, k))
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := e.Verify(dsse.PayloadType, []dsse.PublicKey{public}, 1); err != nil {
				t.Errorf("%s: %v", typ, err)
			}
			if passphrase == "" {
				continue
			}
			if _, err := dsse.ParsePrivateKey(read(t, file), nil); err == nil || !strings.Contains(err.Error(), "passphrase") {
				t.Errorf("%s: encrypted key without a passphrase: %v, want an error that says so", typ, err)
			}
			if _, err := dsse.ParsePrivateKey(read(t, file), func() ([]byte, error) { return []byte("wrong"), nil }); err == nil {
				t.Errorf("%s: the wrong passphrase opened the key", typ)
			}
			cancelled := errors.New("cancelled")
			if _, err := dsse.ParsePrivateKey(read(t, file), func() ([]byte, error) { return nil, cancelled }); !errors.Is(err, cancelled) {
				t.Errorf("%s: ParsePrivateKey = %v, want the error of the person asked", typ, err)
			}
		}
	}
}

func TestOpenSSHKeyWithForeignPublicHalf(t *testing.T) {
	_, a, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	mixed := append(bytes.Clone(a.Seed()), other...)
	block, err := ssh.MarshalPrivateKey(ed25519.PrivateKey(mixed), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dsse.ParsePrivateKey(pem.EncodeToMemory(block), nil); err == nil || !strings.Contains(err.Error(), "does not belong") {
		t.Errorf("a seed with another key's public half: %v, want a refusal", err)
	}
}

func spki(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSmallOrder shows for every encoding of a point of small order first that
// crypto/ed25519 accepts one fixed signature for messages that nobody signed,
// then that the key is refused.
func TestSmallOrder(t *testing.T) {
	const ff = "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
	points := []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"ec" + ff + "7f",
		"ed" + ff + "7f", // p, read as 0
		"ee" + ff + "7f", // p+1, read as 1
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
	}
	sig := append(unhex(t, points[1]), make([]byte, 32)...) // R = identity, S = 0
	for _, p := range points {
		for _, sign := range []byte{0, 0x80} {
			key := unhex(t, p)
			key[31] |= sign
			forged := 0
			for i := range 500 {
				if ed25519.Verify(key, fmt.Appendf(nil, "message %d", i), sig) {
					forged++
				}
			}
			if forged == 0 {
				t.Errorf("%x: no message of 500 verified; this is not a point of small order", key)
			}
			if k, err := dsse.PublicKeyFromSPKI(spki(t, ed25519.PublicKey(key))); err == nil {
				t.Errorf("%x accepted as key %s though %d of 500 messages verify under one signature", key, k.ID(), forged)
			}
			line := ssh.MarshalAuthorizedKey(must(ssh.NewPublicKey(ed25519.PublicKey(key))))
			if _, err := dsse.ParsePublicKey(line); err == nil {
				t.Errorf("%x accepted from an authorized_keys line", key)
			}
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestPublicKeyRefuses(t *testing.T) {
	ed := newKey(t, dsse.Ed25519).Public()
	p256 := newKey(t, dsse.ECDSAP256).Public()
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	private := must(newKey(t, dsse.Ed25519).PEM())
	line := bytes.TrimSpace(ssh.MarshalAuthorizedKey(must(ssh.NewPublicKey(must(x509.ParsePKIXPublicKey(ed.SPKI())).(ed25519.PublicKey)))))
	rsaLine := ssh.MarshalAuthorizedKey(must(ssh.NewPublicKey(&rsaKey.PublicKey)))
	block := func(typ string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
	}
	// The last 65 bytes of a P-256 SPKI are the uncompressed point; infinity is
	// one byte 0.
	offCurve := p256.SPKI()
	offCurve[len(offCurve)-1] ^= 1
	infinity := append(unhex(t, "3019301306072a8648ce3d020106082a8648ce3d030107030200"), 0)
	zeroPoint := append(bytes.Clone(p256.SPKI()[:len(p256.SPKI())-64]), make([]byte, 64)...)
	// Go's asn1 lets a SEQUENCE end in elements that it does not know.
	extra := append(ed.SPKI(), 5, 0)
	extra[1] += 2
	longForm := append([]byte{0x30, 0x81}, ed.SPKI()[1:]...)
	high := bytes.Repeat([]byte{0xff}, 32)
	high[0], high[31] = 0xf1, 0x7f // p+4
	tests := []struct{ name, data, want string }{
		{"nothing", "", "expected a PEM block"},
		{"words", "my key", "expected a PEM block"},
		{"a private key", string(private), "this is a private key"},
		{"wrong PEM type", block("CERTIFICATE", ed.SPKI()), `got "CERTIFICATE"`},
		{"two blocks", string(ed.PEM()) + string(p256.PEM()), "more after it"},
		{"text after", string(ed.PEM()) + "x", "more after it"},
		{"text before", "x\n" + string(ed.PEM()), "expected a PEM block"},
		{"a broken block before", "-----BEGIN X-----\n" + string(ed.PEM()), "more before it"},
		{"headers", strings.Replace(string(ed.PEM()), "KEY-----\n", "KEY-----\nA: b\n\n", 1), "headers"},
		{"cut short", string(ed.PEM()[:40]), "damaged"},
		{"DER cut short", block("PUBLIC KEY", ed.SPKI()[:20]), "public key:"},
		{"DER with more after it", block("PUBLIC KEY", append(ed.SPKI(), 0)), "public key:"},
		{"DER with more inside", block("PUBLIC KEY", extra), "not the usual encoding"},
		{"DER with a long length", block("PUBLIC KEY", longForm), "public key:"},
		{"Ed25519 of 31 bytes", block("PUBLIC KEY", append(unhex(t, "3029300506032b65700320"), make([]byte, 32)...)), "public key:"},
		{"Ed25519 not canonical", block("PUBLIC KEY", spki(t, ed25519.PublicKey(high))), "canonical"},
		{"P-384", block("PUBLIC KEY", spki(t, &p384.PublicKey)), "got P-384"},
		{"RSA", block("PUBLIC KEY", spki(t, &rsaKey.PublicKey)), "expected Ed25519 or ECDSA P-256"},
		{"P-256 point not on the curve", block("PUBLIC KEY", offCurve), "public key:"},
		{"P-256 point at infinity", block("PUBLIC KEY", infinity), "public key:"},
		{"P-256 point 0,0", block("PUBLIC KEY", zeroPoint), "public key:"},
		{"two lines", string(line) + "\n" + string(line), "one line"},
		{"a comment first", "# mine\n" + string(line), "one line"},
		{"options", `command="x" ` + string(line), "options"},
		{"an RSA line", string(rsaLine), "got ssh-rsa"},
		{"too large", strings.Repeat("A", 1<<20), "expected at most"},
	}
	for _, tt := range tests {
		k, err := dsse.ParsePublicKey([]byte(tt.data))
		if err == nil || !strings.Contains(err.Error(), tt.want) || !k.IsZero() {
			t.Errorf("%s: ParsePublicKey = %v, %v, want no key and an error with %q", tt.name, k.ID(), err, tt.want)
		}
	}
	text := string(must(ed.MarshalText()))
	for _, bad := range []string{"", text[:10], text + "\n", text[:8] + "\n" + text[8:], " " + text, strings.TrimRight(text, "=") + "===="} {
		var k dsse.PublicKey
		if err := k.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("UnmarshalText(%q) = %s, want an error", bad, k.ID())
		}
	}
	if _, err := (dsse.PublicKey{}).MarshalText(); err == nil {
		t.Error("the zero PublicKey has a text")
	}
	if (dsse.PublicKey{}).Verify([]byte("m"), make([]byte, 64)) {
		t.Error("the zero PublicKey verified")
	}
}

func TestPrivateKeyRefuses(t *testing.T) {
	p384 := must(x509.MarshalPKCS8PrivateKey(must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))))
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))
	good := string(must(newKey(t, dsse.Ed25519).PEM()))
	block := func(typ string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
	}
	tests := []struct{ name, data, want string }{
		{"nothing", "", "expected a PEM block"},
		{"a public key", string(newKey(t, dsse.Ed25519).Public().PEM()), `got "PUBLIC KEY"`},
		{"P-384", block("PRIVATE KEY", p384), "got P-384"},
		{"RSA", block("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(rsaKey))), "expected Ed25519 or ECDSA P-256, got *rsa.PrivateKey"},
		{"RSA of OpenSSH", string(pem.EncodeToMemory(must(ssh.MarshalPrivateKey(rsaKey, "")))), "expected Ed25519 or ECDSA P-256, got *rsa.PrivateKey"},
		{"damaged DER", block("PRIVATE KEY", p384[:50]), "private key:"},
		{"encrypted PKCS#8", block("ENCRYPTED PRIVATE KEY", p384), "ssh-keygen"},
		{"SEC 1", block("EC PRIVATE KEY", p384), `got "EC PRIVATE KEY"`},
		{"two keys", good + good, "more after it"},
		{"a damaged key before a good one", strings.Replace(good, "\n", "\n*", 1) + good, "more before it"},
		{"not OpenSSH", block("OPENSSH PRIVATE KEY", []byte("nonsense")), "private key:"},
		{"too large", good + strings.Repeat(" ", 1<<20), "expected at most"},
	}
	for _, tt := range tests {
		if k, err := dsse.ParsePrivateKey([]byte(tt.data), nil); err == nil || !strings.Contains(err.Error(), tt.want) || !k.Public().IsZero() {
			t.Errorf("%s: ParsePrivateKey: %v, want an error with %q", tt.name, err, tt.want)
		}
	}
	if _, err := dsse.GenerateKey("rsa"); err == nil {
		t.Error("GenerateKey(rsa) made a key")
	}
	if _, err := (dsse.PrivateKey{}).PEM(); err == nil {
		t.Error("the zero PrivateKey has a text")
	}
}

func TestPrivateKeyDoesNotPrint(t *testing.T) {
	k := newKey(t, dsse.Ed25519)
	seed := pkcs8(t, must(k.PEM())).(ed25519.PrivateKey).Seed()
	hidden := struct{ key dsse.PrivateKey }{k} // fmt calls no method of an unexported field
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		for _, owner := range []any{hidden, &hidden, []any{hidden}} {
			got := strings.NewReplacer("0x", "", ", ", "", " ", "").Replace(fmt.Sprintf(verb, owner))
			for _, secret := range []string{string(seed), hex.EncodeToString(seed), strings.ReplaceAll(fmt.Sprint(seed), " ", "")} {
				if strings.Contains(got, strings.Trim(secret, "[]")) {
					t.Errorf("%s of a struct that holds the key prints the seed: %q", verb, got)
				}
			}
		}
		got := fmt.Sprintf(verb, k)
		if strings.Contains(got, hex.EncodeToString(seed)) || strings.Contains(got, fmt.Sprint(seed)) || !strings.Contains(got, string(k.Public().ID())) {
			t.Errorf("%s prints %q, want the key id and no secret", verb, got)
		}
	}
}

// A message that could be an envelope's is signed only as one.
func TestSignWithoutPAE(t *testing.T) {
	for _, algorithm := range []string{dsse.Ed25519, dsse.ECDSAP256} {
		key, err := dsse.GenerateKey(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := key.SignWithoutPAE([]byte("cosignature/v1\n"))
		if err != nil || !key.Public().Verify([]byte("cosignature/v1\n"), sig) {
			t.Errorf("%s: SignWithoutPAE = %x, %v", algorithm, sig, err)
		}
		if sig, err := key.SignWithoutPAE(dsse.PAE(dsse.PayloadType, []byte("{}"))); err == nil || sig != nil {
			t.Errorf("%s: SignWithoutPAE of a PAE = %x, %v, want an error", algorithm, sig, err)
		}
	}
	if sig, err := (dsse.PrivateKey{}).SignWithoutPAE([]byte("x")); err == nil || sig != nil {
		t.Errorf("SignWithoutPAE of the zero key = %x, %v, want an error", sig, err)
	}
}

func TestVerifySHA256(t *testing.T) {
	message := hashpipe.SumBytes([]byte("message")).Claim()
	for algorithm, want := range map[string]bool{dsse.ECDSAP256: true, dsse.Ed25519: false} {
		key, err := dsse.GenerateKey(algorithm)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := key.SignWithoutPAE([]byte("message"))
		if err != nil {
			t.Fatal(err)
		}
		k := key.Public()
		// Nobody knows a message of the zero digest, whatever is signed of it.
		signer := pkcs8(t, must(key.PEM()))
		zero := make([]byte, 32)
		var ofZero []byte
		if algorithm == dsse.ECDSAP256 {
			ofZero = must(signer.Sign(rand.Reader, zero, crypto.SHA256))
		}
		if k.VerifySHA256(hashpipe.Digest{}, ofZero) {
			t.Errorf("%s: a signature of the zero digest verifies", algorithm)
		}
		if got := k.VerifySHA256(message, sig); got != want {
			t.Errorf("%s: VerifySHA256 = %v, want %v", algorithm, got, want)
		}
		for _, tt := range []struct {
			key    dsse.PublicKey
			digest hashpipe.Digest
			sig    []byte
		}{
			{k, hashpipe.SumBytes([]byte("other")).Claim(), sig},
			{k, hashpipe.Digest{}, sig},
			{k, message, nil},
			{k, message, sig[:len(sig)-1]},
			{dsse.PublicKey{}, message, sig},
		} {
			if tt.key.VerifySHA256(tt.digest, tt.sig) {
				t.Errorf("%s: VerifySHA256(%v, %x) = true", algorithm, tt.digest, tt.sig)
			}
		}
	}
}
