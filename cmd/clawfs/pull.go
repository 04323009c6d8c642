package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/registry"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/oci"
)

// pulled is what became of one record.
type pulled struct {
	Kind    registry.Kind   `json:"kind"`
	Tag     string          `json:"tag"`
	ID      hashpipe.Digest `json:"id,omitzero"`
	Model   string          `json:"model,omitzero"`
	Version string          `json:"version,omitzero"`
	File    string          `json:"file,omitzero"`
	New     bool            `json:"new,omitzero"`     // it was not in the directory
	Outcome string          `json:"outcome,omitzero"` // with --admit: admitted, known, skipped, held; or refused
	Reason  string          `json:"reason,omitzero"`
}

// outcomeHeld is a capability that was not handed over, because a revocation
// that is listed cannot be read.
const outcomeHeld = "held"

// pullResult is the answer of `pull`.
type pullResult struct {
	Place   string   `json:"place"`
	Records []pulled `json:"records"`
	// Withheld are revocations that the place listed before and does not list now.
	Withheld []string       `json:"withheld,omitempty"`
	Counts   map[string]int `json:"counts"` // by outcome, and new

	unread bool // a revocation that is listed or saved cannot be read
}

func (r *pullResult) add(p pulled) {
	r.Records = append(r.Records, p)
	if p.New {
		r.Counts["new"]++
	}
	if p.Outcome != "" {
		r.Counts[p.Outcome]++
	}
}

// bad says whether the place, or what it has, is not as it should be.
func (r *pullResult) bad() bool {
	return r.Counts[outcomeRefused] > 0 || r.Counts[outcomeHeld] > 0 || len(r.Withheld) > 0
}

func newPullCommand(a *app) *cobra.Command {
	var where placeFlags
	var models []string
	var sba, out string
	var admit bool
	var watch time.Duration
	c := &cobra.Command{
		Use:   "pull PLACE [--out DIR] [--admit]",
		Short: "Fetch published records, and hand them to the daemon",
		Long: `pull fetches the signed records of a registry or an OCI layout directory. --out
writes them to DIR, in files named after their tags; a file that is there is never
overwritten with other bytes. A DIR belongs to one PLACE. --admit hands revocations
and then capabilities to the daemon, which checks each signature against the keys
pinned in the policy. A capability of a mint that is not pinned is skipped and
counted. Attestations are judged when they are granted: clawfs grant DIR/sba-….sba

` + placeHelp + `

--model and --sba choose attestations, records and capabilities. Revocations are
always fetched, first; while one that is listed cannot be read, no capability is
admitted. A listing proves nothing by what is missing in it: a revocation that was
there before and is gone is reported, and stays in force.

--watch repeats, and waits longer after an error, until SIGTERM.

Exit code 3: something was refused or withheld, a line for each. 7: no daemon.`,
		Example: `  clawfs pull oci://registry.example/acme/trust --out trust --model 'acme/*'
  clawfs pull oci://registry.example/acme/trust --admit --watch 30s
  clawfs pull /media/usb/trust --out trust --admit`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if out == "" && !admit {
				return exitf(codeUsage, "nothing to do with what is fetched: want --out DIR, --admit, or both")
			}
			if watch != 0 && watch < time.Second {
				return exitf(codeUsage, "--watch %v: want at least 1s", watch)
			}
			place, err := a.openPlace(args[0], where)
			if err != nil {
				return err
			}
			p := puller{a: a, place: place, admit: admit, models: models, modelOf: map[string]string{}, listed: map[string]bool{}, done: map[string]bool{}, told: map[string]bool{}}
			if sba != "" {
				d, err := hashpipe.ParseDigest(strings.TrimPrefix(sba, "sha256:"))
				if err != nil {
					return exitf(codeUsage, "--sba: %w", err)
				}
				p.sba = d.String()
			}
			if p.dir, err = openRecordDir(out, place.String()); err != nil {
				return err
			}
			if watch > 0 {
				return p.watch(c.Context(), watch)
			}
			r, err := p.round(c.Context())
			return p.finish(r, err)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&models, "model", nil, "only what is about this `model`, such as acme/langid or 'acme/*' (repeat)")
	f.StringVar(&sba, "sba", "", "only what is about the attestation with this `digest`")
	f.StringVar(&out, "out", "", "write the records to this `directory`")
	f.BoolVar(&admit, "admit", false, "hand revocations and capabilities to the daemon")
	f.DurationVar(&watch, "watch", 0, "repeat after this `time`, such as 30s, until SIGTERM")
	where.register(c)
	return c
}

// puller is one call of `pull`; what it remembers lasts from round to round.
type puller struct {
	a      *app
	place  *registry.Place
	dir    recordDir
	admit  bool
	models []string // patterns; none: all
	sba    string   // in hex; empty: all

	modelOf map[string]string // of attestations, by digest, as they claim
	listed  map[string]bool   // revocations and lists that the place had
	done    map[string]bool   // tags that need no second look
	started time.Time         // of the daemon that done counts for
	told    map[string]bool   // what stands on standard error already
}

// warnf is notef that --quiet does not silence: somebody has to act.
func (a *app) warnf(format string, args ...any) { fmt.Fprintf(a.stderr, format, args...) }

// once writes a line to standard error the first time.
func (p *puller) once(format string, args ...any) {
	if text := printable(fmt.Sprintf(format, args...)); !p.told[text] {
		p.told[text] = true
		p.a.warnf("%s\n", text)
	}
}

// finish prints the answer of one round and ends with its exit code. What was
// done before an error is printed all the same.
func (p *puller) finish(r *pullResult, err error) error {
	if r != nil {
		if printErr := p.a.print(r, func() { p.show(r) }); printErr != nil {
			return printErr
		}
	}
	if err == nil && r.bad() {
		err = &quietExit{codeRefused}
	}
	return err
}

// show writes what is new, and counts the rest.
func (p *puller) show(r *pullResult) {
	for _, rec := range r.Records {
		word := rec.Outcome
		switch {
		case word == control.RecordKnown && rec.New || word == "" && rec.New:
			word = "fetched"
		case word != control.RecordAdmitted:
			continue // counted, or on standard error
		}
		line := word + "  " + rec.Tag
		if rec.Model != "" {
			line += "  " + rec.Model + " " + rec.Version
		}
		p.a.printf("%s\n", printable(line))
	}
	text := fmt.Sprintf("%d records: %d new", len(r.Records), r.Counts["new"])
	for _, outcome := range []string{control.RecordAdmitted, control.RecordKnown, control.RecordSkipped, outcomeHeld, outcomeRefused} {
		if n := r.Counts[outcome]; n > 0 {
			text += fmt.Sprintf(", %d %s", n, outcome)
		}
	}
	p.a.notef("%s\n", text)
}

// lastWait bounds the pauses of --watch after errors.
const lastWait = 10 * time.Minute

// watch repeats rounds until ctx ends, which is no error.
func (p *puller) watch(ctx context.Context, every time.Duration) error {
	pause := every
	var last *pullResult
	for {
		r, err := p.round(ctx)
		if ctx.Err() != nil {
			break
		}
		if r != nil {
			last = r
			if p.a.output != "json" && r.Counts["new"]+r.Counts[control.RecordAdmitted] > 0 {
				p.show(r)
			}
		}
		if err != nil {
			pause = min(2*pause, max(lastWait, every))
			p.a.warnf("%s; trying again in %v\n", printable(err.Error()), pause)
		} else {
			pause = every
		}
		wait(ctx, time.After(pause))
		if ctx.Err() != nil {
			break
		}
	}
	if last == nil {
		last = &pullResult{Place: p.place.String(), Records: []pulled{}}
	}
	return p.a.print(last, func() {})
}

// round looks at the place once. The result holds what was done before an
// error.
func (p *puller) round(ctx context.Context) (*pullResult, error) {
	r := &pullResult{Place: p.place.String(), Records: []pulled{}, Counts: map[string]int{}}
	var daemon *control.Client
	if p.admit {
		var err error
		if daemon, err = p.a.daemon(ctx); err != nil {
			return nil, err
		}
		status, err := daemon.Status(ctx)
		if err != nil {
			return nil, p.a.answered(err)
		}
		if !status.StartedAt.Equal(p.started) { // it may trust others, or have lost its store
			p.started = status.StartedAt
			clear(p.done)
		}
	}
	saved, err := p.dir.saved()
	if err != nil {
		return nil, err
	}
	for _, tag := range saved {
		p.listed[tag] = true
	}
	tags, err := p.place.Tags(ctx)
	if err != nil {
		err = errors.Join(registryError(err), p.takeSaved(ctx, daemon, r, saved, nil))
		return r, err
	}
	p.findWithheld(r, tags)
	slices.SortFunc(tags, registry.Order)
	if err := p.takeSaved(ctx, daemon, r, saved, tags); err != nil {
		return r, err
	}
	for _, tag := range tags {
		kind := kindOf(tag)
		if p.done[tag] || !p.wants(kind, tag) {
			continue
		}
		if kind == registry.Capability && r.unread && p.admit {
			r.add(pulled{Kind: kind, Tag: tag, Outcome: outcomeHeld, Reason: "a revocation that is listed cannot be read"})
			continue
		}
		rec, err := p.fetch(ctx, tag)
		if err != nil && p.passing(ctx, err) {
			return r, err
		}
		if err != nil {
			r.unread = r.unread || takesBack(kind)
			if errors.Is(err, oci.ErrAbsent) {
				err = fmt.Errorf("%s lists it and does not serve it: %w", p.place, err)
			}
			p.refuse(r, pulled{Kind: kind, Tag: tag}, err)
			continue
		}
		if takesBack(kind) {
			p.listed[tag] = true
		}
		if err := p.take(ctx, daemon, r, rec); err != nil {
			return r, err
		}
	}
	if n := r.Counts[outcomeHeld]; n > 0 {
		p.once("%d capabilities were not admitted, because a revocation that %s lists cannot be read", n, p.place)
	}
	return r, nil
}

func kindOf(tag string) registry.Kind { k, _ := registry.KindOf(tag); return k }

// passing says whether an error is about the way to the place, or this machine,
// and not about what the place has.
func (p *puller) passing(ctx context.Context, err error) bool {
	var lie *registry.LieError
	var ours *exitError
	return ctx.Err() != nil || !errors.As(err, &lie) && !errors.As(err, &ours) && !errors.Is(err, oci.ErrAbsent)
}

func (p *puller) refuse(r *pullResult, rec pulled, err error) {
	rec.Outcome, rec.Reason = outcomeRefused, err.Error()
	r.add(rec)
	p.once("refused %s: %v", rec.Tag, err)
}

// takeSaved hands over the revocations that the place had and does not list any
// more: they lie in the directory.
func (p *puller) takeSaved(ctx context.Context, daemon *control.Client, r *pullResult, saved, tags []string) error {
	slices.SortFunc(saved, registry.Order)
	for _, tag := range saved {
		if slices.Contains(tags, tag) || p.done[tag] {
			continue
		}
		rec, err := p.dir.load(tag)
		if err != nil {
			r.unread = true
			p.refuse(r, pulled{Kind: kindOf(tag), Tag: tag}, err)
			continue
		}
		if err := p.take(ctx, daemon, r, rec); err != nil {
			return err
		}
	}
	return nil
}

// findWithheld compares what the place lists with what it listed before. Of
// lists, the newest counts: who publishes them may remove older ones.
func (p *puller) findWithheld(r *pullResult, tags []string) {
	newest := int64(0)
	for _, tag := range tags {
		if kindOf(tag) == registry.RevocationList {
			newest = max(newest, registry.Number(tag))
		}
	}
	for tag := range p.listed {
		if slices.Contains(tags, tag) || kindOf(tag) == registry.RevocationList && registry.Number(tag) <= newest {
			continue
		}
		r.Withheld = append(r.Withheld, tag)
	}
	slices.Sort(r.Withheld)
	for _, tag := range r.Withheld {
		p.once("WITHHELD: %s does not list %s any more, which it listed before; it stays in force here; next: ask who runs the registry, and push it again", p.place, tag)
	}
}

// sbaOf is the attestation that a tag is about, in hex; "" for the other kinds.
func sbaOf(tag string) string {
	switch kindOf(tag) {
	case registry.SBA, registry.Provenance, registry.Capability:
		_, rest, _ := strings.Cut(tag, "-")
		sba, _, _ := strings.Cut(rest, "-")
		return sba
	}
	return ""
}

// wants says, before anything is fetched, whether a tag may be of interest.
func (p *puller) wants(kind registry.Kind, tag string) bool {
	sba := sbaOf(tag)
	if sba == "" {
		return true
	}
	if p.sba != "" && sba != p.sba {
		return false
	}
	model, known := p.modelOf[sba]
	return !known || len(p.models) == 0 || matchesAny(p.models, model)
}

// interesting is wants of a record whose claims are known.
func (p *puller) interesting(rec registry.Record) bool {
	if rec.Kind == registry.SBA {
		p.modelOf[rec.SBA.String()] = rec.Claims.Model
	}
	if rec.SBA.IsZero() || len(p.models) == 0 {
		return true
	}
	if rec.Claims.Model != "" {
		return matchesAny(p.models, rec.Claims.Model)
	}
	return matchesAny(p.models, p.modelOf[rec.SBA.String()])
}

// matchesAny compares a model with patterns as the policy writes them.
func matchesAny(patterns []string, model string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		prefix, all := strings.CutSuffix(p, "*")
		return p == model || all && strings.HasSuffix(prefix, "/") && strings.HasPrefix(model, prefix)
	})
}

// fetch takes a record from the directory, if it is there, else from the place.
// An SBA without its proof is asked for again: the proof may have come later.
func (p *puller) fetch(ctx context.Context, tag string) (registry.Record, error) {
	have, err := p.dir.load(tag)
	switch {
	case err == nil && (have.Kind != registry.SBA || have.Proof != nil):
		return have, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return registry.Record{}, exit(codeRefused, err)
	}
	return p.place.Fetch(ctx, tag)
}

// take saves a record and hands it to the daemon. An error is one of this
// machine or of the daemon; what is refused is in r.
func (p *puller) take(ctx context.Context, daemon *control.Client, r *pullResult, rec registry.Record) error {
	if !p.interesting(rec) {
		return nil
	}
	answer := pulled{Kind: rec.Kind, Tag: rec.Tag(), ID: rec.ID, Model: rec.Claims.Model, Version: rec.Claims.Version}
	var err error
	answer.File, answer.New, err = p.dir.save(rec)
	if err != nil && !errors.Is(err, errOtherBytes) {
		return err
	}
	if err != nil {
		p.refuse(r, answer, err)
		return nil
	}
	if daemon != nil && slices.Contains(daemonKinds, rec.Kind) {
		said, err := submit(ctx, daemon, rec)
		if err != nil && refusedByDaemon(err) {
			p.refuse(r, answer, err)
			return nil
		}
		if err != nil {
			return p.a.answered(err)
		}
		answer.Outcome, answer.Reason = said.Outcome, said.Reason
	}
	r.add(answer)
	p.done[rec.Tag()] = rec.Kind != registry.SBA || rec.Proof != nil || p.dir == ""
	return nil
}

func submit(ctx context.Context, daemon *control.Client, rec registry.Record) (control.RecordAnswer, error) {
	return daemon.SubmitRecord(ctx, control.RecordSubmission{Kind: string(rec.Kind), Envelope: rec.Envelope})
}

// refusedByDaemon says whether an error is about the record, and not about the
// daemon or its store.
func refusedByDaemon(err error) bool {
	var e *control.Error
	return errors.As(err, &e) && e.Status == 403
}
