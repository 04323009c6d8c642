package cas

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

func testStore(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	rng.Read(b)
	return b
}

// entries returns the names in a directory of the store.
func entries(t *testing.T, elem ...string) []string {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestPutAndRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "parents", "store")
	s := testStore(t, dir)
	for _, size := range []int{0, 1, 4096, hashpipe.UnitSize, 3*hashpipe.UnitSize + 7} {
		data := randomBytes(1, size)
		m, err := s.Put(context.Background(), iotest.HalfReader(bytes.NewReader(data)))
		want := hashpipe.SumBytes(data)
		d := want.Claim()
		if err != nil || !m.Sum().Is(d) || m.Size() != int64(size) {
			t.Fatalf("Put of %d bytes = %v, %d bytes, %v, want %v", size, m.Sum(), m.Size(), err, want)
		}
		if sum, err := s.PutBytes(data); err != nil || !sum.Is(d) {
			t.Errorf("PutBytes of the same %d bytes = %v, %v", size, sum, err)
		}
		if got, err := s.ReadAll(d, int64(size)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("ReadAll of %d bytes = %d bytes, %v", size, len(got), err)
		}
		info, err := os.Lstat(filepath.Join(dir, "blobs", "sha256", want.String()))
		if err != nil || info.Mode() != 0o444 || info.Size() != int64(size) {
			t.Errorf("blob of %d bytes: %v, %v, want a file of mode 0444", size, info, err)
		}
		f, err := s.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, data) {
			t.Errorf("handle of %d bytes read %d bytes, %v", size, len(got), err)
		}
		f.Close()
		if !s.Has(d) {
			t.Errorf("Has(%v) = false after Put", d)
		}
	}
	if left := entries(t, dir, "tmp"); len(left) != 0 {
		t.Errorf("tmp holds %q after all is put", left)
	}
}

func TestAbsent(t *testing.T) {
	s := testStore(t, t.TempDir())
	absent := hashpipe.SumBytes([]byte("absent")).Claim()
	for _, d := range []hashpipe.Digest{absent, {}} {
		if b, err := s.ReadAll(d, 1<<20); !errors.Is(err, ErrNotFound) || b != nil {
			t.Errorf("ReadAll(%v) = %q, %v, want ErrNotFound", d, b, err)
		}
		if f, err := s.Open(d); !errors.Is(err, ErrNotFound) || f != nil {
			t.Errorf("Open(%v) = %v, %v, want ErrNotFound", d, f, err)
		}
		if err := s.Remove(d); !errors.Is(err, ErrNotFound) {
			t.Errorf("Remove(%v) = %v, want ErrNotFound", d, err)
		}
		if s.Has(d) {
			t.Errorf("Has(%v) = true", d)
		}
	}
}

func TestReadAllIsBounded(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir)
	sum, err := s.PutBytes(randomBytes(2, 1000))
	if err != nil {
		t.Fatal(err)
	}
	for _, max := range []int64{999, 1, 0, -1} {
		if b, err := s.ReadAll(sum.Claim(), max); err == nil || b != nil || errors.Is(err, ErrNotFound) {
			t.Errorf("ReadAll of 1000 bytes with at most %d = %d bytes, %v, want an error", max, len(b), err)
		}
	}
	// A sparse file of 1 TiB under a blob's name must not be read or allocated.
	name := filepath.Join(dir, "blobs", "sha256", sum.String())
	if err := os.Truncate(name, 1<<40); err != nil {
		t.Fatal(err)
	}
	if b, err := s.ReadAll(sum.Claim(), 1<<30); err == nil || b != nil {
		t.Errorf("ReadAll of 1 TiB = %d bytes, %v, want an error", len(b), err)
	}
}

// Every way of spoiling an entry gives an error that is not "not found", never
// bytes; and the right bytes mend it.
func TestBrokenEntries(t *testing.T) {
	data := randomBytes(3, 5000)
	sum := hashpipe.SumBytes(data)
	for name, spoil := range map[string]func(path string) error{
		"flipped bit": func(p string) error {
			bad := bytes.Clone(data)
			bad[4999] ^= 1
			return os.WriteFile(p, bad, 0o444)
		},
		"other bytes":   func(p string) error { return os.WriteFile(p, randomBytes(4, 5000), 0o444) },
		"cut":           func(p string) error { return os.WriteFile(p, data[:4999], 0o444) },
		"emptied":       func(p string) error { return os.WriteFile(p, nil, 0o444) },
		"grown":         func(p string) error { return os.WriteFile(p, append(bytes.Clone(data), 0), 0o444) },
		"zeroed":        func(p string) error { return os.WriteFile(p, make([]byte, 5000), 0o444) },
		"FIFO":          func(p string) error { return unix.Mkfifo(p, 0o644) },
		"socket":        func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o644, 0) },
		"link to right": func(p string) error { return linkTo(p, data) },
		"dangling link": func(p string) error { return os.Symlink("/nonexistent", p) },
		"link to self":  func(p string) error { return os.Symlink(filepath.Base(p), p) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := testStore(t, dir)
			path := filepath.Join(dir, "blobs", "sha256", sum.String())
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			if b, err := s.ReadAll(sum.Claim(), 1<<20); err == nil || b != nil || errors.Is(err, ErrNotFound) {
				t.Errorf("ReadAll = %d bytes, %v, want an error that is not ErrNotFound", len(b), err)
			}
			if got, err := s.PutBytes(data); err != nil || got != sum {
				t.Fatalf("PutBytes over it = %v, %v", got, err)
			}
			if b, err := s.ReadAll(sum.Claim(), 1<<20); err != nil || !bytes.Equal(b, data) {
				t.Errorf("ReadAll after the right bytes were put = %d bytes, %v", len(b), err)
			}
		})
	}
}

func linkTo(path string, data []byte) error {
	target := filepath.Join(filepath.Dir(path), "elsewhere")
	if err := os.WriteFile(target, data, 0o444); err != nil {
		return err
	}
	return os.Symlink("elsewhere", path)
}

// A directory in the place of a blob cannot be replaced; Put says so and
// leaves nothing.
func TestDirectoryAsEntry(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir)
	sum := hashpipe.SumBytes([]byte("data"))
	path := filepath.Join(dir, "blobs", "sha256", sum.String())
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if b, err := s.ReadAll(sum.Claim(), 100); !errors.Is(err, ErrBroken) || b != nil {
		t.Errorf("ReadAll of a directory = %q, %v, want ErrBroken", b, err)
	}
	if s.Has(sum.Claim()) {
		t.Error("Has says true of a directory")
	}
	if got, err := s.PutBytes([]byte("data")); err == nil || !got.IsZero() || !strings.Contains(err.Error(), path) {
		t.Errorf("PutBytes over a directory = %v, %v, want an error that names %s", got, err, path)
	}
	if left := entries(t, dir, "tmp"); len(left) != 0 {
		t.Errorf("tmp holds %q", left)
	}
}

func TestPutFails(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir)
	broken := errors.New("connection reset by peer")
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		r    io.Reader
		want error
	}{
		"at once":   {context.Background(), iotest.ErrReader(broken), broken},
		"later":     {context.Background(), io.MultiReader(bytes.NewReader(randomBytes(5, 2<<20)), iotest.ErrReader(broken)), broken},
		"cancelled": {cancelled, bytes.NewReader([]byte("data")), context.Canceled},
	} {
		if m, err := s.Put(c.ctx, c.r); !errors.Is(err, c.want) || m != (hashpipe.Measurement{}) {
			t.Errorf("%s: Put = %v, %v, want zero and %v", name, m.Sum(), err, c.want)
		}
	}
	if b, tmp := entries(t, dir, "blobs", "sha256"), entries(t, dir, "tmp"); len(b)+len(tmp) != 0 {
		t.Errorf("failed Puts left %q and %q", b, tmp)
	}
}

func TestRemove(t *testing.T) {
	s := testStore(t, t.TempDir())
	sum, err := s.PutBytes([]byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.Open(sum.Claim())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Remove(sum.Claim()); err != nil {
		t.Fatal(err)
	}
	if s.Has(sum.Claim()) {
		t.Error("the blob is there after Remove")
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "data" {
		t.Errorf("a handle from before Remove reads %q, %v", b, err)
	}
}

func TestClosedStore(t *testing.T) {
	s := testStore(t, t.TempDir())
	sum, err := s.PutBytes([]byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutBytes([]byte("data")); err == nil {
		t.Error("PutBytes into a closed store succeeded")
	}
	if b, err := s.ReadAll(sum.Claim(), 100); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("ReadAll from a closed store = %q, %v, want an error that is not ErrNotFound", b, err)
	}
	if err := s.Remove(sum.Claim()); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("Remove from a closed store = %v, want an error that is not ErrNotFound", err)
	}
}

// Writers of one blob and of different blobs, and stores opened meanwhile,
// which sweep, do not disturb each other.
func TestConcurrentWriters(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir)
	var wg sync.WaitGroup
	errs := make(chan error, 1000)
	for w := range 8 {
		wg.Go(func() {
			for i := range 10 {
				data := randomBytes(uint64(i+10*(w%4)), 10_000) // each blob by two writers
				sum, err := s.PutBytes(data)
				if err != nil {
					errs <- err
					continue
				}
				if b, err := s.ReadAll(sum.Claim(), 10_000); err != nil || !bytes.Equal(b, data) {
					errs <- fmt.Errorf("read back %d bytes: %w", len(b), err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			other, err := Open(dir)
			if err != nil {
				errs <- err
				continue
			}
			other.Close()
		}
	})
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if n := len(entries(t, dir, "blobs", "sha256")); n != 40 {
		t.Errorf("%d blobs, want 40", n)
	}
	if left := entries(t, dir, "tmp"); len(left) != 0 {
		t.Errorf("tmp holds %q", left)
	}
}

// The sweep that comes between the creation of a file and its lock takes the
// file; the writer must notice.
func TestLockAfterSweep(t *testing.T) {
	dir := t.TempDir()
	s := testStore(t, dir)
	f, err := openAt(s.tmp, tmpPrefix+"x", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	testStore(t, dir)
	if mine, err := lock(f); mine || err != nil {
		t.Errorf("lock of a swept file = %v, %v, want false", mine, err)
	}
}

func TestSweepTouchesOnlyItsOwn(t *testing.T) {
	dir := t.TempDir()
	testStore(t, dir)
	for _, name := range []string{"put-dead", "notes.txt", "output"} {
		if err := os.WriteFile(filepath.Join(dir, "tmp", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	testStore(t, dir)
	if got := fmt.Sprint(entries(t, dir, "tmp")); got != "[notes.txt output]" {
		t.Errorf("tmp holds %s after Open, want [notes.txt output]", got)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"a file": file, "below a file": filepath.Join(file, "store")} {
		if s, err := Open(path); !errors.Is(err, syscall.ENOTDIR) || s != nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: Open(%s) = %v, want ENOTDIR and the path", name, path, err)
		}
	}
}
