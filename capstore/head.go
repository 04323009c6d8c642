package capstore

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// A store remembers, in order, every record that it acknowledged. Row log/<n> is
// fact n (see fact.go) and ends in the hash of the chain up to it,
//
//	hash(0) = SHA-256 of the netstrings "clawfs-head/v2", the store's id in hex
//	hash(n) = SHA-256 of the netstrings "clawfs-head/v2", the 32 bytes of
//	          hash(n-1), the fact without its hash
//
// Badger opens an emptied or older copy of itself without a word. So the head, n
// and hash(n), also stands outside of the store, in memory/store-head, written
// after each commit and before the acknowledgement. At Open the rows have to
// contain the head; they may be ahead of it by what a crash cut off between the
// two writes. A copy of both directories that is put back together
// is noticed only by who has a later head (see storehead.go).

const headFormat = "clawfs-head/v2"

// rebuildNext is what a person can do about a store that does not open.
const rebuildNext = "next: clawfs store rebuild, or clawfs store restore with the newest backup"

// head is a position in the chain of acknowledged facts.
type head struct {
	n    uint64
	hash hashpipe.Digest
	at   int64 // seconds since 1970 at which fact n was acknowledged; 0: there is none
}

func firstHead(k rowKey) head {
	return head{hash: hashpipe.SumBytes(netstring(netstring(nil, headFormat), k.name())).Claim()}
}

// follow returns the head after one more fact, and the content of its log row.
func (h head) follow(f fact) (head, []byte) {
	body := f.body()
	next := head{h.n + 1, h.chain(body), f.at}
	return next, appendDigest(body, next.hash)
}

func (h head) chain(body []byte) hashpipe.Digest {
	b := netstring(make([]byte, 0, 64+len(body)), headFormat)
	hash := h.hash.Bytes()
	b = netstring(b, string(hash[:]))
	return hashpipe.SumBytes(netstring(b, string(body))).Claim()
}

// add reads the log row of the fact that follows h.
func (h head) add(k interface {
	open(row) (uint64, []byte, error)
}, r row) (head, fact, error) {
	sequence, content, err := k.open(r)
	if err != nil {
		return h, fact{}, fmt.Errorf("%w: row %s: %w; %s", ErrDamaged, r.key, err, rebuildNext)
	}
	f, body, hash, err := readFact(content)
	if err != nil {
		return h, fact{}, fmt.Errorf("%w: row %s: %w; %s", ErrDamaged, r.key, err, rebuildNext)
	}
	next := head{h.n + 1, h.chain(body), f.at}
	if next.hash != hash || sequence != next.n || f.at < h.at || !bytes.Equal(r.key, logKey(next.n)) {
		return h, fact{}, fmt.Errorf("%w: row %s does not follow fact %d; %s", ErrDamaged, r.key, h.n, rebuildNext)
	}
	return next, f, nil
}

// claimed is the position after a row, by the row's own word. Who checks the rows
// after it relies on somebody who checks this one.
func (h head) claimed(r row) head {
	next := head{n: h.n + 1}
	if len(r.value) >= rowHeader+9+32 {
		c := cutter{b: r.value[rowHeader:]}
		c.take(1)
		next.at = int64(c.uint64())
		next.hash = hashpipe.ClaimedDigest([32]byte(r.value[len(r.value)-32:]))
	}
	return next
}

// is reports whether both are the same position.
func (h head) is(o head) bool { return h.n == o.n && h.hash == o.hash }

func (h head) time() string {
	if h.at == 0 {
		return "never"
	}
	return time.Unix(h.at, 0).UTC().Format(time.RFC3339)
}

func logKey(n uint64) []byte { return fmt.Appendf(nil, "%s%016x", prefixLog, n) }

// readHead reads memory/store-head: headFormat, the store's id, n, hash(n), the
// time of fact n in seconds since 1970, and the checksum. found is false where
// there is none.
func readHead(memory string) (id string, h head, found bool, err error) {
	path := filepath.Join(memory, HeadName)
	lines, found, err := readLines(path, headFormat, 4)
	if err != nil || !found {
		return "", head{}, false, err
	}
	if h.n, err = strconv.ParseUint(lines[1], 10, 63); err == nil {
		if h.hash, err = hashpipe.ParseDigest(lines[2]); err == nil {
			h.at, err = strconv.ParseInt(lines[3], 10, 64)
		}
	}
	if err != nil {
		return "", head{}, false, fmt.Errorf("%w: %s: %w", ErrDamaged, path, err)
	}
	return lines[0], h, true, nil
}

// Begun reports whether the store that memory belongs to ever had a fact: a
// capability, a revocation or a list. It says so, too, if nobody can know.
func Begun(memory string) bool {
	_, h, found, err := readHead(memory)
	return err != nil || !found || h.n > 0
}

// writeHead returns after the head is on stable storage.
func writeHead(memory string, k rowKey, h head) error {
	return writeLines(filepath.Join(memory, HeadName), headFormat,
		k.name(), strconv.FormatUint(h.n, 10), h.hash.String(), strconv.FormatInt(h.at, 10))
}
