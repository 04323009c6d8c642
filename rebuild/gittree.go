package rebuild

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"runtime"
	"strconv"
	"strings"

	"github.com/openclaw/clawfs/verifier"
	"golang.org/x/sys/unix"
)

// blob is one entry of a commit's tree.
type blob struct{ mode, object, path string }

// write puts the blobs of a commit into dest, which it creates, and returns what
// is missing in it. Links are made last, so that no file is ever written
// through one. Submodules are shown to check before gigabytes are written in vain.
func (g *gitProgram) write(ctx context.Context, commit verifier.GitCommit, dest string, check func(missing) error) (missing, error) {
	blobs, gitlinks, err := g.list(ctx, string(commit))
	if err != nil {
		return missing{}, err
	}
	wanted := missing{submodules: gitlinks, pointers: map[string]pointer{}}
	if err := check(wanted); err != nil {
		return missing{}, err
	}
	if err := os.Mkdir(dest, 0o700); err != nil {
		return missing{}, err
	}
	root, err := os.OpenRoot(dest)
	if err != nil {
		return missing{}, err
	}
	defer root.Close()
	return wanted, g.writeAll(ctx, root, blobs, wanted.pointers)
}

func (g *gitProgram) writeAll(ctx context.Context, root *os.Root, blobs []blob, pointers map[string]pointer) error {
	cmd := g.command(ctx, "--git-dir="+g.repository, "cat-file", "--batch")
	var names strings.Builder
	for _, b := range blobs {
		names.WriteString(b.object + "\n")
	}
	cmd.Stdin = strings.NewReader(names.String())
	stderr := &tail{}
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	defer lockThread()()
	if err := cmd.Start(); err != nil {
		return missingGit(err)
	}
	copyErr := writeBlobs(root, bufio.NewReaderSize(out, 256<<10), blobs, pointers)
	if copyErr != nil {
		cmd.Cancel()
	}
	err = cmd.Wait()
	if copyErr != nil {
		return copyErr
	}
	if err != nil {
		return fmt.Errorf("git cat-file: %w: %s", err, stderr)
	}
	return nil
}

// list reads the commit's tree, its submodules apart, and refuses what cannot be
// written as a source tree: odd modes, names that lead elsewhere.
func (g *gitProgram) list(ctx context.Context, commit string) (blobs []blob, gitlinks map[string]string, err error) {
	cmd := g.command(ctx, "--git-dir="+g.repository, "ls-tree", "-r", "-z", "-l", "--full-tree", "--end-of-options", commit)
	stderr := &tail{}
	cmd.Stderr = stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	defer lockThread()()
	if err := cmd.Start(); err != nil {
		return nil, nil, missingGit(err)
	}
	blobs, gitlinks, readErr := readList(out)
	if readErr != nil {
		cmd.Cancel()
	}
	err = cmd.Wait()
	if readErr != nil {
		return nil, nil, readErr
	}
	if err != nil {
		return nil, nil, fmt.Errorf("git ls-tree: %w: %s", err, stderr)
	}
	return blobs, gitlinks, nil
}

func readList(r io.Reader) (blobs []blob, gitlinks map[string]string, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<10)
	lines.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.IndexByte(data, 0); i >= 0 {
			return i + 1, data[:i], nil
		}
		if atEOF && len(data) > 0 {
			return 0, nil, io.ErrUnexpectedEOF
		}
		return 0, nil, nil
	})
	gitlinks = map[string]string{}
	var files, links []blob
	var sum, names int64
	for lines.Scan() {
		meta, name, _ := strings.Cut(lines.Text(), "\t")
		f := strings.Fields(meta)
		if len(f) != 4 {
			return nil, nil, fmt.Errorf("git ls-tree: unexpected line %.200q", lines.Text())
		}
		b := blob{mode: f[0], object: f[2], path: name}
		if err := checkSourcePath(name); err != nil {
			return nil, nil, err
		}
		switch b.mode {
		case "100644", "100755":
			files = append(files, b)
		case "120000":
			links = append(links, b)
		case "160000":
			gitlinks[name] = b.object
		default:
			return nil, nil, fmt.Errorf("%.200q has mode %s, want 100644, 100755 or 120000", name, b.mode)
		}
		var size int64
		if b.mode != "160000" {
			if size, err = strconv.ParseInt(f[3], 10, 64); err != nil || size < 0 {
				return nil, nil, fmt.Errorf("git ls-tree: unexpected line %.200q", lines.Text())
			}
		}
		if names += int64(len(name)); names > maxSourceNames {
			return nil, nil, fmt.Errorf("paths of more than %d bytes together", int64(maxSourceNames))
		}
		if sum += size; sum > maxSource || len(files)+len(links)+len(gitlinks) > maxSourceFiles {
			return nil, nil, fmt.Errorf("more than %d files or %d bytes: large data belongs into a dataset", maxSourceFiles, int64(maxSource))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, nil, fmt.Errorf("git ls-tree: %w", err)
	}
	return append(files, links...), gitlinks, nil
}

// checkSourcePath refuses a path that is not plainly below the root. The rest
// of clawfs-tree/v1's rules are package tree's.
func checkSourcePath(p string) error {
	if p == "" || p == "." || p[0] == '/' || path.Clean(p) != p || len(p) > 4096 {
		return fmt.Errorf("%.200q is no path below the source root", p)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." || strings.EqualFold(part, ".git") {
			return fmt.Errorf("%.200q is no path of a source tree", p)
		}
	}
	return nil
}

// writeBlobs reads what cat-file --batch answers: "<object> blob <size>", the
// bytes, a newline, for each object in the order asked. LFS pointers among them
// are written as they are and added to pointers.
func writeBlobs(root *os.Root, r *bufio.Reader, blobs []blob, pointers map[string]pointer) error {
	for _, b := range blobs {
		head, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("git cat-file: %s: %w", b.path, err)
		}
		f := strings.Fields(head)
		if len(f) != 3 || f[0] != b.object || f[1] != "blob" {
			return fmt.Errorf("git cat-file: object of %s: got %.100q", b.path, head)
		}
		size, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil || size < 0 {
			return fmt.Errorf("git cat-file: object of %s: got %.100q", b.path, head)
		}
		content := io.LimitReader(r, size)
		if b.mode != "120000" && size <= maxPointer {
			text, err := io.ReadAll(content)
			if err != nil {
				return fmt.Errorf("git cat-file: %s: %w", b.path, err)
			}
			if p, ok := parsePointer(text); ok {
				p.executable = b.mode == "100755"
				pointers[b.path] = p
			}
			content = bytes.NewReader(text)
		}
		if err := writeBlob(root, content, b, size); err != nil {
			return err
		}
		if c, err := r.ReadByte(); err != nil || c != '\n' {
			return fmt.Errorf("git cat-file: object of %s has no end", b.path)
		}
	}
	return nil
}

func writeBlob(root *os.Root, r io.Reader, b blob, size int64) error {
	if dir := path.Dir(b.path); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if b.mode == "120000" {
		target, err := io.ReadAll(io.LimitReader(r, 4097))
		if err != nil || len(target) > 4096 {
			return fmt.Errorf("symlink %s: target of more than 4096 bytes", b.path)
		}
		return root.Symlink(string(target), b.path)
	}
	mode := os.FileMode(0o644)
	if b.mode == "100755" {
		mode = 0o755
	}
	f, err := root.OpenFile(b.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, r)
	if err == nil && n != size {
		err = fmt.Errorf("git cat-file: %s: %w", b.path, io.ErrUnexpectedEOF)
	}
	return errors.Join(err, f.Close())
}

// runGit runs a command to its end; its error carries what git said.
func runGit(cmd *exec.Cmd) error {
	_, err := outputGit(cmd)
	return err
}

func outputGit(cmd *exec.Cmd) (string, error) {
	var out bytes.Buffer
	said := &tail{}
	cmd.Stdout, cmd.Stderr = &out, said
	defer lockThread()()
	if err := cmd.Run(); err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && said.String() != "" {
			return "", &gitError{said.String(), said.full()}
		}
		return "", missingGit(err)
	}
	return out.String(), nil
}

// gitError is what git said on its way to a failure.
type gitError struct {
	text string
	full bool // this machine has no room
}

func (e *gitError) Error() string { return e.text }

// Temporary says whether a server was not to be had, which git tells in words
// alone.
func (e *gitError) Temporary() bool {
	for _, words := range gitTrouble {
		if strings.Contains(e.text, words) {
			return true
		}
	}
	return false
}

func (e *gitError) Unwrap() error {
	if e.full {
		return unix.ENOSPC
	}
	return nil
}

func missingGit(err error) error {
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("git is missing: apt-get install git")
	}
	return fmt.Errorf("running git: %w", err)
}

// lockThread keeps the goroutine on its thread until the returned function is
// called: the parent-death signal of a child follows the thread that made it.
func lockThread() (unlock func()) {
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}

// tail keeps the last 2 KiB of what a program said, as one printable line.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2048 {
		t.b = bytes.Clone(t.b[len(t.b)-2048:])
	}
	return len(p), nil
}

func (t *tail) String() string { return escape(strings.Join(t.lines(), "; ")) }

func (t *tail) lines() []string {
	return strings.FieldsFunc(string(t.b), func(r rune) bool { return r == '\n' || r == '\r' })
}

// full says whether git itself met a full disk. What a server says stands behind
// the word remote, and a name that a stranger chose within quotes: neither may
// pass for this machine's trouble.
func (t *tail) full() bool {
	for _, line := range t.lines() {
		own := strings.HasPrefix(line, "fatal: ") || strings.HasPrefix(line, "error: ") || strings.HasPrefix(line, "warning: ")
		if own && !strings.Contains(line, "remote error") && !strings.Contains(line, "requested URL") &&
			(strings.HasSuffix(line, ": No space left on device") || strings.HasSuffix(line, ": Disk quota exceeded") || strings.HasSuffix(line, "Out of diskspace")) {
			return true
		}
	}
	return false
}
