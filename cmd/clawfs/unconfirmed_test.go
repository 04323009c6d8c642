package main

import (
	"slices"
	"syscall"
	"testing"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
)

// A mount that the daemon does not tell of has confirmed nothing: the daemon was
// killed after it had answered, or has just started and has not looked yet.
func TestUnconfirmed(t *testing.T) {
	r := newRig(t)
	r.ok("mount", r.src, r.mnt)
	report := func(generation uint64) []control.Mount {
		return []control.Mount{{Mountpoint: r.mnt, Report: &control.MountReport{Generation: generation}}}
	}
	for _, tt := range []struct {
		name string
		s    control.Status
		want []string
	}{
		{"no answer", control.Status{}, []string{r.mnt}},
		{"a daemon that knows no mount yet", control.Status{PID: 1, Generation: 7}, []string{r.mnt}},
		{"a mount that has not reported", control.Status{Generation: 7, Mounts: []control.Mount{{Mountpoint: r.mnt}}}, []string{r.mnt}},
		{"a mount that is behind", control.Status{Generation: 7, Mounts: report(6)}, []string{r.mnt}},
		{"a mount that is as far", control.Status{Generation: 7, Mounts: report(7)}, nil},
	} {
		if got := unconfirmed(r.state, tt.s); !slices.Equal(got, tt.want) {
			t.Errorf("%s: unconfirmed = %q, want %q", tt.name, got, tt.want)
		}
	}
	r.stopDaemon(syscall.SIGKILL)
	a := &app{state: string(r.state)}
	if late := a.awaitMounts(t.Context(), a.client()); !slices.Equal(late, []string{r.mnt}) {
		t.Errorf("without a daemon the mounts that have not confirmed are %q, want %q", late, r.mnt)
	}
}
