package capstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newDraft(t *testing.T, dir string, trust Trust) *Draft {
	t.Helper()
	d, err := NewDraft(dir, memoryOf(dir), trust)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Discard() })
	return d
}

// findings are what a check of a store that is closed tells.
func findings(t *testing.T, dir string, trust Trust) (all []string) {
	t.Helper()
	if _, err := CheckClosed(context.Background(), dir, memoryOf(dir), trust, Head{}, func(f Finding) { all = append(all, f.Where+": "+f.What) }, nil); err != nil {
		t.Fatal(err)
	}
	return all
}

// A draft has what was added and verified, each once, and takes the store's place.
func TestDraft(t *testing.T) {
	w, other, dir := newWorld(t), newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	job := addJob(t, s)
	if _, err := NewDraft(dir, memoryOf(dir), w.trust()); !errors.Is(err, ErrLocked) {
		t.Errorf("a draft while the store is open: %v, want ErrLocked", err)
	}
	closeStore(t, s)
	d := newDraft(t, dir, w.trust())
	if _, err := Open(dir, memoryOf(dir), w.trust()); !errors.Is(err, ErrLocked) {
		t.Errorf("the store while a draft is made: %v, want ErrLocked", err)
	}
	for name, r := range map[string]Record{
		"a stranger's capability": {Kind: RecordCapability, Envelope: other.capability(t, "", "x.bin")},
		"a stranger's revocation": {Kind: RecordRevocation, Envelope: other.revocation(t, KindFile, digestOf("a.bin").String())},
		"a capability as a list":  {Kind: RecordList, Envelope: w.capability(t, "", "a.bin")},
		"another kind":            {Kind: "job", Envelope: w.capability(t, "", "a.bin")},
		"nothing":                 {Kind: RecordRevocation, Envelope: nil},
	} {
		var refused *RefusedError
		if added, err := d.Add(r, Elsewhere); added || !errors.As(err, &refused) {
			t.Errorf("%s: added %v, %v", name, added, err)
		}
	}
	records := []Record{{Kind: RecordRevocation, Envelope: w.revocation(t, KindFile, digestOf("a.bin").String())}, {Kind: RecordList, Envelope: keptList(t, w, 3)}}
	for i := range 500 { // several transactions
		records = append(records, Record{Kind: RecordCapability, Envelope: w.capability(t, "", fmt.Sprintf("%d.bin", i))})
	}
	records = append(records, Record{Kind: RecordCapability, Envelope: w.capability(t, "", "a.bin")})
	for _, want := range []bool{true, false} {
		for i, r := range records {
			if added, err := d.Add(r, OwnJournal); err != nil || added != want {
				t.Fatalf("record %d: added %v, %v; want %v", i, added, err, want)
			}
		}
		if added, err := d.AddJob(job); err != nil || added != want {
			t.Fatalf("job: added %v, %v; want %v", added, err, want)
		}
	}
	old, err := d.Commit(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(old, "db")); err != nil || !info.IsDir() {
		t.Errorf("the old store is not at %q: %v", old, err)
	}
	if all := findings(t, dir, w.trust()); len(all) > 0 && !strings.Contains(all[0], "is not in the journal") {
		t.Errorf("findings: %q", all)
	}
	s = openStore(t, dir, w.trust())
	if len(s.All()) != 501 || !isRevoked(t, s.Lookup(digestOf("a.bin"))) || s.View().List().Sequence() != 3 || len(s.Rejected()) > 0 {
		t.Errorf("%d capabilities, list %d, rejected %v", len(s.All()), s.View().List().Sequence(), s.Rejected())
	}
	if j, err := s.Job(job.ID); err != nil || j.ID != job.ID {
		t.Errorf("job %s: %v", job.ID, err)
	}
	if err := d.Discard(); err != nil {
		t.Errorf("discarding what was committed: %v", err)
	}
	closeStore(t, s)
}

// A draft that is given up, or whose process ends, leaves the store as it was.
func TestDraftIsGivenUp(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	d := newDraft(t, dir, w.trust())
	if _, err := d.Add(Record{Kind: RecordCapability, Envelope: w.capability(t, "", "b.bin")}, Elsewhere); err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir + draftSuffix, filepath.Join(memoryOf(dir), "store"+draftSuffix)} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	// What a killed process leaves is in nobody's way.
	for _, path := range []string{dir + draftSuffix, filepath.Join(memoryOf(dir), "store"+draftSuffix)} {
		if err := os.MkdirAll(filepath.Join(path, "db"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s = openStore(t, dir, w.trust())
	if len(s.All()) != 1 || len(s.Lookup(digestOf("a.bin"))) != 1 {
		t.Errorf("%d capabilities, want the one of before", len(s.All()))
	}
	closeStore(t, s)
	d = newDraft(t, dir, w.trust())
	if d.Facts() != 0 {
		t.Errorf("a new draft begins with %d facts", d.Facts())
	}
}

// A crash between any two steps of the swap leaves the new store, once it was
// begun, and the old one before, also if the note of the swap is damaged.
func TestCrashInSwap(t *testing.T) {
	for _, note := range []string{"whole", "emptied", "flipped"} {
		t.Run(note, func(t *testing.T) { testCrashInSwap(t, note) })
	}
}

func testCrashInSwap(t *testing.T, note string) {
	for step := range 8 {
		w, dir := newWorld(t), storeDir(t)
		memory := memoryOf(dir)
		s := openStore(t, dir, w.trust())
		if _, err := s.Admit(w.capability(t, "", "old.bin")); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
		d := newDraft(t, dir, w.trust())
		if _, err := d.Add(Record{Kind: RecordCapability, Envelope: w.capability(t, "", "new.bin")}, Elsewhere); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.flush(), writeHead(d.newMemory(), d.s.key, d.s.head), d.s.shut(), d.held.Close()); err != nil {
			t.Fatal(err)
		}
		d.held = nil
		const aside = ".until-then"
		next := filepath.Join(memory, "store"+draftSuffix)
		var steps []func() error
		steps = append(steps, func() error { return beginSwap(memory, aside) })
		for _, m := range [][2]string{{dir + draftSuffix, dir}, {filepath.Join(next, KeyName), filepath.Join(memory, KeyName)}, {filepath.Join(next, HeadName), filepath.Join(memory, HeadName)}} {
			steps = append(steps, func() error { return os.Rename(m[1], m[1]+aside) }, func() error { return os.Rename(m[0], m[1]) })
		}
		for _, do := range steps[:step] {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(memory, swapName)
		b, err := os.ReadFile(path)
		if (err == nil) != (step > 0) {
			t.Fatal(err)
		}
		switch {
		case step == 0 || note == "whole":
		case note == "emptied":
			err = os.Truncate(path, 0)
		case note == "flipped":
			b[len(b)/2] ^= 1
			err = os.WriteFile(path, b, 0o600)
		}
		if step > 0 && err != nil {
			t.Fatal(err)
		}
		want := "new.bin"
		if step == 0 {
			want = "old.bin"
		}
		for range 2 {
			s = openStore(t, dir, w.trust())
			if len(s.All()) != 1 || len(s.Lookup(digestOf(want))) != 1 || len(s.Rejected()) > 0 {
				t.Errorf("step %d: %d capabilities, rejected %v; want %s alone", step, len(s.All()), s.Rejected(), want)
			}
			closeStore(t, s)
		}
		if _, err := os.Lstat(filepath.Join(memory, swapName)); !os.IsNotExist(err) {
			t.Errorf("step %d: the swap is not finished: %v", step, err)
		}
	}
}

// What was acknowledged is found again in a store that does not open, and without
// one in the journal.
func TestSalvage(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Revoke(w.revocation(t, KindFile, digestOf("a.bin").String())); err != nil {
		t.Fatal(err)
	}
	job := addJob(t, s)
	closeStore(t, s)
	if err := os.Remove(filepath.Join(memoryOf(dir), HeadName)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, memoryOf(dir), w.trust()); !errors.Is(err, ErrDamaged) {
		t.Fatalf("without its head: %v, want ErrDamaged", err)
	}
	if all := findings(t, dir, w.trust()); len(all) == 0 || !strings.Contains(all[0], "no head file") {
		t.Errorf("findings: %q", all)
	}
	d := newDraft(t, dir, w.trust())
	n, jobs := 0, 0
	err := Salvage(context.Background(), dir, memoryOf(dir),
		func(r Record) error { n++; _, err := d.Add(r, OwnStore); return err },
		func(j Job) error { jobs++; _, err := d.AddJob(j); return err },
		func(f Finding) { t.Errorf("%+v", f) })
	if err != nil || n != 2 || jobs != 1 {
		t.Fatalf("%d records, %d jobs, %v", n, jobs, err)
	}
	if _, err := d.Commit(time.Now()); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, w.trust())
	if !isRevoked(t, s.Lookup(digestOf("a.bin"))) {
		t.Error("a revocation is lost")
	}
	if _, err := s.Job(job.ID); err != nil {
		t.Error(err)
	}
}

// A database without its MANIFEST is refused before Badger removes its tables.
func TestTablesWithoutManifest(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	manifest := filepath.Join(dir, "db", "MANIFEST")
	b, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(manifest); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := Open(dir, memoryOf(dir), w.trust()); !errors.Is(err, ErrDamaged) {
			t.Fatalf("without MANIFEST: %v, want ErrDamaged", err)
		}
		if all := findings(t, dir, w.trust()); len(all) == 0 {
			t.Error("a check finds nothing")
		}
	}
	if err := os.WriteFile(manifest, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, w.trust())
	if len(s.All()) != 1 {
		t.Error("the tables were removed")
	}
}

// A check finds what was changed, each thing by name, and nothing in a store that
// is in order.
func TestCheckFinds(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	for _, name := range []string{"a.bin", "b.bin"} {
		if _, err := s.Admit(w.capability(t, "", name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Revoke(w.revocation(t, KindFile, digestOf("a.bin").String())); err != nil {
		t.Fatal(err)
	}
	for sequence := int64(1); sequence <= 3; sequence++ {
		if _, err := s.AdmitList(keptList(t, w, sequence)); err != nil {
			t.Fatal(err)
		}
	}
	addJob(t, s)
	tell := func(f Finding) { t.Errorf("of a store in order: %+v", f) }
	got, err := s.Check(context.Background(), w.trust(), Head{}, tell, nil)
	if err != nil || got.Facts != 6 || got.Records != 6 || got.Jobs != 1 || got.Kept != 6 || got.Withdrawn != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	other := newWorld(t)
	if got, err := s.Check(context.Background(), other.trust(), Head{}, tell, nil); err != nil || got.Withdrawn != 6 {
		t.Errorf("with other keys: %+v, %v", got, err)
	}
	closeStore(t, s)
	if all := findings(t, dir, w.trust()); len(all) > 0 {
		t.Errorf("of a closed store in order: %q", all)
	}
	files, err := filepath.Glob(filepath.Join(keptDir(dir), "kept-*.jsonl"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%q, %v", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(b), "\n")
	if err := os.WriteFile(files[0], []byte(lines[0]+lines[1]+strings.Join(lines[3:], "")), 0o600); err != nil {
		t.Fatal(err)
	}
	all := strings.Join(findings(t, dir, w.trust()), "\n")
	if !strings.Contains(all, "record 2 is missing") || !strings.Contains(all, "fact 2: capability ") {
		t.Errorf("a line of the journal is gone: %q", all)
	}
}

// What a revoker took back who is not pinned now takes nothing back, and is there
// when the key is pinned again. A wrong signature under a pinned key's name is
// refused, and so is a stranger's record from elsewhere.
func TestDraftKeepsWhatIsWithdrawn(t *testing.T) {
	w, former, dir := newWorld(t), newWorld(t), storeDir(t)
	d := newDraft(t, dir, w.trust())
	forged := w.revocation(t, KindFile, digestOf("b.bin").String())
	i := strings.LastIndex(string(forged), `"sig":"`) + len(`"sig":"`)
	forged = []byte(string(forged[:i]) + strings.Repeat("A", 86) + "==" + string(forged[i+88:]))
	for _, c := range []struct {
		name  string
		r     Record
		from  Origin
		added bool
	}{
		{"a revocation of a former revoker", Record{Kind: RecordRevocation, Envelope: former.revocation(t, KindFile, digestOf("a.bin").String())}, OwnJournal, true},
		{"the same from elsewhere", Record{Kind: RecordRevocation, Envelope: former.revocation(t, KindFile, digestOf("c.bin").String())}, Elsewhere, false},
		{"a list of a former revoker", Record{Kind: RecordList, Envelope: keptList(t, former, 5)}, OwnStore, true},
		{"a wrong signature", Record{Kind: RecordRevocation, Envelope: forged}, OwnJournal, false},
		{"a capability of a former mint", Record{Kind: RecordCapability, Envelope: former.capability(t, "", "a.bin")}, OwnJournal, false},
		{"a capability", Record{Kind: RecordCapability, Envelope: w.capability(t, "", "a.bin")}, OwnJournal, true},
	} {
		added, err := d.Add(c.r, c.from)
		var refused *RefusedError
		if added != c.added || err != nil && !errors.As(err, &refused) {
			t.Errorf("%s: added %v, %v", c.name, added, err)
		}
	}
	if _, err := d.Commit(time.Now()); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir, w.trust())
	if isRevoked(t, s.Lookup(digestOf("a.bin"))) || len(s.View().Lists()) != 0 {
		t.Error("somebody who is not trusted took something back")
	}
	both := w.trust()
	both.Revokers = append(both.Revokers, Signer{"former", former.revoker.Public()})
	if err := s.Retrust(both); err != nil {
		t.Fatal(err)
	}
	if !isRevoked(t, s.Lookup(digestOf("a.bin"))) || s.View().List().Sequence() != 5 {
		t.Error("what a revoker took back who is trusted again was lost")
	}
}
