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

// claimIndex holds what the capabilities, live or not, claim of contents, by
// size. The zero index is ready.
type claimIndex struct {
	mu         sync.Mutex // guards all below
	built      bool
	generation uint64
	bySize     map[int64][]claim // not changed after it was built
}

// claim is one content as a capability names it: both digests are signed
// together, so what has one has the other.
type claim struct {
	digest hashpipe.Digest
	verity hashpipe.VerityDigest
}

func (x *claimIndex) of(v *capstore.View, size int64) []claim {
	x.mu.Lock()
	defer x.mu.Unlock()
	if g := v.Generation(); !x.built || g != x.generation {
		bySize := make(map[int64][]claim)
		for _, grant := range v.All() {
			for _, s := range grant.Subjects() {
				bySize[s.Size] = append(bySize[s.Size], claim{s.Digest, s.Verity})
			}
		}
		x.bySize, x.generation, x.built = bySize, g, true
	}
	return x.bySize[size]
}

// digest returns the SHA-256 of the content whose tree was measured, if the
// claims name it and agree. Two claims that bind one tree to two hashes
// contradict each other: then the tree proves nothing, and the content has to
// be measured by its SHA-256.
func digest(claims []claim, t *hashpipe.Tree) (d hashpipe.Digest, known bool) {
	for _, c := range claims {
		switch {
		case !t.Is(c.verity) || c.digest == d:
		case known:
			return hashpipe.Digest{}, false
		default:
			d, known = c.digest, true
		}
	}
	return d, known
}

// nameIndex is the set of all names that capabilities give to outputs, live or
// not, and of the directories in those names: "acme/v1/x.bin", "acme/v1" and
// "acme". The zero index is ready.
type nameIndex struct {
	mu         sync.Mutex // guards all below
	built      bool
	generation uint64
	names      map[string]bool
}

// lost returns the name that a link carries and its target does not, or "". If
// no link on the way loses a name, then who asks for "acme/v1/x.bin" ends at a
// path that ends so too: each link keeps what was walked of the name.
func (x *nameIndex) lost(v *capstore.View, link, target string) string {
	own := path.Base(link)
	if _, addressed := contentAddress(own); addressed {
		return own // the caller has seen that the target is no address
	}
	if _, addressed := gitAddress(own); addressed && path.Base(target) != own {
		return own
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if g := v.Generation(); !x.built || g != x.generation {
		names := make(map[string]bool)
		for _, grant := range v.All() {
			for _, s := range grant.Subjects() {
				for n := s.Name; n != "." && n != "/"; n = path.Dir(n) {
					names[n] = true
				}
			}
		}
		x.names, x.generation, x.built = names, g, true
	}
	for rest, more := link, true; more; _, rest, more = strings.Cut(rest, "/") {
		if x.names[rest] && !hasSuffix(target, rest) {
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
