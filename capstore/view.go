package capstore

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// View is the verified set of capabilities and revocations in memory. A mount
// process holds one and no database; it feeds it the envelopes that the daemon
// sends and checks every signature itself. Safe for concurrent use.
type View struct {
	stored bool // belongs to a Store: records arrive through it alone

	generation atomic.Uint64

	// admitting is held from the check of a record until the record is in the maps,
	// so that Retrust comes before or after. A Store's view has Store.mu for that.
	admitting sync.Mutex

	// mu guards contents. The records that it points to are immutable.
	mu sync.RWMutex
	contents
}

// contents are what Retrust replaces: a Trust, and what verifies under it.
type contents struct {
	mints, revokers role
	rules           rules

	byID     map[hashpipe.Digest]Capability
	byDigest map[hashpipe.Digest][]Capability
	byName   map[string][]Capability // last component of a subject's name
	byClaim  map[hashpipe.Digest][]Capability
	byBuild  map[disputable][]Capability
	lists    map[hashpipe.Digest]List
	outgrown map[hashpipe.Digest]bool // lists that were seen and that a later one repeats whole
	list     List                     // the newest; zero: none was seen
	revoked  map[target]Revocation    // the earliest of each target
	revByID  map[hashpipe.Digest]Revocation
}

// target is one thing that can be taken back.
type target struct {
	kind   Kind
	digest hashpipe.Digest
}

// Grant is a capability together with what is known against it. Outside this
// package neither half can be replaced, so a revocation cannot be left behind.
type Grant struct {
	held
	revocation Revocation
	standing   *Standing // nil for a peer of another Grant
}

// held lends Grant the methods of Capability through a field that is not
// exported.
type held = Capability

// Capability returns the capability alone: what it says, no longer whether it
// was taken back.
func (g Grant) Capability() Capability { return g.held }

// Revoked returns the revocation that outranks the grant, if there is one.
func (g Grant) Revoked() (Revocation, bool) { return g.revocation, !g.revocation.IsZero() }

// Standing returns what else the view knew of the capability's result. It is zero,
// and so never enough to open a file, for a peer of another Grant.
func (g Grant) Standing() Standing {
	if g.standing == nil {
		return Standing{}
	}
	return *g.standing
}

// NewView returns an empty view: until something is admitted it grants nothing.
func NewView(t Trust) (*View, error) {
	mints, err := newRole("mint", t.Mints)
	if err != nil {
		return nil, err
	}
	revokers, err := newRole("revoker", t.Revokers)
	if err != nil {
		return nil, err
	}
	rules, err := newRules(t, mints)
	if err != nil {
		return nil, err
	}
	return &View{contents: contents{
		mints: mints, revokers: revokers, rules: rules,
		byID:     make(map[hashpipe.Digest]Capability),
		byDigest: make(map[hashpipe.Digest][]Capability),
		byName:   make(map[string][]Capability),
		byClaim:  make(map[hashpipe.Digest][]Capability),
		byBuild:  make(map[disputable][]Capability),
		lists:    make(map[hashpipe.Digest]List),
		outgrown: make(map[hashpipe.Digest]bool),
		revoked:  make(map[target]Revocation),
		revByID:  make(map[hashpipe.Digest]Revocation),
	}}, nil
}

var errStored = errors.New("view belongs to a store: admit and revoke through the store, so that the record is kept")

// Admit checks the envelope against the pinned mints and adds its capability.
// The same payload twice is the same capability, and changes nothing.
func (v *View) Admit(envelope []byte) (Capability, error) {
	if v.stored {
		return Capability{}, errStored
	}
	v.admitting.Lock()
	defer v.admitting.Unlock()
	c, err := readCapability(v.mints, envelope)
	if err != nil {
		return Capability{}, fmt.Errorf("admitting capability: %w", err)
	}
	c, _ = v.addCapability(c)
	return c, nil
}

// Revoke checks the envelope against the pinned revokers. When it returns, no
// later Lookup shows the target as granted. What the target names need not be
// known: a capability that arrives afterwards is revoked on arrival.
func (v *View) Revoke(envelope []byte) (Revocation, error) {
	if v.stored {
		return Revocation{}, errStored
	}
	v.admitting.Lock()
	defer v.admitting.Unlock()
	r, err := readRevocation(v.revokers, envelope)
	if err != nil {
		return Revocation{}, fmt.Errorf("admitting revocation: %w", err)
	}
	r, _ = v.addRevocation(r)
	return r, nil
}

// Apply takes one record of a Store's snapshot or updates. It takes a list that is
// older than the one in force, too: the store has it because no later one of the
// same key repeats it.
func (v *View) Apply(r Record) error {
	switch r.Kind {
	case RecordCapability:
		_, err := v.Admit(r.Envelope)
		return err
	case RecordRevocation:
		_, err := v.Revoke(r.Envelope)
		return err
	case RecordList:
		_, err := v.admitList(r.Envelope, true)
		return err
	}
	return fmt.Errorf("record of kind %q: want %q, %q or %q", r.Kind, RecordCapability, RecordRevocation, RecordList)
}

func (v *View) addCapability(c Capability) (_ Capability, added bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if have, ok := v.byID[c.ID()]; ok {
		return have, false
	}
	v.byID[c.ID()] = c
	v.byClaim[c.Claim()] = append(v.byClaim[c.Claim()], c)
	v.byBuild[c.disputable()] = append(v.byBuild[c.disputable()], c)
	for _, s := range c.rec.subjects {
		v.byDigest[s.Digest] = appendOnce(v.byDigest[s.Digest], c)
		base := path.Base(s.Name)
		v.byName[base] = appendOnce(v.byName[base], c)
	}
	v.generation.Add(1)
	return c, true
}

// appendOnce keeps a capability with two outputs of one content, or of one base
// name, from being listed twice.
func appendOnce(list []Capability, c Capability) []Capability {
	if len(list) > 0 && list[len(list)-1] == c {
		return list
	}
	return append(list, c)
}

func (v *View) addRevocation(r Revocation) (_ Revocation, added bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if have, ok := v.revByID[r.ID()]; ok {
		return have, false
	}
	v.revByID[r.ID()] = r
	v.revoke(r)
	v.generation.Add(1)
	return r, true
}

// revoke brings a revocation into force. Callers hold v.mu.
func (v *View) revoke(r Revocation) {
	t := target{r.Kind(), r.target()}
	// Of two that say the same, the later one: the list of an earlier one can go.
	if have, ok := v.revoked[t]; !ok || r.earlier(have) || r.ID() == have.ID() {
		v.revoked[t] = r
	}
}

// against returns what revokes the whole capability. Callers hold v.mu.
func (v *View) against(c Capability) Revocation {
	if c.rec == nil {
		return Revocation{}
	}
	p := c.predicate()
	targets := []target{
		{KindClaim, p.Claim},
		{KindSBA, p.SBA.Digest.SHA256},
		{KindPublisher, keyDigest(p.Publisher.KeyID)},
		{KindImage, p.Environment.Digest.SHA256},
	}
	for i, st := range c.rec.chain {
		targets = append(targets, target{KindCapability, c.rec.ids[i]}, target{KindMint, keyDigest(st.Predicate.Minter.KeyID)})
	}
	for _, t := range targets {
		if r, ok := v.revoked[t]; ok {
			return r
		}
	}
	return Revocation{}
}

// opens reports whether a capability is neither revoked as a whole nor expired.
func (v *View) opens(id hashpipe.Digest, now time.Time) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	c, ok := v.byID[id]
	return ok && now.Before(c.NotAfter()) && v.against(c).IsZero()
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
	file := v.revoked[target{KindFile, d}]
	return v.grants(v.byDigest[d], func(Capability) Revocation { return file })
}

// ByName returns every capability with an output whose last name component is
// base, to tell a stranger from a changed file. It is for messages: what a grant
// allows is decided by Lookup of the measured digest.
func (v *View) ByName(base string) []Grant {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.grants(v.byName[base], func(c Capability) Revocation {
		for _, s := range c.rec.subjects {
			if r, ok := v.revoked[target{KindFile, s.Digest}]; ok && path.Base(s.Name) == base {
				return r
			}
		}
		return Revocation{}
	})
}

// All returns every capability. A revocation of one of its files alone is not
// shown here, because the other files stay granted; see Revocations.
func (v *View) All() []Grant {
	v.mu.RLock()
	defer v.mu.RUnlock()
	list := make([]Capability, 0, len(v.byID))
	for _, c := range v.byID {
		list = append(list, c)
	}
	return v.grants(list, noRevocation)
}

func noRevocation(Capability) Revocation { return Revocation{} }

// grants orders a list and joins each with what stands against it. Callers hold v.mu.
func (v *View) grants(list []Capability, also func(Capability) Revocation) []Grant {
	if len(list) == 0 {
		return nil
	}
	out := make([]Grant, 0, len(list))
	beside := v.standings(also)
	for _, c := range list {
		out = append(out, Grant{c, v.standsAgainst(c, also), beside.of(c)})
	}
	slices.SortFunc(out, func(a, b Grant) int {
		return cmp.Or(
			cmp.Compare(a.Model(), b.Model()),
			cmp.Compare(b.Sequence(), a.Sequence()),
			b.NotAfter().Compare(a.NotAfter()),
			cmp.Compare(a.ID().String(), b.ID().String()),
		)
	})
	return out
}

// Revocations returns every revocation that came alone, oldest first; see InForce.
func (v *View) Revocations() []Revocation {
	v.mu.RLock()
	defer v.mu.RUnlock()
	out := make([]Revocation, 0, len(v.revByID))
	for _, r := range v.revByID {
		out = append(out, r)
	}
	return inOrder(out)
}

// Generation rises with every record that is added, before the call that added
// it returns, and with Retrust. An unchanged number means an unchanged answer of
// Lookup.
func (v *View) Generation() uint64 { return v.generation.Load() }

// Extent is the same number for two views of the same records: that of the
// capabilities and of the revocations that came alone, and the sequence of the list
// in force. It rises with each that is added, and falls when Retrust drops some.
func (v *View) Extent() uint64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return uint64(len(v.byID)) + uint64(len(v.revByID)) + uint64(v.list.Sequence())
}

func (v *View) capability(id hashpipe.Digest) (Capability, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	c, ok := v.byID[id]
	return c, ok
}

func (v *View) revocation(id hashpipe.Digest) Revocation {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.revByID[id]
}
