package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/bundle"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/registry"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/record"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newBundleCommand(a *app) *cobra.Command {
	return group("bundle", "Carry trust records in one file, to where no network reaches",
		`A bundle is a file of JSON Lines, one signed envelope a line (.intoto.jsonl): attestations with
their log proofs, provenance, capabilities, revocations, and policies that are
signed. The weights are not in it. Nobody signs the bundle itself: lines can be
missing, so that a revocation which is not in it proves nothing, and every line is
judged as if it had come alone.

  export   writes one
  import   checks each line and takes what is in it`,
		newBundleExportCommand(a), newBundleImportCommand(a))
}

func newBundleExportCommand(a *app) *cobra.Command {
	var out string
	var models []string
	c := &cobra.Command{
		Use:   "export --out FILE.intoto.jsonl [FILE...]",
		Short: "Write records into one file",
		Long: `export writes the given files, and what the daemon holds: every revocation, and the
capabilities and provenance of each --model, or of all models if no FILE is given
either. With FILE and without --model, the files alone. The daemon does not keep
attestations: give them as FILE, with FILE.tlog-proof beside each that has one.`,
		Example: `  clawfs bundle export --out langid.intoto.jsonl --model acme/langid langid.sba
  clawfs bundle export --out all.intoto.jsonl`,
		RunE: func(c *cobra.Command, args []string) error {
			return a.exportBundle(c.Context(), out, args, models)
		},
	}
	c.Flags().StringVar(&out, "out", "", "`file` to write, - for standard output")
	c.Flags().StringArrayVar(&models, "model", nil, "what the daemon holds for this `model`, such as acme/langid or 'acme/*' (repeat)")
	c.MarkFlagRequired("out")
	return c
}

func (a *app) exportBundle(ctx context.Context, out string, files, models []string) error {
	records, err := a.gatherRecords(ctx, files, heldFlags{})
	if err != nil {
		return err
	}
	if len(models) > 0 || len(files) == 0 {
		held, err := a.heldFor(ctx, models)
		if err != nil {
			return err
		}
		records = append(records, held...)
	}
	slices.SortStableFunc(records, func(x, y registry.Record) int { return registry.Order(x.Tag(), y.Tag()) })
	var text []byte
	counts := make(map[registry.Kind]int)
	seen := make(map[string]bool)
	for _, r := range records {
		if seen[r.Tag()] {
			continue
		}
		seen[r.Tag()] = true
		counts[r.Kind]++
		if text, err = bundle.Append(text, bundle.Item{Envelope: r.Envelope, Proof: r.Proof}); err != nil {
			return fmt.Errorf("%s: %w", r.Tag(), err)
		}
	}
	if len(seen) == 0 {
		return exitf(codeRefused, "nothing to export: the daemon holds no record of %q", models)
	}
	// What import would refuse is not written.
	if err := bundle.Read(bytes.NewReader(text), func(bundle.Item) error { return nil }); err != nil {
		return fmt.Errorf("the records are too many for one bundle; next: export with --model: %w", err)
	}
	if err := a.writeResult(out, text); err != nil || out == "-" {
		return err
	}
	result := struct {
		Bundle  string                `json:"bundle"`
		Records map[registry.Kind]int `json:"records"` // by kind
		SHA256  hashpipe.Digest       `json:"sha256"`  // of the file
	}{out, counts, hashpipe.SumBytes(text).Claim()}
	return a.print(result, func() {
		a.printf("%s: %d records\n", printable(out), len(seen))
		for _, k := range []registry.Kind{registry.Revocation, registry.RevocationList, registry.Policy, registry.SBA, registry.Provenance, registry.Capability} {
			if counts[k] > 0 {
				a.printf("  %-16s %d\n", k, counts[k])
			}
		}
		a.printf("sha256 %s\n", result.SHA256)
	})
}

// heldFor asks the daemon for its revocations and what it has of models.
func (a *app) heldFor(ctx context.Context, models []string) ([]registry.Record, error) {
	all, err := a.heldRecords(ctx, heldFlags{all: true, revocations: true})
	if err != nil {
		return nil, err
	}
	wanted := func(model string) bool { return len(models) == 0 || matchesAny(models, model) }
	list := slices.DeleteFunc(all, func(r registry.Record) bool {
		return r.Kind == registry.Capability && !wanted(r.Claims.Model)
	})
	c := a.client()
	jobs, err := c.Jobs(ctx)
	if err != nil {
		return nil, a.answered(err)
	}
	for _, job := range jobs {
		if job.Verdict != capstore.Minted || !wanted(job.Model) {
			continue
		}
		envelope, err := c.JobRecord(ctx, job.ID)
		var absent *control.Error
		if errors.As(err, &absent) && absent.Status == 404 {
			continue // the worker had no key to sign a record with
		}
		if err != nil {
			return nil, a.answered(err)
		}
		r, err := registry.Identify(envelope)
		if err != nil {
			return nil, fmt.Errorf("record of job %s: %w", job.ID, err)
		}
		list = append(list, r)
	}
	return list, nil
}

// imported is what `bundle import` did with one record.
type imported struct {
	Line int `json:"line"`
	pulled
}

// Outcomes of a record of a bundle beside those of the daemon.
const (
	outcomeDoubled  = "doubled"  // an earlier line is the same
	outcomeVerified = "verified" // believed by the policy; written where --out is given
	outcomeWould    = "would be admitted"
	outcomeUndone   = "not reached" // an error came before
)

func newBundleImportCommand(a *app) *cobra.Command {
	var out string
	var dryRun bool
	c := &cobra.Command{
		Use:   "import FILE.intoto.jsonl [--out DIR] [--dry-run]",
		Short: "Check every line of a bundle and take what is in it",
		Long: `import hands revocations and then capabilities to the daemon, which checks each
signature against the keys pinned in the policy; attestations and provenance are
checked by the policy here. --out writes attestations, proofs, provenance and policies to
DIR; grant an attestation from there. Nothing is applied as a policy. --dry-run
checks all of it and changes nothing.

These are refused whole, before anything is taken: a line that is no envelope, an
empty one, one of more than 4 MiB, a file of more than 256 MiB or 100000 lines, and a
log proof that does not stand directly after its attestation. A line that
is refused for itself (a signature, an unknown kind of record) does not stop the
others. Order does not matter: revocations are taken first. A line that is there
twice is taken once. What was taken out of a bundle nobody notices.

One line is reported for each record that is not as it should be. After an error
(exit code 1 or 7) the report says what was done; the same command again does
the rest. Exit code 3: something was refused.`,
		Example: `  clawfs bundle import langid.intoto.jsonl --dry-run
  clawfs bundle import langid.intoto.jsonl --out trust`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.importBundle(c.Context(), args[0], out, dryRun)
		},
	}
	c.Flags().StringVar(&out, "out", "", "write attestations and what is for people to this `directory`")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing")
	return c
}

// importer is one call of `bundle import`.
type importer struct {
	a      *app
	file   *os.File
	dir    recordDir
	dryRun bool
	policy config.Policy
	view   *capstore.View  // of a dry run
	daemon *control.Client // or the daemon

	lines []imported
	sums  []hashpipe.Digest // of the records of lines, as they were when all were looked at
}

func (a *app) importBundle(ctx context.Context, path, out string, dryRun bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return errors.Join(err, exitf(codeUsage, "%s is not a regular file; a bundle is read several times", printable(path)))
	}
	im := importer{a: a, file: f, dryRun: dryRun}
	if im.policy, err = a.config().LoadPolicy(); err != nil {
		return err
	}
	if err := im.survey(); err != nil {
		return exitf(codeRefused, "%s: %w; nothing was taken", printable(path), err)
	}
	if dryRun {
		im.view, err = capstore.NewView(im.policy.Trust())
	} else if im.dir = recordDir(out); out != "" {
		err = os.MkdirAll(out, 0o755)
	}
	if err != nil {
		return err
	}
	if !dryRun && slices.ContainsFunc(im.lines, func(l imported) bool { return slices.Contains(daemonKinds, l.Kind) }) {
		if im.daemon, err = a.daemon(ctx); err != nil {
			return err
		}
	}
	err = im.takeAll(ctx)
	return im.finish(path, err)
}

// survey reads the whole file before anything is done with a line of it.
func (im *importer) survey() error {
	first := make(map[hashpipe.Digest]bool)
	return bundle.Read(im.file, func(it bundle.Item) error {
		sum := sumOf(it)
		line := imported{Line: it.Line, pulled: pulled{Outcome: outcomeUndone}}
		rec, err := registry.Identify(it.Envelope)
		if err == nil && it.Proof != nil {
			if _, err := rec.WithProof(it.Proof); err != nil {
				return &bundle.FormatError{Line: it.Line + 1, Detail: err.Error()}
			}
		}
		switch {
		case first[sum]:
			line.Outcome = outcomeDoubled
		case err != nil:
			line.Outcome, line.Reason = outcomeRefused, err.Error()
		}
		if err == nil {
			line.Kind, line.Tag, line.ID, line.Model, line.Version = rec.Kind, rec.Tag(), rec.ID, rec.Claims.Model, rec.Claims.Version
		}
		first[sum] = true
		im.lines, im.sums = append(im.lines, line), append(im.sums, sum)
		return nil
	})
}

func sumOf(it bundle.Item) hashpipe.Digest {
	return hashpipe.SumBytes(fmt.Appendf(nil, "%d %s %s", len(it.Envelope), it.Envelope, it.Proof)).Claim()
}

func identifyItem(it bundle.Item) (registry.Record, error) {
	r, err := registry.Identify(it.Envelope)
	if err != nil || it.Proof == nil {
		return r, err
	}
	return r.WithProof(it.Proof)
}

// takeAll goes through the file once for each kind that it has, in their order.
func (im *importer) takeAll(ctx context.Context) error {
	var kinds []registry.Kind
	todo := slices.Clone(im.lines)
	slices.SortFunc(todo, func(x, y imported) int { return registry.Order(x.Tag, y.Tag) })
	for _, l := range todo {
		if l.Outcome == outcomeUndone && !slices.Contains(kinds, l.Kind) {
			kinds = append(kinds, l.Kind)
		}
	}
	for _, kind := range kinds {
		var lists []listLine // are taken by their number, wherever they stand
		err := im.each(kind, func(line *imported, rec registry.Record) error {
			if kind == registry.RevocationList {
				lists = append(lists, listLine{line, rec})
				return nil
			}
			return im.take(ctx, line, rec)
		})
		if err != nil {
			return err
		}
		slices.SortStableFunc(lists, func(x, y listLine) int { return registry.Order(x.rec.Tag(), y.rec.Tag()) })
		for _, l := range lists {
			if err := im.take(ctx, l.line, l.rec); err != nil {
				return err
			}
		}
	}
	return nil
}

type listLine struct {
	line *imported
	rec  registry.Record
}

// each reads the file again and hands out the records of a kind that nothing was
// done with.
func (im *importer) each(kind registry.Kind, f func(*imported, registry.Record) error) error {
	if _, err := im.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	n := 0
	return bundle.Read(im.file, func(it bundle.Item) error {
		if n++; n > len(im.lines) || sumOf(it) != im.sums[n-1] {
			return errors.New("the file changed while it was read")
		}
		line := &im.lines[n-1]
		if line.Kind != kind || line.Outcome != outcomeUndone {
			return nil
		}
		rec, err := identifyItem(it)
		if err != nil {
			return err
		}
		return f(line, rec)
	})
}

// take judges one record and notes the outcome in its line. An error is not
// about the record.
func (im *importer) take(ctx context.Context, line *imported, rec registry.Record) error {
	if slices.Contains(daemonKinds, rec.Kind) {
		return im.hand(ctx, line, rec)
	}
	var err error
	switch rec.Kind {
	case registry.SBA:
		_, err = im.policy.Verify(rec.Envelope, rec.Proof, time.Now())
	case registry.Provenance:
		var mints []dsse.PublicKey
		for _, s := range im.policy.Trust().Mints {
			mints = append(mints, s.Key)
		}
		if _, err = record.Read(rec.Envelope, mints); errors.Is(err, dsse.ErrUnverified) {
			line.Outcome, line.Reason = control.RecordSkipped, "signed by no mint that is pinned in the policy"
			return nil
		}
	default:
		line.Outcome, line.Reason = control.RecordSkipped, fmt.Sprintf("a %s is not applied by importing it", rec.Kind)
		if im.dir == "" {
			return nil
		}
	}
	if err != nil {
		line.Outcome, line.Reason = outcomeRefused, err.Error()
		return nil
	}
	if line.Outcome == outcomeUndone {
		line.Outcome = outcomeVerified
	}
	file, wrote, err := im.dir.save(rec)
	if errors.Is(err, errOtherBytes) {
		line.Outcome, line.Reason = outcomeRefused, err.Error()
		return nil
	}
	line.File, line.New = file, wrote
	return err
}

// hand gives a record to the daemon, or in a dry run to a view of its own.
func (im *importer) hand(ctx context.Context, line *imported, rec registry.Record) error {
	if im.daemon != nil {
		answer, err := submit(ctx, im.daemon, rec)
		if err != nil && !refusedByDaemon(err) {
			return im.a.answered(err)
		}
		if err != nil {
			line.Outcome, line.Reason = outcomeRefused, err.Error()
			return nil
		}
		line.Outcome, line.Reason = answer.Outcome, answer.Reason
		return nil
	}
	if rec.Kind == registry.Capability && !pinsMint(im.policy, rec) {
		line.Outcome, line.Reason = control.RecordSkipped, fmt.Sprintf("the mint %s is not pinned in the policy", rec.Claims.Signer)
		return nil
	}
	var err error
	if rec.Kind == registry.RevocationList {
		_, err = im.view.AdmitList(rec.Envelope)
	} else {
		err = im.view.Apply(capstore.Record{Kind: string(rec.Kind), Envelope: rec.Envelope})
	}
	if errors.Is(err, capstore.ErrOldList) {
		line.Outcome, line.Reason = control.RecordKnown, err.Error()
		return nil
	}
	if err != nil {
		line.Outcome, line.Reason = outcomeRefused, err.Error()
		return nil
	}
	line.Outcome = outcomeWould
	return nil
}

// finish reports every line, whatever the error.
func (im *importer) finish(path string, err error) error {
	result := struct {
		Bundle string         `json:"bundle"`
		DryRun bool           `json:"dryRun,omitzero"`
		Lines  []imported     `json:"lines"`
		Counts map[string]int `json:"counts"` // by outcome
	}{path, im.dryRun, im.lines, map[string]int{}}
	var outcomes []string
	for _, l := range im.lines {
		if result.Counts[l.Outcome]++; result.Counts[l.Outcome] == 1 {
			outcomes = append(outcomes, l.Outcome)
		}
	}
	slices.Sort(outcomes)
	for _, l := range im.lines {
		if l.Outcome == outcomeRefused || l.Outcome == outcomeUndone || l.Outcome == control.RecordSkipped && l.Kind != registry.Capability {
			im.a.warnf("%s\n", printable(fmt.Sprintf("line %d: %s: %s", l.Line, strings.TrimSpace(l.Outcome+" "+l.Tag), l.Reason)))
		}
	}
	printErr := im.a.print(result, func() {
		for _, l := range im.lines {
			switch l.Outcome {
			case control.RecordAdmitted, outcomeVerified, outcomeWould:
				im.a.printf("%s\n", printable(fmt.Sprintf("%-17s %-15s  %s %s %s", l.Outcome, l.Kind, l.Model, l.Version, whereabouts(l))))
			}
		}
		for _, o := range outcomes {
			im.a.printf("%-17s %d\n", o, result.Counts[o])
		}
	})
	switch {
	case err != nil:
		return err
	case printErr != nil:
		return printErr
	case result.Counts[outcomeRefused] > 0:
		return &quietExit{codeRefused}
	}
	return nil
}

// whereabouts is where a record was written, or its tag.
func whereabouts(l imported) string {
	if l.File != "" {
		return l.File
	}
	return l.Tag
}
