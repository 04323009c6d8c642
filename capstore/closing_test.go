package capstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Where Badger cannot make a file for what it has in memory, a store is closed at
// once for whoever uses it, and in fact when there is room. Until then nobody opens
// it; nothing is lost.
func TestCloseWithoutInodes(t *testing.T) {
	at := t.TempDir()
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=256m,nr_inodes=200"); err != nil {
		t.Fatalf("mounting needs root: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	w, dir := newWorld(t), filepath.Join(at, "store")
	s := openStore(t, dir, w.trust())
	if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	many := filepath.Join(at, "many")
	if err := os.Mkdir(many, 0o700); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		if err := os.WriteFile(filepath.Join(many, fmt.Sprint(n)), nil, 0o600); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Close() }()
	select {
	case err := <-ended:
		if !errors.Is(err, ErrClosing) {
			t.Errorf("Close = %v, want ErrClosing", err)
		}
	case <-time.After(10 * closePatience):
		t.Fatal("Close hangs where there are no inodes")
	}
	if _, err := s.Revoke(w.revocation(t, KindFile, digestOf("a.bin").String())); !errors.Is(err, ErrClosed) {
		t.Errorf("Revoke after Close: %v, want ErrClosed", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	select {
	case <-s.Closed():
		t.Fatal("Badger has closed, so nothing is shown here")
	default:
	}
	if _, err := Open(dir, memoryOf(dir), w.trust()); !errors.Is(err, ErrLocked) {
		t.Errorf("Open while it is being closed: %v, want ErrLocked", err)
	}
	if err := os.RemoveAll(many); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.Closed():
	case <-time.After(time.Minute):
		t.Fatal("there is room, and the store is not closed")
	}
	s = openStore(t, dir, w.trust())
	if len(s.Lookup(digestOf("a.bin"))) != 1 {
		t.Error("what was acknowledged is lost")
	}
}
