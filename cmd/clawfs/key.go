package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/verifier/dsse"
)

func newKeyCommand(a *app) *cobra.Command {
	return group("key", "Show keys and replace them",
		`A key is replaced by a rotation record: the old key authorises it, and the new
one signs it too, to show that somebody holds it. Whoever trusts the old key
adopts the record into their policy. New key pairs are made by clawfs keygen.`,
		newKeyShowCommand(a), newKeyRotateCommand(a), newKeyAdoptCommand(a))
}

// shownKey is a key in every form in which something asks for it.
type shownKey struct {
	KeyID       dsse.KeyID     `json:"keyid"`
	Algorithm   string         `json:"algorithm"`
	Fingerprint string         `json:"fingerprint"`
	OpenSSH     string         `json:"openssh"`
	PublicKey   dsse.PublicKey `json:"publicKey"`
	PEM         string         `json:"pem"`
}

func newKeyShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show KEY",
		Short: "Show a key's id and its public half in every form",
		Long: `KEY is a public or private key file, or a key as the --key of ledger sign names
it: ssh-agent:KEY, SCHEME:KEY, file:PATH. Nothing secret is printed.

  key id       the SHA-256 of the public key, as ledgers and policies name it
  fingerprint  as ssh-add -l shows it
  openssh      a line of authorized_keys
  policy       as the keys of policy.json carry it
  PEM          a file that every verb takes`,
		Example: `  clawfs key show acme.pub
  clawfs key show ssh-agent:SHA256:Jf… -o json | jq -j .pem >acme.pub
  clawfs key show awskms:alias/acme`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			key, err := a.publicHalf(c, args[0])
			if err != nil {
				return err
			}
			line, fingerprint := key.OpenSSH()
			shown := shownKey{key.ID(), key.Algorithm(), fingerprint, line, key, string(key.PEM())}
			policy, err := key.MarshalText()
			if err != nil {
				return err
			}
			return a.print(shown, func() {
				a.printf("key id       %s\n", shown.KeyID)
				a.printf("algorithm    %s\n", shown.Algorithm)
				a.printf("fingerprint  %s\n", shown.Fingerprint)
				a.printf("openssh      %s\n", shown.OpenSSH)
				a.printf("policy       %s\n", policy)
				a.printf("%s", shown.PEM)
			})
		},
	}
}

// publicHalf returns the public key of a file of either half, or of a key that
// openSigner knows.
func (a *app) publicHalf(c *cobra.Command, ref string) (dsse.PublicKey, error) {
	path := strings.TrimPrefix(ref, "file:")
	if _, err := os.Lstat(path); err == nil {
		text, err := readBounded(path, maxKeyFile)
		if err != nil {
			return dsse.PublicKey{}, err
		}
		if !strings.Contains(string(text), "PRIVATE KEY-----") {
			return readPublicKey(path)
		}
	}
	key, err := a.openSigner(c.Context(), ref)
	if err != nil {
		return dsse.PublicKey{}, err
	}
	return key.Public(), nil
}
