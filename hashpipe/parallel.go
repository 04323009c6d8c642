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
	if err := checkSize(size); err != nil {
		return nil, err
	}
	if workers < 1 {
		return nil, fmt.Errorf("measuring a tree with %d workers", workers)
	}
	n := unitsOf(size)
	workers = int(min(int64(workers), max(n, 1))) // more would have nothing to do
	p := &parallel{r: r, progress: progress, t: &Tree{size: size, units: make([][hashSize]byte, n)}}
	p.run = min(max(n/int64(4*workers), 1), maxRun)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for range min(int64(workers), n) {
		wg.Go(func() {
			if err := p.work(ctx); err != nil {
				cancel(err) // the first error stays
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := checkEnd(r, size); err != nil {
		return nil, err
	}
	return newTree(size, p.t.units), nil
}

type parallel struct {
	r    io.ReaderAt
	t    *Tree // unfinished: each worker fills the hashes of its units
	run  int64 // units in a row
	next atomic.Int64

	mu       sync.Mutex // one call of progress at a time
	progress func(int64)
}

func (p *parallel) work(ctx context.Context) error {
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	u := unitHashers.Get().(*unitHasher)
	defer unitHashers.Put(u)
	units := int64(len(p.t.units))
	for {
		first := (p.next.Add(1) - 1) * p.run
		if first >= units {
			return nil
		}
		for unit := first; unit < min(first+p.run, units); unit++ {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			off := unit * UnitSize
			data := buf[:min(UnitSize, p.t.size-off)]
			k, err := readAt(p.r, data, off)
			if err != nil {
				return err
			}
			if k < len(data) {
				return fmt.Errorf("%w: expected %d bytes, got %d", ErrChanged, p.t.size, off+int64(k))
			}
			p.t.units[unit] = u.sum(data, p.t.size <= BlockSize)
			p.report(len(data))
		}
	}
}

func (p *parallel) report(n int) {
	if p.progress == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress(int64(n))
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
