package compare

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRealFiles compares pairs that torch, numpy, ONNX, XGBoost and h5py wrote
// (testdata/make.py).
func TestRealFiles(t *testing.T) {
	for _, c := range []struct {
		name   string // the pair is NAME1.EXT and NAME2.EXT
		format Format
		want   []string // in String
	}{
		{"torch.pt", TorchZip, []string{
			"2 of 6 members differ (m/data/0 (tensor 0.weight), m/data/2 (tensor 2.scale))", "2 of 4 tensors differ",
			"1 F32 value differs, by up to 3 ULP (0.weight[1]: -0.8181818 and -0.818182)",
			"1 F64 value differs, by up to 1 ULP (2.scale[1]: 2.5 and 2.5000000000000004)"}},
		{"module.pt", TorchZip, []string{"1 of 2 tensors differ", "up to 1 ULP (bias[0]: 1.5 and 1.5000001)"}},
		{"legacy.pt", TorchLegacy, []string{"bytes differ"}},
		{"stored.npz", NPZ, []string{"1 of 2 members differ (w.npy)", "1 F16 value differs, by up to 2 ULP (w.npy[1]: 0.14282227 and"}},
		{"deflated.npz", NPZ, []string{"1 of 2 members differ (w.npy)", "1 F16 value differs, by up to 2 ULP (w.npy[1]: 0.14282227 and"}},
		{"array.npy", NPY, []string{"1 of 1 array differ", "1 F64 value differs, by up to 1 ULP (values[1]: 1.25 and 1.2500000000000002)"}},
		{"model.onnx", ONNX, []string{"1 of 2 tensors differ (fc.weight)", "by up to 1 ULP (fc.weight[1]: 1 and 1.0000001)"}},
		{"xgboost.json", XGBoostJSON, []string{"1 of 1 line differ", `split_conditions\":[1.9E1,-4.2857146E-1`[6:], "-5.714286E-1"}},
		{"xgboost.ubj", XGBoostUBJ, []string{"bytes differ"}},
		{"data.h5", HDF5, []string{"1 of 2072 bytes differ"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			stem, ext, _ := strings.Cut(c.name, ".")
			var pair [2][]byte
			for i, which := range []string{"1", "2"} {
				var err error
				if pair[i], err = os.ReadFile(filepath.Join("testdata", stem+which+"."+ext)); err != nil {
					t.Fatal(err)
				}
			}
			d := files(t, pair[0], pair[1], c.name)
			if d.Format != c.format {
				t.Errorf("Format = %q, want %q", d.Format, c.format)
			}
			for _, w := range c.want {
				if !strings.Contains(d.String(), w) {
					t.Errorf("String() = %q, want %q in it", d, w)
				}
			}
		})
	}
}

// Values that no buffer holds whole are not counted as floats, but are compared.
func TestUnalignedArray(t *testing.T) {
	data, err := os.ReadFile("testdata/array1.npy")
	if err != nil {
		t.Fatal(err)
	}
	var pair [2][]byte
	for i := range pair {
		pair[i] = append(append(append([]byte{}, data[:127]...), " \n"...), data[128:]...) // one byte more of header
		pair[i][8]++
		pair[i][len(pair[i])-1] = byte(i)
	}
	if d := files(t, pair[0], pair[1], "a.npy"); d.DifferingParts != 1 || len(d.Floats) != 0 {
		t.Errorf("%q, %v", d, d.Floats)
	}
}

// The graph of an ONNX model differs, its tensors do not; and what is cut off
// is compared as bytes.
func TestONNXGraph(t *testing.T) {
	a, err := os.ReadFile("testdata/model1.onnx")
	if err != nil {
		t.Fatal(err)
	}
	b := []byte(strings.Replace(string(a), "Gemm", "Mmmm", 1))
	if d := files(t, a, b, "model.onnx"); !d.HeaderOnly || !strings.Contains(d.String(), "only the header differs: all 2 tensors have equal bytes") {
		t.Errorf("another operator: %q", d)
	}
	if d := files(t, a, a[:len(a)-3], "model.onnx"); d.Part != "" || !strings.Contains(d.String(), "second build's ONNX header is unreadable") {
		t.Errorf("a model without its end: %q", d)
	}
	// Another protobuf that begins alike, and a graph without tensors.
	saved := func(last byte) []byte { return append([]byte{8, 1}, proto(2, []byte{0x0a, 1, last})...) }
	if d := files(t, saved(1), saved(2), "saved_model.pb"); d.Format != Bytes || d.Part != "" {
		t.Errorf("a protobuf without graph: %q, %q", d.Format, d)
	}
	empty := func(name string) []byte { return append([]byte{8, 8}, proto(modelGraph, proto(2, []byte(name)))...) }
	if d := files(t, empty("a"), empty("b"), "m.onnx"); d.Format != ONNX || d.Part != "" || d.HeaderOnly {
		t.Errorf("a graph without tensors: %q, %q", d.Format, d)
	}
	// Values in a packed field are values too; those of another file are not here.
	typed := func(v byte) []byte {
		t := append([]byte{tensorType << 3, 1}, proto(tensorName, []byte("w"))...)
		outside := append([]byte{tensorType << 3, 1, tensorLocation << 3, 1}, proto(tensorName, []byte("far"))...)
		return append([]byte{8, 8}, proto(modelGraph, append(proto(graphInitializer, append(t, proto(tensorFloats, []byte{v, 0, 0x80, 0x3f})...)), proto(graphInitializer, outside)...))...)
	}
	if d := files(t, typed(1), typed(3), "m.onnx"); d.Parts != 1 || !strings.Contains(d.String(), "1 F32 value differs, by up to 2 ULP (w[0]") {
		t.Errorf("packed floats: %q", d)
	}
	for _, name := range []string{"m.onnx.data", "m.onnx_data", "m.onnx.data.3", "m.onnx_data_1"} {
		if d := files(t, []byte{1, 0}, []byte{2, 0}, name); d.Format != ONNXData {
			t.Errorf("Format of %s = %q, want %q", name, d.Format, ONNXData)
		}
	}
}
