package sandbox

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Host describes a machine that runs builds.
type Host struct {
	Name     string
	OS, Arch string // as Go spells them
	// CPUFeatures are all that the kernel lists for the first processor; empty
	// where it does not tell.
	CPUFeatures []string
	Processor   string // model, where the kernel tells
	Kernel      string // release
	Runtime     string // Runtime.String
}

// ThisHost describes this machine, without a runtime.
func ThisHost() Host {
	h := Host{OS: runtime.GOOS, Arch: runtime.GOARCH}
	h.Processor, h.CPUFeatures = firstProcessor()
	h.Name, _ = os.Hostname()
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	return h
}

// Host describes this machine.
func (r *Runtime) Host() Host {
	h := ThisHost()
	h.Runtime = r.String()
	return h
}

func firstProcessor() (model string, features []string) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "", nil
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() && lines.Text() != "" {
		name, value, _ := strings.Cut(lines.Text(), ":")
		switch strings.TrimSpace(name) {
		case "model name":
			model = strings.TrimSpace(value)
		case "flags", "Features":
			features = strings.Fields(value)
		}
	}
	return model, features
}

// Needs is what a machine must have to run a recipe. The zero Needs is met by
// every machine.
type Needs struct {
	OS, Arch    string
	CPUFeatures []string
}

// check refuses a machine on which the recipe's bytes are not promised.
func (n Needs) check(h Host) error {
	if n.OS != "" && n.OS != h.OS || n.Arch != "" && n.Arch != h.Arch {
		return &Failure{Kind: NotComparable, Detail: fmt.Sprintf("the recipe is for %s/%s, %s is %s/%s", n.OS, n.Arch, h.Name, h.OS, h.Arch)}
	}
	var missing []string
	for _, f := range n.CPUFeatures {
		if !slices.Contains(h.CPUFeatures, f) {
			missing = append(missing, f)
		}
	}
	if len(missing) > 0 {
		return &Failure{Kind: NotComparable, Detail: fmt.Sprintf("the recipe needs processors with %s, %s lacks %s",
			strings.Join(n.CPUFeatures, ", "), h.Name, strings.Join(missing, ", "))}
	}
	return nil
}
