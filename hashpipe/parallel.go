package hashpipe

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// maxRun bounds the units that one worker reads in a row: 32 MiB. Long
// sequential runs keep the kernel's read-ahead and its large folios; small
// strides shared among workers make every later page fault slower.
const maxRun = 64

// MeasureTree measures exactly size bytes of r as a tree alone, on workers
// goroutines that read r concurrently in long sequential runs. The result is
// the Tree of MeasureFile, and Is says whether it is the claimed one. A content
// that turns out shorter or longer is ErrChanged.
//
// progress, if not nil, gets increments from the workers, one call at a time.
// ctx is looked at before each unit.
func MeasureTree(ctx context.Context, r io.ReaderAt, size int64, workers int, progress func(bytes int64)) (*Tree, error) {
	w, err := NewTreeWork(size, workers, progress)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range min(int64(workers), w.tree.Units()) {
		wg.Go(func() {
			for more := true; more; {
				var err error
				if more, err = w.Step(ctx, r); err != nil {
					cancel(err) // the first error stays
					return
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return w.Tree(r)
}

// TreeWork is a MeasureTree that is done by goroutines of the caller, so that
// they can be niced, bounded, and shared between contents. Any number of them
// may call Step at once, each with a reader of its own over the same content.
type TreeWork struct {
	tree   *Tree // unfinished: each Step fills the hashes of its units
	run    int64 // units in a row
	next   atomic.Int64
	hashed atomic.Int64 // units

	mu       sync.Mutex // one call of progress at a time
	progress func(int64)
}

// NewTreeWork prepares to measure a content of exactly size bytes by about as
// many goroutines as workers.
func NewTreeWork(size int64, workers int, progress func(bytes int64)) (*TreeWork, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	if workers < 1 {
		return nil, fmt.Errorf("measuring a tree with %d workers", workers)
	}
	n := unitsOf(size)
	workers = int(min(int64(workers), max(n, 1))) // more would have nothing to do
	w := &TreeWork{progress: progress, tree: &Tree{size: size, units: make([][hashSize]byte, n)}}
	w.run = min(max(n/int64(4*workers), 1), maxRun)
	return w, nil
}

// Step reads and hashes the next run that nobody has taken, at most 32 MiB.
// more is false if there was none; other calls may still be busy with theirs.
// A run whose Step returned an error stays unhashed, and Tree will say so.
func (w *TreeWork) Step(ctx context.Context, r io.ReaderAt) (more bool, err error) {
	units := w.tree.Units()
	first := (w.next.Add(1) - 1) * w.run
	if first >= units {
		return false, nil
	}
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	u := unitHashers.Get().(*unitHasher)
	defer unitHashers.Put(u)
	for unit := first; unit < min(first+w.run, units); unit++ {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		off := unit * UnitSize
		data := buf[:min(UnitSize, w.tree.size-off)]
		k, err := readAt(r, data, off)
		if err != nil {
			return false, err
		}
		if k < len(data) {
			return false, fmt.Errorf("%w: expected %d bytes, got %d", ErrChanged, w.tree.size, off+int64(k))
		}
		w.tree.units[unit] = u.sum(data, w.tree.size <= BlockSize)
		w.hashed.Add(1)
		w.report(len(data))
	}
	return true, nil
}

// Tree returns the tree once every call of Step has returned. It is an error if
// a unit was not hashed, and ErrChanged if r goes on behind the content.
func (w *TreeWork) Tree(r io.ReaderAt) (*Tree, error) {
	if done, n := w.hashed.Load(), w.tree.Units(); done != n {
		return nil, fmt.Errorf("measuring a tree: %d of %d units were hashed", done, n)
	}
	if err := checkEnd(r, w.tree.size); err != nil {
		return nil, err
	}
	return newTree(w.tree.size, w.tree.units), nil
}

func (w *TreeWork) report(n int) {
	if w.progress == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.progress(int64(n))
}

// checkEnd returns nil only if r has no byte at size.
func checkEnd(r io.ReaderAt, size int64) error {
	var one [1]byte
	n, err := r.ReadAt(one[:], size)
	if n > 0 {
		return fmt.Errorf("%w: expected %d bytes, got more", ErrChanged, size)
	}
	if err == nil {
		err = io.ErrNoProgress // breaks the contract of io.ReaderAt
	}
	if err != io.EOF {
		return fmt.Errorf("looking for the end at byte %d: %w", size, err)
	}
	return nil
}

// readAt fills p from off; a short count with a nil error means that r ended.
func readAt(r io.ReaderAt, p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	switch {
	case n < 0 || n > len(p):
		return 0, fmt.Errorf("reader returned %d bytes for a buffer of %d", n, len(p))
	case n == len(p) || err == io.EOF:
		return n, nil
	case err == nil:
		return n, io.ErrNoProgress // breaks the contract of io.ReaderAt
	}
	return n, err
}
