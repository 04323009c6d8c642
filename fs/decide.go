package fs

import (
	"fmt"
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
	ReasonNotYetValid: 5, ReasonExpired: 6, ReasonRevoked: 7, ReasonMixedRelease: 8, ReasonGranted: 9,
}

// Decide is the rule by which a file opens. It allows exactly if one of the
// grants has a subject whose SHA-256 (or fs-verity digest, see Query.Tree) is the
// measured one, whose size is the measured one and whose name the path carries,
// and which at q.Now is begun, is not over and is not revoked. With BindRelease
// its release must also lie whole at the path's root, unless the path is a content
// address. It is pure: equal arguments, equal verdict.
//
// A path carries a subject's name if its last components are those of the name
// ("langid.bin" at "acme/v1/langid.bin"), or if its last component is the
// content's own hash (see contentAddress and gitAddress).
func Decide(q Query, grants []capstore.Grant) Verdict {
	if q.Shown == "" {
		q.Shown = q.Path
	}
	revoked := make(map[hashpipe.Digest]capstore.Revocation)
	for _, g := range grants {
		if r, yes := g.Revoked(); yes {
			revoked[g.ID()] = r
		}
	}
	best := Verdict{
		Reason: ReasonNoCapability,
		Detail: "no capability names " + q.Path + got(q),
		Next:   "clawfs grant MODEL.sba, with the publisher's attestation of the model that this file belongs to",
	}
	for _, g := range grants {
		if g.IsZero() {
			continue
		}
		for _, s := range g.Subjects() {
			v := judge(q, g.Capability(), s, revoked[g.ID()])
			if rank[v.Reason] > rank[best.Reason] {
				best = v
			}
		}
	}
	return best
}

// judge compares the file with one subject of one capability.
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
		v.Detail = fmt.Sprintf("sha256:%s is %s and opens under that name only, got %s", s.Digest, release(c, s), q.Path)
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
