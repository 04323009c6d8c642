package fs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"
)

// hand sends the session over a socket.
func hand(s *Server, socket int) error {
	session, err := s.Session()
	if err != nil {
		return err
	}
	defer session.Close()
	return unix.Sendmsg(socket, []byte{1}, unix.UnixRights(int(session.Device.Fd()), int(session.Journal.Fd())), nil, 0)
}

// takes gives the server that is about to start a socket, in front of files.
func (m *mounted) takes(files []*os.File) {
	m.t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	m.arrives = os.NewFile(uintptr(pair[0]), "holder")
	theirs := os.NewFile(uintptr(pair[1]), "hand")
	m.t.Cleanup(func() { m.arrives.Close(); theirs.Close() })
	m.cmd.ExtraFiles = append([]*os.File{theirs}, files...)
}

// session receives what the server has sent.
func (m *mounted) session() Session {
	m.t.Helper()
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(8))
	_, n, _, _, err := unix.Recvmsg(int(m.arrives.Fd()), buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		m.t.Fatal(err)
	}
	list, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(list) != 1 {
		m.t.Fatalf("control messages %v, %v", list, err)
	}
	fds, err := unix.ParseUnixRights(&list[0])
	if err != nil || len(fds) != 2 {
		m.t.Fatalf("descriptors %v, %v", fds, err)
	}
	s := Session{Device: os.NewFile(uintptr(fds[0]), "/dev/fuse"), Journal: os.NewFile(uintptr(fds[1]), "journal")}
	m.t.Cleanup(s.Close)
	return s
}

// kill ends the server by SIGKILL and waits until it is gone.
func (m *mounted) kill() {
	m.t.Helper()
	if err := m.cmd.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	m.in.Close()
	m.cmd.Wait()
}

// resume starts a successor. The envelopes are admitted only after it serves, as
// the daemon's snapshot is there before: so the spec carries them.
func (m *mounted) resume(s Session) {
	m.t.Helper()
	spec := m.spec
	spec.Resume = true
	m.start(spec, s.Device, s.Journal)
	if r := m.receive(); r.Err != "" {
		m.gone = true
		m.t.Fatalf("resume: %s", r.Err)
	}
}

func handing(s *serverSpec) { s.Hand = true }

// Many readers hold a hundred handles and mappings, and read, map, open and list in a
// loop, while the process that serves is killed and replaced again and again: no
// error, no wrong byte, the same mount.
func TestResumeUnderReaders(t *testing.T) {
	for tier, change := range map[string]func(*serverSpec){
		TierBlocks: func(s *serverSpec) { s.CacheBytes = -1 },
		TierSealed: func(s *serverSpec) { s.Seal = SealCopy },
	} {
		t.Run(tier, func(t *testing.T) {
			const files, readers, rounds = 7, 8, 50
			m := mountEmpty(t, handing, change)
			content := make(map[string][]byte)
			for i := range files {
				name := fmt.Sprintf("m%d.bin", i)
				content[name] = sample(byte(i), 3<<20+i)
				m.write(name, content[name])
				m.spec.Admit = append(m.spec.Admit, m.grant(name, content[name]))
			}
			before := mountLine(t, m.dir)
			var keepers []*keeper
			for range readers {
				keepers = append(keepers, m.keep(content, 2))
			}
			session := m.session()
			if got := m.lastRecord("m0.bin", Granted).Tier; got != tier {
				t.Fatalf("files are served in tier %s, want %s", got, tier)
			}
			var longest time.Duration
			for round := range rounds {
				time.Sleep(time.Duration(10+round*37%90) * time.Millisecond)
				m.kill()
				start := time.Now()
				m.resume(session)
				longest = max(longest, time.Since(start))
			}
			passes := 0
			for _, k := range keepers {
				passes += k.end(t)
			}
			if after := mountLine(t, m.dir); after != before {
				t.Errorf("mount table: before %q, after %q", before, after)
			}
			s := m.stats()
			t.Logf("%d right answers; a successor served after at most %v; %d handles were there at the last death; %d nodes", passes, longest, s.Resumed, s.Nodes)
			if s.Resumed < files*readers*2 {
				t.Errorf("%d handles were taken over, want at least %d", s.Resumed, files*readers*2)
			}
		})
	}
}

func mountLine(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == dir {
			return line
		}
	}
	t.Fatalf("%s is not mounted", dir)
	return ""
}

// keeper is a client that holds handles and mappings of files and uses them, and new
// ones, without a pause.
type keeper struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

type keepSpec struct {
	Sums    map[string]string // of the files, by name
	Handles int               // of each file
}

func (m *mounted) keep(content map[string][]byte, handles int) *keeper {
	m.t.Helper()
	spec := keepSpec{Sums: make(map[string]string), Handles: handles}
	for name, data := range content {
		spec.Sums[name] = sumOf(data)
	}
	k := &keeper{cmd: m.command("keep", m.dir, encodeArg(spec))}
	k.cmd.Stderr = os.Stderr
	in, err := k.cmd.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	k.in, k.out = in, bufio.NewReader(out)
	if err := k.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { k.cmd.Process.Kill(); k.cmd.Wait() })
	if line, err := k.out.ReadString('\n'); err != nil || line != "ready\n" {
		m.t.Fatalf("keeper: %q, %v", line, err)
	}
	return k
}

// end stops a client and returns how often it found all as it should be.
func (k *keeper) end(t *testing.T) int {
	t.Helper()
	k.in.Close()
	b, err := io.ReadAll(k.out)
	var r result
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err == nil {
		err = k.cmd.Wait()
	}
	if err != nil {
		t.Fatalf("keeper: %v: %s", err, b)
	}
	if r.Failed != 0 || r.Bad != 0 || r.Good == 0 {
		t.Errorf("keeper: %d good, %d failed, %d wrong: %s", r.Good, r.Failed, r.Bad, r.Text)
	}
	return r.Good
}

// keep runs until its stdin ends.
func keep(dir, arg string) result {
	spec, err := decodeArg[keepSpec](arg)
	if err != nil {
		return failed("arguments", err)
	}
	type held struct {
		fd   int
		data []byte
		path string
		sum  string
	}
	var all []held
	for name, sum := range spec.Sums {
		p := filepath.Join(dir, name)
		for range spec.Handles {
			fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return failed("open", err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(fd, &st); err != nil {
				return failed("fstat", err)
			}
			data, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
			if err != nil {
				return failed("mmap", err)
			}
			all = append(all, held{fd, data, p, sum})
		}
	}
	os.Stdout.WriteString("ready\n")
	end := make(chan struct{})
	go func() { io.Copy(io.Discard, os.Stdin); close(end) }()
	var out result
	count := func(what string, h held, r result) {
		switch {
		case r.Errno != 0:
			out.Failed++
			out.Text += fmt.Sprintf("%s %s: %v; ", what, h.path, r)
		case r.SHA256 == h.sum:
			out.Good++
		default:
			out.Bad++
			out.Text += fmt.Sprintf("%s %s: %v; ", what, h.path, r)
		}
	}
	for {
		for _, h := range all {
			select {
			case <-end:
				return out
			default:
			}
			// Out of the page cache, so that somebody has to serve.
			unix.Madvise(h.data, unix.MADV_DONTNEED)
			unix.Fadvise(h.fd, 0, 0, unix.FADV_DONTNEED)
			if _, err := unix.Seek(h.fd, 0, io.SeekStart); err != nil {
				count("seek", h, failed("seek", err))
				continue
			}
			count("read", h, readFD(h.fd))
			unix.Fadvise(h.fd, 0, 0, unix.FADV_DONTNEED)
			count("touch", h, mappedSum(h.data))
			count("open", h, readAll(h.path, unix.O_RDONLY))
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != len(spec.Sums) {
				out.Failed++
				out.Text += fmt.Sprintf("list: %d, %v; ", len(entries), err)
			}
		}
	}
}

// mappedSum hashes a mapping; a SIGBUS is an error.
func mappedSum(data []byte) (r result) {
	debug.SetPanicOnFault(true)
	defer func() {
		if v := recover(); v != nil {
			r = result{Call: "touch", Errno: syscall.EFAULT, Text: fmt.Sprint(v)}
		}
	}()
	return measured(data)
}
