package config

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// desk is one root key and the policies that it signs.
type desk struct {
	t        *testing.T
	key      dsse.PrivateKey
	unsigned *verifier.Policy
}

func newDesk(t *testing.T) desk {
	t.Helper()
	key := func() dsse.PrivateKey {
		k, err := dsse.GenerateKey(dsse.Ed25519)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	p, err := verifier.NewPolicy("local", key().Public(), key().Public(), verifier.Builds{
		Env:    []string{"LANG"},
		Limits: verifier.Limits{MemoryBytes: 1, Processes: 1, CPUs: 1, WallSeconds: 1, OutputBytes: 1, LogBytes: 1},
	})
	if err != nil {
		t.Fatal(err)
	}
	return desk{t, key(), p}
}

// envelope is a signed revision; env tells two of one revision apart.
func (s desk) envelope(revision int64, env string) []byte {
	s.t.Helper()
	p := *s.unsigned
	p.Revision, p.Expires = revision, verifier.At(time.Now().Add(time.Hour))
	p.Root = &verifier.Root{Keys: []dsse.PublicKey{s.key.Public()}, Threshold: 1}
	p.Builds.Env = []string{env}
	e, err := verifier.SignPolicy(s.t.Context(), &p, s.key)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

// state has the unsigned policy.
func (s desk) state() State {
	s.t.Helper()
	state := newState(s.t)
	text, err := s.unsigned.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(state.Policy(), text)
	return state
}

func (s desk) write(path string, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s desk) install(state State, envelope []byte, first bool) {
	s.t.Helper()
	if _, err := state.InstallPolicy(envelope, first, time.Now()); err != nil {
		s.t.Fatal(err)
	}
}

func (s desk) wantRevision(state State, want int64) {
	s.t.Helper()
	p, err := state.LoadPolicy()
	if err != nil || p.Revision != want {
		s.t.Errorf("LoadPolicy: revision %v, %v, want %d", p.Policy, err, want)
	}
}

func (s desk) wantRefused(state State, words string) {
	s.t.Helper()
	if p, err := state.LoadPolicy(); err == nil || p.Policy != nil || !strings.Contains(err.Error(), words) {
		s.t.Errorf("LoadPolicy = %v, want an error with %q", err, words)
	}
}

func (s desk) read(path string) []byte {
	s.t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return data
}

// An installation that stopped after any of its writes leaves the old policy or
// the new one, and installing again completes it.
func TestInstallationCutShort(t *testing.T) {
	s := newDesk(t)
	one, two, three := s.envelope(1, "A"), s.envelope(2, "B"), s.envelope(3, "C")
	done := s.state()
	s.install(done, one, true)
	oldText := s.read(done.Policy())
	s.install(done, two, false)
	newText, newMemory := s.read(done.Policy()), s.read(done.PolicyMemory())
	both := []byte(string(one) + "\n" + string(two) + "\n")

	for i, tt := range []struct {
		name         string
		text, memory []byte
		revision     int64
	}{
		{"after the envelope", oldText, nil, 1},
		{"after the text", newText, nil, 2},
		{"after the memory", newText, newMemory, 2},
	} {
		for _, next := range []struct {
			envelope []byte
			revision int64
		}{{two, 2}, {three, 3}} {
			state := s.state()
			s.install(state, one, true)
			s.write(state.SignedPolicy(), both)
			s.write(state.Policy(), tt.text)
			if tt.memory != nil {
				s.write(state.PolicyMemory(), tt.memory)
			}
			s.wantRevision(state, tt.revision)
			s.install(state, next.envelope, false)
			s.wantRevision(state, next.revision)
			if got := strings.Count(string(s.read(state.SignedPolicy())), "\n"); got != 1 {
				t.Errorf("%s (%d): policy.dsse has %d lines, want 1", tt.name, i, got)
			}
		}
	}
}

// The first installation has no old envelope to fall back on: cut short, it leaves
// nothing that is believed.
func TestFirstInstallationCutShort(t *testing.T) {
	s := newDesk(t)
	state, one := s.state(), s.envelope(1, "A")
	s.write(state.SignedPolicy(), one)
	s.wantRefused(state, "it has no root")
	s.install(state, one, true)
	s.wantRevision(state, 1)
}

// What was put back to an older revision by hand is mended by the newest one, and
// by no other.
func TestInstallAfterRollback(t *testing.T) {
	s := newDesk(t)
	one, two, three := s.envelope(1, "A"), s.envelope(2, "B"), s.envelope(3, "C")
	state := s.state()
	s.install(state, one, true)
	old := s.read(state.Policy())
	s.install(state, two, false)
	s.write(state.SignedPolicy(), one)
	s.write(state.Policy(), old)
	for what, e := range map[string][]byte{"the older one": one, "the next one": three, "another of its revision": s.envelope(2, "Z")} {
		for _, first := range []bool{false, true} {
			if _, err := state.InstallPolicy(e, first, time.Now()); err == nil {
				t.Fatalf("%s was installed, first %t", what, first)
			}
		}
	}
	s.install(state, two, false)
	s.wantRevision(state, 2)
	s.install(state, three, false)
	s.wantRevision(state, 3)
}

// Whoever reads while others install finds a whole policy.
func TestLoadPolicyDuringInstallations(t *testing.T) {
	s := newDesk(t)
	state := s.state()
	s.install(state, s.envelope(1, "A"), true)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			var newest int64
			for {
				p, err := state.LoadPolicy()
				if err != nil || p.Revision < newest {
					t.Errorf("LoadPolicy after revision %d: %v", newest, err)
					return
				}
				newest = p.Revision
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for n := int64(2); n <= 8; n++ {
		s.install(state, s.envelope(n, "B"), false)
	}
	close(stop)
	readers.Wait()
	s.wantRevision(state, 8)
}

// What somebody put into the files by hand is not believed, also by a process
// that starts later.
func TestInstalledFilesAreCompared(t *testing.T) {
	s := newDesk(t)
	one, two := s.envelope(1, "A"), s.envelope(2, "B")
	unsigned, err := s.unsigned.Encode()
	if err != nil {
		t.Fatal(err)
	}
	installed := func() State {
		state := s.state()
		s.install(state, one, true)
		s.install(state, two, false)
		return state
	}
	textOf := func(envelope []byte) []byte {
		p, err := verifier.OpenPolicy(envelope)
		if err != nil {
			t.Fatal(err)
		}
		return p.Text()
	}
	other := newDesk(t)
	for _, tt := range []struct {
		name  string
		spoil func(State)
		want  string
	}{
		{"edited", func(d State) {
			s.write(d.Policy(), []byte(strings.Replace(string(textOf(two)), `"B"`, `"C"`, 1)))
		}, "edited by hand"},
		{"a space added", func(d State) { s.write(d.Policy(), append(textOf(two), ' ')) }, "edited by hand"},
		{"without a root", func(d State) { s.write(d.Policy(), unsigned) }, "it has no root"},
		{"without a root and envelope", func(d State) { s.write(d.Policy(), unsigned); os.Remove(d.SignedPolicy()) }, "it has no root"},
		{"without a root and memory", func(d State) { s.write(d.Policy(), unsigned); os.Remove(d.PolicyMemory()) }, "it has no root"},
		{"older", func(d State) { s.write(d.Policy(), textOf(one)); s.write(d.SignedPolicy(), one) }, "revision 1 was put back"},
		{"only the text is older", func(d State) { s.write(d.Policy(), textOf(one)) }, "edited by hand"},
		{"another text of the same revision", func(d State) {
			e := s.envelope(2, "Z")
			s.write(d.Policy(), textOf(e))
			s.write(d.SignedPolicy(), e)
		}, "have signed two"},
		{"the envelope is gone", func(d State) { os.Remove(d.SignedPolicy()) }, "with the signatures is missing"},
		{"the envelope is damaged", func(d State) { s.write(d.SignedPolicy(), two[1:]) }, "policy.dsse"},
		{"the envelope is signed by others", func(d State) {
			e, err := dsse.Sign(verifier.PolicyPayloadType, textOf(two), other.key)
			if err != nil {
				t.Fatal(err)
			}
			s.write(d.SignedPolicy(), e)
		}, "not signed by the required keys"},
		{"three envelopes", func(d State) {
			s.write(d.SignedPolicy(), []byte(string(one)+"\n"+string(one)+"\n"+string(two)))
		}, "expected one signed policy, got 3"},
		{"the envelope belongs to all", func(d State) { os.Chmod(d.SignedPolicy(), 0o666) }, "mode 0666"},
		{"the memory is damaged", func(d State) { s.write(d.PolicyMemory(), []byte("2")) }, "policy-revision"},
		{"the memory is empty", func(d State) { s.write(d.PolicyMemory(), nil) }, "policy-revision"},
		{"the memory belongs to all", func(d State) { os.Chmod(d.PolicyMemory(), 0o666) }, "mode 0666"},
		{"the memory is newer", func(d State) {
			s.write(d.PolicyMemory(), []byte(strings.Replace(string(s.read(d.PolicyMemory())), "2 ", "3 ", 1)))
		}, "revision 2 was put back"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := installed()
			s.wantRevision(d, 2)
			tt.spoil(d)
			s.wantRefused(d, tt.want)
			if _, err := d.EditablePolicy(); err == nil {
				t.Error("EditablePolicy returned it")
			}
			if _, err := d.InstallPolicy(one, true, time.Now()); err == nil {
				t.Error("the older revision was installed as the first")
			}
			s.wantRefused(d, "")
		})
	}
}

func TestEditablePolicy(t *testing.T) {
	s := newDesk(t)
	state := s.state()
	if _, err := state.EditablePolicy(); err != nil {
		t.Errorf("without a root: %v", err)
	}
	s.install(state, s.envelope(4, "A"), true)
	if _, err := state.EditablePolicy(); !errors.Is(err, ErrSigned) || !strings.Contains(err.Error(), "clawfs policy edit") {
		t.Errorf("with a root: %v, want ErrSigned and the next command", err)
	}
}

// What came here by other means than an installation is remembered by the next
// daemon.
func TestRememberPolicy(t *testing.T) {
	s := newDesk(t)
	state := s.state()
	five := s.envelope(5, "A")
	p, err := verifier.OpenPolicy(five)
	if err != nil {
		t.Fatal(err)
	}
	s.write(state.SignedPolicy(), five)
	s.write(state.Policy(), p.Text())
	loaded, err := state.LoadPolicy()
	if err != nil {
		t.Fatal(err)
	}
	if err := state.RememberPolicy(loaded); err != nil {
		t.Fatal(err)
	}
	four := s.envelope(4, "A")
	if p, err = verifier.OpenPolicy(four); err != nil {
		t.Fatal(err)
	}
	s.write(state.SignedPolicy(), four)
	s.write(state.Policy(), p.Text())
	s.wantRefused(state, "revision 4 was put back: revision 5")
	loaded.Policy.Revision = 3
	if err := state.RememberPolicy(loaded); err != nil {
		t.Fatal(err)
	}
	s.wantRefused(state, "revision 5")
}
