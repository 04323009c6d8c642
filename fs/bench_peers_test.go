package fs

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
)

// Who is measured: a file system of the kernel, go-fuse's own example over it, two
// programs of Debian, and the tiers of clawfs.

// peer shows a source directory to clients.
type peer struct {
	kind   kind
	disk   *disk
	dir    string
	pid    int             // of the process that serves dir; 0 if none does
	stored func() []string // model.bin as it lies behind dir, and any private copy
	end    func()
	wrap   []string // runs the clients: a profiler
}

// bare is p without its profiler.
func (p *peer) bare() *peer {
	q := *p
	q.wrap = nil
	return &q
}

func (p *peer) model() string { return filepath.Join(p.dir, "model.bin") }

// kind is a way to make a peer. Each peer has seen nothing yet.
type kind struct {
	name  string
	tier  string // of clawfs; "" for others
	start func(testing.TB, *disk) *peer
}

// ending sets what ends a peer, at the latest with the test.
func (p *peer) ending(tb testing.TB, end func()) *peer {
	p.end = sync.OnceFunc(end)
	tb.Cleanup(p.end)
	return p
}

func (k kind) make(tb testing.TB, d *disk) *peer {
	tb.Helper()
	p := k.start(tb, d)
	p.kind, p.disk = k, d
	return p
}

func kinds() []kind {
	all := []kind{
		{"native", "", startNative},
		{"loopback", "", func(tb testing.TB, d *disk) *peer { return startLoopback(tb, d) }},
		{"passthrough", "", func(tb testing.TB, d *disk) *peer { return startLoopback(tb, d, "passthrough") }},
		{"bindfs", "", startBindfs},
		{"gocryptfs", "", startGocryptfs},
	}
	for _, t := range tiers {
		all = append(all, kind{t.name, t.tier, func(tb testing.TB, d *disk) *peer { return startTier(tb, d, t.change) }})
	}
	return all
}

func needPeers(tb testing.TB) {
	tb.Helper()
	needMounts(tb)
	for program, pkg := range map[string]string{"bindfs": "bindfs", "gocryptfs": "gocryptfs", "mkfs.xfs": "xfsprogs", "losetup": "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			tb.Fatalf("no %s: apt-get install %s", program, pkg)
		}
	}
}

// scope is a part of a test with an end of its own.
type scope struct {
	testing.TB
	undo []func()
}

func (s *scope) Cleanup(f func()) { s.undo = append(s.undo, f) }

func (s *scope) end() {
	for len(s.undo) > 0 {
		last := s.undo[len(s.undo)-1]
		s.undo = s.undo[:len(s.undo)-1]
		last()
	}
}

// disk is a file system with a source directory: model.bin, and two directories
// with many small files.
type disk struct {
	name    string
	dir     string // temporary directories are made here
	source  string
	subject capstore.Subject // model.bin
	cipher  string           // gocryptfs's own copy of the source, once it is made
}

// many is how many files the large directories have.
const many = 10_000

func newDisk(tb testing.TB, name string, size int64) *disk {
	tb.Helper()
	d := &disk{name: name, dir: tempDir(tb)}
	switch name {
	case "ext4":
		var st unix.Statfs_t
		if err := unix.Statfs(d.dir, &st); err != nil {
			tb.Fatal(err)
		}
		if st.Type != unix.EXT4_SUPER_MAGIC {
			tb.Fatalf("%s is not on ext4 (type %#x): set TMPDIR to a directory that is", d.dir, st.Type)
		}
	case "xfs":
		mountXFS(tb, d.dir)
	}
	d.source = filepath.Join(d.dir, "source")
	for _, sub := range []string{"stat", "list"} {
		sub = filepath.Join(d.source, sub)
		if err := os.MkdirAll(sub, 0o755); err != nil {
			tb.Fatal(err)
		}
		for i := range many {
			if err := os.WriteFile(filepath.Join(sub, manyName(i)), []byte("a small file"), 0o644); err != nil {
				tb.Fatal(err)
			}
		}
	}
	d.subject = bigFile(tb, filepath.Join(d.source, "model.bin"), size)
	d.warm(tb)
	return d
}

func (d *disk) model() []string { return []string{filepath.Join(d.source, "model.bin")} }

// drop makes the kernel forget the pages of the source.
func (d *disk) drop(tb testing.TB) {
	tb.Helper()
	if err := dropPages(d.model()[0]); err != nil {
		tb.Fatal(err)
	}
}

// warm reads the source into the page cache as a reader does: a file that was
// just written has pages of other sizes.
func (d *disk) warm(tb testing.TB) {
	tb.Helper()
	d.drop(tb)
	new(peer).times(tb, d.model()[0], "read")
}

// keepWarm is warm, unless all of the source is in the page cache already.
func (d *disk) keepWarm(tb testing.TB) {
	tb.Helper()
	f, err := os.Open(d.model()[0])
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	cached, err := cachedBytes(f, 0)
	if err != nil {
		tb.Fatal(err)
	}
	if cached < d.subject.Size {
		d.warm(tb)
	}
}

// mountXFS mounts a fresh xfs that can share blocks at dir. Direct I/O keeps the
// file below it out of the page cache.
func mountXFS(tb testing.TB, dir string) {
	tb.Helper()
	image := dir + ".image"
	f, err := os.Create(image)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.Remove(image) })
	err = f.Truncate(64 << 30)
	f.Close()
	if err != nil {
		tb.Fatal(err)
	}
	must := func(args ...string) string {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			tb.Fatalf("%q: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	must("mkfs.xfs", "-q", "-m", "reflink=1", image)
	loop := must("losetup", "--find", "--show", "--direct-io=on", image)
	defer exec.Command("losetup", "--detach", loop).Run() // it goes with the last user
	must("mount", "-t", "xfs", loop, dir)
	tb.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			tb.Errorf("unmounting %s: %v", dir, err)
			syscall.Unmount(dir, syscall.MNT_DETACH)
		}
	})
}

func startNative(_ testing.TB, d *disk) *peer {
	return &peer{dir: d.source, stored: d.model, end: func() {}}
}

// loopback serves a directory by go-fuse's own example of a file system, until
// stdin ends. Passthrough is what it does by itself, as root.
func loopback(source, mountpoint string) int {
	options := fuse.MountOptions{DirectMountStrict: true, DisabledCapabilities: fuse.CAP_PASSTHROUGH}
	if len(os.Args) > 3 {
		options.DisabledCapabilities = 0
	}
	root, err := fusefs.NewLoopbackRoot(source)
	if err == nil {
		second := time.Second
		var s *fuse.Server
		s, err = fusefs.Mount(mountpoint, root, &fusefs.Options{AttrTimeout: &second, EntryTimeout: &second, MountOptions: options})
		if err == nil {
			fmt.Println("ready")
			_, _ = io.Copy(io.Discard, os.Stdin)
			err = s.Unmount()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "loopback:", err)
		return 1
	}
	return 0
}

func startLoopback(tb testing.TB, d *disk, passthrough ...string) *peer {
	tb.Helper()
	dir := tempDir(tb)
	cmd := exec.Command(os.Args[0], append([]string{d.source, dir}, passthrough...)...)
	cmd.Env = append(os.Environ(), roleVariable+"=loopback")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		tb.Fatalf("loopback: %v", err)
	}
	return (&peer{dir: dir, pid: cmd.Process.Pid, stored: d.model}).ending(tb, func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			tb.Errorf("loopback: %v", err)
		}
	})
}

func startBindfs(tb testing.TB, d *disk) *peer {
	dir := tempDir(tb)
	p := startProgram(tb, dir, "bindfs", "-f", d.source, dir)
	p.stored = d.model
	return p
}

func startGocryptfs(tb testing.TB, d *disk) *peer {
	tb.Helper()
	secret := filepath.Join(d.dir, "secret")
	first := d.cipher == ""
	if first {
		d.cipher = tempDir(tb)
		if err := os.WriteFile(secret, []byte("of no importance\n"), 0o600); err != nil {
			tb.Fatal(err)
		}
		if out, err := exec.Command("gocryptfs", "-init", "-q", "-scryptn", "10", "-passfile", secret, d.cipher).CombinedOutput(); err != nil {
			tb.Fatalf("gocryptfs -init: %v: %s", err, out)
		}
	}
	start := func() *peer {
		dir := tempDir(tb)
		p := startProgram(tb, dir, "gocryptfs", "-fg", "-q", "-nosyslog", "-passfile", secret, d.cipher, dir)
		p.stored = func() []string { return largeFiles(tb, d.cipher) }
		return p
	}
	if first {
		p := start()
		if out, err := exec.Command("cp", "-r", d.source+"/.", p.dir).CombinedOutput(); err != nil {
			tb.Fatalf("cp into gocryptfs: %v: %s", err, out)
		}
		p.end()
		for _, f := range largeFiles(tb, d.cipher) {
			if out, err := exec.Command("sync", f).CombinedOutput(); err != nil {
				tb.Fatalf("sync: %v: %s", err, out)
			}
		}
	}
	return start()
}

func largeFiles(tb testing.TB, dir string) (large []string) {
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		st, err := e.Info()
		if err == nil && st.Size() > 1<<20 {
			large = append(large, p)
		}
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	return large
}

// startProgram runs a program that stays in the foreground and mounts at dir.
func startProgram(tb testing.TB, dir string, args ...string) *peer {
	tb.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		tb.Fatalf("%v (apt-get install %s)", err, args[0])
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if _, mounted := mountDevice(dir); mounted {
			break
		}
		select {
		case err := <-exited:
			tb.Fatalf("%q: %v: %s", args, err, &stderr)
		default:
		}
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			tb.Fatalf("%q: not mounted after 30 s", args)
		}
	}
	return (&peer{dir: dir, pid: cmd.Process.Pid}).ending(tb, func() {
		if out, err := exec.Command("fusermount3", "-u", dir).CombinedOutput(); err != nil {
			tb.Errorf("unmounting %s: %v: %s", args[0], err, out)
		}
		select {
		case <-exited:
		case <-time.After(20 * time.Second):
			tb.Errorf("%s did not end in 20 s", args[0])
			cmd.Process.Kill()
		}
	})
}

// startTier mounts clawfs over the source.
func startTier(tb testing.TB, d *disk, change func(testing.TB, *serverSpec)) *peer {
	tb.Helper()
	m := mountEmpty(tb, func(s *serverSpec) { change(tb, s) }, func(s *serverSpec) { s.Source = d.source })
	m.admit(d.subject)
	return &peer{
		dir: m.dir, pid: m.cmd.Process.Pid,
		stored: func() []string { return append(d.model(), unnamedFiles(tb, m.cmd.Process.Pid, d.subject.Size)...) },
		end:    func() { m.end(); m.ended = true },
	}
}

// tier returns that of model.bin now.
func (p *peer) tier(tb testing.TB) string {
	tb.Helper()
	r := p.bare().client(tb, "getxattr", p.model(), "user.clawfs.tier")
	if r.Errno != 0 {
		tb.Fatalf("tier of model.bin: %v", r)
	}
	return r.Text
}

// unnamedFiles returns paths to the files without a name that a process has open
// and that have this size.
func unnamedFiles(tb testing.TB, pid int, size int64) (found []string) {
	tb.Helper()
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		if to, err := os.Readlink(p); err != nil || !strings.HasSuffix(to, " (deleted)") {
			continue
		}
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Size() == size {
			found = append(found, p)
		}
	}
	return found
}

// client does one thing in a client process.
func (p *peer) client(tb testing.TB, args ...string) result {
	tb.Helper()
	args = slices.Concat(p.wrap, []string{os.Args[0]}, args)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), roleVariable+"=client", quickExit)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stuck := time.AfterFunc(10*time.Minute, func() { cmd.Process.Kill() })
	defer stuck.Stop()
	out, err := cmd.Output()
	var r result
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		tb.Fatalf("client %q: %v\n%s", args, err, stderr.Bytes())
	}
	return r
}

// times does things to a path of a peer, one after the other. If one is named
// twice, the last counts.
func (p *peer) times(tb testing.TB, path string, what ...string) map[string]taken {
	tb.Helper()
	r := p.client(tb, append([]string{"time", path, strconv.Itoa(p.pid)}, what...)...)
	if r.Errno != 0 {
		tb.Fatalf("timing %v of %s: %v (%s)", what, path, r, r.Text)
	}
	out := make(map[string]taken)
	for _, w := range what {
		out[w] = taken{r.Took[w], r.Took[w+" cpu"], r.Took[w+" sum"]}
	}
	return out
}

// peakRSS returns what the process has had in memory at most, in MiB.
func (p *peer) peakRSS(tb testing.TB) float64 {
	tb.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				tb.Fatal(err)
			}
			return kib / 1024
		}
	}
	tb.Fatal("no VmHWM in /proc/PID/status")
	return 0
}
