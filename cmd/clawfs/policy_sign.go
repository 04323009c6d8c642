package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newPolicyEditCommand(a *app) *cobra.Command {
	var out, expires string
	var root []string
	var threshold int64
	c := &cobra.Command{
		Use:   "edit [FILE] --out DRAFT.json",
		Short: "Write a draft of the next revision of a policy",
		Long: `Writes FILE, or the policy of the state directory, with the next revision number
and a new end, to be changed with an editor or with clawfs publisher … --draft,
then signed and installed. Nothing here changes by it.

A policy that nobody has signed yet needs --root, the public keys that shall sign
each next revision, and --threshold, how many of them must. With a policy that is
signed already, they change its root: then the keys before and the new ones have
to sign.`,
		Example: `  clawfs policy edit --root ann.pub --root bob.pub --root eve.pub --threshold 2 --out draft.json
  clawfs policy edit --expires 2027-06-01 --out draft.json
  clawfs publisher trust acme.pub --name acme --models 'acme/*' --draft draft.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			doc, err := a.policyArgument(args)
			if err != nil {
				return err
			}
			p, now := doc.policy, time.Now()
			until, err := parseMoment(expires, now)
			if err == nil && !until.After(now) {
				err = errors.New("want a time in the future")
			}
			if err != nil {
				return exitf(codeUsage, "--expires %q: %w", expires, err)
			}
			if len(root) > 0 {
				p.Root = &verifier.Root{Threshold: threshold}
				for _, path := range root {
					key, err := readPublicKey(path)
					if err != nil {
						return err
					}
					p.Root.Keys = append(p.Root.Keys, key)
				}
			}
			if p.Root == nil {
				return exitf(codeUsage, "this policy has no root yet: give --root KEY.pub, once for each key, and --threshold")
			}
			p.Revision++
			p.Expires = verifier.At(until)
			text, err := p.Encode()
			if err != nil {
				return exit(codeUsage, err)
			}
			if out == "-" {
				_, err := a.stdout.Write(text)
				return err
			}
			if err := durable.Create(out, text, 0o644); err != nil {
				return existsAlready(out, err)
			}
			return a.print(map[string]any{"draft": out, "revision": p.Revision, "expires": p.Expires}, func() {
				a.printf("%s: revision %d, until %s, root %s\n", shellWord(out), p.Revision, p.Expires, rootText(p))
				a.printf("next: change it, clawfs policy check %s, clawfs policy diff %[1]s, clawfs policy sign %[1]s --key KEYFILE\n", shellWord(out))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&out, "out", "", "`file` to write, which must not exist, - for standard output")
	f.StringVar(&expires, "expires", "2160h", "`time` when the revision ends: a time (RFC 3339), a date, or a duration from now")
	f.StringArrayVar(&root, "root", nil, "public `keyfile` of the root (repeat)")
	f.Int64Var(&threshold, "threshold", 0, "how many of the root's keys must sign")
	c.MarkFlagRequired("out")
	c.MarkFlagsRequiredTogether("root", "threshold")
	return c
}

func existsAlready(path string, err error) error {
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already; next: choose another --out", shellWord(path))
	}
	return err
}

func newPolicySignCommand(a *app) *cobra.Command {
	var keyRefs []string
	var out string
	c := &cobra.Command{
		Use:   "sign FILE --key KEY",
		Short: "Sign a policy, or add a signature to a signed one",
		Long: `Signs a policy with a root. FILE is a policy.json, then the envelope is written
beside it as FILE.dsse; or it is such an envelope from another desk, then the
signature is added to it. Read what you sign: clawfs policy diff shows what FILE
changes. A policy.json is signed as its canonical text, which is what machines
install.

A machine takes the revision when enough keys of its own root and enough keys of
the root of the revision before have signed it. A key in both counts for both.`,
		Example: `  clawfs policy sign draft.json --key ann --out policy-8.dsse
  clawfs policy sign policy-8.dsse --key bob`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			path := args[0]
			doc, err := readPolicyFile(path)
			if err != nil {
				return err
			}
			if doc.policy.Root == nil {
				return exitf(codeRefused, "%s has no root, so nobody's signature would count; next: clawfs policy edit %s --root KEY.pub --threshold 1 --out DRAFT.json", shellWord(path), shellWord(path))
			}
			if data, err := readBounded(path, verifier.MaxPolicyFile); err != nil || doc.envelope != nil && !bytes.Equal(data, doc.envelope) {
				return errors.Join(err, exitf(codeRefused, "%s holds several signed policies; sign one at a time", shellWord(path)))
			}
			var keys []dsse.Signer
			for _, ref := range keyRefs {
				key, err := a.openSigner(c.Context(), ref)
				if err != nil {
					return err
				}
				keys = append(keys, key)
			}
			before := a.rootBefore(doc.policy)
			if err := a.checkRootKeys(doc.policy, before, keys); err != nil {
				return err
			}
			envelope, err := signPolicy(c.Context(), doc, keys)
			if err != nil {
				return signed(refusal(printable(path), err))
			}
			to := out
			if out == "" {
				to = path
				if doc.envelope == nil {
					to = strings.TrimSuffix(path, ".json") + ".dsse"
				}
			}
			if doc.envelope == nil && out == "" {
				err = durable.Create(to, append(envelope, '\n'), 0o644)
				if errors.Is(err, fs.ErrExist) {
					return fmt.Errorf("%s exists already; next: clawfs policy sign %[1]s --key KEYFILE, which adds to it, or another --out", shellWord(to))
				}
			} else {
				err = a.writeResult(to, append(envelope, '\n'))
			}
			if err != nil || to == "-" {
				return err
			}
			return a.showSigned(to, doc.policy, before, envelope)
		},
	}
	f := c.Flags()
	f.StringArrayVar(&keyRefs, "key", nil, "who signs: a private key file, ssh-agent:`KEY`, or SCHEME:KEY of a signer program (repeat)")
	f.StringVar(&out, "out", "", "`file` to write, - for standard output (default FILE with .dsse, or FILE itself if it is signed already)")
	c.MarkFlagRequired("key")
	return c
}

func signPolicy(ctx context.Context, doc policyDoc, keys []dsse.Signer) ([]byte, error) {
	if doc.envelope == nil {
		return verifier.SignPolicy(ctx, doc.policy, keys...)
	}
	envelope := doc.envelope
	for _, k := range keys {
		var err error
		if envelope, err = verifier.AddSignature(ctx, envelope, k); err != nil {
			return nil, err
		}
	}
	return envelope, nil
}

// rootBefore is the policy of the state directory if p is its successor, else
// nil: on a desk there is none.
func (a *app) rootBefore(p *verifier.Policy) *verifier.Policy {
	here, err := a.config().LoadPolicy()
	if err != nil || here.Root == nil || here.Revision+1 != p.Revision {
		return nil
	}
	return here.Policy
}

// checkRootKeys refuses keys whose signature would count nowhere. Without the
// policy before nobody knows; then it says so.
func (a *app) checkRootKeys(p, before *verifier.Policy, keys []dsse.Signer) error {
	for _, k := range keys {
		id := k.Public().ID()
		switch {
		case slices.Contains(p.Root.Keys, k.Public()):
		case before != nil && slices.Contains(before.Root.Keys, k.Public()):
		case before == nil && p.Revision > 1:
			a.notef("key %s is not one of this policy's root: it counts only if the root of revision %d has it\n", id, p.Revision-1)
		default:
			return exitf(codeSignature, "key %s is none of the root's, so its signature would not count; nothing was written", id)
		}
	}
	return nil
}

func (a *app) showSigned(path string, p, before *verifier.Policy, envelope []byte) error {
	result := struct {
		File     string          `json:"file"`
		SHA256   hashpipe.Digest `json:"sha256"`
		Revision int64           `json:"revision"`
		Root     rootSignatures  `json:"root"`
		Before   *rootSignatures `json:"before,omitempty"` // under the root of the policy here
	}{File: path, Revision: p.Revision}
	_, text, err := verifier.UnverifiedPolicy(envelope)
	if err != nil {
		return err
	}
	result.SHA256 = digestOf(text)
	if result.Root, err = signaturesOf(envelope, p); err != nil {
		return err
	}
	done := result.Root.enough()
	if before != nil {
		s, err := signaturesOf(envelope, before)
		if err != nil {
			return err
		}
		result.Before = &s
		done = done && s.enough()
	}
	return a.print(result, func() {
		a.printf("signed revision %d as %s\n", p.Revision, shellWord(path))
		a.printf("sha256      %s\n", result.SHA256)
		a.printf("signatures  %s\n", result.Root)
		if result.Before != nil {
			a.printf("            %s\n", result.Before)
		}
		switch {
		case !done:
			a.printf("next: clawfs policy sign %s --key KEYFILE, by the next signer\n", shellWord(path))
		case before == nil && p.Revision > 1:
			a.printf("next: clawfs policy install %s, if enough keys of the root of revision %d have signed it, too\n", shellWord(path), p.Revision-1)
		default:
			howto := shellWord(path)
			if p.Revision == 1 {
				howto += " --first"
			}
			a.printf("next: clawfs policy install %s, on every machine\n", howto)
		}
	})
}

func newPolicyInstallCommand(a *app) *cobra.Command {
	var first, dryRun bool
	c := &cobra.Command{
		Use:   "install FILE",
		Short: "Make a signed policy the policy of this machine",
		Long: `Installs the signed policy in FILE if enough keys of the root of the policy here
and enough keys of its own root have signed it, if its revision is the very next,
and if it has not expired. FILE may hold several, one a line: they are checked in
order, those that are here already are passed over, and only the last must not
have expired. Whatever fails, the policy stays as it is.

A machine whose policy has no root takes the first one with --first: compare the
key ids that are printed with those that you were told on a way that you trust.
From then on there is no way back to a policy without a root, and none to an
older revision. The newest revision is remembered in memory/policy-revision.

Installing the policy that is here already puts its files back as they were.

Exit code 0: installed. 3: refused. 4: not signed by the required keys.`,
		Example: `  clawfs policy install policy-1.dsse --first
  clawfs policy install policy-8.dsse --dry-run
  clawfs policy install all-policies.dsse`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			data, err := readBounded(args[0], verifier.MaxPolicyFile)
			if err != nil {
				return err
			}
			s := a.config()
			if err := s.Check(); err != nil {
				return err
			}
			in, err := installer(s, dryRun)(data, first, time.Now())
			var refused *verifier.Refusal
			if errors.As(err, &refused) {
				err = fmt.Errorf("%w; the policy here is unchanged%s", notThat(err, data, aSignedPolicy), a.installNext(args[0], first, refused))
			}
			if err != nil {
				return refusal(printable(args[0]), err)
			}
			return a.showInstalled(in, first, dryRun)
		},
	}
	f := c.Flags()
	f.BoolVar(&first, "first", false, "take the root in FILE as it is, on a machine whose policy has none")
	f.BoolVar(&dryRun, "dry-run", false, "check and show what would change, and install nothing")
	return c
}

// installNext is the command that leads on from a refused installation, if one does.
func (a *app) installNext(path string, first bool, refused *verifier.Refusal) string {
	p, err := a.config().LoadPolicy()
	switch {
	case refused.Reason == verifier.ReasonMalformed:
	case exitCode(refusal(path, refused)) == codeSignature:
		return "; next: " + a.command("policy", "sign", path, "--key", "KEYFILE") + ", by another signer"
	case err == nil && p.Root == nil && !first:
		return "; next: " + a.command("policy", "install", path, "--first")
	}
	return ""
}

func installer(s config.State, dryRun bool) func([]byte, bool, time.Time) (config.Installation, error) {
	if dryRun {
		return s.CheckPolicy
	}
	return s.InstallPolicy
}

func (a *app) showInstalled(in config.Installation, first, dryRun bool) error {
	p := in.Policy.Policy()
	changes := []policyChange{}
	repin := false
	if in.Before != nil {
		changes = policyChanges(in.Before, p)
		repin = !sameTrust(config.Policy{Policy: in.Before}.Trust(), config.Policy{Policy: p}.Trust())
	}
	result := struct {
		Installed bool            `json:"installed"`
		Restored  bool            `json:"restored,omitzero"` // it was installed already
		Revision  int64           `json:"revision"`
		Expires   verifier.Time   `json:"expires"`
		SHA256    hashpipe.Digest `json:"sha256"`
		Signers   []dsse.KeyID    `json:"signers"` // keys of its own root
		Root      []dsse.KeyID    `json:"root"`
		Threshold int64           `json:"threshold"`
		Changes   []policyChange  `json:"changes"`
	}{!dryRun, in.Restored, p.Revision, p.Expires, in.Policy.Digest(), keyIDs(in.Policy.Signers()), keyIDs(p.Root.Keys), p.Root.Threshold, changes}
	return a.print(result, func() {
		a.showChanges(changes)
		verb := "installed"
		if in.Restored {
			verb = "installed again"
		}
		if dryRun {
			verb = "would be " + verb
		}
		a.printf("%s: revision %d, until %s, sha256 %s\n", verb, p.Revision, p.Expires, in.Policy.Digest())
		for _, id := range result.Signers {
			a.printf("signed by  %s\n", id)
		}
		if first {
			a.printf("compare the root's keys with those that you were told (%d of them must sign the next policy):\n", p.Root.Threshold)
			for _, id := range result.Root {
				a.printf("root key   %s\n", id)
			}
		}
		if repin && !dryRun {
			a.printf("daemon and mounts that run take it over within seconds; clawfs status warns of those that do not\n")
		}
	})
}
