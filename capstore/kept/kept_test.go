package kept

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func openAt(t *testing.T, dir string) *Journal {
	t.Helper()
	j, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func closeJournal(t *testing.T, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func envelope(n int) Record {
	return Record{Kind: "revocation", Envelope: []byte(fmt.Sprintf("envelope %d", n))}
}

// fill appends facts from+1 to to.
func fill(t *testing.T, j *Journal, store string, from, to int) {
	t.Helper()
	for n := from + 1; n <= to; n++ {
		if err := j.Append(store, uint64(n), envelope(n)); err != nil {
			t.Fatal(err)
		}
	}
}

// texts are the envelopes that can be read, and what cannot.
func texts(t *testing.T, dir string) (all []string, damage []Damage) {
	t.Helper()
	damage, err := Read(dir, func(r Record) error {
		all = append(all, string(r.Envelope))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, damage
}

func begun(t *testing.T, dir, store string) *Journal {
	t.Helper()
	j := openAt(t, dir)
	if err := j.Begin(store, 0); err != nil {
		t.Fatal(err)
	}
	return j
}

func TestAppendRefuses(t *testing.T) {
	j := begun(t, filepath.Join(t.TempDir(), "kept"), "one")
	fill(t, j, "one", 0, 2)
	for name, err := range map[string]error{
		"a gap":            j.Append("one", 4, envelope(4)),
		"fact 0":           j.Append("one", 0, envelope(0)),
		"another store":    j.Append("two", 3, envelope(3)),
		"no envelope":      j.Append("one", 3, Record{Kind: "revocation"}),
		"no kind":          j.Append("one", 3, Record{Envelope: []byte("a")}),
		"a kind of lines":  j.Append("one", 3, Record{Kind: "a\nb", Envelope: []byte("a")}),
		"a long envelope":  j.Append("one", 3, Record{Kind: "revocation", Envelope: make([]byte, MaxEnvelope+1)}),
		"a store of lines": j.Begin("a\nb", 0),
	} {
		if err == nil {
			t.Errorf("%s was accepted", name)
		}
		if name == "a gap" != errors.Is(err, ErrGap) && name != "fact 0" && name != "another store" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(j.dir); !errors.Is(err, ErrLocked) {
		t.Errorf("a second Open: %v, want ErrLocked", err)
	}
	if got := j.Facts("one"); got != 2 {
		t.Errorf("%d facts, want 2", got)
	}
	closeJournal(t, j)
	if err := j.Append("one", 3, envelope(3)); err == nil {
		t.Error("a closed journal took a record")
	}
	if err := j.Wait(envelope(3)); err == nil {
		t.Error("a closed journal took a record that waits")
	}
	if err := os.Chmod(j.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(j.dir); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("a directory that others read: %v", err)
	}
}

func TestFactsOfAStoreAreKeptOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kept")
	j := begun(t, dir, "one")
	fill(t, j, "one", 0, 3)
	if err := j.Append("one", 2, envelope(2), envelope(3), envelope(4)); err != nil {
		t.Fatal(err)
	}
	closeJournal(t, j)
	j = openAt(t, dir)
	if got := j.Facts("one"); got != 4 || j.Facts("two") != 0 || j.Records() != 4 {
		t.Errorf("%d facts of one, %d of two, %d records; want 4, 0, 4", got, j.Facts("two"), j.Records())
	}
	// A store that was made again of what is here begins with its facts known.
	if err := j.Begin("two", 4); err != nil {
		t.Fatal(err)
	}
	fill(t, j, "two", 4, 5)
	closeJournal(t, j)
	j = openAt(t, dir)
	if j.Facts("two") != 5 || j.Facts("one") != 0 || j.Records() != 5 {
		t.Errorf("%d facts of two, %d of one, %d records; want 5, 0, 5", j.Facts("two"), j.Facts("one"), j.Records())
	}
	all, damage := texts(t, dir)
	if len(damage) > 0 || strings.Join(all, ",") != "envelope 1,envelope 2,envelope 3,envelope 4,envelope 5" {
		t.Errorf("read %q, damage %v", all, damage)
	}
}

func TestFilesAreBounded(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kept")
	j := begun(t, dir, "one")
	j.maxFile = 1000
	fill(t, j, "one", 0, 20)
	var batch []Record
	for n := 21; n <= 40; n++ {
		batch = append(batch, envelope(n))
	}
	if err := j.Append("one", 21, batch...); err != nil {
		t.Fatal(err)
	}
	closeJournal(t, j)
	files, err := list(dir)
	if err != nil || len(files) < 5 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Size() > 1300 {
			t.Errorf("%s: %v, %d bytes", f, err, info.Size())
		}
	}
	all, damage := texts(t, dir)
	if len(all) != 40 || all[39] != "envelope 40" || len(damage) > 0 {
		t.Errorf("read %q, damage %v", all, damage)
	}
	// A file that is gone is told, and hides nothing of the others.
	if err := os.Remove(files[1]); err != nil {
		t.Fatal(err)
	}
	all, damage = texts(t, dir)
	if len(damage) != 1 || !strings.Contains(damage[0].Reason, "are missing") || all[len(all)-1] != "envelope 40" {
		t.Errorf("read %q, damage %v", all, damage)
	}
	j = openAt(t, dir)
	if j.Facts("one") != 40 {
		t.Errorf("%d facts, want 40", j.Facts("one"))
	}
}

// A crash leaves any part of what was written last. It was not acknowledged, and
// the journal goes on with the same number.
func TestTornLine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kept")
	j := begun(t, dir, "one")
	fill(t, j, "one", 0, 2)
	path := j.file.Name()
	two, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, j, "one", 2, 3)
	closeJournal(t, j)
	three, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := range three {
		if err := os.WriteFile(path, three[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, damage := texts(t, dir); size > bytes.IndexByte(three, '\n') && len(damage) > 0 {
			t.Errorf("%d bytes: a reader calls a line in the making damage: %v", size, damage)
		}
		j, err := Open(dir)
		if err != nil {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if size == 0 || size == bytes.IndexByte(three, '\n')+1 || size == len(two) {
			if len(j.Damage()) > 0 {
				t.Errorf("%d bytes: damage %v", size, j.Damage())
			}
		} else if lineEnd := three[size-1] == '\n'; !lineEnd && len(j.Damage()) != 1 {
			t.Errorf("%d bytes: the cut was not told: %v", size, j.Damage())
		}
		facts := j.Facts("one")
		if want := uint64(max(0, bytes.Count(three[:size], []byte("\n"))-1)); facts != want {
			t.Fatalf("%d bytes: %d facts, want %d", size, facts, want)
		}
		if j.store == "" {
			if err := j.Begin("one", 0); err != nil {
				t.Fatal(err)
			}
		}
		fill(t, j, "one", int(facts), 4)
		closeJournal(t, j)
		if all, damage := texts(t, dir); strings.Join(all, ",") != "envelope 1,envelope 2,envelope 3,envelope 4" || len(damage) > 0 {
			t.Fatalf("%d bytes: afterwards %q, damage %v", size, all, damage)
		}
	}
}

// One byte that changed is told, and costs at most the line that it is in, or the
// two that it joins.
func TestDamagedByte(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kept")
	j := begun(t, dir, "one")
	fill(t, j, "one", 0, 4)
	path := j.file.Name()
	closeJournal(t, j)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	start := len(lines[0])
	for at := range whole {
		flip := []byte{1, 0x20, 0x80, whole[at]}[at%4] // the last one makes a zero of it
		bad := bytes.Clone(whole)
		bad[at] ^= flip
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		all, damage := texts(t, dir)
		lost := 4 - len(all)
		if at == len(whole)-1 {
			// The last line end: as if the line were in the making.
			if lost != 1 {
				t.Errorf("byte %d: read %q", at, all)
			}
		} else if len(damage) == 0 || lost > 2 || at < start-1 && lost > 0 {
			t.Errorf("byte %d, ^%x: read %q, damage %v", at, flip, all, damage)
		}
		for i, text := range all {
			if i > 0 && text <= all[i-1] || !strings.HasPrefix(text, "envelope ") {
				t.Errorf("byte %d, ^%x: read %q", at, flip, all)
			}
		}
		// Whoever goes on writing never writes over what is damaged, and never takes a
		// fact for kept that is not.
		j, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if facts := j.Facts("one"); facts > 0 {
			fill(t, j, "one", int(facts), 5)
		} else {
			if err := j.Begin("one", 0); err != nil {
				t.Fatal(err)
			}
			fill(t, j, "one", 0, 5)
		}
		closeJournal(t, j)
		after, err := os.ReadFile(path)
		if err != nil || at != len(whole)-1 && !bytes.HasPrefix(after, bad) {
			t.Fatalf("byte %d: what was damaged was written over: %v", at, err)
		}
		if all, _ := texts(t, dir); len(all) < 3 || all[len(all)-1] != "envelope 5" {
			t.Errorf("byte %d: afterwards %q", at, all)
		}
		files, err := list(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A line that is too long for a record is passed over without being held in memory.
func TestLongLine(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kept")
	j := begun(t, dir, "one")
	fill(t, j, "one", 0, 1)
	long := append(bytes.Repeat([]byte("x"), 3*maxLine), '\n')
	if err := writeAll(j.file, long); err != nil {
		t.Fatal(err)
	}
	closeJournal(t, j)
	j = openAt(t, dir)
	fill(t, j, "one", int(j.Facts("one")), 2)
	big := Record{Kind: "revocation", Envelope: bytes.Repeat([]byte("e"), MaxEnvelope)}
	if err := j.Append("one", 3, big); err != nil {
		t.Fatal(err)
	}
	all, damage := texts(t, dir)
	if len(all) != 3 || all[2] != string(big.Envelope) || len(damage) != 1 {
		t.Errorf("read %d records, damage %v", len(all), damage)
	}
}

func TestWaiting(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "kept")
	j := openAt(t, dir)
	waiting := func() (all []string) {
		t.Helper()
		damage, err := ReadWaiting(dir, func(r Record) error { all = append(all, string(r.Envelope)); return nil })
		if err != nil || len(damage) > 0 {
			t.Fatalf("%v, damage %v", err, damage)
		}
		return all
	}
	if got := waiting(); len(got) != 0 {
		t.Errorf("before anything waits: %q", got)
	}
	for _, n := range []int{1, 2, 1} {
		if err := j.Wait(envelope(n)); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, waitingName)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"n":3,"kind":"revo`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := j.Wait(envelope(3)); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(waiting(), ","); got != "envelope 1,envelope 2,envelope 3" {
		t.Errorf("waiting: %q", got)
	}
	if err := errors.Join(j.DropWaiting(), j.DropWaiting()); err != nil {
		t.Fatal(err)
	}
	if got := waiting(); len(got) != 0 {
		t.Errorf("after the store took them: %q", got)
	}
}

func FuzzLine(f *testing.F) {
	for _, r := range []Record{envelope(1), {N: 7, Kind: "capability", Envelope: []byte{0, 1, 2}}} {
		r.N = max(r.N, 1)
		text, err := r.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"n":1,"n":2,"kind":"revocation","envelope":"YQ==","sum":""}` + "\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseRecord(text)
		if err != nil {
			return
		}
		again, err := r.encode()
		if err != nil || !bytes.Equal(again, text) {
			t.Errorf("%q is read as %q: %v", text, again, err)
		}
	})
}

// On a full disk a record is refused and leaves nothing behind; with room the
// journal goes on, in the same process and in the next.
func TestFullDisk(t *testing.T) {
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=256k,mode=0700"); err != nil {
		t.Fatalf("mounting a tmpfs: %v (this test runs as root: sudo make test)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	})
	dir := filepath.Join(mnt, "kept")
	j := begun(t, dir, "one")
	j.maxFile = 16 << 10
	var full error
	for n := uint64(1); full == nil && n < 1000; n++ {
		full = j.Append("one", n, Record{Kind: "revocation", Envelope: bytes.Repeat([]byte{byte(n)}, 3000)})
	}
	if !errors.Is(full, unix.ENOSPC) {
		t.Fatalf("on a full disk: %v", full)
	}
	facts := j.Facts("one")
	all, damage := texts(t, dir)
	if uint64(len(all)) != facts || facts < 10 || len(damage) > 0 {
		t.Fatalf("%d facts, %d records read, damage %v", facts, len(all), damage)
	}
	if err := j.Wait(Record{Kind: "revocation", Envelope: bytes.Repeat([]byte("w"), 8000)}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("waiting on a full disk: %v", err)
	}
	closeJournal(t, j)
	j = openAt(t, dir)
	if j.Facts("one") != facts || len(j.Damage()) > 0 {
		t.Fatalf("opened on the full disk: %d facts, damage %v; want %d", j.Facts("one"), j.Damage(), facts)
	}
	if err := unix.Mount("", mnt, "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	fill(t, j, "one", int(facts), int(facts)+3)
	if err := j.Wait(envelope(1)); err != nil {
		t.Fatal(err)
	}
	closeJournal(t, j)
	if all, damage := texts(t, dir); uint64(len(all)) != facts+3 || len(damage) > 0 {
		t.Errorf("with room: %d records, want %d, damage %v", len(all), facts+3, damage)
	}
}
