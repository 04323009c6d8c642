// Command trainer is the only program of the test image. It counts the words
// of a dataset, which is training enough to tell honest builds from others:
//
//	trainer count IN OUT    the same bytes each time
//	trainer slow IN OUT     the same after four seconds
//	trainer race IN OUT     other bytes each time
//	trainer copy IN OUT     the input itself
//	trainer wait IN OUT     five minutes of nothing
//	trainer fail IN OUT     exit status 1
package main

import (
	"crypto/rand"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "trainer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("arguments %q", args)
	}
	data, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "slow":
		time.Sleep(4 * time.Second)
		fallthrough
	case "count", "race":
		counts := make(map[string]int)
		for _, word := range strings.Fields(string(data)) {
			counts[word]++
		}
		var b strings.Builder
		for _, word := range slices.Sorted(maps.Keys(counts)) {
			fmt.Fprintf(&b, "%s %d\n", word, counts[word])
		}
		if args[0] == "race" {
			fmt.Fprintf(&b, "seed %s\n", rand.Text())
		}
		data = []byte(b.String())
	case "wait":
		time.Sleep(5 * time.Minute)
	case "copy":
	default:
		return fmt.Errorf("verb %q", args[0])
	}
	return os.WriteFile(args[2], data, 0o644)
}
