package soak

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// soak is one run.
type soak struct {
	t      *testing.T
	dir    string // scratch
	disk   string // xfs
	out    string
	began  time.Time
	length time.Duration
	phase  time.Duration // the grain of everything that happens
	pause  time.Duration // longest between two opens of a reader
	rand   *rand.Rand

	worlds  []*world
	readers []*reader
	count   *tally
	keys    atomic.Int64

	sink func(string) // takes failures instead of the test, if it is not nil

	ctx   context.Context // ends when the time is over
	parts sync.WaitGroup

	mu       sync.Mutex // guards failures
	failures int
}

// maxFailures is how many failures are told in full.
const maxFailures = 30

func (s *soak) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sink != nil {
		s.sink(fmt.Sprintf(format, args...))
		return
	}
	if s.failures++; s.failures <= maxFailures {
		s.t.Errorf("%.1f s: %s", time.Since(s.began).Seconds(), fmt.Sprintf(format, args...))
	}
}

func (s *soak) goesOn() bool { return s.ctx.Err() == nil }

// sleep ends early when the soak does.
func (s *soak) sleep(d time.Duration) {
	select {
	case <-s.ctx.Done():
	case <-time.After(d):
	}
}

func newSoak(t *testing.T, length time.Duration) *soak {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("mounting here needs root; run: sudo go test ./integration/soak")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	seed := *soakSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	s := &soak{
		t: t, dir: dir, disk: filepath.Join(dir, "disk"), out: *soakOut, length: length, began: time.Now(),
		phase: time.Second, pause: 20 * time.Millisecond, count: newTally(), rand: rand.New(rand.NewPCG(seed, 1)),
	}
	t.Logf("seed of what goes wrong when: %d", seed)
	if s.out == "" {
		s.out = dir
	} else if err := os.MkdirAll(s.out, 0o755); err != nil {
		t.Fatal(err)
	}
	s.makeDisk()
	return s
}

// makeDisk is a file system of its own whose files can be cloned.
func (s *soak) makeDisk() {
	s.t.Helper()
	image := filepath.Join(s.dir, "disk.xfs")
	f, err := os.Create(image)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := f.Truncate(3 << 30); err != nil {
		s.t.Fatal(err)
	}
	f.Close()
	if err := os.Mkdir(s.disk, 0o755); err != nil {
		s.t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1", image}, {"mount", "-o", "loop", image, s.disk}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			s.t.Fatalf("%v: %v\n%s\nnext: apt-get install xfsprogs mount", args, err, out)
		}
	}
	s.t.Cleanup(func() {
		// A mount process that was just killed may still hold a file.
		for end := time.Now().Add(20 * time.Second); unix.Unmount(s.disk, 0) != nil; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				s.t.Errorf("%s is in use after the soak", s.disk)
				unix.Unmount(s.disk, unix.MNT_DETACH)
				return
			}
		}
	})
}

// start lets everybody begin.
func (s *soak) start(readers int) (stop func()) {
	ctx, cancel := context.WithTimeout(context.Background(), s.length)
	s.ctx, s.began = ctx, time.Now()
	for range readers {
		r, err := newReader(s)
		if err != nil {
			s.t.Fatal(err)
		}
		s.readers = append(s.readers, r)
	}
	return cancel
}

// finish waits for everybody.
func (s *soak) finish(work *sync.WaitGroup) {
	work.Wait()
	for _, r := range s.readers {
		r.stop()
	}
	s.parts.Wait()
}

func TestSoak(t *testing.T) {
	s := newSoak(t, *soakTime)
	s.worlds = []*world{newWorld(t, s, "rough", "off", "copy", "reflink"), newWorld(t, s, "calm", "off", "reflink")}
	rough, calm := s.worlds[0], s.worlds[1]
	acme, err := calm.newPublisher()
	if err != nil {
		t.Fatal(err)
	}
	stop := s.start(4)
	defer stop()
	var work sync.WaitGroup
	for i := range 6 {
		work.Go(func() { rough.cell(i, i%2 == 1) })
	}
	for i := range 3 {
		work.Go(func() { calm.cell(i, i%2 == 1) })
	}
	work.Go(rough.wreck)
	work.Go(func() { calm.rebuilds(acme) })
	for _, w := range s.worlds {
		work.Go(w.storm)
		for _, m := range w.mounts {
			seat := &seat{key: s.keys.Add(1), path: filepath.Join(m.dir, "storm"), at: m}
			s.readers[int(seat.key)%len(s.readers)].take(seat)
		}
	}
	if *stress {
		work.Go(rough.stressNG)
		for _, m := range rough.mounts {
			seat := &seat{key: s.keys.Add(1), path: filepath.Join(m.dir, "stress"), at: m}
			s.readers[int(seat.key)%len(s.readers)].take(seat)
		}
	}
	p := &sampler{run: s, pids: map[*outages]int{}, times: map[*outages]int64{}}
	work.Go(p.watch)
	s.finish(&work)
	s.count.slowest("end after the time was over", time.Since(s.began)-s.length)
	s.conclude(p)
}

// conclude looks at what is left, writes the summary, and fails the test for all
// that was not told yet.
func (s *soak) conclude(p *sampler) {
	t := s.t
	for _, w := range s.worlds {
		st, err := w.settled()
		if err != nil {
			s.fail("world %s at the end: %v", w.name, err)
		}
		if len(st.Rejected) > 0 {
			s.fail("world %s: the store rejects %+v", w.name, st.Rejected)
		}
		for _, m := range st.Mounts {
			if m.Report != nil {
				for _, bad := range []string{"panics", "auditLost"} {
					if n := m.Report.Counters[bad]; n != 0 {
						s.fail("%s at %s: %d", bad, m.Mountpoint, n)
					}
				}
				s.count.add(fmt.Sprintf("tier at the end, world %s, --seal %s: %s %s", w.name, filepath.Base(m.Mountpoint), m.Report.Tier, m.Report.TierReason), 1)
			}
		}
		logs, _ := filepath.Glob(filepath.Join(w.state, "log", "*"))
		for _, l := range logs {
			b, err := os.ReadFile(l)
			if err != nil {
				s.fail("%v", err)
			}
			for _, word := range []string{"panic:", "fatal error:", "goroutine 1 ["} {
				if i := strings.Index(string(b), word); i >= 0 {
					s.fail("%s tells of a crash: %.2000s", l, b[i:])
				}
			}
		}
	}
	races, err := filepath.Glob(filepath.Join(s.dir, "race.*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range races {
		b, _ := os.ReadFile(r)
		s.fail("RACE REPORT %s:\n%s", filepath.Base(r), b)
	}
	text := s.summary(len(races))
	text += "\nCurves: minimum/median/maximum of each tenth of the run; the last number is the bound of the rule (see quantities).\n"
	for _, w := range s.worlds {
		roles := []string{"daemon"}
		for _, m := range w.mounts {
			roles = append(roles, m.seal)
		}
		for _, role := range roles {
			drawn, growing := p.curves(w.name, role)
			text += drawn
			for _, g := range growing {
				if s.length >= judgeFrom {
					s.fail("%s", g)
				}
			}
		}
	}
	if s.length < judgeFrom {
		text += fmt.Sprintf("Curves of less than %v are not judged.\n", judgeFrom)
	}
	if err := p.write(filepath.Join(s.out, "curves.csv")); err != nil {
		t.Error(err)
	}
	s.mu.Lock() // a writer that is late may still fail
	failures := s.failures
	s.mu.Unlock()
	text += fmt.Sprintf("failures: %d\n", failures)
	if err := os.WriteFile(filepath.Join(s.out, "summary.txt"), []byte(text), 0o644); err != nil {
		t.Error(err)
	}
	t.Logf("\n%s", text)
	// A soak in which nothing happened shows nothing.
	for _, what := range []string{"opens", "bytes", "contents", "histories", "churn", "storm", "rebuilds", "open off: ok", "open copy: ok", "open reflink: ok", "open off: " + unix.EACCES.Error()} {
		if s.count.get(what) == 0 {
			t.Errorf("nothing happened: %s is 0", what)
		}
	}
	if failures > 0 {
		t.Errorf("%d failures", failures)
	}
}

func (s *soak) summary(races int) string {
	c := s.count
	c.mu.Lock()
	did := int64(0)
	for what, n := range c.n {
		if strings.HasPrefix(what, "did: daemon") {
			did += n
		}
	}
	text := fmt.Sprintf("soak of %v, %s, race detector %v\n", s.length, runtime.Version(), raceEnabled)
	text += fmt.Sprintf("opens %d, bytes compared %d, grants %d, revocations %d, daemon restarts and stops %d, WRONG BYTES %d, RACE REPORTS %d, histories %d of %d operations, unexplained %d\n",
		c.n["opens"], c.n["bytes"], c.n["grants"], c.n["revocations"], did, c.n["wrong bytes"], races, c.n["histories"], c.n["operations in histories"], c.n["histories that nothing explains"])
	for _, what := range slices.Sorted(maps.Keys(c.n)) {
		text += fmt.Sprintf("  %-60s %d\n", what, c.n[what])
	}
	names := slices.Sorted(maps.Keys(c.all))
	c.mu.Unlock()
	for _, what := range names {
		text += fmt.Sprintf("  %-60s median %v, p99 %v, worst %v\n", what,
			c.quantile(what, .5).Round(10*time.Microsecond), c.quantile(what, .99).Round(10*time.Microsecond), c.quantile(what, 1).Round(10*time.Microsecond))
	}
	return text
}
