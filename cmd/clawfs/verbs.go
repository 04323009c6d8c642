package main

import "github.com/spf13/cobra"

// verbs are the constructors of all verbs, one file each. Cobra sorts them
// for --help.
var verbs = []func(*app) *cobra.Command{
	newBuildRunCommand,
	newCapsCommand,
	newDaemonCommand,
	newGrantCommand,
	newInitCommand,
	newJobCommand,
	newJobsCommand,
	newKeyCommand,
	newKeygenCommand,
	newLedgerCommand,
	newLsCommand,
	newManCommand,
	newMemoryCommand,
	newMountCommand,
	newMountProcessCommand,
	newPolicyCommand,
	newPublisherCommand,
	newRecordCommand,
	newRevokeCommand,
	newStatusCommand,
	newUmountCommand,
	newValidateCommand,
	newVersionCommand,
	newWhyCommand,
	newWitnessCommand,
	newWorkerCommand,
}
