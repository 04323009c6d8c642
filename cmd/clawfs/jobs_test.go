package main

import (
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
)

// budget gives the one publisher of the policy a budget.
func (r *rig) budget(b verifier.Budget) {
	r.t.Helper()
	p, err := r.state.LoadPolicy()
	if err != nil {
		r.t.Fatal(err)
	}
	p.Publishers[0].Budget = &b
	text, err := p.Encode()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.state.Policy(), text, 0o644); err != nil {
		r.t.Fatal(err)
	}
	time.Sleep(time.Second) // the daemon reads it once a second
}

// TestJobsInTheQueue: what an operator sees and does while jobs wait.
func TestJobsInTheQueue(t *testing.T) {
	r := newRig(t)
	slow, next := r.publish("slow", "slow"), r.publish("counts", "count")
	for _, args := range [][]string{{"grant", slow, "--priority", "11"}, {"job", "aaaaaaaaaa", "--priority", "-11"}} {
		r.refused(codeUsage, args, "want -10 to 10")
	}
	r.refused(codeUsage, []string{"job", "aaaaaaaaaa", "--priority", "1", "--cancel"}, "three commands")
	settings, err := os.ReadFile(r.state.Settings())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.state.Settings(), append(settings, "concurrency = 1\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	running := strings.TrimSpace(r.ok("grant", slow))
	r.eventually("the first job runs", func() bool { return r.jobs()[0].State == capstore.JobRunning })
	waiting := strings.TrimSpace(r.ok("grant", next, "--priority", "3"))
	if out := r.ok("jobs"); !regexp.MustCompile(waiting + ` +pending +3 +- +acme/counts`).MatchString(out) {
		t.Errorf("jobs does not show the priority:\n%s", out)
	}
	if out := r.ok("job", waiting, "--priority", "-2"); !regexp.MustCompile(`priority +-2\n`).MatchString(out) {
		t.Errorf("job --priority printed %q", out)
	}
	r.refused(codeError, []string{"job", running, "--priority", "1"}, "runs already")
	r.refused(codeError, []string{"job", "aaaaaaaaaa", "--priority", "1"}, "no such job")
	r.ok("job", waiting, "--cancel")
	r.refused(codeError, []string{"job", waiting, "--priority", "1"}, "ended")
	r.ok("job", running, "--cancel")
	// A budget that is used up: today's two jobs were all.
	r.budget(verifier.Budget{JobsPerDay: 2})
	r.refused(codeRefused, []string{"grant", next}, "POLICY_REFUSED", "publisher acme", "budget.jobsPerDay", "room again at 2")
	if n := len(r.jobs()); n != 2 {
		t.Errorf("%d jobs after a refused one, want 2", n)
	}
}

// TestFetchWaits: a server that is away is asked again later, and the list says
// when and why.
func TestFetchWaits(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	r := newRig(t)
	sba := r.publish("counts", "count")
	id := strings.TrimSpace(r.ok("grant", sba, "--source", "https://"+closed.Addr().String()+"/recipe"))
	r.eventually("the job waits", func() bool { return r.jobs()[0].Waits == capstore.WaitFetch })
	want := regexp.MustCompile(id + ` +pending .* waiting until 20[-0-9]+T[:0-9]+Z: FETCH_FAILED at try 1 of 5: .*127\.0\.0\.1`)
	if out := r.ok("jobs"); !want.MatchString(out) {
		t.Errorf("jobs printed\n%swant it to match %s", out, want)
	}
	if out := r.ok("job", id); !regexp.MustCompile(`waiting +until 20`).MatchString(out) || !strings.Contains(out, "FETCH_FAILED at try 1 of 5") {
		t.Errorf("job printed\n%s", out)
	}
	r.refused(codePending, []string{"grant", sba, "--wait", "--timeout", "2s"}, "waiting until 20", "FETCH_FAILED at try 1 of 5")
	r.stopDaemon(9)
	r.startDaemon()
	if job := r.jobs()[0]; job.State != capstore.JobPending || job.Waits != capstore.WaitFetch || job.Attempts != 1 {
		t.Errorf("after the daemon was killed: %+v, want it to wait on", job)
	}
	r.ok("job", id, "--cancel")
}
