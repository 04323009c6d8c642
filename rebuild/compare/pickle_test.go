package compare

import (
	"archive/zip"
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
)

// pickleOf is the data.pkl of a real file.
func pickleOf(tb testing.TB, name string) []byte {
	tb.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		tb.Fatal(err)
	}
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		tb.Fatal(err)
	}
	f, err := z.Open("m/data.pkl")
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	pickle, err := io.ReadAll(f)
	if err != nil {
		tb.Fatal(err)
	}
	return pickle
}

func TestTorchStorages(t *testing.T) {
	pickle := pickleOf(t, "torch1.pt")
	got := torchStorages(pickle)
	want := map[string]storage{"0": {"F32", "0.weight"}, "1": {"F16", "0.bias"}, "2": {"F64", "2.scale"}, "3": {"BF16", "2.half"}}
	if len(got) != len(want) {
		t.Errorf("torchStorages = %v, want %v", got, want)
	}
	for key, s := range want {
		if got[key] != s {
			t.Errorf("storage %s = %v, want %v", key, got[key], s)
		}
	}
	// Cut off anywhere, it stops with what it has.
	for n := range pickle {
		for key, s := range torchStorages(bytes.Clone(pickle[:n])) {
			if want[key] != s {
				t.Errorf("the first %d bytes: storage %s = %v", n, key, s)
			}
		}
	}
	// A string that claims to be longer than the pickle, and opcodes that
	// torch.save does not write: INST and a line that never ends.
	for _, hostile := range []string{
		"\x80\x02X\xff\xff\xff\x7fx", "\x80\x02X\xff\xff\xff\xffx", "\x80\x02U\xffx", "\x8a\xffx", "ios\nsystem\n", "c" + strings.Repeat("x", 1<<20), "h\x05Q", "Q",
	} {
		if got := torchStorages([]byte(hostile)[:len(hostile):len(hostile)]); len(got) != 0 {
			t.Errorf("torchStorages(%.20q) = %v", hostile, got)
		}
	}
}

func FuzzTorchStorages(f *testing.F) {
	f.Add(pickleOf(f, "torch1.pt"))
	f.Add(pickleOf(f, "module1.pt"))
	f.Fuzz(func(t *testing.T, pickle []byte) {
		for _, s := range torchStorages(pickle) {
			if len(s.tensor) > 4*maxShown*2+1 {
				t.Errorf("a name of %d bytes", len(s.tensor))
			}
		}
	})
}
