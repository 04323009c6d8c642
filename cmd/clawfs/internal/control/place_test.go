package control

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// contender is a child that takes the place when it is told to.
type contender struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	path string
}

func newContender(t *testing.T, path string) *contender {
	t.Helper()
	c := &contender{cmd: exec.Command("/proc/self/exe"), path: path}
	c.cmd.Env = append(os.Environ(), "CONTROL_TEST_PLACE="+path)
	c.in, _ = c.cmd.StdinPipe()
	out, _ := c.cmd.StdoutPipe()
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := c.out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("child said %q, %v", line, err)
	}
	return c
}

// takes tells it to take the place; said is what became of it.
func (c *contender) takes() { c.in.Write([]byte{'\n'}) }
func (c *contender) said() string {
	line, _ := c.out.ReadString('\n')
	return strings.TrimSpace(line)
}
func (c *contender) end() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

// Of several that start in the same instant, by different paths, exactly one gets
// the place, and the others name it.
func TestOnePlace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("a bind mount needs root; run: sudo go test")
	}
	base := t.TempDir()
	dir := filepath.Join(base, "run")
	bound := filepath.Join(base, "bound", "run")
	for _, d := range []string{dir, bound} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(dir, bound, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(bound, unix.MNT_DETACH) })
	if err := os.Symlink(base, filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	paths := []string{filepath.Join(dir, "daemon.lock"), filepath.Join(bound, "daemon.lock"), filepath.Join(base, "link", "run", "daemon.lock"), filepath.Join(dir, "daemon.lock")}
	for round := range 100 {
		var all []*contender
		for i := range paths {
			all = append(all, newContender(t, paths[(i+round)%len(paths)]))
		}
		for _, c := range all {
			c.takes()
		}
		var winner *contender
		var refused []string
		for _, c := range all {
			switch said := c.said(); {
			case said != "held":
				refused = append(refused, said)
			case winner != nil:
				t.Fatalf("round %d: two processes hold %s and %s", round, winner.path, c.path)
			default:
				winner = c
			}
		}
		if winner == nil {
			t.Fatalf("round %d: nobody holds the place: %q", round, refused)
		}
		if round%3 == 0 { // and the lock file is gone, or another
			os.Remove(paths[0])
			if round%2 == 0 {
				os.WriteFile(paths[0], []byte("1"), 0o600)
			}
		}
		late := newContender(t, paths[round%len(paths)])
		late.takes()
		refused = append(refused, late.said())
		all = append(all, late)
		for _, said := range refused {
			if !strings.Contains(said, "another process, pid "+strconv.Itoa(winner.cmd.Process.Pid)) {
				t.Errorf("round %d: refused with %q, want the pid %d", round, said, winner.cmd.Process.Pid)
			}
		}
		for _, c := range all {
			c.end()
		}
	}
}

// What stands at the lock's path and is no file of a lock is refused, touched by
// nobody, and nobody waits for it.
func TestPlantedLock(t *testing.T) {
	for _, tt := range []struct {
		name  string
		plant func(p string) error
		want  string
	}{
		{"link to a file", func(p string) error {
			os.WriteFile(p+".other", []byte("keep"), 0o600)
			return os.Symlink(p+".other", p)
		}, "got a symbolic link"},
		{"link to nothing", func(p string) error { return os.Symlink(p+".other", p) }, "got a symbolic link"},
		{"pipe", func(p string) error { return unix.Mkfifo(p, 0o600) }, "got a named pipe"},
		{"directory", func(p string) error { return os.Mkdir(p, 0o700) }, "is a directory"},
		{"socket", func(p string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p})
			if err == nil {
				l.SetUnlinkOnClose(false)
				l.Close()
			}
			return err
		}, "no such device or address"},
		{"device", func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }, "got a special file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(runDir(t), "daemon.lock")
			if err := tt.plant(path); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(path)
			if l, err := TakePlace(path); err == nil {
				l.Release()
				t.Fatal("TakePlace took it")
			} else if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("TakePlace = %v, want an error with %s and %q", err, path, tt.want)
			}
			if after, _ := os.Lstat(path); !os.SameFile(before, after) || before.Size() != after.Size() {
				t.Error("what was planted is another; it is evidence")
			}
			if _, err := os.Lstat(path + ".other"); tt.name == "link to nothing" && err == nil {
				t.Error("the lock was made through the link")
			}
			// It was refused for that alone, and left nothing locked.
			os.Remove(path)
			l, err := TakePlace(path)
			if err != nil {
				t.Fatalf("without it: %v", err)
			}
			l.Release()
		})
	}
	dir := runDir(t)
	if err := os.Symlink(dir, dir+"-link"); err != nil {
		t.Fatal(err)
	}
	if l, err := TakePlace(filepath.Join(dir+"-link", "daemon.lock")); err == nil {
		l.Release()
		t.Error("a directory that is a link was taken")
	}
}

// The holder notices that others cannot find it any more.
func TestKeepPlace(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(dir, lock, sock string) error
		want  string
	}{
		{"lock removed", func(dir, lock, sock string) error { return os.Remove(lock) }, "daemon.lock was removed"},
		{"lock replaced", func(dir, lock, sock string) error {
			os.WriteFile(lock+".new", nil, 0o600)
			return os.Rename(lock+".new", lock)
		}, "daemon.lock was replaced"},
		{"lock a link", func(dir, lock, sock string) error {
			os.Rename(lock, lock+".old")
			return os.Symlink(lock+".old", lock)
		}, "daemon.lock was replaced"},
		{"socket removed", func(dir, lock, sock string) error { return os.Remove(sock) }, "clawfs.sock was removed"},
		{"socket replaced", func(dir, lock, sock string) error {
			os.Remove(sock)
			return os.WriteFile(sock, nil, 0o600)
		}, "clawfs.sock was replaced"},
		{"directory moved away", func(dir, lock, sock string) error { return os.Rename(dir, dir+"-old") }, "run was removed"},
		{"directory replaced", func(dir, lock, sock string) error {
			os.Rename(dir, dir+"-old")
			return os.Mkdir(dir, 0o700)
		}, "run was replaced"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := runDir(t)
			path, sock := filepath.Join(dir, "daemon.lock"), filepath.Join(dir, "clawfs.sock")
			lock, err := TakePlace(path)
			if err != nil {
				t.Fatal(err)
			}
			defer lock.Release()
			l, err := Listen(lock, sock, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			stop, ended := make(chan struct{}), make(chan error, 1)
			go func() { ended <- KeepPlace(stop, lock, l) }()
			select {
			case err := <-ended:
				t.Fatalf("KeepPlace = %v before anything happened", err)
			case <-time.After(1200 * time.Millisecond):
			}
			if err := tt.spoil(dir, path, sock); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
				t.Errorf("KeepPlace = %v, want an error with %q and the pid", err, tt.want)
			}
			if lock.Lost() == nil && !strings.HasPrefix(tt.name, "socket") {
				t.Error("Lost = nil")
			}
		})
	}
}

// watchSocket is a child that looks at the socket's path all the time, until its
// standard input ends. As root it tells of every mode but 0600; as another user it
// tells of every connection that it got.
func watchSocket(path string) {
	fmt.Println("ready")
	ended := make(chan struct{})
	go func() { io.Copy(io.Discard, os.Stdin); close(ended) }()
	looks, seen := 0, 0
	for {
		select {
		case <-ended:
			fmt.Printf("done %d %d\n", looks, seen)
			os.Exit(0)
		default:
		}
		looks++
		if os.Geteuid() != 0 {
			if c, err := net.Dial("unix", path); err == nil {
				c.Close()
				seen++
				fmt.Println("connected")
			} else if !errors.Is(err, os.ErrPermission) && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
				fmt.Println("got", err)
			}
			continue
		}
		if fi, err := os.Lstat(path); err == nil {
			seen++
			if fi.Mode() != os.ModeSocket|0o600 {
				fmt.Println("mode", fi.Mode())
			}
		}
	}
}

// There is no moment at which the socket has another mode or another user can
// connect, not even under a umask of 0 and with search permission on its directory.
func TestNoWindow(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root to become another user; run: sudo go test")
	}
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	base, err := os.MkdirTemp("/tmp", "clawfs-window")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	dir := filepath.Join(base, "run")
	for path, mode := range map[string]os.FileMode{base: 0o755, dir: 0o700} {
		os.Mkdir(path, mode)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	exe := filepath.Join(base, "client")
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(exe, b, 0o755); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "clawfs.sock")
	lock := lockIn(t, dir)
	for _, uid := range []uint32{0, 65534} {
		c := exec.Command(exe)
		c.Dir = "/"
		c.Env = []string{"CONTROL_TEST_WATCH=" + sock}
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		in, _ := c.StdinPipe()
		out, _ := c.StdoutPipe()
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		if line, err := lines.ReadString('\n'); line != "ready\n" {
			t.Fatalf("child said %q, %v", line, err)
		}
		for range 300 {
			l, err := Listen(lock, sock, nil)
			if err != nil {
				t.Fatal(err)
			}
			if uid != 0 { // the directory is opened up the moment that it is possible: the socket's own mode counts
				os.Chmod(dir, 0o711)
				time.Sleep(time.Millisecond)
				os.Chmod(dir, 0o700)
			}
			l.Close()
		}
		in.Close()
		said, _ := io.ReadAll(lines)
		c.Wait()
		var looks, seen int
		if n, err := fmt.Sscanf(string(said), "done %d %d", &looks, &seen); n != 2 {
			t.Errorf("uid %d: %v: %s", uid, err, said[:min(len(said), 2000)])
		}
		t.Logf("uid %d looked %d times, saw the socket or got through %d times", uid, looks, seen)
		if looks < 300 || uid == 0 && seen == 0 || uid != 0 && seen != 0 {
			t.Errorf("uid %d looked %d times and saw %d; want many, and only root to see", uid, looks, seen)
		}
	}
}

// A socket that is not a dead one of this user stays where it is.
func TestForeignSocket(t *testing.T) {
	for _, tt := range []struct {
		name  string
		plant func(t *testing.T, p string)
		want  string
	}{
		{"another user's", func(t *testing.T, p string) {
			deadSocket(t, p)
			if err := os.Lchown(p, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		}, "not uid 0's"},
		{"one where somebody listens", func(t *testing.T, p string) {
			l, err := net.Listen("unix", p)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, "another process listens there"},
		{"one of another kind", func(t *testing.T, p string) {
			l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: p, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, "expected nobody to listen there"},
		{"one whose queue is full", func(t *testing.T, p string) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Close(fd) })
			if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: p}), unix.Listen(fd, 0)); err != nil {
				t.Fatal(err)
			}
			for range 4 {
				c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Close(c) })
				unix.Connect(c, &unix.SockaddrUnix{Name: p})
			}
		}, "expected nobody to listen there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := runDir(t)
			lock := lockIn(t, dir)
			sock := filepath.Join(dir, "clawfs.sock")
			tt.plant(t, sock)
			before, _ := os.Lstat(sock)
			if l, err := Listen(lock, sock, nil); err == nil {
				l.Close()
				t.Fatal("Listen took its place")
			} else if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), sock) {
				t.Errorf("Listen = %v, want an error with %s and %q", err, sock, tt.want)
			}
			if after, _ := os.Lstat(sock); after == nil || !os.SameFile(before, after) {
				t.Error("it is gone")
			}
		})
	}
	dir := runDir(t)
	deadSocket(t, filepath.Join(dir, "clawfs.sock"))
	l, err := Listen(lockIn(t, dir), filepath.Join(dir, "clawfs.sock"), nil)
	if err != nil {
		t.Fatalf("over a dead socket of this user: %v", err)
	}
	l.Close()
}

func deadSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestTooLongName(t *testing.T) {
	// The directory can be named shorter; a name of this length cannot.
	path := filepath.Join(runDir(t), strings.Repeat("s", 200))
	_, _, err := address(path)
	if err == nil || !strings.Contains(err.Error(), "a socket address holds 107") || !strings.Contains(err.Error(), "--state with a shorter path") {
		t.Errorf("address of %d bytes = %v, want words", len(path), err)
	}
}

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		nofile uint64
		want   limits
	}{
		{0, limits{8, 6, 4}},
		{64, limits{12, 9, 4}},
		{256, limits{108, 81, 13}},
		{1024, limits{256, 192, 32}},
		{1 << 63, limits{256, 192, 32}},
	} {
		if got := limitsOf(tt.nofile); got != tt.want {
			t.Errorf("limitsOf(%d) = %+v, want %+v", tt.nofile, got, tt.want)
		}
	}
}

// The place of a process that is dead is waited for, while a child of it has its
// locks for a moment; not for ever.
func TestPlaceOfTheDead(t *testing.T) {
	for _, ends := range []bool{true, false} {
		dir := t.TempDir()
		// flock(1) takes the lock and is gone; sleep keeps the descriptor.
		var out strings.Builder
		sh := exec.Command("sh", "-c", `exec 9<"$1"; flock -x 9 || exit; sleep 60 >/dev/null 2>&1 & echo $!`, "sh", dir)
		sh.Stdout = &out
		if err := sh.Run(); err != nil {
			t.Fatalf("flock: %v; it is in the package util-linux", err)
		}
		sleeps, err := strconv.Atoi(strings.TrimSpace(out.String()))
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			t.Fatal("nobody holds the directory, so nothing is shown")
		}
		end := func() { syscall.Kill(sleeps, syscall.SIGKILL) }
		if ends {
			time.AfterFunc(100*time.Millisecond, end)
		}
		l, err := TakePlace(filepath.Join(dir, "daemon.lock"))
		var held *LockedError
		if ends && err != nil || !ends && !errors.As(err, &held) {
			t.Errorf("TakePlace = %v, want it taken: %t", err, ends)
		}
		if l != nil {
			l.Release()
		}
		end()
	}
}
