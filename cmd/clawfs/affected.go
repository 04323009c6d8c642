package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newAffectedCommand(a *app) *cobra.Command {
	var by []string
	var kind string
	c := &cobra.Command{
		Use:   "affected --by WHAT",
		Short: "Say what would fall if something were revoked",
		Long: `affected answers what revoke would do, and changes nothing: which capabilities and
files would no longer open, which results would then have too few operators, what
was built from what would be lost (and would open all the same), and, of a dispute,
what would open again.

WHAT is a key id, an image ("sha256:…"), an attestation, a claim, a capability or a
content, in hex (eight digits are enough if they are unique); a file with a public
key; an attestation's file; or any other file, which is hashed. What is known as
several kinds of things needs --kind.

Exit code 0, whatever would fall.`,
		Example: `  clawfs affected --by acme.pub
  clawfs affected --by sha256:6794…
  clawfs affected --by /srv/downloads/langid.bin -o json | jq '.[].changed | length'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if kind != "" && !slices.Contains(kinds, capstore.Kind(kind)) {
				return exitf(codeUsage, "--kind %q: want one of %q", kind, kinds)
			}
			return a.affected(c.Context(), by, capstore.Kind(kind))
		},
	}
	c.Flags().StringArrayVar(&by, "by", nil, "`what` would be revoked; repeat for more, each is answered by itself")
	c.Flags().StringVar(&kind, "kind", "", "`kind` of thing that it is: claim, capability, sba, publisher, mint, image or file")
	c.MarkFlagRequired("by")
	completes(c, "kind", kindNames())
	return c
}

func (a *app) affected(ctx context.Context, by []string, kind capstore.Kind) error {
	client := a.client()
	caps, err := client.Capabilities(ctx)
	if err != nil {
		return a.answered(err)
	}
	list := []control.Affected{}
	for _, what := range by {
		ask, err := a.suspect(ctx, caps, what, kind)
		if err != nil {
			return err
		}
		answer, err := client.Affected(ctx, ask)
		if err != nil {
			return a.answered(err)
		}
		list = append(list, answer)
	}
	return a.print(list, func() {
		for _, x := range list {
			a.showAffected(x)
		}
	})
}

// suspect finds out what a person means. What no capability names is asked about
// all the same: it takes nothing back.
func (a *app) suspect(ctx context.Context, caps []control.Capability, what string, kind capstore.Kind) (control.AffectedRequest, error) {
	text := strings.TrimPrefix(strings.ToLower(what), "sha256:")
	asked := kinds
	if kind != "" {
		asked = []capstore.Kind{kind}
	}
	if _, err := os.Stat(what); err == nil {
		d, of, err := identify(ctx, what)
		if err != nil {
			return control.AffectedRequest{}, err
		}
		text = d.String()
		if kind == "" {
			asked = of
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return control.AffectedRequest{}, err
	}
	if len(text) < minPrefix || strings.Trim(text, "0123456789abcdef") != "" {
		return control.AffectedRequest{}, exitf(codeRefused, "--by %q: want a file, or at least %d hex digits of something that caps shows; next: %s", what, minPrefix, a.command("caps", "-o", "json"))
	}
	found := make(map[control.AffectedRequest]bool)
	for _, k := range caps {
		for _, of := range asked {
			for _, d := range identities(k, of) {
				if strings.HasPrefix(d.String(), text) {
					found[control.AffectedRequest{Kind: of, Target: d}] = true
				}
			}
		}
	}
	switch d, err := hashpipe.ParseDigest(text); {
	case len(found) == 1:
		for r := range found {
			return r, nil
		}
	case len(found) == 0 && err == nil:
		return control.AffectedRequest{Kind: asked[0], Target: d}, nil
	}
	if len(found) == 0 {
		return control.AffectedRequest{}, exitf(codeRefused, "--by %q: no file of that name, and it begins the identity of nothing in the store (names 0 things); next: %s", what, a.command("caps", "-o", "json"))
	}
	var names []string
	for r := range found {
		names = append(names, fmt.Sprintf("%s %s", r.Kind, r.Target))
	}
	slices.Sort(names)
	return control.AffectedRequest{}, exitf(codeRefused, "--by %q names %d things, want exactly 1: %s; next: give more digits, or --kind", what, len(names), strings.Join(names, ", "))
}

// identify reads a file: a key, an attestation, or any content.
func identify(ctx context.Context, path string) (hashpipe.Digest, []capstore.Kind, error) {
	if text, err := readBounded(path, dsse.MaxEnvelope); err == nil {
		if key, err := dsse.ParsePublicKey(text); err == nil {
			d, err := hashpipe.ParseDigest(string(key.ID()))
			return d, []capstore.Kind{capstore.KindPublisher, capstore.KindMint}, err
		}
		if e, err := dsse.Parse(text); err == nil {
			if _, err := verifier.ParseLedger(e.UnverifiedPayload()); err == nil {
				return hashpipe.SumBytes(e.UnverifiedPayload()).Claim(), []capstore.Kind{capstore.KindSBA}, nil
			}
		}
	}
	m, err := measurePath(ctx, path, nil)
	if err != nil {
		return hashpipe.Digest{}, nil, err
	}
	return m.Sum().Claim(), []capstore.Kind{capstore.KindFile}, nil
}

func (a *app) showAffected(x control.Affected) {
	fall, open := 0, 0
	for _, c := range x.Changed {
		switch {
		case c.Before == capLive:
			fall++
		case c.After == capLive:
			open++
		}
	}
	a.printf("%s %s: %d live capabilities would no longer open, %d would open again, %d were built from it\n", x.Kind, x.Target, fall, open, len(x.Built))
	var rows [][]string
	add := func(list []control.Consequence, what func(control.Consequence) string) {
		for _, c := range list {
			var files []string
			for _, f := range c.Files {
				files = append(files, f.Name)
			}
			rows = append(rows, []string{shortest(c.ID), c.Model, c.Version, c.Operator, c.Before + " > " + c.After, what(c), strings.Join(files, " ")})
		}
	}
	add(x.Changed, func(c control.Consequence) string {
		switch {
		case c.After == capWaiting:
			return fmt.Sprintf("would no longer open: %d of %d operators", len(c.Agreed), c.Needed)
		case c.Before == capLive:
			return "would no longer open"
		case c.After == capLive:
			return "would open again"
		}
		return "-"
	})
	add(x.Built, func(control.Consequence) string { return "built from it, opens all the same" })
	if len(rows) > 0 {
		a.table([]string{"ID", "MODEL", "VERSION", "OPERATOR", "STATE", "EFFECT", "FILES"}, rows)
	}
}
