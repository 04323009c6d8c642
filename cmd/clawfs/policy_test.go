package main

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// policyWorld is a policy with everything in it that a policy can say.
type policyWorld struct {
	t                                                 *testing.T
	root, acme, second, local, bob, revoker, stranger dsse.PrivateKey
	policy                                            *verifier.Policy
}

func newPolicyWorld(t *testing.T) policyWorld {
	t.Helper()
	w := policyWorld{t: t}
	for _, k := range []*dsse.PrivateKey{&w.root, &w.acme, &w.second, &w.local, &w.bob, &w.revoker, &w.stranger} {
		var err error
		if *k, err = dsse.GenerateKey(dsse.Ed25519); err != nil {
			t.Fatal(err)
		}
	}
	logs, err := os.ReadFile("../../verifier/tlog/testdata/policy")
	if err != nil {
		t.Fatal(err)
	}
	w.policy = &verifier.Policy{
		Version: 1, Revision: 4, Expires: verifier.At(time.Now().AddDate(1, 0, 0)),
		Root: &verifier.Root{Keys: keysOf(w.root, w.second), Threshold: 2},
		Publishers: []verifier.PublisherRule{{
			Name: "acme", Models: []string{"acme/*"}, Keys: keysOf(w.acme), Threshold: 1, Images: []string{"sha256:" + strings.Repeat("ab", 32)},
			MinimumSequence: map[string]int64{"acme/langid": 12}, Log: verifier.LogRequired, Budget: &verifier.Budget{Concurrent: 1, JobsPerDay: 2, BuildSecondsPerDay: 3},
			Windows: map[dsse.KeyID]verifier.Window{w.acme.Public().ID(): {NotBefore: verifier.At(time.Now().AddDate(-1, 0, 0)), NotAfter: verifier.At(time.Now().AddDate(1, 0, 0))}},
		}},
		Mints:    []verifier.Operator{{Operator: "local", Keys: keysOf(w.local)}, {Operator: "bob", Keys: keysOf(w.bob)}},
		Revokers: []verifier.Operator{{Operator: "local", Keys: keysOf(w.revoker)}},
		Accept:   []verifier.AcceptRule{{Models: []string{"acme/*"}, Operators: []string{"local", "bob"}, Threshold: 2, Local: verifier.LocalRequired, MaxListAgeSeconds: 60}},
		Logs:     string(logs),
		Builds: verifier.Builds{
			Env:    []string{"LANG"},
			Limits: verifier.Limits{MemoryBytes: 1, Processes: 2, CPUs: 3, WallSeconds: 4, OutputBytes: 5, LogBytes: 6},
		},
	}
	w.copy()
	return w
}

func keysOf(keys ...dsse.PrivateKey) []dsse.PublicKey {
	var list []dsse.PublicKey
	for _, k := range keys {
		list = append(list, k.Public())
	}
	return list
}

// copy is the policy through its text, which checks it.
func (w policyWorld) copy() *verifier.Policy {
	w.t.Helper()
	text, err := w.policy.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := verifier.ParsePolicy(text)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// Each member of a policy that changes is a line of the difference, also one
// that somebody adds to the format later.
func TestPolicyChangesSeeEveryMember(t *testing.T) {
	w := newPolicyWorld(t)
	if got := policyChanges(w.policy, w.copy()); len(got) != 0 {
		t.Fatalf("two equal policies differ: %v", got)
	}
	seen := 0
	var visit func(path string, v reflect.Value, p *verifier.Policy)
	visit = func(path string, v reflect.Value, p *verifier.Policy) {
		changed := func(with reflect.Value) {
			old := reflect.New(v.Type()).Elem()
			old.Set(v)
			v.Set(with)
			seen++
			if got := policyChanges(w.policy, p); len(got) == 0 {
				t.Errorf("%s: %v instead of %v is no change", path, v, old)
			}
			v.Set(old)
		}
		switch {
		case path == "Version": // only 1 is a policy
		case v.Type() == reflect.TypeFor[verifier.Time]():
			changed(reflect.ValueOf(verifier.At(time.Now().AddDate(2, 0, 0))))
		case v.Type() == reflect.TypeFor[dsse.PublicKey]():
			changed(reflect.ValueOf(w.stranger.Public()))
		case v.Kind() == reflect.String:
			other := v.String() + "x"
			if path == "Logs" {
				other = strings.Replace(v.String(), "quorum", "# quorum", 1)
			}
			changed(reflect.ValueOf(other))
		case v.CanInt():
			changed(reflect.ValueOf(v.Int() + 1).Convert(v.Type()))
		case v.CanFloat():
			changed(reflect.ValueOf(v.Float() + 1))
		case v.Kind() == reflect.Bool:
			changed(reflect.ValueOf(!v.Bool()))
		case v.Kind() == reflect.Pointer && v.IsNil():
			t.Errorf("%s is not set in the test's policy", path)
		case v.Kind() == reflect.Pointer:
			changed(reflect.Zero(v.Type()))
			visit(path, v.Elem(), p)
		case v.Kind() == reflect.Struct:
			for i, f := range reflect.VisibleFields(v.Type()) {
				visit(strings.TrimPrefix(path+"."+f.Name, "."), v.Field(i), p)
			}
		case v.Kind() == reflect.Map:
			changed(reflect.Zero(v.Type()))
		case v.Kind() == reflect.Slice && v.Len() == 0:
			t.Errorf("%s is empty in the test's policy", path)
		case v.Kind() == reflect.Slice:
			changed(reflect.Zero(v.Type()))
			for i := range v.Len() {
				visit(path+"[]", v.Index(i), p)
			}
		default:
			t.Errorf("%s: a %s is not compared by this test", path, v.Type())
		}
	}
	p := w.copy()
	visit("", reflect.ValueOf(p).Elem(), p)
	if seen < 40 {
		t.Errorf("%d members were changed, want more than 40", seen)
	}
}

func TestPolicyChangesInWords(t *testing.T) {
	w := newPolicyWorld(t)
	after := w.copy()
	after.Revision = 5
	after.Root.Threshold = 1
	after.Publishers[0].Models = []string{"acme/langid", "acme/other"}
	after.Publishers[0].MinimumSequence = map[string]int64{"acme/langid": 13}
	after.Publishers[0].Windows = map[dsse.KeyID]verifier.Window{w.acme.Public().ID(): {NotBefore: w.policy.Publishers[0].Windows[w.acme.Public().ID()].NotBefore}}
	after.Mints[1].Keys = keysOf(w.second)
	after.Accept[0].Threshold, after.Accept[0].Local = 1, ""
	after.Builds.Limits.MemoryBytes = 7
	// Order means nothing.
	slices.Reverse(after.Mints)
	slices.Reverse(after.Accept[0].Operators)
	slices.Reverse(after.Root.Keys)
	var got []string
	for _, c := range policyChanges(w.policy, after) {
		got = append(got, c.Kind+" "+c.Text)
	}
	want := []string{
		"~ revision: 5, was 4",
		"~ root: threshold: 1, was 2",
		"- publisher acme: model acme/*",
		"+ publisher acme: model acme/langid",
		"+ publisher acme: model acme/other",
		"~ publisher acme: minimum sequence of acme/langid: 13, was 12",
		"- publisher acme: key " + string(w.acme.Public().ID()) + " until " + w.policy.Publishers[0].Windows[w.acme.Public().ID()].NotAfter.String(),
		"- mint bob: key " + string(w.bob.Public().ID()),
		"+ mint bob: key " + string(w.second.Public().ID()),
		"~ accept acme/*: threshold: 1, was 2",
		"~ accept acme/*: local mint: counts, was required",
		"~ builds: memoryBytes: 7, was 1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("changes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestLintPolicy(t *testing.T) {
	w := newPolicyWorld(t)
	here := machine{true, "local"}
	none := lintPolicy(w.policy, here, time.Now())
	if len(none) != 0 {
		t.Fatalf("the policy without mistakes has %v", none)
	}
	for _, tt := range []struct {
		name  string
		spoil func(*verifier.Policy, *machine)
		want  []string
	}{
		{"expires in a week", func(p *verifier.Policy, _ *machine) { p.Expires = verifier.At(time.Now().AddDate(0, 0, 7)) }, []string{ruleExpiry}},
		{"has expired", func(p *verifier.Policy, _ *machine) { p.Expires = verifier.At(time.Now()) }, []string{ruleExpiry}},
		{"one key signs", func(p *verifier.Policy, _ *machine) { p.Root.Threshold = 1 }, []string{ruleRoot}},
		{"one publisher key of two", func(p *verifier.Policy, _ *machine) {
			p.Publishers[0].Keys = append(p.Publishers[0].Keys, w.stranger.Public())
		}, []string{ruleThreshold}},
		{"one operator of two", func(p *verifier.Policy, _ *machine) { p.Accept[0].Threshold = 1 }, []string{ruleThreshold}},
		{"any image", func(p *verifier.Policy, _ *machine) { p.Publishers[0].Images = []string{"*"} }, []string{ruleAnyImage}},
		{"a publisher revokes", func(p *verifier.Policy, _ *machine) { p.Revokers[0].Keys = keysOf(w.acme) }, []string{ruleKeyRoles}},
		{"a publisher signs policies", func(p *verifier.Policy, _ *machine) { p.Root.Keys[0] = w.acme.Public() }, []string{ruleKeyRoles}},
		{"a key that ends soon", func(p *verifier.Policy, _ *machine) {
			p.Publishers[0].Windows = map[dsse.KeyID]verifier.Window{w.acme.Public().ID(): {NotAfter: verifier.At(time.Now().AddDate(0, 0, 7))}}
		}, []string{ruleWindow}},
		{"a key of two publishers", func(p *verifier.Policy, _ *machine) {
			r := p.Publishers[0]
			r.Name, r.Models, r.MinimumSequence = "other", []string{"acme/sub/*"}, nil
			p.Publishers = append(p.Publishers, r)
		}, []string{ruleSharedKey}},
		{"logs without witnesses", func(p *verifier.Policy, _ *machine) {
			var lines []string
			for line := range strings.Lines(p.Logs) {
				if strings.HasPrefix(line, "quorum ") {
					line = "quorum none\n"
				}
				lines = append(lines, line)
			}
			p.Logs = strings.Join(lines, "")
		}, []string{ruleQuorum}},
		{"a publisher whom no rule accepts", func(p *verifier.Policy, _ *machine) { p.Accept[0].Models = []string{"other/*"} }, []string{ruleNeverOpens, ruleNoPublisher}},
		{"a publisher of whom some models are accepted", func(p *verifier.Policy, _ *machine) { p.Accept[0].Models = []string{"acme/langid"} }, []string{ruleNeverOpens}},
		{"all operators but the local one", func(p *verifier.Policy, _ *machine) { p.Accept[0].Local = verifier.LocalIgnored }, []string{ruleUnreachable}},
		{"no local mint", func(_ *verifier.Policy, m *machine) { m.operator = "" }, []string{ruleLocalMint}},
		{"the local mint does not count", func(p *verifier.Policy, _ *machine) {
			p.Accept[0].Operators, p.Accept[0].Threshold = []string{"bob"}, 1
		}, []string{ruleLocalMint}},
		{"no local mint, at a desk", func(_ *verifier.Policy, m *machine) { *m = machine{} }, nil},
		{"the local one ignored, and enough others", func(p *verifier.Policy, m *machine) {
			p.Accept[0].Local, m.operator = verifier.LocalIgnored, ""
		}, nil},
	} {
		p, m := w.copy(), here
		tt.spoil(p, &m)
		if _, err := p.Encode(); err != nil {
			t.Errorf("%s: no policy at all: %v", tt.name, err)
		}
		var got []string
		for _, f := range lintPolicy(p, m, time.Now()) {
			got = append(got, f.Rule)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestExplainPolicy(t *testing.T) {
	w := newPolicyWorld(t)
	p := w.copy()
	p.Accept = append([]verifier.AcceptRule{{Models: []string{"zoo/*"}, Operators: []string{"bob"}, Threshold: 1}}, p.Accept...)
	e := explainPolicy(p, "acme/langid", time.Now())
	if !e.Opens || e.Publisher == nil || e.Publisher.Name != "acme" || e.Publisher.MinimumSequence != 12 || e.Publisher.Log != verifier.LogRequired || e.Publisher.Budget == nil ||
		e.Accept == nil || e.Accept.Rule != 2 || e.Accept.Threshold != 2 || len(e.Accept.Operators) != 2 || e.Accept.Local != verifier.LocalRequired || e.Accept.MaxListAgeSeconds != 60 {
		t.Errorf("acme/langid: %+v", e)
	}
	for model, want := range map[string]string{"zoo/x": "no publisher's rule", "other/x": "no accept rule"} {
		if e := explainPolicy(p, model, time.Now()); e.Opens || !strings.Contains(strings.Join(e.Notes, "\n"), want) {
			t.Errorf("%s: %+v, want %q", model, e, want)
		}
	}
	if e := explainPolicy(p, "acme/langid", p.Expires.Time()); e.Opens || !strings.Contains(strings.Join(e.Notes, "\n"), "EXPIRED") {
		t.Errorf("after the policy's end: %+v", e)
	}
	p.Accept = nil
	if e := explainPolicy(p, "acme/langid", time.Now()); !e.Opens || e.Accept == nil || e.Accept.Rule != 0 || e.Accept.Threshold != 1 {
		t.Errorf("without accept rules: %+v", e)
	}
}

// sharedPolicy puts a root of one key on the rig's policy and installs it, to end
// at a moment.
func (r *rig) sharedPolicy(revision int64, end time.Time, root dsse.PrivateKey) {
	r.t.Helper()
	p, err := r.state.LoadPolicy()
	if err != nil {
		r.t.Fatal(err)
	}
	next := *p.Policy
	next.Revision, next.Expires, next.Root = revision, verifier.At(end), &verifier.Root{Keys: keysOf(root), Threshold: 1}
	envelope, err := verifier.SignPolicy(r.t.Context(), &next, root)
	if err != nil {
		r.t.Fatal(err)
	}
	// As of a moment when it was valid.
	if _, err := r.state.InstallPolicy(envelope, p.Root == nil, end.Add(-time.Hour)); err != nil {
		r.t.Fatal(err)
	}
}

// A policy that ends soon is warned of, one that has ended opens and grants
// nothing, and one that breaks under a running daemon leaves it what it has.
func TestPolicyEnds(t *testing.T) {
	r := newRig(t)
	root, err := dsse.GenerateKey(dsse.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	r.admit(map[string]string{"model.bin": "weights"})
	r.file("model.bin", "weights")
	r.sharedPolicy(1, time.Now().AddDate(0, 0, 7), root)
	r.ok("mount", r.src, r.mnt)
	if !r.opens("model.bin", "weights") {
		t.Fatal("the granted file is refused")
	}
	warned := func(words string) bool {
		return slices.ContainsFunc(r.status().Warnings, func(s string) bool { return strings.Contains(s, words) })
	}
	if !warned("revision 1 ends at") {
		t.Errorf("warnings a week before the end: %q", r.status().Warnings)
	}
	text, err := os.ReadFile(r.state.Policy())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.state.Policy(), append(text, ' '), 0o600); err != nil {
		t.Fatal(err)
	}
	if !warned("edited by hand") || !warned("goes on with the policy before") {
		t.Errorf("warnings with a policy that was edited: %q", r.status().Warnings)
	}
	if !r.opens("model.bin", "weights") {
		t.Error("a policy that breaks under a mount closed a file")
	}
	r.ok("policy", "install", r.state.SignedPolicy())

	r.ok("umount", r.mnt)
	r.sharedPolicy(2, time.Now().Add(-time.Minute), root)
	r.stopDaemon(syscall.SIGTERM)
	r.ok("mount", r.src, r.mnt)
	if !warned("THE POLICY HAS EXPIRED: revision 2") {
		t.Errorf("warnings after the end: %q", r.status().Warnings)
	}
	if r.opens("model.bin", "weights") {
		t.Error("a file opened under a policy that has expired")
	}
	if caps := r.ok("caps"); !strings.Contains(caps, capStale) {
		t.Errorf("caps after the policy's end:\n%s", caps)
	}
	r.stopDaemon(syscall.SIGTERM)
	got := r.run("status")
	if got.code != codeDaemon || !strings.Contains(got.stdout, "THE POLICY HAS EXPIRED") {
		t.Errorf("status without a daemon: exit code %d, %q", got.code, got.stdout)
	}
	r.refused(codeRefused, []string{"policy", "explain", "acme/langid"})
}
