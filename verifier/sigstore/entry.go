package sigstore

import (
	"bytes"
	"errors"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

const (
	entryKind    = "hashedrekord"
	entryVersion = "0.0.2"
	// keyDetails is the only kind of key of which an entry is verified.
	keyDetails = "PKIX_ECDSA_P256_SHA_256"
)

// entry is an entry of a log as a bundle carries it.
type entry struct {
	LogIndex       decimal     `json:"logIndex"`
	LogID          logID       `json:"logId"`
	KindVersion    kindVersion `json:"kindVersion"`
	IntegratedTime decimal     `json:"integratedTime"` // of Rekor v1; nothing signs it here
	// InclusionPromise is of Rekor v1: the log's word that it will hold the entry.
	InclusionPromise  jsontext.Value  `json:"inclusionPromise"`
	InclusionProof    *inclusionProof `json:"inclusionProof"`
	CanonicalizedBody raw             `json:"canonicalizedBody"`
}

// logID is a hint: the policy names the log's key.
type logID struct {
	KeyID raw `json:"keyId"`
}

type kindVersion struct {
	Kind    string `json:"kind"`
	Version string `json:"version"`
}

type inclusionProof struct {
	LogIndex   decimal    `json:"logIndex"`
	RootHash   raw        `json:"rootHash"`
	TreeSize   decimal    `json:"treeSize"`
	Hashes     []raw      `json:"hashes"`
	Checkpoint checkpoint `json:"checkpoint"`
}

type checkpoint struct {
	Envelope string `json:"envelope"`
}

// record is a hashedrekord 0.0.2.
type record struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Spec       struct {
		HashedRekordV002 struct {
			Data      hashOutput `json:"data"`
			Signature struct {
				Content  raw            `json:"content"`
				Verifier recordVerifier `json:"verifier"`
			} `json:"signature"`
		} `json:"hashedRekordV002"`
	} `json:"spec"`
}

type recordVerifier struct {
	KeyDetails string `json:"keyDetails"`
	PublicKey  struct {
		RawBytes raw `json:"rawBytes"`
	} `json:"publicKey"`
	X509Certificate jsontext.Value `json:"x509Certificate"`
}

// verify returns the checkpoint of a log of the question that holds a record of
// that signature. The error is a *Refusal.
func (e entry) verify(q Question, s signed) (tlog.Checkpoint, error) {
	var none tlog.Checkpoint
	if e.KindVersion != (kindVersion{entryKind, entryVersion}) {
		return none, refuse(ReasonLog, "expected a log entry %s %s (Rekor v2), got %q %q", entryKind, entryVersion, clip(e.KindVersion.Kind), clip(e.KindVersion.Version))
	}
	p := e.InclusionProof
	switch {
	case p == nil && e.InclusionPromise != nil:
		return none, refuse(ReasonLog, "expected an inclusion proof, got the log's promise alone")
	case p == nil:
		return none, refuse(ReasonLog, "expected an inclusion proof, got none")
	case e.InclusionPromise != nil:
		return none, refuse(ReasonLog, "expected no inclusion promise in an entry of Rekor v2, got one")
	case p.LogIndex != e.LogIndex:
		return none, refuse(ReasonLog, "expected one index of the log entry, got %d and %d", e.LogIndex, p.LogIndex)
	}
	if err := e.binds(q.Key, s); err != nil {
		return none, err
	}
	c, err := q.Logs.Checkpoint([]byte(p.Checkpoint.Envelope))
	var refused *tlog.Refusal
	if errors.As(err, &refused) {
		return none, refuse(ReasonLog, "%v", err)
	}
	if err != nil {
		return none, err
	}
	if root := c.Root(); int64(p.TreeSize) != c.Size() || !bytes.Equal(p.RootHash, root[:]) {
		return none, refuse(ReasonLog, "expected the size %d and root %v of the checkpoint, got an inclusion proof for size %d and root %x", c.Size(), c.Root(), p.TreeSize, clip(string(p.RootHash)))
	}
	var path []tlog.Hash
	for i, h := range p.Hashes {
		if len(h) != len(tlog.Hash{}) {
			return none, refuse(ReasonLog, "hash %d of the inclusion proof: expected %d bytes, got %d", i+1, len(tlog.Hash{}), len(h))
		}
		path = append(path, tlog.Hash(h))
	}
	if err := c.Includes(tlog.LeafHash(e.CanonicalizedBody), int64(e.LogIndex), path); err != nil {
		return none, refuse(ReasonLog, "%v", err)
	}
	return c, nil
}

// binds returns nil if the record is one of that signature, under that key, of
// what was signed.
func (e entry) binds(key dsse.PublicKey, s signed) error {
	if key.Algorithm() != dsse.ECDSAP256 {
		return refuse(ReasonLog, "expected a key of %s, because Rekor v2 holds no signatures of %s", dsse.ECDSAP256, key.Algorithm())
	}
	if err := scan(e.CanonicalizedBody, maxTokens, maxDepth, false); err != nil {
		return refuse(ReasonLog, "record of the log: %v", err)
	}
	var r record
	if err := json.Unmarshal(e.CanonicalizedBody, &r, json.RejectUnknownMembers(true)); err != nil {
		return refuse(ReasonLog, "record of the log: %v", dsse.JSONError(err))
	}
	if r.Kind != entryKind || r.APIVersion != entryVersion {
		return refuse(ReasonLog, "record of the log: expected %s %s, got %q %q", entryKind, entryVersion, clip(r.Kind), clip(r.APIVersion))
	}
	h := r.Spec.HashedRekordV002
	v := h.Signature.Verifier
	digest, err := h.Data.sha256()
	switch {
	case err != nil:
		return refuse(ReasonLog, "record of the log: %v", err)
	case digest != s.digest:
		return refuse(ReasonLog, "record of the log: expected one of the signed bytes, sha256 %v, got one of %v", s.digest, digest)
	case !bytes.Equal(h.Signature.Content, s.signature):
		return refuse(ReasonLog, "record of the log: expected the signature of the bundle, got another one")
	case v.X509Certificate != nil:
		return keyless()
	case v.KeyDetails != keyDetails:
		return refuse(ReasonLog, "record of the log: expected a key %s, got %q", keyDetails, clip(v.KeyDetails))
	case !bytes.Equal(v.PublicKey.RawBytes, key.SPKI()):
		return refuse(ReasonLog, "record of the log: expected key %s, got another one", key.ID())
	}
	return nil
}
