package main

import "github.com/spf13/cobra"

// verbs are the constructors of all verbs, one file each. Cobra sorts them
// for --help.
var verbs = []func(*app) *cobra.Command{
	newDaemonCommand,
	newInitCommand,
	newKeygenCommand,
	newLedgerCommand,
	newLsCommand,
	newManCommand,
	newMountCommand,
	newMountProcessCommand,
	newPublisherCommand,
	newUmountCommand,
	newValidateCommand,
	newVersionCommand,
	newWhyCommand,
	newWorkerCommand,
}
