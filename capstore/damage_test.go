package capstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// damagedDir turns the test binary into a program that opens a damaged store:
// Badger may panic in a goroutine of its own, which no test survives.
const damagedDir = "CAPSTORE_TEST_DAMAGED_DIR"

// openDamaged prints the digest of every file that is granted and not revoked.
func openDamaged(dir, keys string) error {
	w, err := readWorld(keys)
	if err != nil {
		return err
	}
	s, err := Open(dir, memoryOf(dir), w.trust())
	if err != nil {
		fmt.Println("refused:", err)
		return nil
	}
	defer s.Close()
	for _, g := range s.All() {
		for _, subject := range g.Subjects() {
			for _, g := range s.Lookup(subject.Digest) {
				if _, revoked := g.Revoked(); !revoked {
					fmt.Println("live:", subject.Digest)
				}
			}
		}
	}
	s.Jobs()
	fmt.Println("opened:", len(s.All()), "capabilities,", len(s.Rejected()), "rejected")
	return nil
}

// Bytes that change at any place of any file of the store give a refusal, a
// report, or a crash of the process that opens it: never a grant that nobody
// signed, never a revoked one back, never a process that hangs.
func TestDamageAnywhere(t *testing.T) {
	w := newWorld(t)
	keys := writeWorld(t, w)
	open, closed := filepath.Join(t.TempDir(), "open"), filepath.Join(t.TempDir(), "closed")
	live, revoked := make(map[string]bool), make(map[string]bool)
	dir := storeDir(t)
	s := openStore(t, dir, w.trust())
	for i := range 24 {
		name := fmt.Sprintf("%d.bin", i)
		if _, err := s.Admit(w.capability(t, "", name)); err != nil {
			t.Fatal(err)
		}
		addJob(t, s)
		live[digestOf(name).String()] = true
		if i%3 == 0 {
			if _, err := s.Revoke(w.revocation(t, KindFile, digestOf(name).String())); err != nil {
				t.Fatal(err)
			}
			delete(live, digestOf(name).String())
			revoked[digestOf(name).String()] = true
		}
		if i == 12 { // the first half in tables, the second in the log of the memtable
			closeStore(t, s)
			s = openStore(t, dir, w.trust())
		}
	}
	copyStore(t, open, dir) // as kill -9 leaves it
	closeStore(t, s)
	copyStore(t, closed, dir)

	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	ends := make(map[string]int)
	for i := range 40 {
		bad := filepath.Join(t.TempDir(), "bad")
		copyStore(t, bad, []string{open, closed}[i%2])
		what := harm(t, rng, bad)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), damagedDir+"="+bad, crashKeys+"="+keys)
		var out, errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		err := cmd.Run()
		if !timer.Stop() {
			t.Errorf("%s: opening took more than a minute", what)
		}
		for line := range strings.Lines(out.String()) {
			if d, ok := strings.CutPrefix(strings.TrimSpace(line), "live: "); ok && !live[d] {
				t.Errorf("%s: %s is granted, revoked before: %v", what, d, revoked[d])
			}
		}
		switch {
		case strings.HasPrefix(out.String(), "refused: "):
			ends["refused"]++
		case err == nil && strings.Contains(out.String(), "opened: 24 capabilities, 0 "):
			ends["no effect"]++
		case err == nil && strings.Contains(out.String(), "opened: "):
			ends["reported"]++
		case strings.Contains(errs.String(), "goroutine "):
			ends["crashed"]++
			t.Logf("%s: %.600s", what, errs.String())
		default:
			t.Errorf("%s: %v, %s%s", what, err, &out, &errs)
		}
		if err := errors.Join(os.RemoveAll(bad), os.RemoveAll(memoryOf(bad))); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v", ends)
}

// Each of these once ended the process: Badger gives a half-open database beside
// an error, and panics in its own goroutine over a table that was cut.
func TestDamagedFilesAreErrors(t *testing.T) {
	w := newWorld(t)
	for name, damage := range map[string]func(b []byte) []byte{
		"KEYREGISTRY": func(b []byte) []byte { clear(b); return b },
		"*.vlog":      func(b []byte) []byte { copy(b, "not the head of a log"); return b },
		"*.sst":       func(b []byte) []byte { return b[:len(b)/2] },
		"MANIFEST":    func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := storeDir(t)
			s := openStore(t, dir, w.trust())
			if _, err := s.Admit(w.capability(t, "", "a.bin", strings.Repeat("b", 200))); err != nil {
				t.Fatal(err)
			}
			closeStore(t, s)
			files, err := filepath.Glob(filepath.Join(dir, "db", name))
			if err != nil || len(files) == 0 {
				t.Fatalf("%d files %s: %v", len(files), name, err)
			}
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err == nil {
					err = os.WriteFile(f, damage(b), 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if s, err := Open(dir, memoryOf(dir), w.trust()); err == nil {
				s.Close()
				t.Error("the store opened")
			}
		})
	}
}

// harm changes a few bytes of one file, or cuts it, and says what it did.
func harm(t *testing.T, rng *rand.Rand, dir string) string {
	t.Helper()
	var files []string
	walk := func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, _ := d.Info(); info.Size() > 0 {
				files = append(files, path)
			}
		}
		return err
	}
	err := errors.Join(filepath.WalkDir(dir, walk), filepath.WalkDir(memoryOf(dir), walk))
	if err != nil || len(files) == 0 {
		t.Fatal(errors.Join(err, errors.New("no files")))
	}
	path := files[rng.IntN(len(files))]
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := len(bytes.TrimRight(b, "\x00")) // Badger's files end in zeros
	at := rng.IntN(max(used, 1))
	if rng.IntN(8) == 0 {
		at = rng.IntN(len(b))
	}
	what := ""
	switch rng.IntN(6) {
	case 0, 1:
		b[at] ^= 1 << rng.IntN(8)
		what = "a bit"
	case 2:
		n := min(16, len(b)-at)
		clear(b[at : at+n])
		what = "zeros"
	case 3:
		for i := at; i < min(at+16, len(b)); i++ {
			b[i] = byte(rng.Uint32())
		}
		what = "noise"
	case 4:
		b = b[:at]
		what = "cut"
	case 5:
		from := rng.IntN(max(used, 1))
		copy(b[at:], bytes.Clone(b[from:min(from+200, len(b))]))
		what = "moved"
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s at byte %d of %s", what, at, filepath.Base(path))
}

// copyStore copies a store together with what the machine remembers of it.
func copyStore(t *testing.T, to, from string) {
	t.Helper()
	for _, of := range []func(string) string{func(dir string) string { return dir }, memoryOf} {
		if err := os.CopyFS(of(to), os.DirFS(of(from))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(to, ballastName)); err != nil { // a copy is full of nothing
		t.Fatal(err)
	}
	for _, dir := range []string{to, filepath.Join(to, "db"), memoryOf(to)} {
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}
