package main

import "github.com/spf13/cobra"

// verbs are the constructors of all verbs, one file each. Cobra sorts them
// for --help.
var verbs = []func(*app) *cobra.Command{
	newBuildRunCommand,
	newCapsCommand,
	newDaemonCommand,
	newDelegateCommand,
	newExportCommand,
	newGrantCommand,
	newImportCommand,
	newInitCommand,
	newJobCommand,
	newJobsCommand,
	newKeygenCommand,
	newLedgerCommand,
	newLsCommand,
	newManCommand,
	newMountCommand,
	newMountProcessCommand,
	newPublisherCommand,
	newRecordCommand,
	newRevokeCommand,
	newStatusCommand,
	newUmountCommand,
	newValidateCommand,
	newVersionCommand,
	newWhyCommand,
	newWorkerCommand,
}
