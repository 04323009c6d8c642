package fs

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Decision is how a request ended.
type Decision string

// Granted opens, Refused denies by rule, Failed denies because something broke:
// a late mismatch, an unreadable source, a panic. Cut takes back what was open,
// Held says that what was open cannot be taken back: the kernel serves it. Audited
// opens are served in audit mode, unchecked, with the reason for which enforcement
// refuses them.
const (
	Granted Decision = "granted"
	Refused Decision = "refused"
	Failed  Decision = "failed"
	Cut     Decision = "cut"
	Held    Decision = "held"
	Audited Decision = "audited"
)

// Record is one line of the audit trail.
type Record struct {
	Time     time.Time
	Path     string // relative to the mount's root
	PID      uint32 // of the calling thread; 0 if it lives in another PID namespace
	UID, GID uint32
	Comm     string // best effort: the process may be gone
	Exe      string // best effort
	Cgroup   string // best effort; empty if it is the root's

	Decision   Decision
	Reason     Reason
	Detail     string
	Next       string
	Digest     string // hex SHA-256 as measured, or as a capability binds it to the tree that was; empty if nothing was
	Capability string // hex id; empty if there is none
	Model      string // empty if there is no capability
	Tier       string // empty unless it is or was granted
}

const (
	// auditRing bounds the records that wait for a slow Audit.
	auditRing = 4096
	// auditEvery is how long records wait for others, so that an open does not pay
	// for waking somebody.
	auditEvery = 10 * time.Millisecond
)

// auditor hands records to Config.Audit on a goroutine of its own.
type auditor struct {
	out     func(Record)
	dropped atomic.Int64
	some    chan struct{} // a token: there are records
	many    chan struct{} // a token: there are so many that they should not wait
	end     chan struct{} // closed by close
	done    chan struct{}

	mu     sync.Mutex // guards what follows
	ring   []Record
	handed int // records that left the ring, and Audit has not taken
}

func newAuditor(out func(Record)) *auditor {
	a := &auditor{out: out, some: make(chan struct{}, 1), many: make(chan struct{}, 1), end: make(chan struct{}), done: make(chan struct{})}
	go a.run()
	return a
}

// add never blocks. The caller of a refusal is looked up at once, because it
// is likely to exit; that of a grant later, because an open should be fast.
func (a *auditor) add(r Record) {
	if a.out == nil {
		return
	}
	if r.Decision != Granted {
		r.identify()
	}
	a.mu.Lock()
	n := len(a.ring)
	room := n+a.handed < auditRing
	if room {
		a.ring = append(a.ring, r)
	}
	a.mu.Unlock()
	switch {
	case !room:
		a.dropped.Add(1)
	case n == 0:
		token(a.some)
	case n == auditRing/2:
		token(a.many)
	}
}

func token(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (a *auditor) run() {
	defer close(a.done)
	for {
		select {
		case <-a.some:
			select {
			case <-time.After(auditEvery):
			case <-a.many:
			case <-a.end:
			}
			a.hand()
		case <-a.end:
			a.hand()
			return
		}
	}
}

// hand hands over what waits. Callers of one moment with one pid are one.
func (a *auditor) hand() {
	a.mu.Lock()
	batch := a.ring
	a.ring, a.handed = nil, len(batch)
	a.mu.Unlock()
	known := make(map[uint32]Record)
	for _, r := range batch {
		if k, ok := known[r.PID]; ok && r.Comm == "" {
			r.Comm, r.Exe, r.Cgroup = k.Comm, k.Exe, k.Cgroup
		} else if r.Comm == "" {
			r.identify()
			known[r.PID] = r
		}
		a.give(r)
		a.mu.Lock()
		a.handed--
		a.mu.Unlock()
	}
}

// give hands over one record. One that the caller's function panics at is lost.
func (a *auditor) give(r Record) {
	defer func() {
		if recover() != nil {
			a.dropped.Add(1)
		}
	}()
	a.out(r)
}

// close hands over what is left. No add may follow.
func (a *auditor) close() {
	close(a.end)
	<-a.done
}

// identify asks /proc who the caller is. It reads nothing that can block on the
// caller's memory.
func (r *Record) identify() {
	if r.PID == 0 {
		return
	}
	dir := filepath.Join("/proc", strconv.FormatUint(uint64(r.PID), 10))
	if comm, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil {
		r.Comm = strings.TrimSuffix(string(comm), "\n")
	}
	if exe, err := os.Readlink(filepath.Join(dir, "exe")); err == nil {
		r.Exe = exe
	}
	if f, err := os.Open(filepath.Join(dir, "cgroup")); err == nil {
		text, _ := io.ReadAll(io.LimitReader(f, maxCgroup)) // what was read counts
		f.Close()
		r.Cgroup = cgroupOf(string(text))
	}
}

// maxCgroup bounds what is read of /proc/PID/cgroup, in bytes.
const maxCgroup = 16 << 10

// cgroupOf reads /proc/PID/cgroup: cgroups(7). The path of version 2 counts; where
// that says no more than "/", as in a container or beside version 1, one of the
// hierarchies that containers and service managers use.
func cgroupOf(text string) string {
	paths := make(map[string]string) // by controllers; "" is version 2
	for line := range strings.Lines(text) {
		// 4:memory:/kubepods/pod1 or 0::/system.slice/nginx.service
		line, whole := strings.CutSuffix(line, "\n")
		f := strings.SplitN(line, ":", 3)
		if whole && len(f) == 3 && strings.HasPrefix(f[2], "/") {
			paths[f[1]] = f[2]
		}
	}
	for _, controllers := range []string{"", "name=systemd", "pids", "memory"} {
		if p := paths[controllers]; len(p) > 1 {
			return p
		}
	}
	return ""
}
