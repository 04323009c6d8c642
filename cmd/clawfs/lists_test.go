package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// change writes the policy anew. Who runs already takes it over in seconds.
func (r *rig) change(how func(*verifier.Policy)) {
	r.t.Helper()
	p, err := r.state.LoadPolicy()
	if err != nil {
		r.t.Fatal(err)
	}
	how(p.Policy)
	text, err := p.Encode()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.state.Policy(), text, 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// operator adds a mint to the policy and returns its key.
func (r *rig) operator(name string) dsse.PrivateKey {
	r.t.Helper()
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		r.t.Fatal(err)
	}
	r.change(func(p *verifier.Policy) {
		p.Mints = append(p.Mints, verifier.Operator{Operator: name, Keys: []dsse.PublicKey{key.Public()}})
	})
	return key
}

func needsList(seconds int64) func(*verifier.Policy) {
	return func(p *verifier.Policy) {
		p.Accept = []verifier.AcceptRule{{Models: []string{"acme/*"}, Operators: []string{"local"}, Threshold: 1, MaxListAgeSeconds: seconds}}
	}
}

func (r *rig) warns(text string) bool {
	r.t.Helper()
	return strings.Contains(strings.Join(r.status().Warnings, "\n"), text)
}

// Without a list nothing opens; with a fresh one it does; when that is too old, new
// opens are refused, and what is open goes on.
func TestListGrowsOld(t *testing.T) {
	const age = 8 * time.Second
	r := newRig(t)
	r.change(needsList(int64(age / time.Second)))
	r.admit(map[string]string{"a.bin": "some weights"})
	r.file("a.bin", "some weights")
	r.ok("mount", r.src, r.mnt)
	state := func() string {
		var caps []control.Capability
		r.document(&caps, "caps")
		if len(caps) != 1 {
			t.Fatalf("caps: %+v", caps)
		}
		return caps[0].State
	}
	if r.opens("a.bin", "some weights") {
		t.Fatal("it opens without a list")
	}
	why := r.run("why", filepath.Join(r.mnt, "a.bin"))
	for _, text := range []string{"stale-list", "needs a revocation list no older than 8s, and there is none", "clawfs revocations import FILE"} {
		if !strings.Contains(why.stdout, text) {
			t.Errorf("why does not say %q:\n%s", text, why.stdout)
		}
	}
	if state() != capStale || !r.warns("NO REVOCATION LIST") {
		t.Errorf("caps says %s, status warns %q", state(), r.status().Warnings)
	}
	var first issued
	r.document(&first, "revocations", "issue", "--valid", "1h")
	if first.Sequence != 1 || first.Entries != 0 || first.ID.IsZero() {
		t.Errorf("the first list: %+v", first)
	}
	// No sleep: issue returns when the mounts know.
	if !r.opens("a.bin", "some weights") || state() != capLive {
		t.Fatal("refused under a fresh list")
	}
	if r.warns("REVOCATION LIST") {
		t.Errorf("warned of a fresh list: %q", r.status().Warnings)
	}
	open, err := os.Open(filepath.Join(r.mnt, "a.bin"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	r.eventually("status warns in the last quarter", func() bool { return r.warns("the revocation list 1 serves until ") || r.warns("STALE") })
	if wait := time.Until(first.IssuedAt.Add(age + time.Second)); wait > 0 {
		time.Sleep(wait)
	}
	if r.opens("a.bin", "some weights") || state() != capStale {
		t.Errorf("it opens under a list that is too old; caps says %s", state())
	}
	if why := r.run("why", filepath.Join(r.mnt, "a.bin")); !strings.Contains(why.stdout, "the one that is here served until "+first.IssuedAt.Add(age).Format(time.RFC3339)) {
		t.Errorf("why:\n%s", why.stdout)
	}
	if !r.warns("STALE REVOCATION LIST: list 1 served until ") {
		t.Errorf("status warns %q", r.status().Warnings)
	}
	if out := r.ok("revocations", "list"); !strings.Contains(out, "STALE, nothing of them opens") {
		t.Errorf("revocations list:\n%s", out)
	}
	if b, err := io.ReadAll(open); err != nil || string(b) != "some weights" {
		t.Errorf("the handle that was open reads %q, %v", b, err)
	}
	r.ok("revocations", "issue")
	if !r.opens("a.bin", "some weights") {
		t.Error("refused under the next list")
	}
}

// What is taken back goes from one machine's list to another's mounts; older lists
// and strangers' are refused; an older store is noticed.
func TestListTravels(t *testing.T) {
	r := newRig(t)
	a := r.admit(map[string]string{"a.bin": "a"})
	b := r.admit(map[string]string{"b.bin": "b"})
	r.file("a.bin", "a")
	r.file("b.bin", "b")
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	r.startDaemon()
	r.ok("revoke", "--kind", "file", a.Subjects()[0].Digest.String(), "--reason", "wrong file")
	r.ok("revocations", "issue", "--out", first)
	for _, x := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"issue", "--valid", "0d"}, codeUsage, "want 1d to 3660d"},
		{[]string{"issue", "--valid", "soon"}, codeUsage, "want a time of at least 1s"},
		{[]string{"issue", "--key", r.state.MintKey()}, codeSignature, "is no revoker of the policy"},
		{[]string{"import", r.state.Policy()}, codeRefused, "want a signed revocation or revocation list"},
		{[]string{"import", filepath.Join(dir, "nosuch")}, codeError, "no such file"},
		{[]string{"import"}, codeUsage, "FILE"},
	} {
		r.refused(x.code, append([]string{"revocations"}, x.args...), x.want)
	}
	// The store as it is now comes back later.
	r.stopDaemon(syscall.SIGTERM)
	old := filepath.Join(dir, "store")
	if got := r.exec("cp", "-a", r.state.Store(), old); got.code != 0 {
		t.Fatal(got.stderr)
	}
	remembered := make(map[string][]byte)
	for _, name := range []string{capstore.KeyName, capstore.HeadName} {
		b, err := os.ReadFile(filepath.Join(r.state.Memory(), name))
		if err != nil {
			t.Fatal(err)
		}
		remembered[name] = b
	}
	r.ok("mount", r.src, r.mnt)
	r.ok("revoke", b.ID().String(), "--reason", "poisoned data")
	r.ok("revocations", "issue", "--valid", "36h", "--out", second)
	var v inForce
	r.document(&v, "revocations", "list")
	if len(v.Revocations) != 2 || v.Revocations[0].List != 2 || !v.Revocations[0].Alone || len(v.Lists) != 1 || !v.Lists[0].InForce || v.Lists[0].Entries != 2 {
		t.Errorf("revocations list: %+v", v)
	}
	var known []control.RecordAnswer
	r.document(&known, "revocations", "import", first, second)
	if len(known) != 2 || known[0].Outcome != control.RecordKnown || known[1].Outcome != control.RecordKnown {
		t.Errorf("import of what is known: %+v", known)
	}

	// Another machine of the fleet trusts the same revoker, and has its own mint.
	o := newRig(t)
	mine, err := r.state.LoadPolicy()
	if err != nil {
		t.Fatal(err)
	}
	o.change(func(p *verifier.Policy) {
		p.Revokers = append(p.Revokers, verifier.Operator{Operator: "fleet", Keys: mine.Revokers[0].Keys})
	})
	o.admit(map[string]string{"a.bin": "a"})
	o.file("a.bin", "a")
	o.ok("mount", o.src, o.mnt)
	if !o.opens("a.bin", "a") {
		t.Fatal("refused before the list came")
	}
	o.document(&known, "revocations", "import", second)
	if len(known) != 1 || known[0].Outcome != control.RecordAdmitted || known[0].Kind != capstore.RecordList || o.opens("a.bin", "a") {
		t.Errorf("import: %+v; the file that the list takes back opens: %v", known, o.opens("a.bin", "a"))
	}
	o.refused(codeRefused, []string{"revocations", "import", first}, "not newer than the one in force", "above 2, got 1")
	o.document(&v, "revocations", "list")
	if len(v.Revocations) != 2 || v.Revocations[0].Alone || v.Revocations[0].List != 2 || o.status().Revocations != 2 {
		t.Errorf("what a list alone takes back: %+v", v.Revocations)
	}
	// The older store would open what list 2 took back.
	r.stopDaemon(syscall.SIGTERM)
	if err := os.Rename(r.state.Store(), filepath.Join(dir, "newer")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(old, r.state.Store()); err != nil {
		t.Fatal(err)
	}
	older := r.startStricken()
	if s := r.troubled(); s.Cause != causeDamaged {
		t.Errorf("%+v, want cause %s", s, causeDamaged)
	}
	r.refused(codeRefused, []string{"caps"}, "store is damaged or older than its head", "clawfs --state "+string(r.state)+" store verify")
	older.Process.Kill()
	older.Wait()
	// Also if the store's own head went back with it, and the journal is lost.
	if err := os.RemoveAll(r.state.Kept()); err != nil {
		t.Fatal(err)
	}
	for name, b := range remembered {
		if err := os.WriteFile(filepath.Join(r.state.Memory(), name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.startStricken()
	if s := r.troubled(); s.Cause != causeOlder {
		t.Errorf("%+v, want cause %s", s, causeOlder)
	}
	r.refused(codeRefused, []string{"caps"}, "newest revocation list of local", "has sequence 1, and this machine has seen 2", "clawfs --state "+string(r.state)+" store rebuild, or clawfs --state "+string(r.state)+" revocations import FILE")
}

// A revoker that is no longer trusted leaves lists behind whose rows are all there:
// the daemon starts, also if that revoker has used up the sequence, and what the
// lists took back is the policy's to decide.
func TestRevokerStruckOff(t *testing.T) {
	r := newRig(t)
	r.admit(map[string]string{"a.bin": "a"})
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	r.change(func(p *verifier.Policy) {
		p.Revokers = append(p.Revokers, verifier.Operator{Operator: "fleet", Keys: []dsse.PublicKey{key.Public()}})
	})
	const last = 1<<53 - 1
	st, err := capstore.NewList(last, time.Now(), time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := capstore.SignList(st, key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	r.startDaemon()
	r.ok("revocations", "issue")
	early, err := capstore.NewList(2, time.Now().Add(time.Hour), time.Now().Add(24*time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	ahead, err := capstore.SignList(early, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file+"-ahead", ahead, 0o600); err != nil {
		t.Fatal(err)
	}
	r.refused(codeRefused, []string{"revocations", "import", file + "-ahead"}, "revocation list 2: it says that it was issued at ", "one of the clocks is wrong")
	r.ok("revocations", "import", file)
	r.stopDaemon(syscall.SIGTERM)
	r.change(func(p *verifier.Policy) { p.Revokers = p.Revokers[:1] })
	r.startDaemon()
	var v inForce
	r.document(&v, "revocations", "list")
	if len(v.Lists) != 1 || v.Lists[0].Sequence != 1 || !v.Lists[0].InForce {
		t.Errorf("lists: %+v, want the first one alone", v.Lists)
	}
	r.document(new(issued), "revocations", "issue")
	r.stopDaemon(syscall.SIGTERM)
	r.startDaemon()
}

// A clock that is set back revives nothing, also when daemon and mount start anew:
// what this machine has seen is the same as a clock that was further before.
func TestClockSetBack(t *testing.T) {
	r := newRig(t)
	started := time.Now()
	r.change(needsList(3600))
	r.admit(map[string]string{"a.bin": "a"})
	r.file("a.bin", "a")
	r.ok("mount", r.src, r.mnt)
	r.ok("revocations", "issue", "--valid", "7d")
	if !r.opens("a.bin", "a") {
		t.Fatal("refused")
	}
	r.ok("umount", r.mnt)
	r.stopDaemon(syscall.SIGTERM)
	seen := memory.Dir(r.state.Memory())
	if at, known, err := seen.Newest(memory.Time); err != nil || !known || at < started.Unix() {
		t.Errorf("after daemon and mount ended the machine remembers %d (%v, %v), want %d or later", at, known, err, started.Unix())
	}
	if _, err := seen.Raise(memory.Time, started.Add(2*time.Hour).Unix()); err != nil {
		t.Fatal(err)
	}
	r.ok("mount", r.src, r.mnt)
	if r.opens("a.bin", "a") {
		t.Error("the capability ended an hour ago, by a clock that was set back since, and its file opens")
	}
	if why := r.run("why", filepath.Join(r.mnt, "a.bin")); !strings.Contains(why.stdout, "expired") {
		t.Errorf("why:\n%s", why.stdout)
	}
	var caps []control.Capability
	r.document(&caps, "caps")
	if caps[0].State != capExpired {
		t.Errorf("caps says %s, want %s", caps[0].State, capExpired)
	}
	if !r.warns("this machine has seen ") || !r.warns("STALE REVOCATION LIST") {
		t.Errorf("status warns %q", r.status().Warnings)
	}
	// Without the memory nobody knows what was seen.
	r.ok("umount", r.mnt)
	r.stopDaemon(syscall.SIGTERM)
	if err := os.RemoveAll(r.state.Memory()); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command(r.bin, "--state", string(r.state), "daemon")
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Process.Kill(); daemon.Wait() })
	r.eventually("the daemon denies, and says why", func() bool {
		got := r.run("status")
		return got.code == codeRefused && strings.Contains(got.stdout, "what was seen before is lost")
	})
	r.run("mount", r.src, r.mnt)
	if r.isMounted() && r.opens("a.bin", "a") {
		t.Error("nobody knows what time it was, and the file opens")
	}
}

// What affected says is what revoke does, for every kind of thing.
func TestRevokeKinds(t *testing.T) {
	r := newRig(t)
	delegate, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "delegate.pub")
	if err := os.WriteFile(keyFile, delegate.Public().PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	own := r.admit(map[string]string{"a.bin": "a"})
	r.file("a.bin", "a")
	// One that the delegate has handed on.
	text := r.capabilityFor(r.measured(map[string]string{"b.bin": "b"}), func(p *capstore.Predicate) {
		p.Delegate = []dsse.KeyID{delegate.Public().ID()}
		p.Environment.Digest.SHA256 = hashpipe.SumBytes([]byte("another image")).Claim()
		p.SBA.Digest.SHA256 = hashpipe.SumBytes([]byte("another ledger")).Claim()
	})
	handed, err := capstore.Delegate(text, capstore.Delegation{NotBefore: own.NotBefore(), NotAfter: own.NotAfter()}, delegate)
	if err != nil {
		t.Fatal(err)
	}
	derived := r.admitText(handed)
	r.file("b.bin", "b")
	base := r.admitSubjects(r.measured(map[string]string{"c.bin": "c"}), own.Claim())
	r.file("c.bin", "c")
	r.ok("mount", r.src, r.mnt)
	for _, name := range []string{"a", "b", "c"} {
		if !r.opens(name+".bin", name) {
			t.Fatalf("%s.bin is refused", name)
		}
	}
	var list []control.Affected
	for _, x := range []struct {
		by, kind string
		falls    []hashpipe.Digest
		built    int
	}{
		{own.ID().String(), "capability", []hashpipe.Digest{own.ID()}, 1},
		{own.Claim().String(), "claim", []hashpipe.Digest{own.ID()}, 1},
		{own.SBA().String(), "sba", []hashpipe.Digest{own.ID(), base.ID()}, 0},
		{string(own.Publisher().ID()), "publisher", []hashpipe.Digest{own.ID()}, 1},
		{string(own.Minter()), "mint", []hashpipe.Digest{own.ID(), derived.ID(), base.ID()}, 0},
		{"sha256:" + own.Environment().String(), "image", []hashpipe.Digest{own.ID(), base.ID()}, 0},
		{filepath.Join(r.src, "a.bin"), "file", []hashpipe.Digest{own.ID()}, 1},
		{keyFile, "mint", []hashpipe.Digest{derived.ID()}, 0},
		{derived.Parents()[0].String(), "capability", []hashpipe.Digest{derived.ID()}, 0},
		{strings.Repeat("ab", 32), "claim", nil, 0},
	} {
		r.document(&list, "affected", "--by", x.by)
		if len(list) != 1 || string(list[0].Kind) != x.kind || len(list[0].Built) != x.built || len(list[0].Changed) != len(x.falls) {
			t.Errorf("affected --by %s = %+v, want %s, %d that fall and %d built from it", x.by, list, x.kind, len(x.falls), x.built)
			continue
		}
		for _, c := range list[0].Changed {
			found := false
			for _, id := range x.falls {
				found = found || c.ID == id && c.Before == capLive && c.After == capRevoked
			}
			if !found {
				t.Errorf("affected --by %s: %+v", x.by, c)
			}
		}
	}
	if r.status().Revocations != 0 {
		t.Fatal("asking took something back")
	}
	r.refused(codeRefused, []string{"affected", "--by", "nonsense"}, "hex digits")
	r.refused(codeRefused, []string{"affected", "--by", "0123456789"}, "names 0 things")
	r.refused(codeError, []string{"affected", "--by", r.mnt}, "not a regular file")
	r.refused(codeUsage, []string{"affected", "--by", own.ID().String(), "--kind", "model"}, "--kind")
	r.refused(codeUsage, []string{"affected"}, "by")
	if out := r.ok("affected", "--by", own.ID().String()); !strings.Contains(out, "1 live capabilities would no longer open, 0 would open again, 1 were built from it") || !strings.Contains(out, "built from it, opens all the same") {
		t.Errorf("affected:\n%s", out)
	}
	// And then for real.
	var done []revoked
	r.document(&done, "revoke", "--kind", "mint", string(delegate.Public().ID()), "--reason", "delegate's key stolen")
	if len(done) != 1 || len(done[0].Capabilities) != 1 || done[0].Capabilities[0] != derived.ID() || r.opens("b.bin", "b") {
		t.Errorf("revoking whoever delegated: %+v", done)
	}
	out := r.ok("revoke", "--kind", "image", own.Environment().String()[:minPrefix], "--reason", "compiler backdoor")
	if strings.Count(out, "falls: acme/langid 1.2.0") != 2 || r.opens("a.bin", "a") || r.opens("c.bin", "c") {
		t.Errorf("revoking an image:\n%s", out)
	}
}

// However long the reasons are, a list of what is in force can be signed: they are
// cut, and nothing is left out.
func TestNextListIsLong(t *testing.T) {
	key, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	signer := []capstore.Signer{{Operator: "local", Key: key.Public()}}
	view, err := capstore.NewView(capstore.Trust{Mints: signer, Revokers: signer})
	if err != nil {
		t.Fatal(err)
	}
	const n = 700
	reason := strings.Repeat("é", 512)
	var targets []hashpipe.Digest
	for i := range n {
		targets = append(targets, hashpipe.SumBytes([]byte{byte(i), byte(i >> 8)}).Claim())
	}
	texts, err := signRevocations(t.Context(), capstore.KindFile, targets, reason, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		if _, err := view.Revoke(text); err != nil {
			t.Fatal(err)
		}
	}
	st, err := nextList(view, 1, time.Now(), time.Hour, key.Public().ID())
	if err != nil {
		t.Fatal(err)
	}
	list, err := capstore.SignList(st, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := view.AdmitList(list)
	if err != nil || len(l.Entries()) != n {
		t.Fatalf("%d entries, want %d: %v", len(l.Entries()), n, err)
	}
	if got := l.Entries()[0].Reason(); len(got) > 256 || !strings.HasSuffix(got, "é…") {
		t.Errorf("reason %q", got)
	}
}
