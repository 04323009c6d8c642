// Package sigstore reads Sigstore bundles as evidence: a statement that somebody
// signed about a file with a key that the reader names, and where a transparency
// log holds that signature. Evidence is shown and decides nothing.
//
// A bundle is the JSON of Sigstore's protobuf message Bundle, of at most
// MaxBundle bytes:
//
//	{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json",
//	 "verificationMaterial":{
//	  "publicKey":{"hint":"…"},
//	  "tlogEntries":[{
//	   "logIndex":"5","logId":{"keyId":"…"},
//	   "kindVersion":{"kind":"hashedrekord","version":"0.0.2"},
//	   "inclusionProof":{"logIndex":"5","rootHash":"…","treeSize":"13","hashes":["…"],
//	    "checkpoint":{"envelope":"<signed note>"}},
//	   "canonicalizedBody":"<base64 of the record>"}],
//	  "timestampVerificationData":{…}},
//	 "dsseEnvelope":{"payloadType":"application/vnd.in-toto+json","payload":"…","signatures":[{"sig":"…"}]}}
//
// or, in place of dsseEnvelope, "messageSignature":{"messageDigest":{"algorithm":
// "SHA2_256","digest":"…"},"signature":"…"}. Bytes are standard base64, padded,
// of one spelling; integers are decimal strings, and absent for 0. Unknown and
// duplicate members and null are refused.
//
// The key is one that the reader has (a managed key). A bundle with a certificate
// is refused: its trust roots, identities and timestamps are the business of a
// helper program and not of this package. Timestamps are therefore not looked at;
// they say when a certificate was valid.
//
// A log entry is Rekor v2's: the record, whose bytes are the leaf of the tree,
//
//	{"apiVersion":"0.0.2","kind":"hashedrekord","spec":{"hashedRekordV002":{
//	 "data":{"algorithm":"SHA2_256","digest":"…"},
//	 "signature":{"content":"…","verifier":{
//	  "keyDetails":"PKIX_ECDSA_P256_SHA_256","publicKey":{"rawBytes":"<SPKI>"}}}}}}
//
// where digest is that of what was signed: of an envelope its PAE, of a file the
// file. Rekor v2 takes no Ed25519. The checkpoint is that of package tlog, which
// also says how a log is named: by a policy, with witnesses or without.
package sigstore

import (
	"fmt"
	"slices"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// MaxBundle bounds the text of a bundle in bytes: an envelope and a log entry
// with its checkpoint.
const MaxBundle = 6 << 20

// Reason is the kind of a Refusal, for callers that branch on it.
type Reason string

// The reasons, in the order in which Verify looks.
const (
	// ReasonMalformed: not a bundle of version 0.3, or too large.
	ReasonMalformed Reason = "malformed"
	// ReasonKeyless: signed under a certificate, which a helper program verifies.
	ReasonKeyless Reason = "keyless"
	// ReasonSignature: not signed by the key.
	ReasonSignature Reason = "signature"
	// ReasonSubject: it is not about the file.
	ReasonSubject Reason = "subject"
	// ReasonLog: the log is not shown to hold it.
	ReasonLog Reason = "log"
)

// Refusal says why a bundle is no evidence: what was expected and what was found.
type Refusal struct {
	Reason Reason
	Detail string
}

// Error returns the detail.
func (r *Refusal) Error() string { return r.Detail }

func refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Detail: fmt.Sprintf("evidence: "+format, args...)}
}

// Question is what a bundle is asked.
type Question struct {
	// Key is whose signature counts.
	Key dsse.PublicKey
	// Logs says which log must hold the signature. With the zero Policy log
	// entries are not looked at, and the Evidence names no log.
	Logs tlog.Policy
	// File is the SHA-256 of the file, measured by somebody whom the caller
	// believes. Zero if nobody measured it: a statement can be read then, and what
	// it is about is for the caller to compare; a bare signature cannot be
	// verified.
	File hashpipe.Digest
}

// Evidence is what the signer said, believed on the word of the key alone. The
// zero Evidence is none.
type Evidence struct {
	Signer dsse.PublicKey
	// Digests are the files that the statement is about, at least one. A bare
	// signature is about one file without a name.
	Digests []Subject
	// PredicateType is the kind of the statement, "" of a bare signature.
	PredicateType string
	// Log is the origin of the log that holds the signature, "" if none was asked
	// for; Index is the place of the record in it and Size the size of the
	// checkpoint that shows it.
	Log         string
	Index, Size int64
	// Unchecked is the number of log entries that were not looked at.
	Unchecked int
}

// Subject is a file that a statement is about.
type Subject struct {
	Name   string // chosen by the signer; may be empty
	SHA256 hashpipe.Digest
}

// IsZero reports whether e is no evidence.
func (e Evidence) IsZero() bool { return e.Signer.IsZero() }

// Verify returns what a bundle says, if the key signed it, if it is about the
// file, and, where the question has logs, if one of them holds the signature.
// What the bundle does not show is a *Refusal. A question without key is another
// error.
func Verify(bundle []byte, q Question) (Evidence, error) {
	if q.Key.IsZero() {
		return Evidence{}, fmt.Errorf("evidence: there is no key to verify it with")
	}
	b, err := parseBundle(bundle)
	if err != nil {
		return Evidence{}, err
	}
	e := Evidence{Signer: q.Key}
	var s signed
	if b.DSSEEnvelope != nil {
		s, err = b.verifyEnvelope(q, &e)
	} else {
		s, err = b.verifyMessage(q, &e)
	}
	if err != nil {
		return Evidence{}, err
	}
	if !q.File.IsZero() && !slices.ContainsFunc(e.Digests, func(d Subject) bool { return d.SHA256 == q.File }) {
		return Evidence{}, refuse(ReasonSubject, "expected a statement about sha256 %v, got one about %s", q.File, describe(e.Digests))
	}
	entries := b.VerificationMaterial.TlogEntries
	if q.Logs.IsZero() {
		e.Unchecked = len(entries)
		return e, nil
	}
	if len(entries) != 1 {
		return Evidence{}, refuse(ReasonLog, "expected one log entry, got %d", len(entries))
	}
	c, err := entries[0].verify(q, s)
	if err != nil {
		return Evidence{}, err
	}
	e.Log, e.Index, e.Size = c.Origin(), int64(entries[0].LogIndex), c.Size()
	return e, nil
}

// signed is a signature that was verified, as a log records it.
type signed struct {
	digest    hashpipe.Digest // of what was signed
	signature []byte
}

// verifyEnvelope verifies a signed statement.
func (b bundle) verifyEnvelope(q Question, e *Evidence) (signed, error) {
	envelope, err := dsse.Parse(b.DSSEEnvelope)
	if err != nil {
		return signed{}, refuse(ReasonMalformed, "%v", err)
	}
	if n := len(envelope.UnverifiedKeyIDs()); n != 1 {
		return signed{}, refuse(ReasonMalformed, "expected one signature in the envelope of a bundle, got %d", n)
	}
	hint := b.VerificationMaterial.PublicKey.Hint
	if id := envelope.UnverifiedKeyIDs()[0]; id != "" && id != hint {
		return signed{}, refuse(ReasonMalformed, "expected one hint at the key in a bundle, got %q and %q", clip(hint), clip(id))
	}
	payload, _, err := envelope.Verify(dsse.PayloadType, []dsse.PublicKey{q.Key}, 1)
	if err != nil {
		return signed{}, refuse(ReasonSignature, "expected an in-toto statement signed by key %s: %v", q.Key.ID(), err)
	}
	if e.Digests, e.PredicateType, err = parseStatement(payload); err != nil {
		return signed{}, refuse(ReasonMalformed, "statement: %v", err)
	}
	signature, err := envelopeSignature(b.DSSEEnvelope)
	if err != nil {
		return signed{}, refuse(ReasonMalformed, "%v", err)
	}
	return signed{hashpipe.SumBytes(dsse.PAE(dsse.PayloadType, payload)).Claim(), signature}, nil
}

// verifyMessage verifies a bare signature of the file. The digest in the bundle
// is only a name: signatures can be made for a digest of nothing.
func (b bundle) verifyMessage(q Question, e *Evidence) (signed, error) {
	m := b.MessageSignature
	if q.Key.Algorithm() != dsse.ECDSAP256 {
		return signed{}, refuse(ReasonSignature, "a bare signature of a file is verified under keys of %s only, because %s signs the file and not its digest; sign a statement about the file", dsse.ECDSAP256, q.Key.Algorithm())
	}
	if q.File.IsZero() {
		return signed{}, refuse(ReasonSubject, "a bare signature can be verified only for a file whose SHA-256 was measured")
	}
	claimed, err := m.MessageDigest.sha256()
	if err != nil {
		return signed{}, refuse(ReasonMalformed, "messageDigest: %v", err)
	}
	if claimed != q.File {
		return signed{}, refuse(ReasonSubject, "expected a signature of sha256 %v, got one of %v", q.File, claimed)
	}
	if !q.Key.VerifySHA256(q.File, m.Signature) {
		return signed{}, refuse(ReasonSignature, "expected a signature by key %s, got one that does not verify", q.Key.ID())
	}
	e.Digests = []Subject{{SHA256: q.File}}
	return signed{q.File, m.Signature}, nil
}

// describe says what a statement is about, for an error.
func describe(subjects []Subject) string {
	text := fmt.Sprintf("%v (%s)", subjects[0].SHA256, clip(subjects[0].Name))
	if n := len(subjects) - 1; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// clip bounds hostile text in an error message.
func clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
