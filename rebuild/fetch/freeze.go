package fetch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// InputTime is the modification time, in Unix seconds, of everything a build
// sees below /in: 1980-01-02, which a zip member can hold in every time zone.
const InputTime = 315619200

// Freeze makes the file or directory at path, and everything below, read-only
// with one modification time: 0444, and 0555 for directories and for files that
// their owner may run. Links are not followed.
func Freeze(path string) error {
	var dirs []string
	err := filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			dirs = append(dirs, name)
			return nil
		}
		return freezeOne(name, e)
	})
	for i := len(dirs) - 1; i >= 0 && err == nil; i-- {
		err = freezeDir(dirs[i])
	}
	if err != nil {
		return fmt.Errorf("making inputs read-only: %w", err)
	}
	return nil
}

func freezeOne(name string, e fs.DirEntry) error {
	if e.Type()&fs.ModeSymlink == 0 {
		info, err := e.Info()
		if err != nil {
			return err
		}
		if err := os.Chmod(name, frozenMode(info)); err != nil {
			return err
		}
	}
	return stamp(name)
}

func freezeDir(name string) error {
	if err := os.Chmod(name, 0o555); err != nil {
		return err
	}
	return stamp(name)
}

func frozenMode(info fs.FileInfo) fs.FileMode {
	if info.IsDir() || info.Mode()&0o100 != 0 {
		return 0o555
	}
	return 0o444
}

func stamp(name string) error {
	times := []unix.Timespec{{Sec: InputTime}, {Sec: InputTime}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return nil
}

// Frozen says what Freeze would change at path or below. A measurement of bytes
// does not see it, and a build does.
func Frozen(path string) error {
	return filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		// A whole mode, so that a set-id or sticky bit is seen too.
		mode := info.Mode() &^ fs.ModeType
		if t := info.ModTime(); t.Unix() != InputTime || t.Nanosecond() != 0 || mode != frozenMode(info) && e.Type() != fs.ModeSymlink {
			return fmt.Errorf("%s was changed: mode %v, time %v", name, info.Mode(), t.UTC())
		}
		return nil
	})
}

// allocated counts the bytes that path and everything below take on the disk.
func allocated(path string) (total int64, err error) {
	err = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		info, err := e.Info()
		if err != nil {
			return ignoreGone(err)
		}
		total += info.Sys().(*syscallStat).Blocks * 512
		return nil
	})
	return total, err
}

// ignoreGone is for looks at what others change meanwhile.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// remove removes path, parts of which may be read-only.
func remove(path string) error {
	if err := os.RemoveAll(path); err == nil {
		return nil
	}
	filepath.WalkDir(path, func(name string, e fs.DirEntry, _ error) error {
		if e != nil && e.IsDir() {
			os.Chmod(name, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}
