package fs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// raceTime is how long a writer attacks while a reader loops: 3 s, or what
// CLAWFS_RACE_SECONDS says.
func raceTime(t testing.TB) time.Duration {
	t.Helper()
	text := os.Getenv("CLAWFS_RACE_SECONDS")
	if text == "" {
		return 3 * time.Second
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("CLAWFS_RACE_SECONDS is %q, want a number of seconds", text)
	}
	return time.Duration(n) * time.Second
}

// The promise itself: a process that can write the source, through a descriptor
// and through a mapping that it opened before anything was granted, writes while
// a reader loops. The reader sees approved bytes or an error.
func TestWriterAgainstReader(t *testing.T) {
	const size = 3*hashpipe.UnitSize + 4097
	good := sample(10, size)
	for name, attack := range map[string]func(f *os.File, mapping []byte, i int){
		"write": func(f *os.File, _ []byte, i int) {
			f.WriteAt([]byte{good[i%size] ^ 0xff}, int64(i%size))
		},
		"mapping": func(_ *os.File, mapping []byte, i int) {
			mapping[i%size] ^= 0xff
		},
		"truncate": func(f *os.File, _ []byte, i int) {
			f.Truncate(int64(i % size))
			f.Truncate(size) // zeros
		},
		"grow": func(f *os.File, _ []byte, i int) {
			f.Truncate(int64(size + i%9000))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := mountEmpty(t)
			p := m.write("model.bin", good)
			f, err := os.OpenFile(p, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			mapping, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Munmap(mapping)
			m.grant("model.bin", good)
			m.reads("model.bin", good)

			stop := make(chan struct{})
			var writer sync.WaitGroup
			changes := 0
			writer.Go(func() {
				random := rand.New(rand.NewPCG(1, 2))
				for {
					// Some changes, then the approved bytes again for a while, so that
					// opens succeed and reads of the open file meet the next change.
					for range 1 + random.IntN(8) {
						attack(f, mapping, random.IntN(size))
						changes++
					}
					pause(stop, time.Duration(random.IntN(3))*time.Millisecond)
					f.Truncate(size)
					f.WriteAt(good, 0)
					if pause(stop, time.Duration(random.IntN(20))*time.Millisecond) {
						return
					}
				}
			})
			seconds := strconv.FormatFloat(raceTime(t).Seconds()/2, 'f', 3, 64)
			r := m.run("loop", m.at("model.bin"), sumOf(good), seconds)
			close(stop)
			writer.Wait()
			t.Logf("%d changes; %d reads approved, %d refused or failed, %d wrong; %+v", changes, r.Good, r.Failed, r.Bad, m.stats())
			if r.Bad != 0 {
				t.Errorf("the reader saw bytes that nobody approved: %s", r.Text)
			}
			if r.Text != "" {
				t.Errorf("unexpected outcome: %s", r.Text)
			}
			if r.Good == 0 || r.Failed == 0 || changes < 10 {
				t.Errorf("the race proved nothing: %d reads approved, %d failed, %d changes", r.Good, r.Failed, changes)
			}
			// When the writer stops and the bytes are right, the file opens again.
			touch := time.Now()
			if err := os.Chtimes(p, touch, touch); err != nil {
				t.Fatal(err)
			}
			m.reads("model.bin", good)
		})
	}
}

// pause waits, and reports whether stop came first.
func pause(stop <-chan struct{}, d time.Duration) bool {
	select {
	case <-stop:
		return true
	case <-time.After(d):
		return false
	}
}

// A change that the file's times do not show is found at the next read that
// needs the source, and from then on the file does not open.
func TestLateMismatch(t *testing.T) {
	m := mountEmpty(t)
	good := sample(11, 4*hashpipe.UnitSize)
	p := m.write("model.bin", good)
	m.grant("model.bin", good)
	h := m.hold("model.bin")

	var before unix.Stat_t
	if err := unix.Stat(p, &before); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{good[2*hashpipe.UnitSize] ^ 1}, 2*hashpipe.UnitSize); err != nil {
		t.Fatal(err)
	}
	if r := h.ask("read"); r.Errno != syscall.EIO {
		t.Errorf("reading a changed file through an old handle: %v, want EIO", r)
	}
	if r := h.ask("touch"); r.Errno != syscall.EFAULT {
		t.Errorf("touching a mapping of a changed file: %v, want a fault", r)
	}
	rec := m.lastRecord("model.bin", Failed)
	if rec.Reason != ReasonQuarantined || rec.Detail == "" || rec.Next == "" {
		t.Errorf("record of a late mismatch: %+v", rec)
	}
	if s := m.stats(); s.LateMismatches == 0 || s.Quarantined != 1 {
		t.Errorf("stats after a late mismatch: %+v", s)
	}
	m.refuses("model.bin", syscall.EACCES, ReasonWrongBytes)
	// The holder still reads what is right, and a good copy opens again.
	if _, err := f.WriteAt(good[2*hashpipe.UnitSize:2*hashpipe.UnitSize+1], 2*hashpipe.UnitSize); err != nil {
		t.Fatal(err)
	}
	if r := h.ask("read"); r.SHA256 != sumOf(good) {
		t.Errorf("after the bytes were put back: %v", r)
	}
	m.reads("model.bin", good)
}

// The storage returns other bytes although nothing about the file has changed.
// A quarantined state stays refused even when the bytes are back.
func TestQuarantineHoldsForTheState(t *testing.T) {
	m := mountEmpty(t)
	good := sample(12, 2*hashpipe.UnitSize)
	p := m.write("model.bin", good)
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mapping, err := unix.Mmap(int(f.Fd()), 0, len(good), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapping)
	mapping[0] = good[0] // the page is writable from now on: further stores do not change the times
	m.grant("model.bin", good)
	h := m.hold("model.bin")
	mapping[0] ^= 1
	if r := h.ask("read"); r.Errno != syscall.EIO {
		t.Fatalf("reading after a store through an old mapping: %v, want EIO", r)
	}
	mapping[0] ^= 1
	m.refuses("model.bin", syscall.EACCES, ReasonQuarantined)
	if r := m.run("getxattr", m.at("model.bin"), "user.clawfs.reason"); r.Text != "quarantined" {
		t.Errorf("user.clawfs.reason = %q, want quarantined", r.Text)
	}
	now := time.Now()
	if err := os.Chtimes(p, now, now); err != nil {
		t.Fatal(err)
	}
	m.reads("model.bin", good)
}

// A name that is replaced leads to the new content at once, and who holds the
// old one keeps it.
func TestReplacedFile(t *testing.T) {
	m := mountEmpty(t)
	one, two, evil := sample(13, 900_000), sample(14, 900_000), sample(15, 900_000)
	m.write("model.bin", one)
	m.grant("model.bin", one)
	m.grant("model.bin", two, func(w *terms) { w.sequence = 2 })
	m.reads("model.bin", one)
	h := m.hold("model.bin")
	replace := func(data []byte) {
		t.Helper()
		p := m.write("incoming", data)
		if err := os.Rename(p, filepath.Join(m.src, "model.bin")); err != nil {
			t.Fatal(err)
		}
	}
	replace(two)
	m.reads("model.bin", two)
	replace(evil)
	m.refuses("model.bin", syscall.EACCES, ReasonWrongBytes)
	for range 3 {
		replace(one)
		m.reads("model.bin", one)
		replace(two)
		m.reads("model.bin", two)
	}
	if r := h.ask("touch"); r.SHA256 != sumOf(one) {
		t.Errorf("the old holder's mapping: %v, want the first content", r)
	}
	if r := h.ask("evict"); r.Errno != 0 {
		t.Fatal(r)
	}
	if r := h.ask("read"); r.SHA256 != sumOf(one) {
		t.Errorf("the old holder after eviction: %v, want the first content", r)
	}
}

// The pages of two contents of one size and one time never mix.
func TestSameSizeSameTime(t *testing.T) {
	m := mountEmpty(t)
	one := sample(16, 300_000)
	two := bytes.Clone(one)
	copy(two[100_000:], sample(17, 1000))
	at := time.Now().Add(-time.Hour)
	m.grant("model.bin", one)
	m.grant("model.bin", two, func(w *terms) { w.sequence = 2 })
	for i := range 6 {
		data := [][]byte{one, two}[i%2]
		p := m.write("model.bin", data) // in place
		if err := os.Chtimes(p, at, at); err != nil {
			t.Fatal(err)
		}
		m.reads("model.bin", data)
	}
}

// Evicted pages come from the source again, and are checked again; or from the
// private file, which nobody has written.
func TestEvictionThenTamper(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		sealed := m.seals()
		good := sample(18, (keptUnits+8)*hashpipe.UnitSize) // more than the daemon keeps of what it has checked
		p := m.write("model.bin", good)
		m.grant("model.bin", good)
		h := m.hold("model.bin")
		if r := h.ask("touch"); r.SHA256 != sumOf(good) {
			t.Fatalf("touching: %v", r)
		}
		evil := bytes.Clone(good)
		evil[5] ^= 1
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(evil, 0); err != nil {
			t.Fatal(err)
		}
		if r := h.ask("touch"); r.SHA256 != sumOf(good) {
			t.Errorf("pages that the kernel holds: %v, want the approved bytes", r)
		}
		if r := h.ask("evict"); r.Errno != 0 {
			t.Fatal(r)
		}
		m.evictAll(len(good))
		for how, want := range map[string]syscall.Errno{"touch": syscall.EFAULT, "read": syscall.EIO} {
			r := h.ask(how)
			if sealed && (r.Errno != 0 || r.SHA256 != sumOf(good)) {
				t.Errorf("%s after eviction: %v, want the approved bytes", how, r)
			}
			if !sealed && r.Errno != want {
				t.Errorf("%s after eviction: %v, want %v", how, r, want)
			}
		}
	})
}

// evictAll drops the pages of the files of a size that the server has open: of
// the source, and of the private files, which only root can reach at all.
func (m *mounted) evictAll(size int) {
	m.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", m.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		m.t.Fatal(err)
	}
	dropped := 0
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		// A pipe or a device would block.
		if st, err := os.Stat(p); err != nil || !st.Mode().IsRegular() || st.Size() != int64(size) {
			continue
		}
		f, err := os.Open(p)
		if err != nil {
			m.t.Fatal(err)
		}
		f.Sync()
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			m.t.Fatal(err)
		}
		if !uncached(f, int64(size)) {
			m.t.Errorf("%s stays in memory: this test needs TMPDIR on a disk and Linux 6.5", p)
		}
		f.Close()
		dropped++
	}
	if dropped == 0 {
		m.t.Fatal("the server has no file open: this test shows nothing")
	}
}

func TestShrinkWhileOpen(t *testing.T) {
	m := mountEmpty(t)
	good := sample(19, 3*hashpipe.UnitSize)
	p := m.write("model.bin", good)
	m.grant("model.bin", good)
	h := m.hold("model.bin")
	if err := os.Truncate(p, hashpipe.UnitSize); err != nil {
		t.Fatal(err)
	}
	if r := h.ask("read"); r.Errno != syscall.EIO {
		t.Errorf("reading a file that shrank: %v, want EIO", r)
	}
	m.refuses("model.bin", syscall.EACCES, ReasonWrongSize)
}
