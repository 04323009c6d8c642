package fs

import (
	"testing"
	"time"

	"github.com/openclaw/clawfs/capstore"
)

// Whoever may grant, or hand a grant on, can do so as often as they like. The
// deadline is for a decision whose work grows with the square or the cube of
// that: it would take hours.
func TestManyCapabilitiesOfOneResult(t *testing.T) {
	const n = 1500
	for _, x := range []struct {
		name       string
		kind       func(c *council, i int) []func(*terms)
		want, gone Reason
	}{
		{"half of them are over", func(c *council, i int) []func(*terms) {
			return []func(*terms){window(c.now, -30*time.Hour, time.Duration(n-2*i-1)*time.Second)}
		}, ReasonQuorum, ReasonQuorum},
		{"each for another user", func(c *council, i int) []func(*terms) {
			return []func(*terms){only(t, nil, []int64{int64(2000 + i)}, nil), window(c.now, -time.Hour, time.Hour)}
		}, ReasonRestricted, ReasonRestricted},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := newCouncil(t)
			for i := range n {
				c.by("alice", rebuilt, x.kind(c, i)...)
			}
			q := c.query()
			type answer struct{ decided, lost Verdict }
			done := make(chan answer, 1)
			go func() {
				why, _ := lost(q, time.Time{}, c.view.Lookup(q.Sum.Claim()))
				done <- answer{Decide(q, c.grants(q)), why}
			}()
			select {
			case got := <-done:
				if got.decided.Reason != x.want || got.lost.Reason != x.gone {
					t.Errorf("Decide = %s, lost = %s; want %s, %s", got.decided.Reason, got.lost.Reason, x.want, x.gone)
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("no decision about %d capabilities within 30 s", n)
			}
		})
	}
}

// The latest moment at which enough operators stood together is found among
// capabilities that begin and end in every order.
func TestLast(t *testing.T) {
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	at := func(minute int) time.Time { return now.Add(time.Duration(minute) * time.Minute) }
	c := newCouncil(t)
	c.by("alice", rebuilt)
	st := c.view.All()[0].Standing()
	for _, x := range []struct {
		name  string
		spans []span
		end   time.Time
		who   string
	}{
		{"none", nil, time.Time{}, ""},
		{"one operator twice", []span{{"alice", at(-9), at(-3)}, {"alice", at(-9), at(-2)}}, time.Time{}, ""},
		{"apart", []span{{"alice", at(-9), at(-5)}, {"bob", at(-5), at(-1)}}, time.Time{}, ""},
		{"overlap", []span{{"alice", at(-9), at(-4)}, {"bob", at(-5), at(-1)}}, at(-4), "alice bob"},
		{"the other lives on", []span{{"alice", at(-9), at(-4)}, {"bob", at(-5), at(9)}}, at(-4), "alice bob"},
		{"all live on", []span{{"alice", at(-9), at(4)}, {"bob", at(-5), at(9)}}, time.Time{}, ""},
		{"ends together", []span{{"alice", at(-9), at(-4)}, {"bob", at(-5), at(-4)}, {"carol", at(-6), at(-4)}}, at(-4), "alice bob carol"},
		{"the later of two moments", []span{
			{"alice", at(-9), at(-8)}, {"bob", at(-9), at(-8)}, {"alice", at(-7), at(-6)}, {"carol", at(-7), at(-5)}, {"bob", at(-5), at(-4)},
		}, at(-6), "alice carol"},
		{"a stranger", []span{{"alice", at(-9), at(-4)}, {"mallory", at(-9), at(-4)}}, time.Time{}, ""},
		{"a long one around others", []span{{"alice", at(-90), at(-1)}, {"bob", at(-80), at(-70)}, {"bob", at(-60), at(-50)}}, at(-50), "alice bob"},
	} {
		a, end := last(now, st, x.spans)
		who := ""
		for _, o := range a.Operators {
			who += " " + o
		}
		if !end.Equal(x.end) || end.IsZero() != x.end.IsZero() || who != "" && who[1:] != x.who {
			t.Errorf("%s: until %v they were%s, want %v %s", x.name, end, who, x.end, x.who)
		}
	}
	if (capstore.Standing{}).Among(map[string]bool{"alice": true}).Enough() {
		t.Error("a zero Standing is enough")
	}
}
