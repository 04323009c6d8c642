package fs

import (
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// mapsOnly maps a file, closes it, as loaders do, and stays.
func mapsOnly(args []string) sight {
	fd, err := unix.Open(args[0], unix.O_RDONLY, 0)
	if err != nil {
		return sight{Text: err.Error()}
	}
	var st unix.Stat_t
	unix.Fstat(fd, &st)
	data, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return sight{Text: err.Error()}
	}
	touch(data)
	unix.Close(fd)
	os.Stdout.Write([]byte("ready\n"))
	select {}
}

func (m *mounted) mapsOnly(name string) {
	m.t.Helper()
	c := attacker("maponly", m.at(name))
	out, err := c.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	if n, _ := out.Read(make([]byte, 6)); n != 6 {
		m.t.Fatal("the client did not map the file")
	}
}

// Of a revoked sealed file, that somebody has it mapped and closed is told.
func TestHeldByMappingAlone(t *testing.T) {
	sealing(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		data := sample(3, 2*hashpipe.UnitSize)
		m.write("model.bin", data)
		m.grant("model.bin", data)
		m.mapsOnly("model.bin")
		m.await(func(s Stats) bool { return s.Handles == 0 })
		m.revoke(capstore.KindFile, hashpipe.SumBytes(data).Claim())
		if r := m.lastRecord("model.bin", Held); r.Reason != ReasonRevoked || r.Tier != TierSealed || r.Next == "" {
			t.Errorf("record: %+v", r)
		}
		if s := m.stats(); s.Held != 1 || s.PrivateBytes != int64(len(data)) {
			t.Errorf("a mapping holds the revoked file, and the mount does not count it: %+v", s)
		}
	})
}

// What is mapped and closed takes its room on the disk, and in the budget.
func TestBudgetHoldsAgainstMappings(t *testing.T) {
	m := mountEmpty(t, func(s *serverSpec) {
		smallDisk(t, s.Source, 256, "mke2fs", "-q", "-t", "ext4")
		s.Seal, s.SealFrom, s.PrivateBytes = SealCopy, 1, 4<<20
	})
	free := func() int64 {
		unix.Sync()
		var st unix.Statfs_t
		if err := unix.Statfs(m.src, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Bavail) * st.Bsize
	}
	data := sample(3, 2<<20)
	p := m.write("model.bin", data)
	m.grant("model.bin", data)
	before := free()
	for range 20 {
		m.mapsOnly("model.bin")
		now := time.Now()
		if err := os.Chtimes(p, now, now); err != nil {
			t.Fatal(err)
		}
	}
	if took := before - free(); took > 5<<20 {
		t.Errorf("private files take %d bytes of the disk, want at most the budget of 4 MiB: %+v", took, m.stats())
	}
}
