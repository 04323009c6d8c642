package kept

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/go-json-experiment/json"
)

// An archive is one file with the records of a store at one time, as a backup. Its
// first line is
//
//	{"format":"clawfs-backup/v1","store":"<id>","madeAt":"<RFC 3339, UTC>"}
//
// each line after it a record as in the journal, numbered from 1, also of kinds
// that are not signed, such as "job"; and its last line, over all bytes before it,
//
//	{"records":<n>,"sha256":"<hex>"}
//
// so that an archive that was cut, or changed by accident, is noticed. It is
// authenticated by nothing: whoever reads it checks every signature.

const archiveFormat = "clawfs-backup/v1"

// ArchiveHead is an archive's first line.
type ArchiveHead struct {
	Format string    `json:"format"`
	Store  string    `json:"store"`
	MadeAt time.Time `json:"madeAt"`
}

type archiveEnd struct {
	Records uint64 `json:"records"`
	SHA256  string `json:"sha256"`
}

// ErrNoArchive: the file does not begin as an archive does.
var ErrNoArchive = errors.New("it is no backup of clawfs")

// ErrCut: the archive has no end, or another one than its bytes.
var ErrCut = errors.New("the backup was cut or changed")

// Archive writes one.
type Archive struct {
	w   *bufio.Writer
	sum hash.Hash
	n   uint64
}

// NewArchive writes the first line.
func NewArchive(w io.Writer, store string, at time.Time) (*Archive, error) {
	a := &Archive{w: bufio.NewWriterSize(w, 64<<10), sum: sha256.New()}
	if !storePattern.MatchString(store) {
		return nil, fmt.Errorf("backup: %.64q is no store's id", store)
	}
	text, err := encode(ArchiveHead{archiveFormat, store, at.UTC().Truncate(time.Second)})
	if err != nil {
		return nil, err
	}
	return a, a.write(text)
}

func (a *Archive) write(text []byte) error {
	a.sum.Write(text)
	_, err := a.w.Write(text)
	return err
}

// Add writes a record.
func (a *Archive) Add(kind string, text []byte) error {
	line, err := Record{a.n + 1, kind, text}.encode()
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	a.n++
	return a.write(line)
}

// Close writes the end. An archive that is not closed is one that was cut.
func (a *Archive) Close() error {
	text, err := encode(archiveEnd{a.n, hex.EncodeToString(a.sum.Sum(nil))})
	if err != nil {
		return err
	}
	if _, err := a.w.Write(text); err != nil {
		return err
	}
	return a.w.Flush()
}

// ReadArchive calls each with every record that can be read, one in memory at a
// time. Of one that was cut or changed, which is ErrCut, it has by then given what
// there is: whoever must not use that reads it twice. Other errors are
// ErrNoArchive, and those of r and each.
func ReadArchive(r io.Reader, each func(Record) error) (ArchiveHead, error) {
	in := bufio.NewReaderSize(r, maxLine)
	sum := sha256.New()
	var h ArchiveHead
	text, size, err := nextLine(in)
	if err == nil {
		err = json.Unmarshal(text, &h, json.RejectUnknownMembers(true))
	}
	if err != nil && !errors.Is(err, io.EOF) && size == 0 {
		return ArchiveHead{}, err
	}
	if err != nil || h.Format != archiveFormat || !storePattern.MatchString(h.Store) {
		return ArchiveHead{}, ErrNoArchive
	}
	sum.Write(text)
	n, bad := uint64(0), 0
	for {
		text, size, err := nextLine(in)
		switch {
		case errors.Is(err, io.EOF):
			return h, fmt.Errorf("%w: it has no end, after %d records", ErrCut, n)
		case err != nil:
			return h, err
		}
		var end archiveEnd
		if bytes.HasPrefix(text, []byte(`{"records":`)) && json.Unmarshal(text, &end, json.RejectUnknownMembers(true)) == nil {
			_, more, err := nextLine(in)
			switch {
			case !errors.Is(err, io.EOF):
				return h, fmt.Errorf("%w: something stands behind its end", ErrCut)
			case more > 0 || bad > 0 || end.Records != n || end.SHA256 != hex.EncodeToString(sum.Sum(nil)):
				return h, fmt.Errorf("%w: expected %d records and the SHA-256 %.64s, got %d records, %d lines that are none, and %x", ErrCut, end.Records, end.SHA256, n, bad, sum.Sum(nil))
			}
			return h, nil
		}
		if text == nil { // too long, and not held
			fmt.Fprint(sum, size)
		}
		sum.Write(text)
		rec, err := parseRecord(text)
		if err != nil || rec.N != n+1 {
			bad++
			if err != nil {
				continue
			}
		}
		n = rec.N
		if err := each(rec); err != nil {
			return h, err
		}
	}
}
