package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/fs"
)

const (
	// snapshotPatience bounds how long nothing comes of a snapshot: a daemon that was
	// killed meanwhile comes back, and opens its store twice first.
	snapshotPatience = time.Minute
	reportEvery      = 2 * time.Second
	// mountMemory is how much memory, in bytes, a mount process takes before it collects
	// garbage as often as it can. The index of a million capabilities and a million
	// revocations is some 150 MiB; without a bound the heap would grow to twice that.
	mountMemory = 200 << 20
	// drainPatience is how long a mount process that was told to end waits for
	// readers after it detached the mount; then their files fail.
	drainPatience = 2 * time.Second
	// remindEvery is how often a mount in audit mode says so in its log.
	remindEvery = time.Hour
)

// mountProcess serves one mount. It has no database and no private key: of the
// state directory it reads the policy, for the public keys that it pins, and
// the settings. It must never touch a path below its own mount point.
type mountProcess struct {
	state  config.State
	record mountRecord
	log    *slog.Logger
	errors io.Writer // sentences for refusals; nil: none
	audit  *logFile

	from *fs.Session // of a process that died; nil: the mount is made

	lock *control.Lock
	seal string // one of config.Seals

	pins    capstore.Trust // what the view goes by
	oldKeys bool           // the policy names others, and they could not be taken over

	maxDaemonAge time.Duration // since the daemon was heard, for files to open; 0: no bound

	auditUntil time.Time // zero: enforcement
	reminded   time.Time // of audit mode, in the log

	view     *capstore.View
	rejected int // how many of its rejected records were told
	feed     *feed
	clock    *wallclock
	srv      *fs.Server
}

// run serves until the mount is gone or ctx ends; say is told how far the start is,
// and then, once, that the kernel has the mount. It returns nil only if somebody meant
// the mount to end.
func (p *mountProcess) run(ctx context.Context, say func(startReport)) error {
	unix.Umask(0o077)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := p.takeLock(ctx); err != nil {
		return err
	}
	defer p.releaseLock()
	policy, err := p.state.LoadPolicy()
	if err != nil {
		return err
	}
	settings, err := p.state.LoadSettings(os.Geteuid())
	if err != nil {
		return err
	}
	m, err := mountSettings(settings.Mount, p.record.MountOptions)
	if err != nil {
		return err
	}
	how, private, err := sealing(p.state, m, p.record.Source, p.record.Mountpoint)
	if errors.Is(err, errNoDirectory) {
		// Gone since the mount was made: files are served in tier blocks, and status
		// says why.
		private, err = m.PrivateDir, nil
	}
	if err != nil {
		return err
	}
	if p.clock, err = newWallclock(memory.Dir(p.state.Memory())); err != nil {
		return err
	}
	p.pins, p.seal = policy.Trust(), m.Seal
	p.auditUntil = p.record.AuditUntil
	p.watchAudit()                                 // what is over does not begin again
	if debug.SetMemoryLimit(-1) == math.MaxInt64 { // unless GOMEMLIMIT says otherwise
		debug.SetMemoryLimit(mountMemory)
	}
	if p.view, err = capstore.NewViewIn(p.state.Run(), p.pins); err != nil {
		return err
	}
	p.feed = newFeed(control.NewClient(p.state.Socket()), p.view, p.log)
	fed := make(chan struct{})
	go func() { defer close(fed); p.feed.run(ctx) }()
	defer func() { cancel(); <-fed }()
	remembered := make(chan struct{})
	go func() { defer close(remembered); p.clock.run(ctx, p.log) }()
	defer func() { cancel(); <-remembered }()
	if err := p.feed.await(ctx, snapshotPatience, p.starting(say)); err != nil {
		return err
	}
	if err := p.checkWish(); err != nil {
		return err
	}
	p.maxDaemonAge = time.Duration(m.MaxDaemonAge)
	var silence func() time.Duration
	if p.maxDaemonAge > 0 {
		silence = p.feed.silence
	}
	c := fs.Config{
		Source: p.record.Source, Mountpoint: p.record.Mountpoint, View: p.view, Log: p.log,
		Audit:       auditTrail(p.record.Mountpoint, p.record.AuditUntil, p.audit, p.errors),
		AllowOther:  m.AllowOther,
		HashWorkers: m.HashWorkers, Clock: p.clock.now,
		Seal: how, Private: private, PrivateBytes: int64(m.PrivateBytes),
		Bind: binds[m.Bind], Preverify: m.Preverify, AuditUntil: p.auditUntil,
		MaxSilence: p.maxDaemonAge, Silence: silence,
	}
	if p.from == nil {
		p.srv, err = fs.Mount(c)
	} else {
		p.srv, err = fs.Resume(c, *p.from)
		p.from.Close()
	}
	if err != nil {
		return err
	}
	if !p.record.Foreground { // there, nobody would start a successor
		// Before anybody can know that there is a session.
		l, err := listenSession(p.state.MountSession(p.record.ID))
		if err != nil {
			p.log.Error("nobody can take over if this process dies; then what is open fails, and the mount is made anew", "error", err)
		} else {
			handed := make(chan struct{})
			go func() { defer close(handed); p.handSessions(ctx, l) }()
			defer func() { cancel(); <-handed }()
		}
	}
	say(startReport{})
	p.log.Info("mount is live", "source", p.record.Source, "mountpoint", p.record.Mountpoint, "resumed", p.from != nil, "handles", p.srv.Stats().Resumed)
	return p.serve(ctx)
}

// starting tells how many records of the store there are, if more have come, and ends
// a start that nobody waits for any more.
func (p *mountProcess) starting(say func(startReport)) func(records int64) error {
	var told int64
	return func(records int64) error {
		if records != told {
			told = records
			say(startReport{Starting: true, Records: records})
		}
		return p.checkWish()
	}
}

// checkWish is an error if the mount was unmounted before it was there. One in the
// foreground has no record yet; its person ends the process.
func (p *mountProcess) checkWish() error {
	if p.record.Foreground {
		return nil
	}
	r, err := readRecord(p.state, p.record.ID)
	if errors.Is(err, os.ErrNotExist) || err == nil && !r.CreatedAt.Equal(p.record.CreatedAt) {
		return fmt.Errorf("somebody has taken back the mount at %s", p.record.Mountpoint)
	}
	return nil
}

var binds = map[string]fs.Bind{"name": fs.BindName, "release": fs.BindRelease}

// watchAudit tells of audit mode at its start, once an hour, and at its end. At
// the end it leaves the record without it, so that neither a restart nor a clock
// that is turned back brings it again.
func (p *mountProcess) watchAudit() {
	now := time.Now()
	switch {
	case p.auditUntil.IsZero():
	case !now.Before(p.auditUntil):
		p.log.Warn("AUDIT MODE is over; files that nobody granted are refused", "mountpoint", p.record.Mountpoint, "ended", p.auditUntil)
		p.auditUntil = time.Time{}
		if r, err := readRecord(p.state, p.record.ID); err == nil && r.CreatedAt.Equal(p.record.CreatedAt) {
			r.AuditUntil = time.Time{}
			if err := r.write(p.state); err != nil {
				p.log.Error("the mount's record still says audit mode", "error", err)
			}
		}
	case now.Sub(p.reminded) >= remindEvery:
		p.reminded = now
		var served int64
		if p.srv != nil {
			served = p.srv.Stats().AuditServed
		}
		p.log.Warn("AUDIT MODE: files that nobody granted open here", "mountpoint", p.record.Mountpoint, "until", p.auditUntil, "served", served,
			"next", fmt.Sprintf("clawfs umount %s, then clawfs mount %s %[1]s", shellWord(p.record.Mountpoint), shellWord(p.record.Source)))
	}
}

// takeLock waits a moment for a predecessor that is just ending.
func (p *mountProcess) takeLock(ctx context.Context) error {
	for end := time.Now().Add(2 * time.Second); ; {
		lock, err := control.TakeLock(p.state.MountLock(p.record.ID))
		var held *control.LockedError
		if errors.As(err, &held) && time.Now().Before(end) && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if errors.As(err, &held) {
			return fmt.Errorf("process %d serves a mount at %s already", held.PID, p.record.Mountpoint)
		}
		p.lock = lock
		return err
	}
}

func (p *mountProcess) releaseLock() {
	if p.lock != nil {
		p.lock.Release()
		p.lock = nil
	}
}

func (p *mountProcess) serve(ctx context.Context) error {
	gone := make(chan struct{})
	go func() { defer close(gone); p.srv.Wait() }()
	table := time.NewTicker(100 * time.Millisecond)
	defer table.Stop()
	report := time.NewTicker(reportEvery)
	defer report.Stop()
	reports := make(chan control.MountReport, 1)
	reported := make(chan struct{})
	go func() { defer close(reported); p.sendReports(ctx, reports) }()
	defer func() { close(reports); <-reported }()
	missing := 0 // looks in a row that found no mount
	for {
		select {
		case <-gone:
			return p.ended()
		case <-ctx.Done():
			return p.stop(gone)
		case <-table.C:
			if p.isMounted() {
				missing = 0
			} else if missing++; missing == 2 {
				// Not an unmount, which ends this process by now, but a lazy one:
				// readers go on, and the place is free again.
				p.forget()
				p.releaseLock()
				p.log.Info("detached; serving the files that are still open", "mountpoint", p.record.Mountpoint)
			}
			p.watchAudit()
		case <-p.feed.changed:
			p.offer(reports)
		case <-report.C:
			p.repin()
			p.logRejected()
			p.offer(reports)
		}
	}
}

// ended tells an unmount from an accident: after an unmount the mount table has
// no entry of ours. After an accident (an aborted connection) it has a dead one.
func (p *mountProcess) ended() error {
	if p.isMounted() {
		return fmt.Errorf("the kernel ended the connection of %s; the mount is dead", p.record.Mountpoint)
	}
	p.log.Info("unmounted", "mountpoint", p.record.Mountpoint)
	p.forget()
	return nil
}

// stop unmounts, or, if readers do not let go, detaches and gives them a last
// moment. It is bounded: whatever is being measured, the process ends.
func (p *mountProcess) stop(gone <-chan struct{}) error {
	p.log.Info("told to end; unmounting", "mountpoint", p.record.Mountpoint)
	unmounted := make(chan error, 1)
	go func() { unmounted <- p.srv.Unmount() }()
	var err error
	select {
	case err = <-unmounted:
	case <-time.After(3 * time.Second):
		err = errors.New("unmounting takes too long")
	}
	if err != nil {
		p.log.Warn("the mount is in use; detaching it", "error", err)
		if err := p.srv.Abandon(); err != nil {
			return err
		}
		select {
		case <-gone:
		case <-time.After(drainPatience):
		}
	}
	p.forget()
	return nil
}

func (p *mountProcess) isMounted() bool {
	m, mounted, err := mountedAt(p.record.Mountpoint)
	return err != nil || mounted && m.fstype == mountType
}

// forget takes the wish for this mount back, unless it is a later one's.
func (p *mountProcess) forget() {
	now, err := readRecord(p.state, p.record.ID)
	if err != nil || !now.CreatedAt.Equal(p.record.CreatedAt) {
		return
	}
	if err := os.Remove(p.state.Mount(p.record.ID)); err != nil {
		p.log.Error("removing the mount's record", "error", err)
	}
	_ = removeIfThere(p.state.MountSession(p.record.ID))
}

// logRejected tells of records that were asked for and did not verify, each once.
func (p *mountProcess) logRejected() {
	list := p.view.Rejected()
	for _, r := range list[min(p.rejected, len(list)):] {
		p.log.Error("a record that the daemon sent does not verify; it grants nothing, and what it would take back is refused", "record", r.Key, "reason", r.Reason)
	}
	p.rejected = len(list)
}

// offer replaces a report that waits for a slow daemon by a newer one.
func (p *mountProcess) offer(reports chan control.MountReport) {
	select {
	case <-reports:
	default:
	}
	reports <- p.report()
}

func (p *mountProcess) report() control.MountReport {
	s := p.srv.Stats()
	tier, why := p.srv.Tier()
	mode := modeEnforce
	if !p.auditUntil.IsZero() {
		mode = modeAudit
	}
	return control.MountReport{
		PID: os.Getpid(), Version: readVersion().Version, Protocol: control.Protocol(), MaxDaemonAgeSeconds: int64(p.maxDaemonAge / time.Second), Mode: mode, AuditUntil: p.auditUntil, PreverifyPending: s.PreverifyPending, Tier: tier, TierReason: why, Seal: p.seal, Private: s.Private, PrivateBytes: s.PrivateBytes, Unsealed: s.Unsealed,
		Generation: p.feed.reached.Load(), Stale: !p.feed.connected.Load(), OldKeys: p.oldKeys, At: time.Now().UTC(),
		Counters: map[string]int64{
			"granted": s.Granted, "refused": s.Refused, "errors": s.Errors, "hashed": s.Hashed, "hashedBytes": s.HashedBytes,
			"joined": s.Joined, "unitsChecked": s.UnitsChecked, "lateMismatches": s.LateMismatches, "revoked": s.Revoked, "held": s.Held,
			"quarantined": s.Quarantined, "panics": s.Panics, "auditDropped": s.AuditDropped, "auditLost": p.audit.lost.Load(), "nodes": s.Nodes,
			"handles": s.Handles, "verifying": s.Verifying, "auditServed": s.AuditServed, "preverified": s.Preverified, "resumed": s.Resumed,
			"goroutines": int64(runtime.NumGoroutine()), "heapLiveBytes": heapLive(),
		},
	}
}

// heapLive is what the last collection of garbage found in use, in bytes.
func heapLive() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64())
}

// sendReports passes reports to the daemon. One that gets lost is followed by
// the next.
func (p *mountProcess) sendReports(ctx context.Context, reports <-chan control.MountReport) {
	for r := range reports {
		ctx, cancel := context.WithTimeout(ctx, reportEvery)
		if err := p.feed.client.Report(ctx, p.record.ID, r); err != nil {
			p.log.Debug("report not delivered", "error", err)
		}
		cancel()
	}
}
