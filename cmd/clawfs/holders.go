package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// holder is a process that keeps a mount busy, and how.
type holder struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
	How  string `json:"how"`
}

// holders finds the processes that have a file of the mount open, mapped, or
// as their working or root directory. It reads /proc only and never follows a
// link into the mount. Processes that this user may not look into are missed.
func holders(m mountEntry) []holder {
	var list []holder
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, proc := range procs {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil {
			continue
		}
		if how := holds(proc, m); how != "" {
			comm, _ := os.ReadFile(proc + "/comm")
			list = append(list, holder{PID: pid, Comm: strings.TrimSpace(string(comm)), How: how})
		}
	}
	return list
}

func holds(proc string, m mountEntry) string {
	for _, link := range []string{"cwd", "root"} {
		if to, err := os.Readlink(proc + "/" + link); err == nil && below(to, m.point) {
			return link
		}
	}
	infos, _ := filepath.Glob(proc + "/fdinfo/*")
	for _, info := range infos {
		b, err := os.ReadFile(info)
		if err == nil && strings.Contains(string(b), fmt.Sprintf("mnt_id:\t%d\n", m.id)) {
			return "open file"
		}
	}
	f, err := os.Open(proc + "/maps")
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// address perms offset dev inode path
		if _, path, ok := strings.Cut(lines.Text(), " /"); ok && below("/"+path, m.point) {
			return "mapped file"
		}
	}
	return ""
}

func holdersText(list []holder) string {
	if len(list) == 0 {
		return "by a process that cannot be seen from here, or that waits until a file it opens is verified"
	}
	var parts []string
	for i, h := range list {
		if i == 5 {
			parts = append(parts, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		parts = append(parts, fmt.Sprintf("%s(%d, %s)", printable(h.Comm), h.PID, h.How))
	}
	return "by " + strings.Join(parts, ", ")
}
