package capstore

import (
	"math/rand/v2"
	"slices"
	"unsafe"

	"github.com/openclaw/clawfs/hashpipe"
)

// tagTable finds the numbers of records by tags of what they say. It holds no
// pointers to records: a million of them cost some eleven bytes each, and the
// garbage collector has nothing to follow. What it finds is a hint: 40 bits of the
// tag are compared, and whoever asks reads the record.
//
// Each shard is an open-addressing table of its own, so that growing one copies
// little. A slot is the 32 bits that are compared and a number, or, for a tag with
// several numbers, the place of the newest of them in links.
type tagTable struct {
	seed   uint64
	shards [256]shard
	links  [][]numbered // chunks of linkChunk
	n      int          // entries of links
}

type shard struct {
	slots []uint64 // 0: empty
	used  int
}

// numbered is one of several numbers of a tag.
type numbered struct{ number, before uint32 } // before: the next older one's place and one, or 0

const (
	several   = 1 << 31 // of a slot's lower half: a place in links follows, and not a number
	linkChunk = 8 << 10
	// maxNumber bounds the numbers of records.
	maxNumber = several - 1
)

func newTagTable() *tagTable { return &tagTable{seed: rand.Uint64() | 1} }

// spread returns the shard of a tag and the bits that are compared there. The seed
// keeps whoever can choose digests from choosing one place for all.
func (t *tagTable) spread(k tag) (*shard, uint32) {
	h := uint64(k) * t.seed
	h ^= h >> 29
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 32
	return &t.shards[h>>56], uint32(h >> 16)
}

// slot returns the place of key, or the empty one where it belongs. The shard has one.
func (s *shard) slot(key uint32) *uint64 {
	n := uint64(len(s.slots))
	for i := uint64(key) * n >> 32; ; i++ {
		if i == n {
			i = 0
		}
		if at := &s.slots[i]; *at == 0 || uint32(*at>>32) == key {
			return at
		}
	}
}

// add notes that record number says k. Numbers are above 0 and come in rising order.
func (t *tagTable) add(k tag, number uint32) {
	s, key := t.spread(k)
	if (s.used+1)*5 > len(s.slots)*4 {
		old := s.slots
		s.slots = make([]uint64, max(8, len(old)*3/2))
		for _, v := range old {
			if v != 0 {
				*s.slot(uint32(v >> 32)) = v
			}
		}
	}
	at := s.slot(key)
	low := uint32(*at)
	switch {
	case *at == 0:
		s.used++
		*at = uint64(key)<<32 | uint64(number)
	case low&several == 0:
		if low != number {
			*at = uint64(key)<<32 | uint64(t.link(number, t.link(low, 0))) | several
		}
	default:
		if t.at(low&^several).number != number {
			*at = uint64(key)<<32 | uint64(t.link(number, low&^several)) | several
		}
	}
}

// link returns the place of a new entry, and one.
func (t *tagTable) link(number, before uint32) uint32 {
	if t.n%linkChunk == 0 {
		t.links = append(t.links, make([]numbered, 0, linkChunk))
	}
	last := len(t.links) - 1
	t.links[last] = append(t.links[last], numbered{number, before})
	t.n++
	return uint32(t.n)
}

func (t *tagTable) at(place uint32) numbered {
	return t.links[(place-1)/linkChunk][(place-1)%linkChunk]
}

// find returns the numbers of the records that say k, and perhaps others, the
// newest first, and at most limit.
func (t *tagTable) find(k tag, limit int) (list []uint32) {
	t.each(k, func(number uint32) bool {
		if len(list) < limit {
			list = append(list, number)
		}
		return len(list) < limit
	})
	return list
}

// all is find of every one, the oldest first.
func (t *tagTable) all(k tag) []uint32 {
	list := t.find(k, maxNumber)
	slices.Reverse(list)
	return list
}

// each calls f with the numbers of find, the newest first, until it returns false.
func (t *tagTable) each(k tag, f func(number uint32) bool) {
	s, key := t.spread(k)
	if s.used == 0 {
		return
	}
	low := uint32(*s.slot(key))
	if low&several == 0 {
		if low != 0 {
			f(low)
		}
		return
	}
	for place := low &^ several; place != 0; {
		e := t.at(place)
		if !f(e.number) {
			return
		}
		place = e.before
	}
}

func (t *tagTable) has(k tag) bool {
	s, key := t.spread(k)
	return s.used != 0 && *s.slot(key) != 0
}

// bytes is what the table takes of the memory, about.
func (t *tagTable) bytes() (n int) {
	for i := range t.shards {
		n += len(t.shards[i].slots) * 8
	}
	return n + len(t.links)*linkChunk*int(unsafe.Sizeof(numbered{}))
}

// index are the tables of a view, and what it knows of each number.
type index struct {
	byID, byContent, byName, byClaim, bySBA, byVerity, bySize, byBase, byPath *tagTable // of capabilities
	revByID, byTarget                                                         *tagTable // of revocations

	mints []uint32 // revocations of mints
	wide  []uint32 // capabilities with more paths than are in byPath

	signers []signerCount
	numbers [][]uint16 // chunks of numberChunk: by number, the place in signers and one; 0: there is no such record
	last    uint32
	paths   int // entries of byPath
}

const numberChunk = 32 << 10

// signerCount is a key that signed records of one kind.
type signerCount struct {
	kind   string
	key    hashpipe.Digest
	live   int  // records
	pinned bool // by the Trust of now
}

func newIndex() *index {
	x := &index{}
	for _, t := range x.tables() {
		*t = newTagTable()
	}
	return x
}

func (x *index) tables() []**tagTable {
	return []**tagTable{&x.byID, &x.byContent, &x.byName, &x.byClaim, &x.bySBA, &x.byVerity, &x.bySize, &x.byBase, &x.byPath, &x.revByID, &x.byTarget}
}

func (t target) tag() tag { return targetTag(t.kind, tagOf(t.digest)) }

func targetTag(k Kind, d tag) tag { return d ^ tag(slices.Index(kinds, k)+1)<<56 }

// add takes what a record says, under a number above all others so far.
func (x *index) add(number uint32, f fact, pins func(kind string, key hashpipe.Digest) bool) {
	x.own(number, f, pins)
	switch f.kind {
	case RecordRevocation:
		x.revByID.add(tagOf(f.id), number)
		x.byTarget.add(f.target.tag(), number)
		if f.target.kind == KindMint {
			x.mints = append(x.mints, number)
		}
	case RecordCapability:
		x.byID.add(tagOf(f.id), number)
		x.byClaim.add(f.claim, number)
		x.bySBA.add(f.sba, number)
		for _, o := range f.outputs {
			x.byContent.add(o.content, number)
			x.byName.add(o.name, number)
			x.byVerity.add(o.verity, number)
			x.bySize.add(tag(o.size), number)
		}
		for _, b := range f.bases {
			x.byBase.add(b, number)
		}
		for _, p := range f.paths {
			x.byPath.add(p, number)
		}
		x.paths += len(f.paths)
		if f.wide {
			x.wide = append(x.wide, number)
		}
	}
}

// own notes who signed a record.
func (x *index) own(number uint32, f fact, pins func(kind string, key hashpipe.Digest) bool) {
	i := slices.IndexFunc(x.signers, func(s signerCount) bool { return s.kind == f.kind && s.key == f.signer })
	if i < 0 {
		x.signers = append(x.signers, signerCount{kind: f.kind, key: f.signer, pinned: pins(f.kind, f.signer)})
		i = len(x.signers) - 1
	}
	x.signers[i].live++
	for int(number) >= len(x.numbers)*numberChunk {
		x.numbers = append(x.numbers, make([]uint16, numberChunk))
	}
	x.numbers[number/numberChunk][number%numberChunk] = uint16(i + 1)
	x.last = max(x.last, number)
}

// of returns the kind of a record; "" if there is none, or no key of now signed it.
func (x *index) of(number uint32) string {
	if number > x.last || len(x.numbers) == 0 {
		return ""
	}
	i := x.numbers[number/numberChunk][number%numberChunk]
	if i == 0 || !x.signers[i-1].pinned {
		return ""
	}
	return x.signers[i-1].kind
}

// signer returns the key that signed a record; ok is false if it is none of now.
func (x *index) signer(number uint32) (key hashpipe.Digest, ok bool) {
	if x.of(number) == "" {
		return hashpipe.Digest{}, false
	}
	return x.signers[x.numbers[number/numberChunk][number%numberChunk]-1].key, true
}

// lives reports whether there is such a record, whoever signed it.
func (x *index) lives(number uint32) bool {
	return number <= x.last && len(x.numbers) > 0 && x.numbers[number/numberChunk][number%numberChunk] != 0
}

// repin notes whom a new Trust pins.
func (x *index) repin(pins func(kind string, key hashpipe.Digest) bool) {
	for i := range x.signers {
		x.signers[i].pinned = pins(x.signers[i].kind, x.signers[i].key)
	}
}

// killUnpinned forgets the records that no key of now signed.
func (x *index) killUnpinned() {
	for n := uint32(1); n <= x.last; n++ {
		if x.lives(n) && x.of(n) == "" {
			x.kill(n)
		}
	}
}

// kill forgets a record. Its entries in the tables lead to nothing.
func (x *index) kill(number uint32) {
	if !x.lives(number) {
		return
	}
	at := &x.numbers[number/numberChunk][number%numberChunk]
	x.signers[*at-1].live--
	*at = 0
}

// some reports whether a record that a key of now signed is in a table under k.
func (x *index) some(t *tagTable, k tag) (yes bool) {
	t.each(k, func(number uint32) bool {
		yes = x.of(number) != ""
		return !yes
	})
	return yes
}

// count is the number of records of a kind by keys of now.
func (x *index) count(kind string) (n int) {
	for _, s := range x.signers {
		if s.kind == kind && s.pinned {
			n += s.live
		}
	}
	return n
}

// bytes is what the index takes of the memory, about.
func (x *index) bytes() int {
	n := len(x.numbers) * numberChunk * 2
	for _, t := range x.tables() {
		n += (*t).bytes()
	}
	return n
}
