package fetch

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/tree"
)

// member is one entry of an archive.
type member struct {
	name, content string
	kind          byte // of a tar; 0 is a regular file
	link          string
}

func corpus(top string) []member {
	return []member{{name: top + "a.txt", content: "alpha"}, {name: top + "d/b.txt", content: strings.Repeat("beta", 5000)}, {name: top + "d/e/c", content: ""}}
}

func rootOf(t *testing.T, files []member) tree.Root {
	t.Helper()
	b := tree.NewBuilder(tree.Data)
	for _, m := range files {
		if err := b.Add(tree.File, m.name, hashpipe.SumBytes([]byte(m.content)), int64(len(m.content))); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Root()
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func tarOf(t *testing.T, members []member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Typeflag: m.kind, Linkname: m.link, Mode: 0o777, Size: int64(len(m.content))}
		if m.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, m.content)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipOf(t *testing.T, members []member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for _, m := range members {
		h := &zip.FileHeader{Name: m.name, Method: zip.Deflate}
		if m.link != "" {
			h.SetMode(os.ModeSymlink | 0o777)
		}
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(f, m.content+m.link)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zst(b []byte) []byte {
	var out bytes.Buffer
	w, _ := zstd.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

// TestArchives: the content tells the kind, whatever the name says, from a
// server and from a file.
func TestArchives(t *testing.T) {
	plain := corpus("")
	root := rootOf(t, plain)
	size := &Size{root.Files, root.Bytes}
	dotted := append([]member{{name: "./", kind: tar.TypeDir}, {name: "./d/", kind: tar.TypeDir}}, corpus("./")...)
	git := append([]member{{name: "corpus/", kind: tar.TypeDir}}, corpus("corpus/")...)
	v7 := tarOf(t, plain)
	for off := 0; off+512 <= len(v7) && v7[off] != 0; {
		// The format of 1979 has no magic, and the checksum is another then.
		block := v7[off : off+512]
		size := 0
		fmt.Sscanf(string(block[124:135]), "%o", &size)
		clear(block[257:])
		copy(block[148:156], "        ")
		sum := 0
		for _, b := range block {
			sum += int(b)
		}
		copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
		off += 512 + (size+511)/512*512
	}
	for name, archive := range map[string][]byte{
		"tar": tarOf(t, plain), "tar.gz": gz(tarOf(t, plain)), "tar.zst": zst(tarOf(t, plain)), "zip": zipOf(t, plain),
		"tar with ./": tarOf(t, dotted), "tar of one directory": tarOf(t, git), "zip of one directory": zipOf(t, corpus("corpus-main/")),
		"zip with directories": zipOf(t, append([]member{{name: "d/"}, {name: "empty/"}}, plain...)), "old tar": v7,
	} {
		for _, remote := range []bool{false, true} {
			c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
			p := place(t, archive)
			if remote {
				p = newSite(t, false, archive, nil).place()
			}
			l, err := c.Tree(t.Context(), root.Digest, size, []Place{p}, nil)
			if err != nil {
				t.Errorf("%s, remote %v: %v\n%v", name, remote, err, j)
				continue
			}
			got, err := tree.Walk(t.Context(), l.Path(), tree.Data, nil)
			if e := Frozen(l.Path()); err != nil || got != root || e != nil {
				t.Errorf("%s: %v, %v, %v, want %v", name, got, err, e, root)
			}
			if left := names(t, filepath.Dir(l.Path())); !slices.Equal(left, []string{"data", "size"}) {
				t.Errorf("%s: the entry holds %q", name, left)
			}
			closeLease(t, l)
			if l, err = c.Tree(t.Context(), root.Digest, nil, nil, nil); err != nil {
				t.Errorf("%s, again and without a size: %v", name, err)
			} else {
				closeLease(t, l)
			}
		}
	}
	// The tree may have that one directory: then nothing is stripped.
	git = corpus("corpus/")
	root = rootOf(t, git)
	c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
	l, err := c.Tree(t.Context(), root.Digest, &Size{root.Files, root.Bytes}, []Place{place(t, tarOf(t, git))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	closeLease(t, l)
}

// TestSingleFile: a file that is no archive, or is not to be unpacked, is a tree
// of one file under the place's name.
func TestSingleFile(t *testing.T) {
	for name, content := range map[string][]byte{
		"text": []byte("a,b\n1,2\n"), "empty": {}, "compressed": gz([]byte("a,b\n")), "zstd": zst(make([]byte, 5000)),
		"archive": tarOf(t, corpus("")), "zip": zipOf(t, corpus("")), "broken gzip": []byte("\x1f\x8bxxxx"),
		"broken zip": []byte("PK\x03\x04xxxx"), "broken zstd": []byte("\x28\xb5\x2f\xfdxxxx"),
	} {
		root := rootOf(t, []member{{name: "train set.csv", content: string(content)}})
		for _, size := range []*Size{{1, int64(len(content))}, nil} {
			c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
			p := newSite(t, false, content, nil).place()
			p.URI = strings.TrimSuffix(p.URI, "file") + "v1/train%20set.csv?download=1"
			l, err := c.Tree(t.Context(), root.Digest, size, []Place{p}, nil)
			if err != nil {
				t.Errorf("%s, size %v: %v\n%v", name, size, err, j)
				continue
			}
			closeLease(t, l)
		}
	}
	c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
	for _, uri := range []string{"/", "", "/..%2f", "/a%5cb", "/a%00b"} {
		s := newSite(t, false, []byte("x"), nil)
		_, err := c.Tree(t.Context(), digest([]byte("x")), &Size{1, 1}, []Place{{URI: s.URL + uri, Trusted: true}}, nil)
		if !errors.As(err, new(*Mismatch)) {
			t.Errorf("a file called %q: %v", uri, err)
		}
	}
}

// forgedZip is a zip of one stored file whose headers say what they like.
func forgedZip(name string, content []byte, size, compressed uint32, flags uint16, count int) []byte {
	var b bytes.Buffer
	put := func(fields ...any) {
		for _, f := range fields {
			binary.Write(&b, binary.LittleEndian, f)
		}
	}
	put([]byte("PK\x03\x04"), uint16(20), flags, uint16(0), uint32(0), crc32.ChecksumIEEE(content), compressed, size, uint16(len(name)), uint16(0), []byte(name), content)
	at := b.Len()
	for range count {
		put([]byte("PK\x01\x02"), uint16(20), uint16(20), flags, uint16(0), uint32(0), crc32.ChecksumIEEE(content), compressed, size,
			uint16(len(name)), uint16(0), uint16(0), uint16(0), uint16(0), uint32(0), uint32(0), []byte(name))
	}
	long := b.Len() - at
	put([]byte("PK\x05\x06"), uint16(0), uint16(0), uint16(count), uint16(count), uint32(long), uint32(at), uint16(0))
	return b.Bytes()
}

func TestArchivesRefuse(t *testing.T) {
	many := make([]member, 40)
	for i := range many {
		many[i] = member{name: fmt.Sprint(i)}
	}
	deep := strings.Repeat("d/", 500)
	var deeps []member
	for i := range 3 {
		deeps = append(deeps, member{name: fmt.Sprint(i, "/", deep, "f")})
	}
	sparse := tarOf(t, []member{{name: "a", content: ""}})
	copy(sparse[156:157], "S")
	fixTar(sparse)
	lying := tarOf(t, []member{{name: "a", content: "x"}})
	copy(lying[124:136], "77777777777\x00")
	fixTar(lying)
	bomb := func(pack func([]byte) []byte) []byte {
		return pack(tarOf(t, []member{{name: "a", content: strings.Repeat("\x00", 4<<20)}}))
	}
	// Directories take no room here and 512 bytes each there.
	dirs := bytes.Repeat(tarOf(t, []member{{name: "d/", kind: tar.TypeDir}})[:512], 40_000)
	for _, c := range []struct {
		name    string
		archive []byte
		want    string
	}{
		{"tar with traversal", tarOf(t, []member{{name: "../a", content: "x"}}), ". or .. components"},
		{"tar with inner traversal", tarOf(t, []member{{name: "d/../../a", content: "x"}}), ". or .. components"},
		{"tar with absolute path", tarOf(t, []member{{name: "/etc/passwd", content: "x"}}), "relative path"},
		{"tar with traversing directory", tarOf(t, []member{{name: "../d/", kind: tar.TypeDir}}), ". or .. components"},
		{"tar with backslash", tarOf(t, []member{{name: `..\a`, content: "x"}}), "backslash"},
		{"tar with line break", tarOf(t, []member{{name: "a\nb", content: "x"}}), "control byte"},
		{"tar with symlink", tarOf(t, []member{{name: "a", kind: tar.TypeSymlink, link: "/etc/passwd"}}), `type '2' at "a"`},
		{"tar with hard link", tarOf(t, []member{{name: "a", kind: tar.TypeLink, link: "/etc/passwd"}}), `type '1' at "a"`},
		{"tar with device", tarOf(t, []member{{name: "a", kind: tar.TypeChar}}), `type '3' at "a"`},
		{"tar with pipe", tarOf(t, []member{{name: "a", kind: tar.TypeFifo}}), `type '6' at "a"`},
		{"tar with sparse file", sparse, "got"},
		{"tar with duplicate", tarOf(t, []member{{name: "a", content: "1"}, {name: "a", content: "2"}}), "a second time"},
		{"tar with duplicate by ./", tarOf(t, []member{{name: "a", content: "1"}, {name: "./a", content: "2"}}), "a second time"},
		{"tar with file as directory", tarOf(t, []member{{name: "a", content: "1"}, {name: "a/b", content: "2"}}), "a second time"},
		{"tar with directory as file", tarOf(t, []member{{name: "a/b", content: "1"}, {name: "a", content: "2"}}), "a second time"},
		{"tar with lying size", lying, "at most 20 files and 1000 bytes"},
		{"tar cut off", tarOf(t, corpus(""))[:700], "got"},
		{"tar of too many files", tarOf(t, many), "at most 20 files"},
		{"tar of too many bytes", tarOf(t, []member{{name: "a", content: strings.Repeat("x", 1001)}}), "at most 20 files and 1000 bytes"},
		{"tar of too many directories above", tarOf(t, deeps), "directories"},
		{"tar with a path too long for this machine", tarOf(t, []member{{name: strings.Repeat("d/", 2047) + "f"}}), "a path that this machine can have"},
		{"gzip bomb", bomb(gz), "at most 20 files and 1000 bytes"},
		{"zstd bomb", bomb(zst), "at most 20 files and 1000 bytes"},
		{"gzip bomb of headers", gz(dirs), "more bytes than an archive of this size has"},
		{"gzip cut off", gz(tarOf(t, corpus("")))[:100], "got"},
		{"zip with traversal", zipOf(t, []member{{name: "../a", content: "x"}}), ". or .. components"},
		{"zip with absolute path", zipOf(t, []member{{name: "/a", content: "x"}}), "relative path"},
		{"zip with drive", zipOf(t, []member{{name: `C:\a`, content: "x"}}), "backslash"},
		{"zip with symlink", zipOf(t, []member{{name: "a", link: "/etc/passwd"}}), "a symlink at"},
		{"zip with duplicate", zipOf(t, []member{{name: "a", content: "1"}, {name: "a", content: "2"}}), "a second time"},
		{"zip with file as directory", zipOf(t, []member{{name: "a", content: "1"}, {name: "a/b", content: "2"}}), "a second time"},
		{"zip of too many files", zipOf(t, many), "at most 20 files"},
		{"zip bomb", zipOf(t, []member{{name: "a", content: strings.Repeat("\x00", 4<<20)}}), "at most 20 files and 1000 bytes"},
		{"zip of overlapping files", forgedZip("a", make([]byte, 900), 900, 900, 0, 5), "at most 20 files and 1000 bytes"},
		{"zip whose size is too small", forgedZip("a", make([]byte, 900), 1, 900, 0, 1), "got"},
		{"zip whose size is too large", forgedZip("a", []byte("x"), 900, 1, 0, 1), "got"},
		{"zip that is shorter than it says", forgedZip("a", []byte("x"), 900, 900, 0, 1), "got"},
		{"zip of an encrypted file", forgedZip("a", []byte("x"), 1, 1, 1, 1), "encrypted"},
		{"zip with a huge directory", forgedZip("a", []byte("x"), 1, 1, 0, 60_000), "a longer directory"},
		{"zip without an end", zipOf(t, corpus(""))[:200], "got"},
		{"something else", []byte("hello"), "an archive"},
		{"nothing", nil, "an archive"},
	} {
		cache, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<30, Options{})
		var seen int64
		_, err := cache.Tree(t.Context(), digest([]byte("x")), &Size{20, 1000}, []Place{place(t, c.archive)}, func(n int64) { seen += n })
		if !errors.As(err, new(*Mismatch)) || !strings.Contains(err.Error(), c.want) || seen > 300<<10 {
			t.Errorf("%s: %v after %d bytes, want %q", c.name, err, seen, c.want)
		}
		if left := append(names(t, cache.dir, "tmp"), names(t, cache.dir, "entries")...); len(left) != 0 || len(j.of(Lied)) != 1 {
			t.Errorf("%s: left %q\n%v", c.name, left, j)
		}
	}
}

func fixTar(block []byte) {
	copy(block[148:156], "        ")
	sum := 0
	for _, b := range block[:512] {
		sum += int(b)
	}
	copy(block[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

// An archive that lies is refused after one download, and one whose parts are
// from two versions is fetched again before anybody is blamed.
func TestArchiveOverHTTP(t *testing.T) {
	good := tarOf(t, corpus(""))
	root := rootOf(t, corpus(""))
	size := &Size{root.Files, root.Bytes}
	s := newSite(t, false, tarOf(t, []member{{name: "../a", content: "x"}}), nil)
	c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
	if _, err := c.Tree(t.Context(), root.Digest, size, []Place{s.place()}, nil); !errors.As(err, new(*Mismatch)) || s.answers() != 1 {
		t.Errorf("%v after %d downloads\n%v", err, s.answers(), j)
	}
	bad := bytes.Clone(good)
	bad[512] ^= 1
	s = newSite(t, false, bad, func(_ http.ResponseWriter, r *http.Request, n int) bool {
		r.Header.Del("If-Range")
		return false
	})
	s.cutAt = 10 << 10
	dir := filepath.Join(t.TempDir(), "cache")
	first, _ := testCache(t, dir, 1<<20, Options{Attempts: 1})
	if _, err := first.Tree(t.Context(), root.Digest, size, []Place{s.place()}, nil); err == nil {
		t.Fatal("half an archive was taken")
	}
	s.set(func() { s.content, s.cutAt = good, 0 })
	c, j = testCache(t, dir, 1<<20, Options{})
	l, err := c.Tree(t.Context(), root.Digest, size, []Place{s.place()}, nil)
	if err != nil || len(j.of(Resumed)) != 1 || len(j.of(Restarted)) != 1 {
		t.Fatalf("%v\n%v", err, j)
	}
	closeLease(t, l)
	// No more of a body is taken than an archive of that size can have.
	s = newSite(t, false, nil, func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		w.Header().Set("Content-Length", "100000000000")
		return true
	})
	if _, err := c.Tree(t.Context(), digest([]byte("x")), size, []Place{s.place()}, nil); !errors.As(err, new(*Mismatch)) || !strings.Contains(err.Error(), "100000000000") {
		t.Errorf("an archive of 100 GB: %v", err)
	}
}

func TestPublicAddresses(t *testing.T) {
	for text, want := range map[string]bool{
		"8.8.8.8": true, "1.1.1.1": true, "100.63.255.255": true, "100.128.0.0": true, "172.32.0.1": true, "2a00:1450::1": true, "2606:4700::1111": true,
		"::ffff:8.8.8.8": true, "64:ff9b::808:808": true,
		"127.0.0.1": false, "127.255.255.254": false, "0.0.0.0": false, "0.1.2.3": false, "10.1.2.3": false, "172.16.0.1": false, "192.168.1.1": false,
		"169.254.169.254": false, "100.64.0.1": false, "100.127.255.255": false, "224.0.0.1": false, "239.1.1.1": false, "240.0.0.1": false,
		"255.255.255.255": false, "192.0.0.1": false, "192.0.2.1": false, "198.18.0.1": false, "198.51.100.1": false, "203.0.113.1": false,
		"::": false, "::1": false, "::127.0.0.1": false, "::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "::ffff:169.254.169.254": false,
		"fe80::1": false, "fec0::1": false, "fc00::1": false, "fd12::1": false, "ff02::1": false, "2001:db8::1": false, "2002:7f00:1::": false,
		"2001::1": false, "64:ff9b::7f00:1": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b:1::1": false, "100::1": false, "3fff::1": false,
	} {
		if got := public(netip.MustParseAddr(text)); got != want {
			t.Errorf("public(%s) = %v, want %v", text, got, want)
		}
	}
	if public(netip.Addr{}) || public(netip.MustParseAddr("2606:4700::1111%eth0")) {
		t.Error("no address, or one with a zone, is public")
	}
}

// FuzzUnpack: whatever an archive holds, nothing is written beside the
// destination, no more than allowed, and nothing but files and directories.
func FuzzUnpack(f *testing.F) {
	tb := &testing.T{}
	for _, b := range [][]byte{tarOf(tb, corpus("")), gz(tarOf(tb, corpus("./"))), zst(tarOf(tb, corpus("x/"))), zipOf(tb, corpus("")),
		tarOf(tb, []member{{name: "a", kind: tar.TypeSymlink, link: "/"}}), forgedZip("../a", []byte("x"), 1, 1, 0, 3)} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		work := t.TempDir()
		in, err := os.Open(place(t, archive).URI)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		w := wanted{most: Size{5, 30_000}}
		err = unpack(t.Context(), in, int64(len(archive)), filepath.Join(work, "found"), w, nil)
		if l := new(local); errors.As(err, &l) {
			t.Fatalf("blames this machine: %v", err)
		}
		if left := names(t, work); len(left) > 1 {
			t.Fatalf("wrote %q", left)
		}
		if err != nil {
			return
		}
		if root, err := tree.Walk(t.Context(), filepath.Join(work, "found"), tree.Data, nil); err == nil && (root.Files > 5 || root.Bytes > 30_000) {
			t.Fatalf("unpacked %v", root)
		} else if err != nil && !strings.Contains(err.Error(), "no files") {
			t.Fatal(err)
		}
	})
}
