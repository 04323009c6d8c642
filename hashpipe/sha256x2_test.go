package hashpipe

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
)

// unitSizes has both sides of every edge: chunk, block, pair of blocks, unit.
var unitSizes = []int{
	0, 1, 64, BlockSize - 1, BlockSize, BlockSize + 1,
	2*BlockSize - 1, 2 * BlockSize, 2*BlockSize + 1,
	3*BlockSize - 1, 3 * BlockSize, 4 * BlockSize, 5*BlockSize + 63,
	UnitSize - 2*BlockSize, UnitSize - BlockSize, UnitSize - 1, UnitSize,
}

// slowUnit is unitHasher.sum by crypto/sha256.
func slowUnit(data []byte, whole bool) [32]byte {
	var level []byte
	for len(data) > 0 {
		block := make([]byte, 4096)
		n := copy(block, data)
		data = data[n:]
		s := sha256.Sum256(block)
		level = append(level, s[:]...)
	}
	if whole {
		return [32]byte(append(level, make([]byte, 32)...))
	}
	return sha256.Sum256(append(level, make([]byte, 4096-len(level))...))
}

// unitAgrees hashes data with a hasher that has hashed something else before.
func unitAgrees(t *testing.T, u *unitHasher, data []byte) {
	t.Helper()
	if got, want := u.sum(data, false), slowUnit(data, false); got != want {
		t.Errorf("unit of %d bytes = %x, want %x", len(data), got, want)
	}
	if len(data) == 0 || len(data) > BlockSize {
		return
	}
	if got, want := u.sum(data, true), slowUnit(data, true); got != want {
		t.Errorf("content of %d bytes = %x, want %x", len(data), got, want)
	}
}

// What sha256sum prints for 4096 zero bytes, in each place of a unit.
func TestUnitOfZeros(t *testing.T) {
	want, err := hex.DecodeString("ad7facb2586fc6e966c004d7d1d16b024f5805ff7cb47c7a85dabd8b48892ca7")
	if err != nil {
		t.Fatal(err)
	}
	u := &unitHasher{h: newHasher()}
	u.sum(make([]byte, UnitSize), false)
	if !bytes.Equal(u.block[:], bytes.Repeat(want, UnitSize/BlockSize)) {
		t.Errorf("hashes of blocks of zeros = %x, want %x in each place", u.block, want)
	}
}

func TestUnits(t *testing.T) { testUnits(t) }

func testUnits(t *testing.T) {
	u := &unitHasher{h: newHasher()}
	for _, size := range unitSizes {
		unitAgrees(t, u, content(size))
		unitAgrees(t, u, make([]byte, size))
		unitAgrees(t, u, bytes.Repeat([]byte{0xff}, size))
	}
	for shift := range 65 {
		unitAgrees(t, u, content(UnitSize)[shift:shift+3*BlockSize+7])
	}
	rng := rand.New(rand.NewPCG(2, 256))
	for range 100 {
		off := rng.IntN(UnitSize)
		unitAgrees(t, u, content(2 * UnitSize)[off:off+rng.IntN(20*BlockSize)])
	}
}

// Each block of a unit counts, and in its own place.
func TestUnitNoticesEachBlock(t *testing.T) {
	u := &unitHasher{h: newHasher()}
	data := bytes.Clone(content(UnitSize))
	want := u.sum(data, false)
	rng := rand.New(rand.NewPCG(3, 256))
	for off := 0; off < UnitSize; off += BlockSize {
		bit, at := byte(1)<<rng.IntN(8), off+rng.IntN(BlockSize)
		data[at] ^= bit
		if u.sum(data, false) == want {
			t.Errorf("a bit changed at byte %d and the hash of the unit did not", at)
		}
		data[at] ^= bit
	}
	for off := 0; off < UnitSize; off += 2 * BlockSize {
		a, b := data[off:off+BlockSize], data[off+BlockSize:off+2*BlockSize]
		swap(a, b)
		if u.sum(data, false) == want {
			t.Errorf("the blocks at %d changed places and the hash of the unit did not", off)
		}
		swap(a, b)
	}
	if u.sum(data, false) != want {
		t.Error("the same unit, another hash")
	}
}

func swap(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

// Reading a byte before or behind the data kills this test.
func TestUnitBetweenGuardPages(t *testing.T) {
	page := syscall.Getpagesize()
	mem, err := syscall.Mmap(-1, 0, UnitSize+2*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(mem)
	for _, guard := range [][]byte{mem[:page], mem[page+UnitSize:]} {
		if err := syscall.Mprotect(guard, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	mem = mem[page : page+UnitSize]
	copy(mem, content(UnitSize))
	u := &unitHasher{h: newHasher()}
	for _, size := range unitSizes {
		unitAgrees(t, u, mem[:size])
		unitAgrees(t, u, mem[UnitSize-size:])
	}
}

func TestUnitsAtOnce(t *testing.T) {
	data := content(UnitSize + 8*64)
	var wg sync.WaitGroup
	for i := range 8 {
		part := data[i*64 : i*64+UnitSize-i*BlockSize]
		want := slowUnit(part, false)
		wg.Go(func() {
			for range 20 {
				u := unitHashers.Get().(*unitHasher)
				if got := u.sum(part, false); got != want {
					t.Errorf("goroutine %d: unit = %x, want %x", i, got, want)
				}
				unitHashers.Put(u)
			}
		})
	}
	wg.Wait()
}

func FuzzUnit(f *testing.F) {
	for _, size := range []uint32{0, 1, BlockSize, 2 * BlockSize, 2*BlockSize + 1, 5 * BlockSize, UnitSize} {
		f.Add([]byte("clawfs"), size, uint8(1))
	}
	f.Fuzz(func(t *testing.T, piece []byte, size uint32, shift uint8) {
		if len(piece) == 0 {
			return
		}
		n := int(size%(UnitSize+1)) + int(shift)
		data := bytes.Repeat(piece, n/len(piece)+1)[shift:n]
		unitAgrees(t, &unitHasher{h: newHasher()}, data)
	})
}
