// Package durable writes files that a crash leaves whole or not there at all, and
// that are on stable storage when their writer is told so.
//
// A process that is killed while it writes PATH may leave a file .NAME.new-* beside
// it, which nobody reads: see Sweep.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Replace puts data under path with mode perm, whatever the umask: written beside it,
// fsynced, renamed, and the directory fsynced. What was there before is gone only
// after the new bytes are on stable storage. After an error there is the old file or
// the new one.
func Replace(path string, data []byte, perm fs.FileMode) error {
	return place(path, perm, os.Rename, bytesOf(path, data))
}

// Create is Replace for a file that must not be there: if something is, the error is
// fs.ErrExist, and nothing is changed. Of two processes one wins.
func Create(path string, data []byte, perm fs.FileMode) error {
	return place(path, perm, renameNew, bytesOf(path, data))
}

// CreateFrom is Create for what write writes, whose error it returns as it is.
func CreateFrom(path string, perm fs.FileMode, write func(*os.File) error) error {
	return place(path, perm, renameNew, write)
}

func bytesOf(path string, data []byte) func(*os.File) error {
	return func(f *os.File) error {
		if _, err := f.Write(data); err != nil {
			return fmt.Errorf("writing %s: %w", path, err)
		}
		return nil
	}
}

// renameNew renames a to b unless b exists; the kernel decides. NFS and some others
// know hard links, but no such rename; a stays there then.
func renameNew(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS || err == unix.EOPNOTSUPP {
		err = unix.Link(a, b)
	}
	if err != nil {
		return &fs.PathError{Op: "creating", Path: b, Err: err}
	}
	return nil
}

func temporary(path string) string { return "." + filepath.Base(path) + ".new-" }

func place(path string, perm fs.FileMode, rename func(a, b string) error, write func(*os.File) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, temporary(path)+"*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // does nothing after a rename
	if err := write(f); err != nil {
		f.Close()
		return err
	}
	if err := errors.Join(f.Chmod(perm), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// Sweep removes what processes that were killed while they wrote path left beside
// it. The caller keeps others from writing it meanwhile.
func Sweep(path string) error {
	dir := filepath.Dir(path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), temporary(path)) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// WriteNew writes a file that is not there, into a directory that nobody reads yet,
// and returns after its bytes are on stable storage; its name is after SyncDir. After
// an error part of it may be there.
func WriteNew(path string, data []byte, perm fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// SyncDir returns after the names in dir are on stable storage.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}

// PrivateDir makes dir with mode 0700, or refuses one that others may use: who can
// write there puts back older files, or removes what takes something back.
func PrivateDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err == nil {
		err = SyncDir(filepath.Dir(dir))
	} else if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	if err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is %s, not a directory", dir, info.Mode().Type())
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("%s has mode %04o, and others may use it: chmod 700 %[1]s", dir, perm)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s does not belong to user %d, who runs this", dir, os.Geteuid())
	}
	return nil
}
