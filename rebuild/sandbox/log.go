package sandbox

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxLine bounds a line of the log in bytes, its newline not counted;
	// longer ones are broken.
	MaxLine = 8 << 10
	// tailBytes of the log go into a Failure.
	tailBytes = 4 << 10
	// logGrace is how long the log may stay open after the last process.
	logGrace = 5 * time.Second
)

// buildLog is the log of all stages of a run.
type buildLog struct {
	dst   io.Writer
	limit int64
	// full is closed when the build printed more than limit bytes.
	full     chan struct{}
	fullOnce sync.Once

	// mu guards what follows; held across writes to dst.
	mu   sync.Mutex
	n    int64
	line int // bytes since the last newline
	tail []byte
	err  error // of dst; the build goes on, the run fails at its end
}

func newBuildLog(dst io.Writer, limit int64) *buildLog {
	if dst == nil {
		dst = io.Discard
	}
	return &buildLog{dst: dst, limit: limit, full: make(chan struct{})}
}

// Write takes everything, so that a chatty build never blocks, and passes on
// what is within the limits.
func (b *buildLog) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	keep := p
	if left := b.limit - b.n; int64(len(p)) > left {
		keep = p[:max(left, 0)]
		b.fullOnce.Do(func() { close(b.full) })
	}
	b.n += int64(len(keep))
	out := make([]byte, 0, len(keep)+len(keep)/MaxLine+1)
	for _, c := range keep {
		if c == '\n' {
			b.line = 0
		} else if b.line++; b.line > MaxLine {
			out = append(out, '\n')
			b.line = 1
		}
		out = append(out, c)
	}
	b.tail = append(b.tail, out...)
	if len(b.tail) > 2*tailBytes {
		b.tail = append(b.tail[:0], b.tail[len(b.tail)-tailBytes:]...)
	}
	if b.err == nil && len(out) > 0 {
		_, b.err = b.dst.Write(out)
	}
	return len(p), nil
}

func (b *buildLog) bytes() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.n
}

// writeError is the first error of the log's destination.
func (b *buildLog) writeError() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return fmt.Errorf("writing the build log: %w", b.err)
	}
	return nil
}

// text is the end of the log, safe to show on a terminal.
func (b *buildLog) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return escape(b.tail[max(0, len(b.tail)-tailBytes):])
}

// escape writes everything that is not a printable rune, newline or tab as
// \xNN.
func escape(p []byte) string {
	var s strings.Builder
	for len(p) > 0 {
		r, n := utf8.DecodeRune(p)
		if r == '\n' || r == '\t' || r != utf8.RuneError && unicode.IsPrint(r) {
			s.Write(p[:n])
		} else {
			for _, c := range p[:n] {
				fmt.Fprintf(&s, `\x%02x`, c)
			}
		}
		p = p[n:]
	}
	return s.String()
}

// pump copies one stage's pipe into the log until every writer closed it or
// stop was called.
type pump struct {
	r    *os.File
	done chan struct{}
}

func startPump(r *os.File, dst io.Writer) *pump {
	p := &pump{r: r, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		io.Copy(dst, struct{ io.Reader }{r}) // a read error is the end, like EOF
	}()
	return p
}

// stop is called after the last process died. A pipe that somebody still holds
// open must not hang the run.
func (p *pump) stop() {
	p.r.SetReadDeadline(time.Now().Add(logGrace))
	<-p.done
	p.r.Close()
}
