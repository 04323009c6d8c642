package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// holdFile is a program of its own, holdfile HOW PATH [MORE]: it holds a file as
// an open descriptor (fd), with so many more of them, as a mapping without a
// descriptor (map), or has a child that inherited the descriptor and closes its
// own (child). For each line that it reads it prints the SHA-256 of what it can
// read then.
func holdFile() {
	how, path := os.Args[1], os.Args[2]
	if len(os.Args) > 3 {
		more, _ := strconv.Atoi(os.Args[3])
		for range more {
			// syscall.Open: a file without an owner would be closed some time.
			if _, err := syscall.Open(path, syscall.O_RDONLY, 0); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
		}
	}
	f, err := os.Open(path)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fi, _ := f.Stat()
	content := make([]byte, fi.Size())
	read := func() error { _, err := f.ReadAt(content, 0); return err }
	switch how {
	case "map":
		m, err := unix.Mmap(int(f.Fd()), 0, len(content), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		f.Close()
		read = func() error { copy(content, m); return nil }
	case "child":
		c := exec.Command("cat")
		c.Stdin, c.ExtraFiles = os.Stdin, []*os.File{f}
		if err := c.Start(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		f.Close()
		fmt.Println(c.Process.Pid)
		c.Wait()
		return
	}
	fmt.Println(os.Getpid())
	for in := bufio.NewReader(os.Stdin); ; {
		if _, err := in.ReadString('\n'); err != nil {
			return
		}
		if err := read(); err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(hashpipe.SumBytes(content))
	}
}

// held is a running holdfile.
type held struct {
	pid int // of the process that holds the file
	in  io.Writer
	out *bufio.Reader
	cmd *exec.Cmd
}

func (r *rig) hold(how string, args ...string) *held {
	r.t.Helper()
	cmd := exec.Command("holdfile", append([]string{how}, args...)...)
	cmd.Stderr = new(bytes.Buffer) // a Go program that gets SIGBUS says much
	in, err := cmd.StdinPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { in.Close(); cmd.Process.Kill(); cmd.Wait() })
	h := &held{in: in, out: bufio.NewReader(pipe), cmd: cmd}
	line, _ := h.out.ReadString('\n')
	if h.pid, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		r.t.Fatalf("holdfile %s %s: %s", how, args, line)
	}
	return h
}

// reads is what the program reads now; empty if that killed it.
func (h *held) reads() string {
	io.WriteString(h.in, "\n")
	line, _ := h.out.ReadString('\n')
	return strings.TrimSpace(line)
}

// In a sealed tier whoever has the file open goes on reading it, by whatever way
// it holds the file, and wherever it sees the mount: revoke names them.
func TestRevokeListsReaders(t *testing.T) {
	r := newRig(t)
	content := strings.Repeat("model ", 1<<18)
	taken := r.admit(map[string]string{"taken.bin": content, "small.bin": "below the size from which files are sealed"})
	kept := r.admit(map[string]string{"kept.bin": content + "2"})
	for name, text := range map[string]string{"taken.bin": content, "small.bin": "below the size from which files are sealed", "kept.bin": content + "2"} {
		r.file(name, text)
	}
	r.ok("mount", "--seal", "copy", r.src, r.mnt)
	other := filepath.Join(filepath.Dir(r.mnt), "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.mnt, "taken.bin")
	want := []reader{
		{r.hold("fd", path).pid, "holdfile", path, "fd"},
		{r.hold("child", path).pid, "cat", path, "fd"},
	}
	mapped := r.hold("map", path)
	want = append(want, reader{mapped.pid, "holdfile", path, "map"})
	small := r.hold("fd", filepath.Join(r.mnt, "small.bin"))
	r.hold("fd", filepath.Join(r.mnt, "kept.bin"))
	contained := exec.Command("unshare", "-m", "sh", "-c", "mount --bind "+r.mnt+" "+other+" && exec 9<"+other+"/taken.bin && echo && exec cat")
	in, _ := contained.StdinPipe()
	out, _ := contained.StdoutPipe()
	if err := contained.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); contained.Wait() })
	bufio.NewReader(out).ReadString('\n')
	want = append(want, reader{contained.Process.Pid, "cat", filepath.Join(other, "taken.bin"), "fd"})

	var done []revoked
	r.document(&done, "revoke", taken.ID().String(), "--reason", "withdrawn")
	byPID := func(a, b reader) int { return a.PID - b.PID }
	slices.SortFunc(want, byPID)
	if len(done) != 1 {
		t.Fatalf("revoke made %d revocations, want 1", len(done))
	}
	got := slices.SortedFunc(slices.Values(done[0].Readers), byPID)
	if !slices.Equal(got, want) {
		t.Errorf("readers = %+v\nwant      %+v", got, want)
	}
	// What revoke said is so.
	if sum := hashpipe.SumBytes([]byte(content)).String(); mapped.reads() != sum {
		t.Error("the mapping of a private file does not give the approved bytes after a revocation")
	}
	if s := small.reads(); !strings.Contains(s, "input/output error") {
		t.Errorf("a revoked file of tier blocks gives %s, want an I/O error", s)
	}
	text := r.ok("revoke", taken.ID().String(), "--reason", "withdrawn")
	for _, w := range []string{"PID", "COMM", "HOW", path, "next: kill ", strconv.Itoa(mapped.pid)} {
		if !strings.Contains(text, w) {
			t.Errorf("revoke says\n%s\nwant %q in it", text, w)
		}
	}
	for _, p := range want {
		syscall.Kill(p.PID, syscall.SIGKILL)
	}
	r.eventually("nobody is left", func() bool {
		return !strings.Contains(r.ok("revoke", taken.ID().String(), "--reason", "withdrawn"), "PID")
	})
	if text = r.ok("revoke", "--kind", "file", kept.Subjects()[0].Digest.String(), "--reason", "withdrawn"); !strings.Contains(text, "kept.bin") {
		t.Errorf("revoking a file by its content does not list its reader:\n%s", text)
	}
}

// A descriptor that the shell hands down to revoke itself ends with it.
func TestRevokeListsNotItself(t *testing.T) {
	r := newRig(t)
	content := strings.Repeat("model ", 1<<18)
	taken := r.admit(map[string]string{"taken.bin": content})
	r.file("taken.bin", content)
	r.ok("mount", "--seal", "copy", r.src, r.mnt)
	got := r.exec("sh", "-c", `exec 9<"$1" && shift && exec "$@"`, "sh", filepath.Join(r.mnt, "taken.bin"),
		r.bin, "--state", string(r.state), "revoke", taken.ID().String(), "--reason", "withdrawn")
	if got.code != 0 || !strings.Contains(got.stdout, "revoked claim") || strings.Contains(got.stdout, "kill") {
		t.Errorf("revoke, exit code %d, says\n%s%s\nwant no reader", got.code, got.stdout, got.stderr)
	}
}

// In tier blocks handles and mappings are cut: nobody is listed.
func TestRevokeInBlocksListsNobody(t *testing.T) {
	r := newRig(t)
	content := strings.Repeat("model ", 1<<18)
	taken := r.admit(map[string]string{"taken.bin": content})
	r.file("taken.bin", content)
	r.ok("mount", "--seal", "off", r.src, r.mnt)
	path := filepath.Join(r.mnt, "taken.bin")
	open, mapped := r.hold("fd", path), r.hold("map", path)
	for _, h := range []*held{open, mapped} {
		if h.reads() != hashpipe.SumBytes([]byte(content)).String() {
			t.Fatal("the granted file does not give its bytes")
		}
	}
	if text := r.ok("revoke", taken.ID().String(), "--reason", "withdrawn"); strings.Contains(text, "PID") {
		t.Errorf("revoke lists readers in tier blocks:\n%s", text)
	}
	if s := open.reads(); !strings.Contains(s, "input/output error") {
		t.Errorf("the open file gives %s, want an I/O error", s)
	}
	if s := mapped.reads(); s != "" {
		t.Errorf("the mapping gives %s, want SIGBUS", s)
	}
}

// A mount that is gone, because its process was killed or somebody detached it,
// still has readers of its private files.
func TestRevokeListsReadersOfGoneMounts(t *testing.T) {
	for name, end := range map[string]func(r *rig){
		"killed": func(r *rig) {
			pid := r.serverPID()
			syscall.Kill(pid, syscall.SIGKILL)
			r.eventually("another process serves the mount", func() bool { now := r.serverPID(); return now != 0 && now != pid && r.isMounted() })
		},
		"detached": func(r *rig) { r.ok("umount", "--lazy", r.mnt) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			content := strings.Repeat("model ", 1<<18)
			taken := r.admit(map[string]string{"a/taken.bin": content})
			kept := strings.Repeat("other ", 1<<18)
			r.admit(map[string]string{"b/taken.bin": kept + "."})
			for dir, text := range map[string]string{"a": content, "b": kept + "."} {
				if err := os.Mkdir(filepath.Join(r.src, dir), 0o755); err != nil {
					t.Fatal(err)
				}
				r.file(dir+"/taken.bin", text)
			}
			r.ok("mount", "--seal", "copy", r.src, r.mnt)
			open, mapped := r.hold("fd", filepath.Join(r.mnt, "a/taken.bin")), r.hold("map", filepath.Join(r.mnt, "a/taken.bin"))
			r.hold("fd", filepath.Join(r.mnt, "b/taken.bin"))
			end(r)
			var done []revoked
			r.document(&done, "revoke", taken.ID().String(), "--reason", "withdrawn")
			var got []int
			for _, p := range done[0].Readers {
				got = append(got, p.PID)
				if filepath.Base(p.Path) != "taken.bin" {
					t.Errorf("path %q, want one that ends in taken.bin", p.Path)
				}
			}
			want := []int{open.pid, mapped.pid}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("readers = %+v, want the processes %v", done[0].Readers, want)
			}
		})
	}
}
