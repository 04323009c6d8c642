package fs

import (
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// revocationPoll is how soon the kernel's cached pages of a revoked content are
// dropped. Opens and reads do not wait for it: they ask the view themselves.
const revocationPoll = 25 * time.Millisecond

// sweepEvery is how soon a private file goes whose last capability has expired.
const sweepEvery = time.Minute

// tidyEvery is how soon a private file that was let go is gone after its last
// mapping. The kernel lets go of a descriptor, too, a moment after its release.
const tidyEvery = time.Second

// live reports whether a handle may still be read. It costs one atomic load
// unless the view has changed since the handle's last decision. A revocation
// cuts a handle off; that its capability expired does not, because expiry says
// until when a file may be opened, and a served model should not die at midnight.
func (h *handle) live() bool {
	if h.cut.Load() {
		return false
	}
	generation := h.fs.view.Generation()
	if h.generation.Load() == generation {
		return true
	}
	if v, revoked := h.fs.revoked(h.node.path, h); revoked {
		h.cutOff(v)
		return false
	}
	h.generation.Store(generation)
	return true
}

// revoked asks again about a content that was approved.
func (f *filesystem) revoked(path string, h *handle) (Verdict, bool) {
	return lost(f.about(h.proof, path, by(h.caller)), h.since, f.view.Lookup(h.proof.digest))
}

// cutOff takes a handle back. What the kernel serves by itself it goes on serving
// until the descriptor is closed and the mapping gone (the right to read is
// checked at open, as POSIX has it), so there all that can be done is to say so.
func (h *handle) cutOff(v Verdict) {
	h.cut.Store(true)
	h.once.Do(func() {
		f := h.fs
		h.node.cut.Store(true)
		f.journal.setFlag(h.node.slot, nodeCut)
		f.recut.Store(true)
		r := Record{
			Time: f.clock.now(), Path: h.node.path,
			PID: h.caller.Pid, UID: h.caller.Uid, GID: h.caller.Gid,
			Decision: Cut, Reason: v.Reason, Detail: v.Detail, Next: v.Next, Digest: h.proof.digest.String(),
			Tier: h.content.tier(),
		}
		if h.content.tier() != TierBlocks {
			r.Decision = Held
			r.Next = "end the processes that hold it: fuser -v " + quoted(f.shown(h.node.path))
			f.counters.held.Add(1)
		} else {
			f.counters.revoked.Add(1)
		}
		if !v.Capability.IsZero() {
			r.Capability, r.Model = v.Capability.ID().String(), v.Capability.Model()
		}
		f.audit.add(r)
	})
}

// held tells of a revoked private file of which only mappings are left, by whom
// nobody here knows.
func (f *filesystem) held(fl *flight) {
	if !f.vault.lingers(fl.private) {
		return
	}
	path := fl.file.Name()
	f.counters.held.Add(1)
	r := f.record(fuse.Caller{}, path, f.decide(path, fl, asker{anyone: true}), fl.digest)
	r.Decision, r.Tier, r.Next = Held, fl.private.tier, "end the processes that have it mapped: fuser -v "+quoted(f.shown(path))
	f.audit.add(r)
}

// watchRevocations drops the kernel's pages of what was revoked, so that also a
// mapping of it ends. It runs on a goroutine of its own and holds no lock while
// it notifies: the kernel waits there for pages that a READ is filling.
//
// The order matters: handles are cut before the pages go, so a READ that comes
// later is refused, and the pages of one that is under way go when it is answered:
// see dropPages.
func (f *filesystem) watchRevocations() {
	tick := time.NewTicker(revocationPoll)
	defer tick.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	tidy := time.NewTicker(tidyEvery)
	defer tidy.Stop()
	// All is looked at once: a revocation may have come while nobody watched.
	seen, all := f.view.Generation(), false
	var swept []*flight // since the last look for mappings
	for {
		select {
		case <-f.ctx.Done():
			return
		case <-sweep.C: // something may have expired
			f.measure.sweep()
			continue
		case <-tidy.C: // somebody may have ended
			f.vault.tidy()
			for _, fl := range swept {
				f.held(fl)
			}
			swept = nil
			continue
		case <-tick.C:
		}
		generation := f.view.Generation()
		if again := f.recut.Swap(false); generation == seen && all && !again {
			continue
		}
		seen = generation
		swept = append(swept, f.measure.sweep()...)
		all = f.sweepUnchecked()
		for _, h := range f.files.all() {
			h.live()
		}
		for _, n := range f.nodes.files() {
			// Whoever puts pages there after this sees the revocation first.
			if f.pagesGone(n) && !f.dropPages(n) {
				all = false
			}
		}
	}
}

// pagesGone is pagesRevoked after whoever puts pages there has ended.
func (f *filesystem) pagesGone(n *node) bool {
	n.pages.Lock()
	defer n.pages.Unlock()
	return f.pagesRevoked(n)
}

// dropPages drops the kernel's pages of a node whose handles are cut. It returns
// false, and has done nothing, while a READ from before that waits for the source:
// the kernel would wait, unkillably, for the page of that READ. Everything else
// that is revoked would wait too; and if the mount process were killed then, the
// READ would never be answered, and neither the process nor the connection would
// end. What is read now is refused at once.
func (f *filesystem) dropPages(n *node) bool {
	if n.reads.Load() > 0 {
		return false
	}
	// An error means that the kernel has forgotten the inode, and its pages.
	_ = f.server.InodeNotify(n.id, 0, 0)
	return true
}

// pagesRevoked reports whether the kernel may keep no pages of a node: it was bound
// to a content that is approved for nobody any more, or a handle of it was cut off
// that may have it mapped, whoever else may read it. Those get another inode at
// their next open: see newHandle.
//
// BUG: as long as others read through handles of that inode from before, what they
// read comes back into pages that a mapping of the cut handle sees, until the next
// change of the view.
func (f *filesystem) pagesRevoked(n *node) bool {
	if n.cut.Load() {
		return true
	}
	n.mu.Lock()
	bound := n.bound
	n.mu.Unlock()
	if bound.isZero() || n.ident.kind != unix.S_IFREG {
		return false
	}
	_, gone := lost(f.about(bound, n.path, asker{anyone: true}), time.Time{}, f.view.Lookup(bound.digest))
	return gone
}

// wanted reports whether some capability lets a content be opened, now or later.
func (f *filesystem) wanted(d hashpipe.Digest) bool {
	now := f.clock.now()
	return slices.ContainsFunc(f.view.Lookup(d), func(g capstore.Grant) bool {
		_, revoked := g.Revoked()
		return !revoked && now.Before(g.NotAfter())
	})
}
