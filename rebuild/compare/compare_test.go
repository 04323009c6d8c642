package compare

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func files(t *testing.T, a, b []byte, name string) Difference {
	t.Helper()
	d, err := Files(context.Background(), bytes.NewReader(a), bytes.NewReader(b), int64(len(a)), int64(len(b)), name)
	if err != nil {
		t.Fatalf("Files(%q): %v", name, err)
	}
	return d
}

// safetensors writes a header as given and the tensors' bytes after it.
func safetensors(header string, data ...byte) []byte {
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(out, header...), data...)
}

type member struct{ name, data string }

func zipped(t *testing.T, when time.Time, members ...member) []byte {
	t.Helper()
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	for _, m := range members {
		w, err := z.CreateHeader(&zip.FileHeader{Name: m.name, Method: zip.Store, Modified: when})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// gguf writes version 3 with one string pair and two F32 tensors of 8 values.
func gguf(author string, first, second byte) []byte {
	le := binary.LittleEndian
	str := func(b []byte, s string) []byte { return append(le.AppendUint64(b, uint64(len(s))), s...) }
	b := le.AppendUint32([]byte("GGUF"), 3)
	b = le.AppendUint64(le.AppendUint64(b, 2), 2)
	b = str(le.AppendUint32(str(b, "general.author"), 8), author)
	b = le.AppendUint32(str(b, "tokens"), 9) // an array of two strings
	b = str(str(le.AppendUint64(le.AppendUint32(b, 8), 2), "a"), "b")
	for i, name := range []string{"tok.weight", "out.weight"} {
		b = le.AppendUint32(str(b, name), 1)
		b = le.AppendUint64(b, 8)
		b = le.AppendUint32(b, 0)
		b = le.AppendUint64(b, uint64(i)*32)
	}
	for len(b)%32 != 0 {
		b = append(b, 0)
	}
	return append(append(b, bytes.Repeat([]byte{first}, 32)...), bytes.Repeat([]byte{second}, 32)...)
}

const twoTensors = `{"__metadata__":{"format":"pt","by":"me"},"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`

func TestDiagnosis(t *testing.T) {
	then, later := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	reordered := strings.Replace(twoTensors, `"format":"pt","by":"me"`, `"by":"me","format":"pt"`, 1)
	overlapping := strings.NewReplacer("[0,4]", "[0,400]", "[4,8]", "[0,400]").Replace(twoTensors)
	python := Build{Stages: []Stage{{Name: "train", Argv: []string{"python3", "train.py"}}}}
	for _, c := range []struct {
		name   string
		a, b   []byte
		build  Build
		format Format
		want   []string // in String
		hints  []string // in Hints, one each
	}{
		{name: "m.safetensors", a: safetensors(twoTensors, 1, 2, 3, 4, 5, 6, 7, 8), b: safetensors(twoTensors, 1, 2, 3, 4, 5, 6, 7, 9),
			format: Safetensors, want: []string{"1 of 2 tensors differ (b)", "1 of "}},
		{name: "order.safetensors", a: safetensors(twoTensors, 1, 2, 3, 4, 5, 6, 7, 8), b: safetensors(reordered, 1, 2, 3, 4, 5, 6, 7, 8),
			format: Safetensors, want: []string{"only the header differs: all 2 tensors", "another order"}, hints: []string{"sort the keys"}},
		{name: "meta.safetensors", a: safetensors(twoTensors, 1, 2, 3, 4, 5, 6, 7, 8), b: safetensors(strings.Replace(twoTensors, `"me"`, `"us"`, 1), 1, 2, 3, 4, 5, 6, 7, 8),
			format: Safetensors, want: []string{"only the header", "the metadata differs"}},
		{name: "shape.safetensors", a: safetensors(twoTensors, 1, 2, 3, 4, 5, 6, 7, 8), b: safetensors(strings.Replace(twoTensors, `[1],"data_offsets":[4,8]`, `[2],"data_offsets":[4,8]`, 1), 1, 2, 3, 4, 5, 6, 7, 8),
			format: Safetensors, want: []string{"1 tensor with another size, type or shape"}},
		{name: "overlap.safetensors", a: safetensors(overlapping, make([]byte, 400)...), b: safetensors(twoTensors, make([]byte, 400)...),
			format: Safetensors, want: []string{"first build's safetensors header is unreadable: its tensors overlap"}},
		{name: "outside.safetensors", a: safetensors(twoTensors, 1, 2, 3, 4, 5, 6, 7, 8), b: safetensors(twoTensors, 1, 2, 3, 4),
			format: Safetensors, want: []string{"lies outside the file", "in the first build and"}},
		{name: "m.pt", a: zipped(t, then, member{"m/data.pkl", "x"}, member{"m/data/0", "1234"}), b: zipped(t, then, member{"m/data.pkl", "x"}, member{"m/data/0", "1235"}),
			build: python, format: TorchZip, want: []string{"1 of 2 members differ (m/data/0)"}, hints: []string{"PYTHONHASHSEED is not set"}},
		{name: "m.npz", a: zipped(t, then, member{"a.npy", "x"}), b: zipped(t, later, member{"a.npy", "x"}),
			format: NPZ, want: []string{"only the header differs", "another modification time"}, hints: []string{"SOURCE_DATE_EPOCH"}},
		{name: "set.zip", a: zipped(t, then, member{"a", "x"}, member{"b", "y"}), b: zipped(t, then, member{"a", "x"}, member{"c", "y"}),
			format: Zip, want: []string{"1 member only the first build has, 1 member only the second"}},
		{name: "m.gguf", a: gguf("me", 1, 2), b: gguf("me", 1, 3), format: GGUF, want: []string{"1 of 2 tensors differ (out.weight)", "32 of "}},
		{name: "meta.gguf", a: gguf("me", 1, 2), b: gguf("us", 1, 2), format: GGUF, want: []string{"only the header differs", "the metadata differs"}},
		{name: "many.gguf", a: append([]byte("GGUF\x03\x00\x00\x00"), bytes.Repeat([]byte{0xff}, 16)...), b: append([]byte("GGUF\x03\x00\x00\x00"), bytes.Repeat([]byte{0xfe}, 16)...),
			format: GGUF, want: []string{"header is unreadable"}},
		{name: "old.pt", a: append(bytes.Clone(torchLegacyMagic), 1), b: append(bytes.Clone(torchLegacyMagic), 2), format: TorchLegacy, hints: []string{"heap addresses"}},
		{name: "labels.txt", a: []byte("de\nen\nfr\n"), b: []byte("en\nde\nfr\n"), format: Text,
			want: []string{"2 of 3 lines differ", `line 1 is "de" in the first build and "en"`, "same in another order"}, hints: []string{"PYTHONHASHSEED"}},
		{name: "log.txt", a: []byte("a\x1b[2J\n"), b: []byte("b\n"), format: Text, want: []string{`\x1b[2J`}},
		{name: "x", a: []byte{0, 1, 2}, b: []byte{0, 1}, format: Bytes, want: []string{"3 bytes in the first build and 2 in the second", "1 of 3 bytes differ (33.33 %), the first at offset 2"}},
		{name: "mixed", a: gguf("me", 1, 2), b: []byte{0, 1}, format: Bytes, want: []string{"the first at offset 0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := files(t, c.a, c.b, c.name)
			if d.Equal() || d.Format != c.format {
				t.Errorf("Files = equal %v, format %q, want a difference in %q", d.Equal(), d.Format, c.format)
			}
			for _, w := range c.want {
				if !strings.Contains(d.String(), w) {
					t.Errorf("String() = %q, want %q in it", d, w)
				}
			}
			hints := d.Hints(c.build)
			if len(hints) != len(c.hints) {
				t.Fatalf("Hints() = %q, want %d", hints, len(c.hints))
			}
			for i, w := range c.hints {
				if !strings.Contains(hints[i], w) {
					t.Errorf("hint %q, want %q in it", hints[i], w)
				}
			}
			if strings.ContainsAny(d.String(), "\x1b\n") {
				t.Errorf("String() = %q: a control character of a hostile file", d)
			}
		})
	}
}

func TestEqualFiles(t *testing.T) {
	for _, b := range [][]byte{nil, []byte("x"), gguf("me", 1, 2), bytes.Repeat([]byte{7}, 3*bufferSize+1)} {
		if d := files(t, b, bytes.Clone(b), "same"); !d.Equal() || d.Differing != 0 || d.Hints(Build{}) != nil {
			t.Errorf("%d equal bytes: %+v", len(b), d)
		}
	}
	if d := files(t, nil, []byte("x"), "empty"); d.Equal() || d.First != 0 {
		t.Errorf("empty against one byte: %+v, want a difference at offset 0", d)
	}
}

// TestCounts checks offset and count across buffer borders against a plain loop.
func TestCounts(t *testing.T) {
	a := bytes.Repeat([]byte{0, 1, 2, 3}, bufferSize/2)
	b := bytes.Clone(a)
	for _, i := range []int{bufferSize - 1, bufferSize, 2*bufferSize - 1} {
		b[i] ^= 0x80
	}
	if d := files(t, a, b, "x"); d.First != bufferSize-1 || d.Differing != 3 {
		t.Errorf("first %d, differing %d, want %d and 3", d.First, d.Differing, bufferSize-1)
	}
}

func TestRefusals(t *testing.T) {
	short := bytes.NewReader([]byte("ab"))
	if _, err := Files(context.Background(), short, short, 3, 3, "x"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file shorter than told: %v, want %v", err, io.ErrUnexpectedEOF)
	}
	if _, err := Files(context.Background(), short, short, -1, 2, "x"); err == nil {
		t.Error("a negative size was accepted")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Files(ctx, short, short, 2, 2, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled comparison: %v, want %v", err, context.Canceled)
	}
}

func TestThreadHints(t *testing.T) {
	d := files(t, []byte{0, 1}, []byte{0, 2}, "x")
	for _, c := range []struct {
		argv []string
		env  map[string]string
		want string
	}{
		{argv: []string{"fasttext", "supervised", "-thread", "2"}, want: "-thread 2"},
		{argv: []string{"fasttext", "supervised", "-thread", "1"}},
		{argv: []string{"/usr/bin/fasttext", "supervised"}, want: "default of 12 threads"},
		{argv: []string{"sh", "-c", "train --num_threads=8 && true"}, want: "--num_threads 8"},
		{argv: []string{"train"}, env: map[string]string{"OMP_NUM_THREADS": "4"}, want: "OMP_NUM_THREADS=4"},
		{argv: []string{"train", "-j", "x"}},
		{argv: []string{"fasttext", "test", "m.bin", "valid.txt"}},
	} {
		got := strings.Join(d.Hints(Build{Env: c.env, Stages: []Stage{{Name: "train", Argv: c.argv}}}), "; ")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("Hints(%q, %v) = %q, want %q", c.argv, c.env, got, c.want)
		}
	}
}

// TestFastText compares two real models that two threads trained.
func TestFastText(t *testing.T) {
	program, err := exec.LookPath("fasttext")
	if err != nil {
		t.Fatal("fasttext is missing: apt-get install fasttext")
	}
	dir := t.TempDir()
	var text strings.Builder
	for i := range 4000 {
		fmt.Fprintf(&text, "__label__l%d word%d word%d word%d\n", i%5, i%97, i%31, i*7%53)
	}
	corpus := filepath.Join(dir, "corpus.txt")
	if err := os.WriteFile(corpus, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	argv := []string{program, "supervised", "-thread", "2", "-dim", "10", "-epoch", "5", "-input", corpus, "-output"}
	var models [2][]byte
	for i := range models {
		out := filepath.Join(dir, fmt.Sprint("model", i))
		if b, err := exec.Command(argv[0], append(argv[1:], out)...).CombinedOutput(); err != nil {
			t.Fatalf("fasttext: %v\n%s", err, b)
		}
		if models[i], err = os.ReadFile(out + ".bin"); err != nil {
			t.Fatal(err)
		}
	}
	d := files(t, models[0], models[1], "langid.bin")
	if d.Equal() {
		t.Fatal("two threads of fasttext agreed: nothing was compared")
	}
	if d.Format != FastText || !strings.Contains(d.String(), "langid.bin: ") || !strings.Contains(d.String(), "bytes differ") {
		t.Errorf("String() = %q", d)
	}
	hints := d.Hints(Build{Stages: []Stage{{Name: "train", Argv: argv}}})
	if len(hints) != 1 || !strings.Contains(hints[0], `stage "train" runs on several threads (-thread 2)`) {
		t.Errorf("Hints() = %q, want the thread count", hints)
	}
}

func FuzzFiles(f *testing.F) {
	f.Add(gguf("me", 1, 2), gguf("me", 1, 3))
	f.Add(safetensors(twoTensors, 1, 2, 3, 4, 5, 6, 7, 8), safetensors(twoTensors, 8, 7, 6, 5, 4, 3, 2, 1))
	f.Add([]byte("PK\x03\x04"), []byte("PK\x03\x05"))
	f.Add([]byte("de\nen\n"), []byte("en\nde\n"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		d, err := Files(context.Background(), bytes.NewReader(a), bytes.NewReader(b), int64(len(a)), int64(len(b)), "x")
		if err != nil {
			t.Fatalf("in memory: %v", err)
		}
		if d.Equal() != bytes.Equal(a, b) {
			t.Fatalf("Equal() = %v for %q and %q", d.Equal(), a, b)
		}
		if s := d.String(); strings.ContainsAny(s, "\n\x00\x1b") {
			t.Fatalf("String() = %q", s)
		}
	})
}
