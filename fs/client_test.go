package fs

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"
)

// result is what a client saw.
type result struct {
	Errno  syscall.Errno // of the first call that failed
	Call   string        // that call
	SHA256 string        // of the bytes that were read
	Size   int64
	Text   string
	Errnos map[string]syscall.Errno // write attempts
	Names  int
	Good   int                // reads of approved bytes
	Failed int                // reads that ended in an error
	Bad    int                // reads of other bytes
	Took   map[string]float64 // seconds
}

func (r result) String() string {
	return fmt.Sprintf("%s: %v, %d bytes of %.16s", r.Call, r.Errno, r.Size, r.SHA256)
}

// run does one thing in a client process. A client that hangs is a failure.
func (m *mounted) run(args ...string) result {
	m.t.Helper()
	r, err := m.try(args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return r
}

// started is run beside the test, which a client that hangs does not make hang.
func (m *mounted) started(args ...string) <-chan result {
	ended := make(chan result, 1)
	go func() {
		r, err := m.try(args...)
		if err != nil {
			m.t.Error(err)
			r = failed("client", err)
		}
		ended <- r
	}()
	return ended
}

func (m *mounted) try(args ...string) (result, error) {
	cmd := m.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	done := make(chan struct{})
	var out []byte
	var err error
	go func() {
		defer close(done)
		out, err = cmd.Output()
	}()
	limit := 30*time.Second + raceTime(m.t)
	select {
	case <-done:
	case <-time.After(limit):
		cmd.Process.Kill()
		return result{}, fmt.Errorf("client %q did not end in %v", args, limit)
	}
	var r result
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		return r, fmt.Errorf("client %q: %w\n%s", args, err, stderr.Bytes())
	}
	return r, nil
}

func (m *mounted) command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), roleVariable+"=client", quickExit)
	return cmd
}

func (m *mounted) at(name string) string { return filepath.Join(m.dir, name) }

// reads checks that a name opens and gives these bytes.
func (m *mounted) reads(name string, data []byte) {
	m.t.Helper()
	if r := m.run("read", m.at(name)); r.Errno != 0 || r.SHA256 != sumOf(data) {
		m.t.Fatalf("reading %s: %v, want %d bytes of %.16s", name, r, len(data), sumOf(data))
	}
}

// refuses checks the errno of an open, and the reason in the audit.
func (m *mounted) refuses(name string, want syscall.Errno, why Reason) {
	m.t.Helper()
	before := m.refusals(name)
	if r := m.run("read", m.at(name)); r.Errno != want || r.Call != "open" {
		m.t.Fatalf("reading %s: %v, want open: %v", name, r, want)
	}
	for deadline := time.Now().Add(10 * time.Second); m.refusals(name) == before && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	rec := m.lastRecord(name, Refused)
	if rec.Reason != why {
		m.t.Fatalf("open of %s refused as %q (%s), want %q", name, rec.Reason, rec.Detail, why)
	}
	if rec.Detail == "" || rec.Next == "" || rec.PID == 0 || rec.Comm == "" || rec.Time.IsZero() {
		m.t.Errorf("record of a refusal has gaps: %+v", rec)
	}
}

// refusals returns how many refusals of a path were recorded.
func (m *mounted) refusals(path string) (n int) {
	for _, r := range m.ask(request{Op: "records"}).Records {
		if r.Path == path && r.Decision == Refused {
			n++
		}
	}
	return n
}

func client(args []string) int {
	r := act(args)
	if err := json.MarshalWrite(os.Stdout, r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func failed(call string, err error) result {
	r := result{Call: call, Errno: syscall.EINVAL, Text: err.Error()}
	errors.As(err, &r.Errno)
	return r
}

func measured(data []byte) result {
	sum := sha256.Sum256(data)
	return result{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(data))}
}

func act(args []string) result {
	op, p := args[0], args[1]
	switch op {
	case "read":
		return readAll(p, unix.O_RDONLY)
	case "read-as-nobody":
		for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)} {
			if err != nil {
				return failed("becoming nobody", err)
			}
		}
		return readAll(p, unix.O_RDONLY)
	case "as": // a user id, and what that user does
		uid, err := strconv.Atoi(p)
		for _, err := range []error{err, syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)} {
			if err != nil {
				return failed("becoming user "+p, err)
			}
		}
		return act(args[2:])
	case "open": // flags
		flags, _ := strconv.Atoi(args[2])
		fd, err := unix.Open(p, flags|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return failed("open", err)
		}
		unix.Close(fd)
		return result{}
	case "mustwork": // sum, scratch directory
		return tryEverything(p, args[2], args[3])
	case "direct":
		return readAll(p, unix.O_RDONLY|unix.O_DIRECT)
	case "pread":
		return preadBackwards(p)
	case "mmap-shared":
		return mapAll(p, unix.PROT_READ, unix.MAP_SHARED)
	case "mmap-private":
		return mapAll(p, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	case "mmap-write":
		return mapAll(p, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	case "mmap-exec":
		return mapAll(p, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	case "sendfile":
		return sendAll(p)
	case "list":
		return listAll(p)
	case "mutate":
		return result{Errnos: mutate(p)}
	case "stat":
		return stat(p)
	case "getxattr":
		return getxattr(p, args[2])
	case "alarm":
		return alarm(p)
	case "hold":
		return hold(p)
	case "loop":
		return loop(p, args[2], args[3], 0)
	case "loop until refused":
		return loop(p, args[2], args[3], 20)
	case "time":
		return timeAll(p, args[2:])
	case "keep":
		return keep(p, args[2])
	case "openloop":
		return openLoop(p, args[2])
	}
	return failed("act", fmt.Errorf("unknown op %q", op))
}

func readAll(p string, flags int) result {
	fd, err := unix.Open(p, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", err)
	}
	defer unix.Close(fd)
	return readFD(fd)
}

// readFD reads to the end with an aligned buffer, as direct I/O wants it.
func readFD(fd int) result {
	const size = 256 << 10
	raw := make([]byte, size+4096)
	skip := (4096 - int(uintptr(unsafe.Pointer(&raw[0])))%4096) % 4096
	buf := raw[skip : skip+size]
	h := sha256.New()
	var total int64
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return failed("read", err)
		}
		if n == 0 {
			return result{SHA256: hex.EncodeToString(h.Sum(nil)), Size: total}
		}
		h.Write(buf[:n])
		total += int64(n)
	}
}

// preadBackwards reads in odd pieces from the end to the beginning.
func preadBackwards(p string) result {
	f, err := os.Open(p)
	if err != nil {
		return failed("open", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return failed("fstat", err)
	}
	data := make([]byte, st.Size())
	const piece = 65537
	for off := (st.Size() - 1) / piece * piece; off >= 0; off -= piece {
		end := min(off+piece, st.Size())
		if _, err := f.ReadAt(data[off:end], off); err != nil {
			return failed("pread", err)
		}
	}
	if n, err := f.ReadAt(make([]byte, 10), st.Size()); n != 0 || err != io.EOF {
		return failed("pread at the end", fmt.Errorf("%d, %v", n, err))
	}
	return measured(data)
}

// mapAll maps and hashes. A SIGBUS is an error like any other.
func mapAll(p string, prot, flags int) (r result) {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed("fstat", err)
	}
	data, err := unix.Mmap(fd, 0, int(st.Size), prot, flags)
	if err != nil {
		return failed("mmap", err)
	}
	defer unix.Munmap(data)
	return touch(data)
}

func touch(data []byte) (r result) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			r = failed("fault", fmt.Errorf("%w: %v", unix.EFAULT, v))
		}
	}()
	return measured(bytes.Clone(data))
}

func sendAll(p string) result {
	in, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", err)
	}
	out, err := unix.MemfdCreate("out", 0)
	if err != nil {
		return failed("memfd", err)
	}
	for {
		n, err := unix.Sendfile(out, in, nil, 1<<30)
		if err != nil {
			return failed("sendfile", err)
		}
		if n == 0 {
			break
		}
	}
	if _, err := unix.Seek(out, 0, io.SeekStart); err != nil {
		return failed("seek", err)
	}
	return readFD(out)
}

func listAll(p string) result {
	entries, err := os.ReadDir(p)
	if err != nil {
		return failed("readdir", err)
	}
	seen := make(map[string]bool)
	var text strings.Builder
	for _, e := range entries {
		seen[e.Name()] = true
		if len(entries) < 100 {
			fmt.Fprintf(&text, "%s %s\n", e.Type(), e.Name())
		}
	}
	// Entries are stat'ed, as ls -l does; of many, some.
	for i, e := range entries {
		if i%(1+len(entries)/1000) != 0 {
			continue
		}
		if _, err := e.Info(); err != nil {
			return failed("lstat "+e.Name(), err)
		}
	}
	return result{Names: len(seen), Text: text.String()}
}

func stat(p string) result {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return failed("lstat", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(p, &fs); err != nil {
		return failed("statfs", err)
	}
	return result{Size: st.Size, Text: fmt.Sprintf("mode=%o ino=%d blksize=%d mtime=%d.%09d nlink=%d readonly=%v",
		st.Mode, st.Ino, st.Blksize, st.Mtim.Sec, st.Mtim.Nsec, st.Nlink, fs.Flags&unix.ST_RDONLY != 0)}
}

func getxattr(p, name string) result {
	if name == "" {
		buf := make([]byte, 4096)
		n, err := unix.Listxattr(p, buf)
		if err != nil {
			return failed("listxattr", err)
		}
		return result{Text: strings.ReplaceAll(string(buf[:n]), "\x00", " ")}
	}
	n, err := unix.Getxattr(p, name, nil)
	if err != nil {
		return failed("getxattr", err)
	}
	buf := make([]byte, n)
	if n, err = unix.Getxattr(p, name, buf); err != nil {
		return failed("getxattr", err)
	}
	return result{Text: string(buf[:n])}
}

// mutate tries everything that changes something.
func mutate(dir string) map[string]syscall.Errno {
	out := make(map[string]syscall.Errno)
	file := filepath.Join(dir, "model.bin")
	try := func(name string, err error) {
		var e syscall.Errno
		errors.As(err, &e)
		out[name] = e
	}
	open := func(p string, flags int) error {
		fd, err := unix.Open(p, flags, 0o644)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
	try("open write", open(file, unix.O_WRONLY))
	try("open read-write", open(file, unix.O_RDWR))
	try("open append", open(file, unix.O_WRONLY|unix.O_APPEND))
	try("open truncate", open(file, unix.O_RDWR|unix.O_TRUNC))
	try("create", open(filepath.Join(dir, "new"), unix.O_CREAT|unix.O_RDWR))
	try("tmpfile", open(dir, unix.O_TMPFILE|unix.O_RDWR))
	try("truncate", unix.Truncate(file, 0))
	try("chmod", unix.Chmod(file, 0o600))
	try("chown", unix.Chown(file, 1, 1))
	try("utimes", unix.Utimes(file, []unix.Timeval{{}, {}}))
	try("unlink", unix.Unlink(file))
	try("rename", unix.Rename(file, filepath.Join(dir, "other")))
	try("link", unix.Link(file, filepath.Join(dir, "other")))
	try("symlink", unix.Symlink("x", filepath.Join(dir, "other")))
	try("mkdir", unix.Mkdir(filepath.Join(dir, "sub"), 0o755))
	try("rmdir", unix.Rmdir(filepath.Join(dir, "empty")))
	try("mknod", unix.Mknod(filepath.Join(dir, "fifo"), unix.S_IFIFO|0o644, 0))
	try("setxattr", unix.Setxattr(file, "user.clawfs.status", []byte("granted"), 0))
	try("removexattr", unix.Removexattr(file, "user.clawfs.status"))
	return out
}

// alarm opens while a timer signal arrives every few milliseconds, and reports
// EINTR where Go's own functions would try again.
func alarm(p string) result {
	ticks := make(chan os.Signal, 1)
	signal.Notify(ticks, unix.SIGALRM)
	every := unix.Timeval{Usec: 5000}
	if _, err := unix.Setitimer(unix.ITIMER_REAL, unix.Itimerval{
		Interval: unix.Timeval{Usec: every.Usec}, Value: unix.Timeval{Usec: every.Usec},
	}); err != nil {
		return failed("setitimer", err)
	}
	fd, err := unix.Open(p, unix.O_RDONLY, 0)
	if err != nil {
		return failed("open", err)
	}
	r := readFD(fd)
	select {
	case <-ticks:
	default:
		return failed("alarm", errors.New("no signal arrived"))
	}
	return r
}

// hold opens and maps a file, says so, and obeys its stdin: "read" and "touch"
// answer with a line, "quit" ends.
func hold(p string) result {
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failed("fstat", err)
	}
	data, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return failed("mmap", err)
	}
	say := func(r result) {
		b, err := json.Marshal(r)
		if err != nil {
			panic(err)
		}
		os.Stdout.Write(append(b, '\n'))
	}
	say(result{Size: st.Size})
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "read":
			if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
				say(failed("seek", err))
				continue
			}
			say(readFD(fd))
		case "evict": // the mount's pages of the file, which are clean
			if err := unix.Madvise(data, unix.MADV_DONTNEED); err != nil {
				say(failed("madvise", err))
				continue
			}
			if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
				say(failed("fadvise", err))
				continue
			}
			say(result{})
		case "touch":
			say(touch(data))
		case "quit":
			unix.Munmap(data)
			unix.Close(fd)
			return result{}
		}
	}
	return result{}
}

// loop reads a file again and again, by read and by mapping, for a while, and
// counts what it saw. Approved is the only sum that counts as good. It ends early
// once it saw that, and then so many errors, if enough is not 0.
func loop(p, approved, seconds string, enough int) result {
	n, _ := strconv.ParseFloat(seconds, 64)
	var out result
	for deadline := time.Now().Add(time.Duration(n * float64(time.Second))); time.Now().Before(deadline); {
		if enough > 0 && out.Good > 0 && out.Failed >= enough {
			break
		}
		for _, r := range []result{readAll(p, unix.O_RDONLY), mapAll(p, unix.PROT_READ, unix.MAP_SHARED)} {
			switch {
			case r.Errno != 0:
				out.Failed++
				if r.Errno != syscall.EACCES && r.Errno != syscall.EIO && r.Errno != syscall.EFAULT && r.Errno != syscall.ESTALE {
					out.Text = fmt.Sprint(r)
				}
			case r.SHA256 == approved:
				out.Good++
			default:
				out.Bad++
				out.Text = fmt.Sprint(r)
			}
		}
	}
	return out
}

// openLoop opens in many goroutines at one time, and reads the beginning.
func openLoop(p, count string) result {
	n, _ := strconv.Atoi(count)
	results := make(chan result, n)
	start := make(chan struct{})
	for range n {
		go func() {
			<-start
			fd, err := unix.Open(p, unix.O_RDONLY, 0)
			if err != nil {
				results <- failed("open", err)
				return
			}
			defer unix.Close(fd)
			buf := make([]byte, 4096)
			n, err := unix.Pread(fd, buf, 0)
			if err != nil {
				results <- failed("pread", err)
				return
			}
			results <- measured(buf[:n])
		}()
	}
	close(start)
	var out result
	for range n {
		r := <-results
		if r.Errno != 0 {
			out = r
		} else {
			out.Good++
			out.SHA256 = r.SHA256
		}
	}
	return out
}

// holder is a client that keeps a file open and mapped.
type holder struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (m *mounted) hold(name string) *holder {
	m.t.Helper()
	return m.holder(name, "hold", m.at(name))
}

func (m *mounted) holdAs(uid int, name string) *holder {
	m.t.Helper()
	return m.holder(name, "as", strconv.Itoa(uid), "hold", m.at(name))
}

func (m *mounted) holder(name string, args ...string) *holder {
	m.t.Helper()
	h := &holder{t: m.t, cmd: m.command(args...)}
	var err error
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		m.t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	h.cmd.Stderr = os.Stderr
	if err := h.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(h.quit)
	if r := h.hear(); r.Errno != 0 {
		m.t.Fatalf("holding %s: %v", name, r)
	}
	return h
}

func (h *holder) hear() result {
	h.t.Helper()
	stuck := time.AfterFunc(time.Minute, func() { h.cmd.Process.Kill() })
	defer stuck.Stop()
	line, err := h.out.ReadBytes('\n')
	var r result
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err != nil {
		h.t.Fatalf("holder: %v", err)
	}
	return r
}

func (h *holder) ask(what string) result {
	h.t.Helper()
	if _, err := io.WriteString(h.in, what+"\n"); err != nil {
		h.t.Fatalf("holder: %v", err)
	}
	return h.hear()
}

// quit ends the holder; asking twice is fine.
func (h *holder) quit() {
	if h.cmd.ProcessState != nil {
		return
	}
	io.WriteString(h.in, "quit\n")
	h.in.Close()
	stuck := time.AfterFunc(10*time.Second, func() { h.cmd.Process.Kill() })
	defer stuck.Stop()
	h.cmd.Wait()
}
