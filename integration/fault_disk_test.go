package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// fill leaves about left bytes free in the file system for the superuser, by a
// file that another program could have written.
func (i *image) fill(left int64) {
	i.t.Helper()
	i.drain()
	f, err := os.Create(filepath.Join(i.at, "filler"))
	if err != nil {
		i.t.Fatal(err)
	}
	defer f.Close()
	if room := i.free() - left; room > 0 {
		if err := syscall.Fallocate(int(f.Fd()), 0, 0, room); err != nil && !errors.Is(err, syscall.ENOSPC) {
			i.t.Fatal(err)
		}
	}
	if left > 0 {
		return
	}
	// What is left is in pieces, and some of it only root can have.
	for block := make([]byte, 1<<20); len(block) >= 512; block = block[:len(block)/2] {
		for {
			if _, err := f.Write(block); err != nil {
				if !errors.Is(err, syscall.ENOSPC) {
					i.t.Fatal(err)
				}
				break
			}
		}
		f.Sync() // blocks that were only promised
	}
}

// drain gives the room back.
func (i *image) drain() {
	i.t.Helper()
	if err := os.Remove(filepath.Join(i.at, "filler")); err != nil && !errors.Is(err, os.ErrNotExist) {
		i.t.Fatal(err)
	}
	// The blocks come back with the next commit of the journal.
	command(i.t, "sync", "-f", i.at)
}

// A disk that fills up: grants are refused in words, revocations are recorded
// as long as there is any room and are in force in any case, mounts serve, the
// daemon starts on the full disk, and room makes all well.
func TestFaultFullDisk(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			i := newImage(t, kind, 400, "")
			h := newHost(t, i.at)
			h.mustStart()
			h.mountModels()
			victim := h.mustAdmit("victim.bin", "victim")
			other := h.mustAdmit("other.bin", "other")

			i.fill(40 << 20)
			_, err := h.admit("early.bin", "early")
			h.inWords(err, "MiB are left", "make room")
			h.mustRevoke(other)
			h.wantServes(h.mnt)
			h.wantAll("40 MiB left")

			i.fill(0)
			_, err = h.admit("late.bin", "late")
			h.inWords(err, "MiB are left", "make room")
			if _, err := h.revoke(victim); err != nil {
				h.inWords(err, "in force until this process ends", "make room")
			}
			if state := h.stateOf(victim.id()); state != "revoked" {
				t.Errorf("a revocation on a full disk: the capability is %s, want revoked", state)
			}
			h.wantServes(h.mnt)
			h.wantAll("nothing left")

			// Whoever starts it now gets one that answers, and that grants nothing
			// new. What is revoked is in force, and says whether it is recorded.
			h.kill()
			if !h.comesUp("MiB are left", "no space left on device") {
				t.Fatal("no daemon comes up on a full disk")
			}
			h.wantDenies()
			if _, err := h.revoke(victim); err != nil {
				h.inWords(err, "make room")
			}
			h.wantServes(h.mnt)

			i.drain() // and nobody does anything else
			h.wantRecovery()
			h.wantAll("with room again")
			h.mustAdmit("after.bin", "after")
			h.mustRevoke(victim)
			h.wantServes(h.mnt)
			h.kill()
			h.mustStart()
			t.Log(h.wantAll("after all"))
			h.dropMounts()
		})
	}
}

// comesUp starts a daemon where it cannot write, and reports whether it answers.
// Whether it does or not, it has to say what is wrong, by one of the texts.
func (h *host) comesUp(texts ...string) bool {
	h.t.Helper()
	_, err := h.start()
	up := err == nil
	if up {
		err = errors.New(h.trouble().String())
	}
	if !slices.ContainsFunc(texts, func(s string) bool { return strings.Contains(err.Error(), s) }) {
		h.t.Errorf("starting: %v, want it to say one of %q", err, texts)
	}
	return up
}

// stateOf is the state of one capability.
func (h *host) stateOf(id string) string {
	h.t.Helper()
	var caps []struct{ ID, State string }
	if err := h.get("/v1/capabilities", &caps); err != nil {
		h.t.Fatal(err)
	}
	for _, k := range caps {
		if k.ID == id {
			return k.State
		}
	}
	return "absent"
}

// Another program takes all of the room again and again, in the middle of
// commits, behind every check. The daemon may be killed by that (SIGBUS in a
// memory map is no error that a program can handle); what it had acknowledged
// stays, and the mount serves.
func TestFaultDiskFilledInTheMiddle(t *testing.T) {
	rng := dice(t)
	i := newImage(t, "ext4", 200, "")
	h := newHost(t, i.at)
	h.mustStart()
	h.mountModels()
	var deaths, refusals int
	rounds := max(6, *faultFlags.rounds)
	for round := range rounds {
		var stop atomic.Bool
		ended := make(chan struct{})
		go func() { // takes everything, lets go, and again
			defer close(ended)
			f, err := os.OpenFile(filepath.Join(i.at, "grabber"), os.O_CREATE|os.O_RDWR, 0o600)
			if err != nil {
				return
			}
			defer f.Close()
			for !stop.Load() {
				for free := i.free(); free > 0; free /= 2 {
					end, _ := f.Seek(0, 2)
					syscall.Fallocate(int(f.Fd()), 0, end, free)
				}
				time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
				f.Truncate(0)
				time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
			}
			f.Truncate(0)
		}()
		for n, end := 0, time.Now().Add(1500*time.Millisecond); time.Now().Before(end) && !h.hasEnded(); n++ {
			f, err := h.admit(fmt.Sprintf("g%d-%d.bin", round, n), fmt.Sprint(round, n))
			if err == nil && n%3 == 0 {
				_, err = h.revoke(f)
			}
			if asRefusal(err) != nil {
				refusals++
			}
		}
		stop.Store(true)
		<-ended
		i.drain()
		if h.hasEnded() {
			deaths++
			t.Logf("round %d: the daemon died: %.300s", round, h.lastWords())
		}
		h.wantServes(h.mnt)
		h.kill()
		h.mustStart()
		h.wantAll(fmt.Sprintf("round %d", round))
		h.mustRevoke(h.mustAdmit(fmt.Sprintf("after%d.bin", round), "x"))
	}
	t.Logf("%d rounds: %d refusals in words, %d deaths; %v", rounds, refusals, deaths, h.wantAll("after all"))
	h.dropMounts()
}

// All inodes are taken: no new file can be made, whatever room there is. A revocation
// is in force, whether the daemon works with its store still or has let it go.
func TestFaultNoInodes(t *testing.T) {
	t.Run("at once", func(t *testing.T) { testNoInodes(t, func(*host) {}) })
	t.Run("without the store", func(t *testing.T) {
		testNoInodes(t, func(h *host) {
			h.eventually("the daemon lets go of its store", func() bool { return h.trouble() != nil })
		})
	})
}

func testNoInodes(t *testing.T, before func(*host)) {
	i := newImage(t, "ext4", 400, "", "-N", "128")
	h := newHost(t, i.at)
	h.mustStart()
	h.mountModels()
	victim := h.mustAdmit("victim.bin", "victim")
	dir := filepath.Join(i.at, "many")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		err := os.WriteFile(filepath.Join(dir, fmt.Sprint(n)), nil, 0o600)
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.admit("late.bin", "late"); err != nil {
		h.inWords(err, "no space left on device")
	}
	before(h)
	f, err := h.revoke(victim)
	if r := asRefusal(err); r != nil && strings.Contains(r.text, "the same again") { // the store was let go in between
		f, err = h.revoke(victim)
	}
	if err != nil {
		h.inWords(err, "in force")
	}
	h.eventually("the revocation is in force", func() bool {
		records, _, err := h.view()
		return err == nil && slices.ContainsFunc(records, func(r viewLine) bool { return r.id() == f.id() })
	})
	h.wantServes(h.mnt)
	h.kill()
	if !h.comesUp("no space left on device") {
		t.Fatal("no daemon comes up without inodes")
	}
	h.wantDenies()
	h.wantServes(h.mnt)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	h.wantRecovery()
	h.wantAll("with inodes again")
	h.mustAdmit("after.bin", "after")
	h.mustRevoke(victim)
	h.kill()
	h.mustStart()
	t.Log(h.wantAll("after all"))
	h.dropMounts()
}

// The file system becomes read-only under the daemon, as ext4 does when it
// finds an error in itself: nothing new is granted, in words, and mounts serve.
// A daemon that is started there says what is wrong.
func TestFaultReadOnly(t *testing.T) {
	i := newImage(t, "ext4", 400, "errors=remount-ro")
	h := newHost(t, i.at)
	h.mustStart()
	h.mountModels()
	victim := h.mustAdmit("victim.bin", "victim")
	i.turnReadOnly()
	_, err := h.admit("late.bin", "late")
	h.inWords(err, "read-only file system")
	_, err = h.revoke(victim)
	h.inWords(err, "in force until this process ends")
	if state := h.stateOf(victim.id()); state != "revoked" {
		t.Errorf("a revocation on a read-only file system: the capability is %s, want revoked", state)
	}
	h.wantServes(h.mnt)
	h.kill()
	t.Logf("on a file system that became read-only: the daemon answers: %v", h.comesUp("read-only file system"))
	h.wantServes(h.mnt)
	h.dropMounts()
	i.unmount()

	i.mount()
	h.mustStart()
	t.Log(h.wantAll("writable again"))
	h.mustAdmit("after.bin", "after")
	h.mustRevoke(victim)
	h.dropMounts()
	i.unmount()

	i.mount("ro") // a clean one, as an administrator mounts it
	t.Logf("on a file system that was mounted read-only: the daemon answers: %v", h.comesUp("read-only file system"))
	h.kill()
	i.unmount()
	i.mount()
	h.mustStart()
	t.Log(h.wantAll("after all"))
	h.dropMounts()
}

// turnReadOnly lets ext4 find an error, by the file that the kernel has for
// such tests.
func (i *image) turnReadOnly() {
	i.t.Helper()
	device := strings.TrimSpace(command(i.t, "findmnt", "-no", "SOURCE", i.at))
	if err := os.WriteFile(filepath.Join("/sys/fs/ext4", filepath.Base(device), "trigger_fs_error"), []byte("a test"), 0); err != nil {
		i.t.Fatal(err)
	}
	h := filepath.Join(i.at, "probe")
	if err := os.WriteFile(h, nil, 0o600); !errors.Is(err, syscall.EROFS) {
		i.t.Fatalf("writing after the error: %v, want EROFS", err)
	}
}
