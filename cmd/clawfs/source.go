package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/verifier"
)

// splitAt cuts "PATH@NAME" at its last @, unless PATH@NAME itself exists.
func splitAt(s string) (path, name string) {
	if _, err := os.Lstat(s); err == nil {
		return s, ""
	}
	if i := strings.LastIndexByte(s, '@'); i > 0 {
		return s[:i], s[i+1:]
	}
	return s, ""
}

// sourceDependency locks a commit of a local git repository: its name, and the
// root of the committed tree as the worker will check it out. The ledger has to
// name the parts too.
func (a *app) sourceDependency(ctx context.Context, flag, where, uri string) (d verifier.Dependency, parts rebuild.Parts, err error) {
	repo, rev := splitAt(where)
	if rev == "" {
		rev = "HEAD"
	}
	abs, err := filepath.Abs(repo)
	if err != nil {
		return d, parts, err
	}
	commit, err := git(ctx, repo, "rev-parse", "--verify", "--quiet", "--end-of-options", rev+"^{commit}")
	if err != nil {
		return d, parts, fmt.Errorf("%s %s: no commit %q in a git repository at %s: %w", flag, where, rev, repo, err)
	}
	if changed, err := git(ctx, repo, "status", "--porcelain"); err == nil && changed != "" && rev == "HEAD" {
		a.notef("note: %s has uncommitted changes; the ledger is about commit %.12s without them\n", repo, commit)
	}
	scratch, err := os.MkdirTemp("", "clawfs-ledger-")
	if err != nil {
		return d, parts, err
	}
	defer removeTree(scratch)
	source := rebuild.Source{Location: abs, Trusted: true, Commit: verifier.GitCommit(commit)}
	bar := a.progress("fetching " + repo)
	root, parts, err := rebuild.CheckOutOwn(ctx, source, scratch, filepath.Join(scratch, "tree"), bar.add)
	bar.done()
	if err != nil {
		return d, parts, fmt.Errorf("%s %s: %w", flag, where, err)
	}
	if uri == "" {
		uri = "git+file://" + abs
	}
	return verifier.Dependency{
		Name: verifier.SourceName, URI: uri,
		Digest: verifier.DigestSet{GitCommit: source.Commit, ClawfsTree1: root.Digest},
	}, parts, nil
}

// checkParts compares what commits refer to with what the ledger names, so that
// nobody signs what no worker could check out. trees are the commits that flags
// named, by what stands before their paths: "" for the source's own, "PATH/" for
// a submodule's.
func checkParts(st verifier.Statement, trees map[string]rebuild.Parts) error {
	subs, files := st.Submodules(), st.LargeFiles()
	for _, at := range slices.Sorted(maps.Keys(trees)) {
		parts := trees[at]
		for _, rest := range slices.Sorted(maps.Keys(parts.Submodules)) {
			path, commit := at+rest, parts.Submodules[rest]
			if d, ok := subs[path]; !ok {
				return exitf(codeUsage, "the source has a submodule at %s: give it with --submodule %s", printable(path), shellWord(path+"=DIR@"+string(commit)))
			} else if d.Digest.GitCommit != commit {
				return fmt.Errorf("the submodule at %s is of commit %.12s in the ledger, and the source names %.12s; next: --submodule %s", printable(path), d.Digest.GitCommit, commit, shellWord(path+"=DIR@"+string(commit)))
			}
		}
		for _, rest := range slices.Sorted(maps.Keys(parts.LFS)) {
			path, want := at+rest, parts.LFS[rest]
			if want.Digest.IsZero() {
				return fmt.Errorf("%s is a pointer of git LFS to something that is not named by the SHA-256 of its bytes; next: put the file into the commit or into a dataset", printable(path))
			}
			if d, ok := files[path]; !ok {
				return exitf(codeUsage, "the source has a pointer of git LFS at %s, for a file of %d bytes: give it with --lfs %s", printable(path), want.Size, shellWord(path+"=FILE"))
			} else if d.Digest.SHA256 != want.Digest || d.Annotations.Bytes != want.Size {
				return fmt.Errorf("the file for git LFS's pointer %s is sha256:%v of %d bytes in the ledger, and the source names sha256:%v of %d bytes; next: --lfs %s", printable(path), d.Digest.SHA256, d.Annotations.Bytes, want.Digest, want.Size, shellWord(path+"=FILE"))
			}
		}
	}
	// of finds the commit that a path is part of, if a flag named it.
	of := func(path string) (parts rebuild.Parts, rest string, known bool) {
		at := ""
		for sub := range subs {
			if strings.HasPrefix(path, sub+"/") && len(sub) >= len(at) {
				at = sub + "/"
			}
		}
		parts, known = trees[at]
		return parts, strings.TrimPrefix(path, at), known
	}
	for _, path := range slices.Sorted(maps.Keys(subs)) {
		if parts, rest, known := of(path); known && parts.Submodules[rest] == "" {
			return fmt.Errorf("the ledger names a submodule at %s, and the source has none there", printable(path))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(files)) {
		parts, rest, known := of(path)
		if _, ok := parts.LFS[rest]; known && !ok {
			return fmt.Errorf("the ledger names a file of git LFS at %s, and the source has no pointer there", printable(path))
		}
	}
	return nil
}

// git runs git's own program on repo and returns the line that it printed.
func git(ctx context.Context, repo string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", append([]string{"-c", "core.fsmonitor=false", "-C", repo}, args...)...)
	cmd.Env = append(os.Environ(), "GIT_NO_REPLACE_OBJECTS=1", "GIT_OPTIONAL_LOCKS=0", "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("git is not installed; next: apt-get install git")
	}
	text := strings.TrimSpace(stderr.String())
	if err != nil && strings.Contains(text, "dubious ownership") {
		return "", errors.New("it belongs to another user, and git does not read such a repository; next: the same command as its owner, without sudo")
	}
	if err != nil && text != "" {
		return "", fmt.Errorf("git %s: %s", args[0], printable(text))
	}
	if err != nil {
		return "", fmt.Errorf("git %s: %w", args[0], err)
	}
	return strings.TrimSpace(string(out)), nil
}

// removeTree removes a scratch directory; what was checked out is read-only.
func removeTree(dir string) {
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return nil
	})
	os.RemoveAll(dir)
}
