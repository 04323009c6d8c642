package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newLedgerSignCommand(a *app) *cobra.Command {
	var keyRefs []string
	var out string
	c := &cobra.Command{
		Use:   "sign LEDGER --key KEY --out FILE.sba",
		Short: "Sign a ledger: the result is the attestation to publish",
		Long: `Signs the ledger's very bytes in a DSSE envelope. The ledger names its
publisher's key; that key must be among the --key ones, because consumers
accept no other. Publish FILE.sba apart from the weights. Run ledger check
first: what you sign is a promise that the build gives the same bytes again.

A --key is a file, ssh-agent:KEY for a key that an ssh-agent holds (KEY is a
public key file, a key id or an SHA256: fingerprint), or SCHEME:KEY for a key
that the program clawfs-signer-SCHEME signs with, such as one of a KMS or an HSM
(docs/operations.md). A file whose name looks like one of these is file:NAME.`,
		Example: `  clawfs ledger sign langid.json --key acme --out langid.sba
  clawfs ledger sign langid.json --key acme --key ~/.ssh/id_ed25519 --out langid.sba
  clawfs ledger sign langid.json --key ssh-agent:acme.pub --out langid.sba
  clawfs ledger sign langid.json --key awskms:alias/acme --out langid.sba`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := readLedger(args[0])
			if err != nil {
				return err
			}
			var keys []dsse.Signer
			for _, ref := range keyRefs {
				key, err := a.openSigner(c.Context(), ref)
				if err != nil {
					return err
				}
				keys = append(keys, key)
			}
			envelope, signers, err := signLedger(c.Context(), l, keys)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if err := a.writeResult(out, envelope); err != nil {
				return err
			}
			if out == "-" {
				return nil
			}
			result := struct {
				SBA     string          `json:"sba"`
				Digest  hashpipe.Digest `json:"digest"`
				KeyIDs  []dsse.KeyID    `json:"keyids"`
				Model   string          `json:"model"`
				Version string          `json:"version"`
			}{out, l.Digest(), signers, l.Statement().Predicate.Model, l.Statement().Predicate.Version}
			return a.print(result, func() {
				a.printf("signed %s %s as %s\n", result.Model, result.Version, out)
				a.printf("sba digest  %s\n", result.Digest)
				for _, id := range signers {
					a.printf("key id      %s\n", id)
				}
			})
		},
	}
	c.Flags().StringArrayVar(&keyRefs, "key", nil, keyHelp+" (repeat for more signatures)")
	c.Flags().StringVar(&out, "out", "", "`file` to write, - for standard output")
	c.MarkFlagRequired("key")
	c.MarkFlagRequired("out")
	return c
}

// signLedger signs l with keys and reads the result back as a consumer would.
func signLedger(ctx context.Context, l verifier.Ledger, keys []dsse.Signer) ([]byte, []dsse.KeyID, error) {
	publisher := l.Statement().Predicate.Publisher.KeyID
	var ids []dsse.KeyID
	var public []dsse.PublicKey
	named := false
	for _, k := range keys {
		ids = append(ids, k.Public().ID())
		public = append(public, k.Public())
		named = named || k.Public().ID() == publisher
	}
	if !named {
		return nil, nil, exitf(codeSignature, "the ledger names publisher key %s, but would be signed by %s; next: clawfs ledger new --key PUBLIC.pub, or sign with the named key", publisher, ids)
	}
	envelope, err := dsse.SignContext(ctx, dsse.PayloadType, l.Payload(), keys...)
	if err != nil {
		return nil, nil, signed(err)
	}
	parsed, err := dsse.Parse(envelope)
	if err != nil {
		return nil, nil, fmt.Errorf("reading back the signature: %w", err)
	}
	if _, _, err := parsed.Verify(dsse.PayloadType, public, len(keys)); err != nil {
		return nil, nil, fmt.Errorf("reading back the signature: %w", err)
	}
	return envelope, ids, nil
}
