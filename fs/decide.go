package fs

import (
	"fmt"
	"math"
	"path"
	"strings"
	"time"

	"github.com/openclaw/clawfs/capstore"
	"github.com/openclaw/clawfs/hashpipe"
)

// Reason is why a verdict is what it is.
type Reason string

// The reasons. The zero Reason goes with the zero Verdict, which refuses.
const (
	ReasonGranted      Reason = "granted"
	ReasonNoCapability Reason = "no-capability" // nothing is known of this name and these bytes
	ReasonWrongSize    Reason = "wrong-size"    // the name is known, with another size
	ReasonWrongBytes   Reason = "wrong-bytes"   // the name is known, with other bytes
	ReasonWrongName    Reason = "wrong-name"    // the bytes are approved, for another name
	ReasonMixedRelease Reason = "mixed-release" // files of other releases lie beside it: see BindRelease
	ReasonNotYetValid  Reason = "not-yet-valid"
	ReasonExpired      Reason = "expired"
	ReasonRevoked      Reason = "revoked"
	ReasonRestricted   Reason = "restricted"   // granted to other users, paths or mounts
	ReasonQuorum       Reason = "quorum"       // too few operators have measured the same
	ReasonDisputed     Reason = "disputed"     // an operator has measured something else
	ReasonStaleList    Reason = "stale-list"   // the revocation list is too old, or there is none
	ReasonStaleDaemon  Reason = "stale-daemon" // whoever tells of revocations has been silent for too long
	ReasonNoRule       Reason = "no-rule"      // the policy says of no operators that they decide on the model
	ReasonOldPolicy    Reason = "policy-expired"
	ReasonUnmeasured   Reason = "unmeasured"  // a capability fits, and nobody has hashed the file
	ReasonChanging     Reason = "changing"    // written to while it was measured
	ReasonQuarantined  Reason = "quarantined" // differed after it had been approved
	ReasonSpecial      Reason = "special-file"
	ReasonSymlink      Reason = "symlink" // leads out of the mount
	ReasonWrite        Reason = "read-only"
	ReasonUnreadable   Reason = "unreadable" // the source returned an error
	ReasonInterrupted  Reason = "interrupted"
	ReasonTooSlow      Reason = "too-slow" // the kernel's request time-out came first
	ReasonPanic        Reason = "panic"
)

// Query is a file as it was measured, and the name it was asked by.
type Query struct {
	Path  string       // slash-separated, relative to the mount's root
	Size  int64        // bytes
	Sum   hashpipe.Sum // zero: not measured by SHA-256
	Now   time.Time
	Shown string // how a person names the file; empty means Path

	// Mount is the mount point and UID the user who opens, for capabilities that are
	// restricted to some. Anyone asks whether some user may, in place of UID.
	Mount  string
	UID    uint32
	Anyone bool

	// Silence is how long nobody has told of revocations, math.MaxInt64 for never;
	// above MaxSilence nothing opens. A MaxSilence of zero is no bound.
	Silence, MaxSilence time.Duration

	// Tree stands for the Sum where that is zero: the file was measured as an
	// fs-verity tree alone. A capability binds a SHA-256 and an fs-verity digest
	// that were measured together over the same bytes, so a file with the one and
	// without the other would be a collision of SHA-256. If Sum and Tree are both
	// zero, the file was not measured, and is refused.
	Tree *hashpipe.Tree

	// Git says that the last component of Path is the git blob id of the measured
	// bytes: see gitAddress.
	Git bool

	// Bind is what the name demands. Roots is what was found at the places that
	// BindRelease asks about; a place that is not in it refuses.
	Bind  Bind
	Roots map[Root]Finding
}

func (q Query) measured() bool { return !q.Sum.IsZero() || q.Tree.Claim() != hashpipe.VerityDigest{} }

// is reports whether the measured bytes are those of a subject. The SHA-256
// decides where it was measured.
func (q Query) is(s capstore.Subject) bool {
	if !q.Sum.IsZero() {
		return q.Sum.Is(s.Digest)
	}
	return q.Tree.Is(s.Verity)
}

// Verdict is the answer to a Query. The zero Verdict refuses, and only Decide
// makes one that does not.
type Verdict struct {
	allowed bool

	Reason Reason
	Detail string // what was expected, what was got
	Next   string // what to do about it, as a command where there is one

	// Capability is the grant that the verdict rests on: the one that allows, or
	// the one that comes closest. Zero if there is none.
	Capability capstore.Capability

	standing capstore.Standing // of the capability
	at       time.Time         // Query.Now
}

// agreement counts the operators that have the result of the verdict's capability.
func (v Verdict) agreement(now time.Time) capstore.Agreement {
	return v.standing.Agree(func(g capstore.Grant) bool { return g.Valid(now) })
}

// Allowed reports whether the file may be opened.
func (v Verdict) Allowed() bool { return v.allowed && !v.Capability.IsZero() }

// refused makes a verdict that Decide has no part in.
func refused(r Reason, detail, next string) Verdict {
	return Verdict{Reason: r, Detail: detail, Next: next}
}

// rank orders the reasons of Decide by how close the file came; the closest is
// told. An allowed grant outranks all: a capability that was revoked or has
// expired does not hurt another one over the same bytes.
var rank = map[Reason]int{
	ReasonWrongSize: 1, ReasonWrongBytes: 2, ReasonUnmeasured: 3, ReasonWrongName: 4,
	ReasonNotYetValid: 5, ReasonExpired: 6, ReasonRevoked: 7, ReasonRestricted: 8, ReasonMixedRelease: 9,
	ReasonQuorum: 10, ReasonNoRule: 11, ReasonDisputed: 12, ReasonStaleList: 13, ReasonStaleDaemon: 14, ReasonOldPolicy: 15, ReasonGranted: 16,
}

// Decide is the rule by which a file opens. It allows exactly if one of the
// grants has a subject whose SHA-256 (or fs-verity digest, see Query.Tree) is the
// measured one, whose size is the measured one and whose name the path carries,
// which at q.Now is begun, is not over and is not revoked, whose restrictions
// permit the use, and beside which stands what the policy asks for: see agree.
// With BindRelease its release must also lie whole at the path's root, unless the
// path is a content address. It is pure: equal arguments, equal verdict.
//
// A path carries a subject's name if its last components are those of the name
// ("langid.bin" at "acme/v1/langid.bin"), or if its last component is the
// content's own hash (see contentAddress and gitAddress).
func Decide(q Query, grants []capstore.Grant) Verdict {
	if q.Shown == "" {
		q.Shown = q.Path
	}
	revoked, p := revocations(grants), make(polls)
	best := unnamed(q)
	for _, g := range grants {
		if g.IsZero() {
			continue
		}
		for _, s := range g.Subjects() {
			v := judge(q, g.Capability(), s, revoked[g.ID()])
			if v.allowed {
				v = agree(q, g, s, v, p.of(q, g, s, revoked))
			}
			v.standing = g.Standing()
			if rank[v.Reason] > rank[best.Reason] {
				best = v
			}
		}
	}
	best.at = q.Now
	return best
}

// lost says whether what was opened at a time since, and is asked about by q, may
// be read no more, and why. It may if at some moment from then to q.Now there was
// a grant that is not revoked, which allowed the use, and beside which as many
// operators stood as the policy asks, of whose capabilities none is revoked that
// counts. That one has expired since is no reason: expiry says until when a file
// may be opened. Nor is that the revocation list or the policy has become too old,
// or that an operator dissents: a served model should not die because the network
// did; a silent daemon is none for the same reason. What was opened under the very last condition of these is as good as
// opened before.
func lost(q Query, since time.Time, grants []capstore.Grant) (Verdict, bool) {
	if q.Shown == "" {
		q.Shown = q.Path
	}
	revoked, p := revocations(grants), make(polls)
	best := unnamed(q)
	for _, g := range grants {
		if g.IsZero() {
			continue
		}
		for _, s := range g.Subjects() {
			v := judge(q, g.Capability(), s, revoked[g.ID()])
			if !v.allowed && v.Reason != ReasonExpired {
				if rank[v.Reason] > rank[best.Reason] {
					best = v
				}
				continue
			}
			poll := p.of(q, g, s, revoked)
			if poll.now.Enough() || poll.end.After(since) {
				return Verdict{}, false
			}
			if v.allowed {
				v = vote(q, g, s, v, poll)
			}
			if rank[v.Reason] > rank[best.Reason] {
				best = v
			}
		}
	}
	return best, true
}

func revocations(grants []capstore.Grant) map[hashpipe.Digest]capstore.Revocation {
	revoked := make(map[hashpipe.Digest]capstore.Revocation)
	for _, g := range grants {
		if r, yes := g.Revoked(); yes {
			revoked[g.ID()] = r
		}
	}
	return revoked
}

// unnamed is the verdict that no grant can better.
func unnamed(q Query) Verdict {
	return Verdict{
		Reason: ReasonNoCapability,
		Detail: "no capability names " + q.Path + got(q),
		Next:   "clawfs grant MODEL.sba, with the publisher's attestation of the model that this file belongs to",
	}
}

// judge compares the file with one subject of one capability, as if nothing else
// had to stand beside it.
func judge(q Query, c capstore.Capability, s capstore.Subject, r capstore.Revocation) Verdict {
	same := q.is(s)
	named := carries(q.Path, s) || same && q.Git
	v := Verdict{Capability: c}
	switch {
	case !named && !same:
		return Verdict{}
	case s.Size != q.Size:
		v.Reason = ReasonWrongSize
		v.Detail = fmt.Sprintf("expected %d bytes of %s, got %d", s.Size, release(c, s), q.Size)
		v.Next = "fetch the file again, then clawfs why " + quoted(q.Shown)
	case !same && !q.measured():
		v.Reason = ReasonUnmeasured
		v.Detail = fmt.Sprintf("expected sha256:%s of %s, and the file was not hashed", s.Digest, release(c, s))
		v.Next = "clawfs why " + quoted(q.Shown)
	case !same:
		v.Reason = ReasonWrongBytes
		v.Detail = fmt.Sprintf("expected sha256:%s of %s%s", s.Digest, release(c, s), got(q))
		v.Next = "fetch the file again, then clawfs why " + quoted(q.Shown)
	case !named:
		v.Reason = ReasonWrongName
		v.Detail = fmt.Sprintf("sha256:%s is %s and opens under that name only, got %s%s", s.Digest, release(c, s), q.Path, letters(q.Path, s.Name))
		v.Next = "give the file its own name: " + s.Name
	case !r.IsZero():
		v.Reason = ReasonRevoked
		v.Detail = fmt.Sprintf("%s was revoked on %s: %s", release(c, s), r.IssuedAt().UTC().Format(time.DateOnly), r.Reason())
		v.Next = "clawfs grant MODEL.sba, with an attestation that is not revoked"
	case q.Now.Before(c.NotBefore()):
		v.Reason = ReasonNotYetValid
		v.Detail = fmt.Sprintf("%s is valid from %s, now is %s", release(c, s), instant(c.NotBefore()), instant(q.Now))
		v.Next = "wait, or set the clock of this machine right"
	case !q.Now.Before(c.NotAfter()):
		v.Reason = ReasonExpired
		v.Detail = fmt.Sprintf("%s was valid until %s, now is %s", release(c, s), instant(c.NotAfter()), instant(q.Now))
		v.Next = "clawfs grant MODEL.sba, to rebuild and renew it"
	case c.Permits(q.use()) != "":
		v.Reason = ReasonRestricted
		v.Detail = fmt.Sprintf("%s is granted to %s only, got user %d, mount %s, path %s", release(c, s), c.Permits(q.use()), q.UID, q.Mount, q.Path)
		v.Next = "open it as the grant says, or ask for one of your own: clawfs grant MODEL.sba"
	case q.Bind != BindName && !q.Git && !addresses(q.Path, s) && !q.Roots[rootOf(q.Path, c, s.Name)].whole:
		found := q.Roots[rootOf(q.Path, c, s.Name)]
		v.Reason = ReasonMixedRelease
		v.Detail, v.Next = found.Detail, found.Next
		if v.Detail == "" {
			v.Detail = fmt.Sprintf("expected %s among files of its own release only, and nobody has looked at them", release(c, s))
			v.Next = "clawfs why " + quoted(q.Shown)
		}
	default:
		v.allowed = true
		v.Reason = ReasonGranted
		v.Detail = fmt.Sprintf("sha256:%s is %s", s.Digest, release(c, s))
	}
	return v
}

// agree asks for what has to stand beside a capability that allows the file: a
// policy that is not over, somebody who tells of revocations, a revocation list that
// is no older than the policy asks, no other result of the same attestation, and as many operators as the
// policy asks, each with a capability of this very result that allows this very
// use.
func agree(q Query, g capstore.Grant, s capstore.Subject, granted Verdict, p *poll) Verdict {
	c, st := g.Capability(), g.Standing()
	v := Verdict{Capability: c}
	rule, ruled := st.Rule()
	until, needed := st.ListUntil()
	if !ruled {
		v.Reason = ReasonNoRule
		v.Detail = fmt.Sprintf("%s is granted, and no rule of the policy says which operators decide on %s", release(c, s), c.Model())
		v.Next = "clawfs policy explain " + c.Model()
		return v
	}
	if end := st.PolicyExpires(); !end.IsZero() && !q.Now.Before(end) {
		v.Reason = ReasonOldPolicy
		v.Detail = fmt.Sprintf("%s is granted, and the policy was valid until %s, now is %s", release(c, s), instant(end), instant(q.Now))
		v.Next = "clawfs policy install FILE, with the next version of the policy"
		return v
	}
	if q.MaxSilence > 0 && q.Silence > q.MaxSilence {
		v.Reason = ReasonStaleDaemon
		last := fmt.Sprintf("was heard last %v ago", q.Silence.Round(time.Second))
		if q.Silence == math.MaxInt64 {
			last = "has not been heard yet"
		}
		v.Detail = fmt.Sprintf("%s is granted, and may have been revoked since: expected to hear the daemon and its store every %v (mount.max_daemon_age), it %s", release(c, s), q.MaxSilence, last)
		v.Next = "clawfs status, then clawfs daemon; it opens again by itself when the daemon is heard"
		return v
	}
	if needed && !q.Now.Before(until) {
		v.Reason = ReasonStaleList
		v.Detail = fmt.Sprintf("%s needs a revocation list no older than %v, and there is none", release(c, s), rule.MaxListAge)
		if !until.IsZero() {
			v.Detail = fmt.Sprintf("%s needs a revocation list no older than %v, the one that is here served until %s, now is %s", release(c, s), rule.MaxListAge, instant(until), instant(q.Now))
		}
		v.Next = "clawfs revocations import FILE, with the newest list, or clawfs pull PLACE --admit, to fetch it"
		return v
	}
	if o := st.Conflict(); !o.IsZero() {
		v.Reason = ReasonDisputed
		v.Detail = fmt.Sprintf("operator %s got claim %s of %s, and operator %s got claim %s from the same attestation: nobody knows which bytes are right", c.Operator(), c.Claim(), release(c, s), o.Operator(), o.Claim())
		v.Next = fmt.Sprintf("find out whose rebuild is wrong, then clawfs resolve %s --uphold CLAIM --reason TEXT, with the claim that is right", c.SBA())
		return v
	}
	if id, operator, lost := st.Unread(); lost {
		v.Reason = ReasonDisputed
		v.Detail = fmt.Sprintf("operator %s got claim %s of %s, and capability %s of operator %s, from the same attestation, was acknowledged and cannot be read any more: it may say that other bytes are right", c.Operator(), c.Claim(), release(c, s), id, operator)
		v.Next = "clawfs store verify, then clawfs store rebuild"
		return v
	}
	return vote(q, g, s, granted, p)
}

// vote counts the operators that have the result of g, each with a capability that
// allows this very use.
func vote(q Query, g capstore.Grant, s capstore.Subject, granted Verdict, p *poll) Verdict {
	c := g.Capability()
	v := Verdict{Capability: c}
	a := p.now
	if a.Enough() {
		return granted
	}
	v.Reason = ReasonQuorum
	v.Detail = fmt.Sprintf("expected %d operators with this result of %s, got %d (%s)", a.Needed, release(c, s), len(a.Operators), strings.Join(a.Operators, ", "))
	if len(a.Missing) > 0 {
		v.Detail += "; missing: " + strings.Join(a.Missing, ", ")
	}
	v.Next = "clawfs pull PLACE --admit, for the capabilities of the others"
	if a.LocalMust {
		v.Detail += "; this machine's own rebuild has to be among them"
		v.Next = "clawfs grant MODEL.sba"
	}
	if !p.end.IsZero() {
		v.Reason = ReasonExpired
		v.Detail += fmt.Sprintf("; until %s they were %s", instant(p.end), strings.Join(p.before.Operators, ", "))
		v.Next = "clawfs pull PLACE --admit, for what the others have renewed"
		return v
	}
	if p.any.Enough() {
		v.Reason = ReasonRestricted
		v.Detail = fmt.Sprintf("%s needs %d operators, and of %s not all grant it to user %d, mount %s, path %s", release(c, s), a.Needed, strings.Join(p.any.Operators, ", "), q.UID, q.Mount, q.Path)
		v.Next = "open it as the grants say, or ask for one of your own: clawfs grant MODEL.sba"
	}
	return v
}

func (q Query) use() capstore.Use {
	return capstore.Use{Path: q.Path, Mount: q.Mount, UID: q.UID, Anyone: q.Anyone}
}

func got(q Query) string {
	switch {
	case !q.measured():
		return ""
	case q.Sum.IsZero():
		return fmt.Sprintf(", got other bytes, fs-verity sha256:%s", q.Tree.Claim())
	}
	return fmt.Sprintf(", got sha256:%s", q.Sum)
}

// release names a subject as a person would.
func release(c capstore.Capability, s capstore.Subject) string {
	return fmt.Sprintf("%s in %s %s", s.Name, c.Model(), c.Version())
}

// letters tells two names apart that may look the same: where one of them is not
// plain ASCII it writes both with escapes.
func letters(got, want string) string {
	foreign := func(r rune) bool { return r < ' ' || r > '~' }
	if !strings.ContainsFunc(got+want, foreign) {
		return ""
	}
	return fmt.Sprintf("; in ASCII %+q is not %+q", got, want)
}

func instant(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// quoted makes a path safe to paste into a shell.
func quoted(p string) string {
	plain := func(r rune) bool {
		return r == '/' || r == '.' || r == '-' || r == '_' || r == '+' || r == ':' || r == '@' ||
			'0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
	}
	if strings.TrimFunc(p, plain) == "" {
		return p
	}
	return "'" + strings.ReplaceAll(p, "'", `'\''`) + "'"
}

// carries reports whether the path is a name for the subject.
func carries(p string, s capstore.Subject) bool {
	return addresses(p, s) || hasSuffix(p, s.Name)
}

// addresses reports whether the path's last component is the subject's hash.
func addresses(p string, s capstore.Subject) bool {
	d, ok := contentAddress(path.Base(p))
	return ok && d == s.Digest
}

// hasSuffix compares by whole components: "xlangid.bin" does not end in
// "langid.bin". An empty name is no name.
func hasSuffix(p, name string) bool {
	if name == "" {
		return false
	}
	return p == name || strings.HasSuffix(p, "/"+name)
}

// contentAddress reads a file name that is the hash of its content: 64 hex
// digits (Hugging Face), "sha256-" or "sha256:" before them (Ollama). Such a
// name is bound by the hash itself.
func contentAddress(base string) (hashpipe.Digest, bool) {
	hex := strings.TrimPrefix(base, "sha256-")
	if hex == base {
		hex = strings.TrimPrefix(base, "sha256:")
	}
	d, err := hashpipe.ParseDigest(hex)
	return d, err == nil
}
