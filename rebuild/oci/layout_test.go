package oci

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/openclaw/clawfs/hashpipe"
)

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
