package capstore

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/openclaw/clawfs/verifier/dsse"
)

// maxTerms bounds the paths and mounts of a job's terms in bytes, so that the row
// of a job stays below MaxRecord with all its texts.
const maxTerms = 32 << 10

// Terms narrow the capability that a job earns. The zero Terms narrow nothing.
// Two jobs over one attestation are the same request only if their terms are
// equal.
type Terms struct {
	Restrict *Restrict    `json:"restrict,omitzero"`
	Delegate []dsse.KeyID `json:"delegate,omitzero"` // who may derive narrower ones; sorted
	// NotAfter is the first instant at which the capability is valid no longer, in
	// whole seconds of UTC; zero: as long as the mint gives.
	NotAfter time.Time `json:"notAfter,omitzero"`
}

// NewTerms returns terms in their only spelling: key ids are sorted and unique,
// and the time is cut to whole seconds of UTC.
func NewTerms(r *Restrict, delegate []dsse.KeyID, notAfter time.Time) (Terms, error) {
	t := Terms{Restrict: r, Delegate: SortKeyIDs(delegate)}
	if !notAfter.IsZero() {
		t.NotAfter = notAfter.UTC().Truncate(time.Second)
	}
	return t, t.Check()
}

// SortKeyIDs returns key ids sorted and unique, as a capability's "delegate" wants
// them; nil for none.
func SortKeyIDs(ids []dsse.KeyID) []dsse.KeyID {
	if len(ids) == 0 {
		return nil
	}
	sorted := slices.Clone(ids)
	slices.Sort(sorted)
	return slices.Compact(sorted)
}

// IsZero reports whether t narrows nothing and lets nobody hand anything on.
func (t Terms) IsZero() bool { return t.Equal(Terms{}) }

// Equal reports whether t and o ask for the same capability.
func (t Terms) Equal(o Terms) bool {
	return reflect.DeepEqual(t.Restrict, o.Restrict) && slices.Equal(t.Delegate, o.Delegate) && t.NotAfter.Equal(o.NotAfter)
}

// Check refuses terms that no capability can carry.
func (t Terms) Check() error {
	if err := t.Restrict.check(); err != nil {
		return fmt.Errorf("terms: restrict: %w", err)
	}
	if err := checkDelegate(t.Delegate); err != nil {
		return fmt.Errorf("terms: %w", err)
	}
	if !t.NotAfter.IsZero() {
		if err := checkTime("notAfter", t.NotAfter); err != nil {
			return fmt.Errorf("terms: %w", err)
		}
	}
	if n := t.Restrict.size(); n > maxTerms {
		return fmt.Errorf("terms: paths and mounts of %d bytes: at most %d", n, maxTerms)
	}
	return nil
}

// size is that of the texts, in bytes.
func (r *Restrict) size() (n int) {
	if r == nil {
		return 0
	}
	for _, s := range append(slices.Clone(r.Paths), r.Mounts...) {
		n += len(s)
	}
	return n
}

// keeps says how a mint's capability departs from the terms of its job; "" if it
// does not. Its dates may be narrower.
func (t Terms) keeps(c Capability) string {
	p := c.predicate()
	switch {
	case !reflect.DeepEqual(p.Restrict, t.Restrict):
		return fmt.Sprintf("it is restricted to %s, and %s was asked for", cmp.Or(p.Restrict.String(), "nothing"), cmp.Or(t.Restrict.String(), "nothing"))
	case !slices.Equal(p.Delegate, t.Delegate):
		return fmt.Sprintf("keys %q may hand it on, and %q was asked for", p.Delegate, t.Delegate)
	case !t.NotAfter.IsZero() && p.NotAfter.After(t.NotAfter):
		return fmt.Sprintf("it is valid until %s, and %s was asked for", p.NotAfter.Format(time.RFC3339), t.NotAfter.Format(time.RFC3339))
	}
	return ""
}
