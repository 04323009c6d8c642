package capstore

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openclaw/clawfs/verifier/dsse"
)

// Terms have one spelling, and what no capability can carry is refused.
func TestNewTerms(t *testing.T) {
	a, b := dsse.KeyID(strings.Repeat("a1", 32)), dsse.KeyID(strings.Repeat("b2", 32))
	until := time.Date(2027, 1, 2, 3, 4, 5, 999, time.FixedZone("", 3600))
	got, err := NewTerms(restrict(t, []string{"team/"}, nil, nil), []dsse.KeyID{b, a, b}, until)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got.Delegate, []dsse.KeyID{a, b}) {
		t.Errorf("delegate %q, want it sorted and unique", got.Delegate)
	}
	if want := time.Date(2027, 1, 2, 2, 4, 5, 0, time.UTC); got.NotAfter != want {
		t.Errorf("notAfter %v, want %v", got.NotAfter, want)
	}
	if zero, err := NewTerms(nil, []dsse.KeyID{}, time.Time{}); err != nil || !zero.IsZero() || zero.Delegate != nil || !zero.NotAfter.IsZero() {
		t.Errorf("NewTerms of nothing = %+v, %v", zero, err)
	}
	var long []string
	for i := range 9 {
		long = append(long, strings.Repeat(strings.Repeat("d", 250)+"/", 15)+string(rune('a'+i)))
	}
	var many []dsse.KeyID
	for i := range maxDelegate + 1 {
		many = append(many, dsse.KeyID(fmt.Sprintf("%064x", i)))
	}
	if err := (Terms{Delegate: many[1:]}).Check(); err != nil {
		t.Errorf("%d keys: %v", maxDelegate, err)
	}
	for name, x := range map[string]struct {
		terms Terms
		want  string
	}{
		"an empty list":         {Terms{Restrict: &Restrict{UIDs: []int64{}}}, "terms: restrict: uids is empty"},
		"no key id":             {Terms{Delegate: []dsse.KeyID{"alice"}}, `terms: delegate "alice"`},
		"unsorted keys":         {Terms{Delegate: []dsse.KeyID{b, a}}, "unique and sorted"},
		"a part of a second":    {Terms{NotAfter: time.Unix(1800000000, 1).UTC()}, "terms: notAfter"},
		"another zone":          {Terms{NotAfter: time.Unix(1800000000, 0).In(time.FixedZone("", 3600))}, "terms: notAfter"},
		"paths of 34 KiB":       {Terms{Restrict: restrict(t, long, nil, nil)}, "at most 32768"},
		"mounts count with it":  {Terms{Restrict: restrict(t, long[:5], nil, []string{"/" + long[0], "/" + long[1], "/" + long[2], "/" + long[3]})}, "at most 32768"},
		"an empty restriction":  {Terms{Restrict: &Restrict{}}, "it is empty"},
		"more keys than may be": {Terms{Delegate: many}, fmt.Sprintf("at most %d", maxDelegate)},
	} {
		if err := x.terms.Check(); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: Check = %v, want %q", name, err, x.want)
		}
	}
}

func TestTermsEqual(t *testing.T) {
	a, b := dsse.KeyID(strings.Repeat("a1", 32)), dsse.KeyID(strings.Repeat("b2", 32))
	at := time.Unix(1800000000, 0).UTC()
	all := []Terms{
		{},
		{Restrict: restrict(t, []string{"team/"}, nil, nil)},
		{Restrict: restrict(t, []string{"other/"}, nil, nil)},
		{Restrict: restrict(t, nil, []int64{1000}, nil)},
		{Delegate: []dsse.KeyID{a}},
		{Delegate: []dsse.KeyID{a, b}},
		{NotAfter: at},
		{NotAfter: at.Add(time.Second)},
		{Restrict: restrict(t, []string{"team/"}, nil, nil), Delegate: []dsse.KeyID{a}, NotAfter: at},
	}
	for i, x := range all {
		for j, y := range all {
			if x.Equal(y) != (i == j) {
				t.Errorf("%+v and %+v: equal %v", x, y, x.Equal(y))
			}
		}
		if x.IsZero() != (i == 0) {
			t.Errorf("%+v: zero %v", x, x.IsZero())
		}
	}
	if !(Terms{NotAfter: at}).Equal(Terms{NotAfter: at.Local()}) {
		t.Error("one instant in two zones is two")
	}
}

// A mint gives what was asked for, or what ends earlier.
func TestTermsAreKept(t *testing.T) {
	w := newWorld(t)
	a := w.stranger.Public().ID()
	v := w.view(t)
	admit := func(change func(*Predicate)) Capability { return w.admit(t, v, change) }
	plain := admit(func(*Predicate) {})
	team := admit(func(p *Predicate) { p.Restrict = restrict(t, []string{"team/"}, nil, nil) })
	handed := admit(func(p *Predicate) { p.Delegate = []dsse.KeyID{a} })
	end := plain.NotAfter()
	for name, x := range map[string]struct {
		terms Terms
		c     Capability
		want  string // "" keeps them
	}{
		"nothing asked":               {Terms{}, plain, ""},
		"restricted as asked":         {Terms{Restrict: restrict(t, []string{"team/"}, nil, nil)}, team, ""},
		"not restricted":              {Terms{Restrict: restrict(t, []string{"team/"}, nil, nil)}, plain, "restricted to nothing, and paths team/ was asked for"},
		"restricted otherwise":        {Terms{Restrict: restrict(t, []string{"other/"}, nil, nil)}, team, "restricted to paths team/, and paths other/"},
		"restricted, and nobody said": {Terms{}, team, "restricted to paths team/, and nothing"},
		"handed on as asked":          {Terms{Delegate: []dsse.KeyID{a}}, handed, ""},
		"handed on, and nobody said":  {Terms{}, handed, "may hand it on"},
		"not to be handed on":         {Terms{Delegate: []dsse.KeyID{a}}, plain, "may hand it on"},
		"until then":                  {Terms{NotAfter: end}, plain, ""},
		"less long":                   {Terms{NotAfter: end.Add(time.Second)}, plain, ""},
		"longer by a second":          {Terms{NotAfter: end.Add(-time.Second)}, plain, "it is valid until"},
	} {
		if got := x.terms.keeps(x.c); (got == "") != (x.want == "") || !strings.Contains(got, x.want) {
			t.Errorf("%s: keeps = %q, want %q", name, got, x.want)
		}
	}
}
