package fs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// anHour of audit mode; tests end it by the clock.
func anHour(s *serverSpec) { s.AuditUntil = time.Now().Add(time.Hour) }

const pastTheHour = 3601 // seconds

// audits checks that a name is served with these bytes, and told with the reason
// that enforcement would have had.
func (m *mounted) audits(name string, data []byte, why Reason) Record {
	m.t.Helper()
	before := m.stats().AuditServed
	m.reads(name, data)
	if now := m.stats().AuditServed; now != before+1 {
		m.t.Errorf("%d opens of %s served by audit mode, want 1", now-before, name)
	}
	rec := m.lastRecord(name, Audited)
	if rec.Reason != why || rec.Detail == "" || rec.Next == "" || rec.PID == 0 || rec.Tier != "" {
		m.t.Errorf("record of %s: %+v, want reason %s", name, rec, why)
	}
	return rec
}

// waitFor waits until the mount has noticed something that it polls for.
func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not in 10 s", what)
		}
	}
}

// planting writes one file for each reason to refuse.
func planting(m *mounted) map[string]Reason {
	good, bad := sample(1, 9000), sample(2, 9000)
	m.grant("model.bin", good)
	m.grant("old.bin", sample(3, 9001), func(w *terms) {
		w.notAfter = w.notAfter.Add(-90 * time.Minute)
		w.notBefore = w.notBefore.Add(-90 * time.Minute)
	})
	m.write("model.bin", good)
	m.write("bytes/model.bin", bad)
	m.write("size/model.bin", bad[1:])
	m.write("stranger.py", []byte("print()"))
	m.write("other-name.bin", good)
	m.write("old.bin", sample(3, 9001))
	m.write("blobs/"+sumOf(good), bad)
	return map[string]Reason{
		"bytes/model.bin": ReasonWrongBytes, "size/model.bin": ReasonWrongSize, "stranger.py": ReasonNoCapability,
		"other-name.bin": ReasonWrongName, "old.bin": ReasonExpired, "blobs/" + sumOf(good): ReasonWrongBytes,
	}
}

func (m *mounted) source(name string) []byte {
	m.t.Helper()
	data, err := os.ReadFile(filepath.Join(m.src, name))
	if err != nil {
		m.t.Fatal(err)
	}
	return data
}

func TestEnforcementIsTheDefault(t *testing.T) {
	for name, change := range map[string]func(*serverSpec){
		"zero": func(*serverSpec) {},
		"past": func(s *serverSpec) { s.AuditUntil = time.Now().Add(-time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			m := mountEmpty(t, change)
			for name, why := range planting(m) {
				m.refuses(name, syscall.EACCES, why)
			}
			m.reads("model.bin", sample(1, 9000))
			if s := m.stats(); s.AuditServed != 0 || s.Granted != 1 {
				t.Errorf("%+v", s)
			}
		})
	}
}

func TestAuditModeServesAndTells(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose, anHour)
		for name, why := range planting(m) {
			rec := m.audits(name, m.source(name), why)
			hashed := why == ReasonWrongBytes || why == ReasonWrongName || why == ReasonExpired
			if hashed != (rec.Digest == sumOf(m.source(name))) || !hashed && rec.Digest != "" {
				t.Errorf("digest in the record of %s (%s): %q", name, why, rec.Digest)
			}
			status := "audited"
			if r := m.run("getxattr", m.at(name), xattrStatus); r.Text != status {
				t.Errorf("status of %s: %q, want %q", name, r.Text, status)
			}
			if r := m.run("getxattr", m.at(name), xattrReason); r.Text != string(why) {
				t.Errorf("reason of %s: %q, want %q", name, r.Text, why)
			}
			var e Explanation
			r := m.run("getxattr", m.at(name), xattrWhy)
			if err := json.Unmarshal([]byte(r.Text), &e, json.RejectUnknownMembers(true)); err != nil || e.Allowed || e.Reason != why || e.Mode != "audit" || !e.Audited || e.AuditUntil == nil {
				t.Errorf("%s of %s: %s (%v)", xattrWhy, name, r.Text, err)
			}
			for _, how := range []string{"mmap-shared", "mmap-private", "pread", "sendfile", "direct"} {
				if r := m.run(how, m.at(name)); r.Errno != 0 || r.SHA256 != sumOf(m.source(name)) {
					t.Errorf("%s of %s: %v", how, name, r)
				}
			}
		}
		if s := m.stats(); s.Refused != 0 || s.Granted != 0 {
			t.Errorf("%+v, want nothing refused", s)
		}
		m.reads("model.bin", sample(1, 9000))
		rec := m.lastRecord("model.bin", Granted)
		if want := m.run("getxattr", m.at("model.bin"), xattrTier).Text; rec.Tier == "" || rec.Tier != want {
			t.Errorf("tier of a granted file: %q in the record, %q in the attribute", rec.Tier, want)
		}
		var e Explanation
		r := m.run("getxattr", m.at("model.bin"), xattrWhy)
		if err := json.Unmarshal([]byte(r.Text), &e); err != nil || !e.Allowed || e.Mode != "audit" || e.Audited {
			t.Errorf("%s of a granted file: %s (%v)", xattrWhy, r.Text, err)
		}
	})
}

// Not even audit mode serves these.
func TestAuditModeRefuses(t *testing.T) {
	m := mountEmpty(t, anHour)
	good, gone := sample(1, 9000), sample(2, 9000)
	m.grant("model.bin", good)
	m.grant("gone.bin", gone)
	m.write("gone.bin", gone)
	m.write("under-another-name.bin", gone)
	m.write("unknown.bin", sample(4, 9000)) // of a size that is hashed
	if err := unix.Mkfifo(filepath.Join(m.src, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.write("model.bin", good)
	if err := os.Mkdir(filepath.Join(m.src, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}

	m.revoke(capstore.KindFile, hashpipe.SumBytes(gone).Claim())
	m.revoke(capstore.KindFile, hashpipe.SumBytes(sample(4, 9000)).Claim())
	m.refuses("gone.bin", syscall.EACCES, ReasonRevoked)
	for name, why := range map[string]Reason{"under-another-name.bin": ReasonWrongName, "unknown.bin": ReasonNoCapability} {
		m.refuses(name, syscall.EACCES, why)
		if r := m.run("getxattr", m.at(name), xattrStatus); r.Text != "refused" {
			t.Errorf("status of %s: %q", name, r.Text)
		}
	}
	m.refuses("pipe", syscall.EACCES, ReasonSpecial)
	for call, errno := range m.run("mutate", m.dir).Errnos {
		if errno != syscall.EROFS {
			t.Errorf("%s: %v, want EROFS", call, errno)
		}
	}
	for _, name := range []string{"unknown.bin", "model.bin"} {
		if r := m.run("open", m.at(name), "2"); r.Errno != syscall.EROFS {
			t.Errorf("opening %s for writing: %v, want EROFS", name, r)
		}
	}
	if r := m.run("read", m.at("nothing")); r.Errno != syscall.ENOENT {
		t.Errorf("a missing file: %v", r)
	}
	if s := m.stats(); s.AuditServed != 0 {
		t.Errorf("%d opens served", s.AuditServed)
	}
	// Granted again, by another capability, it is only under the wrong name.
	m.write("again.bin", sample(5, 9000))
	first := m.grant("fifth.bin", sample(5, 9000))
	m.revoke(capstore.KindCapability, capabilityID(t, m, first))
	m.refuses("again.bin", syscall.EACCES, ReasonWrongName)
	m.grant("fifth.bin", sample(5, 9000), func(w *terms) { w.sequence = 2 })
	m.audits("again.bin", sample(5, 9000), ReasonWrongName)
}

func TestAuditModeHandsOutLinks(t *testing.T) {
	m := mountEmpty(t, anHour)
	outside := filepath.Join(tempDir(t), "outside")
	if err := os.WriteFile(outside, []byte("outside"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.link(outside, "absolute")
	m.reads("absolute", []byte("outside"))
	if rec := m.lastRecord("absolute", Audited); rec.Reason != ReasonSymlink {
		t.Errorf("record: %+v", rec)
	}
	m.do(request{Op: "clock", Shift: pastTheHour})
	m.refuses("absolute", syscall.EACCES, ReasonSymlink)
}

// At its end the mode takes back what it served, whatever the reader has in hand.
func TestAuditModeEnds(t *testing.T) {
	m := mountEmpty(t, anHour, func(s *serverSpec) { s.Log = true })
	good, bad := sample(1, 3*hashpipe.UnitSize), sample(2, 3*hashpipe.UnitSize)
	m.grant("model.bin", good, func(w *terms) { w.notAfter = w.notAfter.Add(24 * time.Hour) })
	m.write("model.bin", good)
	m.write("bad/model.bin", bad)
	m.write("stranger.py", []byte("print()"))
	h, s, granted := m.hold("bad/model.bin"), m.hold("stranger.py"), m.hold("model.bin")
	for _, ask := range []string{"read", "touch"} {
		if r := h.ask(ask); r.SHA256 != sumOf(bad) {
			t.Fatalf("%s in audit mode: %v", ask, r)
		}
		if r := granted.ask(ask); r.SHA256 != sumOf(good) {
			t.Fatalf("%s of a granted file: %v", ask, r)
		}
	}
	if r := s.ask("touch"); r.Errno != 0 {
		t.Fatal(r)
	}
	m.do(request{Op: "clock", Shift: pastTheHour})
	for name, h := range map[string]*holder{"bad/model.bin": h, "stranger.py": s} {
		waitFor(t, "the mapping of "+name+" ends", func() bool { return h.ask("touch").Errno == syscall.EFAULT })
		if r := h.ask("read"); r.Errno != syscall.EIO {
			t.Errorf("reading %s after the end: %v, want EIO", name, r)
		}
		rec := m.lastRecord(name, Cut)
		if !strings.Contains(rec.Detail, "audit mode has ended") || rec.PID == 0 || rec.Reason == "" {
			t.Errorf("record of a handle that was cut: %+v", rec)
		}
	}
	m.refuses("bad/model.bin", syscall.EACCES, ReasonWrongBytes)
	m.refuses("stranger.py", syscall.EACCES, ReasonNoCapability)
	if r := m.run("getxattr", m.at("stranger.py"), xattrStatus); r.Text != "refused" {
		t.Errorf("status after the end: %q", r.Text)
	}
	var e Explanation
	r := m.run("getxattr", m.at("stranger.py"), xattrWhy)
	if err := json.Unmarshal([]byte(r.Text), &e); err != nil || e.Mode != "" || e.Audited || e.AuditUntil != nil {
		t.Errorf("%s after the end: %s (%v)", xattrWhy, r.Text, err)
	}
	m.do(request{Op: "clock", Shift: 0}) // does not bring it back
	m.refuses("bad/model.bin", syscall.EACCES, ReasonWrongBytes)
	if r := granted.ask("read"); r.SHA256 != sumOf(good) {
		t.Errorf("a granted file after the end: %v", r)
	}
	// What is granted now opens checked, although its inode has served unchecked
	// bytes and is still open.
	m.grant("bad/model.bin", bad, func(w *terms) { w.notAfter = w.notAfter.Add(24 * time.Hour) })
	m.reads("bad/model.bin", bad)
	if rec := m.lastRecord("bad/model.bin", Granted); rec.Tier != TierBlocks {
		t.Errorf("record: %+v", rec)
	}
	if r := h.ask("read"); r.Errno != syscall.EIO {
		t.Errorf("the old handle, after the file was granted: %v, want EIO", r)
	}
	for _, h := range []*holder{h, s, granted} {
		h.quit()
	}
	m.end()
	m.ended = true
	said := m.stderr.String()
	if n := strings.Count(said, "level=WARN msg=\"audit mode"); n != 2 || !strings.Contains(said, "audit mode has ended") {
		t.Errorf("%d lines about audit mode, want one at its start and one at its end", n)
	}
}

// The mode ends while readers read and open without a pause.
func TestAuditModeEndsUnderLoad(t *testing.T) {
	m := mountEmpty(t, anHour)
	bad := sample(2, 3*hashpipe.UnitSize+77)
	results := make(chan result, 4)
	for i := range cap(results) {
		name := fmt.Sprintf("bad-%d.bin", i)
		m.write(name, bad)
		go func() { results <- <-m.started("loop until refused", m.at(name), sumOf(bad), "25") }()
	}
	for i := range cap(results) {
		waitFor(t, "each reader has read, and opened again", func() bool {
			n := 0
			for _, r := range m.ask(request{Op: "records"}).Records {
				if r.Path == fmt.Sprintf("bad-%d.bin", i) && r.Decision == Audited {
					n++
				}
			}
			return n > 1
		})
	}
	m.do(request{Op: "clock", Shift: pastTheHour})
	m.refuses("bad-0.bin", syscall.EACCES, ReasonNoCapability)
	for range cap(results) {
		if r := <-results; r.Bad != 0 || r.Text != "" || r.Good == 0 || r.Failed == 0 {
			t.Errorf("%d reads of the bytes, %d failed, %d of others; %s", r.Good, r.Failed, r.Bad, r.Text)
		}
	}
}

// What was promised checked does not become unchecked: a late mismatch is an I/O
// error, and only the next open is served unchecked, by another inode.
func TestAuditModeLateMismatch(t *testing.T) {
	m := mountEmpty(t, anHour)
	good := sample(11, 4*hashpipe.UnitSize)
	p := m.write("model.bin", good)
	m.grant("model.bin", good)
	h := m.hold("model.bin")
	bad := bytes.Clone(good)
	bad[2*hashpipe.UnitSize] ^= 1
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bad, 0); err != nil {
		t.Fatal(err)
	}
	for ask, want := range map[string]syscall.Errno{"read": syscall.EIO, "touch": syscall.EFAULT} {
		if r := h.ask(ask); r.Errno != want {
			t.Errorf("%s of a changed file that was opened checked: %v, want %v", ask, r, want)
		}
	}
	m.audits("model.bin", bad, ReasonWrongBytes)
	if r := h.ask("evict"); r.Errno != 0 {
		t.Fatal(r)
	}
	if r := h.ask("read"); r.Errno != syscall.EIO {
		t.Errorf("the checked handle, beside an unchecked one: %v, want EIO", r)
	}
	if s := m.stats(); s.LateMismatches == 0 || s.Quarantined != 1 {
		t.Errorf("%+v", s)
	}
}

// A state of a file that is in quarantine is served in audit mode, and by another
// inode than the one that has served it checked.
func TestAuditModeQuarantined(t *testing.T) {
	dir, _ := lyingSource(t, "second", 3*hashpipe.UnitSize)
	m := mountEmpty(t, anHour, func(s *serverSpec) { s.Source = dir })
	m.grant("model.bin", sample(50, 3*hashpipe.UnitSize))
	if r := m.run("read", m.at("model.bin")); r.Errno != syscall.EIO {
		t.Fatalf("storage that lies to who reads again: %v, want EIO", r)
	}
	if r := m.run("read", m.at("model.bin")); r.Errno != 0 || r.SHA256 == sumOf(sample(50, 3*hashpipe.UnitSize)) {
		t.Errorf("the lie, in audit mode: %v", r)
	}
	if rec := m.lastRecord("model.bin", Audited); rec.Reason != ReasonQuarantined {
		t.Errorf("record: %+v", rec)
	}
}

// A capability arrives while the file is open unchecked: the next open is checked
// on another inode, and the old handle keeps its own.
func TestAuditModeGrantedMeanwhile(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose, anHour)
		data := sample(1, 2*hashpipe.UnitSize+5)
		p := m.write("model.bin", data)
		old := m.hold("model.bin")
		if r := old.ask("read"); r.SHA256 != sumOf(data) {
			t.Fatal(r)
		}
		m.grant("model.bin", data)
		m.reads("model.bin", data)
		if rec := m.lastRecord("model.bin", Granted); rec.Tier == "" {
			t.Errorf("record: %+v", rec)
		}
		checked := m.hold("model.bin")
		// The source changes: the old handle shows it, the checked one never.
		other := sample(2, len(data))
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(other, 0); err != nil {
			t.Fatal(err)
		}
		for _, h := range []*holder{old, checked} {
			if r := h.ask("evict"); r.Errno != 0 {
				t.Fatal(r)
			}
		}
		for _, ask := range []string{"read", "touch"} {
			if r := old.ask(ask); r.SHA256 != sumOf(other) {
				t.Errorf("%s of the unchecked handle: %v, want what the source has now", ask, r)
			}
			if r := checked.ask(ask); r.SHA256 != sumOf(data) && r.Errno != syscall.EIO && r.Errno != syscall.EFAULT {
				t.Errorf("%s of the checked handle: %v", ask, r)
			}
		}
	})
}

// Revoked while it is open unchecked: it is cut, mapping and all.
func TestAuditModeRevokedMeanwhile(t *testing.T) {
	m := mountEmpty(t, anHour)
	data := sample(1, 9000)
	m.grant("model.bin", data)
	m.write("other.bin", data)
	m.write("stranger.py", []byte("print()"))
	h, s := m.hold("other.bin"), m.hold("stranger.py")
	if r := h.ask("touch"); r.SHA256 != sumOf(data) {
		t.Fatal(r)
	}
	m.revoke(capstore.KindFile, hashpipe.SumBytes(data).Claim())
	if r := h.ask("evict"); r.Errno != 0 {
		t.Fatal(r)
	}
	waitFor(t, "the mapping ends", func() bool { return h.ask("touch").Errno == syscall.EFAULT })
	if r := h.ask("read"); r.Errno != syscall.EIO {
		t.Errorf("reading: %v, want EIO", r)
	}
	if rec := m.lastRecord("other.bin", Cut); rec.Reason != ReasonRevoked || rec.Next == "" {
		t.Errorf("record: %+v", rec)
	}
	m.refuses("other.bin", syscall.EACCES, ReasonWrongName)
	if r := s.ask("read"); r.Errno != 0 {
		t.Errorf("another unchecked file: %v", r)
	}
}

// Granted and not granted content take turns in one name, by rename and in place.
// No reader of a checked handle ever sees the other.
func TestAuditModeTurns(t *testing.T) {
	m := mountEmpty(t, anHour)
	good, bad := sample(1, hashpipe.UnitSize+100), sample(2, hashpipe.UnitSize+100)
	m.grant("model.bin", good)
	p := m.write("model.bin", good)
	turn := map[string]func(data []byte) error{
		"rename":   func(data []byte) error { return os.Rename(m.write("incoming", data), p) },
		"in place": func(data []byte) error { return os.WriteFile(p, data, 0o644) },
	}
	for _, how := range []string{"rename", "in place", "rename", "in place"} {
		for _, data := range [][]byte{bad, good, bad} {
			if err := turn[how](data); err != nil {
				t.Fatal(err)
			}
			want := Granted
			if &data[0] == &bad[0] {
				want = Audited
			}
			h := m.hold("model.bin")
			if r := h.ask("touch"); r.SHA256 != sumOf(data) {
				t.Fatalf("%s: %v, want %.16s", how, r, sumOf(data))
			}
			m.reads("model.bin", data)
			records := m.ask(request{Op: "records"}).Records
			if last := records[len(records)-1]; last.Decision != want {
				t.Errorf("%s: last record %+v, want %s", how, last, want)
			}
			h.quit()
		}
	}
}

// The same against a writer, with readers that open again and again. A record
// says of each open which sort it was; of the two contents nobody sees a mixture.
func TestAuditModeAgainstWriter(t *testing.T) {
	m := mountEmpty(t, anHour)
	good, bad := sample(1, hashpipe.UnitSize+100), sample(2, hashpipe.UnitSize+100)
	m.grant("model.bin", good)
	p := m.write("model.bin", good)
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; !pause(stop, time.Duration(i%7)*5*time.Millisecond); i++ {
			if err := os.Rename(m.write("incoming", [][]byte{bad, good}[i%2]), p); err != nil {
				t.Error(err)
			}
		}
	})
	results := make(chan result, 2)
	for _, sum := range []string{sumOf(good), sumOf(bad)} {
		go func() { results <- <-m.started("loop", m.at("model.bin"), sum, "3") }()
	}
	for range cap(results) {
		r := <-results
		t.Logf("%d of one, %d of the other, %d failed: %s", r.Good, r.Bad, r.Failed, r.Text)
		if r.Good == 0 || r.Bad == 0 {
			t.Error("the race proved nothing")
		}
		if r.Bad > 0 && !strings.Contains(r.Text, sumOf(good)[:16]) && !strings.Contains(r.Text, sumOf(bad)[:16]) {
			t.Errorf("neither content: %s", r.Text)
		}
	}
	close(stop)
	writer.Wait()
	s := m.stats()
	if s.Granted == 0 || s.AuditServed == 0 || s.LateMismatches != 0 {
		t.Errorf("%+v", s)
	}
}

// A large file that enforcement would refuse is hashed first, fills no pages, and
// is served; granted later it is checked, and filled.
func TestAuditModeLargeFile(t *testing.T) {
	m := mountEmpty(t, anHour)
	m.admit(m.sparse("model.bin", fillFrom, false))
	zeros := make([]byte, fillFrom)
	h := m.hold("model.bin")
	if r := h.ask("touch"); r.SHA256 != sumOf(zeros) {
		t.Fatal(r)
	}
	if s := m.stats(); s.FilledBytes != 0 || s.Hashed != 1 || s.AuditServed != 1 {
		t.Errorf("%+v", s)
	}
	if rec := m.lastRecord("model.bin", Audited); rec.Reason != ReasonWrongBytes || rec.Digest != sumOf(zeros) {
		t.Errorf("record: %+v", rec)
	}
	m.grant("model.bin", zeros)
	m.reads("model.bin", zeros)
	if s := m.stats(); s.FilledBytes == 0 || s.Granted != 1 {
		t.Errorf("%+v", s)
	}
	m.do(request{Op: "clock", Shift: pastTheHour})
	waitFor(t, "the mapping ends", func() bool { return h.ask("touch").Errno == syscall.EFAULT })
}

// A mixed release is served, and told.
func TestAuditModeMixedRelease(t *testing.T) {
	one, two := model(1), model(11)
	m := mountEmpty(t, anHour, bindRelease)
	m.release("1.0", one)
	m.release("2.0", two)
	m.put("m", one)
	m.write("m/model-2.bin", two["model-2.bin"])
	m.audits("m/index.json", one["index.json"], ReasonMixedRelease)
	m.write("m/model-2.bin", one["model-2.bin"])
	m.reads("m/index.json", one["index.json"])
	m.lastRecord("m/index.json", Granted)
}

// The types keep the sorts apart, whatever the order of opens.
func TestNodeIsOfOneSort(t *testing.T) {
	f := &filesystem{}
	good := sample(1, 5000)
	got, err := hashpipe.Measure(t.Context(), bytes.NewReader(good), nil)
	if err != nil {
		t.Fatal(err)
	}
	d := newDesk(t)
	d.grant("model.bin", good)
	fl := &flight{proof: proof{tree: got.Tree(), sum: got.Sum(), digest: got.Sum().Claim()}}
	allowed := assessment{verdict: Decide(fl.query("model.bin", time.Now(), ""), d.view.Lookup(fl.digest)), flight: fl}
	if !allowed.verdict.Allowed() {
		t.Fatal(allowed.verdict)
	}
	refusal := assessment{verdict: refused(ReasonWrongBytes, "x", "y"), flight: fl}
	for name, n := range map[string]*node{"bound": {bound: fl.proof}, "early fill": {early: &early{}}} {
		if _, ok := f.newUnchecked(n, refusal, os.Stdin, fuse.Caller{}); ok || n.unchecked {
			t.Errorf("an unchecked handle of a node with checked pages (%s)", name)
		}
	}
	n := &node{}
	if _, ok := f.newUnchecked(n, refusal, os.Stdin, fuse.Caller{}); !ok || !n.unchecked {
		t.Error("no unchecked handle of a fresh node")
	}
	if h, kept, ok := f.newHandle(n, allowed, os.Stdin, fuse.Caller{}); ok || kept || h != nil {
		t.Error("a checked handle of a node that has served unchecked bytes")
	}
	f.server, f.cacheBytes = nil, 1<<30
	if e := f.beginEarly(n, fillFrom, false); e != nil || n.early != nil {
		t.Error("an early fill of a node that has served unchecked bytes")
	}
}

// Whatever is not known by name is not excused.
func TestExcuses(t *testing.T) {
	d := newDesk(t)
	now := time.Now()
	f := &filesystem{view: d.view, clock: newClock(func() time.Time { return now }), auditUntil: now.Add(time.Hour)}
	excused := []Reason{ReasonNoCapability, ReasonWrongSize, ReasonWrongBytes, ReasonWrongName, ReasonMixedRelease, ReasonNotYetValid,
		ReasonExpired, ReasonUnmeasured, ReasonChanging, ReasonQuarantined, ReasonSymlink,
		ReasonRestricted, ReasonQuorum, ReasonDisputed, ReasonStaleList, ReasonStaleDaemon, ReasonNoRule, ReasonOldPolicy}
	for _, r := range append(excused, "", "anything", ReasonGranted, ReasonRevoked, ReasonSpecial, ReasonWrite, ReasonUnreadable, ReasonInterrupted, ReasonTooSlow, ReasonPanic) {
		if got := f.excuses(Verdict{Reason: r}, nil); got != slices.Contains(excused, r) {
			t.Errorf("%q: excused %v", r, got)
		}
	}
	s := &Server{fs: f}
	if !s.AuditUntil().Equal(f.auditUntil) {
		t.Errorf("AuditUntil = %v, want %v", s.AuditUntil(), f.auditUntil)
	}
	now = now.Add(2 * time.Hour)
	if !s.AuditUntil().IsZero() {
		t.Errorf("AuditUntil after the end = %v", s.AuditUntil())
	}
	if f.excuses(Verdict{Reason: ReasonNoCapability}, nil) {
		t.Error("excused after the end")
	}
}

func TestCgroupOf(t *testing.T) {
	for in, want := range map[string]string{
		"":                                       "",
		"0::/\n":                                 "",
		"0::/system.slice/nginx.service\n":       "/system.slice/nginx.service",
		"9:name=systemd:/user.slice\n0::/v2\n":   "/v2",
		"9:name=systemd:/user.slice\n0::/\n":     "/user.slice",
		"9:name=systemd:/\n8:pids:/p\n0::/\n":    "/p",
		"4:memory:/kubepods/pod1\n1:cpu:/x\n":    "/kubepods/pod1",
		"1:cpu,cpuacct:/x\n":                     "",
		"0::/a:b/c:d\n":                          "/a:b/c:d",
		"0::/cut in the mid":                     "",
		"0:/half\n::\n\n0::relative\nnonsense\n": "",
	} {
		if got := cgroupOf(in); got != want {
			t.Errorf("cgroupOf(%q) = %q, want %q", in, got, want)
		}
	}
	r := Record{PID: uint32(os.Getpid())}
	r.identify()
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil || r.Cgroup != cgroupOf(string(own)) || r.Exe == "" || r.Comm == "" {
		t.Errorf("own record: %+v (%v)", r, err)
	}
}
