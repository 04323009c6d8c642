package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
)

// cutPatience is how long a mount may take to drop the pages of a revoked file
// after it has confirmed the revocation. What can be read after it, a private
// file serves: then its reader has to be ended.
const cutPatience = 250 * time.Millisecond

// reader is a process that can go on reading a file which was taken back.
type reader struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
	Path string `json:"path"` // as the process has it: in a container, of the container; of a mount that is gone, below it
	How  string `json:"how"`  // fd: an open descriptor; map: a mapping
}

// readers finds who goes on reading one of files, all of which were taken back.
// The processes of other users are seen by root only, and a descriptor that is
// on its way through a socket, or registered with an io_uring alone, by nobody.
func readers(mounts []control.Mount, files []control.File) (list []reader, unseen []string) {
	ours := make(map[device]bool)
	for _, m := range mounts {
		entry, found, err := mountedAt(m.Mountpoint)
		if err != nil || !found || entry.fstype != mountType {
			unseen = append(unseen, m.Mountpoint)
			continue
		}
		ours[entry.device] = true
	}
	for _, u := range uses(ours, files) {
		path, revoked := u.holds(files)
		if !revoked || !u.reads() {
			continue
		}
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", u.pid))
		r := reader{PID: u.pid, Comm: strings.TrimSpace(string(comm)), Path: path, How: u.how()}
		if !slices.Contains(list, r) {
			list = append(list, r)
		}
	}
	return list, unseen
}

// use is one descriptor or mapping of a file on a mount.
type use struct {
	pid        int
	fd         int // -1: a mapping
	start      uint64
	unreadable bool   // a mapping that its own process may not read
	link       string // in /proc, to the inode that is held, whatever its name leads to by now
}

func (u use) how() string {
	if u.fd < 0 {
		return "map"
	}
	return "fd"
}

// uses lists what processes have of files on the devices in ours. It goes by the
// device and not by the mount, because containers have the same files on mounts
// of their own. A mount that was detached, or whose process was killed, is in no
// table any more, and its private files are still read: there the name decides
// whom to ask about.
func uses(ours map[device]bool, files []control.File) (list []use) {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	tables := make(map[string]mountTable) // by mount namespace
	for _, proc := range procs {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil || pid == os.Getpid() { // what the shell handed down ends with this process
			continue
		}
		namespace, err := os.Readlink(proc + "/ns/mnt")
		if err != nil {
			continue // gone, or somebody else's
		}
		table, known := tables[namespace]
		if !known {
			table = readMountTable(proc + "/mountinfo")
			tables[namespace] = table
		}
		candidate := func(d device, mounted bool, path string) bool {
			return ours[d] || !mounted && named(path, files)
		}
		infos, _ := filepath.Glob(proc + "/fdinfo/*")
		for _, info := range infos {
			fd, err := strconv.Atoi(filepath.Base(info))
			if err != nil {
				continue
			}
			link := fmt.Sprintf("%s/fd/%d", proc, fd)
			path, err := os.Readlink(link)
			if err != nil || !strings.HasPrefix(path, "/") {
				continue // closed, or a pipe or socket
			}
			b, err := os.ReadFile(info)
			if err != nil {
				continue
			}
			_, rest, _ := strings.Cut(string(b), "mnt_id:\t")
			id, _, _ := strings.Cut(rest, "\n")
			d, mounted := table.byID[id]
			if candidate(d, mounted, path) {
				list = append(list, use{pid: pid, fd: fd, link: link})
			}
		}
		for _, u := range mappings(proc, pid) {
			if candidate(u.device, table.devices[u.device], u.path) {
				list = append(list, u.use)
			}
		}
	}
	return list
}

// named reports whether a path could be one of files: by an output's name, or by
// its digest.
func named(path string, files []control.File) bool {
	base := strings.TrimSuffix(filepath.Base(path), " (deleted)")
	return slices.ContainsFunc(files, func(f control.File) bool {
		return base == filepath.Base(f.Name) || strings.HasSuffix(base, f.SHA256.String())
	})
}

// mountTable is what a mount namespace has mounted.
type mountTable struct {
	byID    map[string]device // by mount id
	devices map[device]bool
}

func readMountTable(path string) mountTable {
	t := mountTable{make(map[string]device), make(map[device]bool)}
	f, err := os.Open(path)
	if err != nil {
		return t
	}
	defer f.Close()
	list, err := parseMountinfo(f)
	if err != nil {
		return t
	}
	for _, m := range list {
		t.byID[strconv.Itoa(m.id)] = m.device
		t.devices[m.device] = true
	}
	return t
}

// mapping is a file that a process has mapped.
type mapping struct {
	use
	device device
	path   string
}

// mappings reads /proc/PID/maps, in which a file that the kernel serves by
// passthrough has the device, the inode and the path of the mount.
func mappings(proc string, pid int) (list []mapping) {
	f, err := os.Open(proc + "/maps")
	if err != nil {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// address perms offset dev inode path
		fields := strings.Fields(lines.Text())
		_, path, isFile := strings.Cut(lines.Text(), " /")
		if len(fields) < 6 || !isFile {
			continue
		}
		m := mapping{path: "/" + path}
		var start, end uint64
		if _, err := fmt.Sscanf(fields[0]+" "+fields[3], "%x-%x %x:%x", &start, &end, &m.device.major, &m.device.minor); err != nil {
			continue
		}
		m.use = use{pid: pid, fd: -1, start: start, unreadable: fields[1][0] != 'r', link: fmt.Sprintf("%s/map_files/%x-%x", proc, start, end)}
		list = append(list, m)
	}
	return list
}

// holds asks the mount whether the file is one of files and refused now. If the
// mount is dead, or has forgotten what it measured, name and size decide.
func (u use) holds(files []control.File) (path string, revoked bool) {
	path, err := os.Readlink(u.link)
	if err != nil {
		return "", false // closed meanwhile
	}
	_, err = readXattr(u.link, statusXattr)
	dead := errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	if err != nil && !dead {
		return path, false // on another file system
	}
	if reason, err := readXattr(u.link, reasonXattr); err == nil && string(reason) == "granted" {
		return path, false // by another capability
	}
	if digest, err := readXattr(u.link, digestXattr); err == nil {
		d, err := hashpipe.ParseDigest(string(digest))
		return path, err == nil && slices.ContainsFunc(files, func(f control.File) bool { return f.SHA256 == d })
	}
	var st unix.Statx_t // from the kernel's cache: a dead mount answers nothing
	if unix.Statx(unix.AT_FDCWD, u.link, unix.AT_STATX_DONT_SYNC, unix.STATX_SIZE, &st) != nil || !named(path, files) {
		return path, false
	}
	return path, slices.ContainsFunc(files, func(f control.File) bool { return f.Size == int64(st.Size) })
}

// reads tries whether the process still gets bytes: a descriptor or a mapping of
// tier blocks is cut, one of a private file is not. Who cannot be asked counts
// as a reader.
func (u use) reads() bool {
	var b [1]byte
	if u.fd < 0 {
		if u.unreadable {
			return true
		}
		_, err := unix.ProcessVMReadv(u.pid, []unix.Iovec{{Base: &b[0], Len: 1}}, []unix.RemoteIovec{{Base: uintptr(u.start), Len: 1}}, 0)
		return err == nil || errors.Is(err, unix.EPERM)
	}
	process, err := unix.PidfdOpen(u.pid, 0)
	if err != nil {
		return !errors.Is(err, unix.ESRCH)
	}
	defer unix.Close(process)
	fd, err := unix.PidfdGetfd(process, u.fd, 0)
	if err != nil {
		return errors.Is(err, unix.EPERM)
	}
	defer unix.Close(fd)
	for {
		if _, err = unix.Pread(fd, b[:], 0); !errors.Is(err, unix.EINTR) {
			return err == nil
		}
	}
}
