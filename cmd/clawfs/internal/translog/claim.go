package translog

import (
	"fmt"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// kinds are the predicate types that a log takes.
var kinds = map[string]tlog.Kind{
	verifier.LedgerType:     tlog.KindSBA,
	capstore.CapabilityType: tlog.KindCapability,
	capstore.RevocationType: tlog.KindRevocation,
	capstore.HeadType:       tlog.KindStoreHead,
}

// claim is what a payload says of itself, whatever else is in it.
type claim struct {
	PredicateType string `json:"predicateType"`
	Predicate     struct {
		Model     string   `json:"model"`
		Publisher namedKey `json:"publisher"`
		Minter    namedKey `json:"minter"`
		Revoker   namedKey `json:"revoker"`
		Signer    namedKey `json:"signer"`
	} `json:"predicate"`
}

type namedKey struct {
	KeyID dsse.KeyID `json:"keyid"`
}

// ClaimedKind returns what a payload says that it is: a ledger, a capability, a
// revocation or a store's head. Anything else is an error.
func ClaimedKind(payload []byte) (tlog.Kind, error) {
	_, kind, err := readClaim(payload)
	return kind, err
}

func readClaim(payload []byte) (claim, tlog.Kind, error) {
	var c claim
	if err := json.Unmarshal(payload, &c); err != nil {
		return claim{}, "", fmt.Errorf("payload: expected an in-toto statement: %w", err)
	}
	kind, ok := kinds[c.PredicateType]
	if !ok {
		return claim{}, "", fmt.Errorf("payload: expected the predicateType of a ledger, a capability, a revocation or a store's head, got %q", clip(c.PredicateType))
	}
	return c, kind, nil
}

// ClaimedLeaf returns the leaf that a log has for an envelope, if the envelope is
// what its payload says. Nothing of it is checked: it serves to look for an
// entry.
func ClaimedLeaf(e dsse.Envelope) (tlog.Leaf, error) {
	payload := e.UnverifiedPayload()
	c, kind, err := readClaim(payload)
	if err != nil {
		return tlog.Leaf{}, err
	}
	signer, model := c.Predicate.Publisher.KeyID, c.Predicate.Model
	switch kind {
	case tlog.KindCapability:
		signer = c.Predicate.Minter.KeyID
	case tlog.KindRevocation:
		signer, model = c.Predicate.Revoker.KeyID, ""
	case tlog.KindStoreHead:
		signer, model = c.Predicate.Signer.KeyID, ""
	}
	return tlog.UnverifiedLeafOf(kind, payload, signer, model)
}
