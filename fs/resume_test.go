package fs

import (
	"bufio"
	"bytes"
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

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
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

// opening is a client in an open that is not answered yet.
func (m *mounted) opening(args ...string) (cmd *exec.Cmd, out *bytes.Buffer) {
	m.t.Helper()
	out = new(bytes.Buffer)
	cmd = m.command(args...)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { cmd.Process.Kill() })
	for m.stats().Verifying == 0 {
		time.Sleep(time.Millisecond)
	}
	return cmd, out
}

// An OPEN that waits for the hash of a large file is answered by the successor, also
// if the first of them dies as well.
func TestResumeAnswersOpenInFlight(t *testing.T) {
	for tier, change := range map[string]func(*serverSpec){
		TierBlocks: func(*serverSpec) {},
		TierSealed: func(s *serverSpec) { s.Seal = SealCopy },
	} {
		t.Run(tier, func(t *testing.T) {
			m := mountEmpty(t, handing, change, func(s *serverSpec) { s.Workers = 1 })
			data := sample(7, 64<<20)
			m.write("large.bin", data)
			m.spec.Admit = [][]byte{m.grant("large.bin", data)}
			session := m.session()
			cmd, out := m.opening("read", m.at("large.bin"))
			for range 2 {
				m.kill()
				m.resume(session)
				for m.stats().Verifying == 0 && m.stats().Granted == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			var r result
			if err := json.Unmarshal(out.Bytes(), &r); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if r.Errno != 0 || r.SHA256 != sumOf(data) {
				t.Errorf("the open that waited: %v, want %d bytes of %.16s", r, len(data), sumOf(data))
			}
			m.reads("large.bin", data)
		})
	}
}

// A client in an open whose server was replaced can be killed at once: the interrupt
// belongs to the request that was sent again.
func TestResumeClientCanBeKilled(t *testing.T) {
	m := mountEmpty(t, handing)
	e := m.huge("huge.bin", 1<<40)
	m.spec.Admit = [][]byte{e}
	session := m.session()
	cmd, _ := m.opening("read", m.at("huge.bin"))
	m.kill()
	m.resume(session)
	for m.stats().Verifying == 0 {
		time.Sleep(time.Millisecond)
	}
	cmd.Process.Kill()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("a client that was killed stays in its open")
	}
	m.do(request{Op: "abandon"})
}

// huge puts a sparse file into the source that fits a capability by size, and takes
// very long to measure.
func (m *mounted) huge(name string, size int64) []byte {
	m.t.Helper()
	p := m.write(name, nil)
	if err := os.Truncate(p, size); err != nil {
		m.t.Fatal(err)
	}
	s := subject(m.t, name, []byte("other bytes"))
	s.Size = size
	e := signed(m.t, m.mint, []capstore.Subject{s})
	m.do(request{Op: "admit", Envelope: e})
	return e
}

// What was revoked while nobody served is not served again: handles in tier blocks
// fail, of what the kernel serves itself it is told, and nobody gets a new one.
func TestResumeDecidesAgain(t *testing.T) {
	data := sample(3, 2<<20)
	other := sample(4, 2<<20)
	for name, c := range map[string]struct {
		tier   string
		change func(t *testing.T, m *mounted) // while nobody serves
		reads  bool
		record Decision
		opens  syscall.Errno
	}{
		"granted":                 {TierBlocks, func(*testing.T, *mounted) {}, true, "", 0},
		"revoked":                 {TierBlocks, revokeMeanwhile(data), false, Cut, syscall.EACCES},
		"revoked, kernel serves":  {TierSealed, revokeMeanwhile(data), true, Held, syscall.EACCES},
		"unknown":                 {TierBlocks, func(_ *testing.T, m *mounted) { m.spec.Admit = nil }, false, Cut, syscall.EACCES},
		"unknown, kernel serves":  {TierSealed, func(_ *testing.T, m *mounted) { m.spec.Admit = nil }, true, Held, syscall.EACCES},
		"overwritten":             {TierBlocks, func(t *testing.T, m *mounted) { writeSource(t, m, other) }, false, Failed, syscall.EACCES},
		"overwritten, kernel has": {TierSealed, func(t *testing.T, m *mounted) { writeSource(t, m, other) }, true, "", syscall.EACCES},
		"removed": {TierBlocks, func(t *testing.T, m *mounted) {
			if err := os.Remove(filepath.Join(m.src, "m.bin")); err != nil {
				t.Fatal(err)
			}
		}, false, Failed, syscall.ENOENT},
		"replaced by the same bytes": {TierBlocks, func(t *testing.T, m *mounted) {
			m.write("new", data)
			if err := os.Rename(filepath.Join(m.src, "new"), filepath.Join(m.src, "m.bin")); err != nil {
				t.Fatal(err)
			}
		}, true, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := mountEmpty(t, handing, func(s *serverSpec) {
				if c.tier == TierSealed {
					s.Seal = SealCopy
				}
			})
			m.write("m.bin", data)
			m.spec.Admit = [][]byte{m.grant("m.bin", data)}
			session := m.session()
			h := m.hold("m.bin")
			if got := m.lastRecord("m.bin", Granted).Tier; got != c.tier {
				t.Fatalf("tier %s, want %s", got, c.tier)
			}
			m.kill()
			c.change(t, m)
			m.resume(session)
			if s := m.stats(); s.Resumed != 1 || s.Handles != 1 {
				t.Fatalf("%d handles taken over, %d there, want 1", s.Resumed, s.Handles)
			}
			h.ask("evict")
			r := h.ask("read")
			if c.reads && (r.Errno != 0 || r.SHA256 != sumOf(data)) || !c.reads && r.Errno != syscall.EIO {
				t.Errorf("reading on: %v", r)
			}
			if c.record != "" {
				if rec := m.lastRecord("m.bin", c.record); rec.Detail == "" {
					t.Errorf("record without a reason: %+v", rec)
				}
			}
			r = m.run("read", m.at("m.bin"))
			if r.Errno != c.opens || c.opens == 0 && r.SHA256 != sumOf(data) {
				t.Errorf("opening anew: %v, want errno %d", r, c.opens)
			}
			h.quit()
		})
	}
}

func revokeMeanwhile(data []byte) func(*testing.T, *mounted) {
	return func(t *testing.T, m *mounted) {
		m.spec.Revoke = [][]byte{revocation(t, m.rev, capstore.KindFile, hashpipe.SumBytes(data).Claim())}
	}
}

func writeSource(t *testing.T, m *mounted, data []byte) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(m.src, "m.bin"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
}

// A session that is strange is refused whole, and then nobody serves: whoever waited
// gets an error, and no byte.
func TestResumeRefusesStrangeSessions(t *testing.T) {
	data := sample(5, 2<<20)
	for name, change := range map[string]func(t *testing.T, s *Session, mem []byte){
		"magic":          func(_ *testing.T, _ *Session, mem []byte) { mem[0]++ },
		"INIT":           func(_ *testing.T, _ *Session, mem []byte) { mem[atInit+44]++ },
		"INIT's length":  func(_ *testing.T, _ *Session, mem []byte) { mem[atInitLength+1] = 0xff },
		"wire":           func(_ *testing.T, _ *Session, mem []byte) { mem[atWire]++ },
		"class":          func(_ *testing.T, _ *Session, mem []byte) { mem[journalHead] = 60 },
		"length":         func(_ *testing.T, _ *Session, mem []byte) { mem[journalHead+14] = 1 },
		"torn body":      func(_ *testing.T, _ *Session, mem []byte) { mem[journalHead+slotHead]++ },
		"owners":         func(_ *testing.T, _ *Session, mem []byte) { mem[atIncarnation+3] = 1 },
		"hash of a unit": func(t *testing.T, _ *Session, mem []byte) { reseal(t, mem, entryBound, 16+64, 1) },
		"digest of tree": func(t *testing.T, _ *Session, mem []byte) { reseal(t, mem, entryBound, 16+32, 1) },
		"size":           func(t *testing.T, _ *Session, mem []byte) { reseal(t, mem, entryBound, 8, 1) },
		"handle's node":  func(t *testing.T, _ *Session, mem []byte) { reseal(t, mem, entryHandle, 8, 1) },
		"handle's tier":  func(t *testing.T, _ *Session, mem []byte) { reseal(t, mem, entryHandle, 6*8+1, 1) },
		"node's path":    func(t *testing.T, _ *Session, mem []byte) { reseal(t, mem, entryNode, 16*8, 'm'^'/') },
		"no journal": func(t *testing.T, s *Session, _ []byte) {
			f, err := os.CreateTemp(t.TempDir(), "")
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Truncate(journalSize); err != nil {
				t.Fatal(err)
			}
			s.Journal = f
		},
		"no device": func(t *testing.T, s *Session, _ []byte) {
			f, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			s.Device = f
		},
		"another device": func(t *testing.T, s *Session, _ []byte) {
			f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0) // which nobody has mounted
			if err != nil {
				t.Fatal(err)
			}
			s.Device = f
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := mountEmpty(t, handing)
			m.write("m.bin", data)
			m.spec.Admit = [][]byte{m.grant("m.bin", data)}
			session := m.session()
			h := m.hold("m.bin")
			m.kill()
			mem, err := unix.Mmap(int(session.Journal.Fd()), 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Munmap(mem)
			given := session
			change(t, &given, mem)
			spec := m.spec
			spec.Resume = true
			m.gone = true
			m.start(spec, given.Device, given.Journal)
			if r := m.receive(); r.Err == "" {
				t.Fatal("a successor serves")
			} else {
				t.Log(r.Err)
			}
			session.Close()
			h.ask("evict")
			if r := h.ask("read"); r.Errno != syscall.ENOTCONN && r.Errno != syscall.ECONNABORTED && r.Errno != syscall.EIO {
				t.Errorf("reading on: %v, want an error", r)
			}
		})
	}
}

// reseal changes bits of a byte of the first entry of a kind, and makes its CRC right.
func reseal(t *testing.T, mem []byte, kind uint32, at int, change byte) {
	t.Helper()
	j := &journal{mem: mem}
	for s := slot(journalHead); j.u32(s) != 0; s += 1 << j.u32(s) {
		if j.u32(s+8) != kind || j.u32(s+4) == 0 {
			continue
		}
		body := mem[s+slotHead : s+slotHead+slot(j.u32(s+12))]
		body[at] ^= change
		j.half(s + 16).Store(checksum(kind, body))
		return
	}
	t.Fatalf("no entry of kind %d", kind)
}
