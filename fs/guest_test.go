//go:build verity

package fs

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// These tests run as root in a guest whose kernel has fs-verity and FUSE
// passthrough, on disks that they may damage: make test-verity.

type guestTier struct {
	name, variable, tier string
	how                  Seal
}

// guest are the ways to serve a content in tier "verity", and last the control:
// the same without fs-verity.
var guest = []guestTier{
	{"ext4 copy", "EXT4", TierVerity, SealCopy},
	{"btrfs copy", "BTRFS", TierVerity, SealCopy},
	{"btrfs reflink", "BTRFS", TierVerity, SealReflink},
	{"ext4 without", "PLAIN", TierSealed, SealCopy},
}

// onGuest runs a test on each of them. disk is the one below the private files,
// which holds each content once.
func onGuest(t *testing.T, test func(t *testing.T, tier, disk string, choose func(*serverSpec))) {
	t.Helper()
	for _, g := range guest {
		t.Run(g.name, func(t *testing.T) {
			disk, choose := g.choice(t)
			test(t, g.tier, disk, choose)
		})
	}
}

// choice reads "directory:disk" from the environment of the guest. A source that
// is copied lies elsewhere than its copies.
func (g guestTier) choice(t *testing.T) (disk string, choose func(*serverSpec)) {
	t.Helper()
	value := os.Getenv("CLAWFS_VERITY_" + g.variable)
	dir, disk, ok := strings.Cut(value, ":")
	if !ok {
		t.Fatalf("CLAWFS_VERITY_%s=%q, want directory:disk: make test-verity", g.variable, value)
	}
	if g.how == SealReflink {
		t.Setenv("TMPDIR", dir)
	}
	return disk, func(s *serverSpec) { s.Seal, s.SealFrom, s.Private = g.how, 1, dir }
}

// Every way of reading gives the approved bytes, the mount says the tier, and a
// write into the source does not show.
func TestGuestMountServes(t *testing.T) {
	onGuest(t, func(t *testing.T, tier, _ string, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		if r := m.ask(request{Op: "stats"}); r.Tier != tier || (r.Why == "") != (tier == TierVerity) {
			t.Errorf("the mount says tier %q (%s), want %q", r.Tier, r.Why, tier)
		}
		for name, size := range map[string]int{"one.bin": 1, "block.bin": hashpipe.BlockSize, "odd.bin": 2*hashpipe.UnitSize + 77} {
			good := sample(90, size)
			p := m.write(name, good)
			m.refuses(name, syscall.EACCES, ReasonNoCapability)
			m.grant(name, good)
			for _, how := range []string{"read", "direct", "pread", "mmap-shared", "mmap-private", "sendfile"} {
				if r := m.run(how, m.at(name)); r.Errno != 0 || r.SHA256 != sumOf(good) {
					t.Errorf("%s of %s: %v, want the approved bytes", how, name, r)
				}
			}
			if r := m.run("getxattr", m.at(name), xattrTier); r.Text != tier {
				t.Errorf("%s: tier %q, want %q", name, r.Text, tier)
			}
			if r := m.lastRecord(name, Granted); r.Tier != tier {
				t.Errorf("record of %s: tier %q, want %q", name, r.Tier, tier)
			}
			h := m.hold(name)
			overwrite(t, p, 0, []byte{good[0] ^ 1})
			for _, how := range []string{"read", "touch", "evict", "read", "touch"} {
				if r := h.ask(how); how != "evict" && r.SHA256 != sumOf(good) {
					t.Errorf("%s of %s after a write to the source: %v", how, name, r)
				}
			}
			m.refuses(name, syscall.EACCES, ReasonWrongBytes)
			h.quit()
		}
	})
}

func TestGuestMountMustWork(t *testing.T) {
	onGuest(t, func(t *testing.T, _, _ string, choose func(*serverSpec)) { mustWorkOn(t, choose) })
}

// A bit that changes on the disk below a private file reaches nobody: who has
// the file open, or opens it, gets EIO and SIGBUS. Without fs-verity it does
// reach them, which shows that the bit is where it hurts.
func TestGuestMountDamage(t *testing.T) {
	onGuest(t, func(t *testing.T, tier, disk string, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		const victim = hashpipe.UnitSize + 3*hashpipe.BlockSize
		good := sample(91, 2*hashpipe.UnitSize)
		m.write("model.bin", good)
		m.grant("model.bin", good)
		h := m.hold("model.bin")
		for _, how := range []string{"read", "touch", "evict"} {
			if r := h.ask(how); r.Errno != 0 {
				t.Fatalf("%s: %v", how, r)
			}
		}
		evictAll(t)
		flip(t, disk, good[victim:][:hashpipe.BlockSize])
		evictAll(t)
		want := func(what string, r result, errno syscall.Errno) {
			t.Helper()
			if tier == TierVerity && r.Errno != errno {
				t.Errorf("%s: %v, want %v", what, r, errno)
			}
			if tier != TierVerity && (r.Errno != 0 || r.SHA256 == sumOf(good)) {
				t.Fatalf("%s without fs-verity: %v, want the damaged bytes: the test shows nothing", what, r)
			}
		}
		want("read", h.ask("read"), syscall.EIO)
		want("touch", h.ask("touch"), syscall.EFAULT)
		h.quit()
		for how, errno := range map[string]syscall.Errno{"read": syscall.EIO, "mmap-shared": syscall.EFAULT} {
			want("a new "+how, m.run(how, m.at("model.bin")), errno)
		}
	})
}

// A capability whose fs-verity digest is of another content: the kernel would
// hold the file to what is there, so the mount serves it by itself and says why.
func TestGuestMountOtherDigest(t *testing.T) {
	onGuest(t, func(t *testing.T, tier, _ string, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		good := sample(92, hashpipe.UnitSize+1)
		m.write("model.bin", good)
		s := subject(t, "model.bin", good)
		s.Verity = subject(t, "model.bin", good[1:]).Verity
		m.do(request{Op: "admit", Envelope: signed(t, m.mint, []capstore.Subject{s})})
		m.reads("model.bin", good) // its SHA-256 is right
		if tier != TierVerity {
			return
		}
		if r := m.run("getxattr", m.at("model.bin"), xattrTier); r.Text != TierBlocks {
			t.Errorf("tier %q, want %q", r.Text, TierBlocks)
		}
		if r := m.run("getxattr", m.at("model.bin"), xattrWhy); !strings.Contains(r.Text, s.Verity.String()) {
			t.Errorf("%s does not name the digest that was expected: %s", xattrWhy, r.Text)
		}
	})
}

// TestCrash stops the machine while readers have private files open. That their
// blocks come back with the next mount is looked at from outside.
func TestCrash(t *testing.T) {
	for _, g := range guest {
		_, choose := g.choice(t)
		m := mountEmpty(t, choose)
		good := sample(93, 5<<20)
		m.write("model.bin", good)
		m.grant("model.bin", good)
		m.hold("model.bin")
		if r := m.lastRecord("model.bin", Granted); r.Tier != g.tier {
			t.Fatalf("%s: tier %q, want %q", g.name, r.Tier, g.tier)
		}
	}
	evictAll(t)
	fmt.Println("crash: now")
	time.Sleep(300 * time.Millisecond) // until the line is out
	t.Fatal(unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
}

func overwrite(t *testing.T, p string, off int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err == nil {
		defer f.Close()
		_, err = f.WriteAt(data, off)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// evictAll writes everything to the disks and drops what is in memory of it.
func evictAll(t *testing.T) {
	t.Helper()
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
}

// flip changes one bit of the one place of the disk that holds the block.
func flip(t *testing.T, disk string, block []byte) {
	t.Helper()
	d, err := os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	buf, err := unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS) // aligned
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(buf)
	found := 0
	for off := int64(0); ; {
		n, err := d.ReadAt(buf, off)
		for i := 0; i+len(block) <= n; i += len(block) {
			if !bytes.Equal(buf[i:i+len(block)], block) {
				continue
			}
			found++
			buf[i+1000] ^= 1
			if _, err := d.WriteAt(buf[i:i+len(block)], off+int64(i)); err != nil {
				t.Fatal(err)
			}
		}
		if off += int64(n); err != nil || n == 0 {
			break
		}
	}
	if found != 1 {
		t.Fatalf("%s: the block is there %d times, want once", disk, found)
	}
}
