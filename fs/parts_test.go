package fs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/hashpipe"
)

// fileOf makes a file and opens it.
func fileOf(t *testing.T, data []byte) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// A unit that is read again and again is hashed once, as long as it is kept.
func TestUnitIsCheckedOnce(t *testing.T) {
	data := sample(80, 2*hashpipe.UnitSize)
	f := fileOf(t, data)
	got, err := hashpipe.MeasureFile(t.Context(), f, int64(len(data)), nil)
	if err != nil {
		t.Fatal(err)
	}
	var checked atomic.Int64
	c := newUnitCache(&checked)
	of := &content{checked: hashpipe.NewCheckedReader(f, got.Tree())}
	get := func(number int64) {
		t.Helper()
		u := c.get(of, number)
		defer c.put(u)
		<-u.ready
		if want := data[number*hashpipe.UnitSize:][:hashpipe.UnitSize]; u.err != nil || !slices.Equal(u.data, want) {
			t.Fatalf("unit %d: %d bytes, %v", number, len(u.data), u.err)
		}
	}
	for _, n := range []int64{0, 0, 1, 0, 1} {
		get(n)
	}
	if n := checked.Load(); n != 2 {
		t.Errorf("two units were checked %d times", n)
	}
	c.forget(of)
	get(0)
	if n := checked.Load(); n != 3 {
		t.Errorf("a unit that was forgotten was checked %d times, with all others", n)
	}
}

// What cannot be opened again, or does not reach the disk, is an error.
func TestPrivateFileFails(t *testing.T) {
	f := fileOf(t, nil)
	f.Close()
	if r, err := readOnly(f); err == nil {
		t.Errorf("a closed file was opened for reading: %v", r)
	}
	d := &draft{w: f}
	if err := d.finish(); err == nil {
		t.Error("a private file that cannot be synced is finished")
	}
	if d.w != nil {
		t.Error("a draft that is finished can be written")
	}
}

// A file that somebody holds a lease on says so.
func TestLeasedFile(t *testing.T) {
	f := fileOf(t, []byte("a"))
	src, err := openSource(filepath.Dir(f.Name()))
	if err != nil {
		t.Fatal(err)
	}
	defer src.close()
	w, err := os.OpenFile(f.Name(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	defer unix.FcntlInt(w.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	if got, _, err := src.open("file"); !errors.Is(err, errLeased) || got != nil {
		t.Errorf("open = %v, %v, want %v", got, err, errLeased)
	}
}

// Strangers are all capabilities but one, in whatever order they came.
func TestStrangersInAnyOrder(t *testing.T) {
	for own := range 3 {
		d := newDesk(t)
		claim := hashpipe.Digest{}
		for i := range 3 {
			name := []string{"m/a", "m/b", "m/c"}[i]
			c := d.grant(name, []byte(name), func(w *terms) { w.sequence = int64(1 + i) })
			if i == own {
				claim = c.Claim()
			}
		}
		f := &filesystem{view: d.view}
		var names []string
		for name := range f.strangers("m", nil, claim) {
			names = append(names, name)
		}
		mine := []string{"a", "b", "c"}[own]
		if slices.Contains(names, mine) || slices.Contains(names, "m/"+mine) || len(names) != 4 { // as outputs of a release at m and of one above
			t.Errorf("strangers of number %d: %q", own, names)
		}
	}
}

// A source that changed while its private file was made is not measured.
func TestStepNotReady(t *testing.T) {
	b := newBench(t, VerifyStream, 0)
	fl := &flight{file: fileOf(t, []byte("a")), id: identity{size: 1}, notReady: hashpipe.ErrChanged}
	fl.ready.Do(func() {})
	if more, err := b.m.step(t.Context(), fl); more || !errors.Is(err, hashpipe.ErrChanged) {
		t.Errorf("step = %v, %v", more, err)
	}
}

// After a measurement nothing is left that could write its private file, and after a
// panic in its end no private file.
func TestEndOfMeasurement(t *testing.T) {
	data := sample(81, 300_000)
	for _, panics := range []bool{false, true} {
		b := newBench(t, VerifyStream, 0)
		v, err := newVault(Config{Seal: SealCopy, Private: t.TempDir(), SealFrom: 1})
		if err != nil {
			t.Fatal(err)
		}
		b.desk.grant("a", data)
		ctx, cancel := context.WithCancel(t.Context())
		var spared atomic.Int32 // the first is what reads the file
		b.m = newMeasurer(ctx, 1, VerifyStream, v, &b.counters, func(size int64) claims { return claims{b.desk.view, size} },
			func(hashpipe.Digest) bool { return true }, func(do func()) bool { do(); return spared.Add(1) == 1 || !panics })
		fl := b.measure("a", data)
		if (fl.err != nil) != panics || panics && !errors.Is(fl.err, errPanic) || fl.draft != nil || fl.early != nil {
			t.Errorf("panics %v: %v, draft %v, early %v", panics, fl.err, fl.draft, fl.early)
		}
		if (fl.private == nil) != panics {
			t.Errorf("panics %v: private file %v, %q", panics, fl.private, fl.unsealed)
		}
		cancel()
		b.m.wait()
		v.end()
	}
}
