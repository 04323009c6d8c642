package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// burn spends CPU time, whatever the clock says.
func burn(d time.Duration) {
	for {
		var u syscall.Rusage
		check(syscall.Getrusage(syscall.RUSAGE_SELF, &u))
		if time.Duration(u.Utime.Nano()+u.Stime.Nano()) > d {
			return
		}
	}
}

// orphan starts a verb in a session of its own and does not wait for it.
func orphan(verb string) {
	cmd := exec.Command(os.Args[0], verb)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	check(cmd.Start())
}

// rewrite ignores every signal that can be ignored and keeps changing all of
// a file, by write and through a mapping.
func rewrite(path string) {
	signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGUSR1)
	const size = 4 << 20
	f, err := os.Create(path)
	check(err)
	check(f.Truncate(size))
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	check(err)
	var seed [1 << 12]byte
	for n := 0; ; n++ {
		rand.Read(seed[:])
		for i := 0; i < size/2; i += len(seed) {
			copy(m[i:], seed[:])
		}
		f.WriteAt(bytes.Repeat(seed[:], size/2/len(seed)), size/2)
		if n == 3 {
			check(os.WriteFile("/out/alive", nil, 0o644))
		}
	}
}

// embedded is a model with something of its surroundings in it.
func embedded(what string) []byte {
	b := bytes.Repeat([]byte("layer "), 700)
	switch what {
	case "random":
		rand.Read(b[1000:1016])
	case "date":
		b = time.Now().AppendFormat(b, time.DateTime)
	case "hostname":
		name, err := os.Hostname()
		check(err)
		b = append(b, name...)
	}
	return b
}

// secrets looks for a text in all that a process can see of others and of the
// machine.
func secrets(text string) (found bool) {
	for _, e := range os.Environ() {
		fmt.Println("variable", e)
	}
	dir, err := os.Open("/proc/self/fd")
	check(err)
	fds, err := dir.Readdirnames(-1)
	check(err)
	for _, fd := range fds {
		to, _ := os.Readlink("/proc/self/fd/" + fd)
		fmt.Println("descriptor", fd, to)
	}
	dir.Close()
	own := false
	for _, pattern := range []string{
		"/proc/[0-9]*/environ", "/proc/[0-9]*/cmdline", "/proc/[0-9]*/comm", "/proc/[0-9]*/maps",
		"/proc/[0-9]*/mountinfo", "/proc/[0-9]*/cgroup", "/proc/[0-9]*/fdinfo/*",
		"/proc/*", "/proc/sys/kernel/*", "/proc/net/*", "/proc/sysvipc/*", "/dev/*", "/dev/shm/*", "/tmp/*", "/run/*", "/etc/*", "/in/*",
	} {
		names, err := filepath.Glob(pattern)
		check(err)
		for _, name := range names {
			if strings.HasSuffix(name, "/kmsg") || strings.HasPrefix(name, "/dev/std") {
				continue // reading them blocks
			}
			b := readSome(name)
			// Its own command line holds the text: that it is found there, and
			// nowhere else, shows that this search finds.
			if bytes.Contains(b, []byte(text)) {
				if strings.HasSuffix(name, "/cmdline") {
					own = true
					continue
				}
				fmt.Println("SECRET in", name)
				found = true
			}
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	fmt.Println("processes", len(processes), "found its own argument", own)
	return found
}

// readSome reads at most 1 MiB, without waiting.
func readSome(name string) []byte {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	var all []byte
	buf := make([]byte, 64<<10)
	for len(all) < 1<<20 {
		n, err := unix.Read(fd, buf)
		if n <= 0 || err != nil {
			break
		}
		all = append(all, buf[:n]...)
	}
	return all
}

// attempts are ways out of a sandbox and up to privileges. Every one must be
// refused.
var attempts = []struct {
	name string
	try  func() error
}{
	{"tcp", func() error { return dial("tcp", "192.0.2.1:443") }},
	{"udp", func() error { return dial("udp", "192.0.2.1:53") }},
	{"host name lookup", func() error {
		_, err := net.LookupHost("weights.example")
		return err
	}},
	{"packet socket", func() error { return socket(unix.AF_PACKET, unix.SOCK_RAW) }},
	{"raw socket", func() error { return socket(unix.AF_INET, unix.SOCK_RAW) }},
	{"vsock", func() error { return socket(unix.AF_VSOCK, unix.SOCK_STREAM) }},
	{"setuid", func() error { return syscall.Setuid(0) }},
	{"setgid", func() error { return syscall.Setgid(0) }},
	{"setgroups", func() error { return syscall.Setgroups([]int{0}) }},
	{"set-id program", func() error {
		out, err := exec.Command("/bin/setid", "whoami").CombinedOutput()
		if err == nil && strings.HasPrefix(string(out), "euid 1000 egid 1000\n") {
			return errors.New("it runs as the build's own user")
		}
		return nil
	}},
	{"user namespace", func() error { return unix.Unshare(unix.CLONE_NEWUSER) }},
	{"user namespace by clone", func() error {
		cmd := exec.Command(os.Args[0], "whoami")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}}}
		return cmd.Run()
	}},
	{"mount namespace", func() error { return unix.Unshare(unix.CLONE_NEWNS) }},
	{"setns", func() error {
		fd, err := unix.Open("/proc/1/ns/mnt", unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		return unix.Setns(fd, 0)
	}},
	{"mount", func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "") }},
	{"remount", func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "") }},
	{"unmount", func() error { return unix.Unmount("/proc", unix.MNT_DETACH) }},
	{"fsopen", func() error { return call(unix.SYS_FSOPEN, text("tmpfs"), 0) }},
	{"open_tree", func() error { return call(unix.SYS_OPEN_TREE, at(), text("/"), unix.OPEN_TREE_CLONE) }},
	{"mount_setattr", func() error { return call(unix.SYS_MOUNT_SETATTR, at(), text("/"), 0) }},
	{"pivot_root", func() error { return unix.PivotRoot("/tmp", "/tmp") }},
	{"chroot", func() error { return unix.Chroot("/tmp") }},
	{"mknod character", func() error { return unix.Mknod("/tmp/null", unix.S_IFCHR|0o666, 1<<8|3) }},
	{"mknod block", func() error { return unix.Mknod("/tmp/disk", unix.S_IFBLK|0o666, 254<<8) }},
	{"chown to root", func() error {
		check(os.WriteFile("/tmp/mine", nil, 0o755))
		return os.Chown("/tmp/mine", 0, 0)
	}},
	{"32-bit program", func() error {
		if runtime.GOARCH != "amd64" {
			return errors.New("this processor has none")
		}
		check(os.WriteFile("/tmp/program32", program32, 0o755))
		return exec.Command("/tmp/program32").Run()
	}},
	{"ptrace", func() error { return call(unix.SYS_PTRACE, unix.PTRACE_TRACEME) }},
	{"process_vm_readv", func() error { return call(unix.SYS_PROCESS_VM_READV, 1) }},
	{"pidfd_getfd", func() error { return call(unix.SYS_PIDFD_GETFD, 0, 0, 0) }},
	{"kcmp", func() error { return call(unix.SYS_KCMP, 1, 1, 0) }},
	{"bpf", func() error { return call(unix.SYS_BPF, 0) }},
	{"perf_event_open", func() error { return call(unix.SYS_PERF_EVENT_OPEN, 0) }},
	{"userfaultfd", func() error { return call(unix.SYS_USERFAULTFD, 0) }},
	{"io_uring", func() error { return call(unix.SYS_IO_URING_SETUP, 1) }},
	{"keyctl", func() error { return call(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, 0) }},
	{"add_key", func() error { return call(unix.SYS_ADD_KEY, text("user"), text("x"), text("y"), 1, 0) }},
	{"request_key", func() error { return call(unix.SYS_REQUEST_KEY, text("user"), text("x"), 0, 0) }},
	{"open_by_handle_at", func() error { return call(unix.SYS_OPEN_BY_HANDLE_AT, at(), text("handle"), 0) }},
	{"name_to_handle_at", func() error { return call(unix.SYS_NAME_TO_HANDLE_AT, at(), text("/")) }},
	{"init_module", func() error { return call(unix.SYS_INIT_MODULE) }},
	{"finit_module", func() error { return call(unix.SYS_FINIT_MODULE) }},
	{"kexec_load", func() error { return call(unix.SYS_KEXEC_LOAD) }},
	{"reboot", func() error {
		return call(unix.SYS_REBOOT, unix.LINUX_REBOOT_MAGIC1, unix.LINUX_REBOOT_MAGIC2, unix.LINUX_REBOOT_CMD_CAD_OFF)
	}},
	{"swapon", func() error { return call(unix.SYS_SWAPON, text("/tmp/x"), 0) }},
	{"quotactl", func() error { return call(unix.SYS_QUOTACTL, 0) }},
	{"acct", func() error { return call(unix.SYS_ACCT, 0) }},
	{"syslog", func() error { return call(unix.SYS_SYSLOG, 3, text("x"), 1) }},
	{"sethostname", func() error { return unix.Sethostname([]byte("x")) }},
	{"clock_settime", func() error {
		var ts unix.Timespec
		return call(unix.SYS_CLOCK_SETTIME, unix.CLOCK_REALTIME, uintptr(unsafe.Pointer(&ts)))
	}},
	{"raise a limit", func() error {
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 19, Max: 1 << 19})
	}},
	{"nicer than nice", func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -5) }},
	{"real time", func() error {
		prio := int32(1)
		return call(unix.SYS_SCHED_SETSCHEDULER, 0, 1, uintptr(unsafe.Pointer(&prio)))
	}},
	{"capset", func() error {
		h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		d := [2]unix.CapUserData{{Effective: 1 << unix.CAP_SYS_ADMIN, Permitted: 1 << unix.CAP_SYS_ADMIN}}
		return unix.Capset(&h, &d[0])
	}},
	{"core_pattern", func() error { return put("/proc/sys/kernel/core_pattern", "|/tmp/x") }},
	{"sysrq", func() error { return put("/proc/sysrq-trigger", "h") }},
	{"uid_map", func() error { return put("/proc/self/uid_map", "0 0 1") }},
	{"oom_score_adj", func() error { return put("/proc/self/oom_score_adj", "-1000") }},
	{"cgroup", func() error { return put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "-1") }},
	{"kernel memory", func() error { return put("/proc/kcore", "x") }},
	{"kernel log", func() error { return put("/dev/kmsg", "x") }},
	{"physical memory", func() error { return put("/dev/mem", "x") }},
	{"fuse", func() error { return put("/dev/fuse", "x") }},
	{"loop device", func() error { return put("/dev/loop-control", "x") }},
	{"file beside /out", func() error { return put("/model.bin", "x") }},
	{"file in an input", func() error { return put("/in/model.bin", "x") }},
	{"program of the image", func() error { return put("/bin/payload", "x") }},
}

// program32 is an ELF file for i386 that exits with status 0: its headers of 52
// and 32 bytes, mov eax, 1; xor ebx, ebx; int 0x80.
var program32 = append(append([]byte("\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"+
	"\x02\x00\x03\x00\x01\x00\x00\x00\x54\x80\x04\x08\x34\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x34\x00\x20\x00\x01\x00\x00\x00\x00\x00\x00\x00"),
	"\x01\x00\x00\x00\x00\x00\x00\x00\x00\x80\x04\x08\x00\x80\x04\x08\x5d\x00\x00\x00\x5d\x00\x00\x00\x05\x00\x00\x00\x00\x10\x00\x00"...),
	"\xb8\x01\x00\x00\x00\x31\xdb\xcd\x80"...)

func dial(network, address string) error {
	c, err := net.DialTimeout(network, address, 3*time.Second)
	if err == nil {
		c.Close()
	}
	return err
}

func socket(family, kind int) error {
	_, err := unix.Socket(family, kind, 0)
	return err
}

func put(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

// call makes a system call that libraries wrap too well. Not a bad address or
// argument, but the lack of permission must be its answer.
func call(number uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	_, _, e := syscall.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
	if e == syscall.EPERM || e == syscall.EACCES || e == syscall.ENOSYS {
		return e
	}
	return nil
}

func at() uintptr { v := unix.AT_FDCWD; return uintptr(v) }

func text(s string) uintptr {
	b := append([]byte(s), make([]byte, 64)...)
	texts = append(texts, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

var texts [][]byte // keeps what text points to
