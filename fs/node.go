package fs

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// How long the kernel may believe a reply. The attributes of a file's inode
// never change, because a change of the file makes another inode; a name may
// lead elsewhere, and OPEN notices that at once whatever the kernel believes.
const (
	nameTimeout = time.Second
	dirTimeout  = time.Second
	fileTimeout = time.Hour
	blockSize   = 4096 // st_blksize; loaders align direct I/O to it
)

// node is one FUSE inode: one name, and for anything but a directory one state
// of what the name led to.
type node struct {
	id    uint64
	path  string // relative to the root, "" is the root
	ident identity

	lookups uint64 // guarded by nodeTable.mu
	slot    slot   // in the journal; set when it is made
	spoilt  bool   // only while a predecessor's nodes are restored: see restore

	boundSlot atomic.Int64 // of its content in the journal, or 0

	// pages is held, shared, while checked bytes are put into the kernel's page
	// cache. Who has revoked the content takes it once before he drops the pages.
	// Nothing that a READ needs waits for it.
	pages sync.RWMutex

	reads atomic.Int64 // READs that wait for the source
	cut   atomic.Bool  // a handle of it was cut off

	// mu guards what follows. It is not held while the source is read or the
	// kernel is notified.
	mu        sync.Mutex
	attr      fuse.Attr
	bound     proof    // of the one content of this inode; zero until the first grant
	content   *content // while a handle is open
	fill      *fill    // nil until one was begun; there is one in the life of a node
	early     *early   // nil, or what has put pages into the inode before it was bound
	unchecked bool     // has served unchecked bytes, in audit mode
	why       explained
}

type nodeKey struct {
	path  string
	ident identity
}

// nodeTable is the inode table. A node id is used once in the life of a mount.
type nodeTable struct {
	journal *journal // nil: nothing is kept for a successor

	mu   sync.Mutex // guards all below, and node.lookups
	last uint64
	byID map[uint64]*node
	keys map[nodeKey]*node
}

func newNodeTable() *nodeTable {
	root := &node{id: fuse.FUSE_ROOT_ID, ident: identity{kind: unix.S_IFDIR}, lookups: 1}
	return &nodeTable{
		last: fuse.FUSE_ROOT_ID,
		byID: map[uint64]*node{root.id: root},
		keys: map[nodeKey]*node{{"", root.ident}: root},
	}
}

func (t *nodeTable) get(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// lookup returns the node for what path leads to, and counts one reference of
// the kernel.
func (t *nodeTable) lookup(path string, st *unix.Stat_t) *node {
	key := nodeKey{path, identityOf(st)}
	t.mu.Lock()
	n := t.keys[key]
	if n == nil {
		t.last++
		n = &node{id: t.last, path: path, ident: key.ident, attr: attrOf(st)}
		n.slot = t.journal.put(entryNode, 1, 0, nodeBody(n))
		t.byID[n.id] = n
		t.keys[key] = n
	}
	n.lookups++
	t.journal.setRefs(n.slot, n.lookups) // before the kernel has the reply
	t.mu.Unlock()

	n.mu.Lock()
	n.attr = attrOf(st)
	n.mu.Unlock()
	return n
}

// forget drops references of the kernel.
func (t *nodeTable) forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil || id == fuse.FUSE_ROOT_ID {
		return
	}
	n.lookups -= min(count, n.lookups)
	if n.lookups > 0 {
		t.journal.setRefs(n.slot, n.lookups)
		return
	}
	delete(t.byID, id)
	t.unname(n)
	t.journal.drop(n.slot)
	t.journal.drop(slot(n.boundSlot.Swap(0)))
}

// retire makes the next lookup of the node's name make a new node, whatever the
// source says.
func (t *nodeTable) retire(n *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unname(n)
	t.journal.setFlag(n.slot, nodeRetired)
}

// unname removes the name of a node, unless the name has another node by now.
func (t *nodeTable) unname(n *node) {
	key := nodeKey{n.path, n.ident}
	if t.keys[key] == n {
		delete(t.keys, key)
	}
}

// files returns the nodes of files, to look at without the table's lock.
func (t *nodeTable) files() []*node {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*node, 0, len(t.byID))
	for _, n := range t.byID {
		if n.ident.kind == unix.S_IFREG {
			out = append(out, n)
		}
	}
	return out
}

func (t *nodeTable) count() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return int64(len(t.byID))
}

// attrOf shows a source file. What is no file, directory or link is shown as an
// empty regular file that nobody may read: the kernel would open a visible FIFO
// by itself, without asking, and hang its reader.
// st has been through limitMode.
func attrOf(st *unix.Stat_t) fuse.Attr {
	a := fuse.Attr{
		Ino:       st.Ino,
		Size:      uint64(st.Size),
		Blocks:    uint64(st.Blocks),
		Atime:     uint64(st.Atim.Sec),
		Atimensec: uint32(st.Atim.Nsec),
		Mtime:     uint64(st.Mtim.Sec),
		Mtimensec: uint32(st.Mtim.Nsec),
		Ctime:     uint64(st.Ctim.Sec),
		Ctimensec: uint32(st.Ctim.Nsec),
		Mode:      st.Mode &^ (unix.S_ISUID | unix.S_ISGID),
		Nlink:     uint32(st.Nlink),
		Owner:     fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		Blksize:   blockSize,
	}
	if special(st.Mode) {
		a.Mode, a.Size, a.Blocks = unix.S_IFREG, 0, 0
	}
	return a
}

// special reports whether a mode is of something that is never shown as it is.
func special(mode uint32) bool {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR, unix.S_IFLNK:
		return false
	}
	return true
}

// handles numbers open things. The zero table is ready.
type handles[T any] struct {
	mu   sync.RWMutex // guards all below
	last uint64
	open map[uint64]T
}

func (h *handles[T]) add(v T) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open == nil {
		h.open = make(map[uint64]T)
	}
	h.last++
	h.open[h.last] = v
	return h.last
}

// put is add for a thing that has a number.
func (h *handles[T]) put(id uint64, v T) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open == nil {
		h.open = make(map[uint64]T)
	}
	h.open[id] = v
}

func (h *handles[T]) get(id uint64) (T, bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	v, ok := h.open[id]
	return v, ok
}

func (h *handles[T]) remove(id uint64) (T, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok := h.open[id]
	delete(h.open, id)
	return v, ok
}

func (h *handles[T]) drain(f func(T)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, v := range h.open {
		delete(h.open, id)
		f(v)
	}
}

func (h *handles[T]) all() []T {
	h.mu.RLock()
	defer h.mu.RUnlock()
	out := make([]T, 0, len(h.open))
	for _, v := range h.open {
		out = append(out, v)
	}
	return out
}

func (h *handles[T]) count() int64 {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return int64(len(h.open))
}
