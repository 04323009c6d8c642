package main

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/rebuild/record"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// A summary is SLSA's Verification Summary Attestation v1, for readers that know
// nothing of capabilities: https://slsa.dev/spec/v1.1/verification_summary. It has
// no expiry that a reader must honour, so it grants nothing here.

const (
	summaryType = "https://slsa.dev/verification_summary/v1"
	verifierID  = "https://github.com/openclaw/clawfs/verifier/v1"
	slsaVersion = "1.1"

	// levelIdentical: two builds of the signed recipe gave the same bytes.
	levelIdentical = "CLAWFS_REBUILT_BIT_IDENTICAL"
	// levelReproduced: two operators of the policy did, each with signed provenance.
	levelReproduced = "SLSA_BUILD_REPRODUCED"
)

type summaryStatement struct {
	Type          string           `json:"_type"`
	Subject       []summarySubject `json:"subject"`
	PredicateType string           `json:"predicateType"`
	Predicate     summary          `json:"predicate"`
}

type summarySubject struct {
	Name   string             `json:"name"`
	Digest capstore.DigestSet `json:"digest"`
}

type summary struct {
	Verifier struct {
		ID string `json:"id"`
	} `json:"verifier"`
	TimeVerified       verifier.Time  `json:"timeVerified"`
	ResourceURI        string         `json:"resourceUri"`
	Policy             summaryInput   `json:"policy"`
	InputAttestations  []summaryInput `json:"inputAttestations"`
	VerificationResult string         `json:"verificationResult"`
	VerifiedLevels     []string       `json:"verifiedLevels"`
	SLSAVersion        string         `json:"slsaVersion"`
}

type summaryInput struct {
	URI    string             `json:"uri"`
	Digest capstore.DigestSet `json:"digest"`
}

// exported is what `export` reports.
type exported struct {
	Capability hashpipe.Digest `json:"capability"`
	Model      string          `json:"model"`
	Version    string          `json:"version"`
	Levels     []string        `json:"levels"`
	Operators  []string        `json:"operators"` // with this result
	Signer     dsse.KeyID      `json:"signer"`
	File       string          `json:"file"`
}

func newExportCommand(a *app) *cobra.Command {
	var vsa, keyRef, out, resource string
	var provenance []string
	c := &cobra.Command{
		Use:   "export CAP --out FILE",
		Short: "Write a capability to a file, or a summary of it for other tools",
		Long: `export writes the signed text of a capability in the store, with all links that it
derives from, for another machine to import. CAP is the ID that caps shows; eight
digits are enough if they are unique. The text is no secret and opens nothing by
itself: a machine honours it if its policy names the mint.

With --vsa in place of CAP it signs a SLSA Verification Summary Attestation v1, for
readers that know no capabilities, over the files of a live capability: this machine
verified them by its policy, at this moment. Its levels:

  CLAWFS_REBUILT_BIT_IDENTICAL  an operator of the policy ran the signed recipe
                                twice and got these bytes
  SLSA_BUILD_REPRODUCED         at least two operators agree, and the signed
                                provenance of at least two of them is given with
                                --provenance, and names these outputs

Every --provenance has to be signed by a mint of the policy that is not revoked, and
to be of this attestation and these outputs: one that is not ends the export.

A summary does not end and cannot be taken back: sign it when it is needed. KEY is
a key of its own, and none that the policy names.

Exit code 3: the capability is not live (revoked, expired, disputed, waiting for
operators, or without a fresh revocation list), or a provenance is of something else.
4: a provenance is not signed by a mint of the policy.`,
		Example: `  clawfs export 4f6c1d2e --out langid.cap
  clawfs export --vsa 4f6c1d2e --key vsa.key --out langid.vsa.json
  clawfs export --vsa 4f6c1d2e --key vsa.key --provenance alice.json --provenance bob.json --out -`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case len(args) == 1 && vsa == "" && keyRef == "" && resource == "" && provenance == nil:
				return a.exportCapability(c.Context(), args[0], out)
			case len(args) == 1:
				return exitf(codeUsage, "want CAP, or --vsa with --key and what belongs to it; see `clawfs export --help`")
			case vsa == "" || keyRef == "":
				return exitf(codeUsage, "`clawfs export` needs CAP, or --vsa and --key; see `clawfs export --help`")
			}
			return a.exportSummary(c.Context(), vsa, keyRef, out, resource, provenance)
		},
	}
	f := c.Flags()
	f.StringVar(&vsa, "vsa", "", "the `capability` that is summed up")
	f.StringVar(&keyRef, "key", "", keyHelp)
	f.StringVar(&out, "out", "", "write it to this `file`, - for standard output")
	f.StringVar(&resource, "resource", "", "`URI` of what is summed up (default pkg:generic/MODEL@VERSION)")
	f.StringArrayVar(&provenance, "provenance", nil, "`file` with a signed record of a rebuild, as record --out writes it (repeat)")
	c.MarkFlagRequired("out")
	return c
}

// exportCapability writes the text of a capability.
func (a *app) exportCapability(ctx context.Context, ref, out string) error {
	text, err := a.capabilityText(ctx, ref)
	if err != nil {
		return err
	}
	d, err := describeCapability(out, text)
	if err != nil {
		return err
	}
	if err := a.createResult(out, text); err != nil || out == "-" {
		return err
	}
	return a.print(d, func() { a.showHandedOn(d) })
}

func (a *app) exportSummary(ctx context.Context, id, keyRef, out, resource string, provenance []string) error {
	policy, err := a.config().LoadPolicy()
	if err != nil {
		return err
	}
	view, err := a.known(ctx, a.client())
	if err != nil {
		return err
	}
	clock, err := newWallclock(memory.Dir(a.config().Memory()))
	if err != nil {
		return err
	}
	now := clock.now()
	g, err := a.liveGrant(view, id, now)
	if err != nil {
		return err
	}
	agreed := g.Standing().AgreeAt(now).Operators
	st := summaryStatement{Type: verifier.StatementType, PredicateType: summaryType}
	for _, s := range g.Subjects() {
		st.Subject = append(st.Subject, summarySubject{s.Name, capstore.DigestSet{SHA256: s.Digest}})
	}
	p := &st.Predicate
	p.Verifier.ID = verifierID
	p.TimeVerified = verifier.At(now)
	p.Policy = summaryInput{"urn:clawfs:policy", capstore.DigestSet{SHA256: policy.Digest}}
	p.InputAttestations = []summaryInput{{"urn:clawfs:sba", capstore.DigestSet{SHA256: g.SBA()}}}
	p.VerificationResult, p.SLSAVersion, p.VerifiedLevels = "PASSED", slsaVersion, []string{levelIdentical}
	if p.ResourceURI, err = resourceURI(resource, g.Capability()); err != nil {
		return err
	}
	var proven []string
	for _, path := range provenance {
		operator, digest, err := readProvenance(path, policy, view, g.Capability())
		if err != nil {
			return err
		}
		p.InputAttestations = append(p.InputAttestations, summaryInput{record.ProvenanceType, capstore.DigestSet{SHA256: digest}})
		if slices.Contains(agreed, operator) && !slices.Contains(proven, operator) {
			proven = append(proven, operator)
		}
	}
	if len(proven) >= 2 {
		p.VerifiedLevels = append(p.VerifiedLevels, levelReproduced)
	}
	key, err := a.openSigner(ctx, keyRef)
	if err != nil {
		return err
	}
	if role := roleOf(policy, key.Public()); role != "" {
		return exitf(codeRefused, "%s is the key of %s in the policy: a key has one role; next: clawfs keygen --out vsa", keyRef, role)
	}
	payload, err := json.Marshal(&st, json.Deterministic(true))
	if err != nil {
		return err
	}
	envelope, err := dsse.SignContext(ctx, dsse.PayloadType, payload, key)
	if err != nil {
		return signed(err)
	}
	if err := a.writeResult(out, envelope); err != nil || out == "-" {
		return err
	}
	v := exported{g.ID(), g.Model(), g.Version(), p.VerifiedLevels, agreed, key.Public().ID(), out}
	return a.print(v, func() {
		a.printf("wrote %s: %s %s, %s\n", printable(out), printable(v.Model), printable(v.Version), strings.Join(v.Levels, " "))
		if len(agreed) >= 2 && len(proven) < 2 {
			a.notef("%d operators agree (%s), and the provenance of %d of them was given: not %s; give two with --provenance\n", len(agreed), strings.Join(agreed, ", "), len(proven), levelReproduced)
		}
	})
}

// liveGrant finds a capability by the first digits of its id, and refuses one under
// which not every file of it opens.
func (a *app) liveGrant(view *capstore.View, id string, now time.Time) (capstore.Grant, error) {
	id = strings.TrimPrefix(strings.ToLower(id), "sha256:")
	var found []capstore.Grant
	for _, g := range view.All() {
		if len(id) >= minPrefix && strings.HasPrefix(g.ID().String(), id) {
			found = append(found, g)
		}
	}
	if len(found) != 1 {
		return capstore.Grant{}, exitf(codeRefused, "%q names %d capabilities, want exactly 1, by at least %d digits; next: %s", id, len(found), minPrefix, a.command("caps"))
	}
	g := found[0]
	if state := g.State(now); state != capstore.StateLive {
		why := ""
		if r, revoked := g.Revoked(); revoked {
			why = ": " + r.Reason()
		}
		if o := g.Standing().Conflict(); !o.IsZero() {
			why = fmt.Sprintf(": operator %s got claim %s", o.Operator(), o.Claim())
		} else if id, operator, lost := g.Standing().Unread(); lost {
			why = fmt.Sprintf(": capability %s of operator %s cannot be read", id, operator)
		}
		return g, exitf(codeRefused, "capability %s of %s %s is %s, and only what opens now is summed up%s; next: %s", g.ID(), g.Model(), g.Version(), state, why, a.command("caps"))
	}
	if len(g.DelegatedBy()) > 0 {
		return g, exitf(codeRefused, "capability %s was handed on, and is restricted: a summary has no words for that; next: sum up what it was derived from, %s", g.ID(), g.Parents()[0])
	}
	for _, r := range g.Restrictions() {
		if text := r.String(); text != "" {
			return g, exitf(codeRefused, "capability %s is restricted to %s: a summary has no words for that", g.ID(), text)
		}
	}
	for _, s := range g.Subjects() {
		if r := view.RevokedBy(capstore.KindFile, s.Digest); !r.IsZero() {
			return g, exitf(codeRefused, "%s of capability %s was revoked: %s", s.Name, g.ID(), r.Reason())
		}
	}
	return g, nil
}

// readProvenance checks a signed record by the policy's mints, and that it is of
// this very result. It returns whose mint signed it, and the SHA-256 of the file.
func readProvenance(path string, policy config.Policy, view *capstore.View, c capstore.Capability) (operator string, digest hashpipe.Digest, err error) {
	text, err := readBounded(path, record.MaxSize)
	if err != nil {
		return "", hashpipe.Digest{}, err
	}
	owner := make(map[dsse.KeyID]string)
	var mints []dsse.PublicKey
	for _, o := range policy.Mints {
		for _, k := range o.Keys {
			owner[k.ID()], mints = o.Operator, append(mints, k)
		}
	}
	v, err := record.Read(text, mints)
	if err != nil {
		return "", hashpipe.Digest{}, exitf(codeSignature, "%s: %w", path, err)
	}
	for _, d := range keyDigests(v.Signer) {
		if r := view.RevokedBy(capstore.KindMint, d); !r.IsZero() {
			return "", hashpipe.Digest{}, exitf(codeSignature, "%s: the mint key %s that signed it was revoked: %s", path, v.Signer, r.Reason())
		}
	}
	if v.Type != record.ProvenanceType {
		return "", hashpipe.Digest{}, exitf(codeRefused, "%s: want the provenance of a rebuild that minted, got the record of one that ended as %s", path, v.Verdict)
	}
	if v.SBA != c.SBA() {
		return "", hashpipe.Digest{}, exitf(codeRefused, "%s: want provenance of attestation %s, got that of %s", path, c.SBA(), v.SBA)
	}
	var got, want []string
	for _, o := range v.Outputs {
		got = append(got, o.Digest.String()+" "+o.Name)
	}
	for _, s := range c.Subjects() {
		want = append(want, s.Digest.String()+" "+s.Name)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		return "", hashpipe.Digest{}, exitf(codeRefused, "%s: want provenance of %s, got that of %s", path, strings.Join(want, ", "), strings.Join(got, ", "))
	}
	return owner[v.Signer], hashpipe.SumBytes(text).Claim(), nil
}

// roleOf says what the policy names a key for; "" if for nothing.
func roleOf(p config.Policy, key dsse.PublicKey) string {
	for _, r := range p.Publishers {
		if slices.Contains(r.Keys, key) {
			return "publisher " + r.Name
		}
	}
	for _, list := range []struct {
		what      string
		operators []verifier.Operator
	}{{"the mint of operator ", p.Mints}, {"the revoker of operator ", p.Revokers}} {
		for _, o := range list.operators {
			if slices.Contains(o.Keys, key) {
				return list.what + o.Operator
			}
		}
	}
	if p.Root != nil && slices.Contains(p.Root.Keys, key) {
		return "the root"
	}
	return ""
}

// resourceURI is a package URL of the model, or what the user says.
func resourceURI(given string, c capstore.Capability) (string, error) {
	name := strings.Split(c.Model(), "/")
	for i := range name {
		name[i] = url.PathEscape(name[i])
	}
	text := cmp.Or(given, "pkg:generic/"+strings.Join(name, "/")+"@"+url.QueryEscape(c.Version()))
	if u, err := url.Parse(text); err != nil || u.Scheme == "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return "", exitf(codeUsage, "--resource %q: want a URI", text)
	}
	return text, nil
}
