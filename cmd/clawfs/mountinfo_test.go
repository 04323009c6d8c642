package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/cmd/clawfs/internal/config"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/fs"
)

func TestParseMountinfo(t *testing.T) {
	const text = `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
66 42 0:41 / /srv/a\040b\134c\011d ro,nosuid - fuse.clawfs clawfs ro,user_id=0
67 42 0:300 / /x rw shared:1 master:2 propagate_from:3 - tmpfs none rw
`
	got, err := parseMountinfo(strings.NewReader(text))
	want := []mountEntry{
		{36, device{98, 0}, "/mnt2", "ext3", "/dev/root"},
		{66, device{0, 41}, "/srv/a b\\c\td", "fuse.clawfs", "clawfs"},
		{67, device{0, 300}, "/x", "tmpfs", "none"},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("parseMountinfo = %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"x", "36 35 98:0 / /m rw", "36 35 98:0 / /m rw - ", "a 35 98:0 / /m rw - t s", "36 35 98 / /m rw - t s", "36 35 98:x / /m rw - t s"} {
		if got, err := parseMountinfo(strings.NewReader(bad + "\n")); err == nil {
			t.Errorf("parseMountinfo(%q) = %+v, want an error", bad, got)
		}
	}
	if list, err := mounts(); err != nil || len(list) == 0 {
		t.Errorf("mounts of this machine = %d, %v", len(list), err)
	}
}

func TestBelow(t *testing.T) {
	for _, tt := range []struct {
		path, dir string
		want      bool
	}{
		{"/a", "/a", true}, {"/a/b", "/a", true}, {"/a", "/", true},
		{"/ab", "/a", false}, {"/a", "/a/b", false}, {"/", "/a", false}, {"/b/a", "/a", false},
	} {
		if got := below(tt.path, tt.dir); got != tt.want {
			t.Errorf("below(%q, %q) = %v, want %v", tt.path, tt.dir, got, tt.want)
		}
	}
}

// A record is believed only under its own name: it makes the daemon mount.
func TestReadRecord(t *testing.T) {
	s := config.State(filepath.Join(t.TempDir(), "state"))
	if err := os.Mkdir(string(s), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.MakeRun(); err != nil {
		t.Fatal(err)
	}
	good := newRecord("/srv/models", "/models", false, control.MountOptions{Seal: "copy", PrivateBytes: 1 << 30})
	if err := good.write(s); err != nil {
		t.Fatal(err)
	}
	if got, err := readRecord(s, good.ID); err != nil || got != good {
		t.Fatalf("readRecord = %+v, %v, want %+v", got, err, good)
	}
	text, err := os.ReadFile(s.Mount(good.ID))
	if err != nil {
		t.Fatal(err)
	}
	other := mountID("/other")
	for name, spoil := range map[string]func() error{
		"another's name":  func() error { return os.WriteFile(s.Mount(other), text, 0o600) },
		"half":            func() error { return os.WriteFile(s.Mount(other), text[:len(text)/2], 0o600) },
		"empty":           func() error { return os.WriteFile(s.Mount(other), nil, 0o600) },
		"relative source": func() error { return mountRecord{ID: other, Source: "srv", Mountpoint: "/other"}.write(s) },
		"no mount point":  func() error { return mountRecord{ID: other, Source: "/srv"}.write(s) },
		"unknown member":  func() error { return os.WriteFile(s.Mount(other), []byte(`{"id":"x","trust":"all"}`), 0o600) },
		"writable by all": func() error {
			r := newRecord("/srv", "/other", false, control.MountOptions{})
			if err := r.write(s); err != nil {
				return err
			}
			return os.Chmod(s.Mount(other), 0o666)
		},
		"a link": func() error {
			if err := os.Remove(s.Mount(other)); err != nil {
				return err
			}
			return os.Symlink(s.Mount(good.ID), s.Mount(other))
		},
	} {
		os.Remove(s.Mount(other))
		if name == "a link" {
			os.WriteFile(s.Mount(other), nil, 0o600)
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if got, err := readRecord(s, other); err == nil {
			t.Errorf("%s: readRecord = %+v, want an error", name, got)
		}
		list, bad, err := readRecords(s)
		if err != nil || len(list) != 1 || list[0] != good || len(bad) != 1 {
			t.Errorf("%s: readRecords = %+v, %v, %v, want the good one and one error", name, list, bad, err)
		}
	}
}

// Whoever opens a refused file in a loop does not fill the disk.
func TestLogFileIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, maxLogFile-150); err != nil {
		t.Fatal(err)
	}
	l, err := newLogFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 99) + "\n")
	for i, want := range []int64{maxLogFile - 50, 100, 200} {
		if _, err := l.Write(line); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Size() != want {
			t.Errorf("after line %d the log has %d bytes, %v, want %d", i+1, fi.Size(), err, want)
		}
	}
	if fi, err := os.Stat(path + ".1"); err != nil || fi.Size() != maxLogFile-50 {
		t.Errorf("the full log: %v, %v, want kept as log.1", fi, err)
	}
	if fi, _ := os.Stat(path); fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the new log = %v, want 0600", fi.Mode())
	}
}

func TestAuditTrailCountsLostLines(t *testing.T) {
	l, err := newLogFile(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	l.f.Close() // as good as a full disk
	var sentences strings.Builder
	trail := auditTrail("/models", time.Date(2026, 1, 31, 18, 0, 0, 0, time.UTC), l, &sentences)
	trail(fs.Record{Time: time.Now(), Decision: fs.Refused, Path: "a.bin", PID: 7, Comm: "vllm", Reason: fs.ReasonNoCapability, Detail: "no capability", Next: "clawfs grant"})
	trail(fs.Record{Time: time.Now(), Decision: fs.Granted, Path: "b.bin"})
	trail(fs.Record{Time: time.Now(), Decision: fs.Audited, Path: "c.bin", PID: 7, Comm: "vllm", Reason: fs.ReasonNoCapability, Detail: "no capability", Next: "clawfs grant"})
	if n := l.lost.Load(); n != 3 {
		t.Errorf("%d lines counted as lost, want 3", n)
	}
	if got, want := sentences.String(), "clawfs: refused: /models/a.bin by vllm(7): no capability. Next: clawfs grant\n"+
		"clawfs: would refuse (audit mode until 2026-01-31T18:00:00Z): /models/c.bin by vllm(7): no capability. Next: clawfs grant\n"; got != want {
		t.Errorf("sentences = %q, want %q: grants are not told", got, want)
	}
}

func TestShellWord(t *testing.T) {
	for in, want := range map[string]string{
		"/models": "/models", "a=b": "a=b", "": "''", "a b": "'a b'", "it's": `'it'\''s'`, "$(reboot)": "'$(reboot)'", "a\nb": "'a\nb'", "é": "'é'",
	} {
		if got := shellWord(in); got != want {
			t.Errorf("shellWord(%q) = %s, want %s", in, got, want)
		}
	}
}
