package main

import "github.com/spf13/cobra"

// verbs are the constructors of all verbs, one file each. Cobra sorts them
// for --help.
var verbs = []func(*app) *cobra.Command{
	newBuildRunCommand,
	newBundleCommand,
	newCapsCommand,
	newDaemonCommand,
	newGrantCommand,
	newInitCommand,
	newJobCommand,
	newJobsCommand,
	newKeyCommand,
	newKeygenCommand,
	newLedgerCommand,
	newLogCommand,
	newLsCommand,
	newManCommand,
	newMemoryCommand,
	newMountCommand,
	newMountProcessCommand,
	newPolicyCommand,
	newPublisherCommand,
	newPullCommand,
	newPushCommand,
	newRecordCommand,
	newRevokeCommand,
	newSearchCommand,
	newStatusCommand,
	newUmountCommand,
	newValidateCommand,
	newVersionCommand,
	newWhyCommand,
	newWitnessCommand,
	newWorkerCommand,
}
