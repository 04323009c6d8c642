package soak

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// seat is a content at one mount, and what readers saw of it there.
type seat struct {
	key   int64
	path  string
	at    *mountpoint
	life  *life // nil: a directory in which nothing is approved
	given content

	mu      sync.Mutex // guards what follows
	events  []event
	readers sync.WaitGroup // those who may still read it
}

// reader is a reader process, started again whenever it is killed.
type reader struct {
	run *soak

	mu      sync.Mutex // guards what follows
	cmd     *exec.Cmd
	in      *json.Encoder
	stdin   io.Closer
	seats   map[int64]*seat
	leaving map[int64]*seat // dropped, and the reader has not confirmed it
	heard   time.Time
	stopped bool
	killed  bool
}

func newReader(s *soak) (*reader, error) {
	r := &reader{run: s, seats: map[int64]*seat{}, leaving: map[int64]*seat{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r, r.start()
}

// start runs the process; r.mu is held.
func (r *reader) start() error {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), readerVariable+"="+r.run.pause.String(), "GORACE=atexit_sleep_ms=0 log_path="+filepath.Join(r.run.dir, "race"))
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	r.cmd, r.in, r.stdin, r.heard, r.killed = cmd, json.NewEncoder(in), in, time.Now(), false
	for _, s := range r.seats {
		r.tell("read", s)
	}
	r.run.parts.Go(func() {
		dec := json.NewDecoder(out)
		for {
			var e event
			if err := dec.Decode(&e); err != nil {
				break
			}
			r.hear(e)
		}
		r.ended(cmd, cmd.Wait())
	})
	return nil
}

// tell sends an order; r.mu is held. A reader that is just dying does not take it,
// and its successor gets the orders that still count.
func (r *reader) tell(do string, s *seat) {
	r.in.Encode(order{do, assignment{s.key, s.path, s.given}})
}

func (r *reader) hear(e event) {
	r.mu.Lock()
	r.heard = time.Now()
	s := r.seats[e.Key]
	if s == nil {
		s = r.leaving[e.Key]
	}
	if e.Dropped {
		delete(r.leaving, e.Key)
	}
	r.mu.Unlock()
	switch {
	case s == nil:
		if !e.Dropped {
			r.run.fail("a reader tells of an assignment %d that it does not have", e.Key)
		}
	case e.Dropped:
		s.readers.Done()
	default:
		s.saw(e)
	}
}

// ended starts the process again, unless the soak is over.
func (r *reader) ended(cmd *exec.Cmd, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.killed && !r.stopped {
		r.run.fail("a reader process ended by itself: %v", err)
	}
	for key, s := range r.leaving {
		delete(r.leaving, key)
		s.readers.Done()
	}
	if r.stopped {
		return
	}
	if err := r.start(); err != nil {
		r.run.fail("starting a reader again: %v", err)
	}
}

func (r *reader) take(s *seat) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.readers.Add(1)
	r.seats[s.key] = s
	r.heard = time.Now()
	r.tell("read", s)
}

// drop lets the reader end what it does at the seat. The seat's wait group says
// when it has.
func (r *reader) drop(s *seat) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.seats, s.key)
	r.leaving[s.key] = s
	r.tell("drop", s)
}

// kill is a client's death in the middle of whatever it does.
func (r *reader) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.killed = true
	r.cmd.Process.Kill()
}

func (r *reader) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped = true
	r.stdin.Close()
}

// hangPatience is how long a reader may be silent: all that is done to a mount
// takes seconds.
const hangPatience = 90 * time.Second

// hangs says where a reader waits that has been silent for too long; "" if it has
// not.
func (r *reader) hangs() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seats)+len(r.leaving) == 0 || time.Since(r.heard) < hangPatience {
		return ""
	}
	r.heard = time.Now() // once is enough
	text := fmt.Sprintf("reader %d has said nothing for %v", r.cmd.Process.Pid, hangPatience)
	tasks, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(r.cmd.Process.Pid), "task", "*"))
	for _, task := range tasks {
		for _, file := range []string{"syscall", "wchan", "stack"} {
			b, _ := os.ReadFile(filepath.Join(task, file))
			text += fmt.Sprintf("\n%s %s: %s", filepath.Base(task), file, b)
		}
	}
	return text
}
