// Package fs is the mount: a read-only FUSE file system over a source
// directory in which a file opens only if its bytes are the bytes of a live
// capability.
//
// What it promises, and to whom. The adversaries are a process that can write
// the source directory at any time, also through descriptors and mappings that
// it opened long before, and a storage that returns different bytes on
// different reads. Neither can make a reader of the mount see a byte that no
// capability names: OPEN returns only after the whole content was measured and
// Decide allowed it. Then, in tier "blocks", each READ reads its 512 KiB units
// again, hashes them, and returns the very buffer that was hashed; a large content
// is in the kernel's page cache before its first open returns, from buffers that
// were hashed (see fill). In tiers "sealed" and "verity" the kernel itself serves a
// private file, which was measured when nothing could write it any more (see
// vault); against storage "sealed" does not hold. The source is never handed to the
// kernel, neither by splice nor by passthrough.
//
// Only audit mode serves what is not approved: see unchecked.
//
// One FUSE inode stands for one name and one state of the source file behind it
// (device, inode, size, times). At its first successful OPEN it is bound to the
// measured content, for good. A name that leads elsewhere answers ESTALE, which
// makes the kernel look it up again by itself; so pages of two contents never
// meet in one inode.
//
// The process that serves a mount must never touch it.
//
// BUG: go-fuse answers for .go-fuse-epoll-hack in the root by itself. It is not
// listed, opens without a capability or a record, and is empty.
package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/openclaw/clawfs/capstore"
)

// Config says what to mount. Source, Mountpoint and View are required.
type Config struct {
	Source     string         // directory of model files; never written
	Mountpoint string         // existing directory outside Source
	View       *capstore.View // live capabilities and revocations

	// Audit gets one Record for each decision, one call at a time, never on the
	// goroutine of a request. If it is slow, records are dropped and counted.
	// nil discards them.
	Audit func(Record)

	// Log gets what concerns the mount itself; nil discards it.
	Log *slog.Logger

	// AllowOther lets other users in; file modes still decide. Without root it
	// needs user_allow_other in /etc/fuse.conf.
	AllowOther bool

	// HashWorkers bounds the threads that measure files, each one file or all of
	// them one large file. Zero means one for each processor. One more worker
	// takes small files only.
	HashWorkers int

	// Verify says how a large file is measured at its open. Zero is VerifyAuto.
	Verify Verify

	// Bind is what the name of a file demands. Zero is BindName.
	Bind Bind

	// AuditUntil is the end of audit mode, in which what the rules refuse is served
	// unchecked and told: for roll-outs. Zero, or an instant that is over, enforces
	// from the start.
	AuditUntil time.Time

	// Clock returns the time; nil means time.Now. However it moves, the mount's
	// own time only goes forward.
	Clock func() time.Time

	// MaxSilence is how long nobody may have told View of revocations for a file to
	// open, and Silence how long it has been (math.MaxInt64: for ever); what is open
	// stays open. Zero and nil are no bound; one without the other is an error.
	MaxSilence time.Duration
	Silence    func() time.Duration

	// CacheBytes bounds what an open may put into the kernel's page cache, in
	// bytes. Zero means half of the memory that is available then; below zero it
	// puts nothing there.
	CacheBytes int64

	// Seal says whether contents get private files that the kernel serves by itself.
	Seal Seal

	// SealFrom is the size in bytes from which a file gets one. Zero means 1 MiB.
	SealFrom int64

	// Private is a directory on the file system that holds the private files, for
	// SealReflink on the one of the source. They have no names there. Empty means
	// the source itself.
	Private string

	// PrivateBytes bounds the private files, in bytes. Zero means half of what is
	// free on their file system at the start.
	PrivateBytes int64

	// Preverify measures files in the background before somebody opens them, and
	// seals them, while nobody waits for something else.
	Preverify bool

	// PreverifyEvery is how often the whole source is looked through for files that
	// nothing has told of. Zero means ten minutes.
	PreverifyEvery time.Duration

	// wrap lies between the kernel and the file system, for tests of this package.
	wrap func(fuse.RawFileSystem) fuse.RawFileSystem
}

// Verify is a way to measure a file at its open. Either way the bytes are the
// ones that a capability names: see Query.Tree.
type Verify int

const (
	// VerifyAuto measures a file of 64 MiB or more as a tree, on all cores, and
	// any other by its SHA-256.
	VerifyAuto Verify = iota
	// VerifyStream measures every file by its SHA-256, on one core for each file.
	VerifyStream
)

// Server is a live mount.
type Server struct {
	fs     *filesystem
	kernel *connection
	alone  error         // why there can be no successor; nil: there can
	done   chan struct{} // closed when the mount is gone and everything is released
}

// Stats is a snapshot of counters since the mount was made.
type Stats struct {
	Granted, Refused int64 // decisions of OPEN, and links that were refused
	AuditServed      int64 // opens and links that audit mode let pass
	Errors           int64 // opens that ended undecided: I/O error, interrupted, too slow
	Hashed           int64 // whole files measured
	HashedBytes      int64
	Trees            int64 // of Hashed, those measured as a tree alone
	Joined           int64 // opens that waited for a measurement which another had begun
	UnitsChecked     int64 // units hashed for READ
	FilledBytes      int64 // put into the kernel's page cache by opens
	LateMismatches   int64 // units that no longer were what OPEN had approved
	Revoked          int64 // open handles cut off
	Held             int64 // open handles of revoked contents that the kernel goes on serving
	Quarantined      int64 // source files refused since a late mismatch, now
	Panics           int64
	AuditDropped     int64
	Nodes, Handles   int64 // now
	Verifying        int64 // now, waiting ones included
	Private          int64 // private files, now
	PrivateBytes     int64 // of them
	Unsealed         int64 // contents served in tier "blocks" because sealing failed
	Preverified      int64 // of Hashed, those that pre-verification began
	PreverifyPending int64 // files that it knows it has to measure, now
	Resumed          int64 // open handles that were taken over from a process that died
}

// Mount mounts and serves in the background. The process should do nothing
// else with the mount point, and should serve one mount: Mount raises GOMAXPROCS by
// two for each hash worker (its locked and niced thread, and the one that hashes
// the tree beside it), because requests need processors of their own.
func Mount(c Config) (*Server, error) {
	fsys, opts, err := assemble(&c, func() (err error) {
		c.Mountpoint, err = checkMountpoint(c.Source, c.Mountpoint)
		return err
	})
	if err != nil {
		return nil, err
	}
	device, err := mountKernel(c)
	if err != nil {
		fsys.shutdown()
		return nil, fmt.Errorf("mount %s: %w", c.Mountpoint, err)
	}
	kernel, err := connect(fsys, device, opts, c.wrap)
	if err == nil {
		err = kernel.begin()
	}
	if err != nil {
		_ = detach(c.Mountpoint) // nobody has seen it
		device.Close()
		fsys.shutdown()
		return nil, fmt.Errorf("mount %s: %w", c.Mountpoint, err)
	}
	fsys.speak(kernel)
	if err := raiseReadAhead(c.Mountpoint); err != nil {
		c.Log.Info("the kernel's read-ahead stays at its default; large sequential reads take more requests", "reason", err)
	}
	s := &Server{fs: fsys, kernel: kernel, done: make(chan struct{})}
	if s.alone = s.keep(); s.alone != nil {
		c.Log.Info("if this process dies, what is open fails, and the mount is made anew", "reason", s.alone)
	}
	fsys.vault.begin(kernel)
	s.begin(c)
	return s, nil
}

// assemble makes everything but the connection to the kernel. check is for the mount
// point, which must not be touched if it is live.
func assemble(c *Config, check func() error) (*filesystem, *fuse.MountOptions, error) {
	if c.View == nil {
		return nil, nil, errors.New("mount: no view of the capabilities: everything would be refused without a reason")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.HashWorkers < 0 {
		return nil, nil, fmt.Errorf("mount: %d hash workers: want 0 or more", c.HashWorkers)
	}
	if c.HashWorkers == 0 {
		c.HashWorkers = runtime.NumCPU()
	}
	if c.Verify != VerifyAuto && c.Verify != VerifyStream {
		return nil, nil, fmt.Errorf("mount: way %d to verify a file: unknown", c.Verify)
	}
	if c.MaxSilence < 0 || (c.MaxSilence > 0) != (c.Silence != nil) {
		return nil, nil, fmt.Errorf("mount: a silence of at most %v, measured: %t; want both or none", c.MaxSilence, c.Silence != nil)
	}
	if c.Bind != BindName && c.Bind != BindRelease {
		return nil, nil, fmt.Errorf("mount: way %d to bind a name: unknown", c.Bind)
	}
	src, err := openSource(c.Source)
	if err != nil {
		return nil, nil, fmt.Errorf("mount: source: %w", err)
	}
	if err := check(); err != nil {
		src.close()
		return nil, nil, fmt.Errorf("mount: %w", err)
	}
	threads := c.HashWorkers
	if c.Preverify {
		threads *= 2
	}
	if procs := runtime.NumCPU() + 2*threads + 2; runtime.GOMAXPROCS(0) < procs {
		runtime.GOMAXPROCS(procs)
	}
	vault, err := newVault(*c)
	if err != nil {
		src.close()
		return nil, nil, fmt.Errorf("mount: %w", err)
	}
	fsys := newFilesystem(*c, src, vault)
	return fsys, mountOptions(*c, fsys), nil
}

// begin serves.
func (s *Server) begin(c Config) {
	fsys := s.fs
	if tier, why := fsys.vault.state(); c.Seal != SealOff && tier == TierBlocks {
		c.Log.Warn("files are not sealed; they are served in tier blocks", "reason", why)
	}
	fsys.background.Go(func() { fsys.again(fsys.watchRevocations) })
	if len(fsys.inherited) > 0 {
		fsys.background.Go(func() { fsys.spared(fsys.dropInherited) })
	}
	if fsys.auditing() {
		c.Log.Warn("audit mode: what the rules refuse is served unchecked, and told", "until", c.AuditUntil)
		fsys.background.Go(func() { fsys.again(fsys.watchAuditMode) })
	}
	if fsys.ahead != nil {
		fsys.ahead.begin()
	}
	go func() {
		defer close(s.done)
		s.kernel.serve()
		fsys.shutdown()
		s.kernel.close()
	}()
}

func mountOptions(c Config, fsys *filesystem) *fuse.MountOptions {
	o := &fuse.MountOptions{
		MaxWrite:      maxRead, // see maxWrite
		MaxBackground: 64,
		// Splice would fetch pages of a file again after they were hashed; nothing
		// here returns a descriptor, and this keeps it so.
		DisableSplice: true,
		PanicHandler:  fsys.panicked,
		Logger:        slog.NewLogLogger(c.Log.Handler(), slog.LevelWarn),
		// Plain READDIR unless somebody stats what was listed.
		ExtraCapabilities: fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_HAS_RESEND,
		// Without NO_OPEN no reply can turn OPEN, which is where the decision is
		// made, off.
		DisabledCapabilities: fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_NO_OPENDIR_SUPPORT,
		// Private files lie on a file system that is not stacked itself.
		MaxStackDepth: 1,
	}
	if c.Seal == SealOff {
		o.DisabledCapabilities |= fuse.CAP_PASSTHROUGH
	}
	return o
}

// checkMountpoint returns the mount point without links. A mount point inside
// the source, or a source inside the mount point, would make the daemon wait
// for itself.
func checkMountpoint(source, mountpoint string) (string, error) {
	src, err := resolve(source)
	if err != nil {
		return "", fmt.Errorf("source: %w", err)
	}
	mp, err := resolve(mountpoint)
	if err != nil {
		return "", fmt.Errorf("mount point: %w", err)
	}
	if st, err := os.Stat(mp); err != nil || !st.IsDir() {
		return "", fmt.Errorf("mount point %s is no directory", mp)
	}
	if mp == src {
		return "", fmt.Errorf("mount point %s is the source itself: mount on another directory", mp)
	}
	if within(src, mp) {
		return "", fmt.Errorf("mount point %s lies inside the source %s: mount elsewhere", mp, src)
	}
	if within(mp, src) {
		return "", fmt.Errorf("source %s lies inside the mount point %s: mount elsewhere", src, mp)
	}
	return mp, nil
}

func resolve(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

func within(dir, p string) bool {
	return dir == "/" || strings.HasPrefix(p, dir+"/")
}

// Wait returns when the mount is gone, by whatever hand, and everything that
// served it is released.
func (s *Server) Wait() { <-s.done }

// Unmount unmounts and waits. A busy mount is tried again for two seconds, then
// left as it is: the error says so.
func (s *Server) Unmount() error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		err := unmount(s.fs.mountpoint)
		if err == nil {
			break
		}
		select {
		case <-s.done: // somebody else unmounted it
			return nil
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("unmount %s: %w", s.fs.mountpoint, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	<-s.done
	return nil
}

// Abandon detaches the mount even while it is in use, and stops measuring.
// Openers that wait get an error at once. Readers that hold files go on until
// they close them or the process ends; Wait returns then.
func (s *Server) Abandon() error {
	s.fs.cancel()
	if err := detach(s.fs.mountpoint); err != nil {
		return fmt.Errorf("detaching %s: %w", s.fs.mountpoint, err)
	}
	return nil
}

// AuditUntil returns when audit mode ends, or the zero time if the mount enforces.
func (s *Server) AuditUntil() time.Time {
	if !s.fs.auditing() {
		return time.Time{}
	}
	return s.fs.auditUntil
}

// Tier returns the best tier that a file of this mount can have, and why it is
// not a better one; "" if there is none.
func (s *Server) Tier() (tier, why string) { return s.fs.vault.state() }

// Stats returns the counters.
func (s *Server) Stats() Stats { return s.fs.stats() }

// filesystem answers the kernel. Its methods are spread over one file for each
// family of operations.
type filesystem struct {
	fuse.RawFileSystem

	mountpoint string
	source     string // its path, to tell people
	view       *capstore.View
	log        *slog.Logger
	src        *source
	clock      *clock
	audit      *auditor
	measure    *measurer
	vault      *vault
	nodes      *nodeTable
	files      handles[*handle]
	dirs       handles[*dirHandle]
	units      *unitCache
	bind       Bind
	maxSilence time.Duration
	silence    func() time.Duration // nil: no bound
	auditUntil time.Time
	unchecked  handles[*unchecked]
	quarantine quarantine
	sentBack   sentBack
	counters   counters

	ctx        context.Context // ends with the mount
	cancel     context.CancelFunc
	cacheBytes int64         // Config.CacheBytes
	limit      time.Duration // longest wait of one request; 0 is none
	ahead      *preverifier  // nil: files are measured when they are opened
	recut      atomic.Bool   // a handle was cut off, and the pages of its node may be there
	background sync.WaitGroup

	inherited []inheritedBacking // of dropInherited, after restore
	server    *connection

	journal     *journal // nil: nothing is kept for a successor
	lostReplies lostReplies
}

func newFilesystem(c Config, src *source, v *vault) *filesystem {
	ctx, cancel := context.WithCancel(context.Background())
	f := &filesystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		mountpoint:    c.Mountpoint,
		source:        c.Source,
		view:          c.View,
		log:           c.Log,
		src:           src,
		clock:         newClock(c.Clock),
		audit:         newAuditor(c.Audit),
		nodes:         newNodeTable(),
		vault:         v,
		bind:          c.Bind,
		maxSilence:    c.MaxSilence,
		silence:       c.Silence,
		auditUntil:    c.AuditUntil.Round(0),
		cacheBytes:    c.CacheBytes,
		ctx:           ctx,
		cancel:        cancel,
		limit:         requestLimit(),
	}
	f.units = newUnitCache(&f.counters.unitsChecked)
	f.measure = newMeasurer(ctx, c.HashWorkers, c.Verify, v, &f.counters, f.claims, f.wanted, f.spared)
	if c.Preverify {
		f.ahead = newPreverifier(f, c.PreverifyEvery)
	}
	return f
}

func (f *filesystem) String() string { return "clawfs" }

// speak says what the connection is, after INIT and before any other request.
func (f *filesystem) speak(c *connection) {
	f.server = c
	c.gone = f.cancel
	f.src.forbid(mountDevice(f.mountpoint))
}

// shutdown releases everything. No request runs any more.
func (f *filesystem) shutdown() {
	f.cancel()
	f.measure.wait()
	f.background.Wait()
	f.files.drain(func(h *handle) { h.release() })
	f.unchecked.drain(func(u *unchecked) { u.release() })
	f.dirs.drain(func(d *dirHandle) { d.close() })
	f.vault.end()
	f.src.close()
	f.audit.close()
	f.journal.close()
}

// panicked turns a bug into an error for the one request that met it.
func (f *filesystem) panicked(v any) fuse.Status {
	f.counters.panics.Add(1)
	stack := make([]byte, 16<<10)
	stack = stack[:runtime.Stack(stack, false)]
	f.log.Error("panic; what met it, a request or a measurement, has ended with an error", "panic", v, "stack", string(stack))
	// The clock is the caller's, and may be what panics.
	f.audit.add(Record{Time: time.Now(), Decision: Failed, Reason: ReasonPanic, Detail: fmt.Sprint(v)})
	return statusIO
}

// spared does something outside of requests. It returns false if that panicked.
func (f *filesystem) spared(do func()) (ended bool) {
	defer func() {
		if !ended {
			f.panicked(recover())
		}
	}()
	do()
	return true
}

// again does something that lasts as long as the mount, and begins anew a moment
// after a panic.
func (f *filesystem) again(do func()) {
	for !f.spared(do) {
		select {
		case <-f.ctx.Done():
			return
		case <-time.After(panicPause):
		}
	}
}

// panicPause keeps something that panics at once from filling the log.
const panicPause = time.Second

func (f *filesystem) shown(p string) string { return filepath.Join(f.mountpoint, p) }
