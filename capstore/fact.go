package capstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"

	"github.com/openclaw/clawfs/hashpipe"
)

// fact is what a log row says of one acknowledged record: which it is, and what an
// index needs to find it, so that opening a store reads no envelope. Its content,
// integers big endian:
//
//	kind                  1 byte: 1 capability, 2 revocation, 3 revocation list
//	time                  8 bytes: seconds since 1970 at which it was acknowledged,
//	                      never before the fact that stands before it
//	id                    32 bytes: SHA-256 of the signed payload
//	envelope              32 bytes: SHA-256 of the record as it is stored
//	signer                32 bytes: key id of the mint, or of the revoker
//	what the kind needs   of a revocation: kind (1 byte, its place among the kinds
//	                      of docs/capability.md, from 1) and target (32 bytes);
//	                      of a list: nothing; of a capability, 8 bytes each: claim and
//	                      attestation; after 2 bytes of number, of each output content, last
//	                      component of the name, fs-verity digest, size; after 2 bytes
//	                      of number, the claims of its bases; after 4 bytes of number,
//	                      each name of an output and of the directories in those names,
//	                      once, or all ones and nothing if they are more than 16384
//	hash                  32 bytes: hash(n), see head.go
//
// All of these but the size are tags.
//
// A tag is the first 8 bytes of a SHA-256. That it is the tag of something is a
// hint: whoever finds a capability by one reads its envelope, and believes that.
type fact struct {
	kind     string
	at       int64
	id       hashpipe.Digest
	envelope hashpipe.Digest
	entry
}

// newFact is what is said of a record when it comes.
func newFact(kind string, id hashpipe.Digest, text []byte, e entry) fact {
	return fact{kind: kind, id: id, envelope: hashpipe.SumBytes(text).Claim(), entry: e}
}

func (c Capability) fact() fact { return newFact(RecordCapability, c.ID(), c.rec.envelope, c.entry()) }
func (r Revocation) fact() fact { return newFact(RecordRevocation, r.ID(), r.rec.envelope, r.entry()) }
func (l List) fact() fact       { return newFact(RecordList, l.ID(), l.rec.envelope, l.entry()) }

// entry is what an index holds of a record.
type entry struct {
	signer hashpipe.Digest // key id of the mint or of the revoker

	target target // of a revocation

	claim, sba tag // of a capability
	outputs    []outputTags
	bases      []tag
	paths      []tag // unique
	wide       bool  // it has more paths than are listed, which then are none
}

// maxPaths bounds the paths of one entry, so that the row stays below MaxRecord.
const maxPaths = 16 << 10

const wideCount = 1<<32 - 1 // in place of the number of paths

// tag is a digest cut to 8 bytes. Equal tags are a reason to look, not equality.
type tag uint64

type outputTags struct {
	content, name, verity tag
	size                  int64
}

func tagOf(d hashpipe.Digest) tag {
	b := d.Bytes()
	return tag(binary.BigEndian.Uint64(b[:]))
}

func nameTag(name string) tag { return tagOf(hashpipe.SumBytes([]byte(name)).Claim()) }

func verityTag(d hashpipe.VerityDigest) tag { return nameTag(d.String()) }

func (c Capability) entry() entry {
	e := entry{signer: keyDigest(c.Minter()), claim: tagOf(c.Claim()), sba: tagOf(c.SBA())}
	seen := make(map[tag]bool)
	for _, s := range c.rec.subjects {
		e.outputs = append(e.outputs, outputTags{tagOf(s.Digest), nameTag(path.Base(s.Name)), verityTag(s.Verity), s.Size})
		for n := s.Name; n != "." && n != "/" && !e.wide; n = path.Dir(n) {
			if t := nameTag(n); !seen[t] {
				seen[t] = true
				e.paths = append(e.paths, t)
			}
			e.wide = len(e.paths) > maxPaths
		}
	}
	if e.wide {
		e.paths = nil
	}
	for _, b := range c.predicate().Bases {
		e.bases = append(e.bases, tagOf(b))
	}
	return e
}

func (r Revocation) entry() entry {
	return entry{signer: keyDigest(r.Revoker()), target: target{r.Kind(), r.target()}}
}

func (l List) entry() entry { return entry{signer: keyDigest(l.Revoker())} }

var factKinds = []string{RecordCapability, RecordRevocation, RecordList}

// body is the fact as it is written, without its hash.
func (f fact) body() []byte {
	b := []byte{byte(slices.Index(factKinds, f.kind) + 1)}
	b = binary.BigEndian.AppendUint64(b, uint64(f.at))
	for _, d := range []hashpipe.Digest{f.id, f.envelope, f.signer} {
		b = appendDigest(b, d)
	}
	switch f.kind {
	case RecordRevocation:
		b = append(b, byte(slices.Index(kinds, f.target.kind)+1))
		b = appendDigest(b, f.target.digest)
	case RecordCapability:
		b = binary.BigEndian.AppendUint64(b, uint64(f.claim))
		b = binary.BigEndian.AppendUint64(b, uint64(f.sba))
		b = binary.BigEndian.AppendUint16(b, uint16(len(f.outputs)))
		for _, o := range f.outputs {
			b = binary.BigEndian.AppendUint64(b, uint64(o.content))
			b = binary.BigEndian.AppendUint64(b, uint64(o.name))
			b = binary.BigEndian.AppendUint64(b, uint64(o.verity))
			b = binary.BigEndian.AppendUint64(b, uint64(o.size))
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(f.bases)))
		for _, t := range f.bases {
			b = binary.BigEndian.AppendUint64(b, uint64(t))
		}
		if f.wide {
			return binary.BigEndian.AppendUint32(b, wideCount)
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(f.paths)))
		for _, t := range f.paths {
			b = binary.BigEndian.AppendUint64(b, uint64(t))
		}
	}
	return b
}

func appendDigest(b []byte, d hashpipe.Digest) []byte {
	raw := d.Bytes()
	return append(b, raw[:]...)
}

// cutter takes a text apart from its beginning. After what is not there it is short.
type cutter struct {
	b     []byte
	short bool
}

func (c *cutter) take(n int) []byte {
	if c.short || len(c.b) < n {
		c.short = true
		return make([]byte, n)
	}
	part := c.b[:n]
	c.b = c.b[n:]
	return part
}

func (c *cutter) digest() hashpipe.Digest { return hashpipe.ClaimedDigest([32]byte(c.take(32))) }
func (c *cutter) uint64() uint64          { return binary.BigEndian.Uint64(c.take(8)) }
func (c *cutter) count() int              { return int(binary.BigEndian.Uint16(c.take(2))) }

// readFact takes a log row's content apart. It accepts what body and a hash make,
// and nothing else. body is part of content.
func readFact(content []byte) (f fact, body []byte, hash hashpipe.Digest, err error) {
	if len(content) < 32 {
		return fact{}, nil, hash, fmt.Errorf("%d bytes are not a fact", len(content))
	}
	body = content[:len(content)-32]
	f, err = readBody(body)
	return f, body, hashpipe.ClaimedDigest([32]byte(content[len(body):])), err
}

// readBody takes what body made apart.
func readBody(body []byte) (f fact, err error) {
	c := cutter{b: body}
	kind := int(c.take(1)[0])
	at := c.uint64()
	f.at = int64(min(at, math.MaxInt64))
	f.id, f.envelope, f.signer = c.digest(), c.digest(), c.digest()
	if kind < 1 || kind > len(factKinds) {
		return fact{}, fmt.Errorf("kind %d: want 1 to %d", kind, len(factKinds))
	}
	switch f.kind = factKinds[kind-1]; f.kind {
	case RecordRevocation:
		k := int(c.take(1)[0])
		if k < 1 || k > len(kinds) {
			return fact{}, fmt.Errorf("a revocation of kind %d: want 1 to %d", k, len(kinds))
		}
		f.target = target{kinds[k-1], c.digest()}
	case RecordCapability:
		f.claim, f.sba = tag(c.uint64()), tag(c.uint64())
		if n := c.count(); n <= maxSubjects {
			f.outputs = make([]outputTags, n)
		}
		for i := range f.outputs {
			f.outputs[i] = outputTags{tag(c.uint64()), tag(c.uint64()), tag(c.uint64()), int64(c.uint64())}
		}
		if n := c.count(); n <= maxBases && n > 0 {
			f.bases = make([]tag, n)
		}
		for i := range f.bases {
			f.bases[i] = tag(c.uint64())
		}
		n := binary.BigEndian.Uint32(c.take(4))
		if f.wide = n == wideCount; !f.wide && n <= maxPaths {
			f.paths = make([]tag, n)
		}
		for i := range f.paths {
			f.paths[i] = tag(c.uint64())
		}
	}
	switch {
	case c.short || len(c.b) != 0:
		return fact{}, fmt.Errorf("%d bytes are not a fact about one %s", len(body), f.kind)
	case at > math.MaxInt64 || f.id.IsZero() || f.envelope.IsZero() || f.signer.IsZero():
		return fact{}, errors.New("a digest or the time is missing")
	case f.kind == RecordRevocation && f.target.digest.IsZero():
		return fact{}, errors.New("a revocation of nothing")
	case f.kind == RecordCapability && len(f.outputs) == 0:
		return fact{}, errors.New("a capability without outputs")
	}
	return f, nil
}
