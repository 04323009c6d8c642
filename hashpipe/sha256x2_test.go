package hashpipe

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
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

// anyBlocks has blocks of all kinds, by name.
func anyBlocks() map[string][]byte {
	blocks := map[string][]byte{
		"zeros":   make([]byte, BlockSize),
		"ones":    bytes.Repeat([]byte{0xff}, BlockSize),
		"pattern": content(BlockSize),
		"shifted": content(BlockSize + 1)[1:],
	}
	for _, bit := range []int{0, 7, 8*chunkSize - 1, 8 * chunkSize, 8*BlockSize - 8, 8*BlockSize - 1} {
		b := make([]byte, BlockSize)
		b[bit/8] = 1 << (bit % 8)
		blocks[fmt.Sprint("bit ", bit)] = b
	}
	return blocks
}

// The hash of a block does not depend on its lane, nor on the other lane.
func TestHashPairs(t *testing.T) {
	if !twoLanes {
		t.Log("one lane")
		return
	}
	for nameA, a := range anyBlocks() {
		for nameB, b := range anyBlocks() {
			sumA, sumB := sha256.Sum256(a), sha256.Sum256(b)
			want := bytes.Repeat([]byte{0xaa}, 4*hashSize) // nothing else is written
			dst := bytes.Clone(want)
			copy(want[hashSize:], append(sumA[:], sumB[:]...))
			n := hashPairs(dst[hashSize:], append(append(bytes.Clone(a), b...), a[1:]...))
			if n != 2*BlockSize || !bytes.Equal(dst, want) {
				t.Errorf("hashPairs of %s and %s = %d, %x, want %d, %x", nameA, nameB, n, dst, 2*BlockSize, want)
			}
		}
	}
	for size, want := range map[int]int{0: 0, 1: 0, BlockSize: 0, 2*BlockSize - 1: 0, 2 * BlockSize: 2 * BlockSize, 5 * BlockSize: 4 * BlockSize, 6 * BlockSize: 6 * BlockSize} {
		if n := hashPairs(make([]byte, 6*hashSize), content(size)); n != want {
			t.Errorf("hashPairs of %d bytes hashed %d, want %d", size, n, want)
		}
	}
}

// A stream beside the blocks is the SHA-256 of all of them and of what follows.
func TestHashBoth(t *testing.T) {
	if !twoLanes {
		t.Log("one lane")
		return
	}
	for name, a := range anyBlocks() {
		for _, more := range []int{0, 1, 54, 55, 56, 63, 64, 119, 120, BlockSize - 9, BlockSize - 8, BlockSize - 1} {
			data := append(bytes.Repeat(a, 3), content(more)...)
			sum := sha256.Sum256(a)
			want := bytes.Repeat([]byte{0xaa}, 4*hashSize)
			dst := bytes.Clone(want)
			copy(want, bytes.Repeat(sum[:], 3))
			stream := fresh
			n := hashBoth(&stream, dst, data)
			if n != 3*BlockSize || !bytes.Equal(dst, want) {
				t.Errorf("hashBoth of %s and %d bytes = %d, %x, want %d, %x", name, more, n, dst, 3*BlockSize, want)
			}
			if got := stream.end(data[n:], int64(len(data))); got.measured != sha256.Sum256(data) {
				t.Errorf("stream of %s and %d bytes = %v, want %s", name, more, got, slowSum(data))
			}
		}
	}
}

// compress2 takes the chunks that both have, and reads no further.
func TestCompressUnequal(t *testing.T) {
	if !twoLanes {
		t.Log("one lane")
		return
	}
	a, b := content(5*chunkSize), content(9 * chunkSize)[4*chunkSize:]
	for n := range 5*chunkSize + 1 {
		whole := n / chunkSize * chunkSize
		want := [2]state{fresh, fresh}
		compress2(&want, a[:whole], b[:whole])
		got, swapped := [2]state{fresh, fresh}, [2]state{fresh, fresh}
		compress2(&got, a[:n], b)
		compress2(&swapped, b, a[:n])
		if got != want || swapped != [2]state{want[1], want[0]} {
			t.Errorf("compress2 of %d bytes = %x, lanes swapped %x, want %x", n, got, swapped, want)
		}
	}
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

func TestUnits(t *testing.T) {
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
