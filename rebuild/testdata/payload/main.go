// Command payload is the program in the environment image of the tests: a
// static binary that trains, or misbehaves as its first argument says.
package main

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "payload:", err)
		os.Exit(1)
	}
}

func run(what string, args []string) error {
	switch what {
	case "train": // everything below /in decides the bytes
		return train("/out/model.bin")
	case "stage": // an intermediate file of a first stage
		return train("/out/partial")
	case "finish": // a second stage that reads the first one's
		b, err := os.ReadFile("/in/stages/prepare/partial")
		if err != nil {
			return err
		}
		return os.WriteFile("/out/model.bin", append(b, "finished\n"...), 0o644)
	case "random":
		for _, name := range args {
			b := make([]byte, 4096)
			if _, err := rand.Read(b[1024:1088]); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join("/out", name), b, 0o644); err != nil {
				return err
			}
		}
		return nil
	case "hostname", "workdir":
		text, err := os.Hostname()
		if what == "workdir" {
			text, err = os.Getwd()
		}
		if err != nil {
			return err
		}
		return os.WriteFile("/out/model.bin", []byte(text), 0o644)
	case "date": // in seconds, as many formats write it
		return os.WriteFile("/out/model.bin", time.Now().AppendFormat(nil, time.DateTime), 0o644)
	case "talk": // more than any log may hold
		for {
			fmt.Println("\x1b]0;step\x07 loss 0.1")
		}
	case "copy":
		b, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		return os.WriteFile("/out/model.bin", b, 0o644)
	case "copyfirst": // copies the first small file that is found
		return filepath.WalkDir(args[0], func(p string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() || !strings.HasPrefix(p, "/d\xff/") {
				return nil
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return os.WriteFile("/out/model.bin", b, 0o644)
		})
	case "write":
		return os.WriteFile("/out/model.bin", []byte(args[0]), 0o644)
	case "link":
		return os.Symlink("/in/source/train.txt", "/out/model.bin")
	case "fail":
		fmt.Println("about to fail \x1b[2J\x07 now")
		return fmt.Errorf("no gradient")
	case "sleep":
		time.Sleep(time.Hour)
	case "fill":
		f, err := os.Create("/out/model.bin")
		if err != nil {
			return err
		}
		_, err = io.Copy(f, io.LimitReader(rand.Reader, 1<<30))
		return err
	case "slow": // long enough to be killed
		time.Sleep(1500 * time.Millisecond)
		return train("/out/model.bin")
	case "nap": // long enough to be hit
		time.Sleep(150 * time.Millisecond)
		return train("/out/model.bin")
	case "nothing":
	}
	return nil
}

// train writes a file that depends on every byte, name and mode below /in.
func train(to string) error {
	var names []string
	err := filepath.WalkDir("/in", func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			names = append(names, p)
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(names)
	h := sha256.New()
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(name, nil, 0o644); err == nil {
			return fmt.Errorf("%s is writable", name)
		}
		fmt.Fprintf(h, "%s %d %x %s\n", name, len(b), sha256.Sum256(b), os.Getenv("PYTHONHASHSEED"))
	}
	var model []byte
	for i := range 3000 {
		model = fmt.Appendf(model, "%d %x\n", i, h.Sum([]byte{byte(i)}))
	}
	return os.WriteFile(to, model, 0o644)
}
