package compare

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"regexp"
)

// maxNPYHeader bounds in bytes the header of an array. numpy's own reader
// takes 10,000 bytes unless it is told otherwise.
const maxNPYHeader = 16 << 10

var npyMagic = []byte("\x93NUMPY")

// npyType finds the data type in the text of the header, a Python dictionary
// such as {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }.
var npyType = regexp.MustCompile(`['"]descr['"]\s*:\s*['"]<f([248])['"]`)

// npy is what the header of a numpy array says, and where the values lie.
type npy struct {
	text   string
	floats floatRange
}

// npyHeader reads the header of numpy's format 1.0 to 3.0 (numpy.lib.format)
// at the beginning of head; size is that of the whole array file. Values that
// do not begin at a multiple of 8 bytes, as numpy has aligned them since 1.14,
// are not counted as floats.
func npyHeader(head []byte, size int64) (npy, error) {
	if len(head) < 12 || !bytes.HasPrefix(head, npyMagic) {
		return npy{}, errors.New("no numpy array")
	}
	at, n := 10, int(binary.LittleEndian.Uint16(head[8:]))
	if head[6] > 1 {
		long := binary.LittleEndian.Uint32(head[8:])
		if long > maxNPYHeader {
			return npy{}, errors.New("header too long")
		}
		at, n = 12, int(long)
	}
	if at+n > len(head) {
		return npy{}, errors.New("header too long")
	}
	h := npy{text: string(head[at : at+n])}
	h.floats = floatRange{at: int64(at + n), end: size}
	if m := npyType.FindStringSubmatch(h.text); m != nil && h.floats.at%8 == 0 {
		h.floats.dtype = map[string]string{"2": "F16", "4": "F32", "8": "F64"}[m[1]]
	}
	return h, nil
}

// parseNPY reads an array file: one part, its values.
func parseNPY(r io.ReaderAt, size int64) (layout, error) {
	head := make([]byte, min(size, maxNPYHeader))
	if err := readFull(r, head, 0); err != nil {
		return layout{}, err
	}
	h, err := npyHeader(head, size)
	if err != nil {
		return layout{}, err
	}
	at := h.floats.at
	return layout{
		noun: "array", order: []string{"values"}, meta: map[string]meta{"header": metaOf([]byte(h.text), h.text)},
		parts: map[string]part{"values": {offset: at, size: size - at, floats: floatRange{dtype: h.floats.dtype, end: size - at}}},
	}, nil
}
