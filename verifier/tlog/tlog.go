// Package tlog checks offline that a record lies in a transparency log: a pure
// function of bytes, without network, files and clock.
//
// A log is an RFC 6962 Merkle tree with SHA-256. Its operator signs the size and
// root of the tree, a checkpoint; witnesses cosign it when it extends all that
// they cosigned before. Whoever holds a checkpoint with a quorum of witnesses
// and an inclusion proof therefore knows that the record can be found by all who
// watch the log. The formats are those of C2SP (https://c2sp.org: signed-note,
// tlog-checkpoint, tlog-cosignature, tlog-proof, tlog-policy), narrowed where
// they leave room. Base64 is the standard alphabet, padded, with zero trailing
// bits; decimals have no sign and no leading zero; sizes and indexes lie below
// 2^53.
//
// # Leaf
//
// The record of a log is a leaf, at most MaxLeaf bytes:
//
//	clawfs-leaf/v1
//	kind sba
//	payload <SHA-256 of the envelope's payload>
//	pae <SHA-256 of the PAE of that payload and dsse.PayloadType>
//	signer <key id of the key that vouches for the payload>
//	model acme/langid
//
// Each line ends in a newline. Digests and key ids are 64 lower-case hex digits.
// kind is sba, capability, revocation, policy or store-head. The line model stands in leaves
// of sba and capability, and only there; a model has at most 484 of the bytes
// a-z, 0-9, '.', '_', '-' and '/'. A leaf has one encoding. Nobody reads a leaf
// from a proof: whoever verifies builds it from the envelope in hand. In Python,
// with payload and spki as bytes:
//
//	sha = lambda b: hashlib.sha256(b).hexdigest()
//	typ = b"application/vnd.in-toto+json"
//	pae = b"DSSEv1 %d %s %d %s" % (len(typ), typ, len(payload), payload)
//	leaf = (f"clawfs-leaf/v1\nkind sba\npayload {sha(payload)}\npae {sha(pae)}\n"
//	        f"signer {sha(spki)}\nmodel acme/langid\n").encode()
//	leaf_hash = sha(b"\x00" + leaf)
//
// testdata/known.py makes with it, and without any code of this package, the
// files that the tests take as known answers.
//
// # Verifier key
//
// A key is written <name>+<id>+<base64 of a type byte and the 32 bytes of an
// Ed25519 key>. The id is the first four bytes of SHA-256(name, newline, type,
// key) in lower-case hex. Type 0x01 signs checkpoints for a log, whose origin is
// the key's name; type 0x04 cosigns them for a witness. A name is UTF-8 of 1 to
// 255 bytes without control characters, Unicode spaces and '+'.
//
// # Checkpoint
//
//	<origin>
//	<size>
//	<base64 of the root>
//	<extension lines, not empty, signed and otherwise ignored>
//
//	— <key name> <base64 of the key id and the signature>
//	…
//
// At most MaxCheckpoint bytes of UTF-8 without control characters but newlines,
// of which the text has at most 4096, and 1 to 64 signatures, each of another
// key. A log's signature is Ed25519 over the text. A cosignature is a 64-bit
// big-endian time, in seconds since 1970 and not after the year 9999, and Ed25519
// over "cosignature/v1\ntime <time>\n" and the text. Signatures of keys that the
// policy does not name are ignored; one of a key that it names and that does
// not verify refuses the checkpoint.
//
// # Proof
//
//	c2sp.org/tlog-proof@v1
//	index <index of the leaf>
//	<base64 of a hash of the inclusion path, leaf's sibling first>
//	…
//
//	<checkpoint>
//
// At most 64 hashes. The line "extra" of the format is refused: nothing
// authenticates it, and the leaf is made without it. A consistency proof is only
// such lines of hashes, at most 64, as a tlog-witness takes them.
//
// # Policy
//
//	log <verifier key> [<url>]
//	witness <name> <verifier key> [<url>]
//	group <name> all|any|<k> <member>…
//	quorum <name>|none
//
// At most MaxPolicy bytes without control characters but tab and newline, each
// line ended by a newline; empty lines and those that begin with '#' are
// ignored. There are 1 to 64 logs, at most 64 witnesses, at most 64 groups and
// exactly one quorum. Names are opaque bytes, defined on a line before the one
// that uses them, each in at most one group and at most once. No public key
// stands on two lines, whatever its name: each witness is another authority, and
// a log does not witness itself. 1 <= k <= members.
//
// # Memory
//
// What a verifier remembers of each log, sorted by origin:
//
//	clawfs-log-memory/v1
//	newest <bytes>
//	<checkpoint>
//	fork <bytes> <bytes>
//	<checkpoint><checkpoint of the same size and another root>
//
// The checkpoints are those that were verified, without the signatures that
// nobody knew.
package tlog

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"

	merkle "golang.org/x/mod/sumdb/tlog"
)

// Hash is a hash of a tree of RFC 6962.
type Hash = merkle.Hash

// maxSize bounds sizes and indexes: every JSON reader keeps them exactly, and
// above 2^62 the search of golang.org/x/mod/sumdb/tlog for the largest power of
// two below a size does not end.
const maxSize = 1<<53 - 1

// maxPath bounds the hashes of a proof. A tree of maxSize leaves needs 53 for
// inclusion and 54 for consistency.
const maxPath = 64

// Reason is the kind of a Refusal, for callers that branch on it.
type Reason string

// The reasons, in the order in which Verify and then Advance look.
const (
	// ReasonMalformed: not a proof, not a checkpoint, or too large.
	ReasonMalformed Reason = "malformed"
	// ReasonOrigin: the checkpoint is of a log that the policy does not name.
	ReasonOrigin Reason = "origin"
	// ReasonSignature: the log did not sign the checkpoint, or a key of the
	// policy is said to have signed and did not.
	ReasonSignature Reason = "signature"
	// ReasonQuorum: too few witnesses cosigned the checkpoint.
	ReasonQuorum Reason = "quorum"
	// ReasonInclusion: the leaf is not where the proof says.
	ReasonInclusion Reason = "inclusion"
	// ReasonOlder: the checkpoint is older than the one that is remembered.
	ReasonOlder Reason = "older"
	// ReasonConsistency: nothing shows that of two checkpoints the newer one
	// extends the older one.
	ReasonConsistency Reason = "consistency"
	// ReasonFork: the log showed two trees of one size.
	ReasonFork Reason = "fork"
)

// Refusal says why something was not believed: what was expected and what was
// found.
type Refusal struct {
	Reason Reason
	Detail string
}

// Error returns the detail.
func (r *Refusal) Error() string { return r.Detail }

func refuse(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// Verify returns the checkpoint of a proof if its log is one of the policy, if
// that log and a quorum of the policy's witnesses signed it, and if leaf is the
// record at the proof's index of the tree of that size and root. It says nothing
// about how old the checkpoint is: Memory does, and the times of its
// cosignatures.
//
// What the proof does not show is a *Refusal. A zero policy or leaf is another
// error: there was nothing to ask.
func Verify(policy Policy, proof []byte, leaf Leaf) (Checkpoint, error) {
	if leaf.IsZero() {
		return Checkpoint{}, errors.New("log proof: there is no leaf to look for")
	}
	p, err := ParseProof(proof)
	if err != nil {
		return Checkpoint{}, err
	}
	c, err := policy.Checkpoint(p.Checkpoint)
	if err != nil {
		return Checkpoint{}, err
	}
	if err := c.Includes(leaf.Hash(), p.Index, p.Path); err != nil {
		return Checkpoint{}, err
	}
	return c, nil
}

// Includes returns nil if path, the sibling of the leaf first, leads from the
// record with that leaf hash at index to the root of c. The error is a *Refusal.
func (c Checkpoint) Includes(leaf Hash, index int64, path []Hash) error {
	if index < 0 || index >= c.Size() {
		return refuse(ReasonInclusion, "log proof: expected an index below %d, the size of log %s, got %d", c.Size(), clip(c.Origin()), index)
	}
	if err := merkle.CheckRecord(path, c.Size(), c.Root(), index, leaf); err != nil {
		return refuse(ReasonInclusion, "log proof: expected a path from leaf %v at index %d to root %v of log %s at size %d, got %d hashes that lead elsewhere",
			leaf, index, c.Root(), clip(c.Origin()), c.Size(), len(path))
	}
	return nil
}

// LeafHash returns the hash of a record in a tree of RFC 6962: SHA-256 of a zero
// byte and the record. Records of clawfs are a Leaf, which has a method for it.
func LeafHash(record []byte) Hash { return merkle.RecordHash(record) }

// parseDecimal reads a size or an index.
func parseDecimal(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > maxSize || strconv.FormatInt(n, 10) != s {
		return 0, fmt.Errorf("expected a decimal from 0 to 2^53-1 without sign and leading zero, got %q", clip(s))
	}
	return n, nil
}

// decodeBase64 accepts one spelling of each byte string. encoding/base64 skips
// line breaks, in strict mode too.
func decodeBase64(s string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || base64.StdEncoding.EncodeToString(b) != s {
		return nil, fmt.Errorf("expected padded standard base64, got %q", clip(s))
	}
	return b, nil
}

func parseHash(s string) (Hash, error) {
	const size = (merkle.HashSize + 2) / 3 * 4
	if len(s) != size {
		return Hash{}, fmt.Errorf("expected %d bytes of base64, got %d: %q", size, len(s), clip(s))
	}
	b, err := decodeBase64(s)
	if err != nil {
		return Hash{}, err
	}
	if len(b) != merkle.HashSize {
		return Hash{}, fmt.Errorf("expected base64 of %d bytes, got %d", merkle.HashSize, len(b))
	}
	return Hash(b), nil
}

func parseHashes(lines []byte) ([]Hash, error) {
	var hashes []Hash
	for line := range bytes.Lines(lines) {
		text, ok := bytes.CutSuffix(line, []byte("\n"))
		if !ok {
			return nil, fmt.Errorf("expected a newline after %q", clip(string(line)))
		}
		if len(hashes) == maxPath {
			return nil, fmt.Errorf("expected at most %d hashes, got more", maxPath)
		}
		h, err := parseHash(string(text))
		if err != nil {
			return nil, fmt.Errorf("hash %d: %w", len(hashes)+1, err)
		}
		hashes = append(hashes, h)
	}
	return hashes, nil
}

func appendHashes(b []byte, hashes []Hash) ([]byte, error) {
	if len(hashes) > maxPath {
		return nil, fmt.Errorf("expected at most %d hashes, got %d", maxPath, len(hashes))
	}
	for _, h := range hashes {
		b = base64.StdEncoding.AppendEncode(b, h[:])
		b = append(b, '\n')
	}
	return b, nil
}

// clip bounds hostile text in an error message.
func clip(s string) string {
	const most = 100
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
