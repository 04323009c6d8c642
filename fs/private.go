package fs

import (
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// The tiers: how the bytes of a granted file reach its reader.
const (
	// TierBlocks: every unit is hashed in user space before it is returned. It
	// needs no privilege and holds against writers and against storage.
	TierBlocks = "blocks"
	// TierSealed: the kernel serves a private file that was hashed after nobody
	// could write it any more. It holds against writers.
	TierSealed = "sealed"
	// TierVerity: as sealed, and the kernel itself checks every page of the private
	// file against the digest of the capability (fs-verity).
	TierVerity = "verity"
)

// Seal is how a content gets into a private file.
type Seal int

const (
	// SealOff serves every file in tier "blocks".
	SealOff Seal = iota
	// SealReflink shares the blocks of the source file (FICLONE: xfs, btrfs). Where
	// the file system cannot, files are served in tier "blocks".
	SealReflink
	// SealCopy writes every content once more.
	SealCopy
)

const (
	// sealFrom is the size in bytes from which a file is worth a private one, unless
	// Config.SealFrom says otherwise.
	sealFrom = 1 << 20
	// maxPrivate bounds the private files, each of which is an open descriptor. They
	// take a quarter of those that the process may have at most: without one for
	// its source nothing opens, in no tier.
	maxPrivate = 4096
)

// vault makes private files: unnamed inodes (O_TMPFILE) that nobody can open
// because nothing leads to them, and that are gone with the process, however it
// ends. It keeps those that may be served again, the least recently used go
// first.
type vault struct {
	how  Seal
	from int64 // bytes
	most int   // private files
	dir  int   // where the files are made; -1: nowhere

	log    *slog.Logger
	server *connection
	failed atomic.Int64 // contents that could not be sealed

	closing sync.WaitGroup
	journal *journal // nil: nothing is kept for a successor

	mu     sync.Mutex // guards what follows, and what private says
	why    string     // what keeps files from being sealed; "": nothing
	plain  string     // what keeps sealed files from fs-verity; "": nothing
	budget int64
	used   int64
	recent *list.List // of *private, the most recently used first
	mapped []*private // let go, and somebody has them mapped: they still take room
}

// private is a file that only this process and the kernel have. Its bytes do not
// change after seal has returned it.
type private struct {
	file *os.File // opened for reading; no descriptor for writing is left
	size int64
	tier string

	// Guarded by vault.mu.
	users   int  // handles' contents; the measurement does not count
	unasked bool // sealed in advance, and nobody has opened it
	gone    bool
	place   *list.Element
	backing int32 // the kernel's number for the file; 0: not registered
	slot    slot  // of that in the journal
}

func newVault(c Config) (*vault, error) {
	v := &vault{how: c.Seal, from: c.SealFrom, dir: -1, log: c.Log, budget: c.PrivateBytes, recent: list.New()}
	if v.from <= 0 {
		v.from = sealFrom
	}
	if c.Seal == SealOff {
		v.why = "sealing is off"
		return v, nil
	}
	where := c.Private
	if where == "" {
		where = c.Source
	}
	dir, err := unix.Open(where, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		v.why = fmt.Sprintf("directory for private files: open %s: %v", where, err)
		return v, nil
	}
	v.dir = dir
	if err := v.sweep(); err != nil {
		v.why = fmt.Sprintf("directory for private files: %v", err)
		return v, nil
	}
	var descriptors unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &descriptors); err != nil {
		unix.Close(dir)
		return nil, fmt.Errorf("asking how many descriptors there may be: %w", err)
	}
	v.most = int(min(maxPrivate, descriptors.Cur/4))
	if v.budget == 0 {
		var st unix.Statfs_t
		if err := retried(func() error { return unix.Fstatfs(dir, &st) }); err == nil {
			v.budget = int64(st.Bavail) * st.Bsize / 2
		}
	}
	return v, nil
}

// begin finds out what this kernel and file system can do, before the first
// request. What they cannot is no error: tier "blocks" is always there.
func (v *vault) begin(s *connection) {
	v.server = s
	if v.why != "" { // nobody else looks yet
		return
	}
	if err := v.try(); err != nil {
		v.mu.Lock()
		v.why = err.Error()
		v.mu.Unlock()
	}
}

var errNoPassthrough = errors.New("the kernel offers no FUSE passthrough (Linux 6.9, root)")

// try seals one block of zeros and hands it to the kernel.
func (v *vault) try() error {
	if !v.server.offers(fuse.CAP_PASSTHROUGH) {
		return errNoPassthrough
	}
	src, err := v.create()
	if err != nil {
		return err
	}
	defer src.Close()
	if _, err := src.Write(make([]byte, hashpipe.BlockSize)); err != nil {
		return fmt.Errorf("writing a private file: %w", err)
	}
	d, err := v.fresh(src, hashpipe.BlockSize)
	if err != nil {
		return err
	}
	defer d.r.Close()
	if err := d.finish(); err != nil {
		return err
	}
	id, err := v.server.RegisterBackingFd(int(d.r.Fd()))
	if err != nil {
		return passthroughError(err)
	}
	v.server.UnregisterBackingFd(id)
	if err := hashpipe.EnableVerity(d.r); err != nil {
		v.noVerity(err)
	}
	return nil
}

func passthroughError(errno error) error {
	switch {
	case errors.Is(errno, unix.EPERM):
		return errors.New("FUSE passthrough needs root in the initial user namespace")
	case errors.Is(errno, unix.ELOOP):
		return errors.New("FUSE passthrough does not work over a stacked file system such as overlayfs: keep the private files on another one")
	}
	return fmt.Errorf("registering a file for FUSE passthrough: %w", errno)
}

// state returns the best tier that a file of this mount can have, and why it is
// not a better one.
func (v *vault) state() (tier, why string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.why != "":
		return TierBlocks, v.why
	case v.plain != "":
		return TierSealed, v.plain
	}
	return TierVerity, ""
}

func (v *vault) noVerity(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.plain = err.Error()
}

func (v *vault) usage() (files, bytes int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return int64(v.recent.Len()), v.used
}

// spare takes room for a private file of size bytes, if it needs one and no other
// has to go for it. ok is false if another would have to.
func (v *vault) spare(size int64) (taken, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.why != "" || size < v.from {
		return false, true
	}
	if v.used+size > v.budget || v.files() >= v.most {
		return false, false
	}
	v.used += size
	return true, true
}

// files counts the descriptors: what is mapped and was let go has one, too.
// Callers hold v.mu.
func (v *vault) files() int { return v.recent.Len() + len(v.mapped) }

// room makes room for size bytes and takes it, or reports that there is none.
func (v *vault) room(size int64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.used+size > v.budget || v.files() >= v.most {
		v.reap()
	}
	for e := v.recent.Back(); e != nil && (v.used+size > v.budget || v.files() >= v.most); {
		p, before := e.Value.(*private), e.Prev()
		if p.users == 0 && !p.inUse() {
			v.drop(p)
		}
		e = before
	}
	if v.used+size > v.budget || v.files() >= v.most {
		return false
	}
	v.used += size
	return true
}

var errNoRoom = errors.New("no room")

func (v *vault) full(size int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.used+size > v.budget {
		return fmt.Errorf("%w for %d bytes among the private files: %d of %d are taken; next: mount with a larger --private-bytes", errNoRoom, size, v.used, v.budget)
	}
	return fmt.Errorf("%w for another private file: there are %d, a quarter of the descriptors that the mount process may have", errNoRoom, v.files())
}

// note says why a granted file that is served in tier blocks is not in a better
// one.
func (v *vault) note(fl *flight) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.why != "":
		return v.why
	case fl.id.size < v.from:
		return fmt.Sprintf("it is smaller than %d bytes", v.from)
	}
	return fl.unsealed
}

func (v *vault) giveBack(size int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.used -= size
}

// acquire takes a private file for a handle. It returns false if the file is
// gone or the kernel does not take it, and then there is nothing to release.
func (v *vault) acquire(p *private) bool {
	if p == nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if p.gone {
		return false
	}
	if p.backing == 0 {
		id, err := v.server.RegisterBackingFd(int(p.file.Fd()))
		if err != nil || id <= 0 {
			// From now on nothing is sealed: each would fail, after its hash.
			v.failed.Add(1)
			v.why = passthroughError(err).Error()
			v.log.Warn("a private file cannot be served; files are served in tier blocks from now on", "reason", v.why)
			v.drop(p)
			return false
		}
		p.backing = id
		p.slot = v.journal.put(entryBacking, 0, 0, binary.NativeEndian.AppendUint64(nil, uint64(id)))
	}
	p.users++
	p.unasked = false
	v.recent.MoveToFront(p.place)
	return true
}

func (v *vault) release(p *private) {
	v.mu.Lock()
	defer v.mu.Unlock()
	p.users--
	if p.gone && p.users == 0 {
		v.close(p)
	}
}

// demote makes a private file, sealed in advance, the first to go.
func (v *vault) demote(p *private) {
	if p == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if !p.gone {
		p.unasked = true
		v.recent.MoveToBack(p.place)
	}
}

// serves reports whether a private file would be served if it were opened now.
func (v *vault) serves(p *private) bool {
	if p == nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return !p.gone
}

// lost reports whether a private file had to make room for others that can be had
// again.
func (v *vault) lost(p *private) bool {
	if p == nil {
		return false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return p.gone && v.fits(p.size)
}

// vacant reports whether there is room for size bytes now.
func (v *vault) vacant(size int64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.fits(size)
}

// fits reports whether there is room for a private file if those go that nobody
// has asked for. Callers hold v.mu.
func (v *vault) fits(size int64) bool {
	used, files := v.used, v.files()
	for e := v.recent.Back(); e != nil && e.Value.(*private).unasked; e = e.Prev() {
		used -= e.Value.(*private).size
		files--
	}
	return v.why == "" && used+size <= v.budget && files < v.most
}

// forget lets a private file go, once nobody reads it.
func (v *vault) forget(p *private) {
	if p == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.drop(p)
}

// drop is forget for callers that hold v.mu.
func (v *vault) drop(p *private) {
	if p.gone {
		return
	}
	p.gone = true
	v.recent.Remove(p.place)
	if p.users == 0 {
		v.close(p)
	}
}

// close frees the file and its room, unless somebody has it mapped: the kernel
// releases a handle of a mapping that was closed, and keeps the file. Callers
// hold v.mu.
func (v *vault) close(p *private) {
	if p.inUse() {
		v.mapped = append(v.mapped, p)
		return
	}
	v.free(p)
}

// free closes the file. To free the blocks of a large one can take long. Callers
// hold v.mu.
func (v *vault) free(p *private) {
	v.used -= p.size
	if p.backing != 0 {
		v.server.UnregisterBackingFd(p.backing)
		v.journal.drop(p.slot)
		p.backing, p.slot = 0, 0
	}
	v.closing.Go(func() { p.file.Close() })
}

// reap frees what was mapped and is not any more. Callers hold v.mu.
func (v *vault) reap() {
	v.mapped = slices.DeleteFunc(v.mapped, func(p *private) bool {
		if p.inUse() {
			return false
		}
		v.free(p)
		return true
	})
}

// tidy is reap for callers that do not hold v.mu.
func (v *vault) tidy() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reap()
}

// lingers reports whether a private file was let go, and only mappings of it are
// left.
func (v *vault) lingers(p *private) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Contains(v.mapped, p)
}

// inUse reports whether anybody has the file open or mapped beside us: then the
// kernel refuses a lease for writing (fcntl(2)), which is given back at once. The
// caller knows that no handle is being opened, which would wait for the lease.
// Where there are no leases nobody can tell, and the answer is no.
func (p *private) inUse() bool {
	_, err := unix.FcntlInt(p.file.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	if err == nil {
		_, _ = unix.FcntlInt(p.file.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	}
	return err == unix.EAGAIN
}

// end closes everything. No handle is left.
func (v *vault) end() {
	v.mu.Lock()
	for e := v.recent.Front(); e != nil; e = v.recent.Front() {
		v.drop(e.Value.(*private))
	}
	for _, p := range v.mapped { // the kernel keeps what is mapped
		v.free(p)
	}
	v.mapped = nil
	v.mu.Unlock()
	v.closing.Wait()
	if v.dir >= 0 {
		unix.Close(v.dir)
	}
}
