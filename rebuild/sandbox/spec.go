package sandbox

import (
	"cmp"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Smallest limits under which runc itself still starts a container.
const (
	minMemory    = 32 << 20
	minProcesses = 16
	minCPUs      = 0.01
)

// minOpenFiles is what the C library and a dynamic linker need at once.
const minOpenFiles = 16

// name is one component of a path in the container.
var name = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// complete checks a Spec and fills in the defaults.
func (s Spec) complete() (Spec, error) {
	if s.Recipe.IsZero() {
		return s, fmt.Errorf("no recipe digest: outputs must belong to a ledger")
	}
	if len(s.Stages) == 0 {
		return s, fmt.Errorf("no stages")
	}
	if len(s.Outputs) == 0 {
		return s, fmt.Errorf("no outputs wanted")
	}
	if err := s.Limits.check(); err != nil {
		return s, err
	}
	for _, dir := range []string{s.Rootfs, s.Dir} {
		if st, err := os.Stat(dir); err != nil {
			return s, err
		} else if !st.IsDir() {
			return s, fmt.Errorf("%s is not a directory", dir)
		}
	}
	if err := s.checkNames(); err != nil {
		return s, err
	}
	if err := checkEnv(s.Env); err != nil {
		return s, err
	}
	for i := range s.Inputs {
		abs, err := filepath.Abs(s.Inputs[i].Path)
		if err != nil {
			return s, err
		}
		if i == 0 {
			s.Inputs = slices.Clone(s.Inputs)
		}
		s.Inputs[i].Path = abs
	}
	err := s.Variation.complete(s.Rootfs)
	return s, err
}

func (l Limits) check() error {
	switch {
	case l.MemoryBytes < minMemory:
		return fmt.Errorf("memory limit is %d bytes, the least is %d", l.MemoryBytes, minMemory)
	case l.Processes < minProcesses:
		return fmt.Errorf("process limit is %d, the least is %d", l.Processes, minProcesses)
	case !(l.CPUs >= minCPUs) || l.CPUs > 1<<16:
		return fmt.Errorf("CPU limit is %v, wanted %v or more", l.CPUs, minCPUs)
	case l.OutputBytes <= 0 || l.OutputBytes > math.MaxInt64/4:
		return fmt.Errorf("output limit is %d bytes, wanted more than 0", l.OutputBytes)
	case l.LogBytes <= 0:
		return fmt.Errorf("log limit is %d bytes, wanted more than 0", l.LogBytes)
	case l.Wall <= 0:
		return fmt.Errorf("time limit is %v, wanted more than 0", l.Wall)
	case l.CPUTime < 0:
		return fmt.Errorf("CPU time limit is %v, wanted more than 0, or 0 for none", l.CPUTime)
	case l.OpenFiles != 0 && (l.OpenFiles < minOpenFiles || l.OpenFiles > 1<<20):
		return fmt.Errorf("limit of open files is %d, wanted %d to %d, or 0 for %d", l.OpenFiles, minOpenFiles, 1<<20, defaultOpenFiles)
	}
	return nil
}

// Check refuses what is not narrower than the limits of the run, and what no
// container can live in.
func (n StageLimits) Check(l Limits) error {
	for _, f := range []struct {
		what             string
		got, least, most int64
	}{
		{"memory limit in bytes", n.MemoryBytes, minMemory, l.MemoryBytes},
		{"process limit", n.Processes, minProcesses, l.Processes},
		{"CPU time limit in nanoseconds", int64(n.CPUTime), 1, int64(l.CPUTime)},
		{"output limit in bytes", n.OutputBytes, 1, l.OutputBytes},
	} {
		if f.most == 0 {
			f.most = math.MaxInt64
		}
		if f.got != 0 && (f.got < f.least || f.got > f.most) {
			return fmt.Errorf("%s is %d, wanted %d to %d, or 0 for that of the run", f.what, f.got, f.least, f.most)
		}
	}
	return nil
}

// of are the limits of one stage. CPUTime and OutputBytes are what the stage
// may use where the run has so much left.
func (l Limits) of(s Stage) Limits {
	l.MemoryBytes = cmp.Or(s.Limits.MemoryBytes, l.MemoryBytes)
	l.MemoryBytes -= l.MemoryBytes % int64(os.Getpagesize())
	l.Processes = cmp.Or(s.Limits.Processes, l.Processes)
	l.CPUTime = cmp.Or(s.Limits.CPUTime, l.CPUTime)
	l.OutputBytes = cmp.Or(s.Limits.OutputBytes, l.OutputBytes)
	l.OpenFiles = cmp.Or(l.OpenFiles, defaultOpenFiles)
	return l
}

func (s Spec) checkNames() error {
	var stages, inputs, outputs []string
	for _, st := range s.Stages {
		if !name.MatchString(st.Name) || slices.Contains(stages, st.Name) {
			return fmt.Errorf("stage name %q is malformed or used twice", st.Name)
		}
		stages = append(stages, st.Name)
		if len(st.Argv) == 0 || st.Argv[0] == "" {
			return fmt.Errorf("stage %s has no command", st.Name)
		}
		for _, a := range st.Argv {
			if strings.ContainsRune(a, 0) {
				return fmt.Errorf("stage %s: argument %q holds a zero byte", st.Name, a)
			}
		}
		if st.WorkDir != "" && (!path.IsAbs(st.WorkDir) || path.Clean(st.WorkDir) != st.WorkDir) {
			return fmt.Errorf("stage %s: work directory %q is not a clean absolute path", st.Name, st.WorkDir)
		}
		if st.Wall < 0 {
			return fmt.Errorf("stage %s: time limit is %v", st.Name, st.Wall)
		}
		if err := checkEnv(st.Env); err != nil {
			return fmt.Errorf("stage %s: %w", st.Name, err)
		}
		if err := st.Limits.Check(s.Limits); err != nil {
			return fmt.Errorf("stage %s: %w", st.Name, err)
		}
		for i, a := range st.Artifacts {
			if !isOutPath(a) || slices.Contains(st.Artifacts[:i], a) {
				return fmt.Errorf("stage %s: artifact %q is not a clean relative path or is there twice", st.Name, a)
			}
		}
	}
	for _, in := range s.Inputs {
		for part := range strings.SplitSeq(in.Name, "/") {
			if !name.MatchString(part) {
				return fmt.Errorf("input name %q is malformed", in.Name)
			}
		}
		for _, other := range append([]string{"stages"}, inputs...) {
			if in.Name == other || strings.HasPrefix(in.Name, other+"/") || strings.HasPrefix(other, in.Name+"/") {
				return fmt.Errorf("inputs %q and %q share a place", other, in.Name)
			}
		}
		inputs = append(inputs, in.Name)
	}
	for _, w := range s.Outputs {
		if w.Name == "" || slices.Contains(outputs, w.Name) {
			return fmt.Errorf("output name %q is empty or used twice", w.Name)
		}
		outputs = append(outputs, w.Name)
		if !isOutPath(w.Path) {
			return fmt.Errorf("output %s: path %q is not a clean relative path", w.Name, w.Path)
		}
	}
	return nil
}

// isOutPath tells whether p may name a file below /out.
func isOutPath(p string) bool {
	return fs.ValidPath(p) && p != "." && !strings.ContainsRune(p, 0)
}

func checkEnv(env map[string]string) error {
	for k, v := range env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return fmt.Errorf("environment variable %q is malformed", k)
		}
	}
	return nil
}

func (v *Variation) complete(rootfs string) error {
	if v.Hostname == "" {
		v.Hostname = "build"
	}
	if !name.MatchString(v.Hostname) || len(v.Hostname) > 63 {
		return fmt.Errorf("host name %q is malformed", v.Hostname)
	}
	if v.WorkDir == "" {
		v.WorkDir = "/work"
	}
	if err := checkWorkDir(rootfs, v.WorkDir); err != nil {
		return err
	}
	if v.UID == 0 {
		v.UID = 1 << 30
	}
	if v.UID < 1<<20 || v.UID > 1<<31 {
		return fmt.Errorf("first host user id is %d, wanted %d to %d", v.UID, 1<<20, 1<<31)
	}
	if v.Uptime < 0 {
		return fmt.Errorf("uptime is shifted by %v, wanted 0 or more", v.Uptime)
	}
	_, err := v.cpuList()
	return err
}

// checkWorkDir makes sure that a tmpfs at dir hides nothing the build needs.
func checkWorkDir(rootfs, dir string) error {
	if !path.IsAbs(dir) || path.Clean(dir) != dir || dir == "/" {
		return fmt.Errorf("work directory %q is not a clean absolute path", dir)
	}
	parts := strings.Split(dir[1:], "/")
	if slices.Contains([]string{"proc", "dev", "sys", "in", "out", "tmp"}, parts[0]) {
		return fmt.Errorf("work directory %s lies in /%s, which has its own use", dir, parts[0])
	}
	for i := range parts {
		at := filepath.Join(rootfs, filepath.Join(parts[:i+1]...))
		st, err := os.Lstat(at)
		switch {
		case os.IsNotExist(err):
			return nil
		case err != nil:
			return err
		case !st.IsDir():
			return fmt.Errorf("work directory %s: the image has a file or link at /%s", dir, path.Join(parts[:i+1]...))
		}
	}
	entries, err := os.ReadDir(filepath.Join(rootfs, dir))
	if err == nil && len(entries) > 0 {
		return fmt.Errorf("work directory %s hides files of the image", dir)
	}
	return err
}

// cpuList is the kernel's text for CPUs, as cpuset.cpus prints it back.
func (v Variation) cpuList() (string, error) {
	if len(v.CPUs) == 0 && !v.OneCPULess {
		return "", nil
	}
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return "", fmt.Errorf("reading the CPU set: %w", err)
	}
	if v.OneCPULess {
		if len(v.CPUs) > 0 {
			return "", fmt.Errorf("both CPUs %v and one CPU less are asked for", v.CPUs)
		}
		if v.CPUs = allButFirst(may); len(v.CPUs) == 0 {
			return "", nil
		}
	}
	cpus := slices.Compact(slices.Sorted(slices.Values(v.CPUs)))
	var ranges []string
	for i := 0; i < len(cpus); {
		if cpus[i] < 0 || !may.IsSet(cpus[i]) {
			return "", fmt.Errorf("CPU %d is not among the %d this process may use", cpus[i], may.Count())
		}
		j := i
		for j+1 < len(cpus) && cpus[j+1] == cpus[j]+1 && may.IsSet(cpus[j+1]) {
			j++
		}
		r := strconv.Itoa(cpus[i])
		if j > i {
			r += "-" + strconv.Itoa(cpus[j])
		}
		ranges = append(ranges, r)
		i = j + 1
	}
	return strings.Join(ranges, ","), nil
}

// allButFirst lists the processors of a set but its first.
func allButFirst(set unix.CPUSet) []int {
	var cpus []int
	for cpu, left := 0, set.Count(); left > 0; cpu++ {
		if set.IsSet(cpu) {
			cpus, left = append(cpus, cpu), left-1
		}
	}
	return cpus[min(1, len(cpus)):]
}
