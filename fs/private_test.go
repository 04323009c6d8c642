package fs

import (
	"os"
	"syscall"
	"testing"

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
