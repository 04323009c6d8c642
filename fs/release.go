package fs

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// Bind is what the name of a file demands before it opens.
type Bind int

const (
	// BindName: the path ends in the name that a capability gives to the content.
	BindName Bind = iota

	// BindRelease: and all files under the root of the path come from one claim.
	// The root is the path without the name. The release of a claim lies there
	// whole if
	//   - each other file of the release that is there has its content: it is
	//     measured, or it is a link to a content address, which names it;
	//   - nothing is there under a name of another release and with the content
	//     that the other gives to this name.
	// A file of the release that is not there is fine; to open it fails. So is one
	// that was revoked by itself: its open refuses, and its bytes are the
	// release's. Two capabilities of one claim are one release.
	//
	// Content addresses (blobs/<hash>) have no root, and opening one demands no
	// more than with BindName. Instead a link demands it (see filesystem.linked):
	// if what it leads to belongs to a release under the link's own name, that
	// release lies whole around the link. To list such links with their targets
	// can therefore measure files.
	//
	// What it does not do. It looks at the moment of the open: who has a file open
	// keeps it when another beside it is exchanged, and a loader that opens file after
	// file while the directory is upgraded sees first one release and then the
	// other, each whole when it was looked at. Names that no capability knows are
	// not looked at, because nothing opens under them; nor are files in directories
	// below the root, if their names begin there: those have a root of their own.
	// Each open costs a look at every file of the release, a few microseconds each,
	// and at the names in the root that any capability knows.
	BindRelease
)

// Root is a directory as the place of one release.
type Root struct {
	Dir   string          // relative to the mount's root, "" is that itself
	Claim hashpipe.Digest // which release
}

// rootOf returns the place of the release of c, if name is what p carries.
func rootOf(p string, c capstore.Capability, name string) Root {
	return Root{strings.TrimSuffix(strings.TrimSuffix(p, name), "/"), c.Claim()}
}

// Finding is what was seen at a Root. The zero Finding says that nobody looked,
// and refuses.
type Finding struct {
	whole bool

	Detail string // what was expected there, what was got
	Next   string
}

// output is one file of a release, by one of the release's capabilities.
type output struct {
	of capstore.Capability
	capstore.Subject
}

// strangers returns, by the path in dir, the outputs that could be there and are
// not of a release. names is what dir lists; nil: look at everything.
func (f *filesystem) strangers(dir string, names []string, claim hashpipe.Digest) map[string][]output {
	out := make(map[string][]output)
	// from adds what lies in the root itself, or below it, if the directories above
	// the root are those of an output's name.
	from := func(above string) {
		at := []string{above}
		if names != nil {
			at = at[:0]
			for _, name := range names {
				at = append(at, path.Join(above, name))
			}
		}
		for _, within := range at {
			for _, c := range f.view.Within(within) {
				if c.Claim() == claim {
					continue
				}
				for _, s := range c.Subjects() {
					rest, below := beneath(s.Name, above)
					if below && (names == nil || s.Name == within || strings.HasPrefix(s.Name, within+"/")) {
						out[rest] = append(out[rest], output{c, s})
					}
				}
			}
		}
	}
	from("")
	for above, more := dir, dir != ""; more; _, above, more = strings.Cut(above, "/") {
		from(above)
	}
	return out
}

// beneath returns what is left of a name below a directory; "" is the one above all.
func beneath(name, dir string) (rest string, ok bool) {
	if dir == "" {
		return name, true
	}
	return strings.CutPrefix(name, dir+"/")
}

// look is on whose behalf files are measured. The zero look measures nothing.
type look struct {
	measures bool
	cancel   <-chan struct{}
	pid      uint32
	asker    asker
	deadline time.Time // of the request; zero is none
}

func (f *filesystem) lookFor(cancel <-chan struct{}, caller fuse.Caller) look {
	l := look{measures: true, cancel: cancel, pid: caller.Pid, asker: by(caller)}
	if f.limit > 0 {
		l.deadline = time.Now().Add(f.limit)
	}
	return l
}

func (f *filesystem) awaitLook(l look, done <-chan struct{}) outcome {
	var limit time.Duration
	if !l.deadline.IsZero() {
		limit = max(time.Until(l.deadline), 1)
	}
	return f.await(done, l.cancel, l.pid, limit)
}

// unmixed looks at the roots at which a path could lie that lacks nothing else.
// It ends at the first whole one.
func (f *filesystem) unmixed(l look, p string, fl *flight) (map[Root]Finding, outcome) {
	q := f.query(p, fl, l.asker)
	found := make(map[Root]Finding)
	for _, g := range f.view.Lookup(fl.digest) {
		for _, s := range g.Subjects() {
			if s.Digest != fl.digest || !hasSuffix(p, s.Name) || Decide(q, []capstore.Grant{g}).Reason != ReasonMixedRelease {
				continue
			}
			root := rootOf(p, g.Capability(), s.Name)
			if _, done := found[root]; done {
				continue
			}
			finding, o := f.inspect(l, root.Dir, g.Capability(), s.Name)
			if o != finished {
				return nil, o
			}
			found[root] = finding
			if finding.whole {
				return found, finished
			}
		}
	}
	return found, finished
}

// linked answers for a link that followable would hand out. A release is at
// stake if the link carries a name of it, or of a directory in its names, and
// leads to its content; then one of those has to lie whole around the link. The
// reader goes on under the target's name, and sees nothing of this directory.
func (f *filesystem) linked(l look, link, target string) (Verdict, outcome) {
	address, addressed := contentAddress(path.Base(target))
	var v Verdict
	for rest, more := link, true; more; _, rest, more = strings.Cut(rest, "/") {
		for _, c := range f.view.Within(rest) {
			if s, ok := c.Subject(rest); addressed && (!ok || s.Digest != address) {
				continue
			}
			dir := rootOf(link, c, rest).Dir
			if !addressed {
				belongs, o := f.leads(l, dir, c, rest)
				if o != finished {
					return Verdict{}, o
				}
				if !belongs {
					continue
				}
			}
			finding, o := f.inspect(l, dir, c, "")
			if o != finished || finding.whole {
				return Verdict{}, o
			}
			if v.Reason == "" {
				v = refused(ReasonMixedRelease, fmt.Sprintf("link to %q: %s", target, finding.Detail), finding.Next)
				v.Capability = c
			}
		}
	}
	return v, finished
}

// leads reports whether a file of the release, at or below a name, is there with
// its content.
func (f *filesystem) leads(l look, dir string, c capstore.Capability, name string) (bool, outcome) {
	for _, s := range c.Subjects() {
		if s.Name != name && !strings.HasPrefix(s.Name, name+"/") {
			continue
		}
		there := f.spot(path.Join(dir, s.Name))
		if there.is(s) == untold {
			if _, o := f.measureAll(l, []*sighting{there}); o != finished {
				return false, o
			}
		}
		if there.is(s) == fits {
			return true, finished
		}
	}
	return false, finished
}

// inspect looks at the release of c in a directory. opened is the name that was
// measured already, or "".
func (f *filesystem) inspect(l look, dir string, c capstore.Capability, opened string) (Finding, outcome) {
	own := make(map[string]bool)
	var all []*sighting
	for _, s := range c.Subjects() {
		own[s.Name] = true
		if s.Name != opened {
			there := f.spot(path.Join(dir, s.Name))
			there.member, there.outputs = true, []output{{c, s}}
			all = append(all, there)
		}
	}
	strangers := f.strangers(dir, f.src.entries(dir, f.view.Paths()), c.Claim())
	for _, rest := range slices.Sorted(maps.Keys(strangers)) {
		if !own[rest] {
			there := f.spot(path.Join(dir, rest))
			there.outputs = strangers[rest]
			all = append(all, there)
		}
	}
	all = slices.DeleteFunc(all, func(s *sighting) bool { return s.belongs() == fits })
	wrong, o := f.measureAll(l, all)
	switch {
	case o != finished:
		return Finding{}, o
	case wrong == nil:
		return Finding{whole: true}, finished
	}
	return f.misplaced(wrong, dir, c), finished
}

// misplaced tells of a file that does not belong to the release of c in dir.
func (f *filesystem) misplaced(s *sighting, dir string, c capstore.Capability) Finding {
	out := Finding{Next: fmt.Sprintf("put one release alone into %s, then clawfs why %s", quoted(path.Join(f.source, dir)), quoted(f.shown(s.path)))}
	if s.member {
		o := s.outputs[0]
		out.Detail = fmt.Sprintf("expected sha256:%s of %s at %s, got %s", o.Digest, release(o.of, o.Subject), s.path, f.there(s))
	} else {
		out.Detail = fmt.Sprintf("expected nothing of another release beside %s %s, got %s at %s", c.Model(), c.Version(), f.there(s), s.path)
	}
	return out
}

// there says what was seen.
func (f *filesystem) there(s *sighting) string {
	switch {
	case s.fault != "":
		return "what cannot be told: " + s.fault
	case s.digest.IsZero() && s.id.kind != unix.S_IFREG:
		return "no regular file"
	case s.digest.IsZero():
		return fmt.Sprintf("%d bytes", s.id.size)
	}
	for _, g := range f.view.Lookup(s.digest) {
		for _, sub := range g.Subjects() {
			if sub.Digest == s.digest {
				return fmt.Sprintf("sha256:%s of %s", s.digest, release(g.Capability(), sub))
			}
		}
	}
	return fmt.Sprintf("sha256:%s", s.digest)
}
