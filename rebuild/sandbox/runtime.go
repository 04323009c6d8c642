package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
)

// buildRunc is the command that every refusal of a runtime ends with.
const buildRunc = "build it with: cd tools && go build -tags seccomp -trimpath -o ../bin/runc github.com/opencontainers/runc"

// Runtime is an OCI runtime that was found able to enforce every limit. The
// zero Runtime refuses to run.
type Runtime struct {
	path    string // absolute
	version string
	mkfs    string // absolute path of mke2fs
	cgroups hierarchy
	timeNS  bool
}

// Find probes the runc program at path and this host: version, system-call
// filter, user namespaces, cgroup controllers, loop devices. It refuses what
// cannot be isolated or limited here, and says what to do.
func Find(path string) (*Runtime, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("sandbox: needs root to map user ids, mount and set limits; this is uid %d", os.Geteuid())
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("sandbox: runtime: %w", err)
	}
	r := &Runtime{path: abs}
	if r.version, err = probeVersion(abs); err != nil {
		return nil, fmt.Errorf("sandbox: runtime %s: %w; %s", path, err, buildRunc)
	}
	if r.timeNS, err = probeFeatures(abs); err != nil {
		return nil, fmt.Errorf("sandbox: runtime %s: %w; %s", path, err, buildRunc)
	}
	if err := probeNamespaces(abs); err != nil {
		return nil, fmt.Errorf("sandbox: user namespaces: %w; see /proc/sys/user/max_user_namespaces", err)
	}
	if r.cgroups, err = findHierarchy(); err != nil {
		return nil, fmt.Errorf("sandbox: refusing to run builds without limits: %w", err)
	}
	if r.mkfs, err = findProgram("mke2fs", "mkfs.ext4"); err != nil {
		return nil, fmt.Errorf("sandbox: cannot limit what builds write: %w; apt-get install e2fsprogs", err)
	}
	if _, err := os.Stat(loopControl); err != nil {
		return nil, fmt.Errorf("sandbox: cannot limit what builds write: no loop devices (%w); modprobe loop", err)
	}
	return r, nil
}

// String names the runtime's version and the cgroup version, for the record.
func (r *Runtime) String() string {
	return fmt.Sprintf("runc %s, cgroup v%d", r.version, r.cgroups.version)
}

func probeVersion(path string) (string, error) {
	out, err := runProbe(path, nil, "--version")
	if err != nil {
		return "", err
	}
	return checkVersion(out)
}

// checkVersion reads the answer of `runc --version` and refuses what lacks a
// fix or the filter.
func checkVersion(answer string) (string, error) {
	var version, seccomp string
	for line := range strings.Lines(answer) {
		if v, ok := strings.CutPrefix(line, "runc version "); ok {
			version = strings.TrimSpace(v)
		}
		if v, ok := strings.CutPrefix(line, "libseccomp: "); ok {
			seccomp = strings.TrimSpace(v)
		}
	}
	if version == "" {
		return "", fmt.Errorf("--version does not say \"runc version …\" but %q", firstLine(answer))
	}
	fixed, err := hasFixes(version)
	if err != nil {
		return "", err
	}
	if !fixed {
		return "", fmt.Errorf("version %s lets a container write host files (CVE-2025-31133, CVE-2025-52565, CVE-2025-52881); fixed in 1.2.8, 1.3.3, 1.4.0", version)
	}
	if seccomp == "" {
		return "", fmt.Errorf("version %s was built without the seccomp tag and cannot filter system calls", version)
	}
	return version, nil
}

// hasFixes tells whether a runc version has the fixes of November 2025. A
// pre-release counts as older than its release.
func hasFixes(version string) (bool, error) {
	plain, _, _ := strings.Cut(version, "+") // "+dev" is build metadata
	base, pre, _ := strings.Cut(plain, "-")
	parts := strings.Split(base, ".")
	if len(parts) != 3 {
		return false, fmt.Errorf("version %q is not of the form 1.2.3", version)
	}
	var n [3]int
	for i, p := range parts {
		v, err := strconv.Atoi(p)
		if err != nil || v < 0 {
			return false, fmt.Errorf("version %q is not of the form 1.2.3", version)
		}
		n[i] = v
	}
	at := func(min int) bool { return n[2] > min || n[2] == min && pre == "" }
	switch {
	case n[0] > 1:
		return true, nil
	case n[0] < 1:
		return false, nil
	case n[1] == 2:
		return at(8), nil
	case n[1] == 3:
		return at(3), nil
	case n[1] == 4:
		return at(0), nil
	default:
		return n[1] > 4, nil
	}
}

// features is what clawfs needs of `runc features` (runtime-spec features.md).
type features struct {
	Linux struct {
		Namespaces []string `json:"namespaces"`
		Cgroup     struct {
			V1 bool `json:"v1"`
			V2 bool `json:"v2"`
		} `json:"cgroup"`
		Seccomp struct {
			Enabled bool `json:"enabled"`
		} `json:"seccomp"`
	} `json:"linux"`
}

func probeFeatures(path string) (timeNS bool, err error) {
	out, err := runProbe(path, nil, "features")
	if err != nil {
		return false, err
	}
	var f features
	if err := json.Unmarshal([]byte(out), &f); err != nil {
		return false, fmt.Errorf("features: %w", err)
	}
	if !f.Linux.Seccomp.Enabled {
		return false, errors.New("features: no system-call filter")
	}
	for _, ns := range []string{"user", "pid", "mount", "network", "ipc", "uts", "cgroup"} {
		if !slices.Contains(f.Linux.Namespaces, ns) {
			return false, fmt.Errorf("features: no %s namespace", ns)
		}
	}
	_, kernel := os.Stat("/proc/self/ns/time")
	return kernel == nil && slices.Contains(f.Linux.Namespaces, "time"), nil
}

// probeNamespaces starts the runtime once in new user, network and pid
// namespaces: the only sure way to learn that this host allows them.
func probeNamespaces(path string) error {
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1 << 30, Size: 1}}
	_, err := runProbe(path, &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		UidMappings: one,
		GidMappings: one,
	}, "--version")
	return err
}

func runProbe(path string, attr *syscall.SysProcAttr, arg string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, path, arg)
	cmd.Env = []string{}
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = attr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w %s", arg, err, firstLine(errs.String()))
	}
	return out.String(), nil
}

func findProgram(names ...string) (string, error) {
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/bin", "/bin"} {
		for _, name := range names {
			p := filepath.Join(dir, name)
			if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
				return p, nil
			}
		}
	}
	return "", fmt.Errorf("no %s in /usr/sbin, /sbin, /usr/bin, /bin", names[0])
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return s
}
