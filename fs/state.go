package fs

import (
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// counters are what Stats shows.
type counters struct {
	granted, refused, errors, hashed, hashedBytes, joined, trees, unitsChecked, filledBytes, lateMismatches, revoked, held, audited, panics atomic.Int64

	preverified, resumed atomic.Int64
}

func (f *filesystem) stats() Stats {
	c := &f.counters
	private, privateBytes := f.vault.usage()
	return Stats{
		Private: private, PrivateBytes: privateBytes, Unsealed: f.vault.failed.Load(),
		Granted: c.granted.Load(), Refused: c.refused.Load(), Errors: c.errors.Load(),
		Hashed: c.hashed.Load(), HashedBytes: c.hashedBytes.Load(), Trees: c.trees.Load(), Joined: c.joined.Load(),
		UnitsChecked: c.unitsChecked.Load(), FilledBytes: c.filledBytes.Load(), LateMismatches: c.lateMismatches.Load(),
		Revoked: c.revoked.Load(), Held: c.held.Load(), AuditServed: c.audited.Load(), Quarantined: f.quarantine.count(), Panics: c.panics.Load(),
		AuditDropped: f.audit.dropped.Load(),
		Nodes:        f.nodes.count(), Handles: f.files.count() + f.unchecked.count(), Verifying: f.measure.underWay(),
		Preverified: c.preverified.Load(), Resumed: c.resumed.Load(), PreverifyPending: f.ahead.count(),
	}
}

// claims are what the capabilities, live or not, say of contents of one size: what
// they say when it is asked for. The zero claims are none.
type claims struct {
	view *capstore.View
	size int64
}

func (f *filesystem) claims(size int64) claims { return claims{f.view, size} }

// none reports whether nothing of that size can be granted.
func (c claims) none() bool { return c.view == nil || !c.view.HasSize(c.size) }

// any reports whether some content of that size may be one of those that are meant.
// With very many of one size it is answered without asking of each.
func (c claims) any(meant func(hashpipe.Digest) bool) bool {
	if c.none() {
		return false
	}
	outputs, whole := c.view.OfSize(c.size)
	for s := range outputs {
		if meant(s.Digest) {
			return true
		}
	}
	return !whole
}

// digest returns the SHA-256 of the content whose tree was measured, if capabilities
// name it and agree: both digests are signed together, so what has one has the other.
// Two that bind one tree to two hashes contradict each other: then the tree proves
// nothing, and the content has to be measured by its SHA-256.
func (c claims) digest(t *hashpipe.Tree) (d hashpipe.Digest, known bool) {
	if c.none() {
		return d, false
	}
	for s := range c.view.ByTree(t.Claim()) {
		switch {
		case s.Size != c.size || !t.Is(s.Verity) || s.Digest == d:
		case known:
			return hashpipe.Digest{}, false
		default:
			d, known = s.Digest, true
		}
	}
	return d, known
}

// contradicts returns an fs-verity digest that a capability binds to a content, and
// that is not the one that was measured.
func (c claims) contradicts(d hashpipe.Digest, enforced interface {
	Is(hashpipe.VerityDigest) bool
}) (other hashpipe.VerityDigest, yes bool) {
	if c.none() {
		return other, false
	}
	for _, g := range c.view.Lookup(d) {
		for _, s := range g.Subjects() {
			if s.Digest == d && s.Size == c.size && !enforced.Is(s.Verity) {
				return s.Verity, true
			}
		}
	}
	return other, false
}

// lostName returns the name that a link carries and its target does not, or "": one
// that a capability, live or not, gives to an output or to a directory above one. If
// no link on the way loses a name, then who asks for "acme/v1/x.bin" ends at a
// path that ends so too: each link keeps what was walked of the name.
func lostName(v *capstore.View, link, target string) string {
	own := path.Base(link)
	if _, addressed := contentAddress(own); addressed {
		return own // the caller has seen that the target is no address
	}
	if _, addressed := gitAddress(own); addressed && path.Base(target) != own {
		return own
	}
	for rest, more := link, true; more; _, rest, more = strings.Cut(rest, "/") {
		if v.Names(rest) && !hasSuffix(target, rest) {
			return rest
		}
	}
	return ""
}

// maxQuarantined bounds the list; the oldest entry goes first. What goes is not
// trusted again: its measurement was forgotten when it came.
const maxQuarantined = 4096

// quarantine holds the states of source files that no longer were, at a READ,
// what OPEN had approved. A file that is replaced has another state. The zero
// quarantine is ready.
type quarantine struct {
	mu    sync.Mutex // guards all below
	why   map[identity]string
	order []identity
}

func (q *quarantine) add(id identity, detail string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.why == nil {
		q.why = make(map[identity]string)
	}
	if _, have := q.why[id]; have {
		return
	}
	q.why[id] = detail
	q.order = append(q.order, id)
	if len(q.order) > maxQuarantined {
		delete(q.why, q.order[0])
		q.order = q.order[1:]
	}
}

func (q *quarantine) has(id identity) (string, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	detail, yes := q.why[id]
	return detail, yes
}

func (q *quarantine) count() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return int64(len(q.order))
}

// sentBack remembers which callers were answered ESTALE, which the kernel turns
// into one more lookup and open, so that a second one, which would reach the
// program, becomes a refusal with a reason. The zero value is ready.
type sentBack struct {
	mu sync.Mutex // guards at
	at map[trip]time.Time
}

type trip struct {
	pid  uint32
	path string
}

const (
	tripTime = time.Second // the kernel's second try comes at once
	maxTrips = 1024
)

// again notes that the caller is to be sent back, unless it has just been.
func (s *sentBack) again(pid uint32, path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := trip{pid, path}
	if since, was := s.at[t]; was && time.Since(since) < tripTime {
		delete(s.at, t)
		return true
	}
	if s.at == nil || len(s.at) >= maxTrips {
		s.at = make(map[trip]time.Time) // whoever is forgotten gets ESTALE itself
	}
	s.at[t] = time.Now()
	return false
}

// arrived notes that the second try found what it should.
func (s *sentBack) arrived(pid uint32, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.at, trip{pid, path})
}

func baseName(p string) string { return path.Base(p) }
