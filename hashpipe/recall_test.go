package hashpipe

import (
	"bytes"
	"testing"
)

// A tree can be made again from its hashes, whoever has kept them, and only the tree
// of the claimed content.
func TestRecallTree(t *testing.T) {
	for _, size := range []int{0, 1, BlockSize, BlockSize + 1, UnitSize, UnitSize + 1, 130*UnitSize + 7} {
		data := bytes.Repeat([]byte("recalled "), size/9+1)[:size]
		got, err := Measure(t.Context(), bytes.NewReader(data), nil)
		if err != nil {
			t.Fatal(err)
		}
		tree := got.Tree()
		hashes := tree.Hashes()
		again, err := RecallTree(int64(size), hashes, tree.Claim())
		if err != nil || again.Claim() != tree.Claim() || again.Size() != int64(size) || again.Units() != tree.Units() {
			t.Errorf("%d bytes: RecallTree = %v, %v, want the same tree", size, again, err)
			continue
		}
		for unit := range again.Units() {
			off := unit * UnitSize
			part := data[off:min(off+UnitSize, int64(size))]
			if err := again.VerifyUnit(unit, part); err != nil {
				t.Errorf("%d bytes, unit %d: %v", size, unit, err)
			}
		}
		other, err := Measure(t.Context(), bytes.NewReader(append([]byte("x"), data...)), nil)
		if err != nil {
			t.Fatal(err)
		}
		refuse := func(what string, size int64, hashes []byte, claim VerityDigest) {
			t.Helper()
			if tree, err := RecallTree(size, hashes, claim); err == nil || tree != nil {
				t.Errorf("%d bytes, %s: RecallTree = %v, %v, want an error", size, what, tree, err)
			}
		}
		refuse("claim of another content", int64(size), hashes, other.Tree().Claim())
		refuse("no claim", int64(size), hashes, VerityDigest{})
		refuse("another size", int64(size)+1, hashes, tree.Claim())
		refuse("negative size", -1, hashes, tree.Claim())
		refuse("a hash more", int64(size), append(bytes.Clone(hashes), make([]byte, hashSize)...), tree.Claim())
		for at := range hashes {
			if at%37 == 0 {
				bent := bytes.Clone(hashes)
				bent[at] ^= 1
				refuse("a bit", int64(size), bent, tree.Claim())
			}
		}
	}
	if h := (*Tree)(nil).Hashes(); h != nil {
		t.Errorf("hashes of no tree: %x", h)
	}
}
