// Faultfs shows a directory through FUSE and lets one call of one program fail.
//
//	faultfs DIR MOUNTPOINT
//
// It writes "ready" when it serves, and then answers each line of its standard
// input by one line:
//
//	arm WORD KIND N PID   counts the calls of processes whose command line has the
//	                  argument WORD, from 1, and lets the N-th fail as KIND says:
//	                  error     EIO, and nothing is done
//	                  done      EIO, and it is done all the same
//	                  nospace   ENOSPC, and nothing is done
//	                  quota     EDQUOT, and nothing is done
//	                  gone      EIO, and so does every later call until disarm
//	                  kill      the process is killed, and nothing is done
//	                  killdone  it is done, and the process is killed
//	                  torn      half of a write is done, and the process is killed
//	                  With N = 0 it only counts.
//	disarm            {"count": calls, "fired": "the call that failed", "calls": […]}
//
// Counted is what changes a disk or asks it: open, create, read, write, fsync,
// truncate, fallocate, rename, unlink, mkdir, rmdir, mknod, link, symlink,
// statfs. What a memory map writes counts for the process that made the last call,
// before the first for PID, which may be 0: nobody. fsync is not passed on: the crash of a process loses nothing
// that it wrote.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// faults decides which call fails.
type faults struct {
	mu         sync.Mutex // guards what follows
	word, kind string     // word "": disarmed
	at         int
	report     report
	pid        int // process that made the last counted call
}

type report struct {
	Count int      `json:"count"`
	Fired string   `json:"fired"`
	Calls []string `json:"calls"`
}

// call counts one call and performs it by do, or not. half performs half of a
// write.
func (f *faults) call(ctx context.Context, name, path string, do, half func() syscall.Errno) syscall.Errno {
	kind, pid := f.next(ctx, name+" "+path)
	switch kind {
	case "":
		return do()
	case "error", "gone":
		return syscall.EIO
	case "nospace":
		return syscall.ENOSPC
	case "quota":
		return syscall.EDQUOT
	case "done":
		do()
		return syscall.EIO
	case "torn":
		if half != nil {
			half()
		}
	case "killdone":
		do()
	}
	if pid > 0 {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	return syscall.EIO
}

// next returns how this call has to fail, "" if it has not, and whose it is.
func (f *faults) next(ctx context.Context, what string) (kind string, pid int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.word == "" {
		return "", 0
	}
	caller, ok := fuse.FromContext(ctx)
	if !ok {
		return "", 0
	}
	if caller.Pid != 0 { // 0: the kernel writes what was mapped
		pid, args := process(int(caller.Pid))
		if !slices.Contains(args, f.word) {
			return "", 0
		}
		f.pid = pid
	}
	f.report.Count++
	f.report.Calls = append(f.report.Calls, what)
	if f.at == 0 || f.report.Count != f.at && !(f.kind == "gone" && f.report.Count > f.at) {
		return "", 0
	}
	if f.report.Fired == "" {
		f.report.Fired = what
	}
	return f.kind, f.pid
}

// process returns the process that a thread belongs to, and its command line.
func process(tid int) (pid int, args []string) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(tid) + "/status")
	if err != nil {
		return 0, nil
	}
	for line := range strings.Lines(string(status)) {
		if s, ok := strings.CutPrefix(line, "Tgid:"); ok {
			pid, _ = strconv.Atoi(strings.TrimSpace(s))
		}
	}
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	if err != nil {
		return 0, nil
	}
	return pid, strings.Split(string(line), "\x00")
}

type node struct {
	fs.LoopbackNode
	faults *faults
}

func (n *node) at(name string) string { return filepath.Join(n.Path(n.Root()), name) }

func (n *node) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	return n.faults.call(ctx, "statfs", n.at(""), func() syscall.Errno { return n.LoopbackNode.Statfs(ctx, out) }, nil)
}

func (n *node) Mknod(ctx context.Context, name string, mode, dev uint32, out *fuse.EntryOut) (inode *fs.Inode, errno syscall.Errno) {
	errno = n.faults.call(ctx, "mknod", n.at(name), func() (e syscall.Errno) { inode, e = n.LoopbackNode.Mknod(ctx, name, mode, dev, out); return e }, nil)
	return inode, errno
}

func (n *node) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (inode *fs.Inode, errno syscall.Errno) {
	errno = n.faults.call(ctx, "mkdir", n.at(name), func() (e syscall.Errno) { inode, e = n.LoopbackNode.Mkdir(ctx, name, mode, out); return e }, nil)
	return inode, errno
}

func (n *node) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (inode *fs.Inode, errno syscall.Errno) {
	errno = n.faults.call(ctx, "symlink", n.at(name), func() (e syscall.Errno) { inode, e = n.LoopbackNode.Symlink(ctx, target, name, out); return e }, nil)
	return inode, errno
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (inode *fs.Inode, errno syscall.Errno) {
	errno = n.faults.call(ctx, "link", n.at(name), func() (e syscall.Errno) { inode, e = n.LoopbackNode.Link(ctx, target, name, out); return e }, nil)
	return inode, errno
}

func (n *node) Rmdir(ctx context.Context, name string) syscall.Errno {
	return n.faults.call(ctx, "rmdir", n.at(name), func() syscall.Errno { return n.LoopbackNode.Rmdir(ctx, name) }, nil)
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.faults.call(ctx, "unlink", n.at(name), func() syscall.Errno { return n.LoopbackNode.Unlink(ctx, name) }, nil)
}

func (n *node) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	return n.faults.call(ctx, "rename", n.at(name), func() syscall.Errno { return n.LoopbackNode.Rename(ctx, name, to, newName, flags) }, nil)
}

// file hides from go-fuse what would let the kernel read and write it without
// a word to this process.
type file struct{ *fs.LoopbackFile }

func (file) PassthroughFd() (int, bool) { return -1, false }

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (inode *fs.Inode, fh fs.FileHandle, fuseFlags uint32, errno syscall.Errno) {
	errno = n.faults.call(ctx, "create", n.at(name), func() (e syscall.Errno) {
		inode, fh, fuseFlags, e = n.LoopbackNode.Create(ctx, name, flags, mode, out)
		return e
	}, nil)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	return inode, file{fh.(*fs.LoopbackFile)}, fuseFlags, 0
}

func (n *node) Open(ctx context.Context, flags uint32) (fh fs.FileHandle, fuseFlags uint32, errno syscall.Errno) {
	errno = n.faults.call(ctx, "open", n.at(""), func() (e syscall.Errno) { fh, fuseFlags, e = n.LoopbackNode.Open(ctx, flags); return e }, nil)
	if errno != 0 {
		return nil, 0, errno
	}
	return file{fh.(*fs.LoopbackFile)}, fuseFlags, 0
}

func (n *node) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	name := "setattr"
	if _, ok := in.GetSize(); ok {
		name = "truncate"
	}
	return n.faults.call(ctx, name, n.at(""), func() syscall.Errno { return n.LoopbackNode.Setattr(ctx, fh, in, out) }, nil)
}

func (n *node) Read(ctx context.Context, fh fs.FileHandle, dest []byte, off int64) (res fuse.ReadResult, errno syscall.Errno) {
	errno = n.faults.call(ctx, "read", n.at(""), func() (e syscall.Errno) { res, e = fh.(file).LoopbackFile.Read(ctx, dest, off); return e }, nil)
	return res, errno
}

func (n *node) Write(ctx context.Context, fh fs.FileHandle, data []byte, off int64) (written uint32, errno syscall.Errno) {
	write := func(data []byte) (e syscall.Errno) {
		written, e = fh.(file).LoopbackFile.Write(ctx, data, off)
		return e
	}
	errno = n.faults.call(ctx, "write", n.at(""), func() syscall.Errno { return write(data) }, func() syscall.Errno { return write(data[:len(data)/2]) })
	return written, errno
}

func (n *node) Fsync(ctx context.Context, fh fs.FileHandle, flags uint32) syscall.Errno {
	return n.faults.call(ctx, "fsync", n.at(""), func() syscall.Errno { return 0 }, nil)
}

func (n *node) Allocate(ctx context.Context, fh fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	return n.faults.call(ctx, "fallocate", n.at(""), func() syscall.Errno { return fh.(file).LoopbackFile.Allocate(ctx, off, size, mode) }, nil)
}

// dir is an open directory.
type dir struct {
	directory
	node *node
}

type directory interface {
	fs.FileReaddirenter
	fs.FileReleasedirer
	fs.FileSeekdirer
}

func (d dir) Fsyncdir(ctx context.Context, flags uint32) syscall.Errno {
	return d.node.faults.call(ctx, "fsync", d.node.at("")+"/", func() syscall.Errno { return 0 }, nil)
}

func (n *node) OpendirHandle(ctx context.Context, flags uint32) (fh fs.FileHandle, fuseFlags uint32, errno syscall.Errno) {
	errno = n.faults.call(ctx, "open", n.at("")+"/", func() (e syscall.Errno) { fh, fuseFlags, e = n.LoopbackNode.OpendirHandle(ctx, flags); return e }, nil)
	if errno != 0 {
		return nil, 0, errno
	}
	return dir{fh.(directory), n}, fuseFlags, 0
}

func main() {
	log.SetFlags(0)
	syscall.Umask(0)
	from, at := os.Args[1], os.Args[2]
	var st syscall.Stat_t
	if err := syscall.Stat(from, &st); err != nil {
		log.Fatalf("faultfs: %s: %v", from, err)
	}
	f := &faults{}
	data := &fs.LoopbackRoot{Path: from, Dev: uint64(st.Dev)}
	data.NewNode = func(r *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &node{LoopbackNode: fs.LoopbackNode{RootData: r}, faults: f}
	}
	root := &node{LoopbackNode: fs.LoopbackNode{RootData: data}, faults: f}
	data.RootNode = root
	server, err := fs.Mount(at, root, &fs.Options{MountOptions: fuse.MountOptions{FsName: "faultfs", Name: "faultfs", DirectMount: true, AllowOther: true}})
	if err != nil {
		log.Fatalf("faultfs: mounting %s at %s: %v", from, at, err)
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		answer := "ok"
		f.mu.Lock()
		switch w := strings.Fields(lines.Text()); w[0] {
		case "arm":
			f.word, f.kind, f.report = w[1], w[2], report{}
			if _, err := fmt.Sscan(w[3]+" "+w[4], &f.at, &f.pid); err != nil {
				log.Fatal(err)
			}
		case "disarm":
			text, err := json.Marshal(f.report)
			if err != nil {
				log.Fatal(err)
			}
			answer, f.word = string(text), ""
		}
		f.mu.Unlock()
		fmt.Println(answer)
	}
	// Whoever started this has ended.
	syscall.Unmount(at, syscall.MNT_DETACH)
	server.Wait()
}
