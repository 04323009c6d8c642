package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	orasfile "oras.land/oras-go/v2/content/file"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/tree"
)

// corpus writes a data set and returns its directory and root.
func corpus(t testing.TB) (dir string, root tree.Root) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "corpus")
	for name, text := range map[string]string{"train.txt": "a\n", "deep/er/test.txt": "b\n", "empty": "", "ü ö": "c\n"} {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := tree.Walk(t.Context(), dir, tree.Data, nil)
	if err != nil {
		t.Fatal(err)
	}
	return dir, root
}

// orasPush pushes files or directories, by title, as `oras push` does.
func orasPush(t testing.TB, target string, titles map[string]string) v1.Descriptor {
	t.Helper()
	ctx := context.Background()
	fs, err := orasfile.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	fs.TarReproducible = true
	var layers []v1.Descriptor
	for title, path := range titles {
		desc, err := fs.Add(ctx, title, "", path)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, desc)
	}
	slices.SortFunc(layers, func(a, b v1.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	manifest, err := oras.PackManifest(ctx, fs, oras.PackManifestVersion1_1, "application/vnd.acme.dataset", oras.PackManifestOptions{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	to, err := remote.NewRepository(target)
	if err != nil {
		t.Fatal(err)
	}
	to.PlainHTTP = true
	tag := to.Reference.Reference
	if err := fs.Tag(ctx, manifest, tag); err != nil {
		t.Fatal(err)
	}
	if _, err := oras.Copy(ctx, fs, tag, to, tag, oras.DefaultCopyOptions); err != nil {
		t.Fatal(err)
	}
	return manifest
}

func TestPullArtifact(t *testing.T) {
	dir, want := corpus(t)
	for name, host := range map[string]string{"in process": inProcess(t), "distribution": distribution(t, "")} {
		t.Run(name, func(t *testing.T) {
			byFile := map[string]string{}
			for _, f := range []string{"train.txt", "deep/er/test.txt", "empty", "ü ö"} {
				byFile[f] = filepath.Join(dir, f)
			}
			files := orasPush(t, host+"/acme/corpus:files", byFile)
			orasPush(t, host+"/acme/corpus:dir", map[string]string{"corpus": dir})
			orasPush(t, host+"/acme/corpus:dot", map[string]string{".": dir})
			orasPush(t, host+"/acme/corpus:mixed", map[string]string{"deep": filepath.Join(dir, "deep"), "train.txt": byFile["train.txt"], "empty": byFile["empty"], "ü ö": byFile["ü ö"]})
			for _, at := range []string{":files", ":dir", ":dot", ":mixed", "@" + string(files.Digest), ":never@" + string(files.Digest)} {
				dest := filepath.Join(t.TempDir(), "dest")
				d, err := PullArtifact(t.Context(), "oci://"+host+"/acme/corpus"+at, dest, roomy, options())
				if err != nil {
					t.Errorf("PullArtifact %s: %v", at, err)
					continue
				}
				got, err := tree.Walk(t.Context(), dest, tree.Data, nil)
				if err != nil || got != want {
					t.Errorf("PullArtifact %s: root %v, %v, want %v\n%s", at, got, err, want, list(t, dest))
				}
				if strings.HasSuffix(at, string(files.Digest)) && d != mustParse(t, files.Digest) {
					t.Errorf("PullArtifact %s: manifest %v", at, d)
				}
				only(t, filepath.Dir(dest), "dest")
			}
		})
	}
}

// artifact writes a layout of one artifact.
func artifact(t testing.TB, layers ...v1.Descriptor) (layout string, d v1.Descriptor) {
	t.Helper()
	return artifactAt(t, t.TempDir(), layers...)
}

func artifactAt(t testing.TB, layout string, layers ...v1.Descriptor) (string, v1.Descriptor) {
	t.Helper()
	config := store(t, layout, "application/vnd.oci.empty.v1+json", []byte("{}"))
	text, err := encode(v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: "application/vnd.acme.dataset", Config: config, Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	d := store(t, layout, v1.MediaTypeImageManifest, text)
	if err := record(layout, d); err != nil {
		t.Fatal(err)
	}
	return layout, d
}

func zipped(t testing.TB, c Compression, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	switch c {
	case Gzip:
		w := gzip.NewWriter(&b)
		w.Write(text)
		w.Close()
	case Zstd:
		w, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(text)
		w.Close()
	default:
		return text
	}
	return b.Bytes()
}

// One archive without a title is the data set, from a layout and from an archive.
func TestPullArtifactOfOneArchive(t *testing.T) {
	plain := archive(t, dir("./"), file("./train.txt", "a\n"), dir("deep"), file("deep/er/test.txt", "b\n"), file("empty", ""), file("ü ö", "c\n"))
	_, want := corpus(t)
	for _, tt := range []struct {
		mediaType string
		c         Compression
	}{
		{v1.MediaTypeImageLayer, Plain}, {v1.MediaTypeImageLayerGzip, Gzip}, {v1.MediaTypeImageLayerZstd, Zstd},
		{"application/vnd.acme.corpus.v1.tar+gzip", Gzip}, {"application/x-tar", Plain},
	} {
		layout := t.TempDir()
		artifactAt(t, layout, store(t, layout, tt.mediaType, zipped(t, tt.c, plain)))
		for _, from := range []string{layout, pack(t, layout)} {
			dest := filepath.Join(t.TempDir(), "dest")
			if _, err := PullArtifact(t.Context(), from, dest, roomy, options()); err != nil {
				t.Errorf("PullArtifact of %s: %v", tt.mediaType, err)
				continue
			}
			if got, err := tree.Walk(t.Context(), dest, tree.Data, nil); err != nil || got != want {
				t.Errorf("PullArtifact of %s: root %v, %v, want %v", tt.mediaType, got, err, want)
			}
		}
	}
}

func TestPullArtifactRefuses(t *testing.T) {
	layout := t.TempDir()
	titled := func(title, text string) v1.Descriptor {
		d := store(t, layout, "application/octet-stream", []byte(text))
		d.Annotations = map[string]string{v1.AnnotationTitle: title}
		return d
	}
	untitled := func(c Compression, mediaType string, entries ...tar.Header) v1.Descriptor {
		return store(t, layout, mediaType, zipped(t, c, archive(t, entries...)))
	}
	tarred := func(entries ...tar.Header) v1.Descriptor { return untitled(Plain, v1.MediaTypeImageLayer, entries...) }
	unpacked := func(title string, d v1.Descriptor, plain string) v1.Descriptor {
		d.Annotations = map[string]string{v1.AnnotationTitle: title, annotationUnpack: "true", annotationDigest: plain}
		return d
	}
	sized := func(d v1.Descriptor, more int64) v1.Descriptor { d.Size += more; return d }
	foreign := titled("a", "1")
	foreign.URLs = []string{"https://elsewhere.example/"}
	other := "sha256:" + strings.Repeat("ab", 32)
	for _, tt := range []struct {
		name   string
		layers []v1.Descriptor
		want   string
	}{
		{"no layers", nil, "no layers"},
		{"two files without a name", []v1.Descriptor{titled("a", "1"), tarred(file("b", "1"))}, "its file has no name"},
		{"climbing title", []v1.Descriptor{titled("../a", "1")}, "without empty, . or .."},
		{"absolute title", []v1.Descriptor{titled("/etc/passwd", "1")}, "relative path"},
		{"title with a backslash", []v1.Descriptor{titled(`a\b`, "1")}, "backslash"},
		{"title with a newline", []v1.Descriptor{titled("a\nb", "1")}, "control byte"},
		{"one title twice", []v1.Descriptor{titled("a", "1"), titled("a", "2")}, "there twice"},
		{"file and directory", []v1.Descriptor{titled("a", "1"), titled("a/b", "2")}, "file exists"},
		{"foreign layer", []v1.Descriptor{foreign}, "foreign"},
		{"size too large", []v1.Descriptor{sized(titled("a", "1"), 1)}, "the descriptor says"},
		{"negative size", []v1.Descriptor{sized(titled("a", "1"), -9)}, "size of -8"},
		{"size beyond the limit", []v1.Descriptor{sized(titled("a", "1"), 65<<20)}, "which is the limit"},
		{"one blob of two sizes", []v1.Descriptor{titled("a", "1"), sized(titled("b", "1"), 1)}, "in another layer"},
		{"more files than allowed", []v1.Descriptor{titled("a", "1"), titled("b", "1"), titled("c", "1"), titled("d", "1"), titled("e", "1"), titled("f", "1")}, "larger than allowed"},
		{"symlink", []v1.Descriptor{tarred(link("a", "b"))}, "regular files only"},
		{"hard link", []v1.Descriptor{tarred(file("a", "1"), hard("b", "a"))}, "regular files only"},
		{"device", []v1.Descriptor{tarred(odd(tar.TypeChar, "dev/null"))}, "regular files only"},
		{"climbing name", []v1.Descriptor{tarred(file("../a", "1"))}, "leaves the image"},
		{"absolute name", []v1.Descriptor{tarred(file("/a", "1"))}, "absolute"},
		{"name with a backslash", []v1.Descriptor{tarred(file(`a\b`, "1"))}, "backslash"},
		{"one name twice", []v1.Descriptor{tarred(file("a", "1"), file("a", "2"))}, "file exists"},
		{"file without a name", []v1.Descriptor{tarred(file(".", "1"))}, "path is empty"},
		{"more entries than allowed", []v1.Descriptor{tarred(slices.Repeat([]tar.Header{dir("d")}, 6)...)}, "larger than allowed"},
		{"more bytes than allowed", []v1.Descriptor{tarred(file("a", strings.Repeat("x", 2<<20)))}, "larger than allowed"},
		{"bomb", []v1.Descriptor{untitled(Zstd, v1.MediaTypeImageLayerZstd, file("a", strings.Repeat("\x00", 32<<20)))}, "larger than allowed"},
		{"sparse bomb", []v1.Descriptor{store(t, layout, v1.MediaTypeImageLayer, sparse(t, 1<<40))}, "larger than allowed"},
		{"garbage after the end", []v1.Descriptor{store(t, layout, v1.MediaTypeImageLayer, append(archive(t, file("a", "1")), "garbage"...))}, "after the end"},
		{"no archive", []v1.Descriptor{store(t, layout, "application/octet-stream", []byte("x"))}, "is not a layer"},
		{"not below the title", []v1.Descriptor{unpacked("corpus", tarred(file("other/a", "1")), "")}, `is not below "corpus"`},
		{"another directory of nearly that title", []v1.Descriptor{unpacked("corpus", tarred(file("corpus2/a", "1")), "")}, `is not below "corpus"`},
		{"wrong digest before compression", []v1.Descriptor{unpacked("corpus", tarred(file("corpus/a", "1")), other)}, "decompressed layer hashes to"},
		{"malformed digest before compression", []v1.Descriptor{unpacked("corpus", tarred(file("corpus/a", "1")), "md5:00")}, annotationDigest},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, d := artifactAt(t, layout, tt.layers...)
			parent := t.TempDir()
			_, err := PullArtifact(t.Context(), layout+"@"+string(d.Digest), filepath.Join(parent, "dest"), Limits{Bytes: 1 << 20, Entries: 5}, options())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("PullArtifact: %v, want an error with %q", err, tt.want)
			}
			only(t, parent)
		})
	}

	two, one := artifact(t)
	artifactAt(t, two, store(t, two, v1.MediaTypeImageLayer, archive(t, file("a", "1"))))
	empty := t.TempDir()
	if err := os.WriteFile(filepath.Join(empty, "index.json"), []byte(`{"schemaVersion":2,"manifests":[]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	host := inProcess(t)
	img, d := twoLayers(t)
	push(t, img, "v1", host+"/acme/base:v1", nil)
	for _, tt := range []struct{ name, from, want string }{
		{"several artifacts", two, string(one.Digest)},
		{"no artifact", empty, "add @sha256:HEX"},
		{"no tag", "oci://" + host + "/acme/base", "expected a tag"},
		{"unknown tag", "oci://" + host + "/acme/base:v2", "is not there"},
		{"an image", "oci://" + host + "/acme/base:v1", "its file has no name"},
		{"an index", img + "@" + string(index(t, img, describe(t, img, d, "amd64")).Digest), "media type"},
	} {
		parent := t.TempDir()
		if _, err := PullArtifact(t.Context(), tt.from, filepath.Join(parent, "dest"), roomy, options()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("PullArtifact of %s: %v, want an error with %q", tt.name, err, tt.want)
		}
		only(t, parent)
	}
	if _, err := PullArtifact(t.Context(), two, empty, roomy, options()); !errors.Is(err, os.ErrExist) {
		t.Errorf("PullArtifact over a directory: %v", err)
	}
	if _, err := PullArtifact(t.Context(), two, filepath.Join(empty, "x"), Limits{}, options()); err == nil {
		t.Error("PullArtifact without limits was allowed")
	}
}

// A registry that lies about a file, and one that breaks off and goes on.
func TestPullArtifactFromLiar(t *testing.T) {
	layout := t.TempDir()
	text := []byte(noise())
	layer := store(t, layout, "application/octet-stream", text)
	layer.Annotations = map[string]string{v1.AnnotationTitle: "data.bin"}
	_, m := artifactAt(t, layout, layer)
	at := func(l lie) string {
		return liar(t, layout, map[hashpipe.Digest]lie{mustParse(t, layer.Digest): l}) + "@" + string(m.Digest)
	}
	parent := t.TempDir()
	dest := filepath.Join(parent, "dest")
	_, err := PullArtifact(t.Context(), at(plainly(flip)), dest, roomy, options())
	checkKind(t, err, ErrOtherBytes)
	only(t, parent)
	_, err = PullArtifact(t.Context(), at(cut), dest, roomy, options())
	checkKind(t, err, ErrUnreachable)
	only(t, parent, "dest.pull")
	var seen int64
	o := options()
	o.Seen = func(n int64) { seen += n }
	if _, err := PullArtifact(t.Context(), layout+"@"+string(m.Digest), dest, roomy, o); err != nil || seen > 2<<20 {
		t.Errorf("PullArtifact after a break: %v, %d bytes came", err, seen)
	}
	only(t, parent, "dest")
	if got, err := os.ReadFile(filepath.Join(dest, "data.bin")); err != nil || !bytes.Equal(got, text) {
		t.Errorf("data.bin has %d bytes, %v", len(got), err)
	}
}
