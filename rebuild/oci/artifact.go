package oci

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/tree"
)

// What `oras push` writes about a layer: that it is a directory, and the digest
// of its archive before compression.
const (
	annotationUnpack = "io.deis.oras.content.unpack"
	annotationDigest = "io.deis.oras.content.digest"
)

// PullArtifact makes the directory dest out of an OCI artifact and returns the
// digest of its manifest. Locations are those of Pull; a location without
// "@sha256:HEX" leads to what its tag or the only line of its index.json names,
// so the caller measures dest and compares that with the ledger.
//
// A layer with the annotation org.opencontainers.image.title is the file of
// that path, or, where io.deis.oras.content.unpack is "true", an archive of a
// directory of that path. An artifact of one archive alone (one such directory,
// or one layer of tar, tar+gzip or tar+zstd without a title) is the content of
// that directory. All paths follow package tree's rules; dest holds regular
// files only.
//
// dest must not exist; it appears by a rename when all is verified. What is
// brought lies in dest+".pull", which stays after an error with ErrUnreachable,
// for the next call; after a crash, a directory named dest+".unpack-…" may be
// left too. lim bounds what archives unpack to, and all files together.
func PullArtifact(ctx context.Context, from, dest string, lim Limits, o Options) (hashpipe.Digest, error) {
	d, err := pullArtifact(ctx, from, dest, lim, o)
	if !errors.Is(err, ErrUnreachable) {
		err = errors.Join(err, os.RemoveAll(dest+".pull"))
	}
	if err != nil {
		return hashpipe.Digest{}, fmt.Errorf("artifact from %s: %w", redact(from), err)
	}
	return d, nil
}

func pullArtifact(ctx context.Context, from, dest string, lim Limits, o Options) (hashpipe.Digest, error) {
	if lim.Bytes <= 0 || lim.Entries <= 0 {
		return hashpipe.Digest{}, fmt.Errorf("limits are %d bytes and %d entries, wanted more than 0", lim.Bytes, lim.Entries)
	}
	if _, err := os.Lstat(dest); !errors.Is(err, os.ErrNotExist) {
		return hashpipe.Digest{}, fmt.Errorf("%s: already exists (%w)", dest, errors.Join(err, os.ErrExist))
	}
	p, err := newPull(from, dest+".pull", o)
	if err != nil {
		return hashpipe.Digest{}, err
	}
	defer p.place.Close()
	text, d, err := p.artifactManifest(ctx)
	if err != nil {
		return hashpipe.Digest{}, err
	}
	parts, err := readParts(text)
	if err != nil {
		return hashpipe.Digest{}, fmt.Errorf("manifest: %w", err)
	}
	descs := make([]v1.Descriptor, len(parts))
	for i, part := range parts {
		descs[i] = part.desc
	}
	if err := p.layers(ctx, descs); err != nil {
		return hashpipe.Digest{}, err
	}
	return d, p.assemble(ctx, parts, dest, lim)
}

// artifactManifest returns the manifest that the location leads to. Where the
// location names no digest, the one returned is what was measured.
func (p *pull) artifactManifest(ctx context.Context) ([]byte, hashpipe.Digest, error) {
	d := p.pin
	if d.IsZero() {
		text, err := p.place.top(ctx)
		if err != nil {
			return nil, d, err
		}
		if text == nil {
			return nil, d, errors.New("expected a tag or @sha256:HEX behind the repository")
		}
		var probe struct {
			Manifests []v1.Descriptor `json:"manifests"`
		}
		if err := json.Unmarshal(text, &probe); err != nil {
			return nil, d, fmt.Errorf("index or manifest: %w", err)
		}
		if probe.Manifests == nil {
			return text, hashpipe.SumBytes(text).Claim(), p.accept(int64(len(text)))
		}
		if len(probe.Manifests) != 1 {
			_, list, err := p.choose(ctx, text, Config{})
			if err == nil {
				err = fmt.Errorf("add @sha256:HEX to the location, which leads to %s", list)
			}
			return nil, d, err
		}
		if d, err = parseDigest(probe.Manifests[0].Digest); err != nil {
			return nil, d, fmt.Errorf("index: %w", err)
		}
	}
	text, err := p.document(ctx, blobName{what: "manifest", digest: d, size: -1, manifest: true})
	if err != nil {
		return nil, d, err
	}
	return text, d, p.accept(int64(len(text)))
}

// part is one layer of an artifact.
type part struct {
	desc   v1.Descriptor
	blob   hashpipe.Digest
	path   string // of the file, or of the directory; "" is the root
	strip  string // what the names of the archive begin with
	unpack bool
	diffID hashpipe.Digest // of the archive before compression, or zero
}

// readParts judges all layers of a manifest before any is brought.
func readParts(text []byte) ([]part, error) {
	var m v1.Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, err
	}
	switch {
	case m.MediaType != "" && m.MediaType != v1.MediaTypeImageManifest:
		return nil, fmt.Errorf("media type %.80q is not that of an artifact's manifest (%s)", m.MediaType, v1.MediaTypeImageManifest)
	case m.SchemaVersion != 2:
		return nil, fmt.Errorf("schema version %d, wanted 2", m.SchemaVersion)
	case len(m.Layers) == 0:
		return nil, errors.New("no layers")
	case len(m.Layers) > maxMembers:
		return nil, fmt.Errorf("%d layers, the limit is %d", len(m.Layers), maxMembers)
	}
	parts := make([]part, len(m.Layers))
	seen := map[string]bool{}
	for i, desc := range m.Layers {
		p, err := readPart(desc, len(m.Layers) == 1)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		if seen[p.path] {
			return nil, fmt.Errorf("layer %d: %q is there twice", i+1, clip(p.path))
		}
		seen[p.path] = true
		parts[i] = p
	}
	return parts, nil
}

func readPart(desc v1.Descriptor, alone bool) (part, error) {
	p := part{desc: desc, unpack: desc.Annotations[annotationUnpack] == "true"}
	var err error
	if p.blob, err = parseDigest(desc.Digest); err != nil {
		return p, err
	}
	if len(desc.URLs) > 0 {
		return p, fmt.Errorf("%d foreign addresses", len(desc.URLs))
	}
	title := desc.Annotations[v1.AnnotationTitle]
	if title == "" {
		if !alone {
			return p, fmt.Errorf("no annotation %s: its file has no name", v1.AnnotationTitle)
		}
		p.unpack = true
	} else if p.unpack && alone {
		p.strip = path.Clean(title)
	} else if err := tree.CheckPath(title); err != nil {
		return p, err
	} else {
		p.path, p.strip = title, title
	}
	if d := desc.Annotations[annotationDigest]; p.unpack && d != "" {
		if p.diffID, err = parseDigest(digest.Digest(d)); err != nil {
			return p, fmt.Errorf("annotation %s: %w", annotationDigest, err)
		}
	}
	return p, nil
}

// assemble makes dest out of verified blobs.
func (p *pull) assemble(ctx context.Context, parts []part, dest string, lim Limits) error {
	temp, err := os.MkdirTemp(filepath.Dir(dest), filepath.Base(dest)+".unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp) // after the rename there is nothing left of it
	if err := os.Chmod(temp, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(temp)
	if err != nil {
		return err
	}
	defer root.Close()
	left := lim
	for i, part := range parts {
		if part.unpack {
			err = p.unpackPart(ctx, part, root, &left)
		} else {
			err = p.placePart(ctx, part, root, &left)
		}
		if err != nil {
			return fmt.Errorf("layer %d of %d: %w", i+1, len(parts), err)
		}
	}
	if err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, dest, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("moving the verified files to %s: %w", dest, err)
	}
	return nil
}

// placePart copies a blob to its path and measures what it copies.
func (p *pull) placePart(ctx context.Context, part part, root *os.Root, left *Limits) error {
	f, size, err := openBlob(p.layout, part.blob)
	if err != nil {
		return err
	}
	defer f.Close()
	if left.Entries--; left.Entries < 0 {
		return fmt.Errorf("%w: files", errBudget)
	}
	if left.Bytes -= size; left.Bytes < 0 {
		return fmt.Errorf("%w: bytes", errBudget)
	}
	sum, err := writeNew(ctx, root, part.path, io.LimitReader(f, size))
	if err == nil && !sum.Is(part.blob) {
		err = fmt.Errorf("%s: hashes to %v, wanted %v", part.path, sum, part.blob)
	}
	return err
}

// writeNew makes a file that did not exist and the directories above it.
func writeNew(ctx context.Context, root *os.Root, name string, content io.Reader) (hashpipe.Sum, error) {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return hashpipe.Sum{}, err
	}
	out, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return hashpipe.Sum{}, err
	}
	sum, _, err := hashpipe.SumReader(ctx, io.TeeReader(content, out), nil)
	return sum, errors.Join(err, out.Close())
}

// unpackPart unpacks an archive of regular files.
func (p *pull) unpackPart(ctx context.Context, part part, root *os.Root, left *Limits) error {
	f, size, err := openBlob(p.layout, part.blob)
	if err != nil {
		return err
	}
	defer f.Close()
	mediaType := part.desc.MediaType
	if !slices.Contains([]string{v1.MediaTypeImageLayer, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerZstd}, mediaType) {
		switch { // other vendors' types with the suffixes of RFC 8478 and RFC 6839
		case strings.HasSuffix(mediaType, "tar+gzip"):
			mediaType = v1.MediaTypeImageLayerGzip
		case strings.HasSuffix(mediaType, "tar+zstd"):
			mediaType = v1.MediaTypeImageLayerZstd
		case strings.HasSuffix(mediaType, "tar"):
			mediaType = v1.MediaTypeImageLayer
		}
	}
	plain, closePlain, err := decompress(mediaType, bufio.NewReaderSize(io.LimitReader(f, size), 1<<16))
	if err != nil {
		return err
	}
	defer closePlain()
	return measured(ctx, plain, part.diffID, left, func(r io.Reader) error {
		return extract(ctx, r, part, root, left)
	})
}

func extract(ctx context.Context, r io.Reader, part part, root *os.Root, left *Limits) error {
	archive := tar.NewReader(r)
	names := int64(maxNames)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("archive: %w", err)
		}
		if left.Entries--; left.Entries < 0 {
			return fmt.Errorf("%w: archive entries", errBudget)
		}
		if h.Size > left.Bytes {
			return fmt.Errorf("%w: %q has %d bytes", errBudget, clip(h.Name), h.Size)
		}
		if names -= int64(len(h.Name)); names < 0 {
			return fmt.Errorf("%w: paths of more than %d bytes together", errBudget, int64(maxNames))
		}
		before := left.Bytes
		if err := extractEntry(ctx, h, archive, part, root); err != nil {
			return fmt.Errorf("archive entry %q: %w", clip(h.Name), err)
		}
		if read := before - left.Bytes; h.Typeflag == tar.TypeReg && h.Size > read {
			left.Bytes -= h.Size - read // holes
		}
	}
}

func extractEntry(ctx context.Context, h *tar.Header, content io.Reader, part part, root *os.Root) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	switch {
	case part.strip == "" || part.strip == ".":
	case name == part.strip:
		name = ""
	default:
		below, ok := strings.CutPrefix(name, part.strip+"/")
		if !ok {
			return fmt.Errorf("is not below %q, which is the layer's title", clip(part.strip))
		}
		name = below
	}
	if name == "" && h.Typeflag == tar.TypeDir {
		return nil
	}
	name = path.Join(part.path, name)
	if err := tree.CheckPath(name); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o755)
	case tar.TypeReg:
		_, err := writeNew(ctx, root, name, content)
		return err
	}
	return errors.New("is neither a regular file nor a directory: a dataset holds regular files only")
}
