package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mountType is how the kernel names our mounts in /proc/self/mountinfo: "fuse."
// and the subtype that package fs asks for.
const mountType = "fuse.clawfs"

// mountEntry is one line of /proc/self/mountinfo (proc(5)).
type mountEntry struct {
	id     int    // unique while mounted; fdinfo names it
	device device // of the super block: every bind mount of it has the same
	point  string
	fstype string
	source string
}

// device is a device number. For FUSE its minor is the number below
// /sys/fs/fuse/connections.
type device struct{ major, minor uint32 }

// mounts reads the mount table of this process. Reading it asks no file system
// anything, so it is safe in a process that serves one.
func mounts() ([]mountEntry, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	defer f.Close()
	return parseMountinfo(f)
}

func parseMountinfo(r io.Reader) ([]mountEntry, error) {
	var list []mountEntry
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// 36 35 98:0 /root /point options [optional…] - type source superoptions
		fields := strings.Fields(lines.Text())
		sep := -1
		for i := 6; i < len(fields); i++ {
			if fields[i] == "-" {
				sep = i
				break
			}
		}
		if sep < 0 || sep+2 >= len(fields) {
			return nil, fmt.Errorf("mount table: cannot read line %q", lines.Text())
		}
		id, err := strconv.Atoi(fields[0])
		if err != nil {
			return nil, fmt.Errorf("mount table: cannot read line %q", lines.Text())
		}
		maj, min, _ := strings.Cut(fields[2], ":")
		major, err1 := strconv.ParseUint(maj, 10, 32)
		minor, err2 := strconv.ParseUint(min, 10, 32)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("mount table: cannot read line %q", lines.Text())
		}
		list = append(list, mountEntry{id: id, device: device{uint32(major), uint32(minor)}, point: unescapeMount(fields[4]), fstype: fields[sep+1], source: unescapeMount(fields[sep+2])})
	}
	return list, lines.Err()
}

// unescapeMount undoes the kernel's \ooo for space, tab, newline and backslash.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountedAt returns the topmost mount at dir, which must be absolute and clean.
func mountedAt(dir string) (mountEntry, bool, error) {
	list, err := mounts()
	if err != nil {
		return mountEntry{}, false, err
	}
	for i := len(list) - 1; i >= 0; i-- {
		if list[i].point == dir {
			return list[i], true, nil
		}
	}
	return mountEntry{}, false, nil
}

// unmount takes the mount at dir away. A plain unmount of a mount that was
// used a moment ago can say EBUSY for about half a second, so it is tried for
// patience; a lazy one detaches it at once and open files live on.
func unmount(dir string, lazy bool, patience time.Duration) error {
	end := time.Now().Add(patience)
	for {
		err := unmountOnce(dir, lazy)
		if err != unix.EBUSY || time.Now().After(end) {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// below reports whether path is dir or lies in it. Both are absolute and clean.
func below(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}
