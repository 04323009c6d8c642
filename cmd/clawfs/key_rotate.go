package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// rotation is a rotation record as the verbs show it.
type rotation struct {
	Record    string          `json:"record"`
	Digest    hashpipe.Digest `json:"digest"`
	Role      verifier.Role   `json:"role"`
	Name      string          `json:"name"`
	Old       dsse.KeyID      `json:"old"`
	New       dsse.KeyID      `json:"new"`
	NotBefore verifier.Time   `json:"notBefore"`
	Reason    string          `json:"reason"`
}

func shownRotation(path string, r verifier.Rotation) rotation {
	p := r.Predicate()
	return rotation{path, r.Digest(), p.Role, p.Name, p.Old.KeyID, p.New.KeyID, p.NotBefore, p.Reason}
}

func newKeyRotateCommand(a *app) *cobra.Command {
	var oldRef, newRef, role, name, notBefore, reason, out string
	c := &cobra.Command{
		Use:   "rotate --old KEY --new KEY --role ROLE --name NAME --out FILE",
		Short: "Sign a record that one key takes another's place",
		Long: `Writes a rotation record that both keys sign; give it to whoever trusts the old
one, for clawfs key adopt. NAME is what their policies call you: the publisher's
rule, or the operator. It changes no policy.

ROLE is publisher (signs ledgers), mint (signs capabilities) or revoker (signs
revocations). --old and --new are keys as the --key of ledger sign names them.
A key that was stolen cannot be rotated away from: whoever has it can sign such a
record too. Have it revoked, and the new one trusted by hand.`,
		Example: `  clawfs keygen --out acme-2027
  clawfs key rotate --old acme --new acme-2027 --role publisher --name acme --out acme.rotation
  clawfs key rotate --old ssh-agent:acme.pub --new awskms:alias/acme --role publisher --name acme \
      --not-before 2027-01-01T00:00:00Z --reason "moved to a KMS" --out acme.rotation`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			now := time.Now()
			start := verifier.At(now)
			if notBefore != "" {
				if err := start.UnmarshalText([]byte(notBefore)); err != nil {
					return exitf(codeUsage, "--not-before: %w", err)
				}
			}
			old, err := a.openSigner(c.Context(), oldRef)
			if err != nil {
				return err
			}
			fresh, err := a.openSigner(c.Context(), newRef)
			if err != nil {
				return err
			}
			st, err := verifier.NewRotation(verifier.Role(role), name, old.Public(), fresh.Public(), start.Time(), reason, now)
			if err != nil {
				return exit(codeUsage, err)
			}
			r, envelope, err := signRotation(c.Context(), st, old, fresh)
			if err != nil {
				return err
			}
			if err := a.writeResult(out, envelope); err != nil {
				return err
			}
			if out == "-" {
				return nil
			}
			result := shownRotation(out, r)
			return a.print(result, func() {
				a.printf("record   %s\n", result.Record)
				a.printf("old key  %s\n", result.Old)
				a.printf("new key  %s, from %s\n", result.New, result.NotBefore)
				a.printf("next     whoever trusts %s %s: clawfs key adopt %s\n", result.Role, result.Name, shellWord(result.Record))
			})
		},
	}
	f := c.Flags()
	f.StringVar(&oldRef, "old", "", "the `key` that is trusted, which authorises the new one")
	f.StringVar(&newRef, "new", "", "the `key` that takes its place")
	f.StringVar(&role, "role", "", "`role` of the keys: publisher, mint or revoker")
	completes(c, "role", []string{string(verifier.RolePublisher), string(verifier.RoleMint), string(verifier.RoleRevoker)})
	f.StringVar(&name, "name", "", "`name` of the publisher's rule or of the operator in the policies")
	f.StringVar(&notBefore, "not-before", "", "`time` from which the new key counts, such as 2027-01-01T00:00:00Z (default: at once)")
	f.StringVar(&reason, "reason", "scheduled rotation", "`text` of one line, for whoever adopts it")
	f.StringVar(&out, "out", "", "`file` to write, - for standard output")
	for _, name := range []string{"old", "new", "role", "name", "out"} {
		c.MarkFlagRequired(name)
	}
	return c
}

// signRotation signs st and reads the result back as whoever adopts it does.
func signRotation(ctx context.Context, st verifier.RotationStatement, old, fresh dsse.Signer) (verifier.Rotation, []byte, error) {
	envelope, err := verifier.SignRotation(ctx, st, old, fresh)
	if err != nil {
		return verifier.Rotation{}, nil, signed(err)
	}
	r, err := verifier.ParseRotation(envelope)
	if err != nil {
		return verifier.Rotation{}, nil, fmt.Errorf("reading back the record: %w", err)
	}
	return r, envelope, nil
}
