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
	right, other := subject(t, "x.bin", []byte("content")), subject(t, "y.bin", []byte("another"))
	contradicts := other
	contradicts.Verity = right.Verity
	elsewhere := contradicts
	elsewhere.Size++
	for name, x := range map[string]struct {
		signed []capstore.Subject
		known  bool
	}{
		"nobody signed anything":      {nil, false},
		"one":                         {[]capstore.Subject{right}, true},
		"the same twice":              {[]capstore.Subject{right, right}, true},
		"others beside it":            {[]capstore.Subject{other, right, other}, true},
		"others alone":                {[]capstore.Subject{other, other}, false},
		"two that contradict":         {[]capstore.Subject{right, contradicts}, false},
		"the other way round":         {[]capstore.Subject{contradicts, right}, false},
		"a contradiction among many":  {[]capstore.Subject{right, other, right, contradicts, right}, false},
		"a contradiction of the size": {[]capstore.Subject{right, elsewhere}, true},
	} {
		d := newDesk(t)
		for i, s := range x.signed {
			s.Name = fmt.Sprintf("%d.bin", i)
			d.admit([]capstore.Subject{s})
		}
		c := claims{d.view, right.Size}
		sum, known := c.digest(got.Tree())
		if known != x.known || known && sum != right.Digest || !known && !sum.IsZero() {
			t.Errorf("%s: digest = %s, %v, want known %v", name, sum, known, x.known)
		}
		for _, none := range []*hashpipe.Tree{nil, new(hashpipe.Tree)} {
			if sum, known := c.digest(none); known || !sum.IsZero() {
				t.Errorf("%s: a tree that was not measured stands for %s", name, sum)
			}
		}
	}
}

// Claims and names follow the view.
func TestClaimsFollowTheView(t *testing.T) {
	d := newDesk(t)
	if !(claims{}).none() || !(claims{d.view, 5}).none() {
		t.Error("nothing was signed, and something can be granted")
	}
	if lost := lostName(d.view, "v1/x.bin", "v1/y.bin"); lost != "" {
		t.Errorf("an empty view loses %q", lost)
	}
	d.admit([]capstore.Subject{subject(t, "acme/v1/x.bin", []byte("12345")), subject(t, "z.bin", []byte("123"))})
	s := subject(t, "acme/v1/x.bin", []byte("12345"))
	is := func(d hashpipe.Digest) bool { return d == s.Digest }
	if c := (claims{d.view, 5}); c.none() || !c.any(is) {
		t.Error("nothing of 5 bytes can be granted")
	}
	if c := (claims{d.view, 3}); c.none() || c.any(is) {
		t.Error("content of 5 bytes is among those of 3")
	}
	if c := (claims{d.view, 4}); !c.none() || c.any(is) {
		t.Error("something of 4 bytes can be granted")
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
		if got := lostName(d.view, x.link, x.target); got != x.want {
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
