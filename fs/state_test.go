package fs

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// A tree stands for a hash only where nobody signed it together with another.
func TestDigestOfTree(t *testing.T) {
	got, err := hashpipe.Measure(t.Context(), bytes.NewReader([]byte("content")), nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := hashpipe.Measure(t.Context(), bytes.NewReader([]byte("other")), nil)
	if err != nil {
		t.Fatal(err)
	}
	tree := got.Tree()
	right := claim{got.Sum().Claim(), tree.Claim()}
	beside := claim{other.Sum().Claim(), other.Tree().Claim()}
	contradicts := claim{other.Sum().Claim(), tree.Claim()}
	for name, x := range map[string]struct {
		claims []claim
		known  bool
	}{
		"nobody claims anything":     {nil, false},
		"one":                        {[]claim{right}, true},
		"the same twice":             {[]claim{right, right}, true},
		"others beside it":           {[]claim{beside, right, beside}, true},
		"others alone":               {[]claim{beside, beside}, false},
		"two that contradict":        {[]claim{right, contradicts}, false},
		"the other way round":        {[]claim{contradicts, right}, false},
		"a contradiction among many": {[]claim{right, beside, right, contradicts, right}, false},
	} {
		d, known := digest(x.claims, tree)
		if known != x.known || known && d != right.digest || !known && !d.IsZero() {
			t.Errorf("%s: digest = %s, %v, want known %v", name, d, known, x.known)
		}
	}
	for _, none := range []*hashpipe.Tree{nil, new(hashpipe.Tree)} {
		if d, known := digest([]claim{right, {}}, none); known || !d.IsZero() {
			t.Errorf("a tree that was not measured stands for %s", d)
		}
	}
}

// The indexes follow the view.
func TestIndexesFollowTheView(t *testing.T) {
	d := newDesk(t)
	var claims claimIndex
	var names nameIndex
	if got := claims.of(d.view, 5); len(got) != 0 {
		t.Errorf("claims of an empty view: %v", got)
	}
	if lost := names.lost(d.view, "v1/x.bin", "v1/y.bin"); lost != "" {
		t.Errorf("an empty view loses %q", lost)
	}
	d.admit([]capstore.Subject{subject(t, "acme/v1/x.bin", []byte("12345")), subject(t, "z.bin", []byte("123"))})
	s := subject(t, "acme/v1/x.bin", []byte("12345"))
	if got := claims.of(d.view, 5); len(got) != 1 || got[0] != (claim{s.Digest, s.Verity}) {
		t.Errorf("claims of 5 bytes: %v", got)
	}
	if got := claims.of(d.view, 4); len(got) != 0 {
		t.Errorf("claims of 4 bytes: %v", got)
	}
	for _, x := range []struct{ link, target, want string }{
		{"x.bin", "y.bin", ""}, // "x.bin" alone is nobody's name
		{"acme/v1/x.bin", "acme/v1/y.bin", "acme/v1/x.bin"},
		{"m/acme/v1/x.bin", "store/7", "acme/v1/x.bin"},
		{"m/acme/v1/x.bin", "other/acme/v1/x.bin", ""},
		{"m/acme/v1/x.bin", "acme/v1/x.bin", ""},
		{"m/acme/v1", "m/acme/v2", "acme/v1"},
		{"m/acme/v1", "other/acme/v1", ""},
		{"m/acme/v1", "other/xacme/v1", "acme/v1"},
		{"acme", "other", "acme"},
		{"acme/v1/y.bin", "elsewhere", ""},
		{"z.bin", "elsewhere", "z.bin"},
		{"m/z.bin", "z.bin", ""},
		{"blobs/" + sumOf([]byte("x")), "elsewhere", sumOf([]byte("x"))},
		{"blobs/" + gitIDOf([]byte("x")), "elsewhere", gitIDOf([]byte("x"))},
		{"blobs/" + gitIDOf([]byte("x")), "other/" + gitIDOf([]byte("x")), ""},
	} {
		if got := names.lost(d.view, x.link, x.target); got != x.want {
			t.Errorf("a link %s -> %s loses %q, want %q", x.link, x.target, got, x.want)
		}
	}
}

func TestQuarantineList(t *testing.T) {
	var q quarantine
	id := func(i int) identity { return identity{kind: unix.S_IFREG, ino: uint64(i)} }
	if _, yes := q.has(id(0)); yes || q.count() != 0 {
		t.Error("an empty quarantine has something")
	}
	q.add(id(0), "first")
	q.add(id(0), "again")
	if why, yes := q.has(id(0)); !yes || why != "first" || q.count() != 1 {
		t.Errorf("has = %q, %v, of %d, want the first reason of one", why, yes, q.count())
	}
	for i := range maxQuarantined {
		q.add(id(i), fmt.Sprint(i))
	}
	if q.count() != maxQuarantined {
		t.Errorf("%d entries, want %d", q.count(), maxQuarantined)
	}
	if _, yes := q.has(id(0)); !yes {
		t.Error("the oldest is gone, and there is room for it")
	}
	q.add(id(maxQuarantined), "one more")
	if _, yes := q.has(id(0)); yes || q.count() != maxQuarantined || len(q.why) != maxQuarantined {
		t.Errorf("the oldest is there: %v; %d entries, %d reasons, want %d", yes, q.count(), len(q.why), maxQuarantined)
	}
	for _, i := range []int{1, maxQuarantined} {
		if _, yes := q.has(id(i)); !yes {
			t.Errorf("entry %d is gone", i)
		}
	}
}

// Every part of a state makes it another; a directory is its name alone.
func TestIdentityOf(t *testing.T) {
	base := unix.Stat_t{Mode: unix.S_IFREG | 0o644, Dev: 1, Ino: 2, Size: 3, Mtim: unix.Timespec{Sec: 4, Nsec: 5}, Ctim: unix.Timespec{Sec: 6, Nsec: 7}}
	for name, change := range map[string]func(*unix.Stat_t){
		"kind":        func(s *unix.Stat_t) { s.Mode = unix.S_IFIFO | 0o644 },
		"device":      func(s *unix.Stat_t) { s.Dev++ },
		"inode":       func(s *unix.Stat_t) { s.Ino++ },
		"size":        func(s *unix.Stat_t) { s.Size++ },
		"mtime":       func(s *unix.Stat_t) { s.Mtim.Sec++ },
		"nanoseconds": func(s *unix.Stat_t) { s.Mtim.Nsec++ },
		"ctime":       func(s *unix.Stat_t) { s.Ctim.Nsec++ },
	} {
		other := base
		change(&other)
		if identityOf(&base) == identityOf(&other) {
			t.Errorf("another %s is the same state", name)
		}
	}
	mode := base
	mode.Mode = unix.S_IFREG | 0o600
	if identityOf(&base) != identityOf(&mode) {
		t.Error("another mode alone is another state; its ctime says so")
	}
	one, two := base, base
	one.Mode, two.Mode = unix.S_IFDIR|0o755, unix.S_IFDIR|0o755
	two.Ino, two.Size, two.Ctim.Sec = 9, 9, 9
	if identityOf(&one) != identityOf(&two) {
		t.Error("a directory that changed is another")
	}
	for _, x := range [][3]int64{{10, 20, 20}, {20, 10, 20}, {7, 7, 7}} {
		id := identity{mtime: unix.Timespec{Sec: x[0]}, ctime: unix.Timespec{Sec: x[1]}}
		if got, want := id.settles(), time.Unix(x[2], 0).Add(settled); !got.Equal(want) {
			t.Errorf("mtime %d, ctime %d: settles %v, want %v", x[0], x[1], got, want)
		}
	}
}

func TestGive(t *testing.T) {
	for _, x := range []struct {
		room int
		n    uint32
		want fuse.Status
	}{{0, 5, statusRange}, {4, 5, statusRange}, {5, 5, fuse.OK}, {6, 5, fuse.OK}} {
		dest := make([]byte, x.room)
		n, status := give(dest, []byte("value"))
		if n != x.n || status != x.want || status == fuse.OK && string(dest[:n]) != "value" || status != fuse.OK && !bytes.Equal(dest, make([]byte, x.room)) {
			t.Errorf("room for %d: %d, %v, %q, want %d, %v", x.room, n, status, dest, x.n, x.want)
		}
	}
	if n, status := give(nil, nil); n != 0 || status != fuse.OK {
		t.Errorf("an empty value: %d, %v", n, status)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{"/a": "/a", `/a\040b`: "/a b", `/a\011b\012c`: "/a\tb\nc", `/a\134040`: `/a\040`} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}

// Whoever is sent back for a second try is not sent back again, and others are.
func TestSentBack(t *testing.T) {
	var s sentBack
	for _, x := range []struct {
		pid  uint32
		path string
		want bool
	}{{1, "a", false}, {2, "a", false}, {1, "b", false}, {1, "a", true}, {1, "a", false}, {2, "a", true}} {
		if got := s.again(x.pid, x.path); got != x.want {
			t.Errorf("again(%d, %s) = %v, want %v", x.pid, x.path, got, x.want)
		}
	}
	s.arrived(1, "b")
	if s.again(1, "b") {
		t.Error("who has arrived counts as sent back")
	}
	for i := range uint32(3 * maxTrips) {
		if s.again(100+i, "x"); len(s.at) > maxTrips {
			t.Fatalf("%d callers are remembered, want at most %d", len(s.at), maxTrips)
		}
	}
}
