package capstore

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// View is the set of capabilities and revocations that somebody goes by. A mount
// process holds one and no database; it feeds it the envelopes that the daemon
// sends and checks every signature itself. Safe for concurrent use.
//
// It keeps an index in memory and the records in a source: a Store's database, or a
// spool of its own. A record is parsed and its signature checked when somebody first
// asks for it, and kept for a while. So what the index says of a capability is a
// hint, which can only lose a grant. What it says of a revocation holds: what is
// taken back is refused, and if its record then cannot be read or does not verify,
// that is told by Rejected, and it is refused all the same.
type View struct {
	stored bool // belongs to a Store: records arrive through it alone

	generation atomic.Uint64

	// admitting is held from the check of a record until the record is in the index,
	// so that Retrust comes before or after. A Store's view has Store.mu for that.
	admitting sync.Mutex

	bad rejections

	// mu guards contents. The records that it points to are immutable. Who asks holds
	// it while a record is read and verified.
	mu sync.RWMutex
	contents
}

// contents are what a View knows.
type contents struct {
	mints, revokers role
	rules           rules
	trusted         uint64 // counts Retrust

	index  *index
	source source
	spool  *spool // the source, if it is the view's own
	cache  *cache

	missing map[tag]map[hashpipe.Digest]unread // by attestation and id

	lists    map[hashpipe.Digest]List
	outgrown map[hashpipe.Digest]bool       // lists that were seen and that a later one repeats whole
	list     List                           // the newest; zero: none was seen
	loose    map[hashpipe.Digest]Revocation // in force and not in the source
	taken    map[target]Revocation          // by lists and loose ones, the earliest of each target
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

// NewView returns an empty view, which keeps its records in memory: until something
// is admitted it grants nothing.
func NewView(t Trust) (*View, error) { return newView(t, "") }

// NewViewIn is NewView for many records, whose texts go to a file without a name in
// dir. The view needs no closing: the file goes with the process.
func NewViewIn(dir string, t Trust) (*View, error) { return newView(t, dir) }

func newView(t Trust, dir string) (*View, error) {
	v, err := viewOf(t, nil)
	if err != nil {
		return nil, err
	}
	if v.spool, err = newSpool(dir); err != nil {
		return nil, err
	}
	v.source = v.spool
	return v, nil
}

// viewOf is an empty view of records that lie elsewhere.
func viewOf(t Trust, s source) (*View, error) {
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
	v := &View{contents: contents{mints: mints, revokers: revokers, rules: rules, index: newIndex(), source: s, cache: newCache(), missing: make(map[tag]map[hashpipe.Digest]unread)}}
	v.noLists()
	return v, nil
}

func (c *contents) noLists() {
	c.lists, c.outgrown, c.list = make(map[hashpipe.Digest]List), make(map[hashpipe.Digest]bool), List{}
	c.loose, c.taken = make(map[hashpipe.Digest]Revocation), make(map[target]Revocation)
}

// pins reports whether a key may sign records of a kind.
func (c *contents) pins(kind string, key hashpipe.Digest) bool {
	role := c.revokers
	if kind == RecordCapability {
		role = c.mints
	}
	_, pinned := role.operator[dsse.KeyID(key.String())]
	return pinned
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
	if have, ok := v.capability(c.ID()); ok {
		return have, nil
	}
	lost := v.find(RecordCapability, c.ID())
	number, err := v.spool.add(c.fact(), c.rec.envelope)
	if err != nil {
		return Capability{}, fmt.Errorf("admitting capability: %w", err)
	}
	v.addCapability(number, c)
	v.kill(lost...)
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
	if have := v.revocation(r.ID()); !have.IsZero() {
		return have, nil
	}
	lost := v.find(RecordRevocation, r.ID())
	number, err := v.spool.add(r.fact(), r.rec.envelope)
	if err != nil {
		v.addLoose(r) // a full disk takes nothing back
		return r, nil
	}
	v.addRevocation(number, r)
	v.kill(lost...)
	return r, nil
}

// Apply takes one record of a Store's snapshot or updates. It takes a list that is
// older than the one in force, too: the store has it because no later one of the
// same key repeats it.
//
// What an Entry says of a record is taken on the word of whoever sent it, which
// could as well have kept the record to itself: such a record is verified when it is
// asked for. A revocation whose text is lost, and of which only the Entry is left,
// refuses its target.
func (v *View) Apply(r Record) error {
	if len(r.Entry) > 0 && r.Kind != RecordList {
		return v.take(r)
	}
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

// take indexes a record by its entry.
func (v *View) take(r Record) error {
	if v.stored {
		return errStored
	}
	f, err := readBody(r.Entry)
	switch {
	case err != nil:
		return fmt.Errorf("record of kind %q: its entry: %w", r.Kind, err)
	case f.kind != r.Kind:
		return fmt.Errorf("record of kind %q: its entry is of a %s", r.Kind, f.kind)
	case len(r.Envelope) > MaxRecord:
		return fmt.Errorf("%s of %d bytes: at most %d are stored", r.Kind, len(r.Envelope), MaxRecord)
	}
	v.admitting.Lock()
	defer v.admitting.Unlock()
	if !v.pins(f.kind, f.signer) {
		return fmt.Errorf("%s %s: not signed by a trusted %s: its entry says %s", f.kind, f.id, map[bool]string{true: v.mints.name, false: v.revokers.name}[f.kind == RecordCapability], f.signer)
	}
	have := v.find(f.kind, f.id)
	if len(r.Envelope) == 0 && r.Kind == RecordCapability { // it grants nothing, and may speak against others
		v.mu.Lock()
		defer v.mu.Unlock()
		if len(have) == 0 {
			v.miss(0, f)
			v.generation.Add(1)
		}
		return nil
	}
	if f.kind == RecordRevocation { // of two that say different things, one lies: both refuse
		have = slices.DeleteFunc(have, func(n uint32) bool {
			other, err := v.spool.fact(n)
			return err != nil || other.target != f.target || other.signer != f.signer
		})
	}
	if slices.ContainsFunc(have, v.spool.holds) || len(have) > 0 && len(r.Envelope) == 0 {
		return nil
	}
	number, err := v.spool.add(f, r.Envelope)
	if err != nil && f.kind == RecordRevocation { // a full disk takes nothing back
		if _, bad := v.revokeLoose(r.Envelope); bad != nil {
			v.addLoose(unreadable(f, v.revokers, bad))
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", f.kind, f.id, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.index.add(number, f, v.pins)
	v.meet(f)
	for _, n := range have { // whose text is lost
		v.index.kill(n)
	}
	v.generation.Add(1)
	return nil
}

// revokeLoose brings a revocation into force that has no place in the source.
// Callers hold v.admitting.
func (v *View) revokeLoose(envelope []byte) (Revocation, error) {
	r, err := readRevocation(v.revokers, envelope)
	if err != nil {
		return Revocation{}, fmt.Errorf("admitting revocation: %w", err)
	}
	v.addLoose(r)
	return r, nil
}

// addCapability indexes a verified capability, which the source has under number.
func (v *View) addCapability(number uint32, c Capability) {
	f := c.fact()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.index.add(number, f, v.pins)
	v.meet(f)
	v.cache.keepCapability(number, c)
	v.generation.Add(1)
}

// addRevocation is addCapability for a revocation, and brings it into force.
func (v *View) addRevocation(number uint32, r Revocation) {
	f := r.fact()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.index.add(number, f, v.pins)
	v.cache.keepRevocation(number, r)
	if _, was := v.loose[r.ID()]; !was {
		v.generation.Add(1)
	}
	delete(v.loose, r.ID()) // it stays among the taken, until a Retrust
}

// addLoose brings a revocation into force that the source does not have.
func (v *View) addLoose(r Revocation) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.loose[r.ID()] = r
	v.revoke(r)
	v.generation.Add(1)
}

// revoke notes what a list or a loose revocation takes back. Callers hold v.mu.
func (v *View) revoke(r Revocation) {
	t := target{r.Kind(), r.target()}
	// Of two that say the same, the later one: the list of an earlier one can go.
	if have, ok := v.taken[t]; !ok || r.earlier(have) || r.ID() == have.ID() {
		v.taken[t] = r
	}
}

// find returns the numbers of the records of that id.
func (v *View) find(kind string, id hashpipe.Digest) (numbers []uint32) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	by := v.index.byID
	if kind == RecordRevocation {
		by = v.index.revByID
	}
	for _, n := range by.all(tagOf(id)) {
		if !v.index.lives(n) {
			continue
		}
		if f, err := v.source.fact(n); err == nil && f.id == id {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// kill forgets records.
func (v *View) kill(numbers ...uint32) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, n := range numbers {
		v.index.kill(n)
	}
}
