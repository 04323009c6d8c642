package capstore

import (
	"slices"
	"time"
)

// State is what a capability is good for at an instant, whatever the use of a
// file that is restricted.
type State string

// The states, in the order in which one hides the next.
const (
	StateRevoked  State = "revoked"
	StatePending  State = "pending" // notBefore is in the future
	StateExpired  State = "expired"
	StateStale    State = "stale"    // the revocation list or the policy is too old, or no rule names the model
	StateDisputed State = "disputed" // another operator got other bytes
	StateWaiting  State = "waiting"  // for the results of other operators
	StateLive     State = "live"
)

// State returns what g is good for at now. A revocation of one of its files alone
// does not show in a Grant of View.All.
func (g Grant) State(now time.Time) State {
	if _, revoked := g.Revoked(); revoked || g.IsZero() {
		return StateRevoked
	}
	switch {
	case now.Before(g.NotBefore()):
		return StatePending
	case !now.Before(g.NotAfter()):
		return StateExpired
	}
	s := g.Standing()
	_, ruled := s.Rule()
	until, needed := s.ListUntil()
	end := s.PolicyExpires()
	switch {
	case !ruled, needed && !now.Before(until), !end.IsZero() && !now.Before(end):
		return StateStale
	case s.disputed():
		return StateDisputed
	case !s.AgreeAt(now).Enough():
		return StateWaiting
	}
	return StateLive
}

// AgreeAt is Agree with every peer that is valid at now, whatever the use of a file.
func (s Standing) AgreeAt(now time.Time) Agreement {
	valid := func(p Grant) bool { return p.Valid(now) }
	if s.last == nil {
		return s.Agree(valid)
	}
	s.last.mu.Lock()
	defer s.last.mu.Unlock()
	if s.last.is == nil || !s.last.at.Equal(now) {
		a := s.Agree(valid)
		s.last.at, s.last.is = now, &a
	}
	a := *s.last.is
	a.Operators, a.Missing = slices.Clone(a.Operators), slices.Clone(a.Missing)
	return a
}
