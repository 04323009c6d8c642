package logserver

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/translog"
	"github.com/openclaw/clawfs/verifier/tlog"
)

// child serves the log in dir until it is killed.
func child(dir string) {
	err := func() error {
		l, err := Open(Config{Dir: dir, Witnesses: []byte(os.Getenv("LOGSERVER_WITNESSES")), Interval: 100 * time.Millisecond, Log: logger})
		if err != nil {
			return err
		}
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Println("http://" + listener.Addr().String())
		return l.serve(context.Background(), listener, time.Minute)
	}()
	fmt.Println(err)
	os.Exit(1)
}

// start runs a child and returns its URL and what kills it.
func (w *world) start(t *testing.T, witnesses string) (url string, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "LOGSERVER_CHILD="+w.dir, "LOGSERVER_WITNESSES="+witnesses)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() { cmd.Process.Kill(); cmd.Wait() })
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if url = strings.TrimSpace(line); err != nil || !strings.HasPrefix(url, "http://") {
		t.Fatalf("the child says %q, %v, want its URL", line, err)
	}
	return url, kill
}

// TestKill kills a server with SIGKILL while it adds, several times. Every proof
// that anybody got verifies, all checkpoints are of one tree, and what was not
// acknowledged can be added again.
func TestKill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := newWitness(t, "a", w.vkey)
	witnesses := "log " + w.vkey.String() + "\n" + a.line() + "\nquorum a\n"
	policy := w.trust(t, a.line(), "quorum a")
	const rounds, each = 3, 30
	var mu sync.Mutex
	proofs := make(map[int][]byte) // by sequence
	for round := range rounds {
		url, kill := w.start(t, witnesses)
		var all sync.WaitGroup
		for i := range each {
			all.Go(func() {
				sequence := 1 + round*each/2 + i // half of them were sent before
				text, err := translog.Submit(t.Context(), url, w.sba(t, sequence))
				if err != nil {
					return // not acknowledged
				}
				mu.Lock()
				defer mu.Unlock()
				proofs[sequence] = text
			})
		}
		// Not before something was acknowledged, and then at any point.
		eventually(t, "an addition is acknowledged", func() bool { mu.Lock(); defer mu.Unlock(); return len(proofs) > round*2 })
		time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond)
		kill()
		all.Wait()
	}
	if len(proofs) < rounds {
		t.Fatalf("%d additions were acknowledged, want some", len(proofs))
	}
	l := w.open(t, a.line(), "quorum a")
	reader, err := translog.Open(w.dir, policy)
	if err != nil {
		t.Fatal(err)
	}
	for sequence := range 1 + (rounds-1)*each/2 + each - 1 {
		w.add(t, l, 1+sequence)
	}
	newest, err := reader.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]int64)
	if err := reader.Entries(t.Context(), newest, 0, func(i int64, record []byte) error {
		if at, ok := seen[string(record)]; ok {
			return fmt.Errorf("one leaf is at the indexes %d and %d", at, i)
		}
		seen[string(record)] = i
		leaf, err := tlog.ParseLeaf(record)
		if err != nil {
			return err
		}
		_, err = reader.Envelope(t.Context(), leaf)
		return err
	}); err != nil {
		t.Error(err)
	}
	for sequence, text := range proofs {
		p := w.verify(t, policy, text, sequence)
		if at := seen[string(w.leaf(t, sequence).Encode())]; at != p.Index {
			t.Errorf("entry %d was acknowledged at %d, and is at %d", sequence, p.Index, at)
		}
		old, err := policy.Checkpoint(p.Checkpoint)
		if err != nil {
			t.Fatal(err)
		}
		m, err := tlog.NewMemory().Advance(old, nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := reader.Consistency(t.Context(), old.Size(), newest.Size())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Advance(newest, c); err != nil {
			t.Errorf("entry %d: %v", sequence, err)
		}
	}
	t.Logf("%d of %d additions were acknowledged before a kill; the log has %d entries", len(proofs), rounds*each, newest.Size())
}
