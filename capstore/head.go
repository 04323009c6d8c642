package capstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/openclaw/clawfs/hashpipe"
)

// A store remembers, in order, every capability and revocation that it
// acknowledged. Row log/<n> names fact n and the hash of the chain up to it,
//
//	hash(0) = SHA-256 of netstring "clawfs-head/v1"
//	hash(n) = SHA-256 of the netstrings "clawfs-head/v1", hash(n-1), the kind,
//	          the SHA-256 of the payload, the SHA-256 of the envelope
//
// (digests in hex). Badger opens an emptied or older copy of itself without a
// word. So the head, n and hash(n), also stands in a file outside Badger,
// written after each commit and before the acknowledgement. At Open the rows
// have to contain the head; they may be ahead of it by what a crash cut off
// between the two writes.
//
// The file stands in the same directory: putting back an older copy of the
// whole directory is not noticed.

const headFormat = "clawfs-head/v1"

// head is a position in the chain of acknowledged facts.
type head struct {
	n    uint64
	hash hashpipe.Digest
}

func firstHead() head {
	return head{0, hashpipe.SumBytes(netstring(nil, headFormat)).Claim()}
}

// entry is the value of a log row.
type entry struct {
	Kind     string          `json:"kind"`
	ID       hashpipe.Digest `json:"id"`       // of the payload
	Envelope hashpipe.Digest `json:"envelope"` // of the envelope's bytes
	Head     hashpipe.Digest `json:"head"`     // hash(n)
}

// follow returns the head after one more fact, and its log row.
func (h head) follow(kind string, id, envelope hashpipe.Digest) (head, entry) {
	b := netstring(nil, headFormat)
	b = netstring(b, h.hash.String())
	b = netstring(b, kind)
	b = netstring(b, id.String())
	b = netstring(b, envelope.String())
	next := head{h.n + 1, hashpipe.SumBytes(b).Claim()}
	return next, entry{Kind: kind, ID: id, Envelope: envelope, Head: next.hash}
}

func logKey(n uint64) []byte { return fmt.Appendf(nil, "%s%016x", prefixLog, n) }

// readLog walks the log rows in order and returns their entries.
func readLog(rows []row) (head, []entry, error) {
	at := firstHead()
	entries := make([]entry, 0, len(rows))
	for _, r := range rows {
		var e entry
		if err := json.Unmarshal(r.value, &e, json.RejectUnknownMembers(true)); err != nil {
			return head{}, nil, fmt.Errorf("%w: row %s: %v", ErrDamaged, r.key, err)
		}
		next, want := at.follow(e.Kind, e.ID, e.Envelope)
		if e != want || !bytes.Equal(r.key, logKey(next.n)) {
			return head{}, nil, fmt.Errorf("%w: row %s does not follow fact %d", ErrDamaged, r.key, at.n)
		}
		at = next
		entries = append(entries, e)
	}
	return at, entries, nil
}

// contains reports whether the chain of entries passes through h.
func contains(entries []entry, h head) bool {
	if h.n == 0 {
		return h == firstHead()
	}
	return h.n <= uint64(len(entries)) && entries[h.n-1].Head == h.hash
}

// readHead returns the head file's content; found is false where there is none.
func readHead(dir string) (h head, found bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "head"))
	if errors.Is(err, fs.ErrNotExist) {
		return head{}, false, nil
	}
	if err != nil {
		return head{}, false, err
	}
	lines := bytes.Split(b, []byte("\n"))
	if len(lines) != 4 || string(lines[0]) != headFormat || len(lines[3]) != 0 {
		return head{}, false, fmt.Errorf("%w: the head file is not %s", ErrDamaged, headFormat)
	}
	n, err := strconv.ParseUint(string(lines[1]), 10, 63)
	if err != nil {
		return head{}, false, fmt.Errorf("%w: the head file: %v", ErrDamaged, err)
	}
	d, err := hashpipe.ParseDigest(string(lines[2]))
	if err != nil {
		return head{}, false, fmt.Errorf("%w: the head file: %v", ErrDamaged, err)
	}
	return head{n, d}, true, nil
}

// writeHead returns after the head is on stable storage. A crash leaves the old
// file or the new one.
func writeHead(dir string, h head) (err error) {
	path := filepath.Join(dir, "head")
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing the store's head: %w", err)
		}
	}()
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s\n%d\n%s\n", headFormat, h.n, h.hash); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(dir)
}
