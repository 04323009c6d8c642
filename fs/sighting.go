package fs

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// sighting is what is at a path of the source beside the one that is opened.
type sighting struct {
	path    string // as a reader names it
	missing bool
	fault   string          // what keeps anybody from telling what is there; it does not belong
	end     string          // where the links on the way lead
	id      identity        // of what is there
	flight  *flight         // nil until its measurement was found or begun
	digest  hashpipe.Digest // of the content, once it is known

	// What is asked about it: a member is the one output, a stranger none of them.
	member  bool
	outputs []output
}

// fit is an answer that may need a measurement.
type fit int

const (
	unfit fit = iota
	untold
	fits
)

// is reports whether the content is that of a subject.
func (s *sighting) is(of capstore.Subject) fit {
	switch {
	case s.missing, s.fault != "":
		return unfit
	case s.digest == of.Digest:
		return fits
	case s.digest.IsZero() && s.id.kind == unix.S_IFREG && s.id.size == of.Size:
		return untold
	}
	return unfit
}

// belongs reports whether what is there may stay. What nobody can tell may not.
func (s *sighting) belongs() fit {
	switch {
	case s.missing:
		return fits
	case s.fault != "":
		return unfit
	case s.member:
		return s.is(s.outputs[0].Subject)
	}
	answer := fits
	for _, o := range s.outputs {
		switch s.is(o.Subject) {
		case fits:
			return unfit
		case untold:
			answer = untold
		}
	}
	return answer
}

// spot looks without measuring.
func (f *filesystem) spot(p string) *sighting {
	s := &sighting{path: p}
	t, err := f.src.follow(p)
	switch {
	case absent(err):
		s.missing = true
	case err != nil:
		s.fault = err.Error()
	case !t.address.IsZero():
		s.digest = t.address // opening it checks it
	default:
		s.end, s.id = t.end, identityOf(&t.st)
		if detail, yes := f.quarantine.has(s.id); yes {
			s.fault = "in quarantine: " + detail
		}
	}
	return s
}

// measureAhead bounds the measurements that one request has under way.
const measureAhead = 32

// measureAll measures what has to be, and returns the first that does not belong.
func (f *filesystem) measureAll(l look, all []*sighting) (*sighting, outcome) {
	for _, s := range all {
		if s.belongs() == unfit {
			return s, finished // without reading a byte
		}
	}
	begun := 0
	for i, s := range all {
		for ; begun < min(i+measureAhead, len(all)); begun++ {
			f.begin(l, all[begun])
		}
		if o := f.conclude(l, s); o != finished {
			return nil, o
		}
		if s.belongs() != fits {
			return s, finished
		}
	}
	return nil, finished
}

// begin finds or begins the measurement.
func (f *filesystem) begin(l look, s *sighting) {
	if s.flight = f.measure.peek(s.id); s.flight != nil && f.measure.reusable(s.flight) && s.flight.holds(f.claims(s.id.size)) {
		return
	}
	s.flight = nil
	if !l.measures {
		return
	}
	file, st, err := f.src.open(s.end)
	if err != nil {
		s.fault = err.Error()
		return
	}
	if file == nil || identityOf(&st) != s.id {
		s.fault = "being written"
	}
	if file == nil {
		return
	}
	defer file.Close()
	if s.fault == "" {
		if s.flight, err = f.measure.start(file, s.id, nil); err != nil {
			s.fault = err.Error()
		}
	}
}

// conclude waits for the measurement. Without one the outcome is tooSlow.
func (f *filesystem) conclude(l look, s *sighting) outcome {
	fl := s.flight
	if s.fault != "" {
		return finished
	}
	if fl == nil {
		return tooSlow
	}
	if o := f.awaitLook(l, fl.done); o != finished {
		return o
	}
	switch {
	case errors.Is(fl.err, hashpipe.ErrChanged), fl.err == nil && fl.moved:
		s.fault = "being written"
	case fl.err != nil:
		s.fault = fl.err.Error()
	case !fl.holds(f.claims(s.id.size)):
		s.fault = "capabilities contradict each other about its fs-verity digest"
	default:
		s.digest = fl.digest
		if s.member && s.belongs() == fits {
			// As good as granted: it stays known. Whoever opens the file reads it
			// through the tree that was measured.
			fl.granted.Store(true)
		}
	}
	return finished
}

// maxTrail bounds the links that follow follows.
const maxTrail = 8

// trail is where a path of the source leads.
type trail struct {
	end     string // no link
	st      unix.Stat_t
	address hashpipe.Digest // a link on the way names it; then the rest is not known
}

// follow resolves a path as a reader of the mount would whom every link is handed
// out, but by its text, in here: the kernel follows no link for the daemon.
func (s *source) follow(p string) (trail, error) {
	for range maxTrail + 1 {
		link, rest := p, ""
		st, err := s.stat(p)
		switch {
		case behindLink(err):
			link, rest, err = s.firstLink(p)
		case err == nil && st.Mode&unix.S_IFMT != unix.S_IFLNK:
			return trail{end: p, st: st}, nil
		}
		if err != nil {
			return trail{}, err
		}
		target, _, err := s.readlink(link)
		if err != nil {
			return trail{}, err
		}
		if why := escapes(link, target); why != "" {
			return trail{}, fmt.Errorf("link to %q: %s", target, why)
		}
		if d, ok := contentAddress(path.Base(target)); ok && rest == "" {
			return trail{address: d}, nil
		}
		p = path.Join(path.Dir(link), target, rest)
	}
	return trail{}, fmt.Errorf("more than %d links", maxTrail)
}

// firstLink splits a path behind its first link.
func (s *source) firstLink(p string) (link, rest string, err error) {
	for i := range len(p) {
		if p[i] != '/' {
			continue
		}
		st, err := s.stat(p[:i])
		if err != nil {
			return "", "", err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return p[:i], p[i+1:], nil
		}
	}
	return "", "", fmt.Errorf("%s: being changed", p)
}

// entries lists a directory; nil if it has more than limit names or cannot be
// read.
func (s *source) entries(dir string, limit int) []string {
	fd, _, err := s.openDir(dir)
	if err != nil {
		return nil
	}
	d := &dirHandle{path: dir, fd: fd}
	defer d.close()
	if err := d.seek(0); err != nil {
		return nil
	}
	names := []string{}
	for len(names) <= limit+2 { // "." and ".."
		e, size, err := d.peek()
		switch {
		case err != nil:
			return nil
		case size == 0:
			return names
		}
		names = append(names, e.Name)
		d.rest = d.rest[size:]
	}
	return nil
}
