package hashpipe

import (
	"bytes"
	"crypto/sha256"
	"testing"
)

func TestTwoLanesRun(t *testing.T) {
	if has := hasSHA2(t); twoLanes != has {
		t.Errorf("SHA instructions in /proc/cpuinfo: %v, two lanes: %v", has, twoLanes)
	}
}

// The path of a processor without SHA instructions.
func TestUnitsByOneLane(t *testing.T) {
	defer func(b bool) { twoLanes = b }(twoLanes)
	twoLanes = false
	var dst [BlockSize]byte
	if n := hashPairs(dst[:], content(UnitSize)); n != 0 || dst != [BlockSize]byte{} {
		t.Fatalf("hashPairs hashed %d bytes without the instructions", n)
	}
	testUnits(t)
}

func TestHashPairs(t *testing.T) {
	if !twoLanes {
		t.Log("no SHA instructions")
		return
	}
	blocks := map[string][]byte{
		"zeros":   make([]byte, BlockSize),
		"ones":    bytes.Repeat([]byte{0xff}, BlockSize),
		"pattern": content(BlockSize),
		"shifted": content(2 * BlockSize)[1 : BlockSize+1],
	}
	for _, bit := range []int{0, 7, 8*64 - 1, 8 * 64, 8*BlockSize - 8, 8*BlockSize - 1} {
		b := make([]byte, BlockSize)
		b[bit/8] = 1 << (bit % 8)
		blocks["bit "+string(rune('a'+len(blocks)))] = b
	}
	for nameA, a := range blocks {
		for nameB, b := range blocks {
			sumA, sumB := sha256.Sum256(a), sha256.Sum256(b)
			dst := bytes.Repeat([]byte{0xaa}, 5*hashSize)
			n := hashPairs(dst[hashSize:], append(append(bytes.Clone(a), b...), a[:BlockSize-1]...))
			want := bytes.Repeat([]byte{0xaa}, 5*hashSize)
			copy(want[hashSize:], append(sumA[:], sumB[:]...))
			if n != 2*BlockSize || !bytes.Equal(dst, want) {
				t.Errorf("hashPairs of %s and %s = %d, %x, want %d, %x", nameA, nameB, n, dst, 2*BlockSize, want)
			}
		}
	}
	for _, size := range []int{0, 1, BlockSize, 2*BlockSize - 1} {
		if n := hashPairs(nil, content(size)); n != 0 {
			t.Errorf("hashPairs of %d bytes hashed %d", size, n)
		}
	}
	// Both lanes over the same memory.
	var out [2 * hashSize]byte
	block := (*[BlockSize]byte)(content(BlockSize))
	sum2(&out, block, block)
	if want := sha256.Sum256(block[:]); [hashSize]byte(out[:hashSize]) != want || [hashSize]byte(out[hashSize:]) != want {
		t.Errorf("sum2 of one block twice = %x, want %x twice", out, want)
	}
}
