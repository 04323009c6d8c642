package main

import "testing"

// What a package or a daemon proposes goes to the state directory that the user named.
func TestNextCommandNamesTheState(t *testing.T) {
	a := &app{state: "/srv/a b"}
	const with = "clawfs --state '/srv/a b' "
	for said, want := range map[string]string{
		"it is lost; next: clawfs memory reset --yes":                              "it is lost; next: " + with + "memory reset --yes",
		"put it back; next: put it back, or, if so, clawfs memory reset":           "put it back; next: put it back, or, if so, " + with + "memory reset",
		"edited; next: clawfs policy install P, or clawfs policy edit":             "edited; next: " + with + "policy install P, or " + with + "policy edit",
		"old; next: clawfs umount D, then clawfs mount S D":                        "old; next: " + with + "umount D, then " + with + "mount S D",
		"no daemon; next: " + with + "daemon (clawfs mount and clawfs grant do)":   "no daemon; next: " + with + "daemon (clawfs mount and clawfs grant do)",
		"next: clawfs ledger sign F --key K, clawfs log add F, clawfs policy sign": "next: clawfs ledger sign F --key K, clawfs log add F, clawfs policy sign",
		"clawfs caps says so":                     "clawfs caps says so",
		"no job; next: clawfs jobs, clawfs jobsx": "no job; next: " + with + "jobs, clawfs jobsx",
	} {
		if got := a.here(said); got != want {
			t.Errorf("here(%q) =\n%q, want\n%q", said, got, want)
		}
	}
	const said = "no job; next: clawfs jobs"
	if got := (&app{}).here(said); got != said {
		t.Errorf("without a state directory: here(%q) = %q", said, got)
	}
}
