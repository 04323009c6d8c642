package fs

import (
	"errors"
	"path"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

const (
	// walkEvery is how often the source is walked unless Config.PreverifyEvery says
	// otherwise. A walk finds what no event has told of: changes by other hosts, in
	// directories without a watch, and what was lost.
	walkEvery = 10 * time.Minute
	// lookEvery is how soon new capabilities are noticed.
	lookEvery = 100 * time.Millisecond
	// maxPending bounds the files that wait, and maxNewDirs the directories. A walk
	// waits for room; what events tell beyond that is left to the next walk.
	maxPending = 1024
	maxNewDirs = 1024
	// maxDepth bounds a walk, which holds one descriptor and 32 KiB for each level.
	// Files below are measured when they are opened.
	maxDepth = 64
)

// preverifier measures files before somebody opens them, if a capability that can
// still allow something is of their size. It fills the measurer's memory, and
// decides nothing.
//
// What it began rests, within one buffer, while anybody waits for a measurement
// or a fill: it has workers of its own, which take nothing else. A flight of it
// that an opener joins is a flight like any other from then on.
//
// What it reads stays in the page cache, so that an open finds it there, unless
// the file is too large for that.
//
// BUG: many files that are not too large one by one may push out what others had
// in the page cache.
type preverifier struct {
	fs      *filesystem
	every   time.Duration // from one walk of the whole source to the next
	watches *watcher
	results chan preverified
	tick    *time.Ticker
	ready   chan struct{} // closed: there is something else to do

	// Of the goroutine that runs.
	walkAt     time.Time // the next walk of the whole source
	took       time.Duration
	generation uint64              // of the view
	granted    int                 // capabilities in it
	dirs       map[string]struct{} // new ones, to be walked
	running    int                 // flights
	alone      *flight             // one that keeps all workers busy

	mu    sync.Mutex // guards files, which only that goroutine changes
	files map[string]*pending
}

// pending is a file that is to be measured, is being measured, or was a moment
// ago.
type pending struct {
	wanted  bool
	running bool
	due     time.Time     // not before; if it is not wanted by then, it is forgotten
	pause   time.Duration // the next one: it doubles as long as somebody keeps writing
}

type preverified struct {
	name   string
	flight *flight
}

func newPreverifier(f *filesystem, every time.Duration) *preverifier {
	if every <= 0 {
		every = walkEvery
	}
	p := &preverifier{
		fs: f, every: every, watches: newWatcher(f.log),
		results: make(chan preverified), tick: time.NewTicker(lookEvery), ready: make(chan struct{}),
		dirs: make(map[string]struct{}), files: make(map[string]*pending),
	}
	close(p.ready)
	return p
}

// begin starts it. It ends with the mount.
func (p *preverifier) begin() {
	m := p.fs.measure
	for range m.threads {
		m.workers.Go(func() { m.work(func(t *task) bool { return t.idle && m.awaited == 0 }) })
	}
	if p.watches.open() {
		p.fs.background.Go(func() { p.fs.spared(func() { p.watches.read(p.fs.ctx) }) })
	}
	p.fs.background.Go(func() {
		if !p.fs.spared(p.run) {
			p.fs.log.Error("pre-verification has ended; files are measured when they are opened")
		}
	})
}

func (p *preverifier) run() {
	runtime.LockOSThread() // for ever: the thread ends, and its priority with it
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), hashNice)
	diskPriority(true)
	defer p.tick.Stop()
	defer p.watches.close()
	for p.turn(nil) {
		if began := time.Now(); !began.Before(p.walkAt) {
			p.walkAt = began.Add(p.every)
			p.watches.round++
			if p.walk("", 0) {
				p.watches.sweep()
			}
			p.took = time.Since(began)
		}
		for dir := range p.dirs {
			delete(p.dirs, dir)
			p.walk(dir, strings.Count(dir, "/")+1)
		}
	}
}

// turn waits until something happens and deals with it, or until ready. It
// returns false when the mount ends.
func (p *preverifier) turn(ready <-chan struct{}) bool {
	select {
	case <-p.fs.ctx.Done():
		return false
	case e := <-p.watches.events:
		p.heard(e)
	case r := <-p.results:
		p.finished(r)
		p.start()
	case <-p.tick.C:
		p.look()
		p.start()
	case <-ready:
	}
	return p.fs.ctx.Err() == nil
}

// walkBy brings the next walk of the whole source forward.
func (p *preverifier) walkBy(t time.Time) {
	if t.Before(p.walkAt) {
		p.walkAt = t
	}
}

// look walks the source if there are new capabilities, but not all the time.
func (p *preverifier) look() {
	generation := p.fs.view.Generation()
	if generation == p.generation {
		return
	}
	p.generation = generation
	if n, _ := p.fs.view.Count(); n != p.granted {
		p.granted = n
		p.walkBy(time.Now().Add(p.took))
	}
}

// heard deals with an event. Its path is a hint: what it leads to is looked at
// anew.
func (p *preverifier) heard(e event) {
	if e.mask&unix.IN_Q_OVERFLOW != 0 {
		p.walkBy(time.Now())
		return
	}
	name, ok := p.watches.name(e)
	switch {
	case !ok:
	case e.mask&unix.IN_ISDIR != 0:
		if len(p.dirs) >= maxNewDirs {
			p.walkBy(time.Now())
			return
		}
		p.dirs[name] = struct{}{}
	default:
		st, err := p.fs.src.stat(name)
		if err == nil && p.eligible(name, identityOf(&st)) && !p.want(name) {
			p.walkBy(time.Now().Add(settled))
		}
	}
}

// walk looks at everything in a directory, and watches it before, so that nothing
// is missed between. It returns false when the mount ends.
func (p *preverifier) walk(dir string, depth int) bool {
	fd, _, err := p.fs.src.openDir(dir)
	if err != nil {
		return true // gone, or not for us; who opens something there is told
	}
	d := &dirHandle{path: dir, fd: fd}
	defer d.close()
	p.watches.add(dir, fd)
	if err := d.seek(0); err != nil {
		return true
	}
	for p.turn(p.ready) {
		e, size, err := d.peek()
		if err != nil || size == 0 {
			return true
		}
		d.rest = d.rest[size:]
		if e.Name != "." && e.Name != ".." && e.Mode != unix.S_IFLNK && !p.visit(d, e, depth) {
			return false
		}
	}
	return false
}

// visit looks at one entry of a directory. It returns false when the mount ends.
func (p *preverifier) visit(d *dirHandle, e fuse.DirEntry, depth int) bool {
	// Without synchronisation no request goes to the file system, which may be our
	// own mount.
	var x unix.Statx_t
	err := unix.Statx(d.fd, e.Name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &x)
	if err != nil || p.fs.src.own(&unix.Stat_t{Dev: unix.Mkdev(x.Dev_major, x.Dev_minor)}) {
		return true
	}
	name := path.Join(d.path, e.Name)
	switch x.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return depth >= maxDepth || p.walk(name, depth+1)
	case unix.S_IFREG:
		var st unix.Stat_t
		if err := unix.Fstatat(d.fd, e.Name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || !p.eligible(name, identityOf(&st)) {
			return true
		}
		for !p.want(name) {
			if !p.turn(nil) {
				return false
			}
		}
	}
	return true
}

// eligible reports whether a file is to be measured: it could be allowed, and has
// not been measured in this state.
func (p *preverifier) eligible(name string, id identity) bool {
	f := p.fs
	if id.kind != unix.S_IFREG || !f.claims(id.size).any(f.wanted) {
		return false
	}
	if _, hopeless := f.hopeless(name, id.size); hopeless {
		return false
	}
	if _, yes := f.quarantine.has(id); yes {
		return false
	}
	return !f.measure.measured(id)
}

// want notes a file. It returns false if there is no room.
func (p *preverifier) want(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.files[name]; f != nil {
		f.wanted = true
		return true
	}
	if len(p.files) >= maxPending && !p.forgetOne() {
		return false
	}
	p.files[name] = &pending{wanted: true, due: time.Now()}
	return true
}

// forgetOne makes room by one file that is done. The caller holds p.mu.
func (p *preverifier) forgetOne() bool {
	for name, f := range p.files {
		if !f.wanted && !f.running {
			delete(p.files, name)
			return true
		}
	}
	return false
}

// next returns the file that has been due for longest, or nil, and forgets those
// that are done.
func (p *preverifier) next(now time.Time) (name string, next *pending) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n, f := range p.files {
		switch {
		case f.running || now.Before(f.due):
		case !f.wanted:
			delete(p.files, n)
		case next == nil || f.due.Before(next.due):
			name, next = n, f
		}
	}
	return name, next
}

// start begins what is due: small files on all cores, a large one alone, because
// all cores share it.
func (p *preverifier) start() {
	for p.alone == nil && p.running < p.fs.measure.threads {
		name, f := p.next(time.Now())
		if f == nil {
			return
		}
		p.try(name, f)
	}
}

// try begins to measure a file, unless it is too young: until its times have
// settled its measurement would be of no use to a later opener, and its writer
// may not be done.
func (p *preverifier) try(name string, f *pending) {
	st, err := p.fs.src.stat(name)
	id := identityOf(&st)
	if err != nil || !p.eligible(name, id) {
		p.forget(name)
		return
	}
	if id.youngAt(time.Now()) {
		p.postpone(name, f, id.settles())
		return
	}
	file, st, err := p.fs.src.open(name)
	if err != nil || file == nil {
		p.forget(name)
		return
	}
	defer file.Close()
	if identityOf(&st) != id {
		p.postpone(name, f, time.Now().Add(settled))
		return
	}
	fl := p.fs.measure.ahead(file, id)
	if fl == nil {
		p.forget(name)
		return
	}
	p.mu.Lock()
	f.wanted, f.running = false, true
	p.mu.Unlock()
	if p.running++; fl.work != nil {
		p.alone = fl
	}
	p.fs.background.Go(func() {
		<-fl.done
		select {
		case p.results <- preverified{name, fl}:
		case <-p.fs.ctx.Done():
		}
	})
}

// finished takes a flight off. Who changed a file while it was measured may do so
// again, and so may who changed it just before.
func (p *preverifier) finished(r preverified) {
	p.running--
	if p.alone == r.flight {
		p.alone = nil
	}
	if r.flight.err == nil {
		p.fs.counters.preverified.Add(1)
	}
	f := p.files[r.name]
	p.mu.Lock()
	f.running = false
	if r.flight.moved || errors.Is(r.flight.err, hashpipe.ErrChanged) {
		f.wanted = true
	}
	p.mu.Unlock()
	if !f.wanted && f.pause == 0 {
		p.forget(r.name)
		return
	}
	p.postpone(r.name, f, time.Now().Add(settled))
}

// postpone lets a file wait until then, or for its pause if that is longer. What
// would wait for the next walk is left to it.
func (p *preverifier) postpone(name string, f *pending, then time.Time) {
	now := time.Now()
	if t := now.Add(f.pause); t.After(then) {
		then = t
	}
	if f.pause > 0 && then.Sub(now) >= p.every || then.Sub(now) > max(p.every, 2*settled) {
		p.forget(name)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f.due, f.pause = then, max(2*f.pause, settled)
}

func (p *preverifier) forget(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.files, name)
}

// count returns how many files are to be measured; has, whether one is.
func (p *preverifier) count() (n int64) {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.files {
		if f.wanted || f.running {
			n++
		}
	}
	return n
}

func (p *preverifier) has(name string) bool {
	if p == nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.files[name]
	return f != nil && (f.wanted || f.running)
}

// settles is the first time at which a state is not young.
func (a identity) settles() time.Time {
	m, c := time.Unix(a.mtime.Unix()), time.Unix(a.ctime.Unix())
	if m.Before(c) {
		m = c
	}
	return m.Add(settled)
}
