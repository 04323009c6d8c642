package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// The journal is what a successor needs to go on where a process that was killed
// has stopped: which numbers the kernel knows, and for what. It is shared memory
// (memfd) that is written in place before the kernel gets the reply, so it holds
// at any instruction, and costs a copy of some hundred bytes. It need not survive
// the machine: the kernel's side of the mount does not either.
//
// Nothing in it is believed. A successor makes a handle from it only after the
// content was proven and decided on again: see resume.go. What is torn or strange
// makes all of it useless, and the mount is made anew.
//
// Layout, in the machine's byte order. A page of head: magic, incarnation, the
// INIT request. Then slots without gaps, each a power of two of bytes:
//
//	 0  class: log2 of its size; 0 is the end
//	 4  state: 0 free, 1 kept. It is set last and cleared first
//	 8  kind      12  length of the body
//	16  CRC-32C of kind, length and body
//	24  references of the kernel (nodes)   32  flags (nodes); both change in place
//	24  when it is to go (backings), in nanoseconds since 1970; 0: not said yet
//	40  body
type journal struct {
	file *os.File
	mem  []byte

	mu   sync.Mutex // guards all below
	end  slot
	free [maxClass + 1][]slot
}

// slot is the offset of an entry. Zero is none: what is written there is lost.
type slot int64

const (
	journalMagic = "clawfs journal 1"
	journalHead  = 4096
	// journalSize bounds what is kept, in bytes. Pages that were never written take
	// no memory. A node takes 256 bytes, the tree of a content one part in 16384 of it.
	journalSize = 256 << 20

	slotHead = 40
	minClass = 6
	maxClass = 28

	atIncarnation = 16
	atInitLength  = 24
	atInitCRC     = 28
	atWire        = 32 // what was agreed on with the kernel: see wire
	atUnkept      = 40 // entries for which there was no room
	atInit        = 64
	maxInit       = 512

	// maxIncarnations and the numbers that each gives out: no number comes twice in
	// the life of a mount.
	maxIncarnations  = 1 << 20
	incarnationShift = 40
)

// Kinds of entries.
const (
	entryNode uint32 = iota + 1
	entryBound
	entryHandle
	entryDir
	entryBacking
)

// Flags of a node.
const (
	nodeRetired   uint64 = 1 << iota // its name leads elsewhere
	nodeEarly                        // pages went into it before it was bound
	nodeUnchecked                    // it has served unchecked bytes
	nodeCut                          // a handle of it was cut off
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errJournal = errors.New("the journal of the mount cannot be used")

func badJournal(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errJournal, fmt.Sprintf(format, args...))
}

// newJournal makes an empty journal for a connection that was begun so.
func newJournal(init []byte, wire uint64) (*journal, error) {
	if len(init) > maxInit {
		return nil, badJournal("INIT has %d bytes", len(init))
	}
	fd, err := unix.MemfdCreate("clawfs-journal", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	file := os.NewFile(uintptr(fd), "journal")
	err = unix.Ftruncate(fd, journalSize)
	if err == nil {
		// A size that could change would be a SIGBUS for whoever reads it.
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, journalSeals)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	j := &journal{file: file, end: journalHead}
	if err := j.attach(); err != nil {
		file.Close()
		return nil, err
	}
	copy(j.mem, journalMagic)
	copy(j.mem[atInit:], init)
	binary.NativeEndian.PutUint32(j.mem[atInitLength:], uint32(len(init)))
	binary.NativeEndian.PutUint32(j.mem[atInitCRC:], crc32.Checksum(init, castagnoli))
	binary.NativeEndian.PutUint64(j.mem[atWire:], wire)
	return j, nil
}

const journalSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

func (j *journal) attach() (err error) {
	j.mem, err = unix.Mmap(int(j.file.Fd()), 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("journal: mmap: %w", err)
	}
	return nil
}

func (j *journal) close() {
	if j != nil {
		unix.Munmap(j.mem)
		j.file.Close()
	}
}

// entry is one that was kept.
type entry struct {
	slot  slot
	kind  uint32
	refs  uint64
	flags uint64
	body  []byte // a copy
}

func checkJournal(file *os.File) error {
	seals, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&journalSeals != journalSeals {
		return badJournal("expected sealed shared memory, got seals %#x (%v)", seals, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil || st.Size != journalSize {
		return badJournal("expected %d bytes, got %d (%v)", journalSize, st.Size, err)
	}
	return nil
}

// openJournal reads a predecessor's journal. It takes file only if it returns no
// error.
func openJournal(file *os.File) (*journal, []entry, error) {
	if err := checkJournal(file); err != nil {
		return nil, nil, err
	}
	j := &journal{file: file}
	if err := j.attach(); err != nil {
		return nil, nil, err
	}
	list, err := j.scan()
	if err != nil {
		unix.Munmap(j.mem)
		return nil, nil, err
	}
	return j, list, nil
}

func (j *journal) scan() (list []entry, err error) {
	if string(j.mem[:len(journalMagic)]) != journalMagic {
		return nil, badJournal("it is of another version")
	}
	if n := j.word(atUnkept).Load(); n > 0 {
		return nil, badJournal("it had no room for %d entries; %d bytes are the most", n, journalSize)
	}
	at := slot(journalHead)
	for ; at+slotHead <= journalSize; at += 1 << j.u32(at) {
		class := j.u32(at)
		if class == 0 {
			break
		}
		if class < minClass || class > maxClass || at+1<<class > journalSize {
			return nil, badJournal("slot of class %d at %d", class, at)
		}
		if j.u32(at+4) == 0 {
			j.free[class] = append(j.free[class], at)
			continue
		}
		kind, length := j.u32(at+8), j.u32(at+12)
		if int64(length) > 1<<class-slotHead {
			return nil, badJournal("entry of %d bytes in a slot of class %d", length, class)
		}
		body := append([]byte(nil), j.mem[at+slotHead:at+slotHead+slot(length)]...)
		if got, want := checksum(kind, body), j.u32(at+16); got != want {
			return nil, badJournal("entry at %d: expected CRC %08x, got %08x", at, want, got)
		}
		list = append(list, entry{slot: at, kind: kind, refs: j.word(at + 24).Load(), flags: j.word(at + 32).Load(), body: body})
	}
	j.end = at
	return list, nil
}

func (j *journal) init() ([]byte, error) {
	n := binary.NativeEndian.Uint32(j.mem[atInitLength:])
	if n == 0 || n > maxInit {
		return nil, badJournal("INIT of %d bytes", n)
	}
	init := append([]byte(nil), j.mem[atInit:atInit+n]...)
	if crc32.Checksum(init, castagnoli) != binary.NativeEndian.Uint32(j.mem[atInitCRC:]) {
		return nil, badJournal("INIT is torn")
	}
	return init, nil
}

func (j *journal) wire() uint64 { return binary.NativeEndian.Uint64(j.mem[atWire:]) }

// next begins another incarnation and returns its number.
func (j *journal) next() (uint64, error) {
	n := j.word(atIncarnation).Add(1)
	if n >= maxIncarnations {
		return 0, badJournal("it has had %d owners", n)
	}
	return n, nil
}

func (j *journal) word(at slot) *atomic.Uint64 { return (*atomic.Uint64)(unsafe.Pointer(&j.mem[at])) }
func (j *journal) half(at slot) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&j.mem[at])) }
func (j *journal) u32(at slot) uint32          { return j.half(at).Load() }

func checksum(kind uint32, body []byte) uint32 {
	var head [8]byte
	binary.NativeEndian.PutUint32(head[:], kind)
	binary.NativeEndian.PutUint32(head[4:], uint32(len(body)))
	return crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, body)
}

// put keeps an entry. A nil journal keeps nothing.
func (j *journal) put(kind uint32, refs, flags uint64, body []byte) slot {
	if j == nil {
		return 0
	}
	at := j.take(slotHead + len(body))
	if at == 0 {
		// What the kernel knows is not all here any more: no successor goes by it.
		j.word(atUnkept).Add(1)
		return 0
	}
	copy(j.mem[at+slotHead:], body)
	j.half(at + 8).Store(kind)
	j.half(at + 12).Store(uint32(len(body)))
	j.half(at + 16).Store(checksum(kind, body))
	j.word(at + 24).Store(refs)
	j.word(at + 32).Store(flags)
	j.half(at + 4).Store(1)
	return at
}

func (j *journal) take(size int) slot {
	class := max(minClass, bits.Len(uint(size-1)))
	if class > maxClass {
		return 0
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if f := j.free[class]; len(f) > 0 {
		at := f[len(f)-1]
		j.free[class] = f[:len(f)-1]
		return at
	}
	at := j.end
	if at+1<<class > journalSize {
		return 0
	}
	j.half(at).Store(uint32(class))
	j.end += 1 << class
	return at
}

func (j *journal) drop(at slot) {
	if j == nil || at == 0 {
		return
	}
	j.half(at + 4).Store(0)
	j.mu.Lock()
	defer j.mu.Unlock()
	class := j.u32(at)
	j.free[class] = append(j.free[class], at)
}

func (j *journal) setRefs(at slot, n uint64) {
	if j != nil && at != 0 {
		j.word(at + 24).Store(n)
	}
}

func (j *journal) setFlag(at slot, flag uint64) {
	if j != nil && at != 0 {
		j.word(at + 32).Or(flag)
	}
}

func (j *journal) clearFlag(at slot, flag uint64) {
	if j != nil && at != 0 {
		j.word(at + 32).And(^flag)
	}
}

// deadline is when what a predecessor has registered is to go: grace after the first
// successor has asked, whatever becomes of that one. It is never more than grace away.
func (j *journal) deadline(e entry, grace time.Duration) time.Time {
	now := time.Now()
	until := now.Add(grace)
	if said := time.Unix(0, int64(e.refs)); e.refs != 0 && said.Before(until) {
		return said
	}
	j.setRefs(e.slot, uint64(until.UnixNano()))
	return until
}

// What the bodies hold.

type body struct {
	b   []byte
	bad bool
}

func (w *body) put(n uint64) { w.b = binary.NativeEndian.AppendUint64(w.b, n) }

func (w *body) get() uint64 {
	if len(w.b) < 8 {
		w.bad = true
		return 0
	}
	n := binary.NativeEndian.Uint64(w.b)
	w.b = w.b[8:]
	return n
}

func (w *body) time() unix.Timespec {
	sec, nsec := w.get(), w.get()
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

func nodeBody(n *node) []byte {
	w := body{b: make([]byte, 0, 17*8+len(n.path))}
	w.put(n.id)
	i := n.ident
	for _, v := range []uint64{uint64(i.kind), i.dev, i.ino, uint64(i.size), uint64(i.mtime.Sec), uint64(i.mtime.Nsec), uint64(i.ctime.Sec), uint64(i.ctime.Nsec)} {
		w.put(v)
	}
	a := &n.attr
	for _, v := range []uint64{a.Ino, a.Size, a.Blocks, a.Atime, uint64(a.Atimensec), uint64(a.Mode)<<32 | uint64(a.Nlink), uint64(a.Uid)<<32 | uint64(a.Gid)} {
		w.put(v)
	}
	return append(w.b, n.path...)
}

func readNode(b []byte) (*node, error) {
	w := body{b: b}
	n := &node{id: w.get()}
	n.ident = identity{kind: uint32(w.get()), dev: w.get(), ino: w.get(), size: int64(w.get())}
	n.ident.mtime, n.ident.ctime = w.time(), w.time()
	n.attr = fuse.Attr{Ino: w.get(), Size: w.get(), Blocks: w.get(), Atime: w.get(), Atimensec: uint32(w.get()), Blksize: blockSize}
	mode, owner := w.get(), w.get()
	n.attr.Mode, n.attr.Nlink = uint32(mode>>32), uint32(mode)
	n.attr.Uid, n.attr.Gid = uint32(owner>>32), uint32(owner)
	n.attr.Mtime, n.attr.Mtimensec = uint64(n.ident.mtime.Sec), uint32(n.ident.mtime.Nsec)
	n.attr.Ctime, n.attr.Ctimensec = uint64(n.ident.ctime.Sec), uint32(n.ident.ctime.Nsec)
	n.path = string(w.b)
	if w.bad || n.id <= fuse.FUSE_ROOT_ID || n.path == "" {
		return nil, badJournal("node %d", n.id)
	}
	return n, nil
}

// boundEntry says of which content a node is.
type boundEntry struct {
	node   uint64
	size   int64
	digest [32]byte
	verity [32]byte
	hashes []byte
}

func boundBody(n *node, p proof) []byte {
	hashes := p.tree.Hashes()
	w := body{b: make([]byte, 0, 16+64+len(hashes))}
	w.put(n.id)
	w.put(uint64(p.tree.Size()))
	w.b = append(w.b, rawDigest(p.digest.String())...)
	w.b = append(w.b, rawDigest(p.tree.Claim().String())...)
	return append(w.b, hashes...)
}

func readBound(b []byte) (e boundEntry, err error) {
	w := body{b: b}
	e.node, e.size = w.get(), int64(w.get())
	if w.bad || len(w.b) < 64 {
		return e, badJournal("content of node %d", e.node)
	}
	e.digest, e.verity, e.hashes = [32]byte(w.b), [32]byte(w.b[32:]), w.b[64:]
	return e, nil
}

// proof makes one of what was kept, if it proves itself.
func (e boundEntry) proof() (proof, error) {
	d, err := hashpipe.ParseDigest(fmt.Sprintf("%x", e.digest))
	if err != nil {
		return proof{}, err
	}
	v, err := hashpipe.ParseVerityDigest(fmt.Sprintf("%x", e.verity))
	if err != nil {
		return proof{}, err
	}
	tree, err := hashpipe.RecallTree(e.size, e.hashes, v)
	if err != nil {
		return proof{}, err
	}
	return proof{tree: tree, digest: d, git: new(gitID)}, nil
}

// handleEntry is an open file or directory.
type handleEntry struct {
	fh, node, unique uint64
	caller           fuse.Caller
	since            time.Time
	tier             uint64 // index in keptTiers
}

// keptTiers are those that a handle can have; the first is for files that audit mode opened.
var keptTiers = []string{"", TierBlocks, TierSealed, TierVerity}

func (e handleEntry) body() []byte {
	w := body{b: make([]byte, 0, 8*8)}
	for _, v := range []uint64{e.fh, e.node, e.unique, uint64(e.caller.Uid)<<32 | uint64(e.caller.Gid), uint64(e.caller.Pid), uint64(e.since.UnixNano()), e.tier} {
		w.put(v)
	}
	return w.b
}

func readHandle(b []byte) (e handleEntry, err error) {
	w := body{b: b}
	e.fh, e.node, e.unique = w.get(), w.get(), w.get()
	owner := w.get()
	e.caller.Uid, e.caller.Gid, e.caller.Pid = uint32(owner>>32), uint32(owner), uint32(w.get())
	e.since, e.tier = time.Unix(0, int64(w.get())), w.get()
	if w.bad || len(w.b) > 0 || e.fh == 0 || e.tier >= uint64(len(keptTiers)) {
		return e, badJournal("handle %d", e.fh)
	}
	return e, nil
}
