// Package oci brings environment images and data sets from layout directories,
// archives and registries, reads images from OCI image layout directories by
// manifest digest, and writes such layouts.
//
// A layout directory is untrusted storage. Every blob is measured before
// anything in it is believed, each layer's decompressed bytes are measured
// again while they are unpacked, and index.json decides nothing.
//
// The unpacked tree is for builds that run as an unprivileged user who owns
// none of it: owners, extended attributes and set-id bits of the archive are
// dropped, and everybody may read every file. Names, contents, links,
// executable bits and times are kept.
package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-json-experiment/json"
	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

const (
	// maxDocument bounds a manifest or a configuration in bytes, as registries
	// do (4 MiB, OCI distribution-spec).
	maxDocument = 4 << 20
	// maxLayers is what overlay-based engines accept.
	maxLayers = 128
)

// Docker's names for what image-spec took over.
const (
	dockerManifest  = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList      = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig    = "application/vnd.docker.container.image.v1+json"
	dockerLayerGzip = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// Limits bounds what an image may unpack to; every field is required.
type Limits struct {
	// Bytes bounds the decompressed layers together, padding and sparse files'
	// holes included.
	Bytes int64
	// Entries bounds the archive entries of all layers together.
	Entries int64
}

// Config is what of an image's configuration matters to a build.
type Config struct {
	OS, Architecture, Variant string
	// Env holds "NAME=value" entries in the image's order.
	Env        []string
	WorkingDir string
}

// Platform is the name OCI tools give it: "linux/amd64", "linux/arm/v7".
func (c Config) Platform() string {
	return strings.TrimSuffix(c.OS+"/"+c.Architecture+"/"+c.Variant, "/")
}

// layer is one layer of an image, as manifest and configuration claim it.
type layer struct {
	blob      hashpipe.Digest
	size      int64
	mediaType string
	diffID    hashpipe.Digest // of the uncompressed tar
}

// Inspect returns the configuration of an image without unpacking it. The
// manifest and the configuration are checked against their digests.
func Inspect(ctx context.Context, layout string, manifest hashpipe.Digest) (Config, error) {
	cfg, _, err := inspect(ctx, layout, manifest)
	if err != nil {
		return Config{}, fmt.Errorf("image %v in %s: %w", manifest, layout, err)
	}
	return cfg, nil
}

func inspect(ctx context.Context, layout string, manifest hashpipe.Digest) (Config, []layer, error) {
	text, err := document(ctx, layout, manifest, -1)
	if err != nil {
		return Config{}, nil, fmt.Errorf("manifest: %w", err)
	}
	var m v1.Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return Config{}, nil, fmt.Errorf("manifest: %w", err)
	}
	switch m.MediaType {
	case v1.MediaTypeImageManifest, dockerManifest, "":
	case v1.MediaTypeImageIndex, dockerList:
		return Config{}, nil, errors.New("is an index of several images: name the manifest of one platform")
	default:
		return Config{}, nil, fmt.Errorf("manifest: media type %q is not an image manifest", m.MediaType)
	}
	if m.SchemaVersion != 2 {
		return Config{}, nil, fmt.Errorf("manifest: schema version %d, wanted 2", m.SchemaVersion)
	}
	if m.Config.MediaType != v1.MediaTypeImageConfig && m.Config.MediaType != dockerConfig {
		return Config{}, nil, fmt.Errorf("manifest: configuration has media type %q, wanted %s", m.Config.MediaType, v1.MediaTypeImageConfig)
	}
	d, err := parseDigest(m.Config.Digest)
	if err != nil {
		return Config{}, nil, fmt.Errorf("manifest: configuration: %w", err)
	}
	if text, err = document(ctx, layout, d, m.Config.Size); err != nil {
		return Config{}, nil, fmt.Errorf("configuration: %w", err)
	}
	var img v1.Image
	if err := json.Unmarshal(text, &img); err != nil {
		return Config{}, nil, fmt.Errorf("configuration: %w", err)
	}
	layers, err := pair(m.Layers, img.RootFS)
	return Config{
		OS: img.OS, Architecture: img.Architecture, Variant: img.Variant,
		Env: img.Config.Env, WorkingDir: img.Config.WorkingDir,
	}, layers, err
}

// pair joins the manifest's layers with the configuration's digests of their
// uncompressed bytes.
func pair(descs []v1.Descriptor, fs v1.RootFS) ([]layer, error) {
	switch {
	case len(descs) == 0:
		return nil, errors.New("manifest: no layers")
	case len(descs) > maxLayers:
		return nil, fmt.Errorf("manifest: %d layers, the limit is %d", len(descs), maxLayers)
	case fs.Type != "layers":
		return nil, fmt.Errorf("configuration: rootfs type %q, wanted layers", fs.Type)
	case len(fs.DiffIDs) != len(descs):
		return nil, fmt.Errorf("configuration: %d diff ids for %d layers", len(fs.DiffIDs), len(descs))
	}
	layers := make([]layer, len(descs))
	for i, desc := range descs {
		blob, err := parseDigest(desc.Digest)
		if err != nil {
			return nil, fmt.Errorf("manifest: layer %d: %w", i+1, err)
		}
		diff, err := parseDigest(fs.DiffIDs[i])
		if err != nil {
			return nil, fmt.Errorf("configuration: diff id %d: %w", i+1, err)
		}
		if desc.Size < 0 || len(desc.URLs) > 0 {
			return nil, fmt.Errorf("manifest: layer %d: size %d, %d foreign addresses", i+1, desc.Size, len(desc.URLs))
		}
		layers[i] = layer{blob: blob, size: desc.Size, mediaType: desc.MediaType, diffID: diff}
	}
	return layers, nil
}

func parseDigest(d digest.Digest) (hashpipe.Digest, error) {
	hex, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok {
		return hashpipe.Digest{}, fmt.Errorf("digest %q is not of the form sha256:…", clip(string(d)))
	}
	return hashpipe.ParseDigest(hex)
}

func clip(s string) string { return s[:min(len(s), 80)] }

// document reads a small blob and returns its bytes after they hashed to want.
// size is the descriptor's, or -1 where nobody claimed one.
func document(ctx context.Context, layout string, want hashpipe.Digest, size int64) ([]byte, error) {
	f, have, err := openBlob(layout, want)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size >= 0 && have != size {
		return nil, fmt.Errorf("blob %v has %d bytes, its descriptor says %d", want, have, size)
	}
	if have > maxDocument {
		return nil, fmt.Errorf("blob %v has %d bytes, the limit is %d", want, have, maxDocument)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return nil, err
	}
	if got := hashpipe.SumBytes(text); !got.Is(want) {
		return nil, fmt.Errorf("blob %v hashes to %v", want, got)
	}
	return text, ctx.Err()
}

// openBlob opens a blob of a layout and returns its present size. The content
// is unverified.
func openBlob(layout string, d hashpipe.Digest) (*os.File, int64, error) {
	if d.IsZero() {
		return nil, 0, errors.New("no digest")
	}
	path := filepath.Join(layout, "blobs", "sha256", d.String())
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}
