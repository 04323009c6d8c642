package verifier_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
	"github.com/openclaw/clawfs/verifier/tlog/tlogtest"
)

// leaf is what a log holds of an SBA that key signed.
func leaf(t *testing.T, payload []byte, key dsse.PublicKey, model string) tlog.Leaf {
	t.Helper()
	l, err := tlog.LeafOf(tlog.KindSBA, payload, key, model)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// withLogs is p with the logs of a policy text; required or not.
func (p party) withLogs(t *testing.T, logs, required string) *verifier.Policy {
	t.Helper()
	q := *p.policy
	q.Logs = logs
	q.Publishers = []verifier.PublisherRule{p.policy.Publishers[0]}
	q.Publishers[0].Log = required
	return &q
}

func believed(t *testing.T, p *verifier.Policy, sba verifier.SBA) verifier.Attestation {
	t.Helper()
	v, err := verifier.New(p)
	if err != nil {
		t.Fatal(err)
	}
	att, err := v.Verify(sba, now)
	if err != nil {
		t.Fatal(err)
	}
	return att
}

func TestVerifyLogProof(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	st := statement(t, p.publisher.Public())
	payload := payload(t, st)
	sba, err := verifier.ParseSBA(sign(t, dsse.PayloadType, payload, p.publisher))
	if err != nil {
		t.Fatal(err)
	}

	log := tlogtest.New("log.example/models", "alice", "bob")
	log.Fill(t, 5)
	index := log.Add(t, leaf(t, payload, p.publisher.Public(), "acme/langid"))
	log.Fill(t, 3)
	size := log.Size()
	good := log.Proof(t, index, size)

	alone := tlogtest.New(log.Origin, "alice")
	alone.Add(t, leaf(t, payload, p.publisher.Public(), "acme/langid"))
	twice := tlogtest.New(log.Origin, "alice", "alice")
	twice.Add(t, leaf(t, payload, p.publisher.Public(), "acme/langid"))
	elsewhere := tlogtest.New("log.example/other", "alice", "bob")
	elsewhere.Add(t, leaf(t, payload, p.publisher.Public(), "acme/langid"))
	otherRoot := tlogtest.New(log.Origin, "alice", "bob")
	otherRoot.Fill(t, int(size))
	// The path of one tree over the checkpoint of another.
	i := bytes.Index(good, []byte("\n\n")) + 2
	mixed := append(bytes.Clone(good[:i]), otherRoot.Checkpoint(t, size)...)
	other := tlogtest.New(log.Origin, "alice", "bob")
	wrongModel := other.Add(t, leaf(t, payload, p.publisher.Public(), "acme/other"))
	wrongSigner := other.Add(t, leaf(t, payload, p.stranger.Public(), "acme/langid"))
	wrongPayload := other.Add(t, leaf(t, append(bytes.Clone(payload), ' '), p.publisher.Public(), "acme/langid"))
	kind, err := tlog.LeafOf(tlog.KindCapability, payload, p.publisher.Public(), "acme/langid")
	if err != nil {
		t.Fatal(err)
	}
	wrongKind := other.Add(t, kind)
	flipped := bytes.Clone(good)
	if at := &flipped[len(flipped)-20]; *at == 'A' {
		*at = 'B'
	} else {
		*at = 'A'
	}

	for _, tt := range []struct {
		name  string
		proof []byte
		want  verifier.Reason
		text  string
	}{
		{"none", nil, verifier.ReasonLog, "expected the file FILE.sba.tlog-proof"},
		{"empty", []byte{}, verifier.ReasonLogMalformed, "expected the line"},
		{"garbage", []byte("garbage\n"), verifier.ReasonLogMalformed, "expected the line"},
		{"cut short", good[:len(good)-1], verifier.ReasonLogMalformed, "newline"},
		{"a checkpoint alone", log.Checkpoint(t, size), verifier.ReasonLogMalformed, "expected the line"},
		{"another signature", flipped, verifier.ReasonLogSignature, "does not verify"},
		{"wrong origin", elsewhere.Proof(t, 0, 1), verifier.ReasonLogOrigin, `got "log.example/other"`},
		{"a witness missing", alone.Proof(t, 0, 1), verifier.ReasonLogQuorum, "got alice"},
		{"one authority twice", twice.Proof(t, 0, 1), verifier.ReasonLogMalformed, "signs twice"},
		{"another leaf", log.Proof(t, index-1, size), verifier.ReasonLogInclusion, "lead elsewhere"},
		{"another index", bytes.Replace(good, []byte("index 5\n"), []byte("index 4\n"), 1), verifier.ReasonLogInclusion, "lead elsewhere"},
		{"index beyond the size", bytes.Replace(good, []byte("index 5\n"), []byte("index 9\n"), 1), verifier.ReasonLogInclusion, "below 9"},
		{"another root", mixed, verifier.ReasonLogInclusion, "lead elsewhere"},
		{"another model's", other.Proof(t, wrongModel, other.Size()), verifier.ReasonLogInclusion, "lead elsewhere"},
		{"another signer's", other.Proof(t, wrongSigner, other.Size()), verifier.ReasonLogInclusion, "lead elsewhere"},
		{"another payload's", other.Proof(t, wrongPayload, other.Size()), verifier.ReasonLogInclusion, "lead elsewhere"},
		{"of another kind", other.Proof(t, wrongKind, other.Size()), verifier.ReasonLogInclusion, "lead elsewhere"},
	} {
		given := sba
		if tt.proof != nil {
			if given, err = sba.WithProof(tt.proof); err != nil {
				t.Fatal(err)
			}
		}
		for _, required := range []string{verifier.LogRequired, ""} {
			v, err := verifier.New(p.withLogs(t, log.Policy(""), required))
			if err != nil {
				t.Fatal(err)
			}
			att, err := v.Verify(given, now)
			if tt.proof == nil && required == "" {
				if err != nil || !att.Checkpoint().IsZero() || att.Proof() != nil {
					t.Errorf("no proof, not required: %v, checkpoint of %q, want an attestation without one", err, att.Checkpoint().Origin())
				}
				continue
			}
			var r *verifier.Refusal
			if !errors.As(err, &r) || r.Reason != tt.want || !strings.Contains(r.Detail, tt.text) || !att.IsZero() {
				t.Errorf("%s, log %q: Verify = %v, want a refusal of reason %s with %q", tt.name, required, err, tt.want, tt.text)
			}
		}
		// Of a log that nobody believes nothing can be said.
		if att := believed(t, p.policy, given); !att.Checkpoint().IsZero() {
			t.Errorf("%s: a policy without logs gave a checkpoint", tt.name)
		}
	}

	given, err := sba.WithProof(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, required := range []string{verifier.LogRequired, ""} {
		att := believed(t, p.withLogs(t, log.Policy(""), required), given)
		c := att.Checkpoint()
		if c.Origin() != log.Origin || c.Size() != size || att.LogIndex() != index || len(c.Cosignatures()) != 2 || !bytes.Equal(att.Proof(), good) {
			t.Errorf("log %q: checkpoint %q of size %d, index %d, %d cosignatures", required, c.Origin(), c.Size(), att.LogIndex(), len(c.Cosignatures()))
		}
	}
	if att := believed(t, p.policy, sba); !att.Checkpoint().IsZero() {
		t.Error("WithProof changed the SBA that it was called on")
	}
	if _, err := sba.WithProof(make([]byte, tlog.MaxProof+1)); err == nil || !strings.Contains(err.Error(), "expected at most") {
		t.Errorf("WithProof of more than MaxProof bytes: %v", err)
	}
}

// Every reason of package tlog has one here, and none is the reason of another.
func TestRefuseLog(t *testing.T) {
	seen := make(map[verifier.Reason]bool)
	for _, reason := range []tlog.Reason{tlog.ReasonMalformed, tlog.ReasonOrigin, tlog.ReasonSignature, tlog.ReasonQuorum,
		tlog.ReasonInclusion, tlog.ReasonOlder, tlog.ReasonConsistency, tlog.ReasonFork} {
		r := verifier.RefuseLog("acme/langid", &tlog.Refusal{Reason: reason, Detail: "why"})
		if r.Reason != verifier.Reason("log-"+string(reason)) || seen[r.Reason] || r.Detail != "SBA of acme/langid: why" {
			t.Errorf("RefuseLog(%s) = %s %q", reason, r.Reason, r.Detail)
		}
		seen[r.Reason] = true
	}
	if r := verifier.RefuseLog("acme/langid", errors.New("no memory")); r.Reason != verifier.ReasonLogMalformed {
		t.Errorf("RefuseLog of another error = %s", r.Reason)
	}
}
