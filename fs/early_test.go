package fs

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// why has a file measured without opening it.
func (m *mounted) why(name string) {
	m.t.Helper()
	if r := m.run("getxattr", m.at(name), xattrWhy); r.Errno != 0 {
		m.t.Fatalf("%s of %s: %v", xattrWhy, name, r)
	}
}

// The pass that measures a large content also puts it into the page cache.
func TestEarlyFill(t *testing.T) {
	good := sample(80, fillFrom+4097)
	m := mountEmpty(t)
	m.write("model.bin", good)
	m.grant("model.bin", good)
	m.reads("model.bin", good)
	if s := m.stats(); s.FilledBytes != int64(len(good)) || s.Hashed != 1 || s.HashedBytes != int64(len(good)) {
		t.Errorf("stats: %+v, want %d bytes read once and stored", s, len(good))
	}
	m.why("model.bin")
	m.reads("model.bin", good)
	if s := m.stats(); s.FilledBytes != int64(len(good)) {
		t.Errorf("%d bytes stored after a second open, want %d", s.FilledBytes, len(good))
	}
}

// Pages of a content that is refused are there and nobody gets them; when the
// very content is granted later they are what the reader gets.
func TestEarlyFillOfRefused(t *testing.T) {
	expected, there := sample(81, fillFrom+5), sample(82, fillFrom+5)
	m := mountEmpty(t)
	p := m.write("model.bin", there)
	old(t, p)
	m.grant("model.bin", expected)
	m.refuses("model.bin", syscall.EACCES, ReasonWrongBytes)
	if s := m.stats(); s.FilledBytes != int64(len(there)) || s.Handles != 0 {
		t.Errorf("stats: %+v, want %d bytes stored and no handle", s, len(there))
	}
	m.refuses("model.bin", syscall.EACCES, ReasonWrongBytes)
	m.grant("model.bin", there)
	m.reads("model.bin", there)
	if r := m.run("mmap-shared", m.at("model.bin")); r.SHA256 != sumOf(there) {
		t.Errorf("mapping: %v", r)
	}
}

func old(t *testing.T, p string) {
	t.Helper()
	if err := os.Chtimes(p, time.Now().Add(-time.Hour), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
}

// A node whose early pages are not those of the approved content gives no
// handle, and neither does one whose early pass did not end.
func TestEarlyPagesOfOtherContent(t *testing.T) {
	d := newDesk(t)
	src, err := openSource(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := newFilesystem(Config{View: d.view, Log: slog.New(slog.DiscardHandler), HashWorkers: 1}, src, noVault(t))
	t.Cleanup(f.shutdown)
	good, other := sample(83, 5000), sample(84, 5000)
	d.grant("model.bin", good)
	measure := func(data []byte) hashpipe.Measurement {
		got, err := hashpipe.Measure(t.Context(), bytes.NewReader(data), nil)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	m := measure(good)
	fl := &flight{proof: proof{tree: m.Tree(), sum: m.Sum(), digest: m.Sum().Claim()}}
	a := assessment{verdict: f.decide("model.bin", fl, asker{}), flight: fl}
	if !a.verdict.Allowed() {
		t.Fatalf("verdict: %+v", a.verdict)
	}
	for name, c := range map[string]struct {
		early *early
		ok    bool
	}{
		"other content": {stored(measure(other).Tree()), false},
		"unfinished":    {new(early), false},
		"same content":  {stored(measure(good).Tree()), true},
		"none":          {nil, true},
	} {
		file, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		n := &node{id: 7, path: "model.bin", ident: identity{kind: unix.S_IFREG, size: 5000}, early: c.early}
		h, kept, ok := f.newHandle(n, a, file, fuse.Caller{})
		if ok != c.ok || ok != (h != nil) || ok != kept {
			t.Errorf("%s: newHandle = %v, %v, %v, want ok %v", name, h, kept, ok, c.ok)
		}
		if !ok && !n.bound.isZero() {
			t.Errorf("%s: the node was bound", name)
		}
		if !kept {
			file.Close()
		} else {
			h.release()
		}
	}
}

func stored(t *hashpipe.Tree) *early {
	e := new(early)
	e.tree.Store(t)
	return e
}

// A node that has or had a handle gets no early pages: a READ could be under way.
func TestNoEarlyFillBesideHandles(t *testing.T) {
	d := newDesk(t)
	src, err := openSource(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := newFilesystem(Config{View: d.view, Log: slog.New(slog.DiscardHandler), HashWorkers: 1}, src, noVault(t))
	t.Cleanup(f.shutdown)
	f.server = new(connection)
	defer func() { f.server = nil }()
	m, err := hashpipe.Measure(t.Context(), io.LimitReader(zeros{}, 10), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]*node{
		"bound":  {bound: proof{tree: m.Tree()}},
		"open":   {content: new(content)},
		"filled": {fill: new(fill)},
		"twice":  {early: new(early)},
	} {
		if e := f.beginEarly(n, fillFrom, false); e != nil {
			t.Errorf("%s: an early fill began", name)
		}
	}
	if e := f.beginEarly(new(node), fillFrom-1, false); e != nil {
		t.Error("an early fill of a small content began")
	}
	if e := f.beginEarly(new(node), fillFrom, false); e == nil {
		t.Error("no early fill of a fresh node")
	}
}

// What is written into the file while it is measured reaches nobody.
func TestTamperedDuringEarlyFill(t *testing.T) {
	m := mountEmpty(t, func(s *serverSpec) { s.Workers = 1 })
	s := m.sparse("model.bin", 384<<20, true)
	m.admit(s)
	opener := m.started("read", m.at("model.bin"))
	m.await(func(s Stats) bool { return s.FilledBytes > 0 })
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
	// Put right again, the file opens, and what it gives is right everywhere.
	if _, err := f.WriteAt([]byte{0}, s.Size-1); err != nil {
		t.Fatal(err)
	}
	if r := m.run("read", m.at("model.bin")); r.SHA256 != s.Digest.String() {
		t.Errorf("after the file was mended: %v", r)
	}
}

// A killed mount ends although it was storing pages, and its opener too.
func TestKilledDuringEarlyFill(t *testing.T) {
	m := mountEmpty(t, func(s *serverSpec) { s.Workers = 1 })
	m.admit(m.sparse("model.bin", 384<<20, true))
	opener := m.started("openloop", m.at("model.bin"), "1")
	m.await(func(s Stats) bool { return s.FilledBytes > 0 })
	m.killed(opener)
}
