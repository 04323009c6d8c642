package capstore

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore/kept"
)

// keptRecords are the envelopes of the journal beside a store, by kind.
func keptRecords(t *testing.T, dir string) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	damage, err := kept.Read(keptDir(dir), func(r kept.Record) error {
		all[r.Kind] = append(all[r.Kind], string(r.Envelope))
		return nil
	})
	if err != nil || len(damage) > 0 {
		t.Fatalf("%v, damage %v", err, damage)
	}
	return all
}

// What is acknowledged is in the journal, once, before the acknowledgement.
func TestWhatIsAcknowledgedIsKept(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	a, r := w.capability(t, "", "a.bin"), w.revocation(t, KindFile, digestOf("a.bin").String())
	if _, err := s.Admit(a); err != nil {
		t.Fatal(err)
	}
	if got := keptRecords(t, dir); len(got[RecordCapability]) != 1 || got[RecordCapability][0] != string(a) {
		t.Errorf("after a grant: %q", got)
	}
	for range 2 {
		if _, err := s.Revoke(r); err != nil {
			t.Fatal(err)
		}
	}
	j := addJob(t, s)
	c := w.capability(t, "2", "b.bin")
	if _, err := s.Admit([]byte("no envelope")); err == nil {
		t.Error("no envelope was admitted")
	}
	if err := s.PutJob(j); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admit(c); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		closeStore(t, s)
		got := keptRecords(t, dir)
		if len(got[RecordCapability]) != 2 || len(got[RecordRevocation]) != 1 || got[RecordRevocation][0] != string(r) || len(got) != 2 {
			t.Errorf("kept: %q", got)
		}
		s = openStore(t, dir, w.trust())
		if len(s.Rejected()) > 0 || s.Behind() != nil {
			t.Errorf("rejected %v, behind %v", s.Rejected(), s.Behind())
		}
	}
}

// A grant for which the journal has no room is tried again and again, and is written
// once, into the store and into the journal.
func TestGrantThatIsKeptLateIsWrittenOnce(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	if err := os.Mkdir(keptDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", keptDir(dir), "tmpfs", 0, "size=64k,mode=700"); err != nil {
		t.Fatalf("mounting needs root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(keptDir(dir), unix.MNT_DETACH) })
	s := openStore(t, dir, w.trust())
	if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(keptDir(dir), "filler")
	if err := os.WriteFile(filler, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the journal's disk: %v, want ENOSPC", err)
	}
	finished, plain := w.capability(t, "", "b.bin"), w.capability(t, "", "c.bin")
	j := addJob(t, s)
	j.Verdict = Minted
	facts := s.head.n
	for range 5 {
		if _, err := s.FinishJob(j, finished); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("FinishJob without room in the journal: %v, want ErrNoSpace", err)
		}
		if _, err := s.Admit(plain); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("Admit without room in the journal: %v, want ErrNoSpace", err)
		}
	}
	if got := s.head.n - facts; got != 2 {
		t.Errorf("after five tries: %d facts of two capabilities", got)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admit(plain); err != nil {
		t.Error(err)
	}
	if len(s.Lookup(digestOf("b.bin"))) != 0 || len(s.Lookup(digestOf("c.bin"))) != 1 {
		t.Error("want c.bin granted, and not b.bin, which nobody was told of")
	}
	if _, err := s.FinishJob(j, finished); err != nil {
		t.Error(err)
	}
	for range 2 {
		if len(s.Lookup(digestOf("b.bin"))) != 1 || len(s.Lookup(digestOf("c.bin"))) != 1 {
			t.Error("with room: not both of them grant")
		}
		if got := keptRecords(t, dir); len(got[RecordCapability]) != 3 {
			t.Errorf("the journal has %d capabilities, want 3", len(got[RecordCapability]))
		}
		closeStore(t, s)
		s = openStore(t, dir, w.trust())
	}
}

// A revocation is acknowledged also when the journal cannot be written; a grant is
// not. The next Open appends what is missing, wherever the journal ends.
func TestJournalThatIsBehindIsMended(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	if err := s.kept.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Revoke(w.revocation(t, KindFile, digestOf("a.bin").String())); err != nil {
		t.Errorf("revoking without a journal: %v", err)
	}
	if s.Behind() == nil {
		t.Error("that the journal lacks a revocation is not told")
	}
	if _, err := s.Admit(w.capability(t, "", "b.bin")); err == nil {
		t.Error("a grant that could not be kept was acknowledged")
	}
	if len(s.Lookup(digestOf("b.bin"))) != 0 {
		t.Error("a grant that was not acknowledged grants")
	}
	closeStore(t, s)
	s = openStore(t, dir, w.trust())
	if got := keptRecords(t, dir); s.Behind() != nil || len(got[RecordRevocation]) != 1 || len(got[RecordCapability]) != 2 {
		t.Errorf("behind %v, kept %q", s.Behind(), got)
	}
	// Without any journal, all of it is written again.
	closeStore(t, s)
	if err := os.RemoveAll(keptDir(dir)); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, w.trust())
	if got := keptRecords(t, dir); len(got[RecordRevocation]) != 1 || len(got[RecordCapability]) != 2 {
		t.Errorf("of a new journal: %q", got)
	}
	// A crash cut it in the middle of a line.
	closeStore(t, s)
	files, err := filepath.Glob(filepath.Join(keptDir(dir), "kept-*.jsonl"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%q, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[0], b[:len(b)-10], 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, w.trust())
	if got := keptRecords(t, dir); len(got[RecordRevocation]) != 1 || len(got[RecordCapability]) != 2 {
		t.Errorf("after a crash: %q", got)
	}
	if r := s.Rejected(); len(r) != 1 || !strings.Contains(r[0].Reason, "cut off") {
		t.Errorf("the cut was not told: %v", r)
	}
}

// What was acknowledged while there was no store is in force when there is one: an
// older list, too, and nothing that is signed by somebody else.
func TestStoreTakesWhatWaited(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	for _, name := range []string{"a.bin", "b.bin", "c.bin"} {
		if _, err := s.Admit(w.capability(t, "", name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.AdmitList(keptList(t, w, 2)); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	wait := func(records ...kept.Record) {
		t.Helper()
		j, err := kept.Open(keptDir(dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			if err := j.Wait(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wait(kept.Record{Kind: RecordRevocation, Envelope: w.revocation(t, KindFile, digestOf("a.bin").String())},
		kept.Record{Kind: RecordList, Envelope: keptList(t, w, 1, ListEntry{KindFile, digestOf("b.bin"), "x", during})})
	for range 2 {
		s = openStore(t, dir, w.trust())
		if !isRevoked(t, s.Lookup(digestOf("a.bin"))) || !isRevoked(t, s.Lookup(digestOf("b.bin"))) || isRevoked(t, s.Lookup(digestOf("c.bin"))) {
			t.Error("what waited is not in force, or more than that")
		}
		if s.View().List().Sequence() != 2 || len(s.Rejected()) > 0 {
			t.Errorf("list %d, rejected %v", s.View().List().Sequence(), s.Rejected())
		}
		if n := waiting(t, dir); n != 0 {
			t.Errorf("%d records wait after the store took them", n)
		}
		closeStore(t, s)
	}
	other := newWorld(t)
	wait(kept.Record{Kind: RecordRevocation, Envelope: other.revocation(t, KindFile, digestOf("c.bin").String())},
		kept.Record{Kind: RecordCapability, Envelope: w.capability(t, "", "d.bin")})
	s = openStore(t, dir, w.trust())
	if len(s.Rejected()) != 2 || len(s.All()) != 3 || isRevoked(t, s.Lookup(digestOf("c.bin"))) {
		t.Errorf("rejected %v, %d capabilities", s.Rejected(), len(s.All()))
	}
	if n := waiting(t, dir); n != 2 {
		t.Errorf("%d records wait, want the 2 that were refused", n)
	}
}

func keptList(t *testing.T, w world, sequence int64, entries ...ListEntry) []byte {
	t.Helper()
	st, err := NewList(sequence, during, during.AddDate(0, 0, 7), entries)
	if err != nil {
		t.Fatal(err)
	}
	list, err := SignList(st, w.revoker)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func waiting(t *testing.T, dir string) (n int) {
	t.Helper()
	damage, err := kept.ReadWaiting(keptDir(dir), func(kept.Record) error { n++; return nil })
	if err != nil || len(damage) > 0 {
		t.Fatalf("%v, damage %v", err, damage)
	}
	return n
}
