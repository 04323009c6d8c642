package fs

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel sends INTERRUPT for every signal, a profiler's timer as well as a
// SIGKILL. Answering EINTR to each makes clients with timers fail or loop for
// ever; answering to none leaves a killed client unkillable until the hash is
// done. So the caller's pending signals decide.

// signalPoll is how often a caller that was interrupted once is looked at again:
// the kernel sends one INTERRUPT for a request, and the deadly signal may be a
// later one.
const signalPoll = 50 * time.Millisecond

// outcome is how waiting ended.
type outcome int

const (
	finished outcome = iota
	interrupted
	tooSlow
	unmounted
)

// await waits for done on behalf of a caller. limit is the longest time to wait;
// zero is for ever.
func (f *filesystem) await(done <-chan struct{}, cancel <-chan struct{}, pid uint32, limit time.Duration) outcome {
	var late <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		late = t.C
	}
	var look <-chan time.Time
	looks := 0
	for {
		select {
		case <-done:
			return finished
		case <-f.ctx.Done():
			return unmounted
		case <-late:
			return tooSlow
		case <-cancel:
			cancel = nil
			t := time.NewTicker(signalPoll)
			defer t.Stop()
			look = t.C
		case <-look:
			looks++
		}
		if cancel != nil {
			continue
		}
		if stopping(pid, deadly) {
			return interrupted
		}
		// Every request is also interrupted when the connection was cut.
		if looks%20 == 19 {
			if _, mounted := mountDevice(f.mountpoint); !mounted {
				return unmounted
			}
		}
	}
}

// awaitRead waits for bytes on behalf of a reader, also of one that a detached
// mount has left. A page fault that is answered with an error is a SIGBUS, so
// only a SIGKILL ends it.
func (f *filesystem) awaitRead(done <-chan struct{}, cancel <-chan struct{}, pid uint32) outcome {
	var late, look <-chan time.Time
	if f.limit > 0 {
		t := time.NewTimer(f.limit)
		defer t.Stop()
		late = t.C
	}
	for {
		select {
		case <-done:
			return finished
		case <-late:
			return tooSlow
		case <-cancel:
			cancel = nil
			t := time.NewTicker(signalPoll)
			defer t.Stop()
			look = t.C
		case <-look:
		}
		if cancel == nil && stopping(pid, killed) {
			return interrupted
		}
	}
}

// stopping reports whether signals are pending for the thread that are enough to
// answer it. Unknown is no: pid is 0 if the caller lives in a PID namespace that
// is invisible from here.
func stopping(pid uint32, enough func(signals) bool) bool {
	if pid == 0 {
		return false
	}
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil {
		return false
	}
	s, known := signalsOf(status)
	return known && enough(s)
}

// signalSet has bit n-1 for signal n.
type signalSet uint64

func setOf(signals ...unix.Signal) (s signalSet) {
	for _, n := range signals {
		s |= 1 << (n - 1)
	}
	return s
}

var (
	// asksToStop: whoever sends one of these wants the caller gone, and if the
	// caller has a handler for it, EINTR is what lets the handler run.
	asksToStop = setOf(unix.SIGKILL, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	// harmless by default: signal(7).
	harmless = setOf(unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH, unix.SIGCONT,
		unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
)

// signals are those of a thread.
type signals struct {
	pending, blocked, ignored, caught signalSet
}

// signalsOf reads /proc/<tid>/status: proc_pid_status(5).
func signalsOf(status []byte) (s signals, known bool) {
	for line := range bytes.Lines(status) {
		key, value, _ := strings.Cut(string(line), ":")
		var into *signalSet
		switch key {
		case "SigPnd", "ShdPnd":
			into = &s.pending
		case "SigBlk":
			into = &s.blocked
		case "SigIgn":
			into = &s.ignored
		case "SigCgt":
			into = &s.caught
		default:
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return signals{}, false
		}
		*into |= signalSet(n)
	}
	return s, true
}

// deadly reports whether a signal is pending that ends the thread or asks it to
// end.
func deadly(s signals) bool {
	pending := s.pending &^ (s.blocked | s.ignored)
	return pending&asksToStop != 0 || pending&^(s.caught|harmless) != 0
}

func killed(s signals) bool { return s.pending&setOf(unix.SIGKILL) != 0 }

// requestLimit is how long one request may take. The kernel cuts the whole
// connection when a request takes longer than its limit (fs.fuse.*_request_timeout,
// Linux 6.15, seconds), so a request that waits is answered at half of that.
// Zero means no limit.
func requestLimit() time.Duration {
	var limit time.Duration
	for _, name := range []string{"max_request_timeout", "default_request_timeout"} {
		text, err := os.ReadFile("/proc/sys/fs/fuse/" + name)
		if err != nil {
			continue // an older kernel
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil || n <= 0 {
			continue
		}
		if d := time.Duration(n) * time.Second / 2; limit == 0 || d < limit {
			limit = d
		}
	}
	return limit
}
