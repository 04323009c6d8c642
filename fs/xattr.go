package fs

import (
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/openclaw/clawfs/capstore"
)

// The extended attributes tell, where no clawfs program is, what the mount
// thinks of a file. All but "why" are cheap: they show what is known and never
// hash. "why" evaluates now, as an open would, and is not listed, so that a
// backup that copies attributes does not hash the whole tree.
const (
	xattrPrefix = "user.clawfs."
	// granted, refused, "verifying 42%", pending, unknown: nobody has measured it, or
	// audited: refused by the rules and served in audit mode
	xattrStatus = xattrPrefix + "status"
	xattrDigest = xattrPrefix + "digest" // hex SHA-256 as last measured
	xattrTier   = xattrPrefix + "tier"   // of a granted file
	xattrReason = xattrPrefix + "reason"
	xattrLevel  = xattrPrefix + "level" // of a granted file: rebuilt, or reproduced-<n>
	xattrOnly   = xattrPrefix + "only"  // what the capability is narrowed to, in words
	xattrWhy    = xattrPrefix + "why"   // JSON: Explanation
)

// Explanation is the document of user.clawfs.why. Allowed says what the rules say,
// in audit mode too.
type Explanation struct {
	Path       string     `json:"path"`
	Allowed    bool       `json:"allowed"`
	Reason     Reason     `json:"reason"`
	Detail     string     `json:"detail"`
	Next       string     `json:"next,omitzero"`
	Size       int64      `json:"size"`
	SHA256     string     `json:"sha256,omitzero"` // as measured, or bound to the tree that was
	Tier       string     `json:"tier,omitzero"`
	TierNote   string     `json:"tierNote,omitzero"`   // why it is not a better one
	Capability string     `json:"capability,omitzero"` // the grant, or the one that comes closest
	Claim      string     `json:"claim,omitzero"`
	Model      string     `json:"model,omitzero"`
	Version    string     `json:"version,omitzero"`
	SBA        string     `json:"sba,omitzero"`
	Publisher  string     `json:"publisher,omitzero"` // key id
	NotAfter   *time.Time `json:"notAfter,omitzero"`
	// Level says how many operators have this result now: "rebuilt" by one of them,
	// or "reproduced-<n>".
	Level     string   `json:"level,omitzero"`
	Operators []string `json:"operators,omitzero"`
	Needed    int      `json:"needed,omitzero"` // of them
	// Restrictions are what the capability is narrowed to, in words.
	Restrictions []string `json:"restrictions,omitzero"`
	// LostBases says which models that this one was built from were taken back
	// since; the file opens all the same.
	LostBases []string `json:"lostBases,omitzero"`

	Mode       string     `json:"mode,omitzero"`       // "audit" as long as the mount does not enforce
	AuditUntil *time.Time `json:"auditUntil,omitzero"` // the end of that
	Audited    bool       `json:"audited,omitzero"`    // refused by the rules, and served unchecked until then
}

// explained keeps an answer between the call that asks for its length and the
// one that fetches it.
type explained struct {
	text       []byte
	at         time.Time
	generation uint64 // of the view: a revocation makes the answer void
	auditing   bool   // so does the end of audit mode
	uid        uint32 // who asked
}

// explainedFor is how long an answer is kept.
const explainedFor = time.Second

func (f *filesystem) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if !strings.HasPrefix(name, xattrPrefix) {
		return 0, statusNoAttr
	}
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return 0, statusStale
	}
	if n.ident.kind != unix.S_IFREG && !special(n.ident.kind) {
		return 0, statusNoAttr
	}
	if name == xattrWhy {
		text, st := f.explain(cancel, in.Caller, n)
		if !st.Ok() {
			return 0, st
		}
		return give(dest, text)
	}
	value, ok := f.known(n, by(in.Caller))[name]
	if !ok {
		return 0, statusNoAttr
	}
	return give(dest, []byte(value))
}

func (f *filesystem) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n := f.nodes.get(in.NodeId)
	if n == nil {
		return 0, statusStale
	}
	if n.ident.kind != unix.S_IFREG && !special(n.ident.kind) {
		return 0, fuse.OK
	}
	var list []byte
	known := f.known(n, by(in.Caller))
	for _, name := range []string{xattrStatus, xattrDigest, xattrTier, xattrReason, xattrLevel, xattrOnly} {
		if _, ok := known[name]; ok {
			list = append(append(list, name...), 0)
		}
	}
	return give(dest, list)
}

// give answers both forms of the call: the length alone, and the value.
func give(dest, value []byte) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), statusRange
	}
	return uint32(copy(dest, value)), fuse.OK
}

// known returns the cheap attributes.
func (f *filesystem) known(n *node, a asker) map[string]string {
	out := map[string]string{xattrStatus: "refused"}
	if special(n.ident.kind) {
		out[xattrReason] = string(ReasonSpecial)
		return out
	}
	refuse := func(v Verdict, fl *flight) {
		out[xattrReason] = string(v.Reason)
		if f.excuses(v, fl) {
			out[xattrStatus] = "audited"
		}
	}
	if detail, yes := f.quarantine.has(n.ident); yes {
		refuse(refused(ReasonQuarantined, detail, ""), nil)
		return out
	}
	if v, hopeless := f.hopeless(n.path, n.ident.size); hopeless {
		refuse(v, nil)
		return out
	}
	fl := f.measure.peek(n.ident)
	if fl == nil {
		out[xattrStatus] = f.unmeasured(n)
		return out
	}
	v := f.decide(n.path, fl, a)
	if v.Reason == ReasonMixedRelease {
		roots, o := f.unmixed(look{asker: a}, n.path, fl)
		if o != finished {
			out[xattrStatus] = "unknown"
			return out
		}
		v = f.decideAt(n.path, fl, roots, a)
	}
	refuse(v, fl)
	out[xattrDigest] = fl.digest.String()
	if only := restrictions(v.Capability); len(only) > 0 {
		out[xattrOnly] = strings.Join(only, "; and only ")
	}
	if v.Allowed() {
		out[xattrStatus], out[xattrTier] = "granted", f.tier(n, fl)
		out[xattrLevel] = v.agreement(f.clock.now()).Level()
	}
	return out
}

// unmeasured is the status of a file of which no measurement is remembered.
func (f *filesystem) unmeasured(n *node) string {
	if part, underWay := f.measure.progress(n.ident); underWay {
		return fmt.Sprintf("verifying %d%%", part)
	}
	if f.ahead.has(n.path) {
		return "pending"
	}
	return "unknown"
}

// tier returns how a granted file is served: as it is open, or, if it is not, as
// it would be.
func (f *filesystem) tier(n *node, fl *flight) string {
	if n != nil {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.content != nil {
			return n.content.tier()
		}
	}
	if f.vault.serves(fl.private) {
		return fl.private.tier
	}
	return TierBlocks
}

// explain evaluates the file that the name leads to now, as an open would, but
// opens nothing.
func (f *filesystem) explain(cancel <-chan struct{}, caller fuse.Caller, n *node) ([]byte, fuse.Status) {
	n.mu.Lock()
	kept := n.why
	n.mu.Unlock()
	generation := f.view.Generation() // before the evaluation
	if kept.text != nil && kept.generation == generation && kept.auditing == f.auditing() && kept.uid == caller.Uid && time.Since(kept.at) < explainedFor {
		return kept.text, fuse.OK
	}
	file, st, err := f.src.open(n.path)
	answer := statusOf(err)
	if err != nil && answer != statusRefused && answer != statusIO {
		return nil, answer
	}
	var a assessment
	if err != nil {
		a = assessment{verdict: refused(ReasonUnreadable, err.Error(), "mend the source")}
	} else if file == nil {
		a = assessment{verdict: refusedSpecial()}
	} else {
		a = f.assess(f.lookFor(cancel, caller), n.path, identityOf(&st), file, nil)
		file.Close()
	}
	switch a.verdict.Reason {
	case ReasonInterrupted, ReasonTooSlow:
		return nil, a.status
	}
	// Names are bytes to the kernel; JSON wants UTF-8.
	e := f.explanation(n, st.Size, a)
	text, err := json.Marshal(e, json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		return nil, statusIO
	}
	n.mu.Lock()
	n.why = explained{text, time.Now(), generation, e.Mode != "", caller.Uid}
	n.mu.Unlock()
	return text, fuse.OK
}

// restrictions are those of a capability in words; each has to permit an open.
func restrictions(c capstore.Capability) (list []string) {
	for _, r := range c.Restrictions() {
		if text := r.String(); text != "" {
			list = append(list, text)
		}
	}
	return list
}

func (f *filesystem) explanation(n *node, size int64, a assessment) Explanation {
	v := a.verdict
	e := Explanation{
		Path: f.shown(n.path), Allowed: v.Allowed(), Reason: v.Reason, Detail: v.Detail, Next: v.Next, Size: size,
	}
	if v.Allowed() {
		e.Tier = f.tier(n, a.flight)
		if e.Tier == TierBlocks {
			e.TierNote = f.vault.note(a.flight)
		}
	}
	if f.auditing() {
		until := f.auditUntil.UTC()
		e.Mode, e.AuditUntil, e.Audited = "audit", &until, f.excuses(v, a.flight)
	}
	if a.flight != nil {
		e.SHA256 = a.flight.digest.String()
	}
	if c := v.Capability; !c.IsZero() {
		until := c.NotAfter().UTC()
		e.Capability, e.Claim = c.ID().String(), c.Claim().String()
		e.Model, e.Version = c.Model(), c.Version()
		e.SBA, e.Publisher = c.SBA().String(), string(c.Publisher().ID())
		e.NotAfter = &until
		agreed := v.agreement(f.clock.now())
		e.Level, e.Operators, e.Needed = agreed.Level(), agreed.Operators, agreed.Needed
		e.Restrictions = restrictions(c)
		for _, l := range f.view.LostBases(c) {
			e.LostBases = append(e.LostBases, fmt.Sprintf("claim %s: revoked by %s %s: %s", l.Claim, l.By.Kind(), l.By.Target(), l.By.Reason()))
		}
	}
	return e
}
