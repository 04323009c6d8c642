package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/rebuild/sandbox"
)

// findRuntime probes this machine's runtime.
func findRuntime(s config.Settings) (*sandbox.Runtime, error) {
	path, err := runtimePath(s)
	if err != nil {
		return nil, err
	}
	runtime, err := sandbox.Find(path)
	if err != nil {
		return nil, fmt.Errorf("OCI runtime %s: %w", path, err)
	}
	return runtime, nil
}

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
