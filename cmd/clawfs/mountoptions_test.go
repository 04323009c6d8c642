package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A place for private files that the mount would show, hide, or cannot share
// blocks with is refused, by flag and by setting, before anything is started.
func TestPrivateDirRefusals(t *testing.T) {
	for _, tt := range []struct {
		name string
		seal string
		dir  func(r *rig) string
		want []string
	}{
		{"the source", "copy", func(r *rig) string { return r.src }, []string{"inside the source", "--private-dir"}},
		{"in the source", "reflink", func(r *rig) string { return filepath.Join(r.src, "p") }, []string{"inside the source", "--private-dir"}},
		{"in the source by a link", "copy", func(r *rig) string { return r.mnt + ".link/p" }, []string{"inside the source"}},
		{"the mount point", "copy", func(r *rig) string { return r.mnt }, []string{"inside the mount point", "--private-dir"}},
		{"in the mount point", "copy", func(r *rig) string { return filepath.Join(r.mnt, "p") }, []string{"inside the mount point"}},
		{"a file", "copy", func(r *rig) string { return r.state.Policy() }, []string{"private directory", "want a directory"}},
		{"not there", "copy", func(r *rig) string { return r.mnt + ".none" }, []string{"does not exist", "mkdir -p -m 0700"}},
		{"another file system", "reflink", func(*rig) string { return "/dev/shm" }, []string{"another file system", "--seal copy"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			for _, dir := range []string{filepath.Join(r.src, "p"), filepath.Join(r.mnt, "p")} {
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Symlink(r.src, r.mnt+".link"); err != nil {
				t.Fatal(err)
			}
			dir := tt.dir(r)
			r.refused(codeMount, []string{"mount", "--seal", tt.seal, "--private-dir", dir, r.src, r.mnt}, tt.want...)
			text := "[mount]\nseal = \"" + tt.seal + "\"\nprivate_dir = \"" + dir + "\"\n"
			if err := os.WriteFile(r.state.Settings(), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r.refused(codeMount, []string{"mount", r.src, r.mnt}, tt.want...)
			r.refused(codeMount, []string{"mount", "--foreground", r.src, r.mnt}, tt.want...)
			if r.daemonPID() != 0 {
				t.Error("a refused mount started a daemon")
			}
		})
	}
}

// A flag that the settings leave without effect is not taken in silence.
func TestPrivateFlagsWithoutSeal(t *testing.T) {
	r := newRig(t)
	if err := os.WriteFile(r.state.Settings(), []byte("[mount]\nseal = \"off\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, flag := range [][]string{{"--private-dir", t.TempDir()}, {"--private-bytes", "5GiB"}} {
		r.refused(codeMount, append([]string{"mount", r.src, r.mnt}, flag...), "want --seal reflink or copy, got off from "+r.state.Settings(), "next: add --seal copy")
	}
	r.ok("mount", "--seal", "copy", "--private-bytes", "5GiB", r.src, r.mnt)
}

// What a flag said stays with the mount, whatever the settings are; what none
// said is as the settings say when its process starts.
func TestMountOptionsSurviveRestart(t *testing.T) {
	r := newRig(t)
	content := strings.Repeat("model ", 1<<19)
	r.admit(map[string]string{"m.bin": content})
	r.file("m.bin", content)
	settings := func(text string) {
		if err := os.WriteFile(r.state.Settings(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	tier := func() string {
		t.Helper()
		if !r.opens("m.bin", content) {
			t.Fatal("the granted file is refused")
		}
		value, err := readXattr(filepath.Join(r.mnt, "m.bin"), tierXattr)
		if err != nil {
			t.Fatal(err)
		}
		return string(value)
	}
	restart := func() {
		t.Helper()
		pid := r.serverPID()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		// One that cannot go on with the session of another tier is none that serves.
		r.eventually("another process serves the mount", func() bool { m := r.status().Mounts[0]; return m.PID != pid && m.Resumable && r.isMounted() })
	}
	private := filepath.Join(filepath.Dir(r.mnt), "private")
	if err := os.Mkdir(private, 0o700); err != nil {
		t.Fatal(err)
	}
	r.ok("mount", "--seal", "copy", "--private-dir", private, r.src, r.mnt)
	settings("[mount]\nseal = \"off\"\n")
	for range 2 {
		if got := tier(); got != "sealed" {
			t.Errorf("tier = %q, want sealed, as the flag said", got)
		}
		restart()
	}
	r.eventually("status shows tier and private files", func() bool {
		m := r.status().Mounts[0].Report
		return tier() == "sealed" && m != nil && m.Tier == "sealed" && m.Seal == "copy" && m.Private == 1 && m.PrivateBytes == int64(len(content)) && m.TierReason != ""
	})
	if _, err := os.Lstat(r.state.Private()); err == nil {
		t.Error("with --private-dir the default directory was made, too")
	}
	r.ok("umount", r.mnt)
	r.ok("mount", r.src, r.mnt)
	if got := tier(); got != "blocks" {
		t.Errorf("tier = %q, want blocks, as the settings say", got)
	}
	settings("[mount]\nseal = \"copy\"\nprivate_bytes = \"1MiB\"\n")
	restart()
	if got := tier(); got != "blocks" {
		t.Errorf("tier = %q of a file larger than private_bytes, want blocks", got)
	}
	if text := r.ok("why", filepath.Join(r.mnt, "m.bin")); !strings.Contains(text, "blocks: no room for") {
		t.Errorf("why does not say why it is not sealed:\n%s", text)
	}
	r.eventually("status tells that it was not sealed", func() bool {
		return strings.Contains(r.ok("status"), "not sealed: 1")
	})
	fi, err := os.Lstat(r.state.Private())
	if err != nil || fi.Mode() != os.ModeDir|0o700 {
		t.Errorf("the default directory of private files: %v, %v, want mode 0700", fi, err)
	}
	if names, err := os.ReadDir(r.state.Private()); err != nil || len(names) != 0 {
		t.Errorf("private files have names: %v, %v", names, err)
	}
}

// By default root's mounts try to share blocks; where the file system cannot,
// status says why, and what would help.
func TestStatusSaysWhyNotSealed(t *testing.T) {
	r := newRig(t)
	r.ok("mount", r.src, r.mnt)
	m := r.status().Mounts[0]
	r.eventually("the mount has reported", func() bool { m = r.status().Mounts[0]; return m.Report != nil })
	text := r.ok("status")
	if m.Report.Seal != "reflink" {
		t.Errorf("seal = %q, want reflink", m.Report.Seal)
	}
	if m.Report.Tier == "blocks" && (!strings.Contains(text, "blocks: "+m.Report.TierReason) || !strings.Contains(text, "--seal copy "+r.src+" "+r.mnt)) {
		t.Errorf("status says\n%s\nwant the reason %q and --seal copy", text, m.Report.TierReason)
	}
	if m.Report.Tier != "blocks" && strings.Contains(text, "--seal copy") {
		t.Errorf("status of a sealed mount advises --seal copy:\n%s", text)
	}
}
