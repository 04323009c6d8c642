package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
)

// runtimePath finds the OCI runtime: where clawfs.toml says, else the runc
// beside this program (make build puts one there), else the one on PATH.
func runtimePath(s config.Settings) (string, error) {
	if s.Build.Runtime != "" {
		return s.Build.Runtime, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "runc")
		if fi, err := os.Stat(beside); err == nil && fi.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath("runc")
	if errors.Is(err, exec.ErrNotFound) {
		return "", errors.New("no OCI runtime: runc is neither beside clawfs nor on PATH; next: make build, or set build.runtime in clawfs.toml")
	}
	if err != nil {
		return "", fmt.Errorf("OCI runtime: %w", err)
	}
	return filepath.Abs(path)
}
