package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild"
)

// Progress is redrawn on a terminal; elsewhere a line is written now and then,
// because a log should not scroll away.
const (
	redrawEvery = 200 * time.Millisecond
	lineEvery   = 10 * time.Second
)

// bar shows how far one step is, on standard error. The nil bar shows nothing.
type bar struct {
	w        io.Writer
	terminal bool

	mu    sync.Mutex // guards what follows
	label string
	bytes int64
	total int64 // 0 when nobody knows
	start time.Time
	shown time.Time
	drawn bool // the terminal's line is in use
}

// progress starts a bar. With --quiet it is nil.
func (a *app) progress(label string) *bar {
	if a.quiet {
		return nil
	}
	f, ok := a.stderr.(*os.File)
	now := time.Now()
	return &bar{w: a.stderr, terminal: ok && term.IsTerminal(int(f.Fd())), label: label, start: now, shown: now}
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

// show writes the state if it is time to, or if it must. Called with mu held.
func (b *bar) show(must bool) {
	every := lineEvery
	if b.terminal {
		every = redrawEvery
	}
	now := time.Now()
	if !must && now.Sub(b.shown) < every {
		return
	}
	b.shown = now
	text := printable(b.label)
	if b.bytes > 0 {
		text += " " + sizeText(b.bytes)
		if b.total > 0 {
			text += fmt.Sprintf(" of %s (%d%%)", sizeText(b.total), 100*b.bytes/b.total)
		}
	}
	if b.terminal {
		fmt.Fprintf(b.w, "\r\x1b[K%s", text)
		b.drawn = true
		return
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
	if b.drawn {
		fmt.Fprint(b.w, "\r\x1b[K")
		b.drawn = false
	}
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
	b.label, b.bytes, b.total = label, e.Bytes, e.Total
	if fresh {
		b.clear()
		if b.terminal {
			fmt.Fprintln(b.w, printable(label))
		}
	}
	b.show(fresh && !b.terminal)
}

// sizeText is a number of bytes for people.
func sizeText(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
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
