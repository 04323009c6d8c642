package hashpipe

import "github.com/klauspost/cpuid/v2"

// twoLanes says that the processor has what sum2 needs.
var twoLanes = cpuid.CPU.Supports(cpuid.SHA, cpuid.SSSE3, cpuid.SSE4)

// hashPairs writes the hashes of the whole pairs of blocks at the front of data
// to dst and returns the bytes of data that are done: none on a processor
// without SHA instructions.
func hashPairs(dst, data []byte) (n int) {
	if !twoLanes {
		return 0
	}
	for ; len(data)-n >= 2*BlockSize; n += 2 * BlockSize {
		sum2((*[2 * hashSize]byte)(dst), (*[BlockSize]byte)(data[n:]), (*[BlockSize]byte)(data[n+BlockSize:]))
		dst = dst[2*hashSize:]
	}
	return n
}

// sum2 writes the SHA-256 of a and then of b to out. It hashes both at once on
// one core: each SHA256RNDS2 waits for the one before of its own stream, so one
// stream leaves half of the SHA unit idle. A call takes about 3 microseconds,
// in which the goroutine cannot be preempted.
//
//go:noescape
func sum2(out *[2 * hashSize]byte, a, b *[BlockSize]byte)
