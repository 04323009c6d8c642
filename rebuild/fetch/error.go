package fetch

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Failure is why one place did not give what was asked for.
type Failure struct {
	Place Place
	Err   error
	// Lied: the place answered, and what it gave is something else.
	Lied bool
	// Transient: the same place may have it later.
	Transient bool
}

// Unavailable means that no place gave what was asked for, and that at least
// one of them gave nothing at all: what it has is not known. Without any place
// it has no Failures.
type Unavailable struct {
	What     string // "file 6794…", "tree 3aa5…"
	Failures []Failure
}

// Temporary reports whether it is worth asking again later.
func (e *Unavailable) Temporary() bool {
	for _, f := range e.Failures {
		if f.Transient {
			return true
		}
	}
	return false
}

func (e *Unavailable) Error() string {
	if len(e.Failures) == 0 {
		return e.What + ": no place is known where it could be"
	}
	return e.What + ": no place gave it: " + sentences(e.Failures)
}

// Mismatch means that every place answered and that what each gave is something
// else.
type Mismatch struct {
	What     string
	Failures []Failure
}

func (e *Mismatch) Error() string {
	return e.What + ": every place gave something else: " + sentences(e.Failures)
}

func sentences(all []Failure) string {
	var b strings.Builder
	for i, f := range all {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: %v", f.Place, f.Err)
	}
	return b.String()
}

func verdict(what string, all []Failure) error {
	for _, f := range all {
		if !f.Lied {
			return &Unavailable{what, all}
		}
	}
	if len(all) == 0 {
		return &Unavailable{what, nil}
	}
	return &Mismatch{what, all}
}

// wrong is an error of content: the place answered with something else.
type wrong struct {
	expected, got string
}

func (e *wrong) Error() string { return fmt.Sprintf("expected %s, got %s", e.expected, e.got) }

// transient is an error that may be gone at the next try.
type transient struct {
	error
	retry retry
}

func (e *transient) Unwrap() error { return e.error }

// local is an error of this machine, for which no place is to blame.
type local struct{ error }

func (e *local) Unwrap() error { return e.error }

// full says whether there is no room on the disk.
func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// exhausted says whether this machine lacks something, which is no fault of
// what was fetched.
func exhausted(err error) bool {
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Event is what a Note is about.
type Event string

// The events.
const (
	Hit       Event = "hit"       // the entry was there and measured right
	Broken    Event = "broken"    // the entry was there and is not what its name says
	Waiting   Event = "waiting"   // somebody else makes or uses the entry
	Fetching  Event = "fetching"  // a place is asked
	Resumed   Event = "resumed"   // a download goes on behind Bytes that are here
	Restarted Event = "restarted" // a download of which Bytes are here begins again
	Retrying  Event = "retrying"  // the same place is asked again, after Err
	Failed    Event = "failed"    // a place gave nothing, for Err
	Lied      Event = "lied"      // a place gave Got instead of Expected
	Fetched   Event = "fetched"   // a place gave what was asked for
	Evicted   Event = "evicted"   // Bytes are free again
)

// Note is one line of the log of a fetch. Places come from ledgers: their text
// is hostile, and String quotes it.
type Note struct {
	Entry         string // name of the entry
	Event         Event
	Place         Place
	Expected, Got string
	Bytes         int64
	Err           error
}

// String returns the note as one line.
func (n Note) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", n.Entry, n.Event)
	if n.Place.URI != "" {
		fmt.Fprintf(&b, " %s", n.Place)
	}
	if n.Bytes != 0 {
		fmt.Fprintf(&b, ", %d bytes", n.Bytes)
	}
	if n.Expected != "" {
		fmt.Fprintf(&b, ": expected %s, got %s", n.Expected, n.Got)
	} else if n.Err != nil {
		fmt.Fprintf(&b, ": %v", n.Err)
	}
	return b.String()
}
