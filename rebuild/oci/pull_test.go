package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

func options() Options {
	return Options{Bytes: 64 << 20, Platform: Config{OS: "linux", Architecture: "amd64"}, Transport: &http.Transport{}, Stall: 20 * time.Second}
}

// twoLayers is an image of two layers, the first of them of a few megabytes that
// do not compress, and its manifest's digest.
func twoLayers(t testing.TB) (layout string, d hashpipe.Digest) {
	t.Helper()
	img := amd64
	img.Ref = "v1"
	return image(t, img, archive(t, file("noise", noise())), archive(t, file("b", "2")))
}

var noise = sync.OnceValue(func() string {
	b := make([]byte, 3<<20)
	x := uint64(88172645463325252)
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
	return string(b)
})

// store adds a blob to a layout.
func store(t testing.TB, layout, mediaType string, text []byte) v1.Descriptor {
	t.Helper()
	d := hashpipe.SumBytes(text)
	dir := filepath.Join(layout, "blobs/sha256")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, d.String()), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return v1.Descriptor{MediaType: mediaType, Digest: digest.Digest("sha256:" + d.String()), Size: int64(len(text))}
}

// index adds an image index to a layout.
func index(t testing.TB, layout string, members ...v1.Descriptor) v1.Descriptor {
	t.Helper()
	text, err := encode(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: members})
	if err != nil {
		t.Fatal(err)
	}
	return store(t, layout, v1.MediaTypeImageIndex, text)
}

// describe is the descriptor of a manifest in a layout.
func describe(t testing.TB, layout string, d hashpipe.Digest, arch string) v1.Descriptor {
	t.Helper()
	st, err := os.Stat(filepath.Join(layout, "blobs/sha256", d.String()))
	if err != nil {
		t.Fatal(err)
	}
	return v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: digest.Digest("sha256:" + d.String()), Size: st.Size(), Platform: &v1.Platform{OS: "linux", Architecture: arch}}
}

// pack makes a tar file of a directory, and of more entries.
func pack(t testing.TB, dir string, more ...tar.Header) string {
	t.Helper()
	var entries []tar.Header
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if e.IsDir() {
			entries = append(entries, tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755})
			return nil
		}
		text, err := os.ReadFile(path)
		entries = append(entries, file(name, string(text)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(name, archive(t, append(entries, more...)...), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// checkPulled checks that dest is a layout of the one image and nothing else.
func checkPulled(t testing.TB, dest string, d hashpipe.Digest) {
	t.Helper()
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	if _, err := Unpack(t.Context(), dest, d, rootfs, roomy); err != nil {
		t.Errorf("Unpack of what was pulled: %v", err)
	} else if text, err := os.ReadFile(filepath.Join(rootfs, "b")); err != nil || string(text) != "2" {
		t.Errorf("b = %q, %v", text, err)
	}
	entries, err := UnverifiedIndex(dest)
	if want := []Entry{{Manifest: d, Platform: "linux/amd64"}}; err != nil || !slices.Equal(entries, want) {
		t.Errorf("index.json of what was pulled: %v, %v, want %v", entries, err, want)
	}
	if blobs, err := filepath.Glob(filepath.Join(dest, "blobs/sha256/*")); err != nil || len(blobs) != 4 {
		t.Errorf("blobs %q, %v, want 4", blobs, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dest, "blobs/sha256/.*")); len(left) != 0 {
		t.Errorf("%q was left", left)
	}
}

func TestPullLocal(t *testing.T) {
	layout, d := twoLayers(t)
	spaced := filepath.Join(t.TempDir(), "a b%")
	if err := os.Symlink(layout, spaced); err != nil {
		t.Fatal(err)
	}
	multi := index(t, layout, describe(t, layout, d, "amd64"))
	outer := index(t, layout, multi)
	for name, from := range map[string]string{
		"layout":                    layout,
		"file URL":                  "file://" + strings.ReplaceAll(strings.ReplaceAll(spaced, "%", "%25"), " ", "%20"),
		"layout and digest":         layout + "@sha256:" + d.String(),
		"layout and index":          layout + "@" + string(multi.Digest),
		"layout and index of index": layout + "@" + string(outer.Digest),
		"oci-archive":               pack(t, layout),
		"docker save of Docker 25":  pack(t, layout, file("manifest.json", `[{"Config":"x"}]`), file("repositories", "{}")),
		"archive and index":         pack(t, layout) + "@" + string(multi.Digest),
		"archive with ./":           pack(t, filepath.Dir(layout), file("./index.json", "{}"), file("./blobs/sha256/"+d.String(), "no")) + "!",
	} {
		t.Run(name, func(t *testing.T) {
			if strings.HasSuffix(from, "!") { // a lie in the last entry of a name
				from = strings.TrimSuffix(from, "!")
				if err := Pull(t.Context(), from, d, t.TempDir(), options()); !errors.Is(err, ErrOtherBytes) {
					t.Errorf("Pull of a lie: %v, want %v", err, ErrOtherBytes)
				}
				return
			}
			dest := filepath.Join(t.TempDir(), "a", "dest")
			var seen int64
			o := options()
			o.Seen = func(n int64) { seen += n }
			if err := Pull(t.Context(), from, d, dest, o); err != nil {
				t.Fatal(err)
			}
			checkPulled(t, dest, d)
			if seen < 3<<20 {
				t.Errorf("%d bytes seen", seen)
			}
			seen = 0
			if err := Pull(t.Context(), from, d, dest, o); err != nil || seen != 0 {
				t.Errorf("second Pull: %v, %d bytes came", err, seen)
			}
		})
	}
}

func TestPullLocalRefuses(t *testing.T) {
	layout, d := twoLayers(t)
	other, otherD := image(t, amd64, archive(t, file("a", "1")))
	text, err := os.ReadFile(filepath.Join(layout, "blobs/sha256", d.String()))
	if err != nil {
		t.Fatal(err)
	}
	arm := index(t, layout, describe(t, layout, d, "arm64"))
	wrong := index(t, other, describe(t, other, otherD, "amd64"))
	deep := arm
	for range maxIndexDepth {
		deep = index(t, layout, deep)
	}
	var many []v1.Descriptor
	for i := range maxIndexes {
		many = append(many, index(t, layout, describe(t, layout, d, strings.Repeat("x", i+1))))
	}
	wide := index(t, layout, many...)
	lying := store(t, layout, v1.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"`+v1.MediaTypeImageIndex+`","digest":"`+string(arm.Digest)+`","size":7}]}`))
	compressed := filepath.Join(t.TempDir(), "a.tar.gz")
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := errors.Join(os.WriteFile(compressed, []byte("\x1f\x8b\x08\x00"), 0o644), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	ruined := pack(t, layout)
	if err := os.Truncate(ruined, 2<<20); err != nil {
		t.Fatal(err)
	}
	oldSave := pack(t, t.TempDir(), file("manifest.json", "[]"), file("abc/layer.tar", "x"))
	nothing := pack(t, t.TempDir(), file("readme", "x"))
	pin := func(desc v1.Descriptor) string { return layout + "@" + string(desc.Digest) }
	for _, tt := range []struct {
		name, from string
		want       hashpipe.Digest
		change     func(*Options)
		text       string
		is         error // or nil: neither
	}{
		{"no location", "", d, nil, "expected the absolute path", nil},
		{"relative path", "layout", d, nil, "expected the absolute path", nil},
		{"other scheme", "https://registry.example/x", d, nil, "expected the absolute path", nil},
		{"newline", layout + "\n", d, nil, "control characters", nil},
		{"absent directory", layout + "x", d, nil, "no such file", nil},
		{"FIFO", fifo, d, nil, "neither a directory", nil},
		{"no digest", layout, hashpipe.Digest{}, nil, "no digest", nil},
		{"short digest in the location", layout + "@sha256:abcd", d, nil, "SHA-256", nil},
		{"no limit", layout, d, func(o *Options) { o.Bytes = 0 }, "the limit is 0 bytes", nil},
		{"more than the limit", layout, d, func(o *Options) { o.Bytes = 3 << 20 }, "which is the limit", nil},
		{"another layout", other, d, nil, `"sha256:` + otherD.String() + `" for linux/amd64`, ErrOtherBytes},
		{"another archive", pack(t, other), d, nil, otherD.String(), ErrOtherBytes},
		{"empty directory", t.TempDir(), d, nil, "is not there", nil},
		{"digest of another image", layout + "@sha256:" + otherD.String(), d, nil, "is not there", nil},
		{"index without the platform", pin(arm), d, nil, "nothing for linux/amd64", ErrOtherBytes},
		{"index of another image", other + "@" + string(wrong.Digest), d, nil, "has another manifest", ErrOtherBytes},
		{"index where no platform is known", pin(arm), d, func(o *Options) { o.Platform = Config{} }, "has another manifest", ErrOtherBytes},
		{"index of another variant", pin(index(t, layout, describe(t, layout, d, "amd64"))), d, func(o *Options) { o.Platform.Variant = "v3" }, "nothing for linux/amd64/v3", ErrOtherBytes},
		{"indexes in indexes", pin(deep), d, nil, "deep", nil},
		{"many indexes", pin(wide), d, nil, "more than 16 indexes", nil},
		{"index with a lying size", pin(lying), d, nil, "the descriptor says 7", ErrOtherBytes},
		{"manifest where an index is said", layout + "@sha256:" + d.String(), otherD, nil, "is not an image index", nil},
		{"the ledger names an index", layout, mustParse(t, arm.Digest), nil, "a ledger names the manifest of one platform", nil},
		{"archive of an older docker save", oldSave, d, nil, "skopeo copy docker-archive:" + oldSave, nil},
		{"no layout in the archive", nothing, d, nil, "no index.json", nil},
		{"compressed archive", compressed, d, nil, "gunzip -k " + compressed, nil},
		{"truncated archive", ruined, d, nil, "unexpected EOF", nil},
		{"layer in the manifest's place", layout, hashpipe.SumBytes([]byte("x")).Claim(), nil, "is not there", ErrOtherBytes},
		{"manifest of no image", layout, mustParse(t, store(t, layout, "", bytes.Replace(text, []byte("rootfs"), nil, 1)[1:]).Digest), nil, "manifest", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := options()
			if tt.change != nil {
				tt.change(&o)
			}
			dest := filepath.Join(t.TempDir(), "dest")
			err := Pull(t.Context(), tt.from, tt.want, dest, o)
			if err == nil || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("Pull: %v, want an error with %q", err, tt.text)
			}
			checkKind(t, err, tt.is)
			if _, err := os.Stat(filepath.Join(dest, v1.ImageIndexFile)); err == nil {
				t.Error("the layout has an index.json")
			}
		})
	}
}

func mustParse(t testing.TB, d digest.Digest) hashpipe.Digest {
	t.Helper()
	parsed, err := parseDigest(d)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// checkKind checks that an error is of one kind and of no other.
func checkKind(t testing.TB, err, kind error) {
	t.Helper()
	for _, k := range []error{ErrUnreachable, ErrOtherBytes} {
		if errors.Is(err, k) != (k == kind) {
			t.Errorf("%v: is %q: %v, want %v", err, k, errors.Is(err, k), k == kind)
		}
	}
}

// A blob of the layout that was damaged is brought again, and a good one is not.
func TestPullMends(t *testing.T) {
	layout, d := twoLayers(t)
	dest := t.TempDir()
	if err := Pull(t.Context(), layout, d, dest, options()); err != nil {
		t.Fatal(err)
	}
	blobs, _ := filepath.Glob(filepath.Join(dest, "blobs/sha256/*"))
	for _, b := range blobs {
		for name, damage := range map[string]func() error{
			"flipped": func() error {
				text, err := os.ReadFile(b)
				text[len(text)/2] ^= 1
				return errors.Join(err, os.WriteFile(b, text, 0o644))
			},
			"cut":     func() error { return os.Truncate(b, 10) },
			"removed": func() error { return os.Remove(b) },
			"replaced by a link": func() error {
				return errors.Join(os.Remove(b), os.Symlink(filepath.Join(layout, "blobs/sha256", filepath.Base(b)), b))
			},
		} {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			if err := Pull(t.Context(), layout, d, dest, options()); err != nil {
				t.Fatalf("Pull after %s was %s: %v", filepath.Base(b), name, err)
			}
			if st, err := os.Lstat(b); err != nil || !st.Mode().IsRegular() {
				t.Errorf("%s: %v, %v", b, st.Mode(), err)
			}
			checkPulled(t, dest, d)
		}
	}
}

// Several Pulls into one layout bring each blob once.
func TestPullTogether(t *testing.T) {
	layout, d := twoLayers(t)
	second, d2 := image(t, amd64, archive(t, file("c", "3")))
	var sent atomic.Int64
	at := func(layout string) string {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				sent.Add(1)
			}
			serveBlob(w, r, layout)
		}))
		t.Cleanup(srv.Close)
		return "oci://" + strings.TrimPrefix(srv.URL, "http://") + "/acme/base"
	}
	one, two := at(layout), at(second)
	dest := t.TempDir()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			from, want := one, d
			if i%2 == 1 {
				from, want = two, d2
			}
			if err := Pull(t.Context(), from, want, dest, options()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// Configurations are small and may come more than once.
	if n := sent.Load(); n < 5 || n > 3+8 {
		t.Errorf("%d blobs were sent, want 3 layers and 2 to 8 configurations", n)
	}
	if entries, err := UnverifiedIndex(dest); err != nil || len(entries) != 2 {
		t.Errorf("index.json lists %v, %v, want two images", entries, err)
	}
	for _, want := range []hashpipe.Digest{d, d2} {
		if _, err := Unpack(t.Context(), dest, want, filepath.Join(t.TempDir(), "r"), roomy); err != nil {
			t.Error(err)
		}
	}
}

// serveBlob answers as a registry that has the blobs of a layout.
func serveBlob(w http.ResponseWriter, r *http.Request, layout string) {
	_, hex, ok := strings.Cut(r.URL.Path, "sha256:")
	f, err := os.Open(filepath.Join(layout, "blobs/sha256", filepath.Base(hex)))
	if !ok || err != nil {
		http.Error(w, `{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}`, http.StatusNotFound)
		return
	}
	defer f.Close()
	if strings.Contains(r.URL.Path, "/manifests/") {
		w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
	}
	http.ServeContent(w, r, "", time.Time{}, f)
}

// armImage adds an image for arm64 to a layout.
func armImage(t testing.TB, layout string) v1.Descriptor {
	t.Helper()
	img := amd64
	img.Architecture, img.Compression = "arm64", Gzip
	d, err := AppendImage(t.Context(), layout, img, bytes.NewReader(archive(t, file("c", "3"))))
	if err != nil {
		t.Fatal(err)
	}
	return describe(t, layout, d, "arm64")
}
