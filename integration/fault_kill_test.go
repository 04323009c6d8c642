package integration

import (
	"encoding/json"
	"fmt"
	"syscall"
	"testing"
	"time"
)

// kill -9 at a random moment while the daemon grants and revokes: what was
// acknowledged is there at the next start, nothing is half there, the mount
// serves all the time, and nobody does anything by hand.
func TestFaultKill(t *testing.T) {
	rng := dice(t)
	h := newHost(t, t.TempDir())
	h.mustStart()
	h.mountModels()
	var starts longest
	var last found
	for round := range *faultFlags.rounds {
		gone := make(chan error, 2)
		begun := make(chan struct{}, 2)
		for client := range 2 {
			go func() {
				gone <- h.work(fmt.Sprintf("r%dc%d", round, client), func() { begun <- struct{}{} })
			}()
		}
		for range 2 {
			select {
			case <-begun:
			case err := <-gone:
				t.Fatalf("round %d: the work ended before the kill: %v\n%s", round, err, h.tail())
			}
		}
		time.Sleep(time.Duration(rng.IntN(30_000)) * time.Microsecond)
		h.kill()
		for range 2 {
			if err := <-gone; asRefusal(err) != nil {
				t.Errorf("round %d: refused: %v", round, err)
			}
		}
		h.wantServes(h.mnt)
		starts = append(starts, h.mustStart())
		last = h.wantAll(fmt.Sprintf("round %d", round))
	}
	h.wantServes(h.mnt)
	t.Logf("%d kills; %v; %v", *faultFlags.rounds, last, starts)
}

// The same while workers rebuild and mint: a job whose daemon is killed at any
// moment ends minted, once, and with its capability.
func TestFaultKillMint(t *testing.T) {
	rng := dice(t)
	w := newWorld(t)
	w.trust()
	h := hostOf(w)
	h.mustStart()
	rounds := max(2, *faultFlags.rounds/10)
	var starts longest
	kills := 0
	for round := range rounds {
		name := fmt.Sprintf("m%d", round)
		sba := w.ledger(name, 1)
		w.must(done, "grant", sba)
		// A build takes some seconds; the kills fall into any part of it.
		for range 3 {
			time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
			h.kill()
			kills++
			starts = append(starts, h.mustStart())
		}
		var jobs []struct{ ID, SBA, Model, State, Verdict, Capability string }
		h.eventually("the job has ended", func() bool {
			if err := h.get("/v1/jobs", &jobs); err != nil {
				t.Fatal(err)
			}
			return jobs[len(jobs)-1].State == "done" || jobs[len(jobs)-1].State == "failed"
		})
		var caps []struct{ ID, State, Model string }
		if err := h.get("/v1/capabilities", &caps); err != nil {
			t.Fatal(err)
		}
		if len(jobs) != round+1 || len(caps) != round+1 {
			text, _ := json.Marshal(jobs)
			t.Fatalf("after round %d: %d jobs and %d capabilities, want one each of every round\n%s\n%s", round, len(jobs), len(caps), text, h.tail())
		}
		for _, j := range jobs {
			n := 0
			for _, c := range caps {
				if c.Model == j.Model && c.State == "live" && c.ID == j.Capability {
					n++
				}
			}
			if n != 1 || j.Verdict != "MINTED" {
				t.Errorf("job of %s: %s %s, and it has %d capabilities", j.Model, j.State, j.Verdict, n)
			}
		}
	}
	h.pid = 0
	w.stopDaemon(syscall.SIGTERM)
	t.Logf("%d rebuilds, %d kills; %v", rounds, kills, starts)
}
