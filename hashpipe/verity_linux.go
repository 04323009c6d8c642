package hashpipe

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoVerity means that the kernel or the file system cannot keep a file to a
// VerityDigest: it has no fs-verity, or not with blocks of 4096 bytes.
var ErrNoVerity = errors.New("no fs-verity here")

// Enforced is the fs-verity digest of an open file as the kernel measures it:
// what the kernel reads of that inode from then on is checked against it page
// by page, for whoever reads and for as long as the inode lives. Only
// MeasureVerity makes one, nothing decodes into one, and the zero Enforced
// matches nothing.
type Enforced struct{ kernel [hashSize]byte }

// Is reports whether the content that the kernel holds the file to is the
// claimed one, size included. It is false when either side is zero.
func (e Enforced) Is(d VerityDigest) bool { return e != Enforced{} && e.kernel == d.verity }

// String returns 64 lower-case hex digits, or "none" for the zero Enforced.
func (e Enforced) String() string { return format(e.kernel) }

// EnableVerity makes the kernel hold the file to its present content: SHA-256,
// blocks of 4096 bytes, no salt, no signature, so that its digest is a
// VerityDigest. It returns when the whole file is hashed and the tree is on
// the disk. No descriptor may be open for writing, f included, and none can be
// opened after it.
//
// A file that has fs-verity already is no error: whatever it was enabled with,
// MeasureVerity tells, and it has to be asked in any case. ErrNoVerity means
// that it cannot be had here.
//
// BUG: the kernel keeps the pages that were in memory before, which nothing
// checked against the tree. Where the storage is not trusted, drop them
// (POSIX_FADV_DONTNEED) before the first byte is served.
//
// BUG: ext4 (seen with Linux 6.1 and 6.12) takes the inode off its list of
// orphans. If the machine stops while a file without a name is open, its blocks
// are lost until the next e2fsck. Linking and unlinking it afterwards puts it
// back.
func EnableVerity(f *os.File) error {
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: unix.FS_VERITY_HASH_ALG_SHA256, Block_size: BlockSize}
	err := verityIoctl(f, unix.FS_IOC_ENABLE_VERITY, unsafe.Pointer(&arg))
	switch err {
	case nil, unix.EEXIST:
		return nil
	case unix.EINVAL:
		// The argument is always the same: what is left is a file system whose
		// blocks are smaller (or, before Linux 6.3, not of the page's size).
		err = fmt.Errorf("%w: blocks of %d bytes: %w", ErrNoVerity, BlockSize, err)
	case unix.ETXTBSY:
		err = errors.New("it is open for writing: close every such descriptor first")
	case unix.EBUSY:
		err = errors.New("it is being enabled already")
	}
	return fmt.Errorf("enabling fs-verity on %s: %w", f.Name(), err)
}

// verityDigest is struct fsverity_digest with room for SHA-256.
type verityDigest struct {
	head   unix.FsverityDigest // algorithm and, in and out, size of digest in bytes
	digest [hashSize]byte
}

// MeasureVerity asks the kernel what it holds the very file behind f to; it
// reads no content. A file without fs-verity, or with another hash than
// SHA-256, is an error.
//
// BUG: btrfs (seen with Linux 6.1 and 6.12) lets root change the size of such a
// file, and the measurement stays. Every byte that can still be read is right,
// but they can be fewer: look at the size, too.
func MeasureVerity(f *os.File) (Enforced, error) {
	d := verityDigest{head: unix.FsverityDigest{Size: hashSize}}
	var e Enforced
	err := verityIoctl(f, unix.FS_IOC_MEASURE_VERITY, unsafe.Pointer(&d))
	switch err {
	case nil:
		e, err = d.enforced()
	case unix.ENODATA:
		err = errors.New("it is not enabled")
	case unix.EOVERFLOW:
		err = fmt.Errorf("expected a digest of %d bytes, got a longer one", hashSize)
	}
	if err != nil {
		return Enforced{}, fmt.Errorf("measuring fs-verity of %s: %w", f.Name(), err)
	}
	return e, nil
}

func (d *verityDigest) enforced() (Enforced, error) {
	if d.head.Algorithm != unix.FS_VERITY_HASH_ALG_SHA256 || d.head.Size != hashSize {
		return Enforced{}, fmt.Errorf("expected hash algorithm %d (SHA-256) of %d bytes, got %d of %d",
			unix.FS_VERITY_HASH_ALG_SHA256, hashSize, d.head.Algorithm, d.head.Size)
	}
	if d.digest == [hashSize]byte{} {
		return Enforced{}, errors.New("all zero is no digest")
	}
	return Enforced{d.digest}, nil
}

// verityIoctl returns the bare errno, or ErrNoVerity for those that say that
// the request is unknown here.
func verityIoctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
	})
	switch {
	case err != nil:
		return err
	case errno == unix.ENOTTY, errno == unix.EOPNOTSUPP, errno == unix.ENOSYS, errno == unix.ENOPKG:
		return fmt.Errorf("%w: %w", ErrNoVerity, errno)
	case errno != 0:
		return errno
	}
	return nil
}
