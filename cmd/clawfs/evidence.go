package main

import (
	"fmt"
	"strings"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/sigstore"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// evidenceFlags name what somebody else says about a file.
type evidenceFlags struct{ bundle, key, log string }

// evidenceQuestion is a bundle that was read and what it will be asked.
type evidenceQuestion struct {
	path     string
	bundle   []byte
	question sigstore.Question
}

// read reads the files of the flags; nil if there is no bundle.
func (f evidenceFlags) read() (*evidenceQuestion, error) {
	switch given := f.bundle != ""; {
	case given != (f.key != ""):
		return nil, exitf(codeUsage, "--evidence and --evidence-key belong together: a bundle, and the key of whoever signed it")
	case !given && f.log != "":
		return nil, exitf(codeUsage, "--evidence-log needs --evidence too")
	case !given:
		return nil, nil
	}
	q := evidenceQuestion{path: f.bundle}
	var err error
	if q.question.Key, err = readPublicKey(f.key); err != nil {
		return nil, err
	}
	if f.log != "" {
		if q.question.Logs, err = readLogs(f.log); err != nil {
			return nil, err
		}
	}
	q.bundle, err = readBounded(f.bundle, sigstore.MaxBundle)
	return &q, err
}

// readLogs returns the policy that value is: the verifier key of a log, or a
// file with such a key or with a policy.
func readLogs(value string) (tlog.Policy, error) {
	one := func(k tlog.VerifierKey) (tlog.Policy, error) {
		return tlog.ParsePolicy([]byte("log " + k.String() + "\nquorum none\n"))
	}
	k, keyErr := tlog.ParseVerifierKey(value)
	if keyErr == nil {
		return one(k)
	}
	text, err := readBounded(value, tlog.MaxPolicy)
	if err != nil && strings.Count(value, "+") >= 2 {
		return tlog.Policy{}, fmt.Errorf("--evidence-log: %w", keyErr)
	}
	if err != nil {
		return tlog.Policy{}, fmt.Errorf("--evidence-log: expected a verifier key or a file: %w", err)
	}
	if k, err := tlog.ParseVerifierKey(strings.TrimSuffix(string(text), "\n")); err == nil {
		return one(k)
	}
	p, err := tlog.ParsePolicy(text)
	if err != nil {
		return tlog.Policy{}, fmt.Errorf("--evidence-log %s: %w", value, err)
	}
	return p, nil
}

// shownEvidence is what why says about a bundle. It has no part in the verdict.
type shownEvidence struct {
	Bundle string `json:"bundle"`
	// Verified says that the key signed it, that it is about this file if Compared,
	// and that Log holds it if it is named.
	Verified bool       `json:"verified"`
	Compared bool       `json:"compared"`          // with the SHA-256 that the mount measured
	Refused  string     `json:"refused,omitzero"`  // why it is no evidence
	Signer   dsse.KeyID `json:"signer,omitzero"`   // the key that was asked about
	Subjects []subject  `json:"subjects,omitzero"` // of this file if Compared, else all
	// PredicateType is the kind of statement, absent for a bare signature.
	PredicateType string    `json:"predicateType,omitzero"`
	Log           *logPlace `json:"log,omitzero"`
	Unchecked     int       `json:"uncheckedEntries,omitzero"` // log entries that nobody looked at
}

type subject struct {
	Name   string          `json:"name"`
	SHA256 hashpipe.Digest `json:"sha256"`
}

type logPlace struct {
	Origin string `json:"origin"`
	Index  int64  `json:"index"`
	Size   int64  `json:"size"` // of the checkpoint
}

// ask verifies the bundle for the file that e is about. Whatever is wrong with it
// is part of the answer and never an error: the verdict does not hang on it.
func (q *evidenceQuestion) ask(e explanation) *shownEvidence {
	s := &shownEvidence{Bundle: q.path, Signer: q.question.Key.ID()}
	if e.SHA256 != "" {
		file, err := hashpipe.ParseDigest(e.SHA256)
		if err != nil {
			s.Refused = fmt.Sprintf("the mount's answer: %v", err)
			return s
		}
		q.question.File, s.Compared = file, true
	}
	found, err := sigstore.Verify(q.bundle, q.question)
	if err != nil {
		s.Refused = strings.TrimPrefix(err.Error(), "evidence: ")
		return s
	}
	s.Verified, s.PredicateType, s.Unchecked = true, found.PredicateType, found.Unchecked
	for _, d := range found.Digests {
		if !s.Compared || d.SHA256 == q.question.File {
			s.Subjects = append(s.Subjects, subject(d))
		}
	}
	if found.Log != "" {
		s.Log = &logPlace{found.Log, found.Index, found.Size}
	}
	return s
}

// showEvidence prints what a bundle says below the verdict.
func (a *app) showEvidence(s *shownEvidence) {
	const nothing = "; it opens nothing by itself\n"
	if !s.Verified {
		a.printf("evidence: %s: refused: %s"+nothing, printable(s.Bundle), printable(s.Refused))
		return
	}
	what := "signed this content"
	if s.PredicateType != "" {
		what = fmt.Sprintf("signed a statement (%s) about this content", s.PredicateType)
		if !s.Compared {
			what = fmt.Sprintf("signed a statement (%s); the mount has not measured this file, so compare its SHA-256 yourself", s.PredicateType)
		}
	}
	a.printf("evidence: %s: key %s %s"+nothing, printable(s.Bundle), s.Signer, printable(what))
	const most = 10
	for i, one := range s.Subjects {
		if i == most {
			a.printf("  and %d more\n", len(s.Subjects)-most)
			break
		}
		if s.PredicateType != "" {
			a.printf("  %-12s sha256 %v, %s\n", "subject", one.SHA256, printable(one.Name))
		}
	}
	if s.Log != nil {
		a.printf("  %-12s %s, index %d of %d\n", "log", printable(s.Log.Origin), s.Log.Index, s.Log.Size)
	} else if s.Unchecked > 0 {
		a.printf("  %-12s not looked at (%d in the bundle); --evidence-log names the log that should have it\n", "log entries", s.Unchecked)
	}
}
