package fs

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// zeros is an endless content that costs no disk.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// sparse puts a file of n zeros into the source, and returns its subject.
func (m *mounted) sparse(name string, n int64, measure bool) capstore.Subject {
	m.t.Helper()
	p := filepath.Join(m.src, name)
	f, err := os.Create(p)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := f.Truncate(n); err != nil {
		m.t.Fatal(err)
	}
	f.Close()
	if !measure {
		// A capability of this size over other bytes: the file has to be hashed.
		s := subject(m.t, name, []byte("other bytes"))
		s.Size = n
		return s
	}
	got, err := hashpipe.Measure(context.Background(), io.LimitReader(zeros{}, n), nil)
	if err != nil {
		m.t.Fatal(err)
	}
	return capstore.Subject{Name: name, Digest: got.Sum().Claim(), Verity: got.Tree().Claim(), Size: n}
}

func (m *mounted) admit(s capstore.Subject) {
	m.t.Helper()
	m.do(request{Op: "admit", Envelope: signed(m.t, m.mint, []capstore.Subject{s})})
}

// huge takes many seconds to hash, on any machine.
const huge = 64 << 30

// waitVerifying returns when a measurement is under way.
func (m *mounted) waitVerifying() {
	m.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if m.stats().Verifying > 0 {
			return
		}
	}
	m.t.Fatal("no measurement began")
}

func TestOneHashForManyOpeners(t *testing.T) {
	m := mountEmpty(t)
	m.admit(m.sparse("model.bin", 256<<20, true))
	const openers = 64
	r := m.run("openloop", m.at("model.bin"), "64")
	if r.Errno != 0 || r.Good != openers || r.SHA256 != sumOf(make([]byte, 4096)) {
		t.Fatalf("%d of %d openers succeeded: %v", r.Good, openers, r)
	}
	s := m.stats()
	if s.Hashed != 1 || s.Trees != 1 || s.Granted != openers {
		t.Errorf("hashed %d times for %d granted opens, want 1 for %d", s.Hashed, s.Granted, openers)
	}
	t.Logf("%+v", s)
}

func TestManyFilesAtOnce(t *testing.T) {
	m := mountEmpty(t)
	const files = 40
	var all sync.WaitGroup
	for i := range files {
		data := sample(byte(i), 100_000)
		name := "model-" + string(rune('a'+i%26)) + string(rune('a'+i/26)) + ".bin"
		if i%2 == 0 {
			m.grant(name, data)
		} else {
			m.grant(name, sample(byte(i+100), 100_000))
		}
		m.write(name, data)
		all.Go(func() {
			r := m.run("read", m.at(name))
			if i%2 == 0 && r.SHA256 != sumOf(data) || i%2 == 1 && r.Errno != syscall.EACCES {
				t.Errorf("%s: %v", name, r)
			}
		})
	}
	all.Wait()
}

// A killed opener is gone at once, and its measurement goes on for the next.
func TestKilledOpener(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			m := mountEmpty(t)
			m.admit(m.sparse("model.bin", huge, false))
			cmd := m.command("read", m.at("model.bin"))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			m.waitVerifying()
			time.Sleep(300 * time.Millisecond)
			began := time.Now()
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			gone := make(chan struct{})
			go func() { cmd.Wait(); close(gone) }()
			select {
			case <-gone:
				t.Logf("gone after %v", time.Since(began).Round(time.Millisecond))
			case <-time.After(10 * time.Second):
				m.do(request{Op: "abandon"})
				m.gone = true
				t.Fatal("the opener hangs")
			}
			if s := m.stats(); s.Verifying != 1 {
				t.Errorf("the measurement ended with its opener: %+v", s)
			}
			if r := m.lastRecord("model.bin", Failed); r.Reason != ReasonInterrupted {
				t.Errorf("record of a killed opener: %+v", r)
			}
		})
	}
}

// A timer signal every 5 ms neither fails an open nor starts the hash again.
func TestTimerSignals(t *testing.T) {
	m := mountEmpty(t)
	s := m.sparse("model.bin", 512<<20, true)
	m.admit(s)
	r := m.run("alarm", m.at("model.bin"))
	if r.Errno != 0 || r.SHA256 != s.Digest.String() {
		t.Fatalf("opening under timer signals: %v (%s)", r, r.Text)
	}
	if s := m.stats(); s.Hashed != 1 || s.Errors != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// A panic in a handler answers its one request, and is counted and told.
func TestPanic(t *testing.T) {
	src, err := openSource(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var told []Record
	f := newFilesystem(Config{View: newDesk(t).view, Log: slog.New(slog.DiscardHandler), HashWorkers: 1,
		Audit: func(r Record) { told = append(told, r) }}, src, noVault(t))
	if st := f.panicked("planted"); st != statusIO {
		t.Errorf("answer to a panic: %v, want EIO", st)
	}
	if n := f.stats().Panics; n != 1 {
		t.Errorf("%d panics counted, want 1", n)
	}
	f.shutdown()
	if len(told) != 1 || told[0].Reason != ReasonPanic || told[0].Decision != Failed || told[0].Detail != "planted" {
		t.Errorf("records: %+v", told)
	}
}

// A slow audit costs records, and no opener waits for it.
func TestAuditNeverBlocks(t *testing.T) {
	release := make(chan struct{})
	a := newAuditor(func(Record) { <-release })
	const extra = 100
	for range auditRing + 1 + extra {
		a.add(Record{Decision: Granted})
	}
	// One record may be with the audit already.
	if n := a.dropped.Load(); n < extra || n > extra+1 {
		t.Errorf("%d records dropped, want %d or one more", n, extra)
	}
	close(release)
	a.close()
}

// Other files open while a long measurement runs on every worker.
func TestSmallFilesPassLargeOnes(t *testing.T) {
	m := mountEmpty(t, func(s *serverSpec) { s.Workers = 1 })
	m.admit(m.sparse("large.bin", huge, false))
	small := sample(20, 50_000)
	m.write("small.bin", small)
	m.grant("small.bin", small)
	cmd := m.command("read", m.at("large.bin"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	m.waitVerifying()
	m.reads("small.bin", small)
	if s := m.stats(); s.Verifying != 1 {
		t.Errorf("the large file was done first: %+v", s)
	}
}

// The end of a mount does not wait for a measurement, and frees its openers.
func TestAbandonWhileMeasuring(t *testing.T) {
	m := mountEmpty(t)
	m.admit(m.sparse("model.bin", huge, false))
	cmd := m.command("read", m.at("model.bin"))
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m.waitVerifying()
	m.do(request{Op: "abandon"})
	m.gone = true
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the opener hangs")
	}
	if r := m.ask(request{Op: "leaks"}); len(r.Leaked) > 0 {
		t.Errorf("descriptors left: %q", r.Leaked)
	}
}

// umount(8) by somebody else ends the server too.
func TestUnmountedByHand(t *testing.T) {
	m := mountEmpty(t)
	good := sample(21, 5000)
	m.write("model.bin", good)
	m.grant("model.bin", good)
	h := m.hold("model.bin")
	if r := m.ask(request{Op: "unmount"}); !strings.Contains(r.Err, "busy") {
		t.Errorf("unmounting while a file is open: %q, want it to say busy", r.Err)
	}
	if r := h.ask("read"); r.SHA256 != sumOf(good) {
		t.Errorf("the holder after a refused unmount: %v", r)
	}
	h.quit()
	var err error
	for range 100 {
		if err = unix.Unmount(m.dir, 0); err != unix.EBUSY {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Fatalf("umount: %v", err)
	}
	if r := m.ask(request{Op: "leaks"}); len(r.Leaked) > 0 {
		t.Errorf("descriptors left: %q", r.Leaked)
	}
	m.do(request{Op: "unmount"}) // it is gone already: not an error
	m.gone = true
}

// When the server is killed, nobody gets bytes and nobody hangs.
func TestKilledServer(t *testing.T) {
	m := mountEmpty(t)
	good := sample(22, 2*hashpipe.UnitSize)
	m.write("model.bin", good)
	m.grant("model.bin", good)
	h := m.hold("model.bin")
	m.gone = true
	if err := m.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	m.cmd.Wait()
	if r := m.run("read", m.at("model.bin")); r.Errno != syscall.ENOTCONN {
		t.Errorf("opening in a dead mount: %v, want ENOTCONN", r)
	}
	if r := h.ask("read"); r.Errno != syscall.ENOTCONN && r.Errno != syscall.EIO {
		t.Errorf("reading from a dead mount: %v, want an error", r)
	}
	h.quit()
	if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
		t.Errorf("clearing a dead mount: %v", err)
	}
}
