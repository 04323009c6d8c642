package hashpipe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"
)

func measured(t *testing.T, data []byte) Measurement {
	t.Helper()
	m, err := Measure(context.Background(), bytes.NewReader(data), nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// agrees checks m against the slow reference.
func agrees(t *testing.T, m Measurement, data []byte) {
	t.Helper()
	if m.Sum().String() != slowSum(data) || m.Tree().Claim().String() != slowVerity(data) || m.Size() != int64(len(data)) {
		t.Errorf("%d bytes: measured %v, %v, size %d, want %s, %s", len(data), m.Sum(), m.Tree().Claim(), m.Size(), slowSum(data), slowVerity(data))
	}
}

func FuzzTree(f *testing.F) {
	for _, size := range []uint32{0, 1, 4095, 4096, 4097, UnitSize - 1, UnitSize, UnitSize + 1, 3*UnitSize + 4096} {
		f.Add([]byte("clawfs"), size, uint64(1))
	}
	f.Fuzz(func(t *testing.T, head []byte, size uint32, seed uint64) {
		data := bytes.Clone(content(int(size % (4 * UnitSize))))
		copy(data, head)
		rng := rand.New(rand.NewPCG(seed, 0))
		m, err := Measure(context.Background(), &ragged{data, rng}, nil)
		if err != nil {
			t.Fatal(err)
		}
		agrees(t, m, data)
		tree, err := MeasureTree(context.Background(), bytes.NewReader(data), int64(len(data)), 1+int(seed%5), nil)
		if err != nil || tree.Claim() != m.Tree().Claim() {
			t.Errorf("MeasureTree of %d bytes = %v, %v, want %v", len(data), tree.Claim(), err, m.Tree().Claim())
		}
	})
}

// ragged gives its bytes in pieces of any length, sometimes none, and its end
// sometimes together with the last.
type ragged struct {
	rest []byte
	rng  *rand.Rand
}

func (r *ragged) Read(p []byte) (int, error) {
	if r.rng.IntN(8) == 0 && len(r.rest) > 0 {
		return 0, nil
	}
	if r.rng.IntN(2) == 0 {
		p = p[:r.rng.IntN(len(p)+1)]
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	if len(r.rest) == 0 && (n == 0 || r.rng.IntN(2) == 0) {
		return n, io.EOF
	}
	return n, nil
}

func TestMeasureReaders(t *testing.T) {
	data := content(UnitSize + 5000)
	for name, r := range map[string]io.Reader{
		"one byte":        iotest.OneByteReader(bytes.NewReader(data)),
		"half":            iotest.HalfReader(bytes.NewReader(data)),
		"data with EOF":   iotest.DataErrReader(bytes.NewReader(data)),
		"strings, copied": struct{ io.Reader }{strings.NewReader(string(data))},
	} {
		m, err := Measure(context.Background(), r, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		agrees(t, m, data)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestMeasureRefuses(t *testing.T) {
	broken := errors.New("input/output error")
	after := func(n int, err error) io.Reader {
		return io.MultiReader(bytes.NewReader(content(n)), iotest.ErrReader(err))
	}
	for name, c := range map[string]struct {
		r    io.Reader
		want error
	}{
		"error at once":           {after(0, broken), broken},
		"error in a block":        {after(100, broken), broken},
		"error after a unit":      {after(UnitSize, broken), broken},
		"error in a later unit":   {after(5*UnitSize+1, broken), broken},
		"unexpected EOF":          {after(UnitSize+1, io.ErrUnexpectedEOF), io.ErrUnexpectedEOF},
		"wrapped EOF is no end":   {after(10, errors.Join(io.EOF)), io.EOF},
		"no progress":             {readerFunc(func([]byte) (int, error) { return 0, nil }), io.ErrNoProgress},
		"count beyond the buffer": {readerFunc(func(p []byte) (int, error) { return len(p) + 1, nil }), nil},
		"negative count":          {readerFunc(func(p []byte) (int, error) { return -1, nil }), nil},
	} {
		m, err := Measure(context.Background(), c.r, nil)
		if err == nil || (c.want != nil && !errors.Is(err, c.want)) || m != (Measurement{}) {
			t.Errorf("%s: Measure = %v, %v, want zero and %v", name, m.Sum(), err, c.want)
		}
	}
	for name, size := range map[string]int64{"negative": -1, "too long": MaxSize + 1, "huge": 1<<63 - 1} {
		if m, err := MeasureFile(context.Background(), bytes.NewReader(nil), size, nil); err == nil || m != (Measurement{}) {
			t.Errorf("%s: MeasureFile = %v, %v, want zero and an error", name, m.Sum(), err)
		}
		if tree, err := MeasureTree(context.Background(), bytes.NewReader(nil), size, 1, nil); err == nil || tree != nil {
			t.Errorf("%s: MeasureTree = %v, %v, want nil and an error", name, tree, err)
		}
	}
	if tree, err := MeasureTree(context.Background(), bytes.NewReader(content(10)), 10, 1<<62, nil); err != nil || tree.Size() != 10 {
		t.Errorf("MeasureTree with 2^62 workers = %v, %v", tree.Claim(), err)
	}
	for _, workers := range []int{0, -1} {
		if tree, err := MeasureTree(context.Background(), bytes.NewReader(nil), 0, workers, nil); err == nil || tree != nil {
			t.Errorf("MeasureTree with %d workers = %v, %v, want nil and an error", workers, tree, err)
		}
	}
}

func TestWrongSize(t *testing.T) {
	for _, have := range []int{0, 1, 4096, UnitSize - 1, UnitSize, UnitSize + 1, 3 * UnitSize} {
		for _, delta := range []int{-UnitSize, -4096, -1, 1, 4096, UnitSize} {
			claim := have + delta
			if claim < 0 {
				continue
			}
			r := bytes.NewReader(content(have))
			if m, err := MeasureFile(context.Background(), r, int64(claim), nil); !errors.Is(err, ErrChanged) || m != (Measurement{}) {
				t.Errorf("MeasureFile of %d bytes as %d = %v, %v, want ErrChanged", have, claim, m.Sum(), err)
			}
			if tree, err := MeasureTree(context.Background(), r, int64(claim), 2, nil); !errors.Is(err, ErrChanged) || tree != nil {
				t.Errorf("MeasureTree of %d bytes as %d = %v, %v, want ErrChanged", have, claim, tree, err)
			}
		}
	}
}

// A writer truncates or extends the file between two reads.
func TestFileChangesWhileMeasured(t *testing.T) {
	const size = 6*UnitSize + 77
	for name, newSize := range map[string]int64{"emptied": 0, "cut": 3*UnitSize + 5, "cut by one": size - 1, "grown by one": size + 1, "grown": 2 * size} {
		f := tempFile(t, content(size))
		change := func(int64) {
			if err := os.Truncate(f.Name(), newSize); err != nil {
				t.Error(err)
			}
		}
		if m, err := MeasureFile(context.Background(), f, size, change); !errors.Is(err, ErrChanged) || m != (Measurement{}) {
			t.Errorf("%s: MeasureFile = %v, %v, want ErrChanged", name, m.Sum(), err)
		}
		f = tempFile(t, content(size))
		if tree, err := MeasureTree(context.Background(), f, size, 1, change); !errors.Is(err, ErrChanged) || tree != nil {
			t.Errorf("%s: MeasureTree = %v, %v, want ErrChanged", name, tree, err)
		}
	}
}

// liar returns other bytes at each read and remembers what it returned.
type liar struct {
	n    int
	told []byte
	rng  *rand.Rand
}

func (l *liar) Read(p []byte) (int, error) {
	p = p[:min(len(p), l.n)]
	for i := range p {
		p[i] = byte(l.rng.Uint32())
	}
	l.n -= len(p)
	l.told = append(l.told, p...)
	if len(p) == 0 {
		return 0, io.EOF
	}
	return len(p), nil
}

// Both hashes are of the bytes that were read once, whatever the storage says
// the second time.
func TestOnePass(t *testing.T) {
	l := &liar{n: 3*UnitSize + 999, rng: rand.New(rand.NewPCG(1, 2))}
	m, err := Measure(context.Background(), l, nil)
	if err != nil {
		t.Fatal(err)
	}
	agrees(t, m, l.told)
}

func TestProgress(t *testing.T) {
	const size = 5*UnitSize + 3
	r := bytes.NewReader(content(size))
	var total, running atomic.Int64
	add := func(n int64) {
		if n <= 0 || running.Add(1) != 1 {
			t.Errorf("progress(%d), or two calls at once", n)
		}
		total.Add(n)
		time.Sleep(time.Millisecond) // long enough for another worker to come in
		running.Add(-1)
	}
	check := func(what string, err error) {
		if err != nil || total.Load() != size {
			t.Errorf("%s: progress of %d bytes, %v, want %d", what, total.Load(), err, size)
		}
		total.Store(0)
	}
	_, err := Measure(context.Background(), r, add)
	check("Measure", err)
	_, err = MeasureFile(context.Background(), r, size, add)
	check("MeasureFile", err)
	_, err = MeasureTree(context.Background(), r, size, 4, add)
	check("MeasureTree", err)
	_, _, err = SumReader(context.Background(), io.NewSectionReader(r, 0, size), add)
	check("SumReader", err)
}

// A cancelled context stops at the next buffer, and no goroutine stays.
func TestCancel(t *testing.T) {
	before := runtime.NumGoroutine()
	endless := readerFunc(func(p []byte) (int, error) { return len(p), nil })
	cause := errors.New("job cancelled")
	for name, run := range map[string]func(context.Context, func(int64)) error{
		"Measure": func(ctx context.Context, progress func(int64)) error {
			_, err := Measure(ctx, endless, progress)
			return err
		},
		"SumReader": func(ctx context.Context, progress func(int64)) error {
			_, _, err := SumReader(ctx, endless, progress)
			return err
		},
		"MeasureFile": func(ctx context.Context, progress func(int64)) error {
			_, err := MeasureFile(ctx, endlessAt{}, 1<<40, progress)
			return err
		},
		"MeasureTree": func(ctx context.Context, progress func(int64)) error {
			_, err := MeasureTree(ctx, endlessAt{}, 1<<40, 3, progress)
			return err
		},
	} {
		ctx, cancel := context.WithCancelCause(context.Background())
		var bytes int64
		err := run(ctx, func(n int64) {
			if bytes += n; bytes >= 4*UnitSize {
				cancel(cause)
			}
		})
		if !errors.Is(err, cause) || bytes > 16*UnitSize {
			t.Errorf("%s: %v after %d bytes, want %v soon after %d", name, err, bytes, cause, 4*UnitSize)
		}
		if err := run(ctx, func(int64) { t.Errorf("%s: worked under a dead context", name) }); !errors.Is(err, cause) {
			t.Errorf("%s under a dead context: %v, want %v", name, err, cause)
		}
	}
	settle(t, before)
}

// A reader that panics leaves no goroutine behind either.
func TestReaderPanics(t *testing.T) {
	before := runtime.NumGoroutine()
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic of the reader was swallowed")
			}
		}()
		r := io.MultiReader(bytes.NewReader(content(3*UnitSize)), readerFunc(func([]byte) (int, error) { panic("reader") }))
		Measure(context.Background(), r, nil)
	}()
	settle(t, before)
}

func settle(t *testing.T, goroutines int) {
	t.Helper()
	for range 100 {
		if runtime.NumGoroutine() <= goroutines {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, were %d", runtime.NumGoroutine(), goroutines)
}

// endlessAt has a byte at every offset.
type endlessAt struct{}

func (endlessAt) ReadAt(p []byte, _ int64) (int, error) { return len(p), nil }

func tempFile(t *testing.T, data []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "content")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
