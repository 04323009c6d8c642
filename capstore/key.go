package capstore

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
)

// Names of what a store keeps outside of itself, in the directory memory that Open
// is given. Without both, the store's rows grant nothing.
const (
	KeyName  = "store.key"  // the store's id and the key of its rows; mode 0600
	HeadName = "store-head" // the last fact that was acknowledged
)

// ballastName is the file in the store's directory that a revocation may have the
// room of.
const ballastName = "ballast"

const keyFormat = "clawfs-store-key/v1"

// rowFormat names how rows are written. Every row of the database, whatever its
// kind, has the value
//
//	byte 2, sequence (8 bytes, big endian), MAC (32 bytes), content
//
// sequence is the number of the fact that the row was written with or, for one of
// a job alone, after. MAC is HMAC-SHA-256, under the key in store.key, over the
// netstrings of rowFormat, the store's id in hex, the sequence in decimal, the
// row's key and the content. So a row under another key, with another number or
// from another store is none. An empty content is an error.
const (
	rowFormat  = "clawfs-row/v2"
	rowVersion = 2
	rowHeader  = 1 + 8 + sha256.Size
)

// formatKey is the row that says which store this is, so that a foreign one can
// be told from a damaged one: storeFormat, a line feed, the id in hex, a line feed.
const (
	formatKey   = "store"
	storeFormat = "clawfs-store/v2"
)

// errMAC: somebody wrote the row who does not have the key, or it was changed.
var errMAC = errors.New("the row does not carry this store's authentication code: another program wrote it, it was moved or it was changed")

// rowKey is what makes a row one of this store. The zero rowKey opens none.
type rowKey struct {
	id     [16]byte
	secret [32]byte
}

func newRowKey() (k rowKey) {
	rand.Read(k.id[:]) // never fails
	rand.Read(k.secret[:])
	return k
}

func (k rowKey) isZero() bool { return k == rowKey{} }

// name is the store's id as it is written.
func (k rowKey) name() string { return hex.EncodeToString(k.id[:]) }

func (k rowKey) mac(key []byte, sequence uint64, content []byte) []byte {
	return k.opener().sum(key, sequence, content)
}

// opener opens one row after the other with less work than rowKey.open. It is for one
// goroutine.
type opener struct {
	key rowKey
	mac hash.Hash
	b   []byte
}

func (k rowKey) opener() *opener { return &opener{key: k, mac: hmac.New(sha256.New, k.secret[:])} }

// sum is valid until the next.
func (o *opener) sum(key []byte, sequence uint64, content []byte) []byte {
	b := netstring(o.b[:0], rowFormat)
	b = netstring(b, o.key.name())
	b = netstring(b, strconv.FormatUint(sequence, 10))
	b = netstring(b, string(key))
	b = strconv.AppendInt(b, int64(len(content)), 10) // the last netstring, in three writes
	o.mac.Reset()
	o.mac.Write(append(b, ':'))
	o.mac.Write(content)
	o.mac.Write([]byte{','})
	o.b = o.mac.Sum(b[:0])
	return o.b
}

// seal makes the value of a row.
func (k rowKey) seal(key []byte, sequence uint64, content []byte) row {
	value := make([]byte, 0, rowHeader+len(content))
	value = append(value, rowVersion)
	value = binary.BigEndian.AppendUint64(value, sequence)
	value = append(value, k.mac(key, sequence, content)...)
	return row{key, append(value, content...)}
}

// open returns what a row holds, if this store wrote it under this key. The
// content is part of r.value.
func (k rowKey) open(r row) (sequence uint64, content []byte, err error) {
	return k.opener().open(r)
}

func (o *opener) open(r row) (sequence uint64, content []byte, err error) {
	switch {
	case o.key.isZero():
		return 0, nil, errors.New("the store has no key")
	case len(r.value) == 0:
		return 0, nil, errors.New("the value is empty")
	case r.value[0] != rowVersion || len(r.value) <= rowHeader:
		return 0, nil, fmt.Errorf("%w (%d bytes)", errMAC, len(r.value))
	}
	sequence, content = binary.BigEndian.Uint64(r.value[1:]), r.value[rowHeader:]
	if !hmac.Equal(r.value[9:rowHeader], o.sum(r.key, sequence, content)) {
		return 0, nil, errMAC
	}
	return sequence, content, nil
}

// readKey reads store.key: keyFormat, the id, the key, each in hex on a line of its
// own, and the checksum. found is false where there is none.
func readKey(memory string) (k rowKey, found bool, err error) {
	lines, found, err := readLines(filepath.Join(memory, KeyName), keyFormat, 2)
	if err != nil || !found {
		return rowKey{}, false, err
	}
	for i, to := range [][]byte{k.id[:], k.secret[:]} {
		b, err := hex.DecodeString(lines[i])
		if err != nil || len(b) != len(to) {
			return rowKey{}, false, fmt.Errorf("%w: %s: line %d is not %d bytes in hex", ErrForeign, filepath.Join(memory, KeyName), i+2, len(to))
		}
		copy(to, b)
	}
	return k, true, nil
}

func writeKey(memory string, k rowKey) error {
	return writeLines(filepath.Join(memory, KeyName), keyFormat, k.name(), hex.EncodeToString(k.secret[:]))
}

// maxLines bounds a text of readLines in bytes.
const maxLines = 4 << 10

// readLines reads a text of format, n more lines, and a line "sha256 " with the hex
// SHA-256 of all before it. found is false where there is no such file.
func readLines(path, format string, n int) (lines []string, found bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	all := bytes.SplitAfter(b, []byte("\n"))
	if len(b) > maxLines || len(all) != n+3 || len(all[n+2]) != 0 || string(all[0]) != format+"\n" {
		return nil, false, fmt.Errorf("%w: %s: expected %s and %d lines, got %d bytes that are not that", ErrDamaged, path, format, n+1, len(b))
	}
	if sum := bytes.Join(all[:n+1], nil); string(all[n+1]) != checksumLine(sum) {
		return nil, false, fmt.Errorf("%w: %s: its checksum does not match", ErrDamaged, path)
	}
	for _, l := range all[1 : n+1] {
		lines = append(lines, string(bytes.TrimSuffix(l, []byte("\n"))))
	}
	return lines, true, nil
}

func checksumLine(text []byte) string { return fmt.Sprintf("sha256 %s\n", hashpipe.SumBytes(text)) }

// writeLines returns after the text is on stable storage, with mode 0600. A crash
// leaves the old file or the new one.
func writeLines(path, format string, lines ...string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing %s: %w", path, err)
		}
	}()
	b := []byte(format + "\n")
	for _, l := range lines {
		b = append(append(b, l...), '\n')
	}
	b = append(b, checksumLine(b)...)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}
