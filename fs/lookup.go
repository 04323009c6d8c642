package fs

import (
	"path"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lookup never hashes: it says what a name leads to, approved or not. Files
// without a capability are listed and can be stat'ed, because hiding them makes
// loaders fall back to other files.
func (f *filesystem) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	parent := f.nodes.get(in.NodeId)
	if parent == nil {
		return statusStale
	}
	if parent.ident.kind != unix.S_IFDIR {
		return statusNotDir
	}
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return statusInvalid
	}
	p := path.Join(parent.path, name)
	st, err := f.src.stat(p)
	if err != nil {
		return statusOf(err)
	}
	f.enter(p, &st, out)
	return fuse.OK
}

// enter counts a reference of the kernel and fills in the reply that tells it.
func (f *filesystem) enter(p string, st *unix.Stat_t, out *fuse.EntryOut) *node {
	n := f.nodes.lookup(p, st)
	out.NodeId = n.id
	out.Generation = 1
	out.Attr = attrOf(st)
	// What is shown as a file that nobody may read is looked up for each use: what
	// comes in its place opens at once.
	if !special(st.Mode) {
		out.SetEntryTimeout(nameTimeout)
	}
	out.SetAttrTimeout(attrTimeout(st.Mode))
	return n
}

func attrTimeout(mode uint32) time.Duration {
	if mode&unix.S_IFMT == unix.S_IFDIR {
		return dirTimeout
	}
	return fileTimeout
}

func (f *filesystem) Forget(id, count uint64) { f.nodes.forget(id, count) }

// GetAttr answers a file from what its lookup saw: its inode stands for that
// state of the source file and keeps it, also for whoever still holds it open.
func (f *filesystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return statusStale
	}
	if n.ident.kind != unix.S_IFDIR {
		n.mu.Lock()
		out.Attr = n.attr
		n.mu.Unlock()
		out.SetTimeout(fileTimeout)
		return fuse.OK
	}
	st, err := f.src.stat(n.path)
	if err != nil {
		return statusOf(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return statusStale
	}
	out.Attr = attrOf(&st)
	out.SetTimeout(dirTimeout)
	return fuse.OK
}

// StatFs shows the file system of the source; that it is read-only the kernel
// knows from the mount.
func (f *filesystem) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st unix.Statfs_t
	if err := retried(func() error { return unix.Fstatfs(f.src.root, &st) }); err != nil {
		return statusOf(err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Files: st.Files,
		Bsize: uint32(st.Bsize), Frsize: uint32(st.Frsize), NameLen: uint32(st.Namelen),
	}
	return fuse.OK
}
