package fs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// victim is a granted file, and everything that its writer took hold of before
// it was granted.
type victim struct {
	t    *testing.T
	m    *mounted
	name string // in the mount
	p    string // in the source
	good []byte
	evil []byte // as long, and different in every block

	f       *os.File
	direct  *os.File
	mapping []byte // shared, with dirty pages that hold the good bytes
}

const victimSize = 3 * hashpipe.UnitSize

func newVictim(t *testing.T, m *mounted, name string, seed byte) *victim {
	t.Helper()
	v := &victim{t: t, m: m, name: name, good: sample(seed, victimSize), evil: sample(seed+100, victimSize)}
	v.p = m.write(name, v.good)
	var err error
	if v.f, err = os.OpenFile(v.p, os.O_RDWR, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.f.Close() })
	if v.direct, err = os.OpenFile(v.p, os.O_RDWR|unix.O_DIRECT, 0); err != nil {
		t.Fatalf("%v: this test needs TMPDIR on a disk", err)
	}
	t.Cleanup(func() { v.direct.Close() })
	if v.mapping, err = unix.Mmap(int(v.f.Fd()), 0, victimSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(v.mapping) })
	for i := 0; i < victimSize; i += os.Getpagesize() {
		v.mapping[i] = v.good[i]
	}
	m.grant(name, v.good)
	return v
}

func (v *victim) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatalf("%s: %v", v.name, err)
	}
}

// beside writes a file into the victim's directory.
func (v *victim) beside(base string, data []byte) string {
	v.t.Helper()
	return v.m.write(filepath.Join(filepath.Dir(v.name), base), data)
}

func (v *victim) fallocate(mode uint32, off, length int64) {
	v.t.Helper()
	v.must(unix.Fallocate(int(v.f.Fd()), mode, off, length))
}

// touch sets the times, which a store into a page that was dirty before leaves as
// they are. In that state the file was approved: tier "sealed" goes on opening
// the approved bytes, and tier "blocks" refuses it as quarantined.
func (v *victim) touch() {
	v.t.Helper()
	now := time.Now()
	v.must(os.Chtimes(v.p, now, now))
}

// aligned copies data to where direct I/O wants it.
func aligned(data []byte) []byte {
	raw := make([]byte, len(data)+4096)
	out := raw[(4096-int(uintptr(unsafe.Pointer(&raw[0])))%4096)%4096:][:len(data)]
	copy(out, data)
	return out
}

// iocb is struct iocb of io_submit(2) on a little-endian machine.
type iocb struct {
	_      [2]uint64 // aio_data, aio_key, aio_rw_flags
	opcode uint16
	_      int16 // aio_reqprio
	fildes uint32
	buf    uint64
	nbytes uint64
	offset int64
	_      [2]uint64 // aio_reserved2, aio_flags, aio_resfd
}

// asyncWrites submits direct writes and returns while they are under way; wait
// ends them.
func asyncWrites(fd int, data []byte, offs []int64, length int) (wait func() error, err error) {
	const iocbPwrite = 1
	var ctx uintptr
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(len(offs)), uintptr(unsafe.Pointer(&ctx)), 0); errno != 0 {
		return nil, fmt.Errorf("io_setup: %w", errno)
	}
	cbs := make([]iocb, len(offs))
	list := make([]*iocb, len(offs))
	for i, off := range offs {
		cbs[i] = iocb{opcode: iocbPwrite, fildes: uint32(fd), buf: uint64(uintptr(unsafe.Pointer(&data[off]))), nbytes: uint64(length), offset: off}
		list[i] = &cbs[i]
	}
	n, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, ctx, uintptr(len(list)), uintptr(unsafe.Pointer(&list[0])))
	if errno != 0 {
		return nil, fmt.Errorf("io_submit: %w", errno)
	}
	return func() error {
		events := make([][4]int64, len(offs)) // struct io_event: data, obj, res, res2
		for got := uintptr(0); got < n; {
			k, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, ctx, 1, n-got, uintptr(unsafe.Pointer(&events[got])), 0, 0)
			if errno != 0 && errno != unix.EINTR {
				return fmt.Errorf("io_getevents: %w", errno)
			}
			if errno == 0 {
				got += k
			}
		}
		unix.Syscall(unix.SYS_IO_DESTROY, ctx, 0, 0)
		for _, e := range events[:n] {
			if e[2] != int64(length) {
				return fmt.Errorf("an asynchronous write ended with %d", e[2])
			}
		}
		runtime.KeepAlive(data)
		runtime.KeepAlive(list)
		return nil
	}, nil
}

// What a process that can write the source does to a file that a reader has
// open. inPlace says that it is the very inode that changes: then tier "blocks"
// must fail every read of what changed. Otherwise, and always in tier "sealed",
// the reader goes on with the approved bytes. why is the reason for which the
// next open is refused; "" means that it reads the approved bytes.
var sourceAttacks = []struct {
	name    string
	inPlace bool
	why     Reason
	do      func(v *victim)
}{
	{"write through an old descriptor", true, ReasonWrongBytes, func(v *victim) {
		_, err := v.f.WriteAt(v.evil, 0)
		v.must(err)
	}},
	{"one bit through an old descriptor", true, ReasonWrongBytes, func(v *victim) {
		for off := int64(0); off < victimSize; off += hashpipe.UnitSize {
			_, err := v.f.WriteAt([]byte{v.good[off] ^ 1}, off)
			v.must(err)
		}
	}},
	{"direct write", true, ReasonWrongBytes, func(v *victim) {
		_, err := v.direct.WriteAt(aligned(v.evil), 0)
		v.must(err)
	}},
	{"asynchronous writes", true, ReasonWrongBytes, func(v *victim) {
		data := aligned(v.evil)
		var offs []int64
		for off := int64(0); off < victimSize; off += 4096 {
			offs = append(offs, off)
		}
		wait, err := asyncWrites(int(v.direct.Fd()), data, offs, 4096)
		v.must(err)
		v.must(wait())
	}},
	{"store through an old mapping", true, ReasonWrongBytes, func(v *victim) {
		copy(v.mapping, v.evil)
		v.touch()
	}},
	{"store through an old mapping, written back", true, ReasonWrongBytes, func(v *victim) {
		copy(v.mapping, v.evil)
		v.must(unix.Msync(v.mapping, unix.MS_SYNC))
		v.touch()
	}},
	{"pages written back late", false, "", func(v *victim) {
		// Dirty since before the open, with the approved bytes.
		v.must(unix.Msync(v.mapping, unix.MS_SYNC))
		v.must(v.f.Sync())
	}},
	{"truncate", true, ReasonWrongSize, func(v *victim) { v.must(v.f.Truncate(0)) }},
	{"truncate and grow again", true, ReasonWrongBytes, func(v *victim) {
		v.must(v.f.Truncate(0))
		v.must(v.f.Truncate(victimSize))
	}},
	{"grow", false, ReasonWrongSize, func(v *victim) { v.must(v.f.Truncate(victimSize + 4096)) }},
	{"punch a hole", true, ReasonWrongBytes, func(v *victim) {
		v.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, victimSize)
	}},
	{"zero a range", true, ReasonWrongBytes, func(v *victim) {
		v.fallocate(unix.FALLOC_FL_ZERO_RANGE, 0, victimSize)
	}},
	{"collapse a range", true, ReasonWrongBytes, func(v *victim) {
		v.fallocate(unix.FALLOC_FL_COLLAPSE_RANGE, 0, 65536)
		v.must(v.f.Truncate(victimSize))
	}},
	{"insert a range", true, ReasonWrongBytes, func(v *victim) {
		v.fallocate(unix.FALLOC_FL_INSERT_RANGE, 0, 65536)
		v.must(v.f.Truncate(victimSize))
	}},
	{"share the blocks of another file", true, ReasonWrongBytes, func(v *victim) {
		from, err := os.Open(v.beside("incoming", v.evil))
		v.must(err)
		defer from.Close()
		err = unix.IoctlFileCloneRange(int(v.f.Fd()), &unix.FileCloneRange{Src_fd: int64(from.Fd())})
		if err == unix.EOPNOTSUPP { // ext4: what a copy inside the kernel does there
			_, err = unix.CopyFileRange(int(from.Fd()), new(int64), int(v.f.Fd()), new(int64), victimSize, 0)
		}
		v.must(err)
	}},
	{"share blocks, then write the other file", false, "", func(v *victim) {
		other, err := os.OpenFile(v.beside("incoming", v.good), os.O_RDWR, 0)
		v.must(err)
		defer other.Close()
		dedupe := unix.FileDedupeRange{Src_length: victimSize, Info: []unix.FileDedupeRangeInfo{{Dest_fd: int64(other.Fd())}}}
		if err := unix.IoctlFileDedupeRange(int(v.f.Fd()), &dedupe); err != nil && err != unix.EOPNOTSUPP {
			v.must(err)
		}
		_, err = other.WriteAt(v.evil, 0)
		v.must(err)
	}},
	{"rename over", false, ReasonWrongBytes, func(v *victim) { v.must(os.Rename(v.beside("incoming", v.evil), v.p)) }},
	{"exchange", false, ReasonWrongBytes, func(v *victim) {
		v.must(unix.Renameat2(unix.AT_FDCWD, v.beside("incoming", v.evil), unix.AT_FDCWD, v.p, unix.RENAME_EXCHANGE))
	}},
	{"exchange the parent directory", false, ReasonWrongBytes, func(v *victim) {
		dir := filepath.Dir(v.p)
		other := v.m.write("other/model.bin", v.evil)
		v.must(unix.Renameat2(unix.AT_FDCWD, filepath.Dir(other), unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE))
	}},
	{"unlink and create", false, ReasonWrongBytes, func(v *victim) {
		v.must(os.Remove(v.p))
		v.must(os.WriteFile(v.p, v.evil, 0o644))
	}},
	{"hard link of another file", false, ReasonWrongBytes, func(v *victim) {
		v.must(os.Remove(v.p))
		v.must(os.Link(v.beside("incoming", v.evil), v.p))
	}},
	{"bind mount over the file", false, ReasonWrongBytes, func(v *victim) {
		v.must(unix.Mount(v.beside("incoming", v.evil), v.p, "", unix.MS_BIND, ""))
		v.t.Cleanup(func() { unix.Unmount(v.p, unix.MNT_DETACH) })
	}},
	{"bind mount over the directory", false, ReasonWrongBytes, func(v *victim) {
		dir, other := filepath.Dir(v.p), tempDir(v.t)
		v.must(os.WriteFile(filepath.Join(other, filepath.Base(v.p)), v.evil, 0o644))
		v.must(unix.Mount(other, dir, "", unix.MS_BIND, ""))
		v.t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	}},
	{"FIFO", false, ReasonSpecial, func(v *victim) {
		v.must(os.Remove(v.p))
		v.must(unix.Mkfifo(v.p, 0o666))
	}},
	{"socket", false, ReasonSpecial, func(v *victim) {
		v.must(os.Remove(v.p))
		v.must(unix.Mknod(v.p, unix.S_IFSOCK|0o666, 0))
	}},
	{"device", false, ReasonSpecial, func(v *victim) {
		v.must(os.Remove(v.p))
		v.must(unix.Mknod(v.p, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5)))) // zeros
	}},
}

// Every attack, on every tier, against a reader that has the file open and
// mapped, and against the next one.
func TestSourceAttacks(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		sealed := m.seals()
		for i, a := range sourceAttacks {
			v := newVictim(t, m, fmt.Sprintf("%02d/model.bin", i), byte(i))
			h := m.hold(v.name)
			a.do(v)
			for _, how := range []string{"read", "touch", "evict", "read", "touch"} {
				r := h.ask(how)
				switch {
				case how == "evict":
					if r.Errno != 0 {
						t.Fatal(r)
					}
				case a.inPlace && !sealed:
					if r.Errno != syscall.EIO && r.Errno != syscall.EFAULT {
						t.Errorf("%s: %s of the open file: %v, want EIO or a fault", a.name, how, r)
					}
				case r.Errno != 0 || r.SHA256 != sumOf(v.good):
					t.Errorf("%s: %s of the open file: %v, want the approved bytes", a.name, how, r)
				}
			}
			if a.why == "" {
				m.reads(v.name, v.good)
			} else {
				m.refuses(v.name, syscall.EACCES, a.why)
			}
			h.quit()
		}
	})
}

// seals reports whether the mount serves a file in tier "sealed".
func (m *mounted) seals() bool {
	m.t.Helper()
	data := sample(99, victimSize)
	m.write("tier/model.bin", data)
	m.grant("tier/model.bin", data)
	m.reads("tier/model.bin", data)
	return m.lastRecord("tier/model.bin", Granted).Tier == TierSealed
}

// A, then B, then A again, under every condition that keeps the file looking the
// same: nothing but A is ever read, and when it is A again it opens.
func TestSourceABA(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		at := time.Now().Add(-time.Hour)
		restore := func(p string) {
			if err := os.Chtimes(p, at, at); err != nil {
				t.Fatal(err)
			}
		}
		for name, put := range map[string]func(v *victim, data []byte){
			"in place": func(v *victim, data []byte) {
				_, err := v.f.WriteAt(data, 0)
				v.must(err)
				restore(v.p)
			},
			"mapping": func(v *victim, data []byte) {
				copy(v.mapping, data)
				restore(v.p)
			},
			"rename": func(v *victim, data []byte) {
				p := v.beside("incoming", data)
				restore(p)
				v.must(os.Rename(p, v.p))
			},
			"inode reuse": func(v *victim, data []byte) {
				// Unlinked and created until the number comes back.
				var was, is unix.Stat_t
				v.must(unix.Stat(v.p, &was))
				v.f.Close()
				v.direct.Close()
				if v.mapping != nil {
					v.must(unix.Munmap(v.mapping))
					v.mapping = nil
				}
				for try := 0; is.Ino != was.Ino; try++ {
					if try == 64 {
						return // another number is an attack too
					}
					v.must(os.Remove(v.p))
					v.must(os.WriteFile(v.p, data, 0o644))
					v.must(unix.Stat(v.p, &is))
				}
				restore(v.p)
			},
		} {
			v := newVictim(t, m, name+"/model.bin", byte(len(name)))
			m.reads(v.name, v.good)
			for range 3 {
				put(v, v.evil)
				m.refuses(v.name, syscall.EACCES, ReasonWrongBytes)
				put(v, v.good)
				m.reads(v.name, v.good)
			}
		}
	})
}

// Two approved contents change places under one name, one size and one time, and
// a reader of each keeps his own.
func TestApprovedContentsNeverMix(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		one := sample(16, victimSize)
		two := bytes.Clone(one)
		copy(two[victimSize/2:], sample(17, 1000))
		m.grant("model.bin", one)
		m.grant("model.bin", two, func(w *terms) { w.sequence = 2 })
		at := time.Now().Add(-time.Hour)
		put := func(data []byte) {
			p := m.write("incoming", data)
			if err := os.Chtimes(p, at, at); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(p, filepath.Join(m.src, "model.bin")); err != nil {
				t.Fatal(err)
			}
		}
		put(one)
		first := m.hold("model.bin")
		put(two)
		second := m.hold("model.bin")
		put(one)
		third := m.hold("model.bin")
		for _, how := range []string{"read", "touch", "evict", "touch", "read"} {
			for h, want := range map[*holder][]byte{first: one, second: two, third: one} {
				if r := h.ask(how); how != "evict" && r.SHA256 != sumOf(want) {
					t.Errorf("%s: %v, want the content that was opened", how, r)
				}
			}
		}
	})
}

// A hard link gives an approved file another name. It opens under its own only.
func TestHardLinkUnderAnotherName(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		strict, lax := sample(40, victimSize), sample(41, victimSize)
		m.grant("strict.bin", strict)
		m.grant("lax.bin", lax)
		p := m.write("lax.bin", lax)
		m.reads("lax.bin", lax)
		for _, name := range []string{"strict.bin", "other.bin"} {
			if err := os.Link(p, filepath.Join(m.src, name)); err != nil {
				t.Fatal(err)
			}
			m.refuses(name, syscall.EACCES, ReasonWrongName)
		}
		m.reads("lax.bin", lax)
		if err := os.Mkdir(filepath.Join(m.src, "twin"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(p, filepath.Join(m.src, "twin/lax.bin")); err != nil {
			t.Fatal(err)
		}
		// Two inodes of the mount, one content.
		one, two := m.hold("lax.bin"), m.hold("twin/lax.bin")
		for range 2 {
			for _, h := range []*holder{one, two} {
				for _, how := range []string{"read", "touch", "evict"} {
					if r := h.ask(how); r.Errno != 0 || how != "evict" && r.SHA256 != sumOf(lax) {
						t.Errorf("%s of one of two names: %v", how, r)
					}
				}
			}
		}
	})
}
