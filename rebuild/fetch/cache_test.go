package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/tree"
)

// TestMain turns the test binary into another process that uses a cache.
func TestMain(m *testing.M) {
	if os.Getenv("CLAWFS_FETCH_CHILD") != "" {
		if err := child(os.Getenv("CLAWFS_FETCH_CHILD"), os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child runs in another process: "file" leases one file and says so, "tree" one
// tree; "loop" makes and evicts entries of all kinds until it is killed, or so many times.
func child(mode string, args []string) error {
	ctx := context.Background()
	dir, uri, from := args[0], args[1], args[2]
	want, err := hashpipe.ParseDigest(args[3])
	if err != nil {
		return err
	}
	if mode == "file" {
		c, err := Open(dir, 1<<30, Options{})
		if err != nil {
			return err
		}
		l, err := c.File(ctx, want, 1<<30, []Place{{URI: uri, Trusted: true}}, nil)
		if err != nil {
			return err
		}
		fmt.Println("leased", l.Path())
		io.Copy(io.Discard, os.Stdin) // the lease ends with the process
		return nil
	}
	if mode == "tree" {
		c, err := Open(dir, 1, Options{})
		if err != nil {
			return err
		}
		l, err := c.Tree(ctx, want, &Size{3, 20005}, []Place{{URI: uri, Trusted: true}}, nil)
		if err != nil {
			return err
		}
		return l.Close()
	}
	root, err := tree.Walk(ctx, from, tree.Data, nil)
	if err != nil {
		return err
	}
	c, err := Open(dir, 1, Options{}) // all is evicted at once
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for i := 0; len(args) < 5 || fmt.Sprint(i) != args[4]; i++ {
		a, err := c.File(ctx, want, 1<<30, []Place{{URI: uri, Trusted: true}}, nil)
		if err != nil {
			return err
		}
		b, err := c.Tree(ctx, root.Digest, &Size{root.Files, root.Bytes}, []Place{{URI: from, Trusted: true}}, nil)
		if err != nil {
			return err
		}
		m, err := c.Make(ctx, "numbers", makeNumbers, checkNumbers)
		if err != nil {
			return err
		}
		if sum, err := os.ReadFile(a.Path()); err != nil || digest(sum) != want {
			return fmt.Errorf("a leased file: %d bytes, %v", len(sum), err)
		}
		if got, err := tree.Walk(ctx, b.Path(), tree.Data, nil); err != nil || got != root {
			return fmt.Errorf("a leased tree: %v, %v", got, err)
		}
		if err := checkNumbers(ctx, m.Path()); err != nil {
			return err
		}
		if err := errors.Join(a.Close(), b.Close(), m.Close()); err != nil {
			return err
		}
	}
	return nil
}

const numbers = 40

func makeNumbers(_ context.Context, dir string) error {
	for i := range numbers {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(fmt.Sprint(i)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func checkNumbers(_ context.Context, dir string) error {
	for i := range numbers {
		if b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i))); err != nil || string(b) != fmt.Sprint(i) {
			return fmt.Errorf("%d holds %q, %v", i, b, err)
		}
	}
	return nil
}

func childCommand(mode string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "CLAWFS_FETCH_CHILD="+mode)
	cmd.Stderr = os.Stderr
	return cmd
}

// journal collects notes.
type journal struct {
	mu    sync.Mutex
	notes []Note
}

func (j *journal) add(n Note) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.notes = append(j.notes, n)
}

func (j *journal) of(e Event) []Note {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(j.notes), func(n Note) bool { return n.Event != e })
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var b strings.Builder
	for _, n := range j.notes {
		fmt.Fprintf(&b, "\t%s\n", n)
	}
	return b.String()
}

// testCache opens a cache that does not wait long.
func testCache(t *testing.T, dir string, budget int64, opts Options) (*Cache, *journal) {
	t.Helper()
	j := &journal{}
	opts.Observer = j.add
	c, err := Open(dir, budget, opts)
	if err != nil {
		t.Fatal(err)
	}
	c.pause = time.Millisecond
	t.Cleanup(func() { c.Close() })
	return c, j
}

func randomBytes(seed byte, n int) []byte {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{seed})
	rng.Read(b)
	return b
}

func digest(b []byte) hashpipe.Digest { return hashpipe.SumBytes(b).Claim() }

// place writes a file and returns it as a place of the operator.
func place(t *testing.T, content []byte) Place {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return Place{URI: path, Trusted: true}
}

func names(t *testing.T, elem ...string) []string {
	t.Helper()
	list, err := os.ReadDir(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range list {
		all = append(all, e.Name())
	}
	return all
}

func mustFile(t *testing.T, c *Cache, content []byte, places ...Place) *Lease {
	t.Helper()
	l, err := c.File(t.Context(), digest(content), int64(len(content)), places, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(l.Path())
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("the leased file has %d bytes, %v, want the %d of the digest", len(got), err, len(content))
	}
	return l
}

func closeLease(t *testing.T, l *Lease) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(dir string) error
		want string
	}{
		{"others can write", func(d string) error { return errors.Join(os.Mkdir(d, 0o700), os.Chmod(d, 0o777)) }, "mode 0700"},
		{"the group can write", func(d string) error { return errors.Join(os.Mkdir(d, 0o700), os.Chmod(d, 0o770)) }, "mode 0700"},
		{"others can read", func(d string) error { return errors.Join(os.Mkdir(d, 0o700), os.Chmod(d, 0o755)) }, "chmod 0700"},
		{"somebody else's", func(d string) error { return errors.Join(os.Mkdir(d, 0o700), os.Chown(d, 65534, 65534)) }, "of user 65534"},
		{"a link", func(d string) error {
			return errors.Join(os.Mkdir(d+"-real", 0o700), os.Symlink(d+"-real", d))
		}, "expected a directory"},
		{"a file", func(d string) error { return os.WriteFile(d, nil, 0o700) }, "expected a directory"},
		{"below what others can rename in", func(d string) error {
			return errors.Join(os.Chmod(filepath.Dir(d), 0o777), os.Mkdir(d, 0o700))
		}, "which others can change"},
		{"below somebody else's", func(d string) error {
			return errors.Join(os.Mkdir(d, 0o700), os.Chown(filepath.Dir(d), 65534, 65534))
		}, "which others can change"},
	} {
		above := filepath.Join(t.TempDir(), "above")
		if err := os.Mkdir(above, 0o755); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(above, "cache")
		if err := c.make(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, 1<<20, Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
	for _, o := range []Options{
		{Hosts: []string{"*"}}, {Hosts: []string{""}}, {Hosts: []string{"a*.example"}}, {LocalRoots: []string{"data"}},
		{Mirrors: []Mirror{{"https://data.example", []string{"https://m.example/"}}}},
		{Mirrors: []Mirror{{"https://data.example/", []string{"https://m.example"}}}},
		{Mirrors: []Mirror{{"https://data.example/", []string{"ftp://m.example/"}}}},
		{Mirrors: []Mirror{{"https://data.example/", []string{"https://u:p@m.example/"}}}},
		{Stall: -1}, {Attempts: -1},
	} {
		if _, err := Open(filepath.Join(t.TempDir(), "c"), 1, o); err == nil {
			t.Errorf("Open with %+v: no error", o)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "c"), 0, Options{}); err == nil {
		t.Error("Open with no budget: no error")
	}
}

func TestFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "cache")
	c, j := testCache(t, dir, 1<<20, Options{})
	content := randomBytes(1, 10000)
	from := place(t, content)
	l := mustFile(t, c, content, from)
	info, err := os.Lstat(l.Path())
	if err != nil || info.Mode() != 0o444 || info.ModTime().Unix() != InputTime {
		t.Errorf("the file is %v of %v, %v", info.Mode(), info.ModTime(), err)
	}
	closeLease(t, l)
	os.Remove(from.URI)
	var seen int64
	again, err := c.File(t.Context(), digest(content), 10000, nil, func(n int64) { seen += n })
	if err != nil || again.Path() != l.Path() || seen != 10000 || len(j.of(Hit)) != 1 {
		t.Fatalf("the second lease: %v, %d bytes seen, notes:\n%v", err, seen, j)
	}
	closeLease(t, again)
	closeLease(t, again) // once is enough
	if _, err := c.File(t.Context(), digest(content), 9999, nil, nil); err == nil || !strings.Contains(err.Error(), "at most 9999") {
		t.Errorf("more bytes than allowed, from the cache: %v", err)
	}
	if mustFile(t, c, content) == nil || len(j.of(Broken)) != 0 {
		t.Errorf("the caller's limit broke the entry:\n%v", j)
	}
	if info, err := os.Lstat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the cache is %v, %v", info.Mode(), err)
	}
}

func TestFileRefuses(t *testing.T) {
	content := randomBytes(1, 1000)
	want := digest(content)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	trusted := func(uris ...string) (all []Place) {
		for _, u := range uris {
			all = append(all, Place{URI: u, Trusted: true})
		}
		return all
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(place(t, content).URI, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		places []Place
		lied   bool
		want   string
	}{
		{"no place", nil, false, "no place is known"},
		{"empty place", []Place{{}}, false, "no place is known"},
		{"nothing there", trusted("/nonexistent/file"), false, "no such file"},
		{"not a place", trusted("pkg:generic/requirements.lock"), false, "expected an absolute path"},
		{"relative", trusted("file://host/a"), false, "absolute path behind file://"},
		{"other bytes", []Place{place(t, randomBytes(2, 1000))}, true, "expected SHA-256 " + want.String()},
		{"more bytes", []Place{place(t, randomBytes(2, 1001))}, true, "at most 1000 bytes, got 1001"},
		{"directory", trusted(t.TempDir()), true, "got a directory"},
		{"named pipe", trusted(pipe), true, "named pipe"},
		{"device", trusted("/dev/zero"), true, "device"},
		{"local path of a ledger", []Place{{URI: place(t, content).URI}}, false, "may not name local paths"},
		{"file of a ledger that is not there", []Place{{URI: "file:///nonexistent"}}, false, "may not name local paths"},
	} {
		cache, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
		_, err := cache.File(t.Context(), want, 1000, c.places, nil)
		var m *Mismatch
		var u *Unavailable
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &m) != c.lied || errors.As(err, &u) == c.lied {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if u != nil && u.Temporary() {
			t.Errorf("%s is temporary", c.name)
		}
		for _, sub := range []string{"entries", "tmp", "locks", "partial"} {
			if left := names(t, cache.dir, sub); len(left) != 0 {
				t.Errorf("%s: left %q in %s", c.name, left, sub)
			}
		}
	}
	cache, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
	if _, err := cache.File(t.Context(), hashpipe.Digest{}, 1000, nil, nil); err == nil {
		t.Error("no digest: no error")
	}
	closeLease(t, mustFile(t, cache, content, Place{URI: link, Trusted: true})) // the operator's link is followed
}

// A ledger's path counts after links are resolved, and is not followed out.
func TestLocalRoots(t *testing.T) {
	content := randomBytes(1, 100)
	root, outside := filepath.Join(t.TempDir(), "root"), place(t, content).URI
	write(t, root, map[string]string{"d/e": ""})
	write(t, root+"-x", map[string]string{"inside": string(content)})
	inside := filepath.Join(root, "inside")
	if err := errors.Join(os.WriteFile(inside, content, 0o644), os.Symlink(outside, filepath.Join(root, "out")), os.Symlink("inside", filepath.Join(root, "in"))); err != nil {
		t.Fatal(err)
	}
	for uri, ok := range map[string]bool{
		inside: true, "file://" + inside: true, filepath.Join(root, "in"): true, root + "/../" + filepath.Base(root) + "/inside": true,
		outside: false, filepath.Join(root, "out"): false, root + "/.." + outside: false, root + "-x/inside": false,
		"/proc/self/root" + outside: false,
	} {
		c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{LocalRoots: []string{root}})
		l, err := c.File(t.Context(), digest(content), 100, []Place{{URI: uri}}, nil)
		if (err == nil) != ok {
			t.Errorf("%s: %v, want allowed %v", uri, err, ok)
		}
		if l != nil {
			closeLease(t, l)
		}
	}
	c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{LocalRoots: []string{"/"}})
	closeLease(t, mustFile(t, c, content, Place{URI: "file://" + outside}))
}

// Every way of spoiling an entry is a miss, and is mended.
func TestBrokenEntries(t *testing.T) {
	content := randomBytes(1, 5000)
	from := place(t, content)
	for name, spoil := range map[string]func(path string) error{
		"flipped bit": func(p string) error {
			bad := bytes.Clone(content)
			bad[4999] ^= 1
			return errors.Join(os.WriteFile(p, bad, 0), os.Chtimes(p, time.Unix(InputTime, 0), time.Unix(InputTime, 0)))
		},
		"cut":       func(p string) error { return os.Truncate(p, 4999) },
		"gone":      func(p string) error { return os.Remove(p) },
		"writable":  func(p string) error { return os.Chmod(p, 0o644) },
		"other day": func(p string) error { return os.Chtimes(p, time.Unix(1, 0), time.Unix(1, 0)) },
		"a link":    func(p string) error { return errors.Join(os.Remove(p), os.Symlink(from.URI, p)) },
		"directory": func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o555)) },
		"pipe":      func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o444)) },
		"all gone":  func(p string) error { return os.RemoveAll(filepath.Dir(p)) },
	} {
		c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
		l := mustFile(t, c, content, from)
		closeLease(t, l)
		if err := spoil(l.Path()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.File(t.Context(), digest(content), 5000, nil, nil); !errors.As(err, new(*Unavailable)) {
			t.Errorf("%s: without a place: %v, want Unavailable", name, err)
		}
		closeLease(t, mustFile(t, c, content, from))
		if n := len(j.of(Broken)); n != 1 && name != "all gone" {
			t.Errorf("%s: %d broken entries were noticed:\n%v", name, n, j)
		}
	}
}

// Who has a broken entry keeps it; who comes later gets another, and the broken
// one goes when its last user has gone.
func TestBrokenEntryInUse(t *testing.T) {
	content := randomBytes(1, 5000)
	from := place(t, content)
	c, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
	first := mustFile(t, c, content, from)
	if err := os.Truncate(first.Path(), 1); err != nil {
		t.Fatal(err)
	}
	second := mustFile(t, c, content, from)
	if _, err := os.Lstat(first.Path()); err != nil || second.Path() == first.Path() {
		t.Fatalf("the second lease is %s, the first %s is %v", second.Path(), first.Path(), err)
	}
	closeLease(t, first)
	third := mustFile(t, c, content, from)
	if third.Path() != first.Path() {
		t.Errorf("the third lease is %s, want the mended %s", third.Path(), first.Path())
	}
}

func TestTreeIsCopiedAndMeasuredAgain(t *testing.T) {
	from := t.TempDir()
	write(t, from, map[string]string{"a": "checked", "d/e/f": "deep", "d.x": "between"})
	if err := os.Mkdir(filepath.Join(from, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := tree.Walk(t.Context(), from, tree.Data, nil)
	if err != nil {
		t.Fatal(err)
	}
	open, err := os.OpenFile(filepath.Join(from, "a"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
	size := Size{root.Files, root.Bytes}
	var seen int64
	get := func() *Lease {
		t.Helper()
		l, err := c.Tree(t.Context(), root.Digest, &size, []Place{{URI: from, Trusted: true}}, func(n int64) { seen += n })
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tree.Walk(t.Context(), l.Path(), tree.Data, nil); err != nil || got != root {
			t.Fatalf("the leased tree is %v, %v, want %v", got, err, root)
		}
		return l
	}
	l := get()
	open.WriteAt([]byte("CHANGED"), 0)
	closeLease(t, l)
	l = get()
	if seen != 2*root.Bytes || len(j.of(Hit)) != 1 {
		t.Errorf("%d bytes seen, want %d twice:\n%v", seen, root.Bytes, j)
	}
	filepath.WalkDir(l.Path(), func(p string, e fs.DirEntry, _ error) error {
		info, err := e.Info()
		if err != nil || info.Mode().Perm()&0o222 != 0 || info.ModTime().Unix() != InputTime || e.Name() == "empty" {
			t.Errorf("%s is %v of %v, %v", p, info.Mode(), info.ModTime(), err)
		}
		return nil
	})
	closeLease(t, l)
	open.WriteAt([]byte("checked"), 0)
	for name, spoil := range map[string]func(dir string) error{
		"content":  func(d string) error { return os.WriteFile(d+"/a", []byte("CHECKED"), 0) },
		"new file": func(d string) error { return os.WriteFile(d+"/b", nil, 0o444) },
		"lost":     func(d string) error { return os.Remove(d + "/a") },
		"mode":     func(d string) error { return os.Chmod(d+"/d/e/f", 0o555|os.ModeSetuid) },
		"link":     func(d string) error { return errors.Join(os.Remove(d+"/a"), os.Symlink(from+"/a", d+"/a")) },
	} {
		if err := spoil(l.Path()); err != nil {
			t.Fatal(err)
		}
		before := len(j.of(Broken))
		closeLease(t, get())
		if len(j.of(Broken)) != before+1 {
			t.Errorf("%s: not noticed", name)
		}
	}
	for _, wrong := range []Size{{root.Files + 1, root.Bytes}, {root.Files, root.Bytes + 1}} {
		if _, err := c.Tree(t.Context(), root.Digest, &wrong, nil, nil); err == nil || !strings.Contains(err.Error(), "not "+fmt.Sprint(wrong.Files)) {
			t.Errorf("size %v: %v", wrong, err)
		}
	}
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTreeRefusesDirectories(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(dir string) error
		want string
	}{
		{"symlink", func(d string) error { return os.Symlink("/etc/passwd", d+"/a") }, "symlink"},
		{"directory symlink", func(d string) error { return os.Symlink("/etc", d+"/a") }, "symlink"},
		{"named pipe", func(d string) error { return unix.Mkfifo(d+"/a", 0o600) }, "named pipe"},
		{"device", func(d string) error { return unix.Mknod(d+"/a", unix.S_IFCHR|0o600, 1<<8|5) }, "device"},
		{"too many files", func(d string) error {
			return errors.Join(os.WriteFile(d+"/a", nil, 0o600), os.WriteFile(d+"/b", nil, 0o600))
		}, "at most 1 files and 9 bytes"},
		{"too many bytes", func(d string) error { return os.WriteFile(d+"/a", []byte("0123456789"), 0o600) }, "at most 1 files and 9 bytes"},
		{"sparse exabyte", func(d string) error {
			return errors.Join(os.WriteFile(d+"/a", nil, 0o600), os.Truncate(d+"/a", 1<<43))
		}, "at most 1 files and 9 bytes"},
		{"backslash", func(d string) error { return os.WriteFile(d+`/a\b`, nil, 0o600) }, "backslash"},
		{"nothing", func(string) error { return nil }, "no files"},
		{"something else", func(d string) error { return os.WriteFile(d+"/a", []byte("012"), 0o600) }, "(1 files, 3 bytes)"},
	} {
		dir := t.TempDir()
		if err := c.make(dir); err != nil {
			t.Fatal(err)
		}
		cache, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
		_, err := cache.Tree(t.Context(), digest([]byte("x")), &Size{1, 9}, []Place{{URI: dir, Trusted: true}}, nil)
		if !errors.As(err, new(*Mismatch)) || !strings.Contains(err.Error(), c.want) || len(j.of(Lied)) != 1 {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if left := names(t, cache.dir, "tmp"); len(left) != 0 {
			t.Errorf("%s: left %q", c.name, left)
		}
	}
	cache, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := cache.Tree(ctx, digest([]byte("x")), &Size{1, 9}, []Place{{URI: t.TempDir(), Trusted: true}}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	dir := t.TempDir()
	write(t, dir, map[string]string{"a": strings.Repeat("x", 5000)})
	if root, err := tree.Walk(t.Context(), dir, tree.Data, nil); err != nil {
		t.Fatal(err)
	} else if small, _ := testCache(t, filepath.Join(t.TempDir(), "cache"), 4999, Options{}); small == nil {
		t.Fatal("no cache")
	} else if _, err := small.Tree(t.Context(), root.Digest, nil, []Place{{URI: dir, Trusted: true}}, nil); !errors.As(err, new(*Mismatch)) {
		t.Errorf("a tree of unknown size, larger than the budget: %v", err)
	}
	for _, s := range []Size{{0, 9}, {-1, 9}, {1, -1}, {1, 1 << 60}, {1 << 60, 1}} {
		if _, err := cache.Tree(t.Context(), digest([]byte("x")), &s, []Place{{URI: t.TempDir(), Trusted: true}}, nil); err == nil {
			t.Errorf("size %v: no error", s)
		}
	}
}

func TestMake(t *testing.T) {
	c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
	var filled atomic.Int64
	fill := func(ctx context.Context, dir string) error { filled.Add(1); return makeNumbers(ctx, dir) }
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			l, err := c.Make(t.Context(), "numbers", fill, checkNumbers)
			if err != nil {
				t.Error(err)
				return
			}
			if err := checkNumbers(t.Context(), l.Path()); err != nil {
				t.Error(err)
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if filled.Load() != 1 {
		t.Errorf("filled %d times, want once:\n%v", filled.Load(), j)
	}
	l, err := c.Make(t.Context(), "numbers", fill, checkNumbers)
	if err != nil {
		t.Fatal(err)
	}
	path := l.Path()
	closeLease(t, l)
	if err := os.WriteFile(filepath.Join(path, "7"), []byte("8"), 0o644); err != nil {
		t.Fatal(err)
	}
	if l, err = c.Make(t.Context(), "numbers", fill, checkNumbers); err != nil || filled.Load() != 2 {
		t.Fatalf("a broken one: %v, filled %d times", err, filled.Load())
	}
	closeLease(t, l)
	bad := errors.New("no such commit")
	if _, err := c.Make(t.Context(), "x", func(context.Context, string) error { return bad }, checkNumbers); !errors.Is(err, bad) {
		t.Errorf("a failing fill: %v", err)
	}
	if _, err := c.Make(t.Context(), "x", func(context.Context, string) error { return nil }, checkNumbers); err == nil {
		t.Error("what check refuses was leased")
	}
	if left := append(names(t, c.dir, "tmp"), names(t, c.dir, "locks")...); len(left) != 1 {
		t.Errorf("left %q, want one lock", left)
	}
}

func TestEvictsLeastRecentlyUsed(t *testing.T) {
	const size = 64 << 10
	c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 3*size, Options{})
	var contents [][]byte
	var froms []Place
	for i := range 4 {
		contents = append(contents, randomBytes(byte(i), size))
		froms = append(froms, place(t, contents[i]))
	}
	here := func() (all string) {
		for i := range contents {
			if _, err := os.Lstat(c.entry("file-" + digest(contents[i]).String())); err == nil {
				all += fmt.Sprint(i)
			}
		}
		return all
	}
	for _, i := range []int{0, 1, 2, 0} { // 1 is now the oldest
		closeLease(t, mustFile(t, c, contents[i], froms[i]))
	}
	if got := here(); got != "012" {
		t.Fatalf("entries %q, want all three that fit:\n%v", got, j)
	}
	closeLease(t, mustFile(t, c, contents[3], froms[3]))
	if got := here(); got != "023" {
		t.Fatalf("entries %q, want the least recently used one gone:\n%v", got, j)
	}
	// 2 is the oldest, and is leased.
	two := mustFile(t, c, contents[2])
	older := time.Now().Add(-time.Hour)
	os.Chtimes(c.lockFile("file-"+digest(contents[2]).String()), older, older)
	one := mustFile(t, c, contents[1], froms[1])
	if got := here(); got != "123" {
		t.Fatalf("entries %q, want the leased one kept:\n%v", got, j)
	}
	u, err := c.Usage()
	if err != nil || u != (Usage{Entries: 3, Bytes: 3 * size, Leased: 2 * size, Budget: 3 * size}) {
		t.Errorf("Usage = %+v, %v", u, err)
	}
	closeLease(t, one)
	closeLease(t, two)
	// The end of a lease is a use, too.
	one, two = mustFile(t, c, contents[1]), mustFile(t, c, contents[2])
	closeLease(t, two)
	closeLease(t, mustFile(t, c, contents[3]))
	closeLease(t, one)
	closeLease(t, mustFile(t, c, contents[0], froms[0]))
	if got := here(); got != "013" {
		t.Errorf("entries %q, want the one gone whose lease ended first:\n%v", got, j)
	}
	closeLease(t, mustFile(t, c, contents[2], froms[2]))
	if got := here(); got != "012" {
		t.Errorf("entries %q, want the one kept whose lease ended last:\n%v", got, j)
	}
	// One that is larger than the budget is used and then goes.
	big := randomBytes(9, 4*size)
	l := mustFile(t, c, big, place(t, big))
	if got := here(); got != "" {
		t.Errorf("entries %q beside one that is larger than the budget", got)
	}
	closeLease(t, l)
	if u, err := c.Usage(); err != nil || u.Bytes != 0 || len(names(t, c.dir, "locks")) != 0 {
		t.Errorf("Usage = %+v, %v; locks %q", u, err, names(t, c.dir, "locks"))
	}
}

// TestFullDisk: on a real file system that is full, what nobody uses goes; if
// that does not help, the error says so and blames no place.
func TestFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=4m,mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	c, j := testCache(t, filepath.Join(disk, "cache"), 1<<30, Options{})
	old, young, big := randomBytes(1, 1<<20), randomBytes(2, 3<<20), randomBytes(3, 5<<20)
	closeLease(t, mustFile(t, c, old, place(t, old)))
	l := mustFile(t, c, young, place(t, young))
	if len(j.of(Evicted)) != 1 {
		t.Errorf("want one eviction:\n%v", j)
	}
	for name, get := range map[string]func() (*Lease, error){
		"file": func() (*Lease, error) {
			return c.File(t.Context(), digest(big), 5<<20, []Place{place(t, big), place(t, big)}, nil)
		},
		"download": func() (*Lease, error) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(big) }))
			defer s.Close()
			return c.File(t.Context(), digest(big), 5<<20, []Place{{URI: s.URL, Trusted: true}, place(t, big)}, nil)
		},
		"tree": func() (*Lease, error) {
			dir := filepath.Dir(place(t, big).URI)
			root, err := tree.Walk(t.Context(), dir, tree.Data, nil)
			if err != nil {
				t.Fatal(err)
			}
			return c.Tree(t.Context(), root.Digest, &Size{root.Files, root.Bytes}, []Place{{URI: dir, Trusted: true}}, nil)
		},
		"made": func() (*Lease, error) {
			return c.Make(t.Context(), "big", func(_ context.Context, dir string) error {
				return os.WriteFile(filepath.Join(dir, "big"), big, 0o644)
			}, func(context.Context, string) error { return nil })
		},
	} {
		_, err := get()
		if !errors.Is(err, unix.ENOSPC) || errors.As(err, new(*Mismatch)) || errors.As(err, new(*Unavailable)) {
			t.Errorf("%s: %v, want ENOSPC and no verdict", name, err)
		}
	}
	closeLease(t, l)
	if left := names(t, c.dir, "tmp"); len(left) != 0 || len(j.of(Lied)) != 0 {
		t.Errorf("left %q:\n%v", left, j)
	}
}

func TestTwoProcessesFetchOnce(t *testing.T) {
	content := randomBytes(1, 1<<20)
	var gets atomic.Int64
	release := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gets.Add(1)
		w.Write(content[:1000])
		w.(http.Flusher).Flush()
		<-release
		w.Write(content[1000:])
	}))
	defer s.Close()
	dir := filepath.Join(t.TempDir(), "cache")
	type running struct {
		cmd   *exec.Cmd
		out   io.Reader
		stdin io.Closer
	}
	var all []running
	for range 3 {
		cmd := childCommand("file", dir, s.URL+"/file", "-", digest(content).String())
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, running{cmd, out, in})
	}
	for gets.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	close(release)
	for _, r := range all {
		line := make([]byte, 4096)
		if n, err := r.out.Read(line); err != nil || !strings.HasPrefix(string(line[:n]), "leased ") {
			t.Fatalf("a process says %q, %v", line[:n], err)
		}
	}
	if gets.Load() != 1 {
		t.Errorf("%d downloads, want one", gets.Load())
	}
	c, _ := testCache(t, dir, 1, Options{})
	if err := c.Evict(t.Context()); err != nil {
		t.Fatal(err)
	}
	if u, err := c.Usage(); err != nil || u.Entries != 1 || u.Leased != u.Bytes {
		t.Errorf("Usage with three users = %+v, %v: what they lease must stay", u, err)
	}
	for i, r := range all {
		if i == 0 {
			r.cmd.Process.Kill() // a lease goes with its process
		}
		r.stdin.Close()
		r.cmd.Wait()
	}
	if err := c.Evict(t.Context()); err != nil {
		t.Fatal(err)
	}
	if u, err := c.Usage(); err != nil || u.Entries != 0 {
		t.Errorf("Usage without users = %+v, %v", u, err)
	}
}

// What a dead process left goes at Open, and what a living one has stays.
func TestSweep(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cache")
	c, _ := testCache(t, dir, 1<<20, Options{})
	k, err := c.tryLock("make-living", unix.LOCK_EX)
	if err != nil || k == nil {
		t.Fatal(k, err)
	}
	defer k.close()
	write(t, dir, map[string]string{"tmp/make-living+1/data/a": "", "tmp/make-dead+2/data/b/c": "", "locks/make-lost": "", "partial/make-part/x": "x", "locks/make-part": ""})
	testCache(t, dir, 1<<20, Options{})
	if tmp, locks := names(t, dir, "tmp"), names(t, dir, "locks"); !slices.Equal(tmp, []string{"make-living+1"}) || !slices.Equal(locks, []string{"make-living", "make-part"}) {
		t.Errorf("Open left %q and the locks %q", tmp, locks)
	}
}

// TestManyProcesses: several processes make, lease and evict the same entries
// all the time, and each always has what it leased.
func TestManyProcesses(t *testing.T) {
	content := randomBytes(1, 100_000)
	from := t.TempDir()
	write(t, from, map[string]string{"a/b": "1", "c": "2"})
	dir := filepath.Join(t.TempDir(), "cache")
	var all []*exec.Cmd
	for range 3 {
		cmd := childCommand("loop", dir, place(t, content).URI, from, digest(content).String(), "15")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, cmd)
	}
	for _, cmd := range all {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	c, _ := testCache(t, dir, 1, Options{})
	if u, err := c.Usage(); err != nil || u.Bytes != 0 {
		t.Errorf("Usage afterwards = %+v, %v", u, err)
	}
	if left := append(names(t, dir, "tmp"), names(t, dir, "locks")...); len(left) != 0 {
		t.Errorf("left %q", left)
	}
}

// A worker that is not root cannot move or remove what is read-only, except as
// its owner.
func TestAsAnotherUser(t *testing.T) {
	base, err := os.MkdirTemp("", "fetch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(base) })
	dir, from, file := filepath.Join(base, "cache"), filepath.Join(base, "from"), filepath.Join(base, "file")
	content := randomBytes(1, 1000)
	write(t, from, map[string]string{"a/b": "1", "c": "2"})
	archive := filepath.Join(base, "archive")
	members := corpus("top/")
	if err := errors.Join(os.Chmod(base, 0o755), os.Mkdir(dir, 0o700), os.Chown(dir, 65534, 65534),
		os.WriteFile(file, content, 0o644), os.WriteFile(archive, tarOf(t, members), 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"loop", dir, file, from, digest(content).String(), "3"}, {"tree", dir, archive, "-", rootOf(t, corpus("")).Digest.String()}} {
		cmd := childCommand(args[0], args[1:]...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if err := cmd.Run(); err != nil {
			t.Errorf("%s: %v", args[0], err)
		}
	}
	if left := append(names(t, dir, "entries"), names(t, dir, "tmp")...); len(left) != 0 {
		t.Errorf("left %q", left)
	}
}

// Waiting for another's work ends with the context.
func TestWaitingEnds(t *testing.T) {
	c, j := testCache(t, filepath.Join(t.TempDir(), "cache"), 1<<20, Options{})
	begun, end := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		l, err := c.Make(context.Background(), "x", func(ctx context.Context, dir string) error {
			close(begun)
			<-end
			return makeNumbers(ctx, dir)
		}, checkNumbers)
		if err == nil {
			err = l.Close()
		}
		done <- err
	}()
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := c.Make(ctx, "x", makeNumbers, checkNumbers); !errors.Is(err, context.DeadlineExceeded) || len(j.of(Waiting)) != 1 {
		t.Errorf("waiting: %v\n%v", err, j)
	}
	// Another entry does not wait.
	if l, err := c.Make(t.Context(), "y", makeNumbers, checkNumbers); err != nil {
		t.Error(err)
	} else {
		closeLease(t, l)
	}
	close(end)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNotesAreOneLine(t *testing.T) {
	for n, want := range map[Note]string{
		{Entry: "file-1", Event: Lied, Place: Place{URI: "https://m.example/\x1b[2J\n"}, Expected: "a", Got: "b"}: `file-1: lied "https://m.example/\x1b[2J\n": expected a, got b`,
		{Entry: "file-1", Event: Resumed, Bytes: 7}:                                                               `file-1: resumed, 7 bytes`,
		{Entry: "file-1", Event: Failed, Place: Place{URI: "/a"}, Err: io.EOF}:                                    `file-1: failed "/a": EOF`,
		{Entry: "e", Event: Hit, Place: Place{URI: strings.Repeat("x", 300)}}:                                     `e: hit "` + strings.Repeat("x", 200) + `"…`,
	} {
		if got := n.String(); got != want {
			t.Errorf("note %q, want %q", got, want)
		}
	}
}

// TestKill: whenever a process is killed that makes and evicts entries, each
// entry that is there afterwards is whole, and what it left is removed.
func TestKill(t *testing.T) {
	content := randomBytes(1, 1<<20)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"v1"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer s.Close()
	from := t.TempDir()
	for i := range 50 {
		write(t, from, map[string]string{fmt.Sprintf("d%d/%d", i%7, i): strings.Repeat("x", i*100)})
	}
	root, err := tree.Walk(t.Context(), from, tree.Data, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "cache")
	left, whole := 0, 0
	for range 30 {
		cmd := childCommand("loop", dir, s.URL, from, digest(content).String())
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if n, err := out.Read(make([]byte, 100)); n == 0 {
			t.Fatalf("the child did not start: %v", err)
		}
		time.Sleep(rand.N(60 * time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatalf("the child ended by itself: %v", err)
		}
		if err := cmd.Wait(); err == nil || err.Error() != "signal: killed" {
			t.Fatalf("the child ended by itself: %v", err)
		}
		left += len(names(t, dir, "tmp")) + len(names(t, dir, "partial"))
		c, _ := testCache(t, dir, 1<<30, Options{})
		if n := names(t, dir, "tmp"); len(n) != 0 {
			t.Errorf("after Open tmp holds %q", n)
		}
		for _, name := range names(t, dir, "locks") {
			if !slices.Contains(append(names(t, dir, "entries"), names(t, dir, "partial")...), name) {
				t.Errorf("after Open the lock of nothing is there: %s", name)
			}
		}
		for _, name := range names(t, dir, "entries") {
			whole++
			var err error
			data := filepath.Join(c.entry(name), "data")
			switch {
			case strings.HasPrefix(name, "file-"):
				err = checkFile(t.Context(), data, digest(content), 1<<30, nil)
			case strings.HasPrefix(name, "tree-"):
				err = errors.Join(Frozen(data), wanted{root: root.Digest}.check(t.Context(), data, nil))
			default:
				err = checkNumbers(t.Context(), data)
			}
			if err != nil {
				t.Errorf("entry %s after a kill: %v", name, err)
			}
		}
	}
	if left == 0 || whole == 0 {
		t.Errorf("the kills left %d directories and %d entries: they hit nothing", left, whole)
	}
	t.Logf("30 kills left %d directories and %d whole entries", left, whole)
	c, _ := testCache(t, dir, 1<<30, Options{})
	closeLease(t, mustFile(t, c, content, Place{URI: s.URL, Trusted: true}))
	l, err := c.Tree(t.Context(), root.Digest, nil, []Place{{URI: from, Trusted: true}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	closeLease(t, l)
}
