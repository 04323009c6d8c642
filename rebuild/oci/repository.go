package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/openclaw/clawfs/hashpipe"
)

const (
	// maxManifest bounds the manifest of an artifact of a Repository in bytes.
	maxManifest = 64 << 10
	// MaxTags bounds the tags of one listing.
	MaxTags = 100_000
	// maxListing bounds one page of a listing in bytes: MaxTags tags of the
	// longest kind. Registries that know no pages answer with one.
	maxListing = 16 << 20
	// maxPages bounds the pages of one listing, as some have few tags each.
	maxPages = 2000
)

// created is the time of every artifact, so that the same content gives the
// same manifest wherever and whenever it is pushed.
const created = "1970-01-01T00:00:00Z"

// tagPattern is what the OCI distribution-spec allows.
var tagPattern = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)

// Repository keeps artifacts of a few small blobs under tags: a repository of a
// registry, or an OCI image layout directory. Nothing that it lists is
// verified. A request that a registry answers with 429 or 5xx is sent again, three times
// at most. Safe for concurrent use.
type Repository struct {
	layout string         // of a directory
	reg    *registryPlace // or of a registry

	mu    sync.Mutex // guards asked
	asked bool       // whether reg speaks TLS
}

// OpenRepository names a repository and reaches for nothing. The location is
// oci://HOST[:PORT]/REPOSITORY, with docker:// for the same, or the absolute
// path of a layout directory; a tag or a digest behind it is an error. Of o,
// Trusted, DockerConfig, Transport, PlainHTTP and Stall are used.
func OpenRepository(location string, o Options) (*Repository, error) {
	r, err := openRepository(location, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", redact(location), err)
	}
	return r, nil
}

func openRepository(location string, o Options) (*Repository, error) {
	if strings.ContainsFunc(location, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, errors.New("the location has control characters")
	}
	if scheme, repository, ok := strings.Cut(location, "://"); ok && (scheme == "oci" || scheme == "docker") {
		if o.Stall == 0 {
			o.Stall = time.Minute
		}
		if o.Transport != nil {
			o.Transport = patient{once: o.Transport, again: &retry.Transport{Base: o.Transport, Policy: func() retry.Policy { return again }}}
		}
		reg, err := newRegistryPlace(repository, o)
		if err != nil {
			return nil, err
		}
		if reg.ref.Reference != "" {
			return nil, fmt.Errorf("expected a repository without a tag or a digest, got %.80q behind it", reg.ref.Reference)
		}
		return &Repository{reg: reg}, nil
	}
	if !filepath.IsAbs(location) {
		return nil, errors.New("expected oci://HOST/REPOSITORY or the absolute path of an OCI layout directory")
	}
	return &Repository{layout: filepath.Clean(location)}, nil
}

// patient sends a request again if it may be: not the end of an upload, which a
// registry may have taken before it failed, so that the same bytes would be
// there twice. pushBlob begins those anew.
type patient struct{ once, again http.RoundTripper }

// RoundTrip is http.RoundTripper's.
func (p patient) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodPut && !strings.Contains(req.URL.Path, "/manifests/") {
		return p.once.RoundTrip(req)
	}
	return p.again.RoundTrip(req)
}

// again is how often, and after which pauses, a request is sent again.
var again = &retry.GenericPolicy{
	Retryable: retry.DefaultPredicate,
	Backoff:   retry.ExponentialBackoff(150*time.Millisecond, 2, 0.1),
	MinWait:   100 * time.Millisecond,
	MaxWait:   3 * time.Second,
	MaxRetry:  3,
}

// String is the location without anything secret.
func (r *Repository) String() string {
	if r.reg != nil {
		return "oci://" + r.reg.ref.Registry + "/" + r.reg.ref.Repository
	}
	return r.layout
}

// ready finds out whether a registry on a loopback address speaks TLS.
func (r *Repository) ready(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked || !r.reg.plain {
		return nil
	}
	body, _, err := r.reg.get(ctx, "tags/list", "", blobName{size: -1}, 0)
	if err == nil {
		body.Close()
	}
	if err != nil && (errors.Is(err, ErrUnreachable) || ctx.Err() != nil) {
		return err
	}
	r.asked = true // any other answer is one in the right protocol
	return nil
}

// remote is the repository for what oras does: uploads and listings.
func (r *Repository) remote() *remote.Repository {
	return &remote.Repository{
		Client: r.reg.client, Reference: r.reg.ref, PlainHTTP: r.reg.scheme == "http",
		TagListMaxPages: maxPages, MaxMetadataBytes: maxListing,
	}
}

// ask runs one exchange of oras within the time that a registry may be silent.
func (r *Repository) ask(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, r.reg.stall, fmt.Errorf("%w: no answer within %v", ErrUnreachable, r.reg.stall))
	defer cancel()
	err := f(ctx)
	var said *errcode.ErrorResponse
	switch {
	case err == nil, context.Cause(ctx) == nil && (errors.Is(err, ErrUnreachable) || errors.Is(err, ErrOtherBytes) || errors.Is(err, ErrAbsent)):
		return err
	case errors.As(err, &said):
		return r.said(said)
	case errors.Is(err, errdef.ErrTooManyPages):
		return fmt.Errorf("more than %d pages: %w", maxPages, ErrOtherBytes)
	}
	return answered(ctx, err)
}

var errCredentials = errors.New("it wants other credentials")

// said is a registry's refusal of an upload or a listing in words of our own.
func (r *Repository) said(e *errcode.ErrorResponse) error {
	text := fmt.Sprintf("the registry answers %d", e.StatusCode)
	if len(e.Errors) > 0 {
		text += fmt.Sprintf(" (%.40q %.200q)", e.Errors[0].Code, e.Errors[0].Message)
	}
	switch {
	case e.StatusCode == http.StatusUnauthorized || e.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%s: %w; next: docker login %s", text, errCredentials, r.reg.ref.Host())
	case e.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%s: %w", text, ErrAbsent)
	case e.StatusCode == http.StatusTooManyRequests || e.StatusCode >= 500:
		return fmt.Errorf("%w: %s", ErrUnreachable, text)
	}
	return errors.New(text)
}

// Tags returns the tags that the place lists now, sorted, each once. What it
// does not list may be there all the same: a listing proves nothing by what is
// missing in it. More than MaxTags are ErrOtherBytes, and a repository or
// directory that is not there is ErrAbsent.
func (r *Repository) Tags(ctx context.Context) ([]string, error) {
	tags, err := r.tags(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", r, err)
	}
	slices.Sort(tags)
	return slices.Compact(tags), nil
}

func (r *Repository) tags(ctx context.Context) (tags []string, err error) {
	add := func(page []string) error {
		if len(tags)+len(page) > MaxTags {
			return fmt.Errorf("more than %d tags: %w", MaxTags, ErrOtherBytes)
		}
		for _, tag := range page {
			if !tagPattern.MatchString(tag) {
				return fmt.Errorf("%.140q is no tag: %w", tag, ErrOtherBytes)
			}
		}
		tags = append(tags, page...)
		return nil
	}
	if r.reg == nil {
		index, err := r.index()
		if err != nil {
			return nil, err
		}
		for _, m := range index.Manifests {
			// A name of an image may be no tag of a registry.
			if ref := m.Annotations[v1.AnnotationRefName]; tagPattern.MatchString(ref) {
				if err := add([]string{ref}); err != nil {
					return nil, err
				}
			}
		}
		return tags, nil
	}
	if err := r.ready(ctx); err != nil {
		return nil, err
	}
	err = r.ask(ctx, func(ctx context.Context) error { return r.remote().Tags(ctx, "", add) })
	return tags, err
}

func (r *Repository) index() (v1.Index, error) {
	index, err := readIndex(r.layout)
	if errors.Is(err, os.ErrNotExist) {
		return v1.Index{}, fmt.Errorf("%w: no OCI image layout (%s): %w", ErrAbsent, v1.ImageIndexFile, err)
	}
	return index, err
}

// Layer is what a manifest claims of one blob.
type Layer struct {
	MediaType string
	Digest    hashpipe.Digest
	Size      int64
}

// Manifest is an artifact as its manifest describes it; none of its blobs was
// brought. Its config is OCI's empty one.
type Manifest struct {
	Digest hashpipe.Digest // measured
	Type   string          // artifactType
	Layers []Layer
}

// Manifest brings what a tag names now, at most 64 KiB. ErrAbsent: the place has no
// such tag; ErrOtherBytes: what it has is no artifact.
func (r *Repository) Manifest(ctx context.Context, tag string) (Manifest, error) {
	m, err := r.manifest(ctx, tag)
	if err != nil {
		return Manifest{}, fmt.Errorf("%s:%s: %w", r, tag, err)
	}
	return m, nil
}

func (r *Repository) manifest(ctx context.Context, tag string) (Manifest, error) {
	if !tagPattern.MatchString(tag) {
		return Manifest{}, fmt.Errorf("%.140q is no tag", tag)
	}
	text, err := r.manifestText(ctx, tag)
	if err != nil {
		return Manifest{}, err
	}
	m, err := readArtifact(text)
	if err != nil {
		return Manifest{}, fmt.Errorf("manifest: %w: %w", err, ErrOtherBytes)
	}
	return m, nil
}

func (r *Repository) manifestText(ctx context.Context, tag string) ([]byte, error) {
	if r.reg == nil {
		d, size, err := r.tagged(tag)
		if err != nil {
			return nil, err
		}
		return r.pull().read(ctx, blobName{what: "manifest", digest: d, size: size})
	}
	if err := r.ready(ctx); err != nil {
		return nil, err
	}
	body, _, err := r.reg.get(ctx, "manifests/"+tag, v1.MediaTypeImageManifest, blobName{size: -1}, 0)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return readAll(body, maxManifest)
}

// tagged looks a tag up in the index of a layout.
func (r *Repository) tagged(tag string) (hashpipe.Digest, int64, error) {
	index, err := r.index()
	if err != nil {
		return hashpipe.Digest{}, 0, err
	}
	var found []v1.Descriptor
	for _, m := range index.Manifests {
		if m.Annotations[v1.AnnotationRefName] == tag {
			found = append(found, m)
		}
	}
	switch {
	case len(found) == 0:
		return hashpipe.Digest{}, 0, ErrAbsent
	case len(found) > 1:
		return hashpipe.Digest{}, 0, fmt.Errorf("%d manifests have this tag: %w", len(found), ErrOtherBytes)
	case found[0].Size < 0 || found[0].Size > maxManifest:
		return hashpipe.Digest{}, 0, fmt.Errorf("a manifest of %d bytes, expected at most %d: %w", found[0].Size, maxManifest, ErrOtherBytes)
	}
	d, err := parseDigest(found[0].Digest)
	return d, found[0].Size, err
}

func (r *Repository) pull() *pull {
	if r.reg != nil {
		return &pull{place: r.reg}
	}
	return &pull{place: layoutPlace(r.layout)}
}

func readArtifact(text []byte) (Manifest, error) {
	var m v1.Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return Manifest{}, err
	}
	switch {
	case m.MediaType != v1.MediaTypeImageManifest:
		return Manifest{}, fmt.Errorf("media type %.80q, expected %s", m.MediaType, v1.MediaTypeImageManifest)
	case m.SchemaVersion != 2:
		return Manifest{}, fmt.Errorf("schema version %d, expected 2", m.SchemaVersion)
	case m.ArtifactType == "":
		return Manifest{}, errors.New("no artifactType: an image, and no artifact")
	case m.Config.MediaType != v1.MediaTypeEmptyJSON || m.Config.Digest != v1.DescriptorEmptyJSON.Digest || m.Config.Size != v1.DescriptorEmptyJSON.Size:
		return Manifest{}, fmt.Errorf("config of type %.80q, expected the empty one (%s)", m.Config.MediaType, v1.MediaTypeEmptyJSON)
	}
	out := Manifest{Digest: hashpipe.SumBytes(text).Claim(), Type: m.ArtifactType}
	for i, l := range m.Layers {
		d, err := parseDigest(l.Digest)
		if err != nil {
			return Manifest{}, fmt.Errorf("layer %d: %w", i+1, err)
		}
		if l.Size < 0 || len(l.URLs) > 0 {
			return Manifest{}, fmt.Errorf("layer %d: size %d, %d foreign addresses", i+1, l.Size, len(l.URLs))
		}
		out.Layers = append(out.Layers, Layer{l.MediaType, d, l.Size})
	}
	return out, nil
}

// Layer brings a blob by its digest, at most 4 MiB. The caller has judged its
// size. ErrOtherBytes: the place has others under this digest.
func (r *Repository) Layer(ctx context.Context, l Layer) ([]byte, error) {
	if r.reg != nil {
		if err := r.ready(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", r, err)
		}
	}
	text, err := r.pull().read(ctx, blobName{what: "blob " + l.Digest.String(), digest: l.Digest, size: l.Size})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r, err)
	}
	return text, nil
}

// Blob is the content of one layer.
type Blob struct {
	MediaType string
	Text      []byte
}

// Artifact is something to push.
type Artifact struct {
	Type   string // artifactType
	Layers []Blob // at least one, each of at most 4 MiB
	// Subject is the tag of the artifact that this one is about, or empty. It
	// stands in the manifest where the registry has that tag and answers the
	// referrers API by itself; what clients put in its place loses entries when
	// two push at the same time.
	Subject string
}

// Push stores an artifact under a tag and returns the digest of its manifest,
// which the content alone decides where there is no subject. A tag that was
// there is moved. A layout directory is made if there is none; several processes
// may push into one.
func (r *Repository) Push(ctx context.Context, tag string, a Artifact) (hashpipe.Digest, error) {
	d, err := r.push(ctx, tag, a)
	if err != nil {
		return hashpipe.Digest{}, fmt.Errorf("pushing %s:%s: %w", r, tag, err)
	}
	return d, nil
}

func (r *Repository) push(ctx context.Context, tag string, a Artifact) (hashpipe.Digest, error) {
	if !tagPattern.MatchString(tag) || a.Type == "" || len(a.Layers) == 0 {
		return hashpipe.Digest{}, fmt.Errorf("tag %.140q, type %.80q, %d layers: all three are required", tag, a.Type, len(a.Layers))
	}
	m := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest, ArtifactType: a.Type,
		Config:      v1.Descriptor{MediaType: v1.MediaTypeEmptyJSON, Digest: v1.DescriptorEmptyJSON.Digest, Size: v1.DescriptorEmptyJSON.Size},
		Annotations: map[string]string{v1.AnnotationCreated: created},
	}
	blobs := []Blob{{v1.MediaTypeEmptyJSON, v1.DescriptorEmptyJSON.Data}}
	for i, b := range a.Layers {
		if len(b.Text) == 0 || len(b.Text) > maxDocument {
			return hashpipe.Digest{}, fmt.Errorf("layer %d has %d bytes, expected 1 to %d", i+1, len(b.Text), maxDocument)
		}
		m.Layers = append(m.Layers, describeBlob(b))
		blobs = append(blobs, b)
	}
	if r.reg == nil {
		return r.pushLayout(ctx, tag, m, blobs)
	}
	return r.pushRegistry(ctx, tag, a.Subject, m, blobs)
}

func describeBlob(b Blob) v1.Descriptor {
	return v1.Descriptor{MediaType: b.MediaType, Digest: digest.Digest("sha256:" + hashpipe.SumBytes(b.Text).String()), Size: int64(len(b.Text))}
}

func (r *Repository) pushRegistry(ctx context.Context, tag, subject string, m v1.Manifest, blobs []Blob) (hashpipe.Digest, error) {
	if err := r.ready(ctx); err != nil {
		return hashpipe.Digest{}, err
	}
	to := r.remote()
	for _, b := range blobs {
		if err := r.pushBlob(ctx, to, b); err != nil {
			return hashpipe.Digest{}, err
		}
	}
	if subject != "" {
		err := r.ask(ctx, func(ctx context.Context) (err error) {
			m.Subject, err = r.subject(ctx, to, subject)
			return err
		})
		if err != nil {
			return hashpipe.Digest{}, fmt.Errorf("looking for its subject %s: %w", subject, err)
		}
	}
	text, err := encode(m)
	if err != nil {
		return hashpipe.Digest{}, err
	}
	desc, err := r.pushManifest(ctx, to, tag, text)
	if err != nil {
		return hashpipe.Digest{}, err
	}
	return parseDigest(desc.Digest)
}

// pushBlob uploads a blob that is not there, and begins an upload that failed
// anew.
func (r *Repository) pushBlob(ctx context.Context, to *remote.Repository, b Blob) error {
	desc := describeBlob(b)
	return insist(ctx, func() (final bool, err error) {
		final = true // what came before the upload was tried often enough
		err = r.ask(ctx, func(ctx context.Context) error {
			if have, err := to.Blobs().Exists(ctx, desc); have || err != nil {
				return err
			}
			final = false
			return to.Blobs().Push(ctx, desc, bytes.NewReader(b.Text))
		})
		return final, err
	})
}

// pushManifest puts a manifest under a tag. Distribution 2.8 answers 400
// DIGEST_INVALID when it reads the link of a blob while somebody else pushes the
// same blob, as all do with the empty config: it truncates the file first.
func (r *Repository) pushManifest(ctx context.Context, to *remote.Repository, tag string, text []byte) (v1.Descriptor, error) {
	desc := describeBlob(Blob{v1.MediaTypeImageManifest, text})
	return desc, insist(ctx, func() (final bool, err error) {
		err = r.ask(ctx, func(ctx context.Context) error { return to.PushReference(ctx, desc, bytes.NewReader(text), tag) })
		return errors.Is(err, ErrUnreachable), err // which was sent several times
	})
}

// insist does something again that failed, three times at most and after a
// pause, unless the error is final.
func insist(ctx context.Context, f func() (final bool, err error)) error {
	for attempt := 0; ; attempt++ {
		final, err := f()
		if err == nil || final || attempt == again.MaxRetry || errors.Is(err, errCredentials) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(again.Backoff(attempt, nil)):
		}
	}
}

// subject returns the descriptor of a tag for a manifest's subject; nil if the
// registry has no such tag or no referrers API of its own.
func (r *Repository) subject(ctx context.Context, to *remote.Repository, tag string) (*v1.Descriptor, error) {
	m, err := r.manifestText(ctx, tag)
	if errors.Is(err, ErrAbsent) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	desc := describeBlob(Blob{v1.MediaTypeImageManifest, m})
	ctx = auth.AppendRepositoryScope(ctx, r.reg.ref, auth.ActionPull)
	resp, err := r.reg.do(ctx, "referrers/"+desc.Digest.String(), v1.MediaTypeImageIndex, 0)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusOK && resp.Header.Get("Content-Type") == v1.MediaTypeImageIndex:
		return &desc, to.SetReferrersCapability(true)
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500:
		return nil, fmt.Errorf("%w: the registry answers %q", ErrUnreachable, resp.Status)
	}
	return nil, nil
}

func (r *Repository) pushLayout(ctx context.Context, tag string, m v1.Manifest, blobs []Blob) (hashpipe.Digest, error) {
	if err := newLayout(r.layout); err != nil {
		return hashpipe.Digest{}, err
	}
	text, err := encode(m)
	if err != nil {
		return hashpipe.Digest{}, err
	}
	dir := filepath.Join(r.layout, "blobs", "sha256")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return hashpipe.Digest{}, err
	}
	manifest := Blob{m.MediaType, text}
	for _, b := range append(blobs, manifest) {
		name := filepath.Join(dir, hashpipe.SumBytes(b.Text).String())
		if have, err := os.ReadFile(name); err == nil && bytes.Equal(have, b.Text) {
			continue
		}
		if err := writeFile(name, b.Text); err != nil {
			return hashpipe.Digest{}, err
		}
	}
	desc := describeBlob(manifest)
	desc.ArtifactType = m.ArtifactType
	desc.Annotations = map[string]string{v1.AnnotationRefName: tag}
	err = withIndex(r.layout, func(index v1.Index) error {
		_, err := writeIndex(r.layout, index, desc)
		return err
	})
	if err != nil {
		return hashpipe.Digest{}, err
	}
	d, err := parseDigest(desc.Digest)
	return d, errors.Join(err, ctx.Err())
}

// newLayout makes the directory of a layout. One that holds something else is
// refused: a mistyped path must not become a layout.
func newLayout(layout string) error {
	if err := os.MkdirAll(layout, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(layout)
	if err != nil || len(entries) == 0 {
		return err
	}
	for _, e := range entries { // another process may be making it: blobs comes first
		if name := e.Name(); name == v1.ImageLayoutFile || name == v1.ImageIndexFile || name == v1.ImageBlobsDir {
			return nil
		}
	}
	return fmt.Errorf("a directory with other things in it (%.80q), expected an OCI image layout, an empty directory or none", entries[0].Name())
}

// withIndex hands the index of a layout, or a new one, to f, one writer at a
// time.
func withIndex(layout string, f func(v1.Index) error) error {
	dir, err := os.Open(layout)
	if err != nil {
		return err
	}
	defer dir.Close() // and with it the lock
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", layout, err)
	}
	index, err := readIndex(layout)
	if errors.Is(err, os.ErrNotExist) {
		index, err = v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}, nil
	}
	if err != nil {
		return err
	}
	return f(index)
}
