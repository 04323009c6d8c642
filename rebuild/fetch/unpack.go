package fetch

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/verifier/tree"
)

const (
	// maxWindow bounds the memory that a zstd frame may ask for, in bytes: what
	// `zstd --ultra -22` uses.
	maxWindow = 128 << 20
	// maxZipDirectory bounds the bytes of a zip's directory, all of which is in
	// memory while it is unpacked, some seven times as large.
	maxZipDirectory = 64 << 20
)

// errNoArchive means that a file begins like no archive.
var errNoArchive = errors.New("no archive")

// unpack writes the files of an archive into dest, which it creates. It trusts
// no size in it, and stops at the first file or byte too many.
func unpack(ctx context.Context, f *os.File, size int64, dest string, t wanted, seen func(int64)) error {
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return err
	}
	head = head[:n]
	if bytes.HasPrefix(head, []byte("PK\x03\x04")) || bytes.HasPrefix(head, []byte("PK\x05\x06")) {
		return unpackTo(dest, t.most, func(w *writer) error { return unzip(ctx, f, size, w, seen) })
	}
	if isTar(head) {
		return unpackTo(dest, t.most, func(w *writer) error { return untar(ctx, io.NewSectionReader(f, 0, size), w, t, seen) })
	}
	plain, err := decompress(head, &stream{ctx, io.NewSectionReader(f, 0, size), math.MaxInt64})
	if plain == nil {
		return err
	}
	defer plain.Close()
	first := make([]byte, 512)
	if n, err := io.ReadFull(plain, first); err != nil || !isTar(first) {
		return fmt.Errorf("%w: %d bytes in it are no tar header", errNoArchive, n)
	}
	return unpackTo(dest, t.most, func(w *writer) error {
		return untar(ctx, io.MultiReader(bytes.NewReader(first), plain), w, t, seen)
	})
}

func unpackTo(dest string, most Size, run func(*writer) error) error {
	w, err := newWriter(dest, most)
	if err != nil {
		return err
	}
	defer w.close()
	return run(w)
}

// decompress returns nil if head begins no stream that it knows.
func decompress(head []byte, r io.Reader) (io.ReadCloser, error) {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoArchive, err)
		}
		return z, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNoArchive, err)
		}
		return z.IOReadCloser(), nil
	}
	return nil, errNoArchive
}

// isTar checks the header's checksum, which formats without a magic have, too.
func isTar(block []byte) bool {
	if len(block) < 512 {
		return false
	}
	var sum int64
	for i, b := range block[:512] {
		if i >= 148 && i < 156 {
			b = ' '
		}
		sum += int64(b)
	}
	var said int64
	for _, b := range bytes.Trim(block[148:156], " \x00") {
		if b < '0' || b > '7' {
			return false
		}
		said = said*8 + int64(b-'0')
	}
	return said == sum && block[0] != 0
}

// stream is the rest of an unpacked stream, and ends with ctx.
type stream struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

var errTooLong = errors.New("more bytes than an archive of this size has")

func (s *stream) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	if s.left <= 0 {
		return 0, errTooLong
	}
	n, err := s.r.Read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	return n, err
}

func untar(ctx context.Context, r io.Reader, w *writer, t wanted, seen func(int64)) error {
	a := tar.NewReader(&stream{ctx, r, t.archiveBytes()})
	for {
		h, err := a.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return archiveError(ctx, err)
		}
		name := strings.TrimPrefix(h.Name, "./")
		switch h.Typeflag {
		case tar.TypeReg:
			if err := w.file(ctx, name, h.Size, a, seen); err != nil {
				return archiveError(ctx, err)
			}
		case tar.TypeDir:
			if err := checkDir(name); err != nil {
				return err
			}
		case tar.TypeXGlobalHeader: // git archive writes the commit there
		default:
			return &wrong{"regular files only", fmt.Sprintf("a tar entry of type %q at %.200q", h.Typeflag, name)}
		}
	}
}

// archiveError says whose fault an error is: of an archive that was read to
// here nothing is right, except the context and this machine.
func archiveError(ctx context.Context, err error) error {
	var here *local
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, new(*wrong)), errors.As(err, &here), exhausted(err), errors.Is(err, unix.EIO):
		return err
	}
	return &wrong{"an archive", err.Error()}
}

// checkDir refuses the names that a file could not lie below. Nothing is made.
func checkDir(name string) error {
	if name = strings.TrimSuffix(name, "/"); name == "" || name == "." {
		return nil
	}
	if err := tree.CheckPath(name); err != nil {
		return &wrong{"a directory below the root", err.Error()}
	}
	return nil
}

// counted bounds what is read of an archive while its directory is.
type counted struct {
	f    io.ReaderAt
	left int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	if c.left -= int64(len(p)); c.left < 0 {
		return 0, errors.New("a longer directory than that of so many files")
	}
	return c.f.ReadAt(p, off)
}

func unzip(ctx context.Context, f *os.File, size int64, w *writer, seen func(int64)) error {
	// A directory is read once, by a buffer, after its end was searched for.
	r := &counted{f, min(maxZipDirectory, w.left.Files*1024+1<<20)}
	a, err := zip.NewReader(r, size)
	if err != nil {
		return archiveError(ctx, err)
	}
	r.left = 1 << 62
	for _, e := range a.File {
		if err := unzipOne(ctx, e, w, seen); err != nil {
			return archiveError(ctx, err)
		}
	}
	return nil
}

func unzipOne(ctx context.Context, e *zip.File, w *writer, seen func(int64)) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	name := strings.TrimPrefix(e.Name, "./")
	if strings.HasSuffix(name, "/") {
		if e.UncompressedSize64 != 0 {
			return &wrong{"a directory without content", fmt.Sprintf("%.200q with %d bytes", name, e.UncompressedSize64)}
		}
		return checkDir(name)
	}
	switch {
	case !e.Mode().IsRegular():
		return &wrong{"regular files only", fmt.Sprintf("a %s at %.200q", KindOf(e.Mode()), name)}
	case e.Flags&1 != 0:
		return &wrong{"a file that can be read", fmt.Sprintf("%.200q, which is encrypted", name)}
	case e.UncompressedSize64 > 1<<53:
		return &wrong{"a size below 2^53", fmt.Sprintf("%.200q of %d bytes", name, e.UncompressedSize64)}
	}
	content, err := e.Open()
	if err != nil {
		return err
	}
	defer content.Close()
	return w.file(ctx, name, int64(e.UncompressedSize64), content, seen)
}

// writer makes the files of one tree, and no more than left says. All that is
// in the tree it made itself, no links among it, so the kernel resolves a whole
// path at once; component by component, long paths would take a day.
type writer struct {
	path string
	root *os.File
	most Size
	left Size
	dirs map[string]bool
	buf  []byte
}

func newWriter(dest string, most Size) (*writer, error) {
	if err := os.Mkdir(dest, 0o700); err != nil {
		return nil, &local{err}
	}
	root, err := os.OpenFile(dest, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, &local{err}
	}
	return &writer{path: dest, root: root, most: most, left: most, dirs: map[string]bool{".": true}}, nil
}

func (w *writer) close() { w.root.Close() }

func (w *writer) tooMuch() error {
	return &wrong{fmt.Sprintf("at most %d files and %d bytes", w.most.Files, w.most.Bytes), "more"}
}

// create makes a file of the tree, of which size bytes are announced.
func (w *writer) create(name string, size int64) (*os.File, error) {
	if err := tree.CheckPath(name); err != nil {
		return nil, &wrong{"a path of a tree", err.Error()}
	}
	// The file will be at a shorter path, as an entry.
	if len(w.path)+1+len(name) >= unix.PathMax {
		return nil, w.blame(name, unix.ENAMETOOLONG)
	}
	if w.left.Files--; w.left.Files < 0 || size > w.left.Bytes {
		return nil, w.tooMuch()
	}
	if err := w.mkdir(path.Dir(name)); err != nil {
		return nil, w.blame(name, err)
	}
	fd, err := unix.Openat2(int(w.root.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC,
		Mode:    0o600,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, w.blame(name, &fs.PathError{Op: "create", Path: name, Err: err})
	}
	return os.NewFile(uintptr(fd), name), nil
}

// mkdir makes a directory and those above it. One long path needs two thousand
// of them, so they are counted, too.
func (w *writer) mkdir(dir string) error {
	if w.dirs[dir] {
		return nil
	}
	if err := w.mkdir(path.Dir(dir)); err != nil {
		return err
	}
	if int64(len(w.dirs)) > 4*w.most.Files+1024 {
		return &wrong{fmt.Sprintf("at most %d directories", 4*w.most.Files+1024), "more"}
	}
	if err := unix.Mkdirat(int(w.root.Fd()), dir, 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	w.dirs[dir] = true
	return nil
}

// blame says whether a name that cannot be made is the fault of the names.
func (w *writer) blame(name string, err error) error {
	switch {
	case errors.As(err, new(*wrong)):
		return err
	case errors.Is(err, fs.ErrExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR):
		return &wrong{"each path once, and none below a file", fmt.Sprintf("%.200q a second time", name)}
	case errors.Is(err, unix.ENAMETOOLONG):
		return &wrong{"a path that this machine can have", fmt.Sprintf("%.200q", name)}
	}
	return &local{err}
}

// file writes one file of exactly size bytes.
func (w *writer) file(ctx context.Context, name string, size int64, content io.Reader, seen func(int64)) error {
	f, err := w.create(name, size)
	if err != nil {
		return err
	}
	defer f.Close()
	if w.buf == nil {
		w.buf = make([]byte, 256<<10)
	}
	var sum int64
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := content.Read(w.buf)
		if sum += int64(n); sum > size || int64(n) > w.left.Bytes {
			return &wrong{fmt.Sprintf("%d bytes at %.200q", size, name), "more"}
		}
		w.left.Bytes -= int64(n)
		if _, err := f.Write(w.buf[:n]); err != nil {
			return &local{err}
		}
		if seen != nil && n > 0 {
			seen(int64(n))
		}
		if err == io.EOF && sum == size {
			if err := f.Close(); err != nil {
				return &local{err}
			}
			return nil
		}
		if err == io.EOF {
			return &wrong{fmt.Sprintf("%d bytes at %.200q", size, name), fmt.Sprintf("%d", sum)}
		}
		if err != nil {
			return err
		}
	}
}
