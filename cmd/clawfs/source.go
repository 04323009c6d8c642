package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
// root of the committed tree as the worker will check it out.
func (a *app) sourceDependency(ctx context.Context, where, uri string) (verifier.Dependency, error) {
	repo, rev := splitAt(where)
	if rev == "" {
		rev = "HEAD"
	}
	abs, err := filepath.Abs(repo)
	if err != nil {
		return verifier.Dependency{}, err
	}
	commit, err := git(ctx, repo, "rev-parse", "--verify", "--quiet", "--end-of-options", rev+"^{commit}")
	if err != nil {
		return verifier.Dependency{}, fmt.Errorf("--source %s: no commit %q in a git repository at %s: %w", where, rev, repo, err)
	}
	if changed, err := git(ctx, repo, "status", "--porcelain"); err == nil && changed != "" && rev == "HEAD" {
		a.notef("note: %s has uncommitted changes; the ledger is about commit %.12s without them\n", repo, commit)
	}
	scratch, err := os.MkdirTemp("", "clawfs-ledger-")
	if err != nil {
		return verifier.Dependency{}, err
	}
	defer removeTree(scratch)
	source := rebuild.Source{Location: abs, Trusted: true, Commit: verifier.GitCommit(commit)}
	bar := a.progress("fetching " + repo)
	root, err := rebuild.CheckOut(ctx, source, scratch, filepath.Join(scratch, "tree"), bar.add)
	bar.done()
	if err != nil {
		return verifier.Dependency{}, fmt.Errorf("--source %s: %w", where, err)
	}
	if uri == "" {
		uri = "git+file://" + abs
	}
	return verifier.Dependency{
		Name: verifier.SourceName, URI: uri,
		Digest: verifier.DigestSet{GitCommit: source.Commit, ClawfsTree1: root.Digest},
	}, nil
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
