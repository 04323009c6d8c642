package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuPeriod is the accounting period of the CPU quota in microseconds, the
// kernel's default.
const cpuPeriod = 100_000

// hierarchy is how this host's cgroups are laid out, as runc will use them:
// version 2 if /sys/fs/cgroup itself is cgroup2, else version 1. In the hybrid
// layout runc drives the v1 half only, so a controller in the v2 half is
// missing there.
type hierarchy struct {
	version int
	mounts  map[string]cgroupMount // by controller; v2: one mount for all
	swap    bool                   // swap use can be limited
	cpuset  bool
}

type cgroupMount struct {
	dir  string // where the hierarchy is mounted
	root string // what part of it is mounted there
}

// findHierarchy detects the layout and makes and removes one directory in each
// needed controller, as proof that this process may.
func findHierarchy() (hierarchy, error) {
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		return hierarchy{}, fmt.Errorf("/sys/fs/cgroup: %w", err)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return hierarchy{}, err
	}
	h, err := parseHierarchy(string(info), st.Type == unix.CGROUP2_SUPER_MAGIC)
	if err != nil {
		return hierarchy{}, err
	}
	if err := h.probe(); err != nil {
		return hierarchy{}, err
	}
	return h, nil
}

func parseHierarchy(mountinfo string, unified bool) (hierarchy, error) {
	h := hierarchy{version: 1, mounts: map[string]cgroupMount{}}
	var v2 []cgroupMount
	for line := range strings.Lines(mountinfo) {
		// 36 35 98:0 /root /mount/point rw,… shared:1 - cgroup cgroup rw,memory
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		m := cgroupMount{dir: left[4], root: left[3]}
		switch right[0] {
		case "cgroup2":
			v2 = append(v2, m)
		case "cgroup":
			for opt := range strings.SplitSeq(right[2], ",") {
				if _, seen := h.mounts[opt]; !seen {
					h.mounts[opt] = m
				}
			}
		}
	}
	if unified {
		h.version = 2
		h.mounts = map[string]cgroupMount{}
		for _, m := range v2 {
			if m.dir == "/sys/fs/cgroup" {
				h.mounts[""] = m
			}
		}
		if len(h.mounts) == 0 {
			return hierarchy{}, errors.New("/sys/fs/cgroup is cgroup2 but not in /proc/self/mountinfo")
		}
	}
	return h, nil
}

func (h *hierarchy) probe() error {
	needed := []string{"memory", "pids", "cpu"}
	if h.version == 2 {
		b, err := os.ReadFile(filepath.Join(h.mounts[""].dir, "cgroup.controllers"))
		if err != nil {
			return err
		}
		have := strings.Fields(string(b))
		for _, c := range needed {
			if !slices.Contains(have, c) {
				return fmt.Errorf("cgroup v2 has no %s controller here, only %q", c, have)
			}
		}
		h.cpuset = slices.Contains(have, "cpuset")
		h.swap = true
		own, err := h.dir("self", "memory")
		if err != nil {
			return err
		}
		if own != h.mounts[""].dir {
			own = filepath.Dir(own) // runc makes a sibling: no cgroup v2 has both processes and children
		}
		return probeMkdir(own)
	}
	for _, c := range append(needed, "cpuacct") { // v2 counts CPU time in every cgroup
		if _, ok := h.mounts[c]; !ok {
			return fmt.Errorf("no %s controller: not mounted as cgroup v1, and /sys/fs/cgroup is not cgroup v2 (runc uses only the v1 half of a hybrid layout)", c)
		}
		dir, err := h.dir("self", c)
		if err == nil {
			err = probeMkdir(dir)
		}
		if err != nil {
			return fmt.Errorf("%s controller: %w", c, err)
		}
	}
	_, h.cpuset = h.mounts["cpuset"]
	dir, err := h.dir("self", "memory")
	if err != nil {
		return err
	}
	h.swap = exists(filepath.Join(dir, "memory.memsw.limit_in_bytes"))
	if swaps, err := os.ReadFile("/proc/swaps"); !h.swap && (err != nil || strings.Count(string(swaps), "\n") > 1) {
		return errors.New("this host swaps and its kernel cannot limit swap; boot with swapaccount=1 or turn swap off")
	}
	return nil
}

func probeMkdir(parent string) error {
	dir, err := os.MkdirTemp(parent, idPrefix+"probe-")
	if err != nil {
		return err
	}
	return os.Remove(dir)
}

// dir is the directory of the cgroup of process pid (or "self") in the
// hierarchy of controller.
func (h hierarchy) dir(pid, controller string) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	if err != nil {
		return "", err
	}
	want := controller
	if h.version == 2 {
		want = ""
	}
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3) // id:controllers:path
		if len(parts) != 3 || !slices.Contains(strings.Split(parts[1], ","), want) {
			continue
		}
		if h.version == 2 && parts[0] != "0" {
			continue
		}
		m := h.mounts[want]
		path := parts[2]
		if m.root != "/" { // only a part of the hierarchy is mounted
			rest, ok := strings.CutPrefix(path, m.root)
			if !ok {
				return "", fmt.Errorf("cgroup %s of process %s lies outside the mounted %s", path, pid, m.root)
			}
			path = rest
		}
		return filepath.Join(m.dir, path), nil
	}
	return "", fmt.Errorf("process %s has no %s cgroup", pid, controller)
}

// group is the cgroup of one container.
type group struct {
	h                                  hierarchy
	memory, pids, cpu, cpuacct, cpuset string // directories
}

// container finds the cgroup of a container by its first process and checks
// that it is the container's own and holds exactly the wanted limits.
func (h hierarchy) container(pid int, id string, l Limits, cpus string) (group, error) {
	g := group{h: h}
	for _, c := range []struct {
		name string
		dst  *string
	}{{"memory", &g.memory}, {"pids", &g.pids}, {"cpu", &g.cpu}, {"cpuacct", &g.cpuacct}, {"cpuset", &g.cpuset}} {
		if c.name == "cpuset" && !h.cpuset {
			continue
		}
		dir, err := h.dir(strconv.Itoa(pid), c.name)
		if err != nil {
			return group{}, err
		}
		if filepath.Base(dir) != id {
			return group{}, fmt.Errorf("the %s cgroup of the container is %s, not its own", c.name, dir)
		}
		*c.dst = dir
	}
	return g, g.check(l, cpus)
}

func (g group) check(l Limits, cpus string) error {
	memory := strconv.FormatInt(l.MemoryBytes, 10)
	quota := strconv.FormatInt(cpuQuota(l.CPUs), 10)
	type want struct{ dir, file, value string }
	var wants []want
	if g.h.version == 1 {
		wants = []want{
			{g.memory, "memory.limit_in_bytes", memory},
			{g.pids, "pids.max", strconv.FormatInt(l.Processes, 10)},
			{g.cpu, "cpu.cfs_quota_us", quota},
			{g.cpu, "cpu.cfs_period_us", strconv.Itoa(cpuPeriod)},
		}
		if g.h.swap {
			wants = append(wants, want{g.memory, "memory.memsw.limit_in_bytes", memory})
		}
	} else {
		wants = []want{
			{g.memory, "memory.max", memory},
			{g.pids, "pids.max", strconv.FormatInt(l.Processes, 10)},
			{g.cpu, "cpu.max", quota + " " + strconv.Itoa(cpuPeriod)},
		}
		if exists(filepath.Join(g.memory, "memory.swap.max")) {
			wants = append(wants, want{g.memory, "memory.swap.max", "0"})
		}
	}
	if cpus != "" && g.cpuset != "" {
		wants = append(wants, want{g.cpuset, "cpuset.cpus", cpus})
	}
	for _, w := range wants {
		b, err := os.ReadFile(filepath.Join(w.dir, w.file))
		if err != nil {
			return fmt.Errorf("reading back a limit: %w", err)
		}
		if got := strings.TrimSpace(string(b)); got != w.value {
			return fmt.Errorf("limit %s is %s, wanted %s", filepath.Join(w.dir, w.file), got, w.value)
		}
	}
	return nil
}

func cpuQuota(cpus float64) int64 { return int64(cpus * cpuPeriod) }

// usage is what the kernel counted for a container. The files live until the
// cgroup is removed, also after the last process.
type usage struct {
	oomKills   int64
	forkDenied int64
	peak       int64
	cpu        time.Duration
}

func (g group) usage() (usage, error) {
	var u usage
	var err error
	events := "memory.events"
	peak := "memory.peak"
	if g.h.version == 1 {
		events, peak = "memory.oom_control", "memory.max_usage_in_bytes"
	}
	if u.oomKills, err = counter(filepath.Join(g.memory, events), "oom_kill"); err != nil {
		return usage{}, err
	}
	if u.forkDenied, err = counter(filepath.Join(g.pids, "pids.events"), "max"); err != nil {
		return usage{}, err
	}
	if b, err := os.ReadFile(filepath.Join(g.memory, peak)); err == nil { // memory.peak: Linux 5.19
		u.peak, _ = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	}
	u.cpu, err = g.cpuTime()
	return u, err
}

// cpuTime is what all processes of the container spent on processors so far.
func (g group) cpuTime() (time.Duration, error) {
	if g.h.version == 2 {
		us, err := counter(filepath.Join(g.cpuacct, "cpu.stat"), "usage_usec")
		return time.Duration(us) * time.Microsecond, err
	}
	b, err := os.ReadFile(filepath.Join(g.cpuacct, "cpuacct.usage"))
	if err != nil {
		return 0, fmt.Errorf("reading a counter: %w", err)
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading a counter: cpuacct.usage: %w", err)
	}
	return time.Duration(ns), nil
}

// emptyTime bounds how long the kernel may list a process that was reaped.
const emptyTime = time.Second

// awaitEmpty returns when the container has no process. One that is dead may be
// listed for a moment; one that lives is an error.
func (g group) awaitEmpty() error {
	for deadline := time.Now().Add(emptyTime); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(g.pids, "cgroup.procs"))
		if err != nil || len(b) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the container's first process is dead and these live: %s", strings.Join(strings.Fields(string(b)), " "))
		}
	}
}

func counter(file, key string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, fmt.Errorf("reading a counter: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, ok := strings.Cut(lines.Text(), " "); ok && name == key {
			return strconv.ParseInt(value, 10, 64)
		}
	}
	return 0, fmt.Errorf("reading a counter: no %s in %s", key, file)
}

// removeGroups kills what lives in cgroups whose name starts with prefix and
// removes them, in every mounted hierarchy.
func (h hierarchy) removeGroups(prefix string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for line := range strings.Lines(string(info)) {
		fields := strings.Fields(line)
		if _, after, _ := strings.Cut(line, " - "); len(fields) < 5 || !strings.HasPrefix(after, "cgroup") {
			continue
		}
		errs = append(errs, removeGroupsBelow(fields[4], prefix))
	}
	return errors.Join(errs...)
}

func removeGroupsBelow(top, prefix string) error {
	var found []string
	filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil { // other cgroups come and go while this walks
			return nil
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), prefix) {
			found = append(found, path)
			return fs.SkipDir
		}
		return nil
	})
	var errs []error
	for _, dir := range found {
		errs = append(errs, removeGroup(dir))
	}
	return errors.Join(errs...)
}

// removeGroup kills the processes of a cgroup until none is left, for at most
// five seconds.
func removeGroup(dir string) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for field := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
		err := os.Remove(dir)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroup still in use after SIGKILL: %w", err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
