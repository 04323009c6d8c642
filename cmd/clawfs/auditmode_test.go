package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/fs"
)

func TestParseUntil(t *testing.T) {
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"72h":                       "2026-02-03T12:00:00Z",
		"720h":                      "2026-03-02T12:00:00Z",
		"1s":                        "2026-01-31T12:00:01Z",
		"2026-02-01":                "2026-02-01T00:00:00Z",
		"2026-02-01T01:00:00+02:00": "2026-01-31T23:00:00Z",
	} {
		if got, err := parseUntil(text, now); err != nil || got.Format(time.RFC3339) != want {
			t.Errorf("parseUntil(%q) = %v, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "0s", "-1h", "72", "3d", "720h1ns", "2026-01-31", "2026-01-31T12:00:00Z", "2026-03-03", "2026-02-01 12:00", "tomorrow", "9999999h", "2026-02-30"} {
		if got, err := parseUntil(text, now); err == nil {
			t.Errorf("parseUntil(%q) = %v, want an error", text, got)
		}
	}
}

// A record cannot prolong audit mode beyond what a flag could have asked for.
func TestRecordBoundsAuditMode(t *testing.T) {
	s := config.State(filepath.Join(t.TempDir(), "state"))
	if err := os.Mkdir(string(s), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.MakeRun(); err != nil {
		t.Fatal(err)
	}
	r := newRecord("/srv", "/models", false, control.MountOptions{AuditUntil: time.Now().Add(maxAudit + time.Hour)})
	if err := r.write(s); err != nil {
		t.Fatal(err)
	}
	if got, err := readRecord(s, r.ID); err == nil {
		t.Errorf("readRecord of 30 days and an hour of audit mode = %+v, want an error", got)
	}
	r.AuditUntil = time.Now().Add(maxAudit)
	if err := r.write(s); err != nil {
		t.Fatal(err)
	}
	if _, err := readRecord(s, r.ID); err != nil {
		t.Errorf("readRecord of 30 days of audit mode: %v", err)
	}
	// It is told at once and each hour, and its end is for good.
	var log bytes.Buffer
	p := &mountProcess{state: s, record: r, auditUntil: r.AuditUntil, log: slog.New(slog.NewTextHandler(&log, nil))}
	for range 3 {
		p.watchAudit()
	}
	p.reminded = p.reminded.Add(-remindEvery)
	p.watchAudit()
	if n := strings.Count(log.String(), "AUDIT MODE: "); n != 2 {
		t.Errorf("told %d times in an hour, want twice:\n%s", n, &log)
	}
	p.auditUntil = time.Now()
	p.watchAudit()
	p.watchAudit()
	if n := strings.Count(log.String(), "AUDIT MODE is over"); n != 1 || !p.auditUntil.IsZero() {
		t.Errorf("its end was told %d times, want once:\n%s", n, &log)
	}
	if now, err := readRecord(s, r.ID); err != nil || !now.AuditUntil.IsZero() {
		t.Errorf("the record after the end of audit mode = %+v, %v, want it gone", now, err)
	}
}

// Audit mode is shown wherever somebody may look, serves and tells what would be
// refused, and ends by itself.
func TestAuditMode(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"good.bin": "granted"})
	r.file("good.bin", "granted")
	r.file("bad.bin", "other bytes")
	got := r.run("mount", "-q", "--mode", "audit", "--audit-until", "15s", r.src, r.mnt)
	if got.code != 0 || !strings.Contains(got.stderr, "warning: AUDIT MODE at "+r.mnt+" until ") || !strings.Contains(got.stderr, r.state.MountLog(mountID(r.mnt))) {
		t.Errorf("mount -q --mode audit: exit code %d, %q, want a warning with the end and the log", got.code, got.stderr)
	}
	record, err := readRecord(r.state, mountID(r.mnt))
	if err != nil || record.AuditUntil.IsZero() {
		t.Fatalf("record = %+v, %v, want audit mode in it", record, err)
	}
	if !r.opens("good.bin", "granted") || !r.opens("bad.bin", "other bytes") {
		t.Error("audit mode refuses a file")
	}
	loud := func(s control.Status, text string) bool {
		return len(s.Warnings) == 1 && strings.Contains(s.Warnings[0], "AUDIT MODE at "+r.mnt) && strings.Contains(s.Warnings[0], "clawfs umount "+r.mnt) &&
			strings.Contains(text, "warning: AUDIT MODE") && strings.Contains(text, "audit until "+record.AuditUntil.Format(time.RFC3339))
	}
	r.eventually("status is loud and counts", func() bool {
		s := r.status()
		m := s.Mounts[0].Report
		return loud(s, r.ok("status")) && m != nil && m.Mode == modeAudit && m.AuditUntil.Equal(record.AuditUntil) && m.Counters["auditServed"] > 0
	})
	r.eventually("metrics are loud and count", func() bool {
		text := r.ok("metrics")
		return metric(text, `clawfs_mount_audit_mode{mount="`+r.mnt+`"}`) == "1" && metric(text, "clawfs_warnings") == "1" &&
			metric(text, `clawfs_mount_audit_until_seconds{mount="`+r.mnt+`"}`) != "0" && metric(text, `clawfs_opens_total{mount="`+r.mnt+`",result="audited"}`) == "1"
	})
	r.eventually("what would be refused is in the log", func() bool {
		return slices.ContainsFunc(auditLines(t, r.state.MountLog(mountID(r.mnt))), func(l auditLine) bool {
			return l.Decision == string(fs.Audited) && l.Path == filepath.Join(r.mnt, "bad.bin") && l.Reason != "" && l.Next != ""
		})
	})
	if got := r.run("why", filepath.Join(r.mnt, "bad.bin")); got.code != codeRefused || !strings.Contains(got.stdout, "bad.bin: refused") || !strings.Contains(got.stdout, "AUDIT MODE: it opens all the same, unchecked, until 20") {
		t.Errorf("why of a file that audit mode serves: exit code %d,\n%s", got.code, got.stdout)
	}
	if text := r.ok("ls", "-l", r.mnt); !strings.Contains(text, "audited ") {
		t.Errorf("ls -l does not say what is audited:\n%s", text)
	}
	// A restart keeps mode and end; without a daemon it is loud as well.
	pid := r.serverPID()
	syscall.Kill(pid, syscall.SIGKILL)
	r.eventually("another process serves the mount", func() bool { now := r.serverPID(); return now != 0 && now != pid && r.isMounted() })
	r.stopDaemon(syscall.SIGKILL)
	if text := r.run("status").stdout; !strings.Contains(text, "warning: AUDIT MODE at "+r.mnt) || !strings.Contains(text, "audit until ") {
		t.Errorf("status without a daemon is not loud:\n%s", text)
	}
	if text := r.ok("metrics"); metric(text, `clawfs_mount_audit_mode{mount="`+r.mnt+`"}`) != "1" {
		t.Errorf("metrics without a daemon are not loud:\n%s", text)
	}
	r.startDaemon()
	// A read in the very moment of the end is one of a handle that is cut off (EIO).
	wait(t.Context(), time.After(time.Until(record.AuditUntil.Add(time.Second))))
	for end := record.AuditUntil.Add(10 * time.Second); r.opens("bad.bin", "other bytes") && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
	}
	if r.opens("bad.bin", "other bytes") || !r.opens("good.bin", "granted") {
		t.Error("after the end of audit mode: want the granted file served and the other one refused")
	}
	r.eventually("status is quiet, and the record has no audit mode", func() bool {
		now, err := readRecord(r.state, mountID(r.mnt))
		s := r.status()
		return err == nil && now.AuditUntil.IsZero() && len(s.Warnings) == 0 && s.Mounts[0].Report != nil && s.Mounts[0].Report.Mode == modeEnforce && !strings.Contains(r.ok("status"), "audit")
	})
	log, err := os.ReadFile(r.state.MountLog(mountID(r.mnt)))
	if err != nil {
		t.Fatal(err)
	}
	begun, over := strings.Count(string(log), `"msg":"AUDIT MODE: `), strings.Count(string(log), `"msg":"AUDIT MODE is over`)
	if begun != 2 || over != 1 {
		t.Errorf("the log tells %d times of audit mode and %d times of its end, want once for each of two starts and once", begun, over)
	}
}

// Audit mode follows links that are refused later. why does not take what such a
// link leads to for an answer about the link.
func TestWhyOfLinksInAuditMode(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"a.bin": "a", "b.bin": "b"})
	r.file("a.bin", "a")
	for link, target := range map[string]string{"b.bin": "a.bin", "out.bin": r.state.Policy(), "etc": "/etc"} {
		if err := os.Symlink(target, filepath.Join(r.src, link)); err != nil {
			t.Fatal(err)
		}
	}
	r.ok("mount", r.src, r.mnt)
	for _, link := range []string{"b.bin", "out.bin"} {
		r.refused(codeRefused, []string{"why", filepath.Join(r.mnt, link)}, link+": refused: a link")
	}
	r.ok("umount", r.mnt)
	r.ok("mount", "--mode", "audit", "--audit-until", "1h", r.src, r.mnt)
	r.refused(codeRefused, []string{"why", filepath.Join(r.mnt, "out.bin")}, "out.bin is a link that leads out of the mount")
	r.refused(codeRefused, []string{"why", filepath.Join(r.mnt, "etc", "passwd")}, filepath.Join(r.mnt, "etc")+" is a link that leads out of the mount")
	if text, link := r.ok("why", filepath.Join(r.mnt, "b.bin")), filepath.Join(r.mnt, "b.bin"); !strings.Contains(text, "AUDIT MODE: this is the answer for "+filepath.Join(r.mnt, "a.bin")+". The link "+link) {
		t.Errorf("why does not say that %s is a link:\n%s", link, text)
	}
	if text := r.ok("why", filepath.Join(r.mnt, "a.bin")); strings.Contains(text, "AUDIT MODE") {
		t.Errorf("why of a granted file that is no link:\n%s", text)
	}
}
