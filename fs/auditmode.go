package fs

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// Audit mode is for the roll-out: until Config.AuditUntil an open that the rules
// refuse is served all the same, and told as Audited. Nothing else changes. What
// is granted is served checked, and what differs later is an I/O error, because
// its reader was promised checked bytes. A file that enforcement would hash is
// hashed first, so that the record says what enforcement would say.
//
// Not served even then: what was revoked, because somebody has taken it back on
// purpose; what is no regular file; what the source cannot give; writes. (Of a
// file that enforcement would refuse without hashing it, nobody knows whether it
// was revoked.)
//
// How checked and unchecked bytes stay apart. An unchecked handle has a type of
// its own, a table of its own and numbers of its own (uncheckedBit). An inode is
// of one sort for its life: newHandle gives no handle of one that has served
// unchecked bytes, newUnchecked none of one into which checked pages went or may
// go; else the kernel is told that the inode is stale and gets another under the
// name. So pages of the two sorts never meet in one page cache.
//
// The mode ends by itself and for good: the mount's clock only goes forward, and
// AuditUntil is an instant, which no remount moves.
//
// BUG: what is open through /proc/self/fd cannot be looked up again: there a
// change of sort is ESTALE to the program.

// unchecked is an open file of which nobody has approved a byte. Only
// newUnchecked makes one.
type unchecked struct {
	fs      *filesystem
	node    *node
	file    *os.File // of the source
	proof   proof    // of the content at the open; zero if it was not measured
	verdict Verdict  // what enforcement would have answered
	caller  fuse.Caller

	generation atomic.Uint64 // of the view, when it was last seen not to be revoked
	cut        atomic.Bool   // taken back: nothing is read any more
	once       sync.Once     // tells the taking back once
}

// uncheckedBit marks the numbers of unchecked handles for the kernel.
const uncheckedBit = 1 << 63

// auditing reports whether the mount is in audit mode now.
func (f *filesystem) auditing() bool {
	return !f.auditUntil.IsZero() && f.clock.now().Before(f.auditUntil)
}

// excuses reports whether a refusal is told and not enforced. fl is what was
// measured, or nil. A reason that is not listed is enforced.
func (f *filesystem) excuses(v Verdict, fl *flight) bool {
	switch v.Reason {
	case ReasonNoCapability, ReasonWrongSize, ReasonWrongBytes, ReasonWrongName, ReasonMixedRelease,
		ReasonNotYetValid, ReasonExpired, ReasonUnmeasured, ReasonChanging, ReasonQuarantined, ReasonSymlink,
		ReasonRestricted, ReasonQuorum, ReasonDisputed, ReasonStaleList, ReasonStaleDaemon, ReasonNoRule, ReasonOldPolicy:
	default:
		return false
	}
	return f.auditing() && (fl == nil || !f.takenBack(fl.proof))
}

// takenBack reports whether a content was revoked, under whatever name it lies
// there, and nobody grants it again of whom the policy says that they decide.
func (f *filesystem) takenBack(p proof) bool {
	if p.isZero() {
		return false
	}
	taken := false
	for _, g := range f.view.Lookup(p.digest) {
		if _, revoked := g.Revoked(); revoked {
			taken = true
			continue
		}
		if decides := g.Standing().Among(map[string]bool{g.Operator(): true}); len(decides.Operators) > 0 {
			return false
		}
	}
	return taken || !f.view.RevokedBy(capstore.KindFile, p.digest).IsZero()
}

// openUnchecked answers an OPEN that excuses has excused. kept says that file now
// belongs to the handle. generation is that of the view before the verdict.
func (f *filesystem) openUnchecked(n *node, a assessment, file *os.File, caller fuse.Caller, generation uint64, out *fuse.OpenOut) (_ fuse.Status, kept bool) {
	u, ok := f.newUnchecked(n, a, file, caller)
	if !ok {
		f.nodes.retire(n)
		return statusStale, false
	}
	u.generation.Store(generation)
	f.tellAudited(caller, n.path, a.verdict, a.flight)
	out.Fh = f.unchecked.add(u) | uncheckedBit
	// Without KEEP_CACHE: pages from before are dropped. The source may change, and
	// nobody compares.
	out.OpenFlags = fuse.FOPEN_NOFLUSH
	return fuse.OK, true
}

// earlyFor returns how a measurement may fill the pages of a node. In audit mode
// it may not, because they may become those of unchecked bytes.
func (f *filesystem) earlyFor(n *node) func(cold bool) *early {
	if f.auditing() {
		return nil
	}
	return func(cold bool) *early { return f.beginEarly(n, n.ident.size, cold) }
}

// newUnchecked marks the node as one of unchecked bytes, for good, and opens it.
// It fails if checked bytes went or may go into its pages.
func (f *filesystem) newUnchecked(n *node, a assessment, file *os.File, caller fuse.Caller) (*unchecked, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.bound.isZero() || n.early != nil {
		return nil, false
	}
	n.unchecked = true
	f.journal.setFlag(n.slot, nodeUnchecked)
	u := &unchecked{fs: f, node: n, file: file, verdict: a.verdict, caller: caller}
	if a.flight != nil {
		u.proof = a.flight.proof
	}
	return u, true
}

// live reports whether a handle may still be read: in audit mode, and as long as
// the content that was measured is not revoked.
func (u *unchecked) live() bool {
	if u.cut.Load() {
		return false
	}
	if !u.fs.auditing() {
		u.cutOff(u.verdict.Reason, "audit mode has ended: "+u.verdict.Detail, u.verdict.Next)
		return false
	}
	generation := u.fs.view.Generation()
	if u.generation.Load() == generation {
		return true
	}
	if u.fs.takenBack(u.proof) {
		u.cutOff(ReasonRevoked, fmt.Sprintf("sha256:%s was revoked while it was open unchecked", u.proof.digest), "clawfs why "+quoted(u.fs.shown(u.node.path)))
		return false
	}
	u.generation.Store(generation)
	return true
}

// cutOff takes a handle back.
func (u *unchecked) cutOff(why Reason, detail, next string) {
	u.cut.Store(true)
	u.once.Do(func() {
		v := refused(why, detail, next)
		v.Capability = u.verdict.Capability
		r := u.fs.record(u.caller, u.node.path, v, u.proof.digest)
		r.Decision = Cut
		u.fs.audit.add(r)
	})
}

func (f *filesystem) releaseUnchecked(fh uint64) {
	if u, ok := f.unchecked.remove(fh &^ uncheckedBit); ok {
		u.release()
	}
}

func (u *unchecked) release() { u.file.Close() }

// readUnchecked returns what the source has there now.
func (f *filesystem) readUnchecked(in *fuse.ReadIn) (*units, fuse.Status) {
	u, ok := f.unchecked.get(in.Fh &^ uncheckedBit)
	if !ok {
		return nil, statusIO // of a predecessor: nobody knows any more what it was
	}
	u.node.reads.Add(1) // before it is asked whether the handle is cut: see dropPages
	defer u.node.reads.Add(-1)
	if !u.live() {
		return nil, statusIO
	}
	buf := make([]byte, in.Size)
	n, err := u.file.ReadAt(buf, int64(in.Offset))
	if err != nil && err != io.EOF {
		v := refused(ReasonUnreadable, "reading the source: "+err.Error(), "mend the source")
		r := f.record(u.caller, u.node.path, v, u.proof.digest)
		r.Decision = Failed
		f.audit.add(r)
		return nil, statusIO
	}
	return &units{parts: [][]byte{buf[:n]}}, fuse.OK
}

// sweepUnchecked takes back the handles that may not be read any more, and drops
// what the kernel has of them, so that a mapping ends too. As in watchRevocations,
// they are cut before the pages go, and no lock is held. It returns false if some
// have to be dropped later.
func (f *filesystem) sweepUnchecked() bool {
	all := true
	for _, u := range f.unchecked.all() {
		if !u.live() && !f.dropPages(u.node) {
			all = false
		}
	}
	return all
}

// watchAuditMode ends it. Opens and reads do not wait for this: they ask the
// clock themselves.
func (f *filesystem) watchAuditMode() {
	tick := time.NewTicker(revocationPoll)
	defer tick.Stop()
	for f.auditing() {
		select {
		case <-f.ctx.Done():
			return
		case <-tick.C:
		}
	}
	for !f.sweepUnchecked() {
		select {
		case <-f.ctx.Done():
			return
		case <-tick.C:
		}
	}
	f.log.Warn("audit mode has ended: from now on what the rules refuse is not served", "until", f.auditUntil, "served", f.counters.audited.Load())
}

// tellAudited counts and tells what enforcement would have refused.
func (f *filesystem) tellAudited(caller fuse.Caller, path string, v Verdict, fl *flight) {
	var d hashpipe.Digest
	if fl != nil {
		d = fl.digest
	}
	r := f.record(caller, path, v, d)
	r.Decision = Audited
	f.counters.audited.Add(1)
	f.audit.add(r)
}
