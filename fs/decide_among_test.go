package fs

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// Decide and lost are right whatever else is among the grants that they are
// shown: those of other files, and zero ones, which hide nothing.
func TestDecideAmongOthers(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	good, evil, third := []byte("the rebuilt bytes"), []byte("evil as the first"), []byte("a third content!!")
	d := newDesk(t)
	c := d.grant("langid.bin", good)
	d.grant("vocab.txt", third)
	d.admit([]capstore.Subject{subject(t, "first.txt", []byte("first")), subject(t, "second.bin", []byte("second")), subject(t, "third.txt", []byte("third"))})
	all := d.view.All()
	if len(all) != 3 {
		t.Fatalf("%d grants, want 3", len(all))
	}
	with := slices.Concat([]capstore.Grant{{}}, all, []capstore.Grant{{}})
	query := func(path string, data []byte, git bool) Query {
		return Query{Path: path, Size: int64(len(data)), Sum: hashpipe.SumBytes(data), Now: now, Git: git}
	}
	for name, x := range map[string]struct {
		q    Query
		want Reason
	}{
		"granted":                      {query("langid.bin", good, false), ReasonGranted},
		"by its git id":                {query("blobs/"+gitIDOf(good), good, true), ReasonGranted},
		"the middle one of three":      {query("second.bin", []byte("second"), false), ReasonGranted},
		"another file":                 {query("readme.md", evil, false), ReasonNoCapability},
		"another file, by its git id":  {query("blobs/"+gitIDOf(evil), evil, true), ReasonNoCapability},
		"another name":                 {query("readme.md", good, false), ReasonWrongName},
		"other bytes under a git name": {query("langid.bin", evil, true), ReasonWrongBytes},
	} {
		for range 2 {
			v := Decide(x.q, with)
			if v.Reason != x.want || v.Allowed() != (x.want == ReasonGranted) || v.Detail == "" {
				t.Errorf("%s: Decide = %s (%s), want %s", name, v.Reason, v.Detail, x.want)
			}
			if !v.at.Equal(now) {
				t.Errorf("%s: decided at %v, want %v", name, v.at, now)
			}
			why, gone := lost(x.q, now.Add(-time.Minute), with)
			if gone != (x.want != ReasonGranted) || gone && why.Reason != x.want {
				t.Errorf("%s: lost = %s, %v, want %s", name, why.Reason, gone, x.want)
			}
			slices.Reverse(with)
		}
	}
	// A release that lies in pieces, or that nobody has looked at, opens by the git
	// id of its files as by their hashes.
	bound := query("blobs/"+gitIDOf(good), good, true)
	bound.Bind = BindRelease
	if v := Decide(bound, all); !v.Allowed() {
		t.Errorf("by its git id, bound to a release: %s (%s)", v.Reason, v.Detail)
	}
	// Of a mixed release it is told what was found.
	bound = query("a/langid.bin", good, false)
	bound.Bind, bound.Roots = BindRelease, map[Root]Finding{{"a", c.Claim()}: {Detail: "vocab.txt is of 1.1.0", Next: "fetch it again"}}
	if v := Decide(bound, all); v.Reason != ReasonMixedRelease || v.Detail != "vocab.txt is of 1.1.0" || v.Next != "fetch it again" {
		t.Errorf("a mixed release: %s (%s; %s)", v.Reason, v.Detail, v.Next)
	}
}

// What to do next names the file as the person did, or as the mount does.
func TestDecideShows(t *testing.T) {
	d := newDesk(t)
	d.grant("langid.bin", []byte("the rebuilt bytes"))
	q := Query{Path: "team/langid.bin", Size: 17, Sum: hashpipe.SumBytes([]byte("evil as the first")), Now: time.Now()}
	for shown, want := range map[string]string{"": "clawfs why team/langid.bin", "/models/my langid.bin": "clawfs why '/models/my langid.bin'"} {
		q.Shown = shown
		v := Decide(q, d.view.All())
		why, gone := lost(q, q.Now, d.view.All())
		if !strings.HasSuffix(v.Next, want) || !gone || why.Next != v.Next {
			t.Errorf("shown as %q: next %q, and after the loss %q, want %q", shown, v.Next, why.Next, want)
		}
	}
}

// A verdict counts those who have the result at a time that is asked about.
func TestVerdictAgreement(t *testing.T) {
	c := newCouncil(t)
	c.by("alice", rebuilt)
	c.by("bob", rebuilt, window(c.now, -time.Hour, time.Minute))
	q := c.query()
	v := Decide(q, c.grants(q))
	if !v.Allowed() {
		t.Fatalf("%s (%s)", v.Reason, v.Detail)
	}
	if a := v.agreement(c.now); !a.Enough() || !slices.Equal(a.Operators, []string{"alice", "bob"}) {
		t.Errorf("now %v agree, enough %v, want alice and bob", a.Operators, a.Enough())
	}
	if a := v.agreement(c.now.Add(2 * time.Minute)); a.Enough() || !slices.Equal(a.Operators, []string{"alice"}) {
		t.Errorf("in two minutes %v agree, enough %v, want alice alone", a.Operators, a.Enough())
	}
	if a := (Verdict{}).agreement(c.now); a.Enough() {
		t.Error("the zero verdict has enough operators")
	}
}

// Whoever may open by one grant, and not by the others that have to stand beside
// it, is told of all of them.
func TestVotesForOthers(t *testing.T) {
	c := newCouncil(t)
	id := c.by("alice", rebuilt).ID()
	c.by("bob", rebuilt, only(t, nil, []int64{1001}, nil))
	q := c.query()
	mine := slices.DeleteFunc(c.grants(q), func(g capstore.Grant) bool { return g.ID() != id })
	v := Decide(q, mine)
	if v.Reason != ReasonRestricted || !strings.Contains(v.Detail, "of alice, bob not all grant it to user 1000") || !strings.HasPrefix(v.Next, "open it as the grants say") {
		t.Errorf("%s (%s; %s)", v.Reason, v.Detail, v.Next)
	}
	why, gone := lost(q, c.now, mine)
	if !gone || why.Reason != ReasonRestricted || why.Next != v.Next {
		t.Errorf("lost: %v, %s (%s)", gone, why.Reason, why.Next)
	}
}

// A policy decides until the instant at which it ends.
func TestPolicyUntil(t *testing.T) {
	for after, want := range map[time.Duration]Reason{time.Second: ReasonGranted, 0: ReasonOldPolicy, -time.Second: ReasonOldPolicy} {
		c := newCouncil(t, func(trust *capstore.Trust) {
			trust.Expires = time.Now().UTC().Truncate(time.Second).Add(after + time.Minute)
		})
		c.by("alice", rebuilt)
		c.by("bob", rebuilt)
		q := c.query()
		q.Now = c.trust.Expires.Add(-after)
		if v := Decide(q, c.grants(q)); v.Reason != want {
			t.Errorf("%v before the end of the policy: %s (%s), want %s", after, v.Reason, v.Detail, want)
		}
	}
}

// What a refusal says of the file is what was measured of it.
func TestDecideSaysWhatItGot(t *testing.T) {
	d := newDesk(t)
	d.grant("langid.bin", []byte("the rebuilt bytes"))
	evil := []byte("evil as the first")
	got, err := hashpipe.Measure(t.Context(), bytes.NewReader(evil), nil)
	if err != nil {
		t.Fatal(err)
	}
	q := Query{Path: "langid.bin", Size: 17, Now: time.Now()}
	for name, x := range map[string]struct {
		sum        hashpipe.Sum
		tree       *hashpipe.Tree
		want, lack string
	}{
		"by its hash":  {sum: got.Sum(), want: ", got sha256:" + sumOf(evil), lack: "fs-verity"},
		"as a tree":    {tree: got.Tree(), want: ", got other bytes, fs-verity sha256:" + got.Tree().Claim().String(), lack: sumOf(evil)},
		"not measured": {want: "was not hashed", lack: "got"},
	} {
		q.Sum, q.Tree = x.sum, x.tree
		if v := Decide(q, d.view.All()); !strings.Contains(v.Detail, x.want) || strings.Contains(v.Detail, x.lack) {
			t.Errorf("%s: detail %q, want %q and not %q", name, v.Detail, x.want, x.lack)
		}
		if v := Decide(q, nil); strings.Contains(v.Detail, "got") != (name != "not measured") {
			t.Errorf("%s: detail %q", name, v.Detail)
		}
	}
}

func TestLetters(t *testing.T) {
	for _, x := range []struct {
		got, want string
		told      bool
	}{
		{"langid.bin", "model.bin", false},
		{"a ~", "!}", false},
		{"mod\u00e8le", "modele", true},
		{"modele", "mod\u00e8le", true},
		{"a\x1f", "a", true},
		{"a\x7f", "a", true},
	} {
		if text := letters(x.got, x.want); (text != "") != x.told {
			t.Errorf("letters(%q, %q) = %q, want something: %v", x.got, x.want, text, x.told)
		}
	}
}

func TestHasSuffix(t *testing.T) {
	for _, x := range []struct {
		path, name string
		want       bool
	}{
		{"a/b/c", "c", true}, {"a/b/c", "b/c", true}, {"a/b/c", "a/b/c", true}, {"a/bc", "c", false}, {"a/b/c", "/c", false},
		{"a/b/c", "", false}, {"a/", "", false}, {"", "", false}, {"c", "a/c", false},
	} {
		if got := hasSuffix(x.path, x.name); got != x.want {
			t.Errorf("hasSuffix(%q, %q) = %v, want %v", x.path, x.name, got, x.want)
		}
	}
}
