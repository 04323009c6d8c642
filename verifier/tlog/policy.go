package tlog

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/openclaw/clawfs/verifier/dsse"
)

// MaxPolicy bounds the text of a policy in bytes.
const MaxPolicy = 64 << 10

const (
	maxLogs      = 64
	maxWitnesses = 64
	maxGroups    = 64
	// quorumNone is the name of no witness: with it a log's signature is enough.
	quorumNone = "none"
)

// Policy says which logs are believed, and how many witnesses of which must have
// cosigned. Only ParsePolicy makes one. The zero Policy believes nothing.
type Policy struct {
	logs    []logLine
	parties []party // witnesses and groups, each after its members
	quorum  int     // of parties; noQuorum for none
}

const noQuorum = -1

type logLine struct {
	key VerifierKey
	url string
}

// party is a witness, or a group if it has members.
type party struct {
	name    string
	key     VerifierKey // of a witness
	url     string      // of a witness
	k       int         // of a group: how many members are enough
	members []int       // of a group: indexes of parties before it
}

func (p party) isGroup() bool { return len(p.members) > 0 }

// ParsePolicy reads a policy. Unlike the specification it wants at least one log,
// because a checkpoint that nobody is expected to sign proves nothing.
func ParsePolicy(text []byte) (Policy, error) {
	var r policyReader
	if err := r.read(text); err != nil {
		return Policy{}, fmt.Errorf("log policy: %w", err)
	}
	return r.Policy, nil
}

type policyReader struct {
	Policy
	quorums   int
	witnesses int
	groups    int
	taken     []bool // parties that are members of a group
}

func (r *policyReader) read(text []byte) error {
	if err := r.lines(text); err != nil {
		return err
	}
	if r.quorums == 0 {
		return errors.New("expected one quorum line, got none")
	}
	return nil
}

// lines reads all lines, of which one at least is a log's.
func (r *policyReader) lines(text []byte) error {
	if len(text) > MaxPolicy {
		return fmt.Errorf("expected at most %d bytes, got %d", MaxPolicy, len(text))
	}
	if i := slices.IndexFunc(text, func(c byte) bool { return c < 0x20 && c != '\t' && c != '\n' || c == 0x7f }); i >= 0 {
		return fmt.Errorf("expected no control character but tab and newline, got %q at byte %d", text[i], i)
	}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		if !strings.HasSuffix(line, "\n") {
			return fmt.Errorf("line %d: expected a newline at its end, got the end of the text: is the policy cut short?", number)
		}
		// Not strings.Fields: it also splits at spaces beyond ASCII.
		words := strings.FieldsFunc(line, func(c rune) bool { return c == ' ' || c == '\t' || c == '\n' })
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if err := r.line(words[0], words[1:]); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
	}
	if len(r.logs) == 0 {
		return errors.New("expected at least one log line, got none")
	}
	return nil
}

func (r *policyReader) line(keyword string, args []string) error {
	switch keyword {
	case "log":
		return r.log(args)
	case "witness":
		return r.witness(args)
	case "group":
		return r.group(args)
	case "quorum":
		return r.setQuorum(args)
	}
	return fmt.Errorf("expected log, witness, group or quorum, got %q", clip(keyword))
}

func (r *policyReader) log(args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return fmt.Errorf(`expected "log <verifier key> [<url>]", got %d words after log`, len(args))
	}
	if len(r.logs) == maxLogs {
		return fmt.Errorf("expected at most %d logs, got more", maxLogs)
	}
	k, err := r.key(args[0], typeLog, "a log's (type 0x01)")
	if err != nil {
		return err
	}
	r.logs = append(r.logs, logLine{k, strings.Join(args[1:], "")})
	return nil
}

func (r *policyReader) witness(args []string) error {
	if len(args) < 2 || len(args) > 3 {
		return fmt.Errorf(`expected "witness <name> <verifier key> [<url>]", got %d words after witness`, len(args))
	}
	if r.witnesses++; r.witnesses > maxWitnesses {
		return fmt.Errorf("expected at most %d witnesses, got more", maxWitnesses)
	}
	k, err := r.key(args[1], typeWitness, "a witness's (type 0x04)")
	if err != nil {
		return err
	}
	return r.define(party{name: args[0], key: k, url: strings.Join(args[2:], "")})
}

func (r *policyReader) group(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf(`expected "group <name> all|any|<k> <member>…", got %d words after group`, len(args))
	}
	if r.groups++; r.groups > maxGroups {
		return fmt.Errorf("expected at most %d groups, got more", maxGroups)
	}
	g := party{name: args[0]}
	for _, name := range args[2:] {
		if name == quorumNone {
			return fmt.Errorf("group %q: %q cannot be a member", clip(g.name), name)
		}
		i, err := r.find(name)
		if err != nil {
			return fmt.Errorf("group %q: %w", clip(g.name), err)
		}
		if r.taken[i] {
			return fmt.Errorf("group %q: %q is a member already, and would count twice", clip(g.name), clip(name))
		}
		r.taken[i] = true
		g.members = append(g.members, i)
	}
	n := len(g.members)
	switch args[1] {
	case "all":
		g.k = n
	case "any":
		g.k = 1
	default:
		k, err := strconv.Atoi(args[1])
		if err != nil || k < 1 || k > n || strconv.Itoa(k) != args[1] {
			return fmt.Errorf("group %q: expected all, any or a number from 1 to %d (its members), got %q", clip(g.name), n, clip(args[1]))
		}
		g.k = k
	}
	return r.define(g)
}

func (r *policyReader) setQuorum(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf(`expected "quorum <name>", got %d words after quorum`, len(args))
	}
	if r.quorums++; r.quorums > 1 {
		return errors.New("expected one quorum line, got a second one")
	}
	if args[0] == quorumNone {
		r.quorum = noQuorum
		return nil
	}
	i, err := r.find(args[0])
	if err != nil {
		return err
	}
	r.quorum = i
	return nil
}

// key reads a verifier key that no line has yet. The key's bytes count, not its
// name: one key under two names is one authority.
func (r *policyReader) key(text string, kind byte, what string) (VerifierKey, error) {
	k, err := ParseVerifierKey(text)
	if err != nil {
		return VerifierKey{}, err
	}
	if k.kind != kind {
		return VerifierKey{}, fmt.Errorf("key %s: expected %s, got type 0x%02x", clip(k.name), what, k.kind)
	}
	for _, other := range r.keys() {
		switch {
		case other.key == k.key:
			return VerifierKey{}, fmt.Errorf("key %s: the key of %s is the same one, so the two are one party", clip(k.name), clip(other.name))
		case other.name == k.name && other.id == k.id:
			return VerifierKey{}, fmt.Errorf("key %s: another key has this name and the id %08x, so that signatures cannot tell them apart", clip(k.name), k.id)
		}
	}
	return k, nil
}

func (r *policyReader) define(p party) error {
	if p.name == quorumNone {
		return fmt.Errorf("the name %q is taken: it means that no witness is needed", p.name)
	}
	if _, err := r.find(p.name); err == nil {
		return fmt.Errorf("the name %q is defined already", clip(p.name))
	}
	r.parties, r.taken = append(r.parties, p), append(r.taken, false)
	return nil
}

func (r *policyReader) find(name string) (int, error) {
	i := slices.IndexFunc(r.parties, func(p party) bool { return p.name == name })
	if i < 0 {
		return 0, fmt.Errorf("expected the name of a witness or group on a line before this one, got %q", clip(name))
	}
	return i, nil
}

// IsZero reports whether p is no policy.
func (p Policy) IsZero() bool { return len(p.logs) == 0 }

// Encode returns the one text of a policy, without comments and spare spaces,
// with numbers for all and any; nil for the zero Policy.
func (p Policy) Encode() []byte {
	if p.IsZero() {
		return nil
	}
	var b strings.Builder
	line := func(words ...string) {
		words = slices.DeleteFunc(words, func(w string) bool { return w == "" })
		b.WriteString(strings.Join(words, " ") + "\n")
	}
	for _, l := range p.logs {
		line("log", l.key.String(), l.url)
	}
	for _, a := range p.parties {
		if a.isGroup() {
			line(append([]string{"group", a.name, strconv.Itoa(a.k)}, p.names(a.members)...)...)
		} else {
			line("witness", a.name, a.key.String(), a.url)
		}
	}
	line("quorum", p.quorumName())
	return []byte(b.String())
}

func (p Policy) quorumName() string {
	if p.quorum == noQuorum {
		return quorumNone
	}
	return p.parties[p.quorum].name
}

func (p Policy) names(members []int) []string {
	var names []string
	for _, i := range members {
		names = append(names, p.parties[i].name)
	}
	return names
}

// describe says what the quorum asks for, if it asks for anything.
func (p Policy) describe() string {
	q := p.parties[p.quorum]
	if !q.isGroup() {
		return "witness " + q.name
	}
	return fmt.Sprintf("group %s (%d of %s)", q.name, q.k, strings.Join(p.names(q.members), ", "))
}

func (p Policy) origins() []string {
	var origins []string
	for _, l := range p.logs {
		if !slices.Contains(origins, l.key.name) {
			origins = append(origins, l.key.name)
		}
	}
	return origins
}

// keys returns the keys of all logs and witnesses. No two are the same key, and
// no two have the same name and id.
func (p Policy) keys() []VerifierKey {
	var keys []VerifierKey
	for _, l := range p.logs {
		keys = append(keys, l.key)
	}
	for _, a := range p.parties {
		if !a.isGroup() {
			keys = append(keys, a.key)
		}
	}
	return keys
}

// satisfied reports whether the quorum is among those who cosigned. A witness is
// its public key, and has one place in the quorum at most.
func (p Policy) satisfied(cosigned func(dsse.PublicKey) bool) bool {
	if p.quorum == noQuorum {
		return !p.IsZero()
	}
	holds := make([]bool, len(p.parties))
	for i, a := range p.parties {
		if !a.isGroup() {
			holds[i] = cosigned(a.key.key)
			continue
		}
		n := 0
		for _, m := range a.members {
			if holds[m] {
				n++
			}
		}
		holds[i] = n >= a.k
	}
	return holds[p.quorum]
}
