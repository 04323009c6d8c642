package fs

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

const (
	// maxWatches bounds the watched directories, each of which pins about 1 KiB in
	// the kernel. fs.inotify.max_user_watches may be lower.
	maxWatches = 8192
	// watchMask: a file that came, or whose writer has closed it, and a directory
	// that came. IN_CREATE tells of hard links too. Writing itself is not watched.
	watchMask = unix.IN_CLOSE_WRITE | unix.IN_MOVED_TO | unix.IN_CREATE | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK
)

// watcher hears what happens in directories of the source (inotify(7)). All but
// read is for one goroutine.
type watcher struct {
	log    *slog.Logger
	fd     int
	file   *os.File   // of fd; nil: nothing is heard
	events chan event // as the kernel gave them

	dirs  map[int32]watched
	max   int
	round int // the walk of the whole source that goes on, or the last one
	full  bool
}

// watched is a directory and the walk that saw it last.
type watched struct {
	path  string
	round int
}

type event struct {
	watch int32
	mask  uint32
	name  string // in the watched directory
}

func newWatcher(log *slog.Logger) *watcher {
	return &watcher{log: log, fd: -1, events: make(chan event, 64), dirs: make(map[int32]watched), max: maxWatches}
}

// open reports whether there is something to read.
func (w *watcher) open() bool {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		w.log.Info("the source is not watched; new and changed files are found by walking it", "reason", err)
		return false
	}
	w.fd, w.file = fd, os.NewFile(uintptr(fd), "inotify")
	return true
}

// close ends read too.
func (w *watcher) close() {
	if w.file != nil {
		w.file.Close()
	}
}

// read passes events on until the watcher is closed.
func (w *watcher) read(ctx context.Context) {
	buf := make([]byte, 16<<10)
	for {
		n, err := w.file.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			e, size := parseEvent(b)
			b = b[size:]
			select {
			case w.events <- e:
			case <-ctx.Done():
				return
			}
		}
	}
}

// parseEvent reads struct inotify_event: wd 4, mask 4, cookie 4, len 4, name of
// len bytes to a zero byte.
func parseEvent(b []byte) (event, int) {
	size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
	name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:size], []byte{0})
	return event{int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[4:]), string(name)}, size
}

// add watches the very directory of a descriptor. A second time, after a move, it
// only notes the path anew.
func (w *watcher) add(dir string, fd int) {
	if w.file == nil {
		return
	}
	n, err := unix.InotifyAddWatch(w.fd, procName(fd), watchMask)
	if err != nil {
		w.limit("reason", err)
		return
	}
	if _, again := w.dirs[int32(n)]; !again && len(w.dirs) >= w.max {
		_, _ = unix.InotifyRmWatch(w.fd, uint32(n))
		w.limit("limit", w.max)
		return
	}
	w.dirs[int32(n)] = watched{dir, w.round}
}

func (w *watcher) limit(key string, value any) {
	if !w.full {
		w.full = true
		w.log.Info("not every directory of the source is watched; what changes there is found by walking it", key, value)
	}
}

// name returns where something happened, or false if that is of no interest.
func (w *watcher) name(e event) (string, bool) {
	d, ok := w.dirs[e.watch]
	if ok && e.mask&unix.IN_IGNORED != 0 {
		delete(w.dirs, e.watch)
		return "", false
	}
	return path.Join(d.path, e.name), ok && e.name != ""
}

// sweep ends the watches that a walk of the whole source has not seen, because
// their directories were moved away. Until then they name what is not there.
func (w *watcher) sweep() {
	for n, d := range w.dirs {
		if d.round != w.round {
			delete(w.dirs, n)
			_, _ = unix.InotifyRmWatch(w.fd, uint32(n)) // it may be gone with its directory
		}
	}
	w.full = w.full && len(w.dirs) >= w.max
}
