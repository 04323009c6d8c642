package capstore

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/verifier/dsse"
	"golang.org/x/sys/unix"
)

// The environment variables below turn the test binary into the program that
// gets killed, or that fills a disk.
const (
	crashDir  = "CAPSTORE_TEST_CRASH_DIR"
	crashKeys = "CAPSTORE_TEST_CRASH_KEYS"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := admitForEver(dir, os.Getenv(crashKeys)); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	if dir := os.Getenv(manyMount); dir != "" {
		if err := runManyMount(dir, os.Getenv(crashKeys)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(damagedDir); dir != "" {
		if err := openDamaged(dir, os.Getenv(crashKeys)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// admitForEver prints the id of each capability after Admit returned, and of
// each revocation after Revoke returned, until it is killed.
func admitForEver(dir, keys string) error {
	w, err := readWorld(keys)
	if err != nil {
		return err
	}
	s, err := Open(dir, memoryOf(dir), w.trust())
	if err != nil {
		return err
	}
	tag := strconv.Itoa(os.Getpid())
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s-%d.bin", tag, i)
		j, err := s.AddJob(Job{SBA: digestOf("ledger" + tag), Model: "acme/langid", Version: "1.2.0", State: JobPending})
		if err != nil {
			return err
		}
		j.Verdict = Minted
		c, err := s.FinishJob(j, w.capabilityOrPanic(tag, name))
		if err != nil {
			return err
		}
		fmt.Println("cap", c.ID(), j.ID)
		if i%3 == 0 {
			st, err := NewRevocation(KindCapability, c.ID().String(), "crash test", time.Now())
			if err != nil {
				return err
			}
			e, err := SignRevocation(st, w.revoker)
			if err != nil {
				return err
			}
			if _, err := s.Revoke(e); err != nil {
				return err
			}
			fmt.Println("rev", c.ID())
		}
	}
}

// panicker is a testing.TB for the helpers where there is no test.
type panicker struct{ testing.TB }

func (panicker) Helper()           {}
func (panicker) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func (w world) capabilityOrPanic(tag, name string) []byte {
	return w.capability(panicker{}, tag, name)
}

func writeWorld(t *testing.T, w world) string {
	t.Helper()
	dir := t.TempDir()
	for i, k := range []dsse.PrivateKey{w.mint, w.revoker, w.publisher, w.stranger} {
		text, err := k.PEM()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func readWorld(dir string) (w world, err error) {
	for i, k := range []*dsse.PrivateKey{&w.mint, &w.revoker, &w.publisher, &w.stranger} {
		text, err := os.ReadFile(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			return world{}, err
		}
		if *k, err = dsse.ParsePrivateKey(text, nil); err != nil {
			return world{}, err
		}
	}
	return w, nil
}

// kill -9 at an arbitrary moment: every acknowledged grant, job and revocation
// is there after the next opening, revocations outrank, and nothing is done by hand.
func TestKillWhileAdmitting(t *testing.T) {
	w, dir := newWorld(t), storeDir(t)
	keys := writeWorld(t, w)
	acked, revoked := make(map[string]string), make(map[string]bool)
	for round := range 6 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir, crashKeys+"="+keys)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := 0
		for sc := bufio.NewScanner(out); sc.Scan(); {
			f := strings.Fields(sc.Text())
			switch {
			case len(f) == 3 && f[0] == "cap":
				acked[f[1]] = f[2]
			case len(f) == 2 && f[0] == "rev":
				revoked[f[1]] = true
			default:
				t.Fatalf("the child said %q", sc.Text())
			}
			if lines++; lines == 5+7*round {
				// Some time into the next write, a different one each round.
				time.AfterFunc(time.Duration(round)*700*time.Microsecond, func() { cmd.Process.Kill() })
			}
		}
		if err := cmd.Wait(); err == nil || lines < 5+7*round {
			t.Fatalf("round %d: the child ended by itself after %d lines: %v", round, lines, err)
		}
		s := openStore(t, dir, w.trust())
		if r := s.Rejected(); len(r) != 0 {
			t.Fatalf("round %d: rejected %v", round, r)
		}
		grants := make(map[string]Grant)
		for _, g := range s.All() {
			grants[g.ID().String()] = g
		}
		for id, job := range acked {
			g, ok := grants[id]
			if !ok {
				t.Fatalf("round %d: capability %s was acknowledged and is lost", round, id)
			}
			if _, isRevoked := g.Revoked(); revoked[id] && !isRevoked {
				t.Fatalf("round %d: capability %s was revoked and is live", round, id)
			}
			if j, err := s.Job(job); err != nil || j.Verdict != Minted || j.Capability != g.ID() {
				t.Fatalf("round %d: job %s: %+v, %v", round, job, j, err)
			}
		}
		// A job that is done has its capability, also if nobody heard of it.
		jobs, err := s.Jobs()
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range jobs {
			if _, ok := grants[j.Capability.String()]; ok != (j.State == JobDone) {
				t.Fatalf("round %d: job %s is %s and its capability is there: %v", round, j.ID, j.State, ok)
			}
		}
		closeStore(t, s)
	}
	t.Logf("%d acknowledged grants and %d revocations over 6 kills", len(acked), len(revoked))
}

// On a file system that fills up, writes are refused with an error before
// Badger would be killed by SIGBUS; a revocation is still recorded when grants
// are not, is in force even when it cannot be, and room makes all well.
func TestFullDisk(t *testing.T) {
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=256m,mode=0700"); err != nil {
		t.Fatalf("mounting a tmpfs of 256 MiB: %v (this test runs as root: sudo make test)", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	})
	w, dir := newWorld(t), filepath.Join(mnt, "store")
	s := openStore(t, dir, w.trust())
	defer s.Close()
	before, err := s.Admit(w.capability(t, "", "a.bin"))
	if err != nil {
		t.Fatal(err)
	}
	j := addJob(t, s)

	fill(t, mnt, 40<<20)
	_, err = s.Admit(w.capability(t, "", "b.bin"))
	wantNoSpace(t, err)
	if len(s.All()) != 1 {
		t.Error("the capability that was refused is granted")
	}
	j.State = JobRunning
	wantNoSpace(t, s.PutJob(j))
	if _, err := s.AddJob(pendingJob()); !errors.Is(err, ErrNoSpace) {
		t.Errorf("adding a job: %v, want ErrNoSpace", err)
	}
	if _, err := s.Revoke(w.revocation(t, KindFile, digestOf("x").String())); err != nil {
		t.Errorf("revoking with 40 MiB left: %v", err)
	}

	if space, err := s.Space(); err != nil || !space.Low || !space.Ballast {
		t.Errorf("Space = %+v, %v with 40 MiB left", space, err)
	}

	// The first revocation that finds no room has the one that was kept for it.
	fill(t, mnt, 8<<20)
	if _, err := s.Revoke(w.revocation(t, KindFile, digestOf("y").String())); err != nil {
		t.Errorf("revoking with 8 MiB left: %v", err)
	}
	if space, err := s.Space(); err != nil || !space.Low || space.Ballast {
		t.Errorf("Space = %+v, %v after a revocation had the ballast", space, err)
	}
	_, err = s.Admit(w.capability(t, "", "b.bin"))
	wantNoSpace(t, err)
	fill(t, mnt, 8<<20)
	late := w.revocation(t, KindCapability, before.ID().String())
	r, err := s.Revoke(late)
	wantNoSpace(t, err)
	wantError(t, err, "in force until this process ends")
	if r.IsZero() || !isRevoked(t, s.Lookup(digestOf("a.bin"))) {
		t.Error("a revocation that could not be recorded is not in force")
	}
	closeStore(t, s)
	_, err = Open(dir, memoryOf(dir), w.trust())
	wantNoSpace(t, err)

	fill(t, mnt, 100<<20) // too little for the ballast
	s = openStore(t, dir, w.trust())
	if !isRevoked(t, s.Lookup(digestOf("a.bin"))) {
		t.Error("a revocation that was kept in the journal is lost")
	}
	fill(t, mnt, 8<<20)
	later := w.revocation(t, KindFile, digestOf("z").String())
	if _, err := s.Revoke(later); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "the journal keeps it") {
		t.Errorf("revoking with 8 MiB left and no ballast: %v, want ErrNoSpace", err)
	}
	fill(t, mnt, 170<<20)
	if _, err := s.Revoke(later); err != nil {
		t.Errorf("recording it later: %v", err)
	}
	if space, err := s.Space(); err != nil || space.Low || !space.Ballast {
		t.Errorf("Space = %+v, %v after there was room", space, err)
	}
	closeStore(t, s)
	// A store whose disk is full opens with what the ballast holds.
	fill(t, mnt, 8<<20)
	s = openStore(t, dir, w.trust())
	if !isRevoked(t, s.Lookup(digestOf("a.bin"))) || len(s.View().Revocations()) != 4 {
		t.Error("the revocation was not recorded after there was room")
	}
	_, err = s.Admit(w.capability(t, "", "b.bin"))
	wantNoSpace(t, err)
	fill(t, mnt, 120<<20)
	if _, err := s.Admit(w.capability(t, "", "b.bin")); err != nil {
		t.Errorf("admitting after there was room: %v", err)
	}
	closeStore(t, s)
}

func wantNoSpace(t *testing.T, err error) {
	t.Helper()
	wantError(t, err, "MiB are left", "make room")
	if !errors.Is(err, ErrNoSpace) {
		t.Errorf("%v is not ErrNoSpace", err)
	}
}

// fill leaves about left bytes free in the file system of mnt.
func fill(t *testing.T, mnt string, left int64) {
	t.Helper()
	path := filepath.Join(mnt, "ballast")
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(mnt, &st); err != nil {
		t.Fatal(err)
	}
	free := int64(st.Bavail) * st.Bsize
	if free < left {
		t.Fatalf("%d MiB are free, want at least %d", free>>20, left>>20)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, free-left); err != nil {
		t.Fatal(err)
	}
}
