package fs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// tierOf returns how a file is or would be served.
func (m *mounted) tierOf(name string) string {
	m.t.Helper()
	r := m.run("getxattr", m.at(name), xattrTier)
	if r.Errno != 0 {
		m.t.Fatalf("%s of %s: %v", xattrTier, name, r)
	}
	return r.Text
}

// sees checks that a holder reads and maps the approved bytes.
func (h *holder) sees(data []byte) {
	h.t.Helper()
	for _, how := range []string{"read", "touch", "evict", "touch", "read"} {
		if r := h.ask(how); r.Errno != 0 || how != "evict" && r.SHA256 != sumOf(data) {
			h.t.Errorf("%s: %v (%s), want the approved bytes", how, r, r.Text)
		}
	}
}

// sealing mounts on the tiers that seal.
func sealing(t *testing.T, run func(t *testing.T, choose func(*serverSpec))) {
	t.Helper()
	ran := 0
	for _, tier := range tiers {
		if tier.tier == TierSealed {
			ran++
			t.Run(tier.name, func(t *testing.T) { run(t, func(s *serverSpec) { tier.change(t, s) }) })
		}
	}
	if ran == 0 {
		t.Fatal("no tier seals")
	}
}

// The kernel serves one inode in one way at a time: a second open in another way
// would be EIO. So the tier of an open file stays, whatever becomes of its
// private file.
func TestTierStaysWhileOpen(t *testing.T) {
	sealing(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose, func(s *serverSpec) { s.PrivateBytes = 2 * victimSize })
		data := make(map[string][]byte)
		for i, name := range []string{"a.bin", "b.bin", "c.bin", "d.bin"} {
			data[name] = sample(byte(i+1), victimSize)
			m.write(name, data[name])
			m.grant(name, data[name])
		}
		opened := func(name, tier string) *holder {
			t.Helper()
			before := m.stats().Granted
			h := m.hold(name)
			if got := m.tierOf(name); got != tier {
				t.Errorf("%s is in tier %s, want %s", name, got, tier)
			}
			if now := m.stats().Granted; now != before+1 {
				t.Fatalf("%d opens of %s were granted, want 1", now-before, name)
			}
			// Records come behind the opens that they are of.
			var last Record
			for until := time.Now().Add(10 * time.Second); last.Tier != tier && time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
				last = m.lastRecord(name, Granted)
			}
			if last.Tier != tier {
				t.Errorf("record of %s: tier %s, want %s", name, last.Tier, tier)
			}
			return h
		}
		a1, b1 := opened("a.bin", TierSealed), opened("b.bin", TierSealed)
		c1 := opened("c.bin", TierBlocks) // there is no room
		b1.quit()
		c2 := opened("c.bin", TierBlocks) // although there is room now
		d1 := opened("d.bin", TierSealed) // in the room of b
		b2 := opened("b.bin", TierBlocks) // its private file is gone
		a2 := opened("a.bin", TierSealed) // its own is not
		for h, name := range map[*holder]string{a1: "a.bin", a2: "a.bin", b2: "b.bin", c1: "c.bin", c2: "c.bin", d1: "d.bin"} {
			h.sees(data[name])
		}
		if s := m.stats(); s.Private != 2 || s.PrivateBytes != 2*victimSize || s.Errors != 0 {
			t.Errorf("stats: %+v", s)
		}
		// The private file of an open file is dropped, its content approved again.
		m.revoke(capstore.KindFile, hashpipe.SumBytes(data["d.bin"]).Claim())
		m.await(func(s Stats) bool { return s.Held > 0 })
		m.refuses("d.bin", syscall.EACCES, ReasonRevoked)
		d1.sees(data["d.bin"]) // POSIX: who has it open keeps it
		// a: revoke one of two capabilities, in the middle of everything.
		first := m.grant("a.bin", data["a.bin"], func(w *terms) { w.sequence = 7 })
		m.grant("a.bin", data["a.bin"], func(w *terms) { w.sequence = 8 })
		m.revoke(capstore.KindCapability, capabilityID(t, m, first))
		a3 := opened("a.bin", TierSealed)
		for _, h := range []*holder{a1, a2, a3} {
			h.sees(data["a.bin"])
		}
	})
}

// An open file whose last capability is revoked, and that another one approves
// right after, opens again while the old handle is there: its private file has
// been dropped, and the kernel takes no other for the inode.
func TestRevokedAndGrantedWhileOpen(t *testing.T) {
	sealing(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		data := sample(3, victimSize)
		m.write("model.bin", data)
		first := m.grant("model.bin", data)
		h := m.hold("model.bin")
		m.revoke(capstore.KindCapability, capabilityID(t, m, first))
		m.refuses("model.bin", syscall.EACCES, ReasonRevoked)
		m.await(func(s Stats) bool { return s.Held > 0 })
		m.grant("model.bin", data, func(w *terms) { w.sequence = 2 })
		for range 3 {
			other := m.hold("model.bin")
			other.sees(data)
			h.sees(data)
			other.quit()
		}
		h.quit()
		m.await(func(s Stats) bool { return s.Handles == 0 })
		m.hold("model.bin").sees(data)
		if s := m.stats(); s.Private != 1 {
			t.Errorf("%d private files, want 1: %+v", s.Private, s)
		}
	})
}

// Whoever can write the source and have files measured takes the room of private
// files for the time of a measurement, and not for good.
func TestRefusedFilesKeepNoRoom(t *testing.T) {
	sealing(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose, func(s *serverSpec) { s.PrivateBytes = victimSize + 5 })
		data := sample(3, victimSize)
		m.write("model.bin", data)
		m.grant("model.bin", data)
		m.reads("model.bin", data)
		if got := m.tierOf("model.bin"); got != TierSealed {
			t.Fatalf("tier %s", got)
		}
		m.write("planted", sample(4, victimSize)) // of an approved size
		if r := m.run("read-as-nobody", m.at("planted")); r.Errno == 0 {
			t.Fatal(r)
		}
		m.reads("model.bin", data)
		if got := m.tierOf("model.bin"); got != TierSealed {
			t.Errorf("after a refused file of the same size: tier %s, want %s: %+v", got, TierSealed, m.stats())
		}
	})
}

// Many readers of more files than there is room for: private files come and go,
// and nobody is ever refused.
func TestBudgetChurn(t *testing.T) {
	const files = 6
	sealing(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose, func(s *serverSpec) { s.PrivateBytes = 2*victimSize + 5 })
		for i := range files {
			name := fmt.Sprintf("model-%d.bin", i)
			data := sample(byte(i+1), victimSize)
			p := m.write("one/"+name, data)
			if err := os.MkdirAll(filepath.Join(m.src, "two"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(p, filepath.Join(m.src, "two", name)); err != nil {
				t.Fatal(err)
			}
			m.grant(name, data)
		}
		var readers sync.WaitGroup
		for i := range files {
			readers.Go(func() {
				data := sample(byte(i+1), victimSize)
				for _, dir := range []string{"one", "two"} {
					s := m.attack("storm", m.at(fmt.Sprintf("%s/model-%d.bin", dir, i)), sumOf(data), fmt.Sprint(raceTime(t).Seconds()/8), "2")
					if s.Bad+s.Refused+s.Late != 0 || s.Text != "" || s.Good == 0 {
						t.Errorf("%d of %s: %+v, want approved bytes alone", i, dir, s)
					}
				}
			})
		}
		readers.Wait()
		s := m.stats()
		t.Logf("%+v", s)
		if s.Private > 2 || s.PrivateBytes > 2*victimSize+5 || s.Unsealed == 0 {
			t.Errorf("stats: %+v, want at most two private files, and contents without one", s)
		}
	})
}

// Private files are dropped and made again under open handles, in a loop. A reader
// is refused while its file is revoked; never does the kernel get two ways to
// serve one inode, which it answers with EIO.
func TestRevokeChurn(t *testing.T) {
	sealing(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose, func(s *serverSpec) { s.PrivateBytes = 2*victimSize + 5 })
		stop := make(chan struct{})
		var all, revokers sync.WaitGroup
		for i := range 3 {
			name := fmt.Sprintf("model-%d.bin", i)
			data := sample(byte(i+1), victimSize)
			m.write(name, data)
			s := subject(t, name, data)
			grant := func(n int64) []byte {
				e := signed(t, m.mint, []capstore.Subject{s}, func(w *terms) { w.sequence = n })
				m.do(request{Op: "admit", Envelope: e})
				return e
			}
			first := grant(1)
			revokers.Go(func() {
				for n := int64(2); !pause(stop, 30*time.Millisecond); n++ {
					m.revoke(capstore.KindCapability, capabilityID(t, m, first))
					pause(stop, 40*time.Millisecond)
					first = grant(n)
				}
			})
			all.Go(func() {
				// On a busy machine one round may meet nothing.
				good, refused := 0, 0
				for round := 0; round < 10 && (good == 0 || refused == 0 || m.stats().Held == 0); round++ {
					s := m.attack("storm", m.at(name), sumOf(data), fmt.Sprint(raceTime(t).Seconds()/3), "3")
					if s.Bad+s.LateSealed != 0 || s.Text != "" {
						t.Errorf("%s: %+v", name, s)
					}
					good, refused = good+s.Good, refused+s.Refused
				}
				if good == 0 || refused == 0 {
					t.Errorf("%s: %d reads approved and %d opens refused, want both", name, good, refused)
				}
			})
		}
		all.Wait()
		close(stop)
		revokers.Wait()
		s := m.stats()
		t.Logf("%+v", s)
		if s.Held == 0 || s.Hashed <= 3 {
			t.Errorf("no private file was dropped and made again: %+v", s)
		}
	})
}

// smallDisk mounts a file system of a few MiB at dir.
func smallDisk(tb testing.TB, dir string, mib int64, mkfs ...string) {
	tb.Helper()
	image := filepath.Join(tempDir(tb), "disk.img")
	f, err := os.Create(image)
	if err != nil {
		tb.Fatal(err)
	}
	err = f.Truncate(mib << 20)
	f.Close()
	if err != nil {
		tb.Fatal(err)
	}
	for _, args := range [][]string{append(mkfs, image), {"mount", "-o", "loop", image, dir}, {"chmod", "755", dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			tb.Fatalf("%q: %v: %s (apt-get install e2fsprogs xfsprogs mount)", args, err, out)
		}
	}
	tb.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			syscall.Unmount(dir, syscall.MNT_DETACH)
			tb.Errorf("unmounting %s: %v", dir, err)
		}
	})
}

// fillDisk leaves about so many bytes free.
func fillDisk(t *testing.T, dir string, free int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for off := int64(0); ; off += int64(len(block)) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		if int64(st.Bavail)*st.Bsize <= free {
			break
		}
		if _, err := f.WriteAt(block, off); err == unix.ENOSPC || strings.Contains(fmt.Sprint(err), "no space") {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil && free > 0 {
		t.Fatal(err)
	}
}

// A disk that has no room for the private file costs the tier, and not the open.
func TestFullDisk(t *testing.T) {
	for name, c := range map[string]struct {
		seal  Seal
		mib   int64
		mkfs  []string
		large int // bytes
		free  int64
	}{
		"copy on ext4": {SealCopy, 32, []string{"mke2fs", "-q", "-t", "ext4", "-m", "0"}, 6 << 20, 2 << 20},
		// Nothing can be reserved there: the disk is full in the middle.
		"copy on ext4 without extents": {SealCopy, 32, []string{"mke2fs", "-q", "-t", "ext4", "-O", "^extent,^64bit", "-m", "0"}, 6 << 20, 2 << 20},
		"copy on ext2":                 {SealCopy, 128, []string{"mke2fs", "-q", "-t", "ext2", "-m", "0"}, treeFrom, 16 << 20},
		"reflink on xfs":               {SealReflink, 320, []string{"mkfs.xfs", "-q", "-m", "reflink=1"}, 6 << 20, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m := mountEmpty(t, func(s *serverSpec) {
				smallDisk(t, s.Source, c.mib, c.mkfs...)
				s.Seal, s.SealFrom, s.PrivateBytes = c.seal, 1, 1<<40
			})
			small, large := sample(1, 64<<10), sample(2, c.large)
			m.write("small.bin", small)
			m.write("large.bin", large)
			m.grant("small.bin", small)
			m.grant("large.bin", large)
			fillDisk(t, m.src, c.free)
			m.reads("large.bin", large)
			m.hold("large.bin").sees(large)
			m.reads("small.bin", small)
			tier := m.tierOf("large.bin")
			t.Logf("tier %s, %+v", tier, m.stats())
			if c.seal == SealCopy && tier != TierBlocks {
				t.Errorf("a copy of %d bytes is in tier %s on a disk with %d bytes left", c.large, tier, c.free)
			}
			if s := m.stats(); s.Errors != 0 || (tier == TierBlocks) != (s.Unsealed > 0) {
				t.Errorf("stats: %+v", s)
			}
		})
	}
}
