package fs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// asUser names the users that attack.
var asUser = map[string]string{"root": "0", "nobody": strconv.Itoa(nobody)}

// Whoever may read a file of the mount cannot write it, nor the private file that
// the kernel serves, by whatever call.
func TestForce(t *testing.T) {
	readOnly := []syscall.Errno{syscall.EROFS}
	want := map[string][]syscall.Errno{
		"create": readOnly, "O_TMPFILE": readOnly,
		"pwrite": {syscall.EBADF}, "ftruncate": {syscall.EINVAL}, "fallocate": {syscall.EBADF},
		"sendfile": {syscall.EBADF}, "copy_file_range": {syscall.EBADF},
		"fchmod": {syscall.EROFS, syscall.EPERM}, "fchown": {syscall.EROFS, syscall.EPERM}, "fsetxattr": readOnly,
		"FS_IOC_SETFLAGS": {syscall.EROFS, syscall.EPERM, syscall.EACCES, syscall.ENOTTY},
		"FICLONE onto it": {syscall.EBADF, syscall.EOPNOTSUPP}, "FIDEDUPERANGE": {syscall.EOPNOTSUPP},
		"mmap writable": {syscall.EACCES}, "mprotect writable": {syscall.EACCES},
		"mmap executable": {syscall.EPERM}, "mprotect executable": {syscall.EACCES},
		"MADV_REMOVE": {syscall.EACCES}, "read into the mapping": {syscall.EFAULT},
		"/proc/self/mem": {syscall.EIO, syscall.EFAULT, syscall.EACCES}, "process_vm_writev": {syscall.EFAULT},
		"private mapping":     {0},
		"map_files O_RDWR":    {syscall.EROFS, syscall.EPERM},
		"linkat of map_files": {syscall.EXDEV, syscall.EPERM}, "linkat of the descriptor": {syscall.EXDEV, syscall.EPERM},
	}
	for _, how := range []string{"open", "reopen", "reopen O_PATH"} {
		for _, flags := range []string{"O_WRONLY", "O_RDWR", "access mode 3", "O_RDWR|O_TRUNC", "O_RDONLY|O_TRUNC", "O_WRONLY|O_APPEND", "O_RDWR|O_CREAT", "O_RDWR|O_DIRECT"} {
			want[how+" "+flags] = readOnly
		}
	}
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		good := sample(1, victimSize)
		p := m.write("model.bin", good)
		m.grant("model.bin", good)
		// Modes keep nobody from nothing, also not from a name beside the private files.
		for p, mode := range map[string]os.FileMode{p: 0o666, m.src: 0o777} {
			if err := os.Chmod(p, mode); err != nil {
				t.Fatal(err)
			}
		}
		h := m.hold("model.bin")
		check := func(when string) {
			t.Helper()
			for user, uid := range asUser {
				got := m.attack("force", uid, m.at("model.bin"), m.src)
				if got.Text != "" {
					t.Errorf("%s, %s: %s", when, user, got.Text)
				}
				if len(got.Errnos) != len(want) {
					t.Errorf("%s, %s: %d calls were tried, %d are expected", when, user, len(got.Errnos), len(want))
				}
				for call, e := range got.Errnos {
					if !slices.Contains(want[call], e) {
						t.Errorf("%s, %s: %s = %v, want %v", when, user, call, e, want[call])
					}
				}
				if data, err := os.ReadFile(p); err != nil || !bytes.Equal(data, good) {
					t.Fatalf("%s, %s: the source was changed: %v", when, user, err)
				}
				for _, how := range []string{"read", "evict", "read", "touch"} {
					if r := h.ask(how); r.Errno != 0 || how != "evict" && r.SHA256 != sumOf(good) {
						t.Fatalf("%s, %s: %s afterwards: %v", when, user, how, r)
					}
				}
				m.reads("model.bin", good)
			}
			left, err := os.ReadDir(m.src)
			if err != nil || len(left) != 1 {
				t.Errorf("%s: the source holds %v (%v), want model.bin alone", when, left, err)
			}
		}
		check("as mounted")
		// Root may take the kernel's read-only flag off; the daemon refuses by itself.
		if err := unix.Mount("", m.dir, "", unix.MS_REMOUNT|unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			t.Fatalf("remounting writable: %v", err)
		}
		check("remounted writable")
	})
}

// Who is not root cannot get at the private files through the process that has
// them open.
func TestPeek(t *testing.T) {
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		good := sample(1, victimSize)
		m.write("model.bin", good)
		m.grant("model.bin", good)
		m.hold("model.bin")
		pid := strconv.Itoa(m.cmd.Process.Pid)
		entries, err := os.ReadDir("/proc/" + pid + "/fd")
		if err != nil {
			t.Fatal(err)
		}
		args := []string{"peek", strconv.Itoa(nobody), pid}
		same := 0
		for _, e := range entries {
			args = append(args, e.Name())
			// A pipe or a device would block here.
			if st, err := os.Stat("/proc/" + pid + "/fd/" + e.Name()); err == nil && st.Mode().IsRegular() && st.Size() == victimSize {
				same++
			}
		}
		if same == 0 {
			t.Fatal("the mount process has neither the source nor a private file open: this test shows nothing")
		}
		got := m.attack(args...)
		if got.Text != "" || len(got.Errnos) < 2*len(entries) {
			t.Errorf("only %d calls were tried: %s", len(got.Errnos), got.Text)
		}
		for call, e := range got.Errnos {
			if e != syscall.EACCES && e != syscall.EPERM {
				t.Errorf("nobody: %s = %v, want EACCES or EPERM", call, e)
			}
		}
	})
}

// force tries to write a file that it may read: args are the user, the file, and
// a directory beside the private files, to steal one into.
func force(args []string) sight {
	become(args[0])
	p, steal := args[1], args[2]
	out := sight{Errnos: make(map[string]syscall.Errno)}
	try := func(call string, err error) {
		e, _ := err.(syscall.Errno)
		if err != nil && e == 0 {
			e = syscall.EINVAL
		}
		out.Errnos[call] = e
	}
	open := func(p string, flags int) error {
		fd, err := unix.Open(p, flags|unix.O_CLOEXEC, 0o644)
		if err == nil {
			unix.Pwrite(fd, []byte("written"), 0)
			unix.Close(fd)
		}
		return err
	}
	opens := func(how, p string) {
		try(how+" O_WRONLY", open(p, unix.O_WRONLY))
		try(how+" O_RDWR", open(p, unix.O_RDWR))
		try(how+" access mode 3", open(p, unix.O_ACCMODE))
		try(how+" O_RDWR|O_TRUNC", open(p, unix.O_RDWR|unix.O_TRUNC))
		try(how+" O_RDONLY|O_TRUNC", open(p, unix.O_RDONLY|unix.O_TRUNC))
		try(how+" O_WRONLY|O_APPEND", open(p, unix.O_WRONLY|unix.O_APPEND))
		try(how+" O_RDWR|O_CREAT", open(p, unix.O_RDWR|unix.O_CREAT))
		try(how+" O_RDWR|O_DIRECT", open(p, unix.O_RDWR|unix.O_DIRECT))
	}
	opens("open", p)
	try("create", open(p+".new", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL))
	try("O_TMPFILE", open(filepath.Dir(p), unix.O_RDWR|unix.O_TMPFILE))
	fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		out.Text = "open: " + err.Error()
		return out
	}
	path, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		out.Text = "O_PATH: " + err.Error()
		return out
	}
	opens("reopen", procName(fd))
	opens("reopen O_PATH", procName(path))

	data := []byte("written")
	_, err = unix.Pwrite(fd, data, 0)
	try("pwrite", err)
	try("ftruncate", unix.Ftruncate(fd, 0))
	try("fallocate", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096))
	zero, err := unix.Open("/dev/zero", unix.O_RDWR, 0)
	if err != nil {
		out.Text = err.Error()
		return out
	}
	_, err = unix.Sendfile(fd, zero, nil, 4096)
	try("sendfile", err)
	_, err = unix.CopyFileRange(fd, new(int64), fd, &[]int64{1 << 20}[0], 4096, 0)
	try("copy_file_range", err)
	try("fchmod", unix.Fchmod(fd, 0o666))
	try("fchown", unix.Fchown(fd, nobody, nobody))
	try("fsetxattr", unix.Fsetxattr(fd, "user.clawfs.status", []byte("granted"), 0))
	try("FS_IOC_SETFLAGS", unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, 0x10)) // immutable
	try("FICLONE onto it", unix.IoctlFileClone(fd, fd))
	try("FIDEDUPERANGE", unix.IoctlFileDedupeRange(fd, &unix.FileDedupeRange{Src_length: 4096, Info: []unix.FileDedupeRangeInfo{{Dest_fd: int64(fd), Dest_offset: 1 << 20}}}))

	shared, err := unix.Mmap(fd, 0, 64<<10, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		out.Text = "mmap: " + err.Error()
		return out
	}
	_, err = unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	try("mmap writable", err)
	try("mprotect writable", unix.Mprotect(shared[:4096], unix.PROT_READ|unix.PROT_WRITE))
	_, err = unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	try("mmap executable", err)
	try("mprotect executable", unix.Mprotect(shared[:4096], unix.PROT_READ|unix.PROT_EXEC))
	try("MADV_REMOVE", unix.Madvise(shared[:4096], 9))
	_, err = unix.Read(zero, shared[:4096])
	try("read into the mapping", err)
	if mem, err := unix.Open("/proc/self/mem", unix.O_RDWR, 0); err == nil {
		_, err = unix.Pwrite(mem, data, int64(uintptr(unsafe.Pointer(&shared[0]))))
		try("/proc/self/mem", err)
	} else {
		try("/proc/self/mem", err)
	}
	_, err = unix.ProcessVMWritev(os.Getpid(), []unix.Iovec{{Base: &data[0], Len: 7}},
		[]unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&shared[0])), Len: 7}}, 0)
	try("process_vm_writev", err)
	private, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err == nil {
		clear(private) // its own copy
		err = unix.Msync(private, unix.MS_SYNC)
	}
	try("private mapping", err)

	// What the kernel maps in tier "sealed" is the private file itself.
	at := uintptr(unsafe.Pointer(&shared[0]))
	link := fmt.Sprintf("/proc/self/map_files/%x-%x", at, at+64<<10)
	try("map_files O_RDWR", open(link, unix.O_RDWR))
	try("linkat of map_files", unix.Linkat(unix.AT_FDCWD, link, unix.AT_FDCWD, filepath.Join(steal, "stolen1"), unix.AT_SYMLINK_FOLLOW))
	try("linkat of the descriptor", unix.Linkat(unix.AT_FDCWD, procName(fd), unix.AT_FDCWD, filepath.Join(steal, "stolen2"), unix.AT_SYMLINK_FOLLOW))
	if !bytes.Equal(shared[:4096], readPage(fd)) || bytes.Contains(shared[:4096], data) {
		out.Text = "the mapping shows what was written"
	}
	return out
}

func readPage(fd int) []byte {
	buf := make([]byte, 4096)
	n, err := unix.Pread(fd, buf, 0)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// peek tries to get at what another process has open: args are the user, the
// process and the numbers of its descriptors.
func peek(args []string) sight {
	become(args[0])
	out := sight{Errnos: make(map[string]syscall.Errno)}
	pid, _ := strconv.Atoi(args[1])
	try := func(call string, err error) { out.Errnos[call], _ = err.(syscall.Errno) }
	proc := "/proc/" + args[1]
	for _, name := range []string{"/fd", "/map_files", "/mem", "/fdinfo"} {
		fd, err := unix.Open(proc+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			// The directory itself may open; its content must not.
			_, err = unix.Getdents(fd, make([]byte, 4096))
			unix.Close(fd)
		}
		try(name, err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		out.Text = "pidfd_open: " + err.Error()
	}
	for _, number := range args[2:] {
		fd, err := unix.Open(proc+"/fd/"+number, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(fd)
		}
		try("open "+number, err)
		n, _ := strconv.Atoi(number)
		fd, err = unix.PidfdGetfd(pidfd, n, 0)
		if err == nil {
			unix.Close(fd)
		}
		try("pidfd_getfd "+number, err)
	}
	runtime.LockOSThread()
	try("ptrace", unix.PtraceAttach(pid))
	return out
}
