package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// tools are made once for all scripts that build: runc in bin, where make
// build puts it, and the layer of the test image.
var tools struct {
	once  sync.Once
	dir   string
	layer string
	err   error
}

func hostArch() string { return runtime.GOARCH }

// repository is the root of the module.
func repository(t testing.TB) string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func buildTools() {
	tools.err = func() error {
		runc, err := filepath.Abs("../../bin/runc")
		if err != nil {
			return err
		}
		if _, err := os.Stat(runc); err != nil {
			if out, err := goBuild("../../tools", []string{"CGO_ENABLED=1"}, "-tags", "seccomp", "-o", runc, "github.com/opencontainers/runc"); err != nil {
				return fmt.Errorf("building bin/runc: %w\n%s\nnext: apt-get install gcc libc6-dev libseccomp-dev pkg-config", err, out)
			}
		}
		dir, err := os.MkdirTemp("", "clawfs-test-image-")
		if err != nil {
			return err
		}
		tools.dir = dir
		trainer := filepath.Join(dir, "trainer")
		if out, err := goBuild("testdata/trainer", []string{"CGO_ENABLED=0"}, "-o", trainer, "."); err != nil {
			return fmt.Errorf("building the trainer: %w\n%s", err, out)
		}
		tools.layer = filepath.Join(dir, "layer.tar")
		return writeLayer(tools.layer, trainer)
	}()
}

func goBuild(dir string, env []string, args ...string) ([]byte, error) {
	cmd := exec.Command("go", append([]string{"build", "-trimpath", "-buildvcs=false"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	return cmd.CombinedOutput()
}

// writeLayer writes an image layer with the one program at /bin/trainer and
// the mount points of a build.
func writeLayer(path, program string) error {
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []string{"bin", "dev", "in", "out", "proc", "sys", "tmp", "work"} {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/trainer", Mode: 0o755, Size: int64(len(data))}); err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}
