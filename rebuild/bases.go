package rebuild

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

// Bases are the capabilities of the models that a ledger starts from, by the
// models' own names in the ledger ("base" for "model:base").
type Bases map[string]capstore.Capability

// LiveBases finds for each model that a ledger starts from a capability that is
// granted at now. A *Failure of POLICY_REFUSED names those that have none: a
// build must not start from what nobody would be allowed to open.
func LiveBases(view *capstore.View, st verifier.Statement, now time.Time) (Bases, error) {
	models := st.Models()
	bases := make(Bases, len(models))
	size := 0
	for _, name := range slices.Sorted(maps.Keys(models)) {
		claim := models[name].Digest.ClawfsClaim1
		c, live := view.Live(claim, now)
		if r := view.Lost(claim).By; !live && !r.IsZero() {
			return nil, fail(capstore.PolicyRefused, "input %s%s: the model of claim %s was taken back, and is granted no more (%s %s: %s); next: start from another model, by another ledger", verifier.ModelPrefix, name, claim, r.Kind(), r.Target(), escape(r.Reason()))
		}
		if !live {
			return nil, fail(capstore.PolicyRefused, "input %s%s: no live capability without restrictions has the claim %s; next: clawfs caps, then clawfs grant the attestation of that model first", verifier.ModelPrefix, name, claim)
		}
		bases[name] = c
		if size += len(c.Envelope()); size > maxBases {
			return nil, fail(capstore.PolicyRefused, "the capabilities of the %d models that the ledger starts from are longer than %d bytes together", len(models), maxBases)
		}
	}
	return bases, nil
}

// maxBases bounds in bytes the envelopes that travel to a worker in one file,
// which has to stay below maxJobFile in base64.
const maxBases = 5 << 20

// envelopes are the bases as they travel to a worker, by name.
func (b Bases) envelopes() map[string][]byte {
	if len(b) == 0 {
		return nil
	}
	list := make(map[string][]byte, len(b))
	for name, c := range b {
		list[name] = c.Envelope()
	}
	return list
}

// readBases checks the envelopes that the daemon handed over by the policy's
// own mints: the worker signs what it builds from them, so it takes nobody's
// word for what they are. That none of them was revoked the daemon has checked,
// and checks again before it admits what is minted.
func readBases(policy *verifier.Policy, st verifier.Statement, envelopes map[string][]byte, now time.Time) (Bases, error) {
	if len(st.Models()) == 0 {
		return nil, nil
	}
	view, err := capstore.NewView(capstore.Trust{Mints: signers(policy.Mints), Revokers: signers(policy.Revokers)})
	if err != nil {
		return nil, err
	}
	for name, envelope := range envelopes {
		if _, err := view.Admit(envelope); err != nil {
			return nil, fail(capstore.PolicyRefused, "input %s%s: %v", verifier.ModelPrefix, name, err)
		}
	}
	return LiveBases(view, st, now)
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

// check refuses bases that are not those of the ledger.
func (b Bases) check(st verifier.Statement) error {
	models := st.Models()
	for name, d := range models {
		if c, ok := b[name]; !ok || c.Claim() != d.Digest.ClawfsClaim1 {
			return fmt.Errorf("input %s%s: no capability of the claim %s was given", verifier.ModelPrefix, name, d.Digest.ClawfsClaim1)
		}
	}
	return nil
}
