package verifier

import (
	"fmt"
	"time"
)

// timeLayout is the only form of a time in a ledger: whole seconds in UTC, so
// that one moment has one text.
const timeLayout = "2006-01-02T15:04:05Z"

// Time is a moment as a ledger writes it: 2006-01-02T15:04:05Z, no fraction,
// no other offset.
type Time struct{ t time.Time }

// At returns t in UTC, cut to the second.
func At(t time.Time) Time { return Time{t.UTC().Truncate(time.Second)} }

// Time returns the moment in UTC.
func (t Time) Time() time.Time { return t.t }

// IsZero reports whether t was never set.
func (t Time) IsZero() bool { return t.t.IsZero() }

// String returns the text of t.
func (t Time) String() string { return t.t.Format(timeLayout) }

// MarshalText refuses the zero Time and years that have no four digits.
func (t Time) MarshalText() ([]byte, error) {
	if t.IsZero() {
		return nil, fmt.Errorf("time is not set")
	}
	if y := t.t.Year(); y < 1970 || y > 9999 {
		return nil, fmt.Errorf("time: year %d is outside 1970 to 9999", y)
	}
	return []byte(t.String()), nil
}

// UnmarshalText accepts the layout of Time and nothing else.
func (t *Time) UnmarshalText(text []byte) error {
	s := string(text)
	got, err := time.Parse(timeLayout, s)
	if err != nil || got.Format(timeLayout) != s || got.Year() < 1970 {
		return fmt.Errorf("time %.40q: expected the form %s", s, timeLayout)
	}
	t.t = got.UTC()
	return nil
}
