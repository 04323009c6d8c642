package fs

import (
	"bytes"
	"errors"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// council is a desk of three operators, of whom two have to agree on acme/*.
type council struct {
	t     *testing.T
	now   time.Time
	keys  map[string]dsse.PrivateKey
	rev   dsse.PrivateKey
	trust capstore.Trust
	view  *capstore.View
}

func newCouncil(t *testing.T, change ...func(*capstore.Trust)) *council {
	t.Helper()
	c := &council{t: t, now: time.Now().UTC().Truncate(time.Second), keys: make(map[string]dsse.PrivateKey), rev: newKey(t)}
	c.trust = capstore.Trust{
		Revokers: []capstore.Signer{{Operator: "root", Key: c.rev.Public()}},
		Rules:    []capstore.Rule{{Models: []string{"acme/*"}, Operators: []string{"alice", "bob", "carol"}, Threshold: 2}},
	}
	for _, operator := range []string{"alice", "bob", "carol"} {
		c.keys[operator] = newKey(t)
		c.trust.Mints = append(c.trust.Mints, capstore.Signer{Operator: operator, Key: c.keys[operator].Public()})
	}
	for _, f := range change {
		f(&c.trust)
	}
	view, err := capstore.NewView(c.trust)
	if err != nil {
		t.Fatal(err)
	}
	c.view = view
	return c
}

var rebuilt, dissenting = []byte("the rebuilt bytes"), []byte("a dissent's bytes")

// by admits an operator's capability for langid.bin with these bytes, from one
// attestation.
func (c *council) by(operator string, data []byte, change ...func(*terms)) capstore.Capability {
	c.t.Helper()
	change = append([]func(*terms){func(w *terms) { w.attestation = "of acme" }}, change...)
	got, err := c.view.Admit(signed(c.t, c.keys[operator], []capstore.Subject{subject(c.t, "langid.bin", data)}, change...))
	if err != nil {
		c.t.Fatal(err)
	}
	return got
}

// lost is by, of a capability of which the store has nothing left but the fact.
func (c *council) lost(operator string, data []byte) {
	c.t.Helper()
	dir := c.t.TempDir()
	s, err := capstore.Open(filepath.Join(dir, "store"), filepath.Join(dir, "memory"), c.trust)
	if err != nil {
		c.t.Fatal(err)
	}
	defer s.Close()
	text := signed(c.t, c.keys[operator], []capstore.Subject{subject(c.t, "langid.bin", data)}, func(w *terms) { w.attestation = "of acme" })
	if _, err := s.Admit(text); err != nil {
		c.t.Fatal(err)
	}
	snapshot, _, cancel := s.Subscribe(1)
	defer cancel()
	sent := 0
	for r, err := range snapshot {
		if err != nil {
			c.t.Fatal(err)
		}
		sent++
		r.Envelope = nil
		if err := c.view.Apply(r); err != nil {
			c.t.Fatal(err)
		}
	}
	if sent != 1 {
		c.t.Fatalf("%d records, want 1", sent)
	}
}

func (c *council) revoke(kind capstore.Kind, target string) {
	c.t.Helper()
	d, err := hashpipe.ParseDigest(target)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.view.Revoke(revocation(c.t, c.rev, kind, d)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *council) list(sequence int64, issued time.Time, valid time.Duration, entries ...capstore.ListEntry) {
	c.t.Helper()
	if _, err := c.view.AdmitList(listOf(c.t, c.rev, sequence, issued, valid, entries...)); err != nil {
		c.t.Fatal(err)
	}
}

func listOf(t testing.TB, key dsse.PrivateKey, sequence int64, issued time.Time, valid time.Duration, entries ...capstore.ListEntry) []byte {
	t.Helper()
	st, err := capstore.NewList(sequence, issued, issued.Add(valid), entries)
	if err != nil {
		t.Fatal(err)
	}
	e, err := capstore.SignList(st, key)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (c *council) query() Query {
	return Query{Path: "team/langid.bin", Size: int64(len(rebuilt)), Sum: hashpipe.SumBytes(rebuilt), Now: c.now, Mount: "/models", UID: 1000}
}

func (c *council) grants(q Query) []capstore.Grant {
	return append(c.view.Lookup(q.Sum.Claim()), c.view.ByName(baseName(q.Path))...)
}

// Changes of a capability.
func window(now time.Time, from, to time.Duration) func(*terms) {
	return func(w *terms) { w.notBefore, w.notAfter = now.Add(from), now.Add(to) }
}

func only(t testing.TB, paths []string, uids []int64, mounts []string) func(*terms) {
	t.Helper()
	r, err := capstore.NewRestrict(paths, uids, mounts)
	if err != nil {
		t.Fatal(err)
	}
	return func(w *terms) { w.restrict = r }
}

func of(model, attestation string) func(*terms) {
	return func(w *terms) { w.model, w.attestation = model, attestation }
}

// Changes of what is trusted.
func listed(t *capstore.Trust) { t.Rules[0].MaxListAge = 24 * time.Hour }
func over(t *capstore.Trust)   { t.Expires = time.Now().Add(-time.Minute) }

func TestDecideAgreement(t *testing.T) {
	local := func(operator string, l capstore.LocalVote) func(*capstore.Trust) {
		return func(t *capstore.Trust) { t.Local, t.Rules[0].Local = operator, l }
	}
	uid := func(id uint32) func(*Query) { return func(q *Query) { q.UID = id } }
	silent := func(d time.Duration) func(*Query) {
		return func(q *Query) { q.Silence, q.MaxSilence = d, time.Minute }
	}
	for _, x := range []struct {
		name    string
		trust   func(*capstore.Trust)
		setup   func(*council)
		ask     func(*Query)
		want    Reason
		mention string // in Detail, all of them, separated by "; "
		next    string // in Next
	}{
		{name: "one of two", setup: func(c *council) { c.by("alice", rebuilt) }, want: ReasonQuorum,
			mention: "expected 2 operators; got 1 (alice); missing: bob, carol", next: "clawfs pull PLACE --admit"},
		{name: "two of two", setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) }, want: ReasonGranted},
		{name: "one operator twice", setup: func(c *council) {
			c.by("alice", rebuilt)
			c.by("alice", rebuilt, func(w *terms) { w.notAfter = w.notAfter.Add(time.Hour) })
		}, want: ReasonQuorum, mention: "got 1 (alice)"},
		{name: "two, and a third's is revoked", setup: func(c *council) {
			c.by("alice", rebuilt)
			c.by("bob", rebuilt)
			c.revoke(capstore.KindCapability, c.by("carol", rebuilt).ID().String())
		}, want: ReasonGranted},
		{name: "one of two is revoked", setup: func(c *council) {
			c.by("alice", rebuilt)
			c.revoke(capstore.KindCapability, c.by("bob", rebuilt).ID().String())
		}, want: ReasonQuorum, mention: "got 1 (alice)"},
		{name: "both are revoked", setup: func(c *council) {
			c.by("alice", rebuilt)
			c.revoke(capstore.KindClaim, c.by("bob", rebuilt).Claim().String())
		}, want: ReasonRevoked, next: "clawfs grant"},
		{name: "one of two is over", setup: func(c *council) {
			c.by("alice", rebuilt)
			c.by("bob", rebuilt, window(c.now, -time.Hour, -time.Minute))
		}, want: ReasonExpired, next: "for what the others have renewed"},
		{name: "one of two is over since before another began and ended", setup: func(c *council) {
			c.by("alice", rebuilt, window(c.now, -time.Hour, time.Hour))
			c.by("bob", rebuilt, window(c.now, -time.Hour, -time.Minute))
			c.by("carol", rebuilt, window(c.now, -10*time.Hour, -9*time.Hour))
		}, want: ReasonExpired, mention: "they were alice, bob"},
		{name: "two that were never valid together", setup: func(c *council) {
			c.by("alice", rebuilt, window(c.now, -time.Minute, time.Hour))
			c.by("bob", rebuilt, window(c.now, -time.Hour, -time.Minute))
		}, want: ReasonQuorum},
		{name: "one of two is to come", setup: func(c *council) {
			c.by("alice", rebuilt)
			c.by("bob", rebuilt, window(c.now, time.Minute, time.Hour))
		}, want: ReasonQuorum},
		{name: "local required and missing", trust: local("carol", capstore.LocalRequired), setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) },
			want: ReasonQuorum, mention: "this machine's own rebuild", next: "clawfs grant MODEL.sba"},
		{name: "local required and there", trust: local("bob", capstore.LocalRequired), setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) }, want: ReasonGranted},
		{name: "local ignored", trust: local("bob", capstore.LocalIgnored), setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) },
			want: ReasonQuorum, mention: "got 1 (alice); missing: carol"},

		{name: "a dissent", setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt); c.by("carol", dissenting) },
			want: ReasonDisputed, mention: "operator carol got claim; nobody knows which bytes are right", next: "clawfs resolve "},
		{name: "a dissent that cannot be read any more", setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt); c.lost("carol", dissenting) },
			want: ReasonDisputed, mention: "of operator carol; cannot be read any more", next: "clawfs store rebuild"},
		{name: "a vote that cannot be read any more", setup: func(c *council) { c.by("alice", rebuilt); c.lost("bob", rebuilt) }, want: ReasonQuorum, mention: "got 1 (alice)"},
		{name: "a dissent before there are enough", setup: func(c *council) { c.by("alice", rebuilt); c.by("carol", dissenting) }, want: ReasonDisputed},
		{name: "a dissent that is over", setup: func(c *council) {
			c.by("alice", rebuilt)
			c.by("bob", rebuilt)
			c.by("carol", dissenting, window(c.now, -time.Hour, -time.Minute))
		}, want: ReasonDisputed},
		{name: "a dissent that is taken back", setup: func(c *council) {
			c.by("alice", rebuilt)
			c.by("bob", rebuilt)
			c.revoke(capstore.KindClaim, c.by("carol", dissenting).Claim().String())
		}, want: ReasonGranted},
		{name: "another attestation is no dissent", setup: func(c *council) {
			c.by("alice", rebuilt)
			c.by("bob", rebuilt)
			c.by("carol", dissenting, of("acme/langid", "the next release"))
		}, want: ReasonGranted},

		{name: "no list", trust: listed, setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) },
			want: ReasonStaleList, mention: "no older than 24h0m0s, and there is none", next: "clawfs pull PLACE --admit"},
		{name: "an old list", trust: listed, setup: func(c *council) {
			c.by("alice", rebuilt)
			c.by("bob", rebuilt)
			c.list(1, c.now.Add(-24*time.Hour), 48*time.Hour)
		}, want: ReasonStaleList, mention: "served until"},
		{name: "a list that ends by itself", trust: listed, setup: func(c *council) {
			c.by("alice", rebuilt)
			c.by("bob", rebuilt)
			c.list(1, c.now.Add(-time.Hour), time.Hour)
		}, want: ReasonStaleList},
		{name: "a list that is new enough by a second", trust: listed, setup: func(c *council) {
			c.by("alice", rebuilt)
			c.by("bob", rebuilt)
			c.list(1, c.now.Add(time.Second-24*time.Hour), 48*time.Hour)
		}, want: ReasonGranted},
		{name: "a list that takes a vote back", trust: listed, setup: func(c *council) {
			c.by("alice", rebuilt)
			d := c.by("bob", rebuilt).ID()
			c.list(1, c.now, time.Hour, capstore.ListEntry{Kind: capstore.KindCapability, Target: d, Reason: "planted in a test", IssuedAt: c.now})
		}, want: ReasonQuorum},

		{name: "nobody tells of revocations", ask: silent(61 * time.Second), setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) },
			want: ReasonStaleDaemon, mention: "heard last 1m1s ago; every 1m0s; max_daemon_age", next: "clawfs daemon"},
		{name: "nobody ever told of revocations", ask: silent(math.MaxInt64), setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) },
			want: ReasonStaleDaemon, mention: "has not been heard yet"},
		{name: "somebody told of them just in time", ask: silent(time.Minute), setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) }, want: ReasonGranted},
		{name: "silence without a bound", ask: func(q *Query) { q.Silence = 1 << 62 }, setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) }, want: ReasonGranted},
		{name: "silence, and a clock that was set back", ask: func(q *Query) { silent(time.Hour)(q); q.Now = q.Now.Add(-30 * time.Second) },
			setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) }, want: ReasonStaleDaemon},
		{name: "silence and too few", ask: silent(time.Hour), setup: func(c *council) { c.by("alice", rebuilt) }, want: ReasonStaleDaemon},
		{name: "silence, and revoked", ask: silent(time.Hour), setup: func(c *council) {
			c.revoke(capstore.KindSBA, c.by("alice", rebuilt).SBA().String())
		}, want: ReasonRevoked},
		{name: "silence and a policy that is over", trust: over, ask: silent(time.Hour), setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) }, want: ReasonOldPolicy},
		{name: "a policy that is over", trust: over, setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) },
			want: ReasonOldPolicy, mention: "the policy was valid until", next: "clawfs policy install"},
		{name: "a model without a rule", setup: func(c *council) {
			c.by("alice", rebuilt, of("other/x", "x"))
			c.by("bob", rebuilt, of("other/x", "x"))
		}, want: ReasonNoRule, mention: "no rule of the policy; other/x", next: "clawfs policy explain other/x"},
		{name: "two models, of which one has a rule", setup: func(c *council) {
			c.by("alice", rebuilt, of("other/x", "x"))
			c.by("alice", rebuilt)
			c.by("bob", rebuilt)
		}, want: ReasonGranted},
		{name: "votes of two models do not add up", setup: func(c *council) {
			c.by("alice", rebuilt, of("acme/a", "a"))
			c.by("bob", rebuilt, of("acme/b", "b"))
		}, want: ReasonQuorum},

		{name: "another user", setup: func(c *council) {
			c.by("alice", rebuilt, only(c.t, nil, []int64{1001}, nil))
			c.by("bob", rebuilt, only(c.t, nil, []int64{1001}, nil))
		}, want: ReasonRestricted, mention: "to the users 1001 only, got user 1000; mount /models, path team/langid.bin", next: "as the grant says"},
		{name: "another path", setup: func(c *council) {
			c.by("alice", rebuilt, only(c.t, []string{"tea/", "team", "langid.bin"}, nil, nil))
		}, want: ReasonRestricted, mention: "the paths langid.bin, tea/, team only"},
		{name: "another mount", setup: func(c *council) { c.by("alice", rebuilt, only(c.t, nil, nil, []string{"/model"})) }, want: ReasonRestricted, mention: "the mounts /model only"},
		{name: "some of it fits", setup: func(c *council) {
			c.by("alice", rebuilt, only(c.t, []string{"team/"}, []int64{1000}, []string{"/other"}))
			c.by("bob", rebuilt)
		}, want: ReasonRestricted},
		{name: "all of it fits", setup: func(c *council) {
			c.by("alice", rebuilt, only(c.t, []string{"team/langid.bin"}, []int64{0, 1000}, []string{"/models"}))
			c.by("bob", rebuilt, only(c.t, []string{"team/"}, []int64{1000, 1001}, nil))
		}, want: ReasonGranted},
		{name: "one of two is for others", setup: func(c *council) {
			c.by("alice", rebuilt)
			c.by("bob", rebuilt, only(c.t, nil, []int64{1001}, nil))
		}, want: ReasonRestricted, mention: "user 1000, mount /models"},
		{name: "one of two is for the asker too", setup: func(c *council) {
			c.by("alice", rebuilt)
			c.by("bob", rebuilt, only(c.t, nil, []int64{1001}, nil))
		}, ask: uid(1001), want: ReasonGranted},
		{name: "each of two for somebody else", setup: func(c *council) {
			c.by("alice", rebuilt, only(c.t, nil, []int64{1000}, nil))
			c.by("bob", rebuilt, only(c.t, nil, []int64{1001}, nil))
		}, want: ReasonRestricted},
		{name: "anyone is not two users", setup: func(c *council) {
			c.by("alice", rebuilt, only(c.t, []string{"x/"}, []int64{1000}, nil))
			c.by("bob", rebuilt)
		}, ask: func(q *Query) { q.Anyone = true }, want: ReasonRestricted},
		{name: "too few, and one is for others", setup: func(c *council) { c.by("alice", rebuilt, only(c.t, nil, []int64{1001}, nil)) }, want: ReasonRestricted},
		{name: "no user is root unless it is said", setup: func(c *council) {
			c.by("alice", rebuilt, only(c.t, nil, []int64{1000}, nil))
			c.by("bob", rebuilt)
		}, ask: uid(0), want: ReasonRestricted},

		// What is told if there are several reasons.
		{name: "revoked there, restricted here", setup: func(c *council) {
			c.revoke(capstore.KindSBA, c.by("alice", rebuilt, of("acme/b", "b")).SBA().String())
			c.by("alice", rebuilt, only(c.t, nil, []int64{1001}, nil))
		}, want: ReasonRestricted},
		{name: "revoked there, too few here", setup: func(c *council) {
			c.revoke(capstore.KindSBA, c.by("alice", rebuilt, of("acme/b", "b")).SBA().String())
			c.by("alice", rebuilt)
		}, want: ReasonQuorum},
		{name: "too few there, disputed here", setup: func(c *council) {
			c.by("alice", rebuilt, of("acme/b", "b"))
			c.by("alice", rebuilt)
			c.by("bob", dissenting)
		}, want: ReasonDisputed},
		{name: "disputed, with an old list", trust: listed, setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", dissenting) }, want: ReasonStaleList},
		{name: "an old list and an old policy", trust: func(t *capstore.Trust) { listed(t); over(t) }, setup: func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) }, want: ReasonOldPolicy},
		{name: "other bytes, and too few", setup: func(c *council) { c.by("alice", dissenting, of("acme/b", "b")); c.by("alice", rebuilt) }, want: ReasonQuorum},
		{name: "other bytes alone", setup: func(c *council) { c.by("alice", dissenting) }, want: ReasonWrongBytes},
	} {
		t.Run(x.name, func(t *testing.T) {
			trust := func(*capstore.Trust) {}
			if x.trust != nil {
				trust = x.trust
			}
			c := newCouncil(t, trust)
			x.setup(c)
			q := c.query()
			if x.ask != nil {
				x.ask(&q)
			}
			grants := c.grants(q)
			v := Decide(q, grants)
			if v.Reason != x.want || v.Allowed() != (x.want == ReasonGranted) {
				t.Fatalf("Decide = %s, allowed %v (%s), want %s", v.Reason, v.Allowed(), v.Detail, x.want)
			}
			for _, text := range strings.Split(x.mention, "; ") {
				if !strings.Contains(v.Detail, text) {
					t.Errorf("detail %q does not mention %q", v.Detail, text)
				}
			}
			if !strings.Contains(v.Next, x.next) || v.Allowed() == (v.Next != "") {
				t.Errorf("next %q, want %q", v.Next, x.next)
			}
			slices.Reverse(grants)
			if back := Decide(q, grants); back.Reason != v.Reason {
				t.Errorf("with the grants reversed: %s, want %s", back.Reason, v.Reason)
			}
			// What may be opened now is not cut off now.
			if why, gone := lost(q, c.now, grants); v.Allowed() && gone {
				t.Errorf("it opens, and is cut off: %s", why.Reason)
			}
		})
	}
}

// What is open, and was opened half an hour ago, goes on or not.
func TestLost(t *testing.T) {
	bobsKey := func(c *council) string { return string(c.keys["bob"].Public().ID()) }
	both := func(c *council) { c.by("alice", rebuilt); c.by("bob", rebuilt) }
	single := func(t *capstore.Trust) { t.Rules[0].Threshold = 1 }
	for _, x := range []struct {
		name  string
		trust func(*capstore.Trust)
		setup func(*council)
		want  Reason // "" goes on
	}{
		{"nothing happened", nil, both, ""},
		{"one is over", nil, func(c *council) {
			c.by("alice", rebuilt)
			c.by("bob", rebuilt, window(c.now, -time.Hour, -time.Minute))
		}, ""},
		{"both are over", nil, func(c *council) {
			c.by("alice", rebuilt, window(c.now, -time.Hour, -2*time.Minute))
			c.by("bob", rebuilt, window(c.now, -time.Hour, -time.Minute))
		}, ""},
		{"the list is too old", listed, func(c *council) { both(c); c.list(1, c.now.AddDate(0, 0, -3), time.Hour) }, ""},
		{"there is no list", listed, both, ""},
		{"the policy is over", over, both, ""},
		{"a dissent", nil, func(c *council) { both(c); c.by("carol", dissenting) }, ""},
		{"one of three is revoked", nil, func(c *council) { both(c); c.by("carol", rebuilt); c.revoke(capstore.KindMint, bobsKey(c)) }, ""},
		{"a dissent is revoked", nil, func(c *council) { both(c); c.revoke(capstore.KindClaim, c.by("carol", dissenting).Claim().String()) }, ""},

		{"one of two is revoked", nil, func(c *council) { both(c); c.revoke(capstore.KindMint, bobsKey(c)) }, ReasonQuorum},
		{"the claim is revoked", nil, func(c *council) { both(c); c.revoke(capstore.KindClaim, c.by("carol", rebuilt).Claim().String()) }, ReasonRevoked},
		{"the file is revoked", nil, func(c *council) { both(c); c.revoke(capstore.KindFile, sumOf(rebuilt)) }, ReasonRevoked},
		{"the image is revoked by a list", nil, func(c *council) {
			both(c)
			c.list(1, c.now, time.Hour, capstore.ListEntry{Kind: capstore.KindImage, Target: c.by("alice", rebuilt).Environment(), Reason: "planted in a test", IssuedAt: c.now})
		}, ReasonRevoked},
		// None of what goes on hides a revocation.
		{"one of two is revoked, and the list is too old", listed, func(c *council) { both(c); c.revoke(capstore.KindMint, bobsKey(c)) }, ReasonQuorum},
		{"one of two is revoked, and the policy is over", over, func(c *council) { both(c); c.revoke(capstore.KindMint, bobsKey(c)) }, ReasonQuorum},
		{"one of two is revoked, and there is a dissent", nil, func(c *council) {
			both(c)
			c.by("carol", dissenting)
			c.revoke(capstore.KindMint, bobsKey(c))
		}, ReasonQuorum},
		{"one of two is revoked, the other is over", nil, func(c *council) {
			c.by("alice", rebuilt, window(c.now, -time.Hour, -time.Minute))
			c.by("bob", rebuilt)
			c.revoke(capstore.KindMint, bobsKey(c))
		}, ReasonRevoked},
		{"it is revoked, and another model without a rule has the same bytes", single, func(c *council) {
			c.revoke(capstore.KindClaim, c.by("alice", rebuilt).Claim().String())
			c.by("alice", rebuilt, of("other/x", "x"))
		}, ReasonQuorum},
		{"it is revoked, and others may open it", single, func(c *council) {
			c.revoke(capstore.KindCapability, c.by("alice", rebuilt).ID().String())
			c.by("bob", rebuilt, only(c.t, nil, []int64{1001}, nil))
		}, ReasonRestricted},
		{"it is over, and others may open it", single, func(c *council) {
			c.by("alice", rebuilt, window(c.now, -time.Hour, -time.Minute))
			c.by("bob", rebuilt, only(c.t, nil, []int64{1001}, nil))
		}, ""},
		{"it was for others all along", single, func(c *council) { c.by("bob", rebuilt, only(c.t, nil, []int64{1001}, nil)) }, ReasonRestricted},
		{"it is over, and a renewal is revoked", single, func(c *council) {
			c.by("alice", rebuilt, window(c.now, -time.Hour, -time.Minute))
			c.revoke(capstore.KindCapability, c.by("alice", rebuilt).ID().String())
		}, ""},
		{"it was over before it was opened, and what it was opened under is revoked", single, func(c *council) {
			c.by("alice", rebuilt, window(c.now, -time.Hour, -40*time.Minute))
			c.revoke(capstore.KindCapability, c.by("alice", rebuilt).ID().String())
		}, ReasonRevoked},
		{"it has not begun", single, func(c *council) { c.by("alice", rebuilt, window(c.now, time.Minute, time.Hour)) }, ReasonNotYetValid},
		{"nothing is there", nil, func(*council) {}, ReasonNoCapability},
	} {
		t.Run(x.name, func(t *testing.T) {
			trust := func(*capstore.Trust) {}
			if x.trust != nil {
				trust = x.trust
			}
			c := newCouncil(t, trust)
			x.setup(c)
			q := c.query()
			why, gone := lost(q, c.now.Add(-30*time.Minute), c.view.Lookup(q.Sum.Claim()))
			if gone != (x.want != "") || why.Reason != x.want {
				t.Errorf("lost = %q, %v (%s), want %q", why.Reason, gone, why.Detail, x.want)
			}
			// A silent daemon takes nothing back that is open.
			q.Silence, q.MaxSilence = time.Hour, time.Minute
			if in, silent := lost(q, c.now.Add(-30*time.Minute), c.view.Lookup(q.Sum.Claim())); silent != gone || in.Reason != why.Reason {
				t.Errorf("lost in silence = %q, %v, want as without: %q, %v", in.Reason, silent, why.Reason, gone)
			}
			if gone && (why.Detail == "" || why.Next == "" || why.Allowed()) {
				t.Errorf("detail %q, next %q, allowed %v", why.Detail, why.Next, why.Allowed())
			}
		})
	}
}

// Every reason that Decide gives has a rank of its own, so that the order in
// which grants come decides nothing.
func TestRanks(t *testing.T) {
	seen := make(map[int]Reason)
	for r, n := range rank {
		if n == 0 || seen[n] != "" {
			t.Errorf("%s and %s have rank %d", r, seen[n], n)
		}
		seen[n] = r
	}
	if highest := slices.Max(slices.Collect(maps.Values(rank))); rank[ReasonGranted] != highest {
		t.Errorf("rank of %s is %d, and the highest is %d", ReasonGranted, rank[ReasonGranted], highest)
	}
}

// Rules that nobody can meet are refused before anything is asked of them.
func TestRuleOfNobody(t *testing.T) {
	c := newCouncil(t)
	for _, change := range []func(*capstore.Rule){
		func(r *capstore.Rule) { r.Threshold = 4 },
		func(r *capstore.Rule) { r.Operators = nil },
		func(r *capstore.Rule) { r.Threshold = 0 },
	} {
		trust := c.trust
		trust.Rules = slices.Clone(c.trust.Rules)
		change(&trust.Rules[0])
		if _, err := capstore.NewView(trust); err == nil || errors.Is(err, capstore.ErrNotFound) {
			t.Errorf("rule %+v: %v", trust.Rules[0], err)
		}
	}
}

// In audit mode what was revoked is refused all the same, unless somebody grants it
// again who decides on the model.
func TestTakenBack(t *testing.T) {
	withoutCarol := func(trust *capstore.Trust) {
		trust.Rules = []capstore.Rule{{Models: []string{"acme/*"}, Operators: []string{"alice", "bob"}, Threshold: 1}}
	}
	for _, x := range []struct {
		name string
		do   func(c *council)
		want bool
	}{
		{"nothing is known", func(*council) {}, false},
		{"granted", func(c *council) { c.by("alice", rebuilt) }, false},
		{"granted by one who does not decide", func(c *council) { c.by("carol", rebuilt) }, false},
		{"revoked", func(c *council) { c.revoke(capstore.KindCapability, c.by("alice", rebuilt).ID().String()) }, true},
		{"revoked, and granted again", func(c *council) {
			c.revoke(capstore.KindCapability, c.by("alice", rebuilt).ID().String())
			c.by("bob", rebuilt)
		}, false},
		{"revoked, and granted by one who does not decide", func(c *council) {
			c.revoke(capstore.KindCapability, c.by("alice", rebuilt).ID().String())
			c.by("carol", rebuilt)
		}, true},
		{"the file itself revoked, and unknown", func(c *council) {
			c.revoke(capstore.KindFile, hashpipe.SumBytes(rebuilt).String())
		}, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := newCouncil(t, withoutCarol)
			x.do(c)
			got, err := hashpipe.Measure(t.Context(), bytes.NewReader(rebuilt), nil)
			if err != nil {
				t.Fatal(err)
			}
			f := &filesystem{view: c.view}
			if taken := f.takenBack(proof{tree: got.Tree(), sum: got.Sum(), digest: got.Sum().Claim()}); taken != x.want {
				t.Errorf("taken back: %v, want %v", taken, x.want)
			}
		})
	}
}
