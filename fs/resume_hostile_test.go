package fs

import (
	"strings"
	"syscall"
	"testing"
)

// What audit mode has opened without proof ends with the process that did: nobody
// knows any more what it was, so neither the end of audit mode nor a revocation could
// take it back. That holds for the pages that the kernel has, too.
func TestResumeDropsUncheckedPages(t *testing.T) {
	m := mountEmpty(t, handing, anHour)
	data := sample(9, 2<<20)
	m.write("stranger.bin", data)
	session := m.session()
	h := m.hold("stranger.bin")
	for _, how := range []string{"read", "touch"} {
		if r := h.ask(how); r.Errno != 0 {
			t.Fatalf("%s in audit mode: %v", how, r)
		}
	}
	m.kill()
	m.resume(session)
	m.eventually("a read of what was open unchecked fails", func() bool { return h.ask("read").Errno == syscall.EIO })
	if r := h.ask("touch"); r.Errno == 0 {
		t.Errorf("a mapping from before goes on: %v", r)
	}
	m.audits("stranger.bin", data, ReasonNoCapability)
	h.quit()
}

// A journal that had no room for something does not say of which contents the kernel
// has pages, so nobody goes on by it.
func TestJournalWithoutRoomIsRefused(t *testing.T) {
	j, err := newJournal(make([]byte, 104), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	kept := j.put(entryNode, 1, 0, make([]byte, 1<<20))
	again := func() error {
		f, err := duplicate(j.file)
		if err != nil {
			t.Fatal(err)
		}
		other, _, err := openJournal(f)
		if err == nil {
			other.close()
		} else {
			f.Close()
		}
		return err
	}
	if err := again(); err != nil || kept == 0 {
		t.Fatalf("slot %d, %v", kept, err)
	}
	if at := j.put(entryBound, 0, 0, make([]byte, journalSize)); at != 0 {
		t.Fatalf("an entry of the journal's size is at %d", at)
	}
	if err := again(); err == nil || !strings.Contains(err.Error(), "no room for 1 ") {
		t.Errorf("a journal that lacks an entry: %v", err)
	}
}
