package fs

import (
	"container/list"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
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
	server *fuse.Server
	failed atomic.Int64 // contents that could not be sealed

	closing sync.WaitGroup

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
}

// draft is a private file that is being filled. Its fields do not change.
type draft struct {
	w    *os.File // nil: a clone, which has its bytes already
	r    *os.File
	size int64
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
func (v *vault) begin(s *fuse.Server) {
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
	if v.server.KernelSettings().Flags64()&fuse.CAP_PASSTHROUGH == 0 {
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
	id, errno := v.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(d.r.Fd())})
	if errno != 0 {
		return passthroughError(errno)
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

// create makes an unnamed file.
func (v *vault) create() (*os.File, error) {
	var fd int
	err := retried(func() (err error) {
		fd, err = unix.Openat(v.dir, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("making a private file (O_TMPFILE): %w", err)
	}
	return os.NewFile(uintptr(fd), "private file"), nil
}

// readOnly opens the same inode for reading alone.
func readOnly(f *os.File) (*os.File, error) {
	fd, err := reopen(int(f.Fd()), 0)
	if err != nil {
		return nil, fmt.Errorf("opening a private file for reading: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// clone makes a private file that shares the blocks of src as they are now.
func (v *vault) clone(src *os.File, size int64) (draft, error) {
	w, err := v.create()
	if err != nil {
		return draft{}, err
	}
	defer w.Close()
	if err := retried(func() error { return unix.IoctlFileClone(int(w.Fd()), int(src.Fd())) }); err != nil {
		return draft{}, fmt.Errorf("cloning into a private file (FICLONE): %w", err)
	}
	st, err := w.Stat()
	if err != nil {
		return draft{}, err
	}
	if st.Size() != size {
		return draft{}, fmt.Errorf("%w: expected %d bytes, got %d", hashpipe.ErrChanged, size, st.Size())
	}
	r, err := readOnly(w)
	return draft{r: r, size: size}, err
}

// spare takes room for a private file of size bytes, if it needs one and no other
// has to go for it. ok is false if another would have to.
func (v *vault) spare(size int64) (taken, ok bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.why != "" || size < v.from {
		return false, true
	}
	if v.used+size > v.budget || v.recent.Len() >= v.most {
		return false, false
	}
	v.used += size
	return true, true
}

// room makes room for size bytes and takes it, or reports that there is none.
func (v *vault) room(size int64) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.used+size > v.budget {
		v.reap()
	}
	for e := v.recent.Back(); e != nil && (v.used+size > v.budget || v.recent.Len() >= v.most); {
		p, before := e.Value.(*private), e.Prev()
		if p.users == 0 && !p.inUse() {
			v.drop(p)
		}
		e = before
	}
	if v.used+size > v.budget || v.recent.Len() >= v.most {
		return false
	}
	v.used += size
	return true
}

var errNoRoom = errors.New("no room")

// draft begins to seal a source file of the given size, for which room may have
// been taken. A nil draft and a nil error mean that the file is to be served
// without.
func (v *vault) draft(src *os.File, size int64, room bool) (*draft, error) {
	if tier, _ := v.state(); tier == TierBlocks || size < v.from {
		if room {
			v.giveBack(size)
		}
		return nil, nil
	}
	if !room && !v.room(size) {
		return nil, v.full(size)
	}
	d, err := v.fresh(src, size)
	if err != nil {
		v.giveBack(size)
		return nil, err
	}
	return &d, nil
}

func (v *vault) full(size int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.used+size > v.budget {
		return fmt.Errorf("%w for %d bytes among the private files: %d of %d are taken; next: mount with a larger --private-bytes", errNoRoom, size, v.used, v.budget)
	}
	return fmt.Errorf("%w for another private file: there are %d, a quarter of the descriptors that the mount process may have", errNoRoom, v.recent.Len())
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

func (v *vault) fresh(src *os.File, size int64) (draft, error) {
	if v.how == SealReflink {
		return v.clone(src, size)
	}
	w, err := v.create()
	if err != nil {
		return draft{}, err
	}
	// A full disk shows here and not in the middle.
	if err := retried(func() error { return unix.Fallocate(int(w.Fd()), 0, 0, size) }); err != nil && err != unix.EOPNOTSUPP {
		w.Close()
		return draft{}, fmt.Errorf("reserving %d bytes for a private file: %w", size, err)
	}
	r, err := readOnly(w)
	if err != nil {
		w.Close()
	}
	return draft{w: w, r: r, size: size}, err
}

func (v *vault) giveBack(size int64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.used -= size
}

// discard gives a draft up.
func (v *vault) discard(d *draft) {
	if d == nil {
		return
	}
	v.giveBack(d.size)
	if d.w != nil {
		d.w.Close()
	}
	d.r.Close()
}

// finish closes the descriptor that could write. What was hashed is what was
// given to the page cache; if the disk does not take it, a later read would get
// something else.
func (d *draft) finish() error {
	if d.w == nil {
		return nil
	}
	err := retried(func() error { return unix.Fdatasync(int(d.w.Fd())) })
	err = errors.Join(err, d.w.Close())
	d.w = nil
	if err != nil {
		return fmt.Errorf("writing a private file: %w", err)
	}
	return nil
}

// seal ends a draft whose bytes, as they were written or cloned, are the proof's.
// From here on no descriptor can write them.
func (v *vault) seal(d *draft, p proof, claims []claim) (*private, error) {
	err := d.finish()
	tier := TierSealed
	if err == nil {
		tier, err = v.enforce(d.r, p, claims)
	}
	if err != nil {
		v.discard(d)
		return nil, err
	}
	out := &private{file: d.r, size: d.size, tier: tier}
	v.mu.Lock()
	defer v.mu.Unlock()
	out.place = v.recent.PushFront(out)
	return out, nil
}

// enforce lets the kernel hold the file to what the capabilities say of it, if
// it can. Where it can and says something else, the file is not used.
func (v *vault) enforce(f *os.File, p proof, claims []claim) (tier string, err error) {
	if tier, _ := v.state(); tier != TierVerity {
		return TierSealed, nil
	}
	err = hashpipe.EnableVerity(f)
	if errors.Is(err, hashpipe.ErrNoVerity) {
		v.noVerity(err)
		return TierSealed, nil
	}
	if err != nil {
		return "", err
	}
	if err := v.relink(f); err != nil {
		return "", err
	}
	// Pages that were read before are not checked by the kernel.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // advice
	enforced, err := hashpipe.MeasureVerity(f)
	if err != nil {
		return "", err
	}
	for _, c := range claims {
		if c.digest == p.digest && !enforced.Is(c.verity) {
			return "", fmt.Errorf("the kernel measures fs-verity sha256:%s, expected sha256:%s", enforced, c.verity)
		}
	}
	return TierVerity, nil
}

// relinkPrefix begins the name that a private file has for a moment.
const relinkPrefix = ".clawfs-private-"

// relink gives a private file of ext4 a name and takes it away again. Enabling
// fs-verity takes an unnamed inode off the list of orphans (seen with Linux 6.1
// and 6.12): if the machine stopped while it is open, its blocks would be lost
// until the next e2fsck. Unlinking puts it back.
func (v *vault) relink(f *os.File) error {
	var st unix.Statfs_t
	if err := retried(func() error { return unix.Fstatfs(v.dir, &st) }); err != nil || st.Type != unix.EXT4_SUPER_MAGIC {
		return err
	}
	name := relinkPrefix + rand.Text()
	err := unix.Linkat(unix.AT_FDCWD, procName(int(f.Fd())), v.dir, name, unix.AT_SYMLINK_FOLLOW)
	if err == nil {
		err = unix.Unlinkat(v.dir, name, 0)
	}
	if err != nil && err != unix.ENOENT { // swept by another mount
		return fmt.Errorf("linking and unlinking a private file as %s: %w", name, err)
	}
	return nil
}

// sweep removes the names that a mount process left which was killed in relink.
func (v *vault) sweep() error {
	fd, err := reopen(v.dir, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), "directory of private files")
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			var st unix.Stat_t
			if strings.HasPrefix(name, relinkPrefix) && unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil &&
				st.Mode == unix.S_IFREG|0o600 && st.Uid == uint32(os.Geteuid()) {
				_ = unix.Unlinkat(fd, name, 0) // another mount may have done it
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
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
		id, errno := v.server.RegisterBackingFd(&fuse.BackingMap{Fd: int32(p.file.Fd())})
		if errno != 0 || id <= 0 {
			// From now on nothing is sealed: each would fail, after its hash.
			v.failed.Add(1)
			v.why = passthroughError(errno).Error()
			v.log.Warn("a private file cannot be served; files are served in tier blocks from now on", "reason", v.why)
			v.drop(p)
			return false
		}
		p.backing = id
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
	used, files := v.used, v.recent.Len()
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
		p.backing = 0
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

// copyPiece is how much is written at once, in bytes. The kernel keeps what is
// written at once in one piece, and maps it at one fault.
const copyPiece = 2 << 20

var copyBuffers = sync.Pool{New: func() any { return new([copyPiece]byte) }}

// copying reads the source and writes what it read to the private file: the
// bytes that are hashed are the bytes that are written. If the disk does not
// take them, the source is measured all the same, and served without. It is for
// one goroutine, which closes it.
type copying struct {
	src, dst *os.File
	spoilt   *atomic.Pointer[error]

	buf *[copyPiece]byte
	at  int64 // where the bytes in buf begin
	n   int   // how many there are
}

func (c *copying) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.src.ReadAt(p, off)
	if c.n > 0 && off != c.at+int64(c.n) {
		c.flush()
	}
	for rest := p[:n]; len(rest) > 0; {
		if c.n == 0 {
			c.at = off + int64(n-len(rest))
		}
		k := copy(c.buf[c.n:], rest)
		rest = rest[k:]
		if c.n += k; c.n == copyPiece || (c.at+int64(c.n))%copyPiece == 0 {
			c.flush()
		}
	}
	return n, err
}

// flush writes what is in the buffer.
func (c *copying) flush() {
	n := c.n
	c.n = 0
	if n == 0 || c.spoilt.Load() != nil {
		return
	}
	if _, err := c.dst.WriteAt(c.buf[:n], c.at); err != nil {
		err = fmt.Errorf("writing a private file: %w", err)
		c.spoilt.Store(&err)
		return
	}
	// Advice: so that little is left to do for fdatasync, which nothing interrupts.
	_ = unix.SyncFileRange(int(c.dst.Fd()), c.at, int64(n), unix.SYNC_FILE_RANGE_WRITE)
}

func (c *copying) close() {
	c.flush()
	copyBuffers.Put(c.buf)
}

// populating reads a private file. A clone has no page of its source's in memory.
// Read as usual they would come in small pieces, and each piece costs a fault
// when it is mapped later; so they are brought in by a mapping that asks for
// large ones, one ahead of what is read. It is never touched itself. A populating
// is for one goroutine, which closes it.
type populating struct {
	*os.File
	mapped *os.File // the same: the kernel reads ahead for each descriptor
	size   int64
	end    int64         // what lies up to here was brought in
	ahead  chan struct{} // closed when what follows was, too; nil: nobody does it
}

func (p *populating) ReadAt(b []byte, off int64) (int, error) {
	if off >= p.end || off < p.end-maxFolio {
		p.wait()
		if off != p.end {
			p.populate(off)
		}
		p.end = off + maxFolio
		next, ahead := p.end, make(chan struct{})
		go func() { defer close(ahead); p.populate(next) }()
		p.ahead = ahead
	}
	return p.File.ReadAt(b, off)
}

func (p *populating) wait() {
	if p.ahead != nil {
		<-p.ahead
	}
}

// populate does its best: without it all the same bytes are read.
func (p *populating) populate(off int64) {
	n := min(maxFolio, p.size-off)
	if n <= 0 || off%hashpipe.BlockSize != 0 {
		return
	}
	m, err := unix.Mmap(int(p.mapped.Fd()), off, int(n), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return
	}
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE)
	_ = unix.Madvise(m, unix.MADV_POPULATE_READ)
	_ = unix.Munmap(m)
}
