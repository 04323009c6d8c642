package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MaxConnections is how many connections are open at once; one more is told
// so and closed. Each mount keeps one, each `--wait` one or two.
const MaxConnections = 256

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
	switch fi, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("control socket: %w", err)
	case fi.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("control socket %s: somebody put a %s there; look at it, then remove it", path, fi.Mode().Type())
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("stale control socket: %w", err)
		}
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
	return &guarded{UnixListener: l, uid: uint32(os.Geteuid()), slots: make(chan struct{}, MaxConnections), strangers: make(chan struct{}, 16), refused: refused}, nil
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
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { dir.Close() }, nil
}

// Peer is who connected, as the kernel recorded it at connect(2).
type Peer struct{ UID, GID, PID uint32 }

// guarded accepts connections of root and of one user only, and not too many.
type guarded struct {
	*net.UnixListener
	uid       uint32
	slots     chan struct{}     // one token for each open connection
	strangers chan struct{}     // one for each refused one that may still send
	refused   func(Peer, error) // may be nil
}

var (
	errForeign = errors.New("only root and the daemon's own user may connect")
	errFull    = fmt.Errorf("%d connections are open already", MaxConnections)
)

func (g *guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := peerOf(c)
		if err == nil && peer.UID != 0 && peer.UID != g.uid {
			err = errForeign
		}
		if err != nil {
			g.refuse(c, peer, "403 Forbidden", err)
			continue
		}
		select {
		case g.slots <- struct{}{}:
			return &slotConn{Conn: c, free: sync.OnceFunc(func() { <-g.slots })}, nil
		default:
			g.refuse(c, peer, "503 Service Unavailable", errFull)
		}
	}
}

// refuse answers without looking at what was sent, and lets the client send
// its request, or it would see a broken pipe instead of the answer. Only so
// many strangers are waited for at a time; the others are cut off.
func (g *guarded) refuse(c *net.UnixConn, p Peer, status string, why error) {
	if g.refused != nil {
		g.refused(p, why)
	}
	c.SetDeadline(time.Now().Add(time.Second))
	body := fmt.Sprintf("{\"error\":%q}\n", why.Error())
	fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
	select {
	case g.strangers <- struct{}{}:
		go func() {
			defer func() { <-g.strangers }()
			defer c.Close()
			c.CloseWrite()
			io.Copy(io.Discard, io.LimitReader(c, maxHeader))
		}()
	default:
		c.Close()
	}
}

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

// slotConn gives its slot back when it is closed.
type slotConn struct {
	net.Conn
	free func()
}

func (c *slotConn) Close() error {
	c.free()
	return c.Conn.Close()
}

// CloseWrite lets net/http end a response before it closes the connection.
func (c *slotConn) CloseWrite() error { return c.Conn.(*net.UnixConn).CloseWrite() }

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
