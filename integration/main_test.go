package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// built holds the programs that TestMain builds, and the environment image
// whose only program is the trainer.
var built struct {
	dir, clawfs, forger, faultfs string
	image, digest                string
}

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Getuid() != 0 {
		return 0, fmt.Errorf("mounts and sandboxes need root; next: sudo make test")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return 0, fmt.Errorf("%w; next: sudo apt-get install fuse3 && sudo modprobe fuse", err)
	}
	runc, err := filepath.Abs("../bin/runc")
	if err != nil {
		return 0, err
	}
	if _, err := os.Stat(runc); err != nil {
		return 0, fmt.Errorf("%w; next: sudo make bin/runc", err)
	}
	dir, err := os.MkdirTemp("", "clawfs-integration-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	built.dir = dir
	built.clawfs = filepath.Join(dir, "clawfs")
	built.forger = filepath.Join(dir, "forger")
	built.faultfs = filepath.Join(dir, "faultfs")
	built.image = filepath.Join(dir, "image")
	trainer := filepath.Join(dir, "trainer")
	for program, pkg := range map[string]string{
		built.clawfs:  "../cmd/clawfs",
		built.forger:  "./testdata/forger",
		built.faultfs: "./testdata/faultfs",
		trainer:       "./testdata/trainer",
	} {
		build := exec.Command("go", "build", "-trimpath", "-o", program, pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("building %s: %w\n%s", pkg, err, out)
		}
	}
	// clawfs looks for the runtime beside itself.
	if err := os.Symlink(runc, filepath.Join(dir, "runc")); err != nil {
		return 0, err
	}
	if built.digest, err = makeImage(built.image, trainer); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// makeImage writes an OCI layout whose one layer holds /bin/trainer.
func makeImage(layout, trainer string) (string, error) {
	program, err := os.ReadFile(trainer)
	if err != nil {
		return "", err
	}
	layer, err := tarOf(map[string][]byte{"bin/trainer": program})
	if err != nil {
		return "", err
	}
	d, err := appendImage(context.Background(), layout, bytes.NewReader(layer))
	if err != nil {
		return "", fmt.Errorf("writing the test image: %w", err)
	}
	return "sha256:" + d, nil
}
