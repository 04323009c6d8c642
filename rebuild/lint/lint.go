// Package lint looks at a build ledger, before anybody signs it, for what is
// known to keep a build from repeating its bytes, and for what others will
// stumble over.
//
// Check is a pure function of the ledger and of what its image has installed.
// It sees command lines, environments and URIs; it does not open the scripts
// that a stage runs. So it misses much, and what it finds may be harmless: a
// finding is a warning, and nothing is refused because of one. What decides is
// the double build.
package lint

import (
	"fmt"
	"slices"
	"strings"

	"github.com/openclaw/clawfs/rebuild/lock"
	"github.com/openclaw/clawfs/verifier"
)

// Warning is the only severity there is.
const Warning = "warning"

// The rules. Their names are stable: people will filter by them.
const (
	RuleThreads     = "threads"      // more than one thread, or nobody says how many
	RuleDispatch    = "dispatch"     // numeric libraries choose their code by the processor
	RuleHashSeed    = "hash-seed"    // Python without PYTHONHASHSEED
	RuleEpoch       = "epoch"        // SOURCE_DATE_EPOCH is missing or no number
	RuleArchive     = "archive"      // zip, tar or gzip with times, names or an order of their own
	RuleClock       = "clock"        // a command that prints the time
	RuleRandom      = "random"       // a command that draws at random
	RuleLocale      = "locale"       // an order that follows the language of the image
	RuleNetwork     = "network"      // a build has none
	RuleMutableURI  = "mutable-uri"  // a place whose content changes
	RuleInsecureURI = "insecure-uri" // a place that anybody on the way can change
	RuleTimeout     = "timeout"      // a stage without one
	RuleArtifacts   = "artifacts"    // stages that cannot be compared one by one
	RuleVersion     = "version"      // a version that does not stay
	RuleSequence    = "sequence"     // a sequence that leaves no room
)

// Finding is one thing that may go wrong.
type Finding struct {
	Rule     string `json:"rule"`
	Severity string `json:"severity"` // Warning
	Where    string `json:"where"`    // "stage train", "dependency environment", "ledger"
	Text     string `json:"text"`     // what is the matter
	Hint     string `json:"hint"`     // what to do about it
}

// String is the finding in one line. It holds no control characters.
func (f Finding) String() string {
	return fmt.Sprintf("%s: %s: %s; %s (%s)", f.Severity, f.Where, f.Text, f.Hint, f.Rule)
}

// Check looks for all that the rules know. have lists what the image has
// installed, as lock.Installed reads it; nil if nobody looked, which is not the empty list. Findings come in
// the order of the ledger; there is at most one of each rule for each stage or
// dependency.
func Check(st verifier.Statement, have []lock.Package) []Finding {
	c := &checker{st: st, have: have}
	c.ledger()
	for _, g := range st.Predicate.BuildDefinition.ExternalParameters.Stages {
		c.stage(g)
	}
	for _, d := range st.Predicate.BuildDefinition.ResolvedDependencies {
		c.dependency(d)
	}
	return c.found
}

type checker struct {
	st    verifier.Statement
	have  []lock.Package
	found []Finding
}

// add keeps the first finding of a rule for one place.
func (c *checker) add(rule, where, text, hint string) {
	if slices.ContainsFunc(c.found, func(f Finding) bool { return f.Rule == rule && f.Where == where }) {
		return
	}
	c.found = append(c.found, Finding{Rule: rule, Severity: Warning, Where: where, Text: text, Hint: hint})
}

// restless are versions that name whatever is newest.
var restless = []string{"latest", "main", "master", "head", "dev", "devel", "nightly", "snapshot", "test", "unstable"}

// maxSequence is far above a count of releases, and above seconds since 1970.
const maxSequence = 1 << 40

func (c *checker) ledger() {
	p := c.st.Predicate
	if slices.Contains(restless, strings.ToLower(p.Version)) {
		c.add(RuleVersion, "ledger", fmt.Sprintf("the version %s names whatever is newest", quote(p.Version)), "give each release a version of its own")
	}
	if p.Sequence > maxSequence {
		c.add(RuleSequence, "ledger", fmt.Sprintf("every later ledger needs a sequence above %d, and that cannot be taken back", p.Sequence), "count releases from 1")
	}
	params := p.BuildDefinition.ExternalParameters
	if n := len(params.Stages); n > 1 {
		var lack []string
		for _, g := range params.Stages[:n-1] {
			if len(g.Artifacts) == 0 {
				lack = append(lack, g.Name)
			}
		}
		if len(lack) > 0 {
			c.add(RuleArtifacts, "ledger", fmt.Sprintf("of %d stages these declare no artifacts, so nobody can say which stage differs first: %s", n, list(lack)),
				"name the files that the next stage reads in artifacts")
		}
	}
}

func (c *checker) dependency(d verifier.Dependency) {
	where := "dependency " + show(d.Name)
	uris := []string{d.URI}
	if d.Annotations != nil {
		uris = append(uris, d.Annotations.Mirrors...)
	}
	for _, uri := range uris {
		scheme, rest, _ := strings.Cut(uri, "://")
		switch scheme = strings.ToLower(scheme); {
		case rest == "":
			continue
		case slices.Contains([]string{"http", "git", "git+http", "ftp", "rsync"}, scheme):
			c.add(RuleInsecureURI, where, fmt.Sprintf("whoever is on the way to %s can make each rebuild fail", quote(uri)), "use https or ssh")
		}
		if what := moves(scheme, rest); what != "" {
			c.add(RuleMutableURI, where, fmt.Sprintf("what %s leads to changes (%s); when it does, the digest no longer matches and nobody can rebuild", quote(uri), what),
				"name a place that keeps this content, such as one with the digest or a release in it")
		}
	}
}

// moves says what in a URI names content that changes, "" for nothing.
func moves(scheme, rest string) string {
	path, _, _ := strings.Cut(rest, "#")
	if strings.Contains(path, "sha256:") {
		return ""
	}
	name := path[strings.LastIndexByte(path, '/')+1:]
	if _, tag, tagged := strings.Cut(name, ":"); scheme == "oci" || scheme == "docker" {
		if tagged && strings.Contains(path, "/") {
			return "the tag " + quote(tag)
		}
	}
	path, query, _ := strings.Cut(path, "?")
	for _, part := range strings.FieldsFunc(path+"&"+query, func(r rune) bool { return strings.ContainsRune("/@&=", r) }) {
		if slices.Contains([]string{"latest", "main", "master", "head", "nightly"}, strings.ToLower(part)) {
			return quote(part)
		}
	}
	return ""
}

// quote shows a word of the ledger: short, and without control characters.
func quote(s string) string {
	const most = 60
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}

// show is a name as it stands, or quoted where it could do harm.
func show(name string) string {
	if q := quote(name); q != `"`+name+`"` {
		return q
	}
	return name
}

// list names a few.
func list(names []string) string {
	const most = 5
	var few []string
	for _, name := range names[:min(len(names), most)] {
		few = append(few, show(name))
	}
	s := strings.Join(few, ", ")
	if len(names) > most {
		s += ", ..."
	}
	return s
}
