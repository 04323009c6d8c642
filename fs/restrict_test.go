package fs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// readsAs checks that a user opens a name and gets these bytes.
func (m *mounted) readsAs(uid int, name string, data []byte) {
	m.t.Helper()
	if r := m.run("as", strconv.Itoa(uid), "read", m.at(name)); r.Errno != 0 || r.SHA256 != sumOf(data) {
		m.t.Errorf("user %d reads %s: %v, want %d bytes of %.16s", uid, name, r, len(data), sumOf(data))
	}
}

// refusesAs checks the errno of a user's open, and what the audit says.
func (m *mounted) refusesAs(uid int, name string, why Reason) {
	m.t.Helper()
	before := m.refusals(name)
	if r := m.run("as", strconv.Itoa(uid), "read", m.at(name)); r.Errno != syscall.EACCES || r.Call != "open" {
		m.t.Fatalf("user %d reads %s: %v, want open: %v", uid, name, r, syscall.EACCES)
	}
	m.eventually("the refusal is told", func() bool { return m.refusals(name) > before })
	rec := m.lastRecord(name, Refused)
	if rec.Reason != why || rec.UID != uint32(uid) || rec.Detail == "" || rec.Next == "" {
		m.t.Errorf("user %d: record %+v, want %s", uid, rec, why)
	}
}

// attribute returns an attribute of a file as a user sees it, "" if there is none.
func (m *mounted) attribute(uid int, file, name string) string {
	m.t.Helper()
	r := m.run("as", strconv.Itoa(uid), "getxattr", m.at(file), name)
	if r.Errno == syscall.ENODATA {
		return ""
	}
	if r.Errno != 0 {
		m.t.Fatalf("user %d: %s of %s: %v", uid, name, file, r)
	}
	return r.Text
}

func TestRestricted(t *testing.T) {
	m := mountEmpty(t)
	data := sample(1, 3<<20+5)
	m.write("team/langid.bin", data)
	m.write("langid.bin", data)
	if err := os.Symlink("../langid.bin", filepath.Join(m.src, "team", "link.bin")); err != nil {
		t.Fatal(err)
	}
	m.grant("langid.bin", data, only(t, []string{"team/"}, []int64{1000}, nil))
	m.readsAs(1000, "team/langid.bin", data)
	for _, uid := range []int{1001, 0, nobody} {
		m.refusesAs(uid, "team/langid.bin", ReasonRestricted)
	}
	m.refusesAs(1000, "langid.bin", ReasonRestricted)
	if r := m.run("as", "1000", "read", m.at("team/link.bin")); r.Errno != syscall.EACCES {
		t.Errorf("through a link below team/: %v, want %v", r, syscall.EACCES)
	}

	// The attributes are the asking user's, one after the other.
	for range 2 {
		for _, x := range []struct {
			uid                   int
			status, level, reason string
			allowed               bool
		}{{1000, "granted", "rebuilt", "granted", true}, {1001, "refused", "", "restricted", false}, {0, "refused", "", "restricted", false}} {
			for name, want := range map[string]string{xattrStatus: x.status, xattrLevel: x.level, xattrReason: x.reason, xattrOnly: "paths team/; uids [1000]"} {
				if got := m.attribute(x.uid, "team/langid.bin", name); got != want {
					t.Errorf("user %d: %s = %q, want %q", x.uid, name, got, want)
				}
			}
			var e Explanation
			if err := json.Unmarshal([]byte(m.attribute(x.uid, "team/langid.bin", xattrWhy)), &e); err != nil || e.Allowed != x.allowed || string(e.Reason) != x.reason || len(e.Restrictions) != 1 {
				t.Errorf("user %d: why = %+v, %v", x.uid, e, err)
			}
		}
	}
	if got := m.attribute(1000, "langid.bin", xattrStatus); got != "refused" {
		t.Errorf("status outside of team/ = %q, want refused", got)
	}

	// What one user has in the kernel's cache lets no other one open it.
	h := m.holdAs(1000, "team/langid.bin")
	if r := h.ask("touch"); r.SHA256 != sumOf(data) {
		t.Errorf("mapped: %v", r)
	}
	m.refusesAs(1001, "team/langid.bin", ReasonRestricted)
	// It goes on after the end of its capability, also when others get another.
	m.do(request{Op: "clock", Shift: 2 * 3600})
	m.refusesAs(1000, "team/langid.bin", ReasonExpired)
	m.grant("langid.bin", data, only(t, nil, []int64{1001}, nil), func(w *terms) { w.notAfter = w.notAfter.Add(5 * time.Hour) })
	m.readsAs(1001, "team/langid.bin", data)
	m.readsAs(1001, "langid.bin", data)
	if r := h.ask("read"); r.SHA256 != sumOf(data) {
		t.Errorf("what was open before: %v", r)
	}
	m.refusesAs(1000, "team/langid.bin", ReasonRestricted)
}

// Of two users who have a file open and mapped, the one whose capability is taken
// back loses it, and the other does not.
func TestRestrictedRevoked(t *testing.T) {
	for _, tier := range []struct {
		name  string
		until func(*serverSpec)
	}{{"blocks", func(*serverSpec) {}}, {"audit mode", func(s *serverSpec) { s.AuditUntil = time.Now().Add(time.Hour) }}} {
		t.Run(tier.name, func(t *testing.T) {
			m := mountEmpty(t, tier.until)
			data := sample(2, 2<<20)
			m.write("langid.bin", data)
			view := func(uid int64) hashpipe.Digest {
				return idOf(t, m.grant("langid.bin", data, only(t, nil, []int64{uid}, nil)))
			}
			first, second := view(1000), view(1001)
			if first == second {
				t.Fatal("one capability for both")
			}
			one, other := m.holdAs(1000, "langid.bin"), m.holdAs(1001, "langid.bin")
			for _, h := range []*holder{one, other} {
				if r := h.ask("touch"); r.SHA256 != sumOf(data) {
					t.Fatalf("mapped: %v", r)
				}
			}
			m.revoke(capstore.KindCapability, first)
			m.eventually("the mapping ends", func() bool { return one.ask("touch").Errno != 0 })
			// Who opens it from then on fills the pages of another inode.
			m.readsAs(1001, "langid.bin", data)
			if r := one.ask("touch"); r.Errno == 0 {
				t.Errorf("after somebody else has read it, the mapping is back: %v", r)
			}
			if r := one.ask("read"); r.Errno != syscall.EIO {
				t.Errorf("a read of the user whose capability was revoked: %v", r)
			}
			if r := other.ask("read"); r.SHA256 != sumOf(data) {
				t.Errorf("the other's read: %v", r)
			}
			if r := other.ask("touch"); r.SHA256 != sumOf(data) {
				t.Errorf("the other's mapping: %v", r)
			}
			m.readsAs(1001, "langid.bin", data)
			if m.run("as", "1000", "read", m.at("langid.bin")).Errno == 0 != (tier.name != "blocks") {
				t.Errorf("user 1000 in %s opens it: %v", tier.name, tier.name == "blocks")
			}
		})
	}
}

func (m *mounted) eventually(what string, done func() bool) {
	m.t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("not so after 20 s: %s", what)
		}
	}
}

// idOf is the id of the last link of a capability's text.
func idOf(t testing.TB, text []byte) hashpipe.Digest {
	t.Helper()
	chain, err := capstore.UnverifiedChain(text)
	if err != nil {
		t.Fatal(err)
	}
	return chain[len(chain)-1].ID
}

// A capability that was handed on three times opens where every link says so.
func TestRestrictedChain(t *testing.T) {
	m := mountEmpty(t)
	data := sample(3, 100_000)
	for _, dir := range []string{"team/a/", "team/", ""} {
		m.write(dir+"langid.bin", data)
	}
	keys := []dsse.PrivateKey{newKey(t), newKey(t), newKey(t)}
	ids := func(i int) []dsse.KeyID { return []dsse.KeyID{keys[i].Public().ID()} }
	now := time.Now()
	text := signed(t, m.mint, []capstore.Subject{subject(t, "langid.bin", data)}, only(t, nil, []int64{0, 1000, 1001}, nil), func(w *terms) { w.delegate = ids(0) })
	for i, link := range []capstore.Delegation{
		{Restrict: restriction(t, []string{"team/"}, nil, nil), Delegate: ids(1)},
		{Restrict: restriction(t, nil, []int64{1000, 1002}, []string{"/elsewhere", m.dir}), Delegate: ids(2)},
		{Restrict: restriction(t, []string{"langid.bin", "team/a/"}, nil, nil)},
	} {
		link.NotBefore, link.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
		var err error
		if text, err = capstore.Delegate(text, link, keys[i]); err != nil {
			t.Fatal(err)
		}
	}
	m.do(request{Op: "admit", Envelope: text})
	m.readsAs(1000, "team/a/langid.bin", data)
	for _, x := range []struct {
		uid  int
		name string
	}{{1001, "team/a/langid.bin"}, {1002, "team/a/langid.bin"}, {0, "team/a/langid.bin"}, {1000, "team/langid.bin"}, {1000, "langid.bin"}} {
		m.refusesAs(x.uid, x.name, ReasonRestricted)
	}
	if got := m.attribute(1000, "team/a/langid.bin", xattrOnly); strings.Count(got, "; and only ") != 3 {
		t.Errorf("%s = %q, want four restrictions", xattrOnly, got)
	}
	m.revoke(capstore.KindMint, keyDigestOf(t, keys[1].Public().ID()))
	m.refusesAs(1000, "team/a/langid.bin", ReasonRevoked)
}

func restriction(t testing.TB, paths []string, uids []int64, mounts []string) *capstore.Restrict {
	t.Helper()
	r, err := capstore.NewRestrict(paths, uids, mounts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func keyDigestOf(t testing.TB, id dsse.KeyID) hashpipe.Digest {
	t.Helper()
	d, err := hashpipe.ParseDigest(string(id))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Through another mount of the same source it is another use.
func TestRestrictedToAMount(t *testing.T) {
	data := sample(4, 50_000)
	for _, here := range []bool{true, false} {
		m := mountEmpty(t)
		m.write("langid.bin", data)
		dir := m.dir
		if !here {
			dir += "2"
		}
		m.grant("langid.bin", data, only(t, nil, nil, []string{dir}))
		if here {
			m.readsAs(1000, "langid.bin", data)
			m.readsAs(0, "langid.bin", data)
			continue
		}
		m.refusesAs(1000, "langid.bin", ReasonRestricted)
	}
}

// Who is root in a user namespace of his own is who he was.
func TestRestrictedInUserNamespace(t *testing.T) {
	m := mountEmpty(t)
	data := sample(5, 50_000)
	m.write("langid.bin", data)
	m.grant("langid.bin", data, only(t, nil, []int64{0, 1000}, nil))
	program := reachable(t)
	as := func(uid uint32, inside int) result {
		cmd := exec.Command(program, "read", m.at("langid.bin"))
		cmd.Env = append(os.Environ(), roleVariable+"=client", quickExit)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: uint32(inside), Gid: uint32(inside), NoSetGroups: true},
			Cloneflags: syscall.CLONE_NEWUSER,
		}
		// Root writes the map; of a user that it does not name the kernel says that he
		// is the overflow user.
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: inside, HostID: int(uid), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: inside, HostID: int(uid), Size: 1}}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		var r result
		if err == nil {
			err = json.Unmarshal(out, &r)
		}
		if err != nil {
			t.Fatalf("in a user namespace: %v, %s", err, &stderr)
		}
		return r
	}
	if r := as(1000, 0); r.SHA256 != sumOf(data) {
		t.Errorf("user 1000 as root of a namespace: %v", r)
	}
	for _, inside := range []int{0, 1000} {
		if r := as(1001, inside); r.Errno != syscall.EACCES {
			t.Errorf("user 1001 as user %d of a namespace: %v, want %v", inside, r, syscall.EACCES)
		}
	}
}

func TestRestrictedRelease(t *testing.T) {
	m := mountEmpty(t, func(s *serverSpec) { s.Bind = BindRelease })
	weights, vocabulary := sample(6, 300_000), sample(7, 1000)
	m.write("team/langid.bin", weights)
	m.write("team/vocab.txt", vocabulary)
	subjects := []capstore.Subject{subject(t, "langid.bin", weights), subject(t, "vocab.txt", vocabulary)}
	m.do(request{Op: "admit", Envelope: signed(t, m.mint, subjects, only(t, []string{"team/langid.bin"}, []int64{1000}, nil))})
	m.readsAs(1000, "team/langid.bin", weights)
	m.refusesAs(1001, "team/langid.bin", ReasonRestricted)
	m.refusesAs(1000, "team/vocab.txt", ReasonRestricted)
	m.write("team/vocab.txt", weights)
	m.refusesAs(1000, "team/langid.bin", ReasonMixedRelease)
	m.refusesAs(1001, "team/langid.bin", ReasonRestricted)
}

// A file that was measured in advance, for nobody, opens for whom it may.
func TestRestrictedPreverified(t *testing.T) {
	m := mountEmpty(t, preverify)
	data := sample(8, 2<<20)
	m.grant("langid.bin", data, only(t, nil, []int64{1000}, nil))
	m.write("langid.bin", data)
	m.preverified(1)
	for uid, want := range map[int]string{1000: "granted", 1001: "refused", 0: "refused"} {
		if got := m.attribute(uid, "langid.bin", xattrStatus); got != want {
			t.Errorf("user %d: status %q, want %q", uid, got, want)
		}
	}
	m.refusesAs(0, "langid.bin", ReasonRestricted)
	m.readsAs(1000, "langid.bin", data)
	if s := m.stats(); s.Preverified != 1 {
		t.Errorf("%d files were measured in advance, want 1", s.Preverified)
	}
}

// In audit mode the others read too, unchecked, and are told of.
func TestRestrictedInAuditMode(t *testing.T) {
	m := mountEmpty(t, func(s *serverSpec) { s.AuditUntil = time.Now().Add(time.Hour) })
	data := sample(9, 300_000)
	m.write("langid.bin", data)
	e := m.grant("langid.bin", data, only(t, nil, []int64{1000}, nil))
	for range 3 {
		m.readsAs(1000, "langid.bin", data)
		m.readsAs(1001, "langid.bin", data)
		// Nobody else is ever audited here, so an older record would say the same.
		if rec := m.lastRecord("langid.bin", Audited); rec.Reason != ReasonRestricted || rec.UID != 1001 {
			t.Fatalf("record %+v", rec)
		}
	}
	if got := m.attribute(1001, "langid.bin", xattrStatus); got != "audited" {
		t.Errorf("status %q, want audited", got)
	}
	m.revoke(capstore.KindCapability, idOf(t, e))
	m.refusesAs(1000, "langid.bin", ReasonRevoked)
	m.refusesAs(1001, "langid.bin", ReasonRevoked)
}

// quorum makes two of three operators have to agree.
func quorum(t testing.TB) (change func(*serverSpec), keys map[string]dsse.PrivateKey) {
	keys = map[string]dsse.PrivateKey{"alice": newKey(t), "bob": newKey(t)}
	return func(s *serverSpec) {
		s.Quorum = 2
		s.Operators = make(map[string]dsse.PublicKey)
		for o, k := range keys {
			s.Operators[o] = k.Public()
		}
	}, keys
}

func TestQuorum(t *testing.T) {
	for _, bind := range []Bind{BindName, BindRelease} {
		t.Run("bind "+strconv.Itoa(int(bind)), func(t *testing.T) {
			change, keys := quorum(t)
			m := mountEmpty(t, change, func(s *serverSpec) { s.Bind = bind })
			data := sample(10, 2<<20)
			m.write("langid.bin", data)
			attestation := func(w *terms) { w.attestation = "of acme" }
			by := func(operator string, content []byte) hashpipe.Digest {
				e := signed(t, keys[operator], []capstore.Subject{subject(t, "langid.bin", content)}, attestation)
				m.do(request{Op: "admit", Envelope: e})
				chain, err := capstore.UnverifiedChain(e)
				if err != nil {
					t.Fatal(err)
				}
				return chain[0].Statement.Predicate.Claim
			}
			m.refuses("langid.bin", syscall.EACCES, ReasonNoCapability)
			m.grant("langid.bin", data, attestation)
			m.refuses("langid.bin", syscall.EACCES, ReasonQuorum)
			if got := m.attribute(0, "langid.bin", xattrLevel); got != "" {
				t.Errorf("level %q of a file that is refused", got)
			}
			claim := by("alice", data)
			m.reads("langid.bin", data)
			if got := m.attribute(0, "langid.bin", xattrLevel); got != "reproduced-2" {
				t.Errorf("level %q, want reproduced-2", got)
			}
			h := m.hold("langid.bin")
			lie := by("bob", sample(11, 2<<20))
			m.refuses("langid.bin", syscall.EACCES, ReasonDisputed)
			if r := h.ask("read"); r.SHA256 != sumOf(data) {
				t.Errorf("what was open before the dissent: %v", r)
			}
			m.revoke(capstore.KindClaim, lie)
			m.reads("langid.bin", data)
			m.do(request{Op: "list", Envelope: listOf(t, m.rev, 1, time.Now(), time.Hour, capstore.ListEntry{Kind: capstore.KindClaim, Target: claim, Reason: "planted in a test", IssuedAt: time.Now().UTC().Truncate(time.Second)})})
			m.refuses("langid.bin", syscall.EACCES, ReasonRevoked)
			if r := h.ask("read"); r.Errno != syscall.EIO {
				t.Errorf("what was open before the claim was revoked: %v, want %v", r, syscall.EIO)
			}
			m.eventually("the mapping ends", func() bool { return h.ask("touch").Errno != 0 })
		})
	}
}

// Of two votes one is for one user: only he has two.
func TestQuorumRestricted(t *testing.T) {
	change, keys := quorum(t)
	m := mountEmpty(t, change)
	data := sample(12, 100_000)
	m.write("langid.bin", data)
	m.grant("langid.bin", data)
	e := signed(t, keys["alice"], []capstore.Subject{subject(t, "langid.bin", data)}, only(t, nil, []int64{1000}, nil))
	m.do(request{Op: "admit", Envelope: e})
	m.readsAs(1000, "langid.bin", data)
	m.refusesAs(1001, "langid.bin", ReasonRestricted)
	h := m.holdAs(1000, "langid.bin")
	// A vote that is taken back cuts off, also if it is one of two.
	m.revoke(capstore.KindCapability, idOf(t, e))
	m.refusesAs(1000, "langid.bin", ReasonQuorum)
	if r := h.ask("read"); r.Errno != syscall.EIO {
		t.Errorf("what was open before: %v, want %v", r, syscall.EIO)
	}
	// The third makes two again.
	m.do(request{Op: "admit", Envelope: signed(t, keys["bob"], []capstore.Subject{subject(t, "langid.bin", data)})})
	m.readsAs(1001, "langid.bin", data)
}
