package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/fs"
)

// A mount outlives its process if somebody else has the session: fs.Session. The
// daemon asks each mount process for it over a socket beside the mount's lock, at
// once and again after the daemon itself was started anew; it never looks into it.
//
// Who may ask: root and the user of the mount process, as the kernel recorded them.
// Whom the daemon believes: the process that holds the lock of that mount.

// handPatience bounds one handing over, which waits for nothing but the scheduler.
const handPatience = 2 * time.Second

// handSessions answers whoever asks, one at a time, until ctx ends.
func (p *mountProcess) handSessions(ctx context.Context, l *net.UnixListener) {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		if err := p.handSession(c); err != nil {
			p.log.Warn("the session was not handed over", "error", err)
		}
		c.Close()
	}
}

func (p *mountProcess) handSession(c *net.UnixConn) error {
	peer, err := credentials(c)
	if err != nil {
		return err
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("process %d of uid %d asked; only root and uid %d may", peer.Pid, peer.Uid, os.Geteuid())
	}
	session, err := p.srv.Session()
	if err != nil {
		return err
	}
	defer session.Close()
	c.SetDeadline(time.Now().Add(handPatience))
	_, _, err = c.WriteMsgUnix([]byte{1}, unix.UnixRights(int(session.Device.Fd()), int(session.Journal.Fd())), nil)
	return err
}

// listenSession replaces the socket of a predecessor.
func listenSession(path string) (*net.UnixListener, error) {
	if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	addr, done, err := sessionAddress(path)
	if err != nil {
		return nil, err
	}
	defer done()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: addr, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // addr means nothing then
	return l, nil
}

// sessionAddress names a socket through its directory: paths can be longer than
// socket addresses.
func sessionAddress(path string) (addr string, done func(), err error) {
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + filepath.Base(path), func() { dir.Close() }, nil
}

// fetchSession asks the process that serves a mount for its session.
func fetchSession(ctx context.Context, path string, holder int) (fs.Session, error) {
	addr, done, err := sessionAddress(path)
	if err != nil {
		return fs.Session{}, err
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, handPatience)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixpacket", addr)
	if err != nil {
		return fs.Session{}, err
	}
	defer conn.Close()
	c := conn.(*net.UnixConn)
	peer, err := credentials(c)
	if err != nil {
		return fs.Session{}, err
	}
	if int(peer.Uid) != os.Geteuid() || int(peer.Pid) != holder {
		return fs.Session{}, fmt.Errorf("expected process %d of uid %d to answer, got process %d of uid %d", holder, os.Geteuid(), peer.Pid, peer.Uid)
	}
	c.SetDeadline(time.Now().Add(handPatience))
	return receiveSession(c)
}

// receiveSession takes exactly two descriptors, and closes whatever else comes.
func receiveSession(c *net.UnixConn) (fs.Session, error) {
	buf, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(2*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return fs.Session{}, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return fs.Session{}, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "session"))
		}
	}
	if n == 1 && flags&unix.MSG_CTRUNC == 0 && len(files) == 2 {
		s := fs.Session{Device: files[0], Journal: files[1]}
		if err = s.Check(); err == nil {
			return s, nil
		}
	}
	for _, f := range files {
		f.Close()
	}
	return fs.Session{}, errors.Join(err, fmt.Errorf("expected a session in one message, got %d bytes and %d descriptors", n, len(files)))
}

func credentials(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	if cerr != nil {
		return nil, fmt.Errorf("SO_PEERCRED: %w", cerr)
	}
	return cred, nil
}

const (
	// quickDeath is how long a successor has to live for its death not to be its
	// inheritance's fault: the kernel sends a request that kills its server again.
	quickDeath = time.Second
	maxQuick   = 3 // of them in a row; then the session is let go
	// fetchEvery bounds how often a process is asked that does not answer.
	fetchEvery = time.Second
)

// holding is what the daemon has of one mount; its watcher's alone.
type holding struct {
	session *fs.Session
	holder  int // the process that serves it
	next    time.Time
}

// see makes sure that the session of the process that serves is held.
func (s *supervisor) see(ctx context.Context, h *holding, r mountRecord, pid int) {
	if r.Foreground || pid <= 0 || h.holder == pid && h.session != nil {
		return
	}
	if h.holder != pid {
		h.letGo() // another connection
		h.holder, h.next = pid, time.Time{}
	}
	if time.Now().Before(h.next) {
		return
	}
	h.next = time.Now().Add(fetchEvery)
	session, err := fetchSession(ctx, s.state.MountSession(r.ID), pid)
	if err != nil {
		s.log.Debug("the session of a mount is not held yet", "id", r.ID, "holder", pid, "error", err)
		return
	}
	h.session = &session
	s.note(r.ID, func(w *watched) { w.holder = pid })
	s.log.Info("the mount outlives its process now", "id", r.ID, "holder", pid)
}

// letGo ends the connection, unless its process lives.
func (h *holding) letGo() {
	if h.session != nil {
		h.session.Close()
		h.session = nil
	}
}
