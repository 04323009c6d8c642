package rebuild

import (
	"bytes"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
)

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
