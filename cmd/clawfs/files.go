package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// replaceFile writes data under path, whole or not at all: temporary file,
// fsync, rename, fsync of the directory. What was there before is gone only
// after the new bytes are on stable storage.
func replaceFile(path string, data []byte, perm fs.FileMode) error {
	return place(path, data, perm, os.Rename)
}

// createFile is replaceFile for a file that must not exist yet: the error is
// fs.ErrExist and nothing is changed if it does.
func createFile(path string, data []byte, perm fs.FileMode) error {
	return place(path, data, perm, renameNew)
}

// renameNew renames a to b unless b exists; the kernel decides, so that two
// processes cannot both win.
func renameNew(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_NOREPLACE)
	if err != nil {
		return &fs.PathError{Op: "creating", Path: b, Err: err}
	}
	return nil
}

func place(path string, data []byte, perm fs.FileMode, rename func(a, b string) error) error {
	return placeFrom(path, perm, rename, func(f *os.File) error {
		_, err := f.Write(data)
		return err
	})
}

// placeFrom lets write fill a temporary file beside path and puts it there.
func placeFrom(path string, perm fs.FileMode, rename func(a, b string) error, write func(*os.File) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // does nothing after the rename
	err = write(f)
	if err == nil {
		err = errors.Join(f.Chmod(perm), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir puts the names in dir on stable storage.
func syncDir(dir string) error {
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
