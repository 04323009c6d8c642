package fs

import (
	"container/list"
	"context"
	"fmt"
	"os"
	"runtime"
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
	// hashNice keeps the hash threads from starving requests.
	hashNice = 10
)

// measurer hashes source files, each state of a file once however many openers
// wait for it. A measurement belongs to nobody: it goes on when its opener dies,
// and the next one finds it done or joins it.
type measurer struct {
	ctx      context.Context
	counters *counters
	workers  sync.WaitGroup

	mu      sync.Mutex // guards all below
	wake    *sync.Cond
	queue   []*flight
	closed  bool
	flights map[identity]*flight
	known   map[identity]*list.Element
	recent  *list.List // of *flight, the most recently used first
	units   int64      // of known
}

// flight is one measurement, under way or done.
type flight struct {
	id   identity
	file *os.File // its own descriptor
	done chan struct{}

	// Set before done is closed, and not changed after.
	measured hashpipe.Measurement
	err      error
	moved    bool      // the file's state is not that of the start
	young    bool      // a later write need not change the file's state
	ended    time.Time // of the measurement

	bytes   atomic.Int64
	granted atomic.Bool // some opener was allowed
}

// reusable reports whether a remembered measurement may answer another opener. A
// granted one always may: every read is checked against its tree. A refused one
// only if a change of the file since would show; else a mended file could stay
// refused.
func (fl *flight) reusable() bool {
	return !fl.young || fl.granted.Load() || time.Since(fl.ended) < unsettledFor
}

func newMeasurer(ctx context.Context, workers int, c *counters) *measurer {
	m := &measurer{
		ctx: ctx, counters: c,
		flights: make(map[identity]*flight),
		known:   make(map[identity]*list.Element),
		recent:  list.New(),
	}
	m.wake = sync.NewCond(&m.mu)
	context.AfterFunc(ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.closed = true
		m.wake.Broadcast()
	})
	for range workers {
		m.workers.Go(func() { m.work(func(*flight) bool { return true }) })
	}
	m.workers.Go(func() { m.work(func(fl *flight) bool { return fl.id.size <= smallFile }) })
	return m
}

// wait returns when no worker runs any more. The context must have ended.
func (m *measurer) wait() { m.workers.Wait() }

// start returns the measurement of a file in the state id: a remembered one,
// one under way, or a new one. file stays the caller's.
func (m *measurer) start(file *os.File, id identity) (*flight, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.known[id]; ok {
		if fl := e.Value.(*flight); fl.reusable() {
			m.recent.MoveToFront(e)
			return fl, nil
		}
		m.remove(e)
	}
	if fl, ok := m.flights[id]; ok {
		m.counters.joined.Add(1)
		return fl, nil
	}
	if m.closed {
		return nil, context.Canceled
	}
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating a descriptor: %w", err)
	}
	fl := &flight{id: id, file: os.NewFile(uintptr(fd), file.Name()), done: make(chan struct{})}
	m.flights[id] = fl
	m.queue = append(m.queue, fl)
	m.wake.Broadcast()
	return fl, nil
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

// work takes measurements that suit it until the context ends. Its thread is
// niced and locked, and therefore ends with it.
func (m *measurer) work(suits func(*flight) bool) {
	runtime.LockOSThread()
	// A thread that cannot be niced hashes all the same.
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), hashNice)
	for {
		fl := m.next(suits)
		if fl == nil {
			return
		}
		fl.measure(m.ctx)
		if fl.err == nil {
			m.counters.hashed.Add(1)
		}
		m.counters.hashedBytes.Add(fl.bytes.Load())
		m.finish(fl)
	}
}

// next returns nil when the context has ended; what is queued then is answered
// with the context's error.
func (m *measurer) next(suits func(*flight) bool) *flight {
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		for i, fl := range m.queue {
			if m.closed || suits(fl) {
				m.queue = append(m.queue[:i:i], m.queue[i+1:]...)
				return fl
			}
		}
		if m.closed {
			return nil
		}
		m.wake.Wait()
	}
}

// measure reads the whole file once. The size is that of the state asked for: a
// file that grows or shrinks meanwhile is an error.
func (fl *flight) measure(ctx context.Context) {
	defer fl.file.Close()
	_ = unix.Fadvise(int(fl.file.Fd()), 0, 0, unix.FADV_SEQUENTIAL) // advice
	began := time.Now()
	fl.measured, fl.err = hashpipe.MeasureFile(ctx, fl.file, fl.id.size, func(n int64) { fl.bytes.Add(n) })
	var st unix.Stat_t
	if err := unix.Fstat(int(fl.file.Fd()), &st); err != nil {
		fl.err = err
		return
	}
	fl.moved = identityOf(&st) != fl.id
	fl.young = fl.id.youngAt(began)
	fl.ended = time.Now()
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
		m.units += fl.measured.Tree().Units()
	}
	for m.recent.Len() > maxRemembered || m.units > maxRememberedUnits {
		m.remove(m.recent.Back())
	}
	m.mu.Unlock()
	close(fl.done)
}

// remove forgets one element. Callers hold m.mu.
func (m *measurer) remove(e *list.Element) {
	fl := m.recent.Remove(e).(*flight)
	delete(m.known, fl.id)
	m.units -= fl.measured.Tree().Units()
}
