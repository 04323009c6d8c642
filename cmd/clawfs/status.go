package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/fs"
)

func newStatusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the daemon, the mounts, the queue and the store",
		Long: `status shows what runs for this state directory. Without a daemon it shows the
mounts that go on without one, and ends with exit code 7. With a daemon that cannot
open its store it says why, and ends with exit code 3.`,
		Example: "  clawfs status\n  clawfs status -o json | jq -r '.warnings[]?'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := a.client().Status(c.Context())
			var gone *control.UnreachableError
			if errors.As(err, &gone) && !errors.Is(err, os.ErrPermission) {
				return a.statusWithoutDaemon(err)
			}
			if err != nil {
				return a.answered(err)
			}
			if err := a.print(s, func() { a.showStatus(s) }); err != nil {
				return err
			}
			if s.Store != nil {
				return &quietExit{codeRefused}
			}
			return nil
		},
	}
}

func (a *app) showStatus(s control.Status) {
	if s.Store != nil {
		a.showTrouble(s)
		a.showMounts(s.Mounts, s.Version, s.Protocol)
		a.showWarnings(s.Warnings)
		return
	}
	var jobs []string
	for _, state := range slices.Sorted(maps.Keys(s.Jobs)) {
		jobs = append(jobs, fmt.Sprintf("%d %s", s.Jobs[state], state))
	}
	counts := fmt.Sprintf("%d live, %d expired, %d revoked", s.Capabilities.Live, s.Capabilities.Expired, s.Capabilities.Revoked)
	for _, c := range []struct {
		n    int
		what string
	}{{s.Capabilities.Waiting, capWaiting}, {s.Capabilities.Disputed, capDisputed}, {s.Capabilities.Stale, capStale}} {
		if c.n > 0 {
			counts += fmt.Sprintf(", %d %s", c.n, c.what)
		}
	}
	a.table([]string{"daemon", fmt.Sprintf("pid %d, version %s, up %s", s.PID, s.Version, time.Since(s.StartedAt).Round(time.Second))}, [][]string{
		{"state", s.State},
		{"uses", fmt.Sprintf("%s, %d descriptors, %d connections", humanize.IBytes(uint64(s.Resources.ResidentBytes)), s.Resources.Descriptors, s.Resources.Connections)},
		{"jobs", dash(strings.Join(jobs, ", "))},
		{"capabilities", counts},
		{"revocations", strconv.Itoa(s.Revocations)},
		{"rejected rows", strconv.Itoa(len(s.Rejected))},
	})
	a.showMounts(s.Mounts, s.Version, s.Protocol)
	for _, r := range s.Rejected {
		a.printf("rejected row %s: %s\n", printable(r.Key), printable(r.Reason))
	}
	a.showWarnings(s.Warnings)
}

// showTrouble says first what is wrong, and then what works all the same.
func (a *app) showTrouble(s control.Status) {
	t := s.Store
	a.printf("NO STORE since %s: nothing new is granted, and mounts serve what they know\n", stamp(t.Since))
	a.printf("  why:   %s: %s\n", t.Cause, printable(t.Error))
	_, next, _ := strings.Cut(a.here("next: "+t.Next), "next: ")
	a.printf("  next:  %s\n", printable(next))
	a.printf("  again: the daemon tries to open it at %s\n", stamp(t.RetryAt))
	if t.Waiting > 0 {
		a.printf("  kept:  %d revocations and lists that were acknowledged without it; it takes them when it opens\n", t.Waiting)
	}
	a.table([]string{"daemon", fmt.Sprintf("pid %d, version %s, up %s", s.PID, s.Version, time.Since(s.StartedAt).Round(time.Second))}, [][]string{
		{"state", s.State},
	})
}

func (a *app) showWarnings(list []string) {
	for _, w := range list {
		a.printf("warning: %s\n", printable(a.here(w)))
	}
}

// showMounts shows mounts, and which of them a program of another version than the
// daemon's serves; version is empty if there is no daemon.
func (a *app) showMounts(mounts []control.Mount, version, protocol string) {
	if len(mounts) == 0 {
		a.printf("no mounts\n")
		return
	}
	var rows [][]string
	for _, m := range mounts {
		tier, granted, refused := "-", "-", "-"
		if r := m.Report; r != nil {
			tier = r.Tier
			granted = strconv.FormatInt(r.Counters["granted"], 10)
			refused = strconv.FormatInt(r.Counters["refused"], 10)
		}
		mode := modeEnforce
		if until := m.AuditEnd(); !until.IsZero() {
			mode = "audit until " + until.UTC().Format(time.RFC3339)
		}
		rows = append(rows, []string{m.Mountpoint, m.State, mode, tier, strconv.Itoa(m.PID), granted, refused, m.Source, dash(strings.Join(append(a.versionNotes(m, version, protocol), a.mountNotes(m)...), "; "))})
	}
	a.table([]string{"MOUNT", "STATE", "MODE", "TIER", "PID", "GRANTED", "REFUSED", "SOURCE", "NOTE"}, rows)
}

// versionNotes tells of a mount process that is older or newer than the daemon: it
// goes on until it is mounted again.
func (a *app) versionNotes(m control.Mount, version, protocol string) []string {
	r := m.Report
	if version == "" || r == nil || r.Version == version && r.Protocol == protocol {
		return nil
	}
	note := fmt.Sprintf("served by version %s, the daemon is %s", cmp.Or(r.Version, "unknown"), version)
	if r.Protocol != protocol {
		note += fmt.Sprintf(" (control protocol %s and %s)", cmp.Or(r.Protocol, "unknown"), protocol)
	}
	return []string{note + fmt.Sprintf("; next, when its readers have ended: %s, then %s", a.command("umount", m.Mountpoint), a.command("mount", m.Source, m.Mountpoint))}
}

// mountNotes is what a person should know of a mount beside the columns.
func (a *app) mountNotes(m control.Mount) (notes []string) {
	if m.Restarts > 0 {
		notes = append(notes, fmt.Sprintf("restarted %d times", m.Restarts))
	}
	if m.Records > 0 {
		notes = append(notes, fmt.Sprintf("has %d records of the store", m.Records))
	}
	if m.State == mountLive && !m.Resumable {
		notes = append(notes, "if its process dies, what is open fails")
	}
	if r := m.Report; r != nil {
		if r.Stale {
			notes = append(notes, "without the daemon's stream")
		}
		if r.MaxDaemonAgeSeconds > 0 {
			notes = append(notes, fmt.Sprintf("opens only while the daemon was heard within %v", time.Duration(r.MaxDaemonAgeSeconds)*time.Second))
		}
		if r.Private > 0 {
			notes = append(notes, fmt.Sprintf("private files: %d, %s", r.Private, humanize.IBytes(uint64(r.PrivateBytes))))
		}
		if r.Unsealed > 0 {
			notes = append(notes, fmt.Sprintf("not sealed: %d", r.Unsealed))
		}
		if r.PreverifyPending > 0 {
			notes = append(notes, fmt.Sprintf("still to verify: %d", r.PreverifyPending))
		}
		if r.TierReason != "" && r.Seal != "off" {
			notes = append(notes, r.Tier+": "+r.TierReason)
		}
		if r.Tier == fs.TierBlocks && r.Seal == "reflink" && strings.Contains(r.TierReason, "FICLONE") {
			notes = append(notes, fmt.Sprintf("next: %s, then %s", a.command("umount", m.Mountpoint), a.command("mount", "--seal", "copy", m.Source, m.Mountpoint)))
		}
	}
	if m.LastError != "" {
		notes = append(notes, m.LastError)
	}
	return notes
}

// statusWithoutDaemon shows what the state directory says by itself.
func (a *app) statusWithoutDaemon(unreachable error) error {
	mounts, warnings, err := a.lookWithoutDaemon()
	if err != nil {
		return err
	}
	if err := a.print(struct {
		Daemon   *int            `json:"daemon"` // null: none answers
		Mounts   []control.Mount `json:"mounts"`
		Warnings []string        `json:"warnings,omitempty"`
	}{nil, mounts, warnings}, func() { a.showMounts(mounts, "", ""); a.showWarnings(warnings) }); err != nil {
		return err
	}
	return a.answered(unreachable)
}

// lookWithoutDaemon is what the state directory says by itself.
func (a *app) lookWithoutDaemon() (mounts []control.Mount, warnings []string, err error) {
	records, _, err := readRecords(a.config())
	if err != nil {
		return nil, nil, err
	}
	s := newSupervisor(a.config(), nil, nil)
	for _, r := range records {
		s.mounts[r.ID] = &watched{record: r, state: mountDead}
		if _, err := s.look(r); err != nil {
			return nil, nil, err
		}
	}
	mounts = s.list()
	policy, err := a.config().LoadPolicy()
	warnings = slices.Concat(policyWarnings(policy, err, time.Now()), memoryWarnings(a.config()), auditWarnings(mounts))
	if settings, err := a.config().LoadSettings(os.Geteuid()); err == nil && settings.Mount.MaxDaemonAge > 0 && len(mounts) > 0 {
		warnings = append(warnings, fmt.Sprintf("mounts open nothing new once the daemon has been silent for %v (mount.max_daemon_age); next: clawfs daemon", time.Duration(settings.Mount.MaxDaemonAge)))
	}
	return mounts, warnings, nil
}
