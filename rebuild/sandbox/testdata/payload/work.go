package main

import (
	"crypto/sha256"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
)

// work hashes, sorts and multiplies in memory, writes a checkpoint of 4 MiB in
// each round, reads it again, and looks at its files, as training does.
func work(dir string, rounds int) {
	var sum [32]byte
	numbers := make([]uint64, 1<<18)
	weights := make([]float64, 1<<16)
	page := make([]byte, 4<<20)
	for n := range rounds {
		for i := range numbers {
			if i%256 == 0 {
				sum = sha256.Sum256(sum[:])
			}
			numbers[i] = binary.LittleEndian.Uint64(sum[i%24:]) * uint64(i|1)
		}
		slices.Sort(numbers)
		for i := range weights {
			weights[i] = weights[i]*0.9 + float64(numbers[i]>>40)
		}
		for i := 0; i < len(page); i += 8 {
			binary.LittleEndian.PutUint64(page[i:], numbers[i/8%len(numbers)])
		}
		sum = sha256.Sum256(page)
		path := filepath.Join(dir, "checkpoint")
		check(os.WriteFile(path, page, 0o644))
		again, err := os.ReadFile(path)
		check(err)
		sum = sha256.Sum256(append(again, byte(n)))
		for range 200 { // as an interpreter that looks for its modules
			_, err := os.Lstat(path + ".none")
			if err == nil {
				fail("a file that nobody made")
			}
		}
	}
	check(os.WriteFile(filepath.Join(dir, "a"), sum[:], 0o644))
}
