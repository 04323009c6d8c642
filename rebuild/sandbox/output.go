package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/openclaw/clawfs/hashpipe"
	"golang.org/x/sys/unix"
)

// keptFiles are the copies below Spec.Dir of what the stages left.
type keptFiles struct {
	dir   string // made for the first
	files int
	bytes int64
	last  map[string]file // the artifacts of the last stage, by path
}

// outputs keeps the recipe's outputs, which lie in the last stage's /out. One
// that is an artifact of that stage is kept already.
func (x *run) outputs(ctx context.Context) ([]Output, error) {
	files, err := x.keep(ctx, len(x.outs)-1, "outputs", x.spec.Outputs)
	if err != nil {
		return nil, err
	}
	outputs := make([]Output, len(files))
	for i, f := range files {
		outputs[i] = Output{file: f, name: x.spec.Outputs[i].Name}
	}
	return outputs, nil
}

// artifacts keeps those of stage i.
func (x *run) artifacts(ctx context.Context, i int) ([]Artifact, error) {
	stage := x.spec.Stages[i]
	wanted := make([]Wanted, len(stage.Artifacts))
	for j, p := range stage.Artifacts {
		wanted[j] = Wanted{Name: p, Path: p}
	}
	x.kept.last = nil
	files, err := x.keep(ctx, i, "artifacts", wanted)
	if err != nil {
		return nil, err
	}
	x.kept.last = make(map[string]file)
	artifacts := make([]Artifact, len(files))
	for j, f := range files {
		x.kept.last[stage.Artifacts[j]] = f
		artifacts[j] = Artifact{file: f, stage: stage.Name, path: stage.Artifacts[j]}
	}
	return artifacts, nil
}

// keep copies files out of the /out of stage i and measures the very bytes it
// copies. Every process of that stage is dead by now, and no later one can
// write there. All files that are absent or not plain are reported together.
func (x *run) keep(ctx context.Context, i int, what string, list []Wanted) ([]file, error) {
	if len(list) == 0 {
		return nil, nil
	}
	stage, root := x.spec.Stages[i], x.outs[i].root
	var missing []string
	var total int64
	for _, w := range list {
		if _, ok := x.kept.last[w.Path]; ok {
			continue
		}
		src, size, err := openOutput(root, w.Path)
		var not *notOutput
		if errors.As(err, &not) {
			missing = append(missing, fmt.Sprintf("%s (/out/%s) %s", w.Name, w.Path, not.why))
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("stage %s: %s: %w", stage.Name, w.Name, err)
		}
		src.Close()
		total += size
	}
	if len(missing) > 0 {
		return nil, x.fail(OutputMissing, stage, fmt.Sprintf("%d of %d %s: %s", len(missing), len(list), what, strings.Join(missing, "; ")))
	}
	// A sparse file may be longer than the disk that holds it.
	if limit := x.spec.Limits.of(stage).OutputBytes; total > limit {
		return nil, x.fail(LimitExceeded, stage, fmt.Sprintf("%s are %d bytes long, the limit is %d", what, total, limit))
	}
	if x.kept.bytes += total; x.kept.bytes > x.spec.Limits.OutputBytes {
		return nil, x.fail(LimitExceeded, stage, fmt.Sprintf("%s, with the artifacts before them, are %d bytes long, the limit is %d", what, x.kept.bytes, x.spec.Limits.OutputBytes))
	}
	if err := os.Mkdir(x.kept.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	files := make([]file, len(list))
	for j, w := range list {
		if f, ok := x.kept.last[w.Path]; ok {
			files[j] = f
			continue
		}
		f := file{recipe: x.spec.Recipe, run: x.state.run, kept: filepath.Join(x.kept.dir, strconv.Itoa(x.kept.files))}
		x.kept.files++
		src, _, err := openOutput(root, w.Path)
		if err == nil {
			f.measurement, err = copyMeasured(ctx, src, f.kept)
			src.Close()
		}
		if err != nil {
			return nil, fmt.Errorf("stage %s: keeping %s: %w", stage.Name, w.Name, err)
		}
		files[j] = f
	}
	return files, nil
}

// notOutput says why a path of the build is not an output.
type notOutput struct{ why string }

func (n *notOutput) Error() string { return n.why }

// openOutput opens a file that a hostile build left below root. No component
// may be a link, so nothing outside /out can be reached.
func openOutput(root *os.File, path string) (*os.File, int64, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := unix.Openat2(int(root.Fd()), path, how)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, 0, &notOutput{"does not exist"}
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV):
		return nil, 0, &notOutput{"is reached through a symbolic link"}
	case errors.Is(err, unix.ENAMETOOLONG):
		return nil, 0, &notOutput{"has too long a name"}
	case err != nil:
		return nil, 0, err
	}
	probe := os.NewFile(uintptr(fd), path)
	defer probe.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, 0, err
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return nil, 0, &notOutput{"is a symbolic link"}
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil, 0, &notOutput{"is a directory"}
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, 0, &notOutput{"is not a regular file"}
	case st.Nlink != 1:
		return nil, 0, &notOutput{fmt.Sprintf("has %d hard links, wanted 1", st.Nlink)}
	case st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0:
		return nil, 0, &notOutput{fmt.Sprintf("has set-id bits (mode %04o)", st.Mode&0o7777)}
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)) // the very inode that was looked at
	return f, st.Size, err
}

// copyMeasured copies src to a new file and measures what it copies.
func copyMeasured(ctx context.Context, src io.Reader, path string) (hashpipe.Measurement, error) {
	dst, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return hashpipe.Measurement{}, err
	}
	m, err := hashpipe.Measure(ctx, io.TeeReader(src, dst), nil)
	return m, errors.Join(err, dst.Close())
}
