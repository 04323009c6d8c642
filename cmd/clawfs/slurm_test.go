package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/rebuild/engine/slurm/slurmtest"
)

// The main road with a cluster in it: the builds of a job run on its nodes, on
// another one each time, and what is minted opens.
func TestGrantOnSlurm(t *testing.T) {
	c := slurmtest.Start(t, filepath.Join(repository(t), "build/slurm"))
	r := newRig(t)
	good, slow := r.publish("counts", "count"), r.publish("slow", "slow")
	bad := r.publish("failing", "no-such-mode")
	shared := filepath.Join(filepath.Dir(r.src), "shared")
	if err := os.Mkdir(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	settings, err := os.ReadFile(r.state.Settings())
	if err != nil {
		t.Fatal(err)
	}
	settings = fmt.Appendf(settings, "executor = \"slurm\"\n[build.slurm]\nshared_dir = %q\nclawfs = %q\npartition = \"build\"\ncommands = %q\nconf = %q\n", shared, r.bin, c.Commands, c.Conf)
	if err := os.WriteFile(r.state.Settings(), settings, 0o600); err != nil {
		t.Fatal(err)
	}
	const want = "a 2\nb 1\n"
	r.file("counts.txt", want)
	r.ok("mount", r.src, r.mnt)
	if r.opens("counts.txt", want) {
		t.Fatal("the file opened before anything was granted")
	}
	r.refused(codeRefused, []string{"grant", bad, "--wait"}, "BUILD_FAILED")
	r.ok("grant", good, "--wait")
	r.eventually("the granted file opens", func() bool { return r.opens("counts.txt", want) })
	jobs := r.jobs()
	minted := slices.IndexFunc(jobs, func(j capstore.Job) bool { return j.Verdict == capstore.Minted })
	if len(jobs) != 2 || minted < 0 {
		t.Fatalf("jobs = %+v, want one of two minted", jobs)
	}
	log := r.ok("job", jobs[minted].ID, "--logs")
	if !strings.Contains(log, "slurm with "+shared) {
		t.Errorf("the log names no cluster:\n%s", log)
	}
	if told := c.Do("squeue", "-h", "--states=all", "-o", "%T %N"); strings.Count(told, "COMPLETED n1")+strings.Count(told, "COMPLETED n2") != 3 ||
		!strings.Contains(told, "n1") || !strings.Contains(told, "n2") {
		t.Errorf("squeue: %s, want three jobs that completed, on both nodes", told)
	}
	// A daemon and a worker that are killed leave a job, which the next daemon
	// ends before it tries again.
	id := strings.TrimSpace(r.ok("grant", slow))
	r.eventually("the slow build runs", func() bool { return strings.Contains(c.Do("squeue", "-h", "-o", "%T"), "RUNNING") })
	first := strings.TrimSpace(c.Do("squeue", "-h", "-o", "%A"))
	text, err := os.ReadFile(filepath.Join(r.state.Job(id), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	worker, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	r.stopDaemon(syscall.SIGKILL)
	if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.startDaemon()
	r.eventually("the dead worker's job is cancelled", func() bool {
		return strings.Contains(c.Do("squeue", "-h", "--states=CANCELLED", "-o", "%A "), first+" ")
	})
	r.ok("job", id, "--cancel")
	r.eventually("nothing is left but the cache of inputs", func() bool {
		left, _ := filepath.Glob(filepath.Join(shared, "[^.]*"))
		return len(left) == 1 && filepath.Base(left[0]) == "cache" && c.Do("squeue", "-h") == ""
	})
}
