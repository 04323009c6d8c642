package main

import "github.com/spf13/cobra"

// verbs are the constructors of all verbs, one file each. Cobra sorts them
// for --help.
var verbs = []func(*app) *cobra.Command{
	newInitCommand,
	newKeygenCommand,
	newLedgerCommand,
	newLsCommand,
	newManCommand,
	newPublisherCommand,
	newValidateCommand,
	newVersionCommand,
	newWhyCommand,
}
