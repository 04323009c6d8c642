package fs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
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

// However many open an unverified file at one time, it is hashed once.
func TestOneHashForManyOpeners(t *testing.T) {
	const openers = 1000
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		m.admit(m.sparse("model.bin", 96<<20, true))
		r := m.run("openloop", m.at("model.bin"), strconv.Itoa(openers))
		if r.Errno != 0 || r.Good != openers || r.SHA256 != sumOf(make([]byte, 4096)) {
			t.Fatalf("%d of %d openers succeeded: %v", r.Good, openers, r)
		}
		s := m.stats()
		if s.Hashed != 1 || s.Trees != 1 || s.Granted != openers || s.Joined == 0 {
			t.Errorf("hashed %d times for %d granted opens, want 1 for %d", s.Hashed, s.Granted, openers)
		}
		t.Logf("%+v", s)
		m.leavesNothing()
	})
}

// Of many files that are opened at one time each gets its own answer.
func TestManyFilesAtOnce(t *testing.T) {
	const files = 1000
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		var right, wrong []capstore.Subject
		want := make(map[string]result)
		for i := range files {
			name, data := fmt.Sprintf("model-%04d.bin", i), sample(byte(i), 20_000+i)
			m.write(name, data)
			if i%2 == 0 {
				right = append(right, subject(t, name, data))
				want[name] = result{SHA256: sumOf(data), Size: int64(len(data))}
			} else {
				wrong = append(wrong, subject(t, name, sample(byte(i+1), 20_000+i)))
				want[name] = result{Call: "open", Errno: syscall.EACCES}
			}
		}
		m.do(request{Op: "admit", Envelope: signed(t, m.mint, right)})
		m.do(request{Op: "admit", Envelope: signed(t, m.mint, wrong, func(w *terms) { w.sequence = 2 })})
		got := m.attack("answers", m.dir, "1000")
		if got.Text != "" || len(got.Results) != files {
			t.Fatalf("%d answers: %s", len(got.Results), got.Text)
		}
		for name, w := range want {
			if g := got.Results[name]; g.Errno != w.Errno || g.Call != w.Call || g.SHA256 != w.SHA256 || g.Size != w.Size {
				t.Errorf("%s: %v, want %v", name, g, w)
			}
		}
		if s := m.stats(); s.Hashed != files || s.Granted != files/2 || s.Refused != files/2 {
			t.Errorf("stats: %+v", s)
		}
		if left, err := os.ReadDir(m.src); err != nil || len(left) != files {
			t.Errorf("%d files in the source (%v), want %d", len(left), err, files)
		}
		m.leavesNothing()
	})
}

// leavesNothing unmounts and looks for descriptors and goroutines that are left.
func (m *mounted) leavesNothing() {
	m.t.Helper()
	m.do(request{Op: "unmount"})
	if r := m.ask(request{Op: "leaks"}); len(r.Leaked) > 0 || r.Stats.Handles+r.Stats.Verifying+r.Stats.Private+r.Stats.PrivateBytes+r.Stats.Panics != 0 {
		m.t.Errorf("left after unmount: %q, %+v", r.Leaked, r.Stats)
	}
	m.ended = true
	// Who has said that it is done may still be returning. Then the Go runtime
	// answers by the stacks of all goroutines.
	time.Sleep(200 * time.Millisecond)
	if err := m.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		m.t.Fatal(err)
	}
	_ = m.cmd.Wait()
	stacks := strings.Split(m.stderr.String(), "\n\n")
	seen := false
	for _, s := range stacks {
		switch {
		case !strings.HasPrefix(s, "goroutine "):
		case strings.Contains(s, "fs.serve("):
			seen = true
		case strings.Contains(s, "clawfs/fs.") || strings.Contains(s, "go-fuse"):
			m.t.Errorf("a goroutine is left after unmount:\n%s", s)
		}
	}
	if !seen {
		m.t.Errorf("the stacks do not show the main goroutine: the test shows nothing\n%s", m.stderr)
	}
}

// A killed opener is gone at once, and its measurement goes on for the next.
func TestKilledOpener(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGTERM} {
			m := mountEmpty(t, choose, func(s *serverSpec) { s.PrivateBytes = 1 << 40 })
			size := int64(huge)
			if strings.Contains(t.Name(), "copy") {
				size = 4 << 30 // is reserved on the disk
			}
			m.admit(m.sparse("model.bin", size, false))
			cmd := m.command("read", m.at("model.bin"))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			m.waitVerifying()
			time.Sleep(200 * time.Millisecond)
			began := time.Now()
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			gone := make(chan struct{})
			go func() { cmd.Wait(); close(gone) }()
			select {
			case <-gone:
				t.Logf("%v: gone after %v", sig, time.Since(began).Round(time.Millisecond))
			case <-time.After(5 * time.Second):
				m.do(request{Op: "abandon"})
				m.gone = true
				t.Fatalf("%v: the opener hangs", sig)
			}
			s := m.stats()
			if s.Verifying != 1 {
				t.Errorf("%v: the measurement ended with its opener: %+v", sig, s)
			}
			if sealed := s.PrivateBytes == size; sealed == strings.HasSuffix(t.Name(), "blocks") {
				t.Errorf("%v: %d bytes of private files, so this is not the tier: %+v", sig, s.PrivateBytes, s)
			}
			if r := m.lastRecord("model.bin", Failed); r.Reason != ReasonInterrupted {
				t.Errorf("%v: record of a killed opener: %+v", sig, r)
			}
			m.end()
			m.ended = true
		}
	})
}

// A timer signal every 5 ms neither fails an open nor starts the hash again.
func TestTimerSignals(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		s := m.sparse("model.bin", 192<<20, true)
		m.admit(s)
		r := m.run("alarm", m.at("model.bin"))
		if r.Errno != 0 || r.SHA256 != s.Digest.String() {
			t.Fatalf("opening under timer signals: %v (%s)", r, r.Text)
		}
		if s := m.stats(); s.Hashed != 1 || s.Errors != 0 {
			t.Errorf("stats: %+v", s)
		}
	})
}

// An open is answered before the kernel cuts the connection for a slow request,
// and its measurement goes on for the next one.
func TestRequestLimit(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "model.bin")
	if err := os.WriteFile(p, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p, huge); err != nil {
		t.Fatal(err)
	}
	src, err := openSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := newDesk(t)
	s := subject(t, "model.bin", []byte("other bytes"))
	s.Size = huge
	d.admit([]capstore.Subject{s})
	f := newFilesystem(Config{View: d.view, Log: slog.New(slog.DiscardHandler), HashWorkers: 1}, src, noVault(t))
	defer f.shutdown()
	f.limit = 300 * time.Millisecond
	st, err := f.src.stat("model.bin")
	if err != nil {
		t.Fatal(err)
	}
	in := &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: f.nodes.lookup("model.bin", &st).id}}
	for range 2 {
		began := time.Now()
		if status := f.Open(nil, in, &fuse.OpenOut{}); status != statusTooSlow || time.Since(began) < f.limit/2 {
			t.Errorf("answered %v after %v, want %v at the limit", status, time.Since(began), statusTooSlow)
		}
	}
	if s := f.stats(); s.Verifying != 1 || s.Hashed != 0 {
		t.Errorf("%+v, want the one measurement to go on", s)
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

// Nor do thirty-two.
func TestSmallFilesPassManyLargeOnes(t *testing.T) {
	const larges, smalls = 32, 50
	m := mountEmpty(t)
	var subjects []capstore.Subject
	for i := range larges {
		subjects = append(subjects, m.sparse(fmt.Sprintf("large-%02d.bin", i), huge, false))
	}
	m.do(request{Op: "admit", Envelope: signed(t, m.mint, subjects)})
	for i := range smalls {
		data := sample(byte(i), 50_000+i)
		m.write(fmt.Sprintf("small-%02d.bin", i), data)
		m.grant(fmt.Sprintf("small-%02d.bin", i), data)
	}
	for i := range larges {
		cmd := m.command("read", m.at(fmt.Sprintf("large-%02d.bin", i)))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
	}
	m.await(func(s Stats) bool { return s.Verifying == larges })
	for i := range smalls {
		m.reads(fmt.Sprintf("small-%02d.bin", i), sample(byte(i), 50_000+i))
	}
	if s := m.stats(); s.Verifying != larges || s.Granted != smalls {
		t.Errorf("a large file was done before the small ones: %+v", s)
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

// When the server is killed while a hundred handles are read and others are being
// opened, nobody is stuck: not the server, and not a client. What is sealed the
// kernel goes on serving.
func TestKilledServerInUse(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose, func(s *serverSpec) { s.PrivateBytes = 1 << 40 })
		sealed := m.seals()
		data := sample(23, 4*hashpipe.UnitSize)
		m.write("model.bin", data)
		m.grant("model.bin", data)
		m.do(request{Op: "admit", Envelope: signed(t, m.mint, []capstore.Subject{m.sparse("large.bin", 4<<30, false)}, func(w *terms) { w.sequence = 9 })})
		h := m.hold("model.bin")
		var clients []*exec.Cmd
		for range 4 {
			c := attacker("handles", m.at("model.bin"), "25")
			out, err := c.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
				t.Fatal(err)
			}
			clients = append(clients, c)
		}
		for range 4 {
			c := m.command("read", m.at("large.bin"))
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			clients = append(clients, c)
		}
		m.waitVerifying()
		if s := m.stats(); s.Handles < 101 {
			t.Fatalf("%d handles, want 101", s.Handles)
		}
		m.gone = true
		if err := m.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		inTime(t, 5*time.Second, "the killed server", func() { m.cmd.Wait() })
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			stuck := 0
			for _, c := range clients {
				if stateOf(c.Process.Pid) == "D" {
					stuck++
				}
			}
			if stuck == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d clients are in uninterruptible sleep 5 s after the server was killed", stuck)
			}
		}
		for _, how := range []string{"touch", "evict", "read", "touch"} {
			r := h.ask(how)
			right := r.Errno == 0 && (how == "evict" || r.SHA256 == sumOf(data))
			dead := r.Errno == syscall.ENOTCONN || r.Errno == syscall.ECONNABORTED || r.Errno == syscall.EIO || r.Errno == syscall.EFAULT
			if !right && (sealed || !dead) {
				t.Errorf("%s after the server was killed: %v", how, r)
			}
		}
		h.quit()
		for _, c := range clients {
			c.Process.Kill()
		}
		for _, c := range clients {
			inTime(t, 5*time.Second, "a client", func() { c.Wait() })
		}
		if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
			t.Errorf("clearing a dead mount: %v", err)
		}
	})
}
