package main

import "github.com/spf13/cobra"

// verbs are the constructors of all verbs, one file each. Cobra sorts them
// for --help.
var verbs = []func(*app) *cobra.Command{
	newAffectedCommand,
	newBuildRunCommand,
	newBundleCommand,
	newCapsCommand,
	newDaemonCommand,
	newDisputesCommand,
	newExportCommand,
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
	newResolveCommand,
	newRevocationsCommand,
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
