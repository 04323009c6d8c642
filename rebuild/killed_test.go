package rebuild

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
)

var crashRounds = flag.Int("crash.rounds", 12, "kills of TestKilledAtRandom")

const (
	// crashLanes are the daemons that are tormented at the same time. Each has a
	// state directory of its own.
	crashLanes = 4
	// cleanTime is how long after the end something may be left on the host.
	cleanTime = 30 * time.Second
)

// keeper is the daemon process of TestKilledAtRandom: "<site>".
func keeper(dir string) error {
	runtime, err := testRuntime()
	if err != nil {
		return err
	}
	site := crashSite{dir}
	return site.serve("builder", func(q *Queue) {
		q.retryDelay = 50 * time.Millisecond
		q.Sweep = func(ctx context.Context) error { _, err := runtime.Sweep(ctx); return err }
		go site.cancelRest(q)
	})
}

// cancelRest ends the jobs that still wait once the file "enough" is there.
func (c crashSite) cancelRest(q *Queue) {
	for {
		time.Sleep(20 * time.Millisecond)
		if _, err := os.Stat(c.path("enough")); err != nil {
			continue
		}
		jobs, _ := q.store.Jobs()
		for _, job := range jobs {
			if job.State == capstore.JobPending && job.Attempts == 0 {
				q.Cancel(job.ID)
			}
		}
	}
}

// builder is its worker: "<job directory>". Everything is as in a daemon's
// worker, but for the time between the two builds.
func builder(dir string) error {
	apart = 100 * time.Millisecond
	site := crashSite{filepath.Dir(filepath.Dir(dir))}
	text, err := os.ReadFile(site.path("policy.json"))
	if err != nil {
		return err
	}
	policy, err := verifier.ParsePolicy(text)
	if err != nil {
		return err
	}
	runtime, err := testRuntime()
	if err != nil {
		return err
	}
	syscall.Umask(0o077)
	_, err = RunJob(context.Background(), JobConfig{Dir: dir, Policy: policy, Executor: runtime, MintKey: site.path("mint.pem"), Program: "test", Validity: time.Hour})
	return err
}

func testRuntime() (*sandbox.Runtime, error) {
	runc, err := filepath.Abs("../bin/runc")
	if err != nil {
		return nil, err
	}
	return sandbox.Find(runc)
}

// kill is one round: who was hit, when, and what became of the job.
type kill struct {
	victim string // daemon, worker, runtime, or both: worker and daemon
	hit    string // what the process was doing: its command line, or empty
	phase  string // of the job at that moment
	job    string
}

// TestKilledAtRandom kills daemon, worker and runtime with SIGKILL at random
// moments of real jobs. Whatever is hit, the job ends once and mints at most
// once, and nothing stays on the host. -crash.rounds=100 for a hundred kills.
func TestKilledAtRandom(t *testing.T) {
	rounds := *crashRounds
	if rounds < crashLanes {
		t.Fatalf("-crash.rounds=%d: want at least %d", rounds, crashLanes)
	}
	t.Run("lanes", func(t *testing.T) {
		for lane := range crashLanes {
			n := (rounds + lane) / crashLanes
			t.Run(fmt.Sprint(lane), func(t *testing.T) {
				t.Parallel() // they mostly wait
				newLane(t).torment(lane, n)
			})
		}
	})
}

// lane is one daemon with its jobs.
type lane struct {
	*jobSite
	site crashSite
	jobs []capstore.Job
	pid  int             // of the daemon
	kill func()          // of the daemon
	runs map[string]bool // of the sandbox, that were alive at a kill
}

func newLane(t *testing.T) *lane {
	s := newJobSite(t, "nap")
	l := &lane{jobSite: s, site: s.crashSite(t), runs: make(map[string]bool)}
	text, err := s.policy.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.site.path("policy.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

// submit puts jobs into the store, before there is a daemon.
func (l *lane) submit(n int) {
	l.t.Helper()
	store := l.store(l.t, l.site.path("store"))
	defer store.Close()
	q, err := NewQueue(store, l.site.path("jobs"), func(context.Context, string) error { return nil })
	if err != nil {
		l.t.Fatal(err)
	}
	for i := range n {
		l.st.Predicate.Version = fmt.Sprint(i)
		envelope, att := l.attest(l.t, l.st)
		job, err := q.Submit(envelope, att, l.loc, 0)
		if err != nil {
			l.t.Fatal(err)
		}
		l.jobs = append(l.jobs, job)
	}
}

// ended says whether a job is over: its envelope goes with its last row.
func (l *lane) ended(job capstore.Job) bool {
	_, err := os.Stat(l.site.path("jobs/" + sbaDir + "/" + job.SBA.String() + ".json"))
	return errors.Is(err, os.ErrNotExist)
}

// began waits until a worker of the job is to start.
func (l *lane) began(job capstore.Job) {
	l.t.Helper()
	l.until("job "+job.ID+" begins", func() bool {
		_, err := os.Stat(filepath.Join(l.site.path("jobs"), job.ID, JobFile))
		return err == nil || l.ended(job)
	})
}

func (l *lane) until(what string, done func() bool) {
	l.t.Helper()
	for deadline := time.Now().Add(time.Minute); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("not so after a minute: %s", what)
		}
	}
}

// torment kills once for each of n jobs. The first job is left alone, to learn
// how long one takes.
func (l *lane) torment(seed, n int) {
	t := l.t
	l.submit(3 + 2*n) // also for jobs that end before they are hit
	l.start()
	l.began(l.jobs[0])
	begin := time.Now()
	l.until("the first job ends", func() bool { return l.ended(l.jobs[0]) })
	long := time.Since(begin)
	victims := []string{"daemon", "worker", "runtime", "both"}
	var kills []kill
	for _, job := range l.jobs[1:] {
		if len(kills) == n {
			break
		}
		l.began(job)
		time.Sleep(rand.N(long))
		k := kill{victim: victims[(len(kills)+seed)%len(victims)], job: job.ID}
		if l.strike(&k, job) {
			kills = append(kills, k)
		} else {
			long /= 2
		}
	}
	if len(kills) < (n+1)/2 {
		t.Errorf("%d kills, want %d, or half of them: jobs of %v end before they are hit", len(kills), n, long)
	}
	if err := os.WriteFile(l.site.path("enough"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, job := range l.jobs {
		l.until("job "+job.ID+" ends", func() bool { return l.ended(job) })
	}
	l.kill()
	end := time.Now()
	var left []string
	for {
		if left = l.leftovers(); len(left) == 0 || time.Since(end) > cleanTime {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, what := range left {
		t.Errorf("on the host %v after the last job: %s", cleanTime, what)
	}
	l.judge(kills)
	t.Logf("a job takes %v; clean %v after the last", long.Round(time.Millisecond), time.Since(end).Round(time.Millisecond))
}

// strike kills k.victim and notes what it was at. It reports false if the job
// ended first.
func (l *lane) strike(k *kill, job capstore.Job) bool {
	dir := filepath.Join(l.site.path("jobs"), job.ID)
	if k.victim == "daemon" {
		k.phase = phaseOf(dir, l.ended(job))
		for _, p := range children(l.pid) {
			l.note(p.pid)
		}
		l.kill()
		l.start()
		return true
	}
	for !l.ended(job) {
		target := l.target(k.victim)
		if target == nil {
			time.Sleep(time.Millisecond)
			continue
		}
		k.hit, k.phase = target.what(), phaseOf(dir, false)
		if !target.kill() {
			continue
		}
		if k.victim == "both" {
			l.kill()
			l.start()
		}
		return true
	}
	return false
}

// target finds the worker, or one of the processes of runc and of containers
// below it.
func (l *lane) target(victim string) *process {
	for _, worker := range children(l.pid) {
		l.note(worker.pid)
		if victim != "runtime" {
			return worker
		}
		var found []*process
		for _, p := range descendants(worker.pid) {
			if strings.Contains(p.exe, "runc") || strings.Contains(p.cgroup, "/clawfs-") {
				found = append(found, p)
			}
		}
		if len(found) > 0 {
			return found[rand.N(len(found))]
		}
	}
	return nil
}

// note keeps the runs that a worker holds: they have to be gone at the end.
func (l *lane) note(worker int) {
	for run, pid := range livingRuns(l.t) {
		if pid == worker {
			l.runs[run] = true
		}
	}
}

func (l *lane) start() {
	l.pid, l.kill = l.site.daemonProcess(l.t, "keeper")
}

// judge compares what the store says with what may have happened.
func (l *lane) judge(kills []kill) {
	t := l.t
	store := l.store(t, l.site.path("store"))
	defer store.Close()
	minted := make(map[string]int) // capabilities by attestation
	for _, g := range store.All() {
		minted[g.SBA().String()]++
	}
	rows, err := store.Jobs()
	if err != nil || len(rows) != len(l.jobs) {
		t.Fatalf("%d jobs, %v, want %d: none is lost and none is made up", len(rows), err, len(l.jobs))
	}
	byID := make(map[string]capstore.Job)
	for _, row := range rows {
		byID[row.ID] = row
		want := 0
		if row.Verdict.Granted() {
			want = 1
		}
		if _, err := os.Stat(filepath.Join(l.site.path("jobs"), row.ID, workDir)); !os.IsNotExist(err) {
			t.Errorf("job %s left scratch files: %v", row.ID, err)
		}
		hit := slices.ContainsFunc(kills, func(k kill) bool { return k.job == row.ID })
		if row.State == capstore.JobCancelled && !hit && minted[row.SBA.String()] == 0 {
			continue // it was not needed
		}
		if row.State != capstore.JobDone || minted[row.SBA.String()] != want {
			t.Errorf("job %+v with %d capabilities, want it done, and one if it is minted", row, minted[row.SBA.String()])
		}
		if !hit && row.Verdict != capstore.Minted {
			t.Errorf("job %s, which was left alone, ended as %s: %s", row.ID, row.Verdict, row.Reason)
		}
	}
	place := func(id string) int {
		return slices.IndexFunc(l.jobs, func(j capstore.Job) bool { return j.ID == id })
	}
	for i, k := range kills {
		row := byID[k.job]
		most := 2
		if i > 0 && kills[i-1].phase == "after" && place(kills[i-1].job)+1 == place(k.job) {
			most++ // the daemon that was killed after that job had begun this one
		}
		// A build whose process is killed from outside looks like one that was
		// killed by itself: an answer, and not run again.
		killed := k.victim == "runtime" && row.Verdict == capstore.BuildFailed && strings.Contains(row.Reason, "signal 9")
		if row.Attempts > most || row.Verdict != capstore.Minted && !killed {
			t.Errorf("%s killed at %s (%s): job %s after %d attempts: %s", k.victim, k.phase, k.hit, row.Verdict, row.Attempts, row.Reason)
		}
		t.Logf("kill: %s | %s | %s | %s in %d", k.victim, k.phase, k.hit, row.Verdict, row.Attempts)
	}
}

// phaseOf reads how far a job is.
func phaseOf(dir string, ended bool) string {
	if ended {
		return "after"
	}
	if _, err := os.Stat(filepath.Join(dir, ResultFile)); err == nil {
		return "answered"
	}
	text, _ := os.ReadFile(filepath.Join(dir, EventFile))
	phase := "start"
	for line := range bytes.Lines(text) {
		var e Event
		if json.Unmarshal(line, &e) == nil {
			phase = string(e.Phase)
			if strings.HasPrefix(e.Message, "build ") {
				phase = e.Message[:len("build 1")]
			}
		}
	}
	return phase
}

// process is what /proc says about one.
type process struct {
	pid               int
	exe, line, cgroup string
}

// children lists the living children of a process.
func children(pid int) (list []*process) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		for _, field := range strings.Fields(string(text)) {
			dir := "/proc/" + field
			p := &process{}
			p.pid, _ = strconv.Atoi(field)
			p.exe, _ = os.Readlink(dir + "/exe")
			p.line = commandLine(p.pid)
			groups, _ := os.ReadFile(dir + "/cgroup")
			p.cgroup = string(groups)
			if p.exe != "" { // a zombie has none
				list = append(list, p)
			}
		}
	}
	return list
}

func descendants(pid int) []*process {
	list := children(pid)
	for _, p := range list {
		list = append(list, descendants(p.pid)...)
	}
	return list
}

func commandLine(pid int) string {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
}

// what names what a process is at: "runc create", "runc init", "payload nap".
func (p *process) what() string {
	at := strings.Fields(p.line)
	if len(at) == 0 {
		return "?"
	}
	name := filepath.Base(at[0])
	if self, _ := os.Executable(); p.exe == self {
		return ""
	}
	if strings.Contains(p.exe, "runc") {
		name = "runc"
	}
	for _, verb := range []string{"create", "init", "start", "kill", "delete", "nap"} {
		if slices.Contains(at[1:], verb) {
			return name + " " + verb
		}
	}
	return name
}

// kill sends SIGKILL if the process is still the one that was looked at.
func (p *process) kill() bool {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	now, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid))
	if err != nil || now != p.exe || commandLine(p.pid) != p.line {
		return false
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil
}

// leftovers lists what of this lane is on the host.
func (l *lane) leftovers() (left []string) {
	ours := func(text string) bool {
		if strings.Contains(text, l.site.dir) {
			return true
		}
		for run := range l.runs {
			if strings.Contains(text, run) {
				return true
			}
		}
		return false
	}
	dirs, _ := filepath.Glob(sandbox.StateDir + "/*")
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "clawfs-") {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, dir := range dirs {
		if ours(dir) {
			left = append(left, dir)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if ours(line) {
			left = append(left, "mount "+line)
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		if exe, _ := os.Readlink(dir + "/exe"); exe == "" || filepath.Base(dir) == strconv.Itoa(os.Getpid()) {
			continue // a thread of the kernel, or a zombie
		}
		group, _ := os.ReadFile(dir + "/cgroup")
		environ, _ := os.ReadFile(dir + "/environ")
		if ours(string(group)) || ours(string(environ)) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			left = append(left, fmt.Sprintf("process %d: %s", pid, commandLine(pid)))
		}
	}
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range backing {
		if file, _ := os.ReadFile(f); ours(string(file)) {
			left = append(left, "loop device of "+strings.TrimSpace(string(file)))
		}
	}
	return left
}

// livingRuns are the sandbox's runs by the process that holds their lock.
func livingRuns(t *testing.T) map[string]int {
	t.Helper()
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	held := make(map[string]int) // by inode number
	for line := range strings.Lines(string(locks)) {
		// 1: FLOCK  ADVISORY  WRITE 4711 00:1a:12345 0 EOF
		if at := strings.Fields(line); len(at) > 5 && at[1] == "FLOCK" {
			held[at[5][strings.LastIndexByte(at[5], ':')+1:]], _ = strconv.Atoi(at[4])
		}
	}
	alive := make(map[string]int)
	files, _ := filepath.Glob(sandbox.StateDir + "/*/lock")
	for _, f := range files {
		var st syscall.Stat_t
		if syscall.Stat(f, &st) == nil && held[fmt.Sprint(st.Ino)] != 0 {
			alive[filepath.Base(filepath.Dir(f))] = held[fmt.Sprint(st.Ino)]
		}
	}
	return alive
}
