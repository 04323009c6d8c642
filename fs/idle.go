package fs

import (
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// maxFolio is the size in bytes of the largest piece of a file that the kernel
// keeps or drops in the page cache.
const maxFolio = 2 << 20

// ahead begins a measurement that nobody waits for. It returns nil if there is
// nothing to begin, or if something that is kept would have to go for it.
func (m *measurer) ahead(file *os.File, id identity) *flight {
	claims := m.claims(id.size)
	units := (id.size + hashpipe.UnitSize - 1) / hashpipe.UnitSize
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done(id, claims) {
		return nil
	}
	if m.recent.Len()+len(m.flights) >= maxRemembered || m.units+units > maxRememberedUnits {
		return nil
	}
	room, ok := m.vault.spare(id.size)
	if !ok {
		return nil
	}
	fl, err := m.launch(&flight{id: id, ahead: true, room: room}, file, claims)
	if err != nil {
		if room {
			m.vault.giveBack(id.size)
		}
		return nil
	}
	return fl
}

// measured reports whether a state of a file is measured or being measured.
func (m *measurer) measured(id identity) bool {
	claims := m.claims(id.size)
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.done(id, claims)
}

// done reports whether a state of a file is measured or being measured. Callers
// hold m.mu.
func (m *measurer) done(id identity, claims claims) bool {
	if e := m.known[id]; e != nil {
		// One wrong read must not refuse for ever, but it is for who opens a file that
		// it is read again: else each walk would read all that nobody wants.
		if fl := e.Value.(*flight); !fl.young && !m.wanted(fl.digest) && fl.holds(claims) {
			return true
		}
	}
	return m.flights[id] != nil || m.recall(id, claims) != nil
}

// progress returns how far a measurement is, in percent.
func (m *measurer) progress(id identity) (percent int64, underWay bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	fl := m.flights[id]
	if fl == nil {
		return 0, false
	}
	// A second pass counts its bytes too.
	return min(fl.bytes.Load()*100/max(id.size, 1), 99), true
}

// promote makes somebody wait for a task. Callers hold m.mu.
func (m *measurer) promote(t *task) {
	if t.idle {
		t.idle = false
		m.awaited++
		m.wake.Broadcast()
	}
}

// ended lets idle tasks go on after the last one that somebody waited for.
func (m *measurer) ended(t *task) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.idle {
		return
	}
	if m.awaited--; m.awaited == 0 {
		m.wake.Broadcast()
	}
}

// rest holds an idle task up while others are waited for. It returns false when
// somebody waits for this one.
func (m *measurer) rest(t *task) (idle bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for t.idle && m.awaited > 0 && !m.closed {
		m.wake.Wait()
	}
	return t.idle
}

// paced reads for a flight of pre-verification.
type paced struct {
	io.ReaderAt
	m      *measurer
	flight *flight
	idle   bool
	drop   bool // the pages of the source, behind what is read
}

// passing reports whether the page cache has no room for the source of a flight
// of pre-verification.
func (m *measurer) passing(fl *flight) bool {
	return fl.ahead && fl.cold && fl.id.size > m.keepable()
}

// unload drops what the kernel read ahead of one worker, behind another. What the
// disk has not delivered by now cannot be dropped, and is as much as the kernel's
// read-ahead: it is asked for again until it is gone, for a while.
func (m *measurer) unload(fl *flight) {
	length, drop := int64(0), false // 0: the whole file
	if e := fl.early; e != nil && e.drop {
		length, drop = e.limit, true
	}
	if m.passing(fl) {
		length, drop = 0, true
	}
	if !drop {
		return
	}
	fd, err := unix.FcntlInt(fl.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return // it is advice
	}
	f := os.NewFile(uintptr(fd), fl.file.Name())
	if length == 0 {
		length = fl.id.size
	}
	if unload(f, length) {
		f.Close()
		return
	}
	go func() {
		defer f.Close()
		for range unloadTries {
			select {
			case <-m.ctx.Done():
				return
			case <-time.After(unloadEvery):
			}
			if unload(f, length) {
				return
			}
		}
	}()
}

const (
	unloadEvery = 100 * time.Millisecond
	unloadTries = 20
)

// unload reports whether nothing of the first length bytes is in the page cache.
// A kernel before 6.5 does not say, and is believed.
func unload(f *os.File, length int64) bool {
	_ = unix.Fadvise(int(f.Fd()), 0, length, unix.FADV_DONTNEED) // advice
	n, err := cachedBytes(f, length)
	return n == 0 || err != nil
}

// pace is called on the thread that will read.
func (m *measurer) pace(fl *flight, in io.ReaderAt) io.ReaderAt {
	if !fl.ahead {
		return in
	}
	p := &paced{in, m, fl, m.rest(fl.task), m.passing(fl)}
	diskPriority(p.idle)
	return p
}

func (p *paced) ReadAt(b []byte, off int64) (int, error) {
	if p.idle && !p.m.rest(p.flight.task) {
		p.idle = false
		diskPriority(false)
	}
	n, err := p.ReaderAt.ReadAt(b, off)
	if p.drop && n > 0 {
		// Advice. A folio goes only if all of it is named, and may be larger than b.
		from := max(off-maxFolio, 0)
		_ = unix.Fadvise(int(p.flight.file.Fd()), from, off+int64(n)-from, unix.FADV_DONTNEED)
	}
	return n, err
}

// diskPriority says whether this thread gets the disk only when nobody else wants
// it, as far as the disk's scheduler has such a thing (linux/ioprio.h).
func diskPriority(idle bool) {
	const whoProcess, classIdle = 1, 3 << 13
	class := 0
	if idle {
		class = classIdle
	}
	// Without it files are measured all the same.
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, uintptr(class))
}
