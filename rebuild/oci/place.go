package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// ErrAbsent is in the error of a place that does not have a blob or a tag.
var ErrAbsent = errors.New("is not there")

// place is where blobs come from. Nothing that it returns is verified.
type place interface {
	// open returns the bytes of a blob from an offset on, or from 0, and says
	// which of the two.
	open(ctx context.Context, b blobName, offset int64) (body io.ReadCloser, at int64, err error)
	// top returns the index or manifest that the location itself leads to,
	// index.json or what a tag names, and nil where there is none.
	top(ctx context.Context) ([]byte, error)
	Close() error
}

// openPlace parses a location; pin is the digest behind its "@", or zero.
func openPlace(from string, o Options) (place, hashpipe.Digest, error) {
	var pin hashpipe.Digest
	if strings.ContainsFunc(from, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, pin, errors.New("the location has control characters")
	}
	rest := from
	if i := strings.LastIndex(from, "@sha256:"); i >= 0 {
		var err error
		if pin, err = hashpipe.ParseDigest(from[i+len("@sha256:"):]); err != nil {
			return nil, pin, err
		}
		rest = from[:i]
	}
	if path, ok := strings.CutPrefix(rest, "file://"); ok {
		if unescaped, err := url.PathUnescape(path); err == nil {
			rest = unescaped
		}
	}
	if scheme, repository, ok := strings.Cut(rest, "://"); ok && (scheme == "oci" || scheme == "docker") {
		p, err := newRegistryPlace(repository, o)
		return p, pin, err
	}
	if !filepath.IsAbs(rest) {
		return nil, pin, errors.New("expected the absolute path of an OCI layout directory or archive, oci://HOST/REPOSITORY or docker://HOST/REPOSITORY")
	}
	p, err := openLocal(filepath.Clean(rest))
	return p, pin, err
}

func openLocal(path string) (place, error) {
	// Opening a device can do things, so it is looked at first.
	name, err := os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer name.Close()
	if st, err := name.Stat(); err != nil || !st.IsDir() && !st.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("neither a directory nor a regular file"))
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", name.Fd()), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	st, err := f.Stat()
	switch {
	case err != nil:
	case st.IsDir():
		f.Close()
		return layoutPlace(path), nil
	case st.Mode().IsRegular():
		var a *archivePlace
		if a, err = scanArchive(f); err == nil {
			return a, nil
		}
	}
	f.Close()
	return nil, err
}

// layoutPlace is an OCI image layout directory.
type layoutPlace string

func (l layoutPlace) open(_ context.Context, b blobName, offset int64) (io.ReadCloser, int64, error) {
	f, size, err := openBlob(string(l), b.digest)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, fmt.Errorf("blob %v %w: %w", b.digest, ErrAbsent, err)
	}
	if err != nil {
		return nil, 0, err
	}
	if err = checkSize(b, size); err == nil {
		_, err = f.Seek(offset, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, offset, nil
}

func (l layoutPlace) top(context.Context) ([]byte, error) {
	f, err := os.OpenFile(filepath.Join(string(l), v1.ImageIndexFile), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, maxDocument)
}

func (layoutPlace) Close() error { return nil }

// checkSize compares the size that a place tells before it sends a byte.
func checkSize(b blobName, size int64) error {
	if b.size >= 0 && size != b.size {
		return fmt.Errorf("the place has %d bytes, the descriptor says %d: %w", size, b.size, ErrOtherBytes)
	}
	return nil
}

// maxMembers bounds the entries of an archive of a layout: blobs and little else.
const maxMembers = 100_000

// archivePlace is a tar file of an OCI image layout.
type archivePlace struct {
	f     *os.File
	index []byte
	blobs map[hashpipe.Digest]span
}

// span is where the content of an archive entry lies.
type span struct{ offset, size int64 }

// scanArchive reads the headers of an archive and skips what is between them.
func scanArchive(f *os.File) (*archivePlace, error) {
	a := &archivePlace{f: f, blobs: map[hashpipe.Digest]span{}}
	magic := make([]byte, 6)
	n, err := f.ReadAt(magic, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	for tool, start := range map[string]string{"gunzip -k": "\x1f\x8b", "unzstd": "\x28\xb5\x2f\xfd", "unxz -k": "\xfd7zXZ\x00", "bunzip2 -k": "BZh"} {
		if bytes.HasPrefix(magic[:n], []byte(start)) {
			return nil, fmt.Errorf("the archive is compressed; first: %s %s", tool, f.Name())
		}
	}
	var docker bool
	r := tar.NewReader(f)
	for entries := 0; ; entries++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the archive: %w", err)
		}
		if entries == maxMembers {
			return nil, fmt.Errorf("an archive of more than %d entries", maxMembers)
		}
		if h.Typeflag != tar.TypeReg || h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != "" {
			continue
		}
		name := strings.TrimPrefix(h.Name, "./")
		docker = docker || name == "manifest.json"
		if name == v1.ImageIndexFile {
			if a.index, err = readAll(r, maxDocument); err != nil {
				return nil, fmt.Errorf("%s of the archive: %w", name, err)
			}
		}
		if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
			if d, err := hashpipe.ParseDigest(hex); err == nil {
				at, err := f.Seek(0, io.SeekCurrent) // tar.Reader reads no further than asked
				if err != nil {
					return nil, err
				}
				a.blobs[d] = span{at, h.Size}
			}
		}
	}
	if a.index == nil && docker {
		return nil, fmt.Errorf("an archive of docker save from before Docker 25 has no manifest digest to compare; "+
			"bring the image from its registry, or make a layout and a ledger that names its digest: skopeo copy docker-archive:%s oci:DIR", f.Name())
	}
	if a.index == nil {
		return nil, errors.New("the archive is not one of an OCI image layout: it has no index.json")
	}
	return a, nil
}

func (a *archivePlace) open(_ context.Context, b blobName, offset int64) (io.ReadCloser, int64, error) {
	s, ok := a.blobs[b.digest]
	if !ok {
		return nil, 0, fmt.Errorf("blob %v %w", b.digest, ErrAbsent)
	}
	if err := checkSize(b, s.size); err != nil {
		return nil, 0, err
	}
	return io.NopCloser(io.NewSectionReader(a.f, s.offset+offset, s.size-offset)), offset, nil
}

func (a *archivePlace) top(context.Context) ([]byte, error) { return a.index, nil }

func (a *archivePlace) Close() error { return a.f.Close() }
