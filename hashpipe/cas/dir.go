package cas

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openDir opens a directory, creating it and its parents; the names of all it
// creates are on stable storage when it returns.
func openDir(name string) (*os.File, error) {
	if err := makeDir(name); err != nil {
		return nil, err
	}
	return os.OpenFile(name, unix.O_DIRECTORY, 0)
}

func makeDir(name string) error {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(name)
	if parent != name {
		if err := makeDir(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Also when another process made it: that one may not have come this far.
	dir, err := os.Open(parent)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// openAt opens an entry of dir.
func openAt(dir *os.File, name string, flags int, perm uint32) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	var fd int
	err := at(dir, func(dirfd int) (err error) {
		fd, err = unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, perm)
		return err
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// at calls f with the descriptor of dir, which stays open meanwhile, and again
// when a signal came between.
func at(dir *os.File, f func(dirfd int) error) error {
	conn, err := dir.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = conn.Control(func(fd uintptr) {
		for ferr = f(int(fd)); ferr == unix.EINTR; ferr = f(int(fd)) {
		}
	})
	if err != nil {
		return err
	}
	return ferr
}
