package fs

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newTestJournal(t *testing.T) *journal {
	t.Helper()
	j, err := newJournal([]byte("an INIT"), 7)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.close)
	return j
}

// reread is the journal as a successor finds it.
func (j *journal) reread(t *testing.T) (*journal, []entry) {
	t.Helper()
	file, err := duplicate(j.file)
	if err != nil {
		t.Fatal(err)
	}
	again, list, err := openJournal(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.close)
	return again, list
}

// What was kept is there for a successor, what was dropped is not, and its room is
// used again, by the successor too.
func TestJournalKeeps(t *testing.T) {
	j := newTestJournal(t)
	small := j.put(entryHandle, 0, 0, []byte("small"))
	large := j.put(entryBound, 3, nodeCut, bytes.Repeat([]byte("large"), 1000))
	j.setRefs(large, 5)
	j.setFlag(large, nodeEarly)
	j.drop(small)
	if at := j.put(entryDir, 0, 0, []byte("again")); at != small {
		t.Errorf("slot %d after %d was dropped, want it again", at, small)
	}
	again, list := j.reread(t)
	if init, err := again.init(); err != nil || string(init) != "an INIT" || again.wire() != 7 {
		t.Errorf("INIT %q, %v, wire %d", init, err, again.wire())
	}
	if len(list) != 2 || list[0].kind != entryDir || string(list[0].body) != "again" ||
		list[1].kind != entryBound || list[1].refs != 5 || list[1].flags != nodeCut|nodeEarly || len(list[1].body) != 5000 {
		t.Fatalf("found %+v", list)
	}
	again.drop(list[0].slot)
	if at := again.put(entryHandle, 0, 0, []byte("third")); at != small {
		t.Errorf("successor's slot %d, want %d", at, small)
	}
	if n, err := again.next(); err != nil || n != 1 {
		t.Errorf("incarnation %d, %v", n, err)
	}
}

// What a process has registered stays for a while after its death, and not for another
// while after the death of each of its successors.
func TestJournalCountsGraceOnce(t *testing.T) {
	j := newTestJournal(t)
	until := make(map[int32]time.Time)
	began := time.Now()
	for id := int32(1); id <= 4; id++ { // each registers one file, and dies
		j.put(entryBacking, 0, 0, binary.NativeEndian.AppendUint64(nil, uint64(id)))
		successor, list := j.reread(t)
		f := &filesystem{journal: successor}
		for _, e := range list {
			if err := f.restoreBacking(e); err != nil {
				t.Fatal(err)
			}
		}
		if len(f.inherited) != int(id) {
			t.Fatalf("successor %d inherits %d files, want %d", id, len(f.inherited), id)
		}
		for _, b := range f.inherited {
			if was, known := until[b.id]; known && !b.until.Equal(was) {
				t.Errorf("successor %d keeps file %d until %v, and its predecessor until %v", id, b.id, b.until, was)
			}
			if b.until.Before(began.Add(backingGrace)) || b.until.After(time.Now().Add(backingGrace)) {
				t.Errorf("file %d goes %v after the first death, want %v", b.id, b.until.Sub(began), backingGrace)
			}
			until[b.id] = b.until
		}
		time.Sleep(time.Millisecond)
	}
	// A clock that was put back does not make it stay longer.
	_, list := j.reread(t)
	j.setRefs(list[0].slot, uint64(time.Now().Add(time.Hour).UnixNano()))
	_, list = j.reread(t)
	if d := j.deadline(list[0], backingGrace); time.Until(d) > backingGrace {
		t.Errorf("it goes in %v, want %v at most", time.Until(d), backingGrace)
	}
}

// A process that dies at any instruction of put leaves the entry whole or leaves
// none.
func TestJournalSurvivesAnyInstruction(t *testing.T) {
	j := newTestJournal(t)
	j.put(entryHandle, 0, 0, []byte("first"))
	// Dead after its slot was taken, before it was kept.
	at := j.take(slotHead + 5)
	for _, part := range []int{0, 1, 5} {
		copy(j.mem[at+slotHead:], "entry"[:part])
		if _, list := j.reread(t); len(list) != 1 || string(list[0].body) != "first" {
			t.Fatalf("with %d bytes written: %+v", part, list)
		}
	}
	if again, _ := j.reread(t); again.end != j.end || len(again.free[minClass]) != 1 {
		t.Errorf("the slot of the dead is lost")
	}
}

// A journal that is full keeps no more, and counts that.
func TestJournalIsBounded(t *testing.T) {
	j := newTestJournal(t)
	j.end = journalSize - 1<<minClass
	if at := j.put(entryHandle, 0, 0, []byte("last")); at == 0 {
		t.Error("no room for the last")
	}
	if at := j.put(entryHandle, 0, 0, []byte("one too many")); at != 0 || j.word(atUnkept).Load() != 1 {
		t.Errorf("slot %d, %d not kept, want none and 1", at, j.word(atUnkept).Load())
	}
	j.drop(0)
	j.setRefs(0, 1)
	j.setFlag(0, 1)
	if at := j.put(entryHandle, 0, 0, make([]byte, 1<<maxClass)); at != 0 {
		t.Errorf("slot %d for what is too large", at)
	}
	var none *journal
	if at := none.put(entryHandle, 0, 0, nil); at != 0 {
		t.Errorf("slot %d without a journal", at)
	}
	none.drop(1)
	none.close()
}

// The table of nodes and its journal agree about the kernel's references.
func TestJournalFollowsReferences(t *testing.T) {
	j := newTestJournal(t)
	nodes := newNodeTable()
	nodes.journal = j
	var st unix.Stat_t
	if err := unix.Stat(os.Args[0], &st); err != nil {
		t.Fatal(err)
	}
	a, b := nodes.lookup("a", &st), nodes.lookup("b", &st)
	nodes.lookup("a", &st)
	nodes.lookup("a", &st)
	nodes.forget(a.id, 1)
	nodes.retire(a)
	nodes.forget(b.id, 1)
	_, list := j.reread(t)
	if len(list) != 1 || list[0].refs != 2 || list[0].flags != nodeRetired {
		t.Fatalf("kept %+v, want a, twice, retired", list)
	}
	n, err := readNode(list[0].body)
	if err != nil {
		t.Fatal(err)
	}
	if n.id != a.id || n.path != "a" || n.ident != a.ident || n.attr != a.attr {
		t.Errorf("read %+v %+v, want %+v %+v", n.ident, n.attr, a.ident, a.attr)
	}
}
