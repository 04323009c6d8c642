package sandbox

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	jsonv1 "github.com/go-json-experiment/json/v1"
	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// buildUID and buildGID are the build's user inside the container.
	buildUID, buildGID = 1000, 1000
	// idRange is how many ids a container has.
	idRange = 1 << 16
	// tmpFiles bounds the inodes of each tmpfs.
	tmpFiles = 1 << 17
	// defaultOpenFiles is what Debian's login gives a process.
	defaultOpenFiles = 1024
)

// bundle is what one stage's container is made of.
type bundle struct {
	spec   Spec // with defaults filled in
	stage  Stage
	limits Limits            // of this stage
	root   string            // mounted image
	out    string            // host directory behind /out
	before map[string]string // host directories behind /in/stages/<name>
	cpus   string            // "0,1", or empty
	timeNS bool
	swap   bool
}

// write makes the bundle directory that runc is pointed at.
func (b bundle) write(dir string) error {
	config, err := b.config()
	if err != nil {
		return err
	}
	// The Go types of the runtime-spec are made for encoding/json: there, an
	// empty set of capabilities is written, and without it runc drops none.
	text, err := json.Marshal(config, json.Deterministic(true), jsonv1.OmitEmptyWithLegacySemantics(true))
	if err != nil {
		return fmt.Errorf("container configuration: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600)
}

func (b bundle) config() (*specs.Spec, error) {
	v := b.spec.Variation
	cwd := b.stage.WorkDir
	if cwd == "" {
		cwd = v.WorkDir
	}
	noFile, err := rlimit(unix.RLIMIT_NOFILE, uint64(b.limits.OpenFiles))
	if err != nil {
		return nil, err
	}
	// Above the size of /out, so that a large file meets the limit of /out
	// first; it bounds what a sparse file pretends to hold.
	fileSize, err := rlimit(unix.RLIMIT_FSIZE, uint64(2*b.limits.OutputBytes+64<<20))
	if err != nil {
		return nil, err
	}
	umask, oom := uint32(0o022), 500
	c := &specs.Spec{
		Version:  specs.Version,
		Hostname: v.Hostname,
		Root:     &specs.Root{Path: b.root, Readonly: true},
		Process: &specs.Process{
			User:            specs.User{UID: buildUID, GID: buildGID, Umask: &umask},
			Args:            b.stage.Argv,
			Env:             environment(b.spec.Env, b.stage.Env, v.ReverseEnv),
			Cwd:             cwd,
			Capabilities:    &specs.LinuxCapabilities{},
			NoNewPrivileges: true,
			OOMScoreAdj:     &oom,
			Rlimits: []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Hard: noFile, Soft: noFile},
				{Type: "RLIMIT_FSIZE", Hard: fileSize, Soft: fileSize},
				{Type: "RLIMIT_CORE"},
			},
		},
		Mounts: b.mounts(),
		Linux:  b.linux(),
	}
	if c.Linux.Seccomp, err = seccomp.GetDefaultProfile(c); err != nil {
		return nil, fmt.Errorf("system-call filter: %w", err)
	}
	withhold(c.Linux.Seccomp)
	return c, nil
}

// withheld are system calls that the common profile allows and no build needs:
// they look into other processes, or tell handles of files.
var withheld = []string{"ptrace", "process_vm_readv", "process_vm_writev", "name_to_handle_at"}

// withhold takes the withheld calls out of every rule, so that the default
// action, an error, is theirs. The kernel's interfaces for programs of other
// architectures go too: the platform of a ledger is one, and a filter for
// three took runc three times as long to make.
func withhold(filter *specs.LinuxSeccomp) {
	filter.Architectures = filter.Architectures[:min(1, len(filter.Architectures))] // the native one is first
	for i := range filter.Syscalls {
		r := &filter.Syscalls[i]
		r.Names = slices.DeleteFunc(r.Names, func(name string) bool { return slices.Contains(withheld, name) })
	}
	filter.Syscalls = slices.DeleteFunc(filter.Syscalls, func(r specs.LinuxSyscall) bool { return len(r.Names) == 0 })
}

func (b bundle) linux() *specs.Linux {
	l, v := b.limits, b.spec.Variation
	quota, period := cpuQuota(l.CPUs), uint64(cpuPeriod)
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: v.UID, Size: idRange}}
	r := &specs.LinuxResources{
		Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
		Memory:  &specs.LinuxMemory{Limit: &l.MemoryBytes},
		CPU:     &specs.LinuxCPU{Quota: &quota, Period: &period, Cpus: b.cpus},
		Pids:    &specs.LinuxPids{Limit: &l.Processes},
	}
	if b.swap {
		r.Memory.Swap = &l.MemoryBytes // memory and swap together
	}
	linux := &specs.Linux{
		UIDMappings: ids,
		GIDMappings: ids,
		Resources:   r,
		// As containerd and Docker have them: files of /proc that tell about
		// the host or change it.
		MaskedPaths: []string{
			"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
			"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
			"/proc/timer_stats", "/sys",
		},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
	}
	for _, ns := range []specs.LinuxNamespaceType{specs.UserNamespace, specs.PIDNamespace, specs.NetworkNamespace,
		specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace, specs.CgroupNamespace} {
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: ns})
	}
	if b.timeNS {
		linux.Namespaces = append(linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		if v.Uptime > 0 {
			shift := specs.LinuxTimeOffset{Secs: int64(v.Uptime.Seconds())}
			linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": shift, "boottime": shift}
		}
	}
	return linux
}

// mounts leaves out /sys and /sys/fs/cgroup: they tell about the host.
func (b bundle) mounts() []specs.Mount {
	size := "size=" + strconv.FormatInt(b.limits.MemoryBytes, 10)
	files := "nr_inodes=" + strconv.Itoa(tmpFiles)
	user := []string{"uid=" + strconv.Itoa(buildUID), "gid=" + strconv.Itoa(buildGID)}
	bind := func(src, dst string, opts ...string) specs.Mount {
		return specs.Mount{Destination: dst, Type: "bind", Source: src, Options: append([]string{"bind", "private", "nosuid", "nodev"}, opts...)}
	}
	m := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=0755", "size=65536", "nr_inodes=64"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", size, files}},
		{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", size, files}},
		{Destination: b.spec.Variation.WorkDir, Type: "tmpfs", Source: "tmpfs", Options: append([]string{"nosuid", "nodev", "mode=0755", size, files}, user...)},
		bind(b.out, "/out", "rw"),
	}
	for _, in := range b.spec.Inputs {
		m = append(m, bind(in.Path, path.Join("/in", in.Name), "ro"))
	}
	for _, name := range slices.Sorted(maps.Keys(b.before)) {
		m = append(m, bind(b.before[name], path.Join("/in/stages", name), "ro"))
	}
	return m
}

// environment merges defaults, the recipe's and the stage's variables.
func environment(recipe, stage map[string]string, reverse bool) []string {
	env := map[string]string{
		"PATH":   "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME":   "/tmp",
		"TMPDIR": "/tmp",
	}
	maps.Copy(env, recipe)
	maps.Copy(env, stage)
	var list []string
	for _, k := range slices.Sorted(maps.Keys(env)) {
		list = append(list, k+"="+env[k])
	}
	if reverse {
		slices.Reverse(list)
	}
	return list
}

// rlimit lowers want to this process's hard limit: raising one needs
// CAP_SYS_RESOURCE, which even root may lack.
func rlimit(resource int, want uint64) (uint64, error) {
	var have unix.Rlimit
	if err := unix.Getrlimit(resource, &have); err != nil {
		return 0, fmt.Errorf("reading resource limits: %w", err)
	}
	return min(want, have.Max), nil
}

// mountRoot mounts the image read-only at dir, with the mount points that it
// lacks: an overlay of two lower layers and no upper one. A mount point of
// ours hides a file or link that the image has in its place.
func mountRoot(image, points, dir string) error {
	lower := make([]string, 2)
	for i, p := range []string{points, image} {
		f, err := os.Open(p) // by descriptor: a path may hold ':' or ','
		if err != nil {
			return err
		}
		defer f.Close()
		lower[i] = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	}
	if err := unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "lowerdir="+strings.Join(lower, ":")); err != nil {
		return fmt.Errorf("mounting the image: %w", err)
	}
	return nil
}

// makePoints fills dir with the mount points of every stage.
func makePoints(dir string, s Spec) error {
	// /sys is only masked, but a link in its place would lead the mask to
	// another directory of the container.
	points := []string{"proc", "sys", "dev", "tmp", "out", "in", s.Variation.WorkDir}
	for _, st := range s.Stages {
		points = append(points, path.Join("in/stages", st.Name))
	}
	for _, in := range s.Inputs {
		st, err := os.Stat(in.Path)
		if err != nil {
			return fmt.Errorf("input %s: %w", in.Name, err)
		}
		if st.IsDir() {
			points = append(points, path.Join("in", in.Name))
			continue
		}
		if !st.Mode().IsRegular() {
			return fmt.Errorf("input %s: %s is neither a directory nor a regular file", in.Name, in.Path)
		}
		file := filepath.Join(dir, "in", in.Name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			return err
		}
	}
	for _, p := range points {
		if err := os.MkdirAll(filepath.Join(dir, p), 0o755); err != nil {
			return err
		}
	}
	return filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chmod(at, 0o755) // no umask narrows what the build may search
	})
}
