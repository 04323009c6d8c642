package fs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// A shared machine makes times meaningless, so every number is a ratio of two
// things that were done one after the other in one round, and what is reported
// is the median over the rounds.
const benchRounds = 5

// timeAll does the named things to a file, and reports how long each took.
func timeAll(p string, what []string) result {
	r := result{Took: make(map[string]float64)}
	for _, w := range what {
		if w == "sha256" {
			_ = hashed()
		}
		before, began := faults(), time.Now()
		if err := timed(p, w); err != nil {
			return failed(w, err)
		}
		r.Took[w] = time.Since(began).Seconds()
		r.Took[w+"-faults"] = faults() - before
	}
	return r
}

// faults returns how many pages of memory this process had to have mapped.
func faults() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return float64(u.Minflt + u.Majflt)
}

// hashed is what the reference hashes again and again.
var hashed = sync.OnceValue(func() []byte { return sample(1, 16<<20) })

func timed(p, what string) error {
	if what == "sha256" { // of as many bytes in memory, one stream
		st, err := os.Stat(p)
		if err != nil {
			return err
		}
		piece := hashed()
		h := sha256.New()
		for n := st.Size(); n > 0; n -= int64(len(piece)) {
			h.Write(piece[:min(n, int64(len(piece)))])
		}
		return nil
	}
	if n, err := strconv.Atoi(strings.TrimPrefix(what, "reopen-")); err == nil {
		for range n {
			fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			unix.Close(fd)
		}
		return nil
	}
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	switch what {
	case "open":
		return nil
	case "read":
		buf := make([]byte, 1<<20)
		for {
			n, err := unix.Read(fd, buf)
			if err != nil || n == 0 {
				return err
			}
		}
	case "mmap":
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		data, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		defer unix.Munmap(data)
		var sum uint64
		for i := 0; i+8 <= len(data); i += 8 {
			sum += binary.LittleEndian.Uint64(data[i:])
		}
		if sum == 0 {
			return errors.New("the mapping holds zeros")
		}
		return nil
	}
	return fmt.Errorf("unknown thing to time: %q", what)
}

// loopback serves a directory by go-fuse's own example of a file system, until
// stdin ends.
func loopback(source, mountpoint string) int {
	root, err := fusefs.NewLoopbackRoot(source)
	if err == nil {
		second := time.Second
		var s *fuse.Server
		s, err = fusefs.Mount(mountpoint, root, &fusefs.Options{
			AttrTimeout: &second, EntryTimeout: &second,
			MountOptions: fuse.MountOptions{DirectMountStrict: true, DisabledCapabilities: fuse.CAP_PASSTHROUGH},
		})
		if err == nil {
			fmt.Println("ready")
			_, _ = io.Copy(io.Discard, os.Stdin)
			err = s.Unmount()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "loopback:", err)
		return 1
	}
	return 0
}

func startLoopback(b *testing.B, source string) (dir string, stop func()) {
	b.Helper()
	dir = tempDir(b)
	cmd := exec.Command(os.Args[0], source, dir)
	cmd.Env = append(os.Environ(), roleVariable+"=loopback")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		b.Fatalf("loopback: %v", err)
	}
	return dir, func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Errorf("loopback: %v", err)
		}
	}
}

// bigFile puts n random bytes into the source of a mount, in the page cache, and
// returns their subject.
func bigFile(tb testing.TB, p string, n int64) capstore.Subject {
	tb.Helper()
	f, err := os.Create(p)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	for i := int64(0); i < n; i += 64 << 20 {
		if _, err := f.Write(sample(byte(i>>26)+1, int(min(64<<20, n-i)))); err != nil {
			tb.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		tb.Fatal(err)
	}
	// Settled: a grant of a file that was just written is measured again later.
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(p, old, old); err != nil {
		tb.Fatal(err)
	}
	if f, err = os.Open(p); err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	got, err := hashpipe.MeasureFile(context.Background(), f, n, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return capstore.Subject{Name: filepath.Base(p), Digest: got.Sum().Claim(), Verity: got.Tree().Claim(), Size: n}
}

func median(of []float64) float64 {
	slices.Sort(of)
	return of[len(of)/2]
}

// peakRSS returns what the process has had in memory at most, in bytes.
func peakRSS(tb testing.TB, pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				tb.Fatal(err)
			}
			return kib * 1024
		}
	}
	tb.Fatal("no VmHWM in /proc/PID/status")
	return 0
}

// A large file in the page cache of the source: its first open, and what is read
// after it. Ratios above 1 are faster than the reference.
func BenchmarkLargeFile(b *testing.B) {
	const size = 1 << 30
	dir := tempDir(b)
	source := filepath.Join(dir, "model.bin")
	s := bigFile(b, source, size)
	for _, v := range []struct {
		name   string
		change func(*serverSpec)
	}{
		{"filled", func(*serverSpec) {}},
		{"unfilled", func(s *serverSpec) { s.CacheBytes = -1 }},
		{"stream-unfilled", func(s *serverSpec) { s.CacheBytes, s.Verify = -1, VerifyStream }},
	} {
		b.Run(v.name, func(b *testing.B) {
			for range b.N {
				ratios := make(map[string][]float64)
				for range benchRounds {
					native := timesOf(b, source, "sha256", "read", "mmap")
					add := func(name string, value float64) { ratios[name] = append(ratios[name], value) }
					for _, how := range []string{"read", "mmap"} {
						m := mountEmpty(b, v.change)
						if err := os.Link(source, filepath.Join(m.src, "model.bin")); err != nil {
							b.Fatal(err)
						}
						m.admit(s)
						first := timesOf(b, m.at("model.bin"), "open", how)
						again := timesOf(b, m.at("model.bin"), how)
						add("x-sha256-open", native["sha256"]/first["open"])
						add("x-sha256-open+"+how, native["sha256"]/(first["open"]+first[how]))
						add("x-native-"+how, native[how]/first[how])
						add("x-native-"+how+"-again", native[how]/again[how])
						if how == "mmap" {
							add("x-native-faults-again", again["mmap-faults"]/native["mmap-faults"])
						}
						add("MiB-peak", peakRSS(b, m.cmd.Process.Pid)/(1<<20))
						m.end()
						m.ended = true
					}
				}
				for name, of := range ratios {
					b.ReportMetric(median(of), name)
				}
			}
			b.ReportMetric(float64(runtime.NumCPU()), "cores")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// Opening and closing a verified file, against go-fuse's loopback over the same
// directory. Above 1 is slower than the loopback.
func BenchmarkReopen(b *testing.B) {
	const opens = "reopen-3000"
	m := mountEmpty(b)
	good := sample(1, 1<<20)
	m.write("model.bin", good)
	m.grant("model.bin", good)
	m.reads("model.bin", good)
	dir, stop := startLoopback(b, m.src)
	defer stop()
	for range b.N {
		var ratios []float64
		for range benchRounds {
			loop := timesOf(b, filepath.Join(dir, "model.bin"), opens)
			own := timesOf(b, m.at("model.bin"), opens)
			ratios = append(ratios, own[opens]/loop[opens])
		}
		b.ReportMetric(median(ratios), "x-loopback")
	}
	b.ReportMetric(0, "ns/op")
}

// timesOf times things in a client process.
func timesOf(b *testing.B, p string, what ...string) map[string]float64 {
	b.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"time", p}, what...)...)
	cmd.Env = append(os.Environ(), roleVariable+"=client", quickExit)
	out, err := cmd.Output()
	var r result
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil || r.Errno != 0 {
		b.Fatalf("timing %v of %s: %v, %v", what, p, err, r)
	}
	return r.Took
}

// BenchmarkPeakMemory opens and reads a file of 4 GiB, of zeros that cost no disk,
// and fails if the mount process needed more than 128 MiB for it.
func BenchmarkPeakMemory(b *testing.B) {
	for range b.N {
		m := mountEmpty(b)
		m.admit(m.sparse("model.bin", 4<<30, true))
		timesOf(b, m.at("model.bin"), "open", "read")
		peak := peakRSS(b, m.cmd.Process.Pid) / (1 << 20)
		if peak > 128 {
			b.Errorf("the mount process had %.0f MiB in memory, want at most 128", peak)
		}
		b.ReportMetric(peak, "MiB-peak")
		m.end()
		m.ended = true
	}
	b.ReportMetric(0, "ns/op")
}
