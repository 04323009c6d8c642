package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// BenchmarkStage measures what the sandbox adds to a build.
func BenchmarkStage(b *testing.B) {
	b.Run("start", benchStart)
	b.Run("overhead", benchOverhead)
}

// benchStart times stages that do nothing, from one Progress to the next: the
// disk for /out, the container's making, start, end and removal.
func benchStart(b *testing.B) {
	r, s := benchSpec(b, "true")
	const stages = 6
	first := s.Stages[0]
	s.Stages = nil
	for i := range stages {
		first.Name = fmt.Sprint("stage", i)
		s.Stages = append(s.Stages, first)
	}
	s.Stages = append(s.Stages, Stage{Name: "last", Argv: []string{"payload", "env"}}) // which leaves the output
	var each, whole []float64
	var spent time.Duration
	for b.Loop() {
		each, whole = nil, nil
		spent = -cpuSpent(b)
		for range 5 {
			var last time.Time
			s.Progress = func(string) {
				if now := time.Now(); last.IsZero() {
					last = now
				} else {
					each = append(each, now.Sub(last).Seconds()*1000)
					last = now
				}
			}
			begin := time.Now()
			if _, err := r.Run(b.Context(), s); err != nil {
				b.Fatal(err)
			}
			whole = append(whole, time.Since(begin).Seconds()*1000/float64(len(s.Stages)))
		}
		spent += cpuSpent(b)
	}
	if len(each) < 20 {
		b.Fatalf("%d stages were timed, want 20 or more", len(each))
	}
	b.ReportMetric(median(each), "ms/stage")
	b.ReportMetric(slices.Max(each), "ms/slowest")
	b.ReportMetric(median(whole), "ms/run/stage")
	b.ReportMetric(spent.Seconds()*1000/float64(len(whole)*len(s.Stages)), "cpu-ms/run/stage")
	b.ReportMetric(0, "ns/op")
}

// benchOverhead runs the same work bare, in cgroups with the same limits, and
// in the sandbox, in turns.
func benchOverhead(b *testing.B) {
	want, rounds := 30*time.Second, 5
	if testing.Short() {
		want, rounds = 10*time.Second, 3
	}
	r, s := benchSpec(b, "work", "/out", "1")
	// As many rounds of work as take the wanted time here.
	amount := 8
	for {
		took, _ := benchBare(b, r, s, amount)
		if took > time.Second {
			amount = int(float64(amount)*want.Seconds()*1.1/took.Seconds()) + 1
			break
		}
		amount *= 2
	}
	s.Stages[0].Argv[3] = strconv.Itoa(amount)
	var wall, cpu, bare, boxed []float64
	for b.Loop() {
		wall, cpu, bare, boxed = nil, nil, nil, nil
		for i := range rounds {
			var bareWall, bareCPU, boxWall, boxCPU time.Duration
			one := func() { bareWall, bareCPU = benchBare(b, r, s, amount) }
			two := func() {
				res, err := r.Run(b.Context(), s)
				if err != nil {
					b.Fatal(err)
				}
				boxWall, boxCPU = res.Wall, res.Stages[0].CPU
			}
			if i%2 == 0 {
				one()
				two()
			} else {
				two()
				one()
			}
			wall, cpu = append(wall, boxWall.Seconds()/bareWall.Seconds()), append(cpu, boxCPU.Seconds()/bareCPU.Seconds())
			bare, boxed = append(bare, bareWall.Seconds()), append(boxed, boxWall.Seconds())
		}
	}
	b.ReportMetric(median(boxed)/median(bare), "wall-ratio")
	b.ReportMetric(slices.Min(wall), "wall-least")
	b.ReportMetric(slices.Max(wall), "wall-most")
	b.ReportMetric(median(cpu), "cpu-ratio")
	b.ReportMetric(median(bare), "s/bare")
	b.ReportMetric(0, "ns/op")
}

// benchBare runs the work on the host, in cgroups with the limits of s, and
// returns wall and CPU time.
func benchBare(b *testing.B, r *Runtime, s Spec, amount int) (wall, cpu time.Duration) {
	b.Helper()
	id := idPrefix + "bench" + strconv.Itoa(os.Getpid())
	defer r.cgroups.removeGroups(id)
	var groups []string
	for _, c := range []string{"memory", "pids", "cpu", "cpuacct"} {
		dir, err := r.cgroups.dir("self", c)
		if err != nil {
			b.Fatal(err)
		}
		dir = filepath.Join(dir, id)
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) { // v2 has one for all
			b.Fatal(err)
		}
		groups = append(groups, dir)
	}
	limit := func(dir int, file, text string) {
		if err := os.WriteFile(filepath.Join(groups[dir], file), []byte(text), 0); err != nil {
			b.Fatal(err)
		}
	}
	quota := strconv.FormatInt(cpuQuota(s.Limits.CPUs), 10)
	if r.cgroups.version == 1 {
		limit(0, "memory.limit_in_bytes", strconv.FormatInt(s.Limits.MemoryBytes, 10))
		limit(2, "cpu.cfs_quota_us", quota)
	} else {
		limit(0, "memory.max", strconv.FormatInt(s.Limits.MemoryBytes, 10))
		limit(2, "cpu.max", quota+" "+strconv.Itoa(cpuPeriod))
	}
	limit(1, "pids.max", strconv.FormatInt(s.Limits.Processes, 10))
	// The shell enters the cgroups and becomes the work.
	const enter = `for d in "$1" "$2" "$3" "$4"; do echo $$ >"$d/cgroup.procs"; done; shift 4; exec "$@"`
	argv := append([]string{"-c", enter, "sh"}, groups...)
	argv = append(argv, filepath.Join(s.Rootfs, "bin/payload"), "work", b.TempDir(), strconv.Itoa(amount))
	cmd := exec.Command("sh", argv...)
	var said bytes.Buffer
	cmd.Stderr = &said
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		b.Fatalf("%v: %s", err, said.Bytes())
	}
	wall = time.Since(begin)
	return wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
}

func benchSpec(b *testing.B, argv ...string) (*Runtime, Spec) {
	b.Helper()
	w, err := world()
	if err != nil {
		b.Fatal(err)
	}
	return w.runtime, Spec{
		Recipe: recipe, Rootfs: w.image, Dir: b.TempDir(),
		Stages:  []Stage{{Name: "build", Argv: append([]string{"payload"}, argv...)}},
		Outputs: []Wanted{{Name: "a", Path: "a"}},
		Limits:  Limits{MemoryBytes: 512 << 20, OutputBytes: 1 << 30, LogBytes: 64 << 10, Processes: 256, CPUs: 2, Wall: time.Hour},
	}
}

// cpuSpent is what this process and its dead children spent, builds among them.
func cpuSpent(b *testing.B) (d time.Duration) {
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		d += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return d
}

func median(list []float64) float64 {
	s := slices.Sorted(slices.Values(list))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
