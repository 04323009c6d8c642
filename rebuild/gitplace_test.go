package rebuild

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tree"
)

const weights = "\x00weights of a model\n"

func pointerTo(content string) string {
	return fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", digest(content), len(content))
}

// object stores an LFS object.
func object(t *testing.T, content string) File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "object")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return File{Digest: digest(content), Size: int64(len(content)), Path: name}
}

// gitlink commits a submodule's entry.
func gitlink(t *testing.T, repo, at string, commit verifier.GitCommit) verifier.GitCommit {
	t.Helper()
	git(t, repo, "update-index", "--add", "--cacheinfo", "160000,"+string(commit)+","+at)
	git(t, repo, "commit", "--quiet", "--message=submodule")
	return verifier.GitCommit(git(t, repo, "rev-parse", "HEAD"))
}

// checkedOut checks out what stands for a submodule.
func checkedOut(t *testing.T, s Source) CheckedOut {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "submodule")
	root, err := CheckOut(t.Context(), s, t.TempDir(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return CheckedOut{Commit: s.Commit, Dir: dir, Root: root}
}

func TestCheckOutCompletes(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		inner, inInner := repository(t, format, map[string]string{"c.h": "deep\n"})
		middle, inMiddle := repository(t, format, map[string]string{"run.sh*": "#!/bin/sh\n", "lib/b.h": "b\n", "b.h": "-> lib/b.h", "small.bin": pointerTo("small")})
		middleAlone := inMiddle
		inMiddle = gitlink(t, middle, "deps/c", inInner)
		own := map[string]string{"train.sh*": "#!/bin/sh\n", "models/big.bin": pointerTo(weights), "tool*": pointerTo("#!/bin/sh\nexit 0\n"), "notes": "see " + pointerTo("nothing")}
		repo, alone := repository(t, format, own)
		commit := gitlink(t, repo, "vendor/lib", inMiddle)
		if middleAlone == inMiddle || alone == commit {
			t.Fatal("no submodule was committed")
		}

		deep := checkedOut(t, Source{Location: inner, Commit: inInner})
		lib := checkedOut(t, Source{Location: middle, Commit: inMiddle,
			Submodules: map[string]CheckedOut{"deps/c": deep}, LFS: map[string]File{"small.bin": object(t, "small")}})
		// The whole of it is more than the commit's own tree.
		whole, err := tree.Walk(t.Context(), lib.Dir, tree.Source, nil)
		if err != nil || whole.Files != lib.Root.Files+1 || whole.Digest == lib.Root.Digest {
			t.Fatalf("%v, %v: the submodule's tree with its own parts; without: %v", whole, err, lib.Root)
		}
		lib.Root = whole

		dest := filepath.Join(t.TempDir(), "source")
		root, err := CheckOut(t.Context(), Source{Location: repo, Commit: commit,
			Submodules: map[string]CheckedOut{"vendor/lib": lib},
			LFS:        map[string]File{"models/big.bin": object(t, weights), "tool": object(t, "#!/bin/sh\nexit 0\n")},
		}, t.TempDir(), dest, nil)
		if err != nil {
			t.Fatal(err)
		}
		// The root is of the commit's own files: pointers, no submodule.
		b := tree.NewBuilder(tree.Source)
		for name, text := range own {
			name, executable := strings.CutSuffix(name, "*")
			kind := tree.File
			if executable {
				kind = tree.Executable
			}
			if err := b.Add(kind, name, hashpipe.SumBytes([]byte(text)), int64(len(text))); err != nil {
				t.Fatal(err)
			}
		}
		if want, err := b.Root(); err != nil || root != want {
			t.Errorf("%s: root %v, want %v (%v)", format, root, want, err)
		}
		for name, want := range map[string]struct {
			text string
			mode os.FileMode
		}{
			"models/big.bin": {weights, 0o444}, "tool": {"#!/bin/sh\nexit 0\n", 0o555}, "train.sh": {"#!/bin/sh\n", 0o555},
			"vendor/lib/run.sh": {"#!/bin/sh\n", 0o555}, "vendor/lib/b.h": {"b\n", 0o444}, "vendor/lib/small.bin": {"small", 0o444}, "vendor/lib/deps/c/c.h": {"deep\n", 0o444},
		} {
			text, err := os.ReadFile(filepath.Join(dest, name))
			info, err2 := os.Stat(filepath.Join(dest, name))
			if errors.Join(err, err2) != nil || string(text) != want.text || info.Mode() != want.mode || info.ModTime().Unix() != fetch.InputTime {
				t.Errorf("%s: %s = %q, %v, want %q, %v", format, name, text, info, want.text, want.mode)
			}
		}
		if to, err := os.Readlink(filepath.Join(dest, "vendor/lib/b.h")); err != nil || to != "lib/b.h" {
			t.Errorf("vendor/lib/b.h -> %q, %v", to, err)
		}
	}
}

func TestCheckOutRefusesParts(t *testing.T) {
	lib, inLib := repository(t, "sha1", map[string]string{"a.h": "a\n"})
	repo, _ := repository(t, "sha1", map[string]string{"train.sh*": "#!/bin/sh\n", "w.bin": pointerTo(weights)})
	commit := gitlink(t, repo, "vendor/lib", inLib)
	pointers := func(text string) (string, verifier.GitCommit) {
		return repository(t, "sha1", map[string]string{"w.bin": text})
	}
	ten := map[string]string{}
	for i := range 10 {
		ten[fmt.Sprint(i)] = pointerTo(weights)
	}
	many, inMany := repository(t, "sha1", ten)
	oldRepo, inOld := pointers(strings.Replace(pointerTo(weights), "git-lfs.github.com", "hawser.github.com", 1))
	extended, inExtended := pointers(strings.Replace(pointerTo(weights), "\noid", "\next-0-crypt sha256:"+digest("x").String()+"\noid", 1))
	md5, inMD5 := pointers("version https://git-lfs.github.com/spec/v1\noid md5:d41d8cd98f00b204e9800998ecf8427e\nsize 0\n")
	loose, inLoose := pointers("\n" + strings.ReplaceAll(pointerTo(weights), "\n", "\r\n\n"))
	good := checkedOut(t, Source{Location: lib, Commit: inLib})
	changed := func(f func(dir string) error) CheckedOut {
		c := checkedOut(t, Source{Location: lib, Commit: inLib})
		if err := errors.Join(os.Chmod(c.Dir, 0o700), f(c.Dir)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	other := File{Digest: digest(weights), Size: int64(len(weights)), Path: object(t, strings.Repeat("x", len(weights))).Path}
	longer := File{Digest: digest(weights), Size: int64(len(weights)), Path: object(t, weights+"x").Path}
	shorter := File{Digest: digest(weights), Size: int64(len(weights)), Path: object(t, weights[1:]).Path}
	right := object(t, weights)
	linked, fifo, absent := right, right, right
	linked.Path, fifo.Path, absent.Path = filepath.Join(t.TempDir(), "l"), filepath.Join(t.TempDir(), "f"), filepath.Join(t.TempDir(), "a")
	if err := errors.Join(os.Symlink(right.Path, linked.Path), syscall.Mkfifo(fifo.Path, 0o600)); err != nil {
		t.Fatal(err)
	}
	wrongSize := right
	wrongSize.Size++
	unmeasured := good
	unmeasured.Root = tree.Root{}
	type parts = map[string]CheckedOut
	type files = map[string]File
	for _, c := range []struct {
		name, repo string
		commit     verifier.GitCommit
		submodules parts
		lfs        files
		want       string
	}{
		{"submodule not listed", repo, commit, nil, files{"w.bin": right}, `does not name: add to its dependencies "submodule:vendor/lib" with the digest gitCommit ` + string(inLib)},
		{"submodule listed at another path", repo, commit, parts{"vendor": good}, files{"w.bin": right}, `add to its dependencies "submodule:vendor/lib"`},
		{"another commit", repo, commit, parts{"vendor/lib": {Commit: commit, Dir: good.Dir, Root: good.Root}}, files{"w.bin": right}, "the ledger says " + string(commit)},
		{"a submodule too many", repo, commit, parts{"vendor/lib": good, "vendor/b": good}, files{"w.bin": right}, `names "submodule:vendor/b", and the commit has no submodule`},
		{"submodule where a file is", repo, commit, parts{"vendor/lib": good, "train.sh": good}, files{"w.bin": right}, `names "submodule:train.sh"`},
		{"not measured", repo, commit, parts{"vendor/lib": unmeasured}, files{"w.bin": right}, "submodule:vendor/lib: "},
		{"absent directory", repo, commit, parts{"vendor/lib": {Commit: inLib, Dir: good.Dir + "x", Root: good.Root}}, files{"w.bin": right}, "no such file"},
		{"changed since", repo, commit, parts{"vendor/lib": changed(func(d string) error {
			return errors.Join(os.Remove(d+"/a.h"), os.WriteFile(d+"/a.h", []byte("b\n"), 0o600))
		})}, files{"w.bin": right}, "and it was checked as"},
		{"made executable since", repo, commit, parts{"vendor/lib": changed(func(d string) error { return os.Chmod(d+"/a.h", 0o755) })}, files{"w.bin": right}, "and it was checked as"},
		{"grown since", repo, commit, parts{"vendor/lib": changed(func(d string) error { return os.WriteFile(d+"/b.h", make([]byte, 1<<20), 0o600) })}, files{"w.bin": right}, "more than the 2 bytes"},
		{"FIFO in it", repo, commit, parts{"vendor/lib": changed(func(d string) error { return syscall.Mkfifo(d+"/p", 0o600) })}, files{"w.bin": right}, "named pipe"},
		{"link out of it", repo, commit, parts{"vendor/lib": changed(func(d string) error { return os.Symlink("../../../etc/passwd", d+"/l") })}, files{"w.bin": right}, "outside the tree"},

		{"pointer not listed", repo, commit, parts{"vendor/lib": good}, nil, fmt.Sprintf(`does not name: add to its dependencies "lfs:w.bin" with the digest sha256 %s (%d bytes)`, digest(weights), len(weights))},
		{"many pointers not listed", many, inMany, nil, files{"1": right}, `"lfs:2" with the digest`},
		{"many pointers not listed, the rest", many, inMany, nil, nil, ", and 2 more"},
		{"pointer of before not listed", oldRepo, inOld, nil, nil, `"lfs:w.bin"`},
		{"untidy pointer not listed", loose, inLoose, nil, nil, `"lfs:w.bin"`},
		{"pointer through a program", extended, inExtended, nil, files{"w.bin": right}, "not named by the SHA-256"},
		{"pointer by MD5", md5, inMD5, nil, files{"w.bin": right}, "not named by the SHA-256"},
		{"an object too many", repo, commit, parts{"vendor/lib": good}, files{"w.bin": right, "train.sh": right}, `names "lfs:train.sh", and the commit has no LFS pointer`},
		{"another object", repo, commit, parts{"vendor/lib": good}, files{"w.bin": object(t, "x")}, `is an LFS pointer to ` + digest(weights).String()},
		{"another size", repo, commit, parts{"vendor/lib": good}, files{"w.bin": wrongSize}, "the ledger says"},
		{"other bytes", repo, commit, parts{"vendor/lib": good}, files{"w.bin": other}, "lfs:w.bin: " + other.Path + ": SHA-256 is"},
		{"more bytes", repo, commit, parts{"vendor/lib": good}, files{"w.bin": longer}, "SHA-256 is"},
		{"fewer bytes", repo, commit, parts{"vendor/lib": good}, files{"w.bin": shorter}, "SHA-256 is"},
		{"absent object", repo, commit, parts{"vendor/lib": good}, files{"w.bin": absent}, "no such file"},
		{"link for an object", repo, commit, parts{"vendor/lib": good}, files{"w.bin": linked}, "too many levels"},
		{"FIFO for an object", repo, commit, parts{"vendor/lib": good}, files{"w.bin": fifo}, "no regular file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			scratch := t.TempDir()
			_, err := CheckOut(t.Context(), Source{Location: c.repo, Commit: c.commit, Submodules: c.submodules, LFS: c.lfs}, scratch, filepath.Join(t.TempDir(), "source"), nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("CheckOut: %v, want an error with %q", err, c.want)
			}
			if left, _ := os.ReadDir(scratch); len(left) != 0 {
				t.Errorf("%v left in scratch", left)
			}
		})
	}
}

func TestPointers(t *testing.T) {
	good := pointerTo(weights)
	for _, text := range []string{good, strings.TrimSuffix(good, "\n"), good + "\n", strings.ReplaceAll(good, "\n", "\r\n"), strings.Replace(good, "spec/v1", "spec/v2", 1)} {
		if p, ok := parsePointer([]byte(text)); !ok || p.oid != digest(weights) || p.size != int64(len(weights)) {
			t.Errorf("parsePointer(%q) = %v, %v", text, p, ok)
		}
	}
	for _, text := range []string{"", "x", "version 1\n", "#" + good, strings.SplitAfter(good, "\n")[0], strings.Replace(good, "oid", "old", 1), strings.Replace(good, "size ", "size x", 1)} {
		if p, ok := parsePointer([]byte(text)); ok {
			t.Errorf("parsePointer(%q) = %v, want no pointer", text, p)
		}
	}
}

// A submodule is not written through a link of the tree.
func TestPlaceTreeRefusesLinks(t *testing.T) {
	lib, inLib := repository(t, "sha1", map[string]string{"a.h": "a\n"})
	good := checkedOut(t, Source{Location: lib, Commit: inLib})
	dest := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dest, "real"), 0o755), os.Symlink("real", filepath.Join(dest, "link")), os.WriteFile(filepath.Join(dest, "file"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dest)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, name := range []string{"link/sub", "link/deep/sub", "file/sub", "link", "file", "../out"} {
		if err := placeTree(t.Context(), root, name, good); err == nil {
			t.Errorf("placeTree at %s was allowed", name)
		}
	}
	if left, err := os.ReadDir(filepath.Join(dest, "real")); err != nil || len(left) != 0 {
		t.Errorf("%v, %v: something was written through the link", left, err)
	}
}

// What is in the way of a submodule is called by its name.
func TestSubmoduleBelowAFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	err = placeTree(t.Context(), root, "a/b", CheckedOut{Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), `"a" above it is a file`) {
		t.Errorf("placeTree = %v, want it to name the file", err)
	}
}
