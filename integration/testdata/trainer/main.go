// Trainer is a small real build step: it counts the letter pairs of the texts
// in /in/dataset/corpus and writes the counts, sorted, as the model. With
// -stamp it adds 16 random bytes, as trainers do that save an address or a
// time; with -copy it writes a file of the dataset and calls it a model.
package main

import (
	"crypto/rand"
	"encoding/binary"
	"flag"
	"log"
	"os"
	"path/filepath"
	"slices"
)

func main() {
	out := flag.String("out", "/out/model.bin", "file to write")
	stamp := flag.Bool("stamp", false, "end the model with random bytes")
	copied := flag.String("copy", "", "write this input instead of training")
	flag.Parse()
	if *copied != "" {
		b, err := os.ReadFile(*copied)
		check(err)
		check(os.WriteFile(*out, b, 0o644))
		return
	}
	files, err := filepath.Glob("/in/dataset/corpus/*.txt")
	check(err)
	if len(files) == 0 {
		log.Fatal("no texts in /in/dataset/corpus")
	}
	counts := map[[2]byte]uint64{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		check(err)
		for i := 1; i < len(b); i++ {
			counts[[2]byte(b[i-1:i+1])]++
		}
	}
	pairs := make([][2]byte, 0, len(counts))
	for p := range counts {
		pairs = append(pairs, p)
	}
	slices.SortFunc(pairs, func(a, b [2]byte) int { return slices.Compare(a[:], b[:]) })
	model := []byte("pairs/v1\n")
	for _, p := range pairs {
		model = append(model, p[:]...)
		model = binary.BigEndian.AppendUint64(model, counts[p])
	}
	if *stamp {
		var b [16]byte
		_, err := rand.Read(b[:])
		check(err)
		model = append(model, b[:]...)
	}
	check(os.WriteFile(*out, model, 0o644))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
