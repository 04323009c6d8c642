package main

import (
	"context"
	"errors"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
)

// The socket answers before the mounts are watched: who asks for one in that moment
// waits.
func TestMountAskedForAtTheStart(t *testing.T) {
	s := newSupervisor(config.State(t.TempDir()), slog.New(slog.DiscardHandler), func(...string) (*exec.Cmd, error) {
		return nil, errors.New("nothing is started in a test")
	})
	answer := make(chan error, 1)
	go func() {
		_, err := s.add(mountRecord{ID: "a628655aadc0", Source: t.TempDir(), Mountpoint: t.TempDir()})
		answer <- err
	}()
	select {
	case err := <-answer:
		t.Fatalf("it is answered before anything runs: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	if err := <-answer; err == nil || strings.Contains(err.Error(), "still starting") {
		t.Errorf("add = %v, want that nothing could be started", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
