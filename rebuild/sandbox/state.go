package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// StateDir holds one directory for each living run: its lock, runc's
	// state, the bundles and the mount points. Search permission for all,
	// because the container's user must reach its root through it.
	StateDir = "/run/clawfs-sandbox"
	// idPrefix starts the name of every container and cgroup.
	idPrefix = "clawfs-"
)

// state is the directory of one run below StateDir. Its lock tells a living
// run from one whose worker died: the kernel drops it with the process.
type state struct {
	run  string // 32 hex digits
	dir  string
	lock *os.File
}

func newState(ctx context.Context) (*state, error) {
	var id [16]byte
	rand.Read(id[:])
	s := &state{run: hex.EncodeToString(id[:])}
	s.dir = filepath.Join(StateDir, s.run)
	all, err := lockStateDir(ctx)
	if err != nil {
		return nil, err
	}
	defer all.Close()
	if err := mkdirMode(s.dir, 0o711); err != nil {
		return nil, err
	}
	if s.lock, err = tryLock(filepath.Join(s.dir, "lock")); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	return s, nil
}

// lockStateDir makes StateDir if need be and holds its lock until the returned
// file is closed: no run appears and none is swept meanwhile.
func lockStateDir(ctx context.Context) (*os.File, error) {
	if err := mkdirMode(StateDir, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return lockDir(ctx, StateDir)
}

// lockDir takes the lock of a directory of root's, and waits for it.
func lockDir(ctx context.Context, dir string) (*os.File, error) {
	st, err := os.Lstat(dir)
	if err != nil {
		return nil, err
	}
	if owner := st.Sys().(*syscall.Stat_t).Uid; !st.IsDir() || owner != 0 || st.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("%s is %v of user %d, wanted a directory that only root writes", dir, st.Mode(), owner)
	}
	for {
		f, err := tryLock(filepath.Join(dir, ".lock"))
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %s: %w", dir, context.Cause(ctx))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return f, nil
}

// mkdir makes directories of the run that the container's user may search.
func (s *state) mkdir(parts ...string) (string, error) {
	dir := s.dir
	for _, p := range parts {
		dir = filepath.Join(dir, p)
		if err := mkdirMode(dir, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	return dir, nil
}

// mkdirMode is os.Mkdir that no umask narrows.
func mkdirMode(dir string, mode fs.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

func (s *state) container(stage int) string {
	return fmt.Sprintf("%s%s-%d", idPrefix, s.run, stage)
}

// closeWait bounds how long close waits for another process's sweep.
const closeWait = 2 * time.Minute

// close removes everything the run made below StateDir. The directory itself
// goes under StateDir's lock: a sweep that met it half removed would take it
// for a dead worker's and put a lock file back into it.
func (s *state) close(r *Runtime) error {
	defer s.lock.Close()
	if err := r.end(s.run); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	all, err := lockStateDir(ctx)
	if err != nil {
		return err
	}
	defer all.Close()
	return os.RemoveAll(s.dir)
}

// Sweep kills and removes what runs of dead workers left, and returns the ids
// of those runs. It leaves alone what a living worker runs. Run calls it first.
func (r *Runtime) Sweep(ctx context.Context) ([]string, error) {
	if r == nil || r.path == "" {
		return nil, errNoRuntime
	}
	all, err := lockStateDir(ctx)
	if err != nil {
		return nil, fmt.Errorf("sandbox: sweeping: %w", err)
	}
	defer all.Close()
	swept, err := r.sweep()
	if err != nil {
		return swept, fmt.Errorf("sandbox: sweeping: %w", err)
	}
	return swept, nil
}

// sweep is Sweep for a caller that holds the lock of StateDir.
func (r *Runtime) sweep() ([]string, error) {
	dirs, err := os.ReadDir(StateDir)
	if err != nil {
		return nil, err
	}
	var swept []string
	var errs []error
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		lock, err := tryLock(filepath.Join(StateDir, d.Name(), "lock"))
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := r.remove(d.Name()); err != nil {
			errs = append(errs, err)
		} else {
			swept = append(swept, d.Name())
		}
		lock.Close()
	}
	return swept, errors.Join(errs...)
}

// remove ends a run of a dead worker and removes its directory. A runc that the
// worker had started outlives it for a moment, and makes files meanwhile, and
// perhaps a container: so this tries again, for three seconds.
func (r *Runtime) remove(run string) error {
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		err := r.end(run)
		if err == nil {
			err = os.RemoveAll(filepath.Join(StateDir, run))
		}
		if err == nil || wait > 2*time.Second {
			return err
		}
		time.Sleep(wait)
	}
}

// end kills the containers of a run and removes its cgroups and mounts.
// Repeating it is harmless.
func (r *Runtime) end(run string) error {
	dir := filepath.Join(StateDir, run)
	containers, err := os.ReadDir(filepath.Join(dir, "runc"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	orphans := r.orphans(run)
	var errs []error
	for _, c := range containers {
		if strings.HasPrefix(c.Name(), idPrefix) {
			errs = append(errs, r.destroy(dir, c.Name()))
		}
	}
	errs = append(errs, r.cgroups.removeGroups(idPrefix+run), unmountBelow(dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing run %s: %w", run, err)
	}
	for _, pid := range orphans {
		syscall.Wait4(pid, nil, 0, nil) // does not block: its cgroup is gone
	}
	return nil
}

// orphans finds first processes of a dead worker's containers that became
// children of this process, because it is a subreaper above that worker. They
// would stay as zombies.
func (r *Runtime) orphans(run string) []int {
	files, _ := filepath.Glob(filepath.Join(StateDir, run, "bundle", "*", "pid"))
	var pids []int
	for _, f := range files {
		text, _ := os.ReadFile(f)
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || pid < 2 {
			continue
		}
		proc := filepath.Join("/proc", strconv.Itoa(pid))
		groups, _ := os.ReadFile(filepath.Join(proc, "cgroup"))
		status, _ := os.ReadFile(filepath.Join(proc, "status"))
		if strings.Contains(string(groups), "/"+idPrefix+run) && strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", os.Getpid())) {
			pids = append(pids, pid)
		}
	}
	return pids
}
