package fs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// Session is what a successor needs to go on with a mount whose process has died.
// The kernel keeps the connection as long as somebody has Device: requests wait
// meanwhile, mappings and passthrough handles go on by themselves.
//
// What goes on, and what makes it sound:
//   - The kernel says INIT once. The successor answers the saved request again, for
//     itself; unless that answer is the one that the kernel had, it does not go on.
//     So both sides mean the same by every request.
//   - FUSE_NOTIFY_RESEND (Linux 6.9) makes the kernel send again what was read and
//     not answered. Nothing was promised for these, so they are just answered: an
//     OPEN measures and decides like any other.
//   - A node keeps its number, its name and its state of the source. A content that
//     it was bound to it stays bound to, and pages that an early fill has put into
//     it before that are dropped.
//   - A handle in tier blocks gets the tree of its content from the journal, if
//     that folds up to the digest that was kept. Each READ asks whether a capability
//     of this process's own view lets that content be read there, and checks each
//     unit, whatever the source is by now.
//   - The private files of the predecessor are the kernel's alone. Handles of them
//     go on, are told of when they are revoked, and nobody gets another one: the
//     next OPEN gets another inode, with a private file of its own.
//
// Two things are lost: handles that audit mode has opened without proof fail; and
// a handle in tier blocks whose name leads to other bytes by now, because the
// source's descriptor died with the process, fails where they differ.
//
// BUG: a LOOKUP whose reply was lost counts twice, and a FORGET that was read and
// not done does not count, so for each death the table can keep some nodes too
// long, as many as requests were under way.
type Session struct {
	Device  *os.File // /dev/fuse, of this connection
	Journal *os.File // see journal
}

// Close gives the descriptors back.
func (s Session) Close() {
	for _, f := range []*os.File{s.Device, s.Journal} {
		if f != nil {
			f.Close()
		}
	}
}

// Check reports whether the descriptors are of the kinds that a session has.
func (s Session) Check() error {
	var st unix.Stat_t
	if s.Device == nil || s.Journal == nil {
		return errors.New("session: two descriptors are needed")
	}
	if err := unix.Fstat(int(s.Device.Fd()), &st); err != nil || !isDevice(&st) {
		return errors.New("session: the first descriptor is none of /dev/fuse")
	}
	return checkJournal(s.Journal)
}

// resendBit marks in the number of a request that the kernel sends it again.
const resendBit = 1 << 63

// Session returns what a successor needs, the caller's to close. The error says why
// the mount would not outlive this process.
func (s *Server) Session() (Session, error) {
	if s.alone != nil {
		return Session{}, s.alone
	}
	device, err := duplicate(s.kernel.device)
	if err != nil {
		return Session{}, err
	}
	journal, err := duplicate(s.fs.journal.file)
	if err != nil {
		device.Close()
		return Session{}, err
	}
	return Session{Device: device, Journal: journal}, nil
}

// duplicate may be called while the mount ends: f.Fd() would give a number that is
// another file's by the time it is used.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("duplicating a descriptor: %w", err)
	}
	var fd int
	var failed error
	err = raw.Control(func(own uintptr) { fd, failed = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("duplicating a descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// keep begins the journal of a connection.
func (s *Server) keep() error {
	if !s.kernel.offers(fuse.CAP_HAS_RESEND) {
		return errors.New("the kernel cannot send requests again (Linux 6.9)")
	}
	j, err := newJournal(s.kernel.init, s.kernel.wire())
	if err != nil {
		return err
	}
	s.fs.write(j)
	return nil
}

// isDevice: /dev/fuse is character device 10, 229.
func isDevice(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(10, 229)
}

// write makes everything be written to a journal from now on.
func (f *filesystem) write(j *journal) { f.journal, f.nodes.journal, f.vault.journal = j, j, j }

// Resume goes on with the mount of a process that is dead. c is as for Mount, and
// its mount point is not touched. The session stays the caller's. After an error
// the caller lets it go, which ends the connection, and mounts anew.
func Resume(c Config, from Session) (*Server, error) {
	if err := from.Check(); err != nil {
		return nil, fmt.Errorf("resuming %s: %w", c.Mountpoint, err)
	}
	device, err := duplicate(from.Device)
	if err != nil {
		return nil, err
	}
	s, err := resume(c, device, from)
	if err != nil {
		device.Close()
		return nil, fmt.Errorf("resuming %s: %w", c.Mountpoint, err)
	}
	return s, nil
}

func resume(c Config, device *os.File, from Session) (*Server, error) {
	file, err := duplicate(from.Journal)
	if err != nil {
		return nil, err
	}
	j, list, err := openJournal(file)
	if err != nil {
		file.Close()
		return nil, err
	}
	init, err := j.init()
	if err != nil {
		j.close()
		return nil, err
	}
	fsys, opts, err := assemble(&c, func() error { return nil })
	if err != nil {
		j.close()
		return nil, err
	}
	fsys.write(j)
	kernel, err := connect(fsys, device, opts, c.wrap)
	if err == nil {
		err = kernel.greet(init)
	}
	if err == nil && kernel.wire() != j.wire() {
		err = errors.New("this version speaks to the kernel in another way than the one that mounted; a remount is needed")
	}
	if err == nil {
		fsys.speak(kernel)
		fsys.vault.begin(kernel)
		err = fsys.restore(list)
	}
	if err == nil {
		err = kernel.resend()
	}
	if err != nil {
		fsys.shutdown()
		if kernel != nil {
			kernel.unmap()
		}
		return nil, err
	}
	s := &Server{fs: fsys, kernel: kernel, done: make(chan struct{})}
	s.begin(c)
	return s, nil
}

// lostReplies are handles whose number the kernel may never have got, by the
// request that asked for them.
type lostReplies struct {
	mu sync.Mutex // guards by
	by map[uint64]func()
}

func (l *lostReplies) add(unique uint64, release func()) {
	if l.by == nil {
		l.by = make(map[uint64]func())
	}
	l.by[unique] = release
}

// again lets go of what a request got before, if the kernel sends it again.
func (l *lostReplies) again(unique uint64) {
	if unique&resendBit == 0 {
		return
	}
	l.mu.Lock()
	release := l.by[unique&^resendBit]
	delete(l.by, unique&^resendBit)
	l.mu.Unlock()
	if release != nil {
		release()
	}
}

// restore makes the tables of the predecessor again. No request runs yet.
func (f *filesystem) restore(list []entry) error {
	incarnation, err := f.journal.next()
	if err != nil {
		return err
	}
	first := incarnation << incarnationShift
	f.nodes.last, f.files.last, f.dirs.last, f.unchecked.last = first, first, first, first
	for _, step := range []func(entry) error{f.restoreNode, f.restoreBound, f.restoreHandle, f.restoreDir, f.restoreBacking} {
		for _, e := range list {
			if err := step(e); err != nil {
				return err
			}
		}
	}
	for _, n := range f.nodes.files() {
		if n.spoilt {
			// Pages of a content that nobody has proven. Nobody has it open, so none of
			// them is being read, and all go.
			if st := f.server.InodeNotify(n.id, 0, 0); !st.Ok() && st != statusNoEntry {
				return fmt.Errorf("dropping pages of %s: %v", n.path, st)
			}
			n.spoilt = false
			f.journal.clearFlag(n.slot, nodeEarly)
		}
	}
	return nil
}

func (f *filesystem) restoreNode(e entry) error {
	if e.kind != entryNode {
		return nil
	}
	n, err := readNode(e.body)
	if err != nil {
		return err
	}
	if !isBelow(n.path) || f.nodes.byID[n.id] != nil {
		return badJournal("node %d at %q", n.id, n.path)
	}
	n.slot, n.lookups = e.slot, e.refs
	n.unchecked, n.spoilt = e.flags&nodeUnchecked != 0, e.flags&nodeEarly != 0
	// The unchecked handles are lost, and with them what would end the mode for their
	// pages. These go when requests are answered again: see dropPages.
	n.cut.Store(e.flags&(nodeCut|nodeUnchecked) != 0)
	f.nodes.byID[n.id] = n
	if key := (nodeKey{n.path, n.ident}); e.flags&nodeRetired == 0 {
		f.nodes.keys[key] = n
	}
	return nil
}

// isBelow reports whether a path leads to something below the root, by names that a
// directory can have: of any bytes, for they are whatever the source's writers like.
func isBelow(path string) bool {
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." || strings.ContainsRune(name, 0) {
			return false
		}
	}
	return true
}

func (f *filesystem) restoreBound(e entry) error {
	if e.kind != entryBound {
		return nil
	}
	b, err := readBound(e.body)
	if err != nil {
		return err
	}
	n := f.nodes.byID[b.node]
	if n == nil { // forgotten in that moment
		f.journal.drop(e.slot)
		return nil
	}
	if n.ident.kind != unix.S_IFREG || !n.bound.isZero() || b.size != n.ident.size {
		return badJournal("content of node %d", b.node)
	}
	if n.bound, err = b.proof(); err != nil {
		return badJournal("content of node %d: %v", b.node, err)
	}
	n.boundSlot.Store(int64(e.slot))
	// Its newHandle has seen that what an early fill has put there is a part of this.
	n.spoilt = false
	return nil
}

func (f *filesystem) restoreHandle(e entry) error {
	if e.kind != entryHandle {
		return nil
	}
	k, err := readHandle(e.body)
	if err != nil {
		return err
	}
	n := f.nodes.byID[k.node]
	if n == nil || n.bound.isZero() || k.tier == 0 || f.files.open[k.fh] != nil {
		return badJournal("handle %d of node %d", k.fh, k.node)
	}
	if n.content == nil {
		n.content = f.inherit(n, keptTiers[k.tier])
	}
	if n.content.tier() != keptTiers[k.tier] {
		return badJournal("node %d has handles in two tiers", n.id)
	}
	n.content.refs++
	h := &handle{fs: f, node: n, content: n.content, proof: n.bound, caller: k.caller, since: k.since, slot: e.slot}
	h.generation.Store(math.MaxUint64) // nobody has decided yet
	f.files.put(k.fh, h)
	f.lostReplies.add(k.unique, func() { f.release(k.fh) })
	f.counters.resumed.Add(1)
	return nil
}

// inherit makes the content of a node whose handles a predecessor has given out.
func (f *filesystem) inherit(n *node, tier string) *content {
	c := &content{size: n.bound.tree.Size()}
	if tier != TierBlocks {
		c.inherited = tier
		return c
	}
	file, _, err := f.src.open(n.path)
	switch {
	case err != nil:
		c.checked = hashpipe.NewCheckedReader(gone{err}, n.bound.tree)
	case file == nil:
		c.checked = hashpipe.NewCheckedReader(gone{errors.New("it became something else")}, n.bound.tree)
	default:
		c.file, c.checked = file, hashpipe.NewCheckedReader(file, n.bound.tree)
		// Of a name that is a git blob id, the id is asked for at each decision.
		_ = n.bound.compare(baseName(n.path), file)
	}
	return c
}

// gone is a source file that could not be opened again.
type gone struct{ err error }

func (g gone) ReadAt([]byte, int64) (int, error) {
	return 0, fmt.Errorf("opening it again after the death of the mount process: %w", g.err)
}

func (f *filesystem) restoreDir(e entry) error {
	if e.kind != entryDir {
		return nil
	}
	k, err := readHandle(e.body)
	if err != nil {
		return err
	}
	n := f.nodes.byID[k.node]
	if n == nil || n.ident.kind != unix.S_IFDIR || f.dirs.open[k.fh] != nil {
		return badJournal("directory handle %d of node %d", k.fh, k.node)
	}
	f.dirs.put(k.fh, &dirHandle{path: n.path, fd: -1, slot: e.slot})
	f.lostReplies.add(k.unique, func() { f.releaseDir(k.fh) })
	return nil
}

// restoreBacking notes the predecessor's private files, to be let go: see
// dropInherited.
func (f *filesystem) restoreBacking(e entry) error {
	switch e.kind {
	case entryNode, entryBound, entryHandle, entryDir:
		return nil
	case entryBacking:
		w := body{b: e.body}
		f.inherited = append(f.inherited, inheritedBacking{int32(w.get()), e.slot, f.journal.deadline(e, backingGrace)})
		return nil
	}
	return badJournal("entry of kind %d", e.kind)
}

// inheritedBacking is the kernel's number of a file that a predecessor has
// registered.
type inheritedBacking struct {
	id    int32
	slot  slot
	until time.Time
}

// backingGrace is how long a predecessor's numbers stay good. The kernel looks a
// number up when the opener that got it runs again, which on a busy machine is after
// the successor has begun; without the number that open would be EIO.
const backingGrace = 10 * time.Second

// dropInherited lets the predecessors' private files go, as soon as the kernel does.
// If this process ends before, its successor does it, and no later: processes that die
// one after the other would keep the files of all of them.
func (f *filesystem) dropInherited() {
	slices.SortFunc(f.inherited, func(a, b inheritedBacking) int { return a.until.Compare(b.until) })
	for _, b := range f.inherited {
		select {
		case <-f.ctx.Done():
			return
		case <-time.After(time.Until(b.until)):
		}
		f.server.UnregisterBackingFd(b.id)
		f.journal.drop(b.slot)
	}
}

// rawDigest undoes the printing of a digest.
func rawDigest(text string) []byte {
	b, err := hex.DecodeString(text)
	if err != nil {
		panic(err) // a Digest prints as hex
	}
	return b
}
