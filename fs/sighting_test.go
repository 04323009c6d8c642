package fs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// What lies beside a file of a release stays only if somebody can tell that it
// may: a member because it is its output, a stranger because it is none.
func TestBelongs(t *testing.T) {
	one := output{Subject: capstore.Subject{Name: "one.bin", Digest: hashpipe.SumBytes([]byte("one")).Claim(), Size: 3}}
	two := output{Subject: capstore.Subject{Name: "two.bin", Digest: hashpipe.SumBytes([]byte("two's")).Claim(), Size: 5}}
	other := hashpipe.SumBytes([]byte("other")).Claim()
	file := func(size int64) identity { return identity{kind: unix.S_IFREG, size: size} }
	for _, x := range []struct {
		name string
		s    sighting
		want fit
	}{
		{"a member that is it", sighting{member: true, digest: one.Subject.Digest, id: file(3)}, fits},
		{"a member that is another output", sighting{member: true, digest: two.Subject.Digest, id: file(5)}, unfit},
		{"a member of other bytes", sighting{member: true, digest: other, id: file(3)}, unfit},
		{"a member nobody has measured", sighting{member: true, id: file(3)}, untold},
		{"a member of another size", sighting{member: true, id: file(5)}, unfit},
		{"a member that is a pipe", sighting{member: true, id: identity{kind: unix.S_IFIFO, size: 3}}, unfit},
		{"a member that is missing", sighting{member: true, missing: true}, fits},
		{"a member with a fault", sighting{member: true, fault: "being written", digest: one.Subject.Digest, id: file(3)}, unfit},
		{"a stranger", sighting{digest: other, id: file(3)}, fits},
		{"a stranger that is the first output", sighting{digest: one.Subject.Digest, id: file(3)}, unfit},
		{"a stranger that is the second output", sighting{digest: two.Subject.Digest, id: file(5)}, unfit},
		{"a stranger nobody has measured, of the first's size", sighting{id: file(3)}, untold},
		{"a stranger nobody has measured, of the second's size", sighting{id: file(5)}, untold},
		{"a stranger nobody has measured, of no output's size", sighting{id: file(4)}, fits},
		{"a stranger that is a directory", sighting{id: identity{kind: unix.S_IFDIR, size: 3}}, fits},
		{"a stranger that is gone", sighting{missing: true, digest: one.Subject.Digest}, fits},
		{"a stranger with a fault", sighting{fault: "being written"}, unfit},
	} {
		x.s.outputs = []output{one, two}
		if got := x.s.belongs(); got != x.want {
			t.Errorf("%s: belongs = %d, want %d", x.name, got, x.want)
		}
	}
	for _, s := range []sighting{{missing: true, digest: one.Subject.Digest}, {fault: "x", digest: one.Subject.Digest}} {
		if got := s.is(one.Subject); got != unfit {
			t.Errorf("%+v: is = %d, want %d", s, got, unfit)
		}
	}
}

// A directory of more names than are asked for is as good as unreadable: nobody
// knows what else is in it.
func TestEntries(t *testing.T) {
	dir := t.TempDir()
	var want []string
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range 300 { // more than one buffer of the kernel's
		name := fmt.Sprintf("%0200d", i)
		if err := os.WriteFile(filepath.Join(dir, "d", name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		want = append(want, name)
	}
	want = append(want, ".", "..")
	slices.Sort(want)
	s, err := openSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for limit, known := range map[int]bool{300: true, 301: true, 1000: true, 299: false, 1: false, 0: false} {
		got := s.entries("d", limit)
		slices.Sort(got)
		if known && !slices.Equal(got, want) || !known && got != nil {
			t.Errorf("entries of 300 files, limit %d: %d names, want all: %v", limit, len(got), known)
		}
	}
	for _, no := range []string{"none", "d/" + want[2], ".."} {
		if got := s.entries(no, 10); got != nil {
			t.Errorf("entries(%.20q) = %q, want none", no, got)
		}
	}
}

func TestFirstLink(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("b", filepath.Join(dir, "a/link")); err != nil {
		t.Fatal(err)
	}
	s, err := openSource(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if link, rest, err := s.firstLink("a/link/c/d"); link != "a/link" || rest != "c/d" || err != nil {
		t.Errorf("firstLink = %q, %q, %v", link, rest, err)
	}
	// The last component is not looked at: whoever asks has seen that a directory
	// on the way is a link.
	for _, p := range []string{"a/b/c", "a/link", "none/link/c", "a"} {
		if link, rest, err := s.firstLink(p); err == nil || link != "" || rest != "" {
			t.Errorf("firstLink(%q) = %q, %q, %v, want an error", p, link, rest, err)
		}
	}
}
