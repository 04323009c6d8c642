package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// connection is one FUSE connection: go-fuse's ProtocolServer knows the messages,
// and this moves them.
//
// Why not fuse.Server. It reads INIT from the kernel, which says it once, so it
// cannot take over a connection. And it reads into memory of Go's heap: a process
// that is killed in read(2) of /dev/fuse still takes a request, and if the page of
// its buffer is not there yet, a dying process gets none, and the kernel answers
// the request with EIO. (Measured: 5 errors in 250 kills under eight readers; none
// in 250 with buffers that were touched before.) Here requests are read into a few
// pages that are always there.
type connection struct {
	device *os.File
	fd     int
	proto  *fuse.ProtocolServer
	log    *slog.Logger
	init   []byte // the kernel's INIT
	reply  []byte // ours
	gone   func() // is called when the kernel has ended the connection
	spared func(func()) bool

	loops   sync.WaitGroup
	buffers chan []byte
	reading atomic.Int64 // goroutines in read(2)
	late    sync.Map     // unique of a READ -> *units, until it is answered
	end     sync.Once
}

const (
	// requestBytes bounds a request: MaxWrite and a header, 8 KiB at least. No write
	// comes here; what is longer (an ioctl, an xattr to be set) the kernel refuses
	// itself.
	requestBytes = 64 << 10
	// replyBytes is what a reply has beside its payload at most: header and the
	// longest structure (FUSE_STATX).
	replyBytes = 16 + 288
	// maxWrite is the least that the kernel knows. go-fuse has one number for what
	// is written and read; the mount option max_read is for what is read.
	maxWrite = 4096
	maxRead  = 1 << 20
)

// Opcodes whose sizes matter here: linux/fuse.h.
const (
	opForget      = 2
	opRead        = 15
	opGetXattr    = 22
	opListXattr   = 23
	opReadDir     = 28
	opIoctl       = 39
	opBatchForget = 42
	opReadDirPlus = 44
)

// Offsets in requests and in the reply to INIT.
const (
	inOpcode, inUnique                      = 4, 8
	xattrSize, readSize, ioctlOutSize       = 40, 56, 68
	initFlags, initFlags2                   = 52, 56
	replyStatus, replyMaxWrite, replyFlags2 = 4, 36, 48
)

// sink is where go-fuse is told to put what is read. Nothing is ever put there: the
// bytes of a READ go to the kernel from the buffer in which they were hashed.
var sink = sync.OnceValues(func() ([]byte, error) {
	return unix.Mmap(-1, 0, maxRead, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON)
})

// answering is the file system as ProtocolServer sees it: what READ returns is set
// aside for the connection.
type answering struct {
	*filesystem
	c *connection
}

func (a answering) Read(cancel <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	u, st := a.filesystem.read(cancel, in)
	if !st.Ok() {
		return nil, st
	}
	a.c.late.Store(in.Unique, u)
	return counted(u.size()), fuse.OK
}

// counted stands for bytes that are somewhere else.
type counted int

func (n counted) Size() int                          { return int(n) }
func (n counted) Done()                              {}
func (n counted) Readv([][]byte) (int, fuse.Status)  { return int(n), fuse.OK }
func (n counted) Bytes([]byte) ([]byte, fuse.Status) { return nil, statusIO }

// connect takes the device. It is closed by close.
func connect(f *filesystem, device *os.File, opts *fuse.MountOptions, wrap func(fuse.RawFileSystem) fuse.RawFileSystem) (*connection, error) {
	readers := min(max(runtime.GOMAXPROCS(0), 2), 16)
	c := &connection{device: device, fd: int(device.Fd()), log: f.log, buffers: make(chan []byte, readers)}
	for range readers {
		b, err := unix.Mmap(-1, 0, requestBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
		if err != nil {
			c.unmap()
			return nil, fmt.Errorf("memory for requests: %w", err)
		}
		_ = unix.Mlock(b) // against swapping; without it they are there nearly always
		c.buffers <- b
	}
	if _, err := sink(); err != nil {
		c.unmap()
		return nil, fmt.Errorf("memory for replies: %w", err)
	}
	var requests fuse.RawFileSystem = answering{f, c}
	if wrap != nil {
		requests = wrap(requests)
	}
	c.proto = fuse.NewProtocolServer(requests, opts)
	c.spared = f.spared
	return c, nil
}

func (c *connection) unmap() {
	for {
		select {
		case b := <-c.buffers:
			unix.Munmap(b)
		default:
			return
		}
	}
}

// begin answers the kernel's INIT.
func (c *connection) begin() error {
	buf := <-c.buffers
	defer func() { c.buffers <- buf }()
	n, err := c.read(buf)
	if err != nil {
		return fmt.Errorf("reading INIT: %w", err)
	}
	if err := c.greet(buf[:n]); err != nil {
		return err
	}
	return c.write(c.reply)
}

// greet finds the reply to an INIT.
func (c *connection) greet(init []byte) error {
	reply := make([]byte, replyBytes)
	n, st := c.proto.HandleRequest([][]byte{init}, [][]byte{reply})
	if !st.Ok() || n < replyFlags2+4 || binary.NativeEndian.Uint32(reply[replyStatus:]) != 0 {
		return fmt.Errorf("INIT: %v, status %d in %d bytes", st, int32(binary.NativeEndian.Uint32(reply[replyStatus:])), n)
	}
	c.init, c.reply = append([]byte(nil), init...), reply[:n]
	binary.NativeEndian.PutUint32(c.reply[replyMaxWrite:], maxWrite)
	return nil
}

// wire is what both sides have agreed on, passthrough included: a successor cannot
// have what was not agreed on.
func (c *connection) wire() uint64 { return uint64(crc32.Checksum(c.reply, castagnoli)) }

// offers reports whether the kernel has a capability (fuse.CAP_...).
func (c *connection) offers(capability uint64) bool {
	if c == nil || len(c.init) < initFlags2+4 {
		return false
	}
	have := uint64(binary.NativeEndian.Uint32(c.init[initFlags:])) | uint64(binary.NativeEndian.Uint32(c.init[initFlags2:]))<<32
	return have&capability != 0
}

// serve answers requests until the kernel ends the connection.
func (c *connection) serve() {
	c.loops.Add(1)
	go c.loop()
	c.loops.Wait()
}

// close is for a connection that does not serve any more.
func (c *connection) close() {
	c.unmap()
	c.device.Close()
}

// loop reads a request and answers it, and sees to it that somebody reads
// meanwhile.
func (c *connection) loop() {
	defer c.loops.Done()
	for {
		var buf []byte
		select {
		case buf = <-c.buffers:
		default:
			return // enough others wait
		}
		c.reading.Add(1)
		n, err := c.read(buf)
		last := c.reading.Add(-1) == 0
		if err != nil {
			c.buffers <- buf
			if errors.Is(err, unix.ENOENT) { // the request was interrupted before it was read
				continue
			}
			if !errors.Is(err, unix.ENODEV) {
				c.log.Error("reading requests of the kernel", "error", err)
			}
			c.end.Do(c.gone)
			return
		}
		room := rooms.Get().(*room)
		request := append(room.request[:0], buf[:n]...)
		c.buffers <- buf
		op := binary.NativeEndian.Uint32(request[inOpcode:])
		// FORGET has no reply that would hold the kernel up.
		if last && op != opForget && op != opBatchForget {
			c.loops.Add(1)
			go c.loop()
		}
		// go-fuse guards the file system's part of it only.
		if !c.spared(func() { c.answer(op, request, room.reply[:]) }) {
			c.refuse(binary.NativeEndian.Uint64(request[inUnique:]))
		}
		rooms.Put(room)
	}
}

// room is for a request and a reply of usual size.
type room struct {
	request [512]byte
	reply   [replyBytes + 4096]byte
}

var rooms = sync.Pool{New: func() any { return new(room) }}

// read reads one request, which has a header.
func (c *connection) read(buf []byte) (n int, err error) {
	err = retried(func() error {
		n, err = unix.Read(c.fd, buf)
		return err
	})
	if err == nil && n < int(unsafe.Sizeof(fuse.InHeader{})) {
		err = fmt.Errorf("request of %d bytes", n)
	}
	return n, err
}

// payloadAt is where a request says how much it wants, or 0.
func payloadAt(op uint32) int {
	switch op {
	case opRead, opReadDir, opReadDirPlus:
		return readSize
	case opGetXattr, opListXattr:
		return xattrSize
	case opIoctl:
		return ioctlOutSize
	}
	return 0
}

func (c *connection) answer(op uint32, request, reply []byte) {
	unique := binary.NativeEndian.Uint64(request[inUnique:])
	var payload int
	if at := payloadAt(op); at > 0 && len(request) >= at+4 {
		payload = int(binary.NativeEndian.Uint32(request[at:]))
	}
	if payload > maxRead {
		c.refuse(unique)
		return
	}
	if len(reply) < replyBytes+payload && op != opRead {
		reply = make([]byte, replyBytes+payload)
	}
	out := [][]byte{reply[:replyBytes+min(payload, len(reply)-replyBytes)]}
	if op == opRead {
		nothing, _ := sink()
		out = [][]byte{reply[:16], nothing[:payload]}
	}
	n, st := c.proto.HandleRequest([][]byte{request}, out)
	if op == opRead {
		c.answerRead(unique, n, st, out[0])
		return
	}
	switch {
	case n > 0:
		c.report(op, c.write(out[0][:n]))
	case !st.Ok():
		c.refuse(unique)
	}
}

// answerRead sends what Read has set aside.
func (c *connection) answerRead(unique uint64, n int, st fuse.Status, header []byte) {
	v, found := c.late.LoadAndDelete(unique)
	switch {
	case found && st.Ok() && n == 16+v.(*units).size():
		u := v.(*units)
		c.report(opRead, c.write(append([][]byte{header}, u.parts...)...))
		u.done()
	case !found && st.Ok() && n == 16:
		c.report(opRead, c.write(header))
	default:
		if found {
			v.(*units).done()
		}
		c.refuse(unique)
	}
}

// refuse answers a request that cannot be understood.
func (c *connection) refuse(unique uint64) {
	b := make([]byte, 16)
	binary.NativeEndian.PutUint32(b, 16)
	binary.NativeEndian.PutUint32(b[replyStatus:], ^uint32(statusIO)+1)
	binary.NativeEndian.PutUint64(b[8:], unique)
	_ = c.write(b) // ENOENT if it wants no answer
}

// report tells of a reply that the kernel did not take. ENOENT: nobody waits any
// more. ENODEV: the connection has ended.
func (c *connection) report(op uint32, err error) {
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		c.log.Warn("the kernel does not take a reply", "opcode", op, "error", err)
	}
}

func (c *connection) write(parts ...[]byte) error {
	return retried(func() error {
		_, err := unix.Writev(c.fd, parts)
		return err
	})
}

// notify sends a message that is no reply: unique 0, and its code, which go-fuse
// has negative, in place of an error.
func (c *connection) notify(code int, parts ...[]byte) fuse.Status {
	if c == nil || c.device == nil {
		return statusAbsent
	}
	size := 16
	for _, p := range parts {
		size += len(p)
	}
	head := make([]byte, 16)
	binary.NativeEndian.PutUint32(head, uint32(size))
	binary.NativeEndian.PutUint32(head[replyStatus:], uint32(-code))
	return fuse.ToStatus(c.write(append([][]byte{head}, parts...)...))
}

// InodeNotifyStoreCache puts data into the page cache of an inode.
func (c *connection) InodeNotifyStoreCache(node uint64, off int64, data []byte) fuse.Status {
	b := binary.NativeEndian.AppendUint64(make([]byte, 0, 24), node)
	b = binary.NativeEndian.AppendUint64(b, uint64(off))
	b = binary.NativeEndian.AppendUint32(b, uint32(len(data)))
	b = binary.NativeEndian.AppendUint32(b, 0)
	return c.notify(fuse.NOTIFY_STORE_CACHE, b, data)
}

// InodeNotify drops the page cache of an inode from off on; length 0 is all.
func (c *connection) InodeNotify(node uint64, off, length int64) fuse.Status {
	b := binary.NativeEndian.AppendUint64(make([]byte, 0, 24), node)
	b = binary.NativeEndian.AppendUint64(b, uint64(off))
	b = binary.NativeEndian.AppendUint64(b, uint64(length))
	return c.notify(fuse.NOTIFY_INVAL_INODE, b)
}

// resend makes the kernel send again what was read and not answered.
func (c *connection) resend() error {
	if st := c.notify(fuse.NOTIFY_RESEND); !st.Ok() {
		return fmt.Errorf("asking the kernel for the requests that nobody has answered: %v", st)
	}
	return nil
}

// ioctls of /dev/fuse: linux/fuse.h.
const (
	backingOpen  = 0x4010e501
	backingClose = 0x4004e502
)

// RegisterBackingFd makes a file known to the kernel, for passthrough.
func (c *connection) RegisterBackingFd(fd int) (int32, error) {
	m := fuse.BackingMap{Fd: int32(fd)}
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), backingOpen, uintptr(unsafe.Pointer(&m)))
	if errno != 0 {
		return 0, errno
	}
	return int32(id), nil
}

func (c *connection) UnregisterBackingFd(id int32) {
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), backingClose, uintptr(unsafe.Pointer(&id)))
}

// mountKernel mounts and returns the device of the connection, as root directly and
// otherwise through fusermount3.
func mountKernel(c Config) (*os.File, error) {
	options := []string{"default_permissions", "max_read=" + strconv.Itoa(maxRead)}
	if c.AllowOther {
		options = append(options, "allow_other")
	}
	if os.Geteuid() != 0 {
		return fusermount(c.Mountpoint, append(options, "ro", "nosuid", "nodev", "noexec", "fsname=clawfs", "subtype=clawfs"))
	}
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	options = append(options, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=%d", device.Fd(), os.Getegid()))
	if err := unix.Mount("clawfs", c.Mountpoint, "fuse.clawfs", mountFlags, strings.Join(options, ",")); err != nil {
		device.Close()
		return nil, err
	}
	return device, nil
}

// fusermount lets the helper mount, which has the right to, and passes the device
// back over a socket whose number is in its environment.
func fusermount(dir string, options []string) (*os.File, error) {
	if err := haveFusermount(); err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "fusermount"), os.NewFile(uintptr(pair[1]), "fusermount")
	defer ours.Close()
	cmd := exec.Command("fusermount3", "-o", strings.Join(options, ","), "--", dir)
	cmd.Env = append(cmd.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	out, err := cmd.CombinedOutput()
	theirs.Close()
	if err != nil {
		return nil, fmt.Errorf("fusermount3: %w: %s", err, strings.TrimSpace(string(out)))
	}
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], make([]byte, 4), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fusermount3: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("fusermount3: no descriptor arrived (%v)", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("fusermount3: no descriptor arrived (%v)", err)
	}
	return os.NewFile(uintptr(fds[0]), "/dev/fuse"), nil
}
