package capstore

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/openclaw/clawfs/hashpipe"
	"github.com/openclaw/clawfs/verifier/dsse"
	"github.com/openclaw/clawfs/verifier/pattern"
)

// LocalVote is what the capability of this machine's own operator means.
type LocalVote string

const (
	LocalCounts   LocalVote = "" // as everybody's
	LocalRequired LocalVote = "required"
	LocalIgnored  LocalVote = "ignored"
)

// Rule is what has to stand behind a file of some models before it opens.
type Rule struct {
	Models    []string // patterns of package pattern
	Operators []string // who count
	Threshold int      // how many of them must have measured the same
	Local     LocalVote
	// MaxListAge is how old the revocation list may be, by its own issuedAt; 0: no
	// list is needed.
	MaxListAge time.Duration
}

func (r Rule) check(mints role) error {
	if len(r.Models) == 0 || len(r.Operators) == 0 {
		return fmt.Errorf("trust: a rule without models or operators")
	}
	known := make(map[string]bool)
	for _, o := range mints.operator {
		known[o] = true
	}
	for i, o := range r.Operators {
		if !known[o] {
			return fmt.Errorf("trust: rule for %q: operator %q has no mint", r.Models, o)
		}
		if slices.Contains(r.Operators[:i], o) {
			return fmt.Errorf("trust: rule for %q: operator %q is given twice", r.Models, o)
		}
	}
	switch {
	case r.Threshold < 1 || r.Threshold > len(r.Operators):
		return fmt.Errorf("trust: rule for %q: threshold %d of %d operators", r.Models, r.Threshold, len(r.Operators))
	case r.Local != LocalCounts && r.Local != LocalRequired && r.Local != LocalIgnored:
		return fmt.Errorf("trust: rule for %q: local is %q", r.Models, r.Local)
	case r.MaxListAge < 0:
		return fmt.Errorf("trust: rule for %q: a list of age %v", r.Models, r.MaxListAge)
	}
	return nil
}

// rules are the checked rules of a Trust.
type rules struct {
	list    []Rule
	models  [][]string
	local   string
	expires time.Time
}

func newRules(t Trust, mints role) (rules, error) {
	r := rules{list: slices.Clone(t.Rules), local: t.Local, expires: t.Expires}
	for _, x := range t.Rules {
		if err := x.check(mints); err != nil {
			return rules{}, err
		}
		r.models = append(r.models, x.Models)
	}
	return r, nil
}

// of returns the rule for a model. Without any rule one capability of any mint is
// enough; with rules, a model that none of them names opens under nothing.
func (r rules) of(model string) (rule Rule, open bool) {
	if len(r.list) == 0 {
		return Rule{Threshold: 1}, true
	}
	i := pattern.Best(model, r.models)
	if i < 0 {
		return Rule{}, false
	}
	return r.list[i], true
}

// counts reports whether an operator's capabilities are looked at under the rule.
func (r Rule) counts(operator string) bool {
	return r.Operators == nil || slices.Contains(r.Operators, operator)
}

// disputable is what two operators would have to agree on: one attestation, built
// on machines of one class.
type disputable struct{ sba, class hashpipe.Digest }

func (c Capability) disputable() disputable {
	p := c.predicate()
	b := netstring(nil, string(p.Publisher.KeyID))
	return disputable{p.SBA.Digest.SHA256, hashpipe.SumBytes(p.Platform.class(b)).Claim()}
}

// Standing is what is known beside a capability when somebody asks to open a file
// of it. It holds no time: what is past or future is for the asker.
type Standing struct {
	rule     Rule
	ruled    bool
	local    string
	expires  time.Time
	peers    []Grant
	conflict Capability
	unread   unread // zero: none
	unreadBy string
	list     List
	last     *lastAgreement // nil: none is kept
}

// lastAgreement is what AgreeAt last found. Copies of a Standing share it.
type lastAgreement struct {
	mu sync.Mutex // guards all below
	at time.Time
	is *Agreement // not changed after it was found; nil: nobody has asked
}

// Peers are the capabilities of the same result, the one that was asked about
// among them, each with what revokes it.
func (s Standing) Peers() []Grant { return slices.Clone(s.peers) }

// Conflict is a capability of another operator, or an earlier one of the same,
// that says of the same attestation and class of machine that other bytes come
// out, and that nobody has revoked. It is zero if there is none.
func (s Standing) Conflict() Capability { return s.conflict }

// Rule is what the policy asks for the model. ruled is false if the policy has
// rules and none for it: then nothing opens.
func (s Standing) Rule() (r Rule, ruled bool) { return s.rule, s.ruled }

// Local is the operator whose mint this machine has; "" if it has none, or nobody
// knows.
func (s Standing) Local() string { return s.local }

// PolicyExpires is when the policy stops to be one; zero: never.
func (s Standing) PolicyExpires() time.Time { return s.expires }

// ListUntil is the first instant at which no file opens any more because the
// revocation list is too old; needed is false if the rule needs none. A list that
// is needed and not there is one until the zero time.
func (s Standing) ListUntil() (until time.Time, needed bool) {
	if s.rule.MaxListAge == 0 {
		return time.Time{}, false
	}
	if s.list.IsZero() {
		return time.Time{}, true
	}
	until = s.list.IssuedAt().Add(s.rule.MaxListAge)
	if s.list.ValidUntil().Before(until) {
		until = s.list.ValidUntil()
	}
	return until, true
}

// Agreement counts operators. The zero Agreement is not enough.
type Agreement struct {
	Operators []string // who agree, sorted
	Needed    int      // of them
	Missing   []string // who could still agree
	LocalMust bool     // this machine's own operator has to be among them, and is not
}

// Enough reports whether the rule is met.
func (a Agreement) Enough() bool {
	return a.Needed > 0 && len(a.Operators) >= a.Needed && !a.LocalMust
}

// Level names what stands behind a file: "rebuilt" by one operator, or
// "reproduced-<n>" by n of them; "" by nobody.
func (a Agreement) Level() string {
	switch n := len(a.Operators); n {
	case 0:
		return ""
	case 1:
		return LevelRebuilt
	default:
		return fmt.Sprintf("reproduced-%d", n)
	}
}

// Agree counts the different operators of those peers that may take part. One
// operator counts once, whatever its number of keys and capabilities. A
// capability that was handed on counts as its mint's.
func (s Standing) Agree(may func(Grant) bool) Agreement {
	agreed := make(map[string]bool)
	for _, g := range s.peers {
		if o := g.Operator(); s.rule.counts(o) && !agreed[o] && may(g) {
			agreed[o] = true
		}
	}
	return s.Among(agreed)
}

// Among is Agree for a caller who knows which operators agree.
func (s Standing) Among(agreed map[string]bool) Agreement {
	if !s.ruled {
		return Agreement{}
	}
	a := Agreement{Needed: s.rule.Threshold}
	local := false
	for o, yes := range agreed {
		if yes && s.rule.counts(o) && (o != s.local || s.rule.Local != LocalIgnored) {
			a.Operators = append(a.Operators, o)
			local = local || o == s.local
		}
	}
	slices.Sort(a.Operators)
	for _, o := range s.rule.Operators {
		if !slices.Contains(a.Operators, o) && (o != s.local || s.rule.Local != LocalIgnored) {
			a.Missing = append(a.Missing, o)
		}
	}
	slices.Sort(a.Missing)
	a.LocalMust = s.rule.Local == LocalRequired && (s.local == "" || !local)
	return a
}

// Valid is the part of Agree's question that depends on no file: g is not revoked
// as a whole, and now lies in its dates.
func (g Grant) Valid(now time.Time) bool {
	_, revoked := g.Revoked()
	return !g.IsZero() && !revoked && !now.Before(g.NotBefore()) && now.Before(g.NotAfter())
}

// standings collects what is known beside each of several capabilities, once for
// all of one result, because there can be one for each user of a machine. Callers
// hold v.mu.
type standings struct {
	lens
	also   func(Capability) Revocation
	known  map[place]*Standing
	rivals map[quarrel]rivals
}

// rivals are results of one attestation.
type rivals struct {
	read   []Capability
	unread []unread
}

type place struct {
	result hashpipe.Digest
	model  string // which finds the rule
}

type quarrel struct {
	disputable
	model string
}

func (x lens) standings(also func(Capability) Revocation) standings {
	return standings{x, also, make(map[place]*Standing), make(map[quarrel]rivals)}
}

func (x standings) of(c Capability) *Standing {
	at := place{c.Result(), c.Model()}
	if s := x.known[at]; s != nil {
		return s
	}
	s := &Standing{local: x.rules.local, expires: x.rules.expires, list: x.list, last: new(lastAgreement)}
	s.rule, s.ruled = x.rules.of(c.Model())
	for _, p := range x.ofClaim(c.Claim()) {
		if p.Result() == c.Result() {
			s.peers = append(s.peers, Grant{held: p, revocation: x.standsAgainst(p, x.also)})
		}
	}
	against := x.rivalsOf(c, s.rule)
	for _, o := range against.read {
		if o.Result() != c.Result() {
			s.conflict = o
			break
		}
	}
	for _, u := range against.unread {
		if u.id.IsZero() || u.claim != tagOf(c.Claim()) {
			s.unread, s.unreadBy = u, x.mints.operator[dsse.KeyID(u.signer.String())]
			break
		}
	}
	x.known[at] = s
	return s
}

// rivalsOf returns the first two results of what c is a result of that count and
// that nobody has revoked: one of them is not c's. Beside them, what may be another
// result and cannot be read.
func (x standings) rivalsOf(c Capability, r Rule) rivals {
	over := quarrel{c.disputable(), c.Model()}
	found, known := x.rivals[over]
	if known {
		return found
	}
	found.unread = x.unreadOf(over.sba, r)
	for _, n := range x.index.bySBA.all(tagOf(over.sba)) {
		// A mint that lies can do so often, and reading each lie takes long: what was
		// taken back with its mint, or does not count, is passed over unread.
		by, ok := x.index.signer(n)
		if !ok || !r.counts(x.mints.operator[dsse.KeyID(by.String())]) || !x.revokedBy(target{KindMint, by}).IsZero() {
			continue
		}
		o := x.at(n)
		if o.IsZero() {
			if u, yes := x.unreadAt(n, by, over.sba, r); yes {
				found.unread = append(found.unread, u)
			}
			continue
		}
		if o.disputable() != over.disputable || len(found.read) == 1 && found.read[0].Result() == o.Result() || !r.counts(o.Operator()) || !x.against(o).IsZero() {
			continue
		}
		if found.read = append(found.read, o); len(found.read) == 2 {
			break
		}
	}
	x.rivals[over] = found
	return found
}

func (x lens) standsAgainst(c Capability, also func(Capability) Revocation) Revocation {
	if r := x.against(c); !r.IsZero() {
		return r
	}
	return also(c)
}
