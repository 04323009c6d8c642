package capstore

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
)

// A snapshot of more records than one goroutine reads at a time has all of them once,
// revocations first, each kind in the order in which it came; whoever wants no more
// waits for nobody; and one that a Retrust overtakes is not whole.
func TestSnapshotOrder(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	const each = 10*aheadRows + 6
	fillStore(t, w, dir, each)
	s := openStore(t, dir, w.trust())
	before := make([]hashpipe.Digest, 0, each)
	for g := range s.View().Each() {
		before = append(before, g.ID())
	}
	if len(before) != each {
		t.Fatalf("%d capabilities, want %d", len(before), each)
	}
	snapshot, _, cancel := s.Subscribe(1)
	defer cancel()
	n := 0
	for r, err := range snapshot {
		if err != nil {
			t.Fatal(err)
		}
		f, err := readBody(r.Entry)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case n < each && f.kind != RecordRevocation, n >= each && (f.kind != RecordCapability || f.id != before[n-each]):
			t.Fatalf("record %d is %s %s", n, f.kind, f.id)
		}
		n++
		if !s.Sending() {
			t.Fatal("nobody knows that a snapshot is being read")
		}
	}
	if n != 2*each || s.Sending() {
		t.Errorf("%d records, want %d; still reading: %v", n, 2*each, s.Sending())
	}
	for _, stop := range []int{1, aheadRows, aheadRows + 1, each + 1, 2*each - 1} {
		snapshot, _, cancel := s.Subscribe(1)
		n := 0
		for range snapshot {
			if n++; n == stop {
				break
			}
		}
		cancel()
		if n != stop || s.Sending() {
			t.Errorf("stopped after %d of %d; still reading: %v", n, stop, s.Sending())
		}
	}

	snapshot, _, cancel = s.Subscribe(1)
	defer cancel()
	n = 0
	var ended error
	for r, err := range snapshot {
		if ended = err; err != nil {
			break
		}
		if n++; n == 1 {
			if err := s.Retrust(w.trust()); err != nil {
				t.Fatal(err)
			}
		}
		_ = r
	}
	if !errors.Is(ended, errRetrusted) || n >= 2*each {
		t.Errorf("a snapshot that the policy overtook ended with %v after %d records", ended, n)
	}

	// A store that is closed meanwhile ends it too, and nothing hangs.
	snapshot, _, cancel = s.Subscribe(1)
	defer cancel()
	n, ended = 0, nil
	for _, err := range snapshot {
		if ended = err; err != nil {
			break
		}
		if n++; n == 1 {
			closed := make(chan error, 1)
			go func() { closed <- s.Close() }()
			select {
			case err := <-closed:
				if err != nil {
					t.Fatal(err)
				}
			case <-time.After(time.Minute):
				t.Fatal("Close waits for a snapshot that nobody reads on")
			}
		}
	}
	if !errors.Is(ended, ErrClosed) {
		t.Errorf("a snapshot of a closed store ended with %v after %d records", ended, n)
	}
}

// A sweep waits while somebody reads a snapshot, and goes on after that.
func TestSweepWaitsForSnapshots(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	fillStore(t, w, dir, sweepFirst)
	s := openStore(t, dir, w.trust())
	snapshot, _, cancel := s.Subscribe(1)
	defer cancel()
	n := 0
	for _, err := range snapshot {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n > 1 {
			continue
		}
		if err := s.Retrust(w.trust()); err != nil { // begins another sweep
			t.Fatal(err)
		}
		for range 10 {
			if s.Swept() {
				t.Fatal("the sweep did not wait")
			}
			time.Sleep(sweepWait)
		}
		break
	}
	for end := time.Now().Add(time.Minute); !s.Swept(); time.Sleep(sweepWait) {
		if time.Now().After(end) {
			t.Fatal("the sweep did not go on")
		}
	}
	if bad := s.View().Rejected(); len(bad) > 0 {
		t.Error(fmt.Sprint(bad))
	}
}
