package fs

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// copyPiece is how much is written at once, in bytes. The kernel keeps what is
// written at once in one piece, and maps it at one fault.
const copyPiece = 2 << 20

var copyBuffers = sync.Pool{New: func() any { return new([copyPiece]byte) }}

// copying reads the source and writes what it read to the private file: the
// bytes that are hashed are the bytes that are written. If the disk does not
// take them, the source is measured all the same, and served without. It is for
// one goroutine, which closes it.
type copying struct {
	src, dst *os.File
	spoilt   *atomic.Pointer[error]

	buf *[copyPiece]byte
	at  int64 // where the bytes in buf begin
	n   int   // how many there are
}

func (c *copying) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.src.ReadAt(p, off)
	if c.n > 0 && off != c.at+int64(c.n) {
		c.flush()
	}
	for rest := p[:n]; len(rest) > 0; {
		if c.n == 0 {
			c.at = off + int64(n-len(rest))
		}
		k := copy(c.buf[c.n:], rest)
		rest = rest[k:]
		if c.n += k; c.n == copyPiece || (c.at+int64(c.n))%copyPiece == 0 {
			c.flush()
		}
	}
	return n, err
}

// flush writes what is in the buffer.
func (c *copying) flush() {
	n := c.n
	c.n = 0
	if n == 0 || c.spoilt.Load() != nil {
		return
	}
	if _, err := c.dst.WriteAt(c.buf[:n], c.at); err != nil {
		err = fmt.Errorf("writing a private file: %w", err)
		c.spoilt.Store(&err)
		return
	}
	// Advice: so that little is left to do for fdatasync, which nothing interrupts.
	_ = unix.SyncFileRange(int(c.dst.Fd()), c.at, int64(n), unix.SYNC_FILE_RANGE_WRITE)
}

func (c *copying) close() {
	c.flush()
	copyBuffers.Put(c.buf)
}

// populating reads a private file. A clone has no page of its source's in memory.
// Read as usual they would come in small pieces, and each piece costs a fault
// when it is mapped later; so they are brought in by a mapping that asks for
// large ones, one ahead of what is read. It is never touched itself. A populating
// is for one goroutine, which closes it.
type populating struct {
	*os.File
	mapped *os.File // the same: the kernel reads ahead for each descriptor
	size   int64
	end    int64         // what lies up to here was brought in
	ahead  chan struct{} // closed when what follows was, too; nil: nobody does it
}

func (p *populating) ReadAt(b []byte, off int64) (int, error) {
	if off >= p.end || off < p.end-maxFolio {
		p.wait()
		if off != p.end {
			p.populate(off)
		}
		p.end = off + maxFolio
		next, ahead := p.end, make(chan struct{})
		go func() { defer close(ahead); p.populate(next) }()
		p.ahead = ahead
	}
	return p.File.ReadAt(b, off)
}

func (p *populating) wait() {
	if p.ahead != nil {
		<-p.ahead
	}
}

// populate does its best: without it all the same bytes are read.
func (p *populating) populate(off int64) {
	n := min(maxFolio, p.size-off)
	if n <= 0 || off%hashpipe.BlockSize != 0 {
		return
	}
	m, err := unix.Mmap(int(p.mapped.Fd()), off, int(n), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return
	}
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE)
	_ = unix.Madvise(m, unix.MADV_POPULATE_READ)
	_ = unix.Munmap(m)
}
