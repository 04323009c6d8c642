package soak

import (
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// sample is one look at one process.
type sample struct {
	at         time.Duration // since the beginning
	world      string
	role       string // daemon, or the tier of a mount
	pid        int
	rss        int64 // KiB
	fds        int64
	threads    int64
	goroutines int64
	heap       int64 // KiB that are in use
	records    int64 // in the store
	nodes      int64 // names and states of files that the kernel has not forgotten
	measured   int64 // states of files, since the process began
}

// keeps is how many things a process keeps in memory that it may keep: a record for
// ever, a node until the kernel forgets it, a measurement until there are 65,536.
func (s sample) keeps() int64 { return s.records + s.nodes + min(s.measured, 1<<16) }

// sampler looks at every process of the worlds until the soak ends.
type sampler struct {
	run     *soak
	samples []sample

	pids  map[*outages]int   // of what may be away, when it was last seen
	times map[*outages]int64 // when that was
}

// same wants the process to be the one that was seen before, unless somebody meant
// it to go away since.
func (p *sampler) same(o *outages, what string, pid int) {
	now := monotonic()
	if old := p.pids[o]; old != 0 && old != pid && !o.ended(p.times[o], now) {
		p.run.fail("%s was process %d and is process %d, and nobody has ended it", what, old, pid)
	}
	p.pids[o], p.times[o] = pid, now
}

func (p *sampler) watch() {
	every := min(max(p.run.length/600, 500*time.Millisecond), 5*time.Second)
	for p.run.goesOn() {
		for _, w := range p.run.worlds {
			s, err := w.status()
			if err != nil {
				continue // the daemon is away
			}
			records := int64(s.Capabilities.Live + s.Capabilities.Expired + s.Capabilities.Revoked + s.Revocations)
			p.same(&w.daemon, "the daemon of world "+w.name, s.PID)
			for _, m := range w.mounts {
				if pid := m.pid(s); pid != 0 {
					p.same(&m.outages, "the mount process of "+m.dir, pid)
				}
			}
			p.look(sample{world: w.name, role: "daemon", pid: s.PID, goroutines: int64(s.Resources.Goroutines), heap: s.Resources.HeapLiveBytes >> 10, records: records})
			for _, m := range s.Mounts {
				if m.Report != nil && m.PID != 0 && m.Report.PID == m.PID {
					p.look(sample{world: w.name, role: filepath.Base(m.Mountpoint), pid: m.PID, goroutines: m.Report.Counters["goroutines"], heap: m.Report.Counters["heapLiveBytes"] >> 10,
						records: records, nodes: m.Report.Counters["nodes"], measured: m.Report.Counters["hashed"]})
				}
			}
		}
		for _, r := range p.run.readers {
			if text := r.hangs(); text != "" {
				p.run.fail("%s", text)
			}
		}
		p.run.sleep(every)
	}
}

func (p *sampler) look(s sample) {
	proc := filepath.Join("/proc", strconv.Itoa(s.pid))
	text, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		n, _ := strconv.ParseInt(strings.Fields(value + " 0")[0], 10, 64)
		switch name {
		case "VmRSS":
			s.rss = n
		case "Threads":
			s.threads = n
		}
	}
	list, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil || s.rss == 0 {
		return // it has just died
	}
	s.fds = int64(len(list))
	s.at = time.Since(p.run.began)
	p.samples = append(p.samples, s)
}

func (p *sampler) write(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := csv.NewWriter(f)
	w.Write([]string{"seconds", "world", "role", "pid", "rss_kib", "fds", "threads", "goroutines", "heap_kib", "records", "nodes", "measured"})
	for _, s := range p.samples {
		row := []string{fmt.Sprintf("%.1f", s.at.Seconds()), s.world, s.role}
		for _, n := range []int64{int64(s.pid), s.rss, s.fds, s.threads, s.goroutines, s.heap, s.records, s.nodes, s.measured} {
			row = append(row, strconv.FormatInt(n, 10))
		}
		w.Write(row)
	}
	w.Flush()
	return w.Error()
}

// quantity is something that must not grow.
type quantity struct {
	name string
	of   func(sample) int64
	// A last tenth is flat if its median is at most this much above that of the
	// second one.
	percent, more int64
	kept          int64 // and that much for each thing that it keeps more
	judged        bool
}

// The rule of flatness, for a process that lived from the second tenth of the run
// to its end: the median of the last tenth is at most percent % and a constant above
// the median of the second tenth. The first tenth is left out because caches, pools
// and stacks fill in it. Medians, because the collector's saw is higher than any leak
// of an hour is; a leak of one descriptor or goroutine for each open, grant, revocation
// or daemon restart is hundreds in the shortest run that is judged.
//
// Memory may grow by what a process is meant to keep, see keeps: 2 KiB for each. It
// is the heap that is judged, as the collector finds it in use. The resident size is
// judged too, but not with the race detector, which keeps 8 bytes for each defer of
// a goroutine that does not end, and so grows without bound in a process that serves
// (https://go.dev/doc/articles/race_detector, "Runtime Overhead").
var quantities = []quantity{
	{"heap KiB", func(s sample) int64 { return s.heap }, 10, 8 << 10, 2, true},
	{"rss KiB", func(s sample) int64 { return s.rss }, 10, 16 << 10, 2, !raceEnabled},
	{"fds", func(s sample) int64 { return s.fds }, 10, 8, 0, true},
	{"threads", func(s sample) int64 { return s.threads }, 10, 8, 0, true},
	{"goroutines", func(s sample) int64 { return s.goroutines }, 10, 16, 0, true},
}

// judgeFrom is the length from which the curves of a run are judged: in a shorter
// one, a tenth is a few samples and the start is still to be seen.
const judgeFrom = 5 * time.Minute

// curves draws the samples of one process, and says what is not flat.
func (p *sampler) curves(world, role string) (text string, growing []string) {
	var tenths [10][]sample
	for _, s := range p.samples {
		if s.world == world && s.role == role {
			i := min(9, int(10*s.at/p.run.length))
			tenths[i] = append(tenths[i], s)
		}
	}
	for _, kept := range []quantity{{name: "records", of: func(s sample) int64 { return s.records }}, {name: "nodes", of: func(s sample) int64 { return s.nodes }}, {name: "measured", of: func(s sample) int64 { return s.measured }}} {
		text += fmt.Sprintf("%-6s %-8s %-10s", world, role, kept.name)
		for _, t := range tenths {
			text += fmt.Sprintf(" %17s", spread(t, kept.of))
		}
		text += "\n"
	}
	same := len(tenths[1]) > 0 && len(tenths[9]) > 0
	for i := 1; i < 10 && same; i++ {
		same = !slices.ContainsFunc(tenths[i], func(s sample) bool { return s.pid != tenths[1][0].pid })
	}
	for _, q := range quantities {
		text += fmt.Sprintf("%-6s %-8s %-10s", world, role, q.name)
		for _, t := range tenths {
			text += fmt.Sprintf(" %17s", spread(t, q.of))
		}
		if same && q.judged {
			_, early, _ := three(tenths[1], q.of)
			_, late, _ := three(tenths[9], q.of)
			_, before, _ := three(tenths[1], sample.keeps)
			_, after, _ := three(tenths[9], sample.keeps)
			bound := early + early*q.percent/100 + q.more + q.kept*max(0, after-before)
			text += fmt.Sprintf("  %d <= %d", late, bound)
			if late > bound {
				growing = append(growing, fmt.Sprintf("%s of %s in world %s: median %d of the last tenth, %d of the second, want at most %d (it keeps %d things more)",
					q.name, role, world, late, early, bound, after-before))
				text += " GROWS"
			}
		}
		text += "\n"
	}
	return text, growing
}

func spread(list []sample, of func(sample) int64) string {
	if len(list) == 0 {
		return "-"
	}
	low, mid, high := three(list, of)
	return fmt.Sprintf("%d/%d/%d", low, mid, high)
}

// three are minimum, median and maximum.
func three(list []sample, of func(sample) int64) (low, mid, high int64) {
	if len(list) == 0 {
		return 0, 0, 0
	}
	var n []int64
	for _, s := range list {
		n = append(n, of(s))
	}
	slices.Sort(n)
	return n[0], n[len(n)/2], n[len(n)-1]
}
