package fs

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// desk makes grants for the table: real keys, real signatures, a real view.
type desk struct {
	t         *testing.T
	mint, rev dsse.PrivateKey
	view      *capstore.View
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{t: t, mint: newKey(t), rev: newKey(t)}
	view, err := capstore.NewView(capstore.Trust{
		Mints:    []capstore.Signer{{Operator: "test", Key: d.mint.Public()}},
		Revokers: []capstore.Signer{{Operator: "test", Key: d.rev.Public()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	d.view = view
	return d
}

func (d *desk) admit(subjects []capstore.Subject, change ...func(*terms)) capstore.Capability {
	d.t.Helper()
	c, err := d.view.Admit(signed(d.t, d.mint, subjects, change...))
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

func (d *desk) revoke(kind capstore.Kind, target hashpipe.Digest) {
	d.t.Helper()
	if _, err := d.view.Revoke(revocation(d.t, d.rev, kind, target)); err != nil {
		d.t.Fatal(err)
	}
}

func TestDecide(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	good, other := []byte("the rebuilt bytes"), []byte("other rebuilt bytes!")
	evil := []byte("evil as the first")
	if len(evil) != len(good) {
		t.Fatal("the tampered copy must have the size of the original")
	}
	sequence := func(n int64) func(*terms) { return func(w *terms) { w.sequence = n } }
	expired := func(w *terms) { w.notBefore, w.notAfter = now.Add(-2*time.Hour), now.Add(-time.Hour) }
	future := func(w *terms) { w.notBefore, w.notAfter = now.Add(time.Hour), now.Add(2*time.Hour) }
	window := func(from, to time.Duration) func(*terms) {
		return func(w *terms) { w.notBefore, w.notAfter = now.Add(from), now.Add(to) }
	}
	trees := make(map[hashpipe.Sum]*hashpipe.Tree) // of the same bytes
	query := func(path string, data []byte) Query {
		got, err := hashpipe.Measure(t.Context(), bytes.NewReader(data), nil)
		if err != nil {
			t.Fatal(err)
		}
		trees[got.Sum()] = got.Tree()
		return Query{Path: path, Size: int64(len(data)), Sum: hashpipe.SumBytes(data), Now: now}
	}
	gitQuery := func(data []byte) Query {
		q := query("blobs/"+gitIDOf(data), data)
		q.Git = true
		return q
	}
	digest := hashpipe.SumBytes(good).Claim()

	for _, c := range []struct {
		name    string
		q       Query
		setup   func(*desk)
		want    Reason
		mention string // in Detail
	}{
		{name: "nothing is granted", q: query("langid.bin", good), want: ReasonNoCapability, mention: sumOf(good)},
		{name: "the zero query", q: Query{}, setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonNoCapability},
		{name: "another file's capability", q: query("langid.bin", good), setup: func(d *desk) { d.grant("tokenizer.json", other) }, want: ReasonNoCapability},
		{name: "not measured", q: Query{Path: "langid.bin", Size: int64(len(good)), Now: now}, setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonUnmeasured},
		{name: "no time", q: Query{Path: "langid.bin", Size: int64(len(good)), Sum: hashpipe.SumBytes(good)}, setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonNotYetValid},
		{name: "wrong size", q: query("langid.bin", good[1:]), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongSize, mention: "expected 17 bytes"},
		{name: "right bytes, size that does not fit them", q: Query{Path: "langid.bin", Size: 5, Sum: hashpipe.SumBytes(good), Now: now}, setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongSize},
		{name: "right bytes, absurd size", q: Query{Path: "langid.bin", Size: math.MinInt64, Sum: hashpipe.SumBytes(good), Now: now}, setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongSize},
		{name: "wrong bytes", q: query("langid.bin", evil), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongBytes, mention: "got sha256:" + sumOf(evil)},
		{name: "wrong name", q: query("model.bin", good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongName, mention: "langid.bin"},
		{name: "name that looks the same", q: query("mode\u0300le.bin", good), setup: func(d *desk) { d.grant("mod\u00e8le.bin", good) }, want: ReasonWrongName, mention: `"mode\u0300le.bin" is not "mod\u00e8le.bin"`},
		{name: "name as a mere ending", q: query("xlangid.bin", good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongName},
		{name: "name as a directory", q: query("langid.bin/x", good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongName},
		{name: "other case", q: query("LANGID.bin", good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongName},
		{name: "half of a two-part name", q: query("langid.bin", good), setup: func(d *desk) { d.grant("v1/langid.bin", good) }, want: ReasonWrongName},
		{name: "other directory of a two-part name", q: query("v2/langid.bin", good), setup: func(d *desk) { d.grant("v1/langid.bin", good) }, want: ReasonWrongName},
		{name: "two approved files exchanged", q: query("langid.bin", other), setup: func(d *desk) { d.grant("langid.bin", good); d.grant("other.bin", other) }, want: ReasonWrongName},
		{name: "hash name over other bytes", q: query("blobs/"+sumOf(good), evil), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongBytes},
		{name: "hash name of another approved file", q: query("blobs/"+sumOf(good), other), setup: func(d *desk) { d.grant("langid.bin", good); d.grant("other.bin", other) }, want: ReasonWrongName},
		{name: "hash name of one over another that alone is approved", q: query("blobs/"+sumOf(good), other), setup: func(d *desk) { d.grant("other.bin", other) }, want: ReasonWrongName},
		{name: "hash name in upper case", q: query("blobs/"+strings.ToUpper(sumOf(good)), good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongName},
		{name: "hash name with a suffix", q: query("blobs/"+sumOf(good)+".part", good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongName},
		{name: "hash name of another algorithm", q: query("blobs/sha512-"+sumOf(good), good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongName},
		{name: "git id over other bytes", q: gitQuery(evil), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonNoCapability},
		{name: "git id that nobody compared", q: query("blobs/"+gitIDOf(good), good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonWrongName},
		{name: "revoked under its git id", q: gitQuery(good), setup: func(d *desk) { d.grant("langid.bin", good); d.revoke(capstore.KindFile, digest) }, want: ReasonRevoked},
		{name: "git id, not measured", q: Query{Path: "blobs/" + gitIDOf(good), Size: int64(len(good)), Git: true, Now: now}, setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonNoCapability},
		{name: "expired", q: query("langid.bin", good), setup: func(d *desk) { d.grant("langid.bin", good, expired) }, want: ReasonExpired, mention: "valid until"},
		{name: "expired at this instant", q: query("langid.bin", good), setup: func(d *desk) { d.grant("langid.bin", good, window(-time.Hour, 0)) }, want: ReasonExpired},
		{name: "not yet valid", q: query("langid.bin", good), setup: func(d *desk) { d.grant("langid.bin", good, future) }, want: ReasonNotYetValid},
		{name: "not yet valid by a second", q: query("langid.bin", good), setup: func(d *desk) { d.grant("langid.bin", good, window(time.Second, time.Hour)) }, want: ReasonNotYetValid},
		{name: "file revoked", q: query("langid.bin", good), setup: func(d *desk) { d.grant("langid.bin", good); d.revoke(capstore.KindFile, digest) }, want: ReasonRevoked, mention: "planted in a test"},
		{name: "capability revoked", q: query("langid.bin", good), setup: func(d *desk) { d.revoke(capstore.KindCapability, d.grant("langid.bin", good).ID()) }, want: ReasonRevoked},
		{name: "claim revoked", q: query("langid.bin", good), setup: func(d *desk) { d.revoke(capstore.KindClaim, d.grant("langid.bin", good).Claim()) }, want: ReasonRevoked},
		{name: "attestation revoked", q: query("langid.bin", good), setup: func(d *desk) { d.revoke(capstore.KindSBA, d.grant("langid.bin", good).SBA()) }, want: ReasonRevoked},
		{name: "file revoked before it was granted", q: query("langid.bin", good), setup: func(d *desk) { d.revoke(capstore.KindFile, digest); d.grant("langid.bin", good) }, want: ReasonRevoked},
		{name: "revoked and expired: revoked is told", q: query("langid.bin", good), setup: func(d *desk) { d.grant("langid.bin", good, expired); d.revoke(capstore.KindFile, digest) }, want: ReasonRevoked},
		{name: "revoked under its hash name", q: query("blobs/"+sumOf(good), good), setup: func(d *desk) { d.grant("langid.bin", good); d.revoke(capstore.KindFile, digest) }, want: ReasonRevoked},
		{name: "one expired, one to come", q: query("langid.bin", good), setup: func(d *desk) {
			d.grant("langid.bin", good, expired, sequence(1))
			d.grant("langid.bin", good, future, sequence(2))
		}, want: ReasonExpired},
		{name: "wrong bytes under a name whose capability expired", q: query("langid.bin", evil), setup: func(d *desk) { d.grant("langid.bin", good, expired) }, want: ReasonWrongBytes},

		{name: "granted", q: query("langid.bin", good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonGranted},
		{name: "granted in a directory", q: query("acme/v1/langid.bin", good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonGranted},
		{name: "granted by a two-part name", q: query("acme/v1/langid.bin", good), setup: func(d *desk) { d.grant("v1/langid.bin", good) }, want: ReasonGranted},
		{name: "granted by hash, Hugging Face", q: query("models--a/blobs/"+sumOf(good), good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonGranted},
		{name: "granted by hash, Ollama", q: query("blobs/sha256-"+sumOf(good), good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonGranted},
		{name: "granted by git id", q: gitQuery(good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonGranted},
		{name: "granted by hash with a colon", q: query("sha256:"+sumOf(good), good), setup: func(d *desk) { d.grant("langid.bin", good) }, want: ReasonGranted},
		{name: "granted from this instant", q: query("langid.bin", good), setup: func(d *desk) { d.grant("langid.bin", good, window(0, time.Hour)) }, want: ReasonGranted},
		{name: "granted until the next second", q: query("langid.bin", good), setup: func(d *desk) { d.grant("langid.bin", good, window(-time.Hour, time.Second)) }, want: ReasonGranted},
		{name: "one revoked, one live", q: query("langid.bin", good), setup: func(d *desk) {
			d.revoke(capstore.KindCapability, d.grant("langid.bin", good, sequence(1)).ID())
			d.grant("langid.bin", good, sequence(2))
		}, want: ReasonGranted},
		{name: "one expired, one live", q: query("langid.bin", good), setup: func(d *desk) {
			d.grant("langid.bin", good, expired, sequence(1))
			d.grant("langid.bin", good, sequence(2))
		}, want: ReasonGranted},
		{name: "an older version of the name too", q: query("langid.bin", good), setup: func(d *desk) {
			d.grant("langid.bin", other, sequence(9))
			d.grant("langid.bin", good, sequence(2))
		}, want: ReasonGranted},
		{name: "the second of two outputs", q: query("vocab.txt", other), setup: func(d *desk) {
			d.admit([]capstore.Subject{subject(d.t, "langid.bin", good), subject(d.t, "vocab.txt", other)})
		}, want: ReasonGranted},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDesk(t)
			if c.setup != nil {
				c.setup(d)
			}
			grants := append(d.view.Lookup(c.q.Sum.Claim()), d.view.ByName(baseName(c.q.Path))...)
			if addr, ok := contentAddress(baseName(c.q.Path)); ok {
				grants = append(grants, d.view.Lookup(addr)...)
			}
			v := Decide(c.q, grants)
			if v.Reason != c.want {
				t.Fatalf("Decide = %s (%s), want %s", v.Reason, v.Detail, c.want)
			}
			if v.Allowed() != (c.want == ReasonGranted) {
				t.Errorf("reason %s, allowed %v", v.Reason, v.Allowed())
			}
			if v.Detail == "" || v.Allowed() == (v.Next != "") {
				t.Errorf("detail %q, next %q: a refusal says both, a grant no next", v.Detail, v.Next)
			}
			if !strings.Contains(v.Detail, c.mention) {
				t.Errorf("detail %q does not mention %q", v.Detail, c.mention)
			}
			// The order in which grants are looked up decides nothing.
			for i, j := 0, len(grants)-1; i < j; i, j = i+1, j-1 {
				grants[i], grants[j] = grants[j], grants[i]
			}
			if back := Decide(c.q, grants); back.Reason != v.Reason || back.Allowed() != v.Allowed() {
				t.Errorf("with the grants reversed: %s, want %s", back.Reason, v.Reason)
			}
			// Measured as a tree, the same bytes have the same verdict.
			if tree := trees[c.q.Sum]; tree != nil {
				q := c.q
				q.Sum, q.Tree = hashpipe.Sum{}, tree
				if v := Decide(q, grants); v.Reason != c.want || v.Allowed() != (c.want == ReasonGranted) {
					t.Errorf("measured as a tree: %s (%s), want %s", v.Reason, v.Detail, c.want)
				}
			}
			// A tree that was not measured says nothing.
			q := c.q
			q.Sum, q.Tree = hashpipe.Sum{}, new(hashpipe.Tree)
			if v := Decide(q, grants); v.Allowed() {
				t.Errorf("a zero tree is allowed: %s (%s)", v.Reason, v.Detail)
			}
		})
	}
}

func (d *desk) grant(name string, data []byte, change ...func(*terms)) capstore.Capability {
	d.t.Helper()
	return d.admit([]capstore.Subject{subject(d.t, name, data)}, change...)
}

func TestZeroVerdictRefuses(t *testing.T) {
	for name, v := range map[string]Verdict{
		"zero":                    {},
		"a reason is no verdict":  {Reason: ReasonGranted},
		"allowed by nothing":      {allowed: true, Reason: ReasonGranted},
		"refused outside of rule": refused(ReasonQuarantined, "x", "y"),
	} {
		if v.Allowed() {
			t.Errorf("%s: %+v allows", name, v)
		}
	}
	if v := Decide(Query{Path: "x", Now: time.Now()}, []capstore.Grant{{}}); v.Allowed() {
		t.Errorf("a zero grant allows: %+v", v)
	}
}

func TestClockNeverGoesBack(t *testing.T) {
	start := time.Now()
	wall := start
	c := newClock(func() time.Time { return wall })
	for _, step := range []struct{ set, least time.Duration }{
		{0, 0}, {time.Minute, time.Minute}, {-time.Hour, time.Minute}, {time.Second, time.Minute}, {time.Hour, time.Hour}, {-10 * time.Hour, time.Hour},
	} {
		wall = start.Add(step.set)
		if got := c.now().Sub(start.Round(0)); got < step.least || got > step.least+time.Minute {
			t.Errorf("wall clock at %+v: now is %+v, want %+v", step.set, got, step.least)
		}
	}
	c = newClock(func() time.Time { return start }) // a clock that stands
	time.Sleep(20 * time.Millisecond)
	if passed := c.now().Sub(start.Round(0)); passed < 20*time.Millisecond {
		t.Errorf("after 20 ms with a standing wall clock only %v passed", passed)
	}
}

func TestEscapes(t *testing.T) {
	for _, c := range []struct {
		link, target string
		ok           bool
	}{
		{"a/b/link", "../../blobs/x", true},
		{"a/b/link", "x", true},
		{"a/b/link", "./x/y", true},
		{"a/b/link", "../..", true},
		{"link", "a/b", true},
		{"link", "", false},
		{"link", "/etc/passwd", false},
		{"link", "..", false},
		{"link", "../x", false},
		{"a/link", "../../x", false},
		{"a/b/link", "../../../x", false},
		{"a/link", "./../../x", false},
		{"a/link", "b/../../../x", false},
		{"a/link", "b/../c", false}, // b may be a link to anywhere
		{"a/link", "b/..", false},
	} {
		if why := escapes(c.link, c.target); (why == "") != c.ok {
			t.Errorf("escapes(%q, %q) = %q, want allowed: %v", c.link, c.target, why, c.ok)
		}
	}
}

func TestQuoted(t *testing.T) {
	for in, want := range map[string]string{
		"/models/a-b_c+1.bin": "/models/a-b_c+1.bin",
		"/a b":                "'/a b'",
		"/it's":               `'/it'\''s'`,
		"/x;rm -r y":          "'/x;rm -r y'",
		"/\x1b[31m":           "'/\x1b[31m'",
		"/a@b:0123456789":     "/a@b:0123456789",
		"/azAZ":               "/azAZ",
		"/x{":                 "'/x{'",
		"/x`":                 "'/x`'",
		"/x[":                 "'/x['",
		"/x$":                 "'/x$'",
		"/x;":                 "'/x;'",
		"":                    "",
	} {
		if got := quoted(in); got != want {
			t.Errorf("quoted(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestDeadly(t *testing.T) {
	status := func(thread, shared, blocked, ignored, caught string) []byte {
		return []byte("Name:\tcat\nState:\tD\nSigQ:\t1/2\nSigPnd:\t" + thread + "\nShdPnd:\t" + shared +
			"\nSigBlk:\t" + blocked + "\nSigIgn:\t" + ignored + "\nSigCgt:\t" + caught + "\n")
	}
	const none, all = "0000000000000000", "ffffffffffffffff"
	for _, c := range []struct {
		name string
		in   []byte
		want bool
	}{
		{"nothing pending", status(none, none, none, none, none), false},
		{"no status", nil, false},
		{"garbage", []byte("SigPnd:\tzz\n"), false},
		{"KILL", status("0000000000000100", none, none, none, none), true},
		{"KILL for the process, all caught", status(none, "0000000000000100", none, none, all), true},
		{"TERM", status(none, "0000000000004000", none, none, none), true},
		{"INT with a handler", status(none, "0000000000000002", none, none, "0000000000000002"), true},
		{"INT blocked", status(none, "0000000000000002", "0000000000000002", none, none), false},
		{"HUP ignored", status(none, "0000000000000001", none, "0000000000000001", none), false},
		{"ALRM with a handler", status(none, "0000000000002000", none, none, "0000000000002000"), false},
		{"ALRM without", status(none, "0000000000002000", none, none, none), true},
		{"PROF with a handler", status(none, "0000000004000000", none, none, "0000000004000000"), false},
		{"URG of Go's runtime", status(none, "0000000000400000", none, none, all), false},
		{"CHLD without a handler", status(none, "0000000000010000", none, none, none), false},
		{"WINCH without a handler", status(none, "0000000008000000", none, none, none), false},
		{"STOP", status(none, "0000000000040000", none, none, none), false},
		{"USR1 without a handler", status("0000000000000200", none, none, none, none), true},
	} {
		signals, known := signalsOf(c.in)
		if got := known && deadly(signals); got != c.want {
			t.Errorf("%s: deadly = %v, want %v", c.name, got, c.want)
		}
		if got, want := known && killed(signals), strings.HasPrefix(c.name, "KILL"); got != want {
			t.Errorf("%s: killed = %v, want %v", c.name, got, want)
		}
	}
}
