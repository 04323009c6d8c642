package verifier_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/verifier"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// windowed is the party's policy with windows for the rule acme, whose keys are
// publisher and second.
func windowed(t testing.TB, p party, threshold int64, windows map[dsse.KeyID]verifier.Window) *verifier.Policy {
	t.Helper()
	c, err := verifier.ParsePolicy(encode(t, p.policy))
	if err != nil {
		t.Fatal(err)
	}
	r := &c.Publishers[0]
	r.Keys, r.Threshold, r.Windows = []dsse.PublicKey{p.publisher.Public(), p.second.Public()}, threshold, windows
	if _, err := c.Encode(); err != nil {
		t.Fatal(err)
	}
	return c
}

// A key counts from notBefore on and no longer at notAfter, to the nanosecond.
func TestWindowBoundaries(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	from, until := now.Add(time.Hour), now.Add(3*time.Hour)
	id := p.publisher.Public().ID()
	s, err := verifier.ParseSBA(sign(t, dsse.PayloadType, payload(t, statement(t, p.publisher.Public())), p.publisher))
	if err != nil {
		t.Fatal(err)
	}
	const early, late = "is valid from 2026-11-23T13:00:00Z, and now is ", "is valid until 2026-11-23T15:00:00Z, and now is "
	both := verifier.Window{NotBefore: verifier.At(from), NotAfter: verifier.At(until)}
	begin, end := verifier.Window{NotBefore: both.NotBefore}, verifier.Window{NotAfter: both.NotAfter}
	for _, tt := range []struct {
		name   string
		window verifier.Window
		at     time.Time
		want   string
	}{
		{"both, long before", both, now, early + "2026-11-23T12:00:00Z"},
		{"both, just before", both, from.Add(-1), early + "2026-11-23T12:59:59Z"},
		{"both, at the beginning", both, from, ""},
		{"both, in another zone", both, from.In(time.FixedZone("", 7*3600)), ""},
		{"both, just before the end", both, until.Add(-1), ""},
		{"both, at the end", both, until, late + "2026-11-23T15:00:00Z"},
		{"both, long after", both, until.AddDate(100, 0, 0), late + "2126-11-23T15:00:00Z"},
		{"beginning alone, before", begin, from.Add(-1), early},
		{"beginning alone, at it", begin, from, ""},
		{"beginning alone, long after", begin, until.AddDate(100, 0, 0), ""},
		{"end alone, before", end, now, ""},
		{"end alone, at it", end, until, late},
		{"none", verifier.Window{}, until.AddDate(100, 0, 0), ""},
	} {
		windows := map[dsse.KeyID]verifier.Window{id: tt.window}
		if tt.window == (verifier.Window{}) {
			windows = nil
		}
		v, err := verifier.New(windowed(t, p, 1, windows))
		if err != nil {
			t.Fatal(err)
		}
		a, err := v.Verify(s, tt.at)
		var r *verifier.Refusal
		switch {
		case tt.want == "" && (err != nil || a.IsZero()):
			t.Errorf("%s: %v, want it believed", tt.name, err)
		case tt.want != "" && (!errors.As(err, &r) || r.Reason != verifier.ReasonSigner || !strings.Contains(err.Error(), fmt.Sprintf("key %s %s", id, tt.want)) || !a.IsZero()):
			t.Errorf("%s: %v, want a refusal of the signer with %q", tt.name, err, tt.want)
		}
	}
}

// A key outside its window does not count, whatever the order of keys,
// signatures and windows, and no other key makes up for the one that the ledger
// names.
func TestWindowsAndThreshold(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	first, second := p.publisher.Public(), p.second.Public()
	expired := verifier.Window{NotAfter: verifier.At(now)}
	future := verifier.Window{NotBefore: verifier.At(now.Add(time.Second))}
	open := verifier.Window{NotBefore: verifier.At(now), NotAfter: verifier.At(now.Add(time.Second))}
	for _, tt := range []struct {
		name          string
		threshold     int64
		first, second verifier.Window
		names         dsse.PublicKey // by the ledger
		want          string
	}{
		{"both count", 2, open, open, first, ""},
		{"one of two is enough, and it is named", 1, open, expired, first, ""},
		{"one of two is enough, and the other is named", 1, open, expired, second, "key " + string(second.ID()) + " is valid until"},
		{"one of two is enough, and the other is not yet valid", 1, open, future, second, "key " + string(second.ID()) + " is valid from"},
		{"two are needed, one has expired", 2, open, expired, first, "expected 2 valid keys of publisher acme, got 1: key " + string(second.ID()) + " is valid until"},
		{"two are needed, one is not yet valid", 2, future, open, second, "expected 2 valid keys of publisher acme, got 1: key " + string(first.ID()) + " is valid from"},
		{"both have expired", 1, expired, expired, first, "key " + string(first.ID()) + " is valid until"},
		{"no window is no bound", 2, verifier.Window{}, open, second, ""},
	} {
		windows := map[dsse.KeyID]verifier.Window{first.ID(): tt.first, second.ID(): tt.second}
		for id, w := range windows {
			if w == (verifier.Window{}) {
				delete(windows, id)
			}
		}
		policy := windowed(t, p, tt.threshold, windows)
		body := payload(t, statement(t, tt.names))
		for _, signers := range [][]dsse.PrivateKey{{p.publisher, p.second}, {p.second, p.publisher}, {p.second, p.stranger, p.publisher}, {p.stranger, p.publisher, p.second}} {
			for range 2 { // in either order of the rule's keys
				a, err := verify(t, policy, sign(t, dsse.PayloadType, body, signers...))
				var r *verifier.Refusal
				switch {
				case tt.want == "" && (err != nil || a.Publisher() != tt.names):
					t.Errorf("%s: %v, want it believed", tt.name, err)
				case tt.want != "" && (!errors.As(err, &r) || r.Reason != verifier.ReasonSigner || !strings.Contains(err.Error(), tt.want)):
					t.Errorf("%s: %v, want a refusal of the signer with %q", tt.name, err, tt.want)
				}
				k := policy.Publishers[0].Keys
				k[0], k[1] = k[1], k[0]
			}
		}
	}
}

func TestPolicyWindows(t *testing.T) {
	p := newParty(t, dsse.Ed25519)
	good := string(encode(t, p.policy))
	id := string(p.publisher.Public().ID())
	with := func(windows string) string {
		return strings.Replace(good, `"threshold": 1`, `"threshold": 1, "windows": `+windows, 1)
	}
	for windows, want := range map[string]verifier.Window{
		`{"` + id + `": {"notBefore": "2026-01-01T00:00:00Z"}}`:                                     {NotBefore: verifier.At(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))},
		`{"` + id + `": {"notAfter": "2027-01-01T00:00:00Z"}}`:                                      {NotAfter: verifier.At(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))},
		`{"` + id + `": {"notAfter": "2027-01-01T00:00:01Z", "notBefore": "2027-01-01T00:00:00Z"}}`: {NotBefore: verifier.At(time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)), NotAfter: verifier.At(time.Date(2027, 1, 1, 0, 0, 1, 0, time.UTC))},
	} {
		c, err := verifier.ParsePolicy([]byte(with(windows)))
		if err != nil || c.Publishers[0].Windows[dsse.KeyID(id)] != want {
			t.Errorf("windows %s: %+v, %v, want %+v", windows, c, err, want)
			continue
		}
		if again, err := verifier.ParsePolicy(encode(t, c)); err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("printed and read again: %+v, %v, want %+v", again, err, c)
		}
	}
	for name, tt := range map[string]struct{ windows, want string }{
		"none":                   {`{}`, "windows is empty"},
		"null":                   {`null`, "null"},
		"a list":                 {`[]`, "windows"},
		"an empty one":           {`{"` + id + `": {}}`, "expected notBefore, notAfter or both"},
		"null in it":             {`{"` + id + `": null}`, "null"},
		"a bound of null":        {`{"` + id + `": {"notAfter": null}}`, "null"},
		"an empty bound":         {`{"` + id + `": {"notAfter": ""}}`, "notAfter"},
		"a number":               {`{"` + id + `": {"notAfter": 1798761600}}`, "notAfter"},
		"a date":                 {`{"` + id + `": {"notAfter": "2027-01-01"}}`, "notAfter"},
		"another zone":           {`{"` + id + `": {"notAfter": "2027-01-01T00:00:00+00:00"}}`, "notAfter"},
		"lower-case z":           {`{"` + id + `": {"notAfter": "2027-01-01T00:00:00z"}}`, "notAfter"},
		"a fraction":             {`{"` + id + `": {"notAfter": "2027-01-01T00:00:00.5Z"}}`, "notAfter"},
		"February 30":            {`{"` + id + `": {"notAfter": "2027-02-30T00:00:00Z"}}`, "notAfter"},
		"before 1970":            {`{"` + id + `": {"notAfter": "1969-12-31T23:59:59Z"}}`, "notAfter"},
		"another word":           {`{"` + id + `": {"notafter": "2027-01-01T00:00:00Z"}}`, "notafter"},
		"an unknown bound":       {`{"` + id + `": {"expires": "2027-01-01T00:00:00Z"}}`, "expires"},
		"a bound twice":          {`{"` + id + `": {"notAfter": "2027-01-01T00:00:00Z", "notAfter": "2028-01-01T00:00:00Z"}}`, "duplicate"},
		"nothing between":        {`{"` + id + `": {"notBefore": "2027-01-01T00:00:00Z", "notAfter": "2027-01-01T00:00:00Z"}}`, "expected notBefore before notAfter"},
		"the end first":          {`{"` + id + `": {"notBefore": "2027-01-01T00:00:01Z", "notAfter": "2027-01-01T00:00:00Z"}}`, "expected notBefore before notAfter"},
		"a key of nobody":        {`{"` + strings.Repeat("ab", 32) + `": {"notAfter": "2027-01-01T00:00:00Z"}}`, "one of this rule's keys"},
		"a mint's key":           {`{"` + string(p.mint.Public().ID()) + `": {"notAfter": "2027-01-01T00:00:00Z"}}`, "one of this rule's keys"},
		"an upper-case key id":   {`{"` + strings.ToUpper(id) + `": {"notAfter": "2027-01-01T00:00:00Z"}}`, "one of this rule's keys"},
		"a key id with a prefix": {`{"sha256:` + id + `": {"notAfter": "2027-01-01T00:00:00Z"}}`, "one of this rule's keys"},
		"half a key id":          {`{"` + id[:32] + `": {"notAfter": "2027-01-01T00:00:00Z"}}`, "one of this rule's keys"},
		"an empty key id":        {`{"": {"notAfter": "2027-01-01T00:00:00Z"}}`, "one of this rule's keys"},
		"a key id twice":         {`{"` + id + `": {"notAfter": "2027-01-01T00:00:00Z"}, "` + id + `": {"notAfter": "2028-01-01T00:00:00Z"}}`, "duplicate"},
	} {
		if c, err := verifier.ParsePolicy([]byte(with(tt.windows))); err == nil || !strings.Contains(err.Error(), tt.want) || c != nil {
			t.Errorf("%s: ParsePolicy = %v, want an error with %q", name, err, tt.want)
		}
	}
}
