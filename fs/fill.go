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

// fill puts a content into the kernel's page cache, before its first reader has
// the file: what is read then costs no request and no hash. It is why a mapping
// of a large model runs at the speed of memory in tier "blocks".
//
// Why no page of it can be wrong. A fill begins only after the whole content was
// measured, Decide has allowed it and its node was bound to it, for good. Each
// unit is then read again and checked against that bound tree, and it is the
// checked buffer itself that is given to the kernel: whatever the source has
// become since, other bytes are an error here and not a page. The inode number
// is used once in the life of the mount, so the page lands in the inode that is
// bound to the content or in none. The size of the inode is that of the tree, so
// nothing is stored behind its end (which would move the end).
//
// Why a revoked content gets no page. A unit is stored under node.pages, and
// only if the content is still approved under that lock. A revocation takes the
// lock after it has become visible and before it drops the pages: what was
// stored before is dropped, and nothing is stored after.
//
// Why nothing can wait for ever. FUSE_NOTIFY_STORE waits, unkillably, for a page
// that a READ is filling; if the mount process were killed in that moment, the
// READ would never be answered, the thread that stores would never end, and the
// connection, which ends with the last thread, neither. So a fill runs only
// while the kernel has no handle of the inode, and therefore no READ of it: it
// begins at the first open after all handles were released, and every OPEN of
// the node waits for its end. (The kernel sends RELEASE after the last READ.)
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

// beginFill returns nil if nothing is to be stored. The caller holds n.mu, has
// bound n, and knows that the kernel has no handle of it.
func (f *filesystem) beginFill(n *node, fl *flight, file *os.File, caller fuse.Caller) *fill {
	size := fl.tree.Size()
	if size < fillFrom || size != n.ident.size || f.server == nil {
		return nil
	}
	budget := f.cacheBytes
	if budget == 0 {
		budget = availableMemory() / 2
	}
	units := fl.tree.Units()
	if size > budget {
		units = max(budget, 0) / hashpipe.UnitSize
	}
	if units == 0 {
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
	l.file.Close()
	l.err = err
	if err != nil {
		l.fs.broken(l.node, l.proof, l.caller, err)
	}
	close(l.done)
}

// stop ends the fill soon: at once if no worker is in it, else after the unit
// that it is at.
func (l *fill) stop() {
	l.stopped.Store(true)
	l.fs.measure.cancel(l.task)
}

// awaitFill waits on behalf of an OPEN that was allowed, and decides again: the
// wait can be long. A fill that cannot be waited for is stopped, because no
// handle may come to life beside it.
func (f *filesystem) awaitFill(cancel <-chan struct{}, h *handle, l *fill, a assessment) (Verdict, fuse.Status) {
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
	generation := f.view.Generation()
	if v := f.decide(h.node.path, a.flight); !v.Allowed() {
		return v, statusRefused
	}
	h.generation.Store(generation)
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
	span := struct{ off, length uint64 }{0, uint64(size)}
	var pages struct{ cached, dirty, writeback, evicted, recentlyEvicted uint64 } // struct cachestat
	_, _, errno := unix.Syscall6(unix.SYS_CACHESTAT, f.Fd(), uintptr(unsafe.Pointer(&span)), uintptr(unsafe.Pointer(&pages)), 0, 0, 0)
	return errno == 0 && int64(pages.cached)*int64(os.Getpagesize()) < size/8
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
