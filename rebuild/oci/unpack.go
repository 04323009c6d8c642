package oci

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// maxWindow bounds the memory that a zstd frame may ask for, in bytes: what
// `zstd --ultra -22` uses.
const maxWindow = 128 << 20

// maxDepth bounds the components of a path: every entry is resolved from the
// root, so depth multiplies the work of each.
const maxDepth = 256

// maxNames bounds the paths of all entries together in bytes. An image of two
// million files has less than half of it; repeated names compress to nothing.
const maxNames = 512 << 20

// Unpack makes the directory dest out of the image's layers and returns the
// image's configuration. dest must not exist; it appears, by a rename, only
// after every blob and every layer was verified. After a crash a directory
// named like dest with ".unpack-" appended may be left beside it.
func Unpack(ctx context.Context, layout string, manifest hashpipe.Digest, dest string, lim Limits) (Config, error) {
	cfg, err := unpack(ctx, layout, manifest, dest, lim)
	if err != nil {
		return Config{}, fmt.Errorf("image %v in %s: %w", manifest, layout, err)
	}
	return cfg, nil
}

func unpack(ctx context.Context, layout string, manifest hashpipe.Digest, dest string, lim Limits) (Config, error) {
	if lim.Bytes <= 0 || lim.Entries <= 0 {
		return Config{}, fmt.Errorf("limits are %d bytes and %d entries, wanted more than 0", lim.Bytes, lim.Entries)
	}
	if _, err := os.Lstat(dest); !errors.Is(err, os.ErrNotExist) {
		return Config{}, fmt.Errorf("%s: already exists (%w)", dest, errors.Join(err, os.ErrExist))
	}
	cfg, layers, err := inspect(ctx, layout, manifest)
	if err != nil {
		return Config{}, err
	}
	temp, err := os.MkdirTemp(filepath.Dir(dest), filepath.Base(dest)+".unpack-")
	if err != nil {
		return Config{}, err
	}
	defer os.RemoveAll(temp) // after the rename there is nothing left of it
	if err := os.Chmod(temp, 0o755); err != nil {
		return Config{}, err
	}
	root, err := openRoot(temp, lim.Entries)
	if err != nil {
		return Config{}, err
	}
	defer root.close()
	left := lim
	for i, l := range layers {
		if err := applyLayer(ctx, layout, l, root, &left); err != nil {
			return Config{}, fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
		}
	}
	if err := root.finish(); err != nil {
		return Config{}, err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, temp, unix.AT_FDCWD, dest, unix.RENAME_NOREPLACE); err != nil {
		return Config{}, fmt.Errorf("moving the verified image to %s: %w", dest, err)
	}
	return cfg, nil
}

// applyLayer unpacks one layer onto root. The compressed bytes are hashed
// before the decompressor sees them; the decompressed bytes are hashed as they
// are unpacked, because the blob may change between the two readings.
func applyLayer(ctx context.Context, layout string, l layer, root *rootDir, left *Limits) error {
	f, size, err := openBlob(layout, l.blob)
	if err != nil {
		return err
	}
	defer f.Close()
	if size != l.size {
		return fmt.Errorf("blob %v has %d bytes, its descriptor says %d", l.blob, size, l.size)
	}
	sum, n, err := hashpipe.SumReader(ctx, io.LimitReader(f, size+1), nil)
	if err != nil {
		return err
	}
	if n != size || !sum.Is(l.blob) {
		return fmt.Errorf("blob %v hashes to %v (%d bytes)", l.blob, sum, n)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	plain, closePlain, err := decompress(l.mediaType, bufio.NewReaderSize(io.LimitReader(f, size), 1<<16))
	if err != nil {
		return err
	}
	defer closePlain()
	return applyTar(ctx, plain, l.diffID, root, left)
}

// decompress picks the decompressor by media type, never by content.
func decompress(mediaType string, r io.Reader) (io.Reader, func(), error) {
	switch mediaType {
	case v1.MediaTypeImageLayer:
		return r, func() {}, nil
	case v1.MediaTypeImageLayerGzip, dockerLayerGzip:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, fmt.Errorf("gzip: %w", err)
		}
		return z, func() { z.Close() }, nil
	case v1.MediaTypeImageLayerZstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, fmt.Errorf("zstd: %w", err)
		}
		return z, z.Close, nil
	}
	return nil, nil, fmt.Errorf("media type %q is not a layer that clawfs reads (tar, tar+gzip, tar+zstd)", clip(mediaType))
}

// applyTar unpacks a tar stream and measures it to its end.
func applyTar(ctx context.Context, plain io.Reader, diffID hashpipe.Digest, root *rootDir, left *Limits) error {
	if diffID.IsZero() {
		return errors.New("no digest of the decompressed layer")
	}
	return measured(ctx, plain, diffID, left, func(r io.Reader) error { return applyEntries(r, root, left) })
}

// measured gives a tar stream to apply, reads it to its end, and compares its
// SHA-256 with diffID; a zero diffID compares with nothing.
func measured(ctx context.Context, plain io.Reader, diffID hashpipe.Digest, left *Limits, apply func(io.Reader) error) error {
	pr, pw := io.Pipe()
	type result struct {
		sum hashpipe.Sum
		err error
	}
	sum := make(chan result, 1)
	go func() {
		s, _, err := hashpipe.SumReader(ctx, pr, nil)
		pr.CloseWithError(err) // a failed hash ends the unpacking
		sum <- result{s, err}
	}()
	source := io.TeeReader(&budget{r: plain, ctx: ctx, left: &left.Bytes}, pw)
	err := apply(source)
	if err == nil {
		err = drain(source)
	}
	pw.CloseWithError(err) // nil is EOF
	got := <-sum
	if err != nil {
		return err
	}
	if got.err != nil {
		return got.err
	}
	if !diffID.IsZero() && !got.sum.Is(diffID) {
		return fmt.Errorf("decompressed layer hashes to %v, the configuration says %v", got.sum, diffID)
	}
	return nil
}

// drain reads what follows the archive's end mark: padding of zero bytes and
// nothing else.
func drain(r io.Reader) error {
	buf := make([]byte, 1<<16)
	zero := make([]byte, 1<<16)
	for {
		n, err := r.Read(buf)
		if !bytes.Equal(buf[:n], zero[:n]) {
			return errors.New("data after the end of the archive")
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// errBudget is what a decompression bomb meets.
var errBudget = errors.New("image is larger than allowed")

// budget counts decompressed bytes of all layers and ends when they are used
// up or nobody wants them any more.
type budget struct {
	r    io.Reader
	ctx  context.Context
	left *int64
}

func (b *budget) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	// One byte more than is left tells "at the limit" from "beyond it".
	if int64(len(p)) > *b.left+1 {
		p = p[:*b.left+1]
	}
	n, err := b.r.Read(p)
	*b.left -= int64(n)
	if *b.left < 0 {
		return 0, fmt.Errorf("%w: decompressed bytes", errBudget)
	}
	return n, err
}

func applyEntries(r io.Reader, root *rootDir, left *Limits) error {
	archive := tar.NewReader(r)
	written := map[string]bool{} // paths of this layer, which its whiteouts spare
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
		// Long names and holes of sparse files cost less in the archive than here.
		if h.Typeflag == tar.TypeReg && h.Size > left.Bytes {
			return fmt.Errorf("%w: %q has %d bytes", errBudget, clip(h.Name), h.Size)
		}
		path, err := cleanName(h.Name)
		if err != nil {
			return err
		}
		if root.names -= int64(len(path)); root.names < 0 {
			return fmt.Errorf("%w: paths of more than %d bytes together", errBudget, int64(maxNames))
		}
		before := left.Bytes
		if err := applyEntry(root, h, path, archive, written); err != nil {
			return fmt.Errorf("archive entry %q: %w", clip(h.Name), err)
		}
		if read := before - left.Bytes; h.Typeflag == tar.TypeReg && h.Size > read {
			left.Bytes -= h.Size - read // holes
		}
	}
}

func applyEntry(root *rootDir, h *tar.Header, path string, content io.Reader, written map[string]bool) error {
	dir, base := splitPath(path)
	if strings.HasPrefix(base, ".wh.") {
		return root.whiteout(dir, base, written)
	}
	for p := path; p != "" && !written[p]; p, _ = splitPath(p) {
		written[p] = true
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return root.mkdir(path, h.ModTime)
	case tar.TypeReg:
		return root.file(path, h, content)
	case tar.TypeSymlink:
		return root.symlink(path, h.Linkname, h.ModTime)
	case tar.TypeLink:
		target, err := cleanName(h.Linkname)
		if err != nil {
			return fmt.Errorf("hard link: %w", err)
		}
		return root.link(path, target)
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeChar, tar.TypeBlock:
		if dir == "dev" {
			return nil // the sandbox mounts its own /dev over these
		}
		return errors.New("is a device node")
	case tar.TypeFifo:
		return errors.New("is a FIFO")
	}
	return fmt.Errorf("is of unknown type %q", h.Typeflag)
}

// cleanName makes an archive name relative to the root without "." components.
// Names that are absolute or climb are refused, not mended: no honest tool
// writes them. The root itself is "".
func cleanName(name string) (string, error) {
	switch {
	case name == "":
		return "", errors.New("archive entry without a name")
	case len(name) > 4096 || strings.ContainsRune(name, 0):
		return "", fmt.Errorf("archive entry %q: name is too long or holds a zero byte", clip(name))
	case strings.HasPrefix(name, "/"):
		return "", fmt.Errorf("archive entry %q: name is absolute", clip(name))
	}
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		switch p {
		case "", ".":
		case "..":
			return "", fmt.Errorf("archive entry %q: name leaves the image", clip(name))
		default:
			parts = append(parts, p)
		}
	}
	if len(parts) > maxDepth {
		return "", fmt.Errorf("archive entry %q: %d directories deep, the limit is %d", clip(name), len(parts), maxDepth)
	}
	return strings.Join(parts, "/"), nil
}

func splitPath(path string) (dir, base string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return "", path
}
