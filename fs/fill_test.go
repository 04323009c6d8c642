package fs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// What an open has put into the page cache is read without a request, stays
// right when the source changes, and is checked again once it was evicted.
func TestFill(t *testing.T) {
	good := sample(60, fillFrom+4097)
	m := mountEmpty(t)
	p := m.write("model.bin", good)
	m.grant("model.bin", good)
	h := m.hold("model.bin")
	if s := m.stats(); s.FilledBytes != int64(len(good)) {
		t.Errorf("%d bytes put into the page cache, want %d", s.FilledBytes, len(good))
	}
	for _, how := range []string{"read", "touch"} {
		if r := h.ask(how); r.SHA256 != sumOf(good) {
			t.Errorf("%s: %v, want the approved bytes", how, r)
		}
	}
	// A kernel that reclaims of its own accord may have dropped a few pages.
	if s, units := m.stats(), int64(len(good)/hashpipe.UnitSize); s.UnitsChecked > units/8 {
		t.Errorf("%d of %d units were read again, want at most an eighth", s.UnitsChecked, units)
	}
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{good[9] ^ 1}, 9); err != nil {
		t.Fatal(err)
	}
	if r := h.ask("read"); r.SHA256 != sumOf(good) && r.Errno != syscall.EIO {
		t.Errorf("after a write to the source: %v, want the approved bytes", r)
	}
	if r := h.ask("evict"); r.Errno != 0 {
		t.Fatal(r)
	}
	if r := h.ask("read"); r.Errno != syscall.EIO {
		t.Errorf("after eviction: %v, want EIO", r)
	}
}

func TestFillBudget(t *testing.T) {
	m := mountEmpty(t, func(s *serverSpec) { s.CacheBytes = 3*hashpipe.UnitSize + 5 })
	m.admit(m.sparse("model.bin", fillFrom, true))
	if r := m.run("read", m.at("model.bin")); r.SHA256 != sumOf(make([]byte, fillFrom)) {
		t.Fatal(r)
	}
	if s := m.stats(); s.FilledBytes != 3*hashpipe.UnitSize {
		t.Errorf("%d bytes put into the page cache, want three units", s.FilledBytes)
	}
	none := mountEmpty(t, func(s *serverSpec) { s.CacheBytes = -1 })
	none.admit(none.sparse("model.bin", fillFrom, true))
	if r := none.run("read", none.at("model.bin")); r.SHA256 != sumOf(make([]byte, fillFrom)) {
		t.Fatal(r)
	}
	if s := none.stats(); s.FilledBytes != 0 {
		t.Errorf("%d bytes put into the page cache, want none", s.FilledBytes)
	}
}

// planted is a fill whose kernel is missing: to store anything would panic.
func planted(t *testing.T, good, source []byte) (*desk, *fill) {
	t.Helper()
	d := newDesk(t)
	src, err := openSource(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := newFilesystem(Config{View: d.view, Log: slog.New(slog.DiscardHandler), HashWorkers: 1}, src, noVault(t))
	t.Cleanup(f.shutdown)
	d.grant("model.bin", good)
	m, err := hashpipe.Measure(t.Context(), bytes.NewReader(good), nil)
	if err != nil {
		t.Fatal(err)
	}
	p := proof{tree: m.Tree(), digest: m.Sum().Claim()}
	n := &node{id: 7, path: "model.bin", ident: identity{kind: unix.S_IFREG, size: m.Size()}, bound: p}
	return d, &fill{
		fs: f, node: n, proof: p, file: os.Stdin, units: m.Tree().Units(),
		checked: hashpipe.NewCheckedReader(bytes.NewReader(source), p.tree), done: make(chan struct{}),
	}
}

// A byte that changed between the check of OPEN and the fill is not stored.
func TestFillStoresOnlyCheckedBytes(t *testing.T) {
	good := sample(61, 3*hashpipe.UnitSize)
	for name, change := range map[string]func([]byte) []byte{
		"one bit":   func(b []byte) []byte { b[hashpipe.UnitSize-1] ^= 1; return b },
		"truncated": func(b []byte) []byte { return b[:10] },
		"empty":     func([]byte) []byte { return nil },
	} {
		_, l := planted(t, good, change(bytes.Clone(good)))
		if more, err := l.step(t.Context()); more || !errors.Is(err, hashpipe.ErrChanged) || !l.stopped.Load() {
			t.Errorf("%s: step = %v, %v, want ErrChanged", name, more, err)
		}
	}
}

// Of a content that was revoked nothing more is stored.
func TestFillStopsAtRevocation(t *testing.T) {
	good := sample(62, 3*hashpipe.UnitSize)
	d, l := planted(t, good, good)
	d.revoke(capstore.KindFile, l.proof.digest)
	if more, err := l.step(t.Context()); more || err != nil || !l.stopped.Load() {
		t.Errorf("step after a revocation = %v, %v, want a quiet end", more, err)
	}
	_, l = planted(t, good, good)
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if more, err := l.step(stopped); more || err != nil {
		t.Errorf("step after the end = %v, %v", more, err)
	}
}

// slowFill holds a mount in the middle of a fill of a content that was measured
// before: it returns when some bytes are stored, with the opener that waits.
func slowFill(t *testing.T) (*mounted, capstore.Subject, <-chan result) {
	t.Helper()
	m := mountEmpty(t, func(s *serverSpec) { s.Workers = 1 })
	s := m.sparse("model.bin", 384<<20, true)
	m.admit(s)
	m.why("model.bin")
	opener := m.started("openloop", m.at("model.bin"), "1")
	m.await(func(s Stats) bool { return s.FilledBytes > 0 })
	return m, s, opener
}

func TestRevokedDuringFill(t *testing.T) {
	m, s, opener := slowFill(t)
	m.revoke(capstore.KindFile, s.Digest)
	if r := <-opener; r.Errno != syscall.EACCES || r.Call != "open" {
		t.Errorf("opener: %v, want open: EACCES", r)
	}
	if r := m.lastRecord("model.bin", Refused); r.Reason != ReasonRevoked {
		t.Errorf("record: %+v", r)
	}
	if st := m.stats(); st.FilledBytes >= s.Size {
		t.Errorf("all %d bytes were stored: the revocation came too late to show anything", st.FilledBytes)
	}
}

// Who opened the old content gets the old content, all of it checked; the name
// leads to the new one at once.
func TestReplacedDuringFill(t *testing.T) {
	m, s, opener := slowFill(t)
	p := m.write("incoming", sample(63, 100))
	if err := os.Rename(p, filepath.Join(m.src, "model.bin")); err != nil {
		t.Fatal(err)
	}
	m.refuses("model.bin", syscall.EACCES, ReasonWrongSize)
	if r := <-opener; r.Errno != 0 || r.SHA256 != sumOf(make([]byte, 4096)) {
		t.Errorf("opener of the old content: %v", r)
	}
	if st := m.stats(); st.FilledBytes != s.Size {
		t.Errorf("%d bytes stored, want %d", st.FilledBytes, s.Size)
	}
}

// What is written into the file during the fill is not stored, and the open is
// refused.
func TestTamperedDuringFill(t *testing.T) {
	m, s, opener := slowFill(t)
	f, err := os.OpenFile(filepath.Join(m.src, "model.bin"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{1}, s.Size-1); err != nil {
		t.Fatal(err)
	}
	if r := <-opener; r.Errno != syscall.EACCES || r.Call != "open" {
		t.Errorf("opener: %v, want open: EACCES", r)
	}
	if st := m.stats(); st.FilledBytes >= s.Size || st.LateMismatches != 1 || st.Quarantined != 1 {
		t.Errorf("stats: %+v", st)
	}
}

// A killed mount ends although it was storing pages.
func TestKilledDuringFill(t *testing.T) {
	m, _, opener := slowFill(t)
	m.killed(opener)
}

// killed kills the mount process; it has to end, and so has its opener.
func (m *mounted) killed(opener <-chan result) {
	m.t.Helper()
	m.gone = true
	if err := m.cmd.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- m.cmd.Wait() }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		m.t.Fatal("the killed mount process does not end")
	}
	if r := <-opener; r.Errno != syscall.ENOTCONN && r.Errno != syscall.ECONNABORTED {
		m.t.Errorf("opener: %v, want an error", r)
	}
}

// await waits until the mount's counters are as wanted.
func (m *mounted) await(reached func(Stats) bool) {
	m.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !reached(m.stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			m.t.Fatalf("waited 20 s; stats: %+v", m.stats())
		}
	}
}

// A killed opener is gone at once; the next one has the file.
func TestKilledOpenerDuringFill(t *testing.T) {
	m := mountEmpty(t, func(s *serverSpec) { s.Workers = 1 })
	s := m.sparse("model.bin", 384<<20, true)
	m.admit(s)
	m.why("model.bin")
	cmd := m.command("read", m.at("model.bin"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.await(func(s Stats) bool { return s.FilledBytes > 0 })
	began := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the killed opener was gone after %v", took)
	}
	if r := m.run("openloop", m.at("model.bin"), "4"); r.Errno != 0 || r.Good != 4 {
		t.Errorf("the next openers: %v", r)
	}
	if st := m.stats(); st.FilledBytes != s.Size || st.Hashed != 1 {
		t.Errorf("stats: %+v", st)
	}
}

// The promise again, with content that is stored ahead: a writer changes the
// source through a descriptor while a reader opens, reads and maps.
func TestWriterAgainstFill(t *testing.T) {
	const size = fillFrom + 4097
	good := sample(64, size)
	m := mountEmpty(t)
	p := m.write("model.bin", good)
	m.grant("model.bin", good)
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stop := make(chan struct{})
	var writer sync.WaitGroup
	changes := 0
	writer.Go(func() {
		random := rand.New(rand.NewPCG(3, 4))
		for {
			at := int64(random.IntN(size))
			f.WriteAt([]byte{good[at] ^ 0xff}, at)
			changes++
			pause(stop, time.Duration(200+random.IntN(600))*time.Millisecond)
			f.WriteAt(good[at:at+1], at)
			if pause(stop, time.Duration(500+random.IntN(700))*time.Millisecond) {
				return
			}
		}
	})
	seconds := strconv.FormatFloat(raceTime(t).Seconds(), 'f', 3, 64)
	var r result
	// A slow machine opens a few times in a run; it is repeated until both ends of
	// the race were seen.
	for try := 0; try < 10 && r.Bad == 0 && (r.Good == 0 || r.Failed == 0); try++ {
		one := m.run("loop", m.at("model.bin"), sumOf(good), seconds)
		r.Good, r.Failed, r.Bad, r.Text = r.Good+one.Good, r.Failed+one.Failed, r.Bad+one.Bad, r.Text+one.Text
	}
	close(stop)
	writer.Wait()
	t.Logf("%d changes; %d reads approved, %d refused or failed, %d wrong; %+v", changes, r.Good, r.Failed, r.Bad, m.stats())
	if r.Bad != 0 || r.Text != "" {
		t.Errorf("the reader saw bytes that nobody approved, or an unexpected error: %s", r.Text)
	}
	if r.Good == 0 || r.Failed == 0 {
		t.Errorf("the race proved nothing: %d reads approved, %d failed, %d changes", r.Good, r.Failed, changes)
	}
}

// A source that was not in memory before is not there twice afterwards; one that
// was stays.
func TestSourceDroppedBehind(t *testing.T) {
	m := mountEmpty(t)
	for i, cold := range []bool{true, false} {
		name := []string{"cold.bin", "warm.bin"}[i]
		p := filepath.Join(m.src, name)
		s := bigFile(t, p, fillFrom+int64(i))
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if cold {
			if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				t.Fatal(err)
			}
			if !uncached(f, s.Size) {
				t.Fatalf("%s: the file stays in memory: this test needs TMPDIR on a disk and Linux 6.5", p)
			}
		}
		m.do(request{Op: "admit", Envelope: signed(t, m.mint, []capstore.Subject{s}, func(w *terms) { w.sequence = int64(i + 1) })})
		before := m.stats().FilledBytes
		if r := m.run("openloop", m.at(name), "1"); r.Errno != 0 {
			t.Fatal(r)
		}
		if got := m.stats().FilledBytes - before; got != s.Size {
			t.Errorf("%s: %d bytes put into the page cache, want %d", name, got, s.Size)
		}
		// What the disk still had to deliver goes when it has arrived.
		for until := time.Now().Add(unloadTries * unloadEvery); cold && !uncached(f, s.Size) && time.Now().Before(until); {
			time.Sleep(unloadEvery)
		}
		if got := uncached(f, s.Size); got != cold {
			n, err := cachedBytes(f, s.Size)
			t.Errorf("%s: the source is out of memory: %v, want %v; %d bytes of %d are in the page cache (%v)", name, got, cold, n, s.Size, err)
		}
	}
}
