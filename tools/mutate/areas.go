package main

import "regexp"

// area is a part of clawfs that decides, and the tests that must notice a
// fault in it.
type area struct {
	name  string
	parts []part
}

// part is one package. Its own tests are asked first; a fault that they let
// pass is shown to the tests of the packages that use it.
type part struct {
	folder string
	files  []string // patterns of names; none: all files
	users  []string
}

// unasked are tests that are not shown any fault: they compile their package
// once more, without the mutants; or they run a race for seconds, move gigabytes
// or load other people's programs, over what quicker tests of the suite show.
var unasked = regexp.MustCompile(`^Test(StormSeesPlantedFaults|Storm|StormOnLargeFile|Force|Peek|SourceABA|ApprovedContentsNeverMix|WriterAgainst.*|` +
	`BudgetChurn|RevokeChurn|BudgetHoldsAgainstMappings|FullDisk|PrivateDiskFull|AuditModeEndsUnderLoad|AuditModeAgainstWriter|AuditModeLargeFile|` +
	`FioVerify|Posix|TamperedDuring.*|Killed.*|HugeDirectory|LyingStorage|HangingStorage|StallingStorage|ManyCapabilitiesOfOneResult|PreverifyHuge|` +
	`KillWhileAdmitting|DamageAnywhere|CrashInSwap|LongReadsHoldUpNothing|ManyConflicts|ManyLongLists|RetrustConcurrently|` +
	`Guest.*|Real.*|Resume.*|LargeFile|ManyFilesAtOnce|SmallFilesPass.*|RevokedAtAnyMomentOfAnOpen|AbandonWhileMeasuring)$`)

var areas = []area{
	{"hashpipe", []part{
		{folder: "hashpipe", users: []string{"fs"}},
		{folder: "hashpipe/cas"},
		{folder: "hashpipe/durable", users: []string{"cmd/clawfs/internal/witness"}},
	}},
	{"verifier", []part{
		{folder: "verifier"},
		{folder: "verifier/dsse", users: []string{"verifier", "capstore"}},
		{folder: "verifier/tree", users: []string{"verifier", "rebuild/fetch"}},
		{folder: "verifier/tlog", users: []string{"verifier/tlog/tiles", "verifier"}},
		{folder: "verifier/pattern", users: []string{"verifier", "capstore"}},
	}},
	{"capstore", []part{
		{folder: "capstore", files: []string{
			"bases.go", "capability.go", "chain.go", "fact.go", "head.go", "key.go", "list.go", "quorum.go", "restrict.go",
			"revocation.go", "rows.go", "statement.go", "terms.go", "view.go", "lens.go", "lookup.go",
		}, users: []string{"fs", "rebuild/internal/mint"}},
	}},
	{"fs", []part{
		{folder: "fs", files: []string{
			"acl.go", "auditmode.go", "decide.go", "errno.go", "link.go", "lookup.go", "measure.go", "open.go", "pieces.go",
			"poll.go", "read.go", "release.go", "revoke.go", "seal.go", "sighting.go", "source.go", "state.go",
		}},
	}},
	{"mint", []part{
		{folder: "rebuild/internal/mint"},
	}},
}
