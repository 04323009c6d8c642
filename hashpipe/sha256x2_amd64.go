package hashpipe

import "github.com/klauspost/cpuid/v2"

// twoLanes says that this processor can run compress2.
var twoLanes = cpuid.CPU.Supports(cpuid.SHA, cpuid.SSSE3, cpuid.SSE4)

// compress2 takes the chunks of a into s[0] and those of b into s[1], as many
// as both have. It does so at once on one core: each SHA256RNDS2 waits for the
// one before of its own stream, so one stream leaves half of the SHA unit idle.
// Two blocks take about 2.5 microseconds, in which the goroutine cannot be
// preempted.
//
//go:noescape
func compress2(s *[2]state, a, b []byte)
