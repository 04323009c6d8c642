package hashpipe

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestFlippedBits(t *testing.T) {
	for _, size := range []int{1, 4096, 4097, UnitSize, UnitSize + 1, 5*UnitSize + 4097} {
		good := content(size)
		tree := measured(t, good).Tree()
		rng := rand.New(rand.NewPCG(uint64(size), 3))
		for unit := range int(tree.Units()) {
			start, end := unit*UnitSize, min((unit+1)*UnitSize, size)
			bits := []int{start * 8, end*8 - 1, (start + rng.IntN(end-start)) * 8}
			for _, bit := range bits {
				bad := bytes.Clone(good)
				bad[bit/8] ^= 1 << (bit % 8)
				checkFlip(t, tree, good, bad, int64(unit))
				if other := measured(t, bad); other.Tree().Is(tree.Claim()) || other.Sum().String() == slowSum(good) {
					t.Errorf("%d bytes, bit %d flipped: same digest", size, bit)
				}
			}
		}
	}
}

// checkFlip checks that only the unit with the flipped bit is refused.
func checkFlip(t *testing.T, tree *Tree, good, bad []byte, flipped int64) {
	t.Helper()
	r := NewCheckedReader(bytes.NewReader(bad), tree)
	for unit := range tree.Units() {
		start, end := int(unit)*UnitSize, min(int(unit+1)*UnitSize, len(good))
		buf := bytes.Repeat([]byte{0xaa}, UnitSize)
		got, err := r.ReadUnit(unit, buf)
		if unit != flipped {
			if err != nil || !bytes.Equal(got, good[start:end]) || &got[0] != &buf[0] {
				t.Errorf("unit %d of %d bytes, unit %d flipped: %v, want its bytes in the buffer", unit, len(good), flipped, err)
			}
			continue
		}
		var e *UnitError
		if !errors.As(err, &e) || !errors.Is(err, ErrChanged) || got != nil {
			t.Fatalf("ReadUnit(%d) with a flipped bit = %d bytes, %v, want *UnitError", unit, len(got), err)
		}
		if e.Unit != unit || e.Offset != int64(start) || e.Length != end-start || e.Read != e.Length || e.Want == e.Got {
			t.Errorf("UnitError = %+v, want unit %d at byte %d", e, unit, start)
		}
		if !bytes.Equal(buf[:end-start], make([]byte, end-start)) {
			t.Errorf("unit %d: refused bytes stayed in the buffer", unit)
		}
		if err := tree.VerifyUnit(unit, bad[start:end]); !errors.As(err, &e) {
			t.Errorf("VerifyUnit(%d) with a flipped bit = %v, want *UnitError", unit, err)
		}
	}
}

func TestVerifyUnitRefuses(t *testing.T) {
	const size = 2*UnitSize + 4096
	data := content(size)
	tree := measured(t, data).Tree()
	for name, c := range map[string]struct {
		unit int64
		data []byte
	}{
		"no bytes":              {0, nil},
		"a byte short":          {0, data[:UnitSize-1]},
		"a byte long":           {0, data[:UnitSize+1]},
		"two units":             {0, data[:2*UnitSize]},
		"another unit":          {0, data[UnitSize : 2*UnitSize]},
		"shifted":               {0, data[1 : UnitSize+1]},
		"last, a block short":   {2, data[2*UnitSize : size-1]},
		"last, padded":          {2, append(bytes.Clone(data[2*UnitSize:]), make([]byte, UnitSize-4096)...)},
		"negative unit":         {-1, data[:UnitSize]},
		"unit beyond the end":   {3, nil},
		"unit far beyond":       {1<<63 - 1, data[:UnitSize]},
		"unit that would wrap":  {1 << 45, data[:UnitSize]},
		"negative, would wrap":  {-1 << 63, data[:UnitSize]},
		"level-1 block as unit": {0, level1(data[:UnitSize])},
	} {
		if err := tree.VerifyUnit(c.unit, c.data); err == nil {
			t.Errorf("%s: VerifyUnit(%d, %d bytes) = nil, want an error", name, c.unit, len(c.data))
		}
	}
	for unit := range tree.Units() {
		if err := tree.VerifyUnit(unit, data[unit*UnitSize:min((unit+1)*UnitSize, size)]); err != nil {
			t.Errorf("VerifyUnit(%d) = %v, want nil", unit, err)
		}
	}
	// A whole content of one block hashes as the block, not as a level above.
	one := measured(t, data[:4096]).Tree()
	if err := one.VerifyUnit(0, data[:4096]); err != nil {
		t.Errorf("VerifyUnit of a content of one block = %v, want nil", err)
	}
}

// level1 returns the level-1 hash block of a unit: an attacker's favourite
// second preimage in trees that do not bind their depth.
func level1(unit []byte) []byte {
	var b []byte
	for len(unit) > 0 {
		s := SumBytes(unit[:4096]).Bytes()
		b = append(b, s[:]...)
		unit = unit[4096:]
	}
	return b
}

// The level-1 block of one unit has the root of that unit as its own root; the
// size in the descriptor keeps the two apart.
func TestSizeIsBound(t *testing.T) {
	unit := content(UnitSize)
	a, b := measured(t, unit), measured(t, level1(unit))
	if a.Tree().units[0] != b.Tree().units[0] {
		t.Fatal("the two contents were to have one root")
	}
	if a.Tree().Is(b.Tree().Claim()) {
		t.Errorf("%d and %d bytes have one digest %v", a.Size(), b.Size(), a.Tree().Claim())
	}
}

func TestReadUnitRefuses(t *testing.T) {
	const size = UnitSize + 100
	data := content(size)
	tree := measured(t, data).Tree()
	broken := errors.New("input/output error")
	for name, c := range map[string]struct {
		src  io.ReaderAt
		tree *Tree
		unit int64
		room int
		want error
	}{
		"cut":             {bytes.NewReader(data[:size-1]), tree, 1, UnitSize, ErrChanged},
		"emptied":         {bytes.NewReader(nil), tree, 0, UnitSize, ErrChanged},
		"small buffer":    {bytes.NewReader(data), tree, 0, UnitSize - 1, nil},
		"no buffer":       {bytes.NewReader(data), tree, 1, 0, nil},
		"unit beyond":     {bytes.NewReader(data), tree, 2, UnitSize, nil},
		"negative unit":   {bytes.NewReader(data), tree, -1, UnitSize, nil},
		"nil tree":        {bytes.NewReader(data), nil, 0, UnitSize, nil},
		"zero tree":       {bytes.NewReader(data), new(Tree), 0, UnitSize, nil},
		"source error":    {readerAtFunc(func([]byte, int64) (int, error) { return 0, broken }), tree, 0, UnitSize, broken},
		"error with data": {readerAtFunc(func(p []byte, _ int64) (int, error) { return copy(p, data[:9]), broken }), tree, 0, UnitSize, broken},
		"lazy source":     {readerAtFunc(func([]byte, int64) (int, error) { return 0, nil }), tree, 0, UnitSize, nil},
		"long count":      {readerAtFunc(func(p []byte, _ int64) (int, error) { return len(p) + 1, nil }), tree, 0, UnitSize, nil},
		"long, and ended": {readerAtFunc(func(p []byte, _ int64) (int, error) { return len(p) + 1, io.EOF }), tree, 0, UnitSize, nil},
		"negative, ended": {readerAtFunc(func([]byte, int64) (int, error) { return -1, io.EOF }), tree, 0, UnitSize, nil},
		"says, not does":  {readerAtFunc(func(p []byte, _ int64) (int, error) { return len(p), nil }), tree, 0, UnitSize, ErrChanged},
	} {
		buf := make([]byte, c.room)
		got, err := NewCheckedReader(c.src, c.tree).ReadUnit(c.unit, buf)
		if err == nil || (c.want != nil && !errors.Is(err, c.want)) || got != nil {
			t.Errorf("%s: ReadUnit = %d bytes, %v, want an error like %v", name, len(got), err, c.want)
		}
		if !bytes.Equal(buf, make([]byte, c.room)) {
			t.Errorf("%s: bytes of a failed read stayed in the buffer", name)
		}
	}
	// Bytes behind the measured end are no part of the content.
	grown := NewCheckedReader(bytes.NewReader(content(2*UnitSize)), tree)
	if got, err := grown.ReadUnit(1, make([]byte, UnitSize)); err != nil || !bytes.Equal(got, data[UnitSize:]) {
		t.Errorf("last unit of a grown source = %d bytes, %v, want its 100 bytes", len(got), err)
	}
}

func TestUnitErrorText(t *testing.T) {
	tree := measured(t, content(UnitSize+5)).Tree()
	for _, c := range []struct {
		data []byte
		want string
	}{
		{[]byte("abc"), "unit 1 at byte 524288: expected 5 bytes, got 3"},
		{[]byte("abcde"), "unit 1 at byte 524288: expected hash "},
	} {
		if err := tree.VerifyUnit(1, c.data); err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("VerifyUnit(1, %q) = %v, want %q", c.data, err, c.want)
		}
	}
}

func TestReadAt(t *testing.T) {
	const size = 3*UnitSize + 1000
	data := content(size)
	tree := measured(t, data).Tree()
	r := NewCheckedReader(bytes.NewReader(data), tree)
	rng := rand.New(rand.NewPCG(4, 4))
	spans := [][2]int{{0, 0}, {0, size}, {0, size + 1}, {size, 1}, {size, 0}, {size - 1, 5}, {size + 9, 3}, {UnitSize, UnitSize}, {UnitSize - 1, 2}, {1, 2 * UnitSize}}
	for range 50 {
		spans = append(spans, [2]int{rng.IntN(size + 10), rng.IntN(2*UnitSize + 10)})
	}
	for _, s := range spans {
		got, want := make([]byte, s[1]), make([]byte, s[1])
		gotN, gotErr := r.ReadAt(got, int64(s[0]))
		wantN := copy(want, data[min(s[0], size):])
		var wantErr error
		if wantN < s[1] {
			wantErr = io.EOF
		}
		if gotN != wantN || gotErr != wantErr || !bytes.Equal(got, want) {
			t.Errorf("ReadAt(%d bytes at %d) = %d, %v, want %d, %v", s[1], s[0], gotN, gotErr, wantN, wantErr)
		}
	}
	for _, off := range []int64{-1, -1 << 63} {
		if n, err := r.ReadAt(make([]byte, 10), off); n != 0 || err == nil || err == io.EOF {
			t.Errorf("ReadAt at %d = %d, %v, want an error", off, n, err)
		}
	}
	for _, tr := range []*Tree{nil, new(Tree)} {
		if n, err := NewCheckedReader(bytes.NewReader(data), tr).ReadAt(make([]byte, 10), 0); n != 0 || err == nil || err == io.EOF {
			t.Errorf("ReadAt against a zero tree = %d, %v, want an error that is not the end", n, err)
		}
	}

	bad := bytes.Clone(data)
	bad[UnitSize+7] ^= 0x10
	p := make([]byte, size)
	n, err := NewCheckedReader(bytes.NewReader(bad), tree).ReadAt(p, 0)
	var e *UnitError
	if n != UnitSize || !errors.As(err, &e) || e.Unit != 1 {
		t.Errorf("ReadAt over a changed unit 1 = %d, %v, want %d bytes and a *UnitError", n, err, UnitSize)
	}
	if !bytes.Equal(p[:UnitSize], data[:UnitSize]) || !bytes.Equal(p[UnitSize:], make([]byte, size-UnitSize)) {
		t.Error("ReadAt left unchecked bytes in p")
	}
	// A part of a unit is as good as the whole unit, wherever the change is.
	for _, off := range []int64{UnitSize, UnitSize + 1, UnitSize + 8, 2*UnitSize - 1} {
		p := make([]byte, 1)
		n, err := NewCheckedReader(bytes.NewReader(bad), tree).ReadAt(p, off)
		if n != 0 || !errors.As(err, &e) || e.Unit != 1 || p[0] != 0 {
			t.Errorf("ReadAt of one byte at %d of a changed unit = %d, %v, want a *UnitError", off, n, err)
		}
	}
}

// While a writer goes through the file, a reader sees the measured bytes or an
// error, never others.
func TestWriterDuringCheckedReads(t *testing.T) {
	const size = 4 * UnitSize
	data := content(size)
	tree := measured(t, data).Tree()
	f := tempFile(t, data)
	w, err := os.OpenFile(f.Name(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		rng := rand.New(rand.NewPCG(5, 5))
		for ctx.Err() == nil {
			off := rng.Int64N(size - 64)
			w.WriteAt(make([]byte, 64), off)
			time.Sleep(50 * time.Microsecond)
			w.WriteAt(data[off:off+64], off)
			time.Sleep(50 * time.Microsecond)
		}
	})
	r := NewCheckedReader(f, tree)
	var good, refused int
	buf := make([]byte, UnitSize)
	for unit := int64(0); ctx.Err() == nil; unit = (unit + 1) % tree.Units() {
		got, err := r.ReadUnit(unit, buf)
		if err != nil {
			refused++
			if !errors.Is(err, ErrChanged) {
				t.Fatal(err)
			}
			continue
		}
		good++
		if !bytes.Equal(got, data[unit*UnitSize:(unit+1)*UnitSize]) {
			t.Fatalf("unit %d: bytes that were never measured", unit)
		}
	}
	wg.Wait()
	t.Logf("%d units read, %d refused", good, refused)
	if good == 0 || refused == 0 {
		t.Errorf("%d units read, %d refused: nothing was tested", good, refused)
	}
}

type readerAtFunc func(p []byte, off int64) (int, error)

func (f readerAtFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }
