package main

import "github.com/spf13/cobra"

// verbGroup is a part of what --help lists. Cobra sorts the verbs of each.
type verbGroup struct {
	id, title string // without a title: the rest, which cobra names itself
	verbs     []func(*app) *cobra.Command
}

// verbGroups are the constructors of all verbs, one file each, in the order in
// which a newcomer meets them.
var verbGroups = []verbGroup{
	{"serve", "Serve files:", []func(*app) *cobra.Command{
		newInitCommand,
		newMountCommand,
		newUmountCommand,
		newDaemonCommand,
		newStatusCommand,
		newMetricsCommand,
		newStoreCommand,
		newLsCommand,
		newWhyCommand,
	}},
	{"grant", "Earn capabilities, and take them back:", []func(*app) *cobra.Command{
		newPublisherCommand,
		newGrantCommand,
		newJobCommand,
		newJobsCommand,
		newRecordCommand,
		newCapsCommand,
		newRevokeCommand,
		newValidateCommand,
	}},
	{"publish", "Publish a model:", []func(*app) *cobra.Command{
		newKeygenCommand,
		newKeyCommand,
		newLedgerCommand,
	}},
	{"share", "Share trust with others:", []func(*app) *cobra.Command{
		newPolicyCommand,
		newPushCommand,
		newPullCommand,
		newSearchCommand,
		newBundleCommand,
		newExportCommand,
		newImportCommand,
		newDelegateCommand,
		newRevocationsCommand,
		newAffectedCommand,
		newDisputesCommand,
		newResolveCommand,
		newMemoryCommand,
		newLogCommand,
		newWitnessCommand,
	}},
	{"", "", []func(*app) *cobra.Command{
		newVersionCommand,
		newBuildRunCommand,
		newManCommand,
		newMountProcessCommand,
		newStoreProbeCommand,
		newWorkerCommand,
	}},
}
