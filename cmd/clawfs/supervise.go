package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

const (
	lookEvery = 100 * time.Millisecond
	// readyPatience is how long a mount process that starts may be silent. It says how
	// many records of the store it has, which may be millions.
	readyPatience = 30 * time.Second
	// addPatience is how long a client waits for an answer that the mount is live.
	addPatience  = 20 * time.Second
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = 10 * time.Second
	// steady is how long a mount process must live for its next death to count
	// as the first again.
	steady = time.Minute
)

// supervisor keeps every wished mount served: run/mounts/<id>.json is the wish,
// the lock beside it shows whether a process serves it, whoever started that.
// So a new daemon takes over the mounts of a dead one by looking, and a mount
// process never depends on the daemon's life.
type supervisor struct {
	state config.State
	log   *slog.Logger
	self  func(args ...string) (*exec.Cmd, error)

	readyPatience, addPatience time.Duration

	watchers sync.WaitGroup
	starting atomic.Int64  // mount processes that do not serve yet
	begun    chan struct{} // closed when run has begun

	// mu guards what follows.
	mu     sync.Mutex
	ctx    context.Context // set by run; ends the watchers
	mounts map[string]*watched
}

// watched is what the daemon knows of one mount; guarded by supervisor.mu.
type watched struct {
	record   mountRecord
	state    string
	pid      int
	holder   int // the process whose session the daemon has
	restarts int
	err      error
	report   *control.MountReport
	records  int64 // that a process which starts has of the store
}

// States of a mount.
const (
	mountStarting = "starting"
	mountLive     = "live"
	mountDead     = "dead"
)

func newSupervisor(s config.State, log *slog.Logger, self func(...string) (*exec.Cmd, error)) *supervisor {
	return &supervisor{
		state: s, log: log, self: self, readyPatience: readyPatience, addPatience: addPatience,
		mounts: make(map[string]*watched), begun: make(chan struct{}),
	}
}

// run watches what an earlier daemon left and whatever is added, until ctx
// ends. It leaves the mounts as they are.
func (s *supervisor) run(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	close(s.begun)
	said := ""
	for ctx.Err() == nil {
		// Foreground mounts write their records themselves, so look again. Whoever
		// cannot look now, for want of descriptors or memory, still answers others.
		records, bad, err := readRecords(s.state)
		if text := fmt.Sprint(err); text != said {
			said = text
			if err != nil {
				s.log.Error("the mount records cannot be read; those of before are watched", "error", err)
			}
		}
		for _, err := range bad {
			s.log.Error("a mount record cannot be read; the mount is not watched", "error", err)
		}
		for _, r := range records {
			s.adopt(ctx, r)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	s.watchers.Wait()
	return nil
}

func (s *supervisor) adopt(ctx context.Context, r mountRecord) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.mounts[r.ID]; known {
		return
	}
	s.log.Info("watching mount", "id", r.ID, "source", r.Source, "mountpoint", r.Mountpoint)
	s.mounts[r.ID] = &watched{record: r, state: mountStarting}
	s.watchers.Go(func() { s.watch(ctx, r.ID) })
}

// add starts a mount and returns when it serves. If it does not come up, the
// wish is forgotten and the error says why. If the daemon ends meanwhile, the
// mount is the next one's. A mount that takes long, because the store is large,
// is answered as one that starts, and the wish is kept whatever becomes of it.
func (s *supervisor) add(r mountRecord) (control.Mount, error) {
	s.awaitForgotten(r.ID)
	s.mu.Lock()
	life := s.ctx
	if w, known := s.mounts[r.ID]; known {
		defer s.mu.Unlock()
		return control.Mount{}, fmt.Errorf("%s is mounted already, from %s; next: clawfs umount %s", w.record.Mountpoint, w.record.Source, shellWord(r.Mountpoint))
	}
	if life == nil { // run has not begun yet, and the socket answers already
		s.mu.Unlock()
		select {
		case <-s.begun:
			return s.add(r)
		case <-time.After(s.addPatience):
			return control.Mount{}, errors.New("the daemon is still starting")
		}
	}
	if life.Err() != nil {
		s.mu.Unlock()
		return control.Mount{}, errDaemonEnds
	}
	// Holding the place keeps a second request, and adopt, away.
	s.mounts[r.ID] = &watched{record: r, state: mountStarting}
	s.mu.Unlock()

	err := clearStale(r.Mountpoint)
	if err == nil {
		if err = r.write(s.state); err == nil {
			started := make(chan error, 1)
			s.watchers.Go(func() { started <- s.start(life, r) })
			select {
			case err = <-started:
			case <-time.After(s.addPatience):
				s.watchers.Go(func() { s.watchStarting(life, r.ID, started) })
				return s.one(r.ID), nil
			}
		}
		if err != nil && life.Err() == nil {
			err = errors.Join(err, removeIfThere(s.state.Mount(r.ID)))
		}
	}
	if err != nil {
		s.forget(r.ID)
		return control.Mount{}, err
	}
	s.watchers.Go(func() { s.watch(life, r.ID) })
	s.look(r)
	return s.one(r.ID), nil
}

// watchStarting watches a mount whose process has not said yet what became of it.
func (s *supervisor) watchStarting(ctx context.Context, id string, started <-chan error) {
	err := <-started
	if _, gone := readRecord(s.state, id); err != nil && ctx.Err() == nil && !errors.Is(gone, fs.ErrNotExist) {
		s.note(id, func(w *watched) { w.err = err })
		s.log.Error("the mount did not come up", "id", id, "error", err)
	}
	s.watch(ctx, id)
}

// awaitForgotten waits for the watcher of a mount whose wish was taken back a
// moment ago, so that a mount can follow an unmount at once.
func (s *supervisor) awaitForgotten(id string) {
	for end := time.Now().Add(10 * lookEvery); time.Now().Before(end); time.Sleep(lookEvery / 5) {
		s.mu.Lock()
		_, known := s.mounts[id]
		s.mu.Unlock()
		if _, err := os.Lstat(s.state.Mount(id)); !known || !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
}

// watch brings the mount back whenever nobody serves it, until the wish is
// gone or ctx ends. The first death is mended at once; a mount that dies again
// and again is tried less and less often.
func (s *supervisor) watch(ctx context.Context, id string) {
	var backoff time.Duration
	var next, since time.Time // of the next attempt; of being served
	var held holding
	defer held.letGo()
	quick := 0 // successors in a row that died at once
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ; ctx.Err() == nil; wait(ctx, tick.C) {
		r, err := readRecord(s.state, id)
		if errors.Is(err, fs.ErrNotExist) {
			s.log.Info("mount is gone", "id", id)
			s.forget(id)
			return
		}
		if err == nil {
			var pid int
			if pid, err = s.look(r); pid != 0 {
				if since.IsZero() {
					since = time.Now()
				} else if time.Since(since) > steady {
					backoff = 0
				}
				s.see(ctx, &held, r, pid)
				continue
			}
		}
		if quick++; time.Since(since) > quickDeath {
			quick = 0
		}
		since = time.Time{}
		if err == nil && held.session != nil {
			if quick <= maxQuick {
				if err = s.resume(ctx, &held, r); err == nil {
					since = time.Now()
					continue
				}
				if _, gone := readRecord(s.state, id); errors.Is(gone, fs.ErrNotExist) {
					continue
				}
				s.log.Error("the mount cannot go on; what is open there fails, and it is made anew", "id", id, "error", err)
			} else {
				s.log.Error("successors of the mount process die at once; what is open there fails, and the mount is made anew", "id", id, "deaths", quick)
			}
			held.letGo()
			err = nil
		}
		if time.Now().Before(next) {
			continue
		}
		dead := err == nil // or nobody knows
		if dead {
			err = s.revive(ctx, r)
		}
		backoff = min(max(2*backoff, firstBackoff), lastBackoff)
		next = time.Now().Add(backoff)
		if err != nil && ctx.Err() == nil {
			s.note(id, func(w *watched) {
				w.err = err
				if dead {
					w.state, w.pid = mountDead, 0
				}
			})
			s.log.Error("mount is not served, or cannot be looked at", "id", id, "error", err, "next_try", backoff.String())
		}
	}
}

func wait(ctx context.Context, tick <-chan time.Time) {
	select {
	case <-ctx.Done():
	case <-tick:
	}
}

// look updates the state of a mount and returns the process that serves it, 0 if
// none does.
func (s *supervisor) look(r mountRecord) (pid int, err error) {
	pid, err = control.Holder(s.state.MountLock(r.ID))
	if err != nil || pid == 0 {
		return 0, err
	}
	m, mounted, err := mountedAt(r.Mountpoint)
	if err != nil {
		return 0, err
	}
	s.note(r.ID, func(w *watched) {
		w.record, w.pid = r, pid
		w.state = mountStarting
		if mounted && m.fstype == mountType {
			w.state, w.err = mountLive, nil
		}
	})
	return pid, nil
}

// resume starts a successor for a process that died, which goes on with its
// connection: nobody who has the mount open notices more than a pause.
func (s *supervisor) resume(ctx context.Context, h *holding, r mountRecord) error {
	s.log.Warn("mount process died; a successor goes on with what is open", "id", r.ID, "mountpoint", r.Mountpoint)
	s.note(r.ID, func(w *watched) { w.state, w.pid, w.records = mountStarting, 0, 0; w.restarts++ })
	if err := s.start(ctx, r, h.session.Device, h.session.Journal); err != nil {
		return err
	}
	pid, err := s.look(r)
	if err == nil && pid > 0 {
		h.holder = pid // the session is the same
		s.note(r.ID, func(w *watched) { w.holder = pid })
	}
	return err
}

// revive mounts again what a dead process left. A mount that runs in the
// foreground of somebody is theirs to bring back; its remains are cleared.
func (s *supervisor) revive(ctx context.Context, r mountRecord) error {
	if err := clearStale(r.Mountpoint); err != nil {
		return err
	}
	if r.Foreground {
		s.log.Warn("a mount process that ran in the foreground died; its mount is cleared", "mountpoint", r.Mountpoint)
		return removeIfThere(s.state.Mount(r.ID))
	}
	s.log.Warn("mount process died; starting another", "id", r.ID, "mountpoint", r.Mountpoint)
	s.note(r.ID, func(w *watched) { w.state, w.pid, w.records = mountStarting, 0, 0; w.restarts++ })
	return s.start(ctx, r)
}

// startReport is a line that a mount process sends to its parent: how far it is, and
// at last what became of it.
type startReport struct {
	Starting bool   `json:"starting,omitzero"` // not the last one
	Records  int64  `json:"records,omitzero"`  // of the store, that have come
	Error    string `json:"error,omitempty"`   // empty: the mount is live
}

// start runs a mount process and waits until it serves. The process is of its
// own session and keeps nothing of the daemon's; when ctx ends it is left to
// come up by itself. session, if any, is device and journal of a predecessor.
func (s *supervisor) start(ctx context.Context, r mountRecord, session ...*os.File) error {
	s.starting.Add(1)
	defer s.starting.Add(-1)
	log, err := openLog(s.state.MountLog(r.ID))
	if err != nil {
		return err
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	args := []string{"mount-process", r.ID}
	if len(session) > 0 {
		args = append(args, "--resume")
	}
	cmd, err := s.self(args...)
	if err != nil {
		in.Close()
		return err
	}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, append([]*os.File{in}, session...)
	err = cmd.Start()
	in.Close()
	if err != nil {
		return fmt.Errorf("starting the mount process: %w", err)
	}
	// Reaps the process whenever it ends; the lock tells the watcher.
	go cmd.Wait()
	stop := context.AfterFunc(ctx, func() { out.SetReadDeadline(time.Now()) })
	defer stop()
	lines := bufio.NewScanner(out)
	for {
		out.SetReadDeadline(time.Now().Add(s.readyPatience))
		if ctx.Err() != nil { // it may have ended before the deadline was set
			return errDaemonEnds
		}
		var report startReport
		said := lines.Scan() && json.Unmarshal(lines.Bytes(), &report) == nil
		switch {
		case ctx.Err() != nil:
			return errDaemonEnds
		case errors.Is(lines.Err(), os.ErrDeadlineExceeded):
			cmd.Process.Kill()
			return fmt.Errorf("the mount process does not get ready%s", logTail(log.Name(), before))
		case !said:
			return fmt.Errorf("the mount process ended before it was ready%s", logTail(log.Name(), before))
		case report.Error != "":
			return errors.New(report.Error)
		case !report.Starting:
			return nil
		}
		s.note(r.ID, func(w *watched) { w.records = report.Records })
	}
}

var errDaemonEnds = errors.New("the daemon ends while the mount process starts")

// settlePatience bounds how long the end of the daemon waits for mount processes
// that are just starting.
const settlePatience = 3 * time.Second

// settle waits until no mount process is starting, for a while.
func (s *supervisor) settle() {
	for end := time.Now().Add(settlePatience); s.starting.Load() > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *supervisor) report(id string, r control.MountReport) {
	s.note(id, func(w *watched) { w.report = &r })
}

// note changes what is known of a mount, if it is still known.
func (s *supervisor) note(id string, change func(*watched)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w, known := s.mounts[id]; known {
		change(w)
	}
}

func (s *supervisor) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mounts, id)
}

// clearStale takes a dead clawfs mount away from dir. A live mount of any kind
// is an error: it is somebody's.
func clearStale(dir string) error {
	for range 8 { // mounts can lie upon each other
		m, mounted, err := mountedAt(dir)
		if err != nil || !mounted {
			return err
		}
		if m.fstype != mountType {
			return fmt.Errorf("a file system of type %s is mounted at %s", m.fstype, dir)
		}
		dead, err := isDead(dir)
		if err != nil {
			return err
		}
		if !dead {
			return fmt.Errorf("another clawfs serves a mount at %s already; next: clawfs umount %s", dir, shellWord(dir))
		}
		if err := unmountOnce(dir, true); err != nil && err != unix.EINVAL {
			return fmt.Errorf("clearing the dead mount at %s: %w", dir, err)
		}
	}
	return fmt.Errorf("%s has more dead mounts upon each other than can be cleared", dir)
}

// isDead asks a mount that no process of ours serves. A dead one answers
// ENOTCONN at once; one that does not answer is somebody's, and hangs. It asks
// by statfs(2), because the kernel answers stat(2) of a dead mount from its
// cache for a second.
func isDead(dir string) (bool, error) {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN), nil
	case <-time.After(2 * time.Second):
		return false, fmt.Errorf("the mount at %s does not answer", dir)
	}
}
