package rebuild

import (
	"testing"

	"github.com/openclaw/clawfs/verifier"
)

func TestMachine(t *testing.T) {
	const gib = 1 << 30
	m := Machine{Memory: 64 * gib, CPUs: 16}
	for _, c := range []struct {
		memory int64
		cpus   float64
		want   int
	}{
		{4 * gib, 1, 12}, {4 * gib, 2, 8}, {4 * gib, 16, 1}, {4 * gib, 32, 1}, {64 * gib, 1, 1}, {1 << 50, 1, 1},
		{1, 0.001, 64}, {48 * gib, 0.5, 1}, {24 * gib, 0.5, 2}, {4 * gib, 1.6, 10}, {0, 0, 1},
	} {
		if got := m.Parallel(verifier.Limits{MemoryBytes: c.memory, CPUs: c.cpus}); got != c.want {
			t.Errorf("Parallel of %d bytes and %v processors each = %d, want %d", c.memory, c.cpus, got, c.want)
		}
	}
	for _, c := range []struct {
		memory, available int64
		jobs              int
		want              bool
	}{
		{4 * gib, 24 * gib, 2, true}, {4 * gib, 24*gib - 1, 2, false}, {4 * gib, 28 * gib, 3, true}, {4 * gib, 27 * gib, 3, false},
		{4 * gib, 10 * gib, 2, false}, {1 << 52, 64 * gib, 64, false},
	} {
		if got := m.holds(verifier.Limits{MemoryBytes: c.memory}, c.jobs, c.available); got != c.want {
			t.Errorf("%d jobs of %d bytes with %d available: %t, want %t", c.jobs, c.memory, c.available, got, c.want)
		}
	}
	here, err := ThisMachine()
	if err != nil || here.CPUs < 1 || here.Memory < 64<<20 {
		t.Errorf("ThisMachine = %+v, %v", here, err)
	}
	if !here.HasRoom(verifier.Limits{MemoryBytes: 1}, 1) && here.Memory > 0 {
		available, err := meminfo("MemAvailable")
		if err != nil || available > here.Memory/reserveShare+2 {
			t.Errorf("no room for two bytes beside %d that are available, %v", available, err)
		}
	}
	if here.HasRoom(verifier.Limits{MemoryBytes: here.Memory}, 1) {
		t.Error("there is room for twice the memory")
	}
	if _, err := meminfo("MemNone"); err == nil {
		t.Error("a line that is not there was read")
	}
}
