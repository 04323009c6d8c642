package tree_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/tree"
)

type file struct {
	kind    tree.Kind
	path    string
	content string // or a symlink's target
}

func write(t testing.TB, dir string, files []file) {
	t.Helper()
	for _, f := range files {
		path := filepath.Join(dir, f.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch f.kind {
		case tree.Symlink:
			err = os.Symlink(f.content, path)
		case tree.Executable:
			err = os.WriteFile(path, []byte(f.content), 0o755)
		default:
			err = os.WriteFile(path, []byte(f.content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func build(p tree.Profile, files []file) (tree.Root, error) {
	b := tree.NewBuilder(p)
	for _, f := range files {
		var err error
		if f.kind == tree.Symlink {
			err = b.AddLink(f.path, f.content)
		} else {
			err = b.Add(f.kind, f.path, hashpipe.SumBytes([]byte(f.content)), int64(len(f.content)))
		}
		if err != nil {
			return tree.Root{}, err
		}
	}
	return b.Root()
}

// shards are the 1000 files of the known answer: each holds its decimal index.
func shards() []file {
	var files []file
	for i := range 1000 {
		files = append(files, file{tree.File, fmt.Sprintf("shard-%04d.bin", i), fmt.Sprint(i)})
	}
	return files
}

// TestKnownAnswers holds the roots that an independent program in Python
// computed from the specification.
func TestKnownAnswers(t *testing.T) {
	tests := []struct {
		name  string
		files []file
		want  string
		bytes int64
	}{
		{"one file", []file{{'f', "a.txt", "hello\n"}}, "baf99b9ff27559a791c8f1ec16eadd8d617b2cb74aae714064051c878a9f226e", 6},
		{"order by full path", []file{{'f', "a/b", "1"}, {'f', "a-b", "2"}, {'f', "a.b", "3"}}, "b279147c051c119442e1452739c8959e5551df331e6b47b3e656832c1467cb7b", 3},
		{"executable", []file{{'x', "run.sh", "#!/bin/sh\n"}}, "143ca03b9574912ebea2c492b945e59911b865193df28351b0dc42a798a1b6de", 10},
		{"symlink", []file{{'f', "data/x", "x"}, {'l', "latest", "data/x"}}, "3475b31adab1ef12e49597451eabf7f1a65479789f0603d3909ccb44202d41b9", 7},
		{"not normalised", []file{{'f', "\u00e9", "nfc"}, {'f', "z", ""}}, "fe409711e96149b78337ebf82d83c38ff86f30e899def61b2003683f6ec577c0", 3},
		{"1000 files", shards(), "3aa5e4cda1e698aef4cc4bcc065cf0472484d9ec07350ae566347fdef8205948", 2890},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		write(t, dir, tt.files)
		var progress int64
		walked, err := tree.Walk(t.Context(), dir, tree.Source, func(n int64) { progress += n })
		if err != nil || walked.Digest.String() != tt.want || walked.Files != int64(len(tt.files)) || walked.Bytes != tt.bytes {
			t.Errorf("%s: Walk = %v, %v, want %s, %d files, %d bytes", tt.name, walked, err, tt.want, len(tt.files), tt.bytes)
		}
		if want := tt.bytes - linkBytes(tt.files); progress != want {
			t.Errorf("%s: progress added up to %d, want %d", tt.name, progress, want)
		}
		shuffled := slices.Clone(tt.files)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		built, err := build(tree.Source, shuffled)
		if err != nil || built != walked {
			t.Errorf("%s: Builder = %v, %v, want what Walk found, %v", tt.name, built, err, walked)
		}
	}
}

func linkBytes(files []file) (n int64) {
	for _, f := range files {
		if f.kind == tree.Symlink {
			n += int64(len(f.content))
		}
	}
	return n
}

// mth is RFC 6962 section 2.1, word by word.
func mth(leaves [][]byte) []byte {
	if len(leaves) == 1 {
		h := sha256.Sum256(append([]byte{0}, leaves[0]...))
		return h[:]
	}
	k := 1
	for k*2 < len(leaves) {
		k *= 2
	}
	h := sha256.Sum256(append(append([]byte{1}, mth(leaves[:k])...), mth(leaves[k:])...))
	return h[:]
}

func TestAgainstRFC6962(t *testing.T) {
	for n := 1; n <= 130; n++ {
		var leaves [][]byte
		files := shards()[:n]
		for _, f := range files {
			leaves = append(leaves, fmt.Appendf(nil, "clawfs-tree/v1\nf %x %d %s", sha256.Sum256([]byte(f.content)), len(f.content), f.path))
		}
		got, err := build(tree.Data, files)
		if want := fmt.Sprintf("%x", mth(leaves)); err != nil || got.Digest.String() != want {
			t.Errorf("%d files: root %s, %v, want %s", n, got.Digest, err, want)
		}
	}
}

func TestDataIgnoresTheExecutableBit(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, []file{{'x', "a.txt", "hello\n"}})
	got, err := tree.Walk(t.Context(), dir, tree.Data, nil)
	if err != nil || got.Digest.String() != "baf99b9ff27559a791c8f1ec16eadd8d617b2cb74aae714064051c878a9f226e" {
		t.Errorf("Walk = %v, %v, want the root of the same file without the bit", got, err)
	}
}

func TestWalkSkipsNothing(t *testing.T) {
	files := []file{{'f', "a", "1"}, {'f', ".git/config", "2"}, {'f', ".hidden", "3"}, {'f', "d/.e/f", "4"}}
	dir := t.TempDir()
	write(t, dir, files)
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	want, err := build(tree.Data, files)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tree.Walk(t.Context(), dir, tree.Data, nil); err != nil || got != want {
		t.Errorf("Walk = %v, %v, want %v", got, err, want)
	}
}

func TestWalkRefuses(t *testing.T) {
	tests := []struct {
		name    string
		profile tree.Profile
		make    func(dir string) error
		want    string
	}{
		{"nothing", tree.Source, func(string) error { return nil }, "holds no files"},
		{"only directories", tree.Source, func(d string) error { return os.MkdirAll(d+"/a/b", 0o755) }, "holds no files"},
		{"no profile", 0, func(d string) error { return os.WriteFile(d+"/a", nil, 0o644) }, "no profile"},
		{"symlink in data", tree.Data, func(d string) error { return os.Symlink("a", d+"/l") }, `"l" is a symlink, which profile data does not take`},
		{"absolute symlink", tree.Source, func(d string) error { return os.Symlink("/etc/passwd", d+"/l") }, "expected a relative target"},
		{"symlink out", tree.Source, func(d string) error { return os.Symlink("../x", d+"/l") }, "outside the tree"},
		{"symlink out of a folder", tree.Source, func(d string) error {
			return errors.Join(os.Mkdir(d+"/s", 0o755), os.Symlink("../../x", d+"/s/l"))
		}, "outside the tree"},
		{"symlink down and up", tree.Source, func(d string) error { return os.Symlink("a/../b", d+"/l") }, ".. at the start"},
		{"fifo", tree.Source, func(d string) error { return syscall.Mkfifo(d+"/p", 0o644) }, `"p" is a fifo`},
		{"socket", tree.Source, func(d string) error {
			return syscall.Mknod(d+"/s", syscall.S_IFSOCK|0o644, 0)
		}, `"s" is a socket`},
		{"backslash", tree.Source, func(d string) error { return os.WriteFile(d+`/a\b`, nil, 0o644) }, "backslash"},
		{"line break", tree.Source, func(d string) error { return os.WriteFile(d+"/a\nb", nil, 0o644) }, "control byte"},
		{"escape", tree.Source, func(d string) error { return os.Mkdir(d+"/a\x1bb", 0o755) }, "control byte"},
		{"not UTF-8", tree.Source, func(d string) error { return os.WriteFile(d+"/a\xff", nil, 0o644) }, "not UTF-8"},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		if err := tt.make(dir); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		got, err := tree.Walk(t.Context(), dir, tt.profile, nil)
		if err == nil || !strings.Contains(err.Error(), tt.want) || got != (tree.Root{}) {
			t.Errorf("%s: Walk = %v, %v, want an error with %q", tt.name, got, err, tt.want)
		}
	}
	if _, err := tree.Walk(t.Context(), filepath.Join(t.TempDir(), "none"), tree.Data, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Walk of nothing: %v, want not found", err)
	}
	regular := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(regular, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := tree.Walk(t.Context(), regular, tree.Data, nil); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("Walk of a file: %v, want not a directory", err)
	}
}

// TestWalkSeesChanges changes the tree from the progress callback, which runs
// between the first state that Walk notes and the last.
func TestWalkSeesChanges(t *testing.T) {
	changes := map[string]func(dir string) error{
		"the file is overwritten": func(d string) error { return os.WriteFile(d+"/s/b", []byte("hullo"), 0o644) },
		"the file grows": func(d string) error {
			f, err := os.OpenFile(d+"/s/b", os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("!")
			return errors.Join(err, f.Close())
		},
		"a file appears":                 func(d string) error { return os.WriteFile(d+"/s/a", nil, 0o644) },
		"a file appears at the top":      func(d string) error { return os.WriteFile(d+"/a", nil, 0o644) },
		"a file disappears":              func(d string) error { return os.Remove(d + "/s/c") },
		"a file becomes a symlink":       func(d string) error { return errors.Join(os.Remove(d+"/s/c"), os.Symlink("b", d+"/s/c")) },
		"a file becomes a fifo":          func(d string) error { return errors.Join(os.Remove(d+"/s/c"), syscall.Mkfifo(d+"/s/c", 0o644)) },
		"the directory is replaced":      func(d string) error { return errors.Join(os.Rename(d+"/s", d+"/t"), os.Mkdir(d+"/s", 0o755)) },
		"the directory becomes a link":   func(d string) error { return errors.Join(os.Rename(d+"/s", d+"/t"), os.Symlink("t", d+"/s")) },
		"a file is exchanged for a file": func(d string) error { return os.Rename(d+"/s/c", d+"/s/b") },
	}
	for name, change := range changes {
		dir := t.TempDir()
		write(t, dir, []file{{'f', "s/b", "hello"}, {'f', "s/c", "more"}})
		once := false
		got, err := tree.Walk(t.Context(), dir, tree.Source, func(int64) {
			if once {
				return
			}
			once = true
			if err := change(dir); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
		if !once {
			t.Fatalf("%s: the change was never made", name)
		}
		if err == nil || !errors.Is(err, hashpipe.ErrChanged) && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: Walk = %v, %v, want a change to be noticed", name, got, err)
		}
	}
}

func TestWalkEndsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, shards())
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	_, err := tree.Walk(ctx, dir, tree.Data, func(int64) {
		calls++
		cancel()
	})
	if !errors.Is(err, context.Canceled) || calls > 2 {
		t.Errorf("Walk = %v after %d files, want cancelled at once", err, calls)
	}
}

// TestWalkDeep has more levels than a process may have descriptors.
func TestWalkDeep(t *testing.T) {
	dir := t.TempDir()
	deep := strings.Repeat("d/", 1500) + "f"
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := root.MkdirAll(filepath.Dir(deep), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := root.WriteFile(deep, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	want, err := build(tree.Data, []file{{'f', deep, "x"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tree.Walk(t.Context(), dir, tree.Data, nil); err != nil || got != want {
		t.Errorf("Walk = %v, %v, want %v", got, err, want)
	}
}

func TestBuilderRefuses(t *testing.T) {
	sum := hashpipe.SumBytes([]byte("x"))
	long := strings.Repeat("x", 256)
	for _, path := range []string{"", ".", "..", "/a", "a/", "a//b", "a/../b", "./a", "a/.", "a/..", `a\b`, "a\x00b", "a\x7fb", "a\nb", "\xff", long, strings.Repeat("a/", 2048) + "a"} {
		if err := tree.NewBuilder(tree.Source).Add(tree.File, path, sum, 1); err == nil {
			t.Errorf("Add(%q) was accepted", path)
		}
	}
	tests := []struct {
		name string
		add  func(b *tree.Builder) error
		want string
	}{
		{"nothing", func(b *tree.Builder) error { return nil }, "holds no files"},
		{"a symlink without its target", func(b *tree.Builder) error { return b.Add(tree.Symlink, "l", sum, 1) }, "with its target"},
		{"an unknown kind", func(b *tree.Builder) error { return b.Add('d', "a", sum, 1) }, "does not take kind"},
		{"no measurement", func(b *tree.Builder) error { return b.Add(tree.File, "a", hashpipe.Sum{}, 1) }, "not measured"},
		{"a negative size", func(b *tree.Builder) error { return b.Add(tree.File, "a", sum, -1) }, "out of range"},
		{"a total too large", func(b *tree.Builder) error {
			return errors.Join(b.Add(tree.File, "a", sum, 1<<52), b.Add(tree.File, "b", sum, 1<<52))
		}, "out of range"},
		{"one path twice", func(b *tree.Builder) error {
			return errors.Join(b.Add(tree.File, "a", sum, 1), b.Add(tree.Executable, "a", sum, 1))
		}, "given twice"},
		{"a file that is a directory", func(b *tree.Builder) error {
			return errors.Join(b.Add(tree.File, "a", sum, 1), b.Add(tree.File, "a-b", sum, 1), b.Add(tree.File, "a/b", sum, 1))
		}, "is a file and the directory"},
		{"a symlink that is a directory", func(b *tree.Builder) error {
			return errors.Join(b.AddLink("a", "c"), b.Add(tree.File, "a/b", sum, 1))
		}, "is a file and the directory"},
		{"an absolute target", func(b *tree.Builder) error { return b.AddLink("l", "/a") }, "relative target"},
		{"a target outside", func(b *tree.Builder) error { return b.AddLink("a/b/l", "../../../x") }, "outside the tree"},
		{"an empty target", func(b *tree.Builder) error { return b.AddLink("l", "") }, "target of 1 to"},
		{"a link out of a link", func(b *tree.Builder) error { return b.AddLink("l", "a/b/c/../y") }, ".. at the start"},
	}
	for _, tt := range tests {
		b := tree.NewBuilder(tree.Source)
		err := tt.add(b)
		if err == nil {
			_, err = b.Root()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error with %q", tt.name, err, tt.want)
		}
	}
	if err := tree.NewBuilder(tree.Data).Add(tree.Executable, "a", sum, 1); err == nil {
		t.Error("profile data took an executable record")
	}
	if err := tree.NewBuilder(0).Add(tree.File, "a", sum, 1); err == nil {
		t.Error("the zero profile took a record")
	}
	for _, target := range []string{"../../x", "../../x/y", ".", "..", "./x", "x//y/"} {
		if err := tree.NewBuilder(tree.Source).AddLink("a/b/l", target); err != nil {
			t.Errorf("AddLink(a/b/l -> %q): %v, want it accepted", target, err)
		}
	}
}

// TestRootBinds shows that each part of a record and the set of records decide
// the root.
func TestRootBinds(t *testing.T) {
	base := []file{{'f', "a", "1"}, {'f', "b", "2"}}
	variants := map[string][]file{
		"renamed":       {{'f', "a", "1"}, {'f', "c", "2"}},
		"swapped":       {{'f', "a", "2"}, {'f', "b", "1"}},
		"content":       {{'f', "a", "1"}, {'f', "b", "3"}},
		"executable":    {{'f', "a", "1"}, {'x', "b", "2"}},
		"symlink":       {{'f', "a", "1"}, {'l', "b", "2"}},
		"one more":      {{'f', "a", "1"}, {'f', "b", "2"}, {'f', "c", ""}},
		"one less":      {{'f', "a", "1"}},
		"moved a level": {{'f', "a", "1"}, {'f', "d/b", "2"}},
	}
	want, err := build(tree.Source, base)
	if err != nil {
		t.Fatal(err)
	}
	for name, files := range variants {
		if got, err := build(tree.Source, files); err != nil || got.Digest == want.Digest {
			t.Errorf("%s: root %v, %v, want another root than %v", name, got.Digest, err, want.Digest)
		}
	}
}
