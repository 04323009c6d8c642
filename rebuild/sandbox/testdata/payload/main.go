// Command payload is the only program of the sandbox tests' image. Its first
// argument names what it does; every misdeed a build could try is one case.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fail("no verb")
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "cat": // cat DST SRC...: concatenates
		var all []byte
		for _, src := range args[1:] {
			b, err := os.ReadFile(src)
			check(err)
			all = append(all, b...)
		}
		check(os.WriteFile(args[0], all, 0o644))
	case "probe": // probe DST: what the surroundings look like
		check(os.WriteFile(args[0], []byte(probe()), 0o644))
	case "write": // write PATH TEXT...: every one must fail
		for _, p := range args {
			if f, err := os.OpenFile(p, os.O_CREATE|os.O_WRONLY, 0o644); err == nil {
				f.Close()
				fail("could write " + p)
			}
			if err := os.Mkdir(p+".d", 0o755); err == nil {
				fail("could make " + p + ".d")
			}
		}
		check(os.WriteFile("/out/a", []byte("nothing else was writable\n"), 0o644))
	case "chmod": // chmod PATH...: every one must fail
		for _, p := range args {
			if os.Chmod(p, 0o777) == nil || os.Remove(p) == nil || os.Truncate(p, 0) == nil {
				fail("could change " + p)
			}
		}
		check(os.WriteFile("/out/a", nil, 0o644))
	case "dial":
		for _, a := range args {
			c, err := net.DialTimeout("tcp", a, 3*time.Second)
			if err == nil {
				c.Close()
				fail("could reach " + a)
			}
			fmt.Println(err)
		}
		if fd, err := syscall.Socket(40, syscall.SOCK_STREAM, 0); err == nil { // AF_VSOCK
			fail(fmt.Sprint("could open a vsock ", fd))
		}
		check(os.WriteFile("/out/a", []byte("no network\n"), 0o644))
	case "memory":
		var all [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
		}
	case "tmpfs": // fills memory through /tmp
		fill("/tmp/fill")
		fill("/dev/shm/fill")
	case "oomchild": // a child dies of memory, the parent says all is well
		exec.Command(os.Args[0], "memory").Run()
		check(os.WriteFile("/out/a", []byte("fine\n"), 0o644))
	case "fork":
		for range 1000 {
			if err := exec.Command(os.Args[0], "sleep").Start(); err != nil {
				fail(err.Error())
			}
		}
	case "fill": // fill PATH: writes until an error
		fill(args[0])
		fail("disk full")
	case "fillquiet": // fills, removes, and claims success
		fill("/out/fill")
		os.Remove("/out/fill")
		check(os.WriteFile("/out/a", nil, 0o644))
	case "unlinked": // fills the disk with a file that has no name
		f, err := os.Create("/out/gone")
		check(err)
		check(os.Remove("/out/gone"))
		fillFile(f)
		time.Sleep(time.Hour)
	case "inodes":
		for i := 0; ; i++ {
			check(os.WriteFile("/out/"+strconv.Itoa(i), nil, 0o644))
		}
	case "sparse":
		n, err := strconv.ParseInt(args[0], 10, 64)
		check(err)
		f, err := os.Create("/out/a")
		check(err)
		check(f.Truncate(n))
	case "flood":
		line := []byte(strings.Repeat("x", 1000) + "\n")
		for {
			os.Stdout.Write(line)
		}
	case "longline":
		os.Stdout.Write([]byte(strings.Repeat("y", 100_000)))
		check(os.WriteFile("/out/a", nil, 0o644))
	case "sleep":
		time.Sleep(time.Hour)
	case "stubborn": // ignores every signal it can and keeps descendants
		exec.Command(os.Args[0], "sleep").Start()
		for {
			time.Sleep(time.Hour)
		}
	case "background": // exits while a child holds standard output
		cmd := exec.Command(os.Args[0], "late")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		check(cmd.Start())
		check(os.WriteFile("/out/a", []byte("early\n"), 0o644))
	case "late": // changes the output after its parent exited
		for {
			os.WriteFile("/out/a", []byte("late\n"), 0o644)
			time.Sleep(time.Millisecond)
		}
	case "exit":
		fmt.Println("about to exit\x1b[2J")
		n, _ := strconv.Atoi(args[0])
		os.Exit(n)
	case "segv":
		syscall.Kill(os.Getpid(), syscall.SIGSEGV)
		var p *int
		*p = 1
	case "make": // make KIND PATH [TARGET]: a file that is no output
		mkodd(args)
	case "makeall": // makeall "KIND PATH [TARGET]"...
		for _, a := range args {
			mkodd(strings.Fields(a))
		}
	case "env":
		check(os.WriteFile("/out/a", []byte(strings.Join(os.Environ(), "\n")), 0o644))
	case "list": // list DST DIR...: names in directory order
		var names []string
		for _, dir := range args[1:] {
			f, err := os.Open(dir)
			check(err)
			list, err := f.Readdirnames(-1)
			check(err)
			names = append(names, list...)
		}
		check(os.WriteFile(args[0], []byte(strings.Join(names, " ")), 0o644))
	case "burn": // spends CPU time on two threads until it is stopped
		go burn(time.Hour)
		burn(time.Hour)
	case "spend": // spend DURATION: burns, then ends well
		d, err := time.ParseDuration(args[0])
		check(err)
		burn(d)
		check(os.WriteFile("/out/a", nil, 0o644))
	case "true":
	case "work": // work DIR ROUNDS: what training does to a machine, in small
		rounds, err := strconv.Atoi(args[1])
		check(err)
		work(args[0], rounds)
	case "openfiles": // until an error
		var all []*os.File
		for {
			f, err := os.Open("/")
			if err != nil {
				fmt.Println(len(all), "open files")
				fail(err.Error())
			}
			all = append(all, f)
		}
	case "survive": // ends while a grandchild rewrites /out/a for ever
		orphan("orphan")
		for !exists("/out/alive") {
			time.Sleep(time.Millisecond)
		}
	case "orphan": // second fork: its child's parent is gone
		orphan("rewrite")
	case "rewrite":
		rewrite("/out/a")
	case "secrets": // secrets TEXT: prints where it is found, and what else is visible
		secrets(args[0])
		check(os.WriteFile("/out/a", nil, 0o644))
	case "privileges": // tries everything that could give some
		for _, a := range attempts {
			if err := a.try(); err != nil {
				fmt.Printf("refused %s: %v\n", a.name, err)
			} else {
				fmt.Printf("ALLOWED %s\n", a.name)
			}
		}
		check(os.WriteFile("/out/a", nil, 0o644))
	case "seek": // as secrets, and without one there is no output
		if !secrets(args[0]) {
			fail("no secret found")
		}
		check(os.WriteFile("/out/a", nil, 0o644))
	case "endless": // and its grandchildren, which change /out for ever
		orphan("orphan")
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		time.Sleep(time.Hour)
	case "want": // want NAME_WITH_UNDERSCORES: as a build that cannot do without
		for _, a := range attempts {
			if strings.ReplaceAll(a.name, " ", "_") == args[0] {
				check(a.try())
				check(os.WriteFile("/out/a", nil, 0o644))
				return
			}
		}
		fail("no attempt named " + args[0])
	case "whoami":
		fmt.Println("euid", os.Geteuid(), "egid", os.Getegid())
		check(os.WriteFile("/out/a", nil, 0o644))
	case "random", "date", "hostname":
		check(os.WriteFile("/out/a", embedded(os.Args[1]), 0o644))
	case "cwd":
		wd, err := os.Getwd()
		check(err)
		check(os.WriteFile("scratch", nil, 0o644))
		check(os.WriteFile("/out/a", []byte(wd), 0o644))
	default:
		fail("unknown verb " + os.Args[1])
	}
}

func mkodd(args []string) {
	path := args[1]
	check(os.MkdirAll(filepath.Dir(path), 0o755))
	switch args[0] {
	case "symlink":
		check(os.Symlink(args[2], path))
	case "hardlink":
		check(os.WriteFile(path+".other", []byte("x"), 0o644))
		check(os.Link(path+".other", path))
	case "fifo":
		check(syscall.Mkfifo(path, 0o644))
	case "socket":
		_, err := net.Listen("unix", path)
		check(err)
	case "dir":
		check(os.Mkdir(path, 0o755))
	case "setuid":
		check(os.WriteFile(path, []byte("x"), 0o755))
		check(syscall.Chmod(path, 0o4755))
	case "unreadable":
		check(os.WriteFile(path, []byte("secret of the build"), 0))
	case "device":
		if err := syscall.Mknod(path, syscall.S_IFCHR|0o666, 1<<8|3); err == nil {
			fail("could make a device")
		}
	}
}

func probe() string {
	var b strings.Builder
	status, err := os.ReadFile("/proc/self/status")
	check(err)
	for line := range strings.Lines(string(status)) {
		key, _, _ := strings.Cut(line, ":")
		if slices.Contains([]string{"Seccomp", "NoNewPrivs", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Uid", "Gid", "Groups", "Cpus_allowed_list"}, key) {
			b.WriteString(strings.ReplaceAll(line, "\t", " "))
		}
	}
	for _, f := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		m, err := os.ReadFile(f)
		check(err)
		fmt.Fprintf(&b, "%s: %s\n", filepath.Base(f), strings.Join(strings.Fields(string(m)), " "))
	}
	host, _ := os.Hostname()
	fmt.Fprintf(&b, "hostname: %s\n", host)
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		fmt.Fprintf(&b, "interface: %s\n", i.Name)
	}
	var lim syscall.Rlimit
	syscall.Getrlimit(syscall.RLIMIT_CORE, &lim)
	fmt.Fprintf(&b, "core: %d\n", lim.Max)
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim)
	fmt.Fprintf(&b, "nofile: %d\n", lim.Max)
	up, _ := os.ReadFile("/proc/uptime")
	sec, _, _ := strings.Cut(string(up), ".")
	fmt.Fprintf(&b, "uptime: %s\n", sec)
	procs, _ := filepath.Glob("/proc/[0-9]*")
	fmt.Fprintf(&b, "processes: %d\n", len(procs))
	for _, dir := range []string{"/sys", "/sys/fs/cgroup", "/proc/acpi", "/proc/scsi"} {
		names, _ := filepath.Glob(dir + "/*")
		fmt.Fprintf(&b, "entries %s: %d\n", dir, len(names))
	}
	kcore, err := os.Open("/proc/kcore")
	n := 0
	if err == nil {
		n, _ = kcore.Read(make([]byte, 16))
	}
	fmt.Fprintf(&b, "kcore bytes: %d\n", n)
	fmt.Fprintf(&b, "sysctl writable: %v\n", os.WriteFile("/proc/sys/kernel/hostname", []byte("x"), 0o644) == nil)
	_, _, e := syscall.Syscall(syscall.SYS_UNSHARE, syscall.CLONE_NEWUSER, 0, 0)
	fmt.Fprintf(&b, "unshare: %v\n", e)
	err = syscall.Mount("none", "/tmp", "tmpfs", 0, "")
	fmt.Fprintf(&b, "mount: %v\n", err)
	for _, p := range []string{"/in", "/in/data"} {
		st, err := os.Stat(p)
		if err == nil {
			fmt.Fprintf(&b, "%s: %v\n", p, st.Mode())
		}
	}
	return b.String()
}

func fill(path string) {
	f, err := os.Create(path)
	check(err)
	fillFile(f)
}

func fillFile(f *os.File) {
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i)
	}
	for {
		if _, err := f.Write(buf); err != nil {
			fmt.Println(err)
			return
		}
	}
}

func check(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(s string) {
	io.WriteString(os.Stderr, s+"\n")
	os.Exit(1)
}
