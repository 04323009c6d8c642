package capstore

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"time"

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
	v := &View{contents: contents{mints: mints, revokers: revokers, rules: rules, index: newIndex(), source: s, cache: newCache()}}
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
	case len(r.Envelope) == 0 && r.Kind == RecordCapability:
		return errors.New("capability without its text")
	}
	v.admitting.Lock()
	defer v.admitting.Unlock()
	if !v.pins(f.kind, f.signer) {
		return fmt.Errorf("%s %s: not signed by a trusted %s: its entry says %s", f.kind, f.id, map[bool]string{true: v.mints.name, false: v.revokers.name}[f.kind == RecordCapability], f.signer)
	}
	have := v.find(f.kind, f.id)
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

// lens is a look at a view, or at what it would be.
type lens struct {
	*View
	extra map[target]Revocation // taken back in addition
	memo  map[uint32]Capability // read already
}

// look is for callers that hold v.mu.
func (v *View) look() lens { return lens{View: v} }

// at returns the capability of a number, verified; zero if there is none, or none
// that verifies.
func (x lens) at(number uint32) Capability {
	if c, ok := x.memo[number]; ok {
		return c
	}
	return x.readCapability(number)
}

// readCapability is for callers that hold v.mu.
func (v *View) readCapability(number uint32) Capability {
	if v.index.of(number) != RecordCapability {
		return Capability{}
	}
	if c, ok := v.cache.capability(number); ok {
		return c
	}
	text, id, place, err := v.source.text(number)
	if err == nil {
		var c Capability
		if c, err = readCapability(v.mints, text); err == nil && c.ID() == id {
			return v.cache.keepCapability(number, c)
		}
		if err == nil {
			err = fmt.Errorf("the row holds capability %s", c.ID())
		}
	}
	v.reject(place, err)
	return Capability{}
}

func (v *View) reject(place string, err error) {
	if !errors.Is(err, ErrClosed) {
		v.bad.add(place, err.Error())
	}
}

// readRevocation returns the revocation of a number. If its record is not what the
// index says, it is one that says so. It is zero if there is none, or none by a key
// of now. Callers hold v.mu.
func (v *View) readRevocation(number uint32) Revocation {
	if v.index.of(number) != RecordRevocation {
		return Revocation{}
	}
	if r, ok := v.cache.revocation(number); ok {
		return r
	}
	text, id, place, err := v.source.text(number)
	f, lost := v.source.fact(number)
	var r Revocation
	if err == nil {
		r, err = readRevocation(v.revokers, text)
	}
	switch {
	case err != nil:
	case lost != nil:
		err = lost
	case r.ID() != id:
		err = fmt.Errorf("the row holds revocation %s", r.ID())
	case f.target != r.about():
		err = fmt.Errorf("it takes back %s %s, and was recorded for %s %s", r.Kind(), r.Target(), f.target.kind, f.target.digest)
	default:
		return v.cache.keepRevocation(number, r)
	}
	v.reject(place, err)
	return unreadable(f, v.revokers, err)
}

// unreadable stands for a revocation of which only the fact is left.
func unreadable(f fact, revokers role, why error) Revocation {
	by := dsse.KeyID(f.signer.String())
	return Revocation{&revocation{
		id: f.id, operator: revokers.operator[by],
		st: RevocationStatement{
			Type: statementType, PredicateType: RevocationType, Subject: []RevokedEntry{{DigestSet{f.target.digest}}},
			Predicate: RevocationPredicate{Kind: f.target.kind, Reason: fmt.Sprintf("the revocation's own text is lost (%v); next: clawfs store rebuild", why), IssuedAt: time.Unix(f.at, 0).UTC(), Revoker: KeyOf{by}},
		},
	}}
}

// insteadOf is an unreadable revocation as one of another target.
func (r Revocation) insteadOf(t target) Revocation {
	rec := *r.rec
	rec.st.Subject = []RevokedEntry{{DigestSet{t.digest}}}
	rec.st.Predicate.Kind = t.kind
	return Revocation{&rec}
}

// about is what r takes back.
func (r Revocation) about() target { return target{r.Kind(), r.target()} }

// enoughReasons bounds how many revocations of one target are compared for which
// came first.
const enoughReasons = 64

// revokedBy returns what takes a target back: the earliest if there are several.
// Callers hold v.mu.
func (x lens) revokedBy(t target) Revocation {
	best, found := x.taken[t], 0
	if r, ok := x.extra[t]; best.IsZero() && ok {
		best = r
	}
	for _, n := range x.index.byTarget.all(t.tag()) {
		r := x.readRevocation(n)
		if r.IsZero() {
			continue
		}
		switch {
		case len(r.rec.envelope) == 0:
			// Nothing is left of it but that it is found under this target, and what a
			// damaged fact says of that is not believed either.
			r = r.insteadOf(t)
		case r.about() != t: // it has the same tag
			continue
		}
		if best.IsZero() || r.earlier(best) {
			best = r
		}
		if found++; found == enoughReasons {
			break
		}
	}
	return best
}

// against returns what revokes the whole capability. Callers hold v.mu.
func (x lens) against(c Capability) Revocation {
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
		if r := x.revokedBy(t); !r.IsZero() {
			return r
		}
	}
	return Revocation{}
}

// those reads the capabilities of some numbers, and leaves out what is not meant.
// Callers hold v.mu.
func (x lens) those(numbers []uint32, meant func(Capability) bool) (list []Capability) {
	for _, n := range numbers {
		if c := x.at(n); !c.IsZero() && meant(c) {
			list = append(list, c)
		}
	}
	return list
}

// ofClaim returns the capabilities of a claim, the first that came first.
func (x lens) ofClaim(claim hashpipe.Digest) []Capability {
	return x.those(x.index.byClaim.all(tagOf(claim)), func(c Capability) bool { return c.Claim() == claim })
}

// ofContent returns the capabilities with an output of this SHA-256.
func (x lens) ofContent(d hashpipe.Digest) []Capability {
	return x.those(x.index.byContent.all(tagOf(d)), func(c Capability) bool {
		return slices.ContainsFunc(c.rec.subjects, func(s Subject) bool { return s.Digest == d })
	})
}

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
