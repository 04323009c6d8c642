package verifier

// Reason is the kind of a Refusal, for callers that branch on it.
type Reason string

// The reasons, in the order in which Verify looks.
const (
	// ReasonMalformed: not an envelope, not a ledger, or too large.
	ReasonMalformed Reason = "malformed"
	// ReasonSignature: no signature by any publisher key of the policy.
	ReasonSignature Reason = "signature"
	// ReasonSigner: signed by a known key, but not by (enough of) those that
	// may speak for this model, or the ledger names another key.
	ReasonSigner Reason = "signer"
	// ReasonPolicy: the policy does not allow what the ledger asks for.
	ReasonPolicy Reason = "policy"
	// ReasonRollback: the sequence lies below the pinned minimum.
	ReasonRollback Reason = "rollback"
	// ReasonTime: the ledger says it was issued in the future.
	ReasonTime Reason = "time"
	// ReasonLog: the policy wants a log proof, and none came with the SBA.
	ReasonLog Reason = "log"
)

// The reasons for not believing a log proof, one for each tlog.Reason. Verify
// gives the first five; the others need a memory of what was seen before
// (RefuseLog).
const (
	ReasonLogMalformed   Reason = "log-malformed"
	ReasonLogOrigin      Reason = "log-origin"
	ReasonLogSignature   Reason = "log-signature"
	ReasonLogQuorum      Reason = "log-quorum"
	ReasonLogInclusion   Reason = "log-inclusion"
	ReasonLogOlder       Reason = "log-older"
	ReasonLogConsistency Reason = "log-consistency"
	ReasonLogFork        Reason = "log-fork"
)

// Refusal says why something was not believed: what was expected and what was
// found.
type Refusal struct {
	Reason Reason
	Detail string
}

// Error returns the detail.
func (r *Refusal) Error() string { return r.Detail }
