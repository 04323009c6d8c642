package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newDelegateCommand(a *app) *cobra.Command {
	var narrow narrowFlags
	var keyRef, out string
	c := &cobra.Command{
		Use:   "delegate CAP --key KEY --out FILE.cap",
		Short: "Derive a narrower capability from one that names your key",
		Long: `delegate signs a capability that permits less than CAP does, and writes it with
all that it derives from. CAP is the ID that caps shows (eight digits are enough
if they are unique), or a file that clawfs export wrote. CAP has to name the key
of --key as one that may hand it on: grant --delegate-to and delegate --to say so.
No mint, no rebuild and no daemon is needed for a file; whoever imports the result
checks every signature.

What it is narrowed to:
` + narrowHelp + `

Without flags it permits what CAP does, for as long. A link can only narrow: what
every one permits, opens. ` + "`--to`" + ` names who may hand it on further, at most four
times in all.

A capability that is handed on falls with each of its links: revoke --kind
capability with the ID of one of them, or --kind mint with the key of one.

Exit code 3: CAP does not name that key, was handed on four times, or is over.
4: CAP is no capability, or the key's program answered with no signature of it.`,
		Example: `  clawfs grant langid.sba --wait --delegate-to lead.pub
  clawfs delegate 4f6c1d2e --key lead --path-prefix team --uid 1000 --out team.cap
  clawfs delegate langid.cap --key ssh-agent:lead.pub --to host7.pub --not-after 2026-12-31 --out host7.cap`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := a.delegate(c.Context(), args[0], narrow, keyRef, out)
			if err != nil || out == "-" {
				return err
			}
			return a.print(d, func() { a.showHandedOn(d) })
		},
	}
	f := c.Flags()
	narrow.register(f, "to")
	f.StringVar(&keyRef, "key", "", keyHelp+", which CAP names")
	f.StringVar(&out, "out", "", "`file` to write, which must not exist, - for standard output")
	c.MarkFlagRequired("key")
	c.MarkFlagRequired("out")
	return c
}

// handedOn is what a capability's text says. It is not evidence: the mint's
// signature was not checked.
type handedOn struct {
	File         string          `json:"file"`
	ID           hashpipe.Digest `json:"id"`
	Model        string          `json:"model"`
	Version      string          `json:"version"`
	Minter       dsse.KeyID      `json:"minter"`
	DelegatedBy  []dsse.KeyID    `json:"delegatedBy,omitempty"`
	Delegates    []dsse.KeyID    `json:"delegates,omitempty"`
	Restrictions []string        `json:"restrictions,omitempty"` // each has to permit an open
	NotBefore    time.Time       `json:"notBefore"`
	NotAfter     time.Time       `json:"notAfter"`
	Files        []string        `json:"files"`
}

func (a *app) delegate(ctx context.Context, ref string, narrow narrowFlags, keyRef, out string) (handedOn, error) {
	now := time.Now()
	r, err := narrow.restrict()
	if err != nil {
		return handedOn{}, err
	}
	until, err := narrow.until(now)
	if err != nil {
		return handedOn{}, err
	}
	ids, err := narrow.delegateIDs()
	if err != nil {
		return handedOn{}, err
	}
	text, err := a.capabilityText(ctx, ref)
	if err != nil {
		return handedOn{}, err
	}
	parent, err := describeCapability(ref, text)
	if err != nil {
		return handedOn{}, err
	}
	if !now.Before(parent.NotAfter) {
		return handedOn{}, exitf(codeRefused, "capability %s was valid until %s: there is nothing left to hand on", parent.ID, parent.NotAfter.Format(time.RFC3339))
	}
	if until.IsZero() || parent.NotAfter.Before(until) {
		until = parent.NotAfter
	}
	key, err := a.openSigner(ctx, keyRef)
	if err != nil {
		return handedOn{}, err
	}
	text, err = capstore.DelegateContext(ctx, text, capstore.Delegation{NotBefore: parent.NotBefore, NotAfter: until, Restrict: r, Delegate: ids}, key)
	if errors.Is(err, capstore.ErrNotDelegable) {
		return handedOn{}, exit(codeRefused, err)
	}
	if err != nil {
		return handedOn{}, signed(err)
	}
	if err := a.createResult(out, text); err != nil {
		return handedOn{}, err
	}
	return describeCapability(out, text)
}

func (a *app) showHandedOn(d handedOn) {
	a.printf("%s\n", d.ID)
	a.printf("  model        %s %s\n", printable(d.Model), printable(d.Version))
	a.printf("  files        %s\n", printable(strings.Join(d.Files, " ")))
	for i, r := range d.Restrictions {
		label := "only"
		if i > 0 {
			label = "and only"
		}
		a.printf("  %-12s %s\n", label, printable(r))
	}
	a.printf("  valid until  %s\n", stamp(d.NotAfter))
	for _, id := range d.Delegates {
		a.printf("  may go on to %s\n", id)
	}
	a.notef("written to %s; next, where it is to open files: clawfs import %s\n", printable(d.File), shellWord(d.File))
}

// describeCapability reads a capability's text without believing the mint's signature.
func describeCapability(file string, text []byte) (handedOn, error) {
	chain, err := capstore.UnverifiedChain(text)
	if err != nil {
		return handedOn{}, exitf(recordCode(err), "%s: %w", printable(file), notThat(err, text, aCapability))
	}
	last := chain[len(chain)-1]
	p := chain[0].Statement.Predicate
	d := handedOn{
		File: file, ID: last.ID, Model: p.Model, Version: p.Version, Minter: p.Minter.KeyID,
		Delegates: last.Statement.Predicate.Delegate, NotBefore: p.NotBefore, NotAfter: p.NotAfter,
	}
	for _, s := range chain[0].Statement.Subject {
		d.Files = append(d.Files, s.Name)
	}
	for i, link := range chain {
		p := link.Statement.Predicate
		if i > 0 {
			d.DelegatedBy = append(d.DelegatedBy, p.Minter.KeyID)
		}
		if r := p.Restrict.String(); r != "" {
			d.Restrictions = append(d.Restrictions, r)
		}
		if p.NotBefore.After(d.NotBefore) {
			d.NotBefore = p.NotBefore
		}
		if p.NotAfter.Before(d.NotAfter) {
			d.NotAfter = p.NotAfter
		}
	}
	return d, nil
}

// capabilityText is the text of a capability: of a file, or of the one in the
// store whose ID begins so.
func (a *app) capabilityText(ctx context.Context, ref string) ([]byte, error) {
	if _, err := os.Lstat(ref); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return readBounded(ref, capstore.MaxRecord)
	}
	id := strings.TrimPrefix(strings.ToLower(ref), "sha256:")
	if len(id) < minPrefix || strings.Trim(id, "0123456789abcdef") != "" {
		return nil, exitf(codeUsage, "%s: neither a file nor %d digits of an ID; next: %s", shellWord(ref), minPrefix, a.command("caps"))
	}
	c, err := a.daemon(ctx)
	if err != nil {
		return nil, err
	}
	caps, err := c.Capabilities(ctx)
	if err != nil {
		return nil, a.answered(err)
	}
	var found []control.Capability
	for _, k := range caps {
		if strings.HasPrefix(k.ID.String(), id) {
			found = append(found, k)
		}
	}
	if len(found) != 1 {
		return nil, exitf(codeRefused, "%q begins the IDs of %d capabilities in the store, want exactly 1; next: %s", id, len(found), a.command("caps", "-o", "json"))
	}
	text, err := c.CapabilityText(ctx, found[0].ID)
	return text, a.answered(err)
}
