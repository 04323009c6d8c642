package fs

import (
	"container/list"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/openclaw/clawfs/hashpipe"
)

// read returns parts of unit buffers that were hashed, and nothing else: the
// bytes are not fetched again after the check. What audit mode has opened without
// proof is read elsewhere.
//
// BUG: LOOKUP, GETATTR and the other calls on names wait for a storage that hangs
// whatever happens to their caller, who stays unkillable as on any file system.
func (f *filesystem) read(cancel <-chan struct{}, in *fuse.ReadIn) (*units, fuse.Status) {
	if in.Fh&uncheckedBit != 0 {
		return f.readUnchecked(in)
	}
	h, ok := f.files.get(in.Fh)
	if !ok {
		return nil, statusBadHandle
	}
	if h.content.inherited != "" {
		return nil, statusIO // the kernel does not ask: it has the file itself
	}
	h.node.reads.Add(1) // before it is asked whether the handle is cut: see dropPages
	defer h.node.reads.Add(-1)
	if !h.live() {
		return nil, statusIO
	}
	off, end := int64(in.Offset), h.content.size
	if off < 0 || off >= end {
		return &units{}, fuse.OK
	}
	if want := int64(in.Size); end-off > want {
		end = off + want
	}
	out := &units{}
	for off < end {
		unit := off / hashpipe.UnitSize
		u := f.units.get(h.content, unit)
		if o := f.awaitRead(u.ready, cancel, in.Pid); o != finished {
			f.units.put(u)
			out.done()
			if o == interrupted {
				return nil, statusInterrupted
			}
			return nil, statusIO // the kernel would cut the connection, or has
		}
		if u.err != nil {
			f.units.put(u)
			out.done()
			h.broken(u.err)
			return nil, statusIO
		}
		from := off - unit*hashpipe.UnitSize
		to := min(int64(len(u.data)), from+end-off)
		out.held = append(out.held, u)
		out.parts = append(out.parts, u.data[from:to])
		out.cache = f.units
		off += to - from
	}
	return out, fuse.OK
}

// broken answers for a unit that could not be checked right. Bytes that differ
// put the file's state into quarantine: its inode keeps failing where it
// differs, and nobody opens it again. An error of the disk says nothing about
// the bytes.
func (h *handle) broken(err error) { h.fs.broken(h.node, h.proof, h.caller, err) }

func (f *filesystem) broken(n *node, p proof, caller fuse.Caller, err error) {
	r := Record{
		Time: f.clock.now(), Path: n.path,
		PID: caller.Pid, UID: caller.Uid, GID: caller.Gid,
		Decision: Failed, Reason: ReasonUnreadable, Detail: "reading the source: " + err.Error(),
		Digest: p.digest.String(),
	}
	if errors.Is(err, hashpipe.ErrChanged) {
		r.Reason = ReasonQuarantined
		r.Detail = fmt.Sprintf("sha256:%s was approved, and the source has changed since: %v", p.digest, err)
		r.Next = "put a good copy in its place, and find out who writes there"
		f.counters.lateMismatches.Add(1)
		f.quarantine.add(n.ident, r.Detail)
		f.measure.drop(n.ident)
	}
	f.log.Error("read failed", "path", n.path, "reason", r.Reason, "detail", r.Detail)
	f.audit.add(r)
}

// units is the reply to one READ. The connection writes the parts by writev(2) as
// they are, and gives the buffers back when that is done.
type units struct {
	cache *unitCache
	held  []*unit
	parts [][]byte
}

func (u *units) size() int {
	n := 0
	for _, p := range u.parts {
		n += len(p)
	}
	return n
}

func (u *units) done() {
	for _, held := range u.held {
		u.cache.put(held)
	}
	u.held, u.parts = nil, nil
}

// keptUnits bounds the checked units that are kept for the next READ, 16 MiB
// for the whole mount. The kernel reads 128 KiB at a time, a quarter of a unit,
// and several readers follow each other; whatever it has read it keeps itself.
const keptUnits = 32

// unitCache holds the units that were checked last. Two readers of one unit wait
// for one hash.
type unitCache struct {
	checked *atomic.Int64

	mu     sync.Mutex // guards all below, and unit.refs
	units  map[unitKey]*list.Element
	recent *list.List // of *unit, the most recently used first
	pool   sync.Pool
}

type unitKey struct {
	content *content
	number  int64
}

// unit is one checked unit. data and err are set before ready is closed, and
// the bytes do not change until the last reference is gone.
type unit struct {
	key   unitKey
	refs  int // readers, and one for the cache while it is listed
	ready chan struct{}
	buf   *[hashpipe.UnitSize]byte
	data  []byte
	err   error
}

func newUnitCache(checked *atomic.Int64) *unitCache {
	return &unitCache{
		checked: checked,
		units:   make(map[unitKey]*list.Element),
		recent:  list.New(),
		pool:    sync.Pool{New: func() any { return new([hashpipe.UnitSize]byte) }},
	}
}

// get returns a unit that is checked or has failed once it is ready. Every get
// needs a put.
func (c *unitCache) get(of *content, number int64) *unit {
	key := unitKey{of, number}
	c.mu.Lock()
	if e, ok := c.units[key]; ok {
		u := e.Value.(*unit)
		u.refs++
		c.recent.MoveToFront(e)
		c.mu.Unlock()
		return u
	}
	// One reference is that of fill: the storage may answer after its reader is gone.
	u := &unit{key: key, refs: 3, ready: make(chan struct{}), buf: c.pool.Get().(*[hashpipe.UnitSize]byte)}
	c.units[key] = c.recent.PushFront(u)
	for c.recent.Len() > keptUnits {
		c.unlist(c.recent.Back())
	}
	c.mu.Unlock()

	go c.fill(u, of.checked)
	return u
}

// fill reads and checks. Whatever happens, whoever waits for the unit goes on,
// and a unit that failed is tried again by the next reader. Its owner is the
// storage: it ends when that answers.
func (c *unitCache) fill(u *unit, from *hashpipe.CheckedReader) {
	defer func() {
		if v := recover(); v != nil {
			u.err = fmt.Errorf("panic while a unit was checked: %v", v)
		}
		if u.err != nil {
			c.mu.Lock()
			if e, ok := c.units[u.key]; ok && e.Value.(*unit) == u {
				c.unlist(e)
			}
			c.mu.Unlock()
		}
		close(u.ready)
		c.put(u)
	}()
	u.data, u.err = from.ReadUnit(u.key.number, u.buf[:])
	c.checked.Add(1)
}

func (c *unitCache) put(u *unit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unref(u)
}

// forget drops what is kept of a content.
func (c *unitCache) forget(of *content) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for e := c.recent.Front(); e != nil; {
		next := e.Next()
		if e.Value.(*unit).key.content == of {
			c.unlist(e)
		}
		e = next
	}
}

// unlist takes a unit out of the cache. Callers hold c.mu.
func (c *unitCache) unlist(e *list.Element) {
	u := c.recent.Remove(e).(*unit)
	delete(c.units, u.key)
	c.unref(u)
}

// unref gives a buffer back with its last reference. Callers hold c.mu.
func (c *unitCache) unref(u *unit) {
	u.refs--
	if u.refs == 0 {
		c.pool.Put(u.buf)
		u.buf, u.data = nil, nil
	}
}
