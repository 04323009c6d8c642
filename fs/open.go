package fs

import (
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// content is a verified content that is open: the descriptor of the inode that
// was measured and the tree that every read is checked against. All handles of
// one node share it, and with it the tier: the kernel does not serve one inode
// in two ways at a time.
type content struct {
	file    *os.File // of the source, or the private file's
	private *private // nil in tier "blocks"
	checked *hashpipe.CheckedReader
	size    int64
	refs    int // guarded by node.mu

	// inherited is the tier, if this process has nothing of the content: the kernel
	// serves a private file of a predecessor.
	inherited string
}

func (c *content) tier() string {
	switch {
	case c.private != nil:
		return c.private.tier
	case c.inherited != "":
		return c.inherited
	}
	return TierBlocks
}

// handle is one open file whose bytes are checked. Only newHandle makes one, from
// an allowed verdict.
type handle struct {
	fs      *filesystem
	node    *node
	content *content
	proof   proof
	caller  fuse.Caller
	since   time.Time // when it was decided that it opens
	slot    slot      // in the journal

	generation atomic.Uint64 // of the view, at the last decision that allowed
	cut        atomic.Bool   // taken back: nothing is read any more
	once       sync.Once     // tells the taking back once
}

// Open decides. It returns OK only after the whole content was measured and a
// live capability names it.
func (f *filesystem) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.lostReplies.again(in.Unique)
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return statusStale
	}
	if wantsWrite(in.Flags) {
		f.tell(in.Caller, n.path, refused(ReasonWrite, "open for writing", "open it for reading: the mount is read-only"), nil, "")
		return statusReadOnly
	}
	if n.ident.kind != unix.S_IFREG {
		f.tell(in.Caller, n.path, refusedSpecial(), nil, "")
		return statusRefused
	}
	file, st, err := f.src.open(n.path)
	if err != nil {
		return f.unopened(in.Caller, n, err)
	}
	if file == nil {
		return statusStale // became something else
	}
	keep := false
	defer func() {
		if !keep {
			file.Close()
		}
	}()
	generation := f.view.Generation() // before the decision: see handle.live
	a := assessment{verdict: refusedChanging(), status: statusRefused}
	if identityOf(&st) == n.ident {
		f.sentBack.arrived(in.Pid, n.path)
		a = f.assess(f.lookFor(cancel, in.Caller), n.path, n.ident, file, f.earlyFor(n))
	} else if !f.sentBack.again(in.Pid, n.path) {
		// The name leads to another state than its inode stands for: the kernel looks
		// it up again and gets another inode. It does so once for an open; if that
		// leads nowhere too, the file is being written.
		return statusStale
	}
	if !a.verdict.Allowed() {
		if f.excuses(a.verdict, a.flight) {
			st, kept := f.openUnchecked(n, a, file, in.Caller, generation, out)
			keep = kept
			return st
		}
		f.tell(in.Caller, n.path, a.verdict, a.flight, "")
		return a.status
	}
	h, kept, ok := f.newHandle(n, a, file, in.Caller)
	keep = kept
	if !ok {
		f.nodes.retire(n)
		return statusStale
	}
	h.generation.Store(generation)
	if refusal, st := f.settle(cancel, h, a); !st.Ok() {
		h.release()
		if f.excuses(refusal, a.flight) {
			f.nodes.retire(n) // it is bound; the next open gets another
			return statusStale
		}
		f.tell(in.Caller, n.path, refusal, a.flight, "")
		return st
	}
	f.tell(in.Caller, n.path, a.verdict, a.flight, h.content.tier())
	out.Fh = f.files.add(h)
	h.slot = f.journal.put(entryHandle, 0, 0, handleEntry{
		fh: out.Fh, node: n.id, unique: in.Unique &^ resendBit, caller: h.caller, since: h.since, tier: uint64(slices.Index(keptTiers, h.content.tier())),
	}.body())
	// A revocation since settle may have looked for handles before this one was
	// there, and of what the kernel serves no READ asks.
	h.live()
	if p := h.content.private; p != nil {
		// The kernel opens the private file with the caller's flags, of which
		// wantsWrite has seen that none writes.
		out.OpenFlags, out.BackingID = fuse.FOPEN_PASSTHROUGH|fuse.FOPEN_NOFLUSH, p.backing
		return fuse.OK
	}
	// KEEP_CACHE: the inode only ever held checked pages of this one content.
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// settle waits for a fill of the handle's node, and decides again if the view has
// changed since the decision: what is in the page cache by now no READ asks for.
func (f *filesystem) settle(cancel <-chan struct{}, h *handle, a assessment) (Verdict, fuse.Status) {
	if fill := h.node.filling(); fill != nil {
		if refusal, st := f.awaitFill(cancel, h, fill); !st.Ok() {
			return refusal, st
		}
	}
	generation := f.view.Generation()
	if h.generation.Load() == generation {
		return Verdict{}, fuse.OK
	}
	if v := f.decideAt(h.node.path, a.flight, a.roots, by(h.caller)); !v.Allowed() {
		return v, statusRefused
	}
	h.generation.Store(generation)
	return Verdict{}, fuse.OK
}

func refusedSpecial() Verdict {
	return refused(ReasonSpecial, "expected a regular file, got a device, FIFO or socket", "remove it from the source")
}

// unopened answers for a source file that cannot be opened.
func (f *filesystem) unopened(caller fuse.Caller, n *node, err error) fuse.Status {
	st := statusOf(err)
	if st != statusStale && st != statusNoEntry {
		f.tell(caller, n.path, refused(ReasonUnreadable, err.Error(), "mend the source"), nil, "")
	}
	if st == statusNoEntry {
		return statusStale // let the kernel find out by a lookup
	}
	return st
}

func refusedChanging() Verdict {
	return refused(ReasonChanging, "the file is being written while it is measured", "open it again when its writer is done")
}

// assessment is all that is known about a file after it was measured.
type assessment struct {
	verdict Verdict
	status  fuse.Status // the answer if the verdict refuses
	flight  *flight     // nil if nothing was measured

	roots map[Root]Finding // what the verdict says of the files beside it
}

// assess measures a file, if any capability could fit it, and decides, on behalf
// of a caller that waits. It is what Open and the xattr user.clawfs.why both
// rest on.
func (f *filesystem) assess(l look, path string, id identity, file *os.File, onto func(cold bool) *early) assessment {
	if detail, yes := f.quarantine.has(id); yes {
		return assessment{verdict: refused(ReasonQuarantined, detail, "put a good copy in its place: the old one is not opened again"), status: statusRefused}
	}
	if v, hopeless := f.hopeless(path, id.size); hopeless {
		return assessment{verdict: v, status: statusRefused}
	}
	fl, err := f.measure.start(file, id, onto)
	if err != nil {
		return assessment{verdict: refused(ReasonUnreadable, err.Error(), ""), status: statusIO}
	}
	if o := f.awaitLook(l, fl.done); o != finished {
		return undecided(o)
	}
	if errors.Is(fl.err, hashpipe.ErrChanged) {
		return assessment{verdict: refusedChanging(), status: statusRefused}
	}
	if fl.err != nil {
		return assessment{verdict: refused(ReasonUnreadable, fl.err.Error(), "mend the source"), status: statusIO}
	}
	switch err := fl.compare(baseName(path), file); {
	case errors.Is(err, hashpipe.ErrChanged):
		return assessment{verdict: refusedChanging(), status: statusRefused}
	case err != nil:
		return assessment{verdict: refused(ReasonUnreadable, err.Error(), "mend the source"), status: statusIO}
	}
	a := assessment{verdict: f.decide(path, fl, l.asker), status: statusRefused, flight: fl}
	if a.verdict.Reason == ReasonMixedRelease { // of the file itself all is right
		roots, o := f.unmixed(l, path, fl)
		if o != finished {
			return undecided(o)
		}
		a.verdict, a.roots = f.decideAt(path, fl, roots, l.asker), roots
	}
	switch {
	case a.verdict.Allowed():
		fl.granted.Store(true)
	case fl.moved:
		a.verdict = refusedChanging()
	}
	return a
}

// undecided is the assessment whose wait ended before its measurement did.
func undecided(o outcome) assessment {
	switch o {
	case tooSlow:
		return assessment{verdict: refused(ReasonTooSlow, "the kernel limits how long a request may take; measuring goes on", "open it again in a while, or raise fs.fuse.max_request_timeout"), status: statusTooSlow}
	case unmounted:
		return assessment{verdict: refused(ReasonInterrupted, "the mount is going away", ""), status: statusInterrupted}
	}
	return assessment{verdict: refused(ReasonInterrupted, "the caller was told to stop; measuring goes on", ""), status: statusInterrupted}
}

// decide asks Decide with all grants that could matter, now. What lies at the
// roots of the path is not known.
func (f *filesystem) decide(path string, fl *flight, a asker) Verdict {
	return f.decideAt(path, fl, nil, a)
}

func (f *filesystem) decideAt(path string, fl *flight, roots map[Root]Finding, a asker) Verdict {
	q := f.query(path, fl, a)
	q.Roots = roots
	return Decide(q, append(f.view.Lookup(fl.digest), f.byName(path)...))
}

// query asks about a measured file under this mount's rules, now. A tree whose
// digest does not hold any more, because a capability that came since contradicts,
// is as good as no measurement; the next open measures the file by its SHA-256.
func (f *filesystem) query(path string, fl *flight, a asker) Query {
	q := f.about(fl.proof, path, a)
	q.Bind = f.bind
	if !fl.holds(f.claims(q.Size)) {
		q.Tree = nil
	}
	return q
}

// about asks about a proven content by its name alone.
func (f *filesystem) about(p proof, path string, a asker) Query {
	q := p.query(path, f.clock.now(), f.shown(path))
	q.Mount, q.UID, q.Anyone = f.mountpoint, a.uid, a.anyone
	if f.silence != nil {
		q.Silence, q.MaxSilence = f.silence(), f.maxSilence
	}
	return q
}

// asker is who would open a file.
type asker struct {
	uid    uint32
	anyone bool // some user or other
}

func by(c fuse.Caller) asker { return asker{uid: c.Uid} }

// byName returns the grants that could be meant by a path, whatever its bytes.
func (f *filesystem) byName(path string) []capstore.Grant {
	base := baseName(path)
	grants := f.view.ByName(base)
	if d, ok := contentAddress(base); ok {
		grants = append(grants, f.view.Lookup(d)...)
	}
	return grants
}

// hopeless refuses without hashing: a file whose size is that of no capability
// cannot be allowed, and neither can one whose name claims a hash of which
// nothing is known. Of the rest, also the ones under a wrong name are hashed,
// because only then the refusal can say so.
func (f *filesystem) hopeless(path string, size int64) (Verdict, bool) {
	named := f.byName(path)
	if !f.claims(size).none() {
		if _, addressed := contentAddress(baseName(path)); !addressed || len(named) > 0 {
			return Verdict{}, false
		}
	}
	return Decide(Query{Path: path, Size: size, Now: f.clock.now(), Shown: f.shown(path)}, named), true
}

// newHandle binds the node to the measured content, for good, and opens it. It
// fails if the node is bound to another one, has served unchecked bytes, or one of
// its handles was cut off. kept says that file now belongs to the content.
func (f *filesystem) newHandle(n *node, a assessment, file *os.File, caller fuse.Caller) (h *handle, kept, ok bool) {
	if !a.verdict.Allowed() || a.flight == nil {
		return nil, false, false
	}
	proof := a.flight.proof
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.content != nil && n.content.inherited != "" {
		return nil, false, false // the kernel serves an inode from one file at a time
	}
	if n.unchecked || n.cut.Load() || !n.bound.isZero() && !n.bound.same(proof) || n.early != nil && !n.early.tells(proof) {
		return nil, false, false
	}
	if n.bound.isZero() {
		n.boundSlot.Store(int64(f.journal.put(entryBound, 0, 0, boundBody(n, proof))))
	}
	n.bound = proof
	if n.content == nil && f.vault.acquire(a.flight.private) {
		p := a.flight.private
		n.content = &content{file: p.file, private: p, checked: hashpipe.NewCheckedReader(p.file, proof.tree), size: p.size}
	}
	if n.content == nil {
		n.content = &content{
			file:    file,
			checked: hashpipe.NewCheckedReader(file, proof.tree),
			size:    proof.tree.Size(),
		}
		kept = true
		if n.fill == nil && n.early == nil {
			// The kernel has no handle of this inode, and gets none before the end
			// of the fill: see fill.
			n.fill = f.beginFill(n, a.flight, file, caller)
		}
	}
	n.content.refs++
	return &handle{fs: f, node: n, content: n.content, proof: proof, caller: caller, since: a.verdict.at}, kept, true
}

func (f *filesystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if in.Fh&uncheckedBit != 0 {
		f.releaseUnchecked(in.Fh)
		return
	}
	f.release(in.Fh)
}

func (f *filesystem) release(fh uint64) {
	if h, ok := f.files.remove(fh); ok {
		f.journal.drop(h.slot)
		h.release()
	}
}

// release closes the source file with the last handle. The kernel sends it when
// no read of the handle is under way.
func (h *handle) release() {
	n := h.node
	n.mu.Lock()
	h.content.refs--
	last := h.content.refs == 0
	if last && n.content == h.content {
		n.content = nil
	}
	n.mu.Unlock()
	if !last {
		return
	}
	h.fs.units.forget(h.content)
	if h.content.private != nil {
		h.fs.vault.release(h.content.private)
		return
	}
	if h.content.file != nil {
		h.content.file.Close()
	}
}

// tell counts a decision and hands it to the audit. tier is that of an open that
// was allowed.
func (f *filesystem) tell(caller fuse.Caller, path string, v Verdict, fl *flight, tier string) {
	var d hashpipe.Digest
	if fl != nil {
		d = fl.digest
	}
	r := f.record(caller, path, v, d)
	switch {
	case v.Allowed():
		r.Decision, r.Tier = Granted, tier
		f.counters.granted.Add(1)
	case v.Reason == ReasonUnreadable, v.Reason == ReasonInterrupted, v.Reason == ReasonTooSlow:
		r.Decision = Failed
		f.counters.errors.Add(1)
	default:
		f.counters.refused.Add(1)
	}
	f.audit.add(r)
}

// record is that of a refusal. d is what was measured; zero if nothing was.
func (f *filesystem) record(caller fuse.Caller, path string, v Verdict, d hashpipe.Digest) Record {
	r := Record{
		Time: f.clock.now(), Path: path,
		PID: caller.Pid, UID: caller.Uid, GID: caller.Gid,
		Decision: Refused, Reason: v.Reason, Detail: v.Detail, Next: v.Next,
	}
	if !d.IsZero() {
		r.Digest = d.String()
	}
	if !v.Capability.IsZero() {
		r.Capability, r.Model = v.Capability.ID().String(), v.Capability.Model()
	}
	return r
}
