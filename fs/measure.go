package fs

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

const (
	// smallFile bounds in bytes what the extra worker takes, so that a tokenizer
	// does not wait behind shards.
	smallFile = 8 << 20
	// maxRemembered and maxRememberedUnits bound the measurements that are kept:
	// 32 bytes for each unit of 512 KiB, 64 MiB in all, the trees of 1 TiB.
	maxRemembered      = 1 << 16
	maxRememberedUnits = 2 << 20
	// settled is the age of a file's times from which on a later write is sure to
	// change them. Kernel time stamps tick in milliseconds, network file systems
	// in seconds.
	settled = 2 * time.Second
	// unsettledFor is how long the measurement of a younger file is reused, unless
	// it was granted: the openers of one moment share it.
	unsettledFor = time.Second
	// refusedFor is how long a measurement is reused of a content that no capability
	// wants: one wrong read of a disk or a network should not refuse for ever.
	refusedFor = 10 * time.Minute
	// treeFrom is the size in bytes from which a file is measured as a tree, on all
	// cores. A smaller one takes some 40 ms on one, and its refusal then needs no
	// second pass.
	treeFrom = 64 << 20
	// hashNice keeps the hash threads from starving requests.
	hashNice = 10
)

// measurer hashes source files, each state of a file once however many openers
// wait for it. A measurement belongs to nobody: it goes on when its opener dies,
// and the next one finds it done or joins it.
type measurer struct {
	ctx      context.Context
	counters *counters
	vault    *vault
	claims   func(size int64) claims    // of all capabilities, now
	wanted   func(hashpipe.Digest) bool // a content that may be opened, now or later
	spared   func(func()) bool          // does something, and reports whether it did not panic
	threads  int
	treeFrom int64        // bytes
	keepable func() int64 // bytes of a file that may fill the page cache before it is asked for
	workers  sync.WaitGroup

	mu      sync.Mutex // guards all below
	wake    *sync.Cond
	queue   []*task
	closed  bool
	flights map[identity]*flight
	known   map[identity]*list.Element
	recent  *list.List // of *flight, the most recently used first
	units   int64      // of known
	awaited int        // tasks that somebody waits for, queued or under way
}

// task is work for the measurer's workers, all at once or one alone.
type task struct {
	step   func(context.Context) (more bool, err error) // some 10 ms of it, or all
	end    func(err error)                              // called once, after the last step, with the first error
	shared bool                                         // steps may run at the same time
	size   int64                                        // bytes

	// Guarded by measurer.mu.
	idle    bool // nobody waits for it
	helpers int  // workers that are in a step
	ending  bool // no work is left to take
	err     error
}

// flight is one measurement, under way or done.
type flight struct {
	id   identity
	file *os.File // the source, its own descriptor
	task *task
	done chan struct{}

	work  *hashpipe.TreeWork // nil: measured as one stream
	began time.Time          // of the pass that counts

	onto  func(cold bool) *early // for whom the measurement was begun; nil: for nobody
	ahead bool                   // pre-verification began it
	room  bool                   // taken already for the private file

	ready    sync.Once // before the first byte is read; sets what follows
	draft    *draft    // the private file that is measured; nil: the source is
	early    *early    // nil: what is measured is not stored
	cold     bool      // the source was not in the page cache
	notReady error     // the source changed in that moment

	// Set before done is closed, and not changed after.
	proof
	err   error
	moved bool      // the file's state is not that of the start
	young bool      // a later write need not change the file's state
	ended time.Time // of the measurement

	private  *private // nil: served from the source
	unsealed string   // why there is none although the mount seals
	unwanted bool     // it was let go because no capability wanted the content
	crowded  bool     // there was no room for it

	bytes   atomic.Int64
	granted atomic.Bool           // some opener was allowed
	spoilt  atomic.Pointer[error] // why the draft does not hold what was measured
}

// proof is what was measured of a content. The zero proof proves nothing.
type proof struct {
	tree   *hashpipe.Tree
	sum    hashpipe.Sum    // zero if the tree alone was measured
	digest hashpipe.Digest // SHA-256: the sum, or what the capabilities bind to the tree
	git    *gitID
}

func (p proof) isZero() bool { return p.tree == nil }

// same reports whether two proofs are of one content.
func (p proof) same(q proof) bool { return !p.isZero() && p.tree.Is(q.tree.Claim()) }

// query asks about the content under a name.
func (p proof) query(path string, now time.Time, shown string) Query {
	return Query{Path: path, Size: p.tree.Size(), Sum: p.sum, Tree: p.tree, Git: p.git.is(baseName(path)), Now: now, Shown: shown}
}

// holds reports whether what the capabilities claim now still gives a content
// its digest. A sum needs nobody's word.
func (p proof) holds(claims claims) bool {
	if !p.sum.IsZero() {
		return true
	}
	d, known := claims.digest(p.tree)
	return known && d == p.digest
}

// reusable reports whether a remembered measurement may answer another opener. A
// granted one always may: every read is checked against its tree. Another only
// if a change of the file since would show; else a mended file could stay
// refused. And what no capability wants is measured again after a while.
func (m *measurer) reusable(fl *flight) bool {
	age := time.Since(fl.ended)
	wanted := m.wanted(fl.digest)
	if fl.unwanted && wanted || m.vault.lost(fl.private) || fl.crowded && m.vault.vacant(fl.id.size) {
		return false // it gets its private file now
	}
	return fl.granted.Load() || age < unsettledFor || !fl.young && (age < refusedFor || wanted)
}

func newMeasurer(ctx context.Context, workers int, how Verify, v *vault, c *counters, claims func(int64) claims, wanted func(hashpipe.Digest) bool, spared func(func()) bool) *measurer {
	m := &measurer{
		ctx: ctx, counters: c, vault: v, claims: claims, wanted: wanted, spared: spared, threads: workers, treeFrom: treeFrom,
		keepable: func() int64 { return availableMemory() / 2 },
		flights:  make(map[identity]*flight),
		known:    make(map[identity]*list.Element),
		recent:   list.New(),
	}
	if how != VerifyAuto {
		m.treeFrom = hashpipe.MaxSize + 1
	}
	m.wake = sync.NewCond(&m.mu)
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.closed = true
		m.wake.Broadcast()
	})
	for range workers {
		m.workers.Go(func() { m.work(func(t *task) bool { return !t.idle }) })
	}
	m.workers.Go(func() { m.work(func(t *task) bool { return !t.idle && t.size <= smallFile }) })
	return m
}

// wait returns when no worker runs any more. The context must have ended.
func (m *measurer) wait() { m.workers.Wait() }

// start returns the measurement of a file in the state id: a remembered one,
// one under way, or a new one. file stays the caller's. onto, unless nil, may
// give a new measurement of the source an early fill.
func (m *measurer) start(file *os.File, id identity, onto func(cold bool) *early) (*flight, error) {
	claims := m.claims(id.size)
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.recall(id, claims); e != nil {
		m.recent.MoveToFront(e)
		return e.Value.(*flight), nil
	}
	if fl, ok := m.flights[id]; ok {
		m.counters.joined.Add(1)
		m.promote(fl.task)
		return fl, nil
	}
	return m.launch(&flight{id: id, onto: onto}, file, claims)
}

// recall returns the remembered measurement of a state of a file, and forgets
// one that is of no more use. Callers hold m.mu.
func (m *measurer) recall(id identity, claims claims) *list.Element {
	e, ok := m.known[id]
	if !ok {
		return nil
	}
	if fl := e.Value.(*flight); m.reusable(fl) && fl.holds(claims) {
		return e
	}
	m.remove(e)
	return nil
}

// launch begins a measurement. Callers hold m.mu.
func (m *measurer) launch(fl *flight, file *os.File, claims claims) (*flight, error) {
	if m.closed {
		return nil, context.Canceled
	}
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating a descriptor: %w", err)
	}
	fl.file, fl.done, fl.began = os.NewFile(uintptr(fd), file.Name()), make(chan struct{}), time.Now()
	if fl.id.size >= m.treeFrom && !claims.none() {
		fl.work, err = hashpipe.NewTreeWork(fl.id.size, m.threads, func(n int64) { fl.bytes.Add(n) })
		if err != nil {
			fl.file.Close()
			return nil, err
		}
	}
	fl.task = &task{
		step: func(ctx context.Context) (bool, error) { return m.step(ctx, fl) },
		end:  func(err error) { m.conclude(fl, err) }, shared: fl.work != nil, size: fl.id.size, idle: fl.ahead,
	}
	m.flights[fl.id] = fl
	m.enqueue(fl.task)
	return fl, nil
}

// submit gives a task to the workers. It returns false if they are gone, and
// then the task never ends.
func (m *measurer) submit(t *task) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return false
	}
	m.enqueue(t)
	return true
}

// enqueue is submit for callers that hold m.mu and have seen that m is open.
func (m *measurer) enqueue(t *task) {
	m.queue = append(m.queue, t)
	if !t.idle {
		m.awaited++
	}
	m.wake.Broadcast()
}

// peek returns a finished measurement that is remembered, or nil.
func (m *measurer) peek(id identity) *flight {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.known[id]; ok {
		return e.Value.(*flight)
	}
	return nil
}

// drop forgets a measurement.
func (m *measurer) drop(id identity) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.known[id]; ok {
		m.remove(e)
	}
}

func (m *measurer) underWay() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.flights))
}

// work takes tasks that suit it until the context ends. Its thread is niced and
// locked, and therefore ends with it.
func (m *measurer) work(suits func(*task) bool) {
	runtime.LockOSThread()
	// A thread that cannot be niced hashes all the same.
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), hashNice)
	for {
		t := m.next(suits)
		if t == nil {
			return
		}
		more, err := false, errPanic
		m.spared(func() { more, err = t.step(m.ctx) })
		if m.leave(t, more, err) {
			t.end(t.err)
			m.ended(t)
		}
	}
}

// errPanic ends a task whose step panicked: a measurement has failed, and who waits
// for it is told.
var errPanic = errors.New("a panic while it was measured; see the log of the mount")

// next returns the task to work on: the first that nobody works on, else the
// first that can be shared. It returns nil when the context has ended and
// nothing is queued; what is queued then ends with the context's error.
func (m *measurer) next(suits func(*task) bool) *task {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		if t := m.choose(suits); t != nil {
			t.helpers++
			m.unqueue(t)
			if t.shared {
				m.queue = append(m.queue, t) // to the end: others get their turn
			}
			return t
		}
		if m.closed {
			return nil
		}
		m.wake.Wait()
	}
}

// choose returns nil if nothing suits. Callers hold m.mu.
func (m *measurer) choose(suits func(*task) bool) (t *task) {
	for _, c := range m.queue {
		if !m.closed && !suits(c) {
			continue
		}
		if c.helpers == 0 {
			return c
		}
		if t == nil {
			t = c
		}
	}
	return t
}

// leave takes a worker off a task. The last one off a task that has no more work
// gets to end it.
func (m *measurer) leave(t *task, more bool, err error) (last bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t.helpers--
	if t.err == nil {
		t.err = err
	}
	if !more {
		m.unqueue(t)
		t.ending = true
	}
	return t.ending && t.helpers == 0
}

// cancel lets nobody begin another step of a task, and ends it unless a worker
// will.
func (m *measurer) cancel(t *task) {
	m.mu.Lock()
	began := t.ending || t.helpers > 0
	t.ending = true
	m.unqueue(t)
	m.mu.Unlock()
	if !began {
		t.end(nil)
		m.ended(t)
	}
}

// unqueue takes a task out of the queue, if it is there. Callers hold m.mu.
func (m *measurer) unqueue(t *task) {
	if i := slices.Index(m.queue, t); i >= 0 {
		m.queue = slices.Delete(m.queue, i, i+1)
	}
}

// prepare decides what is measured: a private file, or the source itself.
func (m *measurer) prepare(fl *flight) {
	draft, err := m.vault.draft(fl.file, fl.id.size, fl.room)
	switch {
	case errors.Is(err, hashpipe.ErrChanged):
		fl.notReady = err
	case err != nil:
		m.vault.failed.Add(1)
		fl.unsealed = err.Error()
		fl.crowded = errors.Is(err, errNoRoom)
	}
	fl.draft = draft
	if draft != nil {
		return
	}
	fl.cold = uncached(fl.file, fl.id.size)
	if fl.work != nil && fl.onto != nil {
		fl.early = fl.onto(fl.cold)
	}
	fl.onto = nil
}

// input opens what is measured: for each worker anew, because the kernel reads
// ahead for each descriptor.
func (fl *flight) input() (io.ReaderAt, func()) {
	from := fl.file
	if fl.draft != nil && fl.draft.w == nil {
		from = fl.draft.r
	}
	done := func() {}
	if fd, err := reopen(int(from.Fd()), 0); err == nil {
		from = os.NewFile(uintptr(fd), from.Name())
		done = func() { from.Close() }
	}
	_ = unix.Fadvise(int(from.Fd()), 0, 0, unix.FADV_SEQUENTIAL) // advice
	switch {
	case fl.early != nil:
		return storing{fl.early, from}, done
	case fl.draft == nil:
		return from, done
	case fl.draft.w == nil:
		p := &populating{File: from, mapped: fl.draft.r, size: fl.id.size}
		return p, func() { p.wait(); done() }
	}
	c := &copying{src: from, dst: fl.draft.w, spoilt: &fl.spoilt, buf: copyBuffers.Get().(*[copyPiece]byte)}
	return c, func() { c.close(); done() }
}

// step does what one worker does before it looks around again: a run of a tree,
// or all of a stream.
func (m *measurer) step(ctx context.Context, fl *flight) (more bool, err error) {
	fl.ready.Do(func() { m.prepare(fl) })
	if fl.notReady != nil {
		return false, fl.notReady
	}
	in, done := fl.input()
	defer done()
	in = m.pace(fl, in)
	if fl.work == nil {
		return false, fl.stream(ctx, in)
	}
	return fl.work.Step(ctx, in)
}

// stream reads the whole file once. The size is that of the state asked for: a
// file that grows or shrinks meanwhile is an error.
func (fl *flight) stream(ctx context.Context, in io.ReaderAt) error {
	got, err := hashpipe.MeasureFile(ctx, in, fl.id.size, func(n int64) { fl.bytes.Add(n) })
	if err == nil {
		fl.proof = proof{tree: got.Tree(), sum: got.Sum(), digest: got.Sum().Claim(), git: new(gitID)}
	}
	return err
}

// conclude ends a measurement. A tree that no capability names, or that two name
// differently, is not used at all: the file is measured again as a stream, so
// that the refusal can say which SHA-256 was got, and what is decided then rests
// on that one pass alone.
func (m *measurer) conclude(fl *flight, err error) {
	defer fl.file.Close()
	if !m.spared(func() { m.settle(fl, err) }) {
		fl.err, fl.proof = errPanic, proof{}
		m.vault.forget(fl.private)
		fl.private = nil
	}
	m.finish(fl)
}

func (m *measurer) settle(fl *flight, err error) {
	fl.err = err
	claims := m.claims(fl.id.size)
	if fl.work != nil && fl.err == nil {
		fl.err = m.fold(fl, claims)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(fl.file.Fd()), &st); err != nil {
		fl.err = err
	} else {
		fl.moved = identityOf(&st) != fl.id
		fl.young = fl.id.youngAt(fl.began)
		fl.ended = time.Now()
	}
	m.keep(fl, claims)
	m.unload(fl)
	fl.draft, fl.early = nil, nil
	if fl.err == nil {
		m.counters.hashed.Add(1)
	}
	m.counters.hashedBytes.Add(fl.bytes.Load())
}

// fold makes a proof of the hashed units.
func (m *measurer) fold(fl *flight, claims claims) error {
	in := io.ReaderAt(fl.file)
	if fl.draft != nil && fl.spoilt.Load() == nil {
		in = fl.draft.r // whatever the source is now
	}
	tree, err := fl.work.Tree(in)
	if err != nil {
		return err
	}
	if fl.early != nil {
		fl.early.tree.Store(tree)
	}
	if d, known := claims.digest(tree); known {
		fl.proof = proof{tree: tree, digest: d, git: new(gitID)}
		m.counters.trees.Add(1)
		return nil
	}
	fl.began = time.Now()
	return fl.stream(m.ctx, m.pace(fl, in))
}

// keep seals the private file if its content may be opened.
func (m *measurer) keep(fl *flight, claims claims) {
	if fl.draft == nil {
		return
	}
	if err := fl.spoilt.Load(); err != nil {
		m.vault.failed.Add(1)
		m.vault.discard(fl.draft)
		fl.unsealed = (*err).Error()
		return
	}
	if fl.unwanted = !m.wanted(fl.digest); fl.unwanted || fl.err != nil || fl.moved {
		m.vault.discard(fl.draft)
		return
	}
	p, err := m.vault.seal(fl.draft, fl.proof, claims)
	if err != nil {
		m.vault.failed.Add(1)
		fl.unsealed = err.Error()
	}
	fl.private = p
}

// youngAt reports whether the file's times are so new that a write since then
// may not have changed them.
func (a identity) youngAt(t time.Time) bool {
	limit := t.Add(-settled)
	return time.Unix(a.mtime.Unix()).After(limit) || time.Unix(a.ctime.Unix()).After(limit)
}

// finish publishes a measurement, and keeps it for later openers of the same
// state of the file if it was that state throughout.
func (m *measurer) finish(fl *flight) {
	m.mu.Lock()
	delete(m.flights, fl.id)
	if fl.err == nil && !fl.moved {
		m.known[fl.id] = m.recent.PushFront(fl)
		m.units += fl.tree.Units()
		if fl.task.idle { // what nobody has asked for goes first
			m.recent.MoveToBack(m.known[fl.id])
			m.vault.demote(fl.private)
		}
	}
	for m.recent.Len() > maxRemembered || m.units > maxRememberedUnits {
		m.remove(m.recent.Back())
	}
	m.mu.Unlock()
	close(fl.done)
}

// sweep forgets the sealed contents that may not be opened any more, and returns
// them.
func (m *measurer) sweep() []*flight {
	gone := slices.DeleteFunc(m.sealed(), func(fl *flight) bool { return m.wanted(fl.digest) })
	for _, fl := range gone {
		m.drop(fl.id)
	}
	return gone
}

func (m *measurer) sealed() []*flight {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*flight
	for e := m.recent.Front(); e != nil; e = e.Next() {
		if fl := e.Value.(*flight); fl.private != nil {
			out = append(out, fl)
		}
	}
	return out
}

// remove forgets one element. Callers hold m.mu.
func (m *measurer) remove(e *list.Element) {
	fl := m.recent.Remove(e).(*flight)
	m.vault.forget(fl.private)
	delete(m.known, fl.id)
	m.units -= fl.tree.Units()
}
