package config

import (
	"fmt"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
)

// Policy is one reading of policy.json.
type Policy struct {
	*verifier.Policy
	// Digest is the SHA-256 of the text, to tell one reading from another.
	Digest hashpipe.Digest
}

// LoadPolicy reads and checks policy.json. The file is the root of all trust:
// one that somebody else could have written is refused.
func (s State) LoadPolicy() (Policy, error) {
	b, err := ReadPublic(s.Policy())
	if err != nil {
		return Policy{}, fmt.Errorf("policy: %w", err)
	}
	p, err := verifier.ParsePolicy(b)
	if err != nil {
		return Policy{}, fmt.Errorf("policy %s: %w", s.Policy(), err)
	}
	return Policy{Policy: p, Digest: hashpipe.SumBytes(b).Claim()}, nil
}

// Trust is the part of the policy that a store and a mount pin: whose
// capabilities and whose revocations count.
func (p Policy) Trust() capstore.Trust {
	return capstore.Trust{Mints: signers(p.Mints), Revokers: signers(p.Revokers)}
}

func signers(operators []verifier.Operator) []capstore.Signer {
	var list []capstore.Signer
	for _, o := range operators {
		for _, k := range o.Keys {
			list = append(list, capstore.Signer{Operator: o.Operator, Key: k})
		}
	}
	return list
}

// Verify checks an envelope against the policy at the moment now. Every error
// that is about the envelope is a *verifier.Refusal.
func (p Policy) Verify(envelope []byte, now time.Time) (verifier.Attestation, error) {
	sba, err := verifier.ParseSBA(envelope)
	if err != nil {
		return verifier.Attestation{}, err
	}
	v, err := verifier.New(p.Policy)
	if err != nil {
		return verifier.Attestation{}, fmt.Errorf("policy: %w", err)
	}
	return v.Verify(sba, now)
}
