package fs

import (
	"bytes"
	"encoding/binary"
	"path"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirHandle streams a source directory: it holds one buffer of getdents64 and
// no list, however many entries there are. Offsets are those of the source.
type dirHandle struct {
	path string
	slot slot // in the journal

	mu   sync.Mutex // guards what follows; the kernel may read one handle twice at a time
	fd   int        // -1: a predecessor's, to be opened when it is read
	buf  []byte
	rest []byte // entries of buf that the kernel does not have yet
	next int64  // the offset at which rest begins
}

// dirBuffer holds some 500 entries with names of usual length.
const dirBuffer = 32 << 10

func (f *filesystem) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.lostReplies.again(in.Unique)
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return statusStale
	}
	fd, _, err := f.src.openDir(n.path)
	if err != nil {
		return statusOf(err)
	}
	d := &dirHandle{path: n.path, fd: fd}
	out.Fh = f.dirs.add(d)
	d.slot = f.journal.put(entryDir, 0, 0, handleEntry{fh: out.Fh, node: n.id, unique: in.Unique &^ resendBit}.body())
	return fuse.OK
}

func (f *filesystem) ReleaseDir(in *fuse.ReleaseIn) { f.releaseDir(in.Fh) }

func (f *filesystem) releaseDir(fh uint64) {
	if d, ok := f.dirs.remove(fh); ok {
		f.journal.drop(d.slot)
		d.close()
	}
}

func (d *dirHandle) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd >= 0 {
		unix.Close(d.fd)
	}
}

func (f *filesystem) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, func(d *dirHandle, e *fuse.DirEntry) bool {
		if e.Mode == 0 {
			var st unix.Stat_t
			if err := unix.Fstatat(d.fd, e.Name, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil {
				e.Mode = shownKind(st.Mode)
			}
		}
		return out.AddDirEntry(*e)
	})
}

func (f *filesystem) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, func(d *dirHandle, e *fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(*e)
		if entry == nil {
			return false
		}
		if e.Name == "." || e.Name == ".." {
			return true // no reference is counted for these
		}
		var st unix.Stat_t
		if err := unix.Fstatat(d.fd, e.Name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || f.src.own(&st) {
			return true // node 0: the kernel looks it up when somebody asks
		}
		limitMode(&st, func(name string, value []byte) (int, error) {
			return unix.Lgetxattr(procName(d.fd)+"/"+e.Name, name, value)
		})
		f.enter(path.Join(d.path, e.Name), &st, entry)
		out.FixMode(entry.Attr.Mode)
		return true
	})
}

// readDir gives entries from the offset on to add, until that has no more room.
func (f *filesystem) readDir(in *fuse.ReadIn, add func(*dirHandle, *fuse.DirEntry) bool) fuse.Status {
	d, ok := f.dirs.get(in.Fh)
	if !ok {
		return statusBadHandle
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd < 0 {
		fd, _, err := f.src.openDir(d.path)
		if err != nil {
			return statusOf(err)
		}
		d.fd = fd
	}
	if err := d.seek(int64(in.Offset)); err != nil {
		return statusOf(err)
	}
	for {
		e, size, err := d.peek()
		if err != nil {
			return statusOf(err)
		}
		if size == 0 {
			return fuse.OK
		}
		if !add(d, &e) {
			return fuse.OK
		}
		d.rest = d.rest[size:]
		d.next = int64(e.Off)
	}
}

func (d *dirHandle) seek(off int64) error {
	if d.buf != nil && off == d.next {
		return nil
	}
	if d.buf == nil {
		d.buf = make([]byte, dirBuffer)
	}
	d.rest = nil
	_, err := unix.Seek(d.fd, off, unix.SEEK_SET)
	if err == nil {
		d.next = off
	}
	return err
}

// peek returns the next entry and its size in the buffer; 0 at the end.
func (d *dirHandle) peek() (fuse.DirEntry, int, error) {
	if len(d.rest) == 0 {
		var n int
		err := retried(func() (err error) {
			n, err = unix.Getdents(d.fd, d.buf)
			return err
		})
		if err != nil || n == 0 {
			return fuse.DirEntry{}, 0, err
		}
		d.rest = d.buf[:n]
	}
	// struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name to a zero byte.
	b := d.rest
	size := int(binary.NativeEndian.Uint16(b[16:]))
	name := b[19:size]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	e := fuse.DirEntry{
		Ino:  binary.NativeEndian.Uint64(b),
		Off:  binary.NativeEndian.Uint64(b[8:]),
		Name: string(name),
	}
	if b[18] != unix.DT_UNKNOWN {
		e.Mode = shownKind(uint32(b[18]) << 12)
	}
	return e, size, nil
}

// shownKind is the kind that a lookup will show: see attrOf.
func shownKind(mode uint32) uint32 {
	if special(mode) {
		return unix.S_IFREG
	}
	return mode & unix.S_IFMT
}
