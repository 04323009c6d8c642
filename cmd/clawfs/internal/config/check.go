package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

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
		{s.Mounts(), fs.ModeDir, openToOthers},
		{s.MintPublic(), 0, writableByOthers},
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
	return errors.Join(checkFiles(s.Memory(), fs.ModeDir), checkFiles(s.Kept(), fs.ModeDir), checkFiles(s.Mounts(), fs.ModeSocket))
}

// checkFiles refuses files in dir that others own, can read or can write, or that
// are neither regular nor of another kind that may be there. Nobody
// else reaches them while dir is as it should be; if it was not for a while, they
// may have been opened then.
func checkFiles(dir string, other fs.FileMode) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range list {
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // mount processes and verbs come and go
		}
		if err != nil {
			return err
		}
		if err := checkInfo(filepath.Join(dir, e.Name()), fi, fi.Mode().Type()&other, openToOthers); err != nil {
			return err
		}
	}
	return nil
}

// maxLinks bounds the symbolic links on the way to a state directory (path_resolution(7)).
const maxLinks = 40

// checkParents walks down to the state directory, through every symbolic link:
// whoever can change a directory or a link on the way can put another state
// directory in this one's place.
func (s State) checkParents() error {
	links := 0
	rest := strings.Split(strings.Trim(filepath.Dir(string(s)), "/"), "/")
	dir := "/"
	for {
		fi, err := os.Lstat(dir)
		if err != nil {
			return fmt.Errorf("state directory %s: %w", s, err)
		}
		if err := checkParent(dir, fi); err != nil {
			return fmt.Errorf("state directory %s lies below a directory that others can change: %w", s, err)
		}
		if fi.Mode().Type() == fs.ModeSymlink {
			target, err := os.Readlink(dir)
			if err != nil {
				return fmt.Errorf("state directory %s: %w", s, err)
			}
			if links++; links > maxLinks {
				return fmt.Errorf("state directory %s: more than %d symbolic links on the way", s, maxLinks)
			}
			dir = filepath.Dir(dir)
			if filepath.IsAbs(target) {
				dir = "/"
			}
			rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
		}
		for len(rest) > 0 && (rest[0] == "" || rest[0] == ".") {
			rest = rest[1:]
		}
		if len(rest) == 0 {
			return nil
		}
		dir = filepath.Join(dir, rest[0]) // "..": what dir is of was walked through, and no link is in dir
		rest = rest[1:]
	}
}

// checkParent refuses a directory or link that others can change. In a sticky
// directory others cannot touch what is not theirs; its owner can.
func checkParent(path string, fi fs.FileInfo) error {
	switch fi.Mode().Type() {
	case fs.ModeSymlink:
		return checkInfo(path, fi, fs.ModeSymlink, 0)
	case fs.ModeDir:
		if fi.Mode()&fs.ModeSticky != 0 {
			return checkInfo(path, fi, fs.ModeDir, 0)
		}
	}
	return checkInfo(path, fi, fs.ModeDir, writableByOthers)
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
		chown := "chown"
		if kind == fs.ModeSymlink {
			chown = "chown -h"
		}
		return fmt.Errorf("%s: belongs to uid %d, want root or uid %d; next: %s %d %s", path, uid, os.Geteuid(), chown, os.Geteuid(), path)
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
