package fs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a client process of the benchmark does, and how it times itself.

// timeAll does the named things to p, one after the other. The first word is the
// process that serves p, 0 if none does. For each thing it reports the seconds,
// the CPU seconds of both processes, the page faults of this one, and a sum over
// what it saw.
func timeAll(p string, words []string) result {
	r := result{Took: make(map[string]float64)}
	server, err := strconv.Atoi(words[0])
	if err != nil {
		return failed("time", err)
	}
	for _, what := range words[1:] {
		work, err := prepare(p, what)
		if err != nil {
			return failed(what, err)
		}
		cpu, faulted, began := cpuSeconds(server), faults(), time.Now()
		sum, err := work()
		took := time.Since(began)
		if err != nil {
			return failed(what, err)
		}
		r.Took[what] = took.Seconds()
		r.Took[what+" cpu"] = cpuSeconds(server) - cpu
		r.Took[what+" faults"] = faults() - faulted
		r.Took[what+" sum"] = float64(sum % (1 << 52))
	}
	return r
}

// cpuSeconds is the CPU time of this process and of another one, with all their
// threads. The kernel's own threads (a loop device, writing back) are not in it.
func cpuSeconds(other int) float64 {
	clocks := []int32{unix.CLOCK_PROCESS_CPUTIME_ID}
	if other != 0 {
		clocks = append(clocks, ^int32(other)<<3|2) // clock_getcpuclockid(3)
	}
	var sum float64
	for _, c := range clocks {
		var t unix.Timespec
		if err := unix.ClockGettime(c, &t); err != nil {
			panic(err)
		}
		sum += float64(t.Sec) + float64(t.Nsec)/1e9
	}
	return sum
}

// faults returns how many pages of memory this process had to have mapped.
func faults() float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return float64(u.Minflt + u.Majflt)
}

// hashed is what the reference hashes again and again.
var hashed = sync.OnceValue(func() []byte { return sample(1, 16<<20) })

// prepare gets ready for one thing, untimed, and returns the thing itself, which
// may be done once. A name may end in a count: faults-512.
func prepare(p, what string) (func() (uint64, error), error) {
	name, digits, counted := strings.Cut(what, "-")
	n, err := strconv.Atoi(digits)
	if counted && err != nil {
		return nil, err
	}
	switch name {
	case "drop": // the pages that the kernel keeps of this file
		return func() (uint64, error) { return 0, dropPages(p) }, nil
	case "cached":
		f, err := os.Open(p)
		if err != nil {
			return nil, err
		}
		return func() (uint64, error) { n, err := cachedBytes(f, 0); return uint64(n), err }, nil
	case "reopen":
		return func() (uint64, error) { return uint64(n), reopenTimes(p, n) }, nil
	case "sha256": // of as many bytes in memory, one stream
		st, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		piece := hashed()
		return func() (uint64, error) {
			h := sha256.New()
			for n := st.Size(); n > 0; n -= int64(len(piece)) {
				h.Write(piece[:min(n, int64(len(piece)))])
			}
			return 0, nil
		}, nil
	}
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	switch name {
	case "read":
		return closing(fd, func() (uint64, error) { return readSum(fd) }), nil
	case "mmap":
		return closing(fd, func() (uint64, error) { return mapSum(fd) }), nil
	case "faults":
		return closing(fd, func() (uint64, error) { return touchSum(fd, n) }), nil
	case "stat":
		names := make([]string, n)
		for i := range names {
			names[i] = manyName(i)
		}
		return closing(fd, func() (uint64, error) { return statSum(fd, names) }), nil
	case "list":
		return closing(fd, func() (uint64, error) { return listSum(fd) }), nil
	}
	unix.Close(fd)
	return nil, fmt.Errorf("unknown thing to time: %q", what)
}

func closing(fd int, work func() (uint64, error)) func() (uint64, error) {
	return func() (uint64, error) {
		sum, err := work()
		return sum, errors.Join(err, unix.Close(fd))
	}
}

func reopenTimes(p string, n int) error {
	for range n {
		fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		unix.Close(fd)
	}
	return nil
}

func readSum(fd int) (uint64, error) {
	buf := make([]byte, 1<<20)
	var total uint64
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n == 0 {
			return total, err
		}
		total += uint64(n)
	}
}

// mapping returns a fresh mapping of a file, as words; a rest is left out.
func mapping(fd int) (words []uint64, unmap func() error, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, err
	}
	data, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, err
	}
	return unsafe.Slice((*uint64)(unsafe.Pointer(&data[0])), len(data)/8), func() error { return unix.Munmap(data) }, nil
}

// mapSum adds up in four lanes, because one is slower than memory.
func mapSum(fd int) (uint64, error) {
	w, unmap, err := mapping(fd)
	if err != nil {
		return 0, err
	}
	var a, b, c, d uint64
	for ; len(w) >= 4; w = w[4:] {
		a, b, c, d = a+w[0], b+w[1], c+w[2], d+w[3]
	}
	for _, v := range w {
		a += v
	}
	return a + b + c + d, unmap()
}

// touchSum reads one word of each of n pages, in an order that looks random and
// is the same each time.
func touchSum(fd, n int) (uint64, error) {
	w, unmap, err := mapping(fd)
	if err != nil {
		return 0, err
	}
	if err := unix.Madvise(unsafe.Slice((*byte)(unsafe.Pointer(&w[0])), 8*len(w)), unix.MADV_RANDOM); err != nil {
		return 0, err
	}
	const pageWords = 4096 / 8
	x, sum, pages := uint64(1), uint64(0), uint64(len(w)/pageWords)
	for range n {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		sum += w[x%pages*pageWords+x>>55]
	}
	return sum, unmap()
}

// manyName names the files of a large directory.
func manyName(i int) string { return fmt.Sprintf("f%05d", i) }

func statSum(dir int, names []string) (uint64, error) {
	var sum uint64
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return 0, fmt.Errorf("stat %s: %w", name, err)
		}
		sum += uint64(st.Size)
	}
	return sum, nil
}

// listSum counts the names of manyName in a directory.
func listSum(dir int) (uint64, error) {
	const reclen, name = 16, 19 // in struct linux_dirent64
	buf := make([]byte, 64<<10)
	var count uint64
	for {
		n, err := unix.Getdents(dir, buf)
		if err != nil || n == 0 {
			return count, err
		}
		for b := buf[:n]; len(b) > 0; b = b[*(*uint16)(unsafe.Pointer(&b[reclen])):] {
			if bytes.HasPrefix(b[name:], []byte("f")) {
				count++
			}
		}
	}
}

// dropPages makes the kernel forget the pages that it keeps of a file, and fails
// if it does not.
func dropPages(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	var left int64
	for range 20 {
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			return fmt.Errorf("dropping the pages of %s: %w", p, err)
		}
		if left, err = cachedBytes(f, 0); err != nil || left == 0 {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s: %d bytes stay in the page cache: a cold read cannot be measured (TMPDIR has to lie on a disk)", p, left)
}
