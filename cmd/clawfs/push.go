package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/registry"
	"github.com/openclaw/clawfs/hashpipe"
)

// pushed is what `push` reports of one record.
type pushed struct {
	Kind    registry.Kind    `json:"kind"`
	Tag     string           `json:"tag"`
	ID      hashpipe.Digest  `json:"id"`
	Model   string           `json:"model,omitzero"`
	Version string           `json:"version,omitzero"`
	Outcome registry.Outcome `json:"outcome"` // or "refused"
	Reason  string           `json:"reason,omitzero"`
}

const outcomeRefused = "refused"

// heldFlags choose from what the daemon holds.
type heldFlags struct {
	capabilities, jobs []string
	all, revocations   bool
}

func (h heldFlags) empty() bool {
	return len(h.capabilities) == 0 && len(h.jobs) == 0 && !h.all && !h.revocations
}

func newPushCommand(a *app) *cobra.Command {
	var where placeFlags
	var held heldFlags
	var replace bool
	c := &cobra.Command{
		Use:   "push PLACE [FILE...]",
		Short: "Publish attestations, capabilities, records and revocations",
		Long: `push puts signed records into a registry or an OCI layout directory, each under a
tag of its own that its content decides; weights never go there. FILE is an
attestation (with FILE.tlog-proof beside it, if there is one), a capability, a
revocation, a worker's record, or a policy that is signed. The flags push what the
daemon holds.

` + placeHelp + `

What is there already is left alone. A tag that holds other bytes (the same
statement with other signatures, or another proof) is left alone too, unless
--replace is given. Exit code 3: a tag was left alone for that reason, or FILE is
no such record. Signatures are not checked here; whoever pulls checks them.`,
		Example: `  clawfs push oci://registry.example/acme/trust langid.sba
  clawfs push oci://registry.example/acme/trust --all-capabilities --revocations
  clawfs push /media/usb/trust --job mnq5k2w7ra`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 && held.empty() {
				return exitf(codeUsage, "nothing to push: want FILE, --capability, --all-capabilities, --revocations or --job")
			}
			place, err := a.openPlace(args[0], where)
			if err != nil {
				return err
			}
			records, err := a.gatherRecords(c.Context(), args[1:], held)
			if err != nil {
				return err
			}
			return a.push(c.Context(), place, records, replace)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&held.capabilities, "capability", nil, "push the capability with this `ID`; eight digits are enough if they are unique (repeat)")
	f.BoolVar(&held.all, "all-capabilities", false, "push every capability in the store")
	f.BoolVar(&held.revocations, "revocations", false, "push every revocation in the store")
	f.StringArrayVar(&held.jobs, "job", nil, "push what the worker signed about the job with this `ID`, and its capability (repeat)")
	f.BoolVar(&replace, "replace", false, "put the record over other bytes under its tag")
	where.register(c)
	return c
}

// gatherRecords reads everything before anything is done with it: a wrong file
// leaves nothing half pushed. Each record is there once, in the order of kinds.
func (a *app) gatherRecords(ctx context.Context, files []string, held heldFlags) ([]registry.Record, error) {
	var list []registry.Record
	seen := make(map[string]string) // tag -> where it came from
	add := func(r registry.Record, from string) error {
		for _, have := range list {
			if have.Tag() == r.Tag() && string(have.Envelope) != string(r.Envelope) {
				return exitf(codeRefused, "%s and %s hold the same statement with different signatures; give one of them", printable(seen[r.Tag()]), printable(from))
			}
		}
		if _, twice := seen[r.Tag()]; !twice {
			list, seen[r.Tag()] = append(list, r), from
		}
		return nil
	}
	for _, file := range files {
		r, err := readRecordFile(file)
		if err != nil {
			return nil, err
		}
		if err := add(r, file); err != nil {
			return nil, err
		}
	}
	if !held.empty() {
		records, err := a.heldRecords(ctx, held)
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			if err := add(r, "the daemon"); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(list, func(x, y registry.Record) int { return registry.Order(x.Tag(), y.Tag()) })
	return list, nil
}

// heldRecords asks the daemon for what the flags name.
func (a *app) heldRecords(ctx context.Context, held heldFlags) ([]registry.Record, error) {
	c, err := a.daemon(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := c.Records(ctx)
	if err != nil {
		return nil, a.answered(err)
	}
	var all, out []registry.Record
	for _, row := range rows {
		r, err := registry.Identify(row.Envelope)
		if err != nil {
			return nil, fmt.Errorf("a %s of the daemon: %w", row.Kind, err)
		}
		all = append(all, r)
	}
	ids := slices.Clone(held.capabilities)
	for _, id := range held.jobs {
		envelope, err := c.JobRecord(ctx, id)
		if err != nil {
			return nil, a.answered(err)
		}
		r, err := registry.Identify(envelope)
		if err != nil {
			return nil, fmt.Errorf("record of job %s: %w", id, err)
		}
		out = append(out, r)
		job, err := c.Job(ctx, id)
		var refused *control.Error
		if errors.As(err, &refused) {
			continue // provenance outlives the job's row
		}
		if err != nil {
			return nil, a.answered(err)
		}
		if job.Verdict == capstore.Minted {
			ids = append(ids, job.Capability.String())
		}
	}
	for _, id := range ids {
		r, err := a.oneCapability(all, id)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	for _, r := range all {
		capability := r.Kind == registry.Capability
		if capability && held.all || !capability && held.revocations {
			out = append(out, r)
		}
	}
	return out, nil
}

func (a *app) oneCapability(all []registry.Record, id string) (registry.Record, error) {
	id = strings.TrimPrefix(strings.ToLower(id), "sha256:")
	var found []registry.Record
	for _, r := range all {
		if r.Kind == registry.Capability && len(id) >= minPrefix && strings.HasPrefix(r.ID.String(), id) {
			found = append(found, r)
		}
	}
	if len(found) != 1 {
		return registry.Record{}, exitf(codeRefused, "%.80q names %d capabilities in the store, want exactly 1 and at least %d digits; next: %s", id, len(found), minPrefix, a.command("caps"))
	}
	return found[0], nil
}

func (a *app) push(ctx context.Context, place *registry.Place, records []registry.Record, replace bool) error {
	done := []pushed{}
	refused := 0
	for _, r := range records {
		outcome, err := place.Push(ctx, r, replace)
		p := pushed{r.Kind, r.Tag(), r.ID, r.Claims.Model, r.Claims.Version, outcome, ""}
		var conflict *registry.ConflictError
		switch {
		case errors.As(err, &conflict):
			refused++
			p.Outcome, p.Reason = outcomeRefused, err.Error()
		case err != nil:
			return fmt.Errorf("pushed %d of %d records, then: %w", len(done), len(records), registryError(err))
		}
		done = append(done, p)
	}
	err := a.print(done, func() {
		for i, p := range done {
			a.printf("%-11s %s\n", p.Outcome, describe(records[i]))
			if p.Reason != "" {
				a.warnf("%s; next: the same command with --replace, if the other bytes should go\n", printable(p.Reason))
			}
		}
	})
	if err == nil && refused > 0 {
		err = &quietExit{codeRefused}
	}
	return err
}
