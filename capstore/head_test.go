package capstore

import (
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
)

// The hashes of the chain are those of the format, computed here by another way.
func TestHeadHashes(t *testing.T) {
	var k rowKey
	for i := range k.id {
		k.id[i] = byte(i + 1)
	}
	id := fmt.Sprintf("%x", k.id[:])
	h := firstHead(k)
	want := sha256.Sum256(fmt.Appendf(nil, "14:clawfs-head/v2,%d:%s,", len(id), id))
	if h.n != 0 || h.hash.String() != fmt.Sprintf("%x", want) {
		t.Errorf("hash(0) = %s of fact %d, want %x", h.hash, h.n, want)
	}
	for i := range uint64(3) {
		f := fact{kind: RecordList, at: int64(1000 + i), id: digestOf(fmt.Sprint("id", i)), envelope: digestOf("envelope"), entry: entry{signer: digestOf("signer")}}
		next, content := h.follow(f)
		body := f.body()
		want = sha256.Sum256(fmt.Appendf(nil, "14:clawfs-head/v2,32:%s,%d:%s,", want[:], len(body), body))
		if next.n != i+1 || next.at != f.at || next.hash.String() != fmt.Sprintf("%x", want) {
			t.Errorf("hash(%d) = %s at %d, want %x", next.n, next.hash, next.at, want)
		}
		if string(content) != string(body)+string(want[:]) {
			t.Errorf("row %d is %x, want the fact and its hash", next.n, content)
		}
		h = next
	}
}

func TestHeadIs(t *testing.T) {
	a, b := digestOf("a"), digestOf("b")
	for _, x := range []struct {
		one, two head
		want     bool
	}{
		{head{n: 1, hash: a}, head{n: 1, hash: a, at: 9}, true},
		{head{n: 1, hash: a}, head{n: 1, hash: b}, false},
		{head{n: 1, hash: a}, head{n: 2, hash: a}, false},
		{head{n: 1, hash: a}, head{n: 2, hash: b}, false},
		{head{n: 1, hash: a}, head{n: 1, hash: hashpipe.Digest{}}, false},
	} {
		if got := x.one.is(x.two); got != x.want {
			t.Errorf("%+v is %+v: %v, want %v", x.one, x.two, got, x.want)
		}
	}
}
