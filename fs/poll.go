package fs

import (
	"slices"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// poll is who of a result's operators allows a use, and when. There can be many
// capabilities of one result, one for each user of a machine and each renewal, so
// each is judged once for all the questions that are asked of it.
type poll struct {
	now capstore.Agreement // of those that allow the use now

	// If these are not enough: who were when enough last allowed it, and the end of
	// that; zero if that never was.
	before capstore.Agreement
	end    time.Time

	any capstore.Agreement // of those that now allow this use or another; as before
}

// span is the life of one capability. It is not empty.
type span struct {
	operator string
	from, to time.Time // to: the first instant at which it is over
}

// polls are those of one decision.
type polls map[ballot]*poll

type ballot struct {
	result  hashpipe.Digest
	model   string // which finds the rule
	subject capstore.Subject
}

// of returns the poll among the peers of g. All grants of one decision that have
// one result share the first one's peers: revoked knows what came later against
// them.
func (x polls) of(q Query, g capstore.Grant, s capstore.Subject, revoked map[hashpipe.Digest]capstore.Revocation) *poll {
	b := ballot{g.Result(), g.Model(), s}
	if x[b] == nil {
		x[b] = newPoll(q, g.Standing(), s, revoked)
	}
	return x[b]
}

func newPoll(q Query, st capstore.Standing, s capstore.Subject, revoked map[hashpipe.Digest]capstore.Revocation) *poll {
	var spans []span
	use, any := make(map[string]bool), make(map[string]bool)
	for _, p := range st.Peers() {
		r, gone := p.Revoked()
		if !gone {
			r = revoked[p.ID()]
		}
		began := q
		began.Now = p.NotBefore()
		v := judge(began, p.Capability(), s, r)
		lives := !q.Now.Before(p.NotBefore()) && q.Now.Before(p.NotAfter())
		switch {
		case v.allowed:
			spans = append(spans, span{p.Operator(), p.NotBefore(), p.NotAfter()})
			use[p.Operator()] = use[p.Operator()] || lives
			fallthrough
		case v.Reason == ReasonRestricted:
			any[p.Operator()] = any[p.Operator()] || lives
		}
	}
	x := &poll{now: st.Among(use)}
	if !x.now.Enough() {
		x.before, x.end = last(q.Now, st, spans)
		x.any = st.Among(any)
	}
	return x
}

// last returns who were enough operators when there last were, of the moments at
// which a span ended that is over now, and the end of that moment. end is zero if
// there was none.
func last(now time.Time, st capstore.Standing, byEnd []span) (a capstore.Agreement, end time.Time) {
	byStart := slices.Clone(byEnd)
	slices.SortFunc(byEnd, func(a, b span) int { return b.to.Compare(a.to) })
	slices.SortFunc(byStart, func(a, b span) int { return b.from.Compare(a.from) })
	held, may := make(map[string]int), make(map[string]bool) // at the moment, by operator
	begun, asked := 0, false
	for i, y := range byEnd { // time goes back
		if held[y.operator]++; held[y.operator] == 1 {
			may[y.operator], asked = true, false
		}
		for ; begun < len(byStart) && !byStart[begun].from.Before(y.to); begun++ {
			o := byStart[begun].operator
			if held[o]--; held[o] == 0 {
				delete(may, o)
				asked = false
			}
		}
		if asked || y.to.After(now) || i+1 < len(byEnd) && byEnd[i+1].to.Equal(y.to) {
			continue
		}
		if a, asked = st.Among(may), true; a.Enough() {
			return a, y.to
		}
	}
	return capstore.Agreement{}, time.Time{}
}
