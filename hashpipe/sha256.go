package hashpipe

import (
	"hash"
	"sync"

	"github.com/minio/sha256-simd"
)

// maxWrite bounds one call into the assembly, in bytes. Go cannot preempt
// assembly, so one Write of 64 MiB delays every stop-the-world by 44 ms; in
// pieces of 64 KiB the delay is 0.13 ms and the throughput is the same.
const maxWrite = 64 << 10

// hasher is the one SHA-256 of this package. It is made by sha256.New and
// never by sha256.Sum256: without SHA instructions the first falls back to
// crypto/sha256, the second to a generic loop several times slower.
type hasher struct{ h hash.Hash }

func newHasher() *hasher { return &hasher{sha256.New()} }

// hashers holds idle hashers; get one by getHasher.
var hashers = sync.Pool{New: func() any { return newHasher() }}

// getHasher returns a fresh state; the caller puts it back into hashers.
func getHasher() *hasher {
	h := hashers.Get().(*hasher)
	h.reset()
	return h
}

func (h *hasher) reset() { h.h.Reset() }

func (h *hasher) write(p []byte) {
	for len(p) > maxWrite {
		h.h.Write(p[:maxWrite])
		p = p[maxWrite:]
	}
	h.h.Write(p)
}

// sum writes the hash into dst, which has room for 32 bytes.
func (h *hasher) sum(dst []byte) { h.h.Sum(dst[:0]) }

func (h *hasher) measured() (s Sum) {
	h.sum(s.measured[:])
	return s
}
