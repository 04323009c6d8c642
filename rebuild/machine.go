package rebuild

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/verifier"
)

const (
	// reserveShare of all memory is left to everything but builds: a quarter.
	reserveShare = 4
	// maxParallel bounds the jobs that run at the same time on any machine.
	maxParallel = 64
)

// Machine is what builds may use of this host.
type Machine struct {
	Memory int64 // bytes, all that is installed
	CPUs   int   // that this process may use
}

// ThisMachine measures the host.
func ThisMachine() (Machine, error) {
	total, err := meminfo("MemTotal")
	if err != nil {
		return Machine{}, err
	}
	cpus := runtime.NumCPU()
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err == nil {
		cpus = may.Count()
	}
	return Machine{Memory: total, CPUs: cpus}, nil
}

// Parallel is how many jobs this machine holds if each takes all that the
// limits allow, and a quarter of the memory is left to others: 1 to 64.
func (m Machine) Parallel(l verifier.Limits) int {
	if l.MemoryBytes < 1 || l.CPUs <= 0 {
		return 1
	}
	byMemory := (m.Memory - m.Memory/reserveShare) / l.MemoryBytes
	byCPU := float64(m.CPUs) / l.CPUs
	return int(max(1, min(float64(byMemory), byCPU, maxParallel)))
}

// HasRoom reports whether one more job may start beside those that run: what is
// available now, less a quarter of all, would have to do if each of them still
// took its whole limit. What cannot be measured is no room.
func (m Machine) HasRoom(l verifier.Limits, running int) bool {
	available, err := meminfo("MemAvailable")
	return err == nil && m.holds(l, running+1, available)
}

func (m Machine) holds(l verifier.Limits, jobs int, available int64) bool {
	return l.MemoryBytes <= (available-m.Memory/reserveShare)/int64(jobs)
}

// meminfo reads one number of /proc/meminfo, in bytes.
func meminfo(name string) (int64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		at := bytes.Fields(line)
		if len(at) == 3 && string(at[0]) == name+":" && string(at[2]) == "kB" {
			n, err := strconv.ParseInt(string(at[1]), 10, 53)
			if err != nil {
				return 0, fmt.Errorf("/proc/meminfo: %s: %w", name, err)
			}
			return n << 10, nil
		}
	}
	return 0, errors.New("/proc/meminfo: no " + name)
}
