package lock

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/openclaw/clawfs/hashpipe"
)

// Bounds of a TOML text, counted before it is parsed: the parser recurses for
// each level, and keeps some hundred bytes for each value.
const (
	maxTOMLDepth  = 32        // brackets and braces within each other
	maxTOMLWeight = 1_000_000 // commas and equals signs, and four times brackets, braces and dots
	maxTOMLDots   = 64        // dots of one line outside of texts
	maxEdges      = 1_000_000 // dependencies of all packages
)

// decodeTOML parses a text of bounded cost. Unknown keys are passed over: both
// formats gain some with each release of their tools, and the version key says
// when an old one changes its meaning.
func decodeTOML(text []byte, into any) error {
	if len(text) > maxTOML {
		return fmt.Errorf("has %d bytes, expected at most %d", len(text), maxTOML)
	}
	if err := weighTOML(text); err != nil {
		return err
	}
	if _, err := toml.Decode(string(text), into); err != nil {
		return errors.New(shown(err.Error()))
	}
	return nil
}

// weighTOML counts what stands outside of strings and comments. Where the text
// is not TOML, it may count wrongly, but then the parser stops at that place too.
func weighTOML(text []byte) error {
	depth, weight, dots, line := 0, 0, 0, 1
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\n':
			line, dots = line+1, 0
		case '#':
			for i+1 < len(text) && text[i+1] != '\n' {
				i++
			}
		case '"', '\'':
			end := stringEnd(text, i)
			line += strings.Count(string(text[i:end]), "\n")
			i = end - 1
		case ',', '=':
			weight++
		case '[', '{':
			weight += 4 // a table takes several times the memory of a value
			depth++
		case ']', '}':
			depth--
		case '.':
			weight += 4
			dots++
		}
		if depth > maxTOMLDepth || weight > maxTOMLWeight || dots > maxTOMLDots {
			return fmt.Errorf("line %d: too many values; expected at most %d brackets in each other, %d dots in a line, and %d commas and equals signs", line, maxTOMLDepth, maxTOMLDots, maxTOMLWeight)
		}
	}
	return nil
}

// stringEnd returns where the string that begins at i ends: after its closing
// quotes, at the line's end for one that is not closed, else at the text's end.
func stringEnd(text []byte, i int) int {
	quote := text[i]
	long := i+2 < len(text) && text[i+1] == quote && text[i+2] == quote
	if long {
		i += 2
	}
	for i++; i < len(text); i++ {
		switch {
		case text[i] == '\\' && quote == '"':
			i++
		case text[i] == '\n' && !long:
			return i
		case text[i] != quote:
		case !long:
			return i + 1
		case i+2 < len(text) && text[i+1] == quote && text[i+2] == quote:
			for i += 3; i < len(text) && text[i] == quote; i++ { // """" ends with a quote inside
			}
			return i
		}
	}
	return len(text)
}

// uvFile is uv.lock, version 1.
type uvFile struct {
	Version  int `toml:"version"`
	Manifest struct {
		Members      []string `toml:"members"`
		Requirements []uvEdge `toml:"requirements"`
	} `toml:"manifest"`
	Packages []uvPackage `toml:"package"`
}

type uvPackage struct {
	Name         string              `toml:"name"`
	Version      string              `toml:"version"`
	Source       map[string]any      `toml:"source"`
	Dependencies []uvEdge            `toml:"dependencies"`
	Extras       map[string][]uvEdge `toml:"optional-dependencies"`
	Groups       map[string][]uvEdge `toml:"dev-dependencies"`
	Sdist        uvArchive           `toml:"sdist"`
	Wheels       []uvArchive         `toml:"wheels"`
}

type uvArchive struct {
	Hash string `toml:"hash"`
}

type uvEdge struct {
	Name    string   `toml:"name"`
	Version string   `toml:"version"`
	Extras  []string `toml:"extra"`
	Marker  string   `toml:"marker"`
}

// project reports whether the package is one whose directory is being locked.
func (p uvPackage) project(members []string) bool {
	for _, kind := range []string{"virtual", "editable", "directory"} {
		if at, ok := p.Source[kind]; ok {
			return at == "." || slices.Contains(members, p.Name)
		}
	}
	return false
}

// uvGraph finds out how strongly each package is needed.
type uvGraph struct {
	env    environment
	byName map[string][]int
	file   uvFile
	need   map[uvNode]truth
	work   []uvNode
}

// uvNode is a package with one of its extras; "" is the package itself.
type uvNode struct {
	pkg   int
	extra string
}

func uvLock(text []byte, env environment) ([]Row, error) {
	g := uvGraph{env: env, byName: map[string][]int{}, need: map[uvNode]truth{}}
	if err := decodeTOML(text, &g.file); err != nil {
		return nil, err
	}
	if g.file.Version != 1 {
		return nil, fmt.Errorf("has version %d, expected 1", g.file.Version)
	}
	if err := g.index(); err != nil {
		return nil, err
	}
	projects, err := g.roots()
	if err != nil {
		return nil, err
	}
	for len(g.work) > 0 {
		n := g.work[len(g.work)-1]
		g.work = g.work[:len(g.work)-1]
		p := g.file.Packages[n.pkg]
		edges := p.Dependencies
		if n.extra != "" {
			edges = p.Extras[n.extra]
		}
		if err := g.follow(p.Name, edges, g.need[n]); err != nil {
			return nil, err
		}
	}
	return g.rows(projects)
}

func (g *uvGraph) index() error {
	edges := 0
	for i := range g.file.Packages {
		p := &g.file.Packages[i]
		name, ok := PyPIName(p.Name)
		if !ok {
			return fmt.Errorf("package %d: %s is no name of a package", i+1, shown(p.Name))
		}
		p.Name = name
		g.byName[name] = append(g.byName[name], i)
		edges += len(p.Dependencies)
		for _, m := range []map[string][]uvEdge{p.Extras, p.Groups} {
			for _, list := range m {
				edges += len(list)
			}
		}
	}
	if len(g.file.Packages) > maxRows || edges > maxEdges {
		return fmt.Errorf("has %d packages and %d dependencies, expected at most %d and %d", len(g.file.Packages), edges, maxRows, maxEdges)
	}
	for name, list := range g.byName {
		if len(list) > 64 {
			return fmt.Errorf("%s stands %d times, expected at most 64", name, len(list))
		}
	}
	return nil
}

// roots begins with the projects of the lock, or a script's requirements.
func (g *uvGraph) roots() (map[int]bool, error) {
	members := slices.Clone(g.file.Manifest.Members)
	for i := range members {
		members[i], _ = PyPIName(members[i])
	}
	projects := map[int]bool{}
	for i, p := range g.file.Packages {
		if !p.project(members) {
			continue
		}
		projects[i] = true
		if err := g.follow(p.Name, p.Dependencies, yes); err != nil {
			return nil, err
		}
		for _, m := range []map[string][]uvEdge{p.Extras, p.Groups} {
			for _, list := range m {
				if err := g.follow(p.Name, list, unknown); err != nil {
					return nil, err
				}
			}
		}
	}
	if err := g.follow("the script", g.file.Manifest.Requirements, yes); err != nil {
		return nil, err
	}
	if len(projects) == 0 && len(g.file.Manifest.Requirements) == 0 {
		return nil, errors.New("has no project: no package with a virtual or editable source, and no requirements of a script")
	}
	return projects, nil
}

// follow raises what the edges lead to, to at most the strength of their origin.
func (g *uvGraph) follow(from string, edges []uvEdge, strength truth) error {
	for _, e := range edges {
		name, ok := PyPIName(e.Name)
		if !ok || len(g.byName[name]) == 0 {
			return fmt.Errorf("%s depends on %s, which the lock does not have", from, shown(e.Name))
		}
		holds, err := g.env.eval(e.Marker)
		if err != nil {
			return fmt.Errorf("%s depends on %s: %w", from, name, err)
		}
		found := false
		for _, to := range g.byName[name] {
			if e.Version != "" && g.file.Packages[to].Version != e.Version {
				continue
			}
			found = true
			g.raise(uvNode{to, ""}, min(holds, strength))
			for _, x := range e.Extras {
				if g.file.Packages[to].Extras[x] != nil {
					g.raise(uvNode{to, x}, min(holds, strength))
				}
			}
		}
		if !found {
			return fmt.Errorf("%s depends on %s %s, which the lock does not have", from, name, shown(e.Version))
		}
	}
	return nil
}

// raise ends, because a node can be raised twice at most.
func (g *uvGraph) raise(n uvNode, to truth) {
	if to > g.need[n] {
		g.need[n] = to
		g.work = append(g.work, n)
	}
}

func (g *uvGraph) rows(projects map[int]bool) ([]Row, error) {
	var rows []Row
	for i, p := range g.file.Packages {
		need := g.need[uvNode{i, ""}]
		if projects[i] {
			if _, ok := parse440(p.Version); ok { // else it comes from its sources at build time
				rows = append(rows, Row{Ecosystem: PyPI, Name: p.Name, Version: p.Version, Optional: true})
			}
			continue
		}
		if need == no {
			continue
		}
		sums, err := uvHashes(p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.Name, err)
		}
		if _, ok := parse440(p.Version); !ok {
			return nil, fmt.Errorf("%s: %s is no version by PEP 440", p.Name, shown(p.Version))
		}
		rows = append(rows, Row{Ecosystem: PyPI, Name: p.Name, Version: p.Version, Optional: need == unknown, SHA256s: sums})
	}
	return rows, nil
}

func uvHashes(p uvPackage) ([]hashpipe.Digest, error) {
	for kind := range p.Source {
		if kind != "registry" && kind != "url" && kind != "path" {
			return nil, fmt.Errorf("comes from %s, without a hash; expected a registry or an archive", shown(kind))
		}
	}
	if len(p.Source) != 1 {
		return nil, fmt.Errorf("has %d sources, expected one", len(p.Source))
	}
	var sums []hashpipe.Digest
	for _, a := range append([]uvArchive{p.Sdist}, p.Wheels...) {
		digits, ok := strings.CutPrefix(a.Hash, "sha256:")
		if !ok {
			continue
		}
		sum, err := hashpipe.ParseDigest(digits)
		if err != nil {
			return nil, fmt.Errorf("hash %s: %w", shown(a.Hash), err)
		}
		sums = append(sums, sum)
	}
	return sums, wantHash(sums)
}

func wantHash(sums []hashpipe.Digest) error {
	if len(sums) == 0 {
		return errors.New("has no sha256 of an archive; next: lock from an index that states them")
	}
	return nil
}

// pylockFile is pylock.toml, https://packaging.python.org/specifications/pylock-toml/.
type pylockFile struct {
	LockVersion  string          `toml:"lock-version"`
	CreatedBy    string          `toml:"created-by"`
	Environments []string        `toml:"environments"`
	Packages     []pylockPackage `toml:"packages"`
}

type pylockPackage struct {
	Name      string          `toml:"name"`
	Version   string          `toml:"version"`
	Marker    string          `toml:"marker"`
	VCS       map[string]any  `toml:"vcs"`
	Directory map[string]any  `toml:"directory"`
	Archive   pylockArchive   `toml:"archive"`
	Sdist     pylockArchive   `toml:"sdist"`
	Wheels    []pylockArchive `toml:"wheels"`
}

type pylockArchive struct {
	Hashes map[string]string `toml:"hashes"`
}

func pylock(text []byte, env environment) ([]Row, error) {
	var file pylockFile
	if err := decodeTOML(text, &file); err != nil {
		return nil, err
	}
	if file.LockVersion != "1.0" {
		return nil, fmt.Errorf("lock-version is %s, expected 1.0", shown(file.LockVersion))
	}
	if file.CreatedBy == "" {
		return nil, errors.New("created-by is missing")
	}
	if err := pylockCovers(file.Environments, env); err != nil {
		return nil, err
	}
	var rows []Row
	for i, p := range file.Packages {
		if i == maxRows {
			return nil, fmt.Errorf("has more than %d packages", maxRows)
		}
		r, need, err := p.row(env)
		if err != nil {
			return nil, fmt.Errorf("package %d (%s): %w", i+1, shown(p.Name), err)
		}
		if need != no {
			rows = append(rows, r)
		}
	}
	return rows, nil
}

// pylockCovers refuses a lock that was made for other machines only.
func pylockCovers(environments []string, env environment) error {
	best := no
	for _, m := range environments {
		t, err := env.eval(m)
		if err != nil {
			return fmt.Errorf("environments: %w", err)
		}
		best = max(best, t)
	}
	if len(environments) > 0 && best == no {
		return errors.New("none of its environments is CPython on linux/amd64 with the image's Python version")
	}
	return nil
}

func (p pylockPackage) row(env environment) (Row, truth, error) {
	need, err := env.eval(p.Marker)
	if err != nil || need == no {
		return Row{}, no, err
	}
	name, ok := PyPIName(p.Name)
	if !ok {
		return Row{}, no, errors.New("no name of a package")
	}
	if p.VCS != nil || p.Directory != nil {
		return Row{}, no, errors.New("comes from version control or a directory, not from an archive with a hash")
	}
	if _, ok := parse440(p.Version); !ok {
		return Row{}, no, fmt.Errorf("%s is no version by PEP 440", shown(p.Version))
	}
	var sums []hashpipe.Digest
	for _, a := range append([]pylockArchive{p.Archive, p.Sdist}, p.Wheels...) {
		digits, ok := a.Hashes["sha256"]
		if !ok {
			continue
		}
		sum, err := hashpipe.ParseDigest(digits)
		if err != nil {
			return Row{}, no, fmt.Errorf("sha256 %s: %w", shown(digits), err)
		}
		sums = append(sums, sum)
	}
	r := Row{Ecosystem: PyPI, Name: name, Version: p.Version, Optional: need == unknown, SHA256s: sums}
	return r, need, wantHash(sums)
}
