package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSunPath is sizeof(sockaddr_un.sun_path) less the final NUL (unix(7)).
const maxSunPath = 107

// Listen opens the socket at path. The caller shows by its Lock that no other
// daemon can be listening, so a socket left by a dead one is removed; anything
// else at that path (a file, a symbolic link) was put there by somebody and is
// an error. The directory must be 0700 and this user's.
func Listen(lock *Lock, path string, refused func(Peer, error)) (net.Listener, error) {
	if lock == nil {
		return nil, errors.New("control socket: listening without the daemon lock")
	}
	dir := filepath.Dir(path)
	fi, err := os.Lstat(dir)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || !fi.IsDir() || fi.Mode().Perm()&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("control socket: %s must be a directory of uid %d with mode 0700, not %s", dir, os.Geteuid(), fi.Mode())
	}
	if err := clearDead(path); err != nil {
		return nil, err
	}
	addr, done, err := address(path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	defer done()
	// The mask is the whole process's; the daemon listens before it starts
	// anything that makes files.
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: addr, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	// The path may be /proc/self/fd/N/…, which means nothing at exit; a socket
	// left behind is stale and the next daemon removes it.
	l.SetUnlinkOnClose(false)
	fi, err = os.Lstat(path)
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return newGuarded(l, path, fi, refused), nil
}

// clearDead removes the socket that a dead daemon of this user left at path.
// What is anything else, somebody else's, or answers, stays.
func clearDead(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	if kind := fi.Mode().Type(); kind != fs.ModeSocket {
		return fmt.Errorf("control socket %s: somebody put a %s there; look at it, then remove it", path, kind)
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("control socket %s: somebody put a socket there that is not uid %d's; look at it, then remove it", path, os.Geteuid())
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := dial(ctx, path)
	switch {
	case err == nil:
		c.Close()
		return fmt.Errorf("control socket %s: another process listens there without the daemon's lock; next: find it with ss -xlp, and end it", path)
	case !errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("control socket %s: expected nobody to listen there, got: %w; look at it, then remove it", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("stale control socket: %w", err)
	}
	return nil
}

// address is path, or, when path does not fit into a socket address, a name
// for it through its open directory. done closes that directory.
func address(path string) (addr string, done func(), err error) {
	if len(path) <= maxSunPath {
		return path, func() {}, nil
	}
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	addr = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	if _, err := os.Lstat(filepath.Dir(addr)); err != nil || len(addr) > maxSunPath {
		dir.Close()
		return "", nil, fmt.Errorf("its path has %d bytes, a socket address holds %d, and there is no /proc to name it shorter; next: clawfs --state with a shorter path", len(path), maxSunPath)
	}
	return addr, func() { dir.Close() }, nil
}

// Peer is who connected, as the kernel recorded it at connect(2).
type Peer struct{ UID, GID, PID uint32 }

func peerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, err
	}
	if cerr != nil {
		return Peer{}, fmt.Errorf("SO_PEERCRED: %w", cerr)
	}
	return Peer{UID: cred.Uid, GID: cred.Gid, PID: uint32(cred.Pid)}, nil
}

// dial connects to the socket at path.
func dial(ctx context.Context, path string) (net.Conn, error) {
	addr, done, err := address(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	return d.DialContext(ctx, "unix", addr)
}
