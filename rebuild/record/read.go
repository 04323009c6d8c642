package record

import (
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// Verified is a record whose signature was checked.
type Verified struct {
	Type    string
	Signer  dsse.KeyID
	Job     string
	Verdict capstore.Verdict // MINTED of provenance
	Payload []byte           // the very bytes that were signed

	// Outputs and SBA are what provenance says was built from what; of a File name
	// and digest alone. A failure has neither.
	Outputs []File
	SBA     hashpipe.Digest
}

// Read verifies an envelope by the keys of the mints that are trusted and says
// what it records. Fields that it does not know are passed over: a record
// grants nothing, so nothing is widened by them.
func Read(envelope []byte, mints []dsse.PublicKey) (Verified, error) {
	e, err := dsse.Parse(envelope)
	if err != nil {
		return Verified{}, fmt.Errorf("record: %w", err)
	}
	payload, signers, err := e.Verify(dsse.PayloadType, mints, 1)
	if err != nil {
		return Verified{}, fmt.Errorf("record: %w", err)
	}
	var st struct {
		Type          string         `json:"_type"`
		PredicateType string         `json:"predicateType"`
		Predicate     jsontext.Value `json:"predicate"`
	}
	if err := json.Unmarshal(payload, &st); err != nil {
		return Verified{}, fmt.Errorf("record: %w", err)
	}
	v := Verified{Type: st.PredicateType, Signer: signers[0].ID(), Payload: payload}
	switch {
	case st.Type != verifier.StatementType:
		return Verified{}, fmt.Errorf("record: _type is %.100q, want %q", st.Type, verifier.StatementType)
	case st.PredicateType == ProvenanceType:
		var p struct {
			RunDetails struct {
				Metadata metadata `json:"metadata"`
			} `json:"runDetails"`
		}
		err = json.Unmarshal(st.Predicate, &p)
		v.Job, v.Verdict = p.RunDetails.Metadata.InvocationID, capstore.Minted
		if err == nil {
			err = v.readOutputs(payload)
		}
	case st.PredicateType == FailureType:
		var p struct {
			Verdict  capstore.Verdict `json:"verdict"`
			Metadata metadata         `json:"metadata"`
		}
		err = json.Unmarshal(st.Predicate, &p)
		v.Job, v.Verdict = p.Metadata.InvocationID, p.Verdict
		if err == nil && (!v.Verdict.Valid() || v.Verdict.Granted()) {
			err = fmt.Errorf("verdict %.100q", p.Verdict)
		}
	default:
		return Verified{}, fmt.Errorf("record: predicateType is %.100q, want %q or %q", st.PredicateType, ProvenanceType, FailureType)
	}
	if err != nil {
		return Verified{}, fmt.Errorf("record: %w", err)
	}
	return v, nil
}

// readOutputs reads what provenance says was built, and from what.
func (v *Verified) readOutputs(payload []byte) error {
	var st struct {
		Subject   []subject `json:"subject"`
		Predicate struct {
			RunDetails struct {
				Byproducts []struct {
					Name   string     `json:"name"`
					Digest *digestSet `json:"digest"`
				} `json:"byproducts"`
			} `json:"runDetails"`
		} `json:"predicate"`
	}
	if err := json.Unmarshal(payload, &st); err != nil {
		return err
	}
	for _, s := range st.Subject {
		v.Outputs = append(v.Outputs, File{Name: s.Name, Digest: s.Digest.SHA256})
	}
	for _, b := range st.Predicate.RunDetails.Byproducts {
		if b.Name == attestationName && b.Digest != nil {
			v.SBA = b.Digest.SHA256
		}
	}
	if len(v.Outputs) == 0 || v.SBA.IsZero() {
		return fmt.Errorf("provenance without outputs or attestation")
	}
	return nil
}
