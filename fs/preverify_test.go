package fs

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

func preverify(s *serverSpec) { s.Preverify = true }

// waits until the counters are as they should be.
func (m *mounted) waits(what string, ok func(Stats) bool) Stats {
	m.t.Helper()
	var s Stats
	for deadline := time.Now().Add(30*time.Second + raceTime(m.t)); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if s = m.stats(); ok(s) {
			return s
		}
	}
	m.t.Fatalf("waiting for %s: %+v", what, s)
	return s
}

func (m *mounted) preverified(n int64) Stats {
	m.t.Helper()
	return m.waits(fmt.Sprint(n, " files to be measured in advance"), func(s Stats) bool { return s.Preverified >= n && s.PreverifyPending == 0 })
}

// readsAtOnce checks that an open gives these bytes and costs no measurement.
func (m *mounted) readsAtOnce(name string, data []byte) {
	m.t.Helper()
	before := m.stats()
	m.reads(name, data)
	if s := m.stats(); s.Hashed != before.Hashed || s.Joined != before.Joined || s.Granted != before.Granted+1 {
		m.t.Errorf("opening %s: %d measured, %d joined, %d granted; want 0, 0 and 1",
			name, s.Hashed-before.Hashed, s.Joined-before.Joined, s.Granted-before.Granted)
	}
}

func (m *mounted) status(name string) string {
	m.t.Helper()
	r := m.run("getxattr", m.at(name), xattrStatus)
	if r.Errno != 0 {
		m.t.Fatalf("getxattr %s: %v", name, r)
	}
	return r.Text
}

// A file is measured before anybody opens it: when it is there at the start, when
// its capability comes later, when it is replaced and when it is written.
func TestPreverify(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		first, later := sample(80, 2_000_000), sample(81, 3_000_001)
		m := mountEmpty(t, choose, preverify, func(s *serverSpec) {
			if err := os.WriteFile(filepath.Join(s.Source, "first.bin"), first, 0o644); err != nil {
				t.Fatal(err)
			}
		})
		m.grant("first.bin", first)
		m.write("a/later.bin", later)
		m.preverified(1)
		if got := m.status("first.bin"); got != "granted" {
			t.Errorf("status before the first open: %q, want granted", got)
		}
		m.readsAtOnce("first.bin", first)
		if s := m.stats(); s.HashedBytes != int64(len(first)) {
			t.Errorf("%d bytes read, and no capability is of the size of the other file", s.HashedBytes-int64(len(first)))
		}
		m.grant("later.bin", later)
		m.preverified(2)
		m.readsAtOnce("a/later.bin", later)

		renamed, written := sample(82, len(later)), sample(83, len(later))
		m.grant("later.bin", renamed)
		m.grant("later.bin", written)
		if err := os.Rename(m.write("elsewhere/new", renamed), filepath.Join(m.src, "a/later.bin")); err != nil {
			t.Fatal(err)
		}
		m.preverified(3)
		m.readsAtOnce("a/later.bin", renamed)
		m.write("a/later.bin", written)
		m.preverified(4)
		m.readsAtOnce("a/later.bin", written)
		evil := bytes.Clone(written)
		evil[7] ^= 1
		m.write("a/later.bin", evil)
		m.preverified(5)
		if got := m.status("a/later.bin"); got != "refused" {
			t.Errorf("status of wrong bytes that nobody has opened: %q, want refused", got)
		}
		m.refuses("a/later.bin", syscall.EACCES, ReasonWrongBytes)
		if s := m.stats(); s.Hashed != 5 || s.Preverified != 5 {
			t.Errorf("%+v, want 5 files measured, all in advance", s)
		}
	})
}

// What no capability can allow is not read, what is no file is not touched, and
// neither is the mount itself.
func TestPreverifyLeavesAlone(t *testing.T) {
	good := sample(84, 50_000)
	outside := filepath.Join(tempDir(t), "model.bin")
	if err := os.WriteFile(outside, good, 0o644); err != nil {
		t.Fatal(err)
	}
	m := mountEmpty(t, preverify)
	m.write("model.bin", good)
	m.write("longer/model.bin", append(bytes.Clone(good), 0))
	m.write("blobs/"+sumOf([]byte("nothing is known of it")), good)
	revoked := sample(85, 60_000)
	m.write("revoked.bin", revoked)
	m.revoke(capstore.KindFile, hashpipe.SumBytes(revoked).Claim())
	expired := sample(86, 70_000)
	m.write("expired.bin", expired)
	if err := os.MkdirAll(filepath.Join(m.src, "links"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Symlink(outside, filepath.Join(m.src, "links/model.bin")),
		os.Symlink(filepath.Dir(outside), filepath.Join(m.src, "links/dir")),
		unix.Mkfifo(filepath.Join(m.src, "fifo"), 0o666),
		unix.Mknod(filepath.Join(m.src, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		os.Mkdir(filepath.Join(m.src, "inner"), 0o755),
		unix.Mount(m.dir, filepath.Join(m.src, "inner"), "", unix.MS_BIND, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { // else the mount cannot end
		if err := unix.Unmount(filepath.Join(m.src, "inner"), 0); err != nil {
			t.Errorf("the mount inside its source: %v", err)
		}
	})
	m.grant("model.bin", good)
	m.grant("revoked.bin", revoked)
	m.grant("expired.bin", expired, func(w *terms) {
		w.notBefore, w.notAfter = w.notBefore.Add(-2*time.Hour), w.notAfter.Add(-2*time.Hour)
	})
	m.grant("null", nil)
	m.preverified(1)
	time.Sleep(settled) // whatever else might be measured is not young any more
	if s := m.stats(); s.Hashed != 1 || s.HashedBytes != int64(len(good)) {
		t.Errorf("%d files and %d bytes measured, want 1 and %d", s.Hashed, s.HashedBytes, len(good))
	}
}

// A file is not measured while somebody writes it, whether he closes it or not,
// and is once he is done.
func TestPreverifyWaitsForTheWriter(t *testing.T) {
	good := sample(87, 1_000_000)
	m := mountEmpty(t, preverify)
	m.grant("closing.bin", good)
	p := m.write("closing.bin", good)
	kept, err := os.Create(filepath.Join(m.src, "keeping.bin"))
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	if err := kept.Truncate(int64(len(good))); err != nil {
		t.Fatal(err)
	}
	var pauses int64 // in which this test did not get to write
	last := time.Now()
	for end := last.Add(3 * settled); last.Before(end); time.Sleep(20 * time.Millisecond) {
		if time.Since(last) > settled/2 {
			pauses++
		}
		last = time.Now()
		if err := os.WriteFile(p, good, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := kept.WriteAt(good[:4096], 0); err != nil {
			t.Fatal(err)
		}
	}
	if s := m.stats(); s.Hashed > 2*pauses {
		t.Errorf("%d files measured while they were written, with %d pauses", s.Hashed, pauses)
	}
	if _, err := kept.WriteAt(good, 0); err != nil {
		t.Fatal(err)
	}
	kept.Close()
	m.waits("both files to be measured", func(s Stats) bool { return s.Preverified >= 2 && s.PreverifyPending == 0 })
	m.readsAtOnce("closing.bin", good)
}

func TestPreverifyTree(t *testing.T) {
	const files = 2000
	m := mountEmpty(t, preverify)
	good, other := sample(88, 3000), sample(89, 3001)
	for i := range files / 2 {
		dir := fmt.Sprintf("%d/%d/%d/", i%10, i/10%10, i)
		m.write(dir+"good.bin", good)
		m.write(dir+"other.bin", other)
	}
	m.grant("good.bin", good)
	m.grant("other.bin", other)
	s := m.preverified(files)
	if s.Hashed != files || s.HashedBytes != files/2*int64(len(good)+len(other)) {
		t.Errorf("%+v, want %d files measured once", s, files)
	}
	m.readsAtOnce("7/4/347/good.bin", good)

	outside := filepath.Join(filepath.Dir(m.src), "new")
	for i := range 20 {
		if err := os.MkdirAll(filepath.Join(outside, fmt.Sprint(i)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(outside, fmt.Sprint(i), "good.bin"), good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(outside, filepath.Join(m.src, "new")); err != nil {
		t.Fatal(err)
	}
	m.preverified(files + 20)
	m.readsAtOnce("new/3/good.bin", good)

	// Watches follow a directory that is moved.
	if err := os.Rename(filepath.Join(m.src, "new"), filepath.Join(m.src, "5/moved")); err != nil {
		t.Fatal(err)
	}
	m.write("5/moved/3/other.bin", other)
	m.preverified(files + 21)
	m.readsAtOnce("5/moved/3/other.bin", other)
	// What is outside is nothing to us.
	if err := os.Rename(filepath.Join(m.src, "5/moved"), outside); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "3/other.bin"), other, 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(settled)
	if s := m.stats(); s.Hashed != files+21 {
		t.Errorf("%d files measured, want %d", s.Hashed, files+21)
	}
}

// The status tells of a measurement, somebody's large file passes it, and the
// mount ends in the middle of it.
func TestPreverifyHuge(t *testing.T) {
	for _, workers := range []int{1, 2} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) { testPreverifyHuge(t, workers) })
	}
}

func testPreverifyHuge(t *testing.T, workers int) {
	m := mountEmpty(t, preverify, func(s *serverSpec) { s.Workers = workers })
	var all []capstore.Subject
	for i := range 8 {
		all = append(all, m.sparse(fmt.Sprintf("huge-%d.bin", i), huge, false))
	}
	large := m.sparse("large.bin", 200<<20, true)
	m.do(request{Op: "admit", Envelope: signed(t, m.mint, all)})
	m.waits("all to be found", func(s Stats) bool { return s.Verifying == 1 && s.PreverifyPending == 8 })
	var verifying, pending int
	for i := range 8 {
		switch got := m.status(fmt.Sprintf("huge-%d.bin", i)); {
		case strings.HasPrefix(got, "verifying ") && strings.HasSuffix(got, "%"):
			verifying++
		case got == "pending":
			pending++
		default:
			t.Errorf("status %q", got)
		}
	}
	if verifying != 1 || pending != 7 {
		t.Errorf("%d files are verifying and %d pending, want 1 and 7", verifying, pending)
	}
	m.admit(large)
	if r := m.run("read", m.at("large.bin")); r.Errno != 0 || r.SHA256 != large.Digest.String() {
		t.Errorf("reading beside: %v", r)
	}
	if s := m.stats(); s.Hashed != 1 || s.Preverified != 0 {
		t.Errorf("%+v, want the large file measured alone", s)
	}
	began := time.Now()
	m.end()
	m.ended = true
	t.Logf("ended after %v", time.Since(began).Round(time.Millisecond))
}

// Private files are made in advance while there is room, and none goes for them.
func TestPreverifySeals(t *testing.T) {
	m := mountEmpty(t, preverify, func(s *serverSpec) { s.Seal, s.SealFrom, s.PrivateBytes = SealCopy, 1, 3_000_000 })
	data := make(map[string][]byte)
	for i, name := range []string{"used.bin", "b.bin", "c.bin", "d.bin"} {
		data[name] = sample(byte(90+i), 1_000_000)
		m.grant(name, data[name])
	}
	m.write("used.bin", data["used.bin"])
	m.reads("used.bin", data["used.bin"]) // young: measured by its opener
	for _, name := range []string{"b.bin", "c.bin", "d.bin"} {
		m.write(name, data[name])
	}
	s := m.preverified(2)
	if s.Private != 3 || s.Hashed != 3 {
		t.Errorf("%+v, want 3 private files, and the fourth file left alone", s)
	}
	m.reads("d.bin", data["d.bin"])
	for _, name := range []string{"used.bin", "d.bin"} {
		if r := m.run("getxattr", m.at(name), xattrTier); r.Text != TierSealed {
			t.Errorf("tier of %s: %q, want %q", name, r.Text, TierSealed)
		}
	}
	if s := m.stats(); s.Private != 3 || s.Unsealed != 0 {
		t.Errorf("%+v, want 3 private files", s)
	}
}

// What no event tells, the next walk finds.
func TestPreverifyWalksAgain(t *testing.T) {
	good := sample(95, 10_000)
	m := mountEmpty(t, preverify, func(s *serverSpec) { s.PreverifyEvery = 1 })
	m.grant("model.bin", good)
	p := m.write("model.bin", good)
	m.preverified(1)
	if err := os.Chmod(p, 0o640); err != nil { // another state of the file
		t.Fatal(err)
	}
	m.preverified(2)
	m.readsAtOnce("model.bin", good)
	time.Sleep(3 * time.Second)
	if s := m.stats(); s.Hashed != 2 {
		t.Errorf("measured %d times, want 2", s.Hashed)
	}
}

// ahead is a file system without a mount. Its pre-verification is yet to begin.
func ahead(t *testing.T, every time.Duration) (*filesystem, *desk, string) {
	t.Helper()
	dir := t.TempDir()
	src, err := openSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := newDesk(t)
	f := newFilesystem(Config{View: d.view, Log: slog.New(slog.DiscardHandler), HashWorkers: 2, Preverify: true, PreverifyEvery: every}, src, noVault(t))
	t.Cleanup(f.shutdown)
	return f, d, dir
}

// Pre-verification rests while anybody waits for something else, begins nothing
// then, and goes on at once for who waits for the same file.
func TestPreverifyRests(t *testing.T) {
	for name, how := range map[string]Verify{"tree": VerifyAuto, "stream": VerifyStream} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, how, treeFrom)
			begin := func(m *measurer) *flight {
				t.Helper()
				p := filepath.Join(b.dir, "huge")
				file, err := os.Create(p)
				if err != nil {
					t.Fatal(err)
				}
				defer file.Close()
				if err := file.Truncate(huge); err != nil {
					t.Fatal(err)
				}
				var st unix.Stat_t
				if err := unix.Fstat(int(file.Fd()), &st); err != nil {
					t.Fatal(err)
				}
				fl := m.ahead(file, identityOf(&st))
				if fl == nil {
					t.Fatal("not begun")
				}
				if again := m.ahead(file, identityOf(&st)); again != nil {
					t.Error("begun twice")
				}
				return fl
			}
			b.desk.admit([]capstore.Subject{{Name: "huge", Size: huge, Digest: hashpipe.SumBytes(nil).Claim(), Verity: subject(t, "x", nil).Verity}})
			m := b.m
			m.workers.Go(func() { m.work(func(t *task) bool { return t.idle && m.awaited == 0 }) })

			// An opener's task, and another one queued behind it on the busy workers.
			var seen atomic.Int64
			busy := make(chan struct{}, 3)
			block := func(hold chan struct{}) func(context.Context) (bool, error) {
				return func(ctx context.Context) (bool, error) {
					busy <- struct{}{}
					select {
					case <-hold:
					case <-ctx.Done():
					}
					return false, nil
				}
			}
			hold := make(chan struct{})
			var fl *flight
			ended := make(chan struct{})
			for range 3 {
				m.submit(&task{step: block(hold), end: func(error) {}, size: huge})
				<-busy
			}
			fl = begin(m)
			m.submit(&task{step: func(context.Context) (bool, error) { return false, nil }, size: huge,
				end: func(error) { seen.Store(fl.bytes.Load()); close(ended) }})
			close(hold)
			<-ended
			if n := seen.Load(); n != 0 {
				t.Errorf("%d bytes were measured in advance while others waited", n)
			}
			moves(t, fl)

			hold = make(chan struct{})
			m.submit(&task{step: block(hold), end: func(error) {}, size: huge})
			<-busy
			stands(t, fl)
			joined, err := m.start(fl.file, fl.id, nil)
			if err != nil || joined != fl {
				t.Fatalf("an opener does not join: %v", err)
			}
			moves(t, fl)
			close(hold)
			if m.underWay() != 1 {
				t.Error("the huge file is done")
			}
		})
	}
}

func moves(t *testing.T, fl *flight) {
	t.Helper()
	from := fl.bytes.Load()
	for deadline := time.Now().Add(20 * time.Second); fl.bytes.Load() == from; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it stands still")
		}
	}
}

// stands returns when nothing has been read for a while.
func stands(t *testing.T, fl *flight) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		from := fl.bytes.Load()
		time.Sleep(200 * time.Millisecond)
		if fl.bytes.Load() == from {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not rest")
		}
	}
}

// A file that the page cache has no room for is not put there.
func TestPreverifyDropsBehind(t *testing.T) {
	f, d, dir := ahead(t, walkEvery)
	f.measure.keepable = func() int64 { return treeFrom }
	for name, size := range map[string]int{"small.bin": treeFrom, "large.bin": treeFrom + 1} {
		data := sample(98, size)
		d.grant(name, data)
		file, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := file.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fadvise(int(file.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		if !uncached(file, int64(size)) {
			t.Fatal("the page cache does not let go: this needs Linux 6.5 and a file system on a disk")
		}
	}
	f.ahead.begin()
	for deadline := time.Now().Add(30 * time.Second); f.stats().Preverified < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%+v, want 2 files measured", f.stats())
		}
	}
	for name, want := range map[string]bool{"small.bin": false, "large.bin": true} {
		file, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if got := uncached(file, treeFrom); got != want {
			t.Errorf("%s is out of the page cache: %v, want %v", name, got, want)
		}
	}
}

// What is remembered of a source has bounds, and so has a walk: everything is
// measured all the same, at the latest when it is opened.
func TestPreverifyBounds(t *testing.T) {
	f, d, dir := ahead(t, walkEvery)
	good := sample(96, 10)
	d.grant("good.bin", good)
	const files = maxPending + 500
	for i := range files {
		for name, size := range map[string]int{"good": len(good), "other": len(good) - 1} {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(name, i)), good[:size], 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	deep := strings.Repeat("d/", maxDepth)
	if err := os.MkdirAll(filepath.Join(dir, deep, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{deep + "good.bin", deep + "d/good.bin"} {
		if err := os.WriteFile(filepath.Join(dir, name), good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const want = files + 1 // of the two deep ones
	time.Sleep(settled)
	f.ahead.begin()
	var most int64
	for deadline := time.Now().Add(60 * time.Second); f.stats().Preverified < want || f.stats().PreverifyPending > 0; time.Sleep(time.Millisecond) {
		most = max(most, f.ahead.count())
		if time.Now().After(deadline) {
			t.Fatalf("%+v, want %d files measured", f.stats(), want)
		}
	}
	if most > maxPending {
		t.Errorf("%d files were pending, want at most %d", most, maxPending)
	}
	if s := f.stats(); s.Hashed != want {
		t.Errorf("%d files measured, want %d", s.Hashed, want)
	}
}

// What no capability wants is read once in advance, however often the source is
// walked. Who opens it has it read again after a while.
func TestPreverifyUnwantedOnce(t *testing.T) {
	f, d, dir := ahead(t, walkEvery)
	d.grant("good.bin", sample(97, 10))
	p := filepath.Join(dir, "other.bin")
	if err := os.WriteFile(p, sample(98, 10), 0o644); err != nil {
		t.Fatal(err)
	}
	old(t, p)
	file, st, err := f.src.open("other.bin")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	id := identityOf(&st)
	fl := f.measure.ahead(file, id)
	if fl == nil {
		t.Fatal("not begun")
	}
	f.measure.workers.Go(func() { f.measure.work(func(t *task) bool { return t.idle }) })
	<-fl.done
	fl.young, fl.ended = false, fl.ended.Add(-refusedFor) // as after a while
	if f.ahead.eligible("other.bin", id) || f.measure.ahead(file, id) != nil {
		t.Error("it is read again although nobody has opened it")
	}
	if again, err := f.measure.start(file, id, nil); err != nil || again == fl {
		t.Errorf("who opens it gets a measurement of long ago (%v)", err)
	}
}

// Directories without a watch, and lost events, are made up for by a walk.
func TestPreverifyUnwatched(t *testing.T) {
	f, d, dir := ahead(t, walkEvery)
	f.ahead.watches.max = 1 // the root
	good := sample(97, 10_000)
	d.grant("good.bin", good)
	p := filepath.Join(dir, "sub", "good.bin")
	if err := os.Mkdir(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func() {
		t.Helper()
		if err := os.WriteFile(p, good, 0o644); err != nil {
			t.Fatal(err)
		}
		time.Sleep(settled)
	}
	preverified := func(want int64) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); f.stats().Preverified != want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%+v, want %d files measured", f.stats(), want)
			}
		}
	}
	write()
	f.ahead.begin()
	preverified(1)
	write()
	time.Sleep(settled)
	preverified(1)
	f.ahead.watches.events <- event{watch: -1, mask: unix.IN_Q_OVERFLOW}
	preverified(2)
}

// A file that changes again and again is measured less and less often, and then
// left to the walks.
func TestPreverifyBacksOff(t *testing.T) {
	f, _, _ := ahead(t, time.Hour)
	p := f.ahead
	p.want("hot.bin")
	last := time.Duration(0)
	for n := 0; p.files["hot.bin"] != nil; n++ {
		if n > 12 {
			t.Fatal("it is never left to the walks")
		}
		p.files["hot.bin"].running = true
		p.running++
		p.finished(preverified{"hot.bin", &flight{err: hashpipe.ErrChanged}})
		if hot := p.files["hot.bin"]; hot != nil {
			wait := time.Until(hot.due).Round(time.Second)
			if n > 1 && wait != 2*last || wait < settled {
				t.Errorf("time %d: waits for %v, after %v before", n, wait, last)
			}
			last = wait
		}
	}
	if last < p.every/4 {
		t.Errorf("left to the walks after a wait of %v", last)
	}
}

// The watch of a directory that is moved has its new path after the next walk,
// and none is left of one that is gone.
func TestWatchesFollowTheWalk(t *testing.T) {
	f, _, dir := ahead(t, walkEvery)
	p := f.ahead
	if !p.watches.open() {
		t.Fatal("no inotify: raise fs.inotify.max_user_instances")
	}
	defer p.watches.close()
	paths := func() (out []string) {
		p.watches.round++
		if !p.walk("", 0) {
			t.Fatal("the walk was cut")
		}
		p.watches.sweep()
		for _, d := range p.watches.dirs {
			out = append(out, d.path)
		}
		slices.Sort(out)
		return out
	}
	if err := os.MkdirAll(filepath.Join(dir, "new/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		from, to string
		want     []string
	}{
		{filepath.Join(dir, "new"), filepath.Join(dir, "a"), []string{"", "a", "a/b"}},
		{filepath.Join(dir, "a"), filepath.Join(dir, "c"), []string{"", "c", "c/b"}},
		{filepath.Join(dir, "c"), filepath.Join(t.TempDir(), "out"), []string{""}},
	} {
		if err := os.Rename(c.from, c.to); err != nil {
			t.Fatal(err)
		}
		if got := paths(); !slices.Equal(got, c.want) {
			t.Errorf("watched: %q, want %q", got, c.want)
		}
	}
}
