package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/rebuild"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/tlog"
)

func newGrantCommand(a *app) *cobra.Command {
	var where rebuildFlags
	var proof proofFlags
	var wait bool
	var timeout time.Duration
	var priority int
	var narrow narrowFlags
	c := &cobra.Command{
		Use:   "grant FILE.sba",
		Short: "Ask for the rebuild that earns a capability",
		Long: `grant takes a publisher's Signed Build Attestation, never a hash. It verifies the
attestation by the policy, and queues the rebuild: the worker runs the signed
recipe twice in a sandbox, and if both builds gave the same bytes it mints a
capability for those bytes. Where the ledger's own URIs do not lead to the
inputs, the flags say where they are; every input is checked against the
ledger's digest, so a wrong place can only fail. What an earlier job fetched is
not fetched again.

Where the policy names transparency logs, FILE.sba.tlog-proof is taken along and
has to show that the attestation lies in one of them, at a checkpoint that fits
the newest one that this machine has seen of the log.

The capability can be narrowed, and no program but a reader can take that off:
` + narrowHelp + `
--delegate-to names a key that may derive narrower capabilities from it (clawfs
delegate). The same attestation under other flags is another job, and rebuilt
again; a wider capability that is there already is not narrowed by it.

Exit code with --wait: 0 granted. 3 refused, or the build failed. 4 the signature
or the signer is not acceptable. 5 the two builds differ, or the result is DISPUTED:
another operator has another one of the same attestation, and no file of either
opens. 6 not finished in time; the job goes on. Without --wait, 0 means that the job
is queued.`,
		Example: `  clawfs grant langid.sba --wait
  clawfs grant langid.sba --source ./recipe --dataset corpus=./corpus --image ./image
  clawfs grant langid.sba --path-prefix team --uid 1000 --not-after 2026-12-31`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if timeout < 0 || timeout > 0 && !wait {
				return exitf(codeUsage, "--timeout %v: want a time of at least 0, together with --wait", timeout)
			}
			if err := capstore.CheckPriority(priority); err != nil {
				return exitf(codeUsage, "--%w", err)
			}
			loc, err := where.locations()
			if err != nil {
				return err
			}
			terms, err := narrow.terms(time.Now())
			if err != nil {
				return err
			}
			return a.grant(c.Context(), args[0], proof, control.Submission{Locations: loc, Priority: priority, Terms: terms}, wait, timeout)
		},
	}
	f := c.Flags()
	f.BoolVar(&wait, "wait", false, "wait for the verdict, with progress on standard error")
	f.DurationVar(&timeout, "timeout", 0, "with --wait: how long to wait (default for ever)")
	f.IntVar(&priority, "priority", 0, "from -10 to 10; the higher, the sooner the rebuild starts")
	proof.register(c)
	narrow.register(f, "delegate-to")
	where.registerPlaces(c)
	return c
}

// grant fills in the attestation of s and its proof, and submits it.
func (a *app) grant(ctx context.Context, path string, beside proofFlags, s control.Submission, wait bool, timeout time.Duration) error {
	envelope, err := readAttestation(path)
	if err != nil {
		return err
	}
	proof, err := readProof(beside.proof, path)
	if err != nil {
		return err
	}
	// The daemon verifies again; this answer needs none, and nothing is queued.
	policy, err := a.config().LoadPolicy()
	if err != nil {
		return err
	}
	// A worker that cannot read them would be taken for one that died.
	if _, err := a.config().LoadSettings(os.Geteuid()); err != nil {
		return err
	}
	att, err := policy.Verify(envelope, proof, time.Now())
	if err != nil {
		var r *verifier.Refusal
		if proof == nil && errors.As(err, &r) && r.Reason == verifier.ReasonLog {
			err = fmt.Errorf("%w; next: %s, or, if it is in no log yet, %s", err, a.command("log", "prove", path), a.command("log", "add", path))
		}
		return refusal(path, explainMalformed(notThat(err, envelope, anAttestation), envelope))
	}
	if err := known(att.Ledger().Statement(), s.Locations); err != nil {
		return err
	}
	c, err := a.daemon(ctx)
	if err != nil {
		return err
	}
	s.SBA, s.Proof = envelope, proof
	job, err := a.submit(ctx, c, policy.Policy, att, s, beside.consistency, path)
	if err != nil {
		return err
	}
	if !wait {
		return a.print(job, func() { a.showSubmitted(job) })
	}
	a.notef("job %s: %s %s\n", job.ID, printable(job.Model), printable(job.Version))
	job, err = a.await(ctx, c, job, timeout)
	if err != nil {
		return err
	}
	return a.showVerdict(ctx, c, job)
}

// submit adds to a submission what connects its log proof with what the daemon
// has seen. If the daemon sees another checkpoint meanwhile, it is done again.
func (a *app) submit(ctx context.Context, c *control.Client, policy *verifier.Policy, att verifier.Attestation, s control.Submission, consistency, path string) (capstore.Job, error) {
	const tries = 10
	for try := 1; ; try++ {
		var before tlog.Memory
		if !att.Checkpoint().IsZero() {
			var err error
			if before, err = memory.Dir(a.config().Memory()).Logs(); err != nil {
				return capstore.Job{}, err
			}
			if s.Consistency, err = a.consistency(ctx, policy, before, att, consistency, path); err != nil {
				return capstore.Job{}, err
			}
		}
		job, err := c.Submit(ctx, s)
		if err == nil || try == tries || att.Checkpoint().IsZero() {
			return job, a.answered(err)
		}
		now, gone := memory.Dir(a.config().Memory()).Logs()
		size, _, _ := now.Newest(att.Checkpoint().Origin())
		if seen, _, _ := before.Newest(att.Checkpoint().Origin()); gone != nil || seen == size {
			return job, a.answered(err)
		}
	}
}

func (a *app) showSubmitted(job capstore.Job) {
	a.printf("%s\n", job.ID)
	if job.State.HasEnded() {
		a.notef("%s %s is granted already: %s\n", printable(job.Model), printable(job.Version), job.Capability)
		return
	}
	a.notef("%s %s is %s; next: %s\n", printable(job.Model), printable(job.Version), job.State, a.command("job", job.ID, "--logs", "-f"))
}

// showVerdict prints how a job ended and ends with its exit code.
func (a *app) showVerdict(ctx context.Context, c *control.Client, job capstore.Job) error {
	if job.Verdict.Granted() {
		late := a.awaitMounts(ctx, c)
		k, err := a.minted(ctx, c, job)
		if err != nil {
			return err
		}
		if k.State == capDisputed {
			if a.output == "json" {
				if err := a.print(job, nil); err != nil {
					return err
				}
			}
			return exit(codeDiffers, &rebuild.Failure{Verdict: capstore.Disputed, Detail: a.disputedWith(k)})
		}
		return a.print(job, func() {
			switch k.State {
			case capWaiting:
				a.notef("no file of it opens yet: %d of %d operators have this result (%s), missing: %s\n", len(k.Agreed), k.Needed, strings.Join(k.Agreed, ", "), dash(strings.Join(k.Missing, ", ")))
			case capStale, capRevoked, capExpired:
				a.notef("no file of it opens: the capability is %s; next: %s\n", k.State, a.command("status"))
			}
			a.printf("granted %s %s: capability %s\n", printable(job.Model), printable(job.Version), job.Capability)
			for _, m := range late {
				a.notef("the mount at %s has not confirmed it yet\n", printable(m))
			}
		})
	}
	next := "; next: "
	if strings.Contains(job.Reason, "next: ") { // it says already what to do
		next = "; or see "
	}
	var err error = &rebuild.Failure{Verdict: job.Verdict, Detail: job.Reason + next + a.command("job", job.ID, "--logs"), Diagnosis: job.Diagnosis}
	code := verdictCode(job.Verdict)
	if job.State == capstore.JobCancelled {
		err, code = fmt.Errorf("job %s was cancelled", job.ID), codeRefused
	}
	if a.output == "json" {
		if err := a.print(job, nil); err != nil {
			return err
		}
		return &quietExit{code}
	}
	return exit(code, err)
}

// minted is the capability of a job that minted, as it stands now.
func (a *app) minted(ctx context.Context, c *control.Client, job capstore.Job) (control.Capability, error) {
	caps, err := c.Capabilities(ctx)
	if err != nil {
		return control.Capability{}, a.answered(err)
	}
	for _, k := range caps {
		if k.ID == job.Capability {
			return k, nil
		}
	}
	return control.Capability{}, fmt.Errorf("the daemon does not know capability %s of job %s; next: %s", job.Capability, job.ID, a.command("caps"))
}

// rowPatience is how long a wait follows the events of a job without asking for
// its row.
const rowPatience = 5 * time.Second

// daemonPatience is how long a wait outlives a daemon that is being restarted.
const daemonPatience = 20 * time.Second

// await shows the worker's progress until the job has ended. A daemon that
// goes away and comes back in the meantime is no reason to stop waiting.
func (a *app) await(ctx context.Context, c *control.Client, job capstore.Job, timeout time.Duration) (capstore.Job, error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	bar := a.progress("")
	defer bar.done()
	var seen time.Time // events come again from the start after a reconnect
	heard := time.Now()
	var told time.Time // of what the job waits for
	for !job.State.HasEnded() {
		if !job.NotBefore.IsZero() && !job.NotBefore.Equal(told) {
			told = job.NotBefore
			a.notef("%s\n", printable(waiting(job)))
		}
		// A job that waits has no events, so its row is looked at in between.
		events, stop := context.WithTimeout(ctx, rowPatience)
		c.JobEvents(events, job.ID, func(line []byte) error {
			var e rebuild.Event
			if json.Unmarshal(line, &e) == nil && e.Time.After(seen) {
				seen = e.Time
				bar.observe(e)
			}
			return nil
		})
		stop()
		now, err := c.Job(ctx, job.ID)
		var gone *control.UnreachableError
		switch {
		case err == nil:
			if now.Attempts > max(job.Attempts, 1) && now.NotBefore.IsZero() && job.NotBefore.IsZero() && !now.State.HasEnded() && now.Reason != "" {
				a.notef("%s; it is started again\n", printable(oneLine(now.Reason)))
			}
			job, heard = now, time.Now()
		case ctx.Err() != nil:
		case !errors.As(err, &gone) || time.Since(heard) > daemonPatience:
			return job, a.answered(err)
		}
		if ctx.Err() != nil {
			return job, exitf(codePending, "job %s has not ended yet, and it goes on; next: %s", job.ID, a.command("job", job.ID, "--logs", "-f"))
		}
		if !job.State.HasEnded() {
			wait(ctx, time.After(200*time.Millisecond))
		}
	}
	return job, nil
}

// awaitMounts waits a moment until every mount has what the store has now, and
// returns those that have not said so: also those of which the daemon does not know
// yet, because it has just started, and all of them if it does not answer any more.
func (a *app) awaitMounts(ctx context.Context, c *control.Client) (late []string) {
	for end := time.Now().Add(2 * time.Second); ; wait(ctx, time.After(20*time.Millisecond)) {
		s, err := c.Status(ctx) // of what came before: the zero status has no mounts
		late = unconfirmed(a.config(), s)
		if err == nil && len(late) == 0 || ctx.Err() != nil || time.Now().After(end) {
			return late
		}
	}
}

// unconfirmed are the mounts, of a status and of those that are wished for, which
// have not reported to be as far as the store.
func unconfirmed(state config.State, s control.Status) (late []string) {
	confirmed := make(map[string]bool)
	for _, m := range s.Mounts {
		if confirmed[m.Mountpoint] = m.Report != nil && m.Report.Generation >= s.Generation; !confirmed[m.Mountpoint] {
			late = append(late, m.Mountpoint)
		}
	}
	records, _, _ := readRecords(state)
	for _, r := range records {
		if _, known := confirmed[r.Mountpoint]; !known {
			late = append(late, r.Mountpoint)
		}
	}
	return late
}

// bareHash matches a SHA-256 as people copy it, also as sha256sum prints it.
var bareHash = regexp.MustCompile(`^(?i:sha256[:-])?[0-9A-Fa-f]{64}(\s+\*?\S[^\n]*)?$`)

// readAttestation reads the file to be granted. There is no way to grant a
// hash: whoever has only that is told what is needed instead.
func readAttestation(path string) ([]byte, error) {
	data, err := readBounded(path, dsse.MaxEnvelope)
	if err != nil && bareHash.MatchString(path) || err == nil && bareHash.Match([]byte(strings.TrimSpace(string(data)))) {
		return nil, exitf(codeRefused, "%.80s is a hash, and a hash cannot be granted: it says what bytes somebody has, not that the publisher's recipe produces them; give the publisher's Signed Build Attestation (FILE.sba), and the rebuild will find the hash", printable(path))
	}
	if l, notLedger := verifier.ParseLedger(data); err == nil && notLedger == nil && !l.IsZero() {
		return nil, exitf(codeRefused, "%s is a ledger that nobody has signed; grant takes the publisher's Signed Build Attestation; next, if you are the publisher: clawfs ledger sign %s --key KEYFILE --out FILE.sba", printable(path), shellWord(path))
	}
	return data, err
}

// explainMalformed adds what people most often do wrong to the error of a file that
// is no envelope at all.
func explainMalformed(err error, file []byte) error {
	if _, notEnvelope := dsse.Parse(file); notEnvelope != nil {
		return fmt.Errorf("%w (grant takes a publisher's Signed Build Attestation, not a model file)", err)
	}
	return err
}
