package fs

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// bench measures files as a mount does, without one.
type bench struct {
	t        *testing.T
	desk     *desk
	counters counters
	m        *measurer
	dir      string
}

func newBench(t *testing.T, how Verify, from int64) *bench {
	t.Helper()
	b := &bench{t: t, desk: newDesk(t), dir: t.TempDir()}
	ctx, cancel := context.WithCancel(context.Background())
	b.m = newMeasurer(ctx, 3, how, noVault(t), &b.counters, func(size int64) claims { return claims{b.desk.view, size} }, func(hashpipe.Digest) bool { return false }, func(do func()) bool { do(); return true })
	if how == VerifyAuto {
		b.m.treeFrom = from
	}
	t.Cleanup(func() { cancel(); b.m.wait() })
	return b
}

func (b *bench) measure(name string, data []byte) *flight {
	b.t.Helper()
	p := filepath.Join(b.dir, name)
	if err := os.WriteFile(p, data, 0o600); err != nil {
		b.t.Fatal(err)
	}
	f, err := os.Open(p)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		b.t.Fatal(err)
	}
	fl, err := b.m.start(f, identityOf(&st), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	<-fl.done
	return fl
}

// A refused measurement answers the next openers for a while, so that asking again and
// again costs one pass; then, and at once where a write since may not show, the file is
// measured again. One of a content that a capability names is kept.
func TestRefusedIsMeasuredAgain(t *testing.T) {
	b := newBench(t, VerifyStream, 0)
	var wanted bool
	b.m.wanted = func(hashpipe.Digest) bool { return wanted }
	for _, tt := range []struct {
		name                   string
		ago                    time.Duration
		granted, wanted, young bool
		want                   bool
	}{
		{"just now", 0, false, false, false, true},
		{"just now, and young", 0, false, false, true, true},
		{"a moment ago", 2 * unsettledFor, false, false, false, true},
		{"a moment ago, and young", 2 * unsettledFor, false, false, true, false},
		{"long ago", 2 * refusedFor, false, false, false, false},
		{"long ago, and wanted", 2 * refusedFor, false, true, false, true},
		{"long ago, wanted and young", 2 * refusedFor, false, true, true, false},
		{"long ago, and granted", 2 * refusedFor, true, false, true, true},
	} {
		fl := &flight{ended: time.Now().Add(-tt.ago), young: tt.young}
		fl.granted.Store(tt.granted)
		wanted = tt.wanted
		b.m.mu.Lock()
		got := b.m.reusable(fl)
		b.m.mu.Unlock()
		if got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// A file that cannot be held on to is no measurement, and one that is forgotten takes
// no room.
func TestMeasurementIsForgotten(t *testing.T) {
	b := newBench(t, VerifyStream, 0)
	closed, err := os.CreateTemp(b.dir, "closed")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	if fl, err := b.m.start(closed, identity{kind: unix.S_IFREG}, nil); err == nil || !strings.Contains(err.Error(), "duplicating a descriptor") {
		t.Errorf("a closed file: %v, %v", fl, err)
	}
	fl := b.measure("a", []byte("a"))
	sizes := func() (known, recent, flights int) {
		b.m.mu.Lock()
		defer b.m.mu.Unlock()
		return len(b.m.known), b.m.recent.Len(), len(b.m.flights)
	}
	if known, recent, flights := sizes(); known != 1 || recent != 1 || flights != 0 {
		t.Fatalf("known %d, recent %d, under way %d", known, recent, flights)
	}
	b.m.drop(fl.id)
	if known, recent, flights := sizes(); known+recent+flights != 0 {
		t.Errorf("dropped, and known %d, recent %d, under way %d", known, recent, flights)
	}
}

// Who finds that others work on everything helps, if what they do can be shared.
func TestWorkersHelp(t *testing.T) {
	b := newBench(t, VerifyStream, 0)
	begun, fresh, other := &task{helpers: 1, shared: true}, &task{}, &task{helpers: 1}
	all := func(*task) bool { return true }
	for _, tt := range []struct {
		name  string
		queue []*task
		suits func(*task) bool
		want  *task
	}{
		{"nothing", nil, all, nil},
		{"what nobody works on first", []*task{begun, fresh}, all, fresh},
		{"else the first", []*task{begun, other}, all, begun},
		{"of those that suit", []*task{fresh, begun, other}, func(t *task) bool { return t == other }, other},
		{"none suits", []*task{fresh, begun}, func(*task) bool { return false }, nil},
	} {
		b.m.mu.Lock()
		b.m.queue = tt.queue
		if got := b.m.choose(tt.suits); got != tt.want {
			t.Errorf("%s: %p, want %p", tt.name, got, tt.want)
		}
		b.m.queue = nil
		b.m.mu.Unlock()
	}
}

// A file is young if either of its times is: not every source sets both.
func TestYoung(t *testing.T) {
	now := time.Now()
	at := func(ago time.Duration) unix.Timespec { return unix.NsecToTimespec(now.Add(-ago).UnixNano()) }
	fresh, old := at(0), at(2*settled)
	for _, tt := range []struct {
		mtime, ctime unix.Timespec
		want         bool
	}{{fresh, fresh, true}, {fresh, old, true}, {old, fresh, true}, {old, old, false}} {
		if got := (identity{mtime: tt.mtime, ctime: tt.ctime}).youngAt(now); got != tt.want {
			t.Errorf("mtime %v, ctime %v before: %v, want %v", now.Sub(time.Unix(tt.mtime.Unix())), now.Sub(time.Unix(tt.ctime.Unix())), got, tt.want)
		}
	}
}

// A source that cannot be asked is an error, and no file system without room.
func TestStatFsFails(t *testing.T) {
	f := &filesystem{src: &source{root: -1}}
	var out fuse.StatfsOut
	if status := f.StatFs(nil, nil, &out); status.Ok() {
		t.Errorf("%v, %+v", status, out)
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	f.src.root = int(dir.Fd())
	if status := f.StatFs(nil, nil, &out); !status.Ok() || out.Blocks == 0 || out.NameLen == 0 {
		t.Errorf("%v, %+v", status, out)
	}
}

// lying is a subject whose two digests are of two contents: no honest mint
// signs one, because it takes both in one pass.
func lying(t *testing.T, name string, sum, tree []byte) capstore.Subject {
	s := subject(t, name, sum)
	s.Verity = subject(t, name, tree).Verity
	return s
}

// Both ways of measuring find the same content, and a tree is used only if the
// capabilities name it and agree about it.
func TestTreeAgainstStream(t *testing.T) {
	good := sample(50, 5*hashpipe.UnitSize+77)
	same, other := sample(51, len(good)), sample(52, len(good)+1)
	for _, c := range []struct {
		name  string
		setup func(*desk)
		data  []byte
		tree  bool // and no SHA-256
	}{
		{"granted", func(d *desk) { d.grant("a", good) }, good, true},
		{"granted twice", func(d *desk) {
			d.grant("a", good)
			d.grant("b", good, func(w *terms) { w.sequence = 2 })
		}, good, true},
		{"among others of its size", func(d *desk) {
			d.grant("b", same)
			d.grant("a", good, func(w *terms) { w.sequence = 2 })
		}, good, true},
		{"other bytes of an approved size", func(d *desk) { d.grant("a", good) }, same, false},
		{"other size", func(d *desk) { d.grant("a", good) }, other, false},
		{"nothing is granted", func(*desk) {}, good, false},
		{"two capabilities disagree", func(d *desk) {
			d.grant("a", good)
			d.admit([]capstore.Subject{lying(d.t, "b", same, good)}, func(w *terms) { w.sequence = 2 })
		}, good, false},
		{"a tree of other bytes", func(d *desk) { d.admit([]capstore.Subject{lying(d.t, "a", good, same)}) }, good, false},
		{"small", func(d *desk) { d.grant("a", good[:hashpipe.UnitSize]) }, good[:hashpipe.UnitSize], false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var flights [2]*flight
			for i, how := range []Verify{VerifyAuto, VerifyStream} {
				b := newBench(t, how, hashpipe.UnitSize+1)
				c.setup(b.desk)
				flights[i] = b.measure("a", c.data)
			}
			auto, stream := flights[0], flights[1]
			if auto.err != nil || stream.err != nil {
				t.Fatal(auto.err, stream.err)
			}
			if got := auto.sum.IsZero(); got != c.tree || stream.sum.IsZero() {
				t.Errorf("measured as a tree alone: %v, and by a stream: %v; want %v and never", got, stream.sum.IsZero(), c.tree)
			}
			if !auto.same(stream.proof) || auto.digest != stream.digest || auto.digest.String() != sumOf(c.data) {
				t.Errorf("digests %v and %v of %.16s", auto.digest, stream.digest, sumOf(c.data))
			}
		})
	}
}

// A remembered tree is not believed once a capability contradicts: the file is
// measured again, by its SHA-256.
func TestTreeContradictedLater(t *testing.T) {
	good := sample(53, 3*hashpipe.UnitSize)
	b := newBench(t, VerifyAuto, 1)
	b.desk.grant("a", good)
	p := filepath.Join(b.dir, "a")
	fl := b.measure("a", good)
	if fl.err != nil || !fl.sum.IsZero() {
		t.Fatalf("%v, measured by SHA-256: %v", fl.err, !fl.sum.IsZero())
	}
	b.desk.admit([]capstore.Subject{lying(t, "b", sample(54, len(good)), good)}, func(w *terms) { w.sequence = 2 })
	if fl.holds(claims{b.desk.view, fl.id.size}) {
		t.Error("a contradicted tree holds")
	}
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	again, err := b.m.start(f, fl.id, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-again.done
	if again == fl || again.err != nil || again.sum.String() != sumOf(good) {
		t.Errorf("the contradicted measurement is used again: %v", again.err)
	}
}

// Files that shrink or grow while they are measured as a tree are errors.
func TestTreeOfChangedSize(t *testing.T) {
	good := sample(55, 3*hashpipe.UnitSize)
	for name, size := range map[string]int64{"shrunk": int64(len(good)) - 1, "grown": int64(len(good)) + 1, "emptied": 0} {
		b := newBench(t, VerifyAuto, 1)
		b.desk.grant("a", good)
		p := filepath.Join(b.dir, "a")
		if err := os.WriteFile(p, good, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(p, size); err != nil {
			t.Fatal(err)
		}
		fl, err := b.m.start(f, identityOf(&st), nil)
		if err != nil {
			t.Fatal(err)
		}
		<-fl.done
		if fl.err == nil || !fl.isZero() {
			t.Errorf("%s: measured all the same", name)
		}
	}
}

// Large files through a real mount: what is granted is measured as a tree, what
// is refused is refused with the SHA-256 that it has.
func TestLargeFile(t *testing.T) {
	good := sample(56, treeFrom+4097)
	evil := bytes.Clone(good)
	evil[len(evil)-1] ^= 1
	for _, how := range []Verify{VerifyAuto, VerifyStream} {
		m := mountEmpty(t, func(s *serverSpec) { s.Verify = how })
		m.grant("model.bin", good)
		m.write("model.bin", good)
		m.reads("model.bin", good)
		if s, trees := m.stats(), int64(1-how); s.Hashed != 1 || s.Trees != trees {
			t.Errorf("%+v, want one file hashed, %d as a tree", s, trees)
		}
		if r := m.lastRecord("model.bin", Granted); r.Digest != sumOf(good) {
			t.Errorf("record of a grant: %+v", r)
		}
		if r := m.run("getxattr", m.at("model.bin"), "user.clawfs.digest"); r.Text != sumOf(good) {
			t.Errorf("user.clawfs.digest = %q", r.Text)
		}
		m.write("other.bin", good)
		m.refuses("other.bin", syscall.EACCES, ReasonWrongName)
		m.write("model.bin", evil)
		m.refuses("model.bin", syscall.EACCES, ReasonWrongBytes)
		if r := m.lastRecord("model.bin", Refused); r.Digest != sumOf(evil) || !strings.Contains(r.Detail, "got sha256:"+sumOf(evil)) {
			t.Errorf("record of a refusal: %+v", r)
		}
		m.write("model.bin", good)
		h := m.hold("model.bin")
		m.revoke(capstore.KindFile, hashpipe.SumBytes(good).Claim())
		m.refuses("model.bin", syscall.EACCES, ReasonRevoked)
		if r := h.ask("evict"); r.Errno != 0 {
			t.Error(r)
		}
		if r := h.ask("read"); r.Errno != syscall.EIO {
			t.Errorf("reading a revoked file: %v, want EIO", r)
		}
		h.quit()
	}
}

// Files that wait are not starved by a large one that all workers share.
func TestWorkersTakeTurns(t *testing.T) {
	m := mountEmpty(t, func(s *serverSpec) { s.Workers = 2 })
	m.admit(m.sparse("large.bin", huge, false))
	middle := sample(57, smallFile+1)
	m.write("middle.bin", middle)
	m.grant("middle.bin", middle)
	cmd := m.command("read", m.at("large.bin"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	m.waitVerifying()
	time.Sleep(100 * time.Millisecond)
	m.reads("middle.bin", middle)
	if s := m.stats(); s.Verifying != 1 {
		t.Errorf("the large file was done first: %+v", s)
	}
}
