package fs

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

const (
	// fillFrom is the size in bytes from which a content is put into the page
	// cache at its first open. A smaller one is read in a few requests.
	fillFrom = treeFrom
	// fillRun is how many units a worker stores before it looks around: 8 MiB.
	fillRun = 16
	// fillPatience is how long an open waits for a worker to begin.
	fillPatience = 100 * time.Millisecond
)

// A large content is put into the kernel's page cache before its first reader has
// the file: what is read then costs no request and no hash. It is why a mapping
// of a large model runs at the speed of memory in tier "blocks". An early fill
// does so in the pass that measures the content, for the node whose OPEN began
// it; a fill does it after the decision, for a content that was measured before.
//
// Why no page of a fill can be wrong. It begins only after the whole content was
// measured, Decide has allowed it and its node was bound to it, for good. Each
// unit is then read again and checked against that bound tree, and it is the
// checked buffer itself that is given to the kernel: whatever the source has
// become since, other bytes are an error here and not a page.
//
// Why no page of an early fill can be read if it is wrong. Its buffers go into
// the page cache of an inode that nobody has open, and each is the buffer whose
// hash is in the tree. The node remembers the early fill for its life, and
// newHandle, without which nobody reads, gives a handle of such a node only if
// the tree of those very buffers is the tree that was approved. Else the name
// gets another node, and the pages go with the old one.
//
// The inode number is used once in the life of the mount, so a page lands in the
// inode that it was meant for or in none. The size of the inode is that of the
// tree, so nothing is stored behind its end (which would move the end).
//
// Why a revoked content gets no page. A fill stores a unit under node.pages, and
// only if the content is still approved under that lock. A revocation takes the
// lock after it has become visible and before it drops the pages: what was
// stored before is dropped, and nothing is stored after. An early fill has ended
// when its node is bound, and Open asks again after that.
//
// Why nothing can wait for ever. FUSE_NOTIFY_STORE waits, unkillably, for a page
// that a READ is filling; if the mount process were killed in that moment, the
// READ would never be answered, the thread that stores would never end, and the
// connection, which ends with the last thread, neither. So both run only while
// the kernel has no handle of the inode, and therefore no READ of it: an early
// fill on a node that never had a handle, with every OPEN of it waiting for the
// measurement; a fill at the first open after all handles were released, with
// every OPEN of the node waiting for its end. (The kernel sends RELEASE after
// the last READ.)
type fill struct {
	fs      *filesystem
	node    *node
	proof   proof
	caller  fuse.Caller // who had it begun
	file    *os.File    // its own descriptor
	checked *hashpipe.CheckedReader
	task    *task
	units   int64 // the first of them are stored
	drop    bool  // the source's pages go when they have been stored

	next       atomic.Int64
	stopped    atomic.Bool
	generation atomic.Uint64 // of the view, when the content was last seen approved

	done chan struct{}
	err  error // set before done is closed: a unit that could not be checked right
}

// early is a fill in the pass that measures.
type early struct {
	fs    *filesystem
	node  *node
	limit int64 // bytes: what lies behind is not stored
	drop  bool  // the source's pages go when they have been stored

	stopped atomic.Bool
	tree    atomic.Pointer[hashpipe.Tree] // of the buffers; nil until they are all measured
}

// beginEarly returns nil if nothing is to be stored. cold says that the source
// was not in the page cache.
func (f *filesystem) beginEarly(n *node, size int64, cold bool) *early {
	limit := f.fillable(size)
	if limit == 0 {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.bound.isZero() || n.content != nil || n.fill != nil || n.early != nil || n.unchecked {
		return nil
	}
	n.early = &early{fs: f, node: n, limit: limit, drop: cold}
	f.journal.setFlag(n.slot, nodeEarly)
	return n.early
}

// tells reports whether what was stored is a part of the proven content.
func (e *early) tells(p proof) bool {
	tree := e.tree.Load()
	return tree != nil && p.tree.Is(tree.Claim())
}

// storing reads the source and gives what it read to the kernel: the bytes that
// are hashed are the bytes that were stored.
type storing struct {
	*early
	src *os.File
}

func (s storing) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.src.ReadAt(p, off)
	if n == 0 || off+int64(n) > s.limit || s.stopped.Load() {
		return n, err
	}
	if !s.fs.server.InodeNotifyStoreCache(s.node.id, off, p[:n]).Ok() {
		s.stopped.Store(true) // the kernel has forgotten the inode
		return n, err
	}
	s.fs.counters.filledBytes.Add(int64(n))
	if s.drop {
		// Advice. The pages are in memory twice now. A piece of the cache is dropped
		// whole or not at all, so those that began earlier are asked for again.
		from := max(off-maxFolio, 0)
		_ = unix.Fadvise(int(s.src.Fd()), from, off+int64(n)-from, unix.FADV_DONTNEED)
	}
	return n, err
}

// fillable returns how many bytes of a content of this size are stored.
func (f *filesystem) fillable(size int64) int64 {
	if size < fillFrom || f.server == nil {
		return 0
	}
	budget := f.cacheBytes
	if budget == 0 {
		budget = availableMemory() / 2
	}
	if size <= budget {
		return size
	}
	return max(budget, 0) / hashpipe.UnitSize * hashpipe.UnitSize
}

// beginFill returns nil if nothing is to be stored. The caller holds n.mu, has
// bound n, and knows that the kernel has no handle of it.
func (f *filesystem) beginFill(n *node, fl *flight, file *os.File, caller fuse.Caller) *fill {
	size := fl.tree.Size()
	units := (f.fillable(size) + hashpipe.UnitSize - 1) / hashpipe.UnitSize
	if units == 0 || size != n.ident.size {
		return nil
	}
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil // the content is read all the same
	}
	in := os.NewFile(uintptr(fd), file.Name())
	l := &fill{
		fs: f, node: n, proof: fl.proof, caller: caller,
		file: in, checked: hashpipe.NewCheckedReader(in, fl.tree), units: units, drop: fl.cold,
		done: make(chan struct{}),
	}
	l.task = &task{step: l.step, end: l.end, shared: true, size: size}
	if !f.measure.submit(l.task) {
		in.Close()
		return nil
	}
	return l
}

// filling returns the fill that an OPEN has to wait for, or nil.
func (n *node) filling() *fill {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fill == nil {
		return nil
	}
	select {
	case <-n.fill.done:
		return nil
	default:
		return n.fill
	}
}

var fillBuffers = sync.Pool{New: func() any { return new([hashpipe.UnitSize]byte) }}

// step stores one run of units.
func (l *fill) step(ctx context.Context) (more bool, err error) {
	first := l.next.Add(fillRun) - fillRun
	if first >= l.units {
		return false, nil
	}
	buf := fillBuffers.Get().(*[hashpipe.UnitSize]byte)
	defer fillBuffers.Put(buf)
	last := min(first+fillRun, l.units)
	for unit := first; unit < last; unit++ {
		if ctx.Err() != nil || l.stopped.Load() {
			return false, nil
		}
		data, err := l.checked.ReadUnit(unit, buf[:])
		if err != nil {
			l.stopped.Store(true)
			return false, err
		}
		if !l.store(unit, data) {
			l.stopped.Store(true)
			return false, nil
		}
	}
	if l.drop {
		// Advice. The pages came with the measurement; they are in memory twice now.
		_ = unix.Fadvise(int(l.file.Fd()), first*hashpipe.UnitSize, (last-first)*hashpipe.UnitSize, unix.FADV_DONTNEED)
	}
	return true, nil
}

// store gives one checked unit to the kernel. It returns false if no more are
// wanted: the content is not approved any more, or the kernel has forgotten the
// inode.
func (l *fill) store(unit int64, data []byte) bool {
	l.node.pages.RLock()
	defer l.node.pages.RUnlock()
	if g := l.fs.view.Generation(); g != l.generation.Load() {
		if l.fs.pagesRevoked(l.node) {
			return false
		}
		l.generation.Store(g)
	}
	if !l.fs.server.InodeNotifyStoreCache(l.node.id, unit*hashpipe.UnitSize, data).Ok() {
		return false
	}
	l.fs.counters.filledBytes.Add(int64(len(data)))
	return true
}

func (l *fill) end(err error) {
	defer close(l.done)
	l.file.Close()
	l.err = err
	if err != nil {
		l.fs.spared(func() { l.fs.broken(l.node, l.proof, l.caller, err) })
	}
}

// stop ends the fill soon: at once if no worker is in it, else after the unit
// that it is at.
func (l *fill) stop() {
	l.stopped.Store(true)
	l.fs.measure.cancel(l.task)
}

// awaitFill waits on behalf of an OPEN that was allowed. A fill that cannot be
// waited for is stopped, because no handle may come to life beside it.
func (f *filesystem) awaitFill(cancel <-chan struct{}, h *handle, l *fill) (Verdict, fuse.Status) {
	select {
	case <-l.done:
	case <-time.After(fillPatience):
		if l.next.Load() == 0 {
			l.stop() // every worker is busy, maybe for long
		}
	}
	limit := f.limit
	if limit > 0 {
		limit /= 2 // the measurement had its share
	}
	switch f.await(l.done, cancel, h.caller.Pid, limit) {
	case interrupted:
		return refused(ReasonInterrupted, "the caller was told to stop", ""), statusInterrupted
	case unmounted:
		return refused(ReasonInterrupted, "the mount is going away", ""), statusInterrupted
	case tooSlow:
		l.stop()
		<-l.done
	}
	if errors.Is(l.err, hashpipe.ErrChanged) {
		return refused(ReasonQuarantined, "the source has changed since it was measured: "+l.err.Error(), "put a good copy in its place, and find out who writes there"), statusRefused
	}
	return Verdict{}, fuse.OK
}

// availableMemory is the kernel's estimate of what can be had without swapping,
// in bytes; zero if it does not say.
func availableMemory() int64 {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(info)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}

// uncached reports whether less than an eighth of a file is in the page cache.
// It does not know on kernels before 6.5, and says no.
func uncached(f *os.File, size int64) bool {
	n, err := cachedBytes(f, size)
	return err == nil && n < size/8
}

// cachedBytes returns how many of the first length bytes of a file are in the page
// cache; of all of them if length is 0. The error is that of cachestat(2), which is
// new in Linux 6.5.
func cachedBytes(f *os.File, length int64) (int64, error) {
	span := struct{ off, length uint64 }{0, uint64(length)}
	var pages struct{ cached, dirty, writeback, evicted, recentlyEvicted uint64 } // struct cachestat
	_, _, errno := unix.Syscall6(unix.SYS_CACHESTAT, f.Fd(), uintptr(unsafe.Pointer(&span)), uintptr(unsafe.Pointer(&pages)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int64(pages.cached) * int64(os.Getpagesize()), nil
}

// readAhead is how far the kernel reads ahead in the mount, in KiB. Its default
// of 128 asks for a quarter of a unit at a time. INIT can only lower it, and the
// file in sysfs belongs to root.
const readAhead = 1024

// raiseReadAhead returns an error if the default stays. It does not touch the
// mount itself.
func raiseReadAhead(mountpoint string) error {
	dev, known := mountDevice(mountpoint)
	if !known {
		return errors.New("the mount is not in mountinfo")
	}
	name := strconv.FormatUint(uint64(unix.Major(dev)), 10) + ":" + strconv.FormatUint(uint64(unix.Minor(dev)), 10)
	f, err := os.OpenFile("/sys/class/bdi/"+name+"/read_ahead_kb", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(readAhead))
	return errors.Join(err, f.Close())
}
