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
	Path string `json:"path"` // as the process has it: in a container, of the container
	How  string `json:"how"`  // fd: an open descriptor; map: a mapping
}

// readers finds who goes on reading one of files, all of which were taken back.
// The processes of other users are seen by root only, and a descriptor that is
// on its way through a socket, or registered with an io_uring alone, by nobody.
func readers(mounts []control.Mount, files []control.File) (list []reader, unseen []string) {
	for _, m := range mounts {
		entry, found, err := mountedAt(m.Mountpoint)
		if err != nil || !found || entry.fstype != mountType {
			unseen = append(unseen, m.Mountpoint)
			continue
		}
		for _, u := range uses(entry) {
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
	}
	return list, unseen
}

// use is one descriptor or mapping of a file on a mount.
type use struct {
	pid      int
	fd       int // -1: a mapping
	start    uint64
	unopened bool   // a mapping that its own process may not read
	link     string // in /proc, to the inode that is held, whatever its name leads to by now
}

func (u use) how() string {
	if u.fd < 0 {
		return "map"
	}
	return "fd"
}

// uses lists what processes have of a mount's files. It goes by the device, not
// by the mount: containers have the same files on mounts of their own.
func uses(m mountEntry) (list []use) {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	ids := make(map[string]map[string]bool) // mount ids of the device, by mount namespace
	for _, proc := range procs {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil {
			continue
		}
		namespace, err := os.Readlink(proc + "/ns/mnt")
		if err != nil {
			continue // gone, or somebody else's
		}
		if ids[namespace] == nil {
			ids[namespace] = mountIDs(proc+"/mountinfo", m)
		}
		infos, _ := filepath.Glob(proc + "/fdinfo/*")
		for _, info := range infos {
			b, err := os.ReadFile(info)
			_, rest, _ := strings.Cut(string(b), "mnt_id:\t")
			id, _, _ := strings.Cut(rest, "\n")
			if err != nil || !ids[namespace][id] {
				continue
			}
			if fd, err := strconv.Atoi(filepath.Base(info)); err == nil {
				list = append(list, use{pid: pid, fd: fd, link: fmt.Sprintf("%s/fd/%d", proc, fd)})
			}
		}
		list = append(list, mappings(proc, pid, m)...)
	}
	return list
}

func mountIDs(path string, device mountEntry) map[string]bool {
	ids := make(map[string]bool)
	f, err := os.Open(path)
	if err != nil {
		return ids
	}
	defer f.Close()
	list, err := parseMountinfo(f)
	if err != nil {
		return ids
	}
	for _, m := range list {
		if m.major == device.major && m.minor == device.minor {
			ids[strconv.Itoa(m.id)] = true
		}
	}
	return ids
}

// mappings reads /proc/PID/maps, in which a file that the kernel serves by
// passthrough has the device, the inode and the path of the mount.
func mappings(proc string, pid int, m mountEntry) (list []use) {
	f, err := os.Open(proc + "/maps")
	if err != nil {
		return nil
	}
	defer f.Close()
	device := fmt.Sprintf("%02x:%02x", m.major, m.minor)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// address perms offset dev inode path
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[3] != device {
			continue
		}
		from, to, _ := strings.Cut(fields[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil {
			list = append(list, use{
				pid: pid, fd: -1, start: start, unopened: fields[1][0] != 'r',
				link: fmt.Sprintf("%s/map_files/%x-%x", proc, start, end),
			})
		}
	}
	return list
}

// holds asks the mount whether the file is one of files and refused now. If the
// mount has forgotten what it measured, name and size decide.
func (u use) holds(files []control.File) (path string, revoked bool) {
	path, err := os.Readlink(u.link)
	if err != nil {
		return "", false // closed meanwhile
	}
	if reason, err := readXattr(u.link, reasonXattr); err == nil && string(reason) == "granted" {
		return path, false // by another capability
	}
	digest, err := readXattr(u.link, digestXattr)
	if err == nil {
		d, err := hashpipe.ParseDigest(string(digest))
		return path, err == nil && slices.ContainsFunc(files, func(f control.File) bool { return f.SHA256 == d })
	}
	var st unix.Stat_t
	if !errors.Is(err, unix.ENODATA) || unix.Stat(u.link, &st) != nil {
		return path, false
	}
	return path, slices.ContainsFunc(files, func(f control.File) bool {
		return f.Size == st.Size && filepath.Base(f.Name) == filepath.Base(path)
	})
}

// reads tries whether the process still gets bytes: a descriptor or a mapping of
// tier blocks is cut, one of a private file is not. Who cannot be asked counts
// as a reader.
func (u use) reads() bool {
	var b [1]byte
	if u.fd < 0 {
		if u.unopened {
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
