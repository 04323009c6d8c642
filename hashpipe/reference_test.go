package hashpipe

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// pattern returns n bytes that repeat in no block, unit or buffer: SHA-256 of
// a counter, so that a golden table can name them by their length alone.
func pattern(n int) []byte {
	b := make([]byte, 0, n+sha256.Size)
	for i := uint64(0); len(b) < n; i++ {
		s := sha256.Sum256(binary.BigEndian.AppendUint64(nil, i))
		b = append(b, s[:]...)
	}
	return b[:n]
}

// slowVerity is a straightforward reading of Documentation/filesystems/
// fsverity.rst with crypto/sha256: split into blocks, pad, hash, repeat.
func slowVerity(content []byte) string {
	root := make([]byte, 32)
	if len(content) > 0 {
		level := content
		for {
			var hashes []byte
			for len(level) > 0 {
				block := make([]byte, 4096)
				n := copy(block, level)
				level = level[n:]
				s := sha256.Sum256(block)
				hashes = append(hashes, s[:]...)
			}
			if len(hashes) == 32 {
				root = hashes
				break
			}
			level = hashes
		}
	}
	d := []byte{1, 1, 12, 0, 0, 0, 0, 0}
	d = binary.LittleEndian.AppendUint64(d, uint64(len(content)))
	d = append(d, root...)
	d = append(d, make([]byte, 256-len(d))...)
	s := sha256.Sum256(d)
	return hex.EncodeToString(s[:])
}

func slowSum(content []byte) string {
	s := sha256.Sum256(content)
	return hex.EncodeToString(s[:])
}
