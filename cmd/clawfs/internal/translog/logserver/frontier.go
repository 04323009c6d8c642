package logserver

import (
	merkle "golang.org/x/mod/sumdb/tlog"

	"github.com/openclaw/clawfs/verifier/tlog"
)

// frontier is the root of a growing tree of RFC 6962 in as many hashes as its size
// has binary ones: the roots of its complete subtrees, the largest first.
type frontier struct {
	size     int64
	complete []tlog.Hash
}

// add adds a leaf hash.
func (f *frontier) add(h tlog.Hash) {
	for n := f.size; n&1 == 1; n >>= 1 {
		last := len(f.complete) - 1
		h = merkle.NodeHash(f.complete[last], h)
		f.complete = f.complete[:last]
	}
	f.complete = append(f.complete, h)
	f.size++
}

// root returns the root of the tree, which has at least one leaf.
func (f *frontier) root() tlog.Hash {
	h := f.complete[len(f.complete)-1]
	for i := len(f.complete) - 2; i >= 0; i-- {
		h = merkle.NodeHash(f.complete[i], h)
	}
	return h
}
