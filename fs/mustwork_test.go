package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// What loaders of models do with a file, and what each call must answer on a
// read-only mount. 0 is success; more than one errno where the kernel chooses.
var mustWork = map[string][]syscall.Errno{
	"open O_NOATIME":              {0},
	"open O_DIRECT and tail":      {0},
	"O_PATH, then /proc/self/fd":  {0},
	"preadv2":                     {0},
	"16 threads pread":            {0},
	"16 threads preadv2":          {0},
	"mmap MAP_POPULATE":           {0},
	"madvise WILLNEED":            {0},
	"madvise SEQUENTIAL":          {0},
	"madvise RANDOM":              {0},
	"madvise POPULATE_READ":       {0},
	"madvise HUGEPAGE":            {0, syscall.EINVAL}, // a kernel without transparent huge pages
	"madvise DONTNEED":            {0},
	"madvise COLD":                {0},
	"madvise NORMAL":              {0},
	"madvise PAGEOUT":             {0},
	"madvise DONTFORK":            {0},
	"madvise DONTDUMP":            {0},
	"mlock":                       {0},
	"mincore":                     {0},
	"mapping after close":         {0},
	"write to a private mapping":  {0},
	"shared mapping to write":     {syscall.EACCES},
	"mapping to execute":          {syscall.EPERM},
	"descriptor passed on":        {0},
	"statfs":                      {0},
	"fadvise":                     {0},
	"readahead":                   {0},
	"splice to a pipe":            {0},
	"copy_file_range":             {0, syscall.EXDEV}, // between file systems cp then reads and writes
	"statx":                       {0},
	"access R_OK":                 {0},
	"access W_OK":                 {syscall.EROFS},
	"access X_OK":                 {syscall.EACCES},
	"flock shared":                {0},
	"flock exclusive":             {0},
	"POSIX read lock":             {0},
	"OFD read lock":               {0},
	"POSIX write lock":            {syscall.EBADF},
	"SEEK_DATA":                   {0},
	"SEEK_HOLE":                   {0},
	"inotify_add_watch":           {0},
	"fsync":                       {0},
	"listxattr":                   {0},
	"getxattr of an unknown name": {syscall.ENODATA},
	"FICLONE":                     {syscall.EXDEV, syscall.EOPNOTSUPP, syscall.EINVAL},
	"FS_IOC_GETFLAGS":             {syscall.ENOTTY},
	"execve":                      {syscall.EACCES},
}

func TestMustWork(t *testing.T) { everyTier(t, mustWorkOn) }

func mustWorkOn(t *testing.T, choose func(*serverSpec)) {
	m := mountEmpty(t, choose)
	data := sample(40, 2*hashpipe.UnitSize+1234)
	m.write("model.bin", data)
	m.grant("model.bin", data)
	if err := os.Chmod(filepath.Join(m.src, "model.bin"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := m.run("mustwork", m.at("model.bin"), sumOf(data), tempDir(t))
	for call, want := range mustWork {
		e, made := got.Errnos[call]
		if !made {
			t.Errorf("%s: the client did not try it", call)
		} else if !slices.Contains(want, e) {
			t.Errorf("%s: %v, want %v", call, e, want)
		}
	}
	if len(got.Errnos) != len(mustWork) {
		t.Errorf("%d calls were made, %d are expected", len(got.Errnos), len(mustWork))
	}
	if got.Text != "" {
		t.Error(got.Text)
	}
}

func tryEverything(p, sum, scratch string) (out result) {
	out.Errnos = make(map[string]syscall.Errno)
	try := func(call string, err error) {
		var e syscall.Errno
		if err != nil && !errors.As(err, &e) {
			e = syscall.EINVAL
			out.Text += fmt.Sprintf("%s: %v\n", call, err)
		}
		out.Errnos[call] = e
	}
	right := func(r result) error {
		if r.Errno != 0 {
			return r.Errno
		}
		if r.SHA256 != sum {
			return fmt.Errorf("other bytes: %v", r)
		}
		return nil
	}
	try("open O_NOATIME", right(readAll(p, unix.O_RDONLY|unix.O_NOATIME)))
	try("open O_DIRECT and tail", right(readAll(p, unix.O_RDONLY|unix.O_DIRECT)))
	path, err := unix.Open(p, unix.O_PATH, 0)
	if err == nil {
		try("O_PATH, then /proc/self/fd", right(readAll("/proc/self/fd/"+strconv.Itoa(path), unix.O_RDONLY)))
	}
	fd, err := unix.Open(p, unix.O_RDONLY, 0)
	if err != nil {
		return failed("open", err)
	}
	var st unix.Stat_t
	unix.Fstat(fd, &st)
	size := int(st.Size)
	buf := make([]byte, 100_000)
	_, err = unix.Preadv2(fd, [][]byte{buf[:1000], buf[1000:]}, 4095, 0)
	try("preadv2", err)

	for call, read := range map[string]func(p []byte, off int64) (int, error){
		"16 threads pread":   func(p []byte, off int64) (int, error) { return unix.Pread(fd, p, off) },
		"16 threads preadv2": func(p []byte, off int64) (int, error) { return unix.Preadv2(fd, [][]byte{p[:1], p[1:]}, off, 0) },
	} {
		var threads sync.WaitGroup
		errs := make([]error, 16)
		whole := make([]byte, size)
		for i := range errs {
			threads.Go(func() {
				from, to := size*i/16, size*(i+1)/16
				for from < to && errs[i] == nil {
					var n int
					n, errs[i] = read(whole[from:to], int64(from))
					from += n
				}
			})
		}
		threads.Wait()
		try(call, errors.Join(append(errs, right(measured(whole)))...))
	}

	private, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return failed("mmap", err)
	}
	private[7] ^= 1
	if touch(private).SHA256 == sum {
		err = errors.New("the write is not seen")
	}
	try("write to a private mapping", err)
	data, err := unix.Mmap(fd, 0, size, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	try("mmap MAP_POPULATE", err)
	for call, advice := range map[string]int{
		"madvise WILLNEED": unix.MADV_WILLNEED, "madvise SEQUENTIAL": unix.MADV_SEQUENTIAL,
		"madvise RANDOM": unix.MADV_RANDOM, "madvise POPULATE_READ": unix.MADV_POPULATE_READ,
		"madvise HUGEPAGE": unix.MADV_HUGEPAGE, "madvise DONTNEED": unix.MADV_DONTNEED, "madvise COLD": unix.MADV_COLD,
		"madvise NORMAL": unix.MADV_NORMAL, "madvise PAGEOUT": unix.MADV_PAGEOUT,
		"madvise DONTFORK": unix.MADV_DONTFORK, "madvise DONTDUMP": unix.MADV_DONTDUMP,
	} {
		try(call, unix.Madvise(data, advice))
	}
	_, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	try("shared mapping to write", err)
	_, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	try("mapping to execute", err)
	try("descriptor passed on", passOn(fd, right))
	var fsst unix.Statfs_t
	err = unix.Fstatfs(fd, &fsst)
	if err == nil && fsst.Flags&unix.ST_RDONLY == 0 {
		err = errors.New("not shown as read-only")
	}
	try("statfs", err)
	try("mlock", unix.Mlock(data))
	resident := make([]byte, (size+4095)/4096)
	_, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&data[0])), uintptr(size), uintptr(unsafe.Pointer(&resident[0])))
	try("mincore", errnoErr(e))
	try("fadvise", unix.Fadvise(fd, 0, 0, unix.FADV_WILLNEED))
	_, _, e = unix.Syscall(unix.SYS_READAHEAD, uintptr(fd), 0, uintptr(size))
	try("readahead", errnoErr(e))

	var pipe [2]int
	unix.Pipe(pipe[:])
	off := int64(0)
	_, err = unix.Splice(fd, &off, pipe[1], nil, 4096, 0)
	try("splice to a pipe", err)
	copied, err := os.Create(filepath.Join(scratch, "copy"))
	if err != nil {
		return failed("create", err)
	}
	off = 0
	for off < st.Size && err == nil {
		_, err = unix.CopyFileRange(fd, &off, int(copied.Fd()), nil, size-int(off), 0)
	}
	try("copy_file_range", errors.Join(err, right(readAll(copied.Name(), unix.O_RDONLY))))
	try("FICLONE", unix.IoctlFileClone(int(copied.Fd()), fd))
	_, err = unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	try("FS_IOC_GETFLAGS", err)

	var stx unix.Statx_t
	try("statx", unix.Statx(unix.AT_FDCWD, p, unix.AT_STATX_FORCE_SYNC, unix.STATX_ALL, &stx))
	try("access R_OK", unix.Access(p, unix.R_OK))
	try("access W_OK", unix.Access(p, unix.W_OK))
	try("access X_OK", unix.Access(p, unix.X_OK))
	try("flock shared", unix.Flock(fd, unix.LOCK_SH))
	try("flock exclusive", unix.Flock(fd, unix.LOCK_EX))
	read, write := unix.Flock_t{Type: unix.F_RDLCK, Len: 10}, unix.Flock_t{Type: unix.F_WRLCK, Len: 10}
	try("POSIX read lock", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &read))
	try("OFD read lock", unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &read))
	try("POSIX write lock", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &write))
	_, err = unix.Seek(fd, 0, unix.SEEK_DATA)
	try("SEEK_DATA", err)
	_, err = unix.Seek(fd, 0, unix.SEEK_HOLE)
	try("SEEK_HOLE", err)
	watch, err := unix.InotifyInit1(0)
	if err == nil {
		_, err = unix.InotifyAddWatch(watch, p, unix.IN_MODIFY)
	}
	try("inotify_add_watch", err)
	try("fsync", unix.Fsync(fd))
	_, err = unix.Listxattr(p, make([]byte, 1000))
	try("listxattr", err)
	_, err = unix.Getxattr(p, "user.unknown", nil)
	try("getxattr of an unknown name", err)
	try("execve", unix.Exec(p, []string{p}, nil))

	unix.Close(fd)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	try("mapping after close", right(touch(data)))
	return out
}

// passOn sends a descriptor over a socket and reads what arrives.
func passOn(fd int, right func(result) error) error {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	if err := unix.Sendmsg(ends[0], []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return err
	}
	rights := make([]byte, unix.CmsgSpace(4))
	if _, _, _, _, err := unix.Recvmsg(ends[1], make([]byte, 1), rights, 0); err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	defer unix.Close(fds[0])
	return right(readFD(fds[0]))
}

func errnoErr(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// Without root the mount goes through fusermount3 and serves its own user. The
// test runs itself again in a mount namespace of its own, with a /dev/fuse that
// every user may open, as udev makes it on an ordinary machine.
func TestMountWithoutRoot(t *testing.T) {
	const inner = "CLAWFS_TEST_OWN_DEVICE"
	if os.Getenv(inner) == "" {
		needMounts(t)
		cmd := exec.Command(os.Args[0], "-test.run=^TestMountWithoutRoot$", "-test.v", "-test.count=1")
		cmd.Env = append(os.Environ(), inner+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS: TestMountWithoutRoot")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	device := filepath.Join(tempDir(t), "fuse")
	if err := unix.Mknod(device, unix.S_IFCHR, int(unix.Mkdev(10, 229))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(device, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(device, "/dev/fuse", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}

	data := sample(41, 100_000)
	m := mountEmpty(t, func(s *serverSpec) { s.AllowOther = false; s.asNobody = true })
	m.write("model.bin", data)
	if r := m.run("read-as-nobody", m.at("model.bin")); r.Errno != syscall.EACCES {
		t.Errorf("reading without a capability: %v, want EACCES", r)
	}
	m.lastRecord("model.bin", Refused)
	m.grant("model.bin", data)
	if r := m.run("read-as-nobody", m.at("model.bin")); r.SHA256 != sumOf(data) {
		t.Errorf("reading as the user that mounted: %v", r)
	}
	if r := m.run("read", m.at("model.bin")); r.Errno != syscall.EACCES {
		t.Errorf("another user, root, without allow_other: %v, want EACCES", r)
	}
}
