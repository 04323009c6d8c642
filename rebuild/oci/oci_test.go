package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/openclaw/clawfs/hashpipe"
)

var (
	day   = time.Unix(1_700_000_000, 0)
	amd64 = Image{Config: Config{OS: "linux", Architecture: "amd64", Env: []string{"PATH=/bin", "A=1"}, WorkingDir: "/w"}}
	roomy = Limits{Bytes: 64 << 20, Entries: 10_000}
)

func dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o700}
}
func link(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}
}
func hard(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}
}
func odd(kind byte, name string) tar.Header {
	return tar.Header{Typeflag: kind, Name: name, Mode: 0o666}
}

// file is a regular file that holds its text as Linkname until archive moves
// it: tests read best with one kind of table entry.
func file(name, text string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: text, Mode: 0o644}
}

func archive(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		var text string
		if h.Typeflag == tar.TypeReg {
			text, h.Linkname = h.Linkname, ""
			h.Size = int64(len(text))
		}
		if h.ModTime.IsZero() {
			h.ModTime = day
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func image(t testing.TB, img Image, layers ...[]byte) (layout string, d hashpipe.Digest) {
	t.Helper()
	layout = filepath.Join(t.TempDir(), "layout")
	var readers []io.Reader
	for _, l := range layers {
		readers = append(readers, bytes.NewReader(l))
	}
	d, err := AppendImage(t.Context(), layout, img, readers...)
	if err != nil {
		t.Fatal(err)
	}
	return layout, d
}

// list shows a tree as lines "mode path content-or-target".
func list(t testing.TB, root string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		st, err := d.Info()
		if err != nil {
			return err
		}
		what := ""
		switch {
		case st.Mode().IsRegular():
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what = string(text)
		case st.Mode()&fs.ModeSymlink != 0:
			if what, err = os.Readlink(path); err != nil {
				return err
			}
		}
		fmt.Fprintf(&b, "%v %s %s\n", st.Mode(), rel, what)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestUnpack(t *testing.T) {
	exec := file("usr/bin/tool", "#!/bin/sh\n")
	exec.Mode = 0o6710
	secret := file("etc/shadow", "root:*\n")
	secret.Mode, secret.Uid = 0o600, 42
	lower := archive(t, dir("./"), dir("usr/"), dir("usr/lib"), link("lib", "usr/lib"), link("abs", "/usr/lib"),
		file("lib/a", "1"), file("abs/b", "2"), exec, secret, hard("usr/bin/same", "usr/bin/tool"),
		file("deep/er/est", "3"), odd(tar.TypeChar, "dev/null"), file("gone", "x"), file("opaque/old", "x"), file("opaque/sub/old", "x"),
		link("away", "/etc"), file("etc/passwd", "lower"))
	upper := archive(t, file(".wh.gone", ""), file("opaque/sub/new", "n"), file("opaque/.wh..wh..opq", ""), file("opaque/new", "n"),
		file("lib/a", "replaced"), file("away/passwd", "upper"), link("etc/link", "../../../../etc/passwd"), file("etc/link", "a file now"), file(".wh.never", ""))
	want := `drwxr-xr-x . 
Lrwxrwxrwx abs /usr/lib
Lrwxrwxrwx away /etc
drwxr-xr-x deep 
drwxr-xr-x deep/er 
-rw-r--r-- deep/er/est 3
drwxr-xr-x etc 
-rw-r--r-- etc/link a file now
-rw-r--r-- etc/passwd upper
-rw-r--r-- etc/shadow root:*

Lrwxrwxrwx lib usr/lib
drwxr-xr-x opaque 
-rw-r--r-- opaque/new n
drwxr-xr-x opaque/sub 
-rw-r--r-- opaque/sub/new n
drwxr-xr-x usr 
drwxr-xr-x usr/bin 
-rwxr-xr-x usr/bin/same #!/bin/sh

-rwxr-xr-x usr/bin/tool #!/bin/sh

drwxr-xr-x usr/lib 
-rw-r--r-- usr/lib/a replaced
-rw-r--r-- usr/lib/b 2
`
	for _, c := range []Compression{Plain, Gzip, Zstd} {
		img := amd64
		img.Compression = c
		layout, d := image(t, img, lower, upper)
		dest := filepath.Join(t.TempDir(), "rootfs")
		cfg, err := Unpack(t.Context(), layout, d, dest, roomy)
		if err != nil {
			t.Errorf("Unpack %q: %v", c, err)
			continue
		}
		if got := list(t, dest); got != want {
			t.Errorf("Unpack %q:\n%s\nwant:\n%s", c, got, want)
		}
		if cfg.Platform() != "linux/amd64" || !slices.Equal(cfg.Env, amd64.Env) || cfg.WorkingDir != "/w" {
			t.Errorf("Unpack %q: configuration %+v", c, cfg)
		}
		for _, p := range []string{".", "usr/lib", "usr/lib/a", "lib"} {
			st, err := os.Lstat(filepath.Join(dest, p))
			if err != nil || !st.ModTime().Equal(day) {
				t.Errorf("Unpack %q: %s has time %v, %v", c, p, st.ModTime(), err)
			}
		}
		only(t, filepath.Dir(dest), "rootfs")
	}
}

// only checks that a directory holds these names: nothing half-made is left.
func only(t *testing.T, dir string, names ...string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range list {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, names) {
		t.Errorf("%s holds %q, want %q", dir, got, names)
	}
}

func TestHostileArchives(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(outside, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	deep := strings.Repeat("d/", 2000) + "f" // [3600:] is 200 directories and a file
	good := archive(t, file("a", "1"))
	for _, tt := range []struct {
		name  string
		layer []byte
		want  string // in the error; "" means it unpacks, harmlessly
	}{
		{"climbing name", archive(t, file("../x", "1")), "leaves the image"},
		{"climbing in the middle", archive(t, file("a/../../x", "1")), "leaves the image"},
		{"climbing inside", archive(t, file("a/b/../x", "1")), "leaves the image"},
		{"absolute name", archive(t, file("/x", "1")), "absolute"},
		{"absolute directory", archive(t, dir("/")), "absolute"},
		{"name of dots", archive(t, dir("..")), "leaves the image"},
		{"file over the root", archive(t, file(".", "1")), "root directory"},
		{"link over the root", archive(t, link("./", "/etc")), "root directory"},
		{"write through absolute link", archive(t, link("l", filepath.Dir(outside)), file("l/victim", "x")), ""},
		{"write through climbing link", archive(t, link("l", strings.Repeat("../", 20)+filepath.Dir(outside)[1:]), file("l/victim", "x")), ""},
		{"write through a chain of links", archive(t, dir("s"), link("s/up", ".."), link("up2", "s/up/.."), file("up2/etc/x", "x")), ""},
		{"write onto a link", archive(t, link("l", outside), file("l", "x")), ""},
		{"directory onto a link", archive(t, link("l", filepath.Dir(outside)), dir("l"), file("l/victim", "x")), ""},
		{"hard link out", archive(t, hard("h", "../../../../etc/passwd")), "leaves the image"},
		{"absolute hard link", archive(t, hard("h", "/etc/passwd")), "absolute"},
		{"hard link through a link", archive(t, link("l", filepath.Dir(outside)), hard("h", "l/victim")), "no such file"},
		{"hard link to a link, then write", archive(t, link("l", outside), hard("h", "l"), file("h", "x")), ""},
		{"hard link to a directory", archive(t, dir("d"), hard("h", "d")), "no file"},
		{"hard link to itself", archive(t, file("h", "x"), hard("h", "h")), "itself"},
		{"hard link to nothing", archive(t, hard("h", "nothing")), "no such file"},
		{"link loop", archive(t, link("a", "b"), link("b", "a"), file("a/x", "1")), "too many levels"},
		{"below a file", archive(t, file("a", "1"), file("a/b", "1")), "not a directory"},
		{"device", archive(t, odd(tar.TypeBlock, "sda")), "device node"},
		{"device below dev", archive(t, odd(tar.TypeChar, "dev/sub/mem")), "device node"},
		{"overlay whiteout device", archive(t, odd(tar.TypeChar, "a")), "device node"},
		{"fifo", archive(t, odd(tar.TypeFifo, "p")), "FIFO"},
		{"unknown type", archive(t, odd('Z', "z")), "unknown type"},
		{"whiteout of parent", archive(t, file(".wh...", "")), "whiteout"},
		{"whiteout of self", archive(t, file("d/.wh..", "")), "whiteout"},
		{"whiteout of nothing", archive(t, file(".wh.", "")), "whiteout"},
		{"whiteout through link", archive(t, link("l", filepath.Dir(outside)), file("l/.wh.victim", ""), file("l/.wh..wh..opq", "")), ""},
		{"2000 directories deep", archive(t, file(deep, "1")), "2001 directories deep"},
		{"1000 directories in 5 entries", archive(t, file("1/"+deep[3600:], "1"), file("2/"+deep[3600:], "1"), file("3/"+deep[3600:], "1"),
			file("4/"+deep[3600:], "1"), file("5/"+deep[3600:], "1")), "larger than allowed: directories"},
		{"too many entries", archive(t, slices.Repeat([]tar.Header{dir("d")}, 1001)...), "larger than allowed: archive entries"},
		{"too many bytes", archive(t, file("a", strings.Repeat("x", 1<<20)), file("b", strings.Repeat("x", 1<<20))), "larger than allowed"},
		{"sparse bomb", sparse(t, 1<<40), "larger than allowed"},
		{"padding bomb", append(bytes.Clone(good), make([]byte, 4<<20)...), "larger than allowed"},
		{"truncated in a file", archive(t, file("a", strings.Repeat("x", 4096)))[:2048], "unexpected EOF"},
		{"truncated in a header", good[:100], "unexpected EOF"},
		{"no archive", []byte(strings.Repeat("no", 512)), "archive/tar"},
		{"garbage after the end", append(bytes.Clone(good), "garbage"...), "after the end"},
		{"second archive after the end", append(bytes.Clone(good), good...), "after the end"},
		{"empty layer", nil, ""},
		{"padding after the end", append(bytes.Clone(good), make([]byte, 10240)...), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			layout, d := image(t, amd64, tt.layer)
			parent := t.TempDir()
			_, err := Unpack(t.Context(), layout, d, filepath.Join(parent, "rootfs"), Limits{Bytes: 2 << 20, Entries: 1000})
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("Unpack: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("Unpack: %v, want an error with %q", err, tt.want)
			}
			if strings.Contains(tt.want, "larger than allowed") != errors.Is(err, errBudget) {
				t.Errorf("Unpack: %v is not about the limits", err)
			}
			if err != nil {
				only(t, parent)
			} else {
				only(t, parent, "rootfs")
			}
			if text, err := os.ReadFile(outside); err != nil || string(text) != "untouched" {
				t.Fatalf("file outside the image: %q, %v", text, err)
			}
			only(t, filepath.Dir(outside), "victim")
		})
	}
}

// sparse is an archive of one file of a terabyte that holds nothing (PAX
// format 1.0 of GNU tar).
func sparse(t testing.TB, size int64) []byte {
	t.Helper()
	content := make([]byte, 512)
	copy(content, fmt.Sprintf("1\n%d\n0\n", size))
	var b bytes.Buffer
	record := func(k, v string) string {
		for n := len(k) + len(v) + 3; ; n++ {
			if r := fmt.Sprintf("%d %s=%s\n", n, k, v); len(r) == n {
				return r
			}
		}
	}
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "big") + record("GNU.sparse.realsize", fmt.Sprint(size))
	block := func(kind byte, name string, n int) {
		h := make([]byte, 512)
		copy(h, name)
		copy(h[100:], fmt.Sprintf("%07o\x00%07o\x00%07o\x00%011o\x00%011o\x00        %c", 0o644, 0, 0, n, 0, kind))
		copy(h[257:], "ustar\x0000")
		sum := 0
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
		b.Write(h)
	}
	block('x', "pax", len(pax))
	b.WriteString(pax + strings.Repeat("\x00", 512-len(pax)%512))
	block('0', "big", len(content))
	b.Write(content)
	b.Write(make([]byte, 1024))
	h, err := tar.NewReader(bytes.NewReader(b.Bytes())).Next()
	if err != nil || h.Size != size {
		t.Fatalf("the sparse archive reads as %+v, %v", h, err)
	}
	return b.Bytes()
}

func TestBombs(t *testing.T) {
	zeros := archive(t, file("zeros", strings.Repeat("\x00", 32<<20)))
	for _, c := range []Compression{Gzip, Zstd} {
		img := amd64
		img.Compression = c
		layout, d := image(t, img, zeros)
		parent := t.TempDir()
		_, err := Unpack(t.Context(), layout, d, filepath.Join(parent, "rootfs"), Limits{Bytes: 1 << 20, Entries: 10})
		if !errors.Is(err, errBudget) {
			t.Errorf("Unpack of a %s bomb: %v, want %v", c, err, errBudget)
		}
		only(t, parent)
	}
	// Many layers of one small blob: the limits are of the image.
	small := archive(t, file("a", strings.Repeat("x", 100<<10)))
	layout, d := image(t, amd64, slices.Repeat([][]byte{small}, 20)...)
	if _, err := Unpack(t.Context(), layout, d, filepath.Join(t.TempDir(), "rootfs"), Limits{Bytes: 1 << 20, Entries: 100}); !errors.Is(err, errBudget) {
		t.Errorf("Unpack of 20 layers: %v, want %v", err, errBudget)
	}
}

// forge changes an image's blobs, manifest or configuration, as a hostile
// layout would, and keeps the digests above the change right.
type forge struct {
	blob     func([]byte) []byte // the stored layer
	name     func(hashpipe.Digest) hashpipe.Digest
	desc     func(*v1.Descriptor)
	config   func(*v1.Image)
	manifest func(*v1.Manifest)
	text     func([]byte) []byte // the manifest's text
}

func (f forge) image(t testing.TB) (string, hashpipe.Digest) {
	t.Helper()
	layout := t.TempDir()
	blobs := filepath.Join(layout, "blobs/sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	store := func(b []byte) hashpipe.Digest {
		d := hashpipe.SumBytes(b).Claim()
		if err := os.WriteFile(filepath.Join(blobs, d.String()), b, 0o644); err != nil {
			t.Fatal(err)
		}
		return d
	}
	name := func(d hashpipe.Digest) digest.Digest { return digest.Digest("sha256:" + d.String()) }
	plain := archive(t, file("a", "1"))
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(plain)
	w.Close()
	stored := z.Bytes()
	if f.blob != nil {
		stored = f.blob(stored)
	}
	desc := v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: name(store(stored)), Size: int64(len(stored))}
	if f.desc != nil {
		f.desc(&desc)
	}
	config := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{name(hashpipe.SumBytes(plain).Claim())}}}
	if f.config != nil {
		f.config(&config)
	}
	text, err := encode(config)
	if err != nil {
		t.Fatal(err)
	}
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: name(store(text)), Size: int64(len(text))}, Layers: []v1.Descriptor{desc}}
	if f.manifest != nil {
		f.manifest(&m)
	}
	if text, err = encode(m); err != nil {
		t.Fatal(err)
	}
	if f.text != nil {
		text = f.text(text)
	}
	d := store(text)
	if f.name != nil {
		d = f.name(d)
	}
	return layout, d
}

// Entries whose names compress to nothing would fill the memory.
func TestNamesBounded(t *testing.T) {
	root, err := openRoot(t.TempDir(), 10)
	if err != nil {
		t.Fatal(err)
	}
	defer root.close()
	if root.names != maxNames {
		t.Errorf("names are bounded by %d bytes, want %d", root.names, maxNames)
	}
	root.names = 10
	left := Limits{Bytes: 1 << 20, Entries: 100}
	err = applyEntries(bytes.NewReader(archive(t, file("12345", "1"), file("67890", "1"), file("x", "1"))), root, &left)
	if !errors.Is(err, errBudget) || !strings.Contains(err.Error(), "paths of more than") {
		t.Errorf("11 bytes of names where 10 are allowed: %v", err)
	}
}

func TestHostileLayouts(t *testing.T) {
	other := digest.Digest("sha256:" + strings.Repeat("ab", 32))
	zip := func(b []byte) []byte {
		var z bytes.Buffer
		w, _ := zstd.NewWriter(&z)
		w.Write(b)
		w.Close()
		return z.Bytes()
	}
	for _, tt := range []struct {
		name string
		f    forge
		want string
	}{
		{"untouched", forge{}, ""},
		{"zero digest", forge{name: func(hashpipe.Digest) hashpipe.Digest { return hashpipe.Digest{} }}, "no digest"},
		{"absent manifest", forge{name: func(hashpipe.Digest) hashpipe.Digest { return hashpipe.SumBytes([]byte("x")).Claim() }}, "no such file"},
		{"layer size too small", forge{desc: func(d *v1.Descriptor) { d.Size-- }}, "its descriptor says"},
		{"layer size too large", forge{desc: func(d *v1.Descriptor) { d.Size++ }}, "its descriptor says"},
		{"layer size negative", forge{desc: func(d *v1.Descriptor) { d.Size = -1 }}, "size -1"},
		{"absent layer", forge{desc: func(d *v1.Descriptor) { d.Digest = other }}, "no such file"},
		{"other algorithm", forge{desc: func(d *v1.Descriptor) { d.Digest = "sha512:" + other[7:] }}, "sha256:"},
		{"path as digest", forge{desc: func(d *v1.Descriptor) { d.Digest = "sha256:../../../../etc/passwd" }}, "layer 1"},
		{"foreign layer", forge{desc: func(d *v1.Descriptor) { d.URLs = []string{"https://elsewhere.example/"} }}, "foreign"},
		{"media type of no layer", forge{desc: func(d *v1.Descriptor) { d.MediaType = "application/octet-stream" }}, "media type"},
		{"gzip said to be plain", forge{desc: func(d *v1.Descriptor) { d.MediaType = v1.MediaTypeImageLayer }}, "archive: "},
		{"gzip said to be zstd", forge{desc: func(d *v1.Descriptor) { d.MediaType = v1.MediaTypeImageLayerZstd }}, "magic number"},
		{"zstd said to be gzip", forge{blob: zip}, "gzip"},
		{"truncated gzip", forge{blob: func(b []byte) []byte { return b[:len(b)-9] }}, "unexpected EOF"},
		{"garbage after gzip", forge{blob: func(b []byte) []byte { return append(b, "garbage"...) }}, "gzip"},
		{"wrong diff id", forge{config: func(c *v1.Image) { c.RootFS.DiffIDs[0] = other }}, "the configuration says"},
		{"no diff id", forge{config: func(c *v1.Image) { c.RootFS.DiffIDs = nil }}, "0 diff ids for 1 layers"},
		{"malformed diff id", forge{config: func(c *v1.Image) { c.RootFS.DiffIDs[0] = "sha256:AB" }}, "diff id 1"},
		{"rootfs of another type", forge{config: func(c *v1.Image) { c.RootFS.Type = "tarballs" }}, "rootfs type"},
		{"no layers", forge{manifest: func(m *v1.Manifest) { m.Layers = nil }}, "no layers"},
		{"129 layers", forge{manifest: func(m *v1.Manifest) { m.Layers = slices.Repeat(m.Layers, 129) }}, "129 layers"},
		{"schema 1", forge{manifest: func(m *v1.Manifest) { m.SchemaVersion = 1 }}, "schema version 1"},
		{"index", forge{manifest: func(m *v1.Manifest) { m.MediaType = v1.MediaTypeImageIndex }}, "one platform"},
		{"artifact", forge{manifest: func(m *v1.Manifest) { m.Config.MediaType = v1.MediaTypeEmptyJSON }}, "media type"},
		{"configuration size", forge{manifest: func(m *v1.Manifest) { m.Config.Size++ }}, "its descriptor says"},
		{"manifest with a duplicate key", forge{text: func(b []byte) []byte { return append([]byte(`{"schemaVersion":2,`), b[1:]...) }}, "duplicate"},
		{"manifest with trailing data", forge{text: func(b []byte) []byte { return append(b, "{}"...) }}, "manifest"},
		{"manifest of 5 MiB", forge{text: func(b []byte) []byte { return append(b, bytes.Repeat([]byte(" "), 5<<20)...) }}, "the limit is"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			layout, d := tt.f.image(t)
			parent := t.TempDir()
			_, err := Unpack(t.Context(), layout, d, filepath.Join(parent, "rootfs"), roomy)
			if tt.want == "" {
				if err != nil {
					t.Errorf("Unpack: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Unpack: %v, want an error with %q", err, tt.want)
			}
			only(t, parent)
		})
	}
}

// Every one-bit change of any blob is refused.
func TestBitFlips(t *testing.T) {
	layout, d := image(t, amd64, archive(t, file("a", "1")))
	blobs, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil || len(blobs) != 3 {
		t.Fatalf("blobs %q, %v", blobs, err)
	}
	parent := t.TempDir()
	for _, b := range blobs {
		text, err := os.ReadFile(b)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(text)*8; i += 97 {
			bad := bytes.Clone(text)
			bad[i/8] ^= 1 << (i % 8)
			if err := os.WriteFile(b, bad, 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := Unpack(t.Context(), layout, d, filepath.Join(parent, "rootfs"), roomy); err == nil || !strings.Contains(err.Error(), "hashes to") {
				t.Fatalf("Unpack with bit %d of %s flipped: %v", i, b, err)
			}
		}
		if err := os.WriteFile(b, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	only(t, parent)
	if _, err := Unpack(t.Context(), layout, d, filepath.Join(parent, "rootfs"), roomy); err != nil {
		t.Errorf("Unpack of the restored image: %v", err)
	}
}

func TestUnpackRefuses(t *testing.T) {
	layout, d := image(t, amd64, archive(t, file("a", "1")))
	dest := t.TempDir()
	if _, err := Unpack(t.Context(), layout, d, dest, roomy); !errors.Is(err, os.ErrExist) {
		t.Errorf("Unpack over a directory: %v, want %v", err, os.ErrExist)
	}
	for _, lim := range []Limits{{}, {Bytes: 1}, {Entries: 1}, {Bytes: -1, Entries: 1}} {
		if _, err := Unpack(t.Context(), layout, d, filepath.Join(dest, "x"), lim); err == nil {
			t.Errorf("Unpack with %+v was allowed", lim)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, layout, d, filepath.Join(dest, "x"), roomy); !errors.Is(err, context.Canceled) {
		t.Errorf("Unpack after cancel: %v", err)
	}
	only(t, dest)
	// A blob that is a link or a FIFO is no blob.
	blob := filepath.Join(layout, "blobs/sha256", d.String())
	os.Rename(blob, blob+"x")
	os.Symlink(blob+"x", blob)
	if _, err := Unpack(t.Context(), layout, d, filepath.Join(dest, "x"), roomy); err == nil {
		t.Error("Unpack followed a link")
	}
}

func TestAppendImage(t *testing.T) {
	layer := archive(t, file("a", strings.Repeat("text ", 100_000)))
	for _, c := range []Compression{Plain, Gzip, Zstd} {
		img := amd64
		img.Compression, img.Ref = c, "base"
		one, d1 := image(t, img, layer)
		two, d2 := image(t, img, layer)
		if d1 != d2 || list(t, one) != list(t, two) {
			t.Errorf("%q: the same input gave %v and %v", c, d1, d2)
		}
		// A new image of the same name takes its line in the index.
		d3, err := AppendImage(t.Context(), one, img, bytes.NewReader(archive(t, file("b", "2"))))
		if err != nil {
			t.Fatal(err)
		}
		img.Ref = "other"
		img.Architecture, img.Variant = "arm", "v7"
		d4, err := AppendImage(t.Context(), one, img, bytes.NewReader(layer))
		if err != nil {
			t.Fatal(err)
		}
		got, err := UnverifiedIndex(one)
		want := []Entry{{d3, "base", "linux/amd64"}, {d4, "other", "linux/arm/v7"}}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("UnverifiedIndex = %v, %v, want %v", got, err, want)
		}
		cfg, err := Inspect(t.Context(), one, d4)
		if err != nil || cfg.Platform() != "linux/arm/v7" {
			t.Errorf("Inspect = %+v, %v", cfg, err)
		}
	}
	layout := t.TempDir()
	for name, img := range map[string]Image{
		"no platform":         {},
		"unknown compression": {Config: amd64.Config, Compression: "lzma"},
	} {
		if _, err := AppendImage(t.Context(), layout, img, bytes.NewReader(layer)); err == nil {
			t.Errorf("AppendImage with %s was allowed", name)
		}
	}
	if _, err := AppendImage(t.Context(), layout, amd64); err == nil {
		t.Error("AppendImage without layers was allowed")
	}
	if _, err := AppendImage(t.Context(), layout, amd64, io.MultiReader(bytes.NewReader(layer), failing{})); err == nil {
		t.Error("AppendImage of a failing reader was allowed")
	}
	only(t, filepath.Join(layout, "blobs/sha256"))
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("disk gone") }

func TestCopies(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{"a": "model", "sub/b": "model", "c": "mode1", "d": "other size"} {
		os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755)
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("a", filepath.Join(root, "link"))
	measure := func(s string) hashpipe.Measurement {
		m, err := hashpipe.Measure(t.Context(), strings.NewReader(s), nil)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	got, err := Copies(t.Context(), root, []hashpipe.Measurement{measure("model"), measure("absent")})
	sum := measure("model").Sum()
	if want := []Copy{{"a", sum}, {"sub/b", sum}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Copies = %v, %v, want %v", got, err, want)
	}
	if got, err := Copies(t.Context(), root, []hashpipe.Measurement{measure("nowhere")}); err != nil || len(got) != 0 {
		t.Errorf("Copies of an absent file = %v, %v", got, err)
	}
	if _, err := Copies(t.Context(), root, []hashpipe.Measurement{{}}); err == nil {
		t.Error("Copies of an unmeasured file was allowed")
	}
	if _, err := Copies(t.Context(), filepath.Join(root, "absent"), nil); err == nil {
		t.Error("Copies in an absent directory was allowed")
	}
}
