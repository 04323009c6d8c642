package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newKeygenCommand(a *app) *cobra.Command {
	var algorithm, out string
	c := &cobra.Command{
		Use:   "keygen --out PREFIX",
		Short: "Make a key pair: of a publisher, a root, a delegate, a revoker",
		Long: `Writes the private key to PREFIX (PKCS#8 PEM, readable by its owner only) and
the public key to PREFIX.pub (PEM), and prints the key's id: the SHA-256 of the
public key. Existing files are never overwritten.

Ed25519 is the default. Take ecdsa-p256 for ledgers that will be entered in a
Rekor v2 transparency log, which takes no pure Ed25519. OpenSSH keys made by
ssh-keygen work everywhere a key file is asked for, too.`,
		Example: `  clawfs keygen --out acme
  clawfs keygen --algorithm ecdsa-p256 --out acme-p256`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if algorithm != dsse.Ed25519 && algorithm != dsse.ECDSAP256 {
				return exitf(codeUsage, "--algorithm %q: want %s or %s", algorithm, dsse.Ed25519, dsse.ECDSAP256)
			}
			public, err := writeKeyPair(algorithm, out, out+".pub")
			if err != nil {
				return err
			}
			result := struct {
				Private   string     `json:"private"`
				Public    string     `json:"public"`
				KeyID     dsse.KeyID `json:"keyid"`
				Algorithm string     `json:"algorithm"`
			}{out, out + ".pub", public.ID(), algorithm}
			return a.print(result, func() {
				a.printf("private key  %s  (keep it: whoever can read it signs in your name)\n", result.Private)
				a.printf("public key   %s  (give it to whoever shall trust you)\n", result.Public)
				a.printf("key id       %s\n", result.KeyID)
			})
		},
	}
	c.Flags().StringVar(&algorithm, "algorithm", dsse.Ed25519, "`algorithm`: ed25519 or ecdsa-p256")
	completes(c, "algorithm", []string{dsse.Ed25519, dsse.ECDSAP256})
	c.Flags().StringVar(&out, "out", "", "`prefix` of the two files")
	c.MarkFlagRequired("out")
	return c
}

// writeKeyPair makes a key and writes both halves. Neither file may exist; if
// the second cannot be written, the first is removed.
func writeKeyPair(algorithm, privatePath, publicPath string) (dsse.PublicKey, error) {
	for _, path := range []string{privatePath, publicPath} {
		if _, err := os.Lstat(path); err == nil {
			return dsse.PublicKey{}, fmt.Errorf("%s exists already; a key is never overwritten; next: choose another --out", path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return dsse.PublicKey{}, err
		}
	}
	key, err := dsse.GenerateKey(algorithm)
	if err != nil {
		return dsse.PublicKey{}, err
	}
	text, err := key.PEM()
	if err != nil {
		return dsse.PublicKey{}, err
	}
	if err := durable.Create(privatePath, text, 0o600); err != nil {
		return dsse.PublicKey{}, err
	}
	if err := durable.Create(publicPath, key.Public().PEM(), 0o644); err != nil {
		return dsse.PublicKey{}, errors.Join(err, os.Remove(privatePath))
	}
	return key.Public(), nil
}
