package fs

import (
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/openclaw/clawfs/hashpipe"
)

// Each verdict is told once and counted once: as granted, as refused, or as an
// error of nobody's making.
func TestTell(t *testing.T) {
	d := newDesk(t)
	data := []byte("the rebuilt bytes")
	c := d.grant("langid.bin", data)
	granted := Decide(Query{Path: "langid.bin", Size: int64(len(data)), Sum: hashpipe.SumBytes(data), Now: time.Now()}, d.view.All())
	if !granted.Allowed() {
		t.Fatal(granted.Detail)
	}
	records := make(chan Record, 64)
	f := &filesystem{view: d.view, clock: newClock(time.Now), audit: newAuditor(func(r Record) { records <- r })}
	defer f.audit.close()
	refusal := func(r Reason) Verdict { return refused(r, "what was got", "what to do") }
	for _, x := range []struct {
		v    Verdict
		want Decision
	}{
		{granted, Granted},
		{refusal(ReasonUnreadable), Failed}, {refusal(ReasonInterrupted), Failed}, {refusal(ReasonTooSlow), Failed},
		{refusal(ReasonPanic), Refused}, {refusal(ReasonNoCapability), Refused}, {refusal(ReasonQuarantined), Refused}, {refusal(ReasonRevoked), Refused},
		{Verdict{}, Refused}, {Verdict{Reason: ReasonGranted}, Refused}, // neither grants
	} {
		before := f.counts()
		fl := &flight{}
		fl.digest = c.Claim() // any
		f.tell(fuse.Caller{Owner: fuse.Owner{Uid: 7, Gid: 8}, Pid: 9}, "a/langid.bin", x.v, fl, TierBlocks)
		var r Record
		select {
		case r = <-records:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: nothing was told", x.v.Reason)
		}
		if r.Decision != x.want || r.Reason != x.v.Reason || r.Detail != x.v.Detail || r.Next != x.v.Next || r.Path != "a/langid.bin" || r.UID != 7 || r.GID != 8 || r.PID != 9 || r.Digest != fl.digest.String() {
			t.Errorf("%s: told %+v, want %s", x.v.Reason, r, x.want)
		}
		if (r.Tier != "") != (x.want == Granted) || (r.Capability != "") != (x.want == Granted) {
			t.Errorf("%s: tier %q of capability %q", x.v.Reason, r.Tier, r.Capability)
		}
		after := f.counts()
		for decision, n := range after {
			want := before[decision]
			if decision == x.want {
				want++
			}
			if n != want {
				t.Errorf("%s: %s counted %d, want %d", x.v.Reason, decision, n, want)
			}
		}
	}
}

func (f *filesystem) counts() map[Decision]int64 {
	return map[Decision]int64{Granted: f.counters.granted.Load(), Refused: f.counters.refused.Load(), Failed: f.counters.errors.Load()}
}
