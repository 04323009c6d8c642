package fs

import "github.com/hanwen/go-fuse/v2/fuse"

// The mount is read-only for the kernel too, which answers most of these by
// itself. They are here for a mount that somebody remounted writable.

func (f *filesystem) SetAttr(<-chan struct{}, *fuse.SetAttrIn, *fuse.AttrOut) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) Mkdir(<-chan struct{}, *fuse.MkdirIn, string, *fuse.EntryOut) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) Rename(<-chan struct{}, *fuse.RenameIn, string, string) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) SetXAttr(<-chan struct{}, *fuse.SetXAttrIn, string, []byte) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) RemoveXAttr(<-chan struct{}, *fuse.InHeader, string) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) Write(<-chan struct{}, *fuse.WriteIn, []byte) (uint32, fuse.Status) {
	return 0, statusReadOnly
}

func (f *filesystem) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, statusReadOnly
}

func (f *filesystem) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, statusReadOnly
}

func (f *filesystem) Fallocate(<-chan struct{}, *fuse.FallocateIn) fuse.Status {
	return statusReadOnly
}

func (f *filesystem) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return statusNoIoctl
}

// Nothing is ever dirty.

func (f *filesystem) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status    { return fuse.OK }
func (f *filesystem) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status    { return fuse.OK }
func (f *filesystem) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// Access is the kernel's (default_permissions), and so is seeking for data: a
// file has no holes here.

func (f *filesystem) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return statusAbsent }

func (f *filesystem) Lseek(<-chan struct{}, *fuse.LseekIn, *fuse.LseekOut) fuse.Status {
	return statusAbsent
}
