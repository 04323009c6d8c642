package rebuild

import (
	"bytes"
	"compress/zlib"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tree"
)

// git runs git in dir with a fixed identity and no configuration of the host.
func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org", "GIT_AUTHOR_DATE=1700000000 +0000",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org", "GIT_COMMITTER_DATE=1700000000 +0000")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// repository makes a repository with one commit of files; a name that ends in
// "*" is executable, a content that begins with "-> " is a symlink.
func repository(t *testing.T, format string, files map[string]string) (dir string, commit verifier.GitCommit) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Fatal("git is missing: apt-get install git")
	}
	dir = filepath.Join(t.TempDir(), "repo")
	git(t, ".", "init", "--quiet", "--object-format="+format, dir)
	for name, content := range files {
		name, executable := strings.CutSuffix(name, "*")
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, link := strings.CutPrefix(content, "-> "); link {
			if err := os.Symlink(target, path); err != nil {
				t.Fatal(err)
			}
			continue
		}
		mode := os.FileMode(0o644)
		if executable {
			mode = 0o755
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir, commitAll(t, dir)
}

func commitAll(t *testing.T, dir string) verifier.GitCommit {
	t.Helper()
	git(t, dir, "add", "--all")
	git(t, dir, "commit", "--quiet", "--message=one")
	return verifier.GitCommit(git(t, dir, "rev-parse", "HEAD"))
}

var sourceFiles = map[string]string{"train.sh*": "#!/bin/sh\necho $Id$\r\n", "lib/a.txt": "a\n", "latest": "-> lib/a.txt", ".gitattributes": "*.sh ident eol=lf\n"}

func TestCheckOut(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		repo, commit := repository(t, format, sourceFiles)
		bundle := filepath.Join(t.TempDir(), "source.bundle")
		git(t, repo, "bundle", "create", "--quiet", bundle, "--all")
		// A later commit: the wanted one is no branch's tip any more.
		if err := os.WriteFile(filepath.Join(repo, "later"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		commitAll(t, repo)
		var roots []tree.Root
		for _, location := range []string{repo, "file://" + repo, "git+file://" + repo, filepath.Join(repo, ".git"), bundle} {
			dest := filepath.Join(t.TempDir(), "source")
			var seen int64
			root, err := CheckOut(context.Background(), Source{Location: location, Commit: commit}, t.TempDir(), dest, func(n int64) { seen += n })
			if err != nil {
				t.Fatalf("CheckOut(%s, %s): %v", format, location, err)
			}
			roots = append(roots, root)
			// As git stores it: neither ident nor eol was applied.
			got, err := os.ReadFile(filepath.Join(dest, "train.sh"))
			want := "#!/bin/sh\necho $Id$\n"
			if err != nil || string(got) != want {
				t.Errorf("%s: train.sh = %q, %v, want %q", location, got, err, want)
			}
			info, err := os.Lstat(filepath.Join(dest, "train.sh"))
			if err != nil || info.Mode().Perm() != 0o555 || info.ModTime().Unix() != fetch.InputTime {
				t.Errorf("%s: train.sh is %v at %v, want -r-xr-xr-x at %d", location, info.Mode(), info.ModTime(), fetch.InputTime)
			}
			if target, err := os.Readlink(filepath.Join(dest, "latest")); err != nil || target != "lib/a.txt" {
				t.Errorf("%s: latest -> %q, %v", location, target, err)
			}
		}
		for i, r := range roots {
			if r != roots[0] || r.Files != 4 {
				t.Errorf("%s: root %d is %v, want %v of 4 files", format, i, r, roots[0])
			}
		}
	}
}

func TestCheckOutRefuses(t *testing.T) {
	repo, commit := repository(t, "sha1", sourceFiles)
	submodule, _ := repository(t, "sha1", sourceFiles)
	git(t, submodule, "update-index", "--add", "--cacheinfo", "160000,"+string(commit)+",vendor")
	git(t, submodule, "commit", "--quiet", "--message=two")
	inSubmodule := verifier.GitCommit(git(t, submodule, "rev-parse", "HEAD"))
	escaping, inEscaping := repository(t, "sha1", map[string]string{"a": "-> ../../etc/passwd"})
	absolute, inAbsolute := repository(t, "sha1", map[string]string{"a": "-> /etc/passwd"})
	forged, inForged := repository(t, "sha1", sourceFiles)
	forgeBlob(t, forged, "lib/a.txt", "forged\n")
	helper := filepath.Join(t.TempDir(), "ran")
	for _, c := range []struct {
		name, location string
		commit         verifier.GitCommit
		want           string
	}{
		{"unknown commit", repo, verifier.GitCommit(strings.Repeat("1", 40)), "fetching commit 1111"},
		{"commit of another format", repo, verifier.GitCommit(strings.Repeat("1", 64)), "fetching commit 1111"},
		{"tree, not commit", repo, verifier.GitCommit(git(t, repo, "rev-parse", "HEAD^{tree}")), "does not have this commit"},
		{"short commit", repo, commit[:12], "expected 40 or 64"},
		{"upper-case commit", repo, verifier.GitCommit(strings.ToUpper(string(commit))), "expected 40 or 64"},
		{"option as commit", repo, "--upload-pack=touch", "expected 40 or 64"},
		{"no location", "", commit, "name one with --source"},
		{"missing directory", repo + "-not", commit, "no such file"},
		{"no repository", t.TempDir(), commit, "fetching commit"},
		{"relative path", "repo", commit, "expected an absolute path"},
		{"option as location", "--upload-pack=touch " + helper, commit, "expected an absolute path"},
		{"ext helper", "ext::sh -c touch% " + helper, commit, "expected an absolute path"},
		{"ext helper with git+", "git+ext::sh -c touch% " + helper, commit, "expected an absolute path"},
		{"fd helper", "fd::7", commit, "expected an absolute path"},
		{"plain http", "http://127.0.0.1/x", commit, "expected an absolute path"},
		{"option as ssh host", "ssh://-oProxyCommand=touch/x", commit, "expected an absolute path"},
		{"scp form", "host:path", commit, "expected an absolute path"},
		{"fragment", "https://127.0.0.1/x#main", commit, "expected an absolute path"},
		{"file with host", "file://host/x", commit, "expected an absolute path"},
		{"newline", "https://127.0.0.1/x\ny", commit, "expected an absolute path"},
		{"newline in a path", repo + "\n[core]", commit, "without control characters"},
		{"device", "/dev/null", commit, "neither a repository nor a bundle"},
		{"nobody listens", "https://127.0.0.1:1/x", commit, "fetching commit"},
		{"submodule", submodule, inSubmodule, "is a submodule"},
		{"symlink out of the root", escaping, inEscaping, "a"},
		{"absolute symlink", absolute, inAbsolute, "a"},
		{"forged object", forged, inForged, "commit " + string(inForged)},
	} {
		t.Run(c.name, func(t *testing.T) {
			scratch, dest := t.TempDir(), filepath.Join(t.TempDir(), "source")
			_, err := CheckOut(context.Background(), Source{Location: c.location, Commit: c.commit}, scratch, dest, nil)
			if err == nil {
				got, _ := os.ReadFile(filepath.Join(dest, "lib/a.txt"))
				t.Fatalf("CheckOut succeeded; lib/a.txt is %q", got)
			}
			if !strings.Contains(err.Error(), c.want) || strings.ContainsAny(err.Error(), "\x1b\r") {
				t.Errorf("error %q, want %q in it", err, c.want)
			}
			if left, _ := os.ReadDir(scratch); len(left) != 0 {
				t.Errorf("%v left in scratch", left)
			}
			if _, err := os.Stat(helper); err == nil {
				t.Error("the location was executed")
			}
		})
	}
}

// forgeBlob puts other bytes under the name of a blob, as a writer into the
// repository's directory could. git's own cat-file does not notice.
func forgeBlob(t *testing.T, repo, path, content string) {
	t.Helper()
	id := git(t, repo, "rev-parse", "HEAD:"+path)
	var b bytes.Buffer
	z := zlib.NewWriter(&b)
	fmt.Fprintf(z, "blob %d\x00%s", len(content), content)
	z.Close()
	name := filepath.Join(repo, ".git/objects", id[:2], id[2:])
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b.Bytes(), 0o444); err != nil {
		t.Fatal(err)
	}
	if got := git(t, repo, "cat-file", "blob", id); got != strings.TrimSpace(content) {
		t.Fatalf("cat-file = %q: the forgery does not work", got)
	}
}

// TestCheckOutIgnoresRepositoryConfig: what a repository says about hooks,
// helpers and filters is not run.
func TestCheckOutIgnoresRepositoryConfig(t *testing.T) {
	repo, commit := repository(t, "sha1", sourceFiles)
	ran := filepath.Join(t.TempDir(), "ran")
	for _, key := range []string{"uploadpack.packObjectsHook", "core.fsmonitor", "core.sshCommand", "core.gitProxy", "filter.x.smudge", "core.alternateRefsCommand"} {
		git(t, repo, "config", key, "touch "+ran+"; false")
	}
	hooks := filepath.Join(repo, ".git/hooks")
	if err := os.MkdirAll(hooks, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, hook := range []string{"post-checkout", "reference-transaction", "pre-auto-gc"} {
		if err := os.WriteFile(filepath.Join(hooks, hook), []byte("#!/bin/sh\ntouch "+ran+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := CheckOut(context.Background(), Source{Location: repo, Trusted: true, Commit: commit}, t.TempDir(), filepath.Join(t.TempDir(), "s"), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("something of the repository's configuration was executed")
	}
}

// TestCheckOutOfAnotherOwner: git refuses a local repository of another user
// unless the operator named it.
func TestCheckOutOfAnotherOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("changing an owner needs root: run the tests with sudo")
	}
	repo, commit := repository(t, "sha1", sourceFiles)
	err := filepath.WalkDir(repo, func(name string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, 12345, 12345)
	})
	if err != nil {
		t.Fatal(err)
	}
	s := Source{Location: repo, Commit: commit}
	if _, err := CheckOut(context.Background(), s, t.TempDir(), filepath.Join(t.TempDir(), "s"), nil); err == nil || !strings.Contains(err.Error(), "another owner") {
		t.Errorf("a repository of another owner from the ledger: %v, want a refusal", err)
	}
	s.Trusted = true
	if _, err := CheckOut(context.Background(), s, t.TempDir(), filepath.Join(t.TempDir(), "s"), nil); err != nil {
		t.Errorf("a repository of another owner that the operator named: %v", err)
	}
}

func TestSourcePaths(t *testing.T) {
	for _, p := range []string{"", "/a", "../a", "a/../b", "a//b", "a/", ".", ".git/config", "a/.GIT/hooks/x", strings.Repeat("a/", 2100) + "a"} {
		if err := checkSourcePath(p); err == nil {
			t.Errorf("checkSourcePath(%.40q) = nil, want a refusal", p)
		}
	}
	for _, p := range []string{"a", "a/b", ".gitignore", "..a", "a b/ü"} {
		if err := checkSourcePath(p); err != nil {
			t.Errorf("checkSourcePath(%q) = %v", p, err)
		}
	}
}

// repeated is a text over and over again.
type repeated struct {
	text string
	at   int
}

func (r *repeated) Read(p []byte) (int, error) {
	n := copy(p, r.text[r.at:])
	r.at = (r.at + n) % len(r.text)
	return n, nil
}

// A tree that has the same subtree ten times at each of fifteen levels lists
// more than any memory holds; its repository has a few kilobytes.
func TestReadListBounded(t *testing.T) {
	line := "100644 blob aaaa 3\t" + strings.Repeat("d/", 2000) + "f\x00"
	if _, _, err := readList(&repeated{text: line}); err == nil || !strings.Contains(err.Error(), "paths of more than") {
		t.Errorf("readList without end = %v", err)
	}
}

func TestReadListRefuses(t *testing.T) {
	for _, c := range []struct{ list, want string }{
		{"100644 blob aaaa 3\ta\x00100664 blob aaaa 3\tb\x00", "mode 100664"},
		{"100644 blob aaaa\ta\x00", "unexpected line"},
		{"100644 blob aaaa -\ta\x00", "unexpected line"},
		{"100644 blob aaaa 3\t../a\x00", "no path"},
		{"100644 blob aaaa 5368709120\ta\x00", "belongs into a dataset"},
		{"100644 blob aaaa 3\ta", "unexpected EOF"},
	} {
		if _, _, err := readList(strings.NewReader(c.list)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("readList(%q) = %v, want %q", c.list, err, c.want)
		}
	}
}
