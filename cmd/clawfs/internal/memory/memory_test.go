package memory_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/verifier/tlog"
	"github.com/openclaw/clawfs/verifier/tlog/tlogtest"
)

func create(t testing.TB) memory.Dir {
	t.Helper()
	d := memory.Dir(filepath.Join(t.TempDir(), "memory"))
	if err := d.Create(); err != nil {
		t.Fatal(err)
	}
	return d
}

func checkpoint(t testing.TB, l *tlogtest.Log, size int64) tlog.Checkpoint {
	t.Helper()
	p, err := tlog.ParsePolicy([]byte(l.Policy("")))
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Checkpoint(l.Checkpoint(t, size))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func consistency(t testing.TB, l *tlogtest.Log, older, newer int64) tlog.Consistency {
	t.Helper()
	p, err := tlog.ParseConsistency(l.Consistency(t, older, newer))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func reasonOf(err error) tlog.Reason {
	var r *tlog.Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return ""
}

func size(t *testing.T, d memory.Dir, origin string) int64 {
	t.Helper()
	m, err := d.Logs()
	if err != nil {
		t.Fatal(err)
	}
	n, _, _ := m.Newest(origin)
	return n
}

func TestSee(t *testing.T) {
	d := create(t)
	l := tlogtest.New("log.example/models", "alice")
	l.Fill(t, 20)
	other := tlogtest.New(l.Origin, "alice") // another tree under the same keys
	other.Fill(t, 3)
	other.Add(t, tlog.Leaf{}) // a record of no bytes
	other.Fill(t, 20)
	for _, tt := range []struct {
		name   string
		c      tlog.Checkpoint
		proof  tlog.Consistency
		reason tlog.Reason
		want   int64
	}{
		{"the first", checkpoint(t, l, 5), nil, "", 5},
		{"the same", checkpoint(t, l, 5), nil, "", 5},
		{"the same with a proof of something", checkpoint(t, l, 5), consistency(t, l, 3, 9), "", 5},
		{"newer without a proof", checkpoint(t, l, 9), nil, tlog.ReasonConsistency, 5},
		{"newer with the proof of another", checkpoint(t, l, 9), consistency(t, l, 4, 9), tlog.ReasonConsistency, 5},
		{"newer of another tree", checkpoint(t, other, 9), consistency(t, other, 5, 9), tlog.ReasonConsistency, 5},
		{"newer", checkpoint(t, l, 9), consistency(t, l, 5, 9), "", 9},
		{"older without a proof", checkpoint(t, l, 5), nil, tlog.ReasonOlder, 9},
		{"older with the proof of another", checkpoint(t, l, 5), consistency(t, l, 5, 10), tlog.ReasonConsistency, 9},
		{"older of another tree", checkpoint(t, other, 5), consistency(t, l, 5, 9), tlog.ReasonConsistency, 9},
		{"older", checkpoint(t, l, 5), consistency(t, l, 5, 9), "", 9},
		{"none", tlog.Checkpoint{}, nil, "error", 9},
	} {
		err := d.See(tt.c, tt.proof)
		if tt.reason == "error" && err != nil && reasonOf(err) == "" {
			err = nil
		} else if tt.reason != reasonOf(err) || tt.reason == "" && err != nil {
			t.Errorf("%s: See = %v, want reason %q", tt.name, err, tt.reason)
		}
		if got := size(t, d, l.Origin); got != tt.want {
			t.Fatalf("%s: size %d is remembered, want %d", tt.name, got, tt.want)
		}
	}
	// A fork is kept, and the log is refused from then on, whatever it shows.
	if err := d.See(checkpoint(t, other, 9), nil); reasonOf(err) != tlog.ReasonFork {
		t.Errorf("a fork: See = %v", err)
	}
	m, err := d.Logs()
	if err != nil {
		t.Fatal(err)
	}
	first, second, forked := m.Fork(l.Origin)
	if !forked || string(first) != string(l.Checkpoint(t, 9)) || string(second) != string(other.Checkpoint(t, 9)) {
		t.Errorf("Fork = %q, %q, %v, want both checkpoints as they were signed", first, second, forked)
	}
	for _, n := range []int64{9, 15} {
		if err := d.See(checkpoint(t, l, n), consistency(t, l, 9, 15)); reasonOf(err) != tlog.ReasonFork {
			t.Errorf("size %d after the fork: See = %v", n, err)
		}
	}
	second2 := tlogtest.New("log.example/other", "alice")
	second2.Fill(t, 1)
	if err := d.See(checkpoint(t, second2, 1), nil); err != nil {
		t.Errorf("another log after the fork: %v", err)
	}
}

func TestLost(t *testing.T) {
	l := tlogtest.New("log.example/models", "alice")
	l.Fill(t, 5)
	for _, tt := range []struct {
		name  string
		spoil func(path string) error
	}{
		{"missing", os.Remove},
		{"empty", func(p string) error { return os.WriteFile(p, nil, 0o600) }},
		{"one bit", func(p string) error {
			b, err := os.ReadFile(p)
			if err == nil {
				b[len(b)/3] ^= 1
			}
			return errors.Join(err, os.WriteFile(p, b, 0o600))
		}},
		{"cut short", func(p string) error { return os.Truncate(p, 60) }},
		{"too long", func(p string) error { return os.Truncate(p, tlog.MaxMemory+1000) }},
		{"of other people", func(p string) error { return os.Chmod(p, 0o666) }},
		{"a link", func(p string) error { return errors.Join(os.Rename(p, p+".x"), os.Symlink(p+".x", p)) }},
		{"a directory", func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }},
		{"no directory", func(p string) error { return os.RemoveAll(filepath.Dir(p)) }},
	} {
		d := create(t)
		for _, name := range []string{"logs", "newest"} {
			if err := d.See(checkpoint(t, l, 5), nil); err != nil {
				t.Fatal(err)
			}
			if _, err := d.Raise(memory.Time, 7); err != nil {
				t.Fatal(err)
			}
			if err := tt.spoil(filepath.Join(string(d), name)); err != nil {
				t.Fatal(err)
			}
			var err error
			if name == "logs" {
				err = d.See(checkpoint(t, l, 5), nil)
			} else {
				_, err = d.Raise(memory.Time, 9)
			}
			if !errors.Is(err, memory.ErrLost) || !strings.Contains(err.Error(), "clawfs memory reset --yes") {
				t.Errorf("%s %s: %v, want ErrLost and the next command", name, tt.name, err)
			}
			if _, _, err := d.Newest(memory.Time); name == "newest" && !errors.Is(err, memory.ErrLost) {
				t.Errorf("%s: Newest = %v", tt.name, err)
			}
			kept, err := d.Reset(time.Now())
			if err != nil || len(kept) < 1 && tt.name != "no directory" {
				t.Errorf("%s: Reset = %q, %v", tt.name, kept, err)
			}
			if n := size(t, d, l.Origin); n != 0 {
				t.Errorf("%s: size %d is remembered after Reset", tt.name, n)
			}
			if _, seen, err := d.Newest(memory.Time); seen || err != nil {
				t.Errorf("%s: Newest after Reset = %v, %v", tt.name, seen, err)
			}
		}
	}
	d := create(t)
	if err := d.Create(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second Create = %v, want fs.ErrExist", err)
	}
}

func TestRaise(t *testing.T) {
	d := create(t)
	if _, seen, err := d.Newest(memory.ListSequence + ":local"); seen || err != nil {
		t.Errorf("Newest of nothing = %v, %v", seen, err)
	}
	for _, tt := range []struct {
		kind        memory.Kind
		value, want int64
	}{
		{memory.ListSequence + ":local", 3, 3},
		{memory.ListSequence + ":local", 3, 3},
		{memory.ListSequence + ":local", 2, 3},
		{memory.ListSequence + ":local", 4, 4},
		{memory.ListSequence, 0, 0},
		{memory.ListSequence + ":acme", 1<<53 - 1, 1<<53 - 1},
		{memory.ListSequence, 1, 1},
	} {
		got, err := d.Raise(tt.kind, tt.value)
		again, seen, err2 := d.Newest(tt.kind)
		if err != nil || err2 != nil || got != tt.want || again != tt.want || !seen {
			t.Errorf("Raise(%s, %d) = %d, %v, then Newest = %d, %v, want %d", tt.kind, tt.value, got, err, again, err2, tt.want)
		}
	}
	for _, tt := range []struct {
		kind  memory.Kind
		value int64
	}{{"", 1}, {"Time", 1}, {"a b", 1}, {"a\n", 1}, {"a:", 1}, {memory.Time, -1}, {memory.Time, 1 << 53}} {
		if _, err := d.Raise(tt.kind, tt.value); err == nil {
			t.Errorf("Raise(%q, %d) succeeds", tt.kind, tt.value)
		}
	}
	wall := time.Unix(1_800_000_000, 500)
	if got, err := d.Now(wall); err != nil || !got.Equal(wall) {
		t.Errorf("Now = %v, %v, want the wall clock", got, err)
	}
	if got, err := d.Now(wall.Add(-time.Hour)); err != nil || got.Unix() != wall.Unix() {
		t.Errorf("Now with a clock that was set back = %v, %v, want %v", got, err, wall)
	}
	all, err := d.Numbers()
	if err != nil || len(all) != 4 {
		t.Errorf("Numbers = %v, %v", all, err)
	}
}

// Many at once: nothing of what any of them saw is forgotten.
func TestConcurrent(t *testing.T) {
	d := create(t)
	l := tlogtest.New("log.example/models")
	l.Fill(t, 8)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if _, err := d.Raise(memory.Kind(fmt.Sprintf("list-sequence:op%d", i)), int64(i)); err != nil {
				t.Error(err)
			}
			if _, err := d.Raise(memory.Time, int64(i)); err != nil {
				t.Error(err)
			}
			o := tlogtest.New(fmt.Sprintf("log.example/%d", i))
			o.Fill(t, 1)
			if err := d.See(checkpoint(t, o, 1), nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	numbers, err := d.Numbers()
	if err != nil || len(numbers) != 9 || numbers[memory.Time] != 7 {
		t.Errorf("Numbers = %v, %v, want 9 with the highest time", numbers, err)
	}
	m, err := d.Logs()
	if err != nil || len(m.Origins()) != 8 {
		t.Errorf("%d logs, %v, want 8", len(m.Origins()), err)
	}
}

// A process that holds the lock is waited for.
func TestLockIsWaitedFor(t *testing.T) {
	flock, err := exec.LookPath("flock")
	if err != nil {
		t.Fatal("flock is missing; install it: apt-get install util-linux")
	}
	d := create(t)
	cmd := exec.Command(flock, filepath.Join(string(d), "lock"), "sh", "-c", "echo held; read x")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	raised := make(chan error, 1)
	go func() { _, err := d.Raise(memory.Time, 1); raised <- err }()
	select {
	case err := <-raised:
		t.Fatalf("Raise returned %v while another process held the lock", err)
	case <-time.After(200 * time.Millisecond):
	}
	in.Close()
	if err := <-raised; err != nil {
		t.Errorf("Raise after the lock was given back: %v", err)
	}
}
