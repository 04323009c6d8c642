package soak

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// churn writes to the file of a content, in each way that a writer has, and puts
// the content back, until stop is closed. What it leaves is the content.
func (w *world) churn(path string, c content, stop <-chan struct{}) {
	ways := map[string]func(string, content) error{
		"in place": overwrite, "exchange": exchange, "truncate": truncate, "hole": punch, "mapping": scribble, "rename over": replace, "link": relink, "append": extend,
	}
	var names []string
	for name := range ways {
		names = append(names, name)
	}
	for {
		select {
		case <-stop:
			return
		case <-time.After(rand.N(300 * time.Millisecond)):
		}
		name := names[rand.IntN(len(names))]
		if err := ways[name](path, c); err != nil {
			w.run.fail("writing to %s (%s): %v", path, name, err)
			return
		}
		w.run.count.add("churn", 1)
	}
}

func modify(path string, do func(*os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

// restore writes a part of the content again.
func restore(f *os.File, c content, from, to int64) error {
	var b [blockSize]byte
	for i := from / blockSize; i*blockSize < to; i++ {
		if _, err := f.WriteAt(c.block(i, &b), i*blockSize); err != nil {
			return err
		}
	}
	return nil
}

// somePart is a part of the content that is not empty.
func somePart(c content) (off, n int64) {
	off = rand.Int64N(c.Size)
	return off, 1 + rand.Int64N(min(c.Size-off, 3*blockSize))
}

func rest() { time.Sleep(rand.N(20 * time.Millisecond)) }

func noise(n int64) []byte {
	b := make([]byte, n)
	var seed [32]byte
	for i := range seed {
		seed[i] = byte(rand.Int())
	}
	rand.NewChaCha8(seed).Read(b)
	return b
}

func overwrite(path string, c content) error {
	return modify(path, func(f *os.File) error {
		off, n := somePart(c)
		if _, err := f.WriteAt(noise(n), off); err != nil {
			return err
		}
		rest()
		return restore(f, c, off, off+n)
	})
}

// scribble stores through a mapping that it made before, as an earlier writer has
// it: at first no time of the file changes.
func scribble(path string, c content) error {
	return modify(path, func(f *os.File) error {
		m, err := unix.Mmap(int(f.Fd()), 0, int(c.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		defer unix.Munmap(m)
		for range 3 {
			off, n := somePart(c)
			old := append([]byte(nil), m[off:off+n]...)
			copy(m[off:], noise(n))
			rest()
			copy(m[off:], old)
			rest()
		}
		return nil
	})
}

func truncate(path string, c content) error {
	return modify(path, func(f *os.File) error {
		to := rand.Int64N(c.Size)
		if err := f.Truncate(to); err != nil {
			return err
		}
		rest()
		return restore(f, c, to, c.Size)
	})
}

func extend(path string, c content) error {
	return modify(path, func(f *os.File) error {
		if _, err := f.WriteAt(noise(100), c.Size); err != nil {
			return err
		}
		rest()
		return f.Truncate(c.Size)
	})
}

func punch(path string, c content) error {
	return modify(path, func(f *os.File) error {
		off, n := somePart(c)
		if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n); err != nil {
			return err
		}
		rest()
		return restore(f, c, off, off+n)
	})
}

// beside is the name of a helper of a file.
func beside(path, what string) string {
	return filepath.Join(filepath.Dir(path), "."+what+"-"+filepath.Base(path))
}

// exchange puts another file of the same size in the place of the content's, and
// both back.
func exchange(path string, c content) error {
	other := beside(path, "other")
	if err := os.WriteFile(other, noise(c.Size), 0o644); err != nil {
		return err
	}
	defer os.Remove(other)
	for range 2 {
		if err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE); err != nil {
			return err
		}
		rest()
	}
	return nil
}

func replace(path string, c content) error {
	next := beside(path, "next")
	if err := writeFile(next, c); err != nil {
		return err
	}
	return os.Rename(next, path)
}

// relink takes the name away, puts a link to another file there, and then the file
// again.
func relink(path string, c content) error {
	kept := beside(path, "kept")
	if err := os.Rename(path, kept); err != nil {
		return err
	}
	rest()
	if err := os.Symlink("/etc/hostname", path); err != nil {
		return err
	}
	rest()
	return os.Rename(kept, path)
}

// storm turns a directory of the source over until the soak ends: files, links and
// directories come and go under few names, so that all of them meet, as fsracer
// does it. Among them are contents that are granted elsewhere under other names.
func (w *world) storm() {
	dir := filepath.Join(w.src, "storm")
	if err := os.Mkdir(dir, 0o755); err != nil {
		w.run.fail("%v", err)
		return
	}
	name := func() string {
		p := dir
		for range rand.IntN(3) {
			p = filepath.Join(p, strconv.Itoa(rand.IntN(4)))
		}
		return filepath.Join(p, strconv.Itoa(rand.IntN(6)))
	}
	for w.run.goesOn() {
		a, b := name(), name()
		var err error
		switch rand.IntN(8) {
		case 0:
			err = os.Mkdir(a, 0o755)
		case 1:
			err = os.WriteFile(a, noise(rand.Int64N(100<<10)), 0o644)
		case 2:
			err = os.Rename(a, b)
		case 3:
			err = os.Symlink(b, a)
		case 4:
			err = os.Link(a, b)
		case 5:
			err = os.RemoveAll(a)
		case 6:
			err = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
		case 7:
			// An approved content under a name that is not its own.
			if list, _ := filepath.Glob(filepath.Join(w.src, "model-*.bin")); len(list) > 0 {
				from, e := os.Open(list[rand.IntN(len(list))])
				if e == nil {
					if to, e := os.OpenFile(a, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o644); e == nil {
						unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
						to.Close()
					}
					from.Close()
				}
			}
		}
		if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EIO) {
			w.run.fail("turning %s over: %v", dir, err)
		}
		w.run.count.add("storm", 1)
		time.Sleep(rand.N(20 * time.Millisecond))
	}
}

// stressors are what stress-ng does in the source, one after the other, with bounds
// that keep the disk of the soak from filling up.
var stressors = [][]string{
	{"--hdd", "1", "--hdd-bytes", "16M"},
	{"--rename", "1"},
	{"--link", "1"},
	{"--symlink", "1"},
	{"--dentry", "1", "--dentries", "128"},
	{"--dir", "1", "--dir-dirs", "64"},
	{"--inotify", "1"},
	{"--fault", "1"},
	{"--fallocate", "1", "--fallocate-bytes", "16M"},
	{"--fiemap", "1", "--fiemap-bytes", "16M"},
	{"--utime", "1"},
	{"--chmod", "1"},
	{"--flock", "1"},
	{"--open", "1", "--open-max", "64"},
	{"--xattr", "1"},
	{"--copy-file", "1", "--copy-file-bytes", "128M"},
	{"--filename", "1"},
}

// stressNG runs stress-ng in the source until the soak ends.
func (w *world) stressNG() {
	dir := filepath.Join(w.src, "stress")
	if err := os.Mkdir(dir, 0o755); err != nil {
		w.run.fail("%v", err)
		return
	}
	for i := rand.IntN(len(stressors)); w.run.goesOn(); i++ {
		args := append([]string{"-n", "19", "stress-ng", "--temp-path", dir, "--timeout", "8s", "--oom-avoid"}, stressors[i%len(stressors)]...)
		cmd := exec.CommandContext(w.run.ctx, "nice", args...)
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
		cmd.WaitDelay = 10 * time.Second
		out, err := cmd.CombinedOutput()
		if err != nil && w.run.goesOn() {
			// 3: a stressor that this machine does not have.
			if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 3 {
				w.run.fail("%v: %v\n%s", args, err, out)
				return
			}
			w.run.count.add(fmt.Sprintf("stress-ng cannot %s here", stressors[i%len(stressors)][0]), 1)
			continue
		}
		w.run.count.add("stress-ng", 1)
	}
}
