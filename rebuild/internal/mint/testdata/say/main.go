// Say is the only program of these tests' image: say NAME TEXT... writes each
// text to /out/NAME. A TEXT of "hostname" is the name of the host.
package main

import (
	"log"
	"os"
	"path/filepath"
)

func main() {
	args := os.Args[1:]
	if len(args)%2 != 0 {
		log.Fatal("want pairs of name and text")
	}
	for ; len(args) > 0; args = args[2:] {
		text := args[1]
		if text == "hostname" {
			var err error
			if text, err = os.Hostname(); err != nil {
				log.Fatal(err)
			}
		}
		path := filepath.Join("/out", args[0])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			log.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			log.Fatal(err)
		}
	}
}
