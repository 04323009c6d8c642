package capstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore/kept"
)

// A new store that is killed while it takes what the journal of the store before it
// takes back goes on with that at the next Open: half of it is not all of it.
func TestTakingBackIsResumed(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	const n = 200
	for i := range n {
		if _, err := s.Revoke(w.revocation(t, KindFile, digestOf(fmt.Sprint(i)).String())); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
	for _, d := range []string{dir, memoryOf(dir)} {
		if err := os.RemoveAll(d); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashKeys+"="+writeWorld(t, w))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var at head
	for end := time.Now().Add(time.Minute); at.n < 3 && time.Now().Before(end); {
		_, at, _, _ = readHead(memoryOf(dir)) // of a file that is not there yet, too
	}
	cmd.Process.Kill()
	cmd.Wait()
	if _, at, _, _ = readHead(memoryOf(dir)); at.n < 3 || at.n >= n {
		t.Fatalf("it was killed after %d of %d facts, and not in between", at.n, n)
	}
	s = openStore(t, dir, w.trust())
	lost := 0
	for i := range n {
		if s.View().RevokedBy(KindFile, digestOf(fmt.Sprint(i))).IsZero() {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d revocations of the journal are not in force after a crash while they were taken", lost, n)
	}
	closeStore(t, s)
	if got := findings(t, dir, w.trust()); len(got) > 0 {
		t.Errorf("findings: %q", got)
	}
}

// A snapshot is of one Trust: one that was begun before a Retrust ends with an
// error, because what a new key takes back may lie before the place it is at.
func TestSnapshotEndsAtRetrust(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	both := w.trust()
	both.Mints, both.Revokers = append(both.Mints, other.trust().Mints...), append(both.Revokers, other.trust().Revokers...)
	s := openStore(t, storeDir(t), both)
	for _, e := range [][]byte{other.revocation(t, KindFile, digestOf("x.bin").String()), w.revocation(t, KindFile, digestOf("y.bin").String())} {
		if _, err := s.Revoke(e); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Admit(other.capability(t, "", "x.bin")); err != nil {
		t.Fatal(err)
	}
	if err := s.Retrust(w.trust()); err != nil {
		t.Fatal(err)
	}
	v, err := NewView(both)
	if err != nil {
		t.Fatal(err)
	}
	snapshot, updates, cancel := s.Subscribe(4)
	defer cancel()
	var ended error
	n := 0
	for r, err := range snapshot {
		if err != nil {
			ended = err
			break
		}
		if err := v.Apply(r); err != nil {
			t.Error(err)
		}
		if n++; n == 1 {
			if err := s.Retrust(both); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n == 0 {
		t.Fatal("the snapshot has nothing")
	}
	if ended == nil {
		t.Error("a snapshot goes on over a Retrust without a word")
	}
	for _, g := range v.Lookup(digestOf("x.bin")) {
		if _, revoked := g.Revoked(); !revoked {
			t.Error("what is revoked is granted by the snapshot")
		}
	}
	if _, open := <-updates; open {
		t.Error("the subscription goes on over a Retrust")
	}
}

// A job whose capability could not be kept is finished by the next try, as Admit is.
func TestFinishAfterAFullJournal(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	j := addJob(t, s)
	j.Verdict = Minted
	if err := s.kept.Close(); err != nil {
		t.Fatal(err)
	}
	text := w.capability(t, "", "a.bin")
	if _, err := s.FinishJob(j, text); err == nil {
		t.Fatal("a capability that could not be kept was acknowledged")
	}
	var err error
	if s.kept, err = kept.Open(keptDir(s.dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.FinishJob(j, text); err != nil {
		t.Errorf("finishing again: %v", err)
	}
	if len(s.Lookup(digestOf("a.bin"))) != 1 {
		t.Error("the job is done, and its capability grants nothing")
	}
}

// What is written again while a backup reads is in the backup once.
func TestWalkHasWhatIsWrittenAgain(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	for _, name := range []string{"a.bin", "b.bin"} {
		if _, err := s.Admit(w.capability(t, "", name)); err != nil {
			t.Fatal(err)
		}
	}
	got := make(map[string]int)
	err := s.Walk(context.Background(), func(r Record) error {
		if len(got) == 0 {
			c, err := readCapability(s.view.mints, w.capability(t, "", "b.bin"))
			if err != nil {
				return err
			}
			s.mu.Lock()
			err = s.admit(c) // as after a row that could not be read
			s.mu.Unlock()
			if err != nil {
				return err
			}
		}
		got[string(r.Envelope)]++
		return nil
	}, func(Job) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 {
		t.Errorf("%d of 2 capabilities are in the backup", len(got))
	}
	for _, n := range got {
		if n != 1 {
			t.Errorf("one is there %d times", n)
		}
	}
}

// What is acknowledged while a check reads is no finding.
func TestCheckWhileRecordsCome(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	var found []string
	c := check{
		ctx: context.Background(), db: s.db, key: s.key, last: s.head, view: w.view(t), kept: keptDir(dir),
		tell: func(f Finding) { found = append(found, f.Where+": "+f.What) },
	}
	if err := c.readJournal(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Revoke(w.revocation(t, KindFile, digestOf("a.bin").String())); err != nil {
		t.Fatal(err)
	}
	if err := c.walkChain(); err != nil {
		t.Fatal(err)
	}
	if len(found) > 0 {
		t.Errorf("findings: %q", found)
	}
}

// A store that is closed says so, and not that a revocation is in force.
func TestRevokeAfterClose(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	closeStore(t, s)
	if r, err := s.Revoke(w.revocation(t, KindFile, digestOf("a.bin").String())); !errors.Is(err, ErrClosed) || !r.IsZero() || len(s.Unsaved()) != 0 {
		t.Errorf("Revoke of a closed store = %v, %v, unsaved %d; want nothing and ErrClosed", r, err, len(s.Unsaved()))
	}
	l := keptList(t, w, 1, ListEntry{Kind: KindFile, Target: digestOf("a.bin"), Reason: "no", IssuedAt: time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)})
	if r, err := s.AdmitList(l); !errors.Is(err, ErrClosed) || !r.IsZero() || len(s.Unsaved()) != 0 {
		t.Errorf("AdmitList of a closed store = %v, %v, unsaved %d; want nothing and ErrClosed", r, err, len(s.Unsaved()))
	}
}

// An entry that lies about what a revocation takes back does not keep the truth out
// that comes after it.
func TestLyingEntryIsOutlived(t *testing.T) {
	w := newWorld(t)
	for name, text := range map[string][]byte{"with the text": w.revocation(t, KindFile, digestOf("a.bin").String()), "with another text": []byte("none")} {
		v := w.view(t)
		if _, err := v.Admit(w.capability(t, "", "a.bin")); err != nil {
			t.Fatal(err)
		}
		r, err := readRevocation(v.revokers, w.revocation(t, KindFile, digestOf("a.bin").String()))
		if err != nil {
			t.Fatal(err)
		}
		lie := r.fact()
		lie.target.digest = digestOf("b.bin")
		for _, rec := range []Record{
			{Kind: RecordRevocation, Envelope: text, Entry: lie.body()},
			{Kind: RecordRevocation, Envelope: r.Envelope(), Entry: r.fact().body()},
		} {
			if err := v.Apply(rec); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if !isRevoked(t, v.Lookup(digestOf("a.bin"))) {
			t.Errorf("%s: the revocation is kept out by what was said of it before", name)
		}
	}
}

// A list that the store's own repeats whole does not come back from the journal.
func TestOutgrownListStaysOut(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	for sequence := range int64(3) {
		if _, err := s.AdmitList(keptList(t, w, sequence+1)); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, s)
	d := newDraft(t, dir, w.trust())
	if added, err := d.Add(Record{Kind: RecordList, Envelope: keptList(t, w, 3)}, OwnStore); err != nil || !added {
		t.Fatalf("added %v, %v", added, err)
	}
	if _, err := d.Commit(time.Now()); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, w.trust())
	if len(s.lists) != 1 || s.View().List().Sequence() != 3 {
		t.Errorf("%d lists, the newest %d; want the third alone", len(s.lists), s.View().List().Sequence())
	}
}

// A backup that is read slowly does not keep the store from being closed.
func TestCloseEndsWalk(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	for i := range 3 {
		if _, err := s.Admit(w.capability(t, fmt.Sprint(i), "a.bin")); err != nil {
			t.Fatal(err)
		}
	}
	closed := make(chan error, 1)
	n := 0
	err := s.Walk(context.Background(), func(Record) error {
		if n++; n == 1 {
			go func() { closed <- s.Close() }()
			for !s.closing.Load() {
				time.Sleep(time.Millisecond)
			}
		}
		return nil
	}, func(Job) error { return nil })
	if !errors.Is(err, ErrClosed) || n != 1 {
		t.Errorf("Walk = %v after %d records, want ErrClosed after 1", err, n)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

// A revocation of which only the entry is left refuses also where a full disk takes
// nothing.
func TestLostTextOnAFullDisk(t *testing.T) {
	w := newWorld(t)
	v, err := NewViewIn(t.TempDir(), w.trust())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	r, err := readRevocation(v.revokers, w.revocation(t, KindFile, digestOf("a.bin").String()))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.spool.file.Close(); err != nil { // as a disk that takes nothing
		t.Fatal(err)
	}
	if err := v.Apply(Record{Kind: RecordRevocation, Entry: r.fact().body()}); err != nil {
		t.Errorf("Apply = %v", err)
	}
	if !isRevoked(t, v.Lookup(digestOf("a.bin"))) {
		t.Error("the file is granted")
	}
}
