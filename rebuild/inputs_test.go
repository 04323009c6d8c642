package rebuild

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tree"
)

// TestDatasetIsCopied: what the build sees is what was verified, whatever
// happens to the original afterwards.
func TestDatasetIsCopied(t *testing.T) {
	from, dest := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	if err := os.WriteFile(filepath.Join(from, "a"), []byte("checked"), 0o644); err != nil {
		t.Fatal(err)
	}
	before, err := os.OpenFile(filepath.Join(from, "a"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	var seen int64
	if err := copyDataset(t.Context(), from, dest, nil, func(n int64) { seen += n }); err != nil {
		t.Fatal(err)
	}
	if err := freeze(dest); err != nil {
		t.Fatal(err)
	}
	root, err := tree.Walk(t.Context(), dest, tree.Data, nil)
	if err != nil {
		t.Fatal(err)
	}
	before.WriteAt([]byte("CHANGED"), 0)
	again, err := tree.Walk(t.Context(), dest, tree.Data, nil)
	if err != nil || again != root || seen != 7 {
		t.Errorf("the copy changed with its original: %v, %v (%d bytes seen)", again, err, seen)
	}
	info, err := os.Stat(filepath.Join(dest, "a"))
	if err != nil || info.Mode().Perm() != 0o444 || info.ModTime().Unix() != inputTime {
		t.Errorf("the copy is %v of %v", info.Mode(), info.ModTime())
	}
	if err := removeTree(dest); err != nil {
		t.Error(err)
	}
}

func TestDatasetRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(dir string) error
		size verifier.Annotations
		want string
	}{
		{"symlink", func(d string) error { return os.Symlink("/etc/passwd", d+"/a") }, verifier.Annotations{Files: 9, Bytes: 9}, "symlink"},
		{"directory symlink", func(d string) error { return os.Symlink("/etc", d+"/a") }, verifier.Annotations{Files: 9, Bytes: 9}, "symlink"},
		{"named pipe", func(d string) error { return syscall.Mkfifo(d+"/a", 0o600) }, verifier.Annotations{Files: 9, Bytes: 9}, "named pipe"},
		{"too many files", func(d string) error {
			return errors.Join(os.WriteFile(d+"/a", nil, 0o600), os.WriteFile(d+"/b", nil, 0o600))
		}, verifier.Annotations{Files: 1, Bytes: 9}, "more than the 1 files"},
		{"too many bytes", func(d string) error { return os.WriteFile(d+"/a", []byte("0123456789"), 0o600) }, verifier.Annotations{Files: 1, Bytes: 9}, "9 bytes"},
	} {
		dir := t.TempDir()
		if err := c.make(dir); err != nil {
			t.Fatal(err)
		}
		err := copyDataset(t.Context(), dir, filepath.Join(t.TempDir(), "copy"), &c.size, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := copyDataset(ctx, t.TempDir(), filepath.Join(t.TempDir(), "copy"), nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled copy: %v", err)
	}
}

func TestLocalPath(t *testing.T) {
	for hint, want := range map[string]string{"/a/b": "/a/b", "file:///a//b/": "/a/b"} {
		if got, err := localPath("lockfile", "--lockfile FILE", hint); err != nil || got != want {
			t.Errorf("localPath(%q) = %q, %v, want %q", hint, got, err, want)
		}
	}
	for _, hint := range []string{"", "a", "./a", "https://data.example/corpus/", "oci://registry.example/x", "file://host/a", "pkg:generic/requirements.lock"} {
		if got, err := localPath("lockfile", "--lockfile FILE", hint); err == nil || !strings.Contains(err.Error(), "--lockfile FILE") {
			t.Errorf("localPath(%q) = %q, %v, want a refusal that names --lockfile", hint, got, err)
		}
	}
}

func TestMentions(t *testing.T) {
	m, err := hashpipe.Measure(t.Context(), strings.NewReader("weights"), nil)
	if err != nil {
		t.Fatal(err)
	}
	sum, verity := m.Sum().String(), m.Tree().Claim().String()
	escaped := strings.Replace(sum, sum[:1], `\u00`+hexByte(sum[0]), 1)
	for text, want := range map[string]string{
		sum: "SHA-256 in hex", strings.ToUpper(sum): "SHA-256 in hex", sum[:32] + strings.ToUpper(sum[32:]): "SHA-256 in hex",
		"sha256-" + sum + ".bin": "SHA-256 in hex", verity: "fs-verity in hex", escaped: "SHA-256 in hex",
		sum[:63]: "", "weights": "", strings.Repeat("0", 64): "",
	} {
		if got := mentions([]byte(`{"argv":["`+text+`"]}`), m); got != want {
			t.Errorf("mentions(%q) = %q, want %q", text, got, want)
		}
	}
	if got := mentions([]byte(`{}`), hashpipe.Measurement{}); got == "" {
		t.Error("a measurement of nothing is mentioned nowhere")
	}
}

func hexByte(c byte) string {
	const digits = "0123456789abcdef"
	return string([]byte{digits[c>>4], digits[c&15]})
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"plain ü 漢\n\ttext": "plain ü 漢\n\ttext",
		"\x1b[2J\r\x00\x7f": `\x1b[2J\x0d\x00\x7f`,
		"a\xff\xfeb":        `a\xff\xfeb`,
		"\u202egnp.exe":     `\u202egnp.exe`,
		"\u009b2J":          `\u009b2J`,
		"\ufeff\u200b":      `\ufeff\u200b`,
	} {
		if got := escape(in); got != want {
			t.Errorf("escape(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestLogWriter(t *testing.T) {
	var out bytes.Buffer
	l := &logWriter{w: &out, left: 20}
	for _, b := range []byte("aü漢\x1b\xffz") { // one byte at a time: sequences are put together
		if n, err := l.Write([]byte{b}); n != 1 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if got, want := out.String(), `aü漢\x1b\xffz`; got != want {
		t.Errorf("log is %q, want %q", got, want)
	}
	for range 1000 {
		if n, err := l.Write([]byte("0123456789")); n != 10 || err != nil {
			t.Fatalf("Write past the limit = %d, %v, want it to succeed", n, err)
		}
	}
	if got := out.String(); len(got) > 80 || strings.Count(got, "[the log ends here") != 1 {
		t.Errorf("log is %q (%d bytes), want it to end once", got, len(got))
	}
}

func TestHostPlatform(t *testing.T) {
	p := HostPlatform()
	if p.OS != "linux" || p.Accelerator != "none" {
		t.Errorf("HostPlatform() = %+v", p)
	}
	if err := sameClass(p, sandbox.ThisHost().CPUFeatures, p); err != nil {
		t.Errorf("this machine is not comparable with itself: %v", err)
	}
	if err := sameClass(p, nil, verifier.Platform{OS: p.OS, Arch: p.Arch, Accelerator: "none", CPUFeatures: []string{"avx2"}}); err == nil {
		t.Error("a processor without known features is comparable with one of avx2")
	}
	if err := sameClass(p, nil, verifier.Platform{}); err == nil {
		t.Error("the zero platform is comparable")
	}
}
