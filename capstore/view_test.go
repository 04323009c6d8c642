package capstore

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
)

func TestViewSignerRefusals(t *testing.T) {
	w := newWorld(t)
	payload := payloadOf(t, w.statement(t, "", "a.bin"))
	byStranger := w.statement(t, "", "a.bin")
	byStranger.Predicate.Minter.KeyID = w.stranger.Public().ID()
	otherType, err := dsse.Sign("application/json", payload, w.mint)
	if err != nil {
		t.Fatal(err)
	}
	st, err := NewRevocation(KindFile, digestOf("a.bin").String(), "x", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	revocationByMint, err := SignRevocation(st, w.mint)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		envelope []byte
		want     string
	}{
		"nothing":               {nil, "envelope"},
		"payload alone":         {payload, "envelope"},
		"too long":              {make([]byte, MaxRecord+1), "at most 524288"},
		"stranger's":            {sign(t, payloadOf(t, byStranger), w.stranger), "not signed by a trusted mint"},
		"stranger as the mint":  {sign(t, payload, w.stranger), "not signed by a trusted mint"},
		"the publisher's":       {sign(t, payload, w.publisher), "not signed by a trusted mint"},
		"the revoker's":         {sign(t, payload, w.revoker), "not signed by a trusted mint"},
		"mint names a stranger": {sign(t, payloadOf(t, byStranger), w.mint), "minter.keyid is"},
		"both sign, other name": {sign(t, payloadOf(t, byStranger), w.stranger, w.mint), "minter.keyid is"},
		"other payload type":    {otherType, "payloadType"},
		"a revocation":          {revocationByMint, "predicateType is \"https://github.com/openclaw/clawfs/revocation/v1\""},
	} {
		t.Run(name, func(t *testing.T) {
			v := w.view(t)
			c, err := v.Admit(tc.envelope)
			wantError(t, err, "admitting capability", tc.want)
			if !c.IsZero() || len(v.All())+len(v.Lookup(digestOf("a.bin"))) != 0 || v.Generation() != 0 {
				t.Error("the refused capability left something")
			}
		})
	}
}

// The mints of two operators, one envelope signed by both: whoever the
// statement names is the minter, and the other does not become one.
func TestMinterIsTheNamedSigner(t *testing.T) {
	w := newWorld(t)
	trust := w.trust()
	trust.Mints = append(trust.Mints, Signer{"other", w.stranger.Public()})
	v, err := NewView(trust)
	if err != nil {
		t.Fatal(err)
	}
	c, err := v.Admit(sign(t, payloadOf(t, w.statement(t, "", "a.bin")), w.stranger, w.mint))
	if err != nil {
		t.Fatal(err)
	}
	if c.Minter() != w.mint.Public().ID() || c.Operator() != "local" {
		t.Errorf("minter %s of operator %q, want %s of local", c.Minter(), c.Operator(), w.mint.Public().ID())
	}
}

func TestLookup(t *testing.T) {
	w := newWorld(t)
	v := w.view(t)
	one, err := v.Admit(w.capability(t, "", "a.bin", "dir/a.bin", "b.bin"))
	if err != nil {
		t.Fatal(err)
	}
	// The same file in a second release, under the same name.
	st := w.statement(t, "", "a.bin")
	st.Predicate.Sequence, st.Predicate.Version = 13, "1.3.0"
	two, err := v.Admit(sign(t, payloadOf(t, st), w.mint))
	if err != nil {
		t.Fatal(err)
	}
	if v.Generation() != 2 {
		t.Errorf("generation %d after two records", v.Generation())
	}
	if again, err := v.Admit(two.Envelope()); err != nil || again != two || v.Generation() != 2 {
		t.Errorf("admitting twice: %v, %v, generation %d", again == two, err, v.Generation())
	}
	ids := func(grants []Grant) (s []hashpipe.Digest) {
		for _, g := range grants {
			s = append(s, g.ID())
		}
		return s
	}
	for name, tc := range map[string]struct {
		got, want []hashpipe.Digest
	}{
		"shared file, newest first": {ids(v.Lookup(digestOf("a.bin"))), []hashpipe.Digest{two.ID(), one.ID()}},
		"file of one":               {ids(v.Lookup(digestOf("b.bin"))), []hashpipe.Digest{one.ID()}},
		"unknown file":              {ids(v.Lookup(digestOf("c.bin"))), nil},
		"zero digest":               {ids(v.Lookup(hashpipe.Digest{})), nil},
		"capability's own id":       {ids(v.Lookup(one.ID())), nil},
		"base name":                 {ids(v.ByName("a.bin")), []hashpipe.Digest{two.ID(), one.ID()}},
		"path is no base name":      {ids(v.ByName("dir/a.bin")), nil},
		"no name":                   {ids(v.ByName("")), nil},
		"all":                       {ids(v.All()), []hashpipe.Digest{two.ID(), one.ID()}},
	} {
		if fmt.Sprint(tc.got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: %v, want %v", name, tc.got, tc.want)
		}
	}
}

// A revocation of each kind outranks its capability in either order of arrival,
// and leaves the others alone.
func TestRevocationOutranks(t *testing.T) {
	w := newWorld(t)
	victim := w.statement(t, "victim", "a.bin", "b.bin")
	id := hashpipe.SumBytes(payloadOf(t, victim)).Claim()
	file := digestOf("a.binvictim")
	for _, tc := range []struct {
		kind   Kind
		target string
		spared bool // b.bin of the victim stays granted
		others bool // a capability of other content is revoked too
	}{
		{KindCapability, id.String(), false, false},
		{KindClaim, victim.Predicate.Claim.String(), false, false},
		{KindSBA, victim.Predicate.SBA.Digest.SHA256.String(), false, false},
		{KindPublisher, string(w.publisher.Public().ID()), false, true},
		{KindMint, string(w.mint.Public().ID()), false, true},
		{KindFile, file.String(), true, false},
	} {
		for _, order := range []string{"capability first", "revocation first"} {
			t.Run(string(tc.kind)+"/"+order, func(t *testing.T) {
				v := w.view(t)
				revoke := func() {
					r, err := v.Revoke(w.revocation(t, tc.kind, tc.target))
					if err != nil {
						t.Fatal(err)
					}
					if r.Kind() != tc.kind || r.Target() != tc.target || r.Operator() != "local" {
						t.Errorf("revocation reads back as %s %s of %q", r.Kind(), r.Target(), r.Operator())
					}
				}
				if order == "revocation first" {
					revoke()
				}
				for _, e := range [][]byte{sign(t, payloadOf(t, victim), w.mint), w.capability(t, "other", "a.bin")} {
					if _, err := v.Admit(e); err != nil {
						t.Fatal(err)
					}
				}
				if order == "capability first" {
					if isRevoked(t, v.Lookup(file)) {
						t.Error("revoked before the revocation")
					}
					before := v.Generation()
					revoke()
					if v.Generation() == before {
						t.Error("the revocation did not raise the generation")
					}
				}
				if !isRevoked(t, v.Lookup(file)) {
					t.Error("the capability is not revoked")
				}
				if got := isRevoked(t, v.Lookup(digestOf("b.binvictim"))); got == tc.spared {
					t.Errorf("revoked for its other file: %v", got)
				}
				if got := isRevoked(t, v.Lookup(digestOf("a.binother"))); got != tc.others {
					t.Errorf("revoked for other content: %v, want %v", got, tc.others)
				}
				if n := len(v.Revocations()); n != 1 {
					t.Errorf("%d revocations, want 1", n)
				}
			})
		}
	}
}

func isRevoked(t *testing.T, grants []Grant) bool {
	t.Helper()
	if len(grants) != 1 {
		t.Fatalf("%d grants, want 1", len(grants))
	}
	_, revoked := grants[0].Revoked()
	return revoked
}

// The earliest revocation is named, whichever arrived first.
func TestEarliestRevocationIsNamed(t *testing.T) {
	w := newWorld(t)
	var envelopes [][]byte
	for day := range 3 {
		st, err := NewRevocation(KindFile, digestOf("a.bin").String(), fmt.Sprintf("reason %d", day), time.Date(2026, 11, 20+day, 0, 0, 0, 0, time.UTC))
		if err != nil {
			t.Fatal(err)
		}
		e, err := SignRevocation(st, w.revoker)
		if err != nil {
			t.Fatal(err)
		}
		envelopes = append(envelopes, e)
	}
	for _, order := range [][3]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}} {
		v := w.view(t)
		if _, err := v.Admit(w.capability(t, "", "a.bin")); err != nil {
			t.Fatal(err)
		}
		for _, i := range order {
			if _, err := v.Revoke(envelopes[i]); err != nil {
				t.Fatal(err)
			}
		}
		r, _ := v.Lookup(digestOf("a.bin"))[0].Revoked()
		if r.Reason() != "reason 0" || len(v.Revocations()) != 3 || v.Revocations()[2].Reason() != "reason 2" {
			t.Errorf("order %v: reason is %q", order, r.Reason())
		}
	}
}

func TestRevocationRefusals(t *testing.T) {
	w := newWorld(t)
	target := digestOf("a.bin").String()
	at := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		kind           Kind
		target, reason string
		at             time.Time
		want           string
	}{
		"no kind":            {"", target, "x", at, "kind is"},
		"unknown kind":       {"model", target, "x", at, "kind is"},
		"no target":          {KindFile, "", "x", at, "target"},
		"short target":       {KindFile, target[1:], "x", at, "target"},
		"upper-case target":  {KindFile, strings.ToUpper(target), "x", at, "target"},
		"zero target":        {KindFile, strings.Repeat("0", 64), "x", at, "target"},
		"no reason":          {KindFile, target, "", at, "reason is missing"},
		"reason of lines":    {KindFile, target, "a\nb", at, "cannot be printed"},
		"reason with escape": {KindFile, target, "\x1b]0;", at, "cannot be printed"},
		"long reason":        {KindFile, target, strings.Repeat("x", 1025), at, "at most 1024"},
		"no time":            {KindFile, target, "x", time.Time{}, "issuedAt is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewRevocation(tc.kind, tc.target, tc.reason, tc.at)
			wantError(t, err, "revoking", tc.want)
		})
	}

	st, err := NewRevocation(KindFile, target, "x", at)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(k dsse.PrivateKey) []byte {
		e, err := SignRevocation(st, k)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	st.Predicate.Revoker.KeyID = w.revoker.Public().ID()
	payload, err := st.Payload()
	if err != nil {
		t.Fatal(err)
	}
	good := string(payload)
	swap := func(old, new string) []byte {
		if !strings.Contains(good, old) {
			t.Fatalf("%q does not occur in %s", old, good)
		}
		return sign(t, []byte(strings.Replace(good, old, new, 1)), w.revoker)
	}
	for name, tc := range map[string]struct {
		envelope []byte
		want     string
	}{
		"stranger's":         {signed(w.stranger), "not signed by a trusted revoker"},
		"the mint's":         {signed(w.mint), "not signed by a trusted revoker"},
		"other revoker":      {sign(t, []byte(strings.Replace(good, string(w.revoker.Public().ID()), string(w.stranger.Public().ID()), 1)), w.revoker), "revoker.keyid is"},
		"a capability":       {sign(t, payloadOf(t, w.statement(t, "", "a.bin")), w.revoker), "predicateType is"},
		"unknown field":      {swap(`"reason":`, `"until":"2027","reason":`), "unknown"},
		"duplicate field":    {swap(`"reason":`, `"reason":"y","reason":`), "duplicate"},
		"two subjects":       {swap(`"subject":[`, `"subject":[{"digest":{"sha256":"`+target+`"}},`), "2 subjects"},
		"no subject":         {swap(`[{"digest":{"sha256":"`+target+`"}}]`, `[]`), "0 subjects"},
		"subject no digest":  {swap(`{"digest":{"sha256":"`+target+`"}}`, `{}`), "no sha256"},
		"white space":        {swap(`"reason":`, ` "reason":`), "canonical"},
		"trailing data":      {sign(t, append([]byte(good), '1'), w.revoker), "revocation"},
		"local time":         {swap(`T00:00:00Z`, `T00:00:00+02:00`), "UTC"},
		"unknown kind":       {swap(`"kind":"file"`, `"kind":"all"`), "kind is"},
		"other payload type": {[]byte(strings.Replace(string(signed(w.revoker)), "vnd.in-toto", "vnd.in-tota", 1)), "payloadType"},
	} {
		t.Run(name, func(t *testing.T) {
			v := w.view(t)
			r, err := v.Revoke(tc.envelope)
			wantError(t, err, "admitting revocation", tc.want)
			if !r.IsZero() || len(v.Revocations()) != 0 || v.Generation() != 0 {
				t.Error("the refused revocation left something")
			}
		})
	}
	if _, err := w.view(t).Revoke(sign(t, payload, w.revoker)); err != nil {
		t.Errorf("the text that the others vary is refused: %v", err)
	}
}

// One changed bit anywhere in an envelope is refused, or lies in what no
// signature covers (the hint which key signed) and then changes nothing.
func TestEveryBitFlip(t *testing.T) {
	w := newWorld(t)
	good := w.capability(t, "", "a.bin")
	want, err := w.view(t).Admit(good)
	if err != nil {
		t.Fatal(err)
	}
	refused, unchanged := 0, 0
	for i := range good {
		for bit := range 8 {
			bad := append([]byte(nil), good...)
			bad[i] ^= 1 << bit
			v := w.view(t)
			c, err := v.Admit(bad)
			switch {
			case err != nil:
				refused++
				if len(v.All()) != 0 {
					t.Fatalf("byte %d bit %d: refused and yet there", i, bit)
				}
			case c.ID() == want.ID() && c.Subjects()[0] == want.Subjects()[0]:
				unchanged++
			default:
				t.Fatalf("byte %d bit %d: admitted as another capability", i, bit)
			}
		}
	}
	// The key id hint is 64 characters; everything else counts.
	if unchanged > 64*8 || refused < (len(good)-64)*8 {
		t.Errorf("%d flips refused and %d without effect, in %d bytes", refused, unchanged, len(good))
	}
}

// Readers and writers at the same time, for the race detector; a reader that
// has seen the revocation never sees the grant live again.
func TestViewConcurrently(t *testing.T) {
	w := newWorld(t)
	v := w.view(t)
	d := digestOf("a.bin0")
	var envelopes [][]byte
	for i := range 20 {
		envelopes = append(envelopes, w.capability(t, fmt.Sprint(i), "a.bin"))
	}
	if _, err := v.Admit(envelopes[0]); err != nil {
		t.Fatal(err)
	}
	revocation := w.revocation(t, KindFile, d.String())
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			seen := false
			for {
				select {
				case <-stop:
					return
				default:
				}
				before := v.Generation()
				_, revoked := v.Lookup(d)[0].Revoked()
				if seen && !revoked {
					t.Error("a revoked grant came back")
					return
				}
				seen = seen || revoked
				if v.Generation() < before {
					t.Error("the generation went back")
				}
				v.All()
				v.ByName("a.bin")
				v.Revocations()
			}
		})
	}
	for i, e := range envelopes {
		if i == 10 {
			if _, err := v.Revoke(revocation); err != nil {
				t.Error(err)
			}
		}
		if _, err := v.Admit(e); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
	if len(v.All()) != 20 || v.Generation() != 21 {
		t.Errorf("%d capabilities, generation %d", len(v.All()), v.Generation())
	}
}
