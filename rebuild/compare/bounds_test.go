package compare

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

// counted is a file in memory that counts what is read of it, and samples the
// heap now and then.
type counted struct {
	data  []byte
	bytes int64
	calls int64
	heap  *uint64 // the largest heap seen
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.calls++
	c.bytes += int64(len(p))
	if c.heap != nil && c.calls%8192 == 1 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		*c.heap = max(*c.heap, m.HeapAlloc)
	}
	return bytes.NewReader(c.data).ReadAt(p, off)
}

// manyTensors is a safetensors file of n tensors of one byte.
func manyTensors(n int, fill byte) []byte {
	var h bytes.Buffer
	for i := range n {
		fmt.Fprintf(&h, `%s"layer.%d.weight":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}`, []string{"{", ","}[min(i, 1)], i, i, i+1)
	}
	h.WriteString("}")
	return safetensors(h.String(), bytes.Repeat([]byte{fill}, n)...)
}

func manyGGUF(n int, fill byte) []byte {
	le := binary.LittleEndian
	str := func(b []byte, s string) []byte { return append(le.AppendUint64(b, uint64(len(s))), s...) }
	b := le.AppendUint64(le.AppendUint64(le.AppendUint32([]byte("GGUF"), 3), uint64(n)), 1)
	b = le.AppendUint64(le.AppendUint32(le.AppendUint32(str(b, "tokens"), 9), 8), uint64(n)) // an array of n strings
	for i := range n {
		b = str(b, fmt.Sprint("token", i))
	}
	for i := range n {
		b = le.AppendUint64(le.AppendUint32(str(b, fmt.Sprint("blk.", i)), 1), 8)
		b = le.AppendUint64(le.AppendUint32(b, 0), uint64(i)*32)
	}
	for len(b)%32 != 0 {
		b = append(b, 0)
	}
	return append(b, bytes.Repeat([]byte{fill}, 32*n)...)
}

func manyMembers(t *testing.T, n int, fill byte) []byte {
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for i := range n {
		w, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprintf("m/data/%d", i), Method: zip.Store})
		if err != nil {
			t.Fatal(err)
		}
		w.Write([]byte{fill})
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func proto(number int, data []byte) []byte {
	b := binary.AppendUvarint(nil, uint64(number)<<3|2)
	return append(binary.AppendUvarint(b, uint64(len(data))), data...)
}

func manyInitializers(n int, fill byte) []byte {
	var graph []byte
	for i := range n {
		t := append([]byte{tensorType << 3, 1}, proto(tensorName, fmt.Appendf(nil, "w%d", i))...)
		graph = append(graph, proto(graphInitializer, append(t, proto(tensorRaw, bytes.Repeat([]byte{fill}, 4))...))...)
	}
	return append([]byte{modelIRVersion << 3, 8}, proto(modelGraph, graph)...)
}

// Files of many parts, the first of as many as are compared, cost bounded
// memory, and no more reading than the promised twice, headers apart.
func TestManyParts(t *testing.T) {
	const headers, heapLimit = 3 * maxHeader, 256 << 20
	defer debug.SetGCPercent(debug.SetGCPercent(20))
	for _, c := range []struct {
		name  string
		a, b  []byte
		parts int
	}{
		{"m.safetensors", manyTensors(maxParts, 1), manyTensors(maxParts, 2), maxParts},
		{"m.gguf", manyGGUF(40_000, 1), manyGGUF(40_000, 2), 40_000},
		{"m.zip", manyMembers(t, 20_000, 1), manyMembers(t, 20_000, 2), 20_000},
		{"m.onnx", manyInitializers(40_000, 1), manyInitializers(40_000, 2), 40_000},
	} {
		runtime.GC()
		var start runtime.MemStats
		runtime.ReadMemStats(&start)
		heap := start.HeapAlloc
		a, b := &counted{data: c.a, heap: &heap}, &counted{data: c.b, heap: &heap}
		d, err := Files(context.Background(), a, b, int64(len(c.a)), int64(len(c.b)), c.name)
		if err != nil {
			t.Fatal(err)
		}
		if d.Parts != c.parts || d.DifferingParts != c.parts || len(d.Named) != maxNamed || len(d.String()) > 2000 {
			t.Errorf("%s: %.500q", c.name, d)
		}
		for _, f := range []*counted{a, b} {
			if most := 2*int64(len(f.data)) + headers; f.bytes > most {
				t.Errorf("%s: read %d bytes of a file of %d", c.name, f.bytes, len(f.data))
			}
		}
		if used := heap - start.HeapAlloc; used > heapLimit {
			t.Errorf("%s: the heap grew by %d MiB", c.name, used>>20)
		} else {
			t.Logf("%s: %d parts, read %d and %d bytes of %d, heap +%d MiB", c.name, d.Parts, a.bytes, b.bytes, len(c.a), used>>20)
		}
	}
}

// One part more than that is an unreadable header.
func TestTooManyParts(t *testing.T) {
	for _, c := range []struct {
		want  string
		parse func(io.ReaderAt, int64) (layout, error)
		data  []byte
	}{
		{"more than 200000 tensors", parseSafetensors, manyTensors(maxParts+1, 1)},
		{"200001 tensors", parseGGUF, manyGGUF(maxParts+1, 1)},
		{"more than 200000 tensors", parseONNX, manyInitializers(maxParts+1, 1)},
	} {
		if _, err := c.parse(bytes.NewReader(c.data), int64(len(c.data))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
}

// Headers that lie. Each pair differs; each is answered with plain bytes, few
// reads and little memory.
func TestLies(t *testing.T) {
	le := binary.LittleEndian
	header := func(text string) []byte { return safetensors(text, 1, 2, 3, 4) }
	tensor := func(x []byte) []byte {
		return append([]byte{modelIRVersion << 3, 8}, proto(modelGraph, proto(graphInitializer, x))...)
	}
	gguf := func(kind uint32, rest ...byte) []byte {
		b := le.AppendUint64(le.AppendUint64(le.AppendUint32([]byte("GGUF"), 3), 0), 1)
		return append(le.AppendUint32(append(le.AppendUint64(b, 1), 'k'), kind), rest...)
	}
	nested := []byte{}
	for range 100 {
		nested = le.AppendUint64(le.AppendUint32(nested, 9), 1)
	}
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"tensor of a million dimensions", header(`{"w":{"dtype":"F32","shape":[` + strings.Repeat("1,", 1<<20) + `1],"data_offsets":[0,4]}}`)},
		{"negative offsets", header(`{"w":{"dtype":"F32","shape":[1],"data_offsets":[-4,4]}}`)},
		{"offsets backwards", header(`{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}`)},
		{"offsets beyond int64", header(`{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999]}}`)},
		{"one name twice", header(`{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`)},
		{"no end", header(`{"w":{"dtype":`)},
		{"metadata of depth", header(`{"__metadata__":{"a":` + strings.Repeat("[", 1<<20) + `}}`)},
		{"gguf string of 2^63", gguf(8, 0, 0, 0, 0, 0, 0, 0, 0x80)},
		{"gguf array of 2^62 doubles", gguf(9, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40)},
		{"gguf arrays in arrays", gguf(9, nested...)},
		{"gguf type 99", gguf(99, make([]byte, 64)...)},
		{"onnx length of 2^63", append([]byte{8, 8, modelGraph<<3 | 2}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f)},
		{"onnx endless varint", append([]byte{8, 8, modelGraph<<3 | 2}, bytes.Repeat([]byte{0xff}, 64)...)},
		{"onnx group", []byte{8, 8, modelGraph<<3 | 2, 2, 0x0b, 0}},
		{"onnx name of 1 MiB", tensor(proto(tensorName, make([]byte, 1<<20)))},
		{"onnx fields of nothing", tensor(bytes.Repeat([]byte{tensorType << 3, 1}, maxFields))},
		{"onnx a million dimensions", tensor(bytes.Repeat([]byte{tensorDims << 3, 1}, 1<<17))},
		{"zip of nothing", []byte("PK\x03\x04" + strings.Repeat("x", 100))},
		{"npy header of 4 GiB", []byte("\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr': '<f4'}")},
	} {
		other := append(bytes.Clone(c.data), 0)
		a, b := &counted{data: c.data}, &counted{data: other}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		d, err := Files(context.Background(), a, b, int64(len(c.data)), int64(len(other)), "m.safetensors")
		runtime.ReadMemStats(&after)
		if err != nil || d.Equal() || d.Part != "" || !strings.Contains(d.String(), "header is unreadable") {
			t.Errorf("%s: %v, %.300q", c.name, err, d)
		}
		if most := 2*int64(len(c.data)) + 64<<10; a.bytes > most {
			t.Errorf("%s: read %d bytes of %d", c.name, a.bytes, len(c.data))
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 {
			t.Errorf("%s: allocated %d MiB", c.name, used>>20)
		}
	}
}

func TestFieldsBounded(t *testing.T) {
	graph := append([]byte{modelIRVersion << 3, 8}, proto(modelGraph, bytes.Repeat([]byte{1 << 3, 1}, maxFields))...)
	if _, err := parseONNX(bytes.NewReader(graph), int64(len(graph))); err == nil || !strings.Contains(err.Error(), "fields") {
		t.Errorf("parseONNX = %v", err)
	}
}

// A member that claims little and holds much, one that claims all the budget,
// and a zip in a zip.
func TestDeflated(t *testing.T) {
	deflated := func(data []byte, claim uint64, level int) []byte {
		var packed bytes.Buffer
		w, err := flate.NewWriter(&packed, level)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(data)
		w.Close()
		var out bytes.Buffer
		z := zip.NewWriter(&out)
		m, err := z.CreateRaw(&zip.FileHeader{Name: "a.npy", Method: zip.Deflate, CompressedSize64: uint64(packed.Len()), UncompressedSize64: claim})
		if err != nil {
			t.Fatal(err)
		}
		m.Write(packed.Bytes())
		z.Close()
		return out.Bytes()
	}
	text := bytes.Repeat([]byte("the same contents "), 1000)
	size := uint64(len(text))
	d := files(t, deflated(text, size, 1), deflated(text, size, 9), "m.zip")
	if hints := d.Hints(Build{}); !strings.Contains(d.String(), "1 member with the same contents, compressed otherwise") || d.HeaderOnly || len(hints) != 1 || !strings.Contains(hints[0], "another zlib") {
		t.Errorf("two levels: %q, %q", d, hints)
	}
	damaged := deflated(text, size, 1)
	damaged[30+len("a.npy")] = 0xff // a block of no known kind
	for _, c := range []struct {
		name   string
		a, b   []byte
		budget int64
	}{
		{"claims less than it holds", deflated(text, 100, 1), deflated(text, 100, 9), maxInflate},
		{"claims more than it holds", deflated(text, 2*size, 1), deflated(text, 2*size, 9), maxInflate},
		{"claims more than the budget", deflated(text, size, 1), deflated(text, size, 9), int64(size) - 1},
		{"claims other sizes", deflated(text, size, 1), deflated(text[:size-1], size-1, 9), maxInflate},
		{"no deflate", deflated(text, size, 1), damaged, maxInflate},
	} {
		d := Difference{Name: "m.zip", SizeA: int64(len(c.a)), SizeB: int64(len(c.b)), First: -1}
		x := &comparison{ctx: context.Background(), a: bytes.NewReader(c.a), b: bytes.NewReader(c.b), d: &d, inflate: c.budget}
		if err := x.run(); err != nil {
			t.Fatal(err)
		}
		if d.Equal() || d.found.recompressed || d.DifferingParts != 1 {
			t.Errorf("%s: %q", c.name, d)
		}
		if x.inflate < 0 {
			t.Errorf("%s: %d bytes above the budget", c.name, -x.inflate)
		}
	}
	inner := zipped(t, time.Unix(0, 0), member{"x", "1"})
	outer := func(s string) []byte { return zipped(t, time.Unix(0, 0), member{"inner.zip", s}) }
	d = files(t, outer(string(inner)), outer(string(zipped(t, time.Unix(0, 0), member{"x", "2"}))), "m.zip")
	if d.Parts != 1 || !slices.Equal(d.Named, []string{"inner.zip"}) {
		t.Errorf("a zip in a zip: %q", d)
	}
}

// hourglass is a context whose deadline comes with the n-th read of a file.
type hourglass struct {
	context.Context
	r    io.ReaderAt
	left int
}

func (h *hourglass) ReadAt(p []byte, off int64) (int, error) {
	h.left--
	return h.r.ReadAt(p, off)
}

func (h *hourglass) Err() error {
	if h.left <= 0 {
		return context.DeadlineExceeded
	}
	return nil
}

func TestTimeIsUp(t *testing.T) {
	size := int64(8 * bufferSize)
	a, b := make([]byte, size), make([]byte, size)
	a[5], a[size-1] = 1, 1
	h := &hourglass{context.Background(), bytes.NewReader(a), 4}
	d, err := Files(h, h, bytes.NewReader(b), size, size, "w.bin")
	if err != nil || d.Complete() || d.Equal() || d.First != 5 || d.Differing != 1 || d.Compared != 4*bufferSize || !strings.Contains(d.String(), "more may differ") {
		t.Errorf("after the difference: %v, %q, %d bytes compared", err, d, d.Compared)
	}
	// Nothing was found, which is not the answer that nothing is there.
	same := bytes.Clone(b)
	same[size-1] = 9
	h = &hourglass{context.Background(), bytes.NewReader(b), 4}
	if d, err := Files(h, h, bytes.NewReader(same), size, size, "w.bin"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("before the difference: %v, %q; want %v", err, d, context.DeadlineExceeded)
	}
	// In the middle of the tensors, of the lines, of the inflating.
	header := `{"a":{"dtype":"U8","shape":[1000000],"data_offsets":[0,1000000]},"b":{"dtype":"U8","shape":[1000000],"data_offsets":[1000000,2000000]}}`
	for _, c := range []struct {
		name string
		a, b []byte
		most int
	}{
		{"m.safetensors", safetensors(header, a[:2000000]...), safetensors(header, b[:2000000]...), 20},
		{"m.txt", []byte(strings.Repeat("a\n", 1<<20)), []byte("b" + strings.Repeat("\na", 1<<20)), 60},
	} {
		whole := files(t, c.a, c.b, c.name)
		for n := 1; ; n++ {
			h := &hourglass{context.Background(), bytes.NewReader(c.a), n}
			d, err := Files(h, h, bytes.NewReader(c.b), int64(len(c.a)), int64(len(c.b)), c.name)
			if err != nil {
				t.Fatalf("%s, %d reads: %v", c.name, n, err)
			}
			if d.First != whole.First || d.Differing > whole.Differing {
				t.Errorf("%s, %d reads: %q, in the end %q", c.name, n, d, whole)
			}
			if !strings.Contains(d.String(), "more may differ") {
				if d.String() != whole.String() {
					t.Errorf("%s, %d reads: %q, in the end %q", c.name, n, d, whole)
				}
				break
			}
			if n == c.most {
				t.Fatalf("%s: more than %d reads", c.name, n)
			}
		}
	}
}
