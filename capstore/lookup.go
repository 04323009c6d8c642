package capstore

import (
	"cmp"
	"iter"
	"path"
	"slices"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// opens reports whether a capability is neither revoked as a whole nor expired.
func (v *View) opens(id hashpipe.Digest, now time.Time) bool {
	c, ok := v.capability(id)
	v.mu.RLock()
	defer v.mu.RUnlock()
	return ok && now.Before(c.NotAfter()) && v.look().against(c).IsZero()
}

// Lookup returns every capability with an output of this SHA-256, revoked ones
// too, so that a refusal can say why; the newest sequence first. A revocation of
// the file itself stands against each of them. A zero digest has no grant.
func (v *View) Lookup(d hashpipe.Digest) []Grant {
	if d.IsZero() {
		return nil
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.look().lookup(d)
}

func (x lens) lookup(d hashpipe.Digest) []Grant {
	list := x.ofContent(d)
	if len(list) == 0 {
		return nil
	}
	file := x.revokedBy(target{KindFile, d})
	return x.grants(list, func(Capability) Revocation { return file })
}

// Get returns the capability of an id as a Grant, and whether there is one.
func (v *View) Get(id hashpipe.Digest) (Grant, bool) {
	c, ok := v.capability(id)
	if !ok {
		return Grant{}, false
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.look().grants([]Capability{c}, noRevocation)[0], true
}

// OfSBA returns the capabilities of an attestation, ordered as All.
func (v *View) OfSBA(sba hashpipe.Digest) []Grant {
	v.mu.RLock()
	defer v.mu.RUnlock()
	x := v.look()
	return x.grants(x.those(x.index.bySBA.all(tagOf(sba)), func(c Capability) bool { return c.SBA() == sba }), noRevocation)
}

// maxNamed bounds the answer of ByName.
const maxNamed = 64

// ByName returns the capabilities with an output whose last name component is base,
// to tell a stranger from a changed file; if they are more than 64, the newest of
// them. It is for messages: what a grant allows is decided by Lookup of the measured
// digest.
func (v *View) ByName(base string) []Grant {
	v.mu.RLock()
	defer v.mu.RUnlock()
	x := v.look()
	numbers := x.index.byName.find(nameTag(base), maxNamed)
	slices.Reverse(numbers)
	list := x.those(numbers, func(c Capability) bool {
		return slices.ContainsFunc(c.rec.subjects, func(s Subject) bool { return path.Base(s.Name) == base })
	})
	return x.grants(list, func(c Capability) Revocation {
		for _, s := range c.rec.subjects {
			if path.Base(s.Name) != base {
				continue
			}
			if r := x.revokedBy(target{KindFile, s.Digest}); !r.IsZero() {
				return r
			}
		}
		return Revocation{}
	})
}

// Each returns every capability, one after the other, in the order in which they
// came. What arrives or changes meanwhile may be shown or not; each Grant is of one
// moment. A revocation of one of its files alone is not shown here, because the other
// files stay granted; see Revocations.
func (v *View) Each() iter.Seq[Grant] {
	return func(yield func(Grant) bool) {
		for n := uint32(1); ; n++ {
			g, more := v.grantAt(n)
			if !more || !g.IsZero() && !yield(g) {
				return
			}
		}
	}
}

// grantAt is for one capability what All is for all of them.
func (v *View) grantAt(number uint32) (g Grant, more bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if number > v.index.last {
		return Grant{}, false
	}
	x := v.look()
	if c := x.at(number); !c.IsZero() {
		g = x.grants([]Capability{c}, noRevocation)[0]
	}
	return g, true
}

// All returns every capability, as of one moment. It is for few, or for somebody who
// asked for them: in memory each takes some ten thousand bytes. A revocation of one of its
// files alone is not shown here, because the other files stay granted; see
// Revocations.
func (v *View) All() []Grant {
	// Reading takes long, and shall keep nobody waiting who changes the view.
	memo, trusted := v.readAll()
	v.mu.RLock()
	defer v.mu.RUnlock()
	x := v.look()
	if trusted == v.trusted {
		x.memo = memo
	}
	var list []Capability
	for n := uint32(1); n <= x.index.last; n++ {
		if x.index.of(n) != RecordCapability {
			continue
		}
		if c := x.at(n); !c.IsZero() {
			list = append(list, c)
		}
	}
	return x.grants(list, noRevocation)
}

func (v *View) readAll() (memo map[uint32]Capability, trusted uint64) {
	memo = make(map[uint32]Capability)
	for n := uint32(1); ; n++ {
		v.mu.RLock()
		more := n <= v.index.last
		if n == 1 {
			trusted = v.trusted
		}
		if c := v.readCapability(n); !c.IsZero() && trusted == v.trusted {
			memo[n] = c
		}
		v.mu.RUnlock()
		if !more {
			return memo, trusted
		}
	}
}

func noRevocation(Capability) Revocation { return Revocation{} }

// grants orders a list and joins each with what stands against it. Callers hold v.mu.
func (x lens) grants(list []Capability, also func(Capability) Revocation) []Grant {
	if len(list) == 0 {
		return nil
	}
	out := make([]Grant, 0, len(list))
	beside := x.standings(also)
	for _, c := range list {
		out = append(out, Grant{c, x.standsAgainst(c, also), beside.of(c)})
	}
	slices.SortFunc(out, compareGrants)
	return out
}

func compareGrants(a, b Grant) int {
	return cmp.Or(
		cmp.Compare(a.Model(), b.Model()),
		cmp.Compare(b.Sequence(), a.Sequence()),
		b.NotAfter().Compare(a.NotAfter()),
		cmp.Compare(a.ID().String(), b.ID().String()),
	)
}

// Revocations returns every revocation that came alone, oldest first; see InForce.
func (v *View) Revocations() []Revocation {
	list := make([]Revocation, 0, 16)
	for n := uint32(1); ; n++ {
		v.mu.RLock()
		if n > v.index.last {
			for _, r := range v.loose {
				list = append(list, r)
			}
			v.mu.RUnlock()
			return inOrder(list)
		}
		if r := v.readRevocation(n); !r.IsZero() {
			list = append(list, r)
		}
		v.mu.RUnlock()
	}
}

// Count is the number of the capabilities and of the revocations that came alone.
func (v *View) Count() (capabilities, revocations int) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.index.count(RecordCapability), v.index.count(RecordRevocation) + len(v.loose)
}

// Rejected lists the records that were asked for and did not verify.
func (v *View) Rejected() []RejectedRow { return v.bad.all() }

// Generation rises with every record that is added, before the call that added
// it returns, and with Retrust. An unchanged number means an unchanged answer of
// Lookup.
func (v *View) Generation() uint64 { return v.generation.Load() }

// Extent is the same number for two views of the same records: that of the
// capabilities and of the revocations that came alone, and the sequence of the list
// in force. It rises with each that is added, and falls when Retrust drops some.
func (v *View) Extent() uint64 {
	c, r := v.Count()
	return uint64(c) + uint64(r) + uint64(v.List().Sequence())
}

func (v *View) capability(id hashpipe.Digest) (Capability, bool) {
	for _, n := range v.find(RecordCapability, id) {
		v.mu.RLock()
		c := v.readCapability(n)
		v.mu.RUnlock()
		if !c.IsZero() && c.ID() == id {
			return c, true
		}
	}
	return Capability{}, false
}

// revocation returns the revocation of an id. One whose text is lost is none.
func (v *View) revocation(id hashpipe.Digest) Revocation {
	for _, n := range v.find(RecordRevocation, id) {
		v.mu.RLock()
		r := v.readRevocation(n)
		v.mu.RUnlock()
		if !r.IsZero() && len(r.rec.envelope) > 0 {
			return r
		}
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.loose[id]
}

// HasSize reports whether a capability, live or not, may have an output of that many
// bytes. If not, no content of that size is granted.
func (v *View) HasSize(size int64) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.index.some(v.index.bySize, tag(size))
}

// maxSized bounds how many capabilities OfSize reads.
const maxSized = 1000

// OfSize returns the outputs of that many bytes of the newest capabilities that have
// some, live or not. whole is false if those of older ones are left out.
func (v *View) OfSize(size int64) (outputs iter.Seq[Subject], whole bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	numbers := v.index.bySize.find(tag(size), maxSized+1)
	whole = len(numbers) <= maxSized
	return v.outputs(numbers[:min(len(numbers), maxSized)], func(s Subject) bool { return s.Size == size }), whole
}

// ByTree returns the outputs with this fs-verity digest, of capabilities live or not.
func (v *View) ByTree(d hashpipe.VerityDigest) iter.Seq[Subject] {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.outputs(v.index.byVerity.all(verityTag(d)), func(s Subject) bool { return s.Verity == d })
}

func (v *View) outputs(numbers []uint32, meant func(Subject) bool) iter.Seq[Subject] {
	return func(yield func(Subject) bool) {
		for c := range v.each(numbers) {
			for _, s := range c.rec.subjects {
				if meant(s) && !yield(s) {
					return
				}
			}
		}
	}
}

// Names reports whether a capability, live or not, may have an output of this name,
// or one in a directory of this name.
func (v *View) Names(name string) bool {
	v.mu.RLock()
	listed, wide := v.index.some(v.index.byPath, nameTag(name)), slices.Clone(v.index.wide)
	v.mu.RUnlock()
	if listed {
		return true
	}
	for c := range v.each(wide) {
		if c.names(name) {
			return true
		}
	}
	return false
}

// Within returns a capability of each claim with an output of this name, or with one
// in a directory of this name; live or not. name "" is every directory.
func (v *View) Within(name string) (list []Capability) {
	v.mu.RLock()
	numbers := append(v.index.byPath.all(nameTag(name)), v.index.wide...)
	if name == "" {
		numbers = numbers[:0]
		for n := uint32(1); n <= v.index.last; n++ {
			numbers = append(numbers, n)
		}
	}
	v.mu.RUnlock()
	slices.Sort(numbers)
	for c := range v.each(slices.Compact(numbers)) {
		if name == "" || c.names(name) {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b Capability) int { return compareGrants(Grant{held: a}, Grant{held: b}) })
	seen := make(map[hashpipe.Digest]bool)
	return slices.DeleteFunc(list, func(c Capability) bool {
		again := seen[c.Claim()]
		seen[c.Claim()] = true
		return again
	})
}

// each reads the capabilities of some numbers. Between two of them others may change
// the view.
func (v *View) each(numbers []uint32) iter.Seq[Capability] {
	return func(yield func(Capability) bool) {
		for _, n := range numbers {
			v.mu.RLock()
			c := v.readCapability(n)
			v.mu.RUnlock()
			if !c.IsZero() && !yield(c) {
				return
			}
		}
	}
}

// Paths is how many names and directories capabilities have given, about.
func (v *View) Paths() int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.index.paths + len(v.index.wide)*maxPaths
}

// names reports whether an output has this name or lies in a directory of this name.
func (c Capability) names(name string) bool {
	return slices.ContainsFunc(c.rec.subjects, func(s Subject) bool {
		return s.Name == name || len(s.Name) > len(name) && s.Name[len(name)] == '/' && s.Name[:len(name)] == name
	})
}

// kindOf is the kind of a record that a key of now signed; "" if there is none. same
// says whether the Trust of now is the one that v.trusted counted.
func (v *View) kindOf(number uint32, trusted uint64) (kind string, same bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.index.of(number), v.trusted == trusted
}

// own notes a list that the source has.
func (v *View) own(number uint32, f fact) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.index.add(number, f, v.pins)
}

func (v *View) isLoose(id hashpipe.Digest) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	_, ok := v.loose[id]
	return ok
}
