package capstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe/durable"
)

// Free bytes of the file system below which a write is refused. One commit and
// the flush and compaction that it can set off stay below the first; a
// revocation, being one small row that narrows access, may use most of that, and
// in the end the ballast.
const (
	reserveWrite  = 64 << 20
	reserveOpen   = 32 << 20
	reserveRevoke = 16 << 20

	// ballastSize is the size of the file that holds room for revocations. It is made
	// when ballastRoom is free, so that it is never the reason why a grant is refused.
	ballastSize = 32 << 20
	ballastRoom = reserveWrite + 2*ballastSize
)

// Space says how full the file system of a store is.
type Space struct {
	Free    int64 `json:"free"`    // bytes for this user
	Reserve int64 `json:"reserve"` // bytes below which nothing is granted
	// Low: no capability and no job is written. Revocations are, as long as there is
	// room for them.
	Low bool `json:"low"`
	// Ballast: the room that is kept for revocations is there. It goes when one needs
	// it, and is kept again when there is room.
	Ballast bool `json:"ballast"`
}

// Space asks the file system.
func (s *Store) Space() (Space, error) {
	free, err := freeSpace(s.dir)
	if err != nil {
		return Space{}, err
	}
	_, err = os.Lstat(s.ballast())
	return Space{Free: free, Reserve: reserveWrite, Low: free < reserveWrite, Ballast: err == nil}, nil
}

func (s *Store) ballast() string { return filepath.Join(s.dir, ballastName) }

// room refuses while there are less than reserve bytes. urgent is for what narrows
// access, and for opening: it may have the ballast. Callers hold s.mu.
func (s *Store) room(reserve int64, urgent bool) error {
	err := checkSpace(s.dir, reserve)
	if !urgent || !errors.Is(err, ErrNoSpace) {
		return err
	}
	if gone := os.Remove(s.ballast()); gone != nil {
		if errors.Is(gone, fs.ErrNotExist) {
			return err
		}
		return fmt.Errorf("%w; the room that is kept for it cannot be had: %w", err, gone)
	}
	// The room is free once the name is gone for good.
	if gone := durable.SyncDir(s.dir); gone != nil {
		return fmt.Errorf("%w; the room that is kept for it cannot be had: %w", err, gone)
	}
	return checkSpace(s.dir, reserve)
}

// keepBallast makes the ballast if it is not there and there is room. That it
// cannot be made is no error: Space shows it. Callers hold s.mu.
func (s *Store) keepBallast() {
	if _, err := os.Lstat(s.ballast()); !errors.Is(err, fs.ErrNotExist) {
		return
	}
	if free, err := freeSpace(s.dir); err != nil || free < ballastRoom {
		return
	}
	f, err := os.OpenFile(s.ballast()+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return
	}
	err = reserveBlocks(f)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), s.ballast())
	}
	if err != nil {
		os.Remove(f.Name())
	}
}

func reserveBlocks(f *os.File) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, ballastSize)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	// Such a file system may keep zeros for nothing; it has no other way.
	zeros := make([]byte, 1<<20)
	for range ballastSize / len(zeros) {
		if _, err := f.Write(zeros); err != nil {
			return err
		}
	}
	return f.Sync()
}

// freeSpace is what dir's file system has for this user, in bytes.
func freeSpace(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("asking for the free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// checkSpace refuses while dir's file system has less than reserve bytes for
// this user.
func checkSpace(dir string, reserve int64) error {
	free, err := freeSpace(dir)
	if err != nil {
		return err
	}
	if free < reserve {
		return fmt.Errorf("%w: %d MiB are left in the file system of %s, and %d MiB are needed: make room and try again", ErrNoSpace, free>>20, dir, reserve>>20)
	}
	return nil
}
