// Package lock compares locked dependencies with what an environment image has
// installed. It reads texts and directory trees; it never executes anything.
//
// A lockfile becomes a List: rows of ecosystem, name and version. These formats
// are understood (Formats):
//
//	requirements    pip's requirements.txt: every line an exact == pin with at
//	                least one --hash=sha256:
//	pip-freeze      what `pip freeze` prints: name==version
//	conda-explicit  what `conda list --explicit --md5` prints: @EXPLICIT and URLs
//	                with #md5 or #sha256
//	uv              uv.lock
//	pylock          pylock.toml, PEP 751, lock-version 1.0
//	dpkg            what `dpkg-query -W` prints: package[:arch] version, or
//	                package[:arch]=version
//
// Whatever changes where packages come from (other indexes, files, directories,
// version control) is refused, because a name and a version then say nothing.
//
// # Markers
//
// Environment markers (PEP 508, with the additions of PEP 751) are evaluated
// for CPython on linux/amd64 with three outcomes. A row whose marker is false is
// left out. A row whose marker is neither true nor false, because it depends on
// the Python version, on an extra or on a dependency group that the lock does
// not choose, is Optional: it may be absent, but if the package is there it must
// have this version. ParseFor takes the Python version of the image, which
// decides most such markers.
//
// uv.lock has its markers on the edges of the dependency graph, so a package
// belongs to the List if it can be reached from a project of the lock: it is
// required if by edges that are all true, Optional if an edge is undecided, an
// extra of the project, or a group. The project itself is Optional: it may be
// installed or only run from its directory.
//
// A name with two versions, neither of which the markers rule out (a fork of the
// resolution), is refused: it cannot be said which the image should have.
package lock

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/openclaw/clawfs/hashpipe"
)

// Ecosystems of packages.
const (
	PyPI  = "pypi"
	Conda = "conda"
	Deb   = "deb"
)

// Bounds of a lockfile.
const (
	maxText   = 64 << 20 // bytes
	maxTOML   = 16 << 20 // bytes; a parsed TOML text takes many times its size
	maxRows   = 100_000
	maxLine   = 64 << 10 // bytes of one line
	maxJoined = 1 << 20  // bytes of a requirement with its continuation lines
)

// Row is one package that the lock names.
type Row struct {
	Ecosystem string // PyPI, Conda or Deb
	// Name is normalised by PEP 503 for PyPI, lower case for Conda.
	Name string
	// Arch is Debian's architecture, empty if the lock does not say it; such a
	// row is about the package of every architecture that is installed.
	Arch string
	// Version is as the lock has it. Conda's is followed by "-" and the build,
	// because builds of one version have different bytes.
	Version string
	// Optional rows may be absent from the image; see the package comment.
	Optional bool
	// SHA256s are of the archives that the lock permits, sorted; often none.
	SHA256s []hashpipe.Digest
}

func (r Row) String() string { return title(r.Name, r.Arch) + " " + r.Version }

func title(name, arch string) string {
	if arch == "" {
		return name
	}
	return name + ":" + arch
}

// List is a parsed lockfile: rows of one ecosystem, sorted by name and
// architecture, each pair once. The zero List equals no image.
type List struct{ rows []Row }

// Rows returns a copy of the rows.
func (l List) Rows() []Row { return slices.Clone(l.rows) }

// Ecosystem is what the rows are about; empty for the zero List.
func (l List) Ecosystem() string {
	if len(l.rows) == 0 {
		return ""
	}
	return l.rows[0].Ecosystem
}

// Formats are the formats that Parse takes.
func Formats() []string {
	return []string{"requirements", "pip-freeze", "conda-explicit", "uv", "pylock", "dpkg"}
}

// Parse reads a lockfile without knowing the image's Python version.
func Parse(format string, text []byte) (List, error) { return ParseFor(format, text, "") }

// ParseFor is Parse for an image with the given Python version, such as "3.11"
// (see Python); empty means unknown. An error names the line or the package, and
// a List comes without error only if every row of the text was understood.
func ParseFor(format string, text []byte, python string) (List, error) {
	env, err := newEnvironment(python)
	if err != nil {
		return List{}, err
	}
	rows, err := parse(format, text, env)
	if err == nil {
		rows, err = finish(rows)
	}
	if err != nil {
		return List{}, fmt.Errorf("%s lockfile: %w", shown(format), err)
	}
	return List{rows}, nil
}

func parse(format string, text []byte, env environment) ([]Row, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("has %d bytes, expected at most %d", len(text), maxText)
	}
	if !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 {
		return nil, errors.New("is not UTF-8 text; next: write it again as UTF-8")
	}
	switch format {
	case "requirements":
		return requirements(text, env)
	case "pip-freeze":
		return pipFreeze(text)
	case "conda-explicit":
		return condaExplicit(text)
	case "dpkg":
		return dpkgList(text)
	case "uv":
		return uvLock(text, env)
	case "pylock":
		return pylock(text, env)
	}
	return nil, fmt.Errorf("unknown format; expected one of %s", strings.Join(Formats(), ", "))
}

// finish sorts and merges rows that say the same thing. A name with two versions
// is an error.
func finish(rows []Row) ([]Row, error) {
	if len(rows) == 0 {
		return nil, errors.New("names no package; expected at least one")
	}
	slices.SortStableFunc(rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Arch, b.Arch))
	})
	out := rows[:0]
	for _, r := range rows {
		if len(out) > 0 {
			last := &out[len(out)-1]
			if last.Name == r.Name && last.Arch == r.Arch {
				if last.Version != r.Version {
					return nil, fmt.Errorf("%s has two versions, %s and %s; next: lock one of them%s", r.Name, last.Version, r.Version, forked(last.Optional || r.Optional))
				}
				last.Optional = last.Optional && r.Optional
				last.SHA256s = append(last.SHA256s, r.SHA256s...)
				continue
			}
		}
		if len(out) == maxRows {
			return nil, fmt.Errorf("names more than %d packages", maxRows)
		}
		out = append(out, r)
	}
	for i := range out {
		slices.SortFunc(out[i].SHA256s, func(a, b hashpipe.Digest) int { return cmp.Compare(a.String(), b.String()) })
		out[i].SHA256s = slices.Compact(out[i].SHA256s)
		if i > 0 && out[i].Name == out[i-1].Name && out[i-1].Arch == "" {
			return nil, fmt.Errorf("%s is named with and without an architecture; next: write one of the two everywhere", out[i].Name)
		}
	}
	return slices.Clip(out), nil
}

func forked(optional bool) string {
	if optional {
		return " (its markers do not decide it for CPython on linux/amd64 with what is known of the image's Python)"
	}
	return ""
}

// shown is s fit for a line of a message, whatever bytes it has.
func shown(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	q := strconv.Quote(s)
	if inner := q[1 : len(q)-1]; inner == s && s != "" {
		return s
	}
	return q
}
