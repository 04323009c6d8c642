package rebuild

import (
	"slices"
	"strings"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
)

// dispatched are the processor features, as /proc/cpuinfo spells them, by
// which numeric libraries choose their code, so that results differ in the last
// bits. Measured with PyTorch 1.13.1: a multi-layer perceptron, a convolutional
// net and a transformer each gave other bytes with ATEN_CPU_CAPABILITY=default
// than with avx2.
var dispatched = []string{
	"sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni",
	"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
	"asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16",
}

// HostPlatform describes this machine as a ledger does. CPUFeatures are those
// by which numeric libraries choose their code; the accelerator is "none",
// because a build gets no device.
func HostPlatform() verifier.Platform {
	return platformOf(sandbox.ThisHost())
}

func platformOf(h sandbox.Host) verifier.Platform {
	p := verifier.Platform{OS: h.OS, Arch: h.Arch, Accelerator: "none"}
	for _, f := range dispatched {
		if slices.Contains(h.CPUFeatures, f) {
			p.CPUFeatures = append(p.CPUFeatures, f)
		}
	}
	slices.Sort(p.CPUFeatures)
	return p
}

// sameClass says whether bytes built here may be expected to be the
// ledger's: the same system and processor family, every feature that the
// ledger names, and no accelerator. A machine that tells no features has none.
// More features than named are a difference only if the ledger says so: its
// author knows which matter.
func sameClass(host verifier.Platform, has []string, want verifier.Platform) error {
	switch {
	case want.OS != host.OS || want.Arch != host.Arch:
		return fail(capstore.NotComparable, "the ledger's bytes are promised on %s/%s, this machine is %s/%s", want.OS, want.Arch, host.OS, host.Arch)
	case want.Accelerator != host.Accelerator:
		machine := "no accelerator"
		if have := Accelerators(); len(have) > 0 {
			machine = strings.Join(have, "; ") + ", which a build does not get"
		}
		return fail(capstore.NotComparable, "the ledger's bytes are promised with accelerator %q, a build here has %q (this machine has %s)", want.Accelerator, host.Accelerator, machine)
	}
	missing := lacking(has, want.CPUFeatures)
	if len(missing) > 0 {
		return fail(capstore.NotComparable, "the ledger's bytes are promised on processors with %s, this one lacks %s",
			strings.Join(want.CPUFeatures, ", "), strings.Join(missing, ", "))
	}
	return exactDispatch(has, want)
}
