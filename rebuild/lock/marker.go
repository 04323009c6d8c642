package lock

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Bounds of an environment marker.
const (
	maxMarker      = 8 << 10 // bytes
	maxMarkerDepth = 32      // parentheses
)

// truth is the outcome of a marker. The order is that of its strength: "and" is
// the smaller, "or" the larger of two.
type truth int8

const (
	no truth = iota
	unknown
	yes
)

func decided(b bool) truth {
	if b {
		return yes
	}
	return no
}

// environment holds the marker variables that are known.
type environment struct {
	vars map[string]string
	// minor of Python 3, or -1 if unknown.
	minor int64
}

var pythonVersion = regexp.MustCompile(`^3\.(0|[1-9][0-9]{0,2})$`)

func newEnvironment(python string) (environment, error) {
	e := environment{minor: -1, vars: map[string]string{
		"os_name":                        "posix",
		"sys_platform":                   "linux",
		"platform_system":                "Linux",
		"platform_machine":               "x86_64",
		"implementation_name":            "cpython",
		"platform_python_implementation": "CPython",
	}}
	if python == "" {
		return e, nil
	}
	m := pythonVersion.FindStringSubmatch(python)
	if m == nil {
		return e, fmt.Errorf("Python version %s: expected one like 3.11", shown(python))
	}
	e.minor, _ = strconv.ParseInt(m[1], 10, 64)
	e.vars["python_version"] = python
	return e, nil
}

// undecided are the variables that no lockfile and no image decides.
var undecided = map[string]bool{
	"python_version": true, "python_full_version": true, "platform_release": true, "platform_version": true,
	"implementation_version": true, "extra": true, "extras": true, "dependency_groups": true,
}

// eval evaluates a marker; an empty one is true. One that is not understood is
// an error, never "unknown".
func (e environment) eval(marker string) (truth, error) {
	if strings.TrimSpace(marker) == "" {
		return yes, nil
	}
	t, err := e.evalText(marker)
	if err != nil {
		return no, fmt.Errorf("marker %s: %w", shown(marker), err)
	}
	return t, nil
}

func (e environment) evalText(marker string) (truth, error) {
	if len(marker) > maxMarker {
		return no, fmt.Errorf("has %d bytes, expected at most %d", len(marker), maxMarker)
	}
	words, err := markerWords(marker)
	if err != nil {
		return no, err
	}
	p := markerParser{env: e, words: words}
	t, err := p.or()
	if err == nil && p.at < len(p.words) {
		err = fmt.Errorf("does not end before %s", shown(p.words[p.at]))
	}
	return t, err
}

var markerWord = regexp.MustCompile(`^(?:"[^"]*"|'[^']*'|[A-Za-z_][A-Za-z0-9_.]*|===|==|!=|~=|<=|>=|[<>()])`)

func markerWords(s string) ([]string, error) {
	var words []string
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		w := markerWord.FindString(s)
		if w == "" {
			return nil, fmt.Errorf("unexpected %s", shown(s))
		}
		words, s = append(words, w), s[len(w):]
	}
	return words, nil
}

// markerParser evaluates as it parses: markers have no effects.
type markerParser struct {
	env   environment
	words []string
	at    int
	depth int
}

func (p *markerParser) peek() string {
	if p.at < len(p.words) {
		return p.words[p.at]
	}
	return ""
}

func (p *markerParser) next() string {
	w := p.peek()
	p.at++
	return w
}

func (p *markerParser) or() (truth, error) {
	t, err := p.and()
	for err == nil && p.peek() == "or" {
		p.at++
		var u truth
		u, err = p.and()
		t = max(t, u)
	}
	return t, err
}

func (p *markerParser) and() (truth, error) {
	t, err := p.atom()
	for err == nil && p.peek() == "and" {
		p.at++
		var u truth
		u, err = p.atom()
		t = min(t, u)
	}
	return t, err
}

func (p *markerParser) atom() (truth, error) {
	if p.peek() != "(" {
		return p.comparison()
	}
	if p.depth++; p.depth > maxMarkerDepth {
		return no, errors.New("nested too deeply")
	}
	p.at++
	t, err := p.or()
	if err == nil && p.next() != ")" {
		err = errors.New("a parenthesis is not closed")
	}
	p.depth--
	return t, err
}

func (p *markerParser) comparison() (truth, error) {
	left, op := p.next(), p.next()
	if op == "not" && p.peek() == "in" {
		p.at++
		op = "not in"
	}
	right := p.next()
	if right == "" {
		return no, errors.New("is cut off")
	}
	if !strings.Contains("|==|!=|<|<=|>|>=|~=|===|in|not in|", "|"+op+"|") {
		return no, fmt.Errorf("no operator: %s", shown(op))
	}
	lit, flipped, name := right, false, left
	if isQuoted(left) {
		lit, flipped, name = left, true, right
	}
	if !isQuoted(lit) || isQuoted(name) {
		return no, fmt.Errorf("expected a variable and a quoted text, got %s %s %s", shown(left), op, shown(right))
	}
	name = strings.ReplaceAll(name, ".", "_") // os.name of PEP 345
	value, known := p.env.vars[name]
	if !known && !undecided[name] {
		return no, fmt.Errorf("unknown variable %s", shown(name))
	}
	lit = lit[1 : len(lit)-1]
	if name == "python_version" || name == "python_full_version" {
		return p.env.comparePython(name, op, lit, flipped), nil
	}
	if !known {
		return unknown, nil
	}
	return compareText(value, op, lit, flipped), nil
}

func isQuoted(w string) bool { return len(w) >= 2 && (w[0] == '"' || w[0] == '\'') }

func compareText(value, op, lit string, flipped bool) truth {
	switch op {
	case "==", "===":
		return decided(value == lit)
	case "!=":
		return decided(value != lit)
	case "in", "not in":
		outer, inner := lit, value
		if flipped {
			outer, inner = value, lit
		}
		return decided(strings.Contains(outer, inner) == (op == "in"))
	}
	return unknown // an order of names means nothing
}

var (
	plainRelease = regexp.MustCompile(`^[0-9]{1,6}(\.[0-9]{1,6}){0,3}$`)
	flippedOp    = map[string]string{"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
)

// comparePython decides only what holds for every release that the image's
// Python can be: python_full_version of "3.11" is anything from 3.11.0 on below
// 3.12, and an unknown Python anything from 3.0 on below 4.
func (e environment) comparePython(name, op, lit string, flipped bool) truth {
	if op == "in" || op == "not in" {
		if flipped || name != "python_version" || e.minor < 0 {
			return unknown
		}
		return compareText(e.vars[name], op, lit, false)
	}
	if flipped {
		if op = flippedOp[op]; op == "" {
			return unknown
		}
	}
	prefix := strings.HasSuffix(lit, ".*")
	lit = strings.TrimSuffix(lit, ".*")
	if !plainRelease.MatchString(lit) || prefix && op != "==" && op != "!=" || op == "~=" && !strings.Contains(lit, ".") {
		return unknown
	}
	parts := strings.Split(lit, ".")
	want := make([]int64, 4) // padded with zeros
	for i, s := range parts {
		want[i], _ = strconv.ParseInt(s, 10, 64)
	}
	const above = 1 << 40 // any number of a version
	low, high := [4]int64{3, e.minor}, [4]int64{3, e.minor}
	known := 2 // components that are
	if name == "python_full_version" {
		high[2], high[3] = above, above
	} else {
		known = 4
	}
	if e.minor < 0 {
		low[1], high[1], known = 0, above, 1
	}
	n := len(parts) // components that an equality is about
	if op == "~=" {
		n--
	} else if !prefix {
		n = len(want)
	}
	one := func(v [4]int64) truth {
		c := 0
		for i := 0; i < 4 && c == 0; i++ {
			c = int(max(-1, min(1, v[i]-want[i])))
		}
		same := true
		for i := range n {
			same = same && v[i] == want[i]
		}
		switch {
		case prefix:
			return decided(same == (op == "=="))
		case op == "~=":
			return decided(n > 0 && same && c >= 0)
		case op == "<":
			return decided(c < 0)
		case op == "<=":
			return decided(c <= 0)
		case op == ">":
			return decided(c > 0)
		case op == ">=":
			return decided(c >= 0)
		case op == "==":
			return decided(c == 0)
		case op == "!=":
			return decided(c != 0)
		}
		return unknown // ===
	}
	l, h := one(low), one(high)
	if l != h {
		return unknown
	}
	// The two ends agree, but between them an equality can hold.
	between := n > known && want[0] == 3 && (known == 1 || want[1] == e.minor)
	if between && (op == "==" || op == "!=" || op == "~=") {
		return unknown
	}
	return l
}
