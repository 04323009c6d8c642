package control

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// MaxConnections is how many connections are open at once; one more is told
// so and closed. Each mount keeps one, each `--wait` one or two. A process may
// have an eighth of them and a user other than root three quarters, so that one
// client that loses its way does not keep the others out. With few descriptors
// there are fewer: see limitsOf.
const MaxConnections = 256

// limits are how many connections may be open at once.
type limits struct{ total, user, process int }

// ownDescriptors are left to what is not a connection: the store, logs, pipes of
// workers and mount processes.
const ownDescriptors = 40

// limitsOf are the limits of a daemon that may have nofile descriptors open. Half
// of what is left stays for what connections ask for, such as a job's log.
func limitsOf(nofile uint64) limits {
	total := MaxConnections
	if spare := (int64(min(nofile, 1<<20)) - ownDescriptors) / 2; spare < int64(total) {
		total = int(max(spare, 8))
	}
	return limits{total: total, user: total * 3 / 4, process: max(total/8, 4)}
}

// guarded accepts connections of root and of one user only, and not too many.
type guarded struct {
	*net.UnixListener
	path    string
	socket  os.FileInfo // of the path, as it was made
	uid     uint32
	limits  limits
	refused func(Peer, error) // may be nil

	strangers chan struct{} // one token for each refused connection that may still send

	// mu guards what follows.
	mu      sync.Mutex
	open    []*conn // oldest first
	users   map[uint32]int
	process map[uint32]int
	told    time.Time // when refused was called last
	untold  int       // refusals since
	spare   *os.File  // given up for a moment when there is no descriptor left to say so; nil: gone
}

var (
	errForeign = errors.New("only root and the daemon's own user may connect")
	errFull    = errors.New("too many connections")
	errNoFile  = errors.New("the daemon has no file descriptors left; try again, and raise its limit of open files (LimitNOFILE= in the unit, ulimit -n)")
)

func newGuarded(l *net.UnixListener, path string, socket os.FileInfo, refused func(Peer, error)) *guarded {
	var nofile unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &nofile) != nil {
		nofile.Cur = 0
	}
	g := &guarded{
		UnixListener: l, path: path, socket: socket, uid: uint32(os.Geteuid()), limits: limitsOf(nofile.Cur), refused: refused,
		users: make(map[uint32]int), process: make(map[uint32]int),
	}
	g.strangers = make(chan struct{}, min(16, g.limits.process))
	g.spare, _ = os.Open(os.DevNull)
	return g
}

// conn is a connection of a client that may ask.
type conn struct {
	*net.UnixConn
	g    *guarded
	peer Peer

	gone bool // guarded by g.mu
	busy bool // guarded by g.mu: a request is being answered
}

func (g *guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.AcceptUnix()
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ENOBUFS) {
			g.exhausted(err)
			continue
		}
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
		if admitted, why := g.admit(c, peer); why != nil {
			g.refuse(c, peer, "503 Service Unavailable", why)
		} else {
			return admitted, nil
		}
	}
}

// Connections is how many connections of l, which Listen returned, are open.
func Connections(l net.Listener) int {
	g, ok := l.(*guarded)
	if !ok {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.open)
}

// admit counts a connection, or says why it is one too many. Before a client is
// refused for what others hold, the oldest connection that asks for nothing goes.
func (g *guarded) admit(c *net.UnixConn, p Peer) (*conn, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.process[p.PID] >= g.limits.process:
		return nil, fmt.Errorf("%w: process %d has %d open already", errFull, p.PID, g.process[p.PID])
	case p.UID != 0 && g.users[p.UID] >= g.limits.user && !g.evict(func(old *conn) bool { return old.peer.UID == p.UID }):
		return nil, fmt.Errorf("%w: user %d has %d open already", errFull, p.UID, g.users[p.UID])
	case len(g.open) >= g.limits.total && !g.evict(func(*conn) bool { return true }):
		return nil, fmt.Errorf("%w: %d are open already", errFull, len(g.open))
	}
	admitted := &conn{UnixConn: c, g: g, peer: p}
	g.open = append(g.open, admitted)
	g.users[p.UID]++
	g.process[p.PID]++
	return admitted, nil
}

// evict closes the oldest idle connection among those that may go. g.mu is held.
func (g *guarded) evict(may func(*conn) bool) bool {
	for _, c := range g.open {
		if !c.busy && may(c) {
			g.forget(c)
			c.UnixConn.Close()
			return true
		}
	}
	return false
}

// forget takes a connection out of the count. g.mu is held.
func (g *guarded) forget(c *conn) {
	if c.gone {
		return
	}
	c.gone = true
	for i := range g.open {
		if g.open[i] == c {
			g.open = append(g.open[:i], g.open[i+1:]...)
			break
		}
	}
	count := func(of map[uint32]int, id uint32) {
		if of[id]--; of[id] == 0 {
			delete(of, id)
		}
	}
	count(g.users, c.peer.UID)
	count(g.process, c.peer.PID)
}

func (c *conn) Close() error {
	c.g.mu.Lock()
	c.g.forget(c)
	c.g.mu.Unlock()
	return c.UnixConn.Close()
}

// asks says that a request is being answered on c, or not any more.
func (c *conn) asks(busy bool) {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	c.busy = busy
}

// exhausted makes room when accept(2) found no descriptor or memory, and never
// returns so soon that the loop spins: the client stays in the kernel's queue until
// there is room, or is told that there is none.
func (g *guarded) exhausted(err error) {
	g.report(Peer{}, fmt.Errorf("%w (%w)", errNoFile, err))
	g.mu.Lock()
	room := g.evict(func(*conn) bool { return true })
	if !room && g.spare != nil {
		g.spare.Close()
		g.spare = nil
		g.turnAway()
	}
	if g.spare == nil {
		g.spare, _ = os.Open(os.DevNull)
	}
	g.mu.Unlock()
	time.Sleep(20 * time.Millisecond)
}

// turnAway answers one client with the descriptor that the spare one left.
func (g *guarded) turnAway() {
	g.SetDeadline(time.Now().Add(20 * time.Millisecond))
	c, err := g.AcceptUnix()
	g.SetDeadline(time.Time{})
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(50 * time.Millisecond))
	c.Read(make([]byte, maxHeader)) // or the client sees a broken pipe
	answer(c, "503 Service Unavailable", errNoFile)
}

// report tells of a refusal, at most once a second.
func (g *guarded) report(p Peer, why error) {
	g.mu.Lock()
	if time.Since(g.told) < time.Second {
		g.untold++
		g.mu.Unlock()
		return
	}
	g.told = time.Now()
	untold := g.untold
	g.untold = 0
	g.mu.Unlock()
	if untold > 0 {
		why = fmt.Errorf("%w (and %d more before that)", why, untold)
	}
	if g.refused != nil {
		g.refused(p, why)
	}
}

// refuse answers without looking at what was sent, and lets the client send
// its request, or it would see a broken pipe instead of the answer. Only so
// many strangers are waited for at a time; the others are cut off.
func (g *guarded) refuse(c *net.UnixConn, p Peer, status string, why error) {
	g.report(p, why)
	c.SetDeadline(time.Now().Add(time.Second))
	answer(c, status, why)
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

func answer(c *net.UnixConn, status string, why error) {
	body := fmt.Sprintf("{\"error\":%q}\n", why.Error())
	fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Type: application/json\r\n%s: %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
		status, protocolHeader, protocol, len(body), body)
}

// Lost says why the path no longer leads to this listener: nobody can reach it.
func (g *guarded) lost() error {
	there, err := os.Lstat(g.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s was removed under process %d, which listens there", g.path, os.Getpid())
	case err != nil:
		return fmt.Errorf("control socket: %w", err)
	case !os.SameFile(g.socket, there):
		return fmt.Errorf("%s was replaced under process %d, which listens there", g.path, os.Getpid())
	}
	return nil
}

// KeepPlace looks after the lock and the socket until stop is closed. It returns
// an error when somebody has removed or replaced one of them, or their directory:
// clients would not find this process any more, and another could take its place.
func KeepPlace(stop <-chan struct{}, lock *Lock, l net.Listener) error {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		err := lock.Lost()
		if g, ok := l.(*guarded); ok && err == nil {
			err = g.lost()
		}
		select {
		case <-stop:
			return nil
		default:
		}
		if err != nil {
			return err
		}
		select {
		case <-stop:
			return nil
		case <-look.C:
		}
	}
}
