package rebuild

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/rebuild/oci"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/rebuild/sandbox/sandboxtest"
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

// hostileLayout is an image of the sandbox tests' payload, which can do
// everything that a build should not; once more as a set-id program of root.
var hostileLayout = sync.OnceValues(func() (l struct {
	dir   string
	image hashpipe.Digest
}, err error) {
	w, err := world()
	if err != nil {
		return l, err
	}
	program := filepath.Join(w.dir, "hostile")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./sandbox/testdata/payload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return l, fmt.Errorf("building the hostile payload: %w\n%s", err, out)
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		return l, err
	}
	var layer bytes.Buffer
	archive := tar.NewWriter(&layer)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: "bin/payload", Mode: 0o755, Size: int64(len(binary))},
		{Typeflag: tar.TypeReg, Name: "bin/setid", Mode: 0o6755, Size: int64(len(binary))},
	} {
		h.ModTime = time.Unix(0, 0)
		if err := archive.WriteHeader(&h); err != nil {
			return l, err
		}
		if h.Size > 0 {
			archive.Write(binary)
		}
	}
	if err := archive.Close(); err != nil {
		return l, err
	}
	l.dir = filepath.Join(w.dir, "hostile-layout")
	l.image, err = oci.AppendImage(context.Background(), l.dir, oci.Image{
		Config: oci.Config{OS: "linux", Architecture: HostPlatform().Arch, Env: []string{"PATH=/bin"}},
	}, &layer)
	return l, err
})

// TestHostileTable: every hostile build ends in its own verdict, in words that
// name the stage and the file, and leaves nothing on the host. With -v it
// prints the table.
func TestHostileTable(t *testing.T) {
	l, err := hostileLayout()
	if err != nil {
		t.Fatal(err)
	}
	var (
		failed  = capstore.BuildFailed
		limit   = capstore.LimitExceeded
		missing = capstore.OutputMissing
		differs = capstore.Nondeterministic
	)
	limits := func(change func(*sandbox.Limits)) func(*Config) { return func(c *Config) { change(&c.Limits) } }
	var table strings.Builder
	rows := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(rows, "build\tverdict\tjob s\tclean after s\tleft")
	for _, c := range []struct {
		build   string
		argv    string
		verdict capstore.Verdict
		detail  string // in Detail
		says    string // in Diagnosis: the end of the log
		config  func(*Config)
	}{
		{"network: TCP", "want tcp", failed, "", "network is unreachable", nil},
		{"network: UDP", "want udp", failed, "", "network is unreachable", nil},
		{"network: host name", "want host_name_lookup", failed, "", "weights.example", nil},
		{"network: packets", "want packet_socket", failed, "", "not permitted", nil},
		{"network: host of the virtual machine", "want vsock", failed, "", "", nil},
		{"write beside /out", "cat /model /in/source/train.txt", failed, "", "open /model: read-only file system", nil},
		{"write into an input", "cat /in/source/train.txt /bin/payload", failed, "", "open /in/source/train.txt: ", nil},
		{"write into the image", "cat /bin/payload /in/source/train.txt", failed, "", "open /bin/payload: read-only file system", nil},
		{"write into the kernel", "cat /proc/sys/kernel/core_pattern /in/source/train.txt", failed, "", "open /proc/sys/kernel/core_pattern: ", nil},
		{"fork bomb", "fork", limit, "new processes or threads at the limit of 64", "", nil},
		{"memory bomb", "memory", limit, "memory limit of 67108864 bytes", "", limits(func(l *sandbox.Limits) { l.MemoryBytes = 64 << 20 })},
		{"memory bomb in tmpfs", "tmpfs", limit, "memory limit of 67108864 bytes", "", limits(func(l *sandbox.Limits) { l.MemoryBytes = 64 << 20 })},
		{"memory bomb in a child", "oomchild", limit, "memory limit of 67108864 bytes", "", limits(func(l *sandbox.Limits) { l.MemoryBytes = 64 << 20 })},
		{"disk fill: one large file", "fill /out/a", limit, "/out holds", "", nil},
		{"disk fill: a file without a name", "unlinked", limit, "/out holds", "", nil},
		{"disk fill: many inodes", "inodes", limit, "files and directories, the limit is 4096", "", nil},
		{"disk fill: sparse, just too long", "sparse 16777217", limit, "outputs are 16777217 bytes long, the limit is 16777216", "", nil},
		{"disk fill: sparse exabyte", "sparse 1152921504606846976", failed, "", "truncate /out/a: ", nil},
		{"CPU time", "burn", limit, "of CPU time, the limit is 200ms", "", limits(func(l *sandbox.Limits) { l.CPUTime = 200 * time.Millisecond })},
		{"open files", "openfiles", failed, "", "too many open files", nil},
		{"endless, ignores signals, forks twice", "endless", capstore.Timeout, "still running at the end of its time: all stages together may take 1s", "", limits(func(l *sandbox.Limits) { l.Wall = time.Second })},
		{"output is a symlink", "make symlink /out/a /etc/passwd", missing, "model.bin (/out/a) is a symbolic link", "", nil},
		{"output is a FIFO", "make fifo /out/a", missing, "model.bin (/out/a) is not a regular file", "", nil},
		{"output is a socket", "make socket /out/a", missing, "model.bin (/out/a) is not a regular file", "", nil},
		{"output is a device", "make device /out/a", missing, "model.bin (/out/a) does not exist", "", nil},
		{"output has two names", "make hardlink /out/a", missing, "model.bin (/out/a) has 2 hard links", "", nil},
		{"output is a directory", "make dir /out/a", missing, "model.bin (/out/a) is a directory", "", nil},
		{"output is a set-id program", "make setuid /out/a", missing, "model.bin (/out/a) has set-id bits (mode 4755)", "", nil},
		{"log bomb", "flood", limit, "the log is longer than 65536 bytes", "", nil},
		{"log with escape codes", "exit 3", failed, "payload exited with status 3", `about to exit\x1b[2J`, nil},
		{"survivor changes the output", "survive", differs, "model.bin", "", nil},
		{"secrets in environment, descriptors, /proc", "seek nobody", failed, "", "no secret found", nil},
		{"set-id program of the image", "want set-id_program", failed, "", "it runs as the build's own user", nil},
		{"user namespace and mount", "want user_namespace", failed, "", "not permitted", nil},
		{"user namespace by clone", "want user_namespace_by_clone", failed, "", "not permitted", nil},
		{"mount", "want mount", failed, "", "not permitted", nil},
		{"ptrace", "want ptrace", failed, "", "not permitted", nil},
		{"bpf", "want bpf", failed, "", "not permitted", nil},
		{"mknod: character device", "want mknod_character", failed, "", "not permitted", nil},
		{"mknod: block device", "want mknod_block", failed, "", "not permitted", nil},
		{"keyctl", "want keyctl", failed, "", "not permitted", nil},
		{"open_by_handle_at", "want open_by_handle_at", failed, "", "not permitted", nil},
		{"io_uring", "want io_uring", failed, "", "not permitted", nil},
		{"output holds a random number", "random", differs, "model.bin", "", nil},
		{"output holds the time", "date", differs, "model.bin", "", nil},
		{"output holds the host name", "hostname", differs, "model.bin", "rebuilder-2", nil},
		{"output is a copy of an input", "cat /out/a /in/source/train.txt", capstore.CopiedInput, "/in/source/train.txt", "", nil},
		{"output is a copy of the image", "cat /out/a /bin/payload", capstore.CopiedInput, "/bin/", "", nil},
	} {
		t.Run(c.build, func(t *testing.T) {
			s := newSite(t)
			s.loc.Image, s.dependency("environment").Digest.SHA256 = l.dir, l.image
			s.params().Stages[0].Argv = append([]string{"payload"}, strings.Fields(c.argv)...)
			s.params().Outputs[0].Path = "a"
			config := s.config(nil)
			if c.config != nil {
				c.config(&config)
			}
			ledger := s.ledger()
			var job time.Duration
			var f *Failure
			after, left := sandboxtest.Clean(t, sandbox.StateDir, "clawfs-", func() {
				began := time.Now()
				rep, err := Reproduce(t.Context(), config, ledger, s.loc)
				job = time.Since(began)
				rep.Close()
				if !errors.As(err, &f) {
					t.Fatalf("Reproduce = %v, want %s", err, c.verdict)
				}
			})
			if scratch, err := os.ReadDir(config.Dir); err != nil || len(scratch) > 0 {
				left = append(left, fmt.Sprint(scratch, err))
			}
			if f.Verdict != c.verdict || !strings.Contains(f.Detail, c.detail) || !strings.Contains(f.Diagnosis, c.says) {
				t.Errorf("Reproduce = %s: %q\n%s\nwant %s: %q, %q", f.Verdict, f.Detail, f.Diagnosis, c.verdict, c.detail, c.says)
			}
			// What one build did wrong is of a stage; what two builds make
			// evident is of a file.
			if f.Verdict != capstore.Nondeterministic && f.Verdict != capstore.CopiedInput && !strings.Contains(f.Detail, "build 1 of 2: stage train: ") {
				t.Errorf("Detail = %q, which does not name the stage", f.Detail)
			}
			if strings.ContainsAny(f.Detail+f.Diagnosis, "\x1b\x07\r") {
				t.Errorf("a control character in %q %q", f.Detail, f.Diagnosis)
			}
			if after > 30*time.Second || len(left) > 0 {
				t.Errorf("after %v the host still has %q", after, left)
			}
			what := "nothing"
			if len(left) > 0 {
				what = strings.Join(left, " ")
			}
			fmt.Fprintf(rows, "%s\t%s\t%.1f\t%.1f\t%s\n", c.build, f.Verdict, job.Seconds(), after.Seconds(), what)
		})
	}
	rows.Flush()
	t.Log("\n" + table.String())
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
