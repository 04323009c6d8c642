package config

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// Policy is one reading of policy.json.
type Policy struct {
	*verifier.Policy
	// Digest is the SHA-256 of the text, to tell one reading from another.
	Digest hashpipe.Digest

	local string // the operator whose mint this state directory has
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
	local, err := s.localOperator(p)
	if err != nil {
		return Policy{}, err
	}
	return Policy{Policy: p, Digest: hashpipe.SumBytes(b).Claim(), local: local}, nil
}

// localOperator is whose mint this state directory has, "" if the policy does not
// name its key or it has none.
func (s State) localOperator(p *verifier.Policy) (string, error) {
	b, err := ReadPublic(s.MintPublic())
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("mint's public key: %w", err)
	}
	key, err := dsse.ParsePublicKey(b)
	if err != nil {
		return "", fmt.Errorf("mint's public key %s: %w", s.MintPublic(), err)
	}
	for _, o := range p.Mints {
		if slices.Contains(o.Keys, key) {
			return o.Operator, nil
		}
	}
	return "", nil
}

// Trust is the part of the policy that a store and a mount pin: whose
// capabilities and whose revocations count, and how many of them.
func (p Policy) Trust() capstore.Trust {
	t := capstore.Trust{Mints: signers(p.Mints), Revokers: signers(p.Revokers), Local: p.local, Expires: p.Expires.Time()}
	for _, r := range p.Accept {
		local := capstore.LocalVote(r.Local)
		if r.Local == verifier.LocalCounts {
			local = capstore.LocalCounts
		}
		t.Rules = append(t.Rules, capstore.Rule{
			Models: r.Models, Operators: r.Operators, Threshold: int(r.Threshold),
			Local: local, MaxListAge: time.Duration(r.MaxListAgeSeconds) * time.Second,
		})
	}
	return t
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
