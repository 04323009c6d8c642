package fs

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// liar is a storage with one file, model.bin, that does not always return the
// same bytes, and never shows it in the file's attributes. It is a FUSE file
// system of its own, served by a child process: args are the mode, the mount
// point and the size. It ends when its stdin does. The other hostile children
// start here too: see attackers.
func liar(args []string) int {
	if attack, ok := attackers[args[0]]; ok {
		return show(attack(args[1:]))
	}
	size, err := strconv.Atoi(args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, "liar:", err)
		return 2
	}
	zero := time.Duration(0)
	root := &liarDir{file: &liarFile{mode: args[0], data: sample(50, size), born: time.Now().Add(-time.Hour)}}
	_, err = fusefs.Mount(args[1], root, &fusefs.Options{
		EntryTimeout: &zero, AttrTimeout: &zero,
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "liar", Name: "liar"},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "liar:", err)
		return 1
	}
	os.Stdout.Write([]byte("ready\n"))
	io.Copy(io.Discard, os.Stdin)
	syscall.Unmount(args[1], syscall.MNT_DETACH)
	return 0
}

type liarDir struct {
	fusefs.Inode
	file *liarFile
}

func (d *liarDir) OnAdd(ctx context.Context) {
	d.AddChild("model.bin", d.NewPersistentInode(ctx, d.file, fusefs.StableAttr{Mode: fuse.S_IFREG, Ino: 7}), true)
}

type liarFile struct {
	fusefs.Inode
	mode  string
	data  []byte
	born  time.Time
	reads atomic.Int64 // bytes asked for so far
	stats atomic.Int64
}

func (f *liarFile) Getattr(_ context.Context, _ fusefs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = 0o444, uint64(len(f.data))
	born := f.born
	if f.mode == "shifting" { // never twice in the same state
		born = born.Add(time.Duration(f.stats.Add(1)))
	}
	out.SetTimes(&born, &born, &born)
	return 0
}

func (f *liarFile) Open(context.Context, uint32) (fusefs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0 // nothing is cached: every read comes here
}

func (f *liarFile) Read(_ context.Context, _ fusefs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n := copy(dest, f.data[min(off, int64(len(f.data))):])
	dest = dest[:n]
	before := f.reads.Add(int64(n)) - int64(n)
	switch f.mode {
	case "second": // the truth once, for who measures
		if before >= int64(len(f.data)) && n > 0 {
			dest[n/2] ^= 1
		}
	case "sometimes":
		if n > 0 && rand.IntN(10) == 0 {
			dest[rand.IntN(n)] ^= 0x80
		}
	case "short":
		if n > 1 && rand.IntN(8) == 0 {
			dest = dest[:rand.IntN(n)]
		}
	case "broken": // when it has been read once
		if before >= int64(len(f.data)) && n > 0 {
			return nil, syscall.EIO
		}
	case "dead":
		return nil, syscall.EIO
	case "stall": // when it has been read once
		if before >= int64(len(f.data)) && n > 0 {
			time.Sleep(time.Hour)
		}
	case "sluggish": // when it has been read once
		if before >= int64(len(f.data)) && n > 0 {
			time.Sleep(4 * time.Second)
		}
	case "slow":
		time.Sleep(time.Hour)
	}
	return fuse.ReadResultData(dest), 0
}

// lyingSource starts a liar and returns where it is mounted. stop ends it,
// which lets go whoever waits for it.
func lyingSource(t *testing.T, mode string, size int) (dir string, stop func()) {
	t.Helper()
	needMounts(t)
	dir = filepath.Join(tempDir(t), "storage")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], mode, dir, strconv.Itoa(size))
	cmd.Env = append(os.Environ(), roleVariable+"=liar", quickExit)
	cmd.Stderr = os.Stderr
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
	stop = sync.OnceFunc(func() {
		in.Close()
		stuck := time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() })
		defer stuck.Stop()
		cmd.Wait()
		syscall.Unmount(dir, syscall.MNT_DETACH) // if it was killed
	})
	t.Cleanup(stop)
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatalf("the lying storage did not come up: %v", err)
	}
	return dir, stop
}

// Storage may return what it likes: a reader gets approved bytes or an error. A
// private file holds what was hashed, so what is sealed does not even fail; and
// storage whose blocks cannot be shared is served in tier "blocks".
func TestLyingStorage(t *testing.T) {
	const size = 3*hashpipe.UnitSize + 12345
	good := sample(50, size)
	everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
		for _, mode := range []string{"second", "sometimes", "short", "broken", "dead", "shifting"} {
			dir, _ := lyingSource(t, mode, size)
			copies := false
			m := mountEmpty(t, choose, func(s *serverSpec) {
				copies = s.Seal == SealCopy
				s.Private, s.Source = s.Source, dir
			})
			m.src = dir
			m.grant("model.bin", good)
			r := m.run("loop", m.at("model.bin"), sumOf(good), strconv.FormatFloat(raceTime(t).Seconds()/16, 'f', 3, 64))
			s := m.stats()
			t.Logf("%s: %d reads approved, %d refused or failed; %+v", mode, r.Good, r.Failed, s)
			if r.Bad != 0 {
				t.Errorf("%s: the reader saw bytes that nobody approved: %s", mode, r.Text)
			}
			if r.Text != "" {
				t.Errorf("%s: unexpected outcome: %s", mode, r.Text)
			}
			if r.Good+r.Failed == 0 {
				t.Errorf("%s: the reader did nothing", mode)
			}
			switch {
			case mode == "second" || mode == "broken":
				if copies && (r.Good == 0 || r.Failed != 0 || s.Private != 1) {
					t.Errorf("%s: the private file is not what was hashed: %d reads approved, %d failed, %+v", mode, r.Good, r.Failed, s)
				}
				if !copies && (r.Failed == 0 || s.Private != 0) {
					t.Errorf("%s: the storage is not read again: %d reads approved, %d failed, %+v", mode, r.Good, r.Failed, s)
				}
			case (mode == "shifting" || mode == "dead") && r.Good != 0:
				t.Errorf("%s: the file opened %d times", mode, r.Good)
			}
		}
	})
}

// Where the storage makes no unnamed files, the private ones cannot lie on it.
func TestStorageWithoutPrivateFiles(t *testing.T) {
	const size = 3*hashpipe.UnitSize + 12345
	for name, seal := range map[string]Seal{"copy": SealCopy, "reflink": SealReflink} {
		dir, _ := lyingSource(t, "honest", size)
		m := mountEmpty(t, func(s *serverSpec) { s.Source, s.Seal, s.SealFrom = dir, seal, 1 })
		m.src = dir
		good := sample(50, size)
		m.grant("model.bin", good)
		m.hold("model.bin").sees(good)
		if got := m.tierOf("model.bin"); got != TierBlocks {
			t.Errorf("%s: tier %s, want %s", name, got, TierBlocks)
		}
	}
}

// Storage that hangs holds up who opens, and neither the end of the opener nor
// the end of the mount.
func TestHangingStorage(t *testing.T) {
	dir, stop := lyingSource(t, "slow", 1<<20)
	m := mountEmpty(t, func(s *serverSpec) { s.Source = dir })
	m.src = dir
	m.grant("model.bin", sample(50, 1<<20))
	reader := m.command("read", m.at("model.bin"))
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	m.waitVerifying()
	other := m.command("read", m.at("model.bin"))
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	reader.Process.Kill()
	inTime(t, 2*time.Second, "a killed opener", func() { reader.Wait() })
	m.do(request{Op: "abandon"})
	inTime(t, 2*time.Second, "an opener of an abandoned mount", func() { other.Wait() })
	// A thread of the server waits for the storage in the kernel, where not even
	// SIGKILL ends it; the mount is gone all the same.
	if _, mounted := mountDevice(m.dir); mounted {
		t.Error("the mount is still there")
	}
	m.gone = true
	m.cmd.Process.Kill()
	stop()
}

// Neither does storage that hangs later hold up a killed reader.
//
// BUG: a lookup in storage that hangs cannot be killed before the storage answers
// or the mount is abandoned.
func TestStallingStorage(t *testing.T) {
	const size = 3 << 20
	for _, how := range []string{"read", "mmap-shared", "sendfile", "direct"} {
		dir, stop := lyingSource(t, "stall", size)
		m := mountEmpty(t, func(s *serverSpec) { s.Source = dir })
		m.src = dir
		m.grant("model.bin", sample(50, size))
		reader := m.command(how, m.at("model.bin"))
		if err := reader.Start(); err != nil {
			t.Fatal(err)
		}
		m.await(func(s Stats) bool { return s.Handles == 1 })
		time.Sleep(200 * time.Millisecond)
		reader.Process.Kill()
		inTime(t, 5*time.Second, "a killed reader: "+how, func() { reader.Wait() })
		m.do(request{Op: "abandon"})
		m.gone = true
		m.cmd.Process.Kill()
		stop()
	}
}

func inTime(t *testing.T, limit time.Duration, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("%s was not done within %v", what, limit)
	}
}

// A mount that is killed ends, although pages are to be dropped for one of which
// a READ waits for the storage.
func TestKilledBeforePagesAreDropped(t *testing.T) {
	const size = 3 << 20
	good, other := sample(50, size), sample(51, size)
	for _, what := range []string{"revoked", "end of audit mode"} {
		dir, stop := lyingSource(t, "sluggish", size)
		until := time.Now().Add(time.Second)
		m := mountEmpty(t, func(s *serverSpec) {
			if s.Source = dir; what != "revoked" {
				s.AuditUntil = until
			}
		})
		m.src = dir
		if what == "revoked" {
			m.grant("model.bin", good)
		} else {
			m.grant("model.bin", other)
		}
		reader := m.command("read", m.at("model.bin"))
		if err := reader.Start(); err != nil {
			t.Fatal(err)
		}
		m.await(func(s Stats) bool { return s.Handles == 1 })
		time.Sleep(200 * time.Millisecond)
		if what == "revoked" {
			m.revoke(capstore.KindFile, hashpipe.SumBytes(good).Claim())
		} else {
			time.Sleep(time.Until(until))
		}
		time.Sleep(10 * revocationPoll)
		m.gone = true
		m.cmd.Process.Kill()
		// Not before the storage has answered.
		inTime(t, 20*time.Second, "a killed mount process: "+what, func() { m.cmd.Wait() })
		inTime(t, 5*time.Second, "its reader", func() { reader.Wait() })
		stop()
	}
}
