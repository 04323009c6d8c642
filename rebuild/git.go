package rebuild

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/openclaw/clawfs/rebuild/fetch"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/tree"
)

const (
	// maxSource bounds in bytes what one fetch may bring and what the files of
	// one commit may add up to. Large data belongs into a dataset.
	maxSource = 4 << 30
	// maxSourceFiles bounds the entries of one commit.
	maxSourceFiles = 1_000_000
	// maxSourceNames bounds the paths of one commit together in bytes: trees
	// that share their subtrees list gigabytes of them out of a few kilobytes.
	maxSourceNames = 64 << 20
	// maxGitMemory bounds the data segment of each of git's processes in bytes:
	// a server's answers are gathered in memory before the pack begins.
	maxGitMemory = 3 << 30
	// maxFetch bounds the time of one fetch.
	maxFetch = 30 * time.Minute
)

var commitForm = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// hostForm is a name or an address that every program reads in the same way.
var hostForm = regexp.MustCompile(`^[A-Za-z0-9._:-]+$`)

// Source is where git finds a commit, and what else belongs into its tree.
type Source struct {
	// Location is the absolute path of a repository or of a bundle file, or a
	// URL with the scheme file, https or ssh, with or without "git+" before it.
	Location string
	// Trusted says that the operator named Location. Then git's refusal to
	// read a local repository of another owner is lifted for this one path;
	// git-upload-pack(1) promises to run nothing that such a repository says.
	Trusted bool
	// Commit is the full name of the commit in lower-case hex.
	Commit verifier.GitCommit
	// Access is what the operator gave for reaching hosts.
	Access Access
	// Submodules and LFS are, by path in the tree, the content that the ledger
	// names for the commit's submodules and LFS pointers. Each must be there in
	// the tree, and no other may.
	Submodules map[string]CheckedOut
	LFS        map[string]File
}

// Access is what an operator gives git for reaching hosts. Paths are absolute.
// Nothing else is used: no agent, no configuration or key of the user, no
// password, no prompt.
type Access struct {
	// CAFile holds the authorities of https hosts as PEM; empty means those of
	// the system.
	CAFile string
	// KeyFile is a private key of OpenSSH without a passphrase, KnownHosts the
	// host keys, as known_hosts files have them, of the only hosts that are
	// spoken to. ssh needs both.
	KeyFile, KnownHosts string
	// Resolve, if not nil, returns the addresses of a host that git may connect
	// to. git then asks no resolver and follows no redirect.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
}

// CheckOut fetches one commit through git's own program and writes its files,
// as git stores them and without filters, into dest, which must not exist. It
// returns the clawfs-tree/v1 root of the commit's own tree: of pointers and
// without the files of submodules. The caller compares it with a claim. Only
// then are Submodules and LFS put into their places; each is measured there
// against its own digest. scratch is a directory for the repository; CheckOut
// removes what it puts there. Files are read-only; their times are all the same.
//
// The fetch goes into a fresh repository with every object checked and hashed
// by git (transfer.fsckObjects), with no configuration but its own, no hooks,
// no prompts, and one allowed transport. git itself fetches no submodules.
func CheckOut(ctx context.Context, s Source, scratch, dest string, seen func(bytes int64)) (tree.Root, error) {
	root, wanted, err := checkOutOwn(ctx, s, scratch, dest, seen, func(m missing) error { return m.checkSubmodules(s) })
	if err != nil {
		return tree.Root{}, err
	}
	if err := wanted.checkLFS(s); err != nil {
		return tree.Root{}, fmt.Errorf("writing the files of commit %s: %w", s.Commit, err)
	}
	if err := place(ctx, s, wanted, dest); err != nil {
		return tree.Root{}, fmt.Errorf("completing the files of commit %s: %w", s.Commit, err)
	}
	return root, fetch.Freeze(dest)
}

// Parts is what the tree of a commit refers to and does not hold, by path.
type Parts struct {
	Submodules map[string]verifier.GitCommit
	// LFS has what pointers name: no Path, and a zero Digest where that is not
	// the SHA-256 of the object itself.
	LFS map[string]File
}

// CheckOutOwn is CheckOut of the commit's own tree alone, for whoever writes a
// ledger: it returns what the ledger has to name besides. Submodules and LFS of
// s are not used.
func CheckOutOwn(ctx context.Context, s Source, scratch, dest string, seen func(bytes int64)) (tree.Root, Parts, error) {
	root, wanted, err := checkOutOwn(ctx, s, scratch, dest, seen, func(missing) error { return nil })
	if err != nil {
		return tree.Root{}, Parts{}, err
	}
	p := Parts{Submodules: make(map[string]verifier.GitCommit), LFS: make(map[string]File)}
	for path, commit := range wanted.submodules {
		p.Submodules[path] = verifier.GitCommit(commit)
	}
	for path, f := range wanted.pointers {
		p.LFS[path] = File{Digest: f.oid, Size: f.size}
	}
	return root, p, fetch.Freeze(dest)
}

// checkOutOwn fetches a commit and writes and measures its own tree.
func checkOutOwn(ctx context.Context, s Source, scratch, dest string, seen func(bytes int64), check func(missing) error) (tree.Root, missing, error) {
	if !commitForm.MatchString(string(s.Commit)) {
		return tree.Root{}, missing{}, fmt.Errorf("source commit %.80q: expected 40 or 64 lower-case hex digits", string(s.Commit))
	}
	remote, err := parseRemote(s.Location, s.Trusted)
	if err != nil {
		return tree.Root{}, missing{}, err
	}
	dir, err := os.MkdirTemp(scratch, "git-")
	if err != nil {
		return tree.Root{}, missing{}, fmt.Errorf("fetching source: %w", err)
	}
	defer os.RemoveAll(dir)
	g := &gitProgram{dir: dir, repository: filepath.Join(dir, "repo.git"), protocol: remote.protocol, memory: maxGitMemory}
	if err := g.prepare(ctx, s, remote); err != nil {
		return tree.Root{}, missing{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, maxFetch, fmt.Errorf("source not fetched within %v", maxFetch))
	defer cancel()
	if err := g.fetch(ctx, remote, string(s.Commit), seen); err != nil {
		if strings.Contains(err.Error(), "dubious ownership") {
			err = errors.New("git does not read a repository of another owner because a ledger names it: name it yourself with --source PATH, or make a bundle of it")
		}
		return tree.Root{}, missing{}, fmt.Errorf("fetching commit %s from %s: %w", s.Commit, remote.name, err)
	}
	wanted, err := g.write(ctx, s.Commit, dest, check)
	if err != nil {
		return tree.Root{}, missing{}, fmt.Errorf("writing the files of commit %s: %w", s.Commit, err)
	}
	root, err := tree.Walk(ctx, dest, tree.Source, nil)
	if err != nil {
		return tree.Root{}, missing{}, fmt.Errorf("source of commit %s: %w", s.Commit, err)
	}
	return root, wanted, nil
}

// remote is a location in the form that git gets.
type remote struct {
	url      string
	name     string // for people: without a password
	protocol string // the one transport that git may use
	host     string // without port and brackets; empty for what is local
	port     string // empty: the protocol's own
	local    string // path of a local repository or bundle, else empty
}

// parseRemote accepts what Source.Location allows. Whatever git would take for
// an option, a remote helper ("ext::sh -c …") or another transport is refused
// here, before git sees it.
func parseRemote(location string, trusted bool) (remote, error) {
	if location == "" {
		return remote{}, errors.New("source: no location is known; name one with --source PATH or URL")
	}
	raw := strings.TrimPrefix(location, "git+")
	if strings.ContainsFunc(raw, isControl) {
		return remote{}, fmt.Errorf("source location %.200q: expected an absolute path or a URL without control characters", location)
	}
	if filepath.IsAbs(raw) {
		return localRemote(filepath.Clean(raw))
	}
	u, err := url.Parse(raw)
	if err != nil || strings.Contains(raw, "::") && !strings.Contains(raw, "[") {
		return remote{}, errors.New("source location: expected an absolute path or a file, https or ssh URL")
	}
	switch {
	case u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path):
		return localRemote(filepath.Clean(u.Path))
	case (u.Scheme == "https" || u.Scheme == "ssh") && u.Hostname() != "" && !strings.HasPrefix(u.Host, "-") && u.Fragment == "":
		// What resolves the name here and what connects must read the same one:
		// libcurl would make another of it in a name that is not ASCII.
		if !trusted && !hostForm.MatchString(u.Hostname()) {
			return remote{}, fmt.Errorf("source location %.200q: expected a host name of letters, digits and -._", u.Redacted())
		}
		if _, secret := u.User.Password(); secret && !trusted || strings.HasPrefix(u.User.Username(), "-") {
			return remote{}, fmt.Errorf("source location %.200q: expected no password in a ledger and no user that begins with a dash", u.Redacted())
		}
		return remote{url: u.String(), name: u.Redacted(), protocol: u.Scheme, host: u.Hostname(), port: u.Port()}, nil
	}
	return remote{}, fmt.Errorf("source location %.200q: expected an absolute path or a file, https or ssh URL", u.Redacted())
}

func localRemote(path string) (remote, error) {
	info, err := os.Stat(path)
	if err != nil {
		return remote{}, fmt.Errorf("source location: %w; name another with --source PATH or URL", err)
	}
	if info.Mode().IsRegular() {
		return remote{url: path, name: path, protocol: "file", local: path}, nil // a bundle; git knows it by its content
	}
	if !info.IsDir() {
		return remote{}, fmt.Errorf("source location %s: neither a repository nor a bundle", path)
	}
	// file:// makes git send and hash every object; a plain path would copy
	// forged objects unread.
	return remote{url: (&url.URL{Scheme: "file", Path: path}).String(), name: path, protocol: "file", local: path}, nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// gitProgram runs git in an empty home, for one repository.
type gitProgram struct {
	dir        string // holds home, configuration and repository
	repository string
	protocol   string
	memory     int64 // bytes, for each process
}

func (g *gitProgram) prepare(ctx context.Context, s Source, r remote) error {
	config := "[core]\n\thooksPath = /dev/null\n\tsymlinks = false\n[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n[protocol]\n\tversion = 2\n" +
		"[transfer]\n\tfsckObjects = true\n[fetch]\n\tfsckObjects = true\n\trecurseSubmodules = false\n[submodule]\n\trecurse = false\n"
	if s.Trusted && r.local != "" {
		config += "[safe]\n\tdirectory = " + quoteConfig(r.local) + "\n\tdirectory = " + quoteConfig(r.local+"/.git") + "\n"
	}
	access, err := g.reach(ctx, s.Access, r)
	if err == nil && !s.Trusted && r.protocol == "https" && s.Access.Resolve != nil {
		err = g.pins(ctx)
	}
	if err != nil {
		return fmt.Errorf("source location %s: %w", r.name, err)
	}
	if err := os.WriteFile(filepath.Join(g.dir, "gitconfig"), []byte(config+access), 0o600); err != nil {
		return fmt.Errorf("fetching source: %w", err)
	}
	if err := os.Mkdir(filepath.Join(g.dir, "home"), 0o700); err != nil {
		return fmt.Errorf("fetching source: %w", err)
	}
	format := "sha1"
	if len(s.Commit) == 64 {
		format = "sha256"
	}
	cmd := g.command(ctx, "init", "--quiet", "--bare", "--template=", "--object-format="+format, g.repository)
	if err := runGit(cmd); err != nil {
		return fmt.Errorf("creating a git repository: %w", err)
	}
	return nil
}

// command builds a git command whose process group dies with ctx and with the
// thread that starts it. A shell sets the limit that git's helpers inherit.
func (g *gitProgram) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "git", args...)
	if cmd.Err == nil {
		const limited = `ulimit -d "$1" && shift && exec "$@"`
		cmd = exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", limited, "sh", strconv.FormatInt(g.memory>>10, 10), cmd.Path}, args...)...)
	}
	cmd.Dir = g.dir
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + filepath.Join(g.dir, "home"),
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=" + filepath.Join(g.dir, "gitconfig"),
		"GIT_ATTR_NOSYSTEM=1",
		"GIT_NO_REPLACE_OBJECTS=1",
		"GIT_NO_LAZY_FETCH=1",
		"GIT_ALLOW_PROTOCOL=" + g.protocol,
		"GIT_TERMINAL_PROMPT=0",
		"GIT_ASKPASS=/bin/false",
		"GIT_SSH_COMMAND=ssh -F " + sshConfig, // relative to cmd.Dir: a shell reads this
		"GIT_SSH_VARIANT=ssh",
		"LC_ALL=C",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// fetch asks for the very commit, which most servers allow, and else for all
// branches and tags, which a bundle needs.
func (g *gitProgram) fetch(ctx context.Context, r remote, commit string, seen func(int64)) error {
	exact := []string{"--depth=1", "--end-of-options", r.url, commit + ":refs/clawfs/source"}
	all := []string{"--end-of-options", r.url, "+refs/heads/*:refs/clawfs/heads/*", "+refs/tags/*:refs/clawfs/tags/*"}
	err := g.fetchRefs(ctx, exact, seen)
	if err != nil && ctx.Err() == nil && !errors.Is(err, errSourceTooLarge) {
		err = g.fetchRefs(ctx, all, seen)
	}
	if err != nil {
		return err
	}
	out, err := outputGit(g.command(ctx, "--git-dir="+g.repository, "rev-parse", "--verify", "--quiet", "--end-of-options", commit+"^{commit}"))
	if err != nil || strings.TrimSpace(out) != commit {
		return errors.New("the repository does not have this commit on any branch or tag; push it there, or name another with --source PATH or URL")
	}
	return nil
}

var errSourceTooLarge = fmt.Errorf("the repository sends more than %d bytes", int64(maxSource))

// fetchRefs runs git fetch and stops it when the repository outgrows maxSource.
func (g *gitProgram) fetchRefs(ctx context.Context, args []string, seen func(int64)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	argv := append([]string{"--git-dir=" + g.repository, "fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-write-fetch-head", "--no-auto-maintenance"}, args...)
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		var before int64
		for {
			select {
			case <-done:
				return
			case <-time.After(200 * time.Millisecond):
			}
			size := sizeBelow(g.repository)
			if size > maxSource {
				cancel(errSourceTooLarge)
				return
			}
			if seen != nil && size > before {
				seen(size - before)
				before = size
			}
		}
	}()
	err := runGit(g.command(ctx, argv...))
	close(done)
	<-watched
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// sizeBelow sums what it can see; files come and go while git works.
func sizeBelow(dir string) int64 {
	var sum int64
	filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				sum += info.Size()
			}
		}
		return nil
	})
	return sum
}
