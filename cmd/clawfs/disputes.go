package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
)

// dispute is one attestation of which operators measured different results on
// machines of one class.
type dispute struct {
	SBA     hashpipe.Digest `json:"sba"`
	Model   string          `json:"model"`
	Version string          `json:"version"`
	Sides   []side          `json:"sides"` // two or more

	class hashpipe.Digest
}

// side is one result of a dispute and who measured it.
type side struct {
	Claim        hashpipe.Digest   `json:"claim"`
	Operators    []string          `json:"operators"`
	Capabilities []hashpipe.Digest `json:"capabilities"`
	Files        []control.File    `json:"files"`

	result hashpipe.Digest
	roots  []hashpipe.Digest // what the mints signed
}

// disputesOf groups what nobody has taken back by attestation and class.
func disputesOf(view *capstore.View) (list []dispute) {
	for _, g := range view.All() {
		if _, revoked := g.Revoked(); revoked {
			continue
		}
		i := slices.IndexFunc(list, func(d dispute) bool { return d.SBA == g.SBA() && d.class == g.Class() })
		if i < 0 {
			i = len(list)
			list = append(list, dispute{SBA: g.SBA(), Model: g.Model(), Version: g.Version(), class: g.Class()})
		}
		d := &list[i]
		j := slices.IndexFunc(d.Sides, func(s side) bool { return s.result == g.Result() })
		if j < 0 {
			j = len(d.Sides)
			s := side{Claim: g.Claim(), result: g.Result()}
			for _, f := range g.Subjects() {
				s.Files = append(s.Files, control.File{Name: f.Name, SHA256: f.Digest, Size: f.Size})
			}
			d.Sides = append(d.Sides, s)
		}
		s := &d.Sides[j]
		s.Capabilities = append(s.Capabilities, g.ID())
		s.roots = append(s.roots, append(g.Parents(), g.ID())[0])
		if !slices.Contains(s.Operators, g.Operator()) {
			s.Operators = append(s.Operators, g.Operator())
		}
	}
	list = slices.DeleteFunc(list, func(d dispute) bool { return len(d.Sides) < 2 })
	for _, d := range list {
		slices.SortFunc(d.Sides, func(a, b side) int { return cmp.Compare(a.result.String(), b.result.String()) })
	}
	return list
}

func newDisputesCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "disputes",
		Short: "List the results that operators do not agree on",
		Long: `disputes lists each attestation of which operators of the policy measured different
results on machines of one class: its files are frozen, on all sides, because
nobody knows which bytes are right. Find out whose rebuild is wrong, and resolve.`,
		Example: "  clawfs disputes\n  clawfs disputes -o json | jq .[].sides[].claim",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			view, err := a.known(c.Context(), a.client())
			if err != nil {
				return err
			}
			list := append([]dispute{}, disputesOf(view)...)
			return a.print(list, func() {
				if len(list) == 0 {
					a.printf("no disputes\n")
				}
				for _, d := range list {
					a.showDispute(d)
					a.notef("next: %s\n", a.command("resolve", shortest(d.SBA), "--uphold", "CLAIM", "--reason", "TEXT"))
				}
			})
		},
	}
}

func (a *app) showDispute(d dispute) {
	a.printf("%s %s, attestation %s\n", printable(d.Model), printable(d.Version), d.SBA)
	var rows [][]string
	for _, s := range d.Sides {
		for i, f := range s.Files {
			row := []string{"", "", f.SHA256.String(), f.Name}
			if i == 0 {
				row[0], row[1] = shortest(s.Claim), strings.Join(s.Operators, " ")
			}
			rows = append(rows, row)
		}
	}
	a.table([]string{"CLAIM", "OPERATORS", "SHA256", "FILE"}, rows)
}

func newResolveCommand(a *app) *cobra.Command {
	var uphold, reason, keyRef string
	c := &cobra.Command{
		Use:   "resolve SBA --uphold CLAIM --reason TEXT",
		Short: "End a dispute: take every result back but one",
		Long: `resolve shows who measured what, and signs a revocation of every other known result
of the attestation SBA on that class of machine. The result CLAIM stays, and its
files open again if enough operators have it. It signs with the revocation key,
like revoke, and there is no undo.

SBA and CLAIM are as disputes shows them; eight digits are enough if they are
unique. Exit code 3: CLAIM is no result of SBA, or nothing stands against it.`,
		Example: `  clawfs disputes
  clawfs resolve 7d6e1f20 --uphold eef91a77 --reason "operator bob: faulty memory"`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if keyRef == "" {
				keyRef = "file:" + a.config().RevokeKey()
			}
			return a.resolveDispute(c.Context(), args[0], uphold, reason, keyRef)
		},
	}
	f := c.Flags()
	f.StringVar(&uphold, "uphold", "", "the `claim` that stays")
	f.StringVar(&reason, "reason", "", "`text` of one line, shown to whoever is refused")
	f.StringVar(&keyRef, "key", "", keyHelp+" (default revoke.key in the state directory)")
	c.MarkFlagRequired("uphold")
	c.MarkFlagRequired("reason")
	return c
}

// resolved is what `resolve` reports.
type resolved struct {
	SBA     hashpipe.Digest `json:"sba"`
	Upheld  hashpipe.Digest `json:"upheld"`
	Revoked []revoked       `json:"revoked"`
}

func (a *app) resolveDispute(ctx context.Context, sba, claim, reason, keyRef string) error {
	c, err := a.daemon(ctx)
	if err != nil {
		return err
	}
	view, err := a.known(ctx, c)
	if err != nil {
		return err
	}
	d, up, err := a.findSide(disputesOf(view), sba, claim)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("claim %s of %s upheld: %s", shortest(up.Claim), shortest(d.SBA), reason)
	key, err := a.openRevoker(ctx, keyRef)
	if err != nil {
		return err
	}
	var envelopes [][]byte
	sign := func(kind capstore.Kind, targets ...hashpipe.Digest) error {
		more, err := signRevocations(ctx, kind, targets, text, key)
		envelopes = append(envelopes, more...)
		return err
	}
	for _, s := range d.Sides {
		switch {
		case s.result == up.result:
		case s.Claim == up.Claim: // the same names and SHA-256, and other sizes or fs-verity digests: the claim cannot tell them apart
			err = sign(capstore.KindCapability, slices.Compact(slices.Clone(s.roots))...)
		default:
			err = sign(capstore.KindClaim, s.Claim)
		}
		if err != nil {
			return err
		}
	}
	if a.output != "json" {
		a.showDispute(d)
	}
	var done []control.Revocation
	for _, e := range envelopes {
		r, err := c.Revoke(ctx, e)
		if err != nil {
			return fmt.Errorf("revoked %d of %d, then: %w", len(done), len(envelopes), a.answered(err))
		}
		done = append(done, r)
	}
	caps, err := c.Capabilities(ctx)
	if err != nil {
		return a.answered(err)
	}
	late := a.awaitMounts(ctx, c)
	answer, unseen, err := stillRead(ctx, c, done)
	if err != nil {
		a.notef("who still reads it is not known: %v\n", err)
	}
	return a.print(resolved{d.SBA, up.Claim, answer}, func() {
		a.printf("upheld claim %s of %s\n", up.Claim, strings.Join(up.Operators, ", "))
		for _, r := range answer {
			a.showRevoked(r, caps)
		}
		for _, m := range unseen {
			a.notef("the mount at %s is not in this mount namespace: who still reads it is not known\n", printable(m))
		}
		a.tellLate(late)
	})
}

// findSide finds the one dispute of an attestation in which a claim is a side.
func (a *app) findSide(list []dispute, sba, claim string) (d dispute, up side, err error) {
	next := a.command("disputes")
	for _, text := range []*string{&sba, &claim} {
		*text = strings.TrimPrefix(strings.ToLower(*text), "sha256:")
		if len(*text) < minPrefix {
			return d, up, exitf(codeRefused, "%q: want at least %d digits, got %d; nothing is revoked; next: %s", *text, minPrefix, len(*text), next)
		}
	}
	found := 0
	disputed := slices.DeleteFunc(list, func(d dispute) bool { return !strings.HasPrefix(d.SBA.String(), sba) })
	if len(disputed) == 0 {
		return d, up, exitf(codeRefused, "no dispute over attestation %q is known; nothing is revoked; next: %s", sba, next)
	}
	for _, x := range disputed {
		for _, s := range x.Sides {
			if strings.HasPrefix(s.Claim.String(), claim) {
				d, up = x, s
				found++
			}
		}
	}
	if found != 1 {
		return d, up, exitf(codeRefused, "claim %q is a side of %d disputes over attestation %q, want exactly 1; nothing is revoked; next: %s", claim, found, sba, next)
	}
	return d, up, nil
}

// disputedWith says for a capability that is disputed what to do; "" if it is not.
func (a *app) disputedWith(k control.Capability) string {
	if k.Conflict == nil {
		return ""
	}
	if k.Conflict.Claim.IsZero() {
		return fmt.Sprintf("operator %s got claim %s of %s %s, and capability %s of operator %s, from the same attestation, cannot be read any more: it may say that other bytes are right; next: %s, then %s",
			k.Operator, k.Claim, k.Model, k.Version, k.Conflict.Capability, k.Conflict.Operator, a.command("store", "verify"), a.command("store", "rebuild"))
	}
	return fmt.Sprintf("operator %s got claim %s of %s %s, and operator %s got claim %s from the same attestation: no file of either opens; next: %s",
		k.Operator, k.Claim, k.Model, k.Version, k.Conflict.Operator, k.Conflict.Claim,
		a.command("resolve", shortest(k.SBA), "--uphold", "CLAIM", "--reason", "TEXT"))
}
