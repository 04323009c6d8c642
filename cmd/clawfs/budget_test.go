package main

import (
	"io"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/verifier"
)

// TestBounds: what the daemon tells the queue of the policy and of the machine.
func TestBounds(t *testing.T) {
	r := newRig(t)
	r.publish("counts", "count")
	p, err := r.state.LoadPolicy()
	if err != nil {
		t.Fatal(err)
	}
	b, err := newBounds(r.state, slog.New(slog.NewTextHandler(io.Discard, nil)), p)
	if err != nil {
		t.Fatal(err)
	}
	b.machine = rebuild.Machine{Memory: 1 << 40, CPUs: 4 * int(p.Builds.Limits.CPUs)}
	for _, c := range []struct {
		build    config.Build
		parallel int
		room     bool
	}{
		{config.Build{Executor: "local", Concurrency: 7}, 7, true},
		{config.Build{Executor: "local"}, 4, true},
		{config.Build{Executor: "slurm", Concurrency: 7}, 7, false},
		{config.Build{Executor: "slurm"}, b.machine.CPUs, false},
	} {
		var q rebuild.Queue
		b.share(&q, c.build)
		if q.Parallel != c.parallel || (q.Room != nil) != c.room || q.Budget == nil {
			t.Errorf("%+v: %d jobs at a time, asks for room: %t; want %d, %t", c.build, q.Parallel, q.Room != nil, c.parallel, c.room)
		}
	}
	want := verifier.Budget{JobsPerDay: 2}
	r.budget(want)
	if name, got := b.budget("acme/counts"); name != "acme" || got != want {
		t.Errorf("budget of acme/counts: %q %+v, want acme's %+v", name, got, want)
	}
	if name, got := b.budget("other/counts"); name != "" || got != (verifier.Budget{}) {
		t.Errorf("budget of a model that nobody speaks for: %q %+v", name, got)
	}
	// A policy that cannot be read leaves the budgets as they were.
	if err := os.WriteFile(r.state.Policy(), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if name, got := b.budget("acme/counts"); name != "acme" || got != want {
		t.Errorf("budget by a broken policy: %q %+v, want the last one", name, got)
	}
}
