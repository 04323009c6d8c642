package fs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// What is read through a copying is what it writes, in whatever pieces and order
// it is asked for.
func TestCopyingWritesWhatItReads(t *testing.T) {
	const size = 2*copyPiece + 4096 + 7
	data := sample(3, size)
	for name, reads := range map[string][][2]int{ // offset, length
		"in order":         {{0, 1 << 20}, {1 << 20, 1 << 20}, {2 << 20, 1 << 20}, {3 << 20, 1 << 20}, {4 << 20, 1 << 20}},
		"in one":           {{0, size + 100}},
		"from the end":     {{3 << 20, size}, {1 << 20, 2 << 20}, {0, 1 << 20}},
		"a hole closed":    {{0, 4096}, {8192, size}, {4096, 4096}},
		"odd and over":     {{0, 3<<20 + 1}, {3<<20 + 1, size}},
		"a part two times": {{0, 1 << 20}, {0, 1 << 20}, {1 << 20, size}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "src"), data, 0o600); err != nil {
				t.Fatal(err)
			}
			src, err := os.Open(filepath.Join(dir, "src"))
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			dst, err := os.Create(filepath.Join(dir, "dst"))
			if err != nil {
				t.Fatal(err)
			}
			defer dst.Close()
			var spoilt atomic.Pointer[error]
			c := &copying{src: src, dst: dst, spoilt: &spoilt, buf: copyBuffers.Get().(*[copyPiece]byte)}
			for _, r := range reads {
				p := make([]byte, r[1])
				n, err := c.ReadAt(p, int64(r[0]))
				want := min(r[1], size-r[0])
				if n != want || err != nil && err != io.EOF || !bytes.Equal(p[:n], data[r[0]:r[0]+n]) {
					t.Fatalf("ReadAt(%d bytes at %d) = %d, %v", r[1], r[0], n, err)
				}
			}
			c.close()
			got, err := os.ReadFile(filepath.Join(dir, "dst"))
			if err != nil || !bytes.Equal(got, data) || spoilt.Load() != nil {
				t.Errorf("written %d bytes, equal %v, spoilt %v, %v", len(got), bytes.Equal(got, data), spoilt.Load(), err)
			}
		})
	}
}

// A disk that takes no more spoils the copy, for good, and not the measurement.
func TestCopyingOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	data := sample(4, copyPiece+copyPiece/2)
	if err := os.WriteFile(filepath.Join(dir, "src"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := os.Open(filepath.Join(dir, "src"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	var spoilt atomic.Pointer[error]
	c := &copying{src: src, dst: full, spoilt: &spoilt, buf: copyBuffers.Get().(*[copyPiece]byte)}
	p := make([]byte, len(data))
	if n, err := c.ReadAt(p, 0); n != len(data) || err != nil || !bytes.Equal(p, data) {
		t.Fatalf("ReadAt = %d, %v, want the source's bytes", n, err)
	}
	first := spoilt.Load()
	if first == nil || !errors.Is(*first, unix.ENOSPC) {
		t.Fatalf("spoilt = %v, want no space", first)
	}
	c.dst = src // whatever comes after it, nothing is written any more
	c.close()
	if spoilt.Load() != first {
		t.Errorf("written to after it was spoilt: %v", *spoilt.Load())
	}
}
