package hashpipe

import "encoding/binary"

// chunkSize is what one step of SHA-256 takes, in bytes. FIPS 180-4 calls it a
// block, which is something else here.
const chunkSize = 64

// state is a SHA-256 between two chunks.
type state [8]uint32

// fresh is the state before the first chunk (FIPS 180-4, 5.3.3).
var fresh = state{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19}

// blockEnd is the chunk behind a message of one block (5.1.1): a one bit,
// zeros, and the length of 0x8000 bits.
var blockEnd = [chunkSize]byte{0: 0x80, 62: 0x80}

// hashPairs writes the hashes of the whole pairs of blocks at the front of data
// to dst, two blocks at once. It returns the bytes of data that are done.
func hashPairs(dst, data []byte) (n int) {
	for ; len(data)-n >= 2*BlockSize; n += 2 * BlockSize {
		s := [2]state{fresh, fresh}
		compress2(&s, data[n:n+BlockSize], data[n+BlockSize:n+2*BlockSize])
		compress2(&s, blockEnd[:], blockEnd[:])
		s[0].put((*[hashSize]byte)(dst))
		s[1].put((*[hashSize]byte)(dst[hashSize:]))
		dst = dst[2*hashSize:]
	}
	return n
}

// hashBoth writes the hashes of the whole blocks at the front of data to dst,
// and at once continues stream, in chunks, by the same blocks. It returns the
// bytes of data that are done.
func hashBoth(stream *state, dst, data []byte) (n int) {
	for ; len(data)-n >= BlockSize; n += BlockSize {
		s := [2]state{fresh, *stream}
		block := data[n : n+BlockSize]
		compress2(&s, block, block)
		*stream = s[1]
		compress2(&s, blockEnd[:], blockEnd[:])
		s[0].put((*[hashSize]byte)(dst))
		dst = dst[hashSize:]
	}
	return n
}

// end returns the SHA-256 of a message of size bytes, of which rest, less than
// a block, is not in s yet.
func (s state) end(rest []byte, size int64) (sum Sum) {
	var tail [BlockSize + chunkSize]byte
	n := copy(tail[:], rest)
	tail[n] = 0x80
	n = (n + 1 + 8 + chunkSize - 1) / chunkSize * chunkSize
	binary.BigEndian.PutUint64(tail[n-8:], uint64(size)*8)
	both := [2]state{s, s}
	compress2(&both, tail[:n], tail[:n])
	both[0].put(&sum.measured)
	return sum
}

func (s *state) put(dst *[hashSize]byte) {
	for i, word := range s {
		binary.BigEndian.PutUint32(dst[4*i:], word)
	}
}
