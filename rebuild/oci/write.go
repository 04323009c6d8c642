package oci

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/go-json-experiment/json"
	jsonv1 "github.com/go-json-experiment/json/v1"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/openclaw/clawfs/hashpipe"
)

// Compression is how AppendImage stores layers.
type Compression string

const (
	Plain Compression = "" // uncompressed tar
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
)

// Image describes an image to write. OS and Architecture are required.
type Image struct {
	Config
	Compression Compression
	// Ref is the image's name in index.json; it may be empty.
	Ref string
}

// AppendImage adds an image of the given layers (tar streams, lowest first) to
// the layout directory, which it creates if need be, and returns the digest of
// its manifest. The same input gives the same bytes, with one version of the
// compressor: the images hold no time of their making. An image of the same
// Ref, or the same manifest, is replaced in index.json; its blobs stay.
//
// One writer at a time; after a crash index.json is the old or the new one.
func AppendImage(ctx context.Context, layout string, img Image, layers ...io.Reader) (hashpipe.Digest, error) {
	d, err := appendImage(ctx, layout, img, layers)
	if err != nil {
		return hashpipe.Digest{}, fmt.Errorf("writing an image to %s: %w", layout, err)
	}
	return d, nil
}

func appendImage(ctx context.Context, layout string, img Image, layers []io.Reader) (hashpipe.Digest, error) {
	if img.OS == "" || img.Architecture == "" {
		return hashpipe.Digest{}, errors.New("image has no operating system or architecture")
	}
	if len(layers) == 0 {
		return hashpipe.Digest{}, errors.New("image has no layers")
	}
	index, err := readIndex(layout)
	if errors.Is(err, os.ErrNotExist) {
		index, err = v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}, nil
	}
	if err != nil {
		return hashpipe.Digest{}, err
	}
	blobs := filepath.Join(layout, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return hashpipe.Digest{}, err
	}
	platform := v1.Platform{OS: img.OS, Architecture: img.Architecture, Variant: img.Variant}
	config := v1.Image{Platform: platform, Config: v1.ImageConfig{Env: img.Env, WorkingDir: img.WorkingDir}, RootFS: v1.RootFS{Type: "layers"}}
	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for i, tar := range layers {
		desc, diffID, err := writeLayer(ctx, blobs, tar, img.Compression)
		if err != nil {
			return hashpipe.Digest{}, fmt.Errorf("layer %d: %w", i+1, err)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		manifest.Layers = append(manifest.Layers, desc)
	}
	if manifest.Config, err = writeDocument(blobs, v1.MediaTypeImageConfig, config); err != nil {
		return hashpipe.Digest{}, err
	}
	desc, err := writeDocument(blobs, v1.MediaTypeImageManifest, manifest)
	if err != nil {
		return hashpipe.Digest{}, err
	}
	desc.Platform = &platform
	if img.Ref != "" {
		desc.Annotations = map[string]string{v1.AnnotationRefName: img.Ref}
	}
	return writeIndex(layout, index, desc)
}

func writeIndex(layout string, index v1.Index, desc v1.Descriptor) (hashpipe.Digest, error) {
	ref := desc.Annotations[v1.AnnotationRefName]
	kept := index.Manifests[:0]
	for _, m := range index.Manifests {
		if m.Digest != desc.Digest && (ref == "" || m.Annotations[v1.AnnotationRefName] != ref) {
			kept = append(kept, m)
		}
	}
	index.Manifests = append(kept, desc)
	marker, err := encode(v1.ImageLayout{Version: v1.ImageLayoutVersion})
	if err != nil {
		return hashpipe.Digest{}, err
	}
	if err := writeFile(filepath.Join(layout, v1.ImageLayoutFile), marker); err != nil {
		return hashpipe.Digest{}, err
	}
	text, err := encode(index)
	if err != nil {
		return hashpipe.Digest{}, err
	}
	if err := writeFile(filepath.Join(layout, v1.ImageIndexFile), text); err != nil {
		return hashpipe.Digest{}, err
	}
	return parseDigest(desc.Digest)
}

// encode writes what encoding/json would: the image-spec types are made for
// its omitempty.
func encode(v any) ([]byte, error) {
	return json.Marshal(v, json.Deterministic(true), jsonv1.OmitEmptyWithLegacySemantics(true))
}

func writeDocument(blobs, mediaType string, v any) (v1.Descriptor, error) {
	text, err := encode(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	sum := hashpipe.SumBytes(text).String()
	desc := v1.Descriptor{MediaType: mediaType, Digest: digest.Digest("sha256:" + sum), Size: int64(len(text))}
	return desc, writeFile(filepath.Join(blobs, sum), text)
}

// writeFile replaces a file in one step.
func writeFile(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone after the rename
	if _, err = f.Write(text); err == nil {
		err = settle(f, path)
	}
	f.Close()
	return err
}

// settle gives a finished temporary file its name, on stable storage.
func settle(f *os.File, path string) error {
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// writeLayer stores a tar stream and returns its descriptor and the digest of
// the stream before compression.
func writeLayer(ctx context.Context, blobs string, tar io.Reader, c Compression) (desc v1.Descriptor, diffID digest.Digest, err error) {
	f, err := os.CreateTemp(blobs, ".new-*")
	if err != nil {
		return desc, "", err
	}
	defer os.Remove(f.Name()) // gone after the rename
	defer f.Close()
	var z io.WriteCloser
	switch c {
	case Plain:
		desc.MediaType, z = v1.MediaTypeImageLayer, nopCloser{f}
	case Gzip:
		desc.MediaType, z = v1.MediaTypeImageLayerGzip, gzip.NewWriter(f)
	case Zstd:
		desc.MediaType = v1.MediaTypeImageLayerZstd
		// One goroutine: the split into blocks must not depend on the machine.
		if z, err = zstd.NewWriter(f, zstd.WithEncoderConcurrency(1)); err != nil {
			return desc, "", err
		}
	default:
		return desc, "", fmt.Errorf("unknown compression %q", c)
	}
	plain, _, err := hashpipe.SumReader(ctx, io.TeeReader(tar, z), nil)
	if err = errors.Join(err, z.Close()); err != nil {
		return desc, "", err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return desc, "", err
	}
	blob, size, err := hashpipe.SumReader(ctx, f, nil)
	if err != nil {
		return desc, "", err
	}
	desc.Digest, desc.Size = digest.Digest("sha256:"+blob.String()), size
	return desc, digest.Digest("sha256:" + plain.String()), settle(f, filepath.Join(blobs, blob.String()))
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Entry is one line of index.json: a claim, for people to choose from.
type Entry struct {
	Manifest hashpipe.Digest
	Ref      string
	Platform string // "linux/amd64", or empty
}

// UnverifiedIndex lists what index.json claims to be in the layout.
func UnverifiedIndex(layout string) ([]Entry, error) {
	index, err := readIndex(layout)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, m := range index.Manifests {
		d, err := parseDigest(m.Digest)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(layout, v1.ImageIndexFile), err)
		}
		e := Entry{Manifest: d, Ref: m.Annotations[v1.AnnotationRefName]}
		if p := m.Platform; p != nil {
			e.Platform = Config{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}.Platform()
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func readIndex(layout string) (v1.Index, error) {
	path := filepath.Join(layout, v1.ImageIndexFile)
	f, err := os.Open(path)
	if err != nil {
		return v1.Index{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return v1.Index{}, err
	}
	if len(text) > maxDocument {
		return v1.Index{}, fmt.Errorf("%s is longer than %d bytes", path, maxDocument)
	}
	var index v1.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return v1.Index{}, fmt.Errorf("%s: %w", path, err)
	}
	return index, nil
}
