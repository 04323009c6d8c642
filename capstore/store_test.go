package capstore

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func openStore(t testing.TB, dir string, trust Trust) *Store {
	t.Helper()
	s, err := Open(dir, memoryOf(dir), trust)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func storeDir(t testing.TB) string { return filepath.Join(t.TempDir(), "store") }

// memoryOf is where the tests keep what belongs to the store in dir.
func memoryOf(dir string) string { return dir + ".memory" }

func TestStoreKeepsWhatItAcknowledged(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	c, err := s.Admit(w.capability(t, "", "a.bin"))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Admit(c.Envelope()); err != nil || again != c {
		t.Errorf("admitting again: %v, %v", again == c, err)
	}
	if _, err := s.Admit(w.capability(t, "2", "b.bin")); err != nil {
		t.Fatal(err)
	}
	r, err := s.Revoke(w.revocation(t, KindCapability, c.ID().String()))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Revoke(r.Envelope()); err != nil || again != r {
		t.Errorf("revoking again: %v, %v", again == r, err)
	}
	check := func(s *Store) {
		t.Helper()
		if len(s.All()) != 2 || len(s.View().Revocations()) != 1 || len(s.Rejected()) != 0 {
			t.Fatalf("%d capabilities, %d revocations, rejected %v", len(s.All()), len(s.View().Revocations()), s.Rejected())
		}
		if !isRevoked(t, s.Lookup(digestOf("a.bin"))) || isRevoked(t, s.Lookup(digestOf("b.bin2"))) {
			t.Error("revoked is not exactly what was revoked")
		}
	}
	check(s)
	for range 3 {
		closeStore(t, s)
		s = openStore(t, dir, w.trust())
		check(s)
	}
	closeStore(t, s)
	closeStore(t, s)
	_, err = s.Admit(w.capability(t, "3", "c.bin"))
	if !errors.Is(err, ErrClosed) {
		t.Errorf("admitting into a closed store: %v, want ErrClosed", err)
	}
	if _, err := s.Jobs(); !errors.Is(err, ErrClosed) {
		t.Errorf("jobs of a closed store: %v, want ErrClosed", err)
	}
}

// A view that belongs to a store takes nothing past the store.
func TestStoreViewTakesNoRecords(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	_, err := s.View().Admit(w.capability(t, "", "a.bin"))
	wantError(t, err, "belongs to a store")
	_, err = s.View().Revoke(w.revocation(t, KindFile, digestOf("a.bin").String()))
	wantError(t, err, "belongs to a store")
	if len(s.All())+len(s.View().Revocations()) != 0 {
		t.Error("the view took it all the same")
	}
}

// recordsOf reads a snapshot.
func recordsOf(t testing.TB, snapshot iter.Seq2[Record, error]) (list []Record) {
	t.Helper()
	for r, err := range snapshot {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	return list
}

// forge builds the separate program that writes into Badger.
func forge(t *testing.T) func(dir, key string, value []byte, flags ...string) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "forge")
	if out, err := exec.Command("go", "build", "-o", bin, "./testdata/forge").CombinedOutput(); err != nil {
		t.Fatalf("building the forger: %v\n%s", err, out)
	}
	return func(dir, key string, value []byte, flags ...string) {
		t.Helper()
		cmd := exec.Command(bin, append(flags, filepath.Join(dir, "db"), key)...)
		cmd.Stdin = bytes.NewReader(value)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("forging: %v\n%s", err, out)
		}
	}
}

// Rows that another program wrote: none is a grant, each is reported, and the
// real grant beside them stays.
func TestForgedRowsAreNotHonoured(t *testing.T) {
	w, dir, write := newWorld(t), storeDir(t), forge(t)
	s := openStore(t, dir, w.trust())
	real, err := s.Admit(w.capability(t, "", "real.bin"))
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)

	byStranger := w.statement(t, "", "stranger.bin")
	byStranger.Predicate.Minter.KeyID = w.stranger.Public().ID()
	strangers := payloadOf(t, byStranger)
	signedByOther := sign(t, payloadOf(t, w.statement(t, "", "claimed.bin")), w.stranger)
	revokedByStranger, err := NewRevocation(KindCapability, real.ID().String(), "x", real.NotBefore())
	if err != nil {
		t.Fatal(err)
	}
	strangersRevocation, err := SignRevocation(revokedByStranger, w.stranger)
	if err != nil {
		t.Fatal(err)
	}
	const alien, none, unknown = "authentication code", "no fact names it", "unknown kind of row"
	forged := map[string]struct {
		value  []byte
		want   string // of the row as it is
		sealed string // of the row if it was written with the store's own key
	}{
		"cap/" + digestOf(string(strangers)).String():                    {sign(t, strangers, w.stranger), alien, none},
		"cap/" + digestOf("claimed").String():                            {signedByOther, alien, none},
		"cap/" + digestOf("payload alone").String():                      {payloadOf(t, w.statement(t, "", "plain.bin")), alien, none},
		"cap/" + digestOf("JSON").String():                               {[]byte(`{"granted":true}`), alien, none},
		"cap/" + digestOf("empty").String():                              {nil, "the value is empty", "authentication code"},
		"cap/" + digestOf("moved").String():                              {real.Envelope(), alien, none},
		"cap/" + digestOf("the mint's own, unrecorded").String():         {w.capability(t, "", "unrecorded.bin"), alien, none},
		"rev/" + digestOf("revocation").String():                         {strangersRevocation, alien, none},
		"grant/" + digestOf("a.bin").String():                            {[]byte("yes"), unknown, unknown},
		"\x1b[2J":                                                        {[]byte("yes"), unknown, unknown},
		"rev/" + digestOf("a capability among the revocations").String(): {real.Envelope(), alien, none},
	}
	for _, sealed := range []bool{false, true} {
		for key, f := range forged {
			if sealed {
				f.value = keyOf(t, dir).seal([]byte(key), 1, f.value).value
			}
			write(dir, key, f.value)
		}
		s = openStore(t, dir, w.trust())
		if all := s.All(); len(all) != 1 || all[0].ID() != real.ID() || isRevoked(t, s.Lookup(digestOf("real.bin"))) {
			t.Errorf("the store grants %d capabilities, want the real one alone", len(all))
		}
		for _, content := range []string{"stranger.bin", "claimed.bin", "plain.bin", "unrecorded.bin"} {
			if g := s.Lookup(digestOf(content)); len(g) != 0 {
				t.Errorf("%s is granted by a forged row", content)
			}
		}
		rejected := s.Rejected()
		if len(rejected) != len(forged) {
			t.Errorf("%d rows rejected, want %d", len(rejected), len(forged))
		}
		for key, f := range forged {
			shown, want := strings.Trim(fmt.Sprintf("%q", key), `"`), f.want
			if sealed {
				want = f.sealed
			}
			found := false
			for _, r := range rejected {
				if r.Key == shown {
					found = true
					if !strings.Contains(r.Reason, want) {
						t.Errorf("%s is rejected with %q, want %q", shown, r.Reason, want)
					}
				}
			}
			if !found {
				t.Errorf("%s is not among the rejected", shown)
			}
		}
		// Nothing was deleted: another opening finds the same.
		closeStore(t, s)
		s = openStore(t, dir, w.trust())
		if n := len(s.Rejected()); n != len(forged) {
			t.Errorf("%d rows rejected the second time", n)
		}
		closeStore(t, s)
	}
}

// A forged row that occupies the place of a real capability does not keep it out.
func TestForgedRowIsReplaced(t *testing.T) {
	w, dir, write := newWorld(t), storeDir(t), forge(t)
	closeStore(t, openStore(t, dir, w.trust()))
	st := w.statement(t, "", "a.bin")
	payload := payloadOf(t, st)
	write(dir, "cap/"+digestOf(string(payload)).String(), []byte("occupied"))
	// Rows without a head's knowledge are no facts, so the store opens.
	s := openStore(t, dir, w.trust())
	if len(s.All()) != 0 || len(s.Rejected()) != 1 {
		t.Fatalf("%d capabilities, rejected %v", len(s.All()), s.Rejected())
	}
	if _, err := s.Admit(sign(t, payload, w.mint)); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	s = openStore(t, dir, w.trust())
	if len(s.All()) != 1 || len(s.Rejected()) != 0 {
		t.Errorf("%d capabilities, rejected %v", len(s.All()), s.Rejected())
	}
}

// Rows that a signer wrote who is no longer pinned are reported, not granted.
func TestTrustIsOfToday(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Revoke(w.revocation(t, KindFile, digestOf("b.bin").String())); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	other := []Signer{{"other", w.stranger.Public()}}
	s = openStore(t, dir, Trust{Mints: other, Revokers: other})
	if len(s.All())+len(s.View().Revocations()) != 0 || len(s.Rejected()) != 2 {
		t.Errorf("%d capabilities, %d revocations, rejected %v", len(s.All()), len(s.View().Revocations()), s.Rejected())
	}
	closeStore(t, s)
	s = openStore(t, dir, w.trust())
	if len(s.All()) != 1 || len(s.View().Revocations()) != 1 || len(s.Rejected()) != 0 {
		t.Error("pinning the keys again did not bring the rows back")
	}
}

// What Badger opens without a word, the head notices.
func TestDamageIsNoticed(t *testing.T) {
	w, write := newWorld(t), forge(t)
	for name, tc := range map[string]struct {
		harm func(t *testing.T, dir string, r Revocation, c Capability)
		want string // "" where the store opens and reports
	}{
		"database emptied": {func(t *testing.T, dir string, _ Revocation, _ Capability) {
			if err := os.RemoveAll(filepath.Join(dir, "db")); err != nil {
				t.Fatal(err)
			}
		}, "2 facts were acknowledged, and the rows hold 0"},
		"MANIFEST removed": {func(t *testing.T, dir string, _ Revocation, _ Capability) {
			if err := os.Remove(filepath.Join(dir, "db", "MANIFEST")); err != nil {
				t.Fatal(err)
			}
		}, "MANIFEST is missing beside"},
		"revocation and its log row deleted": {func(t *testing.T, dir string, r Revocation, _ Capability) {
			write(dir, "rev/"+r.ID().String(), nil, "-delete")
			write(dir, string(logKey(2)), nil, "-delete")
		}, "2 facts were acknowledged, and the rows hold 1"},
		"first log row deleted": {func(t *testing.T, dir string, _ Revocation, _ Capability) {
			write(dir, string(logKey(1)), nil, "-delete")
		}, "does not follow fact 0"},
		"log row altered": {func(t *testing.T, dir string, _ Revocation, _ Capability) {
			write(dir, string(logKey(2)), []byte(`{"kind":"capability"}`))
		}, "row log/0000000000000002"},
		"head removed": {func(t *testing.T, dir string, _ Revocation, _ Capability) {
			if err := os.Remove(filepath.Join(memoryOf(dir), HeadName)); err != nil {
				t.Fatal(err)
			}
		}, "no head file"},
		"head emptied": {func(t *testing.T, dir string, _ Revocation, _ Capability) {
			if err := os.WriteFile(filepath.Join(memoryOf(dir), HeadName), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "store-head: expected clawfs-head/v2"},
		"head of another store": {func(t *testing.T, dir string, _ Revocation, _ Capability) {
			if err := writeHead(memoryOf(dir), keyOf(t, dir), head{n: 2, hash: digestOf("other"), at: 1}); err != nil {
				t.Fatal(err)
			}
		}, "do not lead there"},
		"head of a later fact": {func(t *testing.T, dir string, _ Revocation, _ Capability) {
			if err := writeHead(memoryOf(dir), keyOf(t, dir), head{n: 3, hash: digestOf("other"), at: 1764000000}); err != nil {
				t.Fatal(err)
			}
		}, "3 facts were acknowledged, and the rows hold 2 that do not lead there (the newest fact is of 2025-11-24T16:00:00Z)"},
		"a byte of the head": {func(t *testing.T, dir string, _ Revocation, _ Capability) {
			change(t, filepath.Join(memoryOf(dir), HeadName), func(b []byte) { b[len(headFormat)+40] ^= 1 })
		}, "its checksum does not match"},
		"a byte of the key": {func(t *testing.T, dir string, _ Revocation, _ Capability) {
			change(t, filepath.Join(memoryOf(dir), KeyName), func(b []byte) { b[len(keyFormat)+40] ^= 1 })
		}, "its checksum does not match"},
		"capability row deleted": {func(t *testing.T, dir string, _ Revocation, c Capability) {
			write(dir, "cap/"+c.ID().String(), nil, "-delete")
		}, ""},
		"head a step behind, as a crash leaves it": {func(t *testing.T, dir string, _ Revocation, c Capability) {
			r, err := getRowOf(t, dir, string(logKey(1)))
			if err != nil {
				t.Fatal(err)
			}
			h, _, err := firstHead(keyOf(t, dir)).add(keyOf(t, dir), r)
			if err == nil {
				err = writeHead(memoryOf(dir), keyOf(t, dir), h)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := storeDir(t)
			s := openStore(t, dir, w.trust())
			c, err := s.Admit(w.capability(t, "", "a.bin"))
			if err != nil {
				t.Fatal(err)
			}
			r, err := s.Revoke(w.revocation(t, KindFile, digestOf("a.bin").String()))
			if err != nil {
				t.Fatal(err)
			}
			closeStore(t, s)
			tc.harm(t, dir, r, c)
			s, err = Open(dir, memoryOf(dir), w.trust())
			if tc.want != "" {
				wantError(t, err, "opening store", tc.want)
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("%v is not ErrDamaged", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if len(s.View().Revocations()) != 1 {
				t.Error("the revocation is gone")
			}
			if name == "capability row deleted" && (len(s.All()) != 0 || len(s.Rejected()) != 1) {
				t.Errorf("%d capabilities, rejected %v", len(s.All()), s.Rejected())
			}
		})
	}
}

// A revocation whose own row is lost or altered is in force all the same, here and at
// every mount, and is told; recording it again mends it.
func TestLostRevocationRefuses(t *testing.T) {
	w, write := newWorld(t), forge(t)
	for name, tc := range map[string]struct {
		harm func(dir, key string, c Capability)
		want string
	}{
		"deleted":     {func(dir, key string, _ Capability) { write(dir, key, nil, "-delete") }, "was acknowledged, and its row is missing"},
		"emptied":     {func(dir, key string, _ Capability) { write(dir, key, nil) }, "was acknowledged, and its row is altered"},
		"overwritten": {func(dir, key string, c Capability) { write(dir, key, c.Envelope()) }, "was acknowledged, and its row is altered"},
		"overwritten, sealed": {func(dir, key string, c Capability) {
			write(dir, key, keyOf(t, dir).seal([]byte(key), 2, c.Envelope()).value)
		}, "its row is altered: it holds another record"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := storeDir(t)
			s := openStore(t, dir, w.trust())
			c, err := s.Admit(w.capability(t, "", "a.bin"))
			if err != nil {
				t.Fatal(err)
			}
			envelope := w.revocation(t, KindFile, digestOf("a.bin").String())
			r, err := s.Revoke(envelope)
			if err != nil {
				t.Fatal(err)
			}
			closeStore(t, s)
			key := "rev/" + r.ID().String()
			tc.harm(dir, key, c)
			s = openStore(t, dir, w.trust())
			refuses := func(v *View) {
				t.Helper()
				g := v.Lookup(digestOf("a.bin"))
				if !isRevoked(t, g) || v.RevokedBy(KindFile, digestOf("a.bin")).IsZero() || len(v.InForce()) != 1 {
					t.Fatal("what was revoked is granted")
				}
				if by, _ := g[0].Revoked(); !strings.Contains(by.Reason(), "text is lost") || by.ID() != r.ID() {
					t.Errorf("the refusal says %q of %s", by.Reason(), by.ID())
				}
			}
			refuses(s.View())
			if bad := s.Rejected(); len(bad) != 1 || bad[0].Key != key || !strings.Contains(bad[0].Reason, tc.want) || !s.Swept() {
				t.Errorf("rejected %v, want %s with %q", bad, key, tc.want)
			}
			snapshot, _, cancel := s.Subscribe(1)
			cancel()
			mount := w.view(t)
			for _, rec := range recordsOf(t, snapshot) {
				if err := mount.Apply(rec); err != nil {
					t.Error(err)
				}
			}
			refuses(mount)
			if len(mount.Rejected()) != 1 || mount.Extent() != s.View().Extent() {
				t.Errorf("the mount tells of %v; extent %d and %d", mount.Rejected(), mount.Extent(), s.View().Extent())
			}
			retrust(t, s, w.trust())
			refuses(s.View())
			if _, err := s.Revoke(envelope); err != nil {
				t.Fatal(err)
			}
			closeStore(t, s)
			s = openStore(t, dir, w.trust())
			if by, _ := s.Lookup(digestOf("a.bin"))[0].Revoked(); by.Reason() != r.Reason() || len(s.Rejected()) != 0 || len(s.View().Revocations()) != 1 {
				t.Errorf("recorded again: reason %q, rejected %v, %d revocations", by.Reason(), s.Rejected(), len(s.View().Revocations()))
			}
		})
	}
}

// An older copy of the database under the newer head.
func TestOlderCopyIsRefused(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	db, old := filepath.Join(dir, "db"), filepath.Join(t.TempDir(), "old")
	if err := os.CopyFS(old, os.DirFS(db)); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, w.trust())
	if _, err := s.Revoke(w.revocation(t, KindFile, digestOf("a.bin").String())); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	if err := os.RemoveAll(db); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(db, os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(db, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir, memoryOf(dir), w.trust())
	wantError(t, err, "2 facts were acknowledged, and the rows hold 1")
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("%v is not ErrDamaged", err)
	}
}

func TestOpenRefusesPlaces(t *testing.T) {
	w := newWorld(t)
	for name, tc := range map[string]struct {
		make func(t *testing.T, dir string)
		want string
	}{
		"group may read": {func(t *testing.T, dir string) { mkdir(t, dir, 0o750) }, "mode 0750"},
		"all may enter":  {func(t *testing.T, dir string) { mkdir(t, dir, 0o711) }, "mode 0711"},
		"database open to all": {func(t *testing.T, dir string) {
			mkdir(t, dir, 0o700)
			mkdir(t, filepath.Join(dir, "db"), 0o755)
		}, "mode 0755"},
		"a file": {func(t *testing.T, dir string) {
			if err := os.WriteFile(dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a directory"},
		"a link": {func(t *testing.T, dir string) {
			mkdir(t, dir+".real", 0o700)
			if err := os.Symlink(dir+".real", dir); err != nil {
				t.Fatal(err)
			}
		}, "not a directory"},
		"no parent": {func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Dir(dir)); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
		"head unreadable": {func(t *testing.T, dir string) {
			mkdir(t, memoryOf(dir), 0o700)
			mkdir(t, filepath.Join(memoryOf(dir), HeadName), 0o700)
		}, "head"},
		"key unreadable": {func(t *testing.T, dir string) {
			mkdir(t, memoryOf(dir), 0o700)
			mkdir(t, filepath.Join(memoryOf(dir), KeyName), 0o700)
		}, KeyName},
		"memory open to all": {func(t *testing.T, dir string) { mkdir(t, memoryOf(dir), 0o755) }, "mode 0755"},
		"memory a file": {func(t *testing.T, dir string) {
			if err := os.WriteFile(memoryOf(dir), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := storeDir(t)
			tc.make(t, dir)
			s, err := Open(dir, memoryOf(dir), w.trust())
			wantError(t, err, "opening store", tc.want)
			if s != nil {
				t.Error("a store came with the error")
			}
		})
	}
}

func mkdir(t *testing.T, dir string, mode os.FileMode) {
	t.Helper()
	if err := os.Mkdir(dir, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
}

func TestSecondOpenerIsTold(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	_, err := Open(dir, memoryOf(dir), w.trust())
	wantError(t, err, fmt.Sprintf("process %d", os.Getpid()))
	if !errors.Is(err, ErrLocked) {
		t.Errorf("%v is not ErrLocked", err)
	}
	closeStore(t, s)
	openStore(t, dir, w.trust())
}

// The empty log file that a crash of Badger's leaves does not keep the store shut.
func TestEmptyLogFileIsNoObstacle(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	s := openStore(t, dir, w.trust())
	if _, err := s.Admit(w.capability(t, "", "a.bin")); err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
	for _, name := range []string{"00009.mem", "000009.vlog"} {
		if err := os.WriteFile(filepath.Join(dir, "db", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(openStore(t, dir, w.trust()).All()); n != 1 {
		t.Errorf("%d capabilities, want 1", n)
	}
}

// While two goroutines admit and one revokes, every subscriber ends up with the
// same set, each record once, and a snapshot that has the revocations first.
func TestSubscribeLosesNothing(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	const writers, each = 2, 15
	var envelopes [writers][each][]byte
	var revocations [each][]byte
	for i := range each {
		for g := range writers {
			envelopes[g][i] = w.capability(t, fmt.Sprint(g, i), "a.bin")
		}
		revocations[i] = w.revocation(t, KindFile, digestOf(fmt.Sprint("a.bin", 0, " ", i)).String())
	}
	var writing, reading sync.WaitGroup
	var subscribed sync.WaitGroup
	subscribed.Add(4)
	done := make(chan struct{})
	for reader := range 4 {
		reading.Go(func() {
			v, err := NewView(w.trust())
			if err != nil {
				t.Error(err)
				subscribed.Done()
				return
			}
			snapshot, updates, cancel := s.Subscribe(writers*each + each)
			defer cancel()
			subscribed.Done()
			seen := make(map[string]bool)
			take := func(r Record) {
				if seen[string(r.Envelope)] {
					t.Errorf("reader %d: a record came twice", reader)
				}
				seen[string(r.Envelope)] = true
				if err := v.Apply(r); err != nil {
					t.Error(err)
				}
			}
			grants := false
			for r, err := range snapshot {
				if err != nil {
					t.Error(err)
				}
				if grants && r.Kind == RecordRevocation {
					t.Error("a snapshot has a revocation after a capability")
				}
				grants = grants || r.Kind == RecordCapability
				take(r)
			}
			<-done
			cancel()
			cancel()
			for r := range updates {
				take(r)
			}
			if len(v.All()) != writers*each || len(v.Revocations()) != each {
				t.Errorf("reader %d has %d capabilities and %d revocations", reader, len(v.All()), len(v.Revocations()))
			}
		})
	}
	for g := range writers {
		writing.Go(func() {
			for i := range each {
				if _, err := s.Admit(envelopes[g][i]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writing.Go(func() {
		for i := range each {
			if _, err := s.Revoke(revocations[i]); err != nil {
				t.Error(err)
			}
		}
	})
	writing.Wait()
	subscribed.Wait()
	close(done)
	reading.Wait()
}

func TestSlowSubscriberIsCutOff(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	_, slow, cancel := s.Subscribe(2)
	defer cancel()
	_, least, cancelLeast := s.Subscribe(-1)
	defer cancelLeast()
	for i := range 4 {
		if _, err := s.Admit(w.capability(t, fmt.Sprint(i), "a.bin")); err != nil {
			t.Fatal(err)
		}
	}
	count := func(ch <-chan Record) (n int) {
		for range ch { // ends because the store closed it
			n++
		}
		return n
	}
	if n := count(slow); n != 2 {
		t.Errorf("a buffer of 2 gave %d records", n)
	}
	if n := count(least); n != 1 {
		t.Errorf("a buffer of -1 gave %d records, want 1", n)
	}
	snapshot, updates, cancel := s.Subscribe(1)
	defer cancel()
	if n := len(recordsOf(t, snapshot)); n != 4 {
		t.Errorf("subscribing again gave %d records, want 4", n)
	}
	closeStore(t, s)
	if _, open := <-updates; open {
		t.Error("Close left a subscription open")
	}
	if _, updates, _ := s.Subscribe(1); updates != nil {
		if _, open := <-updates; open {
			t.Error("a closed store sent a record")
		}
	}
}

// Envelopes beyond what a row may hold are refused before Badger sees them.
func TestLargestCapability(t *testing.T) {
	w := newWorld(t)
	s := openStore(t, storeDir(t), w.trust())
	names := make([]string, maxSubjects)
	for i := range names {
		names[i] = fmt.Sprintf("weights/model-%05d-of-01000.safetensors", i)
	}
	c, err := s.Admit(w.capability(t, "", names...))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Subjects()) != maxSubjects {
		t.Errorf("%d subjects", len(c.Subjects()))
	}
	for i := range names {
		names[i] += strings.Repeat("x", 200)
	}
	_, err = s.Admit(w.capability(t, "", names...))
	wantError(t, err, "at most 524288")
	if _, err := s.Admit(w.capability(t, "after", "a.bin")); err != nil {
		t.Errorf("the store does not go on after a refusal: %v", err)
	}
}
