package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// notVaried starts the value of what this host could not vary.
const notVaried = "not varied: "

// varied says what the surroundings of this run were, and what of them cannot
// differ from another run's here.
func (x *run) varied() []string {
	v := x.spec.Variation
	list := []string{
		"hostname=" + v.Hostname,
		"workdir=" + v.WorkDir,
		"uidmap=" + strconv.FormatUint(uint64(v.UID), 10),
		"cpus=" + x.variedCPUs(),
		"envorder=ascending",
		"outdirorder=random", // ext4 draws its directory hash seed at each mkfs
	}
	if v.ReverseEnv {
		list[4] = "envorder=descending"
	}
	list = append(list, x.variedInputs()...)
	if x.r.timeNS {
		list = append(list, "uptime=+"+v.Uptime.Truncate(time.Second).String())
	} else {
		list = append(list, "uptime="+notVaried+"the kernel or the runtime has no time namespaces")
	}
	return append(list,
		"addresses="+variedAddresses(),
		"clock="+notVaried+"the wall clock has no namespace",
		"kernel="+notVaried+"one machine runs one",
		"processor="+notVaried+"one machine has one model")
}

func (x *run) variedCPUs() string {
	switch {
	case x.cpus != "":
		return x.cpus
	case x.spec.Variation.OneCPULess && runtime.NumCPU() == 1:
		return notVaried + "this host has one"
	case len(x.spec.Variation.CPUs) > 0 || x.spec.Variation.OneCPULess:
		return notVaried + "this host has no cpuset controller"
	default:
		return fmt.Sprintf("all %d", runtime.NumCPU())
	}
}

func (x *run) variedInputs() []string {
	if !x.spec.Variation.ReverseInputs {
		return []string{"inputorder=as stored"}
	}
	var list []string
	if len(x.reversed) > 0 {
		list = append(list, "inputorder=reversed:"+strings.Join(x.reversed, ","))
	}
	for _, why := range x.unreversed {
		list = append(list, "inputorder="+notVaried+why)
	}
	if list == nil {
		list = []string{"inputorder=" + notVaried + "there are no inputs"}
	}
	return list
}

// variedAddresses tells whether the kernel draws the addresses of a program
// anew each time.
func variedAddresses() string {
	b, err := os.ReadFile("/proc/sys/kernel/randomize_va_space")
	switch got := strings.TrimSpace(string(b)); {
	case err != nil:
		return notVaried + err.Error()
	case got == "2":
		return "random"
	default:
		return notVaried + "kernel.randomize_va_space is " + got + ", wanted 2"
	}
}
