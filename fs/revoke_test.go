package fs

import (
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// A revocation reaches the next open, the next read and the pages that the
// kernel holds.
func TestRevokedWhileOpen(t *testing.T) {
	m := mountEmpty(t)
	good, other := sample(30, 3*hashpipe.UnitSize), sample(31, 10_000)
	m.write("model.bin", good)
	m.write("other.bin", other)
	m.grant("model.bin", good)
	m.grant("other.bin", other)
	h, bystander := m.hold("model.bin"), m.hold("other.bin")
	if r := h.ask("touch"); r.SHA256 != sumOf(good) {
		t.Fatalf("before: %v", r)
	}
	m.revoke(capstore.KindFile, hashpipe.SumBytes(good).Claim())
	m.refuses("model.bin", syscall.EACCES, ReasonRevoked)
	var r result
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if r = h.ask("touch"); r.Errno == syscall.EFAULT || time.Now().After(deadline) {
			break
		}
	}
	if r.Errno != syscall.EFAULT {
		t.Errorf("touching a mapping of a revoked file: %v, want a fault", r)
	}
	if r := h.ask("read"); r.Errno != syscall.EIO {
		t.Errorf("reading a revoked file: %v, want EIO", r)
	}
	rec := m.lastRecord("model.bin", Cut)
	if rec.Reason != ReasonRevoked || rec.Capability == "" || rec.PID == 0 {
		t.Errorf("record of a cut handle: %+v", rec)
	}
	if r := bystander.ask("read"); r.SHA256 != sumOf(other) {
		t.Errorf("another open file: %v", r)
	}
	m.reads("other.bin", other)
	if s := m.stats(); s.Revoked != 1 {
		t.Errorf("%d handles cut, want 1", s.Revoked)
	}
}

// What is revoked while it is measured does not open when that is done.
func TestRevokedWhileMeasured(t *testing.T) {
	m := mountEmpty(t)
	s := m.sparse("model.bin", 2<<30, true)
	m.admit(s)
	opened := m.started("openloop", m.at("model.bin"), "4")
	m.waitVerifying()
	m.revoke(capstore.KindFile, s.Digest)
	if m.stats().Verifying == 0 {
		t.Fatal("the measurement was over before the revocation: the test shows nothing")
	}
	if r := <-opened; r.Errno != syscall.EACCES || r.Good != 0 {
		t.Errorf("opening what was revoked meanwhile: %v, %d opened, want EACCES", r, r.Good)
	}
	if rec := m.lastRecord("model.bin", Refused); rec.Reason != ReasonRevoked {
		t.Errorf("record: %+v, want %s", rec, ReasonRevoked)
	}
}

// A capability that is revoked does not hurt another one over the same bytes.
func TestRevokedButGrantedAgain(t *testing.T) {
	m := mountEmpty(t)
	good := sample(32, 20_000)
	m.write("model.bin", good)
	first := m.grant("model.bin", good)
	h := m.hold("model.bin")
	m.grant("model.bin", good, func(w *terms) { w.sequence = 2 })
	m.revoke(capstore.KindCapability, capabilityID(t, m, first))
	m.reads("model.bin", good)
	if r := h.ask("evict"); r.Errno != 0 {
		t.Fatal(r)
	}
	if r := h.ask("read"); r.SHA256 != sumOf(good) {
		t.Errorf("an open file whose content another capability approves: %v", r)
	}
}

// capabilityID reads an envelope as the mount does.
func capabilityID(t *testing.T, m *mounted, envelope []byte) hashpipe.Digest {
	t.Helper()
	view, err := capstore.NewView(capstore.Trust{
		Mints:    []capstore.Signer{{Operator: "test", Key: m.mint.Public()}},
		Revokers: []capstore.Signer{{Operator: "test", Key: m.rev.Public()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := view.Admit(envelope)
	if err != nil {
		t.Fatal(err)
	}
	return c.ID()
}

// Expiry says until when a file may be opened. A clock that is set back does not
// revive it; who has it open goes on.
func TestExpiry(t *testing.T) {
	m := mountEmpty(t)
	good := sample(33, 20_000)
	m.write("model.bin", good)
	m.grant("model.bin", good) // for an hour
	m.reads("model.bin", good)
	h := m.hold("model.bin")
	m.do(request{Op: "clock", Shift: 2 * 3600})
	m.refuses("model.bin", syscall.EACCES, ReasonExpired)
	m.do(request{Op: "clock", Shift: -2 * 3600})
	m.refuses("model.bin", syscall.EACCES, ReasonExpired)
	if r := h.ask("evict"); r.Errno != 0 {
		t.Fatal(r)
	}
	if r := h.ask("read"); r.SHA256 != sumOf(good) {
		t.Errorf("a file that was open when its capability expired: %v", r)
	}
	// A renewed capability opens it again, judged by the time that was reached.
	m.grant("model.bin", good, func(w *terms) { w.notAfter = w.notAfter.Add(24 * time.Hour); w.sequence = 2 })
	m.reads("model.bin", good)
}

func TestNotYetValid(t *testing.T) {
	m := mountEmpty(t)
	good := sample(34, 20_000)
	m.write("model.bin", good)
	m.grant("model.bin", good, func(w *terms) { w.notBefore = time.Now().Add(30 * time.Minute).UTC().Truncate(time.Second) })
	m.refuses("model.bin", syscall.EACCES, ReasonNotYetValid)
	m.do(request{Op: "clock", Shift: 40 * 60})
	m.reads("model.bin", good)
}

// Envelopes that nobody trusted signed change nothing.
func TestForeignKeys(t *testing.T) {
	m := mountEmpty(t)
	good := sample(35, 20_000)
	m.write("model.bin", good)
	foreign := newKey(t)
	if r := m.ask(request{Op: "admit", Envelope: signed(t, foreign, []capstore.Subject{subject(t, "model.bin", good)})}); r.Err == "" {
		t.Error("a capability of a foreign mint was admitted")
	}
	m.refuses("model.bin", syscall.EACCES, ReasonNoCapability)
	m.grant("model.bin", good)
	if r := m.ask(request{Op: "revoke", Envelope: revocation(t, foreign, capstore.KindFile, hashpipe.SumBytes(good).Claim())}); r.Err == "" {
		t.Error("a revocation by a foreign key was admitted")
	}
	m.reads("model.bin", good)
}

// A revocation at any moment of an open either refuses it or finds the handle:
// whoever looked for handles before the new one was there does not come back.
func TestRevokedAtAnyMomentOfAnOpen(t *testing.T) {
	good := sample(79, 5000)
	opened := 0
	for moment := 1; ; moment++ {
		d := newDesk(t)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "model.bin"), good, 0o644); err != nil {
			t.Fatal(err)
		}
		src, err := openSource(dir)
		if err != nil {
			t.Fatal(err)
		}
		d.grant("model.bin", good)
		var calls atomic.Int64 // of the clock, which an open asks again and again
		var f *filesystem
		f = newFilesystem(Config{View: d.view, Log: slog.New(slog.DiscardHandler), HashWorkers: 1, Clock: func() time.Time {
			if f != nil && calls.Add(1) == int64(moment) {
				d.revoke(capstore.KindFile, hashpipe.SumBytes(good).Claim())
				for _, h := range f.files.all() { // as watchRevocations does, once
					h.live()
				}
			}
			return time.Now()
		}}, src, noVault(t))
		st, err := f.src.stat("model.bin")
		if err != nil {
			t.Fatal(err)
		}
		in := &fuse.OpenIn{InHeader: fuse.InHeader{NodeId: f.nodes.lookup("model.bin", &st).id}}
		var out fuse.OpenOut
		status := f.Open(nil, in, &out)
		if h, ok := f.files.get(out.Fh); status.Ok() && ok && calls.Load() >= int64(moment) {
			if opened++; !h.cut.Load() {
				t.Errorf("revoked at moment %d of the open: nobody takes the handle back", moment)
			}
		}
		done := calls.Load() < int64(moment)
		f.shutdown()
		if done {
			break
		}
	}
	if opened == 0 {
		t.Error("no moment lies between the last decision and the handle")
	}
}
