package verifier

import (
	"errors"
	"slices"
	"strings"

	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// Where the proof of FILE.sba lies, and the consistency proof that a verifier
// needs who has seen another checkpoint of the log: the names of the files are
// the SBA's and these.
const (
	ProofSuffix       = ".tlog-proof"
	ConsistencySuffix = ".tlog-consistency"
)

// logged is what a proof showed; zero: nothing.
type logged struct {
	checkpoint tlog.Checkpoint
	index      int64
	proof      []byte
}

// WithProof returns s with the text of a log proof that came with it. It is not
// looked at before Verify, which refuses a proof that is wrong, also where none
// is needed: unless the policy names no log, so that nothing can be said about
// it. A text that is longer than any proof is a *Refusal.
func (s SBA) WithProof(proof []byte) (SBA, error) {
	if len(proof) > tlog.MaxProof {
		return SBA{}, refuse(ReasonLogMalformed, "log proof: expected at most %d bytes, got %d", tlog.MaxProof, len(proof))
	}
	s.proof = append([]byte{}, proof...) // an empty text was given too
	return s, nil
}

// Checkpoint returns the checkpoint of a log in which the SBA was shown to lie;
// the zero Checkpoint if Verify looked at no proof. That it is the newest one,
// or of the same tree as the last, only a tlog.Memory knows.
func (a Attestation) Checkpoint() tlog.Checkpoint { return a.logged.checkpoint }

// LogIndex returns the index of the SBA's record in the log of Checkpoint, from
// 0.
func (a Attestation) LogIndex() int64 { return a.logged.index }

// Proof returns a copy of the log proof that was verified, nil if there was none.
func (a Attestation) Proof() []byte { return slices.Clone(a.logged.proof) }

// logged checks the proof of a payload whose publisher was verified.
func (p *Policy) logged(r PublisherRule, proof, payload []byte, publisher dsse.PublicKey, model string) (logged, error) {
	logs, err := p.LogPolicy()
	switch {
	case err != nil:
		return logged{}, refuse(ReasonPolicy, "SBA of %s: %v", model, err)
	case r.Log == LogRequired && proof == nil:
		return logged{}, refuse(ReasonLog, "SBA of %s: the policy wants ledgers of publisher %s in a log (%s), and no proof came with this one: expected the file FILE.sba%s",
			model, r.Name, strings.Join(origins(logs), ", "), ProofSuffix)
	case proof == nil || logs.IsZero() && r.Log != LogRequired:
		return logged{}, nil
	}
	leaf, err := tlog.LeafOf(tlog.KindSBA, payload, publisher, model)
	if err != nil {
		return logged{}, refuse(ReasonLogMalformed, "SBA of %s: %v", model, err)
	}
	c, err := tlog.Verify(logs, proof, leaf)
	if err != nil {
		return logged{}, RefuseLog(model, err)
	}
	parsed, err := tlog.ParseProof(proof)
	if err != nil {
		return logged{}, RefuseLog(model, err)
	}
	return logged{c, parsed.Index, proof}, nil
}

// RefuseLog is the *Refusal of an SBA of model for an error of package tlog: of
// Verify, or of Memory.Advance and Memory.Extends, which are the caller's to ask
// after Verify here. An error that is no *tlog.Refusal refuses too.
func RefuseLog(model string, err error) *Refusal {
	reason := ReasonLogMalformed
	var r *tlog.Refusal
	if errors.As(err, &r) {
		switch r.Reason {
		case tlog.ReasonMalformed:
		case tlog.ReasonOrigin:
			reason = ReasonLogOrigin
		case tlog.ReasonSignature:
			reason = ReasonLogSignature
		case tlog.ReasonQuorum:
			reason = ReasonLogQuorum
		case tlog.ReasonInclusion:
			reason = ReasonLogInclusion
		case tlog.ReasonOlder:
			reason = ReasonLogOlder
		case tlog.ReasonConsistency:
			reason = ReasonLogConsistency
		case tlog.ReasonFork:
			reason = ReasonLogFork
		}
	}
	return refuse(reason, "SBA of %s: %v", model, err)
}

func origins(logs tlog.Policy) []string {
	var names []string
	for _, l := range logs.Logs() {
		names = append(names, l.Key.Name())
	}
	return names
}
