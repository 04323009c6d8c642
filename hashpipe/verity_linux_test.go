package hashpipe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the kernel answers is Enforced only as SHA-256 of 32 bytes. The tests
// that need a kernel with fs-verity run in one: make test-verity.
func TestEnforcedRefuses(t *testing.T) {
	_, claim := parsed(t, hexA)
	good := verityDigest{unix.FsverityDigest{Algorithm: unix.FS_VERITY_HASH_ALG_SHA256, Size: hashSize}, claim.verity}
	for what, change := range map[string]func(*verityDigest){
		"no algorithm": func(d *verityDigest) { d.head.Algorithm = 0 },
		"SHA-512":      func(d *verityDigest) { d.head.Algorithm = unix.FS_VERITY_HASH_ALG_SHA512 },
		"no size":      func(d *verityDigest) { d.head.Size = 0 },
		"31 bytes":     func(d *verityDigest) { d.head.Size-- },
		"33 bytes":     func(d *verityDigest) { d.head.Size++ },
		"64 bytes":     func(d *verityDigest) { d.head.Size = 64 },
		"all zero":     func(d *verityDigest) { d.digest = [hashSize]byte{} },
		"untouched":    func(d *verityDigest) { *d = verityDigest{} },
	} {
		d := good
		change(&d)
		if e, err := d.enforced(); err == nil || e != (Enforced{}) {
			t.Errorf("%s: %v, %v, want zero and an error", what, e, err)
		}
	}
	other := claim
	other.verity[31] ^= 1
	e, err := good.enforced()
	if err != nil || !e.Is(claim) || e.Is(other) || e.String() != hexA {
		t.Errorf("SHA-256 of 32 bytes: %v, %v, want %v and nothing else", e, err, claim)
	}
}

// A memfd lives on tmpfs, which has no fs-verity on any kernel.
func TestNoVerity(t *testing.T) {
	fd, err := unix.MemfdCreate("content", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "/private/content")
	defer f.Close()
	err = EnableVerity(f)
	if !errors.Is(err, ErrNoVerity) || !strings.Contains(fmt.Sprint(err), "/private/content") {
		t.Errorf("EnableVerity on tmpfs: %v, want ErrNoVerity and the path", err)
	}
	e, err := MeasureVerity(f)
	if !errors.Is(err, ErrNoVerity) || e != (Enforced{}) || !strings.Contains(fmt.Sprint(err), "/private/content") {
		t.Errorf("MeasureVerity on tmpfs = %v, %v, want zero, ErrNoVerity and the path", e, err)
	}
}

// An error that says nothing of fs-verity must not choose another tier.
func TestVerityOfNoFile(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "content"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := EnableVerity(f); err == nil || errors.Is(err, ErrNoVerity) {
		t.Errorf("EnableVerity of a closed file: %v, want an error that is not ErrNoVerity", err)
	}
	if e, err := MeasureVerity(f); err == nil || errors.Is(err, ErrNoVerity) || e != (Enforced{}) {
		t.Errorf("MeasureVerity of a closed file = %v, %v, want zero and an error that is not ErrNoVerity", e, err)
	}
}

// The ioctl numbers carry the sizes of include/uapi/linux/fsverity.h.
func TestVerityStructs(t *testing.T) {
	const sizeBits, sizeShift = 1<<13 - 1, 16
	if got, want := unsafe.Sizeof(unix.FsverityEnableArg{}), uintptr(unix.FS_IOC_ENABLE_VERITY>>sizeShift&sizeBits); got != want || got != 128 {
		t.Errorf("struct fsverity_enable_arg has %d bytes, the ioctl number says %d, the header 128", got, want)
	}
	if got, want := unsafe.Offsetof(verityDigest{}.digest), uintptr(unix.FS_IOC_MEASURE_VERITY>>sizeShift&sizeBits); got != want || got != 4 {
		t.Errorf("the digest is at byte %d, the ioctl number says %d, the header 4", got, want)
	}
	if got := unsafe.Sizeof(verityDigest{}); got != 4+hashSize {
		t.Errorf("struct fsverity_digest with SHA-256 has %d bytes, want %d", got, 4+hashSize)
	}
}
