package fs

import (
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
)

// panicking panics once in an operation of the file system, or, through the clock,
// once below a function of this package.
type panicking struct {
	fuse.RawFileSystem
	op   string
	once *sync.Once
}

func (p panicking) at(op string) {
	if op == p.op {
		p.once.Do(func() { panic("planted in " + op) })
	}
}

func (p panicking) Lookup(c <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	p.at("lookup")
	return p.RawFileSystem.Lookup(c, in, name, out)
}

func (p panicking) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	p.at("getattr")
	return p.RawFileSystem.GetAttr(c, in, out)
}

func (p panicking) Open(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	p.at("open")
	return p.RawFileSystem.Open(c, in, out)
}

func (p panicking) Read(c <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	p.at("read")
	r, st := p.RawFileSystem.Read(c, in, buf)
	p.at("read, late")
	return r, st
}

func (p panicking) Release(c <-chan struct{}, in *fuse.ReleaseIn) {
	p.at("release")
	p.RawFileSystem.Release(c, in)
}

func (p panicking) OpenDir(c <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	p.at("opendir")
	return p.RawFileSystem.OpenDir(c, in, out)
}

func (p panicking) ReadDir(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	p.at("readdir")
	return p.RawFileSystem.ReadDir(c, in, out)
}

func (p panicking) ReadDirPlus(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	p.at("readdir")
	return p.RawFileSystem.ReadDirPlus(c, in, out)
}

func (p panicking) ReleaseDir(in *fuse.ReleaseIn) {
	p.at("releasedir")
	p.RawFileSystem.ReleaseDir(in)
}

func (p panicking) Readlink(c <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	p.at("readlink")
	return p.RawFileSystem.Readlink(c, in)
}

func (p panicking) GetXAttr(c <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	p.at("getxattr")
	return p.RawFileSystem.GetXAttr(c, in, name, dest)
}

func (p panicking) ListXAttr(c <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	p.at("listxattr")
	return p.RawFileSystem.ListXAttr(c, in, dest)
}

func (p panicking) StatFs(c <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	p.at("statfs")
	return p.RawFileSystem.StatFs(c, in, out)
}

// panicsIn is a clock's hook that panics once, below a function of this package.
func panicsIn(function string) func() {
	var done atomic.Bool
	return func() {
		if function == "" || done.Load() {
			return
		}
		pc := make([]uintptr, 64)
		frames := runtime.CallersFrames(pc[:runtime.Callers(2, pc)])
		for {
			f, more := frames.Next()
			if strings.HasSuffix(f.Function, function) && done.CompareAndSwap(false, true) {
				panic("planted below " + function)
			}
			if !more {
				return
			}
		}
	}
}

// A panic in one request is one EIO: there is a record of it, it is counted, and the
// process goes on.
func TestPanicInARequest(t *testing.T) {
	data := sample(2, 300<<10)
	for op, does := range map[string]func(m *mounted) result{
		"lookup":     func(m *mounted) result { return m.run("stat", m.at("m.bin")) },
		"getattr":    func(m *mounted) result { return m.run("stat", m.dir) },
		"open":       func(m *mounted) result { return m.run("read", m.at("m.bin")) },
		"read":       func(m *mounted) result { return m.run("read", m.at("m.bin")) },
		"read, late": func(m *mounted) result { return m.run("read", m.at("m.bin")) },
		"opendir":    func(m *mounted) result { return m.run("list", m.dir) },
		"readdir":    func(m *mounted) result { return m.run("list", m.dir) },
		"readlink":   func(m *mounted) result { return m.run("read", m.at("link.bin")) },
		"getxattr":   func(m *mounted) result { return m.run("getxattr", m.at("m.bin"), "user.clawfs.status") },
		"statfs":     func(m *mounted) result { return statfs(m.dir) },
		"listxattr":  func(m *mounted) result { return listXattr(m.at("m.bin")) },
	} {
		t.Run(op, func(t *testing.T) {
			m := mountEmpty(t, func(s *serverSpec) { s.Panic, s.Panics = op, 1 })
			m.write("m.bin", data)
			if err := os.Symlink("m.bin", m.src+"/link.bin"); err != nil {
				t.Fatal(err)
			}
			m.grant("m.bin", data)
			// A READ that fails the kernel sends once more, page by page.
			if r := does(m); r.Errno != syscall.EIO && !strings.HasPrefix(op, "read,") && op != "read" {
				t.Errorf("the request that panics: %v, want EIO", r)
			}
			if r := does(m); r.Errno != 0 {
				t.Errorf("the next one: %v, want it answered", r)
			}
			m.reads("m.bin", data)
			m.panicked("planted in " + op)
		})
	}
	for _, op := range []string{"release", "releasedir"} { // have no answer
		t.Run(op, func(t *testing.T) {
			m := mountEmpty(t, func(s *serverSpec) { s.Panic, s.Panics = op, 1 })
			m.write("m.bin", data)
			m.grant("m.bin", data)
			for range 2 {
				m.reads("m.bin", data)
				if r := m.run("list", m.dir); r.Errno != 0 || r.Names != 1 {
					t.Errorf("list: %v", r)
				}
			}
			m.panicked("planted in " + op)
		})
	}
}

// A panic outside of requests is a measurement that failed, or work that begins
// anew, and not the end of the process.
func TestPanicBesideRequests(t *testing.T) {
	data := sample(2, 3<<20)
	for function, errno := range map[string]syscall.Errno{
		"(*measurer).settle":           syscall.EIO,
		"(*filesystem).decide":         syscall.EIO,
		"(*filesystem).pagesRevoked":   0,
		"(*measurer).sweep":            0,
		"(*preverifier).eligible":      0,
		"(*filesystem).watchAuditMode": 0,
	} {
		t.Run(function, func(t *testing.T) {
			m := mountEmpty(t, func(s *serverSpec) {
				s.Seal, s.PanicBelow, s.Panics = SealCopy, function, 1
				s.Preverify = strings.Contains(function, "preverifier")
				if strings.Contains(function, "AuditMode") {
					s.AuditUntil = time.Now().Add(time.Hour)
				}
			})
			m.write("m.bin", data)
			m.grant("m.bin", data)
			if strings.HasSuffix(function, "decide") || strings.HasSuffix(function, "settle") {
				if r := m.run("read", m.at("m.bin")); r.Errno != errno {
					t.Errorf("the open that met it: %v, want errno %d", r, errno)
				}
			}
			m.reads("m.bin", data)
			// Revocation works after it, too.
			h := m.hold("m.bin")
			other := sample(9, 2<<20)
			m.write("other.bin", other)
			m.grant("other.bin", other)
			m.reads("other.bin", other)
			m.revoke(capstore.KindFile, subject(t, "m.bin", data).Digest)
			m.refuses("m.bin", syscall.EACCES, ReasonRevoked)
			m.lastRecord("m.bin", Held)
			h.quit()
			m.panicked("planted below " + function)
		})
	}
}

// panicked waits for the record and the count of the one panic of the mount.
func (m *mounted) panicked(detail string) {
	m.t.Helper()
	for end := time.Now().Add(10 * time.Second); m.stats().Panics == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("nothing panicked; want %q", detail)
		}
	}
	n := 0
	for _, r := range m.ask(request{Op: "records"}).Records {
		if r.Reason == ReasonPanic && r.Decision == Failed && r.Detail == detail {
			n++
		}
	}
	if got := m.stats().Panics; n != 1 || got != 1 {
		m.t.Errorf("%d records of %q, %d counted, want one", n, detail, got)
	}
}

func statfs(p string) result {
	var st syscall.Statfs_t
	if err := syscall.Statfs(p, &st); err != nil {
		return failed("statfs", err)
	}
	return result{}
}

func listXattr(p string) result {
	if _, err := unix.Listxattr(p, make([]byte, 4096)); err != nil {
		return failed("listxattr", err)
	}
	return result{}
}
