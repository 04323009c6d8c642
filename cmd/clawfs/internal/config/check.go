package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Mode bits that a file may not have. A file that others can write decides
// nothing; a file that others can read keeps no secret.
const (
	writableByOthers fs.FileMode = 0o022
	openToOthers     fs.FileMode = 0o077
)

// MaxFile bounds the text files of the state directory in bytes.
const MaxFile = 4 << 20

// ErrNoState says that the state directory does not exist yet.
var ErrNoState = errors.New("no state directory")

// Check refuses a state directory that somebody other than its owner could
// have prepared: it and every directory above it must belong to root or to
// this process's user and be writable by its owner only (a sticky directory
// such as /tmp may stand above it), and neither it nor its secrets may be
// open to others. Missing files are not an error here.
func (s State) Check() error {
	if !filepath.IsAbs(string(s)) {
		return fmt.Errorf("state directory %q: not an absolute path", string(s))
	}
	fi, err := os.Lstat(string(s))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w %s; next: clawfs init --state %s", ErrNoState, s, s)
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if err := s.checkParents(); err != nil {
		return err
	}
	if err := checkInfo(string(s), fi, fs.ModeDir, writableByOthers); err != nil {
		return err
	}
	for _, c := range []struct {
		path   string
		kind   fs.FileMode
		refuse fs.FileMode
	}{
		{s.Policy(), 0, writableByOthers},
		{s.SignedPolicy(), 0, writableByOthers},
		{s.Settings(), 0, writableByOthers},
		{s.MintKey(), 0, openToOthers},
		{s.RevokeKey(), 0, openToOthers},
		{s.Store(), fs.ModeDir, openToOthers},
		{s.Kept(), fs.ModeDir, openToOthers},
		{s.Run(), fs.ModeDir, openToOthers},
		{s.Jobs(), fs.ModeDir, writableByOthers},
		{s.Work(), fs.ModeDir, writableByOthers},
		{s.Cache(), fs.ModeDir, openToOthers},
		{s.Memory(), fs.ModeDir, openToOthers},
		{s.Private(), fs.ModeDir, openToOthers},
		{s.Log(), fs.ModeDir, writableByOthers},
	} {
		fi, err := os.Lstat(c.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := checkInfo(c.path, fi, c.kind, c.refuse); err != nil {
			return err
		}
	}
	return nil
}

// checkParents walks the real path upwards: whoever can write a parent can
// put another state directory in this one's place.
func (s State) checkParents() error {
	real, err := filepath.EvalSymlinks(filepath.Dir(string(s)))
	if err != nil {
		return fmt.Errorf("state directory %s: %w", s, err)
	}
	for dir := real; ; dir = filepath.Dir(dir) {
		fi, err := os.Lstat(dir)
		if err != nil {
			return fmt.Errorf("state directory %s: %w", s, err)
		}
		if fi.Mode()&fs.ModeSticky == 0 {
			if err := checkInfo(dir, fi, fs.ModeDir, writableByOthers); err != nil {
				return fmt.Errorf("state directory %s lies below a directory that others can change: %w", s, err)
			}
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// MakeRun makes what the daemon needs and `clawfs init` may not have made,
// and checks all of it, before and after. Existing directories keep their mode.
func (s State) MakeRun() error {
	if err := s.Check(); err != nil {
		return err
	}
	for _, dir := range []string{s.Store(), s.Jobs(), s.Work(), s.Log(), s.Run(), s.Mounts()} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return s.Check()
}

// MakePrivate makes the default directory for private files and returns its path.
func (s State) MakePrivate() (string, error) {
	if err := os.Mkdir(s.Private(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return s.Private(), s.Check()
}

// checkInfo refuses another kind of file, a foreign owner, and any of the
// mode bits in refuse.
func checkInfo(path string, fi fs.FileInfo, kind, refuse fs.FileMode) error {
	if fi.Mode().Type() != kind {
		return fmt.Errorf("%s: is a %s, want a %s", path, kindName(fi.Mode().Type()), kindName(kind))
	}
	uid, ok := owner(fi)
	if !ok {
		return fmt.Errorf("%s: the owner is unknown", path)
	}
	if uid != 0 && uid != uint32(os.Geteuid()) {
		return fmt.Errorf("%s: belongs to uid %d, want root or uid %d; next: chown %d %s", path, uid, os.Geteuid(), os.Geteuid(), path)
	}
	if bad := fi.Mode().Perm() & refuse; bad != 0 {
		return fmt.Errorf("%s: mode %04o lets others in, want at most %04o; next: chmod %04o %s",
			path, fi.Mode().Perm(), 0o777&^refuse, fi.Mode().Perm()&^refuse, path)
	}
	return nil
}

func kindName(t fs.FileMode) string {
	switch t {
	case 0:
		return "regular file"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symbolic link"
	case fs.ModeSocket:
		return "socket"
	case fs.ModeNamedPipe:
		return "named pipe"
	}
	return "special file"
}

// ReadPublic reads a file of the state directory that others may read but not
// write, at most MaxFile bytes of it. The checks are made on the open file, so
// that the file cannot be exchanged between check and read.
func ReadPublic(path string) ([]byte, error) { return read(path, writableByOthers, MaxFile) }

// ReadSecret is ReadPublic for a file that only its owner may read.
func ReadSecret(path string) ([]byte, error) { return read(path, openToOthers, MaxFile) }

// ReadLong is ReadSecret for a file of at most limit bytes.
func ReadLong(path string, limit int64) ([]byte, error) { return read(path, openToOthers, limit) }

func read(path string, refuse fs.FileMode, limit int64) ([]byte, error) {
	// O_NONBLOCK: opening a named pipe must not wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s: is a symbolic link, want a regular file", path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := checkInfo(path, fi, 0, refuse); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: longer than %d bytes", path, limit)
	}
	return b, nil
}
