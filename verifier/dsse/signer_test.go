package dsse_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/verifier/dsse"
)

// machine is a Signer that lies elsewhere and answers what it likes.
type machine struct {
	name   string
	public dsse.PublicKey
	sign   func(ctx context.Context, payloadType string, payload []byte) ([]byte, error)
}

func (m machine) Public() dsse.PublicKey { return m.public }
func (m machine) String() string         { return m.name }
func (m machine) Sign(ctx context.Context, payloadType string, payload []byte) ([]byte, error) {
	return m.sign(ctx, payloadType, payload)
}

// SignContext takes keys of this process and of other places together, in the
// order in which they are given.
func TestSignContext(t *testing.T) {
	a, b := newKey(t, dsse.ECDSAP256), newKey(t, dsse.Ed25519)
	type contextKey struct{}
	ctx := context.WithValue(context.Background(), contextKey{}, "hello")
	elsewhere := machine{"hsm 1", b.Public(), func(got context.Context, payloadType string, p []byte) ([]byte, error) {
		if got.Value(contextKey{}) != "hello" || payloadType != dsse.PayloadType || string(p) != payload {
			t.Errorf("the signer was asked for %q of type %q under %v", p, payloadType, got)
		}
		return b.Sign(got, payloadType, p)
	}}
	for _, signers := range [][]dsse.Signer{{a, elsewhere}, {elsewhere, a}, {elsewhere}} {
		data, err := dsse.SignContext(ctx, dsse.PayloadType, []byte(payload), signers...)
		if err != nil {
			t.Fatal(err)
		}
		e, err := dsse.Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		var keys []dsse.PublicKey
		for _, s := range signers {
			keys = append(keys, s.Public())
		}
		if _, _, err := e.Verify(dsse.PayloadType, keys, len(keys)); err != nil {
			t.Errorf("an envelope of %v: %v", signers, err)
		}
	}
}

// Whatever a signer returns is verified before it is used, and the error names
// the one that lied.
func TestSignContextRefusesWrongSignatures(t *testing.T) {
	ctx := context.Background()
	honest, key, other := newKey(t, dsse.Ed25519), newKey(t, dsse.Ed25519), newKey(t, dsse.Ed25519)
	p256 := newKey(t, dsse.ECDSAP256)
	answer := func(sig []byte, err error) func(context.Context, string, []byte) ([]byte, error) {
		return func(context.Context, string, []byte) ([]byte, error) { return sig, err }
	}
	raw, err := key.SignRaw([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("the token was pulled out")
	tests := []struct {
		name   string
		public dsse.PublicKey
		sign   func(context.Context, string, []byte) ([]byte, error)
		want   error
	}{
		{"nothing", key.Public(), answer(nil, nil), dsse.ErrWrongSignature},
		{"64 zero bytes", key.Public(), answer(make([]byte, 64), nil), dsse.ErrWrongSignature},
		{"another key's", key.Public(), other.Sign, dsse.ErrWrongSignature},
		{"another algorithm's", key.Public(), p256.Sign, dsse.ErrWrongSignature},
		{"r and s without ASN.1", p256.Public(), answer(make([]byte, 64), nil), dsse.ErrWrongSignature},
		{"over the payload without PAE", key.Public(), answer(raw, nil), dsse.ErrWrongSignature},
		{"over another type", key.Public(), func(ctx context.Context, _ string, p []byte) ([]byte, error) {
			return key.Sign(ctx, "text/plain", p)
		}, dsse.ErrWrongSignature},
		{"over a payload that it changed", key.Public(), func(ctx context.Context, typ string, p []byte) ([]byte, error) {
			p[0] ^= 1
			return key.Sign(ctx, typ, p)
		}, dsse.ErrWrongSignature},
		{"with a byte more", key.Public(), func(ctx context.Context, typ string, p []byte) ([]byte, error) {
			sig, err := key.Sign(ctx, typ, p)
			return append(sig, 0), err
		}, dsse.ErrWrongSignature},
		{"an error", key.Public(), answer(nil, gone), gone},
	}
	for _, tt := range tests {
		liar := machine{"hsm 7", tt.public, tt.sign}
		for _, signers := range [][]dsse.Signer{{liar}, {honest, liar}, {liar, honest}} {
			data, err := dsse.SignContext(ctx, dsse.PayloadType, []byte(payload), signers...)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "hsm 7") || data != nil {
				t.Errorf("%s: SignContext = %d bytes, %v, want an error that names the signer", tt.name, len(data), err)
			}
		}
	}
	asked := false
	never := machine{"never", key.Public(), func(context.Context, string, []byte) ([]byte, error) {
		asked = true
		return nil, gone
	}}
	for name, signers := range map[string][]dsse.Signer{
		"nil": {nil}, "zero key": {never, dsse.PrivateKey{}}, "no signer": {}, "one key twice": {never, key}, "nil beside another": {never, nil},
		"no public key": {machine{"never", dsse.PublicKey{}, never.sign}},
	} {
		if data, err := dsse.SignContext(ctx, dsse.PayloadType, []byte(payload), signers...); err == nil || data != nil {
			t.Errorf("%s: SignContext = %d bytes, want an error", name, len(data))
		}
	}
	if asked {
		t.Error("a signer was asked before all signers were looked at")
	}
}

// The forms of a key agree with ssh-keygen's.
func TestOpenSSH(t *testing.T) {
	for _, algorithm := range []string{"ed25519", "ecdsa"} {
		path := filepath.Join(t.TempDir(), "id")
		if out, err := exec.Command("ssh-keygen", "-q", "-t", algorithm, "-N", "", "-C", "", "-f", path).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v\n%s\ninstall it: apt-get install openssh-client", err, out)
		}
		text, err := os.ReadFile(path + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		list, err := exec.Command("ssh-keygen", "-l", "-f", path+".pub").Output()
		if err != nil {
			t.Fatal(err)
		}
		key, err := dsse.ParsePublicKey(text)
		if err != nil {
			t.Fatal(err)
		}
		line, fingerprint := key.OpenSSH()
		if line != strings.TrimSpace(string(text)) || !strings.Contains(string(list), " "+fingerprint+" ") {
			t.Errorf("OpenSSH() = %q, %q, want %q and the fingerprint of %q", line, fingerprint, text, list)
		}
	}
	if line, fingerprint := (dsse.PublicKey{}).OpenSSH(); line != "" || fingerprint != "" {
		t.Errorf("the zero key is %q, %q", line, fingerprint)
	}
}
