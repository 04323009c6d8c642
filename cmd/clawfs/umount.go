package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// busyPatience is how long `clawfs umount` waits for readers that have just
// finished.
const busyPatience = 3 * time.Second

func newUmountCommand(a *app) *cobra.Command {
	var lazy bool
	c := &cobra.Command{
		Use:   "umount DIR",
		Short: "Take a mount away",
		Long: `umount takes the mount at DIR away and forgets it, so that no daemon brings it
back. It needs no daemon. A mount in use is not taken away, unless --lazy
detaches it: then DIR is empty at once and open files live on until they close.`,
		Example: `  clawfs umount /models
  clawfs umount --lazy /models`,
		Args: cobra.MatchAll(cobra.ExactArgs(1), noEmptyPath),
		RunE: func(c *cobra.Command, args []string) error {
			dir, err := mountpointPath(args[0])
			if err != nil {
				return exit(codeMount, err)
			}
			if err := a.umount(c.Context(), dir, lazy); err != nil {
				return exit(codeMount, err)
			}
			return a.print(struct {
				Mountpoint string `json:"mountpoint"`
				Lazy       bool   `json:"lazy"`
			}{dir, lazy}, func() { a.notef("unmounted %s\n", dir) })
		},
	}
	c.Flags().BoolVar(&lazy, "lazy", false, "detach a busy mount; open files live on")
	return c
}

// mountpointPath makes arg absolute without asking the file system about its
// last component, which may be a dead mount.
func mountpointPath(arg string) (string, error) {
	abs, err := filepath.Abs(arg)
	if err != nil {
		return "", err
	}
	if abs == "/" {
		return abs, nil
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	full := filepath.Join(parent, filepath.Base(abs))
	// A link to the mount point is followed; readlink asks the parent only.
	if _, mounted, err := mountedAt(full); err == nil && !mounted {
		if real, err := filepath.EvalSymlinks(full); err == nil {
			return real, nil
		}
	}
	return full, nil
}

func (a *app) umount(ctx context.Context, dir string, lazy bool) error {
	m, mounted, err := mountedAt(dir)
	if err != nil {
		return err
	}
	id := mountID(dir)
	if !mounted {
		// The record of a mount that its dead process left behind, or of one that starts.
		if os.Remove(a.config().Mount(id)) != nil {
			return fmt.Errorf("unmounting %s: nothing is mounted there; next: %s", dir, a.command("status"))
		}
		if m, mounted, err = a.awaitStarted(ctx, id, dir); err != nil {
			return err
		}
	}
	switch {
	case !mounted:
		a.awaitUnlisted(ctx, id)
		return nil
	case m.fstype != mountType:
		return fmt.Errorf("unmounting %s: a file system of type %s is mounted there, not clawfs", dir, m.fstype)
	}
	// The mount process sees its mount go and removes the record itself; when
	// it is dead, the record has to go first, or the daemon mounts again.
	if server, err := control.Holder(a.config().MountLock(id)); err != nil {
		return err
	} else if server == 0 {
		if err := os.Remove(a.config().Mount(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	err = unmount(dir, lazy, busyPatience)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("unmounting %s: in use %s; next: stop them, or %s", dir, holdersText(holders(m)), a.command("umount", "--lazy", dir))
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", dir, err)
	}
	if err := a.awaitForgotten(ctx, id); err != nil {
		return err
	}
	a.awaitUnlisted(ctx, id)
	return nil
}

// awaitStarted waits until nobody serves a mount whose record was removed, or it is
// there all the same: its process looked at the record a moment before that.
func (a *app) awaitStarted(ctx context.Context, id, dir string) (m mountEntry, mounted bool, err error) {
	for end := time.Now().Add(busyPatience); ; wait(ctx, time.After(20*time.Millisecond)) {
		server, err := control.Holder(a.config().MountLock(id)) // before the look at the table
		if err != nil {
			return m, false, err
		}
		m, mounted, err = mountedAt(dir)
		mounted = mounted && m.fstype == mountType
		if err != nil || mounted || server == 0 || ctx.Err() != nil || time.Now().After(end) {
			return m, mounted, err
		}
	}
}

// awaitUnlisted waits a moment until a daemon, if one answers, has noticed too,
// so that the next status does not show the mount as live.
func (a *app) awaitUnlisted(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for ; ; wait(ctx, time.After(20*time.Millisecond)) {
		s, err := a.client().Status(ctx)
		if err != nil || !slices.ContainsFunc(s.Mounts, func(m control.Mount) bool { return m.ID == id }) {
			return
		}
	}
}

// awaitForgotten waits until the mount process has removed its record, so that
// a mount at the same place can follow at once.
func (a *app) awaitForgotten(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		if _, err := os.Lstat(a.config().Mount(id)); errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if server, err := control.Holder(a.config().MountLock(id)); err == nil && server == 0 {
			return removeIfThere(a.config().Mount(id))
		}
		select {
		case <-ctx.Done():
			return removeIfThere(a.config().Mount(id))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// unmountOnce is umount2(2), or, for a user without the right, the set-user-id
// program that made the mount.
func unmountOnce(dir string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazy {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(dir, flags)
	if err != unix.EPERM {
		return err
	}
	args := []string{"-u", "--", dir}
	if lazy {
		args = []string{"-u", "-z", "--", dir}
	}
	out, err := exec.Command("fusermount3", args...).CombinedOutput()
	if err == nil {
		return nil
	}
	if bytes.Contains(out, []byte("busy")) {
		return unix.EBUSY
	}
	return fmt.Errorf("fusermount3: %w: %s", err, bytes.TrimSpace(out))
}
