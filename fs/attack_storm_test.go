package fs

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// contentStorm changes the very inode in every way, then puts the approved bytes
// back, until stop. It returns how many changes it made.
func contentStorm(v *victim, stop <-chan struct{}) (changes int) {
	random := rand.New(rand.NewPCG(5, 6))
	fd, evil := int(v.f.Fd()), aligned(v.evil)
	other, err := os.CreateTemp(filepath.Dir(v.p), "other")
	v.must(err)
	defer other.Close()
	_, err = other.Write(v.evil)
	v.must(err)
	for {
		for range 1 + random.IntN(6) {
			changes++
			block := int64(random.IntN(victimSize/4096)) * 4096
			switch random.IntN(11) {
			case 0:
				v.f.WriteAt(v.evil[block:block+1], block)
			case 1:
				v.mapping[block] ^= 0xff
			case 2:
				v.direct.WriteAt(evil[block:block+4096], block)
			case 3:
				v.f.Truncate(block)
				v.f.Truncate(victimSize)
			case 4:
				v.f.Truncate(victimSize + block)
			case 5:
				unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, block, 4096)
			case 6:
				unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096)
			case 7:
				unix.Fallocate(fd, unix.FALLOC_FL_INSERT_RANGE, 0, 4096)
			case 8:
				unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, block, 4096)
			case 9: // where blocks can be shared
				unix.IoctlFileCloneRange(fd, &unix.FileCloneRange{Src_fd: int64(other.Fd()), Src_offset: uint64(block), Src_length: 4096, Dest_offset: uint64(block)})
			case 10:
				var offs []int64
				for range 16 {
					offs = append(offs, int64(random.IntN(victimSize/4096))*4096)
				}
				if wait, err := asyncWrites(int(v.direct.Fd()), evil, offs, 4096); err == nil {
					wait()
				}
			}
		}
		if random.IntN(2) == 0 {
			unix.Msync(v.mapping, unix.MS_ASYNC)
		}
		pause(stop, time.Duration(random.IntN(3))*time.Millisecond)
		v.f.Truncate(victimSize)
		v.f.WriteAt(v.good, 0)
		if pause(stop, time.Duration(random.IntN(30))*time.Millisecond) {
			return changes
		}
	}
}

// silentStorm flips bytes through dirty pages and back, which the file's times do
// not show, and sets the times now and then, so that the file is measured again.
func silentStorm(v *victim, stop <-chan struct{}) (changes int) {
	random := rand.New(rand.NewPCG(9, 10))
	for {
		v.touch()
		for until := time.Now().Add(time.Duration(10+random.IntN(30)) * time.Millisecond); time.Now().Before(until); {
			changes++
			block := random.IntN(victimSize/4096) * 4096
			v.mapping[block] ^= 0xff
			pause(stop, time.Duration(random.IntN(500))*time.Microsecond)
			v.mapping[block] ^= 0xff
			pause(stop, time.Duration(random.IntN(500))*time.Microsecond)
		}
		// Long enough for a measurement, sometimes.
		if pause(stop, time.Duration(random.IntN(50))*time.Millisecond) {
			return changes
		}
	}
}

// nameStorm changes what the name leads to in every way, until stop.
func nameStorm(v *victim, stop <-chan struct{}) (changes int) {
	random := rand.New(rand.NewPCG(7, 8))
	dir := filepath.Dir(v.p)
	aside := v.p + ".aside"
	other := filepath.Join(filepath.Dir(dir), "twin")
	v.must(os.MkdirAll(other, 0o755))
	lax := sample(77, victimSize) // approved, under another name
	v.m.grant("lax.bin", lax)
	v.must(os.WriteFile(filepath.Join(filepath.Dir(dir), "lax.bin"), lax, 0o644))
	v.must(os.WriteFile(filepath.Join(other, filepath.Base(v.p)), v.evil, 0o644))
	exchange := func(a, b string) { unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE) }
	for {
		changes++
		switch random.IntN(9) {
		case 0:
			os.WriteFile(aside, v.evil, 0o644)
			os.Rename(aside, v.p)
		case 1:
			os.WriteFile(aside, v.evil, 0o644)
			exchange(aside, v.p)
		case 2:
			for range 20 {
				exchange(dir, other)
			}
		case 3:
			os.Remove(v.p)
			os.WriteFile(v.p, v.evil, 0o644)
		case 4:
			os.Remove(v.p)
			unix.Mkfifo(v.p, 0o666)
		case 5:
			os.Remove(v.p)
			os.Symlink("../lax.bin", v.p)
		case 6:
			os.Remove(aside)
			os.Symlink("../../../../../../../../etc/passwd", aside)
			for range 20 {
				exchange(aside, v.p)
			}
		case 7:
			os.Remove(v.p)
			os.Link(filepath.Join(filepath.Dir(dir), "lax.bin"), v.p)
		case 8:
			os.Remove(aside)
			os.Rename(dir, dir+".was")
			os.Symlink(filepath.Base(other), dir)
			pause(stop, time.Millisecond)
			os.Remove(dir)
			os.Rename(dir+".was", dir)
		}
		pause(stop, time.Duration(random.IntN(3))*time.Millisecond)
		os.RemoveAll(aside)
		os.WriteFile(aside, v.good, 0o644)
		os.Rename(aside, v.p)
		if pause(stop, time.Duration(random.IntN(30))*time.Millisecond) {
			return changes
		}
	}
}

// The promise itself, on every tier: writers attack without a pause while readers
// open, read, map and drop the pages. No reader sees a byte that nobody approved;
// and who has a file open whose inode nobody writes, or that is sealed, sees no
// error either.
func TestStorm(t *testing.T) {
	for name, attack := range map[string]func(*victim, <-chan struct{}) int{"content": contentStorm, "silent": silentStorm, "name": nameStorm} {
		t.Run(name, func(t *testing.T) {
			everyTier(t, func(t *testing.T, choose func(*serverSpec)) {
				m := mountEmpty(t, choose)
				sealed := m.seals()
				v := newVictim(t, m, "d/model.bin", 9)
				var writer sync.WaitGroup
				stop := make(chan struct{})
				changes := 0
				writer.Go(func() { changes = attack(v, stop) })
				seconds := strconv.FormatFloat(raceTime(t).Seconds()/3, 'f', 3, 64)
				var s sight
				// A slow machine opens a few times in a run.
				for try := 0; try < 10 && s.Bad == 0 && (s.Good == 0 || s.Refused+s.Late == 0 || sealed && s.Sealed == 0); try++ {
					s.add(m.attack("storm", m.at("d/model.bin"), sumOf(v.good), seconds, "4"))
				}
				close(stop)
				writer.Wait()
				t.Logf("%d changes; %d opens (%d sealed) and %d reads approved, %d opens refused, %d reads failed, %d wrong", changes, s.Opened, s.Sealed, s.Good, s.Refused, s.Late, s.Bad)
				if s.Bad != 0 {
					t.Errorf("readers saw bytes that nobody approved %d times, %d times in a sealed file", s.Bad, s.BadSealed)
				}
				if s.Text != "" {
					t.Errorf("unexpected outcome: %s", s.Text)
				}
				// A file that changes while it is measured is not sealed.
				if s.LateSealed != 0 || s.Late != 0 && name == "name" {
					t.Errorf("%d reads of an open file failed, %d of a sealed one, want none", s.Late, s.LateSealed)
				}
				if sealed != (s.Sealed > 0) {
					t.Errorf("%d opens were sealed", s.Sealed)
				}
				if s.Good == 0 || s.Refused+s.Late == 0 || changes < 10 {
					t.Errorf("the race proved nothing: %+v, %d changes", s, changes)
				}
				// When the writer stops and the bytes are right, the file opens again.
				v.touch()
				m.reads("d/model.bin", v.good)
			})
		})
	}
}

// The same for a content that is measured as a tree, on all cores. Of tier "blocks"
// see TestWriterAgainstFill.
func TestStormOnLargeFile(t *testing.T) {
	const size = treeFrom + 4097
	good := sample(64, size)
	sealing(t, func(t *testing.T, choose func(*serverSpec)) {
		m := mountEmpty(t, choose)
		p := m.write("model.bin", good)
		m.grant("model.bin", good)
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		mapping, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(mapping)
		stop := make(chan struct{})
		var writer sync.WaitGroup
		changes := 0
		writer.Go(func() {
			random := rand.New(rand.NewPCG(3, 4))
			for {
				// Long enough for a measurement, sometimes.
				quiet := pause(stop, time.Duration(random.IntN(600))*time.Millisecond)
				at := random.IntN(size)
				mapping[at] ^= 0xff
				changes++
				pause(stop, time.Duration(random.IntN(300))*time.Millisecond)
				mapping[at] ^= 0xff
				if err := os.Chtimes(p, time.Now(), time.Now()); err != nil || quiet {
					return
				}
			}
		})
		var s sight
		for try := 0; try < 10 && s.Bad == 0 && (s.Good == 0 || s.Refused+s.Late == 0 || s.Sealed == 0); try++ {
			s.add(m.attack("storm", m.at("model.bin"), sumOf(good), strconv.FormatFloat(raceTime(t).Seconds()/3, 'f', 3, 64), "2"))
		}
		close(stop)
		writer.Wait()
		t.Logf("%d changes; %+v; %+v", changes, s, m.stats())
		if s.Bad != 0 || s.LateSealed != 0 || s.Text != "" {
			t.Errorf("readers saw %+v", s)
		}
		if s.Good == 0 || s.Refused+s.Late == 0 || s.Sealed == 0 {
			t.Errorf("the race proved nothing: %+v", s)
		}
	})
}
