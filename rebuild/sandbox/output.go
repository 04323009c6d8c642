package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/openclaw/clawfs/hashpipe"
	"golang.org/x/sys/unix"
)

// collect copies the wanted outputs out of the last stage's /out and measures
// the very bytes it copies. Every process of the run is dead by now. All
// outputs that are absent or not plain files are reported together.
func (x *run) collect(ctx context.Context) ([]Output, error) {
	last := len(x.outs) - 1
	stage, root := x.spec.Stages[last], x.outs[last].root
	files := make([]*os.File, len(x.spec.Outputs))
	defer func() {
		for _, f := range files {
			if f != nil {
				f.Close()
			}
		}
	}()
	var missing []string
	var total int64
	for i, w := range x.spec.Outputs {
		f, size, err := openOutput(root, w.Path)
		var not *notOutput
		if errors.As(err, &not) {
			missing = append(missing, fmt.Sprintf("%s (/out/%s) %s", w.Name, w.Path, not.why))
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("output %s: %w", w.Name, err)
		}
		files[i] = f
		total += size
	}
	if len(missing) > 0 {
		return nil, x.fail(OutputMissing, stage, fmt.Sprintf("%d of %d outputs: %s", len(missing), len(files), strings.Join(missing, "; ")))
	}
	// A sparse file may be longer than the disk that holds it.
	if total > x.spec.Limits.OutputBytes {
		return nil, x.fail(LimitExceeded, stage, fmt.Sprintf("outputs are %d bytes long, the limit is %d", total, x.spec.Limits.OutputBytes))
	}
	dir := filepath.Join(x.spec.Dir, "outputs-"+x.state.run)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	outputs := make([]Output, len(files))
	for i, w := range x.spec.Outputs {
		o := Output{name: w.Name, recipe: x.spec.Recipe, run: x.state.run, path: filepath.Join(dir, strconv.Itoa(i))}
		var err error
		if o.measurement, err = keep(ctx, files[i], o.path); err != nil {
			return nil, errors.Join(fmt.Errorf("keeping output %s: %w", w.Name, err), os.RemoveAll(dir))
		}
		outputs[i] = o
	}
	return outputs, nil
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

// keep copies src to a new file and measures what it copies.
func keep(ctx context.Context, src io.Reader, path string) (hashpipe.Measurement, error) {
	dst, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return hashpipe.Measurement{}, err
	}
	m, err := hashpipe.Measure(ctx, io.TeeReader(src, dst), nil)
	return m, errors.Join(err, dst.Close())
}
