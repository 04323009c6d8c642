package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/registry"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// found is an attestation or a capability that a place has.
type found struct {
	Kind     registry.Kind   `json:"kind"`
	Tag      string          `json:"tag"`
	ID       hashpipe.Digest `json:"id"`
	Model    string          `json:"model"`
	Version  string          `json:"version"`
	Sequence int64           `json:"sequence"`
	SBA      hashpipe.Digest `json:"sba"`
	Signer   dsse.KeyID      `json:"signer"` // publisher or minter, as the record claims
	// Verified says that the policy here believes it: then By is the publisher's or
	// the operator's name in the policy, else Reason says why not.
	Verified bool   `json:"verified"`
	By       string `json:"by,omitzero"`
	Reason   string `json:"reason,omitzero"`
	Proof    bool   `json:"proof,omitzero"` // a log proof lies beside it
	// Revoked is a revocation in the same place that takes it back. That there is
	// none does not mean that it is not revoked.
	Revoked *control.Revocation `json:"revoked,omitempty"`
}

func newSearchCommand(a *app) *cobra.Command {
	var where placeFlags
	c := &cobra.Command{
		Use:   "search PLACE [MODEL]",
		Short: "Show what attestations and capabilities a registry has",
		Long: `search lists the attestations and capabilities of a registry or an OCI layout
directory, and what the policy of this machine says of their signatures. What does
not verify is shown as such: model, version and key are then only what the record
says of itself. MODEL is a name, or a prefix such as 'acme/*'.

` + placeHelp + `

"revoked" means that a valid revocation lies in the same place. That none is shown
proves nothing: a registry can leave one out. Exit code 3: the registry serves
something else than it lists.`,
		Example: `  clawfs search oci://registry.example/acme/trust
  clawfs search oci://registry.example/acme/trust 'acme/*' -o json`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			place, err := a.openPlace(args[0], where)
			if err != nil {
				return err
			}
			return a.search(c.Context(), place, args[1:])
		},
	}
	where.register(c)
	return c
}

func (a *app) search(ctx context.Context, place *registry.Place, models []string) error {
	policy, err := a.config().LoadPolicy()
	hasPolicy := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var view *capstore.View
	if hasPolicy {
		if view, err = capstore.NewView(policy.Trust()); err != nil {
			return err
		}
	} else {
		a.notef("there is no policy in %s, so nothing is verified\n", a.state)
	}
	tags, err := place.Tags(ctx)
	if err != nil {
		return registryError(err)
	}
	slices.SortFunc(tags, registry.Order)
	list := []found{}
	lies := 0
	for _, tag := range tags {
		kind := kindOf(tag)
		if kind == registry.Provenance || kind == registry.Policy {
			continue
		}
		rec, err := place.Fetch(ctx, tag)
		var lie *registry.LieError
		if errors.As(err, &lie) {
			lies++
			a.warnf("%s\n", printable(err.Error()))
			continue
		}
		if err != nil {
			return err
		}
		switch {
		case takesBack(kind) && hasPolicy:
			// One by an unknown key takes nothing back here.
			view.Apply(capstore.Record{Kind: string(kind), Envelope: rec.Envelope})
		case !takesBack(kind) && (len(models) == 0 || matchesAny(models, rec.Claims.Model)):
			list = append(list, judge(policy, view, rec, time.Now()))
		}
	}
	if hasPolicy {
		markRevoked(list, view)
	}
	slices.SortStableFunc(list, func(x, y found) int {
		return cmp.Or(cmp.Compare(x.Model, y.Model), cmp.Compare(y.Sequence, x.Sequence), cmp.Compare(x.SBA.String(), y.SBA.String()),
			registry.Order(x.Tag, y.Tag))
	})
	err = a.print(list, func() { a.showFound(list) })
	if err == nil && lies > 0 {
		err = &quietExit{codeRefused}
	}
	return err
}

// judge asks the policy about a record; without one (view is nil), nothing is
// believed.
func judge(policy config.Policy, view *capstore.View, rec registry.Record, now time.Time) found {
	f := found{
		Kind: rec.Kind, Tag: rec.Tag(), ID: rec.ID, Model: rec.Claims.Model, Version: rec.Claims.Version, Sequence: rec.Claims.Sequence,
		SBA: rec.SBA, Signer: rec.Claims.Signer, Proof: rec.Proof != nil,
	}
	if view == nil {
		f.Reason = "there is no policy here"
		return f
	}
	var err error
	if rec.Kind == registry.SBA {
		att, verifyErr := policy.Verify(rec.Envelope, rec.Proof, now)
		f.By, err = att.PublisherName(), verifyErr
	} else {
		c, admitErr := view.Admit(rec.Envelope)
		f.By, err = c.Operator(), admitErr
	}
	if f.Verified = err == nil; err != nil {
		f.Reason = err.Error()
	}
	return f
}

// markRevoked joins what was found with the revocations of the view, which a
// pinned revoker signed.
func markRevoked(list []found, view *capstore.View) {
	type target struct {
		kind capstore.Kind
		id   string
	}
	against := make(map[target]capstore.Revocation)
	for _, r := range view.Revocations() {
		against[target{r.Kind(), r.Target()}] = r
	}
	for _, g := range view.All() { // knows the claims too
		if r, revoked := g.Revoked(); revoked {
			against[target{capstore.KindCapability, g.ID().String()}] = r
		}
	}
	for i, f := range list {
		targets := []target{{capstore.KindSBA, f.SBA.String()}}
		if f.Kind == registry.SBA {
			targets = append(targets, target{capstore.KindPublisher, string(f.Signer)})
		} else {
			targets = append(targets, target{capstore.KindCapability, f.ID.String()}, target{capstore.KindMint, string(f.Signer)})
		}
		for _, t := range targets {
			if r, ok := against[t]; ok && f.Revoked == nil {
				answer := revocationAnswer(r)
				list[i].Revoked = &answer
			}
		}
	}
}

func (a *app) showFound(list []found) {
	var rows [][]string
	unverified := 0
	for _, f := range list {
		word := f.By
		if !f.Verified {
			unverified++
			word = "NOT VERIFIED"
		}
		note := ""
		if f.Revoked != nil {
			note = "revoked: " + f.Revoked.Reason
		}
		if f.Proof && note == "" {
			note = "log proof beside it"
		}
		rows = append(rows, []string{string(f.Kind), f.Model, f.Version, strconv.FormatInt(f.Sequence, 10), f.SBA.String()[:shortID], string(f.Signer)[:shortID], word, note})
	}
	a.table([]string{"KIND", "MODEL", "VERSION", "SEQ", "SBA", "KEY", "VERIFIED AS", "NOTE"}, rows)
	if unverified > 0 {
		a.notef("%s\n", fmt.Sprintf("%d of %d are not believed by the policy here; why: -o json", unverified, len(list)))
	}
}
