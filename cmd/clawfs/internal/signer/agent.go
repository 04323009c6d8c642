// Package signer holds keys that lie outside this process: with an ssh-agent
// (OpenAgent), or behind a program that speaks to a KMS or an HSM (OpenProgram;
// its protocol is in docs/operations.md, "Signing with a KMS or an HSM").
//
// Neither is trusted with anything but its key: answers are bounded in size and
// time, and dsse.SignContext verifies each signature before it is used.
package signer

import (
	"context"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/openclaw/clawfs/verifier/dsse"
)

// TimeLimit is how long a signer may take for one answer: somebody may have to
// find a token and touch it.
const TimeLimit = 2 * time.Minute

// sk are the types of keys that lie in a FIDO token. Such a token signs its own
// counter and flags with the message, which no verifier of DSSE understands.
var sk = []string{ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256}

var (
	keyID       = regexp.MustCompile(`^[0-9a-f]{64}$`)
	anyCaseHex  = regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)
	fingerprint = regexp.MustCompile(`^SHA256:[A-Za-z0-9+/]{43}$`)
)

// Agent is a key that an ssh-agent holds.
type Agent struct {
	socket      string
	timeLimit   time.Duration
	public      dsse.PublicKey
	blob        ssh.PublicKey
	fingerprint string
}

// IsAgentRef reports whether ref names a key by itself: a key id, or the
// fingerprint "SHA256:…" that ssh-add -l shows. An error means that it was meant
// to and does not.
func IsAgentRef(ref string) (bool, error) {
	switch {
	case keyID.MatchString(ref), fingerprint.MatchString(ref):
		return true, nil
	case strings.HasPrefix(ref, "SHA256:"):
		return false, fmt.Errorf("ssh-agent: fingerprint %.80q: expected SHA256: and 43 characters of base64, as ssh-add -l shows", ref)
	case anyCaseHex.MatchString(ref):
		return false, fmt.Errorf("ssh-agent: key id %s: expected lower-case hex", ref)
	}
	return false, nil
}

// AgentRef returns the fingerprint of the public key file with this text.
func AgentRef(text []byte) (string, error) {
	if key, _, _, _, err := ssh.ParseAuthorizedKey(text); err == nil {
		if err := refuseSK(key.Type()); err != nil {
			return "", err
		}
	}
	key, err := dsse.ParsePublicKey(text)
	if err != nil {
		return "", err
	}
	_, fp := key.OpenSSH()
	return fp, nil
}

func refuseSK(keyType string) error {
	if slices.Contains(sk, keyType) {
		return fmt.Errorf("%s is a FIDO key: what its token signs is not the message alone, and no verifier accepts it; use an Ed25519 or ECDSA P-256 key", keyType)
	}
	return nil
}

// OpenAgent finds the key that ref names (IsAgentRef) with the agent that
// listens on socket. timeLimit bounds this and each signature; 0 is TimeLimit.
func OpenAgent(ctx context.Context, socket, ref string, timeLimit time.Duration) (*Agent, error) {
	if named, err := IsAgentRef(ref); err != nil || !named {
		return nil, errors.Join(err, fmt.Errorf("ssh-agent: %.80q is neither a key id nor a fingerprint", ref))
	}
	a := &Agent{socket: socket, timeLimit: timeLimit}
	var held []*agent.Key
	err := a.talk(ctx, func(c agent.ExtendedAgent) (err error) {
		held, err = c.List()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ssh-agent at %s: listing its keys: %w", socket, err)
	}
	for _, k := range held {
		blob, err := ssh.ParsePublicKey(k.Blob)
		if err != nil {
			continue // of a kind that is not known here
		}
		fp := ssh.FingerprintSHA256(blob)
		public, parseErr := dsse.ParsePublicKey(ssh.MarshalAuthorizedKey(blob))
		if fp != ref && (parseErr != nil || string(public.ID()) != ref) {
			continue
		}
		if err := errors.Join(refuseSK(blob.Type()), parseErr); err != nil {
			return nil, fmt.Errorf("ssh-agent at %s: key %s: %w", socket, fp, err)
		}
		a.public, a.blob, a.fingerprint = public, blob, fp
		return a, nil
	}
	return nil, fmt.Errorf("ssh-agent at %s: none of its %d keys is %s; next: ssh-add KEYFILE", socket, len(held), ref)
}

// Public returns the key.
func (a *Agent) Public() dsse.PublicKey { return a.public }

// String names the key as ssh-add -l does.
func (a *Agent) String() string { return "ssh-agent key " + a.fingerprint }

// Sign asks the agent for a signature over PAE(payloadType, payload).
func (a *Agent) Sign(ctx context.Context, payloadType string, payload []byte) ([]byte, error) {
	var sig *ssh.Signature
	err := a.talk(ctx, func(c agent.ExtendedAgent) (err error) {
		sig, err = c.Sign(a.blob, dsse.PAE(payloadType, payload))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("asking %s to sign: %w", a.socket, err)
	}
	if sig.Format != a.blob.Type() {
		return nil, fmt.Errorf("expected a signature of %s, got %.40q", a.blob.Type(), sig.Format)
	}
	if a.public.Algorithm() == dsse.Ed25519 {
		return sig.Blob, nil // RFC 8709: the 64 bytes of RFC 8032
	}
	// RFC 5656: r and s as two mpints, over the SHA-256 for nistp256.
	var pair struct{ R, S *big.Int }
	if err := ssh.Unmarshal(sig.Blob, &pair); err != nil {
		return nil, fmt.Errorf("the signature is not the two numbers of ECDSA: %w", err)
	}
	return asn1.Marshal(pair)
}

// talk connects for one exchange: minutes may lie between two.
func (a *Agent) talk(ctx context.Context, exchange func(agent.ExtendedAgent) error) error {
	limit := a.timeLimit
	if limit == 0 {
		limit = TimeLimit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", a.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := exchange(agent.NewClient(conn)); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	return nil
}
