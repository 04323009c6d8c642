package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/openclaw/clawfs/hashpipe"
	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var (
	// ErrUnreachable is in an error after which nothing is known of the bytes:
	// the place was not reached, is overloaded, or broke off. Trying again may
	// help, and goes on where a blob broke off.
	ErrUnreachable = errors.New("not reachable")
	// ErrOtherBytes is in an error of a place that answered, with other bytes
	// than a digest names. Asking that place again does not help.
	ErrOtherBytes = errors.New("other bytes than its digest names")
)

// Options says how Pull and PullArtifact reach a place and what they take from
// it.
type Options struct {
	// Bytes bounds the blobs of one image or artifact together, as they are
	// stored; required.
	Bytes int64
	// Platform (OS, Architecture, Variant) chooses in an image index; where it
	// is empty, an index is refused.
	Platform Config
	// Trusted says that the operator named the location, and not a ledger.
	// Only then may a credential helper, which is a program, be asked.
	Trusted bool
	// DockerConfig is the path of a Docker configuration (config.json) with
	// credentials for registries; empty means to have none.
	DockerConfig string
	// Transport carries requests to a registry, and those that a registry
	// redirects or sends for a token; required for a registry. Which addresses
	// may be dialled is its decision.
	Transport http.RoundTripper
	// PlainHTTP lists registries ("host:port") that are spoken to without TLS.
	// One on a loopback address may have TLS or not.
	PlainHTTP []string
	// Stall bounds the time in which a registry sends not one byte; 0 is one
	// minute. The whole of a transfer is bounded by the context alone.
	Stall time.Duration
	// Seen, if not nil, is told how many bytes came.
	Seen func(bytes int64)
}

// Pull brings the image of a manifest digest from a location into the OCI image
// layout directory, which it creates if need be and which several Pulls may
// fill at the same time. A location is the absolute path or file URL of
//
//   - an OCI image layout directory,
//   - an archive of one: what "oci-archive" means to OCI tools, and what `docker
//     save` writes since Docker 25,
//
// or a repository of a registry: oci://HOST[:PORT]/REPOSITORY[:TAG], with
// docker:// for the same. Behind each, "@sha256:HEX" may name the manifest or an
// image index that has it for Options.Platform. Tags are never trusted: the
// manifest is asked for by its digest, and a tag only serves to say what is
// there in its place.
//
// A blob gets its name in the layout only after size and SHA-256 were measured
// and it is on stable storage. Blobs that are there are hashed and not brought
// again. What came of a blob before a transfer broke off is kept for the next
// Pull, as blobs/sha256/.part-HEX. index.json gets a line for the image.
//
// Errors hold ErrUnreachable, ErrOtherBytes or neither of them; the last means
// that the location, the image or this machine must be mended first.
func Pull(ctx context.Context, from string, want hashpipe.Digest, layout string, o Options) error {
	if err := pullImage(ctx, from, want, layout, o); err != nil {
		return fmt.Errorf("image %v from %s: %w", want, redact(from), err)
	}
	return nil
}

func pullImage(ctx context.Context, from string, want hashpipe.Digest, layout string, o Options) error {
	if want.IsZero() {
		return errors.New("no digest")
	}
	p, err := newPull(from, layout, o)
	if err != nil {
		return err
	}
	defer p.place.Close()
	if err := p.pinned(ctx, want); err != nil {
		return err
	}
	text, err := p.document(ctx, blobName{what: "manifest", digest: want, size: -1, manifest: true})
	if err != nil {
		return p.explain(ctx, want, err)
	}
	m, err := p.imageManifest(ctx, text)
	if err != nil {
		return err
	}
	config, err := p.configuration(ctx, want, m)
	if err != nil {
		return err
	}
	for i, desc := range m.Layers {
		if !isLayer(desc.MediaType) {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(m.Layers), noLayer(desc.MediaType))
		}
	}
	if err := p.layers(ctx, m.Layers); err != nil {
		return err
	}
	mediaType := m.MediaType
	if mediaType == "" {
		mediaType = v1.MediaTypeImageManifest
	}
	return record(layout, v1.Descriptor{
		MediaType: mediaType, Digest: digest.Digest("sha256:" + want.String()), Size: int64(len(text)),
		Platform: &v1.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant},
	})
}

// pull is one call of Pull or PullArtifact.
type pull struct {
	place  place
	layout string
	pin    hashpipe.Digest // "@sha256:…" of the location, or zero
	left   int64           // what the blobs that are not yet accepted may have
	o      Options
}

func newPull(from, layout string, o Options) (*pull, error) {
	if o.Bytes <= 0 {
		return nil, fmt.Errorf("the limit is %d bytes, wanted more than 0", o.Bytes)
	}
	if o.Stall == 0 {
		o.Stall = time.Minute
	}
	p := &pull{layout: layout, left: o.Bytes, o: o}
	if err := os.MkdirAll(p.blobs(), 0o755); err != nil {
		return nil, err
	}
	var err error
	p.place, p.pin, err = openPlace(from, o)
	return p, err
}

func (p *pull) blobs() string { return filepath.Join(p.layout, "blobs", "sha256") }

// accept takes the claimed size of a blob from the budget before it is brought.
func (p *pull) accept(size int64) error {
	if size < 0 {
		return fmt.Errorf("has a size of %d bytes", size)
	}
	if p.left -= size; size > p.o.Bytes || p.left < 0 {
		return fmt.Errorf("blobs of more than %d bytes together, which is the limit", p.o.Bytes)
	}
	return nil
}

// imageManifest parses what hashed to the ledger's digest.
func (p *pull) imageManifest(ctx context.Context, text []byte) (v1.Manifest, error) {
	var m v1.Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fmt.Errorf("manifest: %w", err)
	}
	if isIndex(m.MediaType) || m.MediaType == "" && m.Config.Digest == "" {
		_, list, err := p.choose(ctx, text, p.o.Platform)
		if err != nil {
			return m, fmt.Errorf("this digest is of an index of several images, and reading it: %w", err)
		}
		return m, fmt.Errorf("this digest is of an index of several images; a ledger names the manifest of one platform: %s", list)
	}
	return m, p.accept(int64(len(text)))
}

// configuration brings the configuration and judges manifest and configuration
// before any layer is brought.
func (p *pull) configuration(ctx context.Context, want hashpipe.Digest, m v1.Manifest) (Config, error) {
	d, err := parseDigest(m.Config.Digest)
	if err != nil {
		return Config{}, fmt.Errorf("manifest: configuration: %w", err)
	}
	if err := p.accept(m.Config.Size); err != nil {
		return Config{}, fmt.Errorf("manifest: configuration: %w", err)
	}
	if _, err := p.document(ctx, blobName{what: "configuration", digest: d, size: m.Config.Size}); err != nil {
		return Config{}, err
	}
	config, _, err := inspect(ctx, p.layout, want)
	return config, err
}

func (p *pull) layers(ctx context.Context, descs []v1.Descriptor) error {
	names := make([]blobName, 0, len(descs))
	sizes := map[hashpipe.Digest]int64{}
	for i, desc := range descs {
		what := fmt.Sprintf("layer %d of %d", i+1, len(descs))
		d, err := parseDigest(desc.Digest)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if size, again := sizes[d]; again {
			if size != desc.Size {
				return fmt.Errorf("%s: has %d bytes here and %d bytes in another layer", what, desc.Size, size)
			}
			continue
		}
		if err := p.accept(desc.Size); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		sizes[d] = desc.Size
		names = append(names, blobName{what: what, digest: d, size: desc.Size})
	}
	for _, b := range names {
		if err := p.blob(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", b.what, err)
		}
	}
	return nil
}

// pinned demands that the digest behind a location's "@" is the wanted one or
// that of an index which has it for the platform.
func (p *pull) pinned(ctx context.Context, want hashpipe.Digest) error {
	if p.pin.IsZero() || p.pin == want {
		return nil
	}
	text, err := p.read(ctx, blobName{what: "index", digest: p.pin, size: -1, manifest: true})
	if err != nil {
		return err
	}
	members, list, err := p.choose(ctx, text, p.o.Platform)
	if err != nil {
		return fmt.Errorf("the location names sha256:%v, which is not the ledger's digest: %w", p.pin, err)
	}
	if !slices.Contains(members, want) {
		return fmt.Errorf("the location names the index sha256:%v, which has another manifest: %s: %w", p.pin, list, ErrOtherBytes)
	}
	return nil
}

// explain says what the location's name leads to in place of a manifest that is
// not there. It is for people: none of it is verified.
func (p *pull) explain(ctx context.Context, want hashpipe.Digest, cause error) error {
	if !errors.Is(cause, ErrAbsent) {
		return cause
	}
	text, err := p.place.top(ctx)
	if err != nil || text == nil {
		return cause
	}
	var m v1.Manifest
	if json.Unmarshal(text, &m) == nil && m.Config.Digest != "" {
		return fmt.Errorf("%w; the location leads to the manifest sha256:%v: %w", cause, hashpipe.SumBytes(text), ErrOtherBytes)
	}
	_, list, err := p.choose(ctx, text, p.o.Platform)
	if err != nil || strings.Contains(list, want.String()) {
		return cause
	}
	return fmt.Errorf("%w; the location leads to %s: %w", cause, list, ErrOtherBytes)
}

const (
	// maxIndexDepth bounds indexes in indexes; more than two are never seen.
	maxIndexDepth = 4
	// maxIndexes bounds the indexes that are read for one image.
	maxIndexes = 16
)

// choose returns the manifests that an index has for a platform, and a sentence
// about what it has. Indexes in it are read and verified by their digests.
func (p *pull) choose(ctx context.Context, text []byte, platform Config) ([]hashpipe.Digest, string, error) {
	budget := maxIndexes
	all, err := p.members(ctx, text, 1, &budget)
	if err != nil {
		return nil, "", err
	}
	var found []hashpipe.Digest
	var names []string
	for _, m := range all {
		name := "no platform"
		if m.Platform != nil {
			c := Config{OS: m.Platform.OS, Architecture: m.Platform.Architecture, Variant: m.Platform.Variant}
			name = c.Platform()
			if platform.OS != "" && c.OS == platform.OS && c.Architecture == platform.Architecture && (platform.Variant == "" || c.Variant == platform.Variant) {
				d, err := parseDigest(m.Digest)
				if err != nil {
					return nil, "", fmt.Errorf("index: %w", err)
				}
				found = append(found, d)
			}
		}
		names = append(names, fmt.Sprintf("%.80q for %.60s", string(m.Digest), name))
	}
	if len(names) > 8 {
		names = append(names[:8], fmt.Sprintf("and %d more", len(names)-8))
	}
	if len(names) == 0 {
		names = []string{"an index of nothing"}
	}
	list := strings.Join(names, ", ")
	if len(found) == 0 && platform.OS != "" {
		list = "nothing for " + platform.Platform() + ", but " + list
	}
	return found, list, nil
}

// members lists the manifests of an index and of the indexes in it.
func (p *pull) members(ctx context.Context, text []byte, depth int, budget *int) ([]v1.Descriptor, error) {
	if *budget--; *budget < 0 {
		return nil, fmt.Errorf("more than %d indexes", maxIndexes)
	}
	if depth > maxIndexDepth {
		return nil, fmt.Errorf("indexes in indexes, more than %d deep", maxIndexDepth)
	}
	var index struct {
		v1.Index
		Config *v1.Descriptor `json:"config"`
		Layers []any          `json:"layers"`
	}
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	if index.MediaType != "" && !isIndex(index.MediaType) || index.Config != nil || index.Layers != nil {
		return nil, fmt.Errorf("media type %.80q is not an image index", index.MediaType)
	}
	var all []v1.Descriptor
	for _, desc := range index.Manifests {
		if !isIndex(desc.MediaType) {
			all = append(all, desc)
			continue
		}
		d, err := parseDigest(desc.Digest)
		if err != nil {
			return nil, fmt.Errorf("index: %w", err)
		}
		inner, err := p.read(ctx, blobName{what: "index in an index", digest: d, size: desc.Size, manifest: true})
		if err != nil {
			return nil, err
		}
		below, err := p.members(ctx, inner, depth+1, budget)
		if err != nil {
			return nil, err
		}
		all = append(all, below...)
	}
	return all, nil
}

func isIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == dockerList
}

// record adds a line for an image to the layout's index.json, one writer at a
// time.
func record(layout string, desc v1.Descriptor) error {
	return withIndex(layout, func(index v1.Index) error {
		for _, m := range index.Manifests {
			if m.Digest == desc.Digest {
				return nil
			}
		}
		_, err := writeIndex(layout, index, desc)
		return err
	})
}

// redact keeps what a person put before an "@" of a host out of logs.
func redact(from string) string {
	scheme, rest, ok := strings.Cut(from, "://")
	if !ok {
		return fmt.Sprintf("%.300s", from)
	}
	host, path, _ := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = "…" + host[i:]
	}
	return fmt.Sprintf("%.300s", scheme+"://"+host+"/"+path)
}

// readAll reads a small body and not more than limit bytes of it.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("more than %d bytes: %w", limit, ErrOtherBytes)
	}
	return text, err
}
