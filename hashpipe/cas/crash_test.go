package cas

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// childEnv makes the test binary run one function of children instead of the
// tests.
const childEnv = "CAS_TEST_CHILD"

var children = map[string]func(dir string) error{
	"half":     putHalf,
	"forever":  putForever,
	"full":     putOnFullDisk,
	"readonly": useReadOnly,
}

func TestMain(m *testing.M) {
	name, dir, ok := strings.Cut(os.Getenv(childEnv), ":")
	if !ok {
		os.Exit(m.Run())
	}
	if err := children[name](dir); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func child(t *testing.T, name, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+name+":"+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// halfBlob is what putHalf stores.
var halfBlob = bytes.Repeat([]byte("0123456789abcdef"), 1<<17)

// putHalf puts halfBlob, and between its halves says so and waits for a line.
func putHalf(dir string) error {
	s, err := Open(dir)
	if err != nil {
		return err
	}
	half := len(halfBlob) / 2
	_, err = s.Put(context.Background(), io.MultiReader(bytes.NewReader(halfBlob[:half]), waiter{}, bytes.NewReader(halfBlob[half:])))
	return err
}

type waiter struct{}

func (waiter) Read([]byte) (int, error) {
	fmt.Println("half")
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return 0, fmt.Errorf("waiting: %v", err)
	}
	return 0, io.EOF
}

// startHalf returns a child that has written a half, and its standard input.
func startHalf(t *testing.T, dir string) (*exec.Cmd, io.Writer) {
	t.Helper()
	cmd := child(t, "half", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "half\n" {
		t.Fatalf("child: %q, %v", line, err)
	}
	return cmd, in
}

func TestKilledWriter(t *testing.T) {
	dir := t.TempDir()
	cmd, _ := startHalf(t, dir)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if left := entries(t, dir, "tmp"); len(left) != 1 {
		t.Fatalf("tmp holds %q after kill -9, want the file of the dead writer", left)
	}
	if b := entries(t, dir, "blobs", "sha256"); len(b) != 0 {
		t.Errorf("blobs %q are visible after kill -9 in the middle of Put", b)
	}
	s := testStore(t, dir)
	if left := entries(t, dir, "tmp"); len(left) != 0 {
		t.Errorf("tmp holds %q after Open", left)
	}
	if d := hashpipe.SumBytes(halfBlob).Claim(); s.Has(d) {
		t.Errorf("Has(%v) = true", d)
	}
}

func TestOpenSparesLivingWriter(t *testing.T) {
	dir := t.TempDir()
	cmd, in := startHalf(t, dir)
	s := testStore(t, dir)
	if left := entries(t, dir, "tmp"); len(left) != 1 {
		t.Fatalf("tmp holds %q, want the file of the living writer", left)
	}
	fmt.Fprintln(in)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("writer: %v", err)
	}
	if b, err := s.ReadAll(hashpipe.SumBytes(halfBlob).Claim(), 1<<30); err != nil || !bytes.Equal(b, halfBlob) {
		t.Errorf("ReadAll = %d bytes, %v, want %d", len(b), err, len(halfBlob))
	}
}

// numbered returns the i-th blob of putForever; its length varies.
func numbered(i uint32) []byte {
	word := binary.BigEndian.AppendUint32(nil, i)
	return bytes.Repeat(word, 1+int(i*7919%200_000))
}

// putForever puts numbered blobs and prints the number of each after Put has
// returned.
func putForever(dir string) error {
	s, err := Open(dir)
	if err != nil {
		return err
	}
	for i := uint32(0); ; i++ {
		if _, err := s.PutBytes(numbered(i)); err != nil {
			return err
		}
		fmt.Println(i)
	}
}

// Killed at any point: what is visible is whole, what was acknowledged is
// visible, and the next Open leaves no trace of the rest.
func TestKilledAnywhere(t *testing.T) {
	acknowledged := 0
	for round := range 15 {
		dir := t.TempDir()
		cmd := child(t, "forever", dir)
		var out bytes.Buffer
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+round*13) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		s := testStore(t, dir)
		if left := entries(t, dir, "tmp"); len(left) != 0 {
			t.Errorf("tmp holds %q after Open", left)
		}
		for _, name := range entries(t, dir, "blobs", "sha256") {
			d, err := hashpipe.ParseDigest(name)
			if err != nil {
				t.Errorf("visible after kill -9: %v", err)
				continue
			}
			if _, err := s.ReadAll(d, 1<<30); err != nil {
				t.Errorf("visible after kill -9: %v", err)
			}
		}
		for i := range uint32(strings.Count(out.String(), "\n")) {
			acknowledged++
			if d := hashpipe.SumBytes(numbered(i)).Claim(); !s.Has(d) {
				t.Errorf("blob %d was acknowledged and is gone", i)
			}
		}
	}
	t.Logf("%d acknowledged blobs", acknowledged)
	if acknowledged == 0 {
		t.Error("no child stored anything: nothing was tested")
	}
}

// inMountNamespace runs a child as root of its own user and mount namespace,
// where it may mount a file system of its own.
func inMountNamespace(t *testing.T, name string) {
	t.Helper()
	cmd := child(t, name, t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.Output()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("child %s: %v (if it did not start: run as root, or sysctl kernel.unprivileged_userns_clone=1)", name, err)
	}
}

func TestFullDisk(t *testing.T)          { inMountNamespace(t, "full") }
func TestReadOnlyDirectory(t *testing.T) { inMountNamespace(t, "readonly") }

func putOnFullDisk(dir string) error {
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("mounting tmpfs: %w", err)
	}
	s, err := Open(dir)
	if err != nil {
		return err
	}
	small, err := s.PutBytes([]byte("small"))
	if err != nil {
		return err
	}
	_, err = s.PutBytes(randomBytes(6, 2<<20))
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), filepath.Join(dir, "tmp")) {
		return fmt.Errorf("Put of 2 MiB into 1 MiB: %v, want ENOSPC and the path", err)
	}
	fmt.Println(err)
	if left, _ := os.ReadDir(filepath.Join(dir, "tmp")); len(left) != 0 {
		return fmt.Errorf("tmp holds %v after ENOSPC", left)
	}
	if b, err := s.ReadAll(small.Claim(), 100); err != nil || string(b) != "small" {
		return fmt.Errorf("the blob from before: %q, %v", b, err)
	}
	_, err = s.PutBytes(randomBytes(7, 500<<10))
	return err // the space came back
}

func useReadOnly(dir string) error {
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("mounting tmpfs: %w", err)
	}
	s, err := Open(filepath.Join(dir, "store"))
	if err != nil {
		return err
	}
	sum, err := s.PutBytes([]byte("data"))
	if err != nil {
		return err
	}
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("remounting read-only: %w", err)
	}
	_, err = s.PutBytes([]byte("more"))
	if !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), dir) {
		return fmt.Errorf("Put: %v, want EROFS and the path", err)
	}
	fmt.Println(err)
	if err := s.Remove(sum.Claim()); !errors.Is(err, syscall.EROFS) {
		return fmt.Errorf("Remove: %v, want EROFS", err)
	}
	if b, err := s.ReadAll(sum.Claim(), 100); err != nil || string(b) != "data" {
		return fmt.Errorf("ReadAll: %q, %v", b, err)
	}
	other, err := Open(filepath.Join(dir, "other"))
	if !errors.Is(err, syscall.EROFS) || other != nil || !strings.Contains(err.Error(), filepath.Join(dir, "other")) {
		return fmt.Errorf("Open of a new store: %v, want EROFS and the path", err)
	}
	fmt.Println(err)
	return nil
}
