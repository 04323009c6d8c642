//go:build verity

package hashpipe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These tests run as root in a guest whose kernel has fs-verity, on disks that
// they may damage: make test-verity.

// place is a directory on a file system with fs-verity, and the disk below it.
type place struct{ name, dir, disk string }

// everywhere runs a test on ext4 and on btrfs.
func everywhere(t *testing.T, test func(*testing.T, place)) {
	t.Helper()
	for _, name := range []string{"EXT4", "BTRFS"} {
		p := placeOf(t, name)
		t.Run(p.name, func(t *testing.T) { test(t, p) })
	}
}

// placeOf reads "directory:disk" from the environment of the guest.
func placeOf(t *testing.T, name string) place {
	t.Helper()
	value := os.Getenv("CLAWFS_VERITY_" + name)
	dir, disk, ok := strings.Cut(value, ":")
	if !ok {
		t.Fatalf("CLAWFS_VERITY_%s=%q, want directory:disk: make test-verity", name, value)
	}
	return place{strings.ToLower(name), dir, disk}
}

// private makes an unnamed file, as the mount does, and returns it read-only:
// the writable descriptor is closed.
func private(t *testing.T, dir string, data []byte) *os.File {
	t.Helper()
	w := unnamed(t, dir)
	defer w.Close()
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	return readOnly(t, w)
}

func unnamed(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// readOnly opens the file behind f once more.
func readOnly(t *testing.T, f *os.File) *os.File {
	t.Helper()
	r, err := os.Open(self(f))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func self(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// enforced enables fs-verity and returns what the kernel measures.
func enforced(t *testing.T, f *os.File) Enforced {
	t.Helper()
	if err := EnableVerity(f); err != nil {
		t.Fatal(err)
	}
	e, err := MeasureVerity(f)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// What a capability names, computed in user space, is what the kernel holds an
// unnamed file to.
func TestGuestDigest(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		for _, size := range []int{0, 1, 4095, 4096, 4097, 8192, UnitSize - 1, UnitSize, UnitSize + 1, 5 << 20, 5<<20 + 1, 128*UnitSize + 1} {
			data := content(size)
			claim := measured(t, data).Tree().Claim()
			f := private(t, p.dir, data)
			if e := enforced(t, f); !e.Is(claim) || e.String() != claim.String() {
				t.Errorf("%d bytes: the kernel measures %v, Measure %v", size, e, claim)
			}
			tree, err := MeasureTree(context.Background(), f, int64(size), 2, nil)
			if err != nil || !tree.Is(claim) {
				t.Errorf("%d bytes: reading the file: %v, %v, want %v", size, tree.Claim(), err, claim)
			}
			f.Close()
		}
	})
}

// The measurement is of the file and not of what was hoped for.
func TestGuestOtherContent(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		data := bytes.Clone(content(UnitSize + 1))
		claim := measured(t, data).Tree().Claim()
		data[UnitSize] ^= 1
		if e := enforced(t, private(t, p.dir, data)); e.Is(claim) || e.Is(VerityDigest{}) {
			t.Errorf("a file with one other bit is measured as the claimed one: %v", e)
		}
		data[UnitSize] ^= 1
		if e := enforced(t, private(t, p.dir, append(data, 0))); e.Is(claim) {
			t.Errorf("a file with one more zero byte is measured as the claimed one: %v", e)
		}
	})
}

func TestGuestOpenForWriting(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		data := content(2 * BlockSize)
		w := unnamed(t, p.dir)
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		r := readOnly(t, w)
		refuses := func(what string, f *os.File) {
			t.Helper()
			err := EnableVerity(f)
			if err == nil || errors.Is(err, ErrNoVerity) || !strings.Contains(err.Error(), "open for writing") {
				t.Errorf("%s: EnableVerity: %v, want an error that says so", what, err)
			}
			if e, err := MeasureVerity(f); err == nil || errors.Is(err, ErrNoVerity) || e != (Enforced{}) {
				t.Errorf("%s: MeasureVerity = %v, %v, want zero and an error", what, e, err)
			}
		}
		refuses("the writer's own descriptor", w)
		refuses("beside a writer", r)
		mapped, err := unix.Mmap(int(w.Fd()), 0, BlockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		w.Close()
		refuses("beside a mapping that outlives its descriptor", r)
		if err := unix.Munmap(mapped); err != nil {
			t.Fatal(err)
		}
		if e := enforced(t, r); !e.Is(measured(t, data).Tree().Claim()) {
			t.Errorf("after all writers: %v", e)
		}
	})
}

// Nobody changes the file any more, not even root.
func TestGuestImmutable(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		data := content(UnitSize)
		f := private(t, p.dir, data)
		before := enforced(t, f)
		for _, flag := range []int{os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC} {
			if w, err := os.OpenFile(self(f), flag, 0); !errors.Is(err, unix.EPERM) {
				t.Errorf("opening with %#x: %v, want EPERM", flag, err)
				w.Close()
			}
		}
		if err := os.Truncate(self(f), BlockSize+1); p.name == "ext4" && !errors.Is(err, unix.EPERM) {
			t.Errorf("truncating: %v, want EPERM", err)
		}
		if err := EnableVerity(f); err != nil {
			t.Errorf("enabling again: %v, want success", err)
		}
		after, err := MeasureVerity(f)
		if err != nil || after != before || !after.Is(measured(t, data).Tree().Claim()) {
			t.Errorf("measured again: %v, %v, want %v", after, err, before)
		}
	})
}

// Root can change the size of a file under fs-verity on btrfs, and its digest
// stays. No wrong byte can be read even then.
func TestGuestTruncated(t *testing.T) {
	p := placeOf(t, "BTRFS")
	data := content(UnitSize)
	f := private(t, p.dir, data)
	before := enforced(t, f)
	if err := os.Truncate(self(f), BlockSize+1); err != nil {
		if !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
		t.Log("this kernel refuses it")
		return
	}
	if after, err := MeasureVerity(f); err != nil || after != before {
		t.Errorf("measured after truncating: %v, %v, want %v", after, err, before)
	}
	for _, size := range []int64{BlockSize + 1, BlockSize, UnitSize} {
		if err := os.Truncate(self(f), size); err != nil {
			t.Fatal(err)
		}
		evict(t, p, f)
		buf := make([]byte, BlockSize)
		for off := int64(0); off < UnitSize; off += BlockSize {
			n, err := f.ReadAt(buf, off)
			if !bytes.Equal(buf[:n], data[off:][:n]) {
				t.Errorf("truncated to %d bytes: other bytes at %d", size, off)
			}
			if off >= 2*BlockSize && n > 0 {
				t.Errorf("truncated to %d bytes: %d bytes at %d, %v, want none", size, n, off, err)
			}
		}
	}
}

// A file that was enabled with other parameters is no error to EnableVerity,
// so the measurement has to refuse it.
func TestGuestOtherParameters(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		data := content(UnitSize)
		claim := measured(t, data).Tree().Claim()
		salt := [32]byte{1}
		for what, arg := range map[string]unix.FsverityEnableArg{
			"SHA-512": {Version: 1, Hash_algorithm: unix.FS_VERITY_HASH_ALG_SHA512, Block_size: BlockSize},
			"salt": {Version: 1, Hash_algorithm: unix.FS_VERITY_HASH_ALG_SHA256, Block_size: BlockSize,
				Salt_size: 32, Salt_ptr: uint64(uintptr(unsafe.Pointer(&salt)))},
		} {
			f := private(t, p.dir, data)
			if err := verityIoctl(f, unix.FS_IOC_ENABLE_VERITY, unsafe.Pointer(&arg)); err != nil {
				t.Fatal(err)
			}
			if err := EnableVerity(f); err != nil {
				t.Errorf("%s: EnableVerity: %v, want success", what, err)
			}
			if e, err := MeasureVerity(f); e.Is(claim) {
				t.Errorf("%s: MeasureVerity = %v, %v", what, e, err)
			} else {
				t.Logf("%s: MeasureVerity = %v, %v", what, e, err)
			}
		}
	})
}

// A file system that cannot is told apart from a file that cannot.
func TestGuestNoVerity(t *testing.T) {
	for name, why := range map[string]string{"PLAIN": "no verity feature", "SMALL": "blocks of 1024 bytes"} {
		p := placeOf(t, name)
		f := private(t, p.dir, content(UnitSize))
		err := EnableVerity(f)
		if !errors.Is(err, ErrNoVerity) {
			t.Errorf("%s: EnableVerity: %v, want ErrNoVerity", why, err)
		}
		t.Log(err)
		if e, err := MeasureVerity(f); err == nil || e != (Enforced{}) {
			t.Errorf("%s: MeasureVerity = %v, %v, want zero and an error", why, e, err)
		}
	}
}

// A clone shares the source's blocks until the source is written to; the
// source stays as it was, without fs-verity.
func TestGuestClone(t *testing.T) {
	p := placeOf(t, "BTRFS")
	data := content(5<<20 + 1)
	claim := measured(t, data).Tree().Claim()
	name := filepath.Join(p.dir, "source")
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(name) })
	src, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	w := unnamed(t, p.dir)
	if err := unix.IoctlFileClone(int(w.Fd()), int(src.Fd())); err != nil {
		t.Fatal(err)
	}
	f := readOnly(t, w)
	w.Close()
	if e := enforced(t, f); !e.Is(claim) {
		t.Errorf("the clone is measured as %v, want %v", e, claim)
	}
	if _, err := src.WriteAt([]byte("EVIL"), 0); err != nil {
		t.Errorf("the source cannot be written to beside its clone: %v", err)
	}
	if e, err := MeasureVerity(src); err == nil {
		t.Errorf("the source is measured as %v, want an error", e)
	}
	evict(t, p, f)
	if m, err := MeasureFile(context.Background(), f, int64(len(data)), nil); err != nil || !m.Tree().Is(claim) {
		t.Errorf("the clone after a write to the source: %v, %v, want %v", m.Tree().Claim(), err, claim)
	}
}

// The variant with a name: a temporary is enabled and then unlinked.
func TestGuestUnlinked(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		data := content(UnitSize + 1)
		name := filepath.Join(p.dir, "temporary")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		e := enforced(t, f)
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
		if again, err := MeasureVerity(f); err != nil || again != e || !e.Is(measured(t, data).Tree().Claim()) {
			t.Errorf("unlinked: %v, %v, want %v", again, err, e)
		}
	})
}

// The blocks of a file that never had a name come back when it is closed, its
// tree included; whether the file system is clean is looked at from outside.
func TestGuestSpaceComesBack(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		free := func() int64 {
			var s unix.Statfs_t
			unix.Sync()
			if err := unix.Statfs(p.dir, &s); err != nil {
				t.Fatal(err)
			}
			return int64(s.Bfree) * s.Bsize
		}
		data := content(32 << 20)
		before := free()
		for range 3 {
			f := private(t, p.dir, data)
			enforced(t, f)
			if held := before - free(); held < int64(len(data)) {
				t.Fatalf("an open file of %d bytes holds %d bytes of the disk", len(data), held)
			}
			f.Close()
		}
		deadline := time.Now().Add(2 * time.Minute) // btrfs gives space back in the background
		for before-free() > 1<<20 && time.Now().Before(deadline) {
			unix.Sync()
			time.Sleep(200 * time.Millisecond)
		}
		if lost := before - free(); lost > 1<<20 {
			t.Errorf("%d bytes of the disk are lost after three closed files of %d bytes", lost, len(data))
		}
	})
}

// A byte that changes on the disk below the file never reaches a reader. The
// file beside it without fs-verity shows that the damage is there to be read.
func TestGuestDamage(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		const victim, n = 3, 5 << 20 / BlockSize
		data, control := onlyHere(1, n*BlockSize), onlyHere(2, n*BlockSize)
		f, plain := private(t, p.dir, data), private(t, p.dir, control)
		enforced(t, f)
		evict(t, p, f)
		evict(t, p, plain)
		flip(t, p.disk, data[victim*BlockSize:][:BlockSize])
		flip(t, p.disk, control[victim*BlockSize:][:BlockSize])
		evict(t, p, f)
		evict(t, p, plain)

		buf := make([]byte, BlockSize)
		if _, err := plain.ReadAt(buf, victim*BlockSize); err != nil || bytes.Equal(buf, control[victim*BlockSize:][:BlockSize]) {
			t.Fatalf("the damage is not to be seen without fs-verity (%v): the test shows nothing", err)
		}
		for i := range n {
			_, err := f.ReadAt(buf, int64(i)*BlockSize)
			if i == victim && !errors.Is(err, unix.EIO) {
				t.Errorf("reading the damaged block: %v, want EIO", err)
			}
			if i != victim && (err != nil || !bytes.Equal(buf, data[i*BlockSize:][:BlockSize])) {
				t.Errorf("block %d: %v, want the right bytes", i, err)
			}
		}
		mapped, err := unix.Mmap(int(f.Fd()), 0, len(data), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(mapped)
		if err := touch(mapped, victim*BlockSize); err == nil {
			t.Errorf("the damaged block is mapped, byte %#x", mapped[victim*BlockSize])
		}
		if err := touch(mapped, (victim+200)*BlockSize); err != nil {
			t.Errorf("a block that is not damaged: %v", err)
		}
	})
}

// The tree is checked as well, from its root in memory. (btrfs keeps the tree
// among its metadata, of which it has two copies under sums of its own.)
func TestGuestDamagedTree(t *testing.T) {
	p := placeOf(t, "EXT4")
	data := onlyHere(3, 3*UnitSize)
	f := private(t, p.dir, data)
	enforced(t, f)
	evict(t, p, f)
	var leaves []byte // the second level-1 block, as it is on the disk
	for b := range 128 {
		sum := SumBytes(data[UnitSize+b*BlockSize:][:BlockSize]).Bytes()
		leaves = append(leaves, sum[:]...)
	}
	flip(t, p.disk, leaves)
	evict(t, p, f)
	buf := make([]byte, UnitSize)
	for unit := range int64(3) {
		_, err := f.ReadAt(buf, unit*UnitSize)
		if unit == 1 && !errors.Is(err, unix.EIO) {
			t.Errorf("reading below the damaged block of the tree: %v, want EIO", err)
		}
		if unit != 1 && (err != nil || !bytes.Equal(buf, data[unit*UnitSize:][:UnitSize])) {
			t.Errorf("unit %d: %v, want the right bytes", unit, err)
		}
	}
}

// Pages that were in memory when fs-verity was enabled are not checked. To drop
// those of this one file is enough, and needs no privilege.
func TestGuestDontNeed(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		data := onlyHere(4, 4*BlockSize)
		f := private(t, p.dir, data)
		enforced(t, f)
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		flip(t, p.disk, data[BlockSize:][:BlockSize])
		buf := make([]byte, BlockSize)
		if _, err := f.ReadAt(buf, BlockSize); err != nil || !bytes.Equal(buf, data[BlockSize:][:BlockSize]) {
			t.Errorf("a page that is still in memory: %v, want the bytes that were hashed", err)
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(buf, BlockSize); !errors.Is(err, unix.EIO) {
			t.Errorf("after POSIX_FADV_DONTNEED: %v, want EIO", err)
		}
	})
}

// relink gives an unnamed file a name and takes it away again: see EnableVerity.
func relink(t *testing.T, p place, f *os.File) {
	t.Helper()
	name := filepath.Join(p.dir, "relinked")
	if err := link(f, name); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}

func link(f *os.File, name string) error {
	return unix.Linkat(unix.AT_FDCWD, self(f), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
}

// A file that had a name for a moment is still enforced, and gets none again.
func TestGuestRelinked(t *testing.T) {
	everywhere(t, func(t *testing.T, p place) {
		f := private(t, p.dir, content(UnitSize+1))
		before := enforced(t, f)
		relink(t, p, f)
		if after, err := MeasureVerity(f); err != nil || after != before {
			t.Errorf("measured after it: %v, %v, want %v", after, err, before)
		}
		if err := link(f, filepath.Join(p.dir, "stolen")); !errors.Is(err, unix.ENOENT) {
			t.Errorf("linking it once more: %v, want ENOENT", err)
		}
	})
}

// TestCrash leaves files without a name behind, some enabled and one in the
// middle of it, and stops the machine. That the file systems are clean after
// the next mount is looked at from outside.
func TestCrash(t *testing.T) {
	for _, name := range []string{"EXT4", "BTRFS"} {
		p := placeOf(t, name)
		f := private(t, p.dir, content(5<<20))
		enforced(t, f)
		relink(t, p, f)

		named, err := os.Create(filepath.Join(p.dir, "named"))
		if err != nil {
			t.Fatal(err)
		}
		g := readOnly(t, named)
		named.Close()
		enforced(t, g)
		if err := os.Remove(named.Name()); err != nil {
			t.Fatal(err)
		}
		evict(t, p, f)
	}
	for _, name := range []string{"EXT4", "BTRFS"} {
		p := placeOf(t, name)
		w := unnamed(t, p.dir)
		if err := w.Truncate(16 << 30); err != nil { // a hole: no room, and long to hash
			t.Fatal(err)
		}
		half := readOnly(t, w)
		w.Close()
		go func() { fmt.Println("crash: enabled too early:", EnableVerity(half)) }()
	}
	time.Sleep(300 * time.Millisecond)
	for _, name := range []string{"EXT4", "BTRFS"} {
		go syncAll(t, placeOf(t, name))
	}
	time.Sleep(time.Second)
	fmt.Println("crash: now")
	time.Sleep(300 * time.Millisecond) // until the line is out
	t.Fatal(unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
}

// evict writes everything to the disk and drops what is in memory of it.
func evict(t *testing.T, p place, f *os.File) {
	t.Helper()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	syncAll(t, p)
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
}

func syncAll(t *testing.T, p place) {
	t.Helper()
	dir, err := os.Open(p.dir)
	if err == nil {
		defer dir.Close()
		err = unix.Syncfs(int(dir.Fd()))
	}
	if err != nil {
		t.Error(err)
	}
}

// onlyHere returns bytes that no other content on the disk has.
func onlyHere(seed byte, n int) []byte {
	data := pattern(n)
	for i := range data {
		data[i] ^= seed
	}
	return data
}

// flip changes one bit of the one place of the disk that holds the block.
func flip(t *testing.T, disk string, block []byte) {
	t.Helper()
	d, err := os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	buf, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS) // aligned
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(buf)
	found := 0
	for off := int64(0); ; {
		n, err := d.ReadAt(buf, off)
		for i := 0; i+BlockSize <= n; i += BlockSize {
			if !bytes.Equal(buf[i:i+BlockSize], block) {
				continue
			}
			found++
			buf[i+1000] ^= 1
			if _, err := d.WriteAt(buf[i:i+BlockSize], off+int64(i)); err != nil {
				t.Fatal(err)
			}
		}
		if off += int64(n); err != nil || n == 0 {
			break
		}
	}
	if found != 1 {
		t.Fatalf("%s: the block is there %d times, want once", disk, found)
	}
}

// touch reads one byte of a mapping; SIGBUS is an error.
func touch(mapped []byte, i int) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	sink = mapped[i]
	return nil
}

var sink byte
