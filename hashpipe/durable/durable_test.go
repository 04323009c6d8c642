package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// writer turns the test binary into a process that replaces a file until it is killed;
// creator, into one that creates a file twice.
const (
	writer  = "DURABLE_TEST_WRITER"
	creator = "DURABLE_TEST_CREATOR"
)

func TestMain(m *testing.M) {
	unix.Umask(0o077)
	if path := os.Getenv(writer); path != "" {
		for b := byte('a'); ; b = 'a' + (b-'a'+1)%26 {
			if err := Replace(path, bytes.Repeat([]byte{b}, 1<<20), 0o644); err != nil {
				panic(err)
			}
		}
	}
	if path := os.Getenv(creator); path != "" {
		err := Create(path, []byte("new"), 0o640)
		if again := Create(path, []byte("newer"), 0o640); err == nil && !errors.Is(again, fs.ErrExist) {
			err = fmt.Errorf("again: %w", again)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func names(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func holds(t *testing.T, path, text string, perm fs.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != text || info.Mode().Perm() != perm {
		t.Errorf("%s: %q with mode %04o, want %q with %04o", path, got, info.Mode().Perm(), text, perm)
	}
}

// What cannot be written changes nothing and leaves nothing.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	if err := os.WriteFile(there, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	full := filepath.Join(dir, "full")
	if err := errors.Join(os.Mkdir(full, 0o700), unix.Mount("none", full, "tmpfs", 0, "size=4k,nr_inodes=10")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(full, unix.MNT_DETACH) })
	mine := errors.New("mine")
	for _, tt := range []struct {
		name string
		err  error
		want error
	}{
		{"create over a file", Create(there, []byte("new"), 0o644), fs.ErrExist},
		{"create over a directory", Create(full, []byte("new"), 0o644), fs.ErrExist},
		{"write a new file over one", WriteNew(there, []byte("new"), 0o644), fs.ErrExist},
		{"replace a directory", Replace(full, []byte("new"), 0o644), unix.EEXIST},
		{"no directory", Replace(filepath.Join(dir, "none", "x"), []byte("new"), 0o644), fs.ErrNotExist},
		{"below a file", Replace(filepath.Join(there, "x"), []byte("new"), 0o644), unix.ENOTDIR},
		{"no room", Replace(filepath.Join(full, "x"), make([]byte, 1<<20), 0o644), unix.ENOSPC},
		{"the writer's error", CreateFrom(filepath.Join(dir, "x"), 0o644, func(f *os.File) error { f.WriteString("half"); return mine }), mine},
		{"sync what is not there", SyncDir(filepath.Join(dir, "none")), fs.ErrNotExist},
		{"sweep where nothing is", Sweep(filepath.Join(dir, "none", "x")), fs.ErrNotExist},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, tt.err, tt.want)
		}
	}
	if got := names(t, dir); !slices.Equal(got, []string{"full", "there"}) {
		t.Errorf("left: %q", got)
	}
	if got := names(t, full); len(got) != 0 {
		t.Errorf("left in the full one: %q", got)
	}
	holds(t, there, "old", 0o600)
}

func TestWritten(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "[a]*") // a pattern, were it one
	for _, step := range []struct {
		err  error
		text string
		perm fs.FileMode
	}{
		{Create(path, []byte("one"), 0o644), "one", 0o644},
		{Replace(path, []byte("two"), 0o600), "two", 0o600},
		{Replace(path, nil, 0o664), "", 0o664},
	} {
		if step.err != nil {
			t.Fatal(step.err)
		}
	}
	holds(t, path, "", 0o664)
	if err := WriteNew(filepath.Join(dir, "new"), []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	holds(t, filepath.Join(dir, "new"), "new", 0o600)
	if got := names(t, dir); !slices.Equal(got, []string{"[a]*", "new"}) {
		t.Errorf("left: %q", got)
	}
}

// Of many who create one file, one does.
func TestCreatedOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	errs := make([]error, 16)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() { errs[i] = Create(path, []byte{byte('a' + i)}, 0o600) })
	}
	all.Wait()
	won := slices.IndexFunc(errs, func(err error) bool { return err == nil })
	if won < 0 {
		t.Fatal(errs)
	}
	for i, err := range errs {
		if i != won && !errors.Is(err, fs.ErrExist) {
			t.Errorf("%d and %d: %v", won, i, err)
		}
	}
	holds(t, path, string(rune('a'+won)), 0o600)
}

// Where the file system has no rename that replaces nothing, as NFS, a link does it, and
// where it has neither, nothing is replaced.
func TestCreatedWithoutRename(t *testing.T) {
	for _, tt := range []struct{ name, inject, want string }{
		{"NFS", "renameat2:error=EINVAL", ""},
		{"an old kernel", "renameat2:error=ENOSYS", ""},
		{"no links", "renameat2,linkat:error=EINVAL", "invalid argument"},
		{"another error", "renameat2:error=EIO", "input/output error"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "x")
		cmd := exec.Command("strace", "-f", "-qq", "-o", filepath.Join(t.TempDir(), "trace"), "-e", "inject="+tt.inject, os.Args[0])
		cmd.Env = append(os.Environ(), creator+"="+path)
		out, err := cmd.CombinedOutput()
		if errors.Is(err, exec.ErrNotFound) {
			t.Fatalf("%v; next: apt-get install strace", err)
		}
		if (err == nil) != (tt.want == "") || !strings.Contains(string(out), tt.want) {
			t.Errorf("%s: %v, %s", tt.name, err, out)
		}
		got := names(t, dir)
		if tt.want != "" {
			if len(got) > 0 {
				t.Errorf("%s: left %q", tt.name, got)
			}
			continue
		}
		holds(t, path, "new", 0o640)
		if !slices.Equal(got, []string{"x"}) {
			t.Errorf("%s: left %q", tt.name, got)
		}
	}
}

// Whoever is killed while it writes leaves a whole file, and beside it at most what
// Sweep removes.
func TestKilledWriter(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	other := filepath.Join(dir, ".xy.new-1")
	if err := errors.Join(Create(path, bytes.Repeat([]byte("a"), 1<<20), 0o644), os.WriteFile(other, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	left := 0
	for i := range 20 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), writer+"="+path)
		var said strings.Builder
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(20+7*i) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		if said.Len() > 0 {
			t.Fatal(said.String())
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) != 1<<20 || bytes.Count(b, b[:1]) != len(b) {
			t.Fatalf("killed %d times: %d bytes that nobody wrote", i+1, len(b))
		}
		left += len(names(t, dir)) - 2
		if err := Sweep(path); err != nil {
			t.Fatal(err)
		}
		if got := names(t, dir); !slices.Equal(got, []string{".xy.new-1", "x"}) {
			t.Fatalf("after Sweep: %q", got)
		}
	}
	if left == 0 {
		t.Error("no kill met a writer at work: this test has tested nothing")
	}
}

func TestPrivateDir(t *testing.T) {
	base := t.TempDir()
	at := func(name string) string { return filepath.Join(base, name) }
	for range 2 { // made, and then there
		if err := PrivateDir(at("mine")); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(at("mine")); err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Fatalf("%v, %v", info.Mode(), err)
	}
	if err := errors.Join(
		os.Mkdir(at("open"), 0o700), os.Chmod(at("open"), 0o750),
		os.WriteFile(at("file"), nil, 0o600),
		os.Symlink("mine", at("link")),
		os.Mkdir(at("theirs"), 0o700), os.Chown(at("theirs"), 1, 1),
	); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"open":   "has mode 0750, and others may use it: chmod 700 " + at("open"),
		"file":   "not a directory",
		"link":   "not a directory",
		"theirs": "does not belong to user 0",
		"a/b":    "no such file",
	} {
		if err := PrivateDir(at(name)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}
