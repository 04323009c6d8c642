package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/control"
	"github.com/openclaw/clawfs/cmd/clawfs/internal/memory"
	"github.com/openclaw/clawfs/verifier/dsse"
)

// listKind counts the lists of one key. A key that is struck off the policy takes
// its numbers with it, also if it had used them up.
func listKind(key dsse.KeyID) memory.Kind { return memory.ListSequence + ":" + memory.Kind(key) }

// checkNewestList refuses a store whose newest list of a revoker is older than one
// that was seen here before: what that one took back would be granted again. A list
// that the store has and the memory does not is remembered: a daemon died in
// between.
func checkNewestList(m memory.Dir, revokers []capstore.Signer, v *capstore.View) error {
	newest := make(map[dsse.KeyID]int64)
	for _, l := range v.Lists() { // the newest last
		newest[l.Revoker()] = l.Sequence()
	}
	for _, r := range revokers {
		have := newest[r.Key.ID()]
		seen, known, err := m.Newest(listKind(r.Key.ID()))
		if err == nil && have > 0 {
			seen, err = m.Raise(listKind(r.Key.ID()), have)
		} else if !known {
			seen = 0
		}
		if err != nil {
			return err
		}
		if seen > have {
			return fmt.Errorf("the store's newest revocation list of %s (key %s) has sequence %d, and this machine has seen %d: it is an older copy, and what was taken back since would open again; next: clawfs store rebuild, or clawfs revocations import FILE with that list or a newer one", r.Operator, r.Key.ID(), have, seen)
		}
	}
	return nil
}

// newestListSeen is the highest sequence of a list that this machine has seen of a
// revoker of the policy.
func newestListSeen(m memory.Dir, revokers []capstore.Signer) (newest int64, err error) {
	for _, r := range revokers {
		seen, _, err := m.Newest(listKind(r.Key.ID()))
		if err != nil {
			return 0, err
		}
		newest = max(newest, seen)
	}
	return newest, nil
}

// lists are the revocation lists, the one in force last.
func (d *daemon) lists() []control.List {
	list := []control.List{}
	newest := d.store.View().List()
	for _, l := range d.store.View().Lists() {
		answer := control.List{
			ID: l.ID(), Sequence: l.Sequence(), Operator: l.Operator(), IssuedAt: l.IssuedAt(), ValidUntil: l.ValidUntil(),
			Entries: len(l.Entries()), InForce: l.ID() == newest.ID(),
		}
		if answer.InForce {
			answer.Serves = serves(d.pinned.policy.Load().Trust().Rules, l)
		}
		list = append(list, answer)
	}
	// Of two with one sequence, one is in force.
	slices.SortStableFunc(list, func(a, b control.List) int {
		switch {
		case a.InForce == b.InForce:
			return 0
		case b.InForce:
			return -1
		}
		return 1
	})
	return list
}

// serves is until when files open under a list, for each rule that asks for one.
func serves(rules []capstore.Rule, l capstore.List) (list []control.Serves) {
	for _, r := range rules {
		if r.MaxListAge == 0 {
			continue
		}
		s := control.Serves{Models: r.Models, MaxAgeSeconds: int64(r.MaxListAge / time.Second)}
		if !l.IsZero() {
			s.Until = l.IssuedAt().Add(r.MaxListAge)
			if l.ValidUntil().Before(s.Until) {
				s.Until = l.ValidUntil()
			}
		}
		list = append(list, s)
	}
	return list
}

// listWarnings are loud about a list that stops to serve soon, or has: from three
// quarters of its life on.
func (d *daemon) listWarnings(now time.Time) (warnings []string) {
	l := d.store.View().List()
	for _, s := range serves(d.pinned.policy.Load().Trust().Rules, l) {
		const next = "next: clawfs revocations import FILE, with the newest list of whoever signs them, or, with the revocation key here, clawfs revocations issue"
		models := fmt.Sprintf("%q", s.Models)
		switch warn := l.IssuedAt().Add(s.Until.Sub(l.IssuedAt()) / 4 * 3); {
		case l.IsZero():
			warnings = append(warnings, fmt.Sprintf("NO REVOCATION LIST: the policy asks for one no older than %v, and no file of %s opens; %s", time.Duration(s.MaxAgeSeconds)*time.Second, models, next))
		case !now.Before(s.Until):
			warnings = append(warnings, fmt.Sprintf("STALE REVOCATION LIST: list %d served until %s, and no file of %s opens any more; %s", l.Sequence(), s.Until.Format(time.RFC3339), models, next))
		case !now.Before(warn):
			warnings = append(warnings, fmt.Sprintf("the revocation list %d serves until %s; then no file of %s opens any more; %s", l.Sequence(), s.Until.Format(time.RFC3339), models, next))
		}
	}
	return warnings
}

// revocations are what is taken back: each record that came alone, and what only
// lists name.
func (d *daemon) revocations() []control.Revocation {
	type target struct {
		kind capstore.Kind
		text string
	}
	listed := make(map[target]int64)
	for _, l := range d.store.View().Lists() { // the newest last
		for _, e := range l.Entries() {
			listed[target{e.Kind(), e.Target()}] = l.Sequence()
		}
	}
	list := []control.Revocation{}
	alone := make(map[target]bool)
	for _, r := range d.store.View().Revocations() {
		t := target{r.Kind(), r.Target()}
		alone[t] = true
		answer := revocationAnswer(r)
		answer.Alone, answer.List = true, listed[t]
		list = append(list, answer)
	}
	for _, r := range d.store.View().InForce() {
		if t := (target{r.Kind(), r.Target()}); !alone[t] {
			answer := revocationAnswer(r)
			answer.List = listed[t]
			list = append(list, answer)
		}
	}
	slices.SortStableFunc(list, func(a, b control.Revocation) int { return a.IssuedAt.Compare(b.IssuedAt) })
	return list
}

func revocationAnswer(r capstore.Revocation) control.Revocation {
	return control.Revocation{ID: r.ID(), Kind: r.Kind(), Target: r.Target(), Reason: r.Reason(), IssuedAt: r.IssuedAt(), Operator: r.Operator()}
}
