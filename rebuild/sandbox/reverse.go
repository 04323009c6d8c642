package sandbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// maxReversed bounds the bytes of inputs that are copied to reverse their
	// directory order; they lie in memory while the run lasts.
	maxReversed = 256 << 20
	// maxReversedFiles bounds their files and directories.
	maxReversedFiles = 100_000
)

// reverseInputs replaces inputs by copies whose directories list in reverse
// order, as far as the bounds allow, and remembers which and why not the others.
func (x *run) reverseInputs() error {
	left := usedDisk{maxReversed, maxReversedFiles}
	var chosen []int
	for i, in := range x.spec.Inputs {
		used, not, err := weigh(in.Path, left)
		if err != nil {
			return fmt.Errorf("input %s: %w", in.Name, err)
		}
		if not != "" {
			x.unreversed = append(x.unreversed, in.Name+" "+not)
			continue
		}
		chosen = append(chosen, i)
		left.bytes, left.files = left.bytes-used.bytes, left.files-used.files
	}
	if len(chosen) == 0 {
		return nil
	}
	dir, err := x.state.mkdir("in")
	if err != nil {
		return err
	}
	// Half as much again for the rounding of each file to a page.
	options := fmt.Sprintf("mode=0711,size=%d", maxReversed+int64(maxReversedFiles*os.Getpagesize()))
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mounting a place for inputs: %w", err)
	}
	oldestFirst, err := listsOldestFirst(dir)
	if err != nil {
		return err
	}
	for _, i := range chosen {
		in := &x.spec.Inputs[i]
		to := filepath.Join(dir, fmt.Sprint(i))
		if err := copyReversed(in.Path, to, oldestFirst); err != nil {
			return fmt.Errorf("copying input %s: %w", in.Name, err)
		}
		in.Path = to
		x.reversed = append(x.reversed, in.Name)
	}
	return nil
}

// weigh tells what a tree holds and, in words, why it is not to be copied:
// only directories of nothing but files, links and directories within the
// bounds are.
func weigh(path string, left usedDisk) (used usedDisk, not string, err error) {
	if st, err := os.Stat(path); err != nil {
		return used, "", err
	} else if !st.IsDir() {
		return used, "is a single file", nil
	}
	err = filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.Type()&^(fs.ModeDir|fs.ModeSymlink) != 0 {
			not = "holds a file that is not plain"
			return fs.SkipAll
		}
		if used.files++; used.files > left.files {
			not = fmt.Sprintf("brings the inputs above %d files", maxReversedFiles)
			return fs.SkipAll
		}
		if d.Type().IsRegular() {
			st, err := d.Info()
			if err != nil {
				return err
			}
			if used.bytes += st.Size(); used.bytes > left.bytes {
				not = fmt.Sprintf("brings the inputs above %d MiB", maxReversed>>20)
				return fs.SkipAll
			}
		}
		return nil
	})
	return used, not, err
}

// listsOldestFirst finds out in which order this kernel's tmpfs lists a
// directory: Linux 6.6 turned it round.
func listsOldestFirst(dir string) (bool, error) {
	probe := filepath.Join(dir, "probe")
	for _, p := range []string{probe, probe + "/old", probe + "/new"} {
		if err := os.Mkdir(p, 0o700); err != nil {
			return false, err
		}
	}
	names, err := unsorted(probe)
	if err != nil {
		return false, err
	}
	return names[0].Name() == "old", os.RemoveAll(probe)
}

func unsorted(dir string) ([]fs.DirEntry, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

// copyReversed copies a directory with modes and times so that the copy lists
// in the reverse of the original's order.
func copyReversed(from, to string, oldestFirst bool) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	list, err := unsorted(from)
	if err != nil {
		return err
	}
	if oldestFirst {
		slices.Reverse(list)
	}
	for _, e := range list {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		switch {
		case e.IsDir():
			err = copyReversed(src, dst, oldestFirst)
		case e.Type()&fs.ModeSymlink != 0:
			err = copyLink(src, dst)
		default:
			err = copyFile(src, dst)
		}
		if err != nil {
			return err
		}
	}
	if err := os.Chmod(to, st.Mode().Perm()); err != nil {
		return err
	}
	return os.Chtimes(to, st.ModTime(), st.ModTime())
}

func copyLink(src, dst string) error {
	target, err := os.Readlink(src)
	if err != nil {
		return err
	}
	if err := os.Symlink(target, dst); err != nil {
		return err
	}
	st, err := os.Lstat(src)
	if err != nil {
		return err
	}
	t := unix.NsecToTimespec(st.ModTime().UnixNano())
	return unix.UtimesNanoAt(unix.AT_FDCWD, dst, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

func copyFile(src, dst string) error {
	r, err := os.Open(src)
	if err != nil {
		return err
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		return err
	}
	w, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	if err := errors.Join(err, w.Chmod(st.Mode().Perm()), w.Close()); err != nil {
		return err
	}
	return os.Chtimes(dst, st.ModTime(), st.ModTime())
}
