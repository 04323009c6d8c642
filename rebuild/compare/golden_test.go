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
	for _, name := range []string{"m.onnx.data", "m.onnx_data", "m.onnx.data.3", "m.onnx_data_1"} {
		if d := files(t, []byte{1, 0}, []byte{2, 0}, name); d.Format != ONNXData {
			t.Errorf("Format of %s = %q, want %q", name, d.Format, ONNXData)
		}
	}
}
