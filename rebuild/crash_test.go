package rebuild

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// crashRole is the environment variable by which the test binary becomes the
// daemon or the worker of a crash test: "<role> <directory>".
const crashRole = "CLAWFS_CRASH_TEST"

func TestMain(m *testing.M) {
	if role, dir, ok := strings.Cut(os.Getenv(crashRole), " "); ok {
		if err := map[string]func(string) error{"daemon": crashDaemon, "worker": crashWorker, "keeper": keeper, "builder": builder, "rebuilder": rebuilder, "holder": holder}[role](dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	removeWorld()
	os.Exit(code)
}

// crashSite is what the processes of one crash test share: keys, store, jobs.
type crashSite struct{ dir string }

func (c crashSite) path(name string) string { return filepath.Join(c.dir, name) }

func (c crashSite) key(name string) (dsse.PrivateKey, error) {
	text, err := os.ReadFile(c.path(name + ".pem"))
	if err != nil {
		return dsse.PrivateKey{}, err
	}
	return dsse.ParsePrivateKey(text, nil)
}

func (c crashSite) trust() (capstore.Trust, error) {
	mint, err := c.key("mint")
	if err != nil {
		return capstore.Trust{}, err
	}
	revoker, err := c.key("revoker")
	return capstore.Trust{
		Mints:    []capstore.Signer{{Operator: "local", Key: mint.Public()}},
		Revokers: []capstore.Signer{{Operator: "local", Key: revoker.Public()}},
	}, err
}

// crashDaemon runs the queue until it is killed. Its workers are processes of
// their own; they die with it if the file "together" exists.
func crashDaemon(dir string) error { return crashSite{dir}.serve("worker", nil) }

// serve runs the queue with test binaries in the given role as its workers.
func (site crashSite) serve(role string, prepare func(*Queue)) error {
	trust, err := site.trust()
	if err != nil {
		return err
	}
	store, err := capstore.Open(site.path("store"), site.path("store.memory"), trust)
	if err != nil {
		return err
	}
	q, err := NewQueue(store, site.path("jobs"), func(ctx context.Context, job string) error {
		defer lockThread()()
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), crashRole+"="+role+" "+job)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // as the daemon's workers are
		if _, err := os.Stat(site.path("together")); err == nil {
			cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
		}
		return cmd.Run()
	})
	if err != nil {
		return err
	}
	if prepare != nil {
		prepare(q)
	}
	return q.Run(context.Background())
}

// crashWorker says that it began, works for half a second, and answers.
func crashWorker(dir string) error {
	site := crashSite{filepath.Dir(filepath.Dir(dir))}
	unlock, err := lockJob(dir)
	if err != nil {
		return err
	}
	defer unlock()
	job, envelope, _, err := readJob(dir)
	if err != nil {
		return err
	}
	if err := os.WriteFile(site.path(fmt.Sprintf("began-%d", job.Attempt)), nil, 0o600); err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond)
	publisher, err := site.key("publisher")
	if err != nil {
		return err
	}
	mint, err := site.key("mint")
	if err != nil {
		return err
	}
	e, err := dsse.Parse(envelope)
	if err != nil {
		return err
	}
	l, err := verifier.ParseLedger(e.UnverifiedPayload())
	if err != nil {
		return err
	}
	text, err := signCapability(job, l, publisher.Public(), mint, "weights")
	if err != nil {
		return err
	}
	return answer(dir, job, Result{Verdict: capstore.Minted, Capability: text})
}

// daemon starts a daemon and returns its kill, which is SIGKILL.
func (c crashSite) daemon(t *testing.T) (kill func()) {
	t.Helper()
	_, kill = c.daemonProcess(t, "daemon")
	return kill
}

func (c crashSite) daemonProcess(t *testing.T, role string) (pid int, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashRole+"="+role+" "+c.dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			cmd.Process.Kill()
			cmd.Wait()
		}
	}
	t.Cleanup(kill)
	return cmd.Process.Pid, kill
}

func (c crashSite) await(t *testing.T, name string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if found, _ := filepath.Glob(c.path(name)); len(found) > 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s did not appear within 20 s", name)
		}
	}
}

// crashSite writes the keys of the parties into a new site.
func (p parties) crashSite(t *testing.T) crashSite {
	t.Helper()
	site := crashSite{t.TempDir()}
	for name, key := range map[string]dsse.PrivateKey{"publisher": p.publisher, "mint": p.mint, "revoker": p.revoker} {
		text, err := key.PEM()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(site.path(name+".pem"), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return site
}

// TestKilled kills the daemon with SIGKILL at the points that matter.
func TestKilled(t *testing.T) {
	for _, c := range []struct {
		name     string
		together bool     // workers die with their daemon
		kills    []string // the daemon is killed when this file appears
		verdict  capstore.Verdict
		attempts int
	}{
		{"worker outlives the daemon", false, []string{"began-1"}, capstore.Minted, 1},
		{"worker dies with the daemon", true, []string{"began-1"}, capstore.Minted, 2},
		{"answer was written", false, []string{"jobs/*/" + ResultFile}, capstore.Minted, 1},
		{"both die twice", true, []string{"began-1", "began-2"}, capstore.Minted, 3},
		{"both die three times", true, []string{"began-1", "began-2", "began-3"}, capstore.BuildFailed, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			p := newParties(t)
			site := p.crashSite(t)
			if c.together {
				if err := os.WriteFile(site.path("together"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			store := p.store(t, site.path("store"))
			q, err := NewQueue(store, site.path("jobs"), func(context.Context, string) error { return nil })
			if err != nil {
				t.Fatal(err)
			}
			envelope, att := p.attest(t, p.statement("1.0.0", "train"))
			job, err := q.Submit(envelope, att, capstore.Locations{}, 0)
			if err != nil {
				t.Fatal(err)
			}
			store.Close()
			for _, point := range c.kills {
				kill := site.daemon(t)
				site.await(t, point)
				kill()
			}
			kill := site.daemon(t)
			// The daemon holds the store; the job is over when its envelope is gone.
			for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if left, err := os.ReadDir(site.path("jobs/" + sbaDir)); err == nil && len(left) == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the job did not end within 30 s")
				}
			}
			kill()
			store = p.store(t, site.path("store"))
			got, err := store.Job(job.ID)
			if err != nil || got.Verdict != c.verdict || got.Attempts != c.attempts {
				t.Errorf("job %+v, %v; want %s after %d attempts", got, err, c.verdict, c.attempts)
			}
			want := 0
			if c.verdict.Granted() {
				want = 1
			}
			if n := len(store.All()); n != want {
				t.Errorf("%d capabilities, want %d", n, want)
			}
		})
	}
}
