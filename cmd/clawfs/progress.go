package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild"
)

// lineEvery is how often a step that takes long is told of where standard error
// is no terminal: a log should not scroll away.
const lineEvery = 10 * time.Second

// bar shows how far one step is, on standard error: a progress bar on a
// terminal, a line now and then elsewhere. The nil bar shows nothing.
type bar struct {
	w        io.Writer
	terminal bool

	mu    sync.Mutex // guards what follows
	label string
	bytes int64
	total int64 // 0 when nobody knows
	shown time.Time
	drawn *progressbar.ProgressBar // nil before the first byte, and without a terminal
}

// progress starts a bar. With --quiet it is nil.
func (a *app) progress(label string) *bar {
	if a.quiet {
		return nil
	}
	f, ok := a.stderr.(*os.File)
	return &bar{w: a.stderr, terminal: ok && term.IsTerminal(int(f.Fd())), label: label, shown: time.Now()}
}

// atOnce lets the first line of what takes long come at once.
func (b *bar) atOnce() *bar {
	if b != nil {
		b.shown = time.Time{}
	}
	return b
}

// add counts bytes; it has the shape that hashpipe and tree want.
func (b *bar) add(n int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes += n
	b.show(false)
}

// rows says how many rows were looked at, where somebody would wait for it.
func (b *bar) rows(n int) { b.count(int64(n), "rows") }

// records is rows for the records of the store.
func (b *bar) records(n int64) { b.count(n, "records") }

func (b *bar) count(n int64, of string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	label := b.label
	b.label = fmt.Sprintf("%s: %d %s", label, n, of)
	b.show(time.Since(b.shown) >= lineEvery)
	b.label = label
}

// observe shows the events of a rebuild: each message once, bytes as they come.
func (b *bar) observe(e rebuild.Event) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	label := string(e.Phase)
	if strings.HasPrefix(e.Message, label) {
		label = e.Message
	} else if e.Message != "" {
		label += ": " + e.Message
	}
	fresh := label != b.label
	if fresh {
		b.clear()
	}
	b.label, b.bytes, b.total = label, e.Bytes, e.Total
	b.show(fresh)
}

// show draws the state. Without a terminal it writes a line if it must, or if
// it is time to. Called with mu held.
func (b *bar) show(must bool) {
	if b.terminal && b.bytes > 0 {
		if b.drawn == nil {
			b.drawn = progressbar.NewOptions64(cmp.Or(b.total, -1), progressbar.OptionSetWriter(b.w),
				progressbar.OptionSetDescription(printable(b.label)), progressbar.OptionShowBytes(true),
				progressbar.OptionThrottle(200*time.Millisecond), progressbar.OptionClearOnFinish())
		}
		b.drawn.Set64(b.bytes) // a bar that cannot be drawn is no reason to stop
		return
	}
	now := time.Now()
	if !must && (b.terminal || now.Sub(b.shown) < lineEvery) {
		return
	}
	b.shown = now
	text := printable(b.label)
	if b.bytes > 0 {
		text += " " + humanize.IBytes(uint64(b.bytes))
	}
	if b.bytes > 0 && b.total > 0 {
		text += fmt.Sprintf(" of %s (%d%%)", humanize.IBytes(uint64(b.total)), 100*b.bytes/b.total)
	}
	fmt.Fprintln(b.w, text)
}

// done ends the step and frees the line.
func (b *bar) done() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clear()
}

func (b *bar) clear() {
	if b.drawn != nil {
		b.drawn.Clear()
		b.drawn = nil
	}
}

// measurePath measures the regular file at path.
func measurePath(ctx context.Context, path string, progress func(int64)) (hashpipe.Measurement, error) {
	f, err := os.Open(path)
	if err != nil {
		return hashpipe.Measurement{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return hashpipe.Measurement{}, err
	}
	if !fi.Mode().IsRegular() {
		return hashpipe.Measurement{}, fmt.Errorf("%s is not a regular file", path)
	}
	m, err := hashpipe.MeasureFile(ctx, f, fi.Size(), progress)
	if err != nil {
		return hashpipe.Measurement{}, fmt.Errorf("reading %s: %w", path, err)
	}
	return m, nil
}
