package compare

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxEntry bounds in bytes what the header says of one tensor.
const maxEntry = 64 << 10

// parseSafetensors reads the header of huggingface/safetensors: a
// little-endian length of 8 bytes, a JSON object, then the tensors.
func parseSafetensors(r io.ReaderAt, size int64) (layout, error) {
	var prefix [8]byte
	if err := readFull(r, prefix[:], 0); err != nil {
		return layout{}, err
	}
	n := binary.LittleEndian.Uint64(prefix[:])
	if n > maxHeader || int64(n) > size-8 {
		return layout{}, fmt.Errorf("header of %d bytes in a file of %d", n, size)
	}
	header := make([]byte, n)
	if err := readFull(r, header, 8); err != nil {
		return layout{}, err
	}
	l := layout{noun: "tensor", parts: map[string]part{}, meta: map[string]meta{}}
	dec := jsontext.NewDecoder(bytes.NewReader(header))
	if t, err := dec.ReadToken(); err != nil || t.Kind() != '{' {
		return layout{}, errors.New("no JSON object")
	}
	base := 8 + int64(n)
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return layout{}, err
		}
		key := name.String()
		if len(l.order) == maxParts {
			return layout{}, fmt.Errorf("more than %d tensors", maxParts)
		}
		l.order = append(l.order, key)
		if key == "__metadata__" {
			if err := l.readMetadata(dec); err != nil {
				return layout{}, err
			}
			continue
		}
		var t struct {
			DType   string   `json:"dtype"`
			Shape   []int64  `json:"shape"`
			Offsets [2]int64 `json:"data_offsets"`
		}
		value, err := dec.ReadValue()
		if err != nil {
			return layout{}, err
		}
		if len(value) > maxEntry {
			return layout{}, fmt.Errorf("tensor %s has a description of %d bytes", shorten(key), len(value))
		}
		if err := json.Unmarshal(value, &t); err != nil {
			return layout{}, err
		}
		if t.Offsets[0] < 0 || t.Offsets[1] < t.Offsets[0] || t.Offsets[1] > size-base {
			return layout{}, fmt.Errorf("tensor %s lies outside the file", shorten(key))
		}
		size := t.Offsets[1] - t.Offsets[0]
		l.parts[key] = part{
			offset: base + t.Offsets[0], size: size, shape: fmt.Sprint(t.DType, t.Shape),
			floats: floatRange{dtype: t.DType, end: size},
		}
	}
	return l, nil
}

// readMetadata keeps the names in the order of the file in order, and what
// they mean in meta, so that another order is told from other metadata.
func (l *layout) readMetadata(dec *jsontext.Decoder) error {
	if t, err := dec.ReadToken(); err != nil || t.Kind() != '{' {
		return errors.New("__metadata__ is no object")
	}
	for dec.PeekKind() != '}' {
		key, err := dec.ReadToken()
		if err != nil {
			return err
		}
		if len(l.order) == maxParts {
			return fmt.Errorf("more than %d pairs of metadata", maxParts)
		}
		name := key.String()
		l.order = append(l.order, "__metadata__."+name)
		value, err := dec.ReadValue()
		if err != nil {
			return err
		}
		l.meta[name] = metaOf(value, strings.Trim(string(value[:min(len(value), 64)]), `"`))
	}
	_, err := dec.ReadToken()
	return err
}

// ggufReader reads the little-endian fields of a GGUF header (ggml's
// docs/gguf.md), at most maxHeader bytes of it.
type ggufReader struct {
	r   *bufio.Reader
	pos int64
	err error
}

func (g *ggufReader) bytes(n uint64) []byte {
	if g.err == nil && (n > maxHeader || g.pos+int64(n) > maxHeader) {
		g.err = fmt.Errorf("header of more than %d bytes", maxHeader)
	}
	if g.err != nil {
		return nil
	}
	b := make([]byte, n)
	_, g.err = io.ReadFull(g.r, b)
	g.pos += int64(n)
	return b
}

func (g *ggufReader) u32() uint32 {
	if b := g.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (g *ggufReader) u64() uint64 {
	if b := g.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (g *ggufReader) str() string { return string(g.bytes(g.u64())) }

// ggufWidth is the size in bytes of the scalar value types 0 to 12; 8 is a
// string and 9 an array.
var ggufWidth = [13]uint64{1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}

// value reads one metadata value; depth bounds arrays of arrays.
func (g *ggufReader) value(kind uint32, depth int) []byte {
	switch {
	case g.err != nil:
		return nil
	case kind == 8:
		return []byte(g.str())
	case kind == 9 && depth < 4:
		element, n := g.u32(), g.u64()
		if element < 13 && ggufWidth[element] > 0 {
			if n > maxHeader {
				g.err = errors.New("array too long")
				return nil
			}
			return g.bytes(n * ggufWidth[element])
		}
		var all []byte
		for i := uint64(0); i < n && g.err == nil; i++ {
			all = append(append(all, g.value(element, depth+1)...), 0)
		}
		return all
	case kind < 13 && ggufWidth[kind] > 0:
		return g.bytes(ggufWidth[kind])
	}
	g.err = fmt.Errorf("value of unknown type %d", kind)
	return nil
}

// parseGGUF reads versions 2 and 3. A tensor's size is the distance to the
// next one, so no table of quantisation types is needed; padding counts.
func parseGGUF(r io.ReaderAt, size int64) (layout, error) {
	g := &ggufReader{r: bufio.NewReaderSize(io.NewSectionReader(r, 0, size), 64<<10)}
	g.bytes(4)
	if v := g.u32(); g.err == nil && v != 2 && v != 3 {
		return layout{}, fmt.Errorf("version %d, want 2 or 3", v)
	}
	tensors, pairs := g.u64(), g.u64()
	if tensors > maxParts || pairs > maxParts {
		return layout{}, fmt.Errorf("%d tensors and %d metadata pairs", tensors, pairs)
	}
	l := layout{noun: "tensor", parts: map[string]part{}, meta: map[string]meta{}}
	alignment := int64(32)
	for range pairs {
		key, kind := g.str(), g.u32()
		value := g.value(kind, 0)
		if g.err != nil {
			return layout{}, g.err
		}
		if key == "general.alignment" && kind == 4 {
			alignment = int64(binary.LittleEndian.Uint32(value))
		}
		l.order = append(l.order, "metadata."+key)
		l.meta[key] = ggufMeta(kind, value)
	}
	if alignment <= 0 || alignment > 1<<20 {
		return layout{}, fmt.Errorf("alignment of %d bytes", alignment)
	}
	type at struct {
		name   string
		offset uint64
		shape  string
		floats floatRange
	}
	var found []at
	for range tensors {
		t := at{name: g.str()}
		dims := g.u32()
		if dims > 8 {
			return layout{}, fmt.Errorf("tensor of %d dimensions", dims)
		}
		shape := make([]uint64, dims)
		values := uint64(1)
		for i := range shape {
			shape[i] = g.u64()
			if hi, lo := bits.Mul64(values, shape[i]); hi == 0 && lo < 1<<56 {
				values = lo
			} else {
				values = 0 // more than any file holds
			}
		}
		kind := g.u32()
		t.offset, t.shape = g.u64(), fmt.Sprint(kind, shape)
		if dtype := ggufFloats[kind]; dtype != "" {
			t.floats = floatRange{dtype: dtype, end: int64(values) * int64(floatTypes[dtype].width)}
		}
		if g.err != nil {
			return layout{}, g.err
		}
		found = append(found, t)
		l.order = append(l.order, t.name)
	}
	base := (g.pos + alignment - 1) / alignment * alignment
	slices.SortFunc(found, func(x, y at) int { return cmp.Compare(x.offset, y.offset) })
	for i, t := range found {
		end := uint64(max(size-base, 0))
		if t.offset > end {
			return layout{}, fmt.Errorf("tensor %s lies outside the file", shorten(t.name))
		}
		if i+1 < len(found) {
			end = min(end, found[i+1].offset)
		}
		l.parts[t.name] = part{offset: base + int64(t.offset), size: int64(end - t.offset), shape: t.shape, floats: t.floats}
	}
	return l, nil
}

// ggufFloats are the types of ggml's tensors that are plain floats.
var ggufFloats = map[uint32]string{0: "F32", 1: "F16", 28: "F64", 30: "BF16"}

// ggufMeta keeps one value of the metadata: numbers and strings readable, all
// else by its digest and size.
func ggufMeta(kind uint32, value []byte) meta {
	text := fmt.Sprintf("an array of %d bytes", len(value))
	switch {
	case kind == 8:
		text = string(value[:min(len(value), 64)])
	case kind < 8 || kind > 9:
		var le [8]byte
		copy(le[:], value)
		n := binary.LittleEndian.Uint64(le[:])
		switch kind {
		case 1, 3, 5, 11: // signed
			shift := 64 - 8*len(value)
			text = fmt.Sprint(int64(n<<shift) >> shift)
		case 6:
			text = fmt.Sprint(math.Float32frombits(uint32(n)))
		case 12:
			text = fmt.Sprint(math.Float64frombits(n))
		default:
			text = fmt.Sprint(n)
		}
	}
	m := metaOf(value, text)
	m.sum[0] ^= byte(kind) // another type is another value
	return m
}
