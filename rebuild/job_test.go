package rebuild

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/rebuild/record"
	"github.com/openclaw/clawfs/rebuild/sandbox"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog/tlogtest"
)

// jobSite is a site with a job directory and a mint key file.
type jobSite struct {
	*site
	dir      string
	config   JobConfig
	envelope []byte
	att      verifier.Attestation
}

func newJobSite(t *testing.T, argv ...string) *jobSite {
	t.Helper()
	s := &jobSite{site: newSite(t), dir: t.TempDir()}
	if len(argv) > 0 {
		s.params().Stages[0].Argv = append([]string{"payload"}, argv...)
	}
	key := filepath.Join(t.TempDir(), "mint.key")
	public, err := NewMintKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s.setPolicy(t, public)
	text, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if s.mint, err = dsse.ParsePrivateKey(text, nil); err != nil {
		t.Fatal(err)
	}
	s.envelope, s.att = s.attest(t, s.st)
	s.config = JobConfig{Dir: s.dir, Policy: s.policy, Executor: s.runtime, MintKey: key, Program: "test", Validity: time.Hour}
	s.place(s.envelope, jobFile{ID: "aaaaaaaaaa", SBA: s.att.Digest(), Attempt: 1, Locations: s.loc})
	return s
}

func (s *jobSite) place(envelope []byte, job jobFile) {
	s.t.Helper()
	if err := errors.Join(durable.Replace(filepath.Join(s.dir, SBAFile), envelope, 0o600), writeJSON(filepath.Join(s.dir, JobFile), &job)); err != nil {
		s.t.Fatal(err)
	}
}

// wantLog makes the policy want proofs from logs.
func (s *jobSite) wantLog(logs string) {
	policy := *s.config.Policy
	policy.Logs, policy.Publishers = logs, slices.Clone(policy.Publishers)
	policy.Publishers[0].Log = verifier.LogRequired
	s.config.Policy = &policy
}

func TestRunJob(t *testing.T) {
	s := newJobSite(t)
	// The key is not there until both builds are done.
	hidden := s.config.MintKey + ".hidden"
	if err := os.Rename(s.config.MintKey, hidden); err != nil {
		t.Fatal(err)
	}
	var phases []Phase
	s.config.Observer = func(e Event) {
		if e.Phase == PhaseMint {
			os.Rename(hidden, s.config.MintKey)
		}
		if len(phases) == 0 || phases[len(phases)-1] != e.Phase {
			phases = append(phases, e.Phase)
		}
	}
	r, err := RunJob(t.Context(), s.config)
	if err != nil {
		t.Fatal(err)
	}
	if r.Verdict != capstore.Minted || r.SBA != s.att.Digest() || r.Job != "aaaaaaaaaa" {
		t.Errorf("RunJob = %+v, want %s", r, capstore.Minted)
	}
	if want := []Phase{PhaseVerify, PhaseSource, PhaseDataset, PhaseImage, PhaseBuild, PhaseMint}; !slices.Equal(phases, want) {
		t.Errorf("phases %q, want %q", phases, want)
	}
	if rec, err := record.Read(r.Record, []dsse.PublicKey{s.mint.Public()}); err != nil || rec.Type != record.ProvenanceType || rec.Job != r.Job {
		t.Errorf("record %+v, %v, want provenance", rec, err)
	}
	store := s.store(t, filepath.Join(t.TempDir(), "store"))
	c, err := store.Admit(r.Capability)
	if err != nil {
		t.Fatal(err)
	}
	if c.SBA() != s.att.Digest() || c.Model() != "acme/toy" || len(c.Subjects()) != 1 || c.NotAfter().Sub(c.NotBefore()) != time.Hour {
		t.Errorf("capability %+v", c)
	}
	if again, err := RunJob(t.Context(), s.config); err != nil || !bytes.Equal(again.Capability, r.Capability) {
		t.Errorf("RunJob again = %v, %v, want the same capability", again.Verdict, err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, workDir)); !os.IsNotExist(err) {
		t.Errorf("scratch files are left: %v", err)
	}
	log, err := os.ReadFile(filepath.Join(s.dir, LogFile))
	if err != nil || !strings.Contains(string(log), "MINTED") {
		t.Errorf("log %q, %v", log, err)
	}
	events, err := os.ReadFile(filepath.Join(s.dir, EventFile))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(events)), "\n")
	for _, line := range lines {
		var e Event
		if err := json.Unmarshal([]byte(line), &e, json.RejectUnknownMembers(true)); err != nil || e.Phase == "" || e.Time.IsZero() {
			t.Errorf("event %q: %+v, %v", line, e, err)
		}
	}
	if len(lines) < 6 {
		t.Errorf("%d events, want one for each phase", len(lines))
	}
}

// TestRunJobAnswers: what is the job's answer, and no capability.
func TestRunJobAnswers(t *testing.T) {
	for _, c := range []struct {
		name    string
		argv    []string
		change  func(*jobSite)
		verdict capstore.Verdict
		reason  string
	}{
		{"garbage", nil, func(s *jobSite) { s.rewrite([]byte("{}")) }, capstore.PolicyRefused, "attestation"},
		{"signed by another key", nil, func(s *jobSite) {
			other := newParties(s.t)
			payload, err := s.st.Payload()
			if err != nil {
				s.t.Fatal(err)
			}
			envelope, err := dsse.Sign(dsse.PayloadType, payload, other.publisher)
			if err != nil {
				s.t.Fatal(err)
			}
			s.rewrite(envelope)
		}, capstore.PolicyRefused, "attestation"},
		{"publisher no longer trusted", nil, func(s *jobSite) {
			policy, err := s.policy.RemovePublisher("acme")
			if err != nil {
				s.t.Fatal(err)
			}
			s.config.Policy = policy
		}, capstore.PolicyRefused, "attestation"},
		{"log proof is wanted", nil, func(s *jobSite) { s.wantLog(tlogtest.New("log.example/models").Policy("")) }, capstore.PolicyRefused, "attestation: SBA of acme/toy: the policy wants ledgers of publisher acme in a log"},
		{"log proof is wrong", nil, func(s *jobSite) {
			l := tlogtest.New("log.example/models")
			l.Fill(s.t, 3)
			s.wantLog(l.Policy(""))
			if err := durable.Replace(filepath.Join(s.dir, ProofFile), l.Proof(s.t, 1, 3), 0o600); err != nil {
				s.t.Fatal(err)
			}
		}, capstore.PolicyRefused, "attestation: SBA of acme/toy: log proof: expected a path"},
		{"mint key not in the policy", nil, func(s *jobSite) { s.setPolicy(s.t, newParties(s.t).mint.Public()); s.config.Policy = s.policy }, capstore.PolicyRefused, "not one of the policy's mints"},
		{"mint key revoked", nil, func(s *jobSite) {
			s.place(s.envelope, jobFile{ID: "aaaaaaaaaa", SBA: s.att.Digest(), Locations: s.loc, RevokedMints: []dsse.KeyID{s.mint.Public().ID()}})
		}, capstore.PolicyRefused, "is revoked"},
		{"build fails", []string{"fail"}, nil, capstore.BuildFailed, "stage train"},
		{"random", []string{"random", "model.bin"}, nil, capstore.Nondeterministic, "model.bin"},
		{"copy", []string{"copy", "/in/dataset/corpus/two.txt"}, nil, capstore.CopiedInput, "two.txt"},
		{"no dataset", nil, func(s *jobSite) { s.place(s.envelope, jobFile{ID: "aaaaaaaaaa", SBA: s.att.Digest()}) }, capstore.FetchFailed, "--source"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newJobSite(t, c.argv...)
			if c.change != nil {
				c.change(s)
			}
			r, err := RunJob(t.Context(), s.config)
			if err != nil || r.Verdict != c.verdict || !strings.Contains(r.Reason, c.reason) || len(r.Capability) != 0 {
				t.Errorf("RunJob = %+v, %v, want %s: %q", r, err, c.verdict, c.reason)
			}
			// Who is not believed, or has no key that counts, signs nothing.
			signed := !strings.Contains(c.reason, "attestation") && !strings.Contains(c.name, "mint key")
			rec, err := record.Read(r.Record, []dsse.PublicKey{s.mint.Public()})
			if signed && (err != nil || rec.Type != record.FailureType || rec.Verdict != c.verdict) || !signed && len(r.Record) > 0 {
				t.Errorf("record %+v, %v, want it signed: %v", rec, err, signed)
			}
			stored, err := readResult(s.dir, "aaaaaaaaaa", s.att.Digest())
			if err != nil || stored.Verdict != c.verdict {
				t.Errorf("the answer on disk is %+v, %v", stored, err)
			}
		})
	}
}

func (s *jobSite) rewrite(envelope []byte) {
	s.place(envelope, jobFile{ID: "aaaaaaaaaa", SBA: s.att.Digest(), Locations: s.loc})
}

// TestRunJobErrors: what is no answer leaves no ResultFile, so that the queue
// tries again.
func TestRunJobErrors(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*jobSite)
		want   string
	}{
		{"no mint key", func(s *jobSite) { os.Remove(s.config.MintKey) }, "opening mint key"},
		{"mint key of all", func(s *jobSite) { os.Chmod(s.config.MintKey, 0o644) }, "chmod 600"},
		{"no policy", func(s *jobSite) { s.config.Policy = nil }, "are required"},
		{"empty policy", func(s *jobSite) { s.config.Policy = &verifier.Policy{} }, "policy"},
		{"no validity", func(s *jobSite) { s.config.Validity = 0 }, "are required"},
		{"no executor", func(s *jobSite) { s.config.Executor = nil }, "are required"},
		{"broken runtime", func(s *jobSite) { s.config.Executor = &sandbox.Runtime{} }, ""},
		{"no directory", func(s *jobSite) { s.config.Dir += "-not" }, "no such file"},
		{"job for another attestation", func(s *jobSite) { s.place(s.envelope, jobFile{ID: "aaaaaaaaaa", SBA: digest("x")}) }, "the job is for"},
		{"job without a name", func(s *jobSite) { s.place(s.envelope, jobFile{SBA: s.att.Digest()}) }, "names no job"},
		{"unknown member", func(s *jobSite) { s.write(filepath.Join(s.dir, JobFile), `{"id":"a","more":1}`) }, "more"},
		{"no envelope", func(s *jobSite) { os.Remove(filepath.Join(s.dir, SBAFile)) }, "no such file"},
		{"another worker", func(s *jobSite) {
			unlock, err := lockJob(s.dir)
			if err != nil {
				s.t.Fatal(err)
			}
			s.t.Cleanup(unlock)
		}, errJobLocked.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newJobSite(t)
			c.change(s)
			r, err := RunJob(t.Context(), s.config)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("RunJob = %+v, %v, want %q", r, err, c.want)
			}
			if _, err := os.Stat(filepath.Join(s.dir, ResultFile)); !os.IsNotExist(err) {
				t.Errorf("there is an answer: %v", err)
			}
		})
	}
}

// rebuilder is the worker process of TestWorkerKilled: "<job directory>".
func rebuilder(dir string) error {
	state := filepath.Dir(filepath.Dir(dir))
	text, err := os.ReadFile(filepath.Join(state, "policy.json"))
	if err != nil {
		return err
	}
	policy, err := verifier.ParsePolicy(text)
	if err != nil {
		return err
	}
	runc, err := filepath.Abs("../bin/runc")
	if err != nil {
		return err
	}
	runtime, err := sandbox.Find(runc)
	if err != nil {
		return err
	}
	syscall.Umask(0o077)
	_, err = RunJob(context.Background(), JobConfig{Dir: dir, Policy: policy, Executor: runtime, MintKey: filepath.Join(state, "mint.key"), Program: "test", Validity: time.Hour})
	return err
}

// TestWorkerKilled: the worker is killed with SIGKILL while its container
// runs. The queue sweeps, runs the job again, and it mints once.
func TestWorkerKilled(t *testing.T) {
	s := newJobSite(t, "slow")
	state := t.TempDir()
	text, err := s.policy.Encode()
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(s.config.MintKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(state, "policy.json"), text, 0o600), os.WriteFile(filepath.Join(state, "mint.key"), key, 0o600)); err != nil {
		t.Fatal(err)
	}
	store := s.store(t, filepath.Join(state, "store"))
	kills, container := 0, 0
	q, err := NewQueue(store, filepath.Join(state, "jobs"), func(ctx context.Context, dir string) error {
		defer lockThread()()
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), crashRole+"=rebuilder "+dir)
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			return err
		}
		if kills++; kills == 1 {
			await(t, filepath.Join(dir, EventFile), "build 1 of 2")
			container = awaitContainer(t, cmd.Process.Pid)
			cmd.Process.Kill()
		}
		return cmd.Wait()
	})
	if err != nil {
		t.Fatal(err)
	}
	q.Sweep = func(ctx context.Context) error {
		_, err := s.runtime.Sweep(ctx)
		return err
	}
	job, err := q.Submit(s.envelope, s.att, s.loc, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	for deadline := time.Now().Add(60 * time.Second); !job.State.HasEnded(); time.Sleep(20 * time.Millisecond) {
		if job, err = store.Job(job.ID); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("the job did not end within 60 s")
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if job.Verdict != capstore.Minted || job.Attempts != 2 || len(store.All()) != 1 {
		t.Errorf("job %+v with %d capabilities, want one minted at the second attempt", job, len(store.All()))
	}
	// Whoever sweeps first on this machine has done it: any build does.
	if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", container)); err == nil && !bytes.Contains(status, []byte("State:\tZ")) {
		t.Errorf("the container of the killed worker lives:\n%s", status)
	}
	if _, err := os.Stat(filepath.Join(q.JobDir(job.ID), workDir)); !os.IsNotExist(err) {
		t.Errorf("scratch files are left: %v", err)
	}
}

// await waits until a file holds a text.
func await(t *testing.T, name, text string) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if b, _ := os.ReadFile(name); bytes.Contains(b, []byte(text)) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s does not hold %q after 20 s", name, text)
			return
		}
	}
}

// awaitContainer waits for the first process of a worker's container.
func awaitContainer(t *testing.T, worker int) int {
	parent := fmt.Appendf(nil, "\nPPid:\t%d\n", worker)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			status, _ := os.ReadFile(filepath.Join(dir, "status"))
			groups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
			if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && bytes.Contains(status, parent) && bytes.Contains(groups, []byte("/clawfs-")) {
				return pid
			}
		}
	}
	t.Error("the worker has no container after 20 s")
	return -1
}
