// Package kept is an append-only journal of the signed records that a store
// acknowledged, in files that a person can read, outside of the database. What is
// in it decides nothing: whoever reads it checks every signature again. It is
// there so that a store which is lost can be made again.
//
// A journal is a directory of files kept-<first>.jsonl, whose name has the number
// of the first record in 16 decimal digits. The first line of a file is
//
//	{"format":"clawfs-kept/v1","store":"<id>","first":<n>,"facts":<f>,"sum":"<hex>"}
//
// and each line after it is one record,
//
//	{"n":<n>,"kind":"<kind>","envelope":"<base64>","sum":"<hex>"}
//
// Records are numbered from 1 through all files, without a gap. The records of a
// file are the facts f+1, f+2, … of the store with that id, so that the store
// finds out by the last line which of its facts are missing here. sum is the
// SHA-256 over "clawfs-kept/v1\n<n>\n<kind>\n" and the envelope, and in the first
// line over "clawfs-kept/v1\n<n>\n<id>\n<f>". It finds accidents, and keeps nobody
// from anything.
//
// A line is on stable storage when Append returns. What a crash leaves behind the
// last line end was never acknowledged: Open cuts it off. Any other line that
// cannot be read is passed over and told, and hides none of those after it.
//
// waiting.jsonl holds, in the same form, records that were acknowledged while no
// store could take them. The store takes them when it is there again.
package kept

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/openclaw/clawfs/hashpipe"
)

const (
	format      = "clawfs-kept/v1"
	waitingName = "waiting.jsonl"
	lockName    = "lock"

	// MaxFile is the size in bytes at which a file is followed by a new one.
	MaxFile = 64 << 20
	// MaxEnvelope bounds one envelope in bytes.
	MaxEnvelope = 512 << 10
	// maxLine bounds a line: the envelope in base64, and the rest.
	maxLine = MaxEnvelope/3*4 + 512

	maxNumber = 1<<53 - 1
)

var (
	// ErrLocked: another process has the journal open.
	ErrLocked = errors.New("journal of kept records is open in another process")
	// ErrGap: the journal lacks facts before the one that was to be appended.
	ErrGap = errors.New("journal of kept records lacks earlier facts")
)

// Record is one signed text.
type Record struct {
	N        uint64 // its number in the journal; Append gives it
	Kind     string // such as "revocation": what the writer said, not what the text is
	Envelope []byte
}

// Damage is a place of the journal that could not be read, and was passed over.
type Damage struct {
	File   string `json:"file"`
	Offset int64  `json:"offset"` // of the line, in bytes
	Reason string `json:"reason"`
}

func (d Damage) String() string {
	return fmt.Sprintf("%s, byte %d: %s", d.File, d.Offset, d.Reason)
}

type header struct {
	Format string          `json:"format"`
	Store  string          `json:"store"`
	First  uint64          `json:"first"`
	Facts  uint64          `json:"facts"`
	Sum    hashpipe.Digest `json:"sum"`
}

type line struct {
	N        uint64          `json:"n"`
	Kind     string          `json:"kind"`
	Envelope []byte          `json:"envelope"`
	Sum      hashpipe.Digest `json:"sum"`
}

func sum(n uint64, kind string, envelope []byte) hashpipe.Digest {
	b := fmt.Appendf(nil, "%s\n%d\n%s\n", format, n, kind)
	return hashpipe.SumBytes(append(b, envelope...)).Claim()
}

var (
	kindPattern  = regexp.MustCompile(`^[a-z][a-z-]{0,31}$`)
	storePattern = regexp.MustCompile(`^[a-zA-Z0-9_-]{0,128}$`)
	fileName     = regexp.MustCompile(`^kept-([0-9]{16})\.jsonl$`)
)

func nameOf(first uint64) string { return fmt.Sprintf("kept-%016d.jsonl", first) }

// firstOf is the number in a file's name.
func firstOf(path string) (uint64, bool) {
	m := fileName.FindStringSubmatch(filepath.Base(path))
	if m == nil {
		return 0, false
	}
	n, err := strconv.ParseUint(m[1], 10, 64)
	return n, err == nil && n > 0
}

func newHeader(store string, first, facts uint64) header {
	return header{format, store, first, facts, sum(first, store, strconv.AppendUint(nil, facts, 10))}
}

func (h header) encode() ([]byte, error) { return encode(h) }

func (r Record) encode() ([]byte, error) {
	switch {
	case !kindPattern.MatchString(r.Kind):
		return nil, fmt.Errorf("kind %.64q is no kind of record", r.Kind)
	case len(r.Envelope) == 0 || len(r.Envelope) > MaxEnvelope:
		return nil, fmt.Errorf("envelope of %d bytes: want 1 to %d", len(r.Envelope), MaxEnvelope)
	case r.N == 0 || r.N > maxNumber:
		return nil, fmt.Errorf("number %d is outside 1 to %d", r.N, uint64(maxNumber))
	}
	return encode(line{r.N, r.Kind, r.Envelope, sum(r.N, r.Kind, r.Envelope)})
}

func encode(v any) ([]byte, error) {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

// parseHeader reads a line with its end. It accepts exactly what encode prints.
func parseHeader(text []byte) (header, error) {
	var h header
	if err := json.Unmarshal(text, &h, json.RejectUnknownMembers(true)); err != nil {
		return header{}, fmt.Errorf("the first line is no header: %v", err)
	}
	again, err := h.encode()
	switch {
	case err != nil:
		return header{}, err
	case h.Format != format:
		return header{}, fmt.Errorf("the format is %.64q, want %q", h.Format, format)
	case h != newHeader(h.Store, h.First, h.Facts):
		return header{}, errors.New("the first line was changed: its sum does not match")
	case !bytes.Equal(again, text) || !storePattern.MatchString(h.Store) || h.Facts > maxNumber || h.First > maxNumber:
		return header{}, errors.New("the first line is no header")
	}
	return h, nil
}

// parseRecord reads a line with its end. It accepts exactly what encode prints.
func parseRecord(text []byte) (Record, error) {
	var l line
	if err := json.Unmarshal(text, &l, json.RejectUnknownMembers(true)); err != nil {
		return Record{}, fmt.Errorf("the line is no record: %.200v", err)
	}
	r := Record{l.N, l.Kind, l.Envelope}
	again, err := r.encode()
	switch {
	case err != nil:
		return Record{}, err
	case l.Sum != sum(l.N, l.Kind, l.Envelope):
		return Record{}, errors.New("the record was changed: its sum does not match")
	case !bytes.Equal(again, text):
		return Record{}, errors.New("the line is not as it was written")
	}
	return r, nil
}
