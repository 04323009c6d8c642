package control

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestPlantedPath(t *testing.T) {
	for _, tt := range []struct {
		name  string
		plant func(t *testing.T, path string)
		want  string
	}{
		{"regular file", func(t *testing.T, p string) { os.WriteFile(p, []byte("keep"), 0o600) }, "somebody put"},
		{"symbolic link to nothing", func(t *testing.T, p string) { os.Symlink("/nonexistent/x", p) }, "somebody put"},
		{"symbolic link to a socket", func(t *testing.T, p string) {
			l, err := net.Listen("unix", p+".other")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			os.Symlink(p+".other", p)
		}, "somebody put"},
		{"directory", func(t *testing.T, p string) { os.Mkdir(p, 0o700) }, "somebody put"},
		{"named pipe", func(t *testing.T, p string) { syscall.Mkfifo(p, 0o600) }, "somebody put"},
		{"open directory", func(t *testing.T, p string) { os.Chmod(filepath.Dir(p), 0o750) }, "mode 0700"},
		{"foreign directory", func(t *testing.T, p string) { os.Chown(filepath.Dir(p), 65534, 0) }, "directory of uid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := runDir(t)
			lock := lockIn(t, dir)
			sock := filepath.Join(dir, "clawfs.sock")
			tt.plant(t, sock)
			before, _ := os.Lstat(sock)
			_, err := Listen(lock, sock, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Listen = %v, want an error with %q", err, tt.want)
			}
			after, _ := os.Lstat(sock)
			if (before == nil) != (after == nil) || before != nil && !os.SameFile(before, after) {
				t.Error("what was planted is gone; it is evidence")
			}
		})
	}
}

func TestStaleSocketIsReplacedUnderTheLock(t *testing.T) {
	dir := runDir(t)
	sock := filepath.Join(dir, "clawfs.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if err := NewClient(sock).do(t.Context(), "GET", "/v1/who", nil, nil); err == nil {
		t.Fatal("a stale socket answered")
	} else if u := new(UnreachableError); !errors.As(err, &u) || u.Socket != sock {
		t.Errorf("stale socket: %v, want *UnreachableError naming it", err)
	}
	if _, err := Listen(nil, sock, nil); err == nil {
		t.Error("Listen without the lock succeeded")
	}
	serve(t, dir, who(), nil)
	if err := NewClient(sock).do(t.Context(), "GET", "/v1/who", nil, nil); err != nil {
		t.Errorf("after the replacement: %v", err)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if pid, err := Holder(path); pid != 0 || err != nil {
		t.Errorf("Holder of no file = %d, %v, want 0", pid, err)
	}
	c := exec.Command("/proc/self/exe")
	c.Env = []string{"CONTROL_TEST_LOCK=" + path}
	in, _ := c.StdinPipe()
	out, _ := c.StdoutPipe()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("child said %q, %v", line, err)
	}
	for range 3 { // looking must not take it
		if pid, err := Holder(path); pid != c.Process.Pid || err != nil {
			t.Errorf("Holder = %d, %v, want the child %d", pid, err, c.Process.Pid)
		}
	}
	_, err := TakeLock(path)
	var locked *LockedError
	if !errors.As(err, &locked) || locked.PID != c.Process.Pid || !strings.Contains(err.Error(), strconv.Itoa(c.Process.Pid)) {
		t.Fatalf("TakeLock = %v, want *LockedError naming pid %d", err, c.Process.Pid)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	if pid, err := Holder(path); pid != 0 || err != nil {
		t.Errorf("Holder after kill -9 = %d, %v, want 0", pid, err)
	}
	l, err := TakeLock(path)
	if err != nil {
		t.Fatalf("TakeLock after kill -9: %v", err)
	}
	if pid, _ := Holder(path); pid != os.Getpid() {
		t.Errorf("Holder = %d, want this process %d", pid, os.Getpid())
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
	if err := os.Symlink(path, path+".link"); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{path + ".link", filepath.Dir(path), filepath.Join(path, "x")} {
		if l, err := TakeLock(bad); err == nil {
			l.Release()
			t.Errorf("TakeLock(%s) succeeded", bad)
		}
	}
}
