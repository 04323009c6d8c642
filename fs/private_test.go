package fs

import (
	"container/list"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// Every tier gives the approved bytes by every way of reading, says which it is,
// and shows nothing of what is written into the source afterwards.
func TestTierServes(t *testing.T) {
	for _, tier := range tiers {
		t.Run(tier.name, func(t *testing.T) {
			m := mountEmpty(t, func(s *serverSpec) { tier.change(t, s) })
			for name, size := range map[string]int{"one.bin": 1, "unit.bin": hashpipe.UnitSize, "odd.bin": 3*hashpipe.UnitSize + 77, "tree.bin": treeFrom + 4097} {
				good := sample(70, size)
				p := m.write(name, good)
				m.refuses(name, syscall.EACCES, ReasonNoCapability)
				m.grant(name, good)
				for _, how := range []string{"read", "direct", "pread", "mmap-shared", "mmap-private", "sendfile"} {
					if r := m.run(how, m.at(name)); r.Errno != 0 || r.SHA256 != sumOf(good) {
						t.Errorf("%s of %s: %v, want the approved bytes", how, name, r)
					}
				}
				if r := m.run("getxattr", m.at(name), xattrTier); r.Text != tier.tier {
					t.Errorf("%s: tier %q, want %q", name, r.Text, tier.tier)
				}
				if r := m.lastRecord(name, Granted); r.Tier != tier.tier {
					t.Errorf("record of %s: tier %q, want %q", name, r.Tier, tier.tier)
				}
				h := m.hold(name)
				f, err := os.OpenFile(p, os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteAt([]byte{good[0] ^ 1}, 0); err != nil {
					t.Fatal(err)
				}
				f.Close()
				for _, how := range []string{"read", "touch", "evict", "read", "touch"} {
					r := h.ask(how)
					if how != "evict" && r.SHA256 != sumOf(good) && (tier.tier != TierBlocks || r.Errno != syscall.EIO && r.Errno != syscall.EFAULT) {
						t.Errorf("%s of %s after a write to the source: %v", how, name, r)
					}
				}
				m.refuses(name, syscall.EACCES, ReasonWrongBytes)
				h.quit()
			}
		})
	}
}

// copies makes a mount serve private copies of all files.
func copies(s *serverSpec) {
	s.Seal, s.SealFrom = SealCopy, 1
}

// Where a clone or passthrough is impossible the mount says why, and serves in
// tier blocks.
func TestSealImpossible(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*serverSpec)
		why    string
	}{
		"off":              {func(*serverSpec) {}, "sealing is off"},
		"no reflink":       {func(s *serverSpec) { s.Private = onExt4(t); s.Seal, s.SealFrom = SealReflink, 1 }, "FICLONE"},
		"stacked":          {func(s *serverSpec) { s.Private = onOverlay(t); s.Seal, s.SealFrom = SealCopy, 1 }, "stacked"},
		"no unnamed files": {func(s *serverSpec) { s.Private = "/proc"; s.Seal, s.SealFrom = SealCopy, 1 }, "O_TMPFILE"},
	} {
		t.Run(name, func(t *testing.T) {
			m := mountEmpty(t, c.change)
			good := sample(71, 300_000)
			m.write("model.bin", good)
			m.grant("model.bin", good)
			m.reads("model.bin", good)
			r := m.ask(request{Op: "stats"})
			if r.Tier != TierBlocks || !strings.Contains(r.Why, c.why) {
				t.Errorf("tier %q because %q, want %s because of %q", r.Tier, r.Why, TierBlocks, c.why)
			}
			if r := m.lastRecord("model.bin", Granted); r.Tier != TierBlocks {
				t.Errorf("record: tier %q", r.Tier)
			}
		})
	}
}

// onExt4 returns a directory on a file system that shares no blocks.
func onExt4(t *testing.T) string {
	t.Helper()
	dir := tempDir(t)
	image := filepath.Join(tempDir(t), "ext4.img")
	for _, args := range [][]string{
		{"truncate", "-s", "1G", image},
		{"mkfs.ext4", "-q", "-F", "-m", "0", image},
		{"mount", "-o", "loop", image, dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s (apt-get install e2fsprogs mount)", args, err, out)
		}
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			syscall.Unmount(dir, syscall.MNT_DETACH)
			t.Errorf("unmounting: %v", err)
		}
	})
	return dir
}

// onOverlay returns a directory on an overlayfs, as in a container.
func onOverlay(t *testing.T) string {
	t.Helper()
	base, dir := onExt4(t), tempDir(t)
	for _, d := range []string{"lower", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	opts := "lowerdir=" + base + "/lower,upperdir=" + base + "/upper,workdir=" + base + "/work"
	if err := syscall.Mount("overlay", dir, "overlay", 0, opts); err != nil {
		t.Fatalf("overlay: %v (modprobe overlay)", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// The private files stay within their budget: the ones that nobody reads make
// room, the ones that are read do not, and what has no room is served in blocks.
func TestPrivateBudget(t *testing.T) {
	const size = 1 << 20
	m := mountEmpty(t, copies, func(s *serverSpec) { s.PrivateBytes = 2*size + size/2 })
	names := []string{"a.bin", "b.bin", "c.bin", "d.bin"}
	for i, name := range names {
		good := sample(byte(72+i), size)
		m.write(name, good)
		m.grant(name, good)
	}
	a, b := m.hold("a.bin"), m.hold("b.bin")
	c := m.hold("c.bin")
	for name, want := range map[string]string{"a.bin": TierSealed, "b.bin": TierSealed, "c.bin": TierBlocks} {
		if r := m.lastRecord(name, Granted); r.Tier != want {
			t.Errorf("%s: tier %q, want %q", name, r.Tier, want)
		}
	}
	if r := m.run("getxattr", m.at("c.bin"), xattrWhy); !strings.Contains(r.Text, "no room") {
		t.Errorf("%s does not say why c.bin is not sealed: %s", xattrWhy, r.Text)
	}
	if s := m.stats(); s.Private != 2 || s.PrivateBytes != 2*size || s.Unsealed != 1 {
		t.Errorf("stats: %+v, want two private files and one file without", s)
	}
	a.quit()
	m.reads("d.bin", sample(75, size))
	if r := m.lastRecord("d.bin", Granted); r.Tier != TierSealed {
		t.Errorf("d.bin: tier %q although a.bin made room", r.Tier)
	}
	for h, seed := range map[*holder]byte{b: 73, c: 74} {
		for _, how := range []string{"read", "touch"} {
			if r := h.ask(how); r.SHA256 != sumOf(sample(seed, size)) {
				t.Errorf("%s of a file that was open all the time: %v", how, r)
			}
		}
	}
	m.reads("a.bin", sample(72, size)) // its private file is gone
	if s := m.stats(); s.PrivateBytes > 2*size+size/2 {
		t.Errorf("%d bytes in private files, more than the budget", s.PrivateBytes)
	}
}

// A file for which there was no room gets its private file once there is.
func TestSealedOnceThereIsRoom(t *testing.T) {
	const size = 1 << 20
	m := mountEmpty(t, copies, func(s *serverSpec) { s.PrivateBytes = size + size/2 })
	first, second := sample(72, size), sample(73, size)
	for name, good := range map[string][]byte{"a.bin": first, "b.bin": second} {
		old(t, m.write(name, good))
		m.grant(name, good)
	}
	a, b := m.hold("a.bin"), m.hold("b.bin")
	if r := m.lastRecord("b.bin", Granted); r.Tier != TierBlocks {
		t.Fatalf("b.bin: tier %q although a.bin fills the budget", r.Tier)
	}
	before := m.stats().Hashed
	m.reads("b.bin", second)
	if n := m.stats().Hashed - before; n != 0 {
		t.Errorf("%d files measured again although there is no room", n)
	}
	a.quit()
	m.revoke(capstore.KindFile, hashpipe.SumBytes(first).Claim())
	m.await(func(s Stats) bool { return s.PrivateBytes == 0 })
	m.reads("b.bin", second) // of an inode that is open in tier blocks
	if r := b.ask("read"); r.SHA256 != sumOf(second) {
		t.Error(r)
	}
	b.quit()
	m.await(func(s Stats) bool { return s.Handles == 0 })
	m.reads("b.bin", second)
	if r := m.lastRecord("b.bin", Granted); r.Tier != TierSealed {
		t.Errorf("b.bin: tier %q although there is room", r.Tier)
	}
	if n := m.stats().Hashed - before; n != 1 {
		t.Errorf("%d files measured again, want one", n)
	}
}

// What was sealed in advance and nobody has asked for keeps no room from a file
// that found none while it was being sealed.
func TestUnaskedMakesRoom(t *testing.T) {
	v := &vault{budget: 3, most: 2, recent: list.New()}
	add := func(size int64) *private {
		p := &private{size: size}
		p.place = v.recent.PushFront(p)
		v.used += size
		return p
	}
	asked := add(1)
	if v.vacant(3) || !v.vacant(2) {
		t.Error("3 bytes fit beside one that is asked for, or 2 do not")
	}
	v.demote(add(2))
	if v.vacant(3) || !v.vacant(2) {
		t.Error("3 bytes fit beside one that is asked for, or 2 do not in the place of those nobody has asked for")
	}
	v.recent.MoveToBack(asked.place)
	if v.vacant(1) {
		t.Error("a file that somebody has asked for made room for another")
	}
}

// A full file system under the private files refuses nothing.
func TestPrivateDiskFull(t *testing.T) {
	small := onExt4(t)
	fill, err := os.Create(filepath.Join(small, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	var st syscall.Statfs_t
	if err := syscall.Statfs(small, &st); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Fallocate(int(fill.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-(8<<20)); err != nil {
		t.Fatal(err)
	}
	m := mountEmpty(t, copies, func(s *serverSpec) { s.Private, s.PrivateBytes = small, 1<<40 })
	good := sample(76, 20<<20)
	m.write("model.bin", good)
	m.grant("model.bin", good)
	m.reads("model.bin", good)
	if r := m.lastRecord("model.bin", Granted); r.Tier != TierBlocks {
		t.Errorf("tier %q, want blocks", r.Tier)
	}
	if s := m.stats(); s.Unsealed != 1 || s.Private != 0 || s.PrivateBytes != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// What the kernel serves is not taken back, and the audit says so; nobody gets it
// anew, and it is let go with its last reader.
func TestRevokedWhileSealed(t *testing.T) {
	m := mountEmpty(t, copies)
	good := sample(77, 3*hashpipe.UnitSize)
	m.write("model.bin", good)
	m.grant("model.bin", good)
	h := m.hold("model.bin")
	m.revoke(capstore.KindFile, hashpipe.SumBytes(good).Claim())
	m.refuses("model.bin", syscall.EACCES, ReasonRevoked)
	r := m.lastRecord("model.bin", Held)
	if r.Tier != TierSealed || r.Reason != ReasonRevoked || r.PID == 0 || r.Next == "" {
		t.Errorf("record: %+v", r)
	}
	for _, how := range []string{"read", "touch"} {
		if r := h.ask(how); r.SHA256 != sumOf(good) {
			t.Errorf("%s through what was open before: %v", how, r)
		}
	}
	h.quit()
	m.await(func(s Stats) bool { return s.Handles == 0 && s.PrivateBytes == 0 })
	if s := m.stats(); s.Held != 1 || s.Revoked != 0 || s.Private != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// A content of one inode under two names has one private file.
func TestSealedOnceForHardLinks(t *testing.T) {
	m := mountEmpty(t, copies)
	good := sample(78, 300_000)
	p := m.write("a/model.bin", good)
	if err := os.Mkdir(filepath.Join(m.src, "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(p, filepath.Join(m.src, "b/model.bin")); err != nil {
		t.Fatal(err)
	}
	old(t, p)
	m.grant("model.bin", good)
	h := m.hold("a/model.bin")
	m.reads("b/model.bin", good)
	if s := m.stats(); s.Private != 1 || s.Hashed != 1 {
		t.Errorf("stats: %+v, want one private file", s)
	}
	if r := h.ask("read"); r.SHA256 != sumOf(good) {
		t.Error(r)
	}
}

// What a killed mount process left a name is removed at the next start, and
// nothing else is.
func TestPrivateNamesSwept(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{relinkPrefix + "A": 0o600, relinkPrefix + "B": 0o644, "clawfs-private": 0o600} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	v, err := newVault(Config{Seal: SealCopy, Private: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer v.end()
	for name, want := range map[string]bool{relinkPrefix + "A": false, relinkPrefix + "B": true, "clawfs-private": true} {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
}

// A directory for private files that is gone costs the tier, and not the mount.
func TestPrivateDirectoryGone(t *testing.T) {
	m := mountEmpty(t, copies, func(s *serverSpec) { s.Private = "/nowhere/private" })
	good := sample(79, 300_000)
	m.write("model.bin", good)
	m.grant("model.bin", good)
	m.reads("model.bin", good)
	if r := m.ask(request{Op: "stats"}); r.Tier != TierBlocks || !strings.Contains(r.Why, "/nowhere/private") {
		t.Errorf("tier %q because %q", r.Tier, r.Why)
	}
	if r := m.run("getxattr", m.at("model.bin"), xattrWhy); !strings.Contains(r.Text, "/nowhere/private") {
		t.Errorf("%s does not say why: %s", xattrWhy, r.Text)
	}
}

// What is mapped and was let go keeps its descriptor, and counts among those that
// there may be.
func TestMappedFilesCount(t *testing.T) {
	p := filepath.Join(t.TempDir(), "private")
	if err := os.WriteFile(p, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	ours, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	v := noVault(t)
	v.most, v.budget, v.used, v.why = 1, 1<<30, 1, ""
	v.mapped = []*private{{file: ours, size: 1, gone: true}}
	if _, ok := v.spare(sealFrom); ok || v.room(1) || v.vacant(1) {
		t.Error("there is room beside a file that somebody reads")
	}
	reader.Close()
	if !v.room(1) || len(v.mapped) != 0 {
		t.Errorf("no room after the last reader; %d files are left", len(v.mapped))
	}
	v.end()
}
