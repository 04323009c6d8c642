package fs

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"
)

// A link must not let one approved file, or one approved release, stand in for
// another: whatever name a capability knows stays on the whole way.
func TestLinkKeepsTheName(t *testing.T) {
	m := mountEmpty(t)
	strict, lax := sample(40, 5000), sample(41, 5001)
	one, two := sample(42, 5002), sample(43, 5003)
	m.grant("strict.bin", strict)
	m.grant("lax.bin", lax)
	m.grant("v1/model.bin", one)
	m.grant("v2/model.bin", two)
	m.write("good/lax.bin", lax)
	m.write("good/strict.bin", strict)
	m.write("v1/model.bin", one)
	m.write("x/v1/model.bin", one)
	m.write("blobs/"+sumOf(lax), lax)
	m.write("blobs/"+sumOf(strict), strict)
	for name, target := range map[string]string{
		"a/strict.bin":        "../good/lax.bin",
		"b/strict.bin":        "indirect",
		"b/indirect":          "../good/lax.bin",
		"c/v2":                "../v1",
		"d/sub":               "../v1",
		"e/v2":                "../x/v1/",
		"f/strict.bin":        "../a/./strict.bin",
		"g/" + sumOf(strict):  "../blobs/" + sumOf(lax),
		"h/" + sumOf(strict):  "../good/lax.bin",
		"ok/strict.bin":       "../good/strict.bin",
		"ok/other":            "../good/strict.bin",
		"ok/v1":               "../x/v1",
		"ok/latest":           "../v1",
		"ok/" + sumOf(strict): "../blobs/" + sumOf(strict),
	} {
		p := filepath.Join(m.src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, p); err != nil {
			t.Fatal(err)
		}
	}
	for open, link := range map[string]string{
		"a/strict.bin":       "a/strict.bin",
		"b/strict.bin":       "b/strict.bin",
		"c/v2/model.bin":     "c/v2",
		"e/v2/model.bin":     "e/v2",
		"f/strict.bin":       "a/strict.bin",
		"g/" + sumOf(strict): "g/" + sumOf(strict),
		"h/" + sumOf(strict): "h/" + sumOf(strict),
	} {
		if r := m.run("read", m.at(open)); r.Errno != syscall.EACCES {
			t.Errorf("reading %s: %v, want EACCES", open, r)
			continue
		}
		if rec := m.lastRecord(link, Refused); rec.Reason != ReasonWrongName || rec.Detail == "" || rec.Next == "" {
			t.Errorf("record of the link %s: %+v, want %s", link, rec, ReasonWrongName)
		}
	}
	m.reads("b/indirect", lax)
	m.reads("ok/strict.bin", strict)
	m.reads("ok/other", strict)
	m.reads("ok/v1/model.bin", one)
	m.reads("ok/latest/model.bin", one)
	m.reads("ok/"+sumOf(strict), strict)
	m.reads("d/sub/model.bin", one)
}

// A link that becomes a file while the kernel still knows the link opens at
// once, and so the other way round.
func TestLinkBecomesFile(t *testing.T) {
	m := mountEmpty(t)
	data := sample(44, 5000)
	m.grant("model.bin", data)
	m.write("real/model.bin", data)
	p := filepath.Join(m.src, "model.bin")
	for range 3 {
		if err := os.Symlink("real/model.bin", p); err != nil {
			t.Fatal(err)
		}
		m.reads("model.bin", data)
		if err := os.Rename(m.write("incoming", data), p); err != nil {
			t.Fatal(err)
		}
		m.reads("model.bin", data)
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
}

// A file that takes the place of a FIFO, a socket or a device opens at once, also
// for who is told by its mode that he may not.
func TestSpecialBecomesFile(t *testing.T) {
	m := mountEmpty(t)
	data := sample(46, 5000)
	m.grant("model.bin", data)
	p := filepath.Join(m.src, "model.bin")
	for _, kind := range []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR} {
		if err := unix.Mknod(p, kind|0o666, 0); err != nil {
			t.Fatal(err)
		}
		m.refuses("model.bin", syscall.EACCES, ReasonSpecial)
		if err := os.Rename(m.write("incoming", data), p); err != nil {
			t.Fatal(err)
		}
		if r := m.run("read-as-nobody", m.at("model.bin")); r.SHA256 != sumOf(data) {
			t.Errorf("nobody: %v, want the approved bytes", r)
		}
		m.reads("model.bin", data)
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
}

// Names are bytes. None of them breaks the explanation or makes two records of
// one.
func TestOddNames(t *testing.T) {
	m := mountEmpty(t)
	for _, name := range []string{
		"not\xff\xfeutf8.bin", "line\n{\"decision\":\"granted\"}", "esc\x1b[2Jape", "\u202egnp.exe", "-rf", `"'\`, strings.Repeat("n", 255),
	} {
		m.write(name, []byte("x"))
		if r := m.run("read", m.at(name)); r.Errno != syscall.EACCES {
			t.Errorf("reading %q: %v, want EACCES", name, r)
		}
		r := m.run("getxattr", m.at(name), xattrWhy)
		var e Explanation
		if err := json.Unmarshal([]byte(r.Text), &e, json.RejectUnknownMembers(true)); err != nil {
			t.Errorf("%s of %q: %v: %v", xattrWhy, name, r, err)
			continue
		}
		if want := strings.ToValidUTF8(name, "\uFFFD"); filepath.Base(e.Path) != want && name != "not\xff\xfeutf8.bin" || e.Reason != ReasonNoCapability {
			t.Errorf("%s of %q tells of %q: %s", xattrWhy, name, e.Path, e.Reason)
		}
	}
	long := strings.Repeat("n", 256)
	if r := m.run("read", m.at(long)); r.Errno != syscall.ENAMETOOLONG {
		t.Errorf("a name of 256 bytes: %v, want ENAMETOOLONG", r)
	}
}

// Whoever may write a source file may hold a lease on it, for which the kernel
// makes a blocking open wait 45 seconds.
func TestLease(t *testing.T) {
	m := mountEmpty(t)
	data := sample(45, 5000)
	p := m.write("model.bin", data)
	m.grant("model.bin", data)
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	if r := m.run("read", m.at("model.bin")); r.Errno != syscall.EACCES {
		t.Errorf("reading a file under a lease: %v, want EACCES", r)
	}
	if rec := m.lastRecord("model.bin", Failed); rec.Reason != ReasonUnreadable || !strings.Contains(rec.Detail, "lease") {
		t.Errorf("record: %+v, want one that names the lease", rec)
	}
	if r := m.run("getxattr", m.at("model.bin"), xattrWhy); !strings.Contains(r.Text, "lease") {
		t.Errorf("%s: %v %q, want one that names the lease", xattrWhy, r, r.Text)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	m.reads("model.bin", data)
}

// go-fuse answers for one name in the root by itself. It opens without a
// capability and shows an empty file, whatever the source has there.
func TestNameOfTheLibrary(t *testing.T) {
	m := mountEmpty(t)
	const name = ".go-fuse-epoll-hack"
	m.write(name, []byte("bytes that nobody approved"))
	if r := m.run("read", m.at(name)); r.Errno == 0 && r.Size != 0 {
		t.Errorf("reading %s: %v, want an error or no bytes", name, r)
	}
	for call, flags := range map[string]int{"writing": unix.O_RDWR, "creating": unix.O_RDWR | unix.O_CREAT, "truncating": unix.O_RDONLY | unix.O_TRUNC} {
		if r := m.run("open", m.at(name), strconv.Itoa(flags)); r.Errno != syscall.EROFS {
			t.Errorf("opening %s for %s: %v, want EROFS", name, call, r)
		}
	}
}
