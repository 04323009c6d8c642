package main

import (
	"bytes"
	"fmt"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/registry"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// What a file can be, with the verb that takes it.
const (
	anAttestation = "an attestation (clawfs grant)"
	aCapability   = "a capability (clawfs import)"
	aSignedPolicy = "a signed policy (clawfs policy)"
	anyFile       = "" // wanted: none of these
)

// notThat adds to the error of reading text, which should be wanted, what kind of
// file it is, if that is another one and can be told. It believes no signature.
func notThat(err error, text []byte, wanted string) error {
	if err == nil {
		return nil
	}
	if what := whatIs(text); what != wanted && what != "" {
		return fmt.Errorf("%w; this file is %s", err, what)
	}
	return err
}

// whatIs names what text looks like and the verb that takes it; "": nothing that
// clawfs knows.
func whatIs(text []byte) string {
	if r, err := registry.Identify(text); err == nil {
		switch r.Kind {
		case registry.SBA:
			return anAttestation
		case registry.Capability:
			return aCapability
		case registry.Provenance:
			return "what a worker signed about a job (clawfs record --file)"
		case registry.Revocation, registry.RevocationList:
			return "a " + string(r.Kind) + " (clawfs revocations import)"
		case registry.Policy:
			return aSignedPolicy
		}
	}
	switch {
	case bytes.Contains(text, []byte("PRIVATE KEY-----")):
		return "a private key"
	case bytes.HasPrefix(text, []byte("c2sp.org/tlog-proof@")):
		return "a log proof"
	}
	if _, err := dsse.ParsePublicKey(text); err == nil {
		return "a public key"
	}
	if _, err := verifier.ParseRotation(text); err == nil {
		return "a key rotation (clawfs key adopt)"
	}
	if _, err := verifier.ParsePolicy(text); err == nil {
		return "a policy that nobody has signed (clawfs policy sign)"
	}
	var st struct {
		PredicateType string `json:"predicateType"`
	}
	if err := json.Unmarshal(text, &st); err == nil && st.PredicateType == verifier.LedgerType {
		return "a ledger that nobody has signed (clawfs ledger sign)"
	}
	return ""
}
