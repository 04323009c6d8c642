package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newRevokeCommand(a *app) *cobra.Command {
	var kind, reason, keyRef string
	var derived bool
	c := &cobra.Command{
		Use:   "revoke ID... --reason TEXT",
		Short: "Take capabilities back, for good",
		Long: `revoke signs a revocation with the revocation key, here and not in the daemon,
and returns after it is on stable storage. It holds for ever: there is no undo.

An ID is what caps shows; eight digits are enough if they are unique. --kind says
what is taken back:
  claim       the result of the capability ID, whoever minted it, and if it is
              minted again (the default)
  capability  that one capability, and what was derived from it; a later grant
              can earn another
  sba         everything from one attestation
  publisher   everything of a publisher's key (its key id)
  mint        everything that a mint key signed, or that the key of a delegate
              handed on (its key id)
  image       everything that was built in an environment image (its manifest)
  file        one content by its SHA-256, under every capability

No file of it opens any more. What is open already is cut off in tier blocks; in
the tiers sealed and verity a process goes on reading what it has opened or mapped
until it ends, and such processes are listed with pid, name, path, and how they
hold it: fd or map. That does not change the exit code.

clawfs affected says what would fall before it is taken back. Models that were
built from what is taken back are listed, and go on opening;
--derived takes the claims of all of them back too.`,
		Example: `  clawfs revoke 4f6c1d2e --reason "training data withdrawn"
  clawfs revoke --kind publisher 0449… --reason "key stolen"`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if keyRef == "" {
				keyRef = "file:" + a.config().RevokeKey()
			}
			return a.revoke(c.Context(), capstore.Kind(kind), args, reason, keyRef, derived)
		},
	}
	f := c.Flags()
	f.StringVar(&kind, "kind", string(capstore.KindClaim), "`kind` of what is taken back: claim, capability, sba, publisher, mint, image or file")
	f.StringVar(&reason, "reason", "", "`text` of one line, shown to whoever is refused")
	f.StringVar(&keyRef, "key", "", keyHelp+" (default revoke.key in the state directory)")
	f.BoolVar(&derived, "derived", false, "take back too what was built from it, however far down")
	c.MarkFlagRequired("reason")
	completes(c, "kind", kindNames())
	return c
}

var kinds = []capstore.Kind{capstore.KindClaim, capstore.KindCapability, capstore.KindSBA, capstore.KindPublisher, capstore.KindMint, capstore.KindImage, capstore.KindFile}

func kindNames() (list []string) {
	for _, k := range kinds {
		list = append(list, string(k))
	}
	return list
}

// revoke prepares every revocation before it sends the first, so that a wrong
// ID revokes nothing.
func (a *app) revoke(ctx context.Context, kind capstore.Kind, ids []string, reason, keyRef string, derived bool) error {
	if !slices.Contains(kinds, kind) {
		return exitf(codeUsage, "--kind %q: want claim, capability, sba, publisher, mint, image or file", string(kind))
	}
	c, err := a.daemon(ctx)
	if err != nil {
		return err
	}
	if s, err := c.Status(ctx); err != nil {
		return a.answered(err)
	} else if s.Store != nil {
		return a.revokeWithoutStore(ctx, c, s, kind, ids, reason, keyRef, derived)
	}
	targets, err := a.revocationTargets(ctx, c, kind, ids)
	if err != nil {
		return err
	}
	key, err := a.openRevoker(ctx, keyRef)
	if err != nil {
		return err
	}
	envelopes, err := signRevocations(ctx, kind, targets, reason, key)
	if err != nil {
		return err
	}
	var done []control.Revocation
	for _, e := range envelopes {
		r, err := c.Revoke(ctx, e)
		if err != nil {
			if len(done) > 0 {
				return fmt.Errorf("revoked %d of %d, then: %w", len(done), len(envelopes), a.answered(err))
			}
			return a.answered(err)
		}
		done = append(done, r)
	}
	caps, err := c.Capabilities(ctx)
	if err != nil {
		return a.answered(err)
	}
	built := unfounded(caps, done)
	if derived && len(built) > 0 {
		more, err := signRevocations(ctx, capstore.KindClaim, claims(built), reason, key)
		if err != nil {
			return err
		}
		for _, e := range more {
			r, err := c.Revoke(ctx, e)
			if err != nil {
				return fmt.Errorf("revoked what was named, and not all that was built from it: %w", a.answered(err))
			}
			done = append(done, r)
		}
		built = nil
	}
	late := a.awaitMounts(ctx, c)
	answer, unseen, err := stillRead(ctx, c, done)
	if err != nil {
		a.notef("who still reads it is not known: %v\n", err)
	}
	return a.print(answer, func() {
		for _, r := range answer {
			a.showRevoked(r, caps)
		}
		for _, k := range built {
			a.notef("%s %s (capability %.16s) was built from what was taken back, and opens all the same; next: %s\n", printable(k.Model), printable(k.Version), k.ID,
				a.command("revoke", k.ID.String()[:shortID], "--reason", reason))
		}
		for _, m := range unseen {
			a.notef("the mount at %s is not in this mount namespace: who still reads it is not known\n", printable(m))
		}
		a.tellLate(late)
	})
}

// unfounded are the capabilities, neither revoked nor expired, of models that
// were built from what these revocations took back, however far down. What lost
// its base by an earlier one is not among them: that it goes on opening was
// somebody's decision, and a revocation has no undo.
func unfounded(caps []control.Capability, done []control.Revocation) (list []control.Capability) {
	var next []hashpipe.Digest
	for _, r := range done {
		if d, err := hashpipe.ParseDigest(r.Target); err == nil && r.Kind == capstore.KindClaim {
			next = append(next, d)
		}
		for _, k := range caps {
			for _, d := range identities(k, r.Kind) {
				if d.String() == r.Target {
					next = append(next, k.Claim)
				}
			}
		}
	}
	found := make(map[hashpipe.Digest]bool)
	for ; len(next) > 0; next = next[1:] {
		claim := next[0]
		if found[claim] {
			continue
		}
		found[claim] = true
		for _, k := range caps {
			if slices.ContainsFunc(k.Bases, func(b control.Base) bool { return b.Claim == claim && b.Lost != nil }) {
				next = append(next, k.Claim)
			}
		}
	}
	for _, k := range caps {
		open := k.State != capRevoked && k.State != capExpired // now, or when the others and the list have come
		if open && slices.ContainsFunc(k.Bases, func(b control.Base) bool { return b.Lost != nil && found[b.Claim] }) {
			list = append(list, k)
		}
	}
	return list
}

func claims(caps []control.Capability) (list []hashpipe.Digest) {
	for _, k := range caps {
		if !slices.Contains(list, k.Claim) {
			list = append(list, k.Claim)
		}
	}
	return list
}

// revoked is a revocation with those who can go on reading what they had opened:
// a private file is checked at open, as POSIX has it.
type revoked struct {
	control.Revocation
	Capabilities []hashpipe.Digest `json:"capabilities,omitempty"` // that it takes back, as far as they are known here
	Readers      []reader          `json:"readers,omitempty"`
}

// stillRead looks for readers of what each revocation took back, on all mounts.
func stillRead(ctx context.Context, c *control.Client, done []control.Revocation) (list []revoked, unseen []string, err error) {
	for _, r := range done {
		list = append(list, revoked{Revocation: r})
	}
	caps, err := c.Capabilities(ctx)
	if err != nil {
		return list, nil, err
	}
	mounts, err := c.Mounts(ctx)
	if err != nil {
		return list, nil, err
	}
	for i, r := range done {
		var files []control.File
		files, list[i].Capabilities = takenBack(caps, r)
		if list[i].Readers, unseen = readers(mounts, files); len(list[i].Readers) > 0 {
			wait(ctx, time.After(cutPatience))
			list[i].Readers, unseen = readers(mounts, files)
		}
	}
	return list, unseen, nil
}

// takenBack are the files of all capabilities that a revocation hits, and those
// capabilities.
func takenBack(caps []control.Capability, r control.Revocation) (files []control.File, ids []hashpipe.Digest) {
	for _, k := range caps {
		if !slices.ContainsFunc(identities(k, r.Kind), func(d hashpipe.Digest) bool { return d.String() == r.Target }) {
			continue
		}
		ids = append(ids, k.ID)
		for _, f := range k.Files {
			if r.Kind != capstore.KindFile || f.SHA256.String() == r.Target {
				files = append(files, f)
			}
		}
	}
	return files, ids
}

// showRevoked tells what a revocation takes back.
func (a *app) showRevoked(r revoked, caps []control.Capability) {
	a.printf("revoked %s %s: %s\n", r.Kind, r.Target, printable(r.Reason))
	for _, k := range caps {
		if slices.Contains(r.Capabilities, k.ID) {
			a.printf("  falls: %s %s of operator %s (capability %.16s)\n", printable(k.Model), printable(k.Version), printable(k.Operator), k.ID)
		}
	}
	a.showReaders(r.Readers)
}

func (a *app) showReaders(list []reader) {
	if len(list) == 0 {
		return
	}
	var rows [][]string
	var pids []string
	for _, r := range list {
		pid := strconv.Itoa(r.PID)
		rows = append(rows, []string{pid, r.Comm, r.How, r.Path})
		if !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	a.printf("these go on reading it until they end, because they had it open already:\n")
	a.table([]string{"PID", "COMM", "HOW", "PATH"}, rows)
	a.printf("next: kill %s\n", strings.Join(pids, " "))
}

// openRevoker is openSigner for a key that has to be one of a revoker of the
// policy: what another one signs counts nowhere. Where the policy cannot be read,
// the daemon says so by its own.
func (a *app) openRevoker(ctx context.Context, ref string) (dsse.Signer, error) {
	return a.openOperator(ctx, ref, "revoker", func(p config.Policy) []verifier.Operator { return p.Revokers })
}

func (a *app) openOperator(ctx context.Context, ref, role string, of func(config.Policy) []verifier.Operator) (dsse.Signer, error) {
	key, err := a.openSigner(ctx, ref)
	if err != nil {
		return nil, err
	}
	policy, err := a.config().LoadPolicy()
	if err != nil {
		return key, nil
	}
	var names []string
	for _, o := range of(policy) {
		if slices.Contains(o.Keys, key.Public()) {
			return key, nil
		}
		for _, k := range o.Keys {
			names = append(names, fmt.Sprintf("%s (key id %s)", o.Operator, k.ID()))
		}
	}
	return nil, exitf(codeSignature, "%s (key id %s) is no %s of the policy, so nothing is signed with it; expected one of %s; next: give --key KEY with the private key of one of them",
		printable(strings.TrimPrefix(ref, "file:")), key.Public().ID(), role, dash(strings.Join(names, ", ")))
}

func signRevocations(ctx context.Context, kind capstore.Kind, targets []hashpipe.Digest, reason string, key dsse.Signer) ([][]byte, error) {
	var list [][]byte
	for _, t := range targets {
		st, err := capstore.NewRevocation(kind, t.String(), reason, time.Now())
		if err != nil {
			return nil, exit(codeUsage, err)
		}
		e, err := capstore.SignRevocationContext(ctx, st, key)
		if err != nil {
			return nil, signed(err)
		}
		list = append(list, e)
	}
	return list, nil
}

// revocationTargets resolves what the user typed. A full identity need not be
// known: what arrives later is revoked on arrival. A capability's id names the
// capability's claim, too, for that is what caps shows.
func (a *app) revocationTargets(ctx context.Context, c *control.Client, kind capstore.Kind, ids []string) ([]hashpipe.Digest, error) {
	caps, err := c.Capabilities(ctx)
	if err != nil {
		return nil, a.answered(err)
	}
	var list []hashpipe.Digest
	for _, id := range ids {
		id = strings.TrimPrefix(strings.ToLower(id), "sha256:")
		if len(id) < minPrefix {
			return nil, exitf(codeRefused, "%q: want at least %d digits of an ID, got %d; nothing is revoked; next: %s", id, minPrefix, len(id), a.command("caps"))
		}
		found := make(map[hashpipe.Digest]bool)
		for _, k := range caps {
			if kind == capstore.KindClaim && len(id) >= minPrefix && strings.HasPrefix(k.ID.String(), id) {
				found[k.Claim] = true
			}
			for _, d := range identities(k, kind) {
				if len(id) >= minPrefix && strings.HasPrefix(d.String(), id) {
					found[d] = true
				}
			}
		}
		if d, err := hashpipe.ParseDigest(id); err == nil && len(found) == 0 {
			list = append(list, d)
			continue
		}
		if len(found) != 1 {
			return nil, exitf(codeRefused, "%q names %d things of kind %s in the store, want exactly 1; nothing is revoked; next: %s", id, len(found), kind, a.command("caps", "-o", "json"))
		}
		for d := range found {
			if !slices.Contains(list, d) {
				list = append(list, d)
			}
		}
	}
	return list, nil
}

// identities are what revocations of a kind can name of a capability.
func identities(k control.Capability, kind capstore.Kind) []hashpipe.Digest {
	switch kind {
	case capstore.KindCapability:
		return append(slices.Clone(k.DerivedFrom), k.ID)
	case capstore.KindClaim:
		return []hashpipe.Digest{k.Claim}
	case capstore.KindSBA:
		return []hashpipe.Digest{k.SBA}
	case capstore.KindPublisher:
		return keyDigests(k.Publisher)
	case capstore.KindMint:
		return keyDigests(append(slices.Clone(k.DelegatedBy), k.Minter)...)
	case capstore.KindImage:
		return []hashpipe.Digest{k.Environment}
	case capstore.KindFile:
		var list []hashpipe.Digest
		for _, f := range k.Files {
			list = append(list, f.SHA256)
		}
		return list
	}
	return nil
}

func keyDigests(ids ...dsse.KeyID) (list []hashpipe.Digest) {
	for _, id := range ids {
		if d, err := hashpipe.ParseDigest(string(id)); err == nil {
			list = append(list, d)
		}
	}
	return list
}
