package config

import (
	"bytes"
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
	// Text is what was read.
	Text []byte
	// Digest is the SHA-256 of the text, to tell one reading from another.
	Digest hashpipe.Digest

	local string // the operator whose mint this state directory has
}

// LoadPolicy reads and checks policy.json. The file is the root of all trust:
// one that somebody else could have written is refused, and so is one with a
// root whose text is not what policy.dsse says that its root signed, or that is
// older than the newest that was installed here.
func (s State) LoadPolicy() (Policy, error) {
	var last []byte
	for {
		text, err := ReadPublic(s.Policy())
		if err != nil {
			return Policy{}, fmt.Errorf("policy: %w", err)
		}
		p, err := verifier.ParsePolicy(text)
		if err == nil {
			err = s.checkInstalled(p, text)
		}
		switch {
		case err == nil:
			local, err := s.LocalOperator(p)
			if err != nil {
				return Policy{}, err
			}
			return Policy{Policy: p, Text: text, Digest: hashpipe.SumBytes(text).Claim(), local: local}, nil
		case bytes.Equal(text, last):
			return Policy{}, fmt.Errorf("policy %s: %w", s.Policy(), err)
		}
		// An installation may have come between the reads of its files; then the
		// text is another one by now.
		last = text
	}
}

// LocalOperator is whose mint this state directory has, "" if the policy does not
// name its key or it has none.
func (s State) LocalOperator(p *verifier.Policy) (string, error) {
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

// Verify checks an envelope, and the log proof that came with it, if it is not
// nil, against the policy at the moment now. Every error that is about them is a
// *verifier.Refusal.
func (p Policy) Verify(envelope, proof []byte, now time.Time) (verifier.Attestation, error) {
	sba, err := verifier.ParseSBA(envelope)
	if err == nil && proof != nil {
		sba, err = sba.WithProof(proof)
	}
	if err != nil {
		return verifier.Attestation{}, err
	}
	v, err := verifier.New(p.Policy)
	if err != nil {
		return verifier.Attestation{}, fmt.Errorf("policy: %w", err)
	}
	return v.Verify(sba, now)
}
