package soak

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// order tells a reader process what to read from now on, or not to read any more.
type order struct {
	Do string // read, drop
	assignment
}

// assignment is one path and the content that it may give. A content of size 0 is
// a directory in which nothing is approved: whatever opens there is wrong.
type assignment struct {
	Key     int64 // names it
	Path    string
	Content content
}

// event is what a reader saw at one open, and in the handle that it got. Times are
// those of the monotonic clock, which all processes of a machine share.
type event struct {
	Key     int64
	Way     string        // of reading: whole, parts, map, held
	Call    int64         // when open was called
	Return  int64         // when it returned
	Errno   syscall.Errno // of open
	Bytes   int64         // compared
	Wrong   string        // the first byte that was not the content's
	Failed  syscall.Errno // of the first read that failed; SIGBUS of a mapping is EIO
	At      int64         // when it had failed
	Dropped bool          // nothing of this assignment is under way any more
}

func monotonic() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}

// readerMain is a reader process: orders come on standard input, events go to
// standard output, one JSON document a line. pause bounds the time between opens.
func readerMain(pause time.Duration) error {
	debug.SetPanicOnFault(true)
	var mu sync.Mutex // guards work, dropped
	work := make(map[int64]assignment)
	var dropped []int64
	ended := make(chan error, 1)
	go func() {
		in := json.NewDecoder(os.Stdin)
		for {
			var o order
			if err := in.Decode(&o); err != nil {
				ended <- err
				return
			}
			mu.Lock()
			if o.Do == "drop" {
				delete(work, o.Key)
				dropped = append(dropped, o.Key)
			} else {
				work[o.Key] = o.assignment
			}
			mu.Unlock()
		}
	}()
	w := bufio.NewWriter(os.Stdout)
	out := json.NewEncoder(w)
	say := func(e event) error {
		if err := out.Encode(e); err != nil {
			return err
		}
		return w.Flush()
	}
	for {
		select {
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-time.After(rand.N(pause)):
		}
		mu.Lock()
		gone := dropped
		dropped = nil
		var list []assignment
		for _, a := range work {
			list = append(list, a)
		}
		mu.Unlock()
		for _, key := range gone {
			if err := say(event{Key: key, Dropped: true}); err != nil {
				return err
			}
		}
		if len(list) == 0 {
			continue
		}
		a := list[rand.IntN(len(list))]
		var e event
		if a.Content.Size == 0 {
			e = lookAround(a)
		} else {
			e = readOnce(a)
		}
		if err := say(e); err != nil {
			return err
		}
	}
}

func errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	e := syscall.Errno(syscall.EINVAL)
	errors.As(err, &e)
	return e
}

// readOnce opens a path and compares what it gives, in one of several ways.
func readOnce(a assignment) (e event) {
	ways := []string{"whole", "whole", "parts", "parts", "map", "held"}
	e = event{Key: a.Key, Way: ways[rand.IntN(len(ways))]}
	e.Call = monotonic()
	fd, err := unix.Open(a.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	e.Return, e.Errno = monotonic(), errno(err)
	if err != nil {
		return e
	}
	defer unix.Close(fd)
	fail := func(err error) {
		if err != nil && e.Failed == 0 {
			e.Failed, e.At = errno(err), monotonic()
		}
	}
	// A read may be short where the next one fails. One of nothing before the
	// content's end is wrong.
	part := func(off int64, buf []byte) bool {
		for end := min(off+int64(len(buf)), a.Content.Size); off < end; {
			n, err := unix.Pread(fd, buf[:end-off], off)
			if err != nil {
				fail(err)
				return false
			}
			if n == 0 && e.Wrong == "" {
				e.Wrong = fmt.Sprintf("the content of %d bytes ends at %d", a.Content.Size, off)
			}
			if n == 0 {
				return false
			}
			if d := a.Content.differs(off, buf[:n]); d != "" && e.Wrong == "" {
				e.Wrong = d
			}
			e.Bytes += int64(n)
			off += int64(n)
		}
		return true
	}
	random := func() int64 { return rand.Int64N(a.Content.Size) }
	switch e.Way {
	case "whole":
		buf := make([]byte, 2*blockSize)
		for off := int64(0); off < a.Content.Size && part(off, buf); off += int64(len(buf)) {
		}
	case "parts":
		buf := make([]byte, 1+rand.IntN(3*blockSize))
		for range 8 {
			if !part(random(), buf) {
				break
			}
		}
	case "held": // for a while, through whatever happens
		buf := make([]byte, blockSize)
		for range 10 {
			if !part(random(), buf) {
				break
			}
			time.Sleep(rand.N(100 * time.Millisecond))
		}
	case "map":
		fail(a.readMapped(fd, &e))
	}
	return e
}

// readMapped compares a mapping of the whole file. A SIGBUS ends it as EIO.
func (a assignment) readMapped(fd int, e *event) (err error) {
	m, err := unix.Mmap(fd, 0, int(a.Content.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(m)
	defer func() {
		if p := recover(); p != nil {
			if _, fault := p.(runtime.Error); !fault {
				panic(p)
			}
			err = unix.EIO
		}
	}()
	buf := make([]byte, blockSize)
	for off := int64(0); off < a.Content.Size; off += blockSize {
		// Copied first: a fault inside of the comparison would look the same.
		n := copy(buf, m[off:])
		e.Bytes += int64(n)
		if d := a.Content.differs(off, buf[:n]); d != "" && e.Wrong == "" {
			e.Wrong = d
		}
		if off%(8*blockSize) == 0 && rand.IntN(4) == 0 {
			time.Sleep(rand.N(20 * time.Millisecond))
		}
	}
	return nil
}

// lookAround walks into a directory that others turn over, and tries to open what
// it finds.
func lookAround(a assignment) (e event) {
	e = event{Key: a.Key, Way: "around"}
	dir := a.Path
	for {
		e.Call = monotonic()
		list, err := os.ReadDir(dir)
		e.Return, e.Errno = monotonic(), errno(err)
		if err != nil || len(list) == 0 {
			return e
		}
		next := list[rand.IntN(len(list))]
		path := filepath.Join(dir, next.Name())
		if next.IsDir() {
			dir = path
			continue
		}
		e.Call = monotonic()
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		e.Return, e.Errno = monotonic(), errno(err)
		if err != nil {
			return e
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR { // it has become one
			e.Wrong = fmt.Sprintf("%s opened, and nobody granted it (mode %#o, %v)", path, st.Mode, err)
		}
		return e
	}
}
