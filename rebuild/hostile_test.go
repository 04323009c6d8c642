package rebuild

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/rebuild/oci"
)

// image replaces the environment by one with entries and variables of its own.
func (s *site) image(env []string, entries ...tar.Header) {
	s.t.Helper()
	w, err := world()
	if err != nil {
		s.t.Fatal(err)
	}
	binary, err := os.ReadFile(filepath.Join(w.dir, "payload"))
	if err != nil {
		s.t.Fatal(err)
	}
	var layer bytes.Buffer
	archive := tar.NewWriter(&layer)
	for _, h := range append([]tar.Header{
		{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "bin/payload", Mode: 0o755, Size: int64(len(binary))},
	}, entries...) {
		h.ModTime = time.Unix(0, 0)
		if err := archive.WriteHeader(&h); err != nil {
			s.t.Fatal(err)
		}
		if h.Size == int64(len(binary)) {
			archive.Write(binary)
		} else {
			archive.Write(bytes.Repeat([]byte("x"), int(h.Size)))
		}
	}
	if err := archive.Close(); err != nil {
		s.t.Fatal(err)
	}
	s.loc.Image = filepath.Join(s.t.TempDir(), "layout")
	s.dependency("environment").Digest.SHA256, err = oci.AppendImage(s.t.Context(), s.loc.Image, oci.Image{
		Config: oci.Config{OS: "linux", Architecture: HostPlatform().Arch, Env: env},
	}, &layer)
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestHostileImages: whatever an image or a stage asks for that no container
// can have is an answer to the job, not trouble of this machine.
func TestHostileImages(t *testing.T) {
	const path = "PATH=/bin"
	file := func(name string, size int64) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}
	}
	for _, c := range []struct {
		name    string
		change  func(*site)
		verdict capstore.Verdict // empty: reproduces
		want    string
	}{
		{"names that are no UTF-8", func(s *site) { s.image([]string{path}, file("d\xff/f\xfe", 7), file("l\xe9", 7)) }, "", ""},
		{"copy by a name that is no UTF-8", func(s *site) {
			s.image([]string{path}, file("d\xff/f\xfe", 777))
			s.params().Stages[0].Argv = []string{"payload", "copyfirst", "/"}
		}, capstore.CopiedInput, ""},
		{"work directory that is not there", func(s *site) { s.params().Stages[0].WorkDir = "/nope/x" }, capstore.BuildFailed, "/nope"},
		{"work directory that is a file", func(s *site) { s.params().Stages[0].WorkDir = "/bin/payload" }, capstore.BuildFailed, "/bin/payload"},
		{"work directory below a file", func(s *site) { s.params().Stages[0].WorkDir = "/bin/payload/x" }, capstore.BuildFailed, "/bin/payload"},
		{"work directory in /in", func(s *site) { s.params().Stages[0].WorkDir = "/in/x" }, capstore.BuildFailed, "/in/x"},
		{"work directory of an open file", func(s *site) { s.params().Stages[0].WorkDir = "/proc/self/fd/9" }, capstore.BuildFailed, "/proc/self"},
		{"too long a work directory", func(s *site) { s.params().Stages[0].WorkDir = "/" + strings.Repeat("x", 300) }, capstore.BuildFailed, "too long"},
		{"image variable without a name", func(s *site) { s.image([]string{path, "=x"}) }, capstore.FetchFailed, "variable"},
		{"image variable with a zero byte", func(s *site) { s.image([]string{path, "A=x\x00y"}) }, capstore.FetchFailed, "variable"},
		{"image without variables", func(s *site) { s.image(nil) }, "", ""},
		{"image with /again and /work in the way", func(s *site) {
			s.image([]string{path}, file("again", 3), tar.Header{Typeflag: tar.TypeSymlink, Name: "work", Linkname: "/"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "work-1", Linkname: "/none"})
		}, "", ""},
		{"image with links in the place of mount points", func(s *site) {
			s.image([]string{path}, tar.Header{Typeflag: tar.TypeSymlink, Name: "in", Linkname: "/bin"},
				tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "/tmp"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "proc", Linkname: "/bin"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "dev", Linkname: "/"},
				tar.Header{Typeflag: tar.TypeSymlink, Name: "sys", Linkname: "/proc"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "tmp", Linkname: "/in"})
		}, "", ""},
		{"image with files in the place of mount points", func(s *site) {
			s.image([]string{path}, file("in", 1), file("out", 1), file("proc", 1), file("dev", 1), file("tmp", 1), file("sys", 1))
		}, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			c.change(s)
			rep, err := Reproduce(t.Context(), s.config(nil), s.ledger(), s.loc)
			rep.Close()
			var f *Failure
			switch {
			case c.verdict == "" && err != nil:
				t.Errorf("Reproduce = %v", err)
			case c.verdict != "" && !errors.As(err, &f):
				t.Errorf("Reproduce = %v, want %s", err, c.verdict)
			case c.verdict != "" && (f.Verdict != c.verdict || !strings.Contains(f.Detail, c.want)):
				t.Errorf("Reproduce = %v, want %s: %q", f, c.verdict, c.want)
			}
		})
	}
}

// TestDatasetWithoutEnd: a ledger may name a directory whose files are larger
// than it says; little more than that is copied.
func TestDatasetWithoutEnd(t *testing.T) {
	from, dest := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(from, "a"), []byte("twelve bytes"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(from, "a"), 1<<40); err != nil {
		t.Fatal(err)
	}
	cache, err := fetch.Open(filepath.Join(dest, "cache"), 1<<40, fetch.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = cache.Tree(t.Context(), digest("tree"), &fetch.Size{Files: 1, Bytes: 12}, []fetch.Place{{URI: from, Trusted: true}}, nil)
	if err == nil || !strings.Contains(err.Error(), "12 bytes") {
		t.Errorf("Tree = %v", err)
	}
	if u, err := cache.Usage(); err != nil || u.Bytes > 16<<20 {
		t.Errorf("the cache has %+v, %v", u, err)
	}
}

// TestFullScratch: no room for the inputs is no answer to the job.
func TestFullScratch(t *testing.T) {
	for name, size := range map[string]string{"image": "size=256k", "source": "size=16k"} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			c := s.config(nil)
			if err := unix.Mount("tmpfs", c.Dir, "tmpfs", 0, size); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(c.Dir, unix.MNT_DETACH)
			rep, err := Reproduce(t.Context(), c, s.ledger(), s.loc)
			rep.Close()
			var f *Failure
			if err == nil || errors.As(err, &f) || !exhausted(err) {
				t.Errorf("Reproduce = %v, want an error that is no answer", err)
			}
			if left, err := os.ReadDir(c.Dir); err != nil || len(left) != 0 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}
