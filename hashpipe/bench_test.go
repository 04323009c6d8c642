package hashpipe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
)

const benchSize = 64 << 20

// benchRatio times work against crypto/sha256 over the same bytes in memory,
// the two in turns so that both see the same machine. It reports how many
// times the yardstick's rate work reaches, by the clock and by CPU time, each
// the median of all rounds: on a shared machine only the second means something.
func benchRatio(b *testing.B, content []byte, work func()) {
	b.SetBytes(int64(len(content)))
	sha256.Sum256(content)
	work()
	timed := func(f func()) (wall, cpu time.Duration) {
		w, c := time.Now(), cpuTime(b)
		f()
		return time.Since(w), cpuTime(b) - c
	}
	var wall, cpu []float64
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		w0, c0 := timed(func() { sha256.Sum256(content) })
		b.StartTimer()
		w1, c1 := timed(work)
		wall = append(wall, float64(w0)/float64(w1))
		cpu = append(cpu, float64(c0)/float64(c1))
	}
	b.ReportMetric(median(wall), "x-wall")
	b.ReportMetric(median(cpu), "x-cpu")
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// cpuTime returns the time that all threads of this process have run.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func must(b *testing.B, err error) {
	if err != nil {
		b.Fatal(err)
	}
}

func BenchmarkMeasure(b *testing.B) {
	content := pattern(benchSize)
	b.Run("memory", func(b *testing.B) {
		benchRatio(b, content, func() {
			_, err := Measure(context.Background(), bytes.NewReader(content), nil)
			must(b, err)
		})
	})
	b.Run("file", func(b *testing.B) {
		f := benchFile(b, content)
		benchRatio(b, content, func() {
			_, err := MeasureFile(context.Background(), f, benchSize, nil)
			must(b, err)
		})
	})
	b.Run("small", func(b *testing.B) { // 1,024 contents of 64 KiB
		benchRatio(b, content, func() {
			for off := 0; off < benchSize; off += 64 << 10 {
				_, err := Measure(context.Background(), bytes.NewReader(content[off:off+64<<10]), nil)
				must(b, err)
			}
		})
	})
}

func BenchmarkSumReader(b *testing.B) {
	content := pattern(benchSize)
	f := benchFile(b, content)
	benchRatio(b, content, func() {
		_, _, err := SumReader(context.Background(), io.NewSectionReader(f, 0, benchSize), nil)
		must(b, err)
	})
}

// The tree on one core, over memory and without a copy.
func BenchmarkUnits(b *testing.B) {
	content := pattern(benchSize)
	u := &unitHasher{h: newHasher()}
	benchRatio(b, content, func() {
		for off := 0; off < benchSize; off += UnitSize {
			u.sum(content[off:off+UnitSize], false)
		}
	})
}

func BenchmarkMeasureTree(b *testing.B) {
	content := pattern(benchSize)
	f := benchFile(b, content)
	for _, v := range []struct {
		name    string
		workers int
	}{{"one", 1}, {"all", runtime.GOMAXPROCS(0)}} {
		b.Run(v.name, func(b *testing.B) {
			benchRatio(b, content, func() {
				_, err := MeasureTree(context.Background(), f, benchSize, v.workers, nil)
				must(b, err)
			})
		})
	}
}

func BenchmarkCheckedReader(b *testing.B) {
	content := pattern(benchSize)
	f := benchFile(b, content)
	tree, err := MeasureTree(context.Background(), f, benchSize, 2, nil)
	must(b, err)
	r := NewCheckedReader(f, tree)
	buf := make([]byte, UnitSize)
	benchRatio(b, content, func() {
		for unit := range tree.Units() {
			_, err := r.ReadUnit(unit, buf)
			must(b, err)
		}
	})
}

func benchFile(b *testing.B, content []byte) *os.File {
	b.Helper()
	name := filepath.Join(b.TempDir(), "content")
	must(b, os.WriteFile(name, content, 0o600))
	f, err := os.Open(name)
	must(b, err)
	b.Cleanup(func() { f.Close() })
	return f
}
