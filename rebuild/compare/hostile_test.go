package compare

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"testing"
)

// hole is a file of zeros with a few bytes in it.
type hole map[int64][]byte

func (h hole) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for at, b := range h {
		if from := at - off; from > -int64(len(b)) && from < int64(len(p)) {
			copy(p[max(from, 0):], b[max(-from, 0):])
		}
	}
	return len(p), nil
}

// A sparse zip of 4 GiB that claims as many members as would fit cost 1.1 GB
// of memory, and one of 40 GiB eleven.
func TestZipOfClaims(t *testing.T) {
	const size = 4 << 30
	le := binary.LittleEndian
	end := append([]byte("PK\x05\x06"), make([]byte, 18)...)
	le.PutUint32(end[8:], 0xffffffff)
	le.PutUint64(end[12:], 0xffffffffffffffff)
	at := uint64(size - 22 - 20 - 56)
	locator := append([]byte("PK\x06\x07"), make([]byte, 16)...)
	le.PutUint64(locator[8:], at)
	le.PutUint32(locator[16:], 1)
	end64 := append([]byte("PK\x06\x06"), make([]byte, 52)...)
	le.PutUint64(end64[4:], 44)
	le.PutUint64(end64[24:], at/30)
	le.PutUint64(end64[32:], at/30)
	le.PutUint64(end64[48:], at)
	file := hole{0: []byte("PK\x03\x04"), size - 22: end, size - 42: locator, int64(at): end64}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := parseZip(file, size)
	runtime.ReadMemStats(&after)
	if err == nil || !strings.Contains(err.Error(), "members, at most") {
		t.Errorf("parseZip = %v", err)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 {
		t.Errorf("parseZip allocated %d bytes", used)
	}
}

func TestMetadataBounded(t *testing.T) {
	var header bytes.Buffer
	header.WriteString(`{"__metadata__":{`)
	for i := range maxParts + 1 {
		fmt.Fprintf(&header, `"%d":"",`, i)
	}
	header.WriteString(`"x":""}}`)
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(header.Len())), header.Bytes()...)
	if _, err := parseSafetensors(bytes.NewReader(file), int64(len(file))); err == nil || !strings.Contains(err.Error(), "pairs of metadata") {
		t.Errorf("parseSafetensors = %v", err)
	}
}
