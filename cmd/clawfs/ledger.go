package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/hashpipe/durable"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func newLedgerCommand(a *app) *cobra.Command {
	return group("ledger", "Write down, try, sign and read build ledgers",
		`A build ledger is the publisher's promise of process: source commit, datasets,
environment image, stages, and the names of the outputs. It never holds a hash
of the weights: whoever receives it rebuilds them.

  lock     lists what an environment image has installed
  new      computes the digests and writes the ledger
  check    builds it twice here, before anybody signs it
  sign     makes the signed build attestation (SBA) to publish
  inspect  shows a ledger or an SBA`,
		newLedgerLockCommand(a), newLedgerNewCommand(a), newLedgerCheckCommand(a), newLedgerSignCommand(a), newLedgerInspectCommand(a))
}

// readLedger reads an unsigned ledger file.
func readLedger(path string) (verifier.Ledger, error) {
	data, err := readBounded(path, dsse.MaxEnvelope)
	if err != nil {
		return verifier.Ledger{}, err
	}
	l, err := verifier.ParseLedger(data)
	if err != nil {
		if _, sba := verifier.ParseSBA(data); sba == nil {
			return verifier.Ledger{}, exitf(codeRefused, "%s is signed already; this verb takes the ledger that `clawfs ledger new` wrote", path)
		}
		return verifier.Ledger{}, exitf(codeRefused, "%s: %w", path, err)
	}
	return l, nil
}

// createResult writes what a verb made to a file that may not exist, or to standard
// output for "-": then nothing else goes there.
func (a *app) createResult(path string, data []byte) error {
	if path == "-" {
		_, err := a.stdout.Write(data)
		return err
	}
	err := durable.Create(path, data, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists already, and is not overwritten; next: give another --out", shellWord(path))
	}
	return err
}

// writeResult writes data to path, or to standard output when path is "-".
func (a *app) writeResult(path string, data []byte) error {
	if path == "-" {
		_, err := a.stdout.Write(data)
		return err
	}
	if fi, err := os.Stat(path); err == nil && !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	return durable.Replace(path, data, 0o644)
}
